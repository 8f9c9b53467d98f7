//! Runs a client program and talks to it by its standard streams, each wait under the deadline.
//!
//! What it answers is compared byte by byte where it comes, so that a test says what was wrong and
//! not only that something was. What the program complains of belongs to that: it must not, and a
//! test that fails shows it. A program that is dropped is killed.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use nix::poll::{PollFd, PollFlags, PollTimeout};

use crate::support::{DEADLINE, exit_code};

/// So much a pipe takes without a wait, once it is said to take anything.
const SURE: usize = 4_096;

/// A client that runs.
#[derive(Debug)]
pub(crate) struct Talk {
    pub(crate) mouth: Mouth,
    pub(crate) ear: Ear,
    complaints: File,
    child: Child,
}

/// Where the client is told something, until it has been told everything.
#[derive(Debug)]
pub(crate) struct Mouth(Option<ChildStdin>);

/// Where the client answers.
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

    /// Tells the client something, which is answered by exactly that.
    pub(crate) fn ask(&mut self, words: &str, answer: &str) {
        self.mouth.say(words.as_bytes());
        self.ear.hear(answer.as_bytes());
    }

    /// Lets the client come to its end: it has nothing more to say, complains of nothing and ends
    /// well.
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
            println!("process {} has complained: {:?}", self.child.id(), self.complained());
        }
    }
}

impl Mouth {
    pub(crate) fn say(&mut self, bytes: &[u8]) {
        let stream = self.0.as_mut().expect("it was not closed");
        for piece in bytes.chunks(SURE) {
            assert!(
                is_due(stream.as_fd(), PollFlags::POLLOUT),
                "nothing was read within the deadline"
            );
            stream.write_all(piece).unwrap();
        }
    }

    pub(crate) fn close(&mut self) {
        self.0 = None;
    }
}

impl Ear {
    /// Hears exactly that.
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

    /// Hears one line, whatever it says.
    pub(crate) fn line(&mut self) -> String {
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            let mut byte = [0];
            assert_eq!(self.some(&mut byte), 1, "the end came after {:?}", text(&line));
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap()
    }

    /// Hears some bytes, or none at the end.
    pub(crate) fn some(&mut self, buffer: &mut [u8]) -> usize {
        assert!(is_due(self.0.as_fd(), PollFlags::POLLIN), "nothing came within the deadline");
        self.0.read(buffer).unwrap()
    }

    fn hear_the_end(&mut self) {
        let mut more = [0; 1_024];
        let length = self.some(&mut more);
        assert_eq!(text(&more[..length]), "");
    }
}

/// Whether a pipe is read or written within the deadline, or comes to an end.
fn is_due(pipe: BorrowedFd<'_>, flags: PollFlags) -> bool {
    let timeout = PollTimeout::try_from(DEADLINE).unwrap();
    nix::poll::poll(&mut [PollFd::new(pipe, flags)], timeout).unwrap() == 1
}

/// What can be shown of bytes: the first of them.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(100)]).into_owned()
}
