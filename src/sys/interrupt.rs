//! Interrupts system calls that block although they must not.
//!
//! Whether accept(2) waits is decided by a flag of the open file description, which other processes
//! may share. One of them can clear the flag after this process has looked at it and before it
//! accepts. accept(2) has no flag of its own against that, so a thread that waits there is woken by
//! a signal: a watcher looks once a second, and a thread that has been in the same call since its
//! last look gets SIGURG. The handler does nothing and is installed without SA_RESTART, so that the
//! call ends with EINTR. Without a handler SIGURG is ignored, signal(7): it never ends a process.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use super::signals::has_handler;

/// How often the watcher looks: a call that blocks is interrupted after one to two of these.
const INTERVAL: Duration = Duration::from_secs(1);

/// One thread, and how often it has begun and ended a call: an odd number says that it is in one.
#[derive(Debug)]
struct Mark {
    thread: libc::pid_t,
    count: AtomicU64,
}

/// The threads that the watcher looks at.
static MARKS: Mutex<Vec<Weak<Mark>>> = Mutex::new(Vec::new());

thread_local! {
    /// None when this thread cannot be watched.
    static MARK: Option<Arc<Mark>> = register().map_err(not_watched).ok();
}

/// Makes a system call that is interrupted if it blocks: then it ends with EINTR.
pub(crate) fn unless_it_blocks<T>(call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    // A thread that ends has no mark any more.
    let mark = MARK.try_with(Option::clone).ok().flatten();
    let step = || mark.as_ref().map(|mark| mark.count.fetch_add(1, Ordering::Relaxed));
    step();
    let done = call();
    step();
    done
}

/// Starts the watcher, once in a process. Without it nothing is interrupted, and all else works.
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

/// Has the watcher look at this thread.
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
        "an accept that blocks will not be interrupted: {error}"
    );
}

/// Installs the handler, unless the program has one of its own for this signal.
fn install_handler() -> io::Result<()> {
    if has_handler(libc::SIGURG)? {
        return Ok(());
    }
    let action = SigAction::new(SigHandler::Handler(do_nothing), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler touches nothing, so it may run at any instant.
    unsafe { sigaction(Signal::SIGURG, &action) }?;
    Ok(())
}

extern "C" fn do_nothing(_signal: libc::c_int) {}

/// Looks at the threads, for as long as the process lives.
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

/// Sends the signal to a thread of this process, if it is still there.
fn interrupt(thread: libc::pid_t) {
    // SAFETY: tgkill(2) takes three numbers. It reaches no other process, and the handler does
    // nothing.
    let done = unsafe { libc::syscall(libc::SYS_tgkill, std::process::id(), thread, libc::SIGURG) };
    if let Err(error) = Errno::result(done) {
        tracing::debug!(
            event = "accept.interrupt_failed", thread, %error,
            "cannot interrupt a thread that blocks"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// The standard library's read repeats a call that was interrupted; this one does not.
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
