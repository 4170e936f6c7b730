//! `lifeboat store point export`: one disk of a recovery point as a raw file with holes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use lifeboat_model::{BLOCK_SIZE, DiskId, Sequence};
use lifeboat_store::{PointReader, RangeKind};
use lifeboat_stream::is_zero;
use serde::Serialize;

use crate::commands::{open_store, shown};
use crate::exit::Failure;
use crate::new_file::NewFile;
use crate::output::OutputFormat;
use crate::progress::Progress;
use crate::size::Bytes;

/// How much of a disk is planned at once; bounds memory on fragmented disks.
const WINDOW: u64 = 256 << 20;

/// How much is read and written at once.
const STEP: u64 = 1 << 20;

#[derive(Debug, clap::Args)]
pub struct ExportArgs {
    /// The store's folder
    #[arg(value_name = "DIR")]
    folder: PathBuf,

    /// The recovery point
    #[arg(value_name = "SEQUENCE")]
    sequence: Sequence,

    /// The disk to copy
    #[arg(long, value_name = "NAME")]
    disk: DiskId,

    /// The file to make; one that exists is left alone
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

#[derive(Serialize)]
struct ExportView {
    sequence: Sequence,
    disk: DiskId,
    file: String,
    size: u64,
    data_bytes: u64,
}

/// Copies the disk. The file gets its name when it is whole and durable.
///
/// # Errors
/// When the point or disk is not there, or the file exists or cannot be written.
pub fn run(args: &ExportArgs, output: OutputFormat) -> Result<(), Failure> {
    let store = open_store(&args.folder, "store point export")?;
    let reader = store.reader(args.sequence, &args.disk)?;
    let new = NewFile::begin(&args.out)?;
    let progress = Progress::bytes_of("exported", reader.size());
    let data_bytes = copy(&reader, &new, &progress)?;
    drop(progress);
    new.publish()?;
    let view = ExportView {
        sequence: args.sequence,
        disk: args.disk.clone(),
        file: shown(&args.out),
        size: reader.size(),
        data_bytes,
    };
    output.print(&view, |view| {
        format!(
            "{} of recovery point {} copied to {}: {}, of which {} data\n",
            view.disk,
            view.sequence,
            view.file,
            Bytes(view.size),
            Bytes(view.data_bytes)
        )
    })
}

/// Copies what is not zero; answers how many bytes that was.
fn copy(reader: &PointReader, new: &NewFile, progress: &Progress) -> Result<u64, Failure> {
    let reading = |source| Failure::Read {
        input: "the recovery point".to_owned(),
        source,
    };
    let size = reader.size();
    let set = new.file().set_len(size);
    set.map_err(|source| new.write_failed(source))?;
    let mut buffer = Vec::new();
    let mut data_bytes = 0;
    let mut start = 0;
    while start < size {
        let end = (start + WINDOW).min(size);
        for (range, kind) in reader.ranges(start..end).map_err(reading)? {
            if kind == RangeKind::Zero {
                continue;
            }
            let mut offset = range.start;
            while offset < range.end {
                let step = STEP.min(range.end - offset);
                buffer.resize(step as usize, 0);
                reader.read_at(offset, &mut buffer).map_err(reading)?;
                let written = write_sparse(new.file(), offset, &buffer);
                data_bytes += written.map_err(|source| new.write_failed(source))?;
                offset += step;
                progress.set(offset);
            }
        }
        progress.set(end);
        start = end;
    }
    Ok(data_bytes)
}

/// Writes the blocks that are not zero; answers how many bytes that was.
fn write_sparse(file: &File, offset: u64, bytes: &[u8]) -> io::Result<u64> {
    let mut written = 0;
    let mut pending = 0..0;
    for start in (0..bytes.len()).step_by(BLOCK_SIZE as usize) {
        let end = (start + BLOCK_SIZE as usize).min(bytes.len());
        if is_zero(&bytes[start..end]) {
            file.write_all_at(&bytes[pending.clone()], offset + pending.start as u64)?;
            written += pending.len() as u64;
            pending = end..end;
        } else {
            pending.end = end;
        }
    }
    file.write_all_at(&bytes[pending.clone()], offset + pending.start as u64)?;
    Ok(written + pending.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroes_between_data_stay_holes_and_everything_else_arrives() {
        let block = BLOCK_SIZE as usize;
        let mut bytes = vec![0; 5 * block + 512];
        bytes[block] = 1;
        bytes[4 * block - 1] = 2;
        bytes[5 * block + 511] = 3;
        let file = tempfile::tempfile().unwrap();
        file.set_len(8192 + bytes.len() as u64).unwrap();
        let written = write_sparse(&file, 8192, &bytes).unwrap();
        assert_eq!(written, 2 * BLOCK_SIZE + 512);
        let mut read = vec![9; bytes.len()];
        file.read_exact_at(&mut read, 8192).unwrap();
        assert!(read == bytes);
    }
}
