//! The edge to the operating system: disk port, recorder, clock, locks.
