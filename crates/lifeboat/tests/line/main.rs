//! Two daemons of the real program with a bad line between them: slow, late, and cut.

mod host;
mod relay;
mod replicated;
mod space;
