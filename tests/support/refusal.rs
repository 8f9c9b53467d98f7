//! Runs the daemon where it must end by itself: its exit code, and what it says on standard error.

use std::io::{Read, Seek};
use std::process::{Command, Stdio};

use super::process::{exit_code, kill_if_alive, reap_if_ours};

/// How a process ended that did not serve.
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

    /// Runs a command, which is the daemon in the end.
    pub(crate) fn of(command: Command) -> Self {
        Self::writing_to(Stdio::null(), command)
    }

    /// Runs a command with this standard output.
    pub(crate) fn writing_to(output: impl Into<Stdio>, mut command: Command) -> Self {
        // A file and not a pipe: nobody has to read it meanwhile.
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

    /// It ended with that code and one line, in which all of `words` stand.
    pub(crate) fn names(&self, code: i32, words: &[&str]) {
        assert_eq!(self.said.matches('\n').count(), 1, "one line was expected: {self:?}");
        assert!(self.said.ends_with('\n'), "one line was expected: {self:?}");
        assert_eq!(self.code, code, "{self:?}");
        for word in words {
            assert!(self.said.contains(word), "{word:?} is not named: {self:?}");
        }
    }
}

/// Reaped in any case; killed when the test has failed.
struct Process(u32);

impl Drop for Process {
    fn drop(&mut self) {
        kill_if_alive(self.0);
        reap_if_ours(self.0);
    }
}
