//! The access rights of a Unix listener: the mode, the user and the group of its path.

use std::str::FromStr;

use crate::error::Error;

/// The mode, the user and the group of the path of a Unix listener.
///
/// For a field that is `None`, bind(2) derives the value from the umask, the user and the group of
/// the process. The settings apply only to a path that a generation binds, not to a socket that a
/// parent passes in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SocketAccess {
    /// The permissions of the path, regardless of the umask.
    pub mode: Option<SocketMode>,
    /// The user that owns the path: a name or a number.
    pub user: Option<String>,
    /// The group that owns the path: a name or a number.
    pub group: Option<String>,
}

impl SocketAccess {
    /// Returns whether no access right is set.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// The permissions of a path, written in octal digits, as in `0660`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketMode(u32);

impl SocketMode {
    /// Returns the permissions as bits, at most `0o777`.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }
}

impl FromStr for SocketMode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let digits =
            (3..=4).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
        let bits = u32::from_str_radix(text, 8).ok().filter(|bits| digits && *bits <= 0o777);
        bits.map(Self).ok_or_else(|| Error::Setting {
            setting: "mode",
            value: format!("{text:?}"),
            why: "expected octal digits from 000 to 777, as in \"0660\"",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_is_octal_digits_and_no_more_than_permissions() {
        assert_eq!("0660".parse::<SocketMode>().unwrap().bits(), 0o660);
        assert_eq!("777".parse::<SocketMode>().unwrap().bits(), 0o777);
        for text in ["", "0", "66", "0o660", "+660", "-660", "1777", "4755", "rw-", "0888", "00660"]
        {
            assert!(text.parse::<SocketMode>().is_err(), "{text}");
        }
    }
}
