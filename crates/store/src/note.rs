//! What a store's owner notes of the VM beside it: bytes that mean nothing to the store.
//!
//! ```text
//! lifeboat-note-1 <BLAKE3 of what follows the line, in hexadecimal>
//! <the owner's bytes>
//! ```
//!
//! A crash while a note is kept leaves the one before, or the new one. The journal never refers to
//! it: a store without a note, and one whose note is damaged, is as good as any other.

use std::io::ErrorKind;

use lifeboat_sys::disk::{Access, DiskPort};

use crate::damage::Damage;
use crate::error::{IoContext, Refused, StoreError};
use crate::files;
use crate::layout::Layout;
use crate::store::Store;

/// The longest note, in bytes.
pub const MAX_NOTE: usize = 512 << 10;

const MAGIC: &str = "lifeboat-note-1 ";

/// [`MAGIC`], a digest, and the end of the line.
const HEADER: usize = MAGIC.len() + 64 + 1;

impl Store {
    /// Keeps a note in place of the one before; nothing is written if it is the same. Durable
    /// on return.
    ///
    /// # Errors
    /// [`Refused::NoteTooLong`], or what the operating system says. The note before stays.
    pub fn keep_note(&self, note: &[u8]) -> Result<(), StoreError> {
        if note.len() > MAX_NOTE {
            return Err(Refused::NoteTooLong { bytes: note.len() }.into());
        }
        // One that cannot be read is replaced.
        if let Ok(Some(kept)) = self.note()
            && kept == note
        {
            return Ok(());
        }
        let mut bytes = format!("{MAGIC}{}\n", blake3::hash(note).to_hex()).into_bytes();
        bytes.extend_from_slice(note);
        let (new, path) = (self.layout.new_note(), self.layout.note());
        files::replace(self.disk.as_ref(), &new, &path, &bytes)
    }

    /// The note that was kept last; stores of before have none.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when it is not as it was kept, or what the operating system says.
    pub fn note(&self) -> Result<Option<Vec<u8>>, StoreError> {
        read(self.disk.as_ref(), &self.layout)
    }
}

/// Reads the note of a store, whoever has it open.
pub(crate) fn read(disk: &dyn DiskPort, layout: &Layout) -> Result<Option<Vec<u8>>, StoreError> {
    let path = layout.note();
    let file = match disk.open(&path, Access::ReadOnly) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        outcome => outcome.context("open", &path)?,
    };
    let len = file.len().context("measure", &path)?;
    let damaged = |why| {
        Err(StoreError::Damaged {
            path: path.clone(),
            damage: Damage::Note { why },
        })
    };
    if len > (HEADER + MAX_NOTE) as u64 {
        return damaged("it is longer than any note");
    }
    let mut bytes = vec![0; len as usize];
    file.read_at(&mut bytes, 0).context("read", &path)?;
    let Some((header, note)) = bytes.split_at_checked(HEADER) else {
        return damaged("it is cut off");
    };
    let expected = format!("{MAGIC}{}\n", blake3::hash(note).to_hex());
    if header != expected.as_bytes() {
        return damaged("it fails its digest");
    }
    bytes.drain(..HEADER);
    Ok(Some(bytes))
}
