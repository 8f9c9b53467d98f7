//! Puts other programs in the place of the daemon, for the next handoff to find.
//!
//! All that is put there is written by another process and renamed into place: the test has many
//! threads, and a descriptor open for writing that one of them has forked with would make the
//! kernel refuse the exec (ETXTBSY).

use std::fs;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;

use super::{Event, Line, Record};

/// The daemon.
pub(crate) const REAL: &str = env!("CARGO_BIN_EXE_handoffd");

/// Where cargo puts an example that it builds for the tests.
pub(crate) fn example(name: &str) -> PathBuf {
    Path::new(REAL).parent().unwrap().join("examples").join(name)
}

/// What every script opens with. `say FORMAT` sends the predecessor one packet: bash itself would
/// write line by line.
const PRELUDE: &str = r#"ulimit -c 0
fd=${HANDOFFD_CHANNEL#*:}
say() { env printf "$@" >&"$fd"; }
"#;

/// Puts a bash script at `FOLDER/handoffd`. In it `$REAL` is the daemon, `$FOLDER` the folder.
pub(crate) fn install(folder: &Path, script: &str) {
    let text =
        format!("#!/bin/bash\nREAL='{REAL}'\nFOLDER='{}'\n{PRELUDE}{script}\n", folder.display());
    install_file(folder, text.as_bytes(), "755");
}

fn install_file(folder: &Path, content: &[u8], mode: &str) {
    let draft = folder.join("draft");
    let mut install = Command::new("install");
    install.args(["-m", mode, "/dev/stdin"]).arg(&draft).stdin(Stdio::piped());
    let mut install = install.spawn().expect("install, of coreutils, is needed");
    install.stdin.take().unwrap().write_all(content).unwrap();
    assert!(install.wait().unwrap().success());
    fs::rename(draft, folder.join("handoffd")).unwrap();
}

impl Line {
    /// Puts a bash script in the place of the program. In it `$REAL` is the daemon, `$FOLDER` the
    /// line's folder.
    pub(crate) fn put_script(&self, script: &str) {
        install(self.folder(), script);
    }

    /// Puts a file in the place of the program.
    pub(crate) fn put_file(&self, content: &[u8], mode: &str) {
        install_file(self.folder(), content, mode);
    }

    /// Puts a link in the place of the program.
    pub(crate) fn put_link(&self, target: impl AsRef<Path>) {
        let draft = self.folder().join("draft");
        symlink(target, &draft).unwrap();
        fs::rename(draft, self.program()).unwrap();
    }

    /// Puts the daemon back in its place.
    pub(crate) fn put_real(&self) {
        self.put_link(REAL);
    }

    /// Has the next generation start with these arguments instead of the line's.
    pub(crate) fn successor_gets(&self, arguments: &str) {
        self.put_script(&format!("exec \"$REAL\" --log debug {arguments}"));
    }

    /// Has `generation` try to hand over, and waits until it has said why it could not.
    pub(crate) fn fail_to_hand_over_from(&self, generation: u64) -> Record {
        let mark = self.mark();
        self.signal(generation, Signal::SIGHUP);
        self.wait_since(mark, "a failed handoff", |record| {
            record.is(generation, Event::HandoffFailed)
        })
    }
}

/// Something that a script waits for: [`Gate::PASS`] in it goes on when the test has opened the
/// gate.
#[derive(Debug)]
pub(crate) struct Gate(File);

impl Gate {
    /// What a script says to wait at the gate. That it has come there it says in the log, with its
    /// process id.
    ///
    /// Programs, not words of the shell: for a redirection of its own the shell would hold a
    /// descriptor more.
    pub(crate) const PASS: &'static str =
        r#"env echo "at the gate $$" >&2; env sh -c 'read -r _ <"$1"' sh "$FOLDER/gate""#;

    /// A closed gate in the line's folder.
    pub(crate) fn new(line: &Line) -> Self {
        let path = line.folder().join("gate");
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
        // For reading too, fifo(7): neither this nor a script's opening waits for the other.
        Self(File::options().read(true).write(true).open(path).unwrap())
    }

    /// Holds up the next successor, before it is the daemon. It will be started with `arguments`;
    /// in a shell's words, `"$@"` are its predecessor's.
    pub(crate) fn before_successor(line: &Line, arguments: &str) -> Self {
        let gate = Self::new(line);
        line.put_script(&format!("{}; exec \"$REAL\" {arguments}", Self::PASS));
        gate
    }

    /// Waits until a script is there, and tells its process id.
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
