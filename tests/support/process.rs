//! Signals processes, and learns how those ended that are nobody's children.
//!
//! Successors are forked twice, so whoever watches over orphans inherits them. That is the test
//! process here: it sees their exit codes, and it reaps them.
//!
//! Not before the test is done with them: a process that has ended keeps its number until it is
//! reaped, and a number that is free may be given to a process of another test, which runs beside
//! this one and has the same children.

use std::fs;
use std::sync::{Once, mpsc};
use std::thread;
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;

use super::DEADLINE;

/// Makes the test process the parent of all orphans below it.
pub(crate) fn adopt_orphans() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| nix::sys::prctl::set_child_subreaper(true).unwrap());
}

/// Lets this process, where all tests run, have as many descriptors as it may: for a test with
/// thousands of clients.
pub(crate) fn raise_descriptor_limit() {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    assert!(soft == hard || setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok());
}

/// Sends a signal to a process that the test started.
pub(crate) fn signal(pid: u32, signal: Signal) {
    kill(raw(pid), signal).unwrap_or_else(|error| panic!("{signal} to {pid}: {error}"));
}

/// Stops a process of the line, and returns when it does stand still.
pub(crate) fn freeze(pid: u32) {
    signal(pid, Signal::SIGSTOP);
    let stopped = waitpid(raw(pid), Some(WaitPidFlag::WUNTRACED)).unwrap();
    assert!(matches!(stopped, WaitStatus::Stopped(..)), "{stopped:?}");
}

/// Has a frozen process go on.
pub(crate) fn thaw(pid: u32) {
    signal(pid, Signal::SIGCONT);
}

/// Waits for the end of a process that is ours by birth or by adoption: its exit code, or 128 and
/// the signal that killed it, as a shell has it. It stays to be reaped, see [`reap_if_ours`].
pub(crate) fn exit_code(pid: u32) -> i32 {
    let (tell, told) = mpsc::channel();
    thread::spawn(move || tell.send(end_of(pid)));
    told.recv_timeout(DEADLINE)
        .unwrap_or_else(|_| panic!("process {pid} has not ended within the deadline"))
}

/// Waits for it.
fn end_of(pid: u32) -> i32 {
    let until = Instant::now() + DEADLINE;
    loop {
        match waitid(Id::Pid(raw(pid)), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {
            Ok(WaitStatus::Exited(_, code)) => return code,
            Ok(WaitStatus::Signaled(_, signal, _)) => return 128 + signal as i32,
            Ok(_) | Err(Errno::EINTR) => {}
            // An orphan is ours from the instant in which its parent has ended. The one between the
            // two forks does nothing else, and yet a successor may be quicker.
            Err(Errno::ECHILD) if is_there(pid) && Instant::now() < until => thread::yield_now(),
            Err(error) => panic!("cannot wait for {pid}: {error}"),
        }
    }
}

fn is_there(pid: u32) -> bool {
    fs::exists(format!("/proc/{pid}")).unwrap()
}

/// Kills a process, if it is still there.
pub(crate) fn kill_if_alive(pid: u32) {
    let _ = kill(raw(pid), Signal::SIGKILL);
}

/// Reaps a process that ends, if it is ours: once, for then its number may be another's.
pub(crate) fn reap_if_ours(pid: u32) {
    let _ = waitpid(raw(pid), None);
}

fn raw(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).unwrap())
}
