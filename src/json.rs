//! Reading JSON as this house reads it: an object is an object, and a text is borrowed where it can be.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// A `T` written as an object. What serde derives also takes an array of the fields in their order, which nobody means.
#[derive(Debug)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Object<T>, D::Error> {
        deserializer.deserialize_map(ObjectVisitor(PhantomData)).map(Object)
    }
}

/// For `deserialize_with`: a field of type `T` that is an object.
///
/// # Errors
/// What `T`'s own reading says, or that it is no object.
pub fn object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Object::deserialize(deserializer).map(|Object(value)| value)
}

/// For `deserialize_with`: an array of objects.
///
/// # Errors
/// As [`object`].
pub fn objects<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    Vec::deserialize(deserializer).map(|objects| objects.into_iter().map(|Object(value)| value).collect())
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = T;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(members))
    }
}

/// A text, borrowed from the document unless it was written with escapes.
#[derive(Debug, serde::Serialize)]
#[serde(transparent)]
pub struct Text<'a>(pub Cow<'a, str>);

impl Text<'_> {
    #[must_use]
    pub fn into_owned(self) -> String {
        self.0.into_owned()
    }
}

impl std::ops::Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Text<'a>, D::Error> {
        deserializer.deserialize_str(TextVisitor).map(Text)
    }
}

struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Cow<'de, str>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a string")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Cow<'de, str>, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E>(self, text: &str) -> Result<Cow<'de, str>, E> {
        Ok(Cow::Owned(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Cow<'de, str>, E> {
        Ok(Cow::Owned(text))
    }
}

/// A text whose halves of surrogate pairs are replaced: such a half is JSON by its grammar, some languages write it,
/// and it is no Unicode.
#[derive(Debug)]
pub struct LossyText<'a>(pub Cow<'a, str>);

impl std::ops::Deref for LossyText<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for LossyText<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<LossyText<'a>, D::Error> {
        LossyText::of(<&RawValue>::deserialize(deserializer)?).ok_or_else(|| de::Error::custom("not a string"))
    }
}

impl<'a> LossyText<'a> {
    /// What a string says; `None` for any other value.
    #[must_use]
    pub fn of(raw: &'a RawValue) -> Option<LossyText<'a>> {
        let text = raw.get();
        let inside = text.strip_prefix('"')?.strip_suffix('"')?;
        if !inside.contains('\\') {
            return Some(LossyText(Cow::Borrowed(inside)));
        }
        // Asked for bytes, serde_json writes such a half as three that are no UTF-8. It also lets control characters
        // pass then, of which a raw value has none.
        let bytes = serde_json::Deserializer::from_str(text).deserialize_bytes(BytesVisitor).ok()?;
        Some(LossyText(Cow::Owned(String::from_utf8_lossy(&bytes).into_owned())))
    }
}

struct BytesVisitor;

impl Visitor<'_> for BytesVisitor {
    type Value = Vec<u8>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a string")
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
        Ok(bytes.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize, PartialEq)]
    struct Pair {
        a: i64,
        #[serde(default)]
        b: i64,
    }

    #[test]
    fn an_array_is_no_object() {
        let read = |text: &str| serde_json::from_str::<Object<Pair>>(text).map(|Object(pair)| pair).ok();
        assert_eq!(read(r#"{"b":2,"a":1}"#), Some(Pair { a: 1, b: 2 }));
        assert_eq!((read("[1,2]"), read("null"), read(r#"{"b":1}"#)), (None, None, None));
    }

    #[test]
    fn half_a_surrogate_pair_is_replaced_where_that_is_allowed() {
        let read = |text: &'static str| serde_json::from_str::<LossyText<'static>>(text).map(|text| text.0).ok();
        assert_eq!(read(r#""a\ud800b""#).as_deref(), Some("a\u{fffd}\u{fffd}\u{fffd}b"));
        assert!(matches!(read(r#""\ud83d\ude00""#), Some(Cow::Owned(text)) if text == "\u{1f600}"));
        assert!(matches!(read(r#""plain""#), Some(Cow::Borrowed("plain"))));
        assert_eq!([read("[97]"), read("7"), read("\"a\nb\""), read("\"a\\n\nb\"")], [None, None, None, None]);
        assert!(serde_json::from_str::<Text<'_>>(r#""a\ud800b""#).is_err());
    }

    #[test]
    fn only_escapes_are_copied() {
        let read = |text: &'static str| serde_json::from_str::<Text<'static>>(text).unwrap().0;
        assert!(matches!(read(r#""plain""#), Cow::Borrowed("plain")));
        assert!(matches!(read(r#""pl\u0061in""#), Cow::Owned(text) if text == "plain"));
    }
}
