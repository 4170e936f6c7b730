//! Sizes as people write and read them: powers of 1024.

use std::fmt;

/// The units from the largest down: the suffix when written, the name when read.
const UNITS: [(char, &str, u32); 4] = [
    ('T', "TiB", 40),
    ('G', "GiB", 30),
    ('M', "MiB", 20),
    ('K', "KiB", 10),
];

/// A number of bytes, printed in the unit that suits it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((_, name, shift)) = UNITS.iter().find(|(_, _, shift)| self.0 >> shift > 0) else {
            return write!(f, "{} B", self.0);
        };
        let whole = self.0 >> shift;
        let rest = self.0 & ((1 << shift) - 1);
        if rest == 0 {
            return write!(f, "{whole} {name}");
        }
        // Rounded down: a disk never looks larger than it is.
        let tenths = (u128::from(rest) * 10) >> shift;
        write!(f, "{whole}.{tenths} {name}")
    }
}

/// Reads a number of bytes with an optional suffix K, M, G or T.
///
/// # Errors
/// What the text must look like, or that the number is too large.
pub fn parse(text: &str) -> Result<u64, String> {
    let unit = UNITS
        .iter()
        .find(|(suffix, _, _)| text.ends_with([*suffix, suffix.to_ascii_lowercase()]));
    let (digits, shift) = match unit {
        Some((_, _, shift)) => (&text[..text.len() - 1], *shift),
        None => (text, 0),
    };
    if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err("a size is a whole number of bytes, or one with the suffix K, M, G or T (powers of 1024), such as 20G".to_owned());
    }
    digits
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(1 << shift))
        .ok_or_else(|| "the size is larger than any disk".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_are_powers_of_1024() {
        assert_eq!(parse("512"), Ok(512));
        assert_eq!(parse("4K"), Ok(4096));
        assert_eq!(parse("1m"), Ok(1 << 20));
        assert_eq!(parse("20G"), Ok(20 << 30));
        assert_eq!(parse("64T"), Ok(64 << 40));
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "",
            "G",
            "-1",
            "+1",
            "1.5G",
            "1 G",
            "1GiB",
            "1KK",
            "0x10",
            "1é",
            "é",
            "99999999999999999999",
            "18446744073709551615K",
        ] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_size_is_printed_in_its_unit_and_never_rounded_up() {
        let text = |bytes| Bytes(bytes).to_string();
        assert_eq!(text(0), "0 B");
        assert_eq!(text(1023), "1023 B");
        assert_eq!(text(1024), "1 KiB");
        assert_eq!(text(1536), "1.5 KiB");
        assert_eq!(text((1 << 30) - 1), "1023.9 MiB");
        assert_eq!(text(20 << 30), "20 GiB");
        assert_eq!(text(u64::MAX), "16777215.9 TiB");
    }
}
