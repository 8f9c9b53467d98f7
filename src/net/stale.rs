//! This module replaces a stale socket file, which is the file of a Unix socket that no process
//! holds any more.
//!
//! When a process closes a Unix socket, the socket file stays and blocks the path. This module must
//! not remove the file while any process still holds the socket, even if the socket refuses every
//! client because it does not listen yet.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::sys;

/// How long to wait while another process replaces a file in the same directory. A replacement
/// needs only a few system calls.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);

/// If no process holds the socket of the file at `path`, removes the file and calls `bind` again.
/// `in_use` is the error of the first attempt to bind.
///
/// # Errors
/// Returns `in_use` if a process holds the socket, or any other error from the kernel.
pub(super) fn replace(
    path: &Path,
    in_use: io::Error,
    bind: impl FnOnce() -> io::Result<Socket>,
) -> io::Result<Socket> {
    // Lock the directory, because two processes may find the same stale file. Without the lock, the
    // second process would remove the file that the first process has just bound.
    let _lock = lock_folder(path);
    match check_is_socket(path) {
        Ok(()) => {}
        // Bind again, because another process has removed the file in the meantime.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return bind(),
        Err(error) => return Err(error),
    }
    if !is_stale(path)? {
        return Err(in_use);
    }
    fs::remove_file(path)?;
    bind()
}

/// Checks that the file at `path` is itself a socket, because a bind never replaces another file. A
/// symbolic link to a socket does not count.
///
/// # Errors
/// Returns a configuration error if the file is not a socket, because a retry does not help. The
/// error has no errno, which marks it as a configuration error.
pub(crate) fn check_is_socket(path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path)?.file_type().is_socket() {
        return Ok(());
    }
    Err(io::Error::other("Address already in use by a file that is not a socket"))
}

/// Returns whether no process holds the socket of the file at `path`.
///
/// This function connects a datagram socket to the path (see connect(2)). The result is
/// `ECONNREFUSED` only if no socket is bound to the file. If a stream socket is bound to it,
/// listening or not, the result is `EPROTOTYPE`. The attempt adds nothing to the backlog of that
/// socket.
fn is_stale(path: &Path) -> io::Result<bool> {
    let probe = Socket::new(Domain::UNIX, Type::DGRAM.nonblocking().cloexec(), None)?;
    Ok(probe
        .connect(&SockAddr::unix(path)?)
        .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused))
}

/// Locks the directory of `path`, so that no other handoffd process replaces a file in it. Dropping
/// the returned value releases the lock.
///
/// Returns `None` if the directory is not readable or another program keeps it locked. The caller
/// then continues without the lock.
fn lock_folder(path: &Path) -> Option<Flock<File>> {
    let folder =
        path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let locked = File::open(folder).and_then(|mut opened| {
        let deadline = Instant::now() + LOCK_TIMEOUT;
        loop {
            opened = match Flock::lock(opened, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(lock),
                Err((opened, Errno::EWOULDBLOCK)) if Instant::now() < deadline => opened,
                Err((_, error)) => return Err(error.into()),
            };
            sys::socket::pause();
        }
    });
    let folder = folder.display();
    let say = |error: &io::Error| {
        tracing::warn!(
            event = "socket.lock_failed", %folder, reason = %error,
            "cannot lock the directory {folder}, continuing without the lock: {error}"
        )
    };
    locked.inspect_err(say).ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::sync::Barrier;

    use super::super::bind::Access;
    use super::super::listener::Listener;
    use super::*;
    use crate::address::Address;

    #[test]
    fn only_one_of_many_processes_binds_a_stale_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web.sock");
        for _ in 0..50 {
            drop(UnixListener::bind(&path).unwrap());
            let start = Barrier::new(8);
            let bound: Vec<_> = std::thread::scope(|scope| {
                let bind = || {
                    start.wait();
                    Listener::bind("web", &Address::UnixPath(path.clone()), Access::Owner)
                };
                let threads: Vec<_> = (0..8).map(|_| scope.spawn(bind)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            assert_eq!(bound.iter().filter(|bound| bound.is_ok()).count(), 1);
            UnixStream::connect(&path).unwrap();
            bound.iter().flatten().for_each(Listener::unlink);
        }
    }

    #[test]
    fn a_folder_that_stays_locked_is_not_waited_for_forever() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web.sock");
        drop(UnixListener::bind(&path).unwrap());
        let lock = File::open(folder.path()).unwrap();
        let _lock = Flock::lock(lock, FlockArg::LockExclusive).unwrap();
        Listener::bind("web", &Address::UnixPath(path), Access::Owner).unwrap();
    }
}
