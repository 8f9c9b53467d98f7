//! A reserve of file descriptors for the control socket, metrics and handoffs. Client connections
//! may not use the reserve.
//!
//! The reserve consists of the highest descriptor numbers. A new descriptor always gets the lowest
//! free number (see open(2)). So a number in the reserve means that all numbers below the reserve
//! are taken, and this module need not count descriptors.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::libc;
use nix::sys::resource::{Resource, getrlimit};

/// The number of descriptors in the reserve. If the descriptor limit is less than four times this
/// number, the reserve is a quarter of the limit.
const RESERVE: RawFd = 64;
/// How many times a thread uses a stored copy of the descriptor limit before it asks the kernel
/// again. It uses the copy only while most descriptors are free, so it notices a lower limit in
/// time.
const READ_EVERY: u32 = 8;

/// How many descriptor numbers a single system call checks.
const BATCH: RawFd = 256;

/// Whether the descriptor number of a connection has ever come close to the reserve. From then on,
/// this module checks for free descriptors under a lock, because a low number no longer proves that
/// many others are free.
static IS_NEAR: AtomicBool = AtomicBool::new(false);
static OPENING: Mutex<()> = Mutex::new(());

/// How many descriptors the accepted clients will still need for their upstream connections.
static EARMARKED: AtomicI32 = AtomicI32::new(0);

/// A claim on one file descriptor that an accepted client will need for its upstream connection.
/// The claim prevents new clients from using up that descriptor.
#[derive(Debug)]
pub(crate) struct DescriptorClaim(());

/// How much of the reserve of descriptors a caller may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReserveAccess {
    /// The caller may use no part of the reserve. This is for client connections, upstream
    /// connections, and the pipes between them.
    Nothing,
    /// The caller may use half of the reserve. This is for metrics requests, which leave the other
    /// half to the operator.
    Half,
    /// The caller may use the whole reserve. This is for the control socket of the operator.
    All,
}

/// Accepts a connection by calling `accept`, and claims a descriptor for its upstream connection.
/// `listener` may be any descriptor, because this function only duplicates it to find free numbers.
///
/// # Errors
/// `EMFILE` when the only free descriptors are in a part of the reserve that `access` excludes.
pub(crate) fn accept<T: AsFd>(
    access: ReserveAccess,
    listener: impl AsFd,
    accept: impl FnOnce() -> io::Result<T>,
) -> io::Result<(T, DescriptorClaim)> {
    let opening = (access != ReserveAccess::All).then(lock_near).flatten();
    if opening.is_some() {
        // Check for free descriptors before accepting, because an accepted connection cannot go
        // back to the backlog.
        let count = match access {
            // Require one descriptor for the connection and one for its upstream connection, in
            // addition to the descriptors that other clients have claimed.
            ReserveAccess::Nothing => EARMARKED.load(Ordering::Relaxed).saturating_add(2),
            ReserveAccess::Half | ReserveAccess::All => 1,
        };
        require_free(listener, first_refused_to(access), count)?;
    }
    let accepted = accept()?;
    note(&accepted);
    // Create the claim while this thread still holds the lock, so that the next accept counts the
    // claim.
    Ok((accepted, DescriptorClaim::new()))
}

/// Checks that at least `count` descriptor numbers below `end` are free. It does so by duplicating
/// `any`, which may be any descriptor.
///
/// # Errors
/// `EMFILE` when fewer than `count` numbers are free.
fn require_free(any: impl AsFd, end: RawFd, count: RawFd) -> io::Result<()> {
    let (mut from, mut missing) = (0, count);
    while missing > 0 {
        // Drop the duplicate at once, so that its number counts as free below.
        let first = rustix::io::fcntl_dupfd_cloexec(&any, from)?.as_raw_fd();
        if first >= end {
            return Err(Errno::EMFILE.into());
        }
        // Many clients may wait for an upstream at the same time. So check many numbers with one
        // system call.
        from = end.min(first.saturating_add(missing.min(BATCH)));
        missing -= count_free(first, from)?.max(1);
    }
    Ok(())
}

/// Returns how many descriptor numbers from `first` to `end` are free. There may be at most
/// [`BATCH`] of these numbers.
fn count_free(first: RawFd, end: RawFd) -> io::Result<RawFd> {
    let polled = libc::pollfd { fd: -1, events: 0, revents: 0 };
    let mut polled = [polled; BATCH as usize];
    let mut count: libc::nfds_t = 0;
    for (entry, fd) in polled.iter_mut().zip(first..end) {
        entry.fd = fd;
        count += 1;
    }
    // SAFETY: the array has at least `count` entries, and lives until the call returns. The kernel
    // reports a number that is no open descriptor (see poll(2)).
    Errno::result(unsafe { libc::poll(polled.as_mut_ptr(), count, 0) })?;
    let is_free = |entry: &&libc::pollfd| entry.revents & libc::POLLNVAL != 0;
    Ok(RawFd::try_from(polled.iter().filter(is_free).count()).unwrap_or(RawFd::MAX))
}

/// Opens a descriptor on behalf of a client, unless the descriptor would be part of the reserve.
///
/// # Errors
/// `EMFILE` when only the reserve of descriptors is left.
#[cfg(feature = "proxy")]
pub(crate) fn open<T: AsFd>(open: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let _opening = lock_near();
    let opened = open()?;
    note(&opened);
    if is_reserved(&opened) { Err(Errno::EMFILE.into()) } else { Ok(opened) }
}

impl DescriptorClaim {
    pub(crate) fn new() -> Self {
        EARMARKED.fetch_add(1, Ordering::Relaxed);
        Self(())
    }
}

impl Drop for DescriptorClaim {
    fn drop(&mut self) {
        EARMARKED.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Returns whether a descriptor is part of the reserve, according to its number.
pub(crate) fn is_reserved(descriptor: impl AsFd) -> bool {
    descriptor.as_fd().as_raw_fd() >= first_refused_to(ReserveAccess::Nothing)
}

/// Takes the lock for opening descriptors if connections have come close to the reserve. While this
/// thread holds the lock, no other client connection can take the free descriptor numbers between
/// the check and the accept.
fn lock_near() -> Option<MutexGuard<'static, ()>> {
    let is_near = IS_NEAR.load(Ordering::Relaxed);
    is_near.then(|| OPENING.lock().unwrap_or_else(PoisonError::into_inner))
}

fn note(opened: impl AsFd) {
    // Set the flag when half of the usable numbers are taken, because each accepted client may need
    // a second descriptor for its upstream connection.
    if opened.as_fd().as_raw_fd() >= first_refused_to(ReserveAccess::Nothing) / 2 {
        IS_NEAR.store(true, Ordering::Relaxed);
    }
}

/// Returns the lowest file descriptor number that a caller may not use. `access` says how much of
/// the reserve of descriptors the caller may use.
fn first_refused_to(access: ReserveAccess) -> RawFd {
    first_refused_below(descriptor_limit(), access)
}

/// Returns how many file descriptors this process may have open.
#[cfg(feature = "proxy")]
pub(crate) fn descriptors() -> usize {
    usize::try_from(descriptor_limit()).unwrap_or(0)
}

/// Returns the descriptor limit of this process. prlimit(1) can change it at any time.
fn descriptor_limit() -> RawFd {
    thread_local! {
        static LAST: Cell<LastLimit> = const { Cell::new(LastLimit { limit: 0, uses_left: 0 }) };
    }
    if IS_NEAR.load(Ordering::Relaxed) {
        return read_limit();
    }
    LAST.with(|last| {
        let used = last.get().used(read_limit);
        last.set(used);
        used.limit
    })
}

fn read_limit() -> RawFd {
    getrlimit(Resource::RLIMIT_NOFILE)
        .map_or(RawFd::MAX, |(soft, _)| RawFd::try_from(soft).unwrap_or(RawFd::MAX))
}

/// A thread's copy of the descriptor limit, so that the thread does not ask the kernel each time.
#[derive(Clone, Copy, Debug)]
struct LastLimit {
    limit: RawFd,
    /// How many more times the thread may use the limit before it reads the limit again.
    uses_left: u32,
}

impl LastLimit {
    /// Uses the copy once. First reads the limit again if the copy has been used often enough.
    fn used(self, read: impl FnOnce() -> RawFd) -> Self {
        match self.uses_left.checked_sub(1) {
            Some(uses_left) => Self { uses_left, ..self },
            None => Self { limit: read(), uses_left: READ_EVERY - 1 },
        }
    }
}

fn first_refused_below(limit: RawFd, access: ReserveAccess) -> RawFd {
    let reserve = RESERVE.min(limit / 4);
    limit
        - match access {
            ReserveAccess::Nothing => reserve,
            ReserveAccess::Half => reserve / 2,
            ReserveAccess::All => 0,
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
            assert_eq!(first_refused_below(limit, ReserveAccess::Nothing), clients);
            assert_eq!(first_refused_below(limit, ReserveAccess::Half), metrics);
            assert_eq!(first_refused_below(limit, ReserveAccess::All), limit);
        }
    }

    #[test]
    fn a_changed_limit_is_noticed_after_a_few_uses() {
        let mut last = LastLimit { limit: 0, uses_left: 0 };
        let mut limits = Vec::new();
        for use_number in 0..2 * RawFd::try_from(READ_EVERY).unwrap() {
            last = last.used(|| 1000 + use_number);
            limits.push(last.limit);
        }
        assert_eq!(limits[..8], [1000; 8]);
        assert_eq!(limits[8..], [1008; 8]);
    }

    /// Other tests of this process open and close descriptors, so this test uses high numbers.
    #[test]
    fn free_numbers_are_counted_between_open_ones() {
        let limit = read_limit();
        let (from, end) = (limit - 2 * BATCH, limit - 1);
        let open = [3, 5, 5 + BATCH]
            .map(|offset| rustix::io::fcntl_dupfd_cloexec(io::stderr(), from + offset).unwrap());
        assert_eq!(open.each_ref().map(AsRawFd::as_raw_fd), [from + 3, from + 5, from + 5 + BATCH]);
        assert_eq!(count_free(from, from + BATCH).unwrap(), BATCH - 2);
        assert_eq!(count_free(from + 3, from + 4).unwrap(), 0);
        assert!(require_free(io::stderr(), end, 2 * BATCH - 4).is_ok());
        assert!(require_free(io::stderr(), end, end).is_err());
    }

    #[test]
    fn a_descriptor_of_the_reserve_is_told_by_its_number() {
        let last = first_refused_to(ReserveAccess::All) - 1;
        let high = rustix::io::fcntl_dupfd_cloexec(io::stderr(), last).unwrap();
        assert!(is_reserved(high));
        assert!(!is_reserved(io::stderr()));
    }
}
