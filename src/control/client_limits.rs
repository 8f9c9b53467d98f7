//! Limits for the number of clients on the control socket. One limit applies to root, one to the
//! daemon's user, and one to all other users together.
//!
//! The kernel reports a client's user when the client connects. Because root has a separate limit,
//! clients of other users cannot keep root out. An operator's client sends its request right after
//! connecting. If no place is free, the server therefore disconnects the oldest client that has
//! sent nothing. It does the same if too many clients have sent nothing.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

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
pub(super) struct ClientLimits {
    root: Class,
    owner: Class,
    strangers: Class,
}

/// The place of one client in the connection limit, while the client has sent no request yet.
#[derive(Debug)]
pub(super) struct ClientPlace {
    /// A receiver that resolves when another client has taken the place. Then the server must
    /// disconnect this client.
    evicted: oneshot::Receiver<()>,
    place: Arc<SharedPermit>,
}

/// The semaphore permit for one place. It is `None` after another client has taken the place, or
/// after the client has sent its request.
#[derive(Debug)]
struct SharedPermit(Mutex<Option<OwnedSemaphorePermit>>);

/// The limit for the number of clients of one class of users.
#[derive(Debug)]
struct Class {
    places: Arc<Semaphore>,
    silent_max: usize,
    /// The clients that have sent no request yet, the oldest client first.
    silent: VecDeque<SilentClient>,
}

/// A client that has sent nothing yet. The server may disconnect it in favor of a new client.
#[derive(Debug)]
struct SilentClient {
    /// The channel closes once the client has sent a request or has disconnected.
    evict: oneshot::Sender<()>,
    place: Arc<SharedPermit>,
}

impl ClientLimits {
    pub(super) fn new() -> Self {
        let operators = || Class::new(PLACES, SILENT);
        Self {
            root: operators(),
            owner: operators(),
            strangers: Class::new(STRANGERS, SILENT_STRANGERS),
        }
    }

    /// Returns a place for a client of `user`. If necessary, disconnects the oldest silent client
    /// of this class of users. Returns `None` if every place belongs to a client that has sent its
    /// request.
    pub(super) fn take(&mut self, user: User) -> Option<ClientPlace> {
        match user {
            User::Root => self.root.take(),
            User::Owner => self.owner.take(),
            User::Stranger(_) => self.strangers.take(),
        }
    }
}

impl ClientPlace {
    /// Waits until another client has taken the place. Cancel safe.
    pub(super) async fn evicted(&mut self) {
        if (&mut self.evicted).await.is_err() {
            // The server no longer accepts clients, so no other client takes the place.
            std::future::pending().await
        }
    }

    /// Keeps the place for good, because the client has sent its request. Returns the permit that
    /// frees the place when it is dropped. Returns `None` if another client has taken the place.
    pub(super) fn keep(self) -> Option<OwnedSemaphorePermit> {
        self.place.take()
    }
}

impl SharedPermit {
    fn take(&self) -> Option<OwnedSemaphorePermit> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Class {
    fn new(places: usize, silent_max: usize) -> Self {
        Self { places: Arc::new(Semaphore::new(places)), silent_max, silent: VecDeque::new() }
    }

    fn take(&mut self) -> Option<ClientPlace> {
        self.silent.retain(|client| !client.evict.is_closed());
        let permit = if self.silent.len() < self.silent_max {
            self.free_place().or_else(|| self.evict_oldest())
        } else {
            self.evict_oldest().or_else(|| self.free_place())
        };
        let place = Arc::new(SharedPermit(Mutex::new(Some(permit?))));
        let (evict, evicted) = oneshot::channel();
        self.silent.push_back(SilentClient { evict, place: Arc::clone(&place) });
        Some(ClientPlace { evicted, place })
    }

    fn free_place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.places).try_acquire_owned().ok()
    }

    /// Disconnects the oldest silent client. Returns its permit, so that the limit holds although
    /// the task of this client ends later.
    fn evict_oldest(&mut self) -> Option<OwnedSemaphorePermit> {
        while let Some(oldest) = self.silent.pop_front() {
            // If the place has no permit, its client has sent a request in the meantime.
            if let Some(permit) = oldest.place.take() {
                // Ignore an error, because the client may have disconnected in the meantime.
                let _ = oldest.evict.send(());
                return Some(permit);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_evicted(place: &mut ClientPlace) -> bool {
        place.evicted.try_recv().is_ok()
    }

    /// Takes a place for a client that sends its request at once.
    fn busy(limits: &mut ClientLimits, user: User) -> Option<OwnedSemaphorePermit> {
        limits.take(user)?.keep()
    }

    #[test]
    fn the_oldest_silent_client_makes_room() {
        let mut limits = ClientLimits::new();
        let mut silent: Vec<_> = (0..=SILENT).map(|_| limits.take(User::Root).unwrap()).collect();
        assert!(is_evicted(&mut silent[0]));
        assert!(!silent[1..].iter_mut().any(is_evicted));
        assert!(silent.remove(0).keep().is_none());
    }

    /// All places are taken, and only one client has sent no request. A new client takes the place
    /// of this client.
    #[test]
    fn the_last_silent_client_makes_room_beside_busy_clients() {
        let mut limits = ClientLimits::new();
        let _busy: Vec<_> = (1..PLACES).map(|_| busy(&mut limits, User::Root).unwrap()).collect();
        let mut silent = limits.take(User::Root).unwrap();
        let newer = limits.take(User::Root).expect("the silent client keeps a newer one out");
        assert!(is_evicted(&mut silent));
        let _newer = newer.keep().expect("the newer client has no place");
        assert!(limits.take(User::Root).is_none());
    }

    #[test]
    fn a_client_that_has_sent_a_request_is_not_evicted() {
        let mut limits = ClientLimits::new();
        let _asked = busy(&mut limits, User::Owner).unwrap();
        let mut silent: Vec<_> = (0..SILENT).map(|_| limits.take(User::Owner).unwrap()).collect();
        assert!(!silent.iter_mut().any(is_evicted));
    }

    #[test]
    fn other_users_do_not_take_the_places_of_root() {
        let mut limits = ClientLimits::new();
        let fill = |limits: &mut ClientLimits, user| {
            std::iter::from_fn(|| busy(limits, user)).collect::<Vec<_>>()
        };
        let strangers = fill(&mut limits, User::Stranger(1));
        let owner = fill(&mut limits, User::Owner);
        assert_eq!((strangers.len(), owner.len()), (STRANGERS, PLACES));
        assert!(limits.take(User::Root).is_some());
    }

    #[test]
    fn a_client_that_leaves_frees_its_place() {
        let mut limits = ClientLimits::new();
        for _ in 0..2 * PLACES {
            drop(limits.take(User::Root).unwrap());
        }
        let busy: Vec<_> = std::iter::from_fn(|| busy(&mut limits, User::Root)).collect();
        assert_eq!(busy.len(), PLACES);
    }
}
