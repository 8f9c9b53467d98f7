//! Puts a script in the daemon's place: one that waits at a gate, or one that sets up what the daemon runs in.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::stat::Mode;

use super::Line;

/// What a successor says when it is there.
const AT_THE_GATE: &str = "at the gate";

/// Puts a shell script at `program`, in place of what is there. `$DAEMON` in it is the real daemon.
///
/// Another process writes it: a file that this one held open for writing while some other test forks could not be
/// executed (`ETXTBSY`).
pub(crate) fn install(program: &Path, script: &str) {
    let daemon = env!("CARGO_BIN_EXE_handoffd");
    let text = format!("#!/bin/sh\nDAEMON={daemon}\n{script}\n");
    let write = r#"printf %s "$2" >"$1.new" && chmod +x "$1.new" && mv "$1.new" "$1""#;
    let status = Command::new("sh").args(["-c", write, "sh"]).arg(program).arg(text).status().unwrap();
    assert!(status.success(), "{status}");
}

/// Holds up the next successor, before it is the daemon.
#[derive(Debug)]
pub(crate) struct Gate {
    fifo: PathBuf,
}

impl Gate {
    /// Closes it. The successor will be started with `arguments`; in a shell's words, `"$@"` are its predecessor's.
    pub(crate) fn close(line: &Line, arguments: &str) -> Self {
        let fifo = line.folder().join("gate");
        nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        install(
            &line.program(),
            &format!("echo {AT_THE_GATE} >&2; read -r go <{} && exec \"$DAEMON\" {arguments}", fifo.display()),
        );
        Self { fifo }
    }

    /// Waits until the successor is there.
    pub(crate) fn wait(&self, line: &Line) {
        line.wait(AT_THE_GATE, |record| record.text == AT_THE_GATE);
    }

    /// Lets the successor go on.
    pub(crate) fn open(self) {
        // Opening waits for the successor to read. A test that has failed before does not wait for that.
        std::thread::spawn(move || fs::write(self.fifo, "go\n"));
    }
}
