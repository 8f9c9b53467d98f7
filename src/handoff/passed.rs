//! The sockets that a parent or a predecessor passes to this process as file descriptors from 3 up
//! (see sd_listen_fds(3)).
//!
//! This module takes the sockets only if they are meant for this process, and checks each socket.
//! [`crate::net::ListenerSet`] decides which socket belongs to which listener.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::RawFd;

use super::payload::Hello;
use super::variables::{
    CHANNEL, LISTEN_FDNAMES, LISTEN_FDS, LISTEN_PID, LISTEN_PIDFDID, bad, parse,
};
use crate::error::Error;
use crate::net::{Binding, Origin, Passed, StoredName};
use crate::sys;
use crate::sys::env::Environment;
use crate::sys::fd::{FIRST_PASSED, PassedDescriptors};
use crate::sys::process::PidFd;

/// The largest number of file descriptors that a process can have by default, which is 2^20 (see
/// `fs.nr_open` in proc_sys_fs(5)).
const DESCRIPTORS_MAX: usize = 1 << 20;

/// Returns how many file descriptors were passed to this process, and checks that all of them are
/// open. Returns 0 if the descriptors are meant for another process.
pub(super) fn count(environment: &Environment) -> Result<usize, Error> {
    let count = announced(environment)?;
    for index in 0..count {
        let descriptor = FIRST_PASSED + RawFd::try_from(index).unwrap_or(RawFd::MAX - FIRST_PASSED);
        if !sys::fd::is_open(descriptor) {
            let value = environment.get(LISTEN_FDS).unwrap_or_default();
            return Err(bad(LISTEN_FDS, value, format!("descriptor {descriptor} is not open")));
        }
    }
    Ok(count)
}

/// Returns how many file descriptors were passed to this process, according to the environment.
pub(super) fn announced(environment: &Environment) -> Result<usize, Error> {
    let Some(value) = environment.get(LISTEN_FDS) else { return Ok(0) };
    if environment.get(CHANNEL).is_none() && !is_meant_for_us(environment)? {
        return Ok(0);
    }
    let count =
        value.to_str().and_then(|text| text.parse().ok()).filter(|count| *count <= DESCRIPTORS_MAX);
    count.ok_or_else(|| bad(LISTEN_FDS, value, "expected the number of passed file descriptors"))
}

/// Returns whether the passed sockets are meant for this process. A child of the intended process
/// inherits the same environment variables, but these variables name the parent.
fn is_meant_for_us(environment: &Environment) -> Result<bool, Error> {
    let ours = std::process::id();
    // Compare `LISTEN_PID` with our own pid. If they differ, the sockets are meant for another
    // process.
    if environment.get(LISTEN_PID).and_then(OsStr::to_str).and_then(|text| text.parse().ok())
        != Some(ours)
    {
        return Ok(false);
    }
    let Some(id) = parse::<u64>(environment, LISTEN_PIDFDID, "the inode number of a pidfd")? else {
        return Ok(true);
    };
    let inode = PidFd::open(ours).ok().and_then(|process| process.inode());
    Ok(inode.is_none_or(|inode| inode == id))
}

/// Returns whether `descriptor` is one of the first `count` passed file descriptors.
pub(super) fn is_passed(count: usize, descriptor: RawFd) -> bool {
    // Use a checked subtraction, because the environment may contain any number and the subtraction
    // could overflow.
    let place = descriptor.checked_sub(FIRST_PASSED).and_then(|place| usize::try_from(place).ok());
    place.is_some_and(|place| place < count)
}

/// Turns the passed file descriptors into sockets with names and origins. Returns an error for the
/// first descriptor that is not a listening socket.
pub(super) fn adopt(
    environment: &Environment,
    descriptors: &mut PassedDescriptors,
    hello: &Hello,
) -> Result<Vec<Passed>, Error> {
    let identities = identities(environment, descriptors.len(), hello)?.into_iter().enumerate();
    let taken =
        identities.filter_map(|(place, identity)| Some((descriptors.take(place)?, identity)));
    taken.map(|(fd, (name, origin))| Passed::check(fd, name, origin)).collect()
}

/// Returns the name and the origin of each passed file descriptor, in the order of the descriptor
/// numbers.
pub(super) fn identities(
    environment: &Environment,
    count: usize,
    hello: &Hello,
) -> Result<Vec<(Option<String>, Origin)>, Error> {
    if count == 0 {
        return Ok(Vec::new());
    }
    let names = match hello.names.len() {
        // Read the names from an environment variable, because a parent passed the sockets. A
        // predecessor would have sent the names in its first message.
        0 => names(environment, count)?,
        named if named == count => hello.names.iter().cloned().map(Some).collect(),
        named => {
            let why = format!("it names {named} descriptors, but {LISTEN_FDS} says {count}");
            return Err(Error::Predecessor { why });
        }
    };
    let bound: HashMap<usize, &Binding> =
        hello.bound.iter().map(|(place, binding)| (*place, binding)).collect();
    let identities = names.into_iter().enumerate().map(|(place, name)| {
        let bound = bound.get(&place);
        let stored = name.as_deref().and_then(StoredName::parse);
        match (bound, stored) {
            (Some(binding), _) => (name, Origin::Bound((*binding).clone())),
            // This socket comes from the service manager's file descriptor store. An earlier
            // generation, which has died, bound it.
            (None, Some((stored, binding))) => (Some(stored.to_owned()), Origin::Bound(binding)),
            (None, None) => (name, Origin::Inherited),
        }
    });
    Ok(identities.collect())
}

/// Returns the names of the passed file descriptors. The name is `None` for an empty name and for
/// `unknown`, because systemd uses these two for a descriptor without a name.
fn names(environment: &Environment, count: usize) -> Result<Vec<Option<String>>, Error> {
    let Some(value) = environment.get(LISTEN_FDNAMES) else { return Ok(vec![None; count]) };
    let text = value.to_str().ok_or_else(|| bad(LISTEN_FDNAMES, value, "expected text"))?;
    if text.chars().any(char::is_control) {
        return Err(bad(LISTEN_FDNAMES, value, "a name may not contain control characters"));
    }
    let names: Vec<_> = text
        .split(':')
        .map(|name| (!matches!(name, "" | "unknown")).then(|| name.to_owned()))
        .collect();
    if names.len() == count {
        Ok(names)
    } else {
        Err(bad(
            LISTEN_FDNAMES,
            value,
            format!("it names {} descriptors, but {LISTEN_FDS} says {count}", names.len()),
        ))
    }
}
