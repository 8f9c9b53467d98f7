//! Takes all that a process is born with: sockets, generation number, the channels to those before it.
//!
//! One door for systemd, for any other parent that speaks its protocol, and for a predecessor: descriptors from 3 up,
//! `LISTEN_FDS`, `LISTEN_FDNAMES`, sd_listen_fds(3). A parent proves by `LISTEN_PID` that it means us; a predecessor
//! cannot know our pid before the fork, and names the channel instead. Whatever is wrong with what was passed is an
//! error that names it: a process that guesses serves the wrong socket.

use std::ffi::{CString, OsStr, OsString};
use std::fmt::Display;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use listenfd::ListenFd;

use super::channel::{Received, receive};
use super::init::Init;
use super::message::{Message, VERSION, Welcome};
use super::predecessor::{Draining, Unconnected};
use crate::error::Error;
use crate::generation::Generation;
use crate::net::{Origin, Passed, StoredName};
use crate::sys::env::{Environment, Judgement};
use crate::sys::fd::{FIRST_PASSED, LowSlot};
use crate::sys::process::PidFd;
use crate::sys::{self, socket::send_packet};

/// More descriptors than a process can have cannot have been passed: `fs.nr_open` is 2^20 by default.
const DESCRIPTORS_MAX: usize = 1 << 20;

const LISTEN_FDS: &str = "LISTEN_FDS";
const LISTEN_FDNAMES: &str = "LISTEN_FDNAMES";
const LISTEN_PID: &str = "LISTEN_PID";
const LISTEN_PIDFDID: &str = "LISTEN_PIDFDID";
/// `VERSION:DESCRIPTOR` of the channel to the predecessor. Private: taken out of the environment at once.
const CHANNEL: &str = "HANDOFFD_CHANNEL";
/// The ordinal of this process.
const GENERATION: &str = "HANDOFFD_GENERATION";
/// What a service manager wants to be told, where and how often. Kept out of sight, and passed on.
const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";
const WATCHDOG_USEC: &str = "WATCHDOG_USEC";
/// Whom the watchdog watches: the first generation. Those after it are watched in its place, under other pids.
const WATCHDOG_PID: &str = "WATCHDOG_PID";
/// What no program may see that this process starts.
const TAKEN_OUT: [&str; 9] = [
    LISTEN_FDS,
    LISTEN_FDNAMES,
    LISTEN_PID,
    LISTEN_PIDFDID,
    CHANNEL,
    GENERATION,
    NOTIFY_SOCKET,
    WATCHDOG_USEC,
    WATCHDOG_PID,
];
/// Where the service may keep its sockets of control and the like, systemd.exec(5).
const RUNTIME_DIRECTORY: &str = "RUNTIME_DIRECTORY";

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
}

/// What a successor is started with: the same as this process was, resolved anew.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    /// The path by which this process was started, absolute, links not followed.
    path: PathBuf,
    /// With `argv[0]`.
    arguments: Vec<CString>,
    /// As it was at birth, less what was taken out.
    environment: Vec<CString>,
    /// What was taken out and belongs to the service manager.
    service_manager: Vec<CString>,
    notify_socket: Option<OsString>,
    watchdog: Option<Duration>,
}

impl Inheritance {
    /// Takes it. Must come first in `main`: it changes the environment, which is sound only while one thread runs, and
    /// so before a runtime is built; and it marks every open descriptor from 3 up close-on-exec.
    ///
    /// # Errors
    /// [`Error::ThreadsRunning`], [`Error::AlreadyTaken`]; [`Error::Environment`] and [`Error::NotAListener`] name what
    /// a parent passed wrongly. A predecessor is told.
    ///
    /// # As process 1
    /// A generation ends when it has handed over, and with process 1 a container ends. So process 1 of a pid namespace
    /// stays, as a small init that ends with the line, and this returns in a child of it, and never there.
    pub fn take() -> Result<Self, Error> {
        if std::process::id() == 1 { Self::take_under_init() } else { Self::take_alone() }
    }

    /// The same with an init in any case, unless there is one already: for a supervisor that watches the one process which
    /// it has started, as most do that are not systemd.
    ///
    /// # Errors
    /// As [`Inheritance::take`].
    pub fn take_under_init() -> Result<Self, Error> {
        let mut inheritance = Self::take_alone()?;
        if inheritance.predecessors.predecessor.is_none() {
            inheritance.init = Some(Init::leave()?);
        }
        Ok(inheritance)
    }

    fn take_alone() -> Result<Self, Error> {
        let mut counted = Ok(0);
        let (environment, mut descriptors) = sys::env::take(&TAKEN_OUT, |environment| {
            counted = count(environment);
            if matches!(counted, Ok(0) | Err(_)) { Judgement::Nothing } else { Judgement::Descriptors }
        })?;
        sys::fd::close_all_on_exec().map_err(Error::system("mark descriptors close-on-exec"))?;
        let Some(channel) = channel(&environment, &descriptors)? else {
            counted?;
            let sockets = adopt(&environment, &mut descriptors, &Welcome::default())?;
            return Self::new(&environment, Generation::FIRST, sockets);
        };
        let taken = counted.and_then(|_| take_from_predecessor(&environment, &mut descriptors, &channel));
        let taken = taken.and_then(|taken| {
            let inheritance = Self::new(&environment, taken.generation, taken.sockets)?;
            Ok((inheritance, taken.draining, taken.init))
        });
        match taken {
            Ok((inheritance, draining, init)) => {
                Ok(Self { predecessors: Unconnected { draining, predecessor: Some(channel) }, init, ..inheritance })
            }
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

    /// Whether standard error is the journal's stream: `JOURNAL_STREAM` is its device and inode, systemd.exec(5). A
    /// program that was started with its output elsewhere inherits the variable all the same.
    #[must_use]
    pub fn logs_to_journal(&self) -> bool {
        self.journal_stream.is_some() && self.journal_stream == sys::fd::device_and_inode(std::io::stderr())
    }

    /// The first folder that the service manager has made for what lives as long as the service, systemd.exec(5).
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
    fn new(environment: &Environment, generation: Generation, sockets: Vec<Passed>) -> Result<Self, Error> {
        let watchdog = watchdog(environment)?;
        let notify_socket = environment.get(NOTIFY_SOCKET);
        let passed_on = [
            notify_socket.map(|value| [NOTIFY_SOCKET.as_bytes(), b"=", value.as_bytes()].concat()),
            watchdog.map(|limit| format!("{WATCHDOG_USEC}={}", limit.as_micros()).into_bytes()),
        ];
        let program = Program {
            path: sys::env::program().map_err(|source| Error::Program { source })?,
            arguments: sys::env::arguments(),
            environment: environment.rest.clone(),
            service_manager: passed_on
                .into_iter()
                .flatten()
                .filter_map(|variable| CString::new(variable).ok())
                .collect(),
            notify_socket: notify_socket.map(OsStr::to_owned),
            watchdog,
        };
        let journal_stream = environment.kept("JOURNAL_STREAM").and_then(|value| value.to_str().map(str::to_owned));
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
        })
    }
}

impl Program {
    /// What will be executed, whatever lies there then.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The arguments, `argv[0]` included.
    pub(crate) fn arguments(&self) -> &[CString] {
        &self.arguments
    }

    /// Where the service manager listens, if there is one.
    pub(crate) fn notify_socket(&self) -> Option<&OsStr> {
        self.notify_socket.as_deref()
    }

    /// How often the service manager wants to hear that the main process is alive.
    pub(crate) const fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// The environment of a successor: as this process found its own, with what it is passed in place of what this one
    /// was. Nothing grows from generation to generation.
    pub(crate) fn environment_for(
        &self,
        generation: Generation,
        names: &str,
        count: usize,
        channel: RawFd,
    ) -> Vec<CString> {
        let ours = [
            format!("{LISTEN_FDS}={count}"),
            format!("{LISTEN_FDNAMES}={names}"),
            format!("{CHANNEL}={VERSION}:{channel}"),
            format!("{GENERATION}={generation}"),
        ];
        let ours = ours.into_iter().filter_map(|variable| CString::new(variable).ok());
        self.environment.iter().chain(&self.service_manager).cloned().chain(ours).collect()
    }
}

/// What only a predecessor can pass.
struct Bequeathed {
    generation: Generation,
    sockets: Vec<Passed>,
    draining: Draining,
    init: Option<Init>,
}

/// Takes what the predecessor passed: our ordinal, the sockets, the channels to those before it and to the init.
fn take_from_predecessor(
    environment: &Environment,
    descriptors: &mut ListenFd,
    channel: &OwnedFd,
) -> Result<Bequeathed, Error> {
    let wrong = |why: String| Error::Predecessor { why };
    // It was sent before the fork, so there is nothing to wait for.
    let welcome = match receive(channel.as_fd(), &mut Vec::new()) {
        Ok(Received::Message(Message::Welcome(welcome))) => welcome,
        Ok(Received::Message(Message::Unrecognised { version, .. })) => {
            return Err(wrong(format!("it speaks version {version} of the protocol, and {VERSION} is spoken here")));
        }
        Ok(other) => return Err(wrong(format!("expected a welcome on the channel, found {other:?}"))),
        Err(error) => return Err(wrong(format!("no welcome on the channel: {error}"))),
    };
    let generation = parse(environment, GENERATION, "the ordinal of a process")?.unwrap_or(Generation::FIRST);
    let mut taken = vec![sys::fd::number(channel)];
    let mut take = |descriptor: RawFd| {
        if is_passed(descriptors, descriptor) || taken.contains(&descriptor) {
            return Err(wrong(format!("descriptor {descriptor} is passed twice")));
        }
        taken.push(descriptor);
        sys::fd::take_named(descriptor).map_err(|error| wrong(format!("descriptor {descriptor}: {error}")))
    };
    let mut draining: Draining = Vec::new();
    for (generation, descriptor) in &welcome.draining {
        draining.push((*generation, take(*descriptor)?));
    }
    let init = welcome.init.map(take).transpose()?.map(Init::inherited);
    Ok(Bequeathed { generation, sockets: adopt(environment, descriptors, &welcome)?, draining, init })
}

/// Tells the predecessor why this process cannot serve. If it does not hear, it has ended: nobody is left to be told.
fn tell_why(channel: &OwnedFd, reason: &dyn Display) {
    let _ = send_packet(channel.as_fd(), &Message::Failed { reason: reason.to_string() }.encode());
}

/// How many descriptors were passed to this process; 0 when they are meant for another.
fn count(environment: &Environment) -> Result<usize, Error> {
    let Some(value) = environment.get(LISTEN_FDS) else { return Ok(0) };
    if environment.get(CHANNEL).is_none() && !is_meant_for_us(environment)? {
        return Ok(0);
    }
    let count = value.to_str().and_then(|text| text.parse().ok()).filter(|count| *count <= DESCRIPTORS_MAX);
    let count = count.ok_or_else(|| bad(LISTEN_FDS, value, "expected how many descriptors are passed"))?;
    for index in 0..count {
        let descriptor = FIRST_PASSED + RawFd::try_from(index).unwrap_or(RawFd::MAX - FIRST_PASSED);
        if !sys::fd::is_open(descriptor) {
            return Err(bad(LISTEN_FDS, value, format!("descriptor {descriptor} is not open")));
        }
    }
    Ok(count)
}

/// Whether the parent means this very process. A process that it started inherits the variables with the old pid.
fn is_meant_for_us(environment: &Environment) -> Result<bool, Error> {
    let ours = std::process::id();
    // Anything that is not our pid is somebody else's, also what is no pid at all: never adopt on trust.
    if environment.get(LISTEN_PID).and_then(OsStr::to_str).and_then(|text| text.parse().ok()) != Some(ours) {
        return Ok(false);
    }
    let Some(id) = parse::<u64>(environment, LISTEN_PIDFDID, "the inode of a process descriptor")? else {
        return Ok(true);
    };
    let inode = PidFd::open(ours).ok().and_then(|process| process.inode());
    Ok(inode.is_none_or(|inode| inode == id))
}

/// How often the service manager wants to hear of the main process, sd_watchdog_enabled(3). With a predecessor the pid
/// is not ours, and the watch is.
fn watchdog(environment: &Environment) -> Result<Option<Duration>, Error> {
    let is_ours = environment.get(CHANNEL).is_some()
        || environment.get(WATCHDOG_PID).is_none_or(|pid| pid.to_str() == Some(&std::process::id().to_string()));
    if !is_ours {
        return Ok(None);
    }
    let limit = parse(environment, WATCHDOG_USEC, "a number of microseconds")?.map(Duration::from_micros);
    Ok(limit.filter(|limit| !limit.is_zero() && *limit != Duration::from_micros(u64::MAX)))
}

/// The first of the folders that a variable names: systemd joins several by colons.
fn first_of(folders: &OsStr) -> Option<PathBuf> {
    let first = folders.as_bytes().split(|byte| *byte == b':').next().filter(|first| first.starts_with(b"/"))?;
    Some(PathBuf::from(OsStr::from_bytes(first)))
}

/// Where the operator's socket is by default: in the folder that the service manager has made, if it has.
#[must_use]
pub fn runtime_directory() -> Option<PathBuf> {
    first_of(&sys::env::variable(RUNTIME_DIRECTORY)?)
}

/// The channel to the predecessor, if one started this process.
fn channel(environment: &Environment, passed: &ListenFd) -> Result<Option<OwnedFd>, Error> {
    let Some(value) = environment.get(CHANNEL) else { return Ok(None) };
    let expected = || bad(CHANNEL, value, "expected VERSION:DESCRIPTOR");
    let (version, descriptor) = value.to_str().and_then(|text| text.split_once(':')).ok_or_else(expected)?;
    let _: u32 = version.parse().map_err(|_| expected())?;
    let descriptor = descriptor.parse().map_err(|_| expected())?;
    if is_passed(passed, descriptor) {
        return Err(bad(CHANNEL, value, format!("descriptor {descriptor} is one of the passed sockets")));
    }
    let channel = sys::fd::take_named(descriptor)
        .map_err(|error| bad(CHANNEL, value, format!("descriptor {descriptor}: {error}")))?;
    if sys::socket::is_channel(channel.as_fd()) {
        return Ok(Some(channel));
    }
    let why = format!("descriptor {descriptor} is {}, not a channel", sys::fd::describe(&channel));
    Err(bad(CHANNEL, value, why))
}

/// Whether `descriptor` is one of those that `LISTEN_FDS` counts.
fn is_passed(descriptors: &ListenFd, descriptor: RawFd) -> bool {
    // Whatever the environment says: the lowest number there is has none three below it.
    let place = descriptor.checked_sub(FIRST_PASSED).and_then(|place| usize::try_from(place).ok());
    place.is_some_and(|place| place < descriptors.len())
}

/// Turns what was passed into sockets with names and origins, or names the first that cannot be one.
fn adopt(environment: &Environment, descriptors: &mut ListenFd, welcome: &Welcome) -> Result<Vec<Passed>, Error> {
    let count = descriptors.len();
    if count == 0 {
        return Ok(Vec::new());
    }
    let names = names(environment, count)?;
    let adopted = names.into_iter().enumerate().filter_map(|(place, name)| {
        let bound = welcome.bound.iter().find(|(bound, _)| *bound == place);
        let stored = name.as_deref().and_then(StoredName::parse);
        let (name, origin) = match (bound, stored) {
            (Some((_, binding)), _) => (name, Origin::Bound(binding.clone())),
            // It comes back from the service manager's store: a process of ours, now dead, has bound it.
            (None, Some((stored, binding))) => (Some(stored.to_owned()), Origin::Bound(binding)),
            (None, None) => (name, Origin::Inherited),
        };
        sys::fd::take_passed(descriptors, place).map(|fd| Passed::check(fd, name, origin))
    });
    adopted.collect()
}

/// The names of the passed descriptors. `unknown` and the empty name are what systemd calls those without one.
fn names(environment: &Environment, count: usize) -> Result<Vec<Option<String>>, Error> {
    let Some(value) = environment.get(LISTEN_FDNAMES) else { return Ok(vec![None; count]) };
    let text = value.to_str().ok_or_else(|| bad(LISTEN_FDNAMES, value, "expected text"))?;
    if text.chars().any(char::is_control) {
        return Err(bad(LISTEN_FDNAMES, value, "a name may not hold control characters"));
    }
    let names: Vec<_> =
        text.split(':').map(|name| (!matches!(name, "" | "unknown")).then(|| name.to_owned())).collect();
    if names.len() == count {
        Ok(names)
    } else {
        Err(bad(LISTEN_FDNAMES, value, format!("it names {} descriptors, and {LISTEN_FDS} says {count}", names.len())))
    }
}

fn parse<T: std::str::FromStr>(
    environment: &Environment,
    name: &'static str,
    expected: &str,
) -> Result<Option<T>, Error> {
    let Some(value) = environment.get(name) else { return Ok(None) };
    let parsed = value.to_str().and_then(|text| text.parse().ok());
    parsed.map(Some).ok_or_else(|| bad(name, value, format!("expected {expected}")))
}

fn bad(variable: &'static str, value: &OsStr, why: impl Into<String>) -> Error {
    Error::Environment { variable, value: value.to_string_lossy().into_owned(), why: why.into() }
}
