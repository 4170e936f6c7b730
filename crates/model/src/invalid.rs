//! What is wrong with values that somebody gave.

use std::fmt;

/// How much of a refused text is quoted, in characters.
const QUOTED: usize = 80;

/// One field whose value is not acceptable.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct InvalidField {
    /// As it is called in requests and files.
    pub field: &'static str,
    /// The value, shortened if it is long.
    pub given: String,
    /// What would be accepted, or what to do: completes "the field ...".
    pub remedy: String,
}

impl fmt::Display for InvalidField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}: {}", self.field, self.given, self.remedy)
    }
}

/// Every field that is not acceptable, at least one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct InvalidFields {
    fields: Vec<InvalidField>,
}

impl InvalidFields {
    /// In the order in which the fields are checked; never empty.
    #[must_use]
    pub fn fields(&self) -> &[InvalidField] {
        &self.fields
    }
}

impl fmt::Display for InvalidFields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, field) in self.fields.iter().enumerate() {
            let separator = if at == 0 { "" } else { "; " };
            write!(f, "{separator}{field}")?;
        }
        Ok(())
    }
}

/// Gathers what is wrong while all fields are looked at.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    fields: Vec<InvalidField>,
}

impl Findings {
    pub(crate) fn add(
        &mut self,
        field: &'static str,
        given: &dyn fmt::Display,
        remedy: impl Into<String>,
    ) {
        self.fields.push(InvalidField {
            field,
            given: quoted(&given.to_string()),
            remedy: remedy.into(),
        });
    }

    /// The value if it is in the range, with `unit` for people.
    pub(crate) fn number<T: TryFrom<u64>>(
        &mut self,
        field: &'static str,
        given: u64,
        range: std::ops::RangeInclusive<u64>,
        unit: &str,
    ) -> Option<T> {
        let value = T::try_from(given).ok().filter(|_| range.contains(&given));
        if value.is_none() {
            let (first, last) = (range.start(), range.end());
            let space = if unit.is_empty() { "" } else { " " };
            self.add(field, &given, format!("use {first} to {last}{space}{unit}"));
        }
        value
    }

    /// The parsed value, or the parser's word on why it is none.
    pub(crate) fn text<T: std::str::FromStr<Err: fmt::Display>>(
        &mut self,
        field: &'static str,
        given: &str,
    ) -> Option<T> {
        match given.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.add(
                    field,
                    &format_args!("{:?}", quoted(given)),
                    error.to_string(),
                );
                None
            }
        }
    }

    /// The value, if all of it was there and nothing else was wrong.
    pub(crate) fn finish<T>(self, value: Option<T>) -> Result<T, InvalidFields> {
        match value {
            Some(value) if self.fields.is_empty() => Ok(value),
            Some(_) | None => {
                assert!(
                    !self.fields.is_empty(),
                    "BUG: a value is missing and no field is wrong"
                );
                Err(InvalidFields {
                    fields: self.fields,
                })
            }
        }
    }
}

/// The beginning of a text from outside.
pub(crate) fn quoted(text: &str) -> String {
    text.chars().take(QUOTED).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_wrong_fields_are_named_with_what_would_be_right() {
        let mut findings = Findings::default();
        let small: Option<u8> = findings.number("history", 300, 0..=24, "points");
        let kept: Option<u8> = findings.number("hours", 3, 0..=12, "hours");
        let text: Option<crate::DiskSize> = None;
        findings.add("name", &"x".repeat(5000), "use a short one");
        assert_eq!((small, kept, text), (None, Some(3), None));
        let error = findings.finish(small).unwrap_err();
        assert_eq!(error.fields().len(), 2);
        assert!(
            error
                .to_string()
                .starts_with("history is 300: use 0 to 24 points; name is xxx")
        );
        assert!(error.to_string().len() < 300);
    }

    #[test]
    fn a_number_that_does_not_fit_its_type_is_refused_even_inside_the_range() {
        let mut findings = Findings::default();
        let value: Option<u8> = findings.number("number", 256, 0..=1000, "");
        assert_eq!(value, None);
        assert!(findings.finish(value).is_err());
    }
}
