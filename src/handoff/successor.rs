//! Starts a successor and holds it: its channel, its process, and what it has said so far.
//!
//! Readiness is a message and death is the word of the kernel; how long to wait for either is the
//! caller's decision. From its first message on the process is held by a descriptor, so that no
//! signal can reach a stranger.

use std::ffi::CString;
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::time::Instant;

use super::channel::{Channel, Received};
use super::init::Init;
use super::inquiry::Inquiry;
use super::message::{Hangup, Message, WORDS, Welcome};
use super::predecessor::Predecessors;
use super::program::Program;
use crate::error::{EndStatus, HandoffFailure};
use crate::generation::Generation;
use crate::net::{Listener, ListenerSet, Origin};
use crate::report::{Counters, Report};
use crate::sys::fd::{FIRST_PASSED, LowSlot};
use crate::sys::socket::channel_pair;
use crate::sys::spawn::{Launch, launch};
use crate::text::one_line;

/// What connections that are carried may have queued, if the system allows that much.
const CARRY_QUEUE: usize = 256 * 1024;

/// How long to wait for the exit status of a process that has closed its end of the channel.
const DYING: Duration = Duration::from_millis(100);

/// All that a successor is born with.
pub(crate) struct Bequest<'a> {
    pub(crate) program: &'a Program,
    pub(crate) generation: Generation,
    pub(crate) listeners: &'a ListenerSet,
    pub(crate) predecessors: &'a Predecessors,
    pub(crate) init: Option<&'a Init>,
    pub(crate) slot: &'a mut LowSlot,
    /// How many connections there are that may be carried to it, by the name of their listener,
    /// where their number is limited; none if there are none to be carried.
    pub(crate) coming: Option<Vec<(usize, String)>>,
}

impl Bequest<'_> {
    /// Sends the welcome and starts the program, with `theirs` as its end of `channel`.
    fn launch(&mut self, channel: &Channel, theirs: OwnedFd) -> io::Result<()> {
        let listeners = self.listeners.passed_on();
        let mut passed: Vec<BorrowedFd<'_>> = listeners.iter().map(AsFd::as_fd).collect();
        let coming = self.coming.take().unwrap_or_default();
        let names = listeners.iter().map(|listener| listener.name().to_string()).collect();
        let mut welcome = Welcome { bound: bound(&listeners), coming, names, ..Welcome::default() };
        for (generation, older) in self.predecessors.channels() {
            welcome.draining.push((generation, number_of(passed.len())?));
            passed.push(older);
        }
        if let Some(init) = self.init {
            welcome.init = Some(number_of(passed.len())?);
            passed.push(init.as_fd());
        }
        let descriptor = number_of(passed.len())?;
        passed.push(self.slot.fill(theirs)?);
        // Before the fork, so that the successor never has to wait for it.
        channel.send(&Message::Welcome(welcome))?;

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

/// The number under which the descriptor at `place` is passed.
fn number_of(place: usize) -> io::Result<RawFd> {
    RawFd::try_from(place).map(|place| FIRST_PASSED + place).map_err(io::Error::other)
}

/// The process after this one.
#[derive(Debug)]
pub(crate) struct Successor {
    channel: Channel,
    program: PathBuf,
    /// Both ends of a channel for connections, if there are any: made when there is room for it,
    /// not at the instant of the commit.
    carrying: Option<(OwnedFd, OwnedFd)>,
    stage: Stage,
    /// How long to wait for its exit status, since it closed its end of the channel.
    dying_until: Option<Instant>,
    inquiry: Inquiry,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Starting,
    Ready,
    /// It has taken over, and what becomes of it is no longer our affair; but it may ask how we
    /// stand.
    Released,
}

/// What came from the successor.
#[derive(Debug)]
pub(crate) enum SuccessorEvent {
    /// It accepts. The places, in the listener set that it was given, of what it gave up, and of
    /// what it replaced.
    Ready { pid: Option<u32>, given_up: Vec<usize>, replaced: Vec<usize> },
    /// It will never take over, or no longer; why.
    Lost(HandoffFailure),
    /// It has taken over, and was told to stop with the whole line.
    Stopping,
    /// Nobody listens any more on these sockets, by their `SO_COOKIE`.
    GivenUp(Vec<u64>),
    /// There are too many of us: stop draining.
    Cut,
    /// It asks how we stand.
    Asked,
    /// It has said how it stands.
    Reported,
    /// It has ended, after it was released. Nothing more comes.
    Ended,
}

/// A channel to carry connections by: our end, and the successor's.
fn carry_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = channel_pair()?;
    // What is owed may be more than a queue has room for that some system has made small.
    let _ = socket2::SockRef::from(&ours).set_send_buffer_size(CARRY_QUEUE);
    Ok((ours, theirs))
}

/// How to end a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Tell it to stop; it drains what it has accepted.
    Stop,
    /// Kill it.
    Kill,
}

impl Successor {
    /// Starts it. What comes of it, [`Successor::next`] tells. Must be called in a tokio runtime,
    /// and holds the thread for as long as two forks take.
    ///
    /// # Errors
    /// [`HandoffFailure::Fork`] when not even a process could be made.
    pub(crate) fn start(bequest: &mut Bequest<'_>) -> Result<Self, HandoffFailure> {
        let failed = |source| HandoffFailure::Fork { source };
        let (ours, theirs) = channel_pair().map_err(failed)?;
        let channel = Channel::to_a_new_process(ours).map_err(failed)?;
        let carrying = bequest.coming.as_ref().map(|_| carry_pair()).transpose().map_err(failed)?;
        let started = bequest.launch(&channel, theirs).map_err(failed);
        // A copy of the other end that stays in the slot does no harm: the process descriptor tells
        // of a death. What was started must not be forgotten for it.
        if let Err(error) = bequest.slot.clear() {
            tracing::warn!(
                event = "successor.close_failed", reason = %error,
                "cannot close the successor's end of the channel: {error}"
            );
        }
        started?;
        Ok(Self {
            channel,
            program: bequest.program.path().to_owned(),
            carrying,
            stage: Stage::Starting,
            dying_until: None,
            inquiry: Inquiry::default(),
        })
    }

    /// Its process id, once the kernel has said so with its first message.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.channel.pid()
    }

    /// Whether it has said that it accepts.
    pub(crate) fn is_ready(&self) -> bool {
        self.stage != Stage::Starting
    }

    /// Cares no longer what becomes of it: all that it may still do is ask.
    pub(crate) fn release(&mut self) {
        self.stage = Stage::Released;
    }

    /// Asks it how it stands, if it can answer by now.
    pub(crate) fn ask(&mut self) {
        if self.is_ready() {
            if let Some(question) = self.inquiry.question() {
                self.tell(&question);
            }
        }
    }

    /// What it has said of how it stands.
    pub(crate) const fn inquiry(&self) -> &Inquiry {
        &self.inquiry
    }

    /// Answers how we stand.
    pub(crate) fn answer(&self, report: Report) {
        self.tell(&Message::Report(Box::new(report)));
    }

    /// The next thing that matters. After [`SuccessorEvent::Lost`] and [`SuccessorEvent::Ended`]
    /// nothing more comes. Cancel safe.
    pub(crate) async fn next(&mut self) -> SuccessorEvent {
        loop {
            let received = poll_fn(|cx| self.channel.poll_receive(cx)).await;
            if matches!(received, Received::End) && self.stage != Stage::Released {
                // Kept, because this future may be dropped and made again more often than that.
                let until = *self.dying_until.get_or_insert_with(|| Instant::now() + DYING);
                let status = EndStatus(self.channel.exit_status(until).await);
                return SuccessorEvent::Lost(match self.stage {
                    Stage::Starting => HandoffFailure::EndedEarly { status },
                    Stage::Ready | Stage::Released => HandoffFailure::EndedLate { status },
                });
            }
            if let Some(event) = self.take(received) {
                return event;
            }
        }
    }

    /// Tells it what those before us have done that have ended.
    pub(crate) fn counted(&self, counters: Counters) {
        self.tell(&Message::Counted(Box::new(counters)));
    }

    /// Tells it how one before us stands that has not ended.
    pub(crate) fn draining(&self, report: Report) {
        self.tell(&Message::Draining(Box::new(report)));
    }

    /// Offers to carry our connections to it, in words of this version: our end of the channel to
    /// do so by, if there are any and it could be told. One that is closed tells that it will not
    /// have them.
    pub(crate) fn carry(&mut self, version: u32) -> Option<OwnedFd> {
        let (ours, theirs) = self.carrying.take()?;
        match self.channel.pass(&Message::Carry { version }, theirs.as_fd()) {
            // It is dead, which will be heard: nobody is told to come to an end for it.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                tracing::error!(
                    event = "carry.unavailable", reason = %error,
                    "no connection can be carried: {error}"
                );
                None
            }
            Err(_) | Ok(()) => Some(ours),
        }
    }

    /// Tells it that the line is its own.
    pub(crate) fn commit(&mut self, hangup: Hangup) {
        self.channel.outlive_process();
        self.tell(&Message::Committed(hangup));
    }

    /// The same, and that this generation was told to stop.
    pub(crate) fn commit_for_good(&mut self, hangup: Hangup) {
        self.channel.outlive_process();
        self.tell(&Message::CommittedForGood(hangup));
    }

    /// Ends it, unless it has ended.
    pub(crate) fn end(&self, fate: Fate) {
        // By message, for a process that has no handler yet, whose pid is not known yet, or that a
        // wrapper has forked: it would take the end of the channel for our death, and the line for
        // its own. By signal, for a program that is none of ours.
        self.tell(&Message::Stop);
        let signal = match fate {
            Fate::Stop => Signal::SIGTERM,
            Fate::Kill => Signal::SIGKILL,
        };
        let pid = self.pid();
        match self.channel.signal(signal) {
            Some(Ok(())) => {
                tracing::debug!(
                    event = "successor.signalled", successor_pid = pid, %signal,
                    "signalled the successor"
                )
            }
            Some(Err(error)) => {
                tracing::debug!(
                    event = "successor.ended", successor_pid = pid, %signal, %error,
                    "the successor has ended already"
                );
            }
            None => {}
        }
    }

    /// Tells it to stop: whether it says within that time that it does, and leaves the line to us.
    pub(crate) async fn gives_back(&mut self, within: Duration) -> bool {
        self.end(Fate::Stop);
        let said = async {
            loop {
                if let SuccessorEvent::Lost(failure) = self.next().await {
                    return matches!(failure, HandoffFailure::ToldToStop);
                }
            }
        };
        tokio::time::timeout(within, said).await.unwrap_or(false)
    }

    fn tell(&self, message: &Message) {
        if let Err(error) = self.channel.send(message) {
            tracing::debug!(
                event = "successor.unreachable", ?message, %error,
                "the successor no longer hears"
            );
        }
    }

    fn take(&mut self, received: Received) -> Option<SuccessorEvent> {
        if self.stage == Stage::Released {
            return match received {
                Received::Message(Message::Ask) => Some(SuccessorEvent::Asked),
                Received::Message(Message::Cut) => Some(SuccessorEvent::Cut),
                Received::Message(Message::GivenUp { sockets }) => {
                    Some(SuccessorEvent::GivenUp(sockets))
                }
                Received::Message(_) | Received::Passed(..) => None,
                Received::Garbage(_) | Received::End => Some(SuccessorEvent::Ended),
            };
        }
        let lost = |failure| Some(SuccessorEvent::Lost(failure));
        let exec = |source| HandoffFailure::Exec { program: self.program.clone(), source };
        match received {
            Received::Message(Message::Born) => {
                self.channel.follow_sender();
                None
            }
            Received::Message(Message::Ready { closed, replaced }) => {
                // A wrapper may have forked: the process that says that it is ready is the one that
                // serves.
                self.channel.follow_sender();
                self.stage = Stage::Ready;
                let place = |descriptor: &RawFd| {
                    usize::try_from(descriptor.checked_sub(FIRST_PASSED)?).ok()
                };
                let given_up = closed.iter().filter_map(place).collect();
                let replaced = replaced.iter().filter_map(place).collect();
                Some(SuccessorEvent::Ready { pid: self.pid(), given_up, replaced })
            }
            Received::Message(Message::ForkFailed { errno }) => {
                lost(HandoffFailure::Fork { source: io::Error::from_raw_os_error(errno) })
            }
            Received::Message(Message::ExecFailed { errno }) => {
                lost(exec(io::Error::from_raw_os_error(errno)))
            }
            Received::Message(Message::Failed { reason }) => {
                lost(HandoffFailure::Refused { reason: one_line(&reason) })
            }
            Received::Message(Message::Rollback) => lost(HandoffFailure::ToldToStop),
            Received::Message(Message::Stopping) => Some(SuccessorEvent::Stopping),
            Received::Message(Message::Cut) => Some(SuccessorEvent::Cut),
            Received::Message(Message::GivenUp { sockets }) => {
                Some(SuccessorEvent::GivenUp(sockets))
            }
            Received::Message(Message::Ask) => Some(SuccessorEvent::Asked),
            // No successor passes anything: it is closed.
            Received::Message(message) | Received::Passed(message, _) => {
                match self.inquiry.hear(message) {
                    Ok(()) => Some(SuccessorEvent::Reported),
                    Err(message) => {
                        tracing::debug!(
                            event = "message.unexpected",
                            ?message,
                            "passed over a message of the successor"
                        );
                        None
                    }
                }
            }
            Received::Garbage(why) => lost(HandoffFailure::Garbage { why: one_line(&why) }),
            // [`Successor::next`] reports the end.
            Received::End => None,
        }
    }
}

/// The sockets that the line bound itself, by their place.
fn bound(listeners: &[&Listener]) -> Vec<(usize, crate::net::Binding)> {
    let bound =
        listeners.iter().enumerate().filter_map(|(place, listener)| match listener.origin() {
            Origin::Bound(binding) => Some((place, binding.clone())),
            Origin::Inherited => None,
        });
    bound.collect()
}
