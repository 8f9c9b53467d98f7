//! This module reads what a process inherits at startup: its sockets, its generation number, and
//! its channels to older generations.
//!
//! All parents use one protocol, whether systemd, another program or a predecessor. They pass file
//! descriptors from 3 up and set `LISTEN_FDS` and `LISTEN_FDNAMES` (see sd_listen_fds(3)). A parent
//! sets `LISTEN_PID` to the pid of the process that should use the sockets. A predecessor cannot
//! know the pid of its successor before the fork. So it sets another variable, which names the
//! channel between the two processes. Any invalid value is an error, because a process that guessed
//! the value could serve the wrong socket.

use std::collections::HashSet;
use std::fmt::Display;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use super::announcement::channel;
use super::init::Init;
use super::message::{Message, VERSION};
use super::packet::{Received, receive};
use super::passed::{adopt, count, is_passed};
use super::payload::Hello;
use super::predecessor::{Draining, Unconnected};
use super::program::Program;
use super::variables::{GENERATION, RUNTIME_DIRECTORY, TAKEN_OUT, parse};
use crate::error::Error;
use crate::generation::Generation;
use crate::net::Passed;
use crate::report::CarryForecast;
use crate::sys;
use crate::sys::env::{Environment, Variables};
use crate::sys::fd::{PassedDescriptors, ReservedFd};
use crate::sys::socket::{retry, send_packet};

/// The sockets, channels and settings that a process inherits at startup from a parent or a
/// predecessor.
///
/// ```no_run
/// fn main() -> Result<(), handoffd::Error> {
///     let inheritance = handoffd::Inheritance::take()?; // before any thread exists
///     println!("generation {}", inheritance.generation());
///     Ok(())
/// }
/// ```
#[derive(Debug)]
pub struct Inheritance {
    pub(crate) generation: Generation,
    pub(crate) sockets: Vec<Passed>,
    pub(crate) predecessors: Unconnected,
    pub(crate) program: Program,
    /// The channel to the init process, or `None` if no init process exists. An init process stays
    /// while generations replace each other, so a container or a supervisor can watch it.
    pub(crate) init: Option<Init>,
    journal_stream: Option<String>,
    runtime_directory: Option<PathBuf>,
    /// A low file descriptor number for the successor's end of the channel. It is reserved at
    /// startup, because low numbers are still free then.
    pub(crate) slot: ReservedFd,
    /// How many connections the predecessor may move to this process, for each listener by name.
    pub(crate) forecast: CarryForecast,
    pub(crate) signal_use: SignalUse,
}

/// What a generation does with the signals of its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SignalUse {
    /// The generation handles its signals.
    Handled,
    /// The generation leaves all signals as they are, because it runs in a test beside other tests.
    LeftAlone,
}

impl Inheritance {
    /// Takes the inheritance from the environment and from the passed file descriptors. Call this
    /// function first in `main`, before you build a runtime. It changes the environment, which is
    /// sound only while the process has a single thread. It also marks every open file descriptor
    /// from 3 up close-on-exec.
    ///
    /// # Errors
    /// [`Error::ThreadsRunning`] if other threads run, [`Error::AlreadyTaken`] on a second call,
    /// and [`Error::Environment`] or [`Error::NotAListener`] if a parent passed an invalid value.
    /// If this process has a predecessor, the predecessor receives the reason.
    ///
    /// # As process 1
    /// A generation exits after a handoff, but a container ends when process 1 exits. So if this
    /// process is process 1 of a pid namespace, it becomes a small init process and forks. The init
    /// process stays until the last generation has ended. This function then returns only in the
    /// child.
    pub fn take() -> Result<Self, Error> {
        Self::take_alone(Variables::Removed)?.with_init_as_process_1()
    }

    /// Takes the inheritance like [`Inheritance::take`], but leaves the environment unchanged.
    /// Other threads may run, such as those of a preloaded allocator. Use this function only in a
    /// program that starts no other programs. If this process is process 1, it must still have only
    /// one thread.
    ///
    /// # Errors
    /// Returns the same errors as [`Inheritance::take`].
    pub fn take_beside_threads() -> Result<Self, Error> {
        Self::take_alone(Variables::Kept)?.with_init_as_process_1()
    }

    /// Takes the inheritance like [`Inheritance::take`], but forks even if this process is not
    /// process 1. The parent stays as the init process, unless an init process already exists. Use
    /// this function under a supervisor that watches only the process that it started. Most
    /// supervisors work like this, but systemd can follow a new main process.
    ///
    /// # Errors
    /// Returns the same errors as [`Inheritance::take`].
    pub fn take_under_init() -> Result<Self, Error> {
        Self::take_alone(Variables::Removed)?.with_init()
    }

    /// Returns the inheritance of a first generation without a parent, for tests. It reads and
    /// changes neither the environment nor any descriptor, so threads may run, and any number of
    /// servers may run in one process.
    ///
    /// Such a server handles no signals and starts no successor. Stop it with
    /// [`Life::stop`](crate::embed::Life::stop).
    ///
    /// # Errors
    /// Fails if no descriptor is free or the path of this program is unknown.
    pub fn none() -> Result<Self, Error> {
        let inheritance = Self::new(&Environment::default(), Generation::FIRST, Vec::new())?;
        Ok(Self { signal_use: SignalUse::LeftAlone, ..inheritance })
    }

    fn with_init_as_process_1(self) -> Result<Self, Error> {
        if std::process::id() == 1 { self.with_init() } else { Ok(self) }
    }

    /// Forks this process, unless an init process already exists. The parent becomes the init
    /// process, and this function returns in the child.
    fn with_init(mut self) -> Result<Self, Error> {
        if self.predecessors.predecessor.is_none() {
            sys::process::require_one_thread()?;
            self.init = Some(Init::leave()?);
        }
        Ok(self)
    }

    fn take_alone(variables: Variables) -> Result<Self, Error> {
        let mut counted = Ok(0);
        let (environment, mut descriptors) =
            sys::env::take(&TAKEN_OUT, variables, |environment| {
                counted = count(environment);
                counted.as_ref().copied().unwrap_or_default()
            })?;
        sys::signals::hold_off().map_err(Error::system("block or ignore signals"))?;
        sys::fd::close_all_on_exec().map_err(Error::system("mark descriptors close-on-exec"))?;
        let Some(channel) = channel(&environment, &descriptors)? else {
            counted?;
            let sockets = adopt(&environment, &mut descriptors, &Hello::default())?;
            return Self::new(&environment, Generation::FIRST, sockets);
        };
        let taken =
            counted.and_then(|_| take_from_predecessor(&environment, &mut descriptors, &channel));
        let taken = taken.and_then(|taken| {
            let inheritance = Self::new(&environment, taken.generation, taken.sockets)?;
            Ok((Self { forecast: taken.forecast, ..inheritance }, taken.draining, taken.init))
        });
        match taken {
            Ok((inheritance, draining, init)) => Ok(Self {
                predecessors: Unconnected { draining, predecessor: Some(channel) },
                init,
                ..inheritance
            }),
            Err(error) => {
                tell_why(&channel, &error);
                Err(error)
            }
        }
    }

    /// Returns the generation number of this process.
    #[must_use]
    pub const fn generation(&self) -> Generation {
        self.generation
    }

    /// Returns whether this process has a predecessor. The predecessor serves clients until this
    /// process has taken over.
    #[must_use]
    pub const fn has_predecessor(&self) -> bool {
        self.predecessors.predecessor.is_some()
    }

    /// Returns whether standard error is connected to the systemd journal. `JOURNAL_STREAM` holds
    /// the device and inode of the journal's stream (see systemd.exec(5)). This function compares
    /// them with those of standard error. The variable alone is not enough, because a program
    /// inherits it even if its output goes elsewhere.
    #[must_use]
    pub fn logs_to_journal(&self) -> bool {
        self.journal_stream.is_some()
            && self.journal_stream == sys::fd::device_and_inode(std::io::stderr())
    }

    /// Returns the first runtime directory that the service manager created for the service (see
    /// systemd.exec(5)).
    #[must_use]
    pub fn runtime_directory(&self) -> Option<&Path> {
        self.runtime_directory.as_deref()
    }

    /// Checks that this process can fork an init process. It can do so only if it has a single
    /// thread.
    ///
    /// # Errors
    /// [`Error::ThreadsRunning`] if other threads run.
    pub fn check_for_init() -> Result<(), Error> {
        sys::process::require_one_thread()
    }

    /// Tells the predecessor, if one exists, why this process cannot serve. The predecessor then
    /// keeps serving.
    pub fn refuse(self, reason: &dyn Display) {
        if let Some(channel) = self.predecessors.predecessor {
            tell_why(&channel, reason);
        }
    }

    /// Collects what a process without a predecessor has inherited: its sockets and its
    /// environment.
    fn new(
        environment: &Environment,
        generation: Generation,
        sockets: Vec<Passed>,
    ) -> Result<Self, Error> {
        let program = Program::of_this_process(environment)?;
        let journal_stream =
            environment.kept("JOURNAL_STREAM").and_then(|value| value.to_str().map(str::to_owned));
        let runtime_directory =
            environment.kept(RUNTIME_DIRECTORY).and_then(sys::env::first_folder);
        let slot = ReservedFd::reserve().map_err(Error::system("reserve a file descriptor"))?;
        Ok(Self {
            generation,
            sockets,
            predecessors: Unconnected::default(),
            program,
            init: None,
            journal_stream,
            runtime_directory,
            slot,
            forecast: CarryForecast::default(),
            signal_use: SignalUse::Handled,
        })
    }
}

/// The part of the inheritance that only a predecessor passes, not systemd or another parent.
struct Inherited {
    generation: Generation,
    sockets: Vec<Passed>,
    draining: Draining,
    init: Option<Init>,
    forecast: CarryForecast,
}

/// Takes the inheritance from the predecessor: the generation number, the sockets, and the channels
/// to older generations and to the init process.
fn take_from_predecessor(
    environment: &Environment,
    descriptors: &mut PassedDescriptors,
    channel: &OwnedFd,
) -> Result<Inherited, Error> {
    let wrong = |why: String| Error::Predecessor { why };
    // Do not wait for the hello message, because the predecessor sent it before the fork.
    let hello = match receive(channel.as_fd(), &mut Vec::new()) {
        Ok(Received::Message(Message::Hello(hello))) => hello,
        Ok(Received::Message(Message::Unrecognised { version, .. })) => {
            return Err(wrong(format!(
                "it uses version {version} of the handoff protocol, but this program uses version \
                {VERSION}"
            )));
        }
        Ok(other) => {
            return Err(wrong(format!("expected a hello message, but received {other:?}")));
        }
        Err(error) => return Err(wrong(format!("cannot receive its hello message: {error}"))),
    };
    let generation = ordinal(environment)?;
    check_descriptors(&hello, descriptors.len(), sys::fd::number(channel))?;
    let take = |descriptor: RawFd| {
        sys::fd::take_named(descriptor)
            .map_err(|error| wrong(format!("descriptor {descriptor}: {error}")))
    };
    let mut draining: Draining = Vec::new();
    for (generation, descriptor) in &hello.draining {
        draining.push((*generation, take(*descriptor)?));
    }
    let init = hello.init.map(take).transpose()?.map(Init::inherited);
    let sockets = adopt(environment, descriptors, &hello)?;
    Ok(Inherited { generation, sockets, draining, init, forecast: hello.forecast })
}

/// Reads the generation number of this process from the environment.
pub(super) fn ordinal(environment: &Environment) -> Result<Generation, Error> {
    Ok(parse(environment, GENERATION, "a generation number")?.unwrap_or(Generation::FIRST))
}

/// Checks the file descriptors that the hello message names for other channels. Each may be named
/// only once. None may be the channel to the predecessor or one of the first `count` passed
/// descriptors, which are sockets.
pub(super) fn check_descriptors(hello: &Hello, count: usize, channel: RawFd) -> Result<(), Error> {
    let mut taken = HashSet::from([channel]);
    for descriptor in hello.draining.iter().map(|(_, descriptor)| *descriptor).chain(hello.init) {
        if is_passed(count, descriptor) || !taken.insert(descriptor) {
            return Err(Error::Predecessor {
                why: format!("file descriptor {descriptor} is passed twice"),
            });
        }
    }
    Ok(())
}

/// Tells the predecessor why this process cannot serve. A failure to send is ignored, because it
/// means that the predecessor has ended.
fn tell_why(channel: &OwnedFd, reason: &dyn Display) {
    let packet = Message::Failed { reason: reason.to_string() }.encode();
    let _ = retry(|| send_packet(channel.as_fd(), &packet));
}
