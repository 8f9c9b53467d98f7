//! Connections that a successor cannot take, or would serve differently, stay in the old
//! generation.
//!
//! The old generation drains them with their replies and counts them; the successor serves the
//! others. A slow successor loses none, and all its threads serve the carried connections.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;

use nix::sys::signal::Signal;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::Value;

use crate::config_file::{put, serve};
use crate::support::view::{is_asleep, watched};
use crate::support::{
    Client, Event, Gate, Line, Stuck, Upstream, assert_becomes, freeze, holds, kinds,
    raise_descriptor_limit, thaw,
};

/// How many connections can be in transit at once.
const AT_ONCE: usize = 64;

/// The beginning of every configuration file here. The long timeout keeps connections that stay
/// behind from being cut.
pub(crate) const CARRY: &str = "carry = true\nworkers = 1\ndrain_timeout = '1h'\n";

/// Returns the configuration of an echo listener.
pub(crate) fn echo(name: &str) -> String {
    format!("[listener.{name}]\naddress = '127.0.0.1:0'\nservice = 'echo'\n")
}

/// Returns the configuration of a proxy listener with one upstream.
pub(crate) fn proxy(name: &str, upstream: &str) -> String {
    format!(
        "[listener.{name}]\naddress = '127.0.0.1:0'\nservice = 'proxy'\nupstreams = ['{upstream}']\n"
    )
}

/// Connects clients of an echo listener. Each has had a reply, so they are accepted in this order.
pub(crate) fn clients(line: &Line, listener: &str, count: usize) -> Vec<Client> {
    let address = line.address_of(listener);
    let served = || {
        let mut client = Client::connect(&address).unwrap();
        client.echo(b"first").unwrap();
        client
    };
    (0..count).map(|_| served()).collect()
}

/// Makes `generation` hand over to a successor that is stopped as soon as it is ready, until the
/// test resumes it. On return, [`AT_ONCE`] connections are in transit. The successor's shell has
/// run `setting`. Returns the successor's process id.
fn hand_over_to_a_standstill(line: &Line, generation: u64, setting: &str) -> u32 {
    let mut gate = Gate::new(line);
    line.put_script(&format!("{}; {setting}; exec \"$REAL\" \"$@\"", Gate::PASS));
    line.signal(generation, Signal::SIGHUP);
    gate.wait(line);
    let old = line.pid_of(generation);
    freeze(old);
    gate.open();
    line.wait_for(generation + 1, Event::GenerationStep.containing("actions", "TellReady"));
    let new = line.pid_of(generation + 1);
    // The successor sleeps once it has sent its own messages and waits for the predecessor's.
    assert_becomes(&true, || is_asleep(new).unwrap());
    freeze(new);
    thaw(old);
    line.wait_for(generation, Event::DrainStarted);
    assert_becomes(&true, || is_asleep(old).unwrap());
    new
}

/// Waits until a generation has reported its carry; returns how many connections it took and
/// refused.
pub(crate) fn took_over(line: &Line, generation: u64) -> [usize; 2] {
    let said = line.wait_for(generation, Event::CarryTakenOver);
    ["taken", "refused"].map(|name| said.field(name).unwrap().parse().unwrap())
}

/// Hands over while a request of each client is in transit. Each is answered; refused connections
/// end after their reply, and the other clients are returned.
pub(crate) fn hand_over_in_the_middle(
    line: &Line,
    generation: u64,
    setting: &str,
    mut clients: Vec<Client>,
) -> Vec<Client> {
    let all = clients.len();
    let new = hand_over_to_a_standstill(line, generation, setting);
    clients.iter_mut().for_each(|client| client.write_all(b"second").unwrap());
    thaw(new);
    clients.iter_mut().for_each(|client| client.expect(b"second").unwrap());
    let [taken, refused] = took_over(line, generation + 1);
    assert_eq!(taken + refused, all);
    assert_becomes(&refused, || clients.iter().filter(|client| has_more(client)).count());
    let (ended, mut others): (Vec<_>, Vec<_>) = clients.into_iter().partition(has_more);
    ended.into_iter().for_each(|mut client| client.expect_end().unwrap());
    others.iter_mut().for_each(|client| client.echo(b"third").unwrap());
    assert_eq!(line.exit_code(generation), 0);
    let end = line.wait_for(generation, Event::GenerationEnded);
    let numbers: [usize; 3] =
        ["ended", "carried", "cut"].map(|name| end.field(name).unwrap().parse().unwrap());
    assert_eq!(numbers, [refused, taken, 0]);
    others
}

/// Returns how many connections the successor refused for this reason, and how many such refusals
/// the predecessor logged.
pub(crate) fn told(line: &Line, why: &str) -> [usize; 2] {
    [Event::CarryConnectionRefused, Event::CarryConnectionDeclined]
        .map(|event| line.count(event.mentioning(why)))
}

/// Returns whether the client can read bytes or the end of the stream.
fn has_more(client: &Client) -> bool {
    let Client::Tcp(socket) = client else { panic!("{client:?} is not a TCP client") };
    socket.set_nonblocking(true).unwrap();
    let seen = socket.peek(&mut [0]);
    socket.set_nonblocking(false).unwrap();
    seen.is_ok()
}

/// Returns the lineage's counters of a listener: carried, refused, drained.
pub(crate) fn counted(line: &Line, listener: &str) -> [u64; 3] {
    let status: Value = serde_json::from_str(&line.asked(&["status", "--json"]).well()).unwrap();
    let counters = &status["counters"]["listeners"][listener];
    ["carried", "refused", "drained"].map(|name| counters[name].as_u64().unwrap())
}

/// Asserts these counters, and that the status table shows them.
pub(crate) fn assert_counted(
    line: &Line,
    listener: &str,
    taken: usize,
    refused: usize,
    drained: usize,
) {
    let numbers = [taken, refused, drained].map(|number| number as u64);
    assert_becomes(&numbers, || counted(line, listener));
    let table = line.asked(&["status"]).well();
    if let Some(row) = table.lines().find(|row| row.starts_with(&format!("{listener} "))) {
        let end: Vec<_> = row.split_whitespace().rev().take(2).collect();
        assert_eq!(end, [refused.to_string(), taken.to_string()], "{table}");
    }
}

/// Starts a second generation without connections. Returns its descriptors by kind, and the shell
/// setting for a descriptor limit that leaves `room` spare descriptors.
fn second_generation(line: &Line, room: i32) -> (BTreeMap<String, usize>, String) {
    line.hand_over_from(1);
    assert_eq!(line.exit_code(1), 0);
    line.wait_for(2, Event::GenerationGone);
    let pid = line.pid_of(2);
    assert_becomes(&true, || is_asleep(pid).unwrap());
    let highest = *holds(pid).keys().last().unwrap();
    (kinds(pid), format!("ulimit -n {}", highest + 1 + room))
}

/// A successor without free descriptors refuses connections. The old generation finishes them, and
/// the others continue in the successor.
#[test]
fn a_carry_refuses_connections_without_free_descriptors() {
    let line = serve(&format!("{CARRY}{}", echo("web")), &[]);
    let (before, limit) = second_generation(&line, 30);
    let going = hand_over_in_the_middle(&line, 2, &limit, clients(&line, "web", 60));
    let (taken, refused) = (going.len(), 60 - going.len());
    assert!(taken > 0 && refused > 0, "{taken} were taken");
    let refusals = line.count(
        Event::CarryConnectionRefused.mentioning("the new process has no free file descriptor"),
    );
    assert_eq!(refusals, refused);
    drop(going);
    // No descriptor of a refused connection is left behind.
    let pid = line.pid_of(3);
    assert_becomes(&before, || kinds(pid));
    assert_counted(&line, "web", taken, refused, refused);
}

/// A proxied connection needs two descriptors. If the successor has room for only one, the
/// connection continues in the old generation.
#[test]
fn a_carry_refuses_half_a_proxied_connection() {
    for room in [30, 31] {
        let upstream = Upstream::tcp();
        let line = serve(&format!("{CARRY}{}", proxy("web", &upstream.address())), &[]);
        let (before, limit) = second_generation(&line, room);
        let mut pairs: Vec<_> = (0..30).map(|_| pair(&line, &upstream)).collect();
        let new = hand_over_to_a_standstill(&line, 2, &limit);
        for (client, behind) in &mut pairs {
            client.write_all(b"up").unwrap();
            behind.write_all(b"down").unwrap();
        }
        thaw(new);
        for (client, behind) in &mut pairs {
            behind.expect(b"up").unwrap();
            client.expect(b"down").unwrap();
        }
        let [taken, refused] = took_over(&line, 3);
        assert!(taken > 0 && refused > 0 && taken + refused == 30, "{taken} were taken");
        // All connections continue and finish, whichever generation serves them.
        pairs.iter_mut().for_each(exchange);
        pairs.into_iter().for_each(finish);
        assert_eq!(line.exit_code(2), 0);
        assert_becomes(&before, || kinds(new));
        assert_counted(&line, "web", taken, refused, refused);
    }
}

/// Connects a client to a proxy and exchanges bytes in both directions; returns both ends.
pub(crate) fn pair(line: &Line, upstream: &Upstream) -> (Client, Client) {
    let client = Client::connect(&line.address_of("web")).unwrap();
    let mut pair = (client, upstream.accept());
    exchange(&mut pair);
    pair
}

pub(crate) fn exchange((client, behind): &mut (Client, Client)) {
    client.write_all(b"question").unwrap();
    behind.expect(b"question").unwrap();
    behind.write_all(b"answer").unwrap();
    client.expect(b"answer").unwrap();
}

pub(crate) fn finish((mut client, mut behind): (Client, Client)) {
    client.half_close().unwrap();
    behind.expect_end().unwrap();
    behind.half_close().unwrap();
    client.expect_end().unwrap();
}

/// The successor's configuration allows fewer connections than the predecessor has. It takes as
/// many as it allows.
#[test]
fn a_carry_respects_the_new_connection_limit() {
    let line = serve(&format!("{CARRY}{}", echo("web")), &[]);
    let clients = clients(&line, "web", 20);
    put(line.folder(), &format!("{CARRY}{}max_connections = 7\n", echo("web")));
    let going = hand_over_in_the_middle(&line, 1, ":", clients);
    assert_eq!(going.len(), 7);
    assert_counted(&line, "web", 7, 13, 13);
    // The listener is at its limit: new clients wait until a connection ends.
    let mut next = Client::connect(&line.address_of("web")).unwrap();
    next.write_all(b"is there room?").unwrap();
    drop(going);
    next.expect(b"is there room?").unwrap();
}

/// With an unchanged limit every connection is carried, and waiting clients keep waiting.
#[test]
fn a_carry_at_an_unchanged_limit_takes_every_connection() {
    let line = serve(&format!("{CARRY}{}max_connections = 5\n", echo("web")), &[]);
    let mut all = clients(&line, "web", 5);
    // The late clients keep waiting for a permit even while the new generation has no connections
    // yet.
    let late = (0..3).map(|_| {
        let mut client = Client::connect(&line.address_of("web")).unwrap();
        client.write_all(b"late").unwrap();
        client
    });
    let mut late: Vec<_> = late.collect();
    all = hand_over_in_the_middle(&line, 1, ":", all);
    assert_counted(&line, "web", 5, 0, 0);
    line.put_real();
    line.hand_over_from(2);
    assert_eq!(took_over(&line, 3), [5, 0]);
    assert!(!late.iter().any(has_more), "{}", line.text());
    all.iter_mut().for_each(|client| client.echo(b"third").unwrap());
    all.truncate(2);
    late.iter_mut().for_each(|client| client.expect(b"late").unwrap());
    all.iter_mut().for_each(|client| client.echo(b"fourth").unwrap());
}

#[test]
fn a_carry_needs_no_free_descriptor_in_the_predecessor() {
    let line = serve(&format!("{CARRY}{}", echo("web")), &[]);
    let mut clients = clients(&line, "web", 5);
    let mut gate = Gate::before_successor(&line, "\"$@\"");
    line.signal(1, Signal::SIGHUP);
    gate.wait(&line);
    let pid = Pid::from_raw(line.first_pid().cast_signed());
    prlimit(pid, Resource::Nofile, Rlimit { current: Some(0), maximum: Some(0) }).unwrap();
    gate.open();
    assert_eq!(took_over(&line, 2), [5, 0]);
    assert_eq!(line.exit_code(1), 0);
    clients.iter_mut().for_each(|client| client.echo(b"second").unwrap());
}

/// Clients that do not read have about 16 KB of replies pending. While the successor is slow to
/// receive, the predecessor serves the connections that are not yet asked to move.
#[test]
fn a_carry_to_a_slow_successor_loses_nothing() {
    const STUCK: usize = 40;
    raise_descriptor_limit();
    let quiet = "[listener.quiet]\naddress = '$F/quiet.sock'\nservice = 'echo'\n";
    let line = serve(&format!("{CARRY}{}{quiet}", echo("web")), &[]);
    let channel: usize =
        fs::read_to_string("/proc/sys/net/core/wmem_default").unwrap().trim().parse().unwrap();
    assert!(STUCK * 10_000 > channel, "all pending replies fit into the channel: {channel} bytes");
    let path = line.address_of("quiet");
    let stuck: Vec<_> = (0..STUCK).map(|_| Stuck::on(&line, &path)).collect();
    // Connections are asked to move in order, from the first to the last.
    let mut asked = clients(&line, "web", AT_ONCE - STUCK);
    let mut unasked = clients(&line, "web", 30);
    let new = hand_over_to_a_standstill(&line, 1, ":");
    for _ in 0..3 {
        unasked.iter_mut().for_each(|client| client.echo(b"meanwhile").unwrap());
    }
    asked.iter_mut().for_each(|client| client.write_all(b"later").unwrap());
    thaw(new);
    asked.iter_mut().for_each(|client| client.expect(b"later").unwrap());
    let all = AT_ONCE + unasked.len();
    assert_eq!(took_over(&line, 2), [all, 0]);
    assert_eq!(line.exit_code(1), 0);
    stuck.iter().for_each(Stuck::half_close);
    stuck.into_iter().for_each(Stuck::read_to_end);
    asked.iter_mut().chain(&mut unasked).for_each(|client| client.echo(b"afterwards").unwrap());
    let end = line.wait_for(1, Event::GenerationEnded);
    assert_eq!(
        ["ended", "carried", "cut"].map(|name| end.field(name).unwrap()),
        ["0", &*all.to_string(), "0"]
    );
}

#[test]
fn carried_connections_are_spread_over_all_threads() {
    const CLIENTS: usize = 60;
    let threads = CARRY.replace("workers = 1", "workers = 3");
    let line = serve(&format!("{threads}{}", echo("web")), &[]);
    let mut clients = clients(&line, "web", CLIENTS);
    line.hand_over_from(1);
    assert_eq!(took_over(&line, 2), [CLIENTS, 0]);
    clients.iter_mut().for_each(|client| client.echo(b"second").unwrap());
    let watched = watched(line.pid_of(2));
    assert_eq!(watched.iter().filter(|count| **count >= CLIENTS / 4).count(), 3, "{watched:?}");
}
