//! This module assembles a listener set. It matches the passed sockets to the configured listeners,
//! and binds a new socket for each listener that has no match.
//!
//! A process receives two kinds of sockets at startup, and this module matches each kind by a
//! different rule:
//!
//! - A socket from a parent, such as systemd, is matched by the name that the parent gave it. A
//!   listener with such a socket does not use its configured address.
//! - A socket that an earlier generation bound is matched by its address. The socket stays open as
//!   long as its address is configured, even under a new name. Otherwise it is closed. If another
//!   program has removed the path of a Unix socket, the socket is closed and the path is bound
//!   again.
//!
//! The configuration may write an address in a different form than when the socket was bound (see
//! [`crate::net::endpoint`]). Sockets that match no listener are closed and logged.

use std::io;
use std::os::fd::RawFd;
use std::path::Path;

use super::ListenerSet;
use crate::address::Address;
use crate::config::{CONTROL, DEFAULT_ADDRESS, Listeners};
use crate::error::Error;
use crate::net::beside::{self, OldSockets};
use crate::net::bind::Access;
use crate::net::claim::claim;
use crate::net::endpoint::Endpoint;
use crate::net::listener::Listener;
use crate::net::origin::Origin;
use crate::net::passed::Passed;
use crate::net::stored_name::StoredName;
use crate::net::wanted::{WantedListener, name_obstacle};

impl ListenerSet {
    /// Matches the passed sockets to the configured listeners. Binds a new socket for each listener
    /// that has no match, and closes the sockets that no listener uses.
    ///
    /// # Errors
    /// [`Error::Bind`] when a listener cannot be bound. This function then closes the sockets that
    /// it has bound so far and unlinks their paths.
    pub(crate) fn assemble(
        configured: &Listeners,
        control: Option<&Path>,
        mut passed: Vec<Passed>,
    ) -> Result<Self, Error> {
        let mut listeners = Vec::new();
        let control = control.map(|path| Address::UnixPath(path.to_owned()));
        let control_passed = take_one(&mut passed, |socket| is_control(socket, control.as_ref()));
        let mut wanted = Vec::new();
        match configured {
            Listeners::Named(named) => {
                for (index, config) in named.as_slice().iter().enumerate() {
                    wanted.push(WantedListener::new(config.name_at(index), config)?);
                }
            }
            Listeners::Inherited => {
                listeners.extend(adopt_all(take(&mut passed, |socket| {
                    socket.origin == Origin::Inherited
                })));
                if listeners.is_empty() {
                    wanted.push(WantedListener::new("default".into(), &DEFAULT_ADDRESS.parse()?)?);
                }
            }
        }
        claim(&mut wanted, &mut passed);
        let grants = wanted.iter().filter_map(WantedListener::grant).collect();
        let (mut bound_here, replaced) = adopt_or_bind(wanted, &passed, &mut listeners)?;
        let control = match (control_passed, control) {
            (Some(socket), _) => Some(adopt(socket, CONTROL)),
            (None, Some(address)) => {
                let bound = Listener::bind(CONTROL, &address, Access::Owner);
                let bound = bound.map_err(|error| name_obstacle(error, &address, &passed));
                let bound = bound.inspect_err(|_| unlink_at(&bound_here, &listeners))?;
                bound_here.push(listeners.len());
                Some(bound)
            }
            (None, None) => None,
        };
        let no_longer_stored = passed.iter().filter_map(stored_name).collect();
        passed.iter().for_each(log_unclaimed);
        let unclaimed = passed.iter().map(|socket| socket.descriptor).collect();
        Ok(Self { listeners, control, unclaimed, no_longer_stored, grants, bound_here, replaced })
    }
}

/// Returns whether a passed socket is the control socket. A socket from a parent is the control
/// socket if it has the right name. A socket that this service bound must also have the configured
/// path.
fn is_control(socket: &Passed, configured: Option<&Address>) -> bool {
    match &socket.origin {
        Origin::Inherited => socket.name.as_deref() == Some(CONTROL),
        Origin::Bound(binding) => {
            socket.name.as_deref() == Some(CONTROL)
                && !socket.has_lost_its_path()
                && configured.is_some_and(|path| {
                    binding.address == *path || Endpoint::of(path) == socket.endpoint()
                })
        }
    }
}

/// Returns the name under which the service manager may store a passed socket. Returns `None` if
/// this service has not bound the socket.
fn stored_name(socket: &Passed) -> Option<StoredName> {
    match &socket.origin {
        Origin::Bound(binding) => StoredName::new(socket.name.as_deref()?, binding),
        Origin::Inherited => None,
    }
}

fn log_unclaimed(socket: &Passed) {
    let (listener, address) = (socket.name.as_deref().unwrap_or("unnamed"), socket.address());
    tracing::info!(
        event = "socket.unclaimed",
        listener,
        address,
        descriptor = socket.descriptor,
        "closed the inherited socket {address}: no configured listener uses it"
    );
}

fn unlink_at(places: &[usize], listeners: &[Listener]) {
    places.iter().filter_map(|place| listeners.get(*place)).for_each(Listener::unlink);
}

/// Adopts the sockets found for each listener, and binds the listeners that have none. Returns the
/// indices of the newly bound listeners, and the descriptors of the unused sockets that they
/// replace.
fn adopt_or_bind(
    wanted: Vec<WantedListener>,
    unclaimed: &[Passed],
    listeners: &mut Vec<Listener>,
) -> Result<(Vec<usize>, Vec<RawFd>), Error> {
    let (mut bound, mut replaced) = (Vec::new(), Vec::new());
    let old_sockets = OldSockets::new(unclaimed);
    for want in wanted {
        if !want.found.is_empty() {
            listeners.extend(want.found.into_iter().map(|socket| adopt(socket, &want.name)));
            continue;
        }
        let bind = Listener::bind(&want.name, &want.address, Access::Configured(want.access));
        let bind = bind.or_else(|error| {
            let old = old_sockets.beside(&want.address);
            let is_in_use = matches!(
                &error,
                Error::Bind { source, .. } if source.kind() == io::ErrorKind::AddrInUse
            );
            if old.is_empty() || !is_in_use {
                return Err(error);
            }
            let listener = beside::bind(&want.name, &want.address, old)?;
            // Mark the new listener as replaced, because its clients must reach the old sockets
            // again if the handoff fails. If this generation takes over, it removes the mark.
            listener.set_replaced(true);
            replaced.extend(old.iter().map(|socket| socket.descriptor));
            Ok(listener)
        });
        match bind {
            Ok(listener) => {
                let (name, address) = (listener.name(), listener.address());
                tracing::info!(
                    event = "listener.bound", listener = %name, address,
                    "bound the listener {name} to {address}"
                );
                bound.push(listeners.len());
                listeners.push(listener);
            }
            Err(error) => {
                unlink_at(&bound, listeners);
                return Err(name_obstacle(error, &want.address, unclaimed));
            }
        }
    }
    Ok((bound, replaced))
}

/// Turns all given sockets into listeners that keep the names under which the sockets were passed.
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
    if let Some((path, found)) = socket.obstacle() {
        let path = path.display();
        tracing::warn!(
            event = "socket.path_taken", listener = name, %path, found,
            "new clients cannot reach the listener {name}: {found} has taken the place of its \
            socket at {path}"
        );
    }
    let (before, descriptor) = (socket.name.clone(), socket.descriptor);
    let listener = socket.adopt(name);
    let address = listener.address();
    match before.filter(|before| before != name) {
        Some(before) => {
            tracing::info!(
                event = "listener.adopted",
                listener = name,
                before,
                address,
                descriptor,
                "the listener {name} uses the inherited socket that was named {before}"
            )
        }
        None => tracing::debug!(
            event = "listener.adopted",
            listener = name,
            address,
            descriptor,
            "the listener {name} uses the inherited socket on {address}"
        ),
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
        Listeners::new(texts.iter().map(|text| text.parse().unwrap()).collect()).unwrap()
    }

    fn assemble(texts: &[&str], passed: Vec<Passed>) -> Result<ListenerSet, Error> {
        ListenerSet::assemble(&configured(texts), None, passed)
    }

    /// Returns the sockets that a successor receives when its predecessor holds `set`.
    fn passed_on(set: &ListenerSet) -> Vec<Passed> {
        let pass = |listener: &Listener| {
            let name = Some(listener.name().to_string());
            Passed::check(listener.try_clone().unwrap(), name, listener.origin().clone()).unwrap()
        };
        set.passed_on().into_iter().map(pass).collect()
    }

    /// Creates a socket like one that a parent passes. Returns the socket and its address.
    fn from_parent(name: Option<&str>) -> (Passed, String) {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap().to_string();
        (Passed::check(socket.into(), name.map(str::to_owned), Origin::Inherited).unwrap(), address)
    }

    fn names_and_addresses(set: &ListenerSet) -> Vec<(String, String)> {
        set.as_slice()
            .iter()
            .map(|one| (one.name().to_string(), one.address().to_owned()))
            .collect()
    }

    #[test]
    fn a_bound_socket_keeps_its_port_under_a_new_name() {
        let first = assemble(&["a=127.0.0.1:0", "b=[::1]:0"], vec![]).unwrap();
        let second = assemble(&["c=[::1]:0", "a=127.0.0.1:0"], passed_on(&first)).unwrap();
        let (before, after) = (names_and_addresses(&first), names_and_addresses(&second));
        assert_eq!(after, [("c".to_owned(), before[1].1.clone()), before[0].clone()]);
    }

    /// A socket is closed if its address is no longer configured, even if the configuration still
    /// has a listener of the same name.
    #[test]
    fn a_bound_socket_is_closed_if_its_address_is_removed() {
        let first = assemble(&["a=127.0.0.1:0"], vec![]).unwrap();
        let second = assemble(&["a=[::1]:0"], passed_on(&first)).unwrap();
        assert_eq!(second.unclaimed().len(), 1);
        assert!(second.as_slice()[0].address().starts_with("[::1]"));
    }

    #[test]
    fn a_named_socket_is_adopted_at_any_address() {
        let ((two, at_two), (one, at_one)) = (from_parent(Some("two")), from_parent(Some("one")));
        let set = assemble(&["one=127.0.0.1:1", "two=127.0.0.1:2"], vec![two, one]).unwrap();
        assert_eq!(
            names_and_addresses(&set),
            [("one".to_owned(), at_one), ("two".to_owned(), at_two)]
        );
    }

    #[test]
    fn unnamed_sockets_go_by_their_address_and_then_by_their_place() {
        let ((first, at_first), (second, at_second)) = (from_parent(None), from_parent(None));
        let wanted = configured(&["127.0.0.1:1", &format!("b={at_first}")]);
        let set = ListenerSet::assemble(&wanted, None, vec![first, second]).unwrap();
        assert_eq!(
            names_and_addresses(&set),
            [("listener-1".to_owned(), at_second), ("b".to_owned(), at_first)]
        );
    }

    #[test]
    fn without_a_configuration_all_that_a_parent_passes_is_served() {
        let ((web, _), (also_web, _), (unnamed, _)) =
            (from_parent(Some("web")), from_parent(Some("web")), from_parent(None));
        let set = ListenerSet::assemble(&Listeners::Inherited, None, vec![web, also_web, unnamed])
            .unwrap();
        let names: Vec<_> = set.as_slice().iter().map(|one| one.name().to_string()).collect();
        assert_eq!(names, ["web", "web", "listener-3"]);
        let second = ListenerSet::assemble(&Listeners::Inherited, None, passed_on(&set)).unwrap();
        assert_eq!(names_and_addresses(&second), names_and_addresses(&set));
    }

    #[test]
    fn two_sockets_with_one_name_are_both_served() {
        let ((web, _), (also_web, _)) = (from_parent(Some("web")), from_parent(Some("web")));
        let set = assemble(&["web=127.0.0.1:1"], vec![web, also_web]).unwrap();
        assert_eq!(set.as_slice().len(), 2);
        assert!(set.unclaimed().is_empty());
    }
}
