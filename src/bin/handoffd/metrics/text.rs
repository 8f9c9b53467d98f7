//! The counters of all generations, written in the OpenMetrics text format.
//!
//! The names of the metrics never change, because users rely on them.

use std::collections::BTreeMap;
use std::fmt;

use handoffd::listen::Address;
use handoffd::status::{
    Counters, HandoffCounters, ListenerCounters, ProgramCounters, Status, UpstreamCounters,
};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

/// Encodes the counters in `status` in the OpenMetrics text format.
pub(super) fn encode(status: Status) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("handoffd");
    registry.register_collector(Box::new(StatusCollector(status)));
    let mut encoded = String::new();
    text::encode(&mut encoded, &registry)?;
    Ok(encoded)
}

#[derive(Debug)]
struct StatusCollector(Status);

/// A metric of a listener: its name, its help text, its type, and the function that returns its
/// value.
type OfListener = (&'static str, &'static str, MetricType, fn(&ListenerCounters) -> u64);
/// A metric of an upstream: its name, its help text, its type, and the function that returns its
/// value.
type OfUpstream = (&'static str, &'static str, MetricType, fn(&UpstreamCounters) -> u64);

const OF_LISTENERS: [OfListener; 11] = [
    ("accepted_connections", "Connections accepted", MetricType::Counter, |one| one.accepted),
    ("open_connections", "Connections open now, in all generations", MetricType::Gauge, |one| {
        one.active
    }),
    (
        "full",
        "Times that no client was accepted: the limit was reached, or no descriptor was left",
        MetricType::Counter,
        |one| one.limited,
    ),
    ("received_bytes", "Bytes read from clients", MetricType::Counter, |one| one.received),
    ("sent_bytes", "Bytes written to clients", MetricType::Counter, |one| one.sent),
    (
        "drained_connections",
        "Connections that ended by themselves in a drain",
        MetricType::Counter,
        |one| one.drained,
    ),
    (
        "cut_connections",
        "Connections cut at a drain's deadline or by a signal",
        MetricType::Counter,
        |one| one.cut,
    ),
    (
        "carried_connections",
        "Connections that a successor has taken over",
        MetricType::Counter,
        |one| one.carried,
    ),
    (
        "refused_connections",
        "Connections that a successor refused to take over",
        MetricType::Counter,
        |one| one.refused,
    ),
    (
        "lost_connections",
        "Connections lost with a successor that had taken them over",
        MetricType::Counter,
        |one| one.lost,
    ),
    (
        "header_errors",
        "Clients refused because of their PROXY header",
        MetricType::Counter,
        |one| one.header_errors,
    ),
];

const OF_UPSTREAMS: [OfUpstream; 7] = [
    ("upstream_connections", "Connections made to an upstream", MetricType::Counter, |one| {
        one.connected
    }),
    (
        "upstream_open_connections",
        "Connections open to an upstream now",
        MetricType::Gauge,
        |one| one.active,
    ),
    (
        "upstream_failures",
        "Failed attempts to connect to an upstream",
        MetricType::Counter,
        |one| one.failed,
    ),
    (
        "upstream_ejections",
        "Times that an upstream was ejected: it got no connections for a while",
        MetricType::Counter,
        |one| one.ejected,
    ),
    ("upstream_sent_bytes", "Bytes written to an upstream", MetricType::Counter, |one| one.sent),
    ("upstream_received_bytes", "Bytes read from an upstream", MetricType::Counter, |one| {
        one.received
    }),
    (
        "upstream_resolve_failures",
        "Times that a host name did not resolve",
        MetricType::Counter,
        |one| one.resolve_failures,
    ),
];

impl Collector for StatusCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Self(Status {
            serving,
            generations,
            counters: Counters { listeners, upstreams, handoffs, program, .. },
            ..
        }) = self;
        let numbers = [
            ("generation", "The generation that serves", serving.get()),
            ("generations", "Generations alive", generations.len() as u64),
        ];
        for (name, help, number) in numbers {
            ConstGauge::new(number).encode(encoder.encode_descriptor(
                name,
                help,
                None,
                MetricType::Gauge,
            )?)?;
        }
        encode_handoffs(&mut encoder, handoffs)?;
        encode_listeners(&mut encoder, listeners)?;
        encode_upstreams(&mut encoder, upstreams)?;
        if program.is_empty() { Ok(()) } else { encode_program(&mut encoder, program) }
    }
}

fn encode_program(encoder: &mut DescriptorEncoder<'_>, counters: &ProgramCounters) -> fmt::Result {
    let numbers = [
        ("program_starts", "Processes of the program that were started", counters.starts),
        (
            "program_failed_starts",
            "Starts of the program that failed, because it could not be executed",
            counters.failed_starts,
        ),
    ];
    for (name, help, number) in numbers {
        let counter = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        ConstCounter::new(number).encode(counter)?;
    }
    let help = "Processes of the program that ended, by exit code or signal";
    let mut family = encoder.encode_descriptor("program_exits", help, None, MetricType::Counter)?;
    let codes = counters.exits_by_code.iter().map(|exit| ("code", exit));
    let signals = counters.exits_by_signal.iter().map(|exit| ("signal", exit));
    for (label, (number, count)) in codes.chain(signals) {
        let number = number.to_string();
        ConstCounter::new(*count).encode(family.encode_family(&[(label, number.as_str())])?)?;
    }
    Ok(())
}

fn encode_handoffs(encoder: &mut DescriptorEncoder<'_>, handoffs: &HandoffCounters) -> fmt::Result {
    let outcomes = [
        ("succeeded", handoffs.succeeded),
        ("failed", handoffs.failed),
        ("rolled_back", handoffs.rolled_back),
    ];
    let mut family = encoder.encode_descriptor(
        "handoffs",
        "Handoffs, by how they ended",
        None,
        MetricType::Counter,
    )?;
    for (outcome, number) in outcomes {
        ConstCounter::new(number).encode(family.encode_family(&[("outcome", outcome)])?)?;
    }
    Ok(())
}

fn encode_listeners(
    encoder: &mut DescriptorEncoder<'_>,
    listeners: &BTreeMap<String, ListenerCounters>,
) -> fmt::Result {
    for (name, help, kind, number) in OF_LISTENERS {
        let mut family = encoder.encode_descriptor(name, help, None, kind)?;
        for (listener, one) in listeners {
            let labels = [("listener", listener.as_str())];
            put(family.encode_family(&labels)?, kind, number(one))?;
        }
    }
    Ok(())
}

fn encode_upstreams(
    encoder: &mut DescriptorEncoder<'_>,
    upstreams: &BTreeMap<String, BTreeMap<String, UpstreamCounters>>,
) -> fmt::Result {
    for (name, help, kind, number) in OF_UPSTREAMS {
        let mut family = encoder.encode_descriptor(name, help, None, kind)?;
        for (listener, all) in upstreams {
            for (upstream, one) in all {
                let (host, upstream) = host_and_address(upstream);
                let mut labels = vec![("listener", listener.as_str())];
                labels.extend(host.map(|host| ("host", host)));
                labels.push(("upstream", upstream));
                put(family.encode_family(&labels)?, kind, number(one))?;
            }
        }
    }
    Ok(())
}

/// Splits the name under which an upstream is counted into a host name, if any, and an address. One
/// name stands for all former addresses of a host name. For this name, returns the host name in
/// place of the address.
fn host_and_address(upstream: &str) -> (Option<&str>, &str) {
    // Require a port, because a name without a port is a program instance, such as `instance-0`.
    let is_name = |text: &str| {
        !text.starts_with(['/', '@', '[']) && text.contains(':') && text.parse::<Address>().is_err()
    };
    match upstream.split_once('/') {
        Some((host, address)) if is_name(upstream) => (Some(host), address),
        _ if is_name(upstream) => (Some(upstream), upstream),
        _ => (None, upstream),
    }
}

fn put(
    encoder: prometheus_client::encoding::MetricEncoder<'_>,
    kind: MetricType,
    number: u64,
) -> fmt::Result {
    if matches!(kind, MetricType::Gauge) {
        ConstGauge::new(number).encode(encoder)
    } else {
        ConstCounter::new(number).encode(encoder)
    }
}
