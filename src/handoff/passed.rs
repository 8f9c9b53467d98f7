//! Adopts the sockets that a parent or a predecessor has passed: descriptors from 3 up,
//! sd_listen_fds(3).
//!
//! They are taken only when they are meant for this very process, and each is checked. Which
//! listener is which is decided in [`crate::net::ListenerSet`].

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::RawFd;

use super::message::Welcome;
use super::variables::{
    CHANNEL, LISTEN_FDNAMES, LISTEN_FDS, LISTEN_PID, LISTEN_PIDFDID, bad, parse,
};
use crate::error::Error;
use crate::net::{Binding, Origin, Passed, StoredName};
use crate::sys;
use crate::sys::env::Environment;
use crate::sys::fd::{FIRST_PASSED, PassedDescriptors};
use crate::sys::process::PidFd;

/// More descriptors than a process can have cannot have been passed: `fs.nr_open` is 2^20 by
/// default.
const DESCRIPTORS_MAX: usize = 1 << 20;

/// How many descriptors were passed to this process, all of which are open; 0 when they are meant
/// for another.
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

/// How many descriptors the environment announces to this process.
pub(super) fn announced(environment: &Environment) -> Result<usize, Error> {
    let Some(value) = environment.get(LISTEN_FDS) else { return Ok(0) };
    if environment.get(CHANNEL).is_none() && !is_meant_for_us(environment)? {
        return Ok(0);
    }
    let count =
        value.to_str().and_then(|text| text.parse().ok()).filter(|count| *count <= DESCRIPTORS_MAX);
    count.ok_or_else(|| bad(LISTEN_FDS, value, "expected how many descriptors are passed"))
}

/// Whether the parent means this very process. A process that it started inherits the variables
/// with the old pid.
fn is_meant_for_us(environment: &Environment) -> Result<bool, Error> {
    let ours = std::process::id();
    // Anything that is not our pid is somebody else's, also what is no pid at all: never adopt on
    // trust.
    if environment.get(LISTEN_PID).and_then(OsStr::to_str).and_then(|text| text.parse().ok())
        != Some(ours)
    {
        return Ok(false);
    }
    let Some(id) = parse::<u64>(environment, LISTEN_PIDFDID, "the inode of a process descriptor")?
    else {
        return Ok(true);
    };
    let inode = PidFd::open(ours).ok().and_then(|process| process.inode());
    Ok(inode.is_none_or(|inode| inode == id))
}

/// Whether `descriptor` is one of the first `count` that are passed.
pub(super) fn is_passed(count: usize, descriptor: RawFd) -> bool {
    // Whatever the environment says: the lowest number there is has none three below it.
    let place = descriptor.checked_sub(FIRST_PASSED).and_then(|place| usize::try_from(place).ok());
    place.is_some_and(|place| place < count)
}

/// Turns what was passed into sockets with names and origins, or names the first that cannot be
/// one.
pub(super) fn adopt(
    environment: &Environment,
    descriptors: &mut PassedDescriptors,
    welcome: &Welcome,
) -> Result<Vec<Passed>, Error> {
    let identities = identities(environment, descriptors.len(), welcome)?.into_iter().enumerate();
    let taken =
        identities.filter_map(|(place, identity)| Some((descriptors.take(place)?, identity)));
    taken.map(|(fd, (name, origin))| Passed::check(fd, name, origin)).collect()
}

/// The name and the origin of each descriptor, in their order.
pub(super) fn identities(
    environment: &Environment,
    count: usize,
    welcome: &Welcome,
) -> Result<Vec<(Option<String>, Origin)>, Error> {
    if count == 0 {
        return Ok(Vec::new());
    }
    let names = match welcome.names.len() {
        // A parent names them by a variable, a predecessor in its welcome.
        0 => names(environment, count)?,
        named if named == count => welcome.names.iter().cloned().map(Some).collect(),
        named => {
            let why = format!("it names {named} descriptors, and {LISTEN_FDS} says {count}");
            return Err(Error::Predecessor { why });
        }
    };
    let bound: HashMap<usize, &Binding> =
        welcome.bound.iter().map(|(place, binding)| (*place, binding)).collect();
    let identities = names.into_iter().enumerate().map(|(place, name)| {
        let bound = bound.get(&place);
        let stored = name.as_deref().and_then(StoredName::parse);
        match (bound, stored) {
            (Some(binding), _) => (name, Origin::Bound((*binding).clone())),
            // It comes back from the service manager's store: a process of ours, now dead, has
            // bound it.
            (None, Some((stored, binding))) => (Some(stored.to_owned()), Origin::Bound(binding)),
            (None, None) => (name, Origin::Inherited),
        }
    });
    Ok(identities.collect())
}

/// The names of the passed descriptors. `unknown` and the empty name are what systemd calls those
/// without one.
fn names(environment: &Environment, count: usize) -> Result<Vec<Option<String>>, Error> {
    let Some(value) = environment.get(LISTEN_FDNAMES) else { return Ok(vec![None; count]) };
    let text = value.to_str().ok_or_else(|| bad(LISTEN_FDNAMES, value, "expected text"))?;
    if text.chars().any(char::is_control) {
        return Err(bad(LISTEN_FDNAMES, value, "a name may not hold control characters"));
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
            format!("it names {} descriptors, and {LISTEN_FDS} says {count}", names.len()),
        ))
    }
}
