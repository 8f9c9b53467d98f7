//! Sockets from a parent process: accepted if they are meant for the daemon and usable, otherwise
//! refused by name.
//!
//! A daemon that guesses could serve the wrong socket, or mistake a file of its parent for a
//! socket.

use std::fs::File;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket, socketpair};

use crate::support::{Client, Event, Line, Parent, Refusal, accept, holds_socket};

fn listener() -> (TcpListener, String) {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap().to_string();
    (socket, address)
}

fn copy(socket: &TcpListener) -> OwnedFd {
    socket.try_clone().unwrap().into()
}

/// Asserts that the daemon serves on its own socket and that only the test holds the passed one.
fn assert_not_adopted(line: &Line, passed: &TcpListener) {
    let address = passed.local_addr().unwrap().to_string();
    assert_ne!(line.address(), address);
    assert_eq!(line.count(Event::GenerationAccepting), 1);
    assert!(!line.wait_for(1, Event::GenerationAccepting).text.contains(&address));
    line.assert_serves();
    let _waiting = TcpStream::connect(address).unwrap();
    accept(passed);
    // A successor does not get it either.
    line.hand_over_from(1);
    assert!(!holds_socket(line.pid_of(2), passed));
    line.signal(2, Signal::SIGTERM);
    assert_eq!(line.exit_code(2), 0);
}

#[test]
fn sockets_are_adopted_if_the_pid_is_ours() {
    let (socket, address) = listener();
    let line =
        Parent::passing([copy(&socket)]).saying("LISTEN_FDNAMES", "web").serve(&["--bake", "0"]);
    assert_eq!(line.address_of("web"), address);
    line.hand_over_from(1);
    line.assert_serves();
    assert!(holds_socket(line.pid_of(2), &socket));
}

#[test]
fn descriptor_3_is_not_adopted_without_a_pid() {
    let (socket, _) = listener();
    let line = Parent::passing([copy(&socket)]).without_pid().serve(&[
        "--bake",
        "0",
        "--listen",
        "127.0.0.1:0",
    ]);
    assert_not_adopted(&line, &socket);
}

#[test]
fn sockets_for_another_process_are_not_adopted() {
    for pid in ["1", "0", "-1", "", "garbage", "4294967296", "99999999999999999999999"] {
        let (socket, _) = listener();
        let parent = Parent::passing([copy(&socket)]).saying("LISTEN_PID", pid);
        assert_not_adopted(&parent.serve(&["--bake", "0", "--listen", "127.0.0.1:0"]), &socket);
    }
}

#[test]
fn sockets_for_an_earlier_process_of_our_pid_are_not_adopted() {
    let (socket, _) = listener();
    let parent = Parent::passing([copy(&socket)]).saying("LISTEN_PIDFDID", "1");
    assert_not_adopted(&parent.serve(&["--bake", "0", "--listen", "127.0.0.1:0"]), &socket);
}

#[test]
fn an_invalid_pidfd_id_is_named() {
    let (socket, _) = listener();
    let parent = Parent::passing([copy(&socket)]).saying("LISTEN_PIDFDID", "seven");
    parent.refused(&[]).names(78, &["LISTEN_PIDFDID", "seven"]);
}

#[test]
fn an_invalid_descriptor_count_is_named() {
    for count in ["-1", "many", "", "1.0", "1048577", "18446744073709551616"] {
        let (socket, _) = listener();
        let parent = Parent::passing([copy(&socket)]).saying("LISTEN_FDS", count);
        parent.refused(&[]).names(78, &["LISTEN_FDS", &format!("{count:?}")]);
    }
}

#[test]
fn a_count_above_the_passed_descriptors_names_the_first_gap() {
    let (socket, _) = listener();
    Parent::passing([copy(&socket)])
        .saying("LISTEN_FDS", "3")
        .refused(&[])
        .names(78, &["LISTEN_FDS", "descriptor 4"]);
}

#[test]
fn a_closed_descriptor_in_the_range_is_named() {
    let (one, two) = (listener().0, listener().0);
    let parent = Parent::passing([one.into()]).leaving(5, two.into()).saying("LISTEN_FDS", "3");
    parent.refused(&[]).names(78, &["LISTEN_FDS", "descriptor 4"]);
}

#[test]
fn a_count_of_zero_adopts_nothing() {
    let (socket, _) = listener();
    let parent = Parent::passing([copy(&socket)]).saying("LISTEN_FDS", "0");
    assert_not_adopted(&parent.serve(&["--bake", "0", "--listen", "127.0.0.1:0"]), &socket);
}

#[test]
fn only_listening_stream_sockets_are_adopted() {
    let (listening, at) = listener();
    let packets =
        || socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
    let ours = SockFlag::SOCK_CLOEXEC;
    let cases: [(&str, OwnedFd); 12] = [
        ("a file", tempfile::tempfile().unwrap().into()),
        ("a directory", File::open("/").unwrap().into()),
        ("a pipe", nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap().0),
        ("a character device", File::open("/dev/null").unwrap().into()),
        ("a connected socket", TcpStream::connect(at).unwrap().into()),
        ("a connected socket", UnixStream::pair().unwrap().0.into()),
        ("a datagram socket", UdpSocket::bind("127.0.0.1:0").unwrap().into()),
        ("a datagram socket", UnixDatagram::unbound().unwrap().into()),
        ("does not listen", socket(AddressFamily::Inet, SockType::Stream, ours, None).unwrap()),
        ("does not listen", socket(AddressFamily::Unix, SockType::Stream, ours, None).unwrap()),
        ("a socket of an unsupported type", packets()),
        (
            "a socket of an unsupported type",
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, ours).unwrap().0,
        ),
    ];
    for (what, descriptor) in cases {
        // After a valid one, so that the error must say which one is wrong.
        let parent =
            Parent::passing([copy(&listening), descriptor]).saying("LISTEN_FDNAMES", "well:ill");
        parent.refused(&[]).names(78, &["descriptor 4", "ill", what]);
    }
}

#[test]
fn a_listening_seqpacket_socket_is_refused() {
    use nix::sys::socket::{Backlog, UnixAddr, bind, listen};
    let packets =
        socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(std::os::fd::AsRawFd::as_raw_fd(&packets), &UnixAddr::new_unnamed()).unwrap();
    listen(&packets, Backlog::MAXCONN).unwrap();
    Parent::passing([packets])
        .refused(&[])
        .names(78, &["descriptor 3", "unnamed", "unsupported type"]);
}

#[test]
fn too_few_or_too_many_names_are_refused() {
    for (names, count) in [("one", "1"), ("", "1"), ("one:two:three", "3"), ("one:two:", "3")] {
        let (first, second) = (listener().0, listener().0);
        let parent = Parent::passing([first.into(), second.into()]).saying("LISTEN_FDNAMES", names);
        let expected = format!("it names {count} descriptors, but LISTEN_FDS says 2");
        parent.refused(&[]).names(78, &["LISTEN_FDNAMES", &format!("{names:?}"), &expected]);
    }
}

#[test]
fn names_with_control_characters_are_refused() {
    let parent =
        Parent::passing([File::open("/").unwrap().into()]).saying("LISTEN_FDNAMES", "one\ntwo");
    parent.refused(&[]).names(78, &["LISTEN_FDNAMES", r"one\ntwo"]);
}

#[test]
fn two_sockets_with_one_name_are_both_served() {
    let ((one, at_one), (two, at_two)) = (listener(), listener());
    let parent = Parent::passing([one.into(), two.into()]).saying("LISTEN_FDNAMES", "web:web");
    let line = parent.serve(&["--bake", "0", "--listen", "web=127.0.0.1:1"]);
    line.hand_over_from(1);
    for address in [at_one, at_two] {
        Client::once(&address, b"both").unwrap();
    }
}

/// systemd names a socket after its unit, and binds `[::]:80` for `ListenStream=80`.
#[test]
fn a_passed_socket_matches_an_equivalent_address() {
    for wanted in ["0.0.0.0", "[::ffff:0.0.0.0]", "tcp6:[::]"] {
        let socket = TcpListener::bind("[::]:0").unwrap();
        let (address, port) =
            (socket.local_addr().unwrap().to_string(), socket.local_addr().unwrap().port());
        let listen = format!("--listen=web={wanted}:{port}");
        let parent = Parent::passing([copy(&socket)]).saying("LISTEN_FDNAMES", "handoffd.socket");
        let line = parent.serve(&["--bake", "0", &listen]);
        line.hand_over_from(1);
        assert_eq!(
            line.wait_for(2, Event::GenerationAccepting).field("listeners"),
            Some(format!("web={address}").as_str())
        );
        assert!(holds_socket(line.pid_of(2), &socket));
        for client in ["127.0.0.1", "[::1]"] {
            Client::once(&format!("{client}:{port}"), b"all of them").unwrap();
        }
    }
}

#[test]
fn a_passed_unix_socket_is_matched_by_its_file() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::create_dir(at("run")).unwrap();
    symlink("run", at("var-run")).unwrap();
    symlink("run/web.sock", at("link.sock")).unwrap();
    let socket = UnixListener::bind(at("run/web.sock")).unwrap();
    for wanted in ["var-run/web.sock", "link.sock"] {
        let listen = format!("--listen=web={}", at(wanted).display());
        let parent = Parent::passing([socket.try_clone().unwrap().into()])
            .saying("LISTEN_FDNAMES", "handoffd.socket");
        let line = parent.serve(&["--bake", "0", &listen]);
        line.hand_over_from(1);
        Client::once(at(wanted).to_str().unwrap(), b"by another path").unwrap();
    }
}

#[test]
fn a_passed_socket_that_blocks_an_address_is_named() {
    let six = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None).unwrap();
    six.set_only_v6(true).unwrap();
    six.bind(&"[::]:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    six.listen(5).unwrap();
    for (socket, wanted) in [
        (TcpListener::bind("127.0.0.1:0").unwrap(), "0.0.0.0"),
        (TcpListener::bind("0.0.0.0:0").unwrap(), "127.0.0.1"),
        (TcpListener::bind("0.0.0.0:0").unwrap(), "[::]"),
        (six.into(), "[::]"),
    ] {
        let (address, port) =
            (socket.local_addr().unwrap().to_string(), socket.local_addr().unwrap().port());
        let parent = Parent::passing([copy(&socket)]).saying("LISTEN_FDNAMES", "other");
        let refusal = parent.refused(&[&format!("--listen=web={wanted}:{port}")]);
        let wanted = format!("{wanted}:{port}");
        refusal.names(78, &[&wanted, "(web)", "in use", "\"other\"", "descriptor 3", &address]);
    }
}

#[test]
fn an_empty_name_counts_as_no_name() {
    let ((one, at_one), (two, at_two)) = (listener(), listener());
    let parent = Parent::passing([one.into(), two.into()]).saying("LISTEN_FDNAMES", ":api");
    let line = parent.serve(&["--listen", "web=127.0.0.1:1", "--listen", "api=127.0.0.1:2"]);
    assert_eq!((line.address_of("web"), line.address_of("api")), (at_one, at_two));
}

#[test]
fn sockets_are_matched_by_name_not_by_order() {
    let ((one, at_one), (two, at_two)) = (listener(), listener());
    for names in ["web:api", "api:web"] {
        let parent = Parent::passing([copy(&one), copy(&two)]).saying("LISTEN_FDNAMES", names);
        let line = parent.serve(&[
            "--bake",
            "0",
            "--listen",
            "web=127.0.0.1:1",
            "--listen",
            "api=127.0.0.1:2",
        ]);
        let (web, api) = if names == "web:api" { (&at_one, &at_two) } else { (&at_two, &at_one) };
        line.hand_over_from(1);
        let second = line.wait_for(2, Event::GenerationAccepting);
        assert_eq!(second.field("listeners").unwrap(), format!("web={web} api={api}"));
    }
}

#[test]
fn an_unclaimed_passed_socket_is_closed_and_reported() {
    let ((one, _), (two, at_two)) = (listener(), listener());
    let parent = Parent::passing([copy(&one), copy(&two)]).saying("LISTEN_FDNAMES", "web:stray");
    let line = parent.serve(&["--listen", "web=127.0.0.1:1"]);
    let closed = line.wait_for(1, Event::SocketUnclaimed);
    assert_eq!(
        (closed.field("listener"), closed.field("address")),
        (Some("stray"), Some(at_two.as_str()))
    );
    assert!(holds_socket(line.first_pid(), &one));
    assert!(!holds_socket(line.first_pid(), &two));
}

#[test]
fn a_refused_inheritance_leaves_the_sockets_unchanged() {
    let (socket, address) = listener();
    Parent::passing([copy(&socket), File::open("/").unwrap().into()])
        .refused(&[])
        .names(78, &["descriptor 4"]);
    let _waiting = TcpStream::connect(address).unwrap();
    accept(&socket);
}

#[test]
fn an_invalid_channel_is_named() {
    for channel in ["", "3", "x:3", "2:x", "2:-1", "2:-2147483648", "2:2", "2:200", "2:3"] {
        let descriptor = File::open("/").unwrap().into();
        let parent = Parent::passing([descriptor])
            .saying("LISTEN_FDS", "0")
            .saying("HANDOFFD_CHANNEL", channel);
        let Refusal { code, said } = parent.refused(&[]);
        assert_eq!((code, said.lines().count()), (78, 1), "{channel:?}: {said}");
        assert!(
            said.contains("HANDOFFD_CHANNEL") && said.contains(&format!("{channel:?}")),
            "{said}"
        );
    }
}
