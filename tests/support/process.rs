//! Signals processes, and learns how those ended that are nobody's children.
//!
//! Successors are forked twice, so whoever watches over orphans inherits them. That is the test process here: it sees
//! their exit codes, and it reaps them.

use std::sync::{Once, mpsc};
use std::thread;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::DEADLINE;

/// Makes the test process the parent of all orphans below it.
pub(crate) fn adopt_orphans() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| nix::sys::prctl::set_child_subreaper(true).unwrap());
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

/// Waits for the end of a process that is ours by birth or by adoption, and reaps it: its exit code, or 128 and the
/// signal that killed it, as a shell has it.
pub(crate) fn exit_code(pid: u32) -> i32 {
    let (tell, told) = mpsc::channel();
    thread::spawn(move || tell.send(reap(pid)));
    told.recv_timeout(DEADLINE).unwrap_or_else(|_| panic!("process {pid} has not ended within the deadline"))
}

/// Waits for it without a deadline. An orphan is ours from the instant in which its parent has ended; a successor's
/// parent ends before the successor says anything.
fn reap(pid: u32) -> i32 {
    loop {
        match waitpid(raw(pid), None) {
            Ok(WaitStatus::Exited(_, code)) => return code,
            Ok(WaitStatus::Signaled(_, signal, _)) => return 128 + signal as i32,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => panic!("cannot wait for {pid}: {error}"),
        }
    }
}

/// Kills a process, if it is still there.
pub(crate) fn kill_if_alive(pid: u32) {
    let _ = kill(raw(pid), Signal::SIGKILL);
}

/// Reaps a process that has ended, unless that was done before.
pub(crate) fn reap_if_ours(pid: u32) {
    let _ = waitpid(raw(pid), None);
}

fn raw(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).unwrap())
}
