//! An encoder and a decoder for the `KEY=value` lines of a packet between generations.
//!
//! This module does not know which messages exist. A value cannot forge another line, because the
//! encoder replaces each line break in a value with a space.

use std::collections::VecDeque;
use std::fmt::{Display, Write as _};

use serde::de::DeserializeOwned;

use crate::error::Malformed;

/// An encoder for a packet between generations, which adds one line after another to the text.
pub(super) struct PacketWriter(pub(super) String);

impl PacketWriter {
    pub(super) fn line(&mut self, key: &str, value: impl Display) {
        let start = self.0.len() + key.len() + 1;
        let _ = write!(self.0, "{key}={value}");
        let one_line = self.0[start..].replace('\n', " ");
        self.0.truncate(start);
        self.0.push_str(&one_line);
        self.0.push('\n');
    }
}

/// The `KEY=value` lines of a received packet that the decoder has not parsed yet.
pub(super) struct Fields<'a>(VecDeque<(&'a str, &'a str)>);

impl<'a> Fields<'a> {
    pub(super) fn read(text: &'a str) -> Result<Self, Malformed> {
        let whole = text.strip_suffix('\n').ok_or_else(|| {
            Malformed::from(format!("the message is incomplete: {}", excerpt(text)))
        })?;
        let fields = whole.split('\n').map(|line| {
            line.split_once('=').ok_or_else(|| {
                Malformed::from(format!("a line has no equals sign: {}", excerpt(line)))
            })
        });
        fields.collect::<Result<_, _>>().map(Self)
    }

    pub(super) fn take(&mut self, key: &str) -> Option<&'a str> {
        let place = self.0.iter().position(|(found, _)| *found == key)?;
        self.0.remove(place).map(|(_, value)| value)
    }

    pub(super) fn text(&mut self, key: &str) -> Result<&'a str, Malformed> {
        self.take(key).ok_or_else(|| Malformed::from(format!("the line {key}= is missing")))
    }

    pub(super) fn number<N: std::str::FromStr>(&mut self, key: &str) -> Result<N, Malformed> {
        let text = self.text(key)?;
        text.parse().map_err(|_| Malformed::from(format!("bad value {key}={text:?}")))
    }

    /// Takes the values of all lines with the given key, in the order of the packet.
    pub(super) fn all<N: std::str::FromStr>(&mut self, key: &str) -> Result<Vec<N>, Malformed> {
        let texts = std::iter::from_fn(|| self.take(key));
        texts
            .map(|text| {
                text.parse()
                    .map_err(|_| Malformed::from(format!("bad value {key}={}", excerpt(text))))
            })
            .collect()
    }

    pub(super) fn json<T: DeserializeOwned>(&mut self, key: &str) -> Result<T, Malformed> {
        let text = self.text(key)?;
        serde_json::from_str(text)
            .map_err(|error| Malformed::from(format!("bad value {key}={}: {error}", excerpt(text))))
    }

    /// Takes the line with the given key, splits its value at the first space, and parses both
    /// parts.
    pub(super) fn pair<A: std::str::FromStr, B: std::str::FromStr>(
        &mut self,
        key: &str,
    ) -> Result<Option<(A, B)>, Malformed> {
        let Some(text) = self.take(key) else { return Ok(None) };
        let both = text.split_once(' ').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
        both.map(Some).ok_or_else(|| Malformed::from(format!("bad value {key}={text:?}")))
    }
}

/// Returns the beginning of a text that could not be parsed, short enough for a one-line error
/// message.
fn excerpt(text: &str) -> String {
    const SHOWN: usize = 100;
    let shown: String = text.chars().take(SHOWN).collect();
    let rest = if shown.len() < text.len() { "..." } else { "" };
    format!("{shown:?}{rest}")
}
