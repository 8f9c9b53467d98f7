//! The names under which the service manager stores sockets of this service. After a restart, the
//! new process recognizes the sockets by these names.
//!
//! The service manager returns a stored socket with no information except its name (`FDNAME=`, see
//! sd_pid_notify_with_fds(3)), together with the sockets of socket units. So the stored name
//! contains everything that a process must know about the socket: the name of the listener, the
//! configured address and, for a path, the identity of the file. A stored name contains an equals
//! sign, and a listener name never does, so the two cannot be confused.

use std::fmt::Write as _;

use super::origin::Binding;

/// The maximum length of `FDNAME=` in bytes.
const NAME_MAX: usize = 255;

/// The name of a stored socket, in the form `NAME=BINDING`. Colons, percent signs and all
/// characters outside printable ASCII in the binding are encoded as `%XX`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoredName(String);

impl StoredName {
    /// Creates the stored name for a socket of the listener `name` with the given binding. Returns
    /// `None` if the stored name would be too long.
    pub(crate) fn new(name: &str, binding: &Binding) -> Option<Self> {
        let mut text = format!("{name}=");
        for byte in binding.to_string().bytes() {
            if byte.is_ascii_graphic() && !matches!(byte, b':' | b'%') {
                text.push(char::from(byte));
            } else {
                let _ = write!(text, "%{byte:02X}");
            }
        }
        (text.len() <= NAME_MAX).then_some(Self(text))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Parses a stored name into the name of the listener and the binding. Returns `None` if
    /// handoffd did not create the stored name.
    pub(crate) fn parse(text: &str) -> Option<(&str, Binding)> {
        let (name, encoded) = text.split_once('=')?;
        let mut binding = Vec::new();
        let mut bytes = encoded.bytes();
        while let Some(byte) = bytes.next() {
            binding.push(match byte {
                b'%' => {
                    let digits = [bytes.next()?, bytes.next()?];
                    u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
                }
                byte => byte,
            });
        }
        Some((name, String::from_utf8(binding).ok()?.parse().ok()?))
    }
}

/// Parses `bytes` as a stored name, for the fuzzer. Returns whether `bytes` is a valid stored name.
/// Panics if encoding the result and parsing it again gives a different result.
#[cfg(any(fuzzing, test))]
pub(crate) fn fuzz(bytes: &[u8]) -> bool {
    let Some((name, binding)) = std::str::from_utf8(bytes).ok().and_then(StoredName::parse) else {
        return false;
    };
    if let Some(stored) = StoredName::new(name, &binding) {
        assert!(
            stored.0[name.len()..].bytes().all(|byte| byte.is_ascii_graphic() && byte != b':'),
            "{stored:?}"
        );
        assert_eq!(StoredName::parse(stored.as_str()), Some((name, binding)));
    }
    true
}

/// Returns example inputs for the fuzzer: stored names of all kinds of sockets.
#[cfg(test)]
pub(crate) fn seeds() -> Vec<(String, Vec<u8>)> {
    let bindings = [
        ("tcp", "127.0.0.1:8080"),
        ("tcp6", "tcp6:[fe80::1%3]:80"),
        ("path", "8:42 /run/a b=c%3A.sock"),
        ("abstract", "@größe"),
    ];
    let named = |(kind, binding): (&str, &str)| {
        let name = StoredName::new("web", &binding.parse().unwrap()).unwrap();
        (kind.to_owned(), name.0.into_bytes())
    };
    bindings.into_iter().map(named).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_reads_back_and_holds_no_colon() {
        for binding in ["127.0.0.1:8080", "tcp6:[::]:80", "8:42 /run/a b=c%3A.sock", "@größe"] {
            let binding: Binding = binding.parse().unwrap();
            let name = StoredName::new("web", &binding).unwrap();
            assert!(
                name.as_str().bytes().all(|byte| byte.is_ascii_graphic() && byte != b':'),
                "{name:?}"
            );
            assert_eq!(StoredName::parse(name.as_str()), Some(("web", binding)));
        }
    }

    #[test]
    fn a_foreign_name_is_not_parsed() {
        for text in ["web", "", "web=%4", "web=%zz", "web=%FF", "web=nowhere"] {
            assert_eq!(StoredName::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_name_that_would_be_too_long_is_refused() {
        assert_eq!(StoredName::new(&"x".repeat(250), &"127.0.0.1:1".parse().unwrap()), None);
    }
}
