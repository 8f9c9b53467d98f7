//! Matches the sockets that were passed in to the listeners that are configured, and binds the rest.
//!
//! Two kinds of socket come in by the same door, and they are matched by different things. What a parent made, the
//! parent decides: its name wins, and the configured address is only for when nobody passes it. What the line bound
//! itself, the configuration decides: a socket that was bound for an address that is still configured is kept, under a
//! new name if it has one; any other is closed. Whatever nobody claims is closed and said so; nothing is held unclaimed.

use std::os::fd::RawFd;

use super::listener::{Listener, Origin, Passed};
use crate::address::Address;
use crate::config::{DEFAULT_ADDRESS, Listeners};
use crate::error::Error;

/// All listeners of a generation.
#[derive(Clone, Debug)]
pub struct ListenerSet {
    listeners: Vec<Listener>,
    /// Descriptors, by the number under which they were passed in, that nothing claimed. They are closed.
    unclaimed: Vec<RawFd>,
    /// Places of those that this very process bound: no predecessor accepts there.
    bound_here: Vec<usize>,
}

/// One listener to be: its name, and where to bind it if no socket was passed in for it.
struct Wanted {
    name: String,
    address: Address,
    found: Vec<Passed>,
}

impl ListenerSet {
    /// Adopts what was passed in, binds what is missing, closes what is left.
    ///
    /// # Errors
    /// [`Error::Bind`]. What had been bound by then is closed again, and its path unlinked.
    pub(crate) fn assemble(configured: &Listeners, mut passed: Vec<Passed>) -> Result<Self, Error> {
        let mut listeners = Vec::new();
        let mut wanted = Vec::new();
        match configured {
            Listeners::Named(named) => wanted.extend(named.as_slice().iter().enumerate().map(|(index, config)| {
                Wanted { name: config.name_at(index), address: config.address.clone(), found: Vec::new() }
            })),
            Listeners::Inherited => {
                listeners.extend(adopt_all(take(&mut passed, |socket| socket.origin == Origin::Inherited)));
                if listeners.is_empty() {
                    wanted.push(Wanted { name: "default".into(), address: DEFAULT_ADDRESS.parse()?, found: vec![] });
                }
            }
        }
        claim(&mut wanted, &mut passed);
        let bound_here = adopt_or_bind(wanted, &mut listeners)?;
        for socket in &passed {
            let (listener, address) = (socket.name.as_deref().unwrap_or("unnamed"), socket.address());
            tracing::info!(
                listener,
                address,
                descriptor = socket.descriptor,
                "closed a passed socket that nothing claims"
            );
        }
        Ok(Self { listeners, unclaimed: passed.iter().map(|socket| socket.descriptor).collect(), bound_here })
    }

    /// In the order in which they are passed on.
    #[must_use]
    pub fn as_slice(&self) -> &[Listener] {
        &self.listeners
    }

    /// The listener of that name, the first if several have it.
    ///
    /// # Errors
    /// [`Error::NoSuchListener`].
    pub fn get(&self, name: &str) -> Result<&Listener, Error> {
        let found = self.listeners.iter().find(|listener| &**listener.name() == name);
        found.ok_or_else(|| Error::NoSuchListener { name: name.to_owned() })
    }

    /// The numbers of the passed descriptors that were closed because nothing claims them.
    pub(crate) fn unclaimed(&self) -> &[RawFd] {
        &self.unclaimed
    }

    /// The places of those that this process bound itself. Once any is taken out, the places are others.
    pub(crate) fn bound_here(&self) -> &[usize] {
        &self.bound_here
    }

    /// Takes all listeners out of the set.
    pub(crate) fn take(&mut self) -> Vec<Listener> {
        std::mem::take(&mut self.listeners)
    }

    /// Takes the listeners at these places out of the set, in no particular order.
    pub(crate) fn remove(&mut self, places: &[usize]) -> Vec<Listener> {
        let (gone, kept): (Vec<_>, Vec<_>) =
            self.listeners.drain(..).enumerate().partition(|(place, _)| places.contains(place));
        self.listeners = kept.into_iter().map(|(_, listener)| listener).collect();
        gone.into_iter().map(|(_, listener)| listener).collect()
    }
}

/// Gives each wanted listener the sockets that are its own. The surest sign goes first, for all of them, before the
/// next one is looked at: otherwise the order of the configuration would decide who gets what.
fn claim(wanted: &mut [Wanted], passed: &mut Vec<Passed>) {
    let inherited = |socket: &Passed| socket.origin == Origin::Inherited;
    let bound_for = |socket: &Passed, address: &Address| match &socket.origin {
        Origin::Bound(binding) => binding.address == *address,
        Origin::Inherited => false,
    };
    for want in &mut *wanted {
        // A unit with two ListenStream= lines passes two sockets under one name: both are meant.
        want.found = take(passed, |socket| inherited(socket) && socket.name.as_ref() == Some(&want.name));
    }
    for same_name in [true, false] {
        for want in wanted.iter_mut().filter(|want| want.found.is_empty()) {
            want.found.extend(take_one(passed, |socket| {
                bound_for(socket, &want.address) && (!same_name || socket.name.as_ref() == Some(&want.name))
            }));
        }
    }
    for want in wanted.iter_mut().filter(|want| want.found.is_empty()) {
        want.found.extend(take_one(passed, |socket| inherited(socket) && socket.listens_on(&want.address)));
    }
    for want in wanted.iter_mut().filter(|want| want.found.is_empty()) {
        want.found.extend(take_one(passed, |socket| inherited(socket) && socket.name.is_none()));
    }
}

/// Adopts what was found for each, and binds those for which nothing was: the places of these.
fn adopt_or_bind(wanted: Vec<Wanted>, listeners: &mut Vec<Listener>) -> Result<Vec<usize>, Error> {
    let mut bound = Vec::new();
    for want in wanted {
        if !want.found.is_empty() {
            listeners.extend(want.found.into_iter().map(|socket| adopt(socket, &want.name)));
            continue;
        }
        match Listener::bind(&want.name, &want.address) {
            Ok(listener) => {
                tracing::info!(listener = %listener.name(), address = listener.address(), "bound");
                bound.push(listeners.len());
                listeners.push(listener);
            }
            Err(error) => {
                bound.iter().filter_map(|place| listeners.get(*place)).for_each(Listener::unlink);
                return Err(error);
            }
        }
    }
    Ok(bound)
}

/// Adopts all of them under the names that they came with.
fn adopt_all(sockets: Vec<Passed>) -> Vec<Listener> {
    let alone = sockets.len() == 1;
    let adopted = sockets.into_iter().zip(1..).map(|(socket, place)| {
        let unnamed = || if alone { "default".to_owned() } else { format!("listener-{place}") };
        let name = socket.name.clone().unwrap_or_else(unnamed);
        adopt(socket, &name)
    });
    adopted.collect()
}

fn adopt(socket: Passed, name: &str) -> Listener {
    let (before, descriptor) = (socket.name.clone(), socket.descriptor);
    let listener = socket.adopt(name);
    let address = listener.address();
    match before.filter(|before| before != name) {
        Some(before) => tracing::info!(listener = name, before, address, descriptor, "adopted under a new name"),
        None => tracing::debug!(listener = name, address, descriptor, "adopted"),
    }
    listener
}

fn take(passed: &mut Vec<Passed>, mut wanted: impl FnMut(&Passed) -> bool) -> Vec<Passed> {
    let (taken, left) = passed.drain(..).partition(|socket| wanted(socket));
    *passed = left;
    taken
}

fn take_one(passed: &mut Vec<Passed>, wanted: impl FnMut(&Passed) -> bool) -> Option<Passed> {
    passed.iter().position(wanted).map(|place| passed.remove(place))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configured(texts: &[&str]) -> Listeners {
        Listeners::exactly(texts.iter().map(|text| text.parse().unwrap()).collect()).unwrap()
    }

    /// What a successor is passed when its predecessor holds `set`.
    fn passed_on(set: &ListenerSet) -> Vec<Passed> {
        let pass = |listener: &Listener| {
            let name = Some(listener.name().to_string());
            Passed::check(listener.try_clone().unwrap(), name, listener.origin().clone()).unwrap()
        };
        set.as_slice().iter().map(pass).collect()
    }

    /// A socket that a parent made.
    fn from_parent(name: Option<&str>) -> (Passed, String) {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap().to_string();
        (Passed::check(socket.into(), name.map(str::to_owned), Origin::Inherited).unwrap(), address)
    }

    fn names_and_addresses(set: &ListenerSet) -> Vec<(String, String)> {
        set.as_slice().iter().map(|one| (one.name().to_string(), one.address().to_owned())).collect()
    }

    #[test]
    fn a_bound_socket_follows_its_address_to_a_new_name_and_keeps_its_port() {
        let first = ListenerSet::assemble(&configured(&["a=127.0.0.1:0", "b=[::1]:0"]), vec![]).unwrap();
        let second = ListenerSet::assemble(&configured(&["c=[::1]:0", "a=127.0.0.1:0"]), passed_on(&first)).unwrap();
        let (before, after) = (names_and_addresses(&first), names_and_addresses(&second));
        assert_eq!(after, [("c".to_owned(), before[1].1.clone()), before[0].clone()]);
    }

    #[test]
    fn a_bound_socket_whose_address_is_no_longer_configured_is_closed_even_if_its_name_is() {
        let first = ListenerSet::assemble(&configured(&["a=127.0.0.1:0"]), vec![]).unwrap();
        let second = ListenerSet::assemble(&configured(&["a=[::1]:0"]), passed_on(&first)).unwrap();
        assert_eq!(second.unclaimed().len(), 1);
        assert!(second.as_slice()[0].address().starts_with("[::1]"));
    }

    #[test]
    fn what_a_parent_names_is_adopted_wherever_it_listens() {
        let ((two, at_two), (one, at_one)) = (from_parent(Some("two")), from_parent(Some("one")));
        let set = ListenerSet::assemble(&configured(&["one=127.0.0.1:1", "two=127.0.0.1:2"]), vec![two, one]).unwrap();
        assert_eq!(names_and_addresses(&set), [("one".to_owned(), at_one), ("two".to_owned(), at_two)]);
    }

    #[test]
    fn unnamed_sockets_go_by_their_address_and_then_by_their_place() {
        let ((first, at_first), (second, at_second)) = (from_parent(None), from_parent(None));
        let wanted = configured(&["127.0.0.1:1", &format!("b={at_first}")]);
        let set = ListenerSet::assemble(&wanted, vec![first, second]).unwrap();
        assert_eq!(names_and_addresses(&set), [("listener-1".to_owned(), at_second), ("b".to_owned(), at_first)]);
    }

    #[test]
    fn without_a_configuration_all_that_a_parent_passes_is_served() {
        let ((web, _), (also_web, _), (unnamed, _)) =
            (from_parent(Some("web")), from_parent(Some("web")), from_parent(None));
        let set = ListenerSet::assemble(&Listeners::Inherited, vec![web, also_web, unnamed]).unwrap();
        let names: Vec<_> = set.as_slice().iter().map(|one| one.name().to_string()).collect();
        assert_eq!(names, ["web", "web", "listener-3"]);
        let second = ListenerSet::assemble(&Listeners::Inherited, passed_on(&set)).unwrap();
        assert_eq!(names_and_addresses(&second), names_and_addresses(&set));
    }

    #[test]
    fn two_sockets_of_one_name_are_both_served_by_the_listener_of_that_name() {
        let ((web, _), (also_web, _)) = (from_parent(Some("web")), from_parent(Some("web")));
        let set = ListenerSet::assemble(&configured(&["web=127.0.0.1:1"]), vec![web, also_web]).unwrap();
        assert_eq!(set.as_slice().len(), 2);
        assert!(set.unclaimed().is_empty());
    }
}
