//! Copies of whole folders.

use std::io;
use std::path::Path;

/// Copies a folder with its files and symlinks to a new place. Holes may be filled.
///
/// # Errors
/// What the operating system says.
pub fn copy_folder(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::create_dir(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let new = to.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy_folder(&entry.path(), &new)?;
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(std::fs::read_link(entry.path())?, &new)?;
        } else {
            std::fs::copy(entry.path(), &new)?;
        }
    }
    Ok(())
}
