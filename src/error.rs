//! Names each thing that an operator or a developer can act on, one variant each, and the exit code
//! that it ends in.
//!
//! Errors are facts with their particulars as fields; the text is one line and names the thing that
//! was wrong. Why a handoff failed is a fact of its own, [`HandoffFailure`], for it is not an error
//! of the process that reports it: that one goes on serving.

mod exit;

use std::ffi::OsString;
use std::io;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use crate::text::{escaped, printable};

pub use exit::Exit;
use exit::exit_of;

/// Why a generation cannot start or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A listener's address does not parse.
    #[error("bad address {text:?}: {why}")]
    Address {
        /// What was given.
        text: String,
        /// What was expected.
        why: &'static str,
    },
    /// A listener's name holds what `LISTEN_FDNAMES` cannot carry.
    #[error("bad listener name {text:?}: {why}")]
    ListenerName {
        /// What was given.
        text: String,
        /// What was expected.
        why: &'static str,
    },
    /// Two listeners were given one name.
    #[error("two listeners are named {name:?}")]
    DuplicateName {
        /// The name.
        name: String,
    },
    /// Two listeners were given one address.
    #[error("two listeners have the address {address}")]
    DuplicateAddress {
        /// The address.
        address: String,
    },
    /// Two listeners cannot listen beside each other: the address of one is part of the other's.
    #[error(
        "two listeners have overlapping addresses: {address} and {other} ([::] takes IPv4 as well, tcp6:[::] does not)"
    )]
    OverlappingAddresses {
        /// One of them.
        address: String,
        /// The other.
        other: String,
    },
    /// An upstream of a proxy is its own listener, or leads back to it.
    #[error(
        "the upstream {upstream} leads back to the listener {listener}: connections would be passed on without end"
    )]
    UpstreamLoop {
        /// The upstream.
        upstream: String,
        /// The address that the upstream leads to.
        listener: String,
    },
    /// A proxy has nowhere to send its clients.
    #[error("no upstream is given")]
    NoUpstream,
    /// A proxy was given one upstream twice.
    #[error("the upstream {address} is there twice")]
    DuplicateUpstream {
        /// The address.
        address: String,
    },
    /// A proxy's upstreams are host names, and none of them resolves. The predecessor serves on,
    /// with the addresses that it has.
    #[error("no upstream of a proxy has an address: none of its host names resolves")]
    Unresolved,
    /// A setting is outside of what makes sense.
    #[error("bad {setting} {value}: {why}")]
    Setting {
        /// Its name.
        setting: &'static str,
        /// What was given.
        value: String,
        /// What was expected.
        why: &'static str,
    },
    /// The configuration file says what cannot be.
    #[error("{}:{line}:{column}: {what}", printable(file))]
    ConfigFile {
        /// Its path, as it was given.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The character in the line, from 1.
        column: usize,
        /// What is wrong there, and what was expected.
        what: String,
    },
    /// The configuration file cannot be read.
    #[error("{}: cannot read the configuration: {source}", printable(file))]
    ConfigFileUnreadable {
        /// Its path, as it was given.
        file: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// A listener was asked for by a name that no listener has.
    #[error("there is no listener named {name:?}")]
    NoSuchListener {
        /// The name.
        name: String,
    },
    /// Other threads were running when the environment was to be changed (getenv(3), "ATTRIBUTES")
    /// or an init to be split off (fork(2)): [`crate::Inheritance::take`] was not called first, or
    /// a library has started a thread.
    #[error("{threads} threads run already ({}){}, and one is needed here", escaped(names), preloaded_by(preloaded.as_ref()))]
    ThreadsRunning {
        /// How many there are.
        threads: usize,
        /// Their names, the first thread's included.
        names: String,
        /// `LD_PRELOAD`, if it is set: a library that it names may have started them.
        preloaded: Option<OsString>,
    },
    /// [`crate::Inheritance::take`] was called a second time: what a process is born with can be
    /// taken once.
    #[error("the inheritance has been taken already")]
    AlreadyTaken,
    /// A variable by which sockets are passed holds what it cannot mean.
    #[error("bad {variable}={value:?}: {why}")]
    Environment {
        /// The variable.
        variable: &'static str,
        /// What it holds.
        value: String,
        /// What was expected.
        why: String,
    },
    /// A descriptor that was passed in cannot be listened on.
    #[error("inherited descriptor {descriptor} ({name}) is {found}, not a listening stream socket")]
    NotAListener {
        /// Its number.
        descriptor: RawFd,
        /// Its name, or `unnamed`.
        name: String,
        /// What it is instead.
        found: String,
    },
    /// An address cannot be bound or listened on.
    #[error("cannot listen on {address} ({name}): {source}")]
    Bind {
        /// The listener's name.
        name: String,
        /// Its address.
        address: String,
        /// What the kernel says.
        source: io::Error,
    },
    /// The pid file cannot be written.
    #[error("cannot write the pid file {path:?}: {source}")]
    PidFile {
        /// Its path.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// The program's own path cannot be found, so that no successor could be started.
    #[error("cannot find the path of this program: {source}")]
    Program {
        /// What the kernel says.
        source: io::Error,
    },
    /// The predecessor's channel is not one, or it speaks what is not understood here.
    #[error("cannot take over from the predecessor: {why}")]
    Predecessor {
        /// What is wrong with it.
        why: String,
    },
    /// Nobody listens on the operator's socket, or there is none.
    #[error("nobody answers on {}: {source}", printable(path))]
    NobodyAnswers {
        /// Its path.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// A reload was asked for, and the new generation was never ready. The old one serves on.
    #[error("the new generation did not take over: {reason}")]
    HandoffFailed {
        /// Why not.
        reason: String,
    },
    /// A reload was asked for, and the new generation was ready and taken back. The old one serves
    /// on.
    #[error("the new generation was rolled back: {reason}")]
    RolledBack {
        /// Why.
        reason: String,
    },
    /// Not now, or not in the time that was given.
    #[error("try again: {reason}")]
    TryAgain {
        /// Why.
        reason: String,
    },
    /// Whoever listens there does not take this request from this user.
    #[error("refused: {reason}")]
    Denied {
        /// Why.
        reason: String,
    },
    /// A unit has settings that break a handoff. Each has been said.
    #[error("{unit} has {count} settings that break a handoff")]
    Unsound {
        /// Its name.
        unit: String,
        /// How many.
        count: usize,
    },
    /// What a command has to say cannot be written to standard output.
    #[error("cannot write {what}: {source}")]
    Output {
        /// What is lost.
        what: &'static str,
        /// What the kernel says.
        source: io::Error,
    },
    /// A thread that serves, or an accept loop, has panicked. What it served is lost with it.
    #[error("{what} has died: {reason}")]
    Died {
        /// The thread or the loop.
        what: String,
        /// What the panic says.
        reason: String,
    },
    /// The accept loops were started and have not run.
    #[error("the accept loops did not run within {}", Seconds(*limit))]
    NotAccepting {
        /// `--ready-timeout`.
        limit: Duration,
    },
    /// A system call failed that none of our settings can make work.
    #[error("cannot {doing}: {source}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// What the kernel says.
        source: io::Error,
    },
}

impl Error {
    /// The exit code that a process ends with because of this.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Address { .. }
            | Self::ListenerName { .. }
            | Self::DuplicateName { .. }
            | Self::DuplicateAddress { .. }
            | Self::OverlappingAddresses { .. }
            | Self::UpstreamLoop { .. }
            | Self::NoUpstream
            | Self::DuplicateUpstream { .. }
            | Self::Setting { .. } => Exit::Usage,
            Self::ConfigFile { .. }
            | Self::NoSuchListener { .. }
            | Self::Environment { .. }
            | Self::NotAListener { .. }
            | Self::ThreadsRunning { .. }
            | Self::Unsound { .. }
            | Self::Predecessor { .. } => Exit::Configuration,
            Self::Bind { source, .. }
            | Self::PidFile { source, .. }
            | Self::ConfigFileUnreadable { source, .. } => exit_of(source),
            Self::NobodyAnswers { .. } => Exit::Unavailable,
            Self::Output { .. } => Exit::Output,
            Self::HandoffFailed { .. } => Exit::HandoffFailed,
            Self::RolledBack { .. } => Exit::RolledBack,
            Self::TryAgain { .. } | Self::Unresolved => Exit::TryAgain,
            Self::Denied { .. } => Exit::Denied,
            Self::AlreadyTaken
            | Self::Program { .. }
            | Self::Died { .. }
            | Self::NotAccepting { .. }
            | Self::System { .. } => Exit::System,
        }
    }

    /// For `map_err`: a system call that failed while `doing` something.
    pub(crate) fn system<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::System { doing, source: source.into() }
    }
}

/// Why a successor did not take over. The predecessor serves on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandoffFailure {
    /// `fork` failed, or the channel could not be made.
    #[error("cannot start a process: {source}")]
    Fork {
        /// What the kernel says.
        source: io::Error,
    },
    /// What lies at the program's path cannot be executed.
    #[error("cannot execute {}: {source}", printable(program))]
    Exec {
        /// The path by which this process was started.
        program: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// The successor said why it cannot serve.
    #[error("the successor says: {reason}")]
    Refused {
        /// Its own words.
        reason: String,
    },
    /// It ended before it was ready, without a word.
    #[error("the successor ended before it was ready{status}")]
    EndedEarly {
        /// How it ended.
        status: EndStatus,
    },
    /// It was not ready in time, and was killed.
    #[error("the successor was not ready within {}", Seconds(*limit))]
    TimedOut {
        /// `--ready-timeout`.
        limit: Duration,
    },
    /// Whoever asked for the handoff gave it less time than it took.
    #[error("it was not done within {}, as was asked", Seconds(*limit))]
    OutOfTime {
        /// What was asked for.
        limit: Duration,
    },
    /// It was not started, for with it there would have been too many generations: connections of
    /// the oldest had not been taken over.
    #[error("an older generation's connections were not taken over within {}", Seconds(*limit))]
    NotStarted {
        /// `--drain-timeout`.
        limit: Duration,
    },
    /// It ended after it was ready, without a word.
    #[error("the successor ended after it was ready{status}")]
    EndedLate {
        /// How it ended.
        status: EndStatus,
    },
    /// It was told to stop while it was on probation.
    #[error("the successor was told to stop while on probation")]
    ToldToStop,
    /// It sent what is not a message.
    #[error("the successor sent what is not a message: {why}")]
    Garbage {
        /// What is wrong with it.
        why: String,
    },
}

/// Names the libraries that were loaded before the program, as a part of a sentence.
fn preloaded_by(libraries: Option<&OsString>) -> String {
    let named = |libraries| format!(" with LD_PRELOAD={}", printable(Path::new(libraries)));
    libraries.map(named).unwrap_or_default()
}

/// How a process ended, if that is known. Printed as the end of a sentence.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EndStatus(pub(crate) Option<ExitStatus>);

impl std::fmt::Display for EndStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.map_or(Ok(()), |status| write!(f, " ({status})"))
    }
}

/// Prints a duration as seconds, as the flags take it.
struct Seconds(Duration);

impl std::fmt::Display for Seconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} s", self.0.as_secs_f64())
    }
}
