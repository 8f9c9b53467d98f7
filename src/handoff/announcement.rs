//! This module finds the channel to the predecessor (the old process), as the environment names it.
//!
//! A predecessor cannot know the pid of its successor before the fork, so `LISTEN_PID` cannot
//! contain it. Another variable contains the number of the channel's file descriptor instead.

use std::os::fd::{AsFd, OwnedFd, RawFd};

use super::passed::is_passed;
use super::variables::{CHANNEL, bad};
use crate::error::Error;
use crate::sys;
use crate::sys::env::Environment;
use crate::sys::fd::PassedDescriptors;

/// Returns the channel to the predecessor, if a predecessor started this process.
pub(super) fn channel(
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
    let found = sys::fd::describe(&channel);
    let why = format!("descriptor {descriptor} is {found}, not a channel to another process");
    Err(bad(CHANNEL, value, why))
}

/// Returns the file descriptor of the channel to the predecessor, as given in the environment.
/// Returns an error if it is one of the first `count` passed descriptors, which are sockets.
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
