//! A value that the catalog keeps without looking into it.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::Refused;

/// The longest document, in bytes of JSON.
pub const MAX_DOCUMENT: usize = 4 << 20;

/// Reading JSON stops at 128 levels; what is written must be readable.
const MAX_DEPTH: usize = 100;

/// JSON with the number of its format, by which whoever reads it knows what it says.
///
/// Kept as text: the number, a space, the JSON.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    pub format: u32,
    pub data: Value,
}

impl Document {
    /// What `value` serializes to, as a document of this format.
    ///
    /// # Errors
    /// As `value`'s own serialization.
    pub fn of<T: Serialize>(format: u32, value: &T) -> Result<Self, serde_json::Error> {
        let data = serde_json::to_value(value)?;
        Ok(Self { format, data })
    }

    /// The document as a `T`. Whoever calls has looked at [`format`](Self::format).
    ///
    /// # Errors
    /// When the data is no `T`.
    pub fn to<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        T::deserialize(&self.data)
    }

    /// The text that is kept.
    pub(crate) fn encode(&self, what: &'static str) -> Result<String, Refused> {
        if self.is_too_deep() {
            let limit = MAX_DEPTH;
            return Err(Refused::TooDeep { what, limit });
        }
        let text = format!("{} {}", self.format, self.data);
        let limit = MAX_DOCUMENT;
        match text.len() {
            bytes if bytes > limit => Err(Refused::TooLong { what, bytes, limit }),
            _ => Ok(text),
        }
    }

    /// Reads text that [`encode`](Self::encode) wrote.
    pub(crate) fn decode(text: &str) -> Result<Self, InvalidDocument> {
        if text.len() > MAX_DOCUMENT {
            return Err(InvalidDocument::TooLong { bytes: text.len() });
        }
        let (format, data) = text.split_once(' ').ok_or(InvalidDocument::NoFormat)?;
        Ok(Self {
            format: format.parse().map_err(|_| InvalidDocument::NoFormat)?,
            data: serde_json::from_str(data)
                .map_err(|source| InvalidDocument::NoJson { source })?,
        })
    }

    /// Without recursion, so that no value can exhaust the stack here.
    fn is_too_deep(&self) -> bool {
        let mut open = vec![(&self.data, 1)];
        while let Some((value, depth)) = open.pop() {
            if depth > MAX_DEPTH {
                return true;
            }
            match value {
                Value::Array(items) => open.extend(items.iter().map(|item| (item, depth + 1))),
                Value::Object(fields) => {
                    open.extend(fields.values().map(|field| (field, depth + 1)));
                }
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
            }
        }
        false
    }
}

/// Text that is no document.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InvalidDocument {
    #[error("the document has {bytes} bytes, more than was ever written")]
    TooLong { bytes: usize },
    #[error("the document does not begin with the number of its format")]
    NoFormat,
    #[error("the document is not JSON")]
    NoJson { source: serde_json::Error },
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            ".*".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 64, 8, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
                prop::collection::vec((".*", inner), 0..8)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_document_reads_back_as_it_was_written(format: u32, data in any_value()) {
            let document = Document { format, data };
            let text = document.encode("the document").unwrap();
            prop_assert_eq!(Document::decode(&text).unwrap(), document);
        }

        #[test]
        fn no_text_makes_reading_panic(text in ".*") {
            let _ = Document::decode(&text);
        }
    }

    #[test]
    fn the_text_of_a_document_is_pinned() {
        let document = Document {
            format: 7,
            data: json!({"a": [1, "x"]}),
        };
        assert_eq!(document.encode("it").unwrap(), r#"7 {"a":[1,"x"]}"#);
    }

    #[test]
    fn what_could_not_be_read_again_is_not_written() {
        let nested = |levels: usize| {
            let data = (1..levels).fold(json!(1), |inner, _| json!([inner]));
            Document { format: 1, data }
        };
        let deepest = nested(MAX_DEPTH).encode("it").unwrap();
        assert!(Document::decode(&deepest).is_ok());
        assert_eq!(
            nested(MAX_DEPTH + 1).encode("it"),
            Err(Refused::TooDeep {
                what: "it",
                limit: MAX_DEPTH
            })
        );
        let long = Document {
            format: 1,
            data: "x".repeat(MAX_DOCUMENT).into(),
        };
        assert!(matches!(long.encode("it"), Err(Refused::TooLong { .. })));
    }

    #[test]
    fn text_that_is_no_document_says_what_is_wrong() {
        for (text, why) in [
            ("", "format"),
            ("1", "format"),
            ("x {}", "format"),
            ("4294967296 {}", "format"),
            ("1 {", "not JSON"),
            ("1 {} {}", "not JSON"),
        ] {
            let error = Document::decode(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text:?}: {error}");
        }
    }
}
