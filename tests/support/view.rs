//! A process seen from outside through /proc: its descriptors, environment, threads and children.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::socket::setsockopt;
use nix::{libc, setsockopt_impl, sockopt_impl};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd};
use socket2::Socket;

use super::DEADLINE;

/// Returns a process's descriptors from 3 up with their targets: `socket:[INODE]` or a path.
pub(crate) fn holds(pid: u32) -> BTreeMap<i32, String> {
    let folder = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let descriptors = folder.filter_map(|entry| {
        let entry = entry.ok()?;
        let number: i32 = entry.file_name().to_str()?.parse().ok()?;
        Some((number, fs::read_link(entry.path()).ok()?.to_str()?.to_owned()))
    });
    descriptors.filter(|(number, _)| *number > 2).collect()
}

/// Returns whether a process has this socket, pipe or file open.
pub(crate) fn holds_socket(pid: u32, socket: &impl AsFd) -> bool {
    let path = format!("/proc/self/fd/{}", socket.as_fd().as_raw_fd());
    let wanted = fs::read_link(path).unwrap();
    holds(pid).values().any(|held| wanted.as_os_str() == held.as_str())
}

/// Lets the process take each client of its TCP listener on `address` only once the client has sent
/// something. Until then, the client has connected, but its handshake is not over (see
/// `TCP_DEFER_ACCEPT` in tcp(7)).
pub(crate) fn defer_accept(pid: u32, address: &str) {
    let process = i32::try_from(pid).ok().and_then(Pid::from_raw).unwrap();
    let process = rustix::process::pidfd_open(process, PidfdFlags::empty()).unwrap();
    let address: SocketAddr = address.parse().unwrap();
    let sockets = holds(pid).into_iter().filter(|(_, what)| what.starts_with("socket:"));
    let mut sockets = sockets.map(|(number, _)| {
        Socket::from(pidfd_getfd(&process, number, PidfdGetfdFlags::empty()).unwrap())
    });
    let is_listener = |socket: &Socket| {
        let own = socket.local_addr().ok().and_then(|own| own.as_socket());
        own == Some(address) && socket.is_listener().unwrap()
    };
    let listener = sockets.find(is_listener).expect("the process listens");
    setsockopt(&listener, DeferAccept, &30).unwrap();
}

sockopt_impl!(
    /// Sets for how many seconds a listener waits for the first byte of a client.
    DeferAccept, SetOnly, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, i32
);

/// Returns how many descriptors of each kind a process has.
pub(crate) fn kinds(pid: u32) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for held in holds(pid).into_values() {
        let kind = held.split(":[").next().unwrap().to_owned();
        *kinds.entry(kind).or_default() += 1;
    }
    kinds
}

/// Returns how many descriptors each epoll instance of a process watches. fdinfo shows them, see
/// epoll(7).
pub(crate) fn watched(pid: u32) -> Vec<usize> {
    let polls = holds(pid).into_iter().filter(|(_, what)| what == "anon_inode:[eventpoll]");
    let targets = polls.map(|(number, _)| {
        let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).unwrap();
        let targets =
            info.lines().filter_map(|line| line.strip_prefix("tfd:")?.split_whitespace().next());
        targets.map(str::to_owned).collect::<BTreeSet<_>>()
    });
    // Several descriptors may refer to one instance.
    targets.collect::<BTreeSet<_>>().iter().map(BTreeSet::len).collect()
}

/// Returns whether every thread of a process sleeps.
pub(crate) fn is_asleep(pid: u32) -> std::io::Result<bool> {
    are_all(pid, 'S')
}

/// Returns whether every thread of a process is in this state, see proc_pid_stat(5).
pub(crate) fn are_all(pid: u32, state: char) -> std::io::Result<bool> {
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let stat = fs::read_to_string(thread?.path().join("stat"))?;
        if !stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with(state)) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Returns the environment that a process was started with, sorted.
pub(crate) fn environment(pid: u32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/environ")).unwrap();
    let variables = bytes.split(|byte| *byte == 0).filter(|variable| !variable.is_empty());
    let mut variables: Vec<_> =
        variables.map(|variable| String::from_utf8_lossy(variable).into_owned()).collect();
    variables.sort();
    variables
}

/// Returns how many threads a process has.
pub(crate) fn threads(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).unwrap().count()
}

/// Returns the lines of /proc/PID/stat for the children of a process.
pub(crate) fn children(pid: u32) -> Vec<String> {
    let all = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| fs::read_to_string(entry.ok()?.path().join("stat")).ok());
    // The format is `pid (name) state ppid ...`, and a name may contain any character.
    let is_child = |stat: &String| {
        let parent = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)?.parse().ok());
        parent == Some(pid)
    };
    all.filter(is_child).collect()
}

/// Accepts a pending connection, or the next one within the deadline, on a listener of the test.
pub(crate) fn accept(listener: &TcpListener) {
    let timeout = PollTimeout::try_from(DEADLINE).unwrap();
    let waiting =
        nix::poll::poll(&mut [PollFd::new(listener.as_fd(), PollFlags::POLLIN)], timeout).unwrap();
    assert_eq!(waiting, 1, "no connection arrived");
    listener.set_nonblocking(true).unwrap();
    listener.accept().unwrap();
}

/// Polls until `look` returns the expected value. A process may log that it releases something
/// before it does.
pub(crate) fn assert_becomes<T: PartialEq + Debug>(expected: &T, look: impl Fn() -> T) {
    let until = Instant::now() + DEADLINE;
    while look() != *expected {
        assert!(Instant::now() < until, "{:?} has not become {expected:?}", look());
        pause(1);
    }
}

/// Pauses between two polls. Without a pause, the test takes a processor from the processes that it
/// waits for.
#[expect(clippy::disallowed_methods, reason = "the interval of a poll, which ends by an event")]
pub(crate) fn pause(milliseconds: u64) {
    if milliseconds > 0 {
        std::thread::sleep(Duration::from_millis(milliseconds));
    }
}
