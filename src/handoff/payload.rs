//! The payloads of two messages: what a predecessor tells its successor at the start ([`Hello`]),
//! and when it commits the handoff ([`Commit`]).
//!
//! All other messages carry at most a few plain values, and the module `message` encodes them.

use std::os::fd::RawFd;

use super::fields::{Fields, PacketWriter};
use crate::error::Malformed;
use crate::generation::Generation;
use crate::net::Binding;
use crate::report::CarryForecast;

/// The information that a predecessor sends to the successor that it starts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hello {
    /// The passed sockets that were bound by the predecessor or an older generation, not by a
    /// parent such as systemd. Each binding comes with the socket's index among the passed sockets.
    pub(crate) bound: Vec<(usize, Binding)>,
    /// The generations before the predecessor that are still draining, each with the file
    /// descriptor of the channel to that generation.
    pub(crate) draining: Vec<(Generation, RawFd)>,
    /// The file descriptor of the channel to the init process, if one exists.
    pub(crate) init: Option<RawFd>,
    /// How many connections may move to the successor, for each listener.
    pub(crate) forecast: CarryForecast,
    /// The names of the passed sockets. The predecessor does not pass them in `LISTEN_FDNAMES`,
    /// because an environment variable holds at most 128 KiB (see execve(2)).
    pub(crate) names: Vec<String>,
}

/// The information that a predecessor passes to its successor when it commits the handoff.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Commit {
    /// Whether the predecessor received a reload request that it can no longer handle. If so, the
    /// successor handles it.
    pub(crate) pending: PendingReload,
    /// Whether the predecessor accepts connections again if the successor dies.
    pub(crate) on_death: OnSuccessorDeath,
}

/// Whether a retired generation accepts connections again when its successor dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum OnSuccessorDeath {
    /// The retired generation accepts connections again.
    Resume,
    /// The retired generation does not accept connections again. Either it or the whole service was
    /// told to stop, or the service manager restarts the service.
    Stay,
}

/// Whether a reload request (SIGHUP) is pending. Several pending requests count as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub(crate) enum PendingReload {
    #[default]
    None,
    One,
}

impl Hello {
    pub(super) fn write(&self, packet: &mut PacketWriter) {
        for (place, binding) in &self.bound {
            packet.line("BOUND", format_args!("{place} {binding}"));
        }
        for (generation, descriptor) in &self.draining {
            packet.line("DRAINING", format_args!("{generation} {descriptor}"));
        }
        if let Some(descriptor) = self.init {
            packet.line("INIT", descriptor);
        }
        for (listener, count) in self.forecast.iter() {
            packet.line("FORECAST", format_args!("{count} {listener}"));
        }
        self.names.iter().for_each(|name| packet.line("NAME", name));
    }

    pub(super) fn read(fields: &mut Fields<'_>) -> Result<Self, Malformed> {
        let mut hello = Self::default();
        while let Some((place, binding)) = fields.pair("BOUND")? {
            hello.bound.push((place, binding));
        }
        while let Some((generation, descriptor)) = fields.pair("DRAINING")? {
            hello.draining.push((generation, descriptor));
        }
        hello.init = match fields.take("INIT") {
            Some(descriptor) => {
                Some(descriptor.parse().map_err(|_| format!("INIT={descriptor:?}"))?)
            }
            None => None,
        };
        while let Some((count, listener)) = fields.pair("FORECAST")? {
            hello.forecast.add(listener, count);
        }
        hello.names = fields.all("NAME")?;
        Ok(hello)
    }
}

impl Commit {
    pub(super) fn write(self, packet: &mut PacketWriter) {
        if self.on_death == OnSuccessorDeath::Stay {
            packet.line("STAY", 1);
        }
        if self.pending == PendingReload::One {
            packet.line("RELOAD-PENDING", 1);
        }
    }

    pub(super) fn read(fields: &mut Fields<'_>) -> Self {
        let pending = if fields.take("RELOAD-PENDING").is_some() {
            PendingReload::One
        } else {
            PendingReload::None
        };
        let on_death = if fields.take("STAY").is_some() {
            OnSuccessorDeath::Stay
        } else {
            OnSuccessorDeath::Resume
        };
        Self { pending, on_death }
    }
}
