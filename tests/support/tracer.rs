//! Has system calls of one process fail, or kill it at one of them, by strace(1).
//!
//! A test that needs strace fails where there is none: what it holds would go unseen.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;

use super::{Line, signal};

/// A tracer that is attached to a process.
#[derive(Debug)]
pub(crate) struct Tracer {
    strace: Child,
    trace: PathBuf,
}

impl Tracer {
    /// Attaches to the main thread of a process, and returns when every system call from now on is
    /// seen.
    pub(crate) fn attach(line: &Line, pid: u32, arguments: &[&str]) -> Self {
        Self::attach_in(line.folder(), pid, arguments)
    }

    /// The same, with a trace in that folder.
    pub(crate) fn attach_in(folder: &Path, pid: u32, arguments: &[&str]) -> Self {
        let trace = folder.join(format!("trace-{pid}"));
        let mut strace = Command::new("strace");
        strace.arg("-o").arg(&trace).args(arguments).args(["-p", &pid.to_string()]);
        let mut strace = strace.stderr(Stdio::piped()).spawn().expect("strace is needed");
        let mut said = String::new();
        // Standard error stays open behind it: strace says more when a process comes or goes.
        let mut stderr = BufReader::new(strace.stderr.take().unwrap());
        stderr.read_line(&mut said).unwrap();
        assert!(said.contains("attached"), "strace says: {said}");
        std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
        Self { strace, trace }
    }

    /// Lets go of the process, and tells what was seen.
    pub(crate) fn detach(mut self) -> String {
        signal(self.strace.id(), Signal::SIGINT);
        self.strace.wait().unwrap();
        fs::read_to_string(&self.trace).unwrap()
    }

    /// Waits for the end of what is traced, and tells what was seen.
    pub(crate) fn wait(mut self) -> String {
        self.strace.wait().unwrap();
        fs::read_to_string(&self.trace).unwrap()
    }
}

impl Drop for Tracer {
    /// A test that fails leaves no tracer behind.
    fn drop(&mut self) {
        let _ = self.strace.kill();
        let _ = self.strace.wait();
    }
}
