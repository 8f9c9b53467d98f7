//! Carries between generations of different versions: connections that the successor does not
//! understand stay in the predecessor, and no handoff fails.
//!
//! A script plays a successor of another version, and the test itself plays a predecessor of
//! another version.

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

/// A successor that reads all messages and serves no clients. It reads a carry offer without its
/// descriptor, so the kernel closes the descriptor. With `ANSWERS` it replies that the message is
/// unknown. It ends with its predecessor.
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

/// Installs this successor and makes the first generation hand over to it.
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

/// The successor does not know carrying, or declines it. The predecessor drains its connections
/// with all their replies.
#[test]
fn an_older_successor_leaves_connections_to_the_drain() {
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
fn proxied_connections_stay_with_their_predecessor() {
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

/// One end of a channel between generations, or of their carry channel.
struct Channel(OwnedFd);

impl Channel {
    /// Returns the test's end and the daemon's end.
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

    /// Receives the next packet; empty at the end of the channel.
    fn hear(&self) -> String {
        let mut packet = vec![0; 128 * 1024];
        loop {
            match recv(self.0.as_raw_fd(), &mut packet, MsgFlags::empty()) {
                Ok(length) => return String::from_utf8(packet[..length].to_vec()).unwrap(),
                // The peer closed with unread data; its last messages follow.
                Err(Errno::ECONNRESET | Errno::EINTR) => {}
                Err(error) => panic!("cannot receive a packet: {error}"),
            }
        }
    }
}

/// A predecessor, played by the test, with the daemon as its successor. The daemon is therefore the
/// second generation.
struct Predecessor {
    line: Line,
    channel: Channel,
    /// The channel for carried connections.
    carry: Channel,
    next: u64,
}

/// The description of an ordinary connection.
const PLAIN: &str =
    r#""listener":"web","age_ms":5,"received":3,"sent":3,"peer_finished":false,"format":"echo/1""#;
const TAKEN: &str = "\"taken\"";

impl Predecessor {
    /// Starts the daemon and offers it connections in this format version.
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

    /// Commits the handoff: the successor becomes the active generation.
    fn commit(&self) {
        self.channel.send(b"VERSION=2\nKIND=committed\n", &[]);
        self.line.wait_for(2, Event::GenerationServing);
    }

    /// Sends a connection with this description and pending bytes, and returns the successor's
    /// reply.
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

    /// Carries a client's connection and returns the client, which the successor now serves.
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

    /// Asserts that a connection with this description is refused for this reason and remains
    /// untouched.
    fn assert_refused(&mut self, says: &str, why: &str, descriptors: &[&dyn AsRawFd]) {
        let answer = self.carry(says, "", descriptors);
        assert!(
            answer.starts_with("\"refused\":") && answer.contains(why),
            "{why:?} is not in {answer}"
        );
    }

    /// Asserts that the successor serves new clients and the carried client.
    fn assert_serves(&self, carried: &mut Client) {
        carried.echo(b"still here").unwrap();
        self.line.assert_serves();
    }
}

/// Connects a client; returns it and the server's end of the connection.
fn connection() -> (Client, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = Client::connect(&listener.local_addr().unwrap().to_string()).unwrap();
    (client, listener.accept().unwrap().0)
}

#[test]
fn an_unknown_carry_version_is_declined() {
    let predecessor = Predecessor::offering(2);
    assert_eq!(predecessor.carry.hear(), "");
    predecessor.line.wait_for(2, Event::CarryUnknownFormat);
    predecessor.commit();
    predecessor.line.assert_serves();
}

#[test]
fn unknown_fields_of_a_carried_connection_are_ignored() {
    let mut predecessor = Predecessor::offering(1);
    predecessor.commit();
    let mut client = predecessor.give_away("\"novel\":[{\"a\":1}],");
    predecessor.assert_serves(&mut client);
}

#[test]
fn an_unservable_connection_is_refused_and_the_next_taken() {
    let mut predecessor = Predecessor::offering(1);
    predecessor.commit();
    let pid = predecessor.line.first_pid();
    let before = kinds(pid);
    let (mut client, ours) = connection();
    let peer = format!("\"peer\":\"{}\"", ours.peer_addr().unwrap());
    let plain = format!("{peer},{PLAIN}");
    predecessor.assert_refused(
        &plain.replace("echo/1", "echo/2"),
        "echo/2 with 0 file descriptors",
        &[&ours],
    );
    predecessor.assert_refused(&plain, "echo/1 with 1 file descriptors", &[&ours, &ours]);
    predecessor.assert_refused(&plain.replace("web", "other"), "no listener", &[&ours]);
    predecessor.assert_refused(&plain, "has no socket", &[]);
    let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (unix, _other) = UnixDatagram::pair().unwrap();
    let file = File::open("/").unwrap();
    predecessor.assert_refused(&plain, "not a stream socket", &[&datagrams]);
    predecessor.assert_refused(&plain, "not a stream socket", &[&unix]);
    predecessor.assert_refused(&format!("\"peer\":null,{PLAIN}"), "not a stream socket", &[&ours]);
    predecessor.assert_refused(&plain, "socket", &[&file]);
    // The successor did not keep, close or write to any of these connections.
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

/// The kernel cannot deliver all descriptors of the packet because of the descriptor limit. The
/// successor closes those that arrived.
#[test]
fn a_packet_with_too_many_descriptors_is_refused() {
    const TOO_MANY: usize = 200;
    let mut predecessor = Predecessor::offering(1);
    predecessor.commit();
    let pid = predecessor.line.first_pid();
    let before = kinds(pid);
    // The limit leaves room for three more descriptors.
    let held = holds(pid);
    let fourth = (3_i32..).filter(|number| !held.contains_key(number)).nth(3).unwrap();
    // A quarter of the limit is reserved for operators and handoffs.
    let limit = u64::try_from(fourth * 4 / 3).ok();
    let limit = Rlimit { current: limit, maximum: limit };
    prlimit(Pid::from_raw(pid.try_into().unwrap()), Resource::Nofile, limit).unwrap();
    let (_client, ours) = connection();
    let says = format!("\"peer\":\"{}\",{PLAIN}", ours.peer_addr().unwrap());
    let many: Vec<&dyn AsRawFd> = (0..TOO_MANY).map(|_| &ours as &dyn AsRawFd).collect();
    for _ in 0..10 {
        predecessor.assert_refused(&says, "the new process has no free file descriptor", &many);
    }
    // The successor has closed the descriptors that did arrive.
    assert_eq!(kinds(pid), before);
    let mut taken = predecessor.give_away("");
    predecessor.assert_serves(&mut taken);
}

#[test]
fn an_invalid_carry_message_ends_only_the_carry() {
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
        // The successor has closed the carry channel and the descriptor that came with the invalid
        // message.
        let sockets = before["socket"] - 1;
        assert_becomes(&sockets, || kinds(pid)["socket"]);
    }
}
