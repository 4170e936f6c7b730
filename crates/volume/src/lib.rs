//! Disks served over NBD with change tracking.
