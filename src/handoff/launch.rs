//! This module launches a successor: it passes on sockets and channels, and sends the first
//! message.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;

use super::channel::Channel;
use super::init::Init;
use super::message::{Message, WORDS};
use super::payload::Hello;
use super::predecessor::Predecessors;
use super::program::Program;
use crate::generation::Generation;
use crate::net::{Binding, Listener, ListenerSet, Origin};
use crate::report::CarryForecast;
use crate::sys::fd::{FIRST_PASSED, ReservedFd};
use crate::sys::socket::channel_pair;
use crate::sys::spawn::{Launch, launch};

/// The size, in bytes, of the send buffer for the channel over which connections move to the
/// successor. The kernel may allow less.
const CARRY_QUEUE: usize = 256 * 1024;

/// The program, sockets and channels with which this process starts a successor.
pub(crate) struct LaunchSpec<'a> {
    pub(crate) program: &'a Program,
    pub(crate) generation: Generation,
    pub(crate) listeners: &'a ListenerSet,
    pub(crate) predecessors: &'a Predecessors,
    pub(crate) init: Option<&'a Init>,
    pub(crate) slot: &'a mut ReservedFd,
    /// How many connections may move to the successor, for each listener. `None` if no connection
    /// will move.
    pub(crate) forecast: Option<CarryForecast>,
}

impl LaunchSpec<'_> {
    /// Sends the hello message, which is the first message to a successor, and starts the program.
    /// `theirs` becomes the successor's end of `channel`.
    pub(super) fn launch(&mut self, channel: &Channel, theirs: OwnedFd) -> io::Result<()> {
        let listeners = self.listeners.passed_on();
        let mut passed: Vec<BorrowedFd<'_>> = listeners.iter().map(AsFd::as_fd).collect();
        let forecast = self.forecast.take().unwrap_or_default();
        let names = listeners.iter().map(|listener| listener.name().to_string()).collect();
        let mut hello = Hello { bound: bound(&listeners), forecast, names, ..Hello::default() };
        for (generation, older) in self.predecessors.channels() {
            hello.draining.push((generation, number_of(passed.len())?));
            passed.push(older);
        }
        if let Some(init) = self.init {
            hello.init = Some(number_of(passed.len())?);
            passed.push(init.as_fd());
        }
        let descriptor = number_of(passed.len())?;
        passed.push(self.slot.fill(theirs)?);
        // Send the hello message before the fork, so that the successor never has to wait for it.
        channel.send(&Message::Hello(hello))?;

        let program = CString::new(self.program.path().as_os_str().as_bytes())?;
        let environment =
            self.program.environment_for(self.generation, listeners.len(), descriptor);
        launch(&Launch {
            program: &program,
            arguments: self.program.arguments(),
            environment: &environment,
            passed: &passed,
            channel: passed.len() - 1,
            words: WORDS,
        })
    }
}

/// Returns the number that a passed file descriptor will have in the successor. `place` is its
/// index among the passed descriptors.
fn number_of(place: usize) -> io::Result<RawFd> {
    RawFd::try_from(place).map(|place| FIRST_PASSED + place).map_err(io::Error::other)
}

/// Creates the channel for connections that move to the successor. Returns our end and the
/// successor's end.
pub(super) fn carry_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = channel_pair()?;
    // Enlarge the send buffer, because the default size may be too small for the messages about all
    // connections. Ignore an error, because a smaller buffer also works.
    let _ = socket2::SockRef::from(&ours).set_send_buffer_size(CARRY_QUEUE);
    Ok((ours, theirs))
}

/// Returns the sockets that this process or an older generation bound, each with its index in
/// `listeners`.
fn bound(listeners: &[&Listener]) -> Vec<(usize, Binding)> {
    let bound =
        listeners.iter().enumerate().filter_map(|(place, listener)| match listener.origin() {
            Origin::Bound(binding) => Some((place, binding.clone())),
            Origin::Inherited => None,
        });
    bound.collect()
}
