//! `lifeboat store receive`.

use std::io::{self, Read};
use std::path::PathBuf;

use lifeboat_model::{DeltaId, LineageId, Sequence};
use lifeboat_store::Received;
use serde::Serialize;

use crate::commands::{open_input, open_store};
use crate::exit::Failure;
use crate::output::OutputFormat;
use crate::progress::Progress;
use crate::size::Bytes;

#[derive(Debug, clap::Args)]
pub struct ReceiveArgs {
    /// The store's folder
    #[arg(value_name = "DIR")]
    folder: PathBuf,

    /// The delta stream; `-` is the standard input
    #[arg(value_name = "FILE", default_value = "-")]
    input: PathBuf,
}

#[derive(Serialize)]
struct ReceiptView {
    lineage: LineageId,
    sequence: Sequence,
    id: DeltaId,
    repeated: bool,
    bytes: u64,
}

/// Receives one delta and prints its receipt.
///
/// # Errors
/// Refused when the delta does not continue what is here; nothing of it is kept then.
pub fn run(args: &ReceiveArgs, output: OutputFormat) -> Result<(), Failure> {
    let input = open_input(&args.input)?;
    let mut store = open_store(&args.folder, "store receive")?;
    let progress = Progress::bytes("received");
    let counted = Counted {
        input,
        done: 0,
        progress: &progress,
    };
    let Received {
        receipt,
        repeated,
        bytes,
    } = store.receive(counted)?;
    drop(progress);
    let view = ReceiptView {
        lineage: receipt.lineage,
        sequence: receipt.sequence,
        id: receipt.id,
        repeated,
        bytes,
    };
    output.print(&view, text)
}

fn text(view: &ReceiptView) -> String {
    let outcome = if view.repeated {
        "was here already"
    } else {
        "received"
    };
    let (sequence, bytes, id) = (view.sequence, Bytes(view.bytes), view.id);
    format!("delta {sequence} {outcome}: {bytes}, id {id}\n")
}

/// Shows how much has been read.
struct Counted<'a, R> {
    input: R,
    done: u64,
    progress: &'a Progress,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.done += read as u64;
        self.progress.set(self.done);
        Ok(read)
    }
}
