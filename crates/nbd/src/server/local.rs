//! An export as this process uses it, without a connection.

use std::fmt;
use std::io;
use std::sync::{Arc, Weak};

use super::export::{Entry, ExportSet, Visit};
use crate::context::ContextName;
use crate::extent::Extent;

/// The most extents that are asked of an export at once.
const EXTENTS_AT_ONCE: usize = 1024;

/// An export of an [`ExportSet`] that is read in this process. It ends as connections do: once
/// the export is removed every call fails, and the removal waits for calls that are under way.
/// Clones use the same export.
#[derive(Clone)]
pub struct LocalExport {
    name: String,
    size: u64,
    contexts: Vec<ContextName>,
    /// Holding this does not keep the export.
    entry: Weak<Entry>,
}

impl ExportSet {
    /// The export of this name, for readers in this process; nothing if there is none.
    #[must_use]
    pub fn local(&self, name: &str) -> Option<LocalExport> {
        let entry = self.get(name)?;
        Some(LocalExport {
            name: name.to_owned(),
            size: entry.size,
            contexts: entry.contexts.clone(),
            entry: Arc::downgrade(&entry),
        })
    }
}

impl LocalExport {
    /// In bytes.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The maps on offer.
    pub fn contexts(&self) -> impl Iterator<Item = &ContextName> {
        self.contexts.iter()
    }

    /// Fills `into`.
    ///
    /// # Errors
    /// When the range is not inside of the export, any byte of it cannot be read, or the export
    /// has been removed.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let visit = self.visit(offset, into.len() as u64)?;
        visit.entry.export.read(offset, into)
    }

    /// All extents of one of [`contexts`](Self::contexts) over the range, the last one cut at its
    /// end; `None` when there are more than `limit`.
    ///
    /// # Errors
    /// As [`read`](Self::read), and when the export's map has gaps.
    pub fn collect_extents(
        &self,
        context: &ContextName,
        offset: u64,
        length: u64,
        limit: usize,
    ) -> io::Result<Option<Vec<Extent>>> {
        let visit = self.visit(offset, length)?;
        let end = offset + length;
        let (mut list, mut next) = (Vec::new(), offset);
        while next < end {
            let export = &visit.entry.export;
            let found = export.extents(context, next, end - next, EXTENTS_AT_ONCE)?;
            if found.is_empty() {
                return Err(io::Error::other("the export's map has gaps"));
            }
            for extent in found {
                if next >= end {
                    break;
                }
                if extent.offset != next || extent.length == 0 {
                    return Err(io::Error::other("the export's map has gaps"));
                }
                if list.len() == limit {
                    return Ok(None);
                }
                let length = extent.length.min(end - next);
                list.push(Extent { length, ..extent });
                next += length;
            }
        }
        Ok(Some(list))
    }

    fn visit(&self, offset: u64, length: u64) -> io::Result<Visit> {
        let end = offset.checked_add(length);
        if end.is_none_or(|end| end > self.size) {
            let what = format!(
                "{length} bytes at {offset} of export {:?}: it ends at {}",
                self.name, self.size
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        let entry = self.entry.upgrade();
        let visit = entry.and_then(|entry| entry.visit());
        visit.ok_or_else(|| {
            let what = format!("export {:?} has been removed", self.name);
            io::Error::new(io::ErrorKind::NotConnected, what)
        })
    }
}

impl fmt::Debug for LocalExport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalExport")
            .field("name", &self.name)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}
