//! Generations that carry in other words than these, or not at all: whatever is not understood
//! stays where it is, and no handoff fails of it.
//!
//! A script plays the successor of another version; the test itself plays the predecessor of one.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{IoSlice, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, recv, sendmsg, setsockopt,
    socketpair, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::support::{
    Client, DEADLINE, Event, Line, Parent, Stuck, Upstream, assert_becomes, holds, kinds,
};

/// A successor that hears everything and serves nothing. Of a carry it does not read the
/// descriptor, so that the kernel closes it, and answers it or not. It ends with its predecessor.
const OTHER_VERSION: &str = r#"exec perl -e '
use IO::Handle;
open(my $channel, "+<&=", $ARGV[0]) or die;
$channel->blocking(1);
send($channel, "VERSION=2\nKIND=ready\nPID=$$\n", 0) or die;
while (defined recv($channel, my $packet, 131072, 0)) {
    last if $packet eq "";
    my ($kind) = $packet =~ /^KIND=(.*)$/m;
    print STDERR "heard of $kind\n";
    send($channel, "VERSION=2\nKIND=unknown\nUNKNOWN=$kind\n", 0) if ANSWERS && $kind eq "carry";
}' "$fd""#;

/// Puts such a successor in the place of the daemon, and has the first generation hand over to it.
fn hand_over_to_another_version(line: &Line, answers: bool) {
    line.put_script(&OTHER_VERSION.replace("ANSWERS", if answers { "1" } else { "0" }));
    line.signal(1, Signal::SIGHUP);
    line.wait("an offer", |record| record.text == "heard of carry");
    line.wait_for(1, Event::HandoffCommitted);
}

fn assert_all_drained(line: &Line, count: usize) {
    assert_eq!(line.exit_code(1), 0);
    let end = line.wait_for(1, Event::GenerationEnded);
    let numbers: [usize; 3] =
        ["ended", "carried", "cut"].map(|name| end.field(name).unwrap().parse().unwrap());
    assert_eq!(numbers, [count, 0, 0]);
    line.wait_for_end();
}

#[test]
fn carry_to_a_version_that_does_not_know_it_or_declines_drains_all_with_their_replies() {
    for answers in [true, false] {
        let line = Line::serve(&["--bake", "0", "--carry", "--drain-timeout", "1h"]);
        let mut idle: Vec<_> = (0..10).map(|_| Client::connect(&line.address()).unwrap()).collect();
        idle.iter_mut().for_each(|client| client.echo(b"first").unwrap());
        let owed: Vec<_> = (0..3).map(|_| Stuck::on(&line, &line.address())).collect();
        hand_over_to_another_version(&line, answers);
        idle.into_iter().for_each(|mut client| client.expect_end().unwrap());
        owed.into_iter().for_each(|client| assert!(client.read_until_end() > 0));
        assert_all_drained(&line, 13);
    }
}

#[test]
fn carry_of_proxied_ones_to_another_version_leaves_them_to_their_end() {
    for answers in [true, false] {
        let upstream = Upstream::tcp();
        let line = Line::proxy(
            &[&upstream.address()],
            &["--bake", "0", "--carry", "--drain-timeout", "1h"],
        );
        let mut pairs: Vec<_> = (0..5).map(|_| line.pair(&upstream)).collect();
        let exchange = |(client, behind): &mut (Client, Client)| {
            client.write_all(b"question").unwrap();
            behind.expect(b"question").unwrap();
            behind.write_all(b"answer").unwrap();
            client.expect(b"answer").unwrap();
        };
        pairs.iter_mut().for_each(exchange);
        hand_over_to_another_version(&line, answers);
        line.wait_for(1, Event::GenerationStep.with("input", "CarryEnded"));
        pairs.iter_mut().for_each(exchange);
        for (mut client, mut behind) in pairs {
            client.half_close().unwrap();
            behind.expect_end().unwrap();
            behind.half_close().unwrap();
            client.expect_end().unwrap();
        }
        assert_all_drained(&line, 5);
    }
}

/// One end of a channel between generations, or of one for their connections.
struct Channel(OwnedFd);

impl Channel {
    /// The test's end, and the daemon's.
    fn pair() -> (Self, OwnedFd) {
        let ours = SockFlag::SOCK_CLOEXEC;
        let (one, other) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, ours).unwrap();
        setsockopt(
            &one,
            sockopt::ReceiveTimeout,
            &TimeVal::seconds(DEADLINE.as_secs().try_into().unwrap()),
        )
        .unwrap();
        (Self(one), other)
    }

    fn send(&self, packet: &[u8], descriptors: &[&dyn AsRawFd]) {
        let raw: Vec<_> = descriptors.iter().map(|one| one.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let rights = if raw.is_empty() { &[][..] } else { &rights };
        let sent = sendmsg::<()>(
            self.0.as_raw_fd(),
            &[IoSlice::new(packet)],
            rights,
            MsgFlags::MSG_NOSIGNAL,
            None,
        );
        assert_eq!(sent, Ok(packet.len()));
    }

    /// The next packet; empty at the end.
    fn hear(&self) -> String {
        let mut packet = vec![0; 128 * 1024];
        loop {
            match recv(self.0.as_raw_fd(), &mut packet, MsgFlags::empty()) {
                Ok(length) => return String::from_utf8(packet[..length].to_vec()).unwrap(),
                // It was closed with something unread; its last words are still to come.
                Err(Errno::ECONNRESET | Errno::EINTR) => {}
                Err(error) => panic!("nothing came: {error}"),
            }
        }
    }
}

/// A predecessor whose successor is the daemon: by its own word the second generation, for the
/// first is the test.
struct Predecessor {
    line: Line,
    channel: Channel,
    /// By which it carries.
    carry: Channel,
    next: u64,
}

/// What it says of a connection that has nothing remarkable.
const PLAIN: &str =
    r#""listener":"web","age_ms":5,"received":3,"sent":3,"peer_finished":false,"format":"echo/1""#;
const TAKEN: &str = "\"taken\"";

impl Predecessor {
    /// Starts it, and offers it connections in words of this version.
    fn offering(version: u32) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (channel, theirs) = Channel::pair();
        channel.send(b"VERSION=2\nKIND=hello\n", &[]);
        let successor = Parent::passing([listener.into()]).without_pid().leaving(4, theirs);
        let successor = successor.saying("LISTEN_FDNAMES", "web").saying("HANDOFFD_CHANNEL", "2:4");
        let successor = successor.saying("HANDOFFD_GENERATION", "2");
        let line =
            successor.start(&["--carry", "--listen", "web=127.0.0.1:0", "--drain-timeout", "1h"]);
        while !channel.hear().contains("KIND=ready") {}
        let (carry, theirs) = Channel::pair();
        channel.send(format!("VERSION=2\nKIND=carry\nCARRY={version}\n").as_bytes(), &[&theirs]);
        Self { line, channel, carry, next: 1 }
    }

    /// The line is the successor's from now on.
    fn commit(&self) {
        self.channel.send(b"VERSION=2\nKIND=committed\n", &[]);
        self.line.wait_for(2, Event::GenerationServing);
    }

    /// Sends a connection of which it says this, with bytes that are owed, and hears the answer.
    fn carry(&mut self, says: &str, owed: &str, descriptors: &[&dyn AsRawFd]) -> String {
        let id = self.next;
        self.next += 1;
        self.carry.send(format!("{{\"id\":{id},{says}}}\n{owed}").as_bytes(), descriptors);
        let answer = self.carry.hear();
        let start = format!("{{\"id\":{id},");
        assert!(
            answer.starts_with(&start),
            "{answer:?} is no answer to {id}: {}",
            self.line.text()
        );
        answer[start.len()..].to_owned()
    }

    /// Carries the connection of a client, whom the successor serves from then on.
    fn give_away(&mut self, extra: &str) -> Client {
        let (client, ours) = connection();
        let says = format!("{extra}\"peer\":\"{}\",{PLAIN}", ours.peer_addr().unwrap());
        let answer = self.carry(&says, "owed", &[&ours]);
        assert!(answer.starts_with(TAKEN), "{answer}");
        drop(ours);
        let mut client = client;
        client.expect(b"owed").unwrap();
        client.echo(b"and on").unwrap();
        client
    }

    /// One that is refused with these words: nobody has touched it.
    fn assert_refused(&mut self, says: &str, why: &str, descriptors: &[&dyn AsRawFd]) {
        let answer = self.carry(says, "", descriptors);
        assert!(
            answer.starts_with("\"refused\":") && answer.contains(why),
            "{why:?} is not in {answer}"
        );
    }

    /// Whoever comes and whoever was carried is served as if nothing had been.
    fn assert_serves(&self, carried: &mut Client) {
        carried.echo(b"still here").unwrap();
        self.line.assert_serves();
    }
}

/// A client, and the server's side of it.
fn connection() -> (Client, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = Client::connect(&listener.local_addr().unwrap().to_string()).unwrap();
    (client, listener.accept().unwrap().0)
}

#[test]
fn carry_in_words_of_an_unknown_version_is_declined_and_the_successor_serves() {
    let predecessor = Predecessor::offering(2);
    assert_eq!(predecessor.carry.hear(), "");
    predecessor.line.wait_for(2, Event::CarryUnknownFormat);
    predecessor.commit();
    predecessor.line.assert_serves();
}

#[test]
fn carry_passes_over_what_it_does_not_know_of_a_connection() {
    let mut predecessor = Predecessor::offering(1);
    predecessor.commit();
    let mut client = predecessor.give_away("\"novel\":[{\"a\":1}],");
    predecessor.assert_serves(&mut client);
}

#[test]
fn carry_refuses_what_it_cannot_serve_and_takes_the_next_one() {
    let mut predecessor = Predecessor::offering(1);
    predecessor.commit();
    let pid = predecessor.line.first_pid();
    let before = kinds(pid);
    let (mut client, ours) = connection();
    let peer = format!("\"peer\":\"{}\"", ours.peer_addr().unwrap());
    let plain = format!("{peer},{PLAIN}");
    predecessor.assert_refused(
        &plain.replace("echo/1", "echo/2"),
        "echo/2 with 0 descriptors",
        &[&ours],
    );
    predecessor.assert_refused(&plain, "echo/1 with 1 descriptors", &[&ours, &ours]);
    predecessor.assert_refused(&plain.replace("web", "other"), "no listener", &[&ours]);
    predecessor.assert_refused(&plain, "without its socket", &[]);
    let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (unix, _other) = UnixDatagram::pair().unwrap();
    let file = File::open("/").unwrap();
    predecessor.assert_refused(&plain, "no stream socket", &[&datagrams]);
    predecessor.assert_refused(&plain, "no stream socket", &[&unix]);
    predecessor.assert_refused(&format!("\"peer\":null,{PLAIN}"), "no stream socket", &[&ours]);
    predecessor.assert_refused(&plain, "socket", &[&file]);
    // None of those was kept, closed, or written to.
    assert_becomes(&before, || kinds(pid));
    let mut taken = predecessor.give_away("");
    predecessor.assert_serves(&mut taken);
    client.write_all(b"is it ours?").unwrap();
    client.half_close().unwrap();
    let (mut said, mut ours) = (String::new(), ours);
    ours.read_to_string(&mut said).unwrap();
    ours.write_all(b"yes").unwrap();
    drop(ours);
    client.expect(b"yes").unwrap();
    client.expect_end().unwrap();
    assert_eq!(said, "is it ours?");
}

#[test]
fn carry_refuses_a_packet_for_whose_descriptors_there_is_no_room_and_takes_the_next_one() {
    const TOO_MANY: usize = 200;
    let mut predecessor = Predecessor::offering(1);
    predecessor.commit();
    let pid = predecessor.line.first_pid();
    let before = kinds(pid);
    // Room for three beside all that it has.
    let held = holds(pid);
    let fourth = (3_i32..).filter(|number| !held.contains_key(number)).nth(3).unwrap();
    // A quarter of the limit is kept for the operator.
    let limit = u64::try_from(fourth * 4 / 3).ok();
    let limit = Rlimit { current: limit, maximum: limit };
    prlimit(Pid::from_raw(pid.try_into().unwrap()), Resource::Nofile, limit).unwrap();
    let (_client, ours) = connection();
    let says = format!("\"peer\":\"{}\",{PLAIN}", ours.peer_addr().unwrap());
    let many: Vec<&dyn AsRawFd> = (0..TOO_MANY).map(|_| &ours as &dyn AsRawFd).collect();
    for _ in 0..10 {
        predecessor.assert_refused(&says, "no descriptors are left", &many);
    }
    // Those that had room are closed.
    assert_eq!(kinds(pid), before);
    let mut taken = predecessor.give_away("");
    predecessor.assert_serves(&mut taken);
}

#[test]
fn carry_ends_with_a_packet_that_is_no_connection_and_nothing_else_does() {
    let too_long = "x".repeat(130 * 1024);
    let (_client, ours) = connection();
    let mut without_id = String::new();
    writeln!(without_id, "{{\"peer\":\"{}\",{PLAIN}}}", ours.peer_addr().unwrap()).unwrap();
    for garbage in ["garbage", "{}\n", "\n", &without_id, &too_long] {
        let mut predecessor = Predecessor::offering(1);
        predecessor.commit();
        let mut taken = predecessor.give_away("");
        let pid = predecessor.line.first_pid();
        let before = kinds(pid);
        predecessor.carry.send(garbage.as_bytes(), &[&ours]);
        assert_eq!(predecessor.carry.hear(), "");
        predecessor.line.wait_for(2, Event::CarryMessageInvalid);
        predecessor.assert_serves(&mut taken);
        // The channel is gone, and what came with the garbage.
        let sockets = before["socket"] - 1;
        assert_becomes(&sockets, || kinds(pid)["socket"]);
    }
}
