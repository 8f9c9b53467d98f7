//! The errors that an operator or a developer can act on, and the exit code of each.
//!
//! An error holds its details as fields. Its text is one line and names the cause. Why a handoff
//! failed has its own type, [`HandoffFailure`]: the process that reports it keeps serving, so for
//! that process it is not an error.

mod exit;

use std::ffi::OsString;
use std::io;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::process;
use std::time::Duration;

use crate::text::{escaped, printable};

pub use exit::ExitStatus;
use exit::exit_of;

/// Why a generation cannot start or continue, or why a command failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address of a listener or an upstream is not valid.
    #[error("bad address {text:?}: {why}")]
    Address {
        /// The given text.
        text: String,
        /// What was expected.
        why: &'static str,
    },
    /// The name of a listener has characters that `LISTEN_FDNAMES` cannot carry.
    #[error("bad listener name {text:?}: {why}")]
    ListenerName {
        /// The given text.
        text: String,
        /// What was expected.
        why: &'static str,
    },
    /// Two listeners have the same name.
    #[error("two listeners are named {name:?}")]
    DuplicateName {
        /// The name.
        name: String,
    },
    /// Two listeners have the same address.
    #[error("two listeners have the address {address}")]
    DuplicateAddress {
        /// The address.
        address: String,
    },
    /// Two listeners cannot coexist, because the address of one covers the address of the other.
    #[error(
        "two listeners have overlapping addresses: {address} and {other} ([::] takes IPv4 as \
        well, tcp6:[::] does not)"
    )]
    OverlappingAddresses {
        /// The address of one listener.
        address: String,
        /// The address of the other listener.
        other: String,
    },
    /// An upstream of a proxy is its own listener, or leads back to it.
    #[error(
        "the upstream {upstream} leads back to the listener {listener}: connections would be \
        passed on without end"
    )]
    UpstreamLoop {
        /// The upstream.
        upstream: String,
        /// The address of the listener that the upstream leads to.
        listener: String,
    },
    /// A proxy has no upstreams.
    #[error("no upstream is given")]
    NoUpstream,
    /// A proxy has the same upstream twice.
    #[error("the upstream {address} is there twice")]
    DuplicateUpstream {
        /// The address of the upstream.
        address: String,
    },
    /// All upstreams of a proxy are host names, and none of them resolves. The predecessor keeps
    /// serving with the addresses that it has.
    #[error("no upstream of a proxy has an address: none of its host names resolves")]
    Unresolved,
    /// The value of a setting is out of range or invalid.
    #[error("bad {setting} {value}: {why}")]
    Setting {
        /// The name of the setting.
        setting: &'static str,
        /// The given value.
        value: String,
        /// What was expected.
        why: &'static str,
    },
    /// The configuration file has an error.
    #[error("{}:{line}:{column}: {what}", printable(file))]
    ConfigFile {
        /// The path, as it was given.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The column in characters, from 1.
        column: usize,
        /// What is wrong, and what was expected.
        what: String,
    },
    /// The configuration file cannot be read.
    #[error("{}: cannot read the configuration: {source}", printable(file))]
    ConfigFileUnreadable {
        /// The path, as it was given.
        file: PathBuf,
        /// The error of the kernel.
        source: io::Error,
    },
    /// No listener has the requested name.
    #[error("there is no listener named {name:?}")]
    NoSuchListener {
        /// The name.
        name: String,
    },
    /// Other threads were running when one thread was required: to change the environment
    /// (getenv(3), "ATTRIBUTES") or to fork off an init (fork(2)). Either
    /// [`crate::Inheritance::take`] was not called first, or a library has started a thread.
    #[error("{threads} threads run already ({}){}, and one is needed \
        here", escaped(names), preloaded_by(preloaded.as_ref()))]
    ThreadsRunning {
        /// How many threads run.
        threads: usize,
        /// The names of all threads, including the first.
        names: String,
        /// The value of `LD_PRELOAD`, if set: one of these libraries may have started the threads.
        preloaded: Option<OsString>,
    },
    /// [`crate::Inheritance::take`] was called a second time. A process can take its inheritance
    /// only once.
    #[error("the inheritance has been taken already")]
    AlreadyTaken,
    /// An environment variable of the handoff protocol has an invalid value.
    #[error("bad {variable}={value:?}: {why}")]
    Environment {
        /// The name of the variable.
        variable: &'static str,
        /// The value of the variable.
        value: String,
        /// What was expected.
        why: String,
    },
    /// An inherited file descriptor is not a listening socket.
    #[error("inherited descriptor {descriptor} ({name}) is {found}, not a listening stream socket")]
    NotAListener {
        /// The number of the file descriptor.
        descriptor: RawFd,
        /// The name of the socket, or `unnamed`.
        name: String,
        /// What the file descriptor is instead.
        found: String,
    },
    /// A listener cannot bind its address or listen on it.
    #[error("cannot listen on {address} ({name}): {source}")]
    Bind {
        /// The name of the listener.
        name: String,
        /// The address of the listener.
        address: String,
        /// The error of the kernel.
        source: io::Error,
    },
    /// The pid file cannot be written.
    #[error("cannot write the pid file {path:?}: {source}")]
    PidFile {
        /// The path of the pid file.
        path: PathBuf,
        /// The error of the kernel.
        source: io::Error,
    },
    /// The path of this program cannot be found, so it could not start a successor.
    #[error("cannot find the path of this program: {source}")]
    Program {
        /// The error of the kernel.
        source: io::Error,
    },
    /// The inheritance from the predecessor is invalid or uses an unknown version of the protocol.
    #[error("cannot take over from the predecessor: {why}")]
    Predecessor {
        /// What is wrong.
        why: String,
    },
    /// No daemon answers on the control socket, or the socket does not exist.
    #[error("nobody answers on {}: {source}", printable(path))]
    NobodyAnswers {
        /// The path of the control socket.
        path: PathBuf,
        /// The error of the kernel.
        source: io::Error,
    },
    /// A reload failed because the new generation never became ready. The old one keeps serving.
    #[error("the new generation did not take over: {reason}")]
    HandoffFailed {
        /// Why the reload failed.
        reason: String,
    },
    /// A reload failed after the new generation had become ready: it was rolled back. The old one
    /// keeps serving.
    #[error("the new generation was rolled back: {reason}")]
    RolledBack {
        /// Why the new generation was rolled back.
        reason: String,
    },
    /// The request is not possible now, or did not finish within the given time.
    #[error("try again: {reason}")]
    TryAgain {
        /// Why.
        reason: String,
    },
    /// The daemon refuses this request or this user.
    #[error("refused: {reason}")]
    Denied {
        /// Why.
        reason: String,
    },
    /// A systemd unit has settings that break a handoff. The command has already printed each of
    /// them.
    #[error("{unit} has {count} settings that break a handoff")]
    Unsound {
        /// The name of the unit.
        unit: String,
        /// How many settings break a handoff.
        count: usize,
    },
    /// The output of a command cannot be written to standard output, or to a file.
    #[error("cannot write {what}: {source}")]
    Output {
        /// Which output is lost.
        what: String,
        /// The error of the kernel.
        source: io::Error,
    },
    /// A serving thread or an accept loop has panicked. Its connections are lost.
    #[error("{what} has died: {reason}")]
    Died {
        /// The name of the thread or the loop.
        what: String,
        /// The message of the panic.
        reason: String,
    },
    /// The accept loops were started but did not run in time.
    #[error("the accept loops did not run within {}", Seconds(*limit))]
    NotAccepting {
        /// The limit: `--ready-timeout`.
        limit: Duration,
    },
    /// A system call failed, and no setting can fix it.
    #[error("cannot {doing}: {source}")]
    System {
        /// What the system call was for.
        doing: &'static str,
        /// The error of the kernel.
        source: io::Error,
    },
}

impl Error {
    /// Returns the exit code of a process that ends with this error.
    #[must_use]
    pub fn exit(&self) -> ExitStatus {
        match self {
            Self::Address { .. }
            | Self::ListenerName { .. }
            | Self::DuplicateName { .. }
            | Self::DuplicateAddress { .. }
            | Self::OverlappingAddresses { .. }
            | Self::UpstreamLoop { .. }
            | Self::NoUpstream
            | Self::DuplicateUpstream { .. }
            | Self::Setting { .. } => ExitStatus::Usage,
            Self::ConfigFile { .. }
            | Self::NoSuchListener { .. }
            | Self::Environment { .. }
            | Self::NotAListener { .. }
            | Self::ThreadsRunning { .. }
            | Self::Unsound { .. }
            | Self::Predecessor { .. } => ExitStatus::Configuration,
            Self::Bind { source, .. }
            | Self::PidFile { source, .. }
            | Self::ConfigFileUnreadable { source, .. } => exit_of(source),
            Self::NobodyAnswers { .. } => ExitStatus::Unavailable,
            Self::Output { .. } => ExitStatus::Output,
            Self::HandoffFailed { .. } => ExitStatus::HandoffFailed,
            Self::RolledBack { .. } => ExitStatus::RolledBack,
            Self::TryAgain { .. } | Self::Unresolved => ExitStatus::TryAgain,
            Self::Denied { .. } => ExitStatus::Denied,
            Self::AlreadyTaken
            | Self::Program { .. }
            | Self::Died { .. }
            | Self::NotAccepting { .. }
            | Self::System { .. } => ExitStatus::System,
        }
    }

    /// Returns a function for `map_err` that wraps the error of a system call. `doing` says what
    /// the call was for.
    pub(crate) fn system<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::System { doing, source: source.into() }
    }
}

/// Why a successor did not take over. The predecessor keeps serving.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandoffFailure {
    /// `fork` failed, or the channel could not be created.
    #[error("cannot start a process: {source}")]
    Fork {
        /// The error of the kernel.
        source: io::Error,
    },
    /// The program could not be executed.
    #[error("cannot execute {}: {source}", printable(program))]
    Exec {
        /// The path by which this process was started.
        program: PathBuf,
        /// The error of the kernel.
        source: io::Error,
    },
    /// The successor reported that it cannot serve.
    #[error("the successor says: {reason}")]
    Refused {
        /// The reason, as the successor gave it.
        reason: String,
    },
    /// The successor ended before it was ready, without reporting a reason.
    #[error("the successor ended before it was ready{status}")]
    EndedEarly {
        /// How the successor ended.
        status: EndStatus,
    },
    /// The successor was not ready in time and was killed.
    #[error("the successor was not ready within {}", Seconds(*limit))]
    TimedOut {
        /// The limit: `--ready-timeout`.
        limit: Duration,
    },
    /// The handoff took longer than the requested time limit.
    #[error("it was not done within {}, as was asked", Seconds(*limit))]
    OutOfTime {
        /// The requested limit.
        limit: Duration,
    },
    /// The successor was not started: one more generation would exceed the maximum, and the
    /// connections of the oldest generation were not taken over in time.
    #[error("an older generation's connections were not taken over within {}", Seconds(*limit))]
    NotStarted {
        /// The limit: `--drain-timeout`.
        limit: Duration,
    },
    /// The successor ended after it was ready, without reporting a reason.
    #[error("the successor ended after it was ready{status}")]
    EndedLate {
        /// How the successor ended.
        status: EndStatus,
    },
    /// The successor was told to stop while it was on probation.
    #[error("the successor was told to stop while on probation")]
    ToldToStop,
    /// The successor sent an invalid message.
    #[error("the successor sent what is not a message: {why}")]
    Garbage {
        /// What is wrong with the message.
        why: String,
    },
}

/// Returns the value of `LD_PRELOAD` as part of a sentence.
fn preloaded_by(libraries: Option<&OsString>) -> String {
    let named = |libraries| format!(" with LD_PRELOAD={}", printable(Path::new(libraries)));
    libraries.map(named).unwrap_or_default()
}

/// How a process ended, if known. Printed at the end of a sentence.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EndStatus(pub(crate) Option<process::ExitStatus>);

impl std::fmt::Display for EndStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.map_or(Ok(()), |status| write!(f, " ({status})"))
    }
}

/// A duration printed in seconds, as the flags take it.
struct Seconds(Duration);

impl std::fmt::Display for Seconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} s", self.0.as_secs_f64())
    }
}
