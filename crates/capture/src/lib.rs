//! Capture of a frozen view into a delta stream.
