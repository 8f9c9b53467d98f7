//! Counters for each listener and each upstream (a server to which connections are forwarded). A
//! handoff does not reset the totals of the service.
//!
//! Each generation counts its own connections. The active generation adds up the counters of all
//! living generations, and the last counters of generations that have ended. A faulty successor may
//! report any number, so a sum that would overflow stays at the maximum. This module only holds the
//! counters; `server` and `service` increment them.

use std::collections::BTreeMap;

use super::program::ProgramCounters;
use serde::{Deserialize, Serialize};

/// All counters of a generation or of the whole service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Counters {
    /// The counters of each listener, by the listener's name.
    pub listeners: BTreeMap<String, ListenerCounters>,
    /// The counters of each upstream, by the listener's name and then by the upstream's address. An
    /// address that belongs to a host name is written `HOST:PORT/ADDRESS`. The key `HOST:PORT`
    /// stands for the host name itself and for addresses that the host name no longer has.
    pub upstreams: BTreeMap<String, BTreeMap<String, UpstreamCounters>>,
    /// The number of handoffs by outcome.
    pub handoffs: HandoffCounters,
    /// The counters of the program that serves the listeners, if there is one.
    #[serde(skip_serializing_if = "ProgramCounters::is_empty")]
    pub program: ProgramCounters,
}

/// The counters of one listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct ListenerCounters {
    /// How many connections were accepted.
    pub accepted: u64,
    /// How many connections are open now.
    pub active: u64,
    /// How many times the listener stopped accepting, because the connection limit was reached or
    /// no file descriptor was free.
    pub limited: u64,
    /// How many bytes were read from clients.
    pub received: u64,
    /// How many bytes were written to clients.
    pub sent: u64,
    /// How many connections ended by themselves during a drain, before its deadline.
    pub drained: u64,
    /// How many connections were cut by a drain deadline or by a signal.
    pub cut: u64,
    /// How many open connections were moved to a successor at a handoff.
    pub carried: u64,
    /// How many connections a successor refused to take over, so that they were drained instead.
    pub refused: u64,
    /// How many connections were lost because the successor died after it had taken them over. The
    /// number is an upper bound, because some of these connections may have ended earlier. If the
    /// predecessor had already exited, the connections are not counted.
    pub lost: u64,
    /// How many clients were refused because their PROXY header was invalid or late.
    pub header_errors: u64,
}

/// The counters of one upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct UpstreamCounters {
    /// How many connections to the upstream were made.
    pub connected: u64,
    /// How many connections to the upstream are open now.
    pub active: u64,
    /// How many attempts to connect failed: refused, unreachable or too slow.
    pub failed: u64,
    /// How many times the upstream was ejected. An upstream that fails too often is ejected: it
    /// gets no connections for some time.
    pub ejected: u64,
    /// How many bytes were written to the upstream.
    pub sent: u64,
    /// How many bytes were read from the upstream.
    pub received: u64,
    /// How many times the host name of the upstream could not be resolved.
    pub resolve_failures: u64,
}

/// The number of handoffs by outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct HandoffCounters {
    /// How many handoffs succeeded, so that the successor became the active generation.
    pub succeeded: u64,
    /// How many handoffs failed because the successor never became ready, or took too long.
    pub failed: u64,
    /// How many handoffs failed for another reason after the successor was ready, so that the
    /// predecessor kept serving.
    pub rolled_back: u64,
}

impl Counters {
    /// Sets the numbers of open connections to 0, because this generation has ended.
    pub(crate) fn settle(&mut self) {
        self.listeners.values_mut().for_each(|counters| counters.active = 0);
        self.upstreams
            .values_mut()
            .flat_map(BTreeMap::values_mut)
            .for_each(|counters| counters.active = 0);
    }

    /// Adds the counters of another generation to the counters in `self`.
    pub fn add(&mut self, other: &Self) {
        for (name, counters) in &other.listeners {
            self.listeners.entry(name.clone()).or_default().add(*counters);
        }
        for (listener, upstreams) in &other.upstreams {
            let sums = self.upstreams.entry(listener.clone()).or_default();
            for (name, counters) in upstreams {
                sums.entry(name.clone()).or_default().add(*counters);
            }
        }
        self.handoffs.add(other.handoffs);
        self.program.add(&other.program);
    }

    /// Removes the counters of addresses that a host name no longer has, and adds them to the
    /// counters of the host name. Also removes upstreams that are no longer used and have counted
    /// nothing. Otherwise the map could grow with every generation. `now` holds the counters of all
    /// generations that still run.
    pub(crate) fn fold_departed(&mut self, now: &Self) {
        let none = BTreeMap::new();
        for (listener, upstreams) in &mut self.upstreams {
            let now = now.upstreams.get(listener).unwrap_or(&none);
            let host = |label: &str| {
                let (host, _) = label.split_once('/').filter(|_| !label.starts_with(['/', '@']))?;
                now.contains_key(host).then(|| host.to_owned())
            };
            let gone = upstreams.keys().filter(|label| !now.contains_key(*label));
            let gone: Vec<_> =
                gone.filter_map(|label| Some((label.clone(), host(label)?))).collect();
            for (label, host) in gone {
                let sums = upstreams.remove(&label).unwrap_or_default();
                upstreams.entry(host).or_default().add(sums);
            }
            upstreams.retain(|label, sums| {
                now.contains_key(label) || *sums != UpstreamCounters::default()
            });
        }
        self.upstreams
            .retain(|listener, all| now.upstreams.contains_key(listener) || !all.is_empty());
    }
}

impl ListenerCounters {
    /// Adds the counters of the same listener in another generation.
    pub const fn add(&mut self, other: Self) {
        // Name every field, so that the compiler reports a new field that is not added here.
        let Self {
            accepted,
            active,
            limited,
            received,
            sent,
            drained,
            cut,
            carried,
            refused,
            lost,
            header_errors,
        } = other;
        self.accepted = self.accepted.saturating_add(accepted);
        self.active = self.active.saturating_add(active);
        self.limited = self.limited.saturating_add(limited);
        self.received = self.received.saturating_add(received);
        self.sent = self.sent.saturating_add(sent);
        self.drained = self.drained.saturating_add(drained);
        self.carried = self.carried.saturating_add(carried);
        self.refused = self.refused.saturating_add(refused);
        self.lost = self.lost.saturating_add(lost);
        self.header_errors = self.header_errors.saturating_add(header_errors);
        self.cut = self.cut.saturating_add(cut);
    }
}

impl UpstreamCounters {
    /// Adds the counters of the same upstream in another generation.
    pub const fn add(&mut self, other: Self) {
        let Self { connected, active, failed, ejected, sent, received, resolve_failures } = other;
        self.connected = self.connected.saturating_add(connected);
        self.active = self.active.saturating_add(active);
        self.failed = self.failed.saturating_add(failed);
        self.ejected = self.ejected.saturating_add(ejected);
        self.sent = self.sent.saturating_add(sent);
        self.received = self.received.saturating_add(received);
        self.resolve_failures = self.resolve_failures.saturating_add(resolve_failures);
    }
}

impl HandoffCounters {
    /// Adds the handoff counters of another generation.
    pub const fn add(&mut self, other: Self) {
        let Self { succeeded, failed, rolled_back } = other;
        self.succeeded = self.succeeded.saturating_add(succeeded);
        self.failed = self.failed.saturating_add(failed);
        self.rolled_back = self.rolled_back.saturating_add(rolled_back);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_two_generations_counted_is_added_name_by_name() {
        let text = r#"{"listeners":{"a":{"accepted":1,"cut":2},"b":{"sent":3}},
            "upstreams":{"a":{"@u":{"connected":4}}},"handoffs":{"failed":5}}"#;
        let one: Counters = serde_json::from_str(text).unwrap();
        let mut sum = Counters::default();
        sum.add(&one);
        assert_eq!(sum, one);
        sum.add(&one);
        assert_eq!(
            (sum.listeners["a"].accepted, sum.listeners["a"].cut, sum.listeners["b"].sent),
            (2, 4, 6)
        );
        assert_eq!((sum.upstreams["a"]["@u"].connected, sum.handoffs.failed), (8, 10));
    }

    /// When a host name loses an address, the counters of that address are added to the counters of
    /// the host name. An upstream that is gone and has counted nothing is forgotten.
    #[test]
    fn counters_of_a_lost_address_go_to_its_host_name() {
        let counters = |text: &str| serde_json::from_str::<Counters>(text).unwrap();
        let mut past = counters(
            r#"{"upstreams":{"a":{"b:1/10.0.0.1:1":{"sent":1},"b:1/10.0.0.2:1":{"sent":2},"b:1":{"sent":4},
                "c:1/10.0.0.1:1":{"sent":8},"@u/1":{"sent":16},"/u/1":{"sent":32},"@n":{},"@u":{}},
                "gone":{"b:1/10.0.0.1:1":{}}}}"#,
        );
        past.fold_departed(&counters(
            r#"{"upstreams":{"a":{"b:1":{},"b:1/10.0.0.2:1":{},"@u":{}}}}"#,
        ));
        let expected = counters(
            r#"{"upstreams":{"a":{"b:1/10.0.0.2:1":{"sent":2},"b:1":{"sent":5},
                "c:1/10.0.0.1:1":{"sent":8},"@u/1":{"sent":16},"/u/1":{"sent":32},"@u":{}}}}"#,
        );
        assert_eq!(past, expected);
    }

    #[test]
    fn a_sum_that_is_too_large_stays_at_the_largest_number() {
        let text = r#"{"listeners":{"a":{"accepted":18446744073709551615}}}"#;
        let one: Counters = serde_json::from_str(text).unwrap();
        let mut sum = one.clone();
        sum.add(&one);
        assert_eq!(sum, one);
    }

    #[test]
    fn each_number_of_a_listener_is_added_to_its_own() {
        let Ok(serde_json::Value::Object(names)) =
            serde_json::to_value(ListenerCounters::default())
        else {
            panic!("counters have names");
        };
        // Use a different number for each field, so that the test fails if two fields are mixed up.
        let numbers = |times: u64| {
            let all = names
                .keys()
                .zip(1_u64..)
                .map(|(name, number)| (name.clone(), (number * times).into()));
            serde_json::Value::Object(all.collect())
        };
        let one: ListenerCounters = serde_json::from_value(numbers(1)).unwrap();
        let mut sum = one;
        sum.add(one);
        assert_eq!(serde_json::to_value(sum).unwrap(), numbers(2));
    }

    #[test]
    fn counters_of_an_older_version_have_carried_nothing() {
        let older: ListenerCounters = serde_json::from_str(r#"{"accepted":1,"cut":2}"#).unwrap();
        assert_eq!(older, ListenerCounters { accepted: 1, cut: 2, ..ListenerCounters::default() });
    }
}
