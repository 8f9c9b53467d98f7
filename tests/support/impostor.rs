//! Replaces the daemon's binary with other programs, which the next handoff then starts.
//!
//! Another process writes each file, and a rename puts it in place. The test has many threads: a
//! process that one of them forks could inherit a descriptor open for writing. The kernel would
//! then refuse to execute the file (ETXTBSY).

use std::fs;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;

use super::{Event, Line, Record};

/// The path of the daemon's binary.
pub(crate) const REAL: &str = env!("CARGO_BIN_EXE_handoffd");

/// Returns the path of an example that cargo builds for the tests.
pub(crate) fn example(name: &str) -> PathBuf {
    Path::new(REAL).parent().unwrap().join("examples").join(name)
}

/// The beginning of every script. `say FORMAT` sends the predecessor one packet; bash's own
/// `printf` would send each line separately.
const PRELUDE: &str = r#"ulimit -c 0
fd=${HANDOFFD_CHANNEL#*:}
say() { env printf "$@" >&"$fd"; }
"#;

/// Installs a bash script as `FOLDER/handoffd`. In the script, `$REAL` is the daemon and `$FOLDER`
/// the folder.
pub(crate) fn install(folder: &Path, script: &str) {
    let text =
        format!("#!/bin/bash\nREAL='{REAL}'\nFOLDER='{}'\n{PRELUDE}{script}\n", folder.display());
    install_file(folder, text.as_bytes(), "755");
}

fn install_file(folder: &Path, content: &[u8], mode: &str) {
    let draft = folder.join("draft");
    let mut install = Command::new("install");
    install.args(["-m", mode, "/dev/stdin"]).arg(&draft).stdin(Stdio::piped());
    let mut install = install.spawn().expect("the tests need `install` from coreutils");
    install.stdin.take().unwrap().write_all(content).unwrap();
    assert!(install.wait().unwrap().success());
    fs::rename(draft, folder.join("handoffd")).unwrap();
}

impl Line {
    /// Replaces the program with a bash script. In it, `$REAL` is the daemon and `$FOLDER` the
    /// lineage's folder.
    pub(crate) fn put_script(&self, script: &str) {
        install(self.folder(), script);
    }

    /// Replaces the program with a file of this content and mode.
    pub(crate) fn put_file(&self, content: &[u8], mode: &str) {
        install_file(self.folder(), content, mode);
    }

    /// Replaces the program with a symbolic link to `target`.
    pub(crate) fn put_link(&self, target: impl AsRef<Path>) {
        let draft = self.folder().join("draft");
        symlink(target, &draft).unwrap();
        fs::rename(draft, self.program()).unwrap();
    }

    /// Restores the link to the daemon.
    pub(crate) fn put_real(&self) {
        self.put_link(REAL);
    }

    /// Makes the next generation start with these arguments instead of the lineage's.
    pub(crate) fn successor_gets(&self, arguments: &str) {
        self.put_script(&format!("exec \"$REAL\" --log debug {arguments}"));
    }

    /// Triggers a handoff from `generation`, waits until it fails, and returns the record with the
    /// reason.
    pub(crate) fn fail_to_hand_over_from(&self, generation: u64) -> Record {
        let mark = self.mark();
        self.signal(generation, Signal::SIGHUP);
        self.wait_since(mark, "a failed handoff", |record| {
            record.is(generation, Event::HandoffFailed)
        })
    }
}

/// A gate in a script: the script waits at [`Gate::PASS`] until the test opens the gate.
#[derive(Debug)]
pub(crate) struct Gate(File);

impl Gate {
    /// Shell code that waits at the gate. It first logs its arrival with its process id.
    ///
    /// It uses programs instead of builtins: the shell would keep an extra descriptor open for its
    /// own redirection.
    pub(crate) const PASS: &'static str =
        r#"env echo "at the gate $$" >&2; env sh -c 'read -r _ <"$1"' sh "$FOLDER/gate""#;

    /// Creates a closed gate in the lineage's folder.
    pub(crate) fn new(line: &Line) -> Self {
        let path = line.folder().join("gate");
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
        // Also open for reading, fifo(7): neither this open nor the script's waits for the other
        // end.
        Self(File::options().read(true).write(true).open(path).unwrap())
    }

    /// Stops the next successor at a new gate before it executes the daemon with `arguments`. In
    /// them, `"$@"` stands for the arguments from its predecessor.
    pub(crate) fn before_successor(line: &Line, arguments: &str) -> Self {
        let gate = Self::new(line);
        line.put_script(&format!("{}; exec \"$REAL\" {arguments}", Self::PASS));
        gate
    }

    /// Waits until a script is at the gate, and returns its process id.
    pub(crate) fn wait(&self, line: &Line) -> u32 {
        let said =
            line.wait("a script at the gate", |record| record.text.starts_with("at the gate "));
        said.text["at the gate ".len()..].parse().unwrap()
    }

    /// Lets one script pass.
    pub(crate) fn open(&mut self) {
        self.0.write_all(b"\n").unwrap();
    }
}
