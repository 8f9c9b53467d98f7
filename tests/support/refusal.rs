//! Runs of the daemon that must end by themselves, with their exit code and standard error.

use std::io::{Read, Seek};
use std::process::{Command, Stdio};

use super::process::{exit_code, kill_if_alive, reap_if_ours};

/// How the daemon ended when it refused to serve.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) code: i32,
    pub(crate) said: String,
}

impl Refusal {
    /// Runs the daemon with these arguments.
    pub(crate) fn to(arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_handoffd"));
        command.args(arguments);
        Self::of(command)
    }

    /// Runs a command that finally executes the daemon.
    pub(crate) fn of(command: Command) -> Self {
        Self::writing_to(Stdio::null(), command)
    }

    /// Runs a command with this standard output.
    pub(crate) fn writing_to(output: impl Into<Stdio>, mut command: Command) -> Self {
        // A file instead of a pipe: the output needs no reader while the process runs.
        let mut stderr = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        command.stdin(Stdio::null()).stdout(output).stderr(stderr.try_clone().unwrap());
        let process = Process(command.spawn().unwrap().id());
        drop(command);
        let code = exit_code(process.0);
        let mut said = Vec::new();
        stderr.rewind().unwrap();
        stderr.read_to_end(&mut said).unwrap();
        Self { code, said: String::from_utf8_lossy(&said).into_owned() }
    }

    /// Asserts that the process ended with `code` and one line of error output that contains all
    /// `words`.
    pub(crate) fn names(&self, code: i32, words: &[&str]) {
        assert_eq!(self.said.matches('\n').count(), 1, "one line was expected: {self:?}");
        assert!(self.said.ends_with('\n'), "one line was expected: {self:?}");
        assert_eq!(self.code, code, "{self:?}");
        for word in words {
            assert!(self.said.contains(word), "{word:?} is missing: {self:?}");
        }
    }
}

/// A process that is killed and reaped even when the test fails.
struct Process(u32);

impl Drop for Process {
    fn drop(&mut self) {
        kill_if_alive(self.0);
        reap_if_ours(self.0);
    }
}
