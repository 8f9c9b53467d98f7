//! The inheritance of a process: sockets, generation number, and channels to older generations.
//!
//! The same protocol serves systemd, any other parent that speaks it, and a predecessor: file
//! descriptors from 3 up, `LISTEN_FDS` and `LISTEN_FDNAMES`, sd_listen_fds(3). A parent sets
//! `LISTEN_PID` to the process that it means. A predecessor cannot know the pid before the fork, so
//! it names the channel instead. Anything wrong is an error that names the cause, because a process
//! that guesses may serve the wrong socket.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fmt::Display;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::channel::{Received, receive};
use super::init::Init;
use super::message::{Hello, Message, VERSION};
use super::passed::{adopt, count, is_passed};
use super::predecessor::{Draining, Unconnected};
use super::program::Program;
use super::variables::{CHANNEL, GENERATION, RUNTIME_DIRECTORY, TAKEN_OUT, bad, parse};
use crate::error::Error;
use crate::generation::Generation;
use crate::net::Passed;
use crate::report::CarryForecast;
use crate::sys;
use crate::sys::env::{Environment, Variables};
use crate::sys::fd::{PassedDescriptors, ReservedFd};
use crate::sys::socket::{retry, send_packet};

/// Everything that a process inherits when it starts.
#[derive(Debug)]
pub struct Inheritance {
    pub(crate) generation: Generation,
    pub(crate) sockets: Vec<Passed>,
    pub(crate) predecessors: Unconnected,
    pub(crate) program: Program,
    /// The init process, if a container or a supervisor watches that process and not this one.
    pub(crate) init: Option<Init>,
    journal_stream: Option<String>,
    runtime_directory: Option<PathBuf>,
    /// A file descriptor for the channel to the successor. Reserved at start, while low numbers are
    /// free.
    pub(crate) slot: ReservedFd,
    /// How many connections the predecessor may carry over, with the name of their listener.
    pub(crate) forecast: CarryForecast,
}

impl Inheritance {
    /// Takes the inheritance. Call it first in `main`, before you build a runtime: it changes the
    /// environment, which is only sound while one thread runs. It also marks every open file
    /// descriptor from 3 up close-on-exec.
    ///
    /// # Errors
    /// [`Error::ThreadsRunning`], [`Error::AlreadyTaken`]. [`Error::Environment`] and
    /// [`Error::NotAListener`] name what a parent passed wrongly. On failure a predecessor is told
    /// why.
    ///
    /// # As process 1
    /// A generation exits when it has handed over, but a container ends when process 1 exits. So
    /// process 1 of a pid namespace stays as a small init, which ends when the last generation has
    /// ended. In that case this function returns in a child of the init, and never in process 1
    /// itself.
    pub fn take() -> Result<Self, Error> {
        Self::take_alone(Variables::Removed)?.with_init_as_process_1()
    }

    /// Like [`Inheritance::take`], for a program that starts no other programs. It does not change
    /// the environment, so other threads may run, such as those of a preloaded allocator. Process 1
    /// must still have only one thread.
    ///
    /// # Errors
    /// As [`Inheritance::take`].
    pub fn take_beside_threads() -> Result<Self, Error> {
        Self::take_alone(Variables::Kept)?.with_init_as_process_1()
    }

    /// Like [`Inheritance::take`], but always leaves an init behind, unless there already is one.
    /// For a supervisor that watches only the process that it started, as most do except systemd.
    ///
    /// # Errors
    /// As [`Inheritance::take`].
    pub fn take_under_init() -> Result<Self, Error> {
        Self::take_alone(Variables::Removed)?.with_init()
    }

    fn with_init_as_process_1(self) -> Result<Self, Error> {
        if std::process::id() == 1 { self.with_init() } else { Ok(self) }
    }

    /// Leaves an init process behind, unless there already is one.
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
        sys::signals::hold_off().map_err(Error::system("hold off signals"))?;
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

    /// Returns whether an older generation serves until this one is ready.
    #[must_use]
    pub const fn has_predecessor(&self) -> bool {
        self.predecessors.predecessor.is_some()
    }

    /// Returns whether standard error is the journal's stream. `JOURNAL_STREAM` holds the device
    /// and inode of that stream, systemd.exec(5). The comparison is needed because a program
    /// inherits the variable even if its output goes elsewhere.
    #[must_use]
    pub fn logs_to_journal(&self) -> bool {
        self.journal_stream.is_some()
            && self.journal_stream == sys::fd::device_and_inode(std::io::stderr())
    }

    /// Returns the first runtime directory that the service manager created for the service,
    /// systemd.exec(5).
    #[must_use]
    pub fn runtime_directory(&self) -> Option<&Path> {
        self.runtime_directory.as_deref()
    }

    /// Tells the predecessor, if there is one, why this process cannot serve. The predecessor keeps
    /// serving.
    pub fn refuse(self, reason: &dyn Display) {
        if let Some(channel) = self.predecessors.predecessor {
            tell_why(&channel, reason);
        }
    }

    /// Creates the inheritance of a process without a predecessor.
    fn new(
        environment: &Environment,
        generation: Generation,
        sockets: Vec<Passed>,
    ) -> Result<Self, Error> {
        let program = Program::of_this_process(environment)?;
        let journal_stream =
            environment.kept("JOURNAL_STREAM").and_then(|value| value.to_str().map(str::to_owned));
        let runtime_directory = environment.kept(RUNTIME_DIRECTORY).and_then(first_of);
        let slot = ReservedFd::reserve().map_err(Error::system("reserve a descriptor"))?;
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
        })
    }
}

/// The part of the inheritance that only a predecessor can pass.
struct Inherited {
    generation: Generation,
    sockets: Vec<Passed>,
    draining: Draining,
    init: Option<Init>,
    forecast: CarryForecast,
}

/// Takes the generation number, the sockets, and the channels to older generations and to the init
/// from the predecessor.
fn take_from_predecessor(
    environment: &Environment,
    descriptors: &mut PassedDescriptors,
    channel: &OwnedFd,
) -> Result<Inherited, Error> {
    let wrong = |why: String| Error::Predecessor { why };
    // The predecessor sends the hello before the fork, so there is no need to wait for it.
    let hello = match receive(channel.as_fd(), &mut Vec::new()) {
        Ok(Received::Message(Message::Hello(hello))) => hello,
        Ok(Received::Message(Message::Unrecognised { version, .. })) => {
            return Err(wrong(format!(
                "it speaks version {version} of the protocol, and {VERSION} is spoken here"
            )));
        }
        Ok(other) => {
            return Err(wrong(format!("expected a hello on the channel, found {other:?}")));
        }
        Err(error) => return Err(wrong(format!("no hello on the channel: {error}"))),
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
    Ok(parse(environment, GENERATION, "the ordinal of a process")?.unwrap_or(Generation::FIRST))
}

/// Checks that the hello names each file descriptor once, and neither a socket (one of the first
/// `count` passed descriptors) nor the channel.
pub(super) fn check_descriptors(hello: &Hello, count: usize, channel: RawFd) -> Result<(), Error> {
    let mut taken = HashSet::from([channel]);
    for descriptor in hello.draining.iter().map(|(_, descriptor)| *descriptor).chain(hello.init) {
        if is_passed(count, descriptor) || !taken.insert(descriptor) {
            return Err(Error::Predecessor {
                why: format!("descriptor {descriptor} is passed twice"),
            });
        }
    }
    Ok(())
}

/// Tells the predecessor why this process cannot serve. If sending fails, the predecessor has ended
/// and no longer needs the reason.
fn tell_why(channel: &OwnedFd, reason: &dyn Display) {
    let packet = Message::Failed { reason: reason.to_string() }.encode();
    let _ = retry(|| send_packet(channel.as_fd(), &packet));
}

/// Returns the channel to the predecessor, if a predecessor started this process.
fn channel(
    environment: &Environment,
    passed: &PassedDescriptors,
) -> Result<Option<OwnedFd>, Error> {
    let (Some(value), Some(descriptor)) =
        (environment.get(CHANNEL), announced_channel(environment, passed.len())?)
    else {
        return Ok(None);
    };
    let channel = sys::fd::take_named(descriptor)
        .map_err(|error| bad(CHANNEL, value, format!("descriptor {descriptor}: {error}")))?;
    if sys::socket::is_channel(channel.as_fd()) {
        return Ok(Some(channel));
    }
    let why = format!("descriptor {descriptor} is {}, not a channel", sys::fd::describe(&channel));
    Err(bad(CHANNEL, value, why))
}

/// Returns the file descriptor that the environment announces as the channel to the predecessor.
/// Must not be one of the first `count` passed descriptors, which are sockets.
pub(super) fn announced_channel(
    environment: &Environment,
    count: usize,
) -> Result<Option<RawFd>, Error> {
    let Some(value) = environment.get(CHANNEL) else { return Ok(None) };
    let expected = || bad(CHANNEL, value, "expected VERSION:DESCRIPTOR");
    let (version, descriptor) =
        value.to_str().and_then(|text| text.split_once(':')).ok_or_else(expected)?;
    let _: u32 = version.parse().map_err(|_| expected())?;
    let descriptor = descriptor.parse().map_err(|_| expected())?;
    if is_passed(count, descriptor) {
        return Err(bad(
            CHANNEL,
            value,
            format!("descriptor {descriptor} is one of the passed sockets"),
        ));
    }
    Ok(Some(descriptor))
}

/// Checks that this process can fork off an init: it must have only one thread.
///
/// # Errors
/// [`Error::ThreadsRunning`].
pub fn check_for_init() -> Result<(), Error> {
    sys::process::require_one_thread()
}

/// Returns the first directory of a list that systemd joins by colons, if its path is absolute.
pub(super) fn first_of(folders: &OsStr) -> Option<PathBuf> {
    let first = folders
        .as_bytes()
        .split(|byte| *byte == b':')
        .next()
        .filter(|first| first.starts_with(b"/"))?;
    Some(PathBuf::from(OsStr::from_bytes(first)))
}

/// Returns the runtime directory that the service manager created, if there is one. The control
/// socket is in it by default.
#[must_use]
pub fn runtime_directory() -> Option<PathBuf> {
    first_of(&sys::env::variable(RUNTIME_DIRECTORY)?)
}
