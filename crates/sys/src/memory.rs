//! Memory in large pieces.

use std::mem::MaybeUninit;

use crate::raw;

/// Hints that all of this memory will be filled soon: the kernel may back it with huge pages, so
/// that filling it takes few page faults. What it holds does not change. Of little memory nothing is
/// said.
pub fn will_be_filled(memory: &mut [MaybeUninit<u8>]) {
    /// As much as two huge pages: less than that seldom holds a whole one.
    const WORTH_IT: usize = 4 << 20;
    if memory.len() >= WORTH_IT {
        raw::advise_huge_pages(memory);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_any_size_and_alignment_can_be_named() {
        for (len, from) in [(0, 0), (1, 1), (5000, 3), (5 << 20, 4097)] {
            let mut memory: Vec<u8> = Vec::with_capacity(len + from);
            will_be_filled(&mut memory.spare_capacity_mut()[from..]);
            memory.resize(len + from, 7);
            will_be_filled(memory.spare_capacity_mut());
            assert!(memory.iter().all(|&byte| byte == 7));
        }
    }
}
