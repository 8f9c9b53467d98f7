//! The exit codes of the daemon and its commands, and the mapping from kernel errors to exit codes.

use std::io;

use nix::libc;

/// The exit codes of the daemon and its commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[non_exhaustive]
pub enum ExitStatus {
    /// The process or the command has succeeded.
    Done = 0,
    /// The command line is wrong (`EX_USAGE`). The process has changed nothing.
    Usage = 64,
    /// No daemon answers on the control socket (`EX_UNAVAILABLE`).
    Unavailable = 69,
    /// The new generation has not taken over. The old generation keeps serving without interruption
    /// (`EX_SOFTWARE`).
    HandoffFailed = 70,
    /// A system call has failed, and no setting can fix the cause (`EX_OSERR`).
    System = 71,
    /// The output of a command cannot be written (`EX_IOERR`).
    Output = 74,
    /// The request cannot be carried out now, and nothing has changed (`EX_TEMPFAIL`). A handoff is
    /// in progress, the time limit has expired, or a listener's address is not available.
    TryAgain = 75,
    /// The new generation was ready, but was rolled back. The old generation keeps serving without
    /// interruption.
    RolledBack = 76,
    /// The control socket refuses this user or this request (`EX_NOPERM`).
    Denied = 77,
    /// The process cannot serve, because its configuration or something that it has inherited is
    /// not valid (`EX_CONFIG`). The process has changed nothing.
    Configuration = 78,
}

impl ExitStatus {
    /// Returns the exit code for a kernel error about an address or a file.
    ///
    /// A temporary error never maps to [`ExitStatus::Configuration`], because the service manager
    /// does not restart a process that ends with that exit code.
    #[must_use]
    pub fn of_io(source: &io::Error) -> Self {
        match source.raw_os_error() {
            // Another process uses the address, or the address or its network interface does not
            // exist yet.
            Some(libc::EADDRINUSE | libc::EADDRNOTAVAIL | libc::ENODEV) => Self::TryAgain,
            // The machine has run out of memory, file descriptors or disk space, or a disk has
            // failed.
            Some(
                libc::EMFILE
                | libc::ENFILE
                | libc::ENOMEM
                | libc::ENOBUFS
                | libc::ENOSPC
                | libc::EDQUOT
                | libc::EIO
                | libc::ESTALE
                | libc::ETIMEDOUT
                | libc::EINTR
                | libc::EAGAIN,
            ) => Self::System,
            _ => Self::Configuration,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn only_lasting_errors_are_configuration_errors() {
        for (errno, exit) in [
            (libc::EADDRINUSE, ExitStatus::TryAgain),
            (libc::EADDRNOTAVAIL, ExitStatus::TryAgain),
            (libc::ENODEV, ExitStatus::TryAgain),
            (libc::EMFILE, ExitStatus::System),
            (libc::ENOSPC, ExitStatus::System),
            (libc::EACCES, ExitStatus::Configuration),
            (libc::ENOENT, ExitStatus::Configuration),
            (libc::EAFNOSUPPORT, ExitStatus::Configuration),
        ] {
            let source = io::Error::from_raw_os_error(errno);
            let error =
                Error::Bind { name: "web".to_owned(), address: "127.0.0.1:80".to_owned(), source };
            assert_eq!(error.exit(), exit, "{error}");
        }
    }
}
