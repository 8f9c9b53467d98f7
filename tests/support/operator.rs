//! An operator that runs the daemon's commands against a lineage, with their output and exit codes.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};

use super::process::{exit_code, kill_if_alive};
use super::{DEADLINE, Event, Line, REAL};

/// A running command.
#[derive(Debug)]
pub(crate) struct Operator(Child);

/// The exit code and the output of a command.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Line {
    /// Starts the daemon on `127.0.0.1:0` with a control socket and these arguments, and waits
    /// until it serves.
    pub(crate) fn serve_controlled(arguments: &[&str]) -> Self {
        let line = Self::start_with(|command, folder| {
            command
                .args(["--listen", "127.0.0.1:0"])
                .arg("--control")
                .arg(folder.join("control"))
                .args(arguments);
        });
        line.wait_for(1, Event::GenerationServing);
        line
    }

    /// Returns the path of the lineage's control socket.
    pub(crate) fn control(&self) -> PathBuf {
        self.folder().join("control")
    }

    /// Starts a `handoffd` command that connects to this lineage.
    pub(crate) fn ask(&self, words: &[&str]) -> Operator {
        let mut command = Command::new(REAL);
        command.args(words).arg("--control").arg(self.control());
        Operator::start(command)
    }

    /// Runs a `handoffd` command against this lineage to its end.
    pub(crate) fn asked(&self, words: &[&str]) -> Answered {
        self.ask(words).wait()
    }

    /// Returns a counter of a listener, over all generations.
    pub(crate) fn counter(&self, listener: &str, name: &str) -> u64 {
        let status: serde_json::Value =
            serde_json::from_str(&self.asked(&["status", "--json"]).well()).unwrap();
        status["counters"]["listeners"][listener][name].as_u64().unwrap()
    }
}

impl Operator {
    /// Starts a command.
    pub(crate) fn start(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self(command.spawn().unwrap())
    }

    /// Reads the next line of the command's standard output.
    pub(crate) fn line(&mut self) -> String {
        let mut line = Vec::new();
        let mut byte = [0];
        while self.0.stdout.as_mut().unwrap().read(&mut byte).unwrap() == 1 && byte != [b'\n'] {
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap()
    }

    /// Waits until the command ends. The deadline applies to each line of output and to the end.
    pub(crate) fn wait(mut self) -> Answered {
        // Read both streams from the start: the output may exceed a pipe's capacity.
        let (out, err) = (read(self.0.stdout.take().unwrap()), read(self.0.stderr.take().unwrap()));
        let (out, err) = (hear(&out), hear(&err));
        Answered { code: exit_code(self.0.id()), out, err }
    }
}

/// Reads a stream line by line in a thread, and sends each line to the channel.
fn read(stream: impl Read + Send + 'static) -> Receiver<String> {
    let (tell, told) = mpsc::channel();
    let mut stream = BufReader::new(stream);
    std::thread::spawn(move || {
        let mut line = String::new();
        while stream.read_line(&mut line).unwrap() > 0
            && tell.send(std::mem::take(&mut line)).is_ok()
        {}
    });
    told
}

/// Collects all lines; panics if none arrives within the deadline.
fn hear(told: &Receiver<String>) -> String {
    let mut text = String::new();
    loop {
        match told.recv_timeout(DEADLINE) {
            Ok(line) => text += &line,
            Err(RecvTimeoutError::Disconnected) => return text,
            Err(RecvTimeoutError::Timeout) => {
                panic!("no more output within the deadline, after:\n{text}")
            }
        }
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        kill_if_alive(self.0.id());
        let _ = self.0.wait();
    }
}

impl Answered {
    /// Asserts that the command succeeded without error output, and returns its output.
    pub(crate) fn well(self) -> String {
        assert_eq!((self.code, self.err.as_str()), (0, ""), "{self:?}");
        self.out
    }

    /// Asserts that the command ended with `code` and one line of error output that contains all
    /// `words`.
    pub(crate) fn names(self, code: i32, words: &[&str]) {
        assert_eq!(self.code, code, "{self:?}");
        assert_eq!(self.err.matches('\n').count(), 1, "one line was expected: {self:?}");
        for word in words {
            assert!(self.err.contains(word), "{word:?} is missing: {self:?}");
        }
    }
}
