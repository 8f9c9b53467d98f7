//! Replaces placeholders such as `{fd:web}` in the arguments and variables of a program.
//!
//! Other text in braces is left unchanged, because arguments may contain JSON or the program's own
//! templates.

use crate::config::Attach;
use crate::error::Error;

/// A placeholder such as `{fd:web}`, where `web` is the name of a listener. The name may be omitted
/// if there is only one listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Placeholder<'a> {
    /// `{fd}` or `{fd:NAME}`: the descriptor number of a listener.
    Fd(Option<&'a str>),
    /// `{address}` or `{address:NAME}`: the address of a listener.
    Address(Option<&'a str>),
    /// The private port of the program.
    Port,
    /// The path of the program's private Unix socket.
    Socket,
    Generation,
    Instance,
}

/// Replaces every placeholder in a text with its value.
///
/// # Errors
/// Returns any error of `value`.
pub(super) fn replace(
    text: &str,
    mut value: impl FnMut(Placeholder<'_>) -> Result<String, Error>,
) -> Result<String, Error> {
    let (mut replaced, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(open) = rest.find('{') {
        replaced += &rest[..open];
        rest = &rest[open..];
        let inside = rest[1..].split_once('}').map(|(inside, _)| inside);
        match inside.and_then(|inside| Some((inside, Placeholder::parse(inside)?))) {
            Some((inside, placeholder)) => {
                replaced += &value(placeholder)?;
                rest = &rest[inside.len() + 2..];
            }
            None => {
                replaced.push('{');
                rest = &rest[1..];
            }
        }
    }
    Ok(replaced + rest)
}

impl<'a> Placeholder<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        Some(match text.split_once(':') {
            Some(("fd", name)) => Self::Fd(Some(name)),
            Some(("address", name)) => Self::Address(Some(name)),
            Some(_) => return None,
            None => match text {
                "fd" => Self::Fd(None),
                "address" => Self::Address(None),
                "port" => Self::Port,
                "socket" => Self::Socket,
                "generation" => Self::Generation,
                "instance" => Self::Instance,
                _ => return None,
            },
        })
    }

    /// Returns the index in `names` of the listener to which this placeholder refers. Returns 0 for
    /// a placeholder that does not refer to a listener.
    ///
    /// # Errors
    /// Returns [`Error::NoSuchListener`] if no listener has the name, and [`Error::Setting`] if the
    /// name is missing, or if `attach` provides no value for the placeholder.
    pub(super) fn resolve(self, attach: Attach, names: &[String]) -> Result<usize, Error> {
        let refuse = |value: &str, why| {
            let value = format!("{{{value}}}");
            Err(Error::Setting { setting: "placeholder", value, why })
        };
        let name = match self {
            Self::Fd(_) if !attach.inherits() => {
                return refuse("fd", "available only for a program that inherits the listeners");
            }
            Self::Port if !matches!(attach, Attach::PrivatePort | Attach::Detect) => {
                return refuse("port", "available only for a program with a private port");
            }
            Self::Socket if attach != Attach::PrivateSocket => {
                return refuse("socket", "available only for a program with a private socket");
            }
            Self::Port | Self::Socket | Self::Generation | Self::Instance => return Ok(0),
            Self::Fd(name) | Self::Address(name) => name,
        };
        match name {
            Some(name) => {
                let place = names.iter().position(|known| known == name);
                place.ok_or_else(|| Error::no_such_listener(name, names))
            }
            None if names.len() == 1 => Ok(0),
            None => {
                let word = if matches!(self, Self::Fd(_)) { "fd" } else { "address" };
                refuse(
                    word,
                    "expected a name, as in {fd:web}, unless there is exactly one listener",
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_placeholders_are_replaced() {
        let value = |placeholder: Placeholder<'_>| Ok(format!("<{placeholder:?}>"));
        for (text, expected) in [
            ("--fd={fd}", "--fd=<Fd(None)>"),
            ("{fd:web}{port}", "<Fd(Some(\"web\"))><Port>"),
            ("{{port}}", "{<Port>}"),
            ("{\"a\": {b}, \"c\": \"{socket}\"}", "{\"a\": {b}, \"c\": \"<Socket>\"}"),
            ("{prot} {port:x} {", "{prot} {port:x} {"),
            ("{}", "{}"),
        ] {
            assert_eq!(replace(text, value).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn a_placeholder_without_a_value_is_refused() {
        let names = ["web".to_owned(), "api".to_owned()];
        let resolve = |attach, placeholder: Placeholder<'_>| placeholder.resolve(attach, &names);
        assert_eq!(resolve(Attach::Inherit, Placeholder::Fd(Some("api"))).unwrap(), 1);
        assert_eq!(resolve(Attach::PrivatePort, Placeholder::Address(Some("api"))).unwrap(), 1);
        for (attach, placeholder) in [
            (Attach::Inherit, Placeholder::Fd(None)),
            (Attach::Inherit, Placeholder::Fd(Some("ftp"))),
            (Attach::Inherit, Placeholder::Port),
            (Attach::PrivateSocket, Placeholder::Port),
            (Attach::PrivatePort, Placeholder::Socket),
            (Attach::PrivatePort, Placeholder::Fd(Some("web"))),
        ] {
            assert!(resolve(attach, placeholder).is_err(), "{attach:?} {placeholder:?}");
        }
    }
}
