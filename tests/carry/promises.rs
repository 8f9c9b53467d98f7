//! Tests of the promises of `--carry`: over hundreds of handoffs no connection ends, no byte is
//! wrong, and nothing leaks.
//!
//! Each load uses the whole machine, so the tests run one at a time. A test stops at the first
//! handoff that lost a connection, and prints what all connections met. The duration of answers is
//! printed and not checked. [`scaled`] makes every load shorter.

use std::ops::RangeInclusive;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::clients::Kind;
use crate::generations::{
    Generations, Holdings, born_with, count, resident, since, wait_until_alone,
};
use crate::load::{Load, Service};
use crate::network::isolate;
use crate::support::assert_becomes;
use crate::tally::Loss;

/// How many handoffs the longest load has, unless the variable `HANDOFFS` says another number.
const HANDOFFS: u64 = 1_000;
/// How much more memory the last generation may have than generation 50, in KiB. Over 1,000
/// handoffs, a leak of two KiB per handoff exceeds this.
const MORE_MEMORY: u64 = 2 * 1024;

/// Waits for the turn of this test, because only one load may run at a time. Gives the test a
/// network of its own.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    isolate();
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns how many handoffs a load has that has `full` of them in the full suite. `HANDOFFS`
/// scales all loads alike.
#[expect(clippy::disallowed_methods, reason = "the caller of the tests chooses it")]
fn scaled(full: u64) -> u64 {
    let longest = std::env::var("HANDOFFS").map_or(HANDOFFS, |count| count.parse().unwrap());
    full * longest / HANDOFFS
}

/// No connection ends and no byte is wrong.
#[test]
fn handoffs_lose_no_connection_and_no_byte() {
    const ECHOED: usize = 5_000;
    const PROXIED: usize = 2_000;
    let _turn = alone();
    let start = Instant::now();
    let mut load = Load::new();
    let mut line = Generations::carrying_by_file(&load.upstream().to_string());
    load.add(Service::Echo, &line.line.address_of("echo"), Kind::Steady, ECHOED);
    load.add(Service::Proxy, &line.line.address_of("proxy"), Kind::Steady, PROXIED);
    load.settle();
    for _ in 0..scaled(100) {
        line.hand_over();
        // Waits for as many requests as there are connections, so that most connections send one to
        // each generation.
        load.wait_for_answers((ECHOED + PROXIED) as u64);
        if !load.is_whole() {
            break;
        }
    }
    let report = load.end();
    println!("{} generations in {:?}; {}\n{report}", line.generation, since(start), line.took());
    report.assert_unnoticed();
    line.stop();
}

/// The clients keep every queue full, half-close, or wait for the other side's end of stream.
#[test]
fn busy_and_half_closed_connections_survive_handoffs() {
    const EACH: usize = 20;
    let _turn = alone();
    let start = Instant::now();
    let mut load = Load::new();
    let upstream = load.upstream().to_string();
    let mut lines = [
        Generations::carrying(&["--listen", "127.0.0.1:0"]),
        Generations::carrying(&["proxy", "--listen", "127.0.0.1:0", "--to", &upstream]),
    ];
    let [echo, proxy] = [lines[0].line.address(), lines[1].line.address()];
    for kind in [Kind::SlowReader, Kind::HalfClosed, Kind::Bulk] {
        load.add(Service::Echo, &echo, kind, EACH);
        load.add(Service::Proxy, &proxy, kind, EACH);
    }
    load.add(Service::Proxy, &proxy, Kind::Listener, EACH);
    load.add(Service::Proxy, &proxy, Kind::Talker, EACH);
    // These clients measure how the load affects answers.
    load.add(Service::Echo, &echo, Kind::Steady, EACH);
    load.add(Service::Proxy, &proxy, Kind::Steady, EACH);
    load.settle();
    for _ in 0..scaled(25) {
        lines.iter_mut().for_each(Generations::reload);
        load.wait_for_answers(2 * EACH as u64);
        if !load.is_whole() {
            break;
        }
    }
    let report = load.end();
    println!("twice {} generations in {:?}", lines[0].generation, since(start));
    println!("echo: {}\nproxy: {}\n{report}", lines[0].took(), lines[1].took());
    report.assert_unnoticed();
    lines.into_iter().for_each(|line| drop(line.stop()));
}

/// Asserts the number of sockets. A client that reconnects has two for an instant: its first
/// connection has ended but is not closed yet.
fn assert_so_many_sockets(pid: u32, expected: &RangeInclusive<usize>) {
    assert_becomes(&None, || {
        Some(count(pid, "socket")).filter(|sockets| !expected.contains(sockets))
    });
}

#[test]
fn nothing_is_leaked_over_many_handoffs() {
    /// By this generation, memory that grows only once has grown.
    const FIRST: u64 = 50;
    let handoffs = scaled(HANDOFFS);
    assert!(handoffs >= 2 * FIRST, "HANDOFFS is too small for this claim");
    let _turn = alone();
    let start = Instant::now();
    let mut load = Load::new();
    let mut line = Generations::carrying_by_file(&load.upstream().to_string());
    // The first generation may inherit open descriptors from the caller of the tests. Later
    // generations do not.
    line.hand_over();
    wait_until_alone(line.pid);
    let held = || (count(line.pid, "socket"), count(line.pid, "pipe"));
    let (untouched, (sockets, pipes)) = (Holdings::of(line.pid), held());
    let [echo, proxy] = ["echo", "proxy"].map(|name| line.line.address_of(name));
    let on_both =
        [(Kind::Steady, 10), (Kind::SlowReader, 4), (Kind::HalfClosed, 4), (Kind::Bulk, 1)];
    let through_the_proxy = [(Kind::Listener, 6), (Kind::Talker, 6)];
    let (mut connected, mut come_again) = (sockets, 0);
    let mut count_of = |kind, sockets| {
        connected += sockets;
        // The daemon finishes with a half-closing client before that client has read everything and
        // reconnects.
        if kind == Kind::HalfClosed {
            come_again += sockets;
        }
    };
    for (kind, count) in on_both {
        load.add(Service::Echo, &echo, kind, count);
        count_of(kind, count);
    }
    for (kind, count) in on_both.into_iter().chain(through_the_proxy) {
        load.add(Service::Proxy, &proxy, kind, count);
        count_of(kind, 2 * count);
    }
    let expected = connected - come_again..=connected;
    load.settle();
    // Takes the minimum of several generations, which excludes memory of a busy moment.
    let (mut memory_then, mut memory_now) = (u64::MAX, u64::MAX);
    let mut held_then = None;
    for number in 1..=handoffs {
        line.hand_over();
        if !load.is_whole() {
            break;
        }
        if (FIRST - 10..FIRST).contains(&number) {
            memory_then = memory_then.min(resident(line.pid));
        } else if number == FIRST {
            assert_so_many_sockets(line.pid, &expected);
            // A generation holds a descriptor of its predecessor until it learns of its end.
            wait_until_alone(line.pid);
            held_then =
                Some((Holdings::of(line.pid), count(line.pid, "pipe"), born_with(line.pid)));
        } else if number > handoffs - 10 {
            memory_now = memory_now.min(resident(line.pid));
        }
    }
    if let Some((then, pipes_then, born_then)) = held_then.filter(|_| load.is_whole()) {
        println!(
            "{expected:?} sockets; {memory_then} KiB and {pipes_then} ends of pipes after {FIRST} handoffs"
        );
        println!("{memory_now} KiB and {} ends of pipes after {handoffs}", count(line.pid, "pipe"));
        assert_so_many_sockets(line.pid, &expected);
        assert_becomes(&then, || Holdings::of(line.pid));
        // The generation number has two more digits, and some counts may have too.
        assert!(
            born_with(line.pid) <= born_then + 16,
            "the environment has grown from {born_then} bytes"
        );
        assert!(
            memory_now <= memory_then + MORE_MEMORY,
            "memory grew from {memory_then} KiB to {memory_now} KiB"
        );
    }
    let report = load.end();
    println!("{} generations in {:?}; {}\n{report}", line.generation, since(start), line.took());
    report.assert_unnoticed();
    // No client is connected and no pipe is in use, so the next generation holds what the first one
    // held.
    line.hand_over();
    assert_becomes(&(sockets, pipes), || (count(line.pid, "socket"), count(line.pid, "pipe")));
    let left = Holdings::of(line.pid);
    assert_eq!(left.descriptors, untouched.descriptors);
    assert_eq!(left.arguments, untouched.arguments);
    line.stop();
}

/// Shows that the load detects lost connections.
#[test]
fn a_handoff_that_drains_is_noticed_by_every_client() {
    const EACH: usize = 5;
    let _turn = alone();
    let mut load = Load::new();
    let upstream = load.upstream().to_string();
    let mut lines = [
        Generations::draining(&["--listen", "127.0.0.1:0"]),
        Generations::draining(&["proxy", "--listen", "127.0.0.1:0", "--to", &upstream]),
    ];
    let [echo, proxy] = [lines[0].line.address(), lines[1].line.address()];
    for kind in [Kind::Steady, Kind::Bulk, Kind::SlowReader] {
        load.add(Service::Echo, &echo, kind, EACH);
        load.add(Service::Proxy, &proxy, kind, EACH);
    }
    load.add(Service::Proxy, &proxy, Kind::Listener, EACH);
    load.add(Service::Proxy, &proxy, Kind::Talker, EACH);
    load.settle();
    lines.iter_mut().for_each(Generations::hand_over);
    // With an echo one side loses its connection, behind a proxy both sides do.
    load.wait_for_losses((3 + 2 * 5) * EACH);
    let report = load.end();
    println!("{report}");
    assert_eq!(report.lost(Loss::Wrong) + report.lost(Loss::Stuck) + report.lost(Loss::Refused), 0);
    for tally in report.0.values() {
        assert_eq!(
            tally.lost(Loss::Closed) + tally.lost(Loss::Reset),
            tally.connections,
            "{tally}"
        );
    }
}
