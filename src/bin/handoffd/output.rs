//! Output of a command on standard output, with an error if it cannot be written.
//!
//! The standard library ignores an unusable standard output (`EBADF`). But a command whose output
//! is lost must not exit with 0, because a script would trust an empty answer. So the text is
//! written to a copy of the file descriptor. The copy is closed here, because some file systems
//! report a full disk only on close(2).

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;

use handoffd::Error;
use nix::poll::{PollFd, PollFlags, PollTimeout};

/// Writes `text`. `what` names it in the error.
///
/// # Errors
/// [`Error::Output`].
pub(crate) fn print(what: &'static str, text: &str) -> Result<(), Error> {
    write(text.as_bytes()).map_err(|source| Error::Output { what: what.to_owned(), source })
}

fn write(mut bytes: &[u8]) -> io::Result<()> {
    let mut output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    while !bytes.is_empty() {
        match output.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Another process that shares the stream has made it non-blocking.
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
