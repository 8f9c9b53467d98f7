//! Fault injection by strace(1): fails system calls of a process, or kills it at one of them.
//!
//! A test that needs strace fails if strace is missing: a skipped test would hide errors.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::Line;

/// A running strace that is attached to a process.
#[derive(Debug)]
pub(crate) struct Tracer {
    strace: Child,
    trace: PathBuf,
}

impl Tracer {
    /// Attaches to the main thread of a process, and returns once its system calls are traced.
    pub(crate) fn attach(line: &Line, pid: u32, arguments: &[&str]) -> Self {
        Self::attach_in(line.folder(), pid, arguments)
    }

    /// Attaches like [`Tracer::attach`], with the trace file in `folder`.
    pub(crate) fn attach_in(folder: &Path, pid: u32, arguments: &[&str]) -> Self {
        let trace = folder.join(format!("trace-{pid}"));
        let mut strace = Command::new("strace");
        strace.arg("-o").arg(&trace).args(arguments).args(["-p", &pid.to_string()]);
        let mut strace = strace.stderr(Stdio::piped()).spawn().expect("the test needs strace");
        let mut said = String::new();
        // Keep reading standard error: strace writes more when a process starts or ends.
        let mut stderr = BufReader::new(strace.stderr.take().unwrap());
        stderr.read_line(&mut said).unwrap();
        assert!(said.contains("attached"), "strace says: {said}");
        std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
        Self { strace, trace }
    }

    /// Detaches from the process, and returns the trace. No call should be about to fail, because
    /// the process would get `ENOSYS` for it.
    ///
    /// Kills strace, because the kernel then detaches from all threads at once (see ptrace(2)).
    /// With SIGINT, strace would stop every thread and wait for it. It would wait forever if the
    /// process were just about to end.
    pub(crate) fn detach(mut self) -> String {
        self.strace.kill().unwrap();
        self.strace.wait().unwrap();
        fs::read_to_string(&self.trace).unwrap()
    }

    /// Waits until the traced process has ended, and returns the trace.
    pub(crate) fn wait(mut self) -> String {
        self.strace.wait().unwrap();
        fs::read_to_string(&self.trace).unwrap()
    }
}

impl Drop for Tracer {
    /// Stops the tracer, so that a failed test leaves none behind.
    fn drop(&mut self) {
        let _ = self.strace.kill();
        let _ = self.strace.wait();
    }
}
