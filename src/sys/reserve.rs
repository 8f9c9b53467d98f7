//! This module keeps the last descriptors of the process for its operator, its metrics and its
//! handoffs.
//!
//! A new descriptor gets the lowest free number (open(2)). So nothing has to be counted: the
//! reserve is whole as long as no connection has a number in it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};

/// How many descriptors connections never take. A process that may have fewer than four times as
/// many keeps a quarter.
const RESERVE: RawFd = 64;

/// Whether a connection has come near the reserve. From then on each one is opened under the lock:
/// a low number tells nothing of how many are free.
static IS_NEAR: AtomicBool = AtomicBool::new(false);
static OPENING: Mutex<()> = Mutex::new(());

/// How many descriptors clients will need that have been accepted already.
static EARMARKED: AtomicI32 = AtomicI32::new(0);

/// A descriptor that a client will need for its upstream. No further client is accepted in place of
/// it.
#[derive(Debug)]
pub(crate) struct Earmark(());

/// Who may use the reserve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Share {
    /// Clients, their upstreams, and the pipes between them.
    Nothing,
    /// Scrapes of metrics: they leave the other half to the operator.
    Half,
    /// The operator.
    All,
}

/// Accepts a connection, and earmarks a descriptor for its upstream, unless its descriptor would be
/// one of the reserve. `listener` is any descriptor.
///
/// # Errors
/// `EMFILE` when only the reserve is left.
pub(crate) fn accept<T: AsFd>(
    share: Share,
    listener: impl AsFd,
    accept: impl FnOnce() -> io::Result<T>,
) -> io::Result<(T, Earmark)> {
    let opening = (share != Share::All).then(lock_near).flatten();
    if opening.is_some() {
        // A connection that has been accepted can only be served or reset. So the look comes first.
        let count = match share {
            // The connection, and its own upstream.
            Share::Nothing => EARMARKED.load(Ordering::Relaxed).saturating_add(2),
            Share::Half | Share::All => 1,
        };
        require_free(listener, first_kept_from(share), count)?;
    }
    let accepted = accept()?;
    note(&accepted);
    // Still under the lock: the next accept sees it.
    Ok((accepted, Earmark::new()))
}

/// Looks for `count` free numbers below `end`. `any` is any descriptor.
fn require_free(any: impl AsFd, end: RawFd, count: RawFd) -> io::Result<()> {
    let mut from = 0;
    for _ in 0..count {
        let free = rustix::io::fcntl_dupfd_cloexec(&any, from)?.as_raw_fd();
        if free >= end {
            return Err(Errno::EMFILE.into());
        }
        from = free + 1;
    }
    Ok(())
}

/// Opens something for a client, unless its descriptor is one of the reserve.
///
/// # Errors
/// `EMFILE` when only the reserve is left.
pub(crate) fn open<T: AsFd>(open: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let _opening = lock_near();
    let opened = open()?;
    note(&opened);
    if is_reserved(&opened) { Err(Errno::EMFILE.into()) } else { Ok(opened) }
}

impl Earmark {
    fn new() -> Self {
        EARMARKED.fetch_add(1, Ordering::Relaxed);
        Self(())
    }
}

impl Drop for Earmark {
    fn drop(&mut self) {
        EARMARKED.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Returns whether a descriptor is one of the reserve.
pub(crate) fn is_reserved(descriptor: impl AsFd) -> bool {
    descriptor.as_fd().as_raw_fd() >= first_kept_from(Share::Nothing)
}

/// Locks, once connections are near the reserve: between a look and an accept no other connection
/// may take the number that was free.
fn lock_near() -> Option<MutexGuard<'static, ()>> {
    let is_near = IS_NEAR.load(Ordering::Relaxed);
    is_near.then(|| OPENING.lock().unwrap_or_else(PoisonError::into_inner))
}

fn note(opened: impl AsFd) {
    // Clients that are accepted one after another need as many descriptors again for their
    // upstreams.
    if opened.as_fd().as_raw_fd() >= first_kept_from(Share::Nothing) / 2 {
        IS_NEAR.store(true, Ordering::Relaxed);
    }
}

/// The lowest descriptor that is kept from those with this share. The limit may change at any time
/// (prlimit(1)).
fn first_kept_from(share: Share) -> RawFd {
    let limit = getrlimit(Resource::RLIMIT_NOFILE)
        .map_or(RawFd::MAX, |(soft, _)| RawFd::try_from(soft).unwrap_or(RawFd::MAX));
    first_kept_below(limit, share)
}

fn first_kept_below(limit: RawFd, share: Share) -> RawFd {
    let reserve = RESERVE.min(limit / 4);
    limit
        - match share {
            Share::Nothing => reserve,
            Share::Half => reserve / 2,
            Share::All => 0,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_is_a_quarter_of_few_descriptors_and_64_of_many() {
        for (limit, clients, metrics) in
            [(40, 30, 35), (300, 236, 268), (1 << 30, (1 << 30) - 64, (1 << 30) - 32)]
        {
            assert_eq!(first_kept_below(limit, Share::Nothing), clients);
            assert_eq!(first_kept_below(limit, Share::Half), metrics);
            assert_eq!(first_kept_below(limit, Share::All), limit);
        }
    }

    #[test]
    fn a_descriptor_of_the_reserve_is_told_by_its_number() {
        let last = first_kept_from(Share::All) - 1;
        let high = rustix::io::fcntl_dupfd_cloexec(io::stderr(), last).unwrap();
        assert!(is_reserved(high));
        assert!(!is_reserved(io::stderr()));
    }
}
