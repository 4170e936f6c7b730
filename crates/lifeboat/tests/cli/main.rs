//! The program as its users run it: arguments in, text or JSON and an exit code out.

mod backups;
mod capturing;
mod catalogs;
#[path = "../../../rest/tests/fake/mod.rs"]
mod fake;
mod flow;
mod golden;
mod qemu_nbd;
mod refusals;
mod remote;
mod serving;
mod support;
