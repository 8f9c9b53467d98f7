//! The kinds of values that settings have, each with its parser.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use handoffd::listen::{Address, OnHandoff, SocketMode};
use handoffd::program::{StopSignal, Umask};
use handoffd::proxy::{Balance, HeaderVersion, Network, UpstreamTarget};
use handoffd::{Error, MaxGenerations};
use tracing_subscriber::filter::Targets;

use super::filter::parse_log_filter;
use super::time::{at_most_a_week, keep_alive, not_zero, parse_time, user_timeout};
use super::value::{Expected, Kind};

/// The maximum number of serving threads. A larger number is probably a mistake.
const MOST_WORKERS: usize = 1024;

/// A time from zero to a week.
pub(super) enum Time {}
/// A time that is greater than zero and at most a week.
pub(super) enum Wait {}
/// A time that is valid for the socket option `TCP_KEEPIDLE`.
pub(super) enum KeepAlive {}
/// A time that is valid for the socket option `TCP_USER_TIMEOUT`.
pub(super) enum UserTimeout {}

macro_rules! times {
    ($($kind:ty: $check:expr;)*) => { $(
        impl Kind for $kind {
            type Value = Duration;
            const NOUN: &'static str = "time";
            const EXPECTED: &'static str =
                "a time, as in \"500ms\", \"30s\" or \"2m\", or whole seconds";

            fn text(text: &str) -> Option<Result<Duration, Expected>> {
                Some(parse_time(text).and_then($check))
            }

            fn number(seconds: u64) -> Option<Result<Duration, Expected>> {
                Some(at_most_a_week(Duration::from_secs(seconds)).and_then($check))
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

/// Implements [`Kind`] for library types whose values are written as text.
macro_rules! texts {
    ($($kind:ty: $noun:literal, $expected:literal;)*) => { $(
        impl Kind for $kind {
            type Value = Self;
            const NOUN: &'static str = $noun;
            const EXPECTED: &'static str = $expected;

            fn text(text: &str) -> Option<Result<Self, Expected>> {
                Some(text.parse().map_err(why))
            }
        }
    )* };
}

texts! {
    Address: "address", "an address: \"IP:PORT\", \"[IPV6]:PORT\", \"tcp6:[IPV6]:PORT\", \
        \"/PATH\" or \"@NAME\"";
    Balance: "balance", "\"round-robin\", \"least-connections\" or \"in-order\"";
    HeaderVersion: "PROXY header", "\"v1\" or \"v2\"";
    StopSignal: "signal", "the name of a signal, as in \"TERM\"";
    Umask: "umask", "octal digits as text, as in \"0027\"";
    SocketMode: "mode", "octal digits as text, as in \"0660\"";
    UpstreamTarget: "address", "an upstream: \"IP:PORT\", \"[IPV6]:PORT\", \"HOST:PORT\", \
        \"/PATH\" or \"@NAME\"";
    Network: "network", "a network, as in \"192.0.2.0/24\" or \"2001:db8::/32\", or \"unix\"";
}

/// Returns the part of an error that says what was expected.
pub(super) fn why(error: Error) -> Expected {
    if let Error::Address { why, .. } | Error::Setting { why, .. } = error {
        return why.into();
    }
    error.to_string().into()
}

/// The value of the setting `carry`. `true` moves connections to the successor at a handoff, and
/// `false` drains them.
impl Kind for OnHandoff {
    type Value = Self;
    const NOUN: &'static str = "value";
    const EXPECTED: &'static str = "true or false";

    fn truth(carry: bool) -> Option<Self> {
        Some(if carry { Self::Carry } else { Self::Drain })
    }
}

/// The name of the service that runs on a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ServiceName {
    Echo,
    Proxy,
    /// The program in the table `[program]`. No value of the setting `service` selects it.
    Program,
}

impl Kind for ServiceName {
    type Value = Self;
    const NOUN: &'static str = "service";
    const EXPECTED: &'static str = "\"echo\" or \"proxy\"";

    fn text(text: &str) -> Option<Result<Self, Expected>> {
        Some(match text {
            "echo" => Ok(Self::Echo),
            "proxy" => Ok(Self::Proxy),
            _ => Err("expected \"echo\" or \"proxy\"".into()),
        })
    }
}

/// How log records look on standard error. The journal always stores records as fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// Each record is a line of text for people.
    #[default]
    Text,
    /// Each record is a line with one JSON object, for programs.
    Json,
}

impl Kind for LogFormat {
    type Value = Self;
    const NOUN: &'static str = "format";
    const EXPECTED: &'static str = "\"text\" or \"json\"";

    fn text(text: &str) -> Option<Result<Self, Expected>> {
        Some(match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("expected text or json".into()),
        })
    }
}

impl Kind for Targets {
    type Value = Self;
    const NOUN: &'static str = "filter";
    const EXPECTED: &'static str = "a filter, as in \"info\" or \"info,handoffd=debug\"";

    fn text(text: &str) -> Option<Result<Self, Expected>> {
        Some(parse_log_filter(text))
    }
}

/// The maximum number of connections of a listener.
pub(super) enum Count {}

impl Kind for Count {
    type Value = NonZeroUsize;
    const NOUN: &'static str = "count";
    const EXPECTED: &'static str = "a whole number, 1 or higher";

    fn number(number: u64) -> Option<Result<NonZeroUsize, Expected>> {
        let count = usize::try_from(number).ok().and_then(NonZeroUsize::new);
        Some(count.ok_or("expected a whole number, 1 or higher".into()))
    }
}

/// The number of failures in a row that eject an upstream.
pub(super) enum Failures {}

impl Kind for Failures {
    type Value = u32;
    const NOUN: &'static str = "count";
    const EXPECTED: &'static str = "a whole number, 0 or higher";

    fn number(number: u64) -> Option<Result<u32, Expected>> {
        let count = u32::try_from(number);
        Some(count.map_err(|_| format!("expected at most {}", u32::MAX).into()))
    }
}

/// The number of serving threads.
pub(super) enum WorkerCount {}

impl Kind for WorkerCount {
    type Value = NonZeroUsize;
    const NOUN: &'static str = "count";
    const EXPECTED: &'static str = "a number of threads, 1 to 1024";

    fn number(number: u64) -> Option<Result<NonZeroUsize, Expected>> {
        let count = usize::try_from(number).ok().filter(|count| *count <= MOST_WORKERS);
        let count = count.and_then(NonZeroUsize::new);
        Some(count.ok_or("expected a number of threads, 1 to 1024".into()))
    }
}

impl Kind for MaxGenerations {
    type Value = Self;
    const NOUN: &'static str = "count";
    const EXPECTED: &'static str = "a whole number from 2 to 64";

    fn number(number: u64) -> Option<Result<Self, Expected>> {
        Some(Self::new(usize::try_from(number).unwrap_or(usize::MAX)).map_err(why))
    }
}

/// The path of a file or a directory, such as the pid file or a working directory.
pub(super) enum FilePath {}

impl Kind for FilePath {
    type Value = PathBuf;
    const NOUN: &'static str = "path";
    const EXPECTED: &'static str = "a path";

    fn text(text: &str) -> Option<Result<PathBuf, Expected>> {
        // Refuse empty paths and paths with a zero byte, because every system call would refuse
        // them.
        let is_path = !text.is_empty() && !text.contains('\0');
        Some(is_path.then(|| text.into()).ok_or("expected a path that is not empty".into()))
    }
}

/// A path that is valid as the address of a Unix socket.
pub(super) enum SocketPath {}

impl Kind for SocketPath {
    type Value = PathBuf;
    const NOUN: &'static str = "path";
    const EXPECTED: &'static str = "an absolute path of at most 107 bytes";

    fn text(text: &str) -> Option<Result<PathBuf, Expected>> {
        let address = text.parse::<Address>().ok();
        let path = address.and_then(|address| address.path().map(Path::to_owned));
        Some(path.ok_or("expected an absolute path of at most 107 bytes".into()))
    }
}

/// The name or the number of a user or a group.
pub(super) enum UserOrGroup {}

impl Kind for UserOrGroup {
    type Value = String;
    const NOUN: &'static str = "name";
    const EXPECTED: &'static str = "a name or a number as text, as in \"www-data\" or \"33\"";

    fn text(text: &str) -> Option<Result<String, Expected>> {
        let is_invalid = |character: char| character.is_control() || character == ':';
        let is_name = !text.is_empty() && !text.contains(is_invalid);
        let why = "expected a name or a number, as in \"www-data\" or \"33\"";
        Some(is_name.then(|| text.to_owned()).ok_or(why.into()))
    }
}
