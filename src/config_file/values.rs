//! The types of single values in a configuration file.
//!
//! A value is checked while it is deserialized, so an error message can contain its position.

use std::fmt;
use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Unexpected, Visitor};
use toml::Spanned;
use tracing_subscriber::filter::Targets;

use super::filter::parse_log_filter;
use super::time::{at_most_a_week, keep_alive, not_zero, parse_time, user_timeout};
use crate::address::Address;
use crate::config::{
    Balance, HeaderVersion, MaxGenerations, Network, OnHandoff, SocketMode, UpstreamTarget,
};
use crate::error::Error;

/// The maximum number of serving threads. A larger number is probably a mistake.
const MOST_WORKERS: usize = 1024;

/// A type of value in a configuration file, with its parser.
pub(super) trait Kind {
    type Value;

    /// A description of valid values. It is part of the error about a value of another type.
    const EXPECTED: &'static str;

    /// Parses a value that is written as a string. Returns `None` if `Self` is not written as a
    /// string.
    fn text(_: &str) -> Option<Result<Self::Value, String>> {
        None
    }

    /// Parses a value that is written as a whole number. Returns `None` if `Self` is not written as
    /// a number.
    fn number(_: u64) -> Option<Result<Self::Value, String>> {
        None
    }

    /// Converts a value that is written as true or false. Returns `None` if `Self` is not written
    /// like this.
    fn truth(_: bool) -> Option<Self::Value> {
        None
    }
}

/// A value of type `K` from the configuration file.
pub(super) struct As<K: Kind>(pub(super) K::Value);

impl<'de, K: Kind> Deserialize<'de> for As<K> {
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
        read.map_err(E::custom)
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
        read.map_err(E::custom)
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

/// A list of values of type `K`. Each value is stored with its position in the file.
pub(super) struct List<K: Kind>(pub(super) Vec<Spanned<As<K>>>);

impl<'de, K: Kind> Deserialize<'de> for List<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ListOf::<K>(PhantomData))
    }
}

struct ListOf<K>(PhantomData<K>);

impl<'de, K: Kind> Visitor<'de> for ListOf<K> {
    type Value = List<K>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list in brackets, and in it {}", K::EXPECTED)
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut elements: S) -> Result<List<K>, S::Error> {
        let mut list = Vec::new();
        while let Some(element) = elements.next_element()? {
            list.push(element);
        }
        Ok(List(list))
    }
}

/// A time from zero to a week.
pub(super) enum Time {}
/// A time of at most a week that is not zero.
pub(super) enum Wait {}
/// A time that is valid for the socket option `TCP_KEEPIDLE`.
pub(super) enum KeepAlive {}
/// A time that is valid for the socket option `TCP_USER_TIMEOUT`.
pub(super) enum UserTimeout {}

macro_rules! times {
    ($($kind:ty: $check:expr;)*) => { $(
        impl Kind for $kind {
            type Value = Duration;
            const EXPECTED: &'static str = "a time, as in \"500ms\", \"30s\" or \"2m\", or whole \
                seconds";

            fn text(text: &str) -> Option<Result<Duration, String>> {
                Some(parse_time(text).and_then($check).map_err(|why| format!("bad time {text:?}: \
                    {why}")))
            }

            fn number(seconds: u64) -> Option<Result<Duration, String>> {
                let time = at_most_a_week(Duration::from_secs(seconds)).and_then($check);
                Some(time.map_err(|why| format!("bad time {seconds}: {why}")))
            }
        }
    )* };
}

times! {
    Time: Ok;
    Wait: not_zero;
    KeepAlive: keep_alive;
    UserTimeout: user_timeout;
}

/// Implements [`Kind`] for types that are written as a string and implement `FromStr`.
macro_rules! texts {
    ($($kind:ty: $expected:literal;)*) => { $(
        impl Kind for $kind {
            type Value = Self;
            const EXPECTED: &'static str = $expected;

            fn text(text: &str) -> Option<Result<Self, String>> {
                Some(text.parse().map_err(|error: Error| error.to_string()))
            }
        }
    )* };
}

texts! {
    Address: "an address: \"IP:PORT\", \"[IPV6]:PORT\", \"tcp6:[IPV6]:PORT\", \"/PATH\" or \
        \"@NAME\"";
    Balance: "\"round-robin\", \"least-connections\" or \"in-order\"";
    HeaderVersion: "\"v1\" or \"v2\"";
    SocketMode: "octal digits as text, as in \"0660\"";
    UpstreamTarget: "an upstream: \"IP:PORT\", \"[IPV6]:PORT\", \"HOST:PORT\", \"/PATH\" or \
        \"@NAME\"";
    Network: "a network, as in \"192.0.2.0/24\" or \"2001:db8::/32\", or \"unix\"";
}

/// The setting `carry`: `true` moves connections to the successor in a handoff, `false` drains
/// them.
impl Kind for OnHandoff {
    type Value = Self;
    const EXPECTED: &'static str = "true or false";

    fn truth(carry: bool) -> Option<Self> {
        Some(if carry { Self::Carry } else { Self::Drain })
    }
}

/// The name of the service that runs on a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Service {
    Echo,
    Proxy,
}

impl Kind for Service {
    type Value = Self;
    const EXPECTED: &'static str = "\"echo\" or \"proxy\"";

    fn text(text: &str) -> Option<Result<Self, String>> {
        Some(match text {
            "echo" => Ok(Self::Echo),
            "proxy" => Ok(Self::Proxy),
            _ => Err(format!("bad service {text:?}: expected {}", Self::EXPECTED)),
        })
    }
}

/// The maximum number of connections of a listener.
pub(super) enum Count {}

impl Kind for Count {
    type Value = NonZeroUsize;
    const EXPECTED: &'static str = "a whole number from 1";

    fn number(number: u64) -> Option<Result<NonZeroUsize, String>> {
        let count = usize::try_from(number).ok().and_then(NonZeroUsize::new);
        Some(count.ok_or_else(|| format!("bad count {number}: expected {}", Self::EXPECTED)))
    }
}

/// The number of failures in a row that eject an upstream.
pub(super) enum Failures {}

impl Kind for Failures {
    type Value = u32;
    const EXPECTED: &'static str = "a whole number from 0";

    fn number(number: u64) -> Option<Result<u32, String>> {
        Some(
            u32::try_from(number)
                .map_err(|_| format!("bad count {number}: expected at most {}", u32::MAX)),
        )
    }
}

/// The number of serving threads.
pub(super) enum Workers {}

impl Kind for Workers {
    type Value = NonZeroUsize;
    const EXPECTED: &'static str = "a whole number from 1 to 1024";

    fn number(number: u64) -> Option<Result<NonZeroUsize, String>> {
        Some(parse_workers(&number.to_string()).map_err(|why| format!("bad count {number}: {why}")))
    }
}

/// Parses the number of serving threads.
///
/// # Errors
/// Returns a description of a valid number if `text` is not valid.
pub fn parse_workers(text: &str) -> Result<NonZeroUsize, &'static str> {
    let count = text.parse().ok().filter(|count: &NonZeroUsize| count.get() <= MOST_WORKERS);
    count.ok_or("expected a number of threads, 1 to 1024")
}

impl Kind for MaxGenerations {
    type Value = Self;
    const EXPECTED: &'static str = "a whole number from 2 to 64";

    fn number(number: u64) -> Option<Result<Self, String>> {
        Some(
            Self::new(usize::try_from(number).unwrap_or(usize::MAX))
                .map_err(|error| error.to_string()),
        )
    }
}

/// The path of a file that the daemon writes.
pub(super) enum FilePath {}

impl Kind for FilePath {
    type Value = PathBuf;
    const EXPECTED: &'static str = "a path";

    fn text(text: &str) -> Option<Result<PathBuf, String>> {
        // Refuse empty paths and paths with a zero byte, as every system call would.
        let is_path = !text.is_empty() && !text.contains('\0');
        Some(if is_path {
            Ok(text.into())
        } else {
            Err(format!("bad path {text:?}: expected a path of some length"))
        })
    }
}

/// A path that is valid as the address of a Unix socket.
pub(super) enum SocketPath {}

impl Kind for SocketPath {
    type Value = PathBuf;
    const EXPECTED: &'static str = "an absolute path of at most 107 bytes";

    fn text(text: &str) -> Option<Result<PathBuf, String>> {
        let path =
            text.parse().ok().and_then(|address: Address| address.path().map(Path::to_owned));
        Some(path.ok_or_else(|| format!("bad path {text:?}: expected {}", Self::EXPECTED)))
    }
}

/// The name or the number of a user or a group.
pub(super) enum UserOrGroup {}

impl Kind for UserOrGroup {
    type Value = String;
    const EXPECTED: &'static str = "a name or a number as text, as in \"www-data\" or \"33\"";

    fn text(text: &str) -> Option<Result<String, String>> {
        let name = parse_user_or_group(text).map_err(|why| format!("bad name {text:?}: {why}"));
        Some(name)
    }
}

/// Parses the name or the number of a user or a group.
///
/// # Errors
/// Returns a description of a valid value if `text` is not valid.
pub fn parse_user_or_group(text: &str) -> Result<String, &'static str> {
    let is_name = !text.is_empty()
        && !text.chars().any(|character| character.is_control() || character == ':');
    if is_name {
        Ok(text.to_owned())
    } else {
        Err("expected a name or a number, as in \"www-data\" or \"33\"")
    }
}

impl Kind for Targets {
    type Value = Self;
    const EXPECTED: &'static str = "a filter, as in \"info\" or \"info,handoffd=debug\"";

    fn text(text: &str) -> Option<Result<Self, String>> {
        Some(parse_log_filter(text).map_err(|why| format!("bad filter {text:?}: {why}")))
    }
}
