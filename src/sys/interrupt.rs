//! A watcher thread, which interrupts accept(2) calls that block unexpectedly.
//!
//! A call of accept(2) can block if the socket does not have the flag `O_NONBLOCK`. Other processes
//! may share the socket, and can clear the flag between our check and our call. accept4(2) has no
//! flag that prevents this.
//!
//! So once a second, the watcher thread checks every thread that calls accept(2). It sends SIGURG
//! to each thread that is still in the same call as at the last check. The handler of SIGURG does
//! nothing and is installed without SA_RESTART, so the blocked call ends with EINTR. SIGURG cannot
//! kill the process, because the kernel ignores it if no handler is installed (see signal(7)).

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use super::signals::has_handler;

/// The time between two checks by the watcher thread. A blocked call is therefore interrupted after
/// one to two seconds.
const INTERVAL: Duration = Duration::from_secs(1);

/// A thread that the watcher checks. Its counter increases when the thread enters a call and when
/// it leaves the call. An odd count means that the thread is inside a call.
#[derive(Debug)]
struct Mark {
    thread: libc::pid_t,
    count: AtomicU64,
}

/// The threads that the watcher thread checks.
static MARKS: Mutex<Vec<Weak<Mark>>> = Mutex::new(Vec::new());

thread_local! {
    /// The entry of this thread in the list of watched threads. `None` if the thread cannot be
    /// watched.
    static MARK: Option<Arc<Mark>> = register().map_err(not_watched).ok();
}

/// Makes a system call. The watcher thread interrupts the call with EINTR if it blocks.
pub(crate) fn unless_it_blocks<T>(call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    // A thread that is exiting has no entry any more, so make the call without the watcher.
    let mark = MARK.try_with(Option::clone).ok().flatten();
    let step = || mark.as_ref().map(|mark| mark.count.fetch_add(1, Ordering::Relaxed));
    step();
    let done = call();
    step();
    done
}

/// Starts the watcher thread, unless this process already has one. If the thread cannot be started,
/// blocked calls are not interrupted, but everything else works.
pub(crate) fn start_watcher() {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        let start = || {
            install_handler()?;
            thread::Builder::new().name("watcher".into()).spawn(watch)
        };
        if let Err(error) = start() {
            not_watched(error);
        }
    });
}

/// Adds this thread to the list of threads that the watcher checks.
fn register() -> io::Result<Arc<Mark>> {
    let mut signal = SigSet::empty();
    signal.add(Signal::SIGURG);
    signal.thread_unblock()?;
    let mark = Arc::new(Mark { thread: nix::unistd::gettid().as_raw(), count: AtomicU64::new(0) });
    MARKS.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&mark));
    Ok(mark)
}

fn not_watched(error: io::Error) {
    tracing::warn!(
        event = "accept.uninterruptible", reason = %error,
        "cannot start the thread that interrupts blocked accept calls, so a worker may hang if \
        another process makes a socket blocking: {error}"
    );
}

/// Installs a handler for SIGURG that does nothing, unless the program already has a handler.
fn install_handler() -> io::Result<()> {
    if has_handler(libc::SIGURG)? {
        return Ok(());
    }
    let action = SigAction::new(SigHandler::Handler(do_nothing), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing, so it may run at any time and interrupt any code.
    unsafe { sigaction(Signal::SIGURG, &action) }?;
    Ok(())
}

extern "C" fn do_nothing(_signal: libc::c_int) {}

/// Checks all watched threads once per interval, until the process ends.
fn watch() {
    let mut last: Vec<(libc::pid_t, u64)> = Vec::new();
    loop {
        thread::park_timeout(INTERVAL);
        let mut marks = MARKS.lock().unwrap_or_else(PoisonError::into_inner);
        marks.retain(|mark| mark.strong_count() > 0);
        let seen = marks.iter().filter_map(Weak::upgrade);
        let seen: Vec<_> =
            seen.map(|mark| (mark.thread, mark.count.load(Ordering::Relaxed))).collect();
        drop(marks);
        for (thread, count) in &seen {
            if count % 2 == 1 && last.contains(&(*thread, *count)) {
                interrupt(*thread);
            }
        }
        last = seen;
    }
}

/// Sends SIGURG to a thread of this process. Does nothing if the thread no longer exists.
fn interrupt(thread: libc::pid_t) {
    // SAFETY: tgkill(2) takes three numbers. The signal reaches only this process, and its handler
    // does nothing.
    let done = unsafe { libc::syscall(libc::SYS_tgkill, std::process::id(), thread, libc::SIGURG) };
    if let Err(error) = Errno::result(done) {
        tracing::debug!(
            event = "accept.interrupt_failed", thread, %error,
            "cannot interrupt a blocked accept call in thread {thread}: {error}"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// Reads from the stream once. Unlike the standard library's read, it does not retry after
    /// EINTR.
    fn read(stream: &mut UnixStream) -> io::Result<usize> {
        nix::unistd::read(&*stream, &mut [0]).map_err(Into::into)
    }

    #[test]
    fn a_call_that_blocks_is_interrupted_every_time() {
        start_watcher();
        let (mut ours, _theirs) = UnixStream::pair().unwrap();
        for _ in 0..2 {
            let error = unless_it_blocks(|| read(&mut ours)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::Interrupted);
        }
        ours.set_nonblocking(true).unwrap();
        let error = unless_it_blocks(|| ours.read(&mut [0])).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn each_thread_that_blocks_is_interrupted() {
        start_watcher();
        let threads: Vec<_> = (0..3)
            .map(|_| {
                thread::spawn(|| {
                    let (mut ours, _theirs) = UnixStream::pair().unwrap();
                    unless_it_blocks(|| read(&mut ours)).unwrap_err().kind()
                })
            })
            .collect();
        for thread in threads {
            assert_eq!(thread.join().unwrap(), io::ErrorKind::Interrupted);
        }
    }
}
