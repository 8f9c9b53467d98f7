//! Puts another program at the path by which a line was started.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use nix::sys::stat::Mode;

use super::Line;

/// Puts a shell script at the path of the line. `REAL` in it is the real daemon.
///
/// Another process writes it: while this one had it open for writing, any other test's fork would have it open too, and
/// nobody could execute it (`ETXTBSY`).
pub(crate) fn replace_program(line: &Line, script: &str) {
    let real = line.folder().join("real");
    // It is there from the second time on.
    let _ = symlink(env!("CARGO_BIN_EXE_handoffd"), &real);
    let script = format!("#!/bin/bash\n{}\n", script.replace("REAL", real.to_str().unwrap()));
    let draft = line.folder().join("draft");
    let mut install = Command::new("install");
    install.args(["-m", "755", "/dev/stdin"]).arg(&draft).stdin(Stdio::piped());
    let mut install = install.spawn().unwrap();
    install.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(install.wait().unwrap().success());
    std::fs::rename(draft, line.program()).unwrap();
}

/// Has the next generation start with these arguments instead of the line's.
pub(crate) fn successor_gets(line: &Line, arguments: &str) {
    replace_program(line, &format!("exec REAL --log debug {arguments}"));
}

/// Holds a script up until the test has looked at its process.
#[derive(Debug)]
pub(crate) struct Gate {
    pipe: File,
}

impl Gate {
    /// Has the next generation start with a script that says `waiting PID`, and goes on when the gate is opened.
    pub(crate) fn before_successor_of(line: &Line) -> Self {
        let path = line.folder().join("gate");
        nix::unistd::mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        let (path, pipe) = (path.display(), OpenOptions::new().read(true).write(true).open(&path).unwrap());
        // Programs, not words of the shell: for a redirection of its own it would hold a descriptor more.
        replace_program(line, &format!("env echo \"waiting $$\" >&2; head -n 1 {path} > /dev/null; exec REAL \"$@\""));
        Self { pipe }
    }

    /// Waits until the script waits, and tells its process id.
    pub(crate) fn wait(&self, line: &Line) -> u32 {
        let said = line.wait("a script that waits", |record| record.text.starts_with("waiting "));
        said.text["waiting ".len()..].parse().unwrap()
    }

    /// Lets it go on.
    pub(crate) fn open(&mut self) {
        self.pipe.write_all(b"go\n").unwrap();
    }
}
