//! The replica's store: journal, heads, segments, recovery points.
