//! Places for clients of the control socket, limited for each class of users.
//!
//! The user of a client is known when it is accepted. Each class of users has its own places, so
//! root always finds one, however many clients of other users connect. An operator's request
//! arrives with its connection, so a silent client keeps its place only until another client needs
//! it.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::net::Stream;
use crate::sys;

/// How many clients of root, and of the daemon's user, may be connected at once.
const PLACES: usize = 48;
/// How many of these clients may not have sent their request yet.
const SILENT: usize = 16;
/// How many clients of other users may be connected at once: enough to tell them why they are
/// refused.
const STRANGERS: usize = 8;
const SILENT_STRANGERS: usize = 4;

/// The user of a client, unix(7), `SO_PEERCRED`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum User {
    Root,
    /// The user of the daemon, if that is not root.
    Owner,
    /// Any other user, who is refused.
    Stranger(u32),
}

impl User {
    /// Asks the kernel which user has connected `stream`.
    pub(super) fn of(stream: &Stream) -> io::Result<Self> {
        Ok(match sys::socket::peer_user(stream)? {
            0 => Self::Root,
            user if user == sys::process::user() => Self::Owner,
            user => Self::Stranger(user),
        })
    }
}

/// The places of all classes of users.
#[derive(Debug)]
pub(super) struct Seats {
    root: Class,
    owner: Class,
    strangers: Class,
}

/// The place of one client.
#[derive(Debug)]
pub(super) struct Seat {
    /// Resolves when the client must leave, because it has sent no request and another client needs
    /// its place.
    pub(super) evicted: oneshot::Receiver<()>,
    /// Frees the place when dropped.
    pub(super) place: OwnedSemaphorePermit,
}

/// The places of one class of users.
#[derive(Debug)]
struct Class {
    places: Arc<Semaphore>,
    silent_max: usize,
    /// The clients that have sent no request yet, the oldest first. The receiver of a sender is
    /// closed once its client has sent a request.
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

    /// Returns a place for a client of `user`, or `None` if requests occupy all places of its
    /// class.
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
                // The client may have left at this moment.
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
