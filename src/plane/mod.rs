//! The relay plane of a worker: a single task that moves the bytes of all established proxied
//! connections on this worker.
//!
//! | file | contents |
//! |---|---|
//! | `entries` | the connections of a plane, their timers, and one turn over those that are ready |
//! | `events` | the events of the sockets |
//! | `relay` | the two directions of one connection |
//! | `direction` | one direction of a relay |
//! | `limits` | idle timeout and lifetime |
//! | `settle` | the last bytes of a connection that has failed on one side |
//! | `snapshot` | the state with which another process continues a relay |
//!
//! A task for each connection would be simpler, but it costs more: ten allocations, two
//! registrations with the runtime, and a thousand bytes for an idle connection. A plane is one task
//! for all connections. It watches an epoll instance of its own through the tokio runtime, so the
//! accept loops and the tasks of the same worker run beside it.
//!
//! A plane only waits for the first connection to an upstream, and relays. A client has a task of
//! its own while it waits for something else: for its PROXY header, for another upstream, for its
//! move to the successor, or for the end after a failure. The caller moves connections between the
//! plane and such tasks.

mod direction;
mod entries;
mod events;
mod limits;
mod relay;
mod settle;
mod snapshot;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::Timespec;
use rustix::event::epoll;
use tokio::io::Interest;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use entries::{Ended, Entries, TurnResult};
pub(crate) use entries::{RelayEnd, RelayEntry, RelayOwner};
use events::SocketEvent;
pub(crate) use limits::{Expired, Limits, Used};
pub(crate) use relay::Relay;
pub(crate) use settle::{Side, settle};
pub(crate) use snapshot::RelaySnapshot;

use crate::sys;

/// The largest number of events that a plane handles in one turn. The other tasks of the worker run
/// between two turns.
const EVENTS: usize = 128;

/// The relay plane of one worker. `T` is the data that the caller stores with each connection.
#[derive(Debug)]
pub(crate) struct Plane<T> {
    epoll: Arc<OwnedFd>,
    entries: Mutex<Entries<T>>,
    /// Notified when a new timer expires earlier than all others.
    changed: Notify,
}

/// A connection that a plane has rejected, and the reason.
#[derive(Debug)]
pub(crate) enum Rejected<T> {
    /// The plane accepts no connections, because it has been cut.
    Cut(RelayEntry<T>),
    /// The kernel cannot watch the connection's sockets.
    Unwatched(RelayEntry<T>, io::Error),
}

impl<T: RelayOwner> Plane<T> {
    /// Creates a plane without connections. It relays nothing until [`Plane::run`] is called.
    ///
    /// # Errors
    /// Fails if no file descriptor is free.
    pub(crate) fn new() -> io::Result<Self> {
        let epoll = Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC)?);
        Ok(Self { epoll, entries: Mutex::default(), changed: Notify::new() })
    }

    /// Adds a connection. From now on, the plane relays its bytes.
    pub(crate) fn admit(&self, entry: RelayEntry<T>) -> Result<(), Box<Rejected<T>>> {
        let mut entries = self.lock();
        let timer = entries.next_timer();
        entries.admit(&self.epoll, entry)?;
        // Wake the plane only if it would wake too late. This is rare, because the timers of
        // earlier connections usually expire sooner.
        if entries.next_timer() != timer {
            self.changed.notify_one();
        }
        Ok(())
    }

    /// Relays until the future is dropped. Calls `ended` for each connection that ends, after the
    /// connection has left the plane. Must be called within the tokio runtime of the worker.
    ///
    /// # Errors
    /// Fails if the kernel cannot watch the plane's epoll instance.
    pub(crate) async fn run(
        &self,
        mut ended: impl FnMut(RelayEntry<T>, RelayEnd),
    ) -> io::Result<Infallible> {
        let watch = sys::fd::watch(Arc::clone(&self.epoll), Interest::READABLE)?;
        let mut buffer = vec![0; direction::BUFFER].into_boxed_slice();
        let (mut events, mut all_ended) = (Vec::with_capacity(EVENTS), Ended::new());
        let mut timer = pin!(sleep_until(Instant::now()));
        loop {
            let next = self.lock().next_timer();
            // Reset the timer only if it would expire too late. This saves most resets, because
            // most connections are established long before their timers expire. A timer that
            // expires too early only causes an extra turn.
            if let Some(next) = next.filter(|next| timer.is_elapsed() || *next < timer.deadline()) {
                timer.as_mut().reset(next);
            }
            tokio::select! {
                biased;
                ready = watch.readable() => {
                    let mut ready = ready?;
                    if !self.collect(&mut events)? {
                        ready.clear_ready();
                    }
                }
                () = self.changed.notified() => {}
                () = timer.as_mut(), if next.is_some() => {}
            }
            self.turns(&mut events, &mut buffer, &mut all_ended, &mut ended).await;
        }
    }

    /// Takes a turn, and more turns as long as connections have more bytes to move.
    async fn turns(
        &self,
        events: &mut Vec<SocketEvent>,
        buffer: &mut [u8],
        all_ended: &mut Ended<T>,
        ended: &mut impl FnMut(RelayEntry<T>, RelayEnd),
    ) {
        loop {
            let turn = self.lock().turn(&self.epoll, events, buffer, all_ended);
            events.clear();
            for (entry, end) in all_ended.drain(..) {
                ended(entry, end);
            }
            if turn == TurnResult::Blocked {
                return;
            }
            tokio::task::yield_now().await;
            if self.collect(events).is_err() {
                return;
            }
        }
    }

    /// Adds the pending events to `events`. Returns whether there may be more of them.
    fn collect(&self, events: &mut Vec<SocketEvent>) -> io::Result<bool> {
        let mut raw = [const { MaybeUninit::uninit() }; EVENTS];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let (all, _) = match epoll::wait(&self.epoll, &mut raw, Some(&at_once)) {
            Err(rustix::io::Errno::INTR) => return Ok(true),
            waited => waited?,
        };
        events.extend(all.iter().map(SocketEvent::from));
        Ok(all.len() == EVENTS)
    }

    /// Removes the next connection for which `is_wanted` is true, starting at the index `cursor`.
    /// Returns `None` if there is no such connection from that index on.
    pub(crate) fn take(
        &self,
        cursor: &mut usize,
        is_wanted: impl Fn(&T) -> bool,
    ) -> Option<RelayEntry<T>> {
        self.lock().take(&self.epoll, cursor, is_wanted)
    }

    /// Calls `change` with the data that the caller has stored with each connection.
    pub(crate) fn for_each(&self, change: impl FnMut(&mut T)) {
        self.lock().owners().for_each(change);
    }

    /// Removes and returns all connections. From now on, the plane rejects new connections.
    pub(crate) fn cut(&self) -> Vec<RelayEntry<T>> {
        self.lock().cut(&self.epoll)
    }

    fn lock(&self) -> MutexGuard<'_, Entries<T>> {
        // Ignore a poisoned lock, because this generation exits if a turn panics.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
