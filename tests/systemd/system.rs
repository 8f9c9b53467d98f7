//! The versions of systemd that the tests boot, each with its root file system.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::shipped::script;

/// A version of systemd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum System {
    /// This machine's version.
    Host,
    /// Version 257, of Debian 13.
    Trixie,
    /// Version 262, of the next Debian.
    Forky,
}

/// Returns the root file system of a version of systemd. It is created on first use.
pub(crate) fn root(system: System) -> PathBuf {
    let suite = match system {
        System::Host => return PathBuf::from("/"),
        System::Trixie => "trixie",
        System::Forky => "forky",
    };
    let made = Command::new(script("root")).arg(suite).stderr(Stdio::inherit()).output().unwrap();
    assert!(made.status.success(), "no root file system for {suite}");
    PathBuf::from(String::from_utf8(made.stdout).unwrap().trim())
}
