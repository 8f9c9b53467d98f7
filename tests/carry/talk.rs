//! A client program that a test talks to over its standard streams. Each wait has a deadline.
//!
//! Answers are compared byte by byte as they arrive, so a failure shows the wrong bytes. The
//! program must print no errors; a failing test prints them. A program is killed when it is
//! dropped.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use nix::poll::{PollFd, PollFlags, PollTimeout};

use crate::support::{DEADLINE, exit_code};

/// How many bytes a pipe takes without blocking once poll(2) reports it writable.
const SURE: usize = 4_096;

/// A running client program.
#[derive(Debug)]
pub(crate) struct Talk {
    pub(crate) mouth: Mouth,
    pub(crate) ear: Ear,
    complaints: File,
    child: Child,
}

/// The standard input of the client, until it is closed.
#[derive(Debug)]
pub(crate) struct Mouth(Option<ChildStdin>);

/// The standard output of the client.
#[derive(Debug)]
pub(crate) struct Ear(ChildStdout);

impl Talk {
    pub(crate) fn start(command: &mut Command) -> Self {
        let complaints = tempfile::tempfile().unwrap();
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(complaints.try_clone().unwrap());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let (mouth, ear) = (Mouth(child.stdin.take()), Ear(child.stdout.take().unwrap()));
        Self { mouth, ear, complaints, child }
    }

    /// Sends `words` to the client, and asserts its answer.
    pub(crate) fn ask(&mut self, words: &str, answer: &str) {
        self.mouth.say(words.as_bytes());
        self.ear.hear(answer.as_bytes());
    }

    /// Closes the client's input. Asserts that it prints nothing more, reports no error and exits
    /// with 0.
    pub(crate) fn finish(mut self) {
        self.mouth.close();
        self.ear.hear_the_end();
        assert_eq!((exit_code(self.child.id()), self.complained().as_str()), (0, ""));
    }

    fn complained(&mut self) -> String {
        let mut text = String::new();
        self.complaints.rewind().unwrap();
        self.complaints.read_to_string(&mut text).unwrap();
        text
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            println!("errors of process {}: {:?}", self.child.id(), self.complained());
        }
    }
}

impl Mouth {
    pub(crate) fn say(&mut self, bytes: &[u8]) {
        let stream = self.0.as_mut().expect("the input is still open");
        for piece in bytes.chunks(SURE) {
            assert!(
                is_due(stream.as_fd(), PollFlags::POLLOUT),
                "the client read nothing within the deadline"
            );
            stream.write_all(piece).unwrap();
        }
    }

    pub(crate) fn close(&mut self) {
        self.0 = None;
    }
}

impl Ear {
    /// Reads, and asserts that exactly these bytes come.
    pub(crate) fn hear(&mut self, expected: &[u8]) {
        let mut came = vec![0; expected.len()];
        let mut heard = 0;
        while heard < expected.len() {
            let length = self.some(&mut came[heard..]);
            assert_ne!(length, 0, "the end came instead of {:?}", text(&expected[heard..]));
            let until = heard + length;
            if let Some(wrong) = (heard..until).find(|place| came[*place] != expected[*place]) {
                panic!(
                    "{:?} came instead of {:?}",
                    text(&came[wrong..until]),
                    text(&expected[wrong..])
                );
            }
            heard = until;
        }
    }

    /// Reads one line.
    pub(crate) fn line(&mut self) -> String {
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            let mut byte = [0];
            assert_eq!(self.some(&mut byte), 1, "the end came after {:?}", text(&line));
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap()
    }

    /// Reads some bytes. Returns 0 at the end.
    pub(crate) fn some(&mut self, buffer: &mut [u8]) -> usize {
        assert!(
            is_due(self.0.as_fd(), PollFlags::POLLIN),
            "the client wrote nothing within the deadline"
        );
        self.0.read(buffer).unwrap()
    }

    fn hear_the_end(&mut self) {
        let mut more = [0; 1_024];
        let length = self.some(&mut more);
        assert_eq!(text(&more[..length]), "");
    }
}

/// Returns whether a pipe becomes ready within the deadline, or is closed.
fn is_due(pipe: BorrowedFd<'_>, flags: PollFlags) -> bool {
    let timeout = PollTimeout::try_from(DEADLINE).unwrap();
    nix::poll::poll(&mut [PollFd::new(pipe, flags)], timeout).unwrap() == 1
}

/// Returns the first bytes as text, for a message.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(100)]).into_owned()
}
