//! The program as its users run it: arguments in, text or JSON and an exit code out.

mod capturing;
mod flow;
mod golden;
mod qemu_nbd;
mod refusals;
mod serving;
mod support;
