//! What the successor of a carry has no room for, or would not serve as it was served, stays in the
//! old generation.
//!
//! There it is drained with its replies, and counted; the others go on in the new one. One that is
//! slow to take them loses none, and all of its threads serve them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;

use nix::sys::signal::Signal;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::Value;

use crate::config_file::{put, serve};
use crate::support::line::is_asleep;
use crate::support::{
    Client, Event, Gate, Line, Stuck, Upstream, assert_becomes, freeze, holds, kinds,
    raise_descriptor_limit, thaw,
};

/// So many are on their way at once.
const AT_ONCE: usize = 64;

/// What opens every file here: whatever is not carried is not cut either.
const CARRY: &str = "carry = true\nworkers = 1\ndrain_timeout = '1h'\n";

/// An echo by this name.
fn echo(name: &str) -> String {
    format!("[listener.{name}]\naddress = '127.0.0.1:0'\nservice = 'echo'\n")
}

/// A proxy by this name to one upstream.
fn proxy(name: &str, upstream: &str) -> String {
    format!(
        "[listener.{name}]\naddress = '127.0.0.1:0'\nservice = 'proxy'\nupstreams = ['{upstream}']\n"
    )
}

/// Clients of an echo, each of which has had a reply: they are served in this order.
fn clients(line: &Line, listener: &str, count: usize) -> Vec<Client> {
    let address = line.address_of(listener);
    let served = || {
        let mut client = Client::connect(&address).unwrap();
        client.echo(b"first").unwrap();
        client
    };
    (0..count).map(|_| served()).collect()
}

/// Has `generation` hand over to a successor that stands still from then on, until the test has it
/// go on. All that [`AT_ONCE`] allows are on their way when this returns. The successor's shell has
/// run `setting`.
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
    // When it waits for a word it has said its own.
    assert_becomes(&true, || is_asleep(new).unwrap());
    freeze(new);
    thaw(old);
    line.wait_for(generation, Event::DrainStarted);
    assert_becomes(&true, || is_asleep(old).unwrap());
    new
}

/// How many a generation has taken over and refused, once it has.
fn took_over(line: &Line, generation: u64) -> [usize; 2] {
    let said = line.wait_for(generation, Event::CarryTakenOver);
    ["taken", "refused"].map(|name| said.field(name).unwrap().parse().unwrap())
}

/// Hands over with a request of each client on its way to whoever serves it next: each is answered,
/// those that are refused end behind their reply, and the others are given back.
fn hand_over_in_the_middle(
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

/// How many connections the successor refused for that reason, and how many the predecessor logged.
fn told(line: &Line, why: &str) -> [usize; 2] {
    [Event::CarryConnectionRefused, Event::CarryConnectionDeclined]
        .map(|event| line.count(event.mentioning(why)))
}

/// Whether something waits to be read: bytes, or the end.
fn has_more(client: &Client) -> bool {
    let Client::Tcp(socket) = client else { panic!("{client:?} is none over TCP") };
    socket.set_nonblocking(true).unwrap();
    let seen = socket.peek(&mut [0]);
    socket.set_nonblocking(false).unwrap();
    seen.is_ok()
}

/// What the line has counted of a listener: carried, refused, drained.
fn counted(line: &Line, listener: &str) -> [u64; 3] {
    let status: Value = serde_json::from_str(&line.asked(&["status", "--json"]).well()).unwrap();
    let counters = &status["counters"]["listeners"][listener];
    ["carried", "refused", "drained"].map(|name| counters[name].as_u64().unwrap())
}

/// That these are the numbers, also in the operator's table.
fn assert_counted(line: &Line, listener: &str, taken: usize, refused: usize, drained: usize) {
    let numbers = [taken, refused, drained].map(|number| number as u64);
    assert_becomes(&numbers, || counted(line, listener));
    let table = line.asked(&["status"]).well();
    if let Some(row) = table.lines().find(|row| row.starts_with(&format!("{listener} "))) {
        let end: Vec<_> = row.split_whitespace().rev().take(2).collect();
        assert_eq!(end, [refused.to_string(), taken.to_string()], "{table}");
    }
}

/// A second generation, with nobody connected: what it holds. And how many descriptors leave as
/// much room as this beside.
fn second_generation(line: &Line, room: i32) -> (BTreeMap<String, usize>, String) {
    line.hand_over_from(1);
    assert_eq!(line.exit_code(1), 0);
    line.wait_for(2, Event::GenerationGone);
    let pid = line.pid_of(2);
    assert_becomes(&true, || is_asleep(pid).unwrap());
    let highest = *holds(pid).keys().last().unwrap();
    (kinds(pid), format!("ulimit -n {}", highest + 1 + room))
}

#[test]
fn carry_refuses_those_for_whom_no_descriptor_is_left_and_the_others_go_on() {
    let line = serve(&format!("{CARRY}{}", echo("web")), &[]);
    let (before, limit) = second_generation(&line, 30);
    let going = hand_over_in_the_middle(&line, 2, &limit, clients(&line, "web", 60));
    let (taken, refused) = (going.len(), 60 - going.len());
    assert!(taken > 0 && refused > 0, "{taken} were taken");
    let refusals = line.count(Event::CarryConnectionRefused.mentioning("no descriptors are left"));
    assert_eq!(refusals, refused);
    drop(going);
    // Nothing of what was refused has stayed behind.
    let pid = line.pid_of(3);
    assert_becomes(&before, || kinds(pid));
    assert_counted(&line, "web", taken, refused, refused);
}

#[test]
fn carry_refuses_proxied_ones_that_have_room_for_half_of_their_descriptors_and_they_go_on_where_they_are()
 {
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
        // By whomever: all of them go on, and come to their end.
        pairs.iter_mut().for_each(exchange);
        pairs.into_iter().for_each(finish);
        assert_eq!(line.exit_code(2), 0);
        assert_becomes(&before, || kinds(new));
        assert_counted(&line, "web", taken, refused, refused);
    }
}

/// A client of a proxy and what the upstream has of it; each has heard the other.
fn pair(line: &Line, upstream: &Upstream) -> (Client, Client) {
    let client = Client::connect(&line.address_of("web")).unwrap();
    let mut pair = (client, upstream.accept());
    exchange(&mut pair);
    pair
}

fn exchange((client, behind): &mut (Client, Client)) {
    client.write_all(b"question").unwrap();
    behind.expect(b"question").unwrap();
    behind.write_all(b"answer").unwrap();
    client.expect(b"answer").unwrap();
}

fn finish((mut client, mut behind): (Client, Client)) {
    client.half_close().unwrap();
    behind.expect_end().unwrap();
    behind.half_close().unwrap();
    client.expect_end().unwrap();
}

#[test]
fn carry_fills_a_listener_up_to_what_the_new_configuration_allows_and_refuses_the_rest() {
    let line = serve(&format!("{CARRY}{}", echo("web")), &[]);
    let clients = clients(&line, "web", 20);
    put(line.folder(), &format!("{CARRY}{}max_connections = 7\n", echo("web")));
    let going = hand_over_in_the_middle(&line, 1, ":", clients);
    assert_eq!(going.len(), 7);
    assert_counted(&line, "web", 7, 13, 13);
    // It is as full as it may be: whoever comes waits until somebody leaves.
    let mut next = Client::connect(&line.address_of("web")).unwrap();
    next.write_all(b"is there room?").unwrap();
    drop(going);
    next.expect(b"is there room?").unwrap();
}

#[test]
fn carry_leaves_nobody_behind_where_the_limit_is_as_before_and_newcomers_wait_on() {
    let line = serve(&format!("{CARRY}{}max_connections = 5\n", echo("web")), &[]);
    let mut all = clients(&line, "web", 5);
    // They wait for a place, also when there is a generation that has nobody yet.
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
fn carry_needs_no_descriptor_of_a_predecessor_that_has_none_left() {
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

#[test]
fn carry_refuses_what_the_new_configuration_would_not_serve_as_before_and_it_is_drained_with_its_replies()
 {
    let other = echo("other");
    for (now, why) in [
        (
            format!("{}carry = false\n", echo("web")),
            "no listener \"web\" takes connections over here",
        ),
        (String::new(), "no listener \"web\" takes connections over here"),
        (proxy("web", "127.0.0.1:9"), "echo/1 is not known here"),
    ] {
        let line = serve(&format!("{CARRY}{}{other}", echo("web")), &[]);
        let (leaving, staying) = (clients(&line, "web", 5), clients(&line, "other", 3));
        put(line.folder(), &format!("{CARRY}{now}{other}"));
        let all = leaving.into_iter().chain(staying).collect();
        let going = hand_over_in_the_middle(&line, 1, ":", all);
        assert_eq!((going.len(), told(&line, why)), (3, [5, 5]), "{why}: {}", line.text());
        assert_counted(&line, "web", 0, 5, 5);
        assert_counted(&line, "other", 3, 0, 0);
    }
}

#[test]
fn carry_refuses_proxied_ones_whose_upstream_or_service_has_changed_and_they_go_on_where_they_are()
{
    let (upstream, another) = (Upstream::tcp(), Upstream::tcp());
    for (now, why) in [
        (
            proxy("web", &another.address()),
            format!("{} is no upstream any more", upstream.address()),
        ),
        (echo("web"), "proxy/1 with 1 descriptors is not known here".to_owned()),
    ] {
        let line = serve(&format!("{CARRY}{}", proxy("web", &upstream.address())), &[]);
        let mut pairs: Vec<_> = (0..5).map(|_| pair(&line, &upstream)).collect();
        put(line.folder(), &format!("{CARRY}{now}"));
        line.hand_over_from(1);
        assert_eq!(took_over(&line, 2), [0, 5]);
        assert_eq!(told(&line, &why), [5, 5], "{why}: {}", line.text());
        pairs.iter_mut().for_each(exchange);
        // One of them is not going to end; whoever cuts the drain, as its deadline does, cuts it.
        let (mut client, behind) = pairs.pop().unwrap();
        pairs.into_iter().for_each(finish);
        assert_becomes(&[0, 5, 4], || counted(&line, "web"));
        line.signal(1, Signal::SIGQUIT);
        client.expect_reset();
        drop(behind);
        assert_eq!(line.exit_code(1), 0);
    }
}

/// Each of those that do not read owes some 16 KB.
#[test]
fn carry_to_a_successor_that_is_slow_to_read_loses_nothing_and_whoever_was_not_asked_yet_is_served_meanwhile()
 {
    const STUCK: usize = 40;
    raise_descriptor_limit();
    let quiet = "[listener.quiet]\naddress = '$F/quiet.sock'\nservice = 'echo'\n";
    let line = serve(&format!("{CARRY}{}{quiet}", echo("web")), &[]);
    let channel: usize =
        fs::read_to_string("/proc/sys/net/core/wmem_default").unwrap().trim().parse().unwrap();
    assert!(STUCK * 10_000 > channel, "the channel takes all that is owed: {channel} bytes");
    let path = line.address_of("quiet");
    let stuck: Vec<_> = (0..STUCK).map(|_| Stuck::on(&line, &path)).collect();
    // The turn goes from the first to the last.
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

/// What each epoll instance of a process watches, as many descriptors as that has: epoll(7) shows
/// it in fdinfo.
fn watched(pid: u32) -> Vec<usize> {
    let polls = holds(pid).into_iter().filter(|(_, what)| what == "anon_inode:[eventpoll]");
    let targets = polls.map(|(number, _)| {
        let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).unwrap();
        let targets =
            info.lines().filter_map(|line| line.strip_prefix("tfd:")?.split_whitespace().next());
        targets.map(str::to_owned).collect::<BTreeSet<_>>()
    });
    // One instance may have more than one descriptor.
    targets.collect::<BTreeSet<_>>().iter().map(BTreeSet::len).collect()
}

#[test]
fn carried_ones_are_shared_out_among_the_threads_that_serve() {
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
