//! The listeners of one generation, which is one process of the service. The process passes them to
//! its successor, closes them, or stores them with the service manager.
//!
//! The set also contains the control socket, on which an operator sends requests. Each process
//! passes this socket to the next one, but the socket does not serve clients.

mod assembly;

use std::collections::HashSet;
use std::os::fd::RawFd;

use super::listener::Listener;
use super::origin::Origin;
use super::stored_name::StoredName;
use super::wanted::Grant;
use crate::error::Error;

/// All listeners of a generation, and its control socket.
#[derive(Clone, Debug)]
pub struct ListenerSet {
    listeners: Vec<Listener>,
    /// The control socket. Its index is one higher than that of the last listener.
    control: Option<Listener>,
    /// The numbers of passed file descriptors that this process has closed, because they matched no
    /// configured listener.
    unclaimed: Vec<RawFd>,
    /// The names of old sockets that the service manager may still store. Earlier generations bound
    /// these sockets, but no listener uses them any more.
    no_longer_stored: Vec<StoredName>,
    /// The modes and owners to set on the files of passed Unix sockets when this generation takes
    /// over.
    grants: Vec<Grant>,
    /// The indices of the listeners that this process bound itself. The predecessor does not have
    /// these listeners.
    bound_here: Vec<usize>,
    /// The numbers of passed file descriptors whose sockets no listener uses any more. Their
    /// addresses overlap with that of a new listener, which will get their clients.
    replaced: Vec<RawFd>,
}

impl ListenerSet {
    /// Returns the listeners that serve clients, without the control socket.
    #[must_use]
    pub fn as_slice(&self) -> &[Listener] {
        &self.listeners
    }

    /// Returns the first listener with the given name.
    ///
    /// # Errors
    /// [`Error::NoSuchListener`] when no listener has this name.
    pub fn get(&self, name: &str) -> Result<&Listener, Error> {
        let found = self.listeners.iter().find(|listener| &**listener.name() == name);
        found
            .ok_or_else(|| Error::no_such_listener(name, self.listeners.iter().map(Listener::name)))
    }

    /// Returns the control socket, if this generation has one.
    pub(crate) const fn control(&self) -> Option<&Listener> {
        self.control.as_ref()
    }

    /// Returns all sockets to pass to a successor: first the listeners, then the control socket.
    pub(crate) fn passed_on(&self) -> Vec<&Listener> {
        self.listeners.iter().chain(&self.control).collect()
    }

    /// Returns the sockets that the service manager should store, each with its name in the store.
    /// These are all sockets for clients that this service itself has bound. A socket whose name
    /// would be too long cannot be stored, and has the name `None` here.
    pub(crate) fn to_store(&self) -> impl Iterator<Item = (&Listener, Option<StoredName>)> {
        self.listeners.iter().filter_map(|listener| match listener.origin() {
            Origin::Bound(binding) => Some((listener, StoredName::new(listener.name(), binding))),
            Origin::Inherited => None,
        })
    }

    /// Returns the names of the sockets that the service manager should remove from its store.
    pub(crate) fn no_longer_stored(&self) -> &[StoredName] {
        &self.no_longer_stored
    }

    /// Sets the configured mode and owner of the files of passed Unix sockets.
    ///
    /// Call this function only after this generation has taken over. Until then, the predecessor
    /// may have to continue, so the files must keep the mode and owner from its configuration.
    pub(crate) fn grant_access(&mut self) {
        self.grants.drain(..).for_each(Grant::perform);
    }

    /// Returns the numbers of passed file descriptors that this process has closed, because they
    /// matched no configured listener.
    pub(crate) fn unclaimed(&self) -> &[RawFd] {
        &self.unclaimed
    }

    /// Returns the numbers of passed file descriptors whose sockets no listener uses any more.
    /// Their addresses overlap with that of a new listener, which will get their clients.
    pub(crate) fn replaced(&self) -> &[RawFd] {
        &self.replaced
    }

    /// Marks the listeners at the given indices as replaced. When such a listener stops accepting,
    /// a listener of the successor gets its new clients.
    pub(crate) fn mark_replaced(&self, places: &[usize]) {
        places
            .iter()
            .filter_map(|place| self.listeners.get(*place))
            .for_each(|listener| listener.set_replaced(true));
    }

    /// Marks all listeners as not replaced. Call this function when the handoff is over.
    pub(crate) fn forget_replacements(&self) {
        self.listeners.iter().for_each(|listener| listener.set_replaced(false));
    }

    /// Undoes the changes that a failed successor has made to the listeners. A successor that was
    /// killed may have left `SO_REUSEPORT` set on them. This option would let any process of the
    /// same user bind the same port.
    pub(crate) fn restore(&self) {
        self.forget_replacements();
        let bound =
            self.listeners.iter().filter(|listener| *listener.origin() != Origin::Inherited);
        bound.for_each(Listener::restore);
    }

    /// Returns the indices of the listeners that this process bound itself. After a listener has
    /// been removed, the indices are no longer valid.
    pub(crate) fn bound_here(&self) -> &[usize] {
        &self.bound_here
    }

    /// Removes the paths of the listeners that this process bound itself. Call this function only
    /// while no other process holds these listeners.
    pub(crate) fn unlink_bound_here(&self) {
        let all = self.passed_on();
        self.bound_here.iter().filter_map(|index| all.get(*index)).for_each(|one| one.unlink());
    }

    /// Takes all listeners for clients out of the set, but leaves the control socket in it.
    pub(crate) fn take(&mut self) -> Vec<Listener> {
        std::mem::take(&mut self.listeners)
    }

    /// Takes the control socket out of the set.
    pub(crate) fn take_control(&mut self) -> Option<Listener> {
        self.control.take()
    }

    /// Takes the listeners at the given indices out of the set. Returns the listeners for clients,
    /// and also the control socket if `places` contains its index.
    pub(crate) fn remove(&mut self, places: &[usize]) -> (Vec<Listener>, Option<Listener>) {
        let places: HashSet<_> = places.iter().copied().collect();
        let control = self.control.take_if(|_| places.contains(&self.listeners.len()));
        let (gone, kept): (Vec<_>, Vec<_>) =
            self.listeners.drain(..).enumerate().partition(|(place, _)| places.contains(place));
        self.listeners = kept.into_iter().map(|(_, listener)| listener).collect();
        (gone.into_iter().map(|(_, listener)| listener).collect(), control)
    }

    /// Takes the listeners whose sockets have the given cookies (`SO_COOKIE`) out of the set.
    pub(crate) fn remove_sockets(&mut self, cookies: &[u64]) -> Vec<Listener> {
        let cookies: HashSet<_> = cookies.iter().copied().collect();
        let is_one =
            |listener: &Listener| listener.cookie().is_ok_and(|cookie| cookies.contains(&cookie));
        let (gone, kept) = self.listeners.drain(..).partition(is_one);
        self.listeners = kept;
        gone
    }
}
