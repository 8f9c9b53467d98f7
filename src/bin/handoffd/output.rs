//! The output of a command on standard output. If the output cannot be written, the command fails.
//!
//! The standard library ignores a write to a standard output that is not open (`EBADF`). But a
//! command whose output is lost must not exit with 0, because a script would trust the empty
//! output. This module therefore writes to a copy of the file descriptor. It also closes the copy
//! and checks the result, because some file systems report a full disk only on close(2).

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout};

use crate::failure::Failure;

/// Writes `text` to standard output. `what` is the name of the text in an error message.
///
/// # Errors
/// Returns [`Failure::Output`] if the text cannot be written.
pub(crate) fn print(what: &'static str, text: &str) -> Result<(), Failure> {
    write(text.as_bytes()).map_err(|source| Failure::Output { what: what.to_owned(), source })
}

fn write(mut bytes: &[u8]) -> io::Result<()> {
    let mut output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    while !bytes.is_empty() {
        match output.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Wait until standard output has room. It can be non-blocking, because another process
            // shares it and may have changed its mode.
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                nix::poll::poll(
                    &mut [PollFd::new(output.as_fd(), PollFlags::POLLOUT)],
                    PollTimeout::NONE,
                )?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(nix::unistd::close(output)?)
}
