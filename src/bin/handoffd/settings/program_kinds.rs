//! The kinds of values that the settings of a program have, each with its parser.

use std::num::NonZeroUsize;

use handoffd::listen::ListenerName;
use handoffd::program::{Attach, Ready, Restart};

use super::kinds::why;
use super::time::parse_time;
use super::value::{Expected, Kind};

/// A word of a command. Any text without zero bytes is valid.
pub(super) enum ProgramArgument {}

impl Kind for ProgramArgument {
    type Value = String;
    const NOUN: &'static str = "word";
    const EXPECTED: &'static str = "text";

    fn text(text: &str) -> Option<Result<String, Expected>> {
        let is_word = !text.contains('\0');
        Some(is_word.then(|| text.to_owned()).ok_or("expected text without zero bytes".into()))
    }
}

/// A variable, written as `NAME=VALUE` in a flag.
pub(super) enum Variable {}

impl Kind for Variable {
    type Value = (String, String);
    const NOUN: &'static str = "variable";
    const EXPECTED: &'static str = "NAME=VALUE";

    fn text(text: &str) -> Option<Result<(String, String), Expected>> {
        let both = text.split_once('=').filter(|(name, _)| !name.is_empty());
        let both = both.map(|(name, value)| (name.to_owned(), value.to_owned()));
        Some(both.ok_or("expected NAME=VALUE".into()))
    }
}

impl Kind for Attach {
    type Value = Self;
    const NOUN: &'static str = "attach";
    const EXPECTED: &'static str = "\"inherit\", \"port\", \"socket\" or \"detect\"";

    fn text(text: &str) -> Option<Result<Self, Expected>> {
        Some(match text {
            "inherit" => Ok(Self::Inherit),
            "port" => Ok(Self::PrivatePort),
            "socket" => Ok(Self::PrivateSocket),
            "detect" => Ok(Self::Detect),
            _ => Err("expected inherit, port, socket or detect".into()),
        })
    }
}

impl Kind for Ready {
    type Value = Self;
    const NOUN: &'static str = "ready condition";
    const EXPECTED: &'static str = "a ready condition, as in \"notify\" or \"http:/healthz\"";

    fn text(text: &str) -> Option<Result<Self, Expected>> {
        const WHY: &str =
            "expected notify, alive, connect, http:/PATH, descriptor:N (3 to 255) or after:TIME";
        let sign = match text.split_once(':') {
            None => match text {
                "notify" => Ok(Self::Notify),
                "alive" => Ok(Self::NotifyOrAlive),
                "connect" => Ok(Self::Connect),
                _ => Err(WHY.into()),
            },
            Some(("http", path)) if path.starts_with('/') && !path.contains([' ', '\r', '\n']) => {
                Ok(Self::Http(path.to_owned()))
            }
            Some(("descriptor", number)) => match number.parse::<u8>() {
                Ok(number @ 3..) => Ok(Self::Descriptor(number)),
                Ok(_) | Err(_) => Err(WHY.into()),
            },
            Some(("after", time)) => parse_time(time).map(Self::After),
            Some(_) => Err(WHY.into()),
        };
        Some(sign)
    }
}

/// What happens when a program ends.
pub(super) enum Ending {}

impl Kind for Ending {
    type Value = Restart;
    const NOUN: &'static str = "restart";
    const EXPECTED: &'static str = "\"always\" or \"never\"";

    fn text(text: &str) -> Option<Result<Restart, Expected>> {
        Some(match text {
            "always" => Ok(Restart::Always),
            "never" => Ok(Restart::Never),
            _ => Err("expected always or never".into()),
        })
    }
}

/// The number of processes of a program. More than 1024 is probably a mistake.
pub(super) enum InstanceCount {}

impl Kind for InstanceCount {
    type Value = NonZeroUsize;
    const NOUN: &'static str = "count";
    const EXPECTED: &'static str = "a whole number from 1 to 1024";

    fn number(number: u64) -> Option<Result<NonZeroUsize, Expected>> {
        let count = usize::try_from(number).ok().filter(|count| *count <= 1024);
        let count = count.and_then(NonZeroUsize::new);
        Some(count.ok_or("expected a whole number from 1 to 1024".into()))
    }
}

/// The name of a listener.
pub(super) enum ListenerKey {}

impl Kind for ListenerKey {
    type Value = ListenerName;
    const NOUN: &'static str = "name";
    const EXPECTED: &'static str = "the name of a listener";

    fn text(text: &str) -> Option<Result<ListenerName, Expected>> {
        Some(text.parse().map_err(why))
    }
}
