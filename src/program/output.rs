//! The standard error of a program. This module copies it to the standard error of this process,
//! and keeps the last lines for error messages.
//!
//! If the program does not become ready, its last lines explain the reason better than its exit
//! code does. This module does not read standard output, which the program shares with this
//! process.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::Interest;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use crate::text::cut_line;

/// The number of lines to keep, and the maximum length of each in bytes. An interpreter may print a
/// long stack trace after the line that says what is wrong.
const LINES: usize = 20;
const LONGEST: usize = 300;

/// The last lines that a program wrote to standard error. Clones share the same lines.
#[derive(Clone, Debug, Default)]
pub(super) struct LastOutput(Arc<Mutex<VecDeque<String>>>);

impl LastOutput {
    /// Returns the last lines as a part of an error message, or an empty text if there are none.
    pub(super) fn quoted(&self) -> String {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let lines: Vec<_> = lines.iter().map(String::as_str).collect();
        if lines.is_empty() {
            String::new()
        } else {
            format!("; last output: {}", lines.join(" | "))
        }
    }

    /// Copies everything that arrives on `pipe` to standard error. Uses a separate thread, because
    /// writing to standard error may block. The returned channel closes when the program and all
    /// its children have closed the pipe.
    ///
    /// # Errors
    /// Fails when the thread cannot be started.
    pub(super) fn follow(&self, pipe: OwnedFd) -> io::Result<oneshot::Receiver<Infallible>> {
        let (follows, followed) = oneshot::channel();
        let words = self.clone();
        std::thread::Builder::new().name("program-output".to_owned()).spawn(move || {
            let _follows: oneshot::Sender<Infallible> = follows;
            words.pass_on(File::from(pipe), io::stderr());
        })?;
        Ok(followed)
    }

    /// Copies everything from `pipe` to `output`. Ignores errors of `output`, because the program
    /// must keep running even if our standard error is closed.
    fn pass_on(&self, mut pipe: File, mut output: impl Write + AsFd) {
        let (mut buffer, mut line) = (vec![0; 16 * 1024], Vec::new());
        let mut last = b'\n';
        while let Ok(count @ 1..) = pipe.read(&mut buffer) {
            let _ = write_all(&mut output, &buffer[..count]);
            last = buffer[count - 1];
            for byte in &buffer[..count] {
                match byte {
                    b'\n' => self.keep(&std::mem::take(&mut line)),
                    _ if line.len() < LONGEST => line.push(*byte),
                    _ => {}
                }
            }
        }
        self.keep(&line);
        if last != b'\n' {
            // End the program's last line, so that the next log record begins on a new line.
            let _ = write_all(&mut output, b"\n");
        }
    }

    fn keep(&self, line: &[u8]) {
        let line = cut_line(String::from_utf8_lossy(line).trim(), LONGEST);
        if line.is_empty() {
            return;
        }
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == LINES {
            lines.pop_front();
        }
        lines.push_back(line);
    }
}

/// Writes a chunk to `output`, if possible in a single call, so that lines of several programs
/// rarely mix. A program that shares the output may make it non-blocking. The function then waits
/// until the output has room.
fn write_all(output: &mut (impl Write + AsFd), mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match output.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut room = [PollFd::new(output.as_fd(), PollFlags::POLLOUT)];
                match poll(&mut room, PollTimeout::NONE) {
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Returns a pipe: the read end for this process, and the write end for a program.
pub(super) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    Ok((read, write))
}

/// Waits until a newline arrives on `pipe`. Returns false if the pipe closes before a newline
/// arrives.
pub(super) async fn newline(pipe: OwnedFd) -> bool {
    let Ok(pipe) = pipe::Receiver::from_owned_fd(pipe) else { return false };
    let mut buffer = [0; 64];
    loop {
        let Ok(_) = pipe.ready(Interest::READABLE).await else { return false };
        match pipe.try_read(&mut buffer) {
            Ok(0) => return false,
            Ok(count) if buffer[..count].contains(&b'\n') => return true,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_lines_of_a_program_are_kept() {
        let words = LastOutput::default();
        let (read, write) = pipe().unwrap();
        let mut program = File::from(write);
        for line in 1..LINES {
            writeln!(program, "too early").unwrap();
            writeln!(program, "line {line}\u{1b}[1m").unwrap();
        }
        write!(program, "\n\nno end").unwrap();
        drop(program);
        assert!(words.follow(read).unwrap().await.is_err());
        let last = LINES - 1;
        let quoted = words.quoted();
        assert_eq!(quoted.split(" | ").count(), LINES, "{quoted}");
        assert!(quoted.starts_with("; last output: line "), "{quoted}");
        let end = format!(" | line {last}\\u{{1b}}[1m | no end");
        assert!(quoted.ends_with(&end), "{quoted}");
    }

    #[test]
    fn the_last_line_of_a_program_is_ended() {
        for (said, expected) in [("", ""), ("a\n", "a\n"), ("a\nb", "a\nb\n")] {
            let ((theirs, program), (read, write)) = (pipe().unwrap(), pipe().unwrap());
            File::from(program).write_all(said.as_bytes()).unwrap();
            LastOutput::default().pass_on(File::from(theirs), File::from(write));
            let mut written = String::new();
            File::from(read).read_to_string(&mut written).unwrap();
            assert_eq!(written, expected);
        }
    }

    #[tokio::test]
    async fn a_newline_is_waited_for() {
        let (read, write) = pipe().unwrap();
        let mut program = File::from(write);
        let waiting = tokio::spawn(newline(read));
        program.write_all(b"ready").unwrap();
        program.write_all(b"\n").unwrap();
        assert!(waiting.await.unwrap());
        let (read, write) = pipe().unwrap();
        drop(write);
        assert!(!newline(read).await);
    }

    /// A program may use the same pipe as its standard output, and may make it non-blocking.
    #[test]
    fn a_full_pipe_that_is_non_blocking_loses_nothing() {
        const LONG: usize = 300_000;
        let (read, write) = pipe().unwrap();
        rustix::io::ioctl_fionbio(&write, true).unwrap();
        let writer = std::thread::spawn(move || {
            write_all(&mut File::from(write), &vec![b'x'; LONG]).unwrap()
        });
        let mut written = Vec::new();
        File::from(read).read_to_end(&mut written).unwrap();
        writer.join().unwrap();
        assert_eq!(written.len(), LONG);
    }
}
