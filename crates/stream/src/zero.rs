//! Telling zeroes from data.

/// Compared piece by piece, so that data is recognized after the first piece.
const ZEROES: [u8; 4096] = [0; 4096];

/// Whether all bytes are zero, at the speed of a memory comparison.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    bytes
        .chunks(ZEROES.len())
        .all(|piece| *piece == ZEROES[..piece.len()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bit_anywhere_is_not_zero() {
        for length in [0, 1, 511, 4096, 4097, 12_288] {
            let mut bytes = vec![0; length];
            assert!(is_zero(&bytes));
            for position in 0..length {
                bytes[position] = 0x80;
                assert!(!is_zero(&bytes), "{position} of {length}");
                bytes[position] = 0;
            }
        }
    }
}
