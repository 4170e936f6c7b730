//! Our images in the hands of stock QEMU tools, and theirs in ours.

mod chain;
mod foreign;
mod overlay;
mod tools;
mod wrapper;
