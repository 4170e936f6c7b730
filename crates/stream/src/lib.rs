//! The delta stream: encode, decode, verify.
