//! Signals to processes, and exit codes of processes that are not direct children.
//!
//! Successors are forked twice, so the kernel makes them children of the nearest subreaper. Here
//! that is the test process: it sees their exit codes and reaps them.
//!
//! It reaps a process only after the test is done with it. Until then the process id stays
//! reserved. A free process id could be reused by another test, which runs at the same time with
//! the same parent.

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
use super::view::pause;

/// Makes the test process the parent of all orphaned descendants.
pub(crate) fn adopt_orphans() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| nix::sys::prctl::set_child_subreaper(true).unwrap());
}

/// Raises this process's descriptor limit to the maximum, for tests with thousands of clients.
pub(crate) fn raise_descriptor_limit() {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    assert!(soft == hard || setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok());
}

/// Sends a signal to a process that the test started.
pub(crate) fn signal(pid: u32, signal: Signal) {
    kill(raw(pid), signal).unwrap_or_else(|error| panic!("{signal} to {pid}: {error}"));
}

/// Stops a process, and returns once it has stopped.
pub(crate) fn freeze(pid: u32) {
    signal(pid, Signal::SIGSTOP);
    let stopped = waitpid(raw(pid), Some(WaitPidFlag::WUNTRACED)).unwrap();
    assert!(matches!(stopped, WaitStatus::Stopped(..)), "{stopped:?}");
}

/// Resumes a stopped process.
pub(crate) fn thaw(pid: u32) {
    signal(pid, Signal::SIGCONT);
}

/// Waits for the end of a child or an adopted process. Returns its exit code, or 128 plus the
/// signal number, as in a shell. The process stays a zombie, see [`reap_if_ours`].
pub(crate) fn exit_code(pid: u32) -> i32 {
    let (tell, told) = mpsc::channel();
    thread::spawn(move || tell.send(end_of(pid)));
    told.recv_timeout(DEADLINE)
        .unwrap_or_else(|_| panic!("process {pid} has not ended within the deadline"))
}

/// Waits for the end of a process, and returns its exit code as [`exit_code`] does.
fn end_of(pid: u32) -> i32 {
    let until = Instant::now() + DEADLINE;
    loop {
        match waitid(Id::Pid(raw(pid)), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {
            Ok(WaitStatus::Exited(_, code)) => return code,
            Ok(WaitStatus::Signaled(_, signal, _)) => return 128 + signal as i32,
            Ok(_) | Err(Errno::EINTR) => {}
            // An orphan becomes our child when its parent ends, the process between the two forks.
            // That process only forks, but a successor may end even sooner.
            Err(Errno::ECHILD) if is_there(pid) && Instant::now() < until => pause(1),
            Err(error) => panic!("cannot wait for {pid}: {error}"),
        }
    }
}

fn is_there(pid: u32) -> bool {
    fs::exists(format!("/proc/{pid}")).unwrap()
}

/// Kills a process if it still exists.
pub(crate) fn kill_if_alive(pid: u32) {
    let _ = kill(raw(pid), Signal::SIGKILL);
}

/// Waits for the end of a process and reaps it if it is our child. Only once: afterwards another
/// process may have its number.
pub(crate) fn reap_if_ours(pid: u32) {
    let _ = waitpid(raw(pid), None);
}

fn raw(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).unwrap())
}
