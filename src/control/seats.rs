//! Limits for the number of clients on the control socket. One limit applies to root, one to the
//! daemon's user, and one to all other users together.
//!
//! The kernel reports a client's user when the client connects. Because root has a separate limit,
//! clients of other users cannot keep root out. An operator's client sends its request right after
//! connecting. So if too many clients have sent nothing, the server disconnects the oldest of them
//! when another client connects.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::net::Stream;
use crate::sys;

/// The maximum number of root's clients at a time. The same limit applies to the clients of the
/// daemon's user.
const PLACES: usize = 48;
/// The maximum number of clients in one user class that have connected but sent no request yet.
const SILENT: usize = 16;
/// The limits for the clients of all other users together: `STRANGERS` clients in total, and
/// `SILENT_STRANGERS` that have sent no request yet. These users have no permission, so the server
/// only tells their clients why it refuses them.
const STRANGERS: usize = 8;
const SILENT_STRANGERS: usize = 4;

/// The user of a client, as reported by the kernel (`SO_PEERCRED`, see unix(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum User {
    Root,
    /// The user of the daemon, if the daemon does not run as root.
    Owner,
    /// Any other user, whose requests are refused.
    Stranger(u32),
}

impl User {
    /// Returns the user who connected `stream`, as reported by the kernel.
    pub(super) fn of(stream: &Stream) -> io::Result<Self> {
        Ok(match sys::socket::peer_user(stream)? {
            0 => Self::Root,
            user if user == sys::process::user() => Self::Owner,
            user => Self::Stranger(user),
        })
    }
}

/// The limits for the number of clients, with one limit for each class of users.
#[derive(Debug)]
pub(super) struct Seats {
    root: Class,
    owner: Class,
    strangers: Class,
}

/// The place of one client on the control socket, which counts towards a limit.
#[derive(Debug)]
pub(super) struct Seat {
    /// A receiver that resolves when the server must disconnect this client. This happens if the
    /// client has sent no request and a newer client needs a place.
    pub(super) evicted: oneshot::Receiver<()>,
    /// A permit that frees the place when it is dropped.
    pub(super) place: OwnedSemaphorePermit,
}

/// The limit for the number of clients of one class of users.
#[derive(Debug)]
struct Class {
    places: Arc<Semaphore>,
    silent_max: usize,
    /// One channel for each client that has sent no request yet, the oldest client first. A message
    /// on a channel makes the server disconnect the client. The channel closes once the client has
    /// sent a request.
    silent: VecDeque<oneshot::Sender<()>>,
}

impl Seats {
    pub(super) fn new() -> Self {
        let operators = || Class::new(PLACES, SILENT);
        Self {
            root: operators(),
            owner: operators(),
            strangers: Class::new(STRANGERS, SILENT_STRANGERS),
        }
    }

    /// Returns a place for a client of `user`. Returns `None` if all places for this class of users
    /// are taken.
    pub(super) fn take(&mut self, user: User) -> Option<Seat> {
        match user {
            User::Root => self.root.take(),
            User::Owner => self.owner.take(),
            User::Stranger(_) => self.strangers.take(),
        }
    }
}

impl Class {
    fn new(places: usize, silent_max: usize) -> Self {
        Self { places: Arc::new(Semaphore::new(places)), silent_max, silent: VecDeque::new() }
    }

    fn take(&mut self) -> Option<Seat> {
        self.silent.retain(|client| !client.is_closed());
        if self.silent.len() >= self.silent_max {
            if let Some(oldest) = self.silent.pop_front() {
                // Ignore an error, because the oldest client may have sent its request or
                // disconnected in the meantime.
                let _ = oldest.send(());
            }
        }
        let place = Arc::clone(&self.places).try_acquire_owned().ok()?;
        let (evict, evicted) = oneshot::channel();
        self.silent.push_back(evict);
        Some(Seat { evicted, place })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_silent_client_makes_room() {
        let mut seats = Seats::new();
        let mut silent: Vec<_> = (0..=SILENT).map(|_| seats.take(User::Root).unwrap()).collect();
        assert!(silent[0].evicted.try_recv().is_ok());
        assert!(silent[1..].iter_mut().all(|seat| seat.evicted.try_recv().is_err()));
    }

    #[test]
    fn a_client_that_has_sent_a_request_is_not_evicted() {
        let mut seats = Seats::new();
        let Seat { place: _asked, evicted } = seats.take(User::Owner).unwrap();
        drop(evicted);
        let mut silent: Vec<_> = (0..SILENT).map(|_| seats.take(User::Owner).unwrap()).collect();
        assert!(silent.iter_mut().all(|seat| seat.evicted.try_recv().is_err()));
    }

    #[test]
    fn other_users_do_not_take_the_places_of_root() {
        let mut seats = Seats::new();
        let fill = |seats: &mut Seats, user| {
            let taken = std::iter::from_fn(|| seats.take(user)).map(|seat| seat.place);
            taken.collect::<Vec<_>>()
        };
        let strangers = fill(&mut seats, User::Stranger(1));
        let owner = fill(&mut seats, User::Owner);
        assert_eq!((strangers.len(), owner.len()), (STRANGERS, PLACES));
        assert!(seats.take(User::Root).is_some());
    }
}
