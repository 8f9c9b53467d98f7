//! This module matches the sockets that this process receives at startup to its configured
//! listeners. It takes linear time.
//!
//! The module `listener_set::assembly` explains how each kind of socket is matched, and why. For
//! each matching rule, this module builds an index of the sockets that are not matched yet. Then it
//! looks up each listener in the index. A comparison of every listener with every socket would take
//! seconds, because a handoff may pass thousands of sockets.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

use super::endpoint::Endpoint;
use super::origin::{Binding, Origin};
use super::passed::Passed;
use super::wanted::WantedListener;

/// Assigns the received sockets to the configured listeners. This function applies the most
/// reliable matching rule to all listeners first, and then the next rule. So a listener never takes
/// a socket that matches another listener better.
pub(super) fn claim(wanted: &mut [WantedListener], passed: &mut Vec<Passed>) {
    let mut pool = UnclaimedSockets(passed.drain(..).map(Some).collect());
    // Give each listener all sockets that a parent passed under the listener's name. A systemd unit
    // with two `ListenStream=` lines passes two sockets under one name.
    let mut by_name = pool.by_key(|socket| inherited(socket)?.name.clone());
    for want in &mut *wanted {
        while let Some(socket) = pool.first(&mut by_name, &want.name) {
            want.found.push(socket);
        }
    }
    pool.give_one(
        wanted,
        |socket| Some((binding(socket)?.address.clone(), socket.name.clone()?)),
        |want| Some((want.address.clone(), want.name.clone())),
    );
    pool.give_one(
        wanted,
        |socket| Some(binding(socket)?.address.clone()),
        |want| Some(want.address.clone()),
    );
    // Match addresses that are written in different forms, such as a path through a symbolic link.
    pool.give_one(wanted, Passed::endpoint, |want| Endpoint::of(&want.address));
    // Let a dual-stack socket from a parent match a listener that is configured for one address
    // family. For example, systemd's `ListenStream=80` is the dual-stack address `[::]:80`.
    let of_both_families = |want: &WantedListener| Endpoint::of(&want.address)?.of_both_families();
    pool.give_one(wanted, |socket| inherited(socket)?.endpoint(), of_both_families);
    pool.give_one(wanted, |socket| inherited(socket)?.name.is_none().then_some(()), |_| Some(()));
    passed.extend(pool.0.into_iter().flatten());
}

fn inherited(socket: &Passed) -> Option<&Passed> {
    (socket.origin == Origin::Inherited).then_some(socket)
}

/// Returns the binding of a socket, which is the address and file that this service bound it to.
/// Returns `None` if a parent bound the socket or if the path of the socket no longer exists.
fn binding(socket: &Passed) -> Option<&Binding> {
    match &socket.origin {
        Origin::Bound(binding) if !socket.has_lost_its_path() => Some(binding),
        Origin::Bound(_) | Origin::Inherited => None,
    }
}

/// The passed sockets that no listener has claimed yet, in the order in which they were passed.
struct UnclaimedSockets(Vec<Option<Passed>>);

/// The sockets that no listener has claimed yet, grouped by a key such as the name or the address.
/// A socket is given by its index in [`UnclaimedSockets`].
type SocketsByKey<K> = HashMap<K, VecDeque<usize>>;

impl UnclaimedSockets {
    fn by_key<K: Eq + Hash>(&self, key: impl Fn(&Passed) -> Option<K>) -> SocketsByKey<K> {
        let mut by_key = SocketsByKey::new();
        for (place, socket) in self.0.iter().enumerate() {
            if let Some(key) = socket.as_ref().and_then(&key) {
                by_key.entry(key).or_insert_with(VecDeque::new).push_back(place);
            }
        }
        by_key
    }

    /// Takes the first socket with the given key that no listener has claimed yet.
    fn first<K: Eq + Hash>(&mut self, by_key: &mut SocketsByKey<K>, key: &K) -> Option<Passed> {
        self.0[by_key.get_mut(key)?.pop_front()?].take()
    }

    /// For each listener without a socket, takes the first unclaimed socket with the same key.
    fn give_one<K: Eq + Hash>(
        &mut self,
        wanted: &mut [WantedListener],
        key: impl Fn(&Passed) -> Option<K>,
        wanted_key: impl Fn(&WantedListener) -> Option<K>,
    ) {
        let mut wanted = wanted.iter_mut().filter(|want| want.found.is_empty()).peekable();
        if wanted.peek().is_none() {
            return;
        }
        let mut by_key = self.by_key(key);
        for want in wanted {
            let found = wanted_key(want).and_then(|key| self.first(&mut by_key, &key));
            want.found.extend(found);
        }
    }
}
