//! The proxied connections of one thread, and their timers. In each turn, the relay plane moves the
//! bytes of the connections that are ready.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;

use rustix::event::PollFlags;
use slab::Slab;
use tokio::time::Instant;

use super::Rejected;
use super::entry::{RelayEnd, RelayEntry, RelayOwner};
use super::events::{RowKey, SocketEvent, unwatch, watch};
use super::limits::Expired;
use super::relay::RelayStep;
use super::settle::Side;

/// The connections that have ended in one turn and have left the relay plane, with the reasons.
pub(super) type Ended<T> = Vec<(RelayEntry<T>, RelayEnd)>;

/// Whether connections can move more bytes at once, or all of them must wait for an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TurnResult {
    HasMore,
    Blocked,
}

/// The connections of a plane.
#[derive(Debug)]
pub(super) struct Entries<T> {
    all: Slab<Row<T>>,
    /// The times at which to check the time limits of connections, with the indexes of these
    /// connections.
    timers: BTreeSet<(Instant, usize)>,
    /// The connections that may have bytes to move. Each is listed once.
    ready: Vec<usize>,
    /// An empty list whose memory the next turn reuses for `ready`. So a turn allocates no list.
    spare: Vec<usize>,
    /// The number that the next connection gets, to distinguish connections with the same index.
    next_number: u32,
    is_cut: bool,
}

#[derive(Debug)]
struct Row<T> {
    entry: RelayEntry<T>,
    /// Distinguishes this connection from an earlier one with the same index.
    number: u32,
    /// Whether this connection is in the list of ready connections.
    is_listed: bool,
    /// Whether the connection to the upstream is not yet established.
    is_connecting: bool,
}

/// What the timer of a connection has led to.
#[derive(Debug)]
enum Expiry {
    /// The connection has reached a time limit.
    Ended(RelayEnd),
    /// The connection can move bytes now, although no event has said so yet.
    Ready,
    /// The connection waits for an event or for its next timer.
    Waits,
}

impl<T> Default for Entries<T> {
    fn default() -> Self {
        let (all, timers) = (Slab::new(), BTreeSet::new());
        let [ready, spare] = [const { Vec::new() }; 2];
        Self { all, timers, ready, spare, next_number: 0, is_cut: false }
    }
}

impl<T: RelayOwner> Entries<T> {
    /// Adds a connection, and watches its sockets with `epoll`.
    pub(super) fn admit(
        &mut self,
        epoll: &OwnedFd,
        entry: RelayEntry<T>,
    ) -> Result<(), Box<Rejected<T>>> {
        if self.is_cut {
            return Err(Box::new(Rejected::Cut(entry)));
        }
        let (index, number) = (self.all.vacant_key(), self.next_number);
        self.next_number = number.wrapping_add(1);
        if let Err(error) = watch(epoll, &entry, RowKey { index, number }) {
            return Err(Box::new(Rejected::Unwatched(entry, error.into())));
        }
        let is_connecting = entry.owner.connect_deadline().is_some();
        let mut row = Row { entry, number, is_listed: false, is_connecting };
        row.entry.limits.set_timer();
        self.timers.extend(row.timer().map(|timer| (timer, index)));
        self.all.insert(row);
        Ok(())
    }

    /// Returns the time at which to take the next turn even if no event arrives.
    pub(super) fn next_timer(&self) -> Option<Instant> {
        self.timers.first().map(|(next, _)| *next)
    }

    /// Moves the bytes of all connections that are ready, including those that `events` make ready.
    /// Adds the connections that end to `ended`.
    pub(super) fn turn(
        &mut self,
        epoll: &OwnedFd,
        events: &[SocketEvent],
        buffer: &mut [u8],
        ended: &mut Ended<T>,
    ) -> TurnResult {
        for event in events {
            self.note(event);
        }
        let now = Instant::now();
        let has_timers = !self.timers.is_empty();
        let mut ready = std::mem::replace(&mut self.ready, std::mem::take(&mut self.spare));
        for index in ready.drain(..) {
            match self.advance(index, buffer, has_timers.then_some(now)) {
                RelayStep::Blocked => {}
                RelayStep::HasMore => self.ready.push(index),
                RelayStep::Ended(end) => {
                    ended.extend(self.remove(index).map(|row| (row.entry, end)))
                }
            }
        }
        self.spare = ready;
        self.expire(now, ended);
        for (entry, end) in &*ended {
            // Skip the two system calls of `unwatch` if the caller is about to close both sockets,
            // because the kernel stops watching a closed socket. But the kernel continues to watch
            // a socket that another process holds too.
            let is_closed = matches!(end, RelayEnd::Finished);
            if !is_closed || entry.client.is_shared() || entry.upstream.is_shared() {
                unwatch(epoll, entry);
            }
        }
        if self.ready.is_empty() { TurnResult::Blocked } else { TurnResult::HasMore }
    }

    /// Moves the bytes of one connection. `now` is `None` if no connection has a timer.
    fn advance(&mut self, index: usize, buffer: &mut [u8], now: Option<Instant>) -> RelayStep {
        let Some(row) = self.all.get_mut(index) else { return RelayStep::Blocked };
        row.is_listed = false;
        if row.is_connecting {
            let deadline = row.timer();
            match row.connect() {
                None if row.entry.client_has_left() => {
                    return RelayStep::Ended(RelayEnd::ClientLeft);
                }
                None => return RelayStep::Blocked,
                Some(Err(error)) => return RelayStep::Ended(RelayEnd::NotConnected(error)),
                Some(Ok(())) => {}
            }
            if let Some(deadline) = deadline {
                self.timers.remove(&(deadline, index));
            }
            self.timers.extend(row.timer().map(|timer| (timer, index)));
        }
        let Some(Row { entry, is_listed, .. }) = self.all.get_mut(index) else {
            return RelayStep::Blocked;
        };
        let relayed = entry.count_bytes(|RelayEntry { client, upstream, relay, .. }| {
            relay.advance(buffer, client, upstream)
        });
        *is_listed = matches!(relayed, RelayStep::HasMore);
        if let Some(now) = now {
            entry.limits.note(now, entry.transferred());
        }
        relayed
    }

    /// Passes an event to the socket that it concerns, and lists the connection as ready.
    fn note(&mut self, event: &SocketEvent) {
        let SocketEvent { key: RowKey { index, number }, side, flags } = *event;
        // Ignore an event of a connection that has ended. Its index may belong to another
        // connection now.
        let row = self.all.get_mut(index).filter(|row| row.number == number);
        let Some(Row { entry, is_listed, .. }) = row else { return };
        let socket = match side {
            Side::Client => &mut entry.client,
            Side::Upstream => &mut entry.upstream,
        };
        socket.note(flags);
        if !std::mem::replace(is_listed, true) {
            self.ready.push(index);
        }
    }

    /// Removes the connections that have reached a time limit, and resets the other timers that
    /// have expired.
    fn expire(&mut self, now: Instant, ended: &mut Ended<T>) {
        while let Some((due, index)) = self.timers.first().copied().filter(|(due, _)| *due <= now) {
            self.timers.remove(&(due, index));
            let Some(row) = self.all.get_mut(index) else { continue };
            match row.expire(now) {
                Expiry::Ended(end) => {
                    ended.extend(self.remove(index).map(|row| (row.entry, end)));
                    continue;
                }
                Expiry::Ready if !std::mem::replace(&mut row.is_listed, true) => {
                    self.ready.push(index);
                }
                Expiry::Ready | Expiry::Waits => {}
            }
            self.timers.extend(row.timer().map(|timer| (timer, index)));
        }
    }

    /// Removes the next connection for which `is_wanted` is true, starting at the index `cursor`.
    /// Returns it with the error of its attempt to connect, if the attempt has just failed.
    pub(super) fn take(
        &mut self,
        epoll: &OwnedFd,
        cursor: &mut usize,
        is_wanted: impl Fn(&T) -> bool,
    ) -> Option<(RelayEntry<T>, Option<io::Error>)> {
        while *cursor < self.all.capacity() {
            let index = *cursor;
            *cursor += 1;
            if self.all.get(index).is_some_and(|row| is_wanted(&row.entry.owner)) {
                let mut row = self.remove(index)?;
                let failure = row.connect_now();
                unwatch(epoll, &row.entry);
                return Some((row.entry, failure));
            }
        }
        None
    }

    /// Returns the data that the caller has stored with each connection.
    pub(super) fn owners(&mut self) -> impl Iterator<Item = &mut T> {
        self.all.iter_mut().map(|(_, row)| &mut row.entry.owner)
    }

    /// Removes all connections. From now on, [`Entries::admit`] rejects new connections.
    pub(super) fn cut(&mut self, epoll: &OwnedFd) -> Vec<RelayEntry<T>> {
        self.is_cut = true;
        self.timers.clear();
        self.ready.clear();
        let all = std::mem::take(&mut self.all).into_iter().map(|(_, row)| row.entry);
        all.inspect(|entry| unwatch(epoll, entry)).collect()
    }

    fn remove(&mut self, index: usize) -> Option<Row<T>> {
        let row = self.all.try_remove(index)?;
        if let Some(timer) = row.timer() {
            self.timers.remove(&(timer, index));
        }
        Some(row)
    }
}

impl<T: RelayOwner> Row<T> {
    /// Returns the time at which to check this connection, if it has a timer.
    fn timer(&self) -> Option<Instant> {
        if self.is_connecting {
            self.entry.owner.connect_deadline()
        } else {
            self.entry.limits.timer()
        }
    }

    /// Checks whether the connection has reached a time limit. If not, sets the time at which to
    /// check the connection again.
    ///
    /// A timer may expire before the plane has received the latest events, for example after this
    /// process was stopped. So this method asks the kernel before it ends a connection.
    fn expire(&mut self, now: Instant) -> Expiry {
        if self.is_connecting {
            let failure = self.connect_now();
            if !self.is_connecting {
                return Expiry::Ready;
            }
            let reason = failure.unwrap_or_else(|| io::ErrorKind::TimedOut.into());
            return Expiry::Ended(RelayEnd::NotConnected(reason));
        }
        let expiry = match self.entry.limits.expired(now) {
            None => Expiry::Waits,
            Some(Expired::Idle) if self.entry.look() => {
                self.entry.limits.restart_idle(now);
                Expiry::Ready
            }
            Some(Expired::Idle) => {
                let left = self.entry.unacknowledged();
                if !self.entry.limits.note_unacknowledged(now, left) {
                    return Expiry::Ended(RelayEnd::Expired(Expired::Idle));
                }
                Expiry::Waits
            }
            Some(Expired::Lifetime) => {
                return Expiry::Ended(RelayEnd::Expired(Expired::Lifetime));
            }
        };
        self.entry.limits.set_timer();
        expiry
    }

    /// Returns how the attempt to connect to the upstream has ended, or `None` if it is still in
    /// progress.
    fn connect(&mut self) -> Option<io::Result<()>> {
        let RelayEntry { owner, upstream, limits, .. } = &mut self.entry;
        let connected = upstream.connected()?;
        if connected.is_ok() {
            *limits = owner.connected();
            limits.set_timer();
            self.is_connecting = false;
        }
        Some(connected)
    }

    /// Counts the connection to the upstream as established if the kernel has established it, even
    /// if no event has said so yet. Otherwise a move to the successor would drop this connection,
    /// and the upstream would see a connection without any bytes. Returns the error if the attempt
    /// has failed.
    fn connect_now(&mut self) -> Option<io::Error> {
        if !self.is_connecting {
            return None;
        }
        self.entry.upstream.look(PollFlags::OUT);
        self.connect()?.err()
    }
}
