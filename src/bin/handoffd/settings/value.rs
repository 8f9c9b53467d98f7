//! The value of a setting, from a flag or from a key of the configuration file.
//!
//! Each kind of value has one parser, so a flag and a key accept the same values. A value also
//! stores the position where it was given, because some mistakes are found only when settings are
//! combined.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Unexpected, Visitor};
use toml::Spanned;

/// A kind of value, with its parser. A value is written as text, as a number, or as true or false.
pub(super) trait Kind {
    type Value: Clone + fmt::Debug + Send + Sync + 'static;

    /// What an error message calls a value of this kind, such as "time" or "path".
    const NOUN: &'static str;

    /// A description of valid values in a file, for the error about a value of another type.
    const EXPECTED: &'static str;

    /// Parses a value that is written as text. Returns `None` if `Self` is not written as text.
    fn text(_: &str) -> Option<Result<Self::Value, Expected>> {
        None
    }

    /// Parses a value that is written as a whole number. Returns `None` if `Self` is not written as
    /// a number.
    fn number(_: u64) -> Option<Result<Self::Value, Expected>> {
        None
    }

    /// Converts a value that is written as true or false. Returns `None` if `Self` is not written
    /// as true or false.
    fn truth(_: bool) -> Option<Self::Value> {
        None
    }
}

/// Error returned for an invalid value. It describes the values that are valid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Expected(String);

impl<T: Into<String>> From<T> for Expected {
    fn from(text: T) -> Self {
        Self(text.into())
    }
}

/// The value of a setting, and where it was given.
pub(super) struct Given<K: Kind> {
    pub(super) value: K::Value,
    /// The position of the value in the configuration file, in bytes. `None` if a flag gives it.
    pub(super) offset: Option<usize>,
}

/// Replaces `setting`, usually a default, with the given value, if there is one.
pub(super) fn set<K: Kind>(setting: &mut K::Value, given: Option<Given<K>>) {
    if let Some(given) = given {
        *setting = given.value;
    }
}

/// Returns the given value without its position, if there is one.
pub(super) fn value<K: Kind>(given: Option<Given<K>>) -> Option<K::Value> {
    given.map(|given| given.value)
}

// `Clone` and `Debug` are not derived, because a derive would require that `K` implements them too.
impl<K: Kind> Clone for Given<K> {
    fn clone(&self) -> Self {
        Self { value: self.value.clone(), offset: self.offset }
    }
}

impl<K: Kind> fmt::Debug for Given<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value.fmt(f)
    }
}

/// Parses the value of a flag.
impl<K: Kind> FromStr for Given<K> {
    type Err = Expected;

    fn from_str(text: &str) -> Result<Self, Expected> {
        let number = || text.parse().ok().and_then(K::number);
        let truth = || text.parse().ok().and_then(K::truth).map(Ok);
        let other = || Err(Expected::from(format!("expected {}", K::EXPECTED)));
        let value = K::text(text).or_else(number).or_else(truth).unwrap_or_else(other)?;
        Ok(Self { value, offset: None })
    }
}

/// Parses a value in the configuration file.
impl<'de, K: Kind> Deserialize<'de> for Given<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Spanned::<InFile<K>>::deserialize(deserializer)?;
        let offset = Some(value.span().start);
        Ok(Self { value: value.into_inner().0, offset })
    }
}

/// Deserializes a list of values in the configuration file.
pub(super) fn list<'de, D, K>(deserializer: D) -> Result<Option<Vec<Given<K>>>, D::Error>
where
    D: Deserializer<'de>,
    K: Kind,
{
    deserializer.deserialize_any(ListOf::<K>(PhantomData)).map(Some)
}

/// A value in the configuration file.
struct InFile<K: Kind>(K::Value);

impl<'de, K: Kind> Deserialize<'de> for InFile<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OfKind::<K>(PhantomData)).map(Self)
    }
}

struct OfKind<K>(PhantomData<K>);

impl<'de, K: Kind> Visitor<'de> for OfKind<K> {
    type Value = K::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(K::EXPECTED)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<K::Value, E> {
        let read = K::text(text).ok_or_else(|| E::invalid_type(Unexpected::Str(text), &self))?;
        read.map_err(|expected| E::custom(format!("bad {} {text:?}: {expected}", K::NOUN)))
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<K::Value, E> {
        match u64::try_from(number) {
            Ok(number) => self.visit_u64(number),
            Err(_) => Err(E::invalid_value(Unexpected::Signed(number), &self)),
        }
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<K::Value, E> {
        let read = K::number(number)
            .ok_or_else(|| E::invalid_type(Unexpected::Unsigned(number), &self))?;
        read.map_err(|expected| E::custom(format!("bad {} {number}: {expected}", K::NOUN)))
    }

    /// Reports an error for a number that does not fit into 64 bits.
    fn visit_i128<E: serde::de::Error>(self, number: i128) -> Result<K::Value, E> {
        Err(E::invalid_value(Unexpected::Other(&format!("integer `{number}`")), &self))
    }

    fn visit_bool<E: serde::de::Error>(self, truth: bool) -> Result<K::Value, E> {
        K::truth(truth).ok_or_else(|| E::invalid_type(Unexpected::Bool(truth), &self))
    }

    /// Reports an error for a table. The crate `toml` presents a date as a table, so a date is an
    /// error too.
    fn visit_map<M: MapAccess<'de>>(self, _: M) -> Result<K::Value, M::Error> {
        Err(serde::de::Error::invalid_type(Unexpected::Other("table or date"), &self))
    }
}

struct ListOf<K>(PhantomData<K>);

impl<'de, K: Kind> Visitor<'de> for ListOf<K> {
    type Value = Vec<Given<K>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list in brackets, each element {}", K::EXPECTED)
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut elements: S) -> Result<Self::Value, S::Error> {
        let mut list = Vec::new();
        while let Some(element) = elements.next_element()? {
            list.push(element);
        }
        Ok(list)
    }
}
