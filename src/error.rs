//! This module defines the errors that keep a generation (a process of the service) from starting
//! or continuing, and the exit code for each error.
//!
//! An error stores its details in fields. Its text is one line and includes the underlying error.
//! Clients of the control socket use a separate error type, [`crate::control::ControlError`]. A
//! failed handoff has a separate type too, [`HandoffFailure`], because the process that reports the
//! failure keeps serving.

mod exit;
mod handoff;
mod phrases;

use std::ffi::OsString;
use std::io;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Duration;

use self::phrases::{Seconds, existing_names, preloaded_by};
use crate::text::{escaped, one_line};

pub use exit::ExitStatus;
pub(crate) use handoff::{EndStatus, HandoffFailure};

/// The reason why a generation cannot start or continue.
///
/// `Debug` shows the same text as `Display`, because Rust prints the error of `main` with `Debug`.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address of a listener or an upstream is not valid.
    #[error("bad address {text:?}: {why}")]
    Address {
        /// The text that was given as an address.
        text: String,
        /// A description of a valid address.
        why: &'static str,
    },
    /// The name of a listener is not valid, for example because `LISTEN_FDNAMES` cannot contain it.
    #[error("bad listener name {text:?}: {why}")]
    ListenerName {
        /// The text that was given as a name.
        text: String,
        /// A description of a valid name.
        why: &'static str,
    },
    /// Two listeners of the configuration have the same name.
    #[error("two listeners are named {name:?}")]
    DuplicateName {
        /// The name that both listeners have.
        name: String,
    },
    /// Two listeners of the configuration have the same address.
    #[error("two listeners have the address {address}")]
    DuplicateAddress {
        /// The address that both listeners have.
        address: String,
    },
    /// Two listeners cannot listen at the same time, because one address includes the other.
    #[error(
        "two listeners have overlapping addresses: {address} and {other} ([::] also accepts IPv4, \
        tcp6:[::] does not)"
    )]
    OverlappingAddresses {
        /// The address of one of the two listeners.
        address: String,
        /// The address of the other listener.
        other: String,
    },
    /// The configuration gives a proxy no upstreams.
    #[error("no upstream is given")]
    NoUpstream,
    /// The configuration gives a proxy the same upstream twice.
    #[error("the upstream {address} is given twice")]
    DuplicateUpstream {
        /// The address of the upstream that is given twice.
        address: String,
    },
    /// The value of a setting is out of range or otherwise invalid.
    #[error("bad {setting} {value}: {why}")]
    Setting {
        /// The name of the setting.
        setting: &'static str,
        /// The value that was given for the setting.
        value: String,
        /// A description of a valid value.
        why: &'static str,
    },
    /// A server has requested a listener by name, but no listener has that name.
    #[error("there is no listener named {name:?}{}", existing_names(existing))]
    NoSuchListener {
        /// The requested name.
        name: String,
        /// The names of all listeners.
        existing: Vec<String>,
    },
    /// A server has requested a copy of a listener's socket, but several sockets have the name of
    /// this listener. For example, systemd gives all sockets of one unit the same name, unless the
    /// unit sets `FileDescriptorName=`.
    #[error(
        "cannot tell which socket to use: {count} sockets are named {name:?}, but each needs a \
        different name"
    )]
    SeveralSockets {
        /// The requested name.
        name: String,
        /// How many sockets of the requested kind have this name.
        count: usize,
    },
    /// A server has requested a TCP socket, but the listener has a Unix socket, or the reverse.
    #[error("the listener {name:?} is not a {kind} socket: it listens on {address}")]
    ListenerKind {
        /// The requested name.
        name: String,
        /// The requested kind, `TCP` or `Unix`.
        kind: &'static str,
        /// The address of the listener.
        address: String,
    },
    /// A server has requested the socket of a listener, but this process has already closed the
    /// socket. A successor has taken over and does not use the listener.
    #[error("the listener {name:?} is closed, because the new process does not use it")]
    ListenerClosed {
        /// The requested name.
        name: String,
    },
    /// Several threads are running where only one is allowed. Only a single-threaded process can
    /// safely change the environment (see getenv(3), "ATTRIBUTES") or fork an init process (see
    /// fork(2)). Either the program called [`crate::Inheritance::take`] too late, or a library has
    /// started a thread. `#[tokio::main]` starts threads before `main` begins, so do not use it.
    #[error("the process has {threads} threads ({}){}, but may have only one when it takes its \
        inherited sockets: do not use #[tokio::main]", escaped(names),
        preloaded_by(preloaded.as_ref()))]
    ThreadsRunning {
        /// The number of threads in the process.
        threads: usize,
        /// The names of all threads, including the first thread.
        names: String,
        /// The value of `LD_PRELOAD`, if it is set. A library in this list may have started the
        /// threads.
        preloaded: Option<OsString>,
    },
    /// The program has called [`crate::Inheritance::take`] a second time. A process can take the
    /// sockets from its parent or predecessor only once.
    #[error("the inherited sockets have already been taken: a process can take them only once")]
    AlreadyTaken,
    /// An environment variable that this process has received at its start has an invalid value.
    #[error("bad {variable}={value:?}: {why}")]
    Environment {
        /// The name of the environment variable.
        variable: &'static str,
        /// The value of the environment variable.
        value: String,
        /// A description of a valid value.
        why: String,
    },
    /// An inherited file descriptor is not a listening socket.
    #[error("inherited descriptor {descriptor} ({name}) is {found}, not a listening stream socket")]
    NotAListener {
        /// The number of the inherited file descriptor.
        descriptor: RawFd,
        /// The name under which the socket was passed in, or `unnamed`.
        name: String,
        /// A description of what the file descriptor refers to instead of a listening socket.
        found: String,
    },
    /// A listener cannot bind to its address or listen on it.
    #[error("cannot listen on {address} ({name}): {source}")]
    Bind {
        /// The name of the listener.
        name: String,
        /// The address of the listener.
        address: String,
        /// The error that the kernel has returned.
        source: io::Error,
    },
    /// The pid file cannot be written.
    #[error("cannot write the pid file {path:?}: {source}")]
    PidFile {
        /// The path of the pid file.
        path: PathBuf,
        /// The error that the kernel has returned.
        source: io::Error,
    },
    /// The process cannot find the path of its own program, which it needs to start a successor.
    #[error("cannot find the path of this program: {source}")]
    Program {
        /// The error that the kernel has returned.
        source: io::Error,
    },
    /// The data that the predecessor (the old process) has passed to this process is invalid, or
    /// has an unknown protocol version.
    #[error("cannot take over from the old process: {why}")]
    Predecessor {
        /// A description of what is wrong with the data.
        why: String,
    },
    /// A serving thread or an accept loop has panicked, or the successor (the new process) has died
    /// after it had taken over. All connections that it served are lost.
    #[error("{what} has died: {reason}")]
    Died {
        /// The name of the thread or the accept loop, or `the new process`.
        what: String,
        /// The message of the panic, or how the process has ended.
        reason: String,
    },
    /// The server was started, but did not begin to accept connections before the time limit.
    #[error("the server did not start accepting connections within {}", Seconds(*limit))]
    NotAccepting {
        /// The time limit, as set by `--ready-timeout`.
        limit: Duration,
    },
    /// A server of your own did not call [`Life::ready`](crate::embed::Life::ready) before the time
    /// limit. Perhaps it waits for `Life::committed` or `Life::from_predecessor`, which resolve
    /// only after that call.
    #[error(
        "the server did not report within {} that it is ready (Life::ready)",
        Seconds(*limit)
    )]
    NotReady {
        /// The time limit, as set by [`Config::ready_timeout`](crate::Config::ready_timeout).
        limit: Duration,
    },
    /// The program was not ready before the time limit.
    #[error("the program was not ready within {}: {why}", Seconds(*limit))]
    ProgramNotReady {
        /// The time limit, as set by `--ready-timeout`.
        limit: Duration,
        /// What the program had not done, as a part of the error message.
        why: String,
    },
    /// The program that should serve the listeners cannot be started.
    #[error("cannot start {what}: {source}")]
    ProgramNotStarted {
        /// The program that cannot be started, or the file that it needs.
        what: String,
        /// The error that the kernel has returned.
        source: io::Error,
    },
    /// The program that serves the listeners has ended, could not be started again, or failed its
    /// check.
    #[error("the program {what}")]
    ProgramFailed {
        /// What happened to the program, as a part of the error message.
        what: String,
        /// The exit code of the program, if this process must exit with the same code.
        code: Option<u8>,
    },
    /// A server of your own has returned an error, has given up its start, or has returned before
    /// it was ready.
    #[error("the server has failed: {}", one_line(reason))]
    Server {
        /// The text of the server's error.
        reason: String,
    },
    /// A task that may run in only one generation blocks its thread, so this process cannot end the
    /// task. The process itself must end before the successor may run the task.
    #[error(
        "a task that may run in only one process at a time blocks its thread and cannot be ended"
    )]
    AloneBlocks,
    /// [`Builder::serve_with`](crate::Builder::serve_with) was called inside a tokio runtime. That
    /// function creates a runtime itself, after the inherited sockets were taken.
    #[error(
        "the server cannot start inside a tokio runtime, because it creates one itself: call it in \
        a plain fn main, without #[tokio::main]"
    )]
    InsideRuntime,
    /// A system call has failed, and no setting can fix the cause.
    #[error("cannot {doing}: {source}")]
    System {
        /// What the system call was meant to do, as a part of the error message.
        doing: &'static str,
        /// The error that the kernel has returned.
        source: io::Error,
    },
}

impl std::fmt::Debug for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl Error {
    /// Returns the exit code of a process that ends because of this error.
    #[must_use]
    pub fn exit(&self) -> ExitStatus {
        match self {
            Self::Address { .. }
            | Self::ListenerName { .. }
            | Self::DuplicateName { .. }
            | Self::DuplicateAddress { .. }
            | Self::OverlappingAddresses { .. }
            | Self::NoUpstream
            | Self::DuplicateUpstream { .. }
            | Self::Setting { .. } => ExitStatus::Usage,
            Self::NoSuchListener { .. }
            | Self::SeveralSockets { .. }
            | Self::ListenerKind { .. }
            | Self::Environment { .. }
            | Self::NotAListener { .. }
            | Self::ThreadsRunning { .. }
            | Self::Predecessor { .. } => ExitStatus::Configuration,
            Self::Bind { source, .. }
            | Self::PidFile { source, .. }
            | Self::ProgramNotStarted { source, .. } => ExitStatus::of_io(source),
            Self::AlreadyTaken
            | Self::ListenerClosed { .. }
            | Self::Server { .. }
            | Self::AloneBlocks
            | Self::InsideRuntime
            | Self::Program { .. }
            | Self::Died { .. }
            | Self::ProgramFailed { .. }
            | Self::NotAccepting { .. }
            | Self::ProgramNotReady { .. }
            | Self::NotReady { .. }
            | Self::System { .. } => ExitStatus::System,
        }
    }

    /// Returns the error for a listener with an unknown name. `existing` are the names of all
    /// listeners.
    pub(crate) fn no_such_listener<T: ToString>(
        name: &str,
        existing: impl IntoIterator<Item = T>,
    ) -> Self {
        let mut existing: Vec<_> = existing.into_iter().map(|one| one.to_string()).collect();
        existing.dedup();
        Self::NoSuchListener { name: name.to_owned(), existing }
    }

    /// Returns a function for `map_err` that converts a system call's error to [`Error::System`].
    /// `doing` says what the call was meant to do.
    pub(crate) fn system<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::System { doing, source: source.into() }
    }
}

/// Error returned when a message from another process is malformed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Malformed(String);

impl<T: Into<String>> From<T> for Malformed {
    fn from(what: T) -> Self {
        Self(what.into())
    }
}
