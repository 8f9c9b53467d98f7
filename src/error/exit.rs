//! The exit codes, and the mapping from kernel errors to them.

use std::io;

use nix::libc;

/// The exit codes of the daemon and its commands, with their meanings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitStatus {
    /// It did what it was asked to.
    Done = 0,
    /// The command line is wrong (`EX_USAGE`). Nothing was touched.
    Usage = 64,
    /// Nobody answers on the operator's socket (`EX_UNAVAILABLE`).
    Unavailable = 69,
    /// The new generation did not take over, and the old one never stopped (`EX_SOFTWARE`).
    HandoffFailed = 70,
    /// The operating system refused something that no setting can fix (`EX_OSERR`).
    System = 71,
    /// The output of a command cannot be written (`EX_IOERR`).
    Output = 74,
    /// A handoff is under way, time ran out, or an address cannot be listened on now: nothing has
    /// changed (`EX_TEMPFAIL`).
    TryAgain = 75,
    /// The new generation was ready, and everything was taken back; the old one never stopped.
    RolledBack = 76,
    /// The control socket refuses this user or this request (`EX_NOPERM`).
    Denied = 77,
    /// The configuration, or what was inherited, cannot be served (`EX_CONFIG`). Nothing was
    /// touched.
    Configuration = 78,
}

/// Returns the exit code for an address or a file that the kernel refuses.
///
/// A temporary problem is not [`ExitStatus::Configuration`], because a service manager does not
/// retry that code.
pub(super) fn exit_of(source: &io::Error) -> ExitStatus {
    match source.raw_os_error() {
        // Another process has the address, the address is not there yet, or its interface is not.
        Some(libc::EADDRINUSE | libc::EADDRNOTAVAIL | libc::ENODEV) => ExitStatus::TryAgain,
        // The machine is short of something, or a disk fails.
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
        ) => ExitStatus::System,
        _ => ExitStatus::Configuration,
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
