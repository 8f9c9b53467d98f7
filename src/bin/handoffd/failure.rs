//! The reasons why a command, or the start of the daemon, can fail.
//!
//! Each variant has a one-line message and an exit code. This module defines only the errors of the
//! commands and of the configuration file, because the library has its own errors.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use handoffd::control::ControlError;
use handoffd::text::printable;
use handoffd::{Error, ExitStatus};

/// The reason why a command or the start of the daemon has failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The daemon cannot start or continue.
    #[error(transparent)]
    Daemon(#[from] Error),
    /// The daemon cannot do what an operator has requested.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The command line is wrong.
    #[error("{0}")]
    Usage(String),
    /// The configuration file contains a mistake.
    #[error("{}:{line}:{column}: {what}", printable(file))]
    ConfigFile {
        /// The path of the configuration file, as it was given.
        file: PathBuf,
        /// The line of the mistake. The first line is 1.
        line: usize,
        /// The column of the mistake in characters. The first column is 1.
        column: usize,
        /// A description of the mistake and of what was expected.
        what: String,
    },
    /// The configuration file cannot be read.
    #[error("{}: cannot read the configuration: {source}", printable(file))]
    ConfigFileUnreadable {
        /// The path of the configuration file, as it was given.
        file: PathBuf,
        /// The error that the kernel has returned.
        source: io::Error,
    },
    /// All upstreams of a proxy are host names, and none of these names resolves. If there is a
    /// predecessor, it keeps serving with the addresses that it knows.
    #[error("a proxy has no upstream to connect to: none of its host names resolves")]
    Unresolved,
    /// A systemd unit has settings that break a handoff. The `doctor` command has already printed
    /// each of these settings.
    #[error("{unit} has {count} settings that break a handoff")]
    Unsound {
        /// The name of the systemd unit.
        unit: String,
        /// How many settings of the unit break a handoff.
        count: usize,
    },
    /// The output of a command cannot be written to standard output or to a file.
    #[error("cannot write {what}: {source}")]
    Output {
        /// The name of the output that could not be written.
        what: String,
        /// The error that the kernel has returned.
        source: io::Error,
    },
    /// A command needs something from the operating system that is not available.
    #[error("cannot {doing}: {source}")]
    System {
        /// What the command was doing, as a part of the error message.
        doing: &'static str,
        /// The error that the kernel or another program has returned.
        source: io::Error,
    },
}

impl Failure {
    /// Returns the exit code of the process that ends because of this failure.
    pub(crate) fn exit_code(&self) -> ExitCode {
        if let Self::Daemon(Error::ProgramFailed { code: Some(code), .. }) = self {
            return ExitCode::from(*code);
        }
        ExitCode::from(self.exit() as u8)
    }

    fn exit(&self) -> ExitStatus {
        match self {
            Self::Daemon(error) => error.exit(),
            Self::Control(error) => error.exit(),
            Self::Usage(_) => ExitStatus::Usage,
            Self::ConfigFile { .. } | Self::Unsound { .. } => ExitStatus::Configuration,
            Self::ConfigFileUnreadable { source, .. } => ExitStatus::of_io(source),
            Self::Unresolved => ExitStatus::TryAgain,
            Self::Output { .. } => ExitStatus::Output,
            Self::System { .. } => ExitStatus::System,
        }
    }
}
