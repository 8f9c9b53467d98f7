//! Takes all that a process is born with: sockets, generation number, the channels to those before
//! it.
//!
//! One door for systemd, for any other parent that speaks its protocol, and for a predecessor:
//! descriptors from 3 up, `LISTEN_FDS`, `LISTEN_FDNAMES`, sd_listen_fds(3). A parent proves by
//! `LISTEN_PID` that it means us; a predecessor cannot know our pid before the fork, and names the
//! channel instead. Whatever is wrong with what was passed is an error that names it: a process
//! that guesses serves the wrong socket.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fmt::Display;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::channel::{Received, receive};
use super::init::Init;
use super::message::{Message, VERSION, Welcome};
use super::passed::{adopt, count, is_passed};
use super::predecessor::{Draining, Unconnected};
use super::program::Program;
use super::variables::{CHANNEL, GENERATION, RUNTIME_DIRECTORY, TAKEN_OUT, bad, parse};
use crate::error::Error;
use crate::generation::Generation;
use crate::net::Passed;
use crate::sys;
use crate::sys::env::{Environment, Variables};
use crate::sys::fd::{LowSlot, PassedDescriptors};
use crate::sys::socket::{retry, send_packet};

/// All that a process is born with.
#[derive(Debug)]
pub struct Inheritance {
    pub(crate) generation: Generation,
    pub(crate) sockets: Vec<Passed>,
    pub(crate) predecessors: Unconnected,
    pub(crate) program: Program,
    /// The process that stays, if this one is not what a container or a supervisor watches.
    pub(crate) init: Option<Init>,
    journal_stream: Option<String>,
    runtime_directory: Option<PathBuf>,
    /// For the channel to the successor: reserved now, while low numbers are free.
    pub(crate) slot: LowSlot,
    /// How many connections may be carried here, by the name of their listener.
    pub(crate) coming: Vec<(usize, String)>,
}

impl Inheritance {
    /// Takes it. Must come first in `main`: it changes the environment, which is sound only while
    /// one thread runs, and so before a runtime is built; and it marks every open descriptor from 3
    /// up close-on-exec.
    ///
    /// # Errors
    /// [`Error::ThreadsRunning`], [`Error::AlreadyTaken`]; [`Error::Environment`] and
    /// [`Error::NotAListener`] name what a parent passed wrongly. A predecessor is told.
    ///
    /// # As process 1
    /// A generation ends when it has handed over, and with process 1 a container ends. So process 1
    /// of a pid namespace stays, as a small init that ends with the line, and this returns in a
    /// child of it, and never there.
    pub fn take() -> Result<Self, Error> {
        Self::take_alone(Variables::Removed)?.with_init_as_process_1()
    }

    /// The same for a program that starts no other programs. It changes nothing in the environment,
    /// so other threads may run, as those of an allocator that was loaded before the program.
    /// Process 1 needs one thread all the same.
    ///
    /// # Errors
    /// As [`Inheritance::take`].
    pub fn take_beside_threads() -> Result<Self, Error> {
        Self::take_alone(Variables::Kept)?.with_init_as_process_1()
    }

    /// The same with an init in any case, unless there is one already: for a supervisor that
    /// watches the one process which it has started, as most do that are not systemd.
    ///
    /// # Errors
    /// As [`Inheritance::take`].
    pub fn take_under_init() -> Result<Self, Error> {
        Self::take_alone(Variables::Removed)?.with_init()
    }

    fn with_init_as_process_1(self) -> Result<Self, Error> {
        if std::process::id() == 1 { self.with_init() } else { Ok(self) }
    }

    /// Leaves an init behind, unless there is one already.
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
            let sockets = adopt(&environment, &mut descriptors, &Welcome::default())?;
            return Self::new(&environment, Generation::FIRST, sockets);
        };
        let taken =
            counted.and_then(|_| take_from_predecessor(&environment, &mut descriptors, &channel));
        let taken = taken.and_then(|taken| {
            let inheritance = Self::new(&environment, taken.generation, taken.sockets)?;
            Ok((Self { coming: taken.coming, ..inheritance }, taken.draining, taken.init))
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

    /// The ordinal of this process in its line.
    #[must_use]
    pub const fn generation(&self) -> Generation {
        self.generation
    }

    /// Whether another generation serves until this one is ready.
    #[must_use]
    pub const fn has_predecessor(&self) -> bool {
        self.predecessors.predecessor.is_some()
    }

    /// Whether standard error is the journal's stream: `JOURNAL_STREAM` is its device and inode,
    /// systemd.exec(5). A program that was started with its output elsewhere inherits the variable
    /// all the same.
    #[must_use]
    pub fn logs_to_journal(&self) -> bool {
        self.journal_stream.is_some()
            && self.journal_stream == sys::fd::device_and_inode(std::io::stderr())
    }

    /// The first folder that the service manager has made for what lives as long as the service,
    /// systemd.exec(5).
    #[must_use]
    pub fn runtime_directory(&self) -> Option<&Path> {
        self.runtime_directory.as_deref()
    }

    /// Tells the predecessor, if there is one, why this process cannot serve. It serves on.
    pub fn refuse(self, reason: &dyn Display) {
        if let Some(channel) = self.predecessors.predecessor {
            tell_why(&channel, reason);
        }
    }

    /// With nobody before it.
    fn new(
        environment: &Environment,
        generation: Generation,
        sockets: Vec<Passed>,
    ) -> Result<Self, Error> {
        let program = Program::of_this_process(environment)?;
        let journal_stream =
            environment.kept("JOURNAL_STREAM").and_then(|value| value.to_str().map(str::to_owned));
        let runtime_directory = environment.kept(RUNTIME_DIRECTORY).and_then(first_of);
        let slot = LowSlot::reserve().map_err(Error::system("reserve a descriptor"))?;
        Ok(Self {
            generation,
            sockets,
            predecessors: Unconnected::default(),
            program,
            init: None,
            journal_stream,
            runtime_directory,
            slot,
            coming: Vec::new(),
        })
    }
}

/// What only a predecessor can pass.
struct Bequeathed {
    generation: Generation,
    sockets: Vec<Passed>,
    draining: Draining,
    init: Option<Init>,
    coming: Vec<(usize, String)>,
}

/// Takes what the predecessor passed: our ordinal, the sockets, the channels to those before it and
/// to the init.
fn take_from_predecessor(
    environment: &Environment,
    descriptors: &mut PassedDescriptors,
    channel: &OwnedFd,
) -> Result<Bequeathed, Error> {
    let wrong = |why: String| Error::Predecessor { why };
    // It was sent before the fork, so there is nothing to wait for.
    let welcome = match receive(channel.as_fd(), &mut Vec::new()) {
        Ok(Received::Message(Message::Welcome(welcome))) => welcome,
        Ok(Received::Message(Message::Unrecognised { version, .. })) => {
            return Err(wrong(format!(
                "it speaks version {version} of the protocol, and {VERSION} is spoken here"
            )));
        }
        Ok(other) => {
            return Err(wrong(format!("expected a welcome on the channel, found {other:?}")));
        }
        Err(error) => return Err(wrong(format!("no welcome on the channel: {error}"))),
    };
    let generation = ordinal(environment)?;
    check_descriptors(&welcome, descriptors.len(), sys::fd::number(channel))?;
    let take = |descriptor: RawFd| {
        sys::fd::take_named(descriptor)
            .map_err(|error| wrong(format!("descriptor {descriptor}: {error}")))
    };
    let mut draining: Draining = Vec::new();
    for (generation, descriptor) in &welcome.draining {
        draining.push((*generation, take(*descriptor)?));
    }
    let init = welcome.init.map(take).transpose()?.map(Init::inherited);
    let sockets = adopt(environment, descriptors, &welcome)?;
    Ok(Bequeathed { generation, sockets, draining, init, coming: welcome.coming })
}

/// The ordinal of this process.
pub(super) fn ordinal(environment: &Environment) -> Result<Generation, Error> {
    Ok(parse(environment, GENERATION, "the ordinal of a process")?.unwrap_or(Generation::FIRST))
}

/// Whether the welcome names each descriptor once, and neither one of the first `count` nor the
/// channel.
pub(super) fn check_descriptors(
    welcome: &Welcome,
    count: usize,
    channel: RawFd,
) -> Result<(), Error> {
    let mut taken = HashSet::from([channel]);
    for descriptor in welcome.draining.iter().map(|(_, descriptor)| *descriptor).chain(welcome.init)
    {
        if is_passed(count, descriptor) || !taken.insert(descriptor) {
            return Err(Error::Predecessor {
                why: format!("descriptor {descriptor} is passed twice"),
            });
        }
    }
    Ok(())
}

/// Tells the predecessor why this process cannot serve. If it does not hear, it has ended: nobody
/// is left to be told.
fn tell_why(channel: &OwnedFd, reason: &dyn Display) {
    let packet = Message::Failed { reason: reason.to_string() }.encode();
    let _ = retry(|| send_packet(channel.as_fd(), &packet));
}

/// The channel to the predecessor, if one started this process.
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

/// The descriptor that the environment announces as the channel to the predecessor, beside the
/// first `count`.
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

/// Checks that an init can be left behind: this process has one thread.
///
/// # Errors
/// [`Error::ThreadsRunning`].
pub fn check_for_init() -> Result<(), Error> {
    sys::process::require_one_thread()
}

/// The first of the folders that a variable names: systemd joins several by colons.
pub(super) fn first_of(folders: &OsStr) -> Option<PathBuf> {
    let first = folders
        .as_bytes()
        .split(|byte| *byte == b':')
        .next()
        .filter(|first| first.starts_with(b"/"))?;
    Some(PathBuf::from(OsStr::from_bytes(first)))
}

/// Where the operator's socket is by default: in the folder that the service manager has made, if
/// it has.
#[must_use]
pub fn runtime_directory() -> Option<PathBuf> {
    first_of(&sys::env::variable(RUNTIME_DIRECTORY)?)
}
