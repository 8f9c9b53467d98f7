//! The relay plane of a worker thread. A plane is a single task that moves the bytes of all
//! established proxied connections of its thread.
//!
//! | file | contents |
//! |---|---|
//! | `entry` | one connection, and what the server stores with it |
//! | `entries` | the connections of a plane, their timers, and the turn of those that are ready |
//! | `events` | the events of the sockets |
//! | `relay` | the two directions of one connection |
//! | `direction` | one direction of a relay |
//! | `limits` | idle timeout and lifetime |
//! | `settle` | the last bytes of a connection that has failed on one side |
//! | `snapshot` | the state with which another process continues a relay |
//!
//! A task for each connection would be simpler, but it costs more. It needs ten allocations, two
//! registrations with the runtime, and two thousand bytes while the connection is idle. A plane
//! watches an epoll instance of its own through the tokio runtime, so the accept loops and other
//! tasks run on the same thread.
//!
//! A plane only waits until the first attempt to connect to an upstream completes, and then relays.
//! For any other wait, a client gets a task of its own. For example, it may wait for its PROXY
//! header, for another upstream, or for its move to the successor. The caller moves connections
//! between the plane and such tasks.

mod direction;
mod entries;
mod entry;
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
pub(crate) use entry::{RelayEnd, RelayEntry, RelayOwner};
use events::SocketEvent;
pub(crate) use limits::{Expired, Limits, Used};
pub(crate) use relay::Relay;
pub(crate) use settle::{Side, settle};
pub(crate) use snapshot::RelaySnapshot;

use crate::sys;

/// The maximum number of events that a relay plane handles before other tasks of its thread run.
const EVENTS: usize = 128;

/// The task that moves the bytes of all proxied connections on one worker thread. `T` is the data
/// that the caller stores with each connection.
#[derive(Debug)]
pub(crate) struct Plane<T> {
    epoll: Arc<OwnedFd>,
    entries: Mutex<Entries<T>>,
    /// Notified when a new connection has the timer that expires first.
    changed: Notify,
}

/// A connection that a relay plane has rejected, and the reason.
#[derive(Debug)]
pub(crate) enum Rejected<T> {
    /// The plane accepts no connections, because [`Plane::cut`] has been called.
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
        // Wake the plane's task only if it would wake too late. This is rare, because the timers of
        // earlier connections usually expire sooner.
        if entries.next_timer() != timer {
            self.changed.notify_one();
        }
        Ok(())
    }

    /// Moves bytes until the future is dropped. Calls `ended` with each connection that ends, after
    /// it has been removed from the plane. Must be called within the tokio runtime of the worker.
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

    /// Moves the bytes of all connections that have bytes to move. Lets other tasks of the thread
    /// run in between.
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
    /// Returns `None` if there is no such connection from that index on. If the attempt to connect
    /// to the upstream has just failed, returns the error too, because the kernel reports it only
    /// once.
    pub(crate) fn take(
        &self,
        cursor: &mut usize,
        is_wanted: impl Fn(&T) -> bool,
    ) -> Option<(RelayEntry<T>, Option<io::Error>)> {
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
        // Ignore a poisoned lock, because this process exits if code panics while it holds one.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
