//! The messages between generations. Each message is one packet with lines of the form `KEY=value`,
//! as in sd_notify(3).
//!
//! Every packet begins with the protocol version and the message kind. Unknown keys are ignored, so
//! a later version can add keys to a message. A message of an unknown kind or version has no
//! effect, and the receiver replies [`Message::Unknown`]. The sender replaces each line break in a
//! value with a space. `docs/protocol.md` describes which generation sends which message, and when.

use std::os::fd::RawFd;

use super::fields::{Fields, PacketWriter};
use super::payload::{Commit, Hello};
use crate::error::Malformed;
use crate::report::{Counters, Report};
use crate::sys::spawn::PreExecMessages;

/// The version of the handoff protocol that this program uses.
pub(crate) const VERSION: u32 = 2;

/// The maximum length of a reason in characters. A reason must fit into one log line and one
/// packet.
const REASON_MAX: usize = 4000;

/// The name of the message kind [`Message::Ask`], a request for a status report. Older versions do
/// not know this kind and reply with [`Message::Unknown`].
pub(super) const ASK: &str = "ask";

/// The messages that a new process sends between fork and exec, in the format of
/// [`Message::encode`]. They are constants, because a process cannot allocate memory between fork
/// and exec.
pub(crate) const WORDS: PreExecMessages = PreExecMessages {
    born: b"VERSION=2\nKIND=started\nPID=",
    fork_failed: b"VERSION=2\nKIND=fork-failed\nERRNO=",
    exec_failed: b"VERSION=2\nKIND=exec-failed\nERRNO=",
};

/// A message from one generation to another, or to the init process. Each message is one packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// The first packet from a predecessor to its successor. It describes the passed file
    /// descriptors.
    Hello(Hello),
    /// The predecessor tells its successor that the handoff is committed: the predecessor has
    /// retired, and the successor is now the active generation.
    Committed(Commit),
    /// The predecessor sends its successor the counters of the older generations that have ended.
    /// It sends them just before it commits the handoff.
    Counted(Box<Counters>),
    /// The predecessor sends its successor the last status report of an older generation that has
    /// not ended. It sends the report just before it commits the handoff.
    Draining(Box<Report>),
    /// The predecessor offers to move its connections to the successor over the attached channel.
    /// `version` is the version of the protocol for moving connections. The predecessor sends this
    /// message before it commits the handoff.
    Carry { version: u32 },
    /// The predecessor tells its successor to stop. The reason is that the service stops, or that
    /// the handoff has failed or was rolled back.
    Stop,
    /// A new process is about to execute the successor's program. Along with this message the
    /// kernel reports the pid of the new process.
    Born,
    /// The launch of a successor failed at the second fork. The intermediate process, which should
    /// have forked the successor, sends this message.
    ForkFailed { errno: i32 },
    /// The launch of a successor failed at the exec. The process that should have become the
    /// successor sends this message.
    ExecFailed { errno: i32 },
    /// The successor tells its predecessor that it accepts connections. `closed` lists the passed
    /// file descriptors that the successor closed, because they match no configured listener.
    /// `replaced` lists those closed sockets whose address overlaps with the address of a new
    /// listener. Clients reach the new listener once the predecessor has closed these sockets too.
    Ready { closed: Vec<RawFd>, replaced: Vec<RawFd> },
    /// The successor tells its predecessor that it cannot serve, and why.
    Failed { reason: String },
    /// The successor tells its predecessor to keep serving. The successor sends this if it is told
    /// to stop, or finds a fault of its own, before the handoff is committed. `reason` is empty if
    /// the successor was told to stop.
    Rollback { reason: String },
    /// The predecessor has received the rollback, and serves on. The successor must close its
    /// copies of the listening sockets, and then its channels to all older generations.
    RolledBack,
    /// The successor needs at least this much more time until it is ready, counted from now.
    Extend { milliseconds: u64 },
    /// The predecessor passes the state of its server to the successor, just before it commits the
    /// handoff. The attached file contains the state, and `format` names its format.
    Offer { format: String },
    /// The newest generation tells all draining generations that the whole service stops. They must
    /// then not accept connections again, even if the newest generation dies.
    Stopping,
    /// A retiring generation tells all older generations which listening sockets the service no
    /// longer uses. Each number identifies one socket by its `SO_COOKIE` (see socket(7)).
    GivenUp { sockets: Vec<u64> },
    /// The newest generation tells a draining generation to close its remaining connections early,
    /// because too many generations are alive.
    Cut,
    /// A generation tells the init process, if one exists, that the process `pid` is now the active
    /// generation.
    Active { pid: u32 },
    /// The active generation asks another generation for a status report.
    Ask,
    /// A status report, which is the reply to [`Message::Ask`].
    Report(Box<Report>),
    /// A message that is too long for a packet. The attached file contains the message. Any
    /// generation may send this kind.
    File,
    /// The reply to a message of an unknown kind.
    Unknown { kind: String },
    /// A received packet of an unknown version or kind. This message is never sent.
    Unrecognised { version: u32, kind: String },
}

impl Message {
    /// Encodes this message as a packet.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut packet = PacketWriter(format!("VERSION={VERSION}\nKIND={}\n", self.kind()));
        match self {
            Self::Hello(hello) => hello.write(&mut packet),
            Self::Committed(commit) => commit.write(&mut packet),
            Self::Active { pid } => packet.line("PID", pid),
            Self::ForkFailed { errno } | Self::ExecFailed { errno } => packet.line("ERRNO", errno),
            Self::Ready { closed, replaced } => {
                closed.iter().for_each(|descriptor| packet.line("CLOSED", descriptor));
                replaced.iter().for_each(|descriptor| packet.line("REPLACED", descriptor));
            }
            Self::GivenUp { sockets } => {
                sockets.iter().for_each(|socket| packet.line("SOCKET", socket))
            }
            Self::Failed { reason } => {
                packet.line("REASON", reason.chars().take(REASON_MAX).collect::<String>())
            }
            Self::Rollback { reason } if reason.is_empty() => {}
            Self::Rollback { reason } => {
                packet.line("REASON", reason.chars().take(REASON_MAX).collect::<String>())
            }
            Self::Extend { milliseconds } => packet.line("MILLISECONDS", milliseconds),
            Self::Offer { format } => packet.line("FORMAT", format),
            Self::Carry { version } => packet.line("CARRY", version),
            Self::Counted(counters) => {
                packet.line("COUNTERS", serde_json::to_string(counters).unwrap_or_default())
            }
            Self::Draining(report) | Self::Report(report) => {
                packet.line("REPORT", serde_json::to_string(report).unwrap_or_default())
            }
            Self::Unknown { kind } => packet.line("UNKNOWN", kind),
            Self::Stop
            | Self::RolledBack
            | Self::Stopping
            | Self::Cut
            | Self::Born
            | Self::Ask
            | Self::File
            | Self::Unrecognised { .. } => {}
        }
        packet.0.into_bytes()
    }

    fn kind(&self) -> &str {
        match self {
            Self::Hello(_) => "hello",
            Self::Committed(_) => "committed",
            Self::Counted(_) => "counters",
            Self::Draining(_) => "draining",
            Self::Carry { .. } => "carry",
            Self::Stop => "stop",
            Self::Born => "started",
            Self::ForkFailed { .. } => "fork-failed",
            Self::ExecFailed { .. } => "exec-failed",
            Self::Ready { .. } => "ready",
            Self::Failed { .. } => "failed",
            Self::Rollback { .. } => "rollback",
            Self::RolledBack => "rolled-back",
            Self::Extend { .. } => "extend",
            Self::Offer { .. } => "offer",
            Self::Stopping => "stopping",
            Self::GivenUp { .. } => "given-up",
            Self::Cut => "cut",
            Self::Active { .. } => "active",
            Self::Ask => ASK,
            Self::Report(_) => "report",
            Self::File => "file",
            Self::Unknown { .. } => "unknown",
            Self::Unrecognised { kind, .. } => kind,
        }
    }

    /// Decodes a packet into a message.
    ///
    /// # Errors
    /// Returns a text that says why the packet is not a valid message.
    pub(crate) fn decode(packet: &[u8]) -> Result<Self, Malformed> {
        let text = std::str::from_utf8(packet)
            .map_err(|_| format!("its {} bytes are not valid text", packet.len()))?;
        let mut fields = Fields::read(text)?;
        let version = fields.number("VERSION")?;
        let kind = fields.text("KIND")?;
        if version != VERSION {
            return Ok(Self::Unrecognised { version, kind: kind.to_owned() });
        }
        Ok(match kind {
            "hello" => Self::Hello(Hello::read(&mut fields)?),
            "committed" => Self::Committed(Commit::read(&mut fields)),
            "counters" => Self::Counted(Box::new(fields.json("COUNTERS")?)),
            "draining" => Self::Draining(Box::new(fields.json("REPORT")?)),
            "carry" => Self::Carry { version: fields.number("CARRY")? },
            "stop" => Self::Stop,
            "started" => Self::Born,
            "fork-failed" => Self::ForkFailed { errno: fields.number("ERRNO")? },
            "exec-failed" => Self::ExecFailed { errno: fields.number("ERRNO")? },
            "ready" => {
                Self::Ready { closed: fields.all("CLOSED")?, replaced: fields.all("REPLACED")? }
            }
            "failed" => Self::Failed { reason: fields.text("REASON")?.to_owned() },
            "rollback" => {
                Self::Rollback { reason: fields.take("REASON").unwrap_or_default().to_owned() }
            }
            "rolled-back" => Self::RolledBack,
            "extend" => Self::Extend { milliseconds: fields.number("MILLISECONDS")? },
            "offer" => Self::Offer { format: fields.text("FORMAT")?.to_owned() },
            "stopping" => Self::Stopping,
            "given-up" => Self::GivenUp { sockets: fields.all("SOCKET")? },
            "cut" => Self::Cut,
            "active" => Self::Active { pid: fields.number("PID")? },
            ASK => Self::Ask,
            "file" => Self::File,
            "report" => Self::Report(Box::new(fields.json("REPORT")?)),
            "unknown" => Self::Unknown { kind: fields.text("UNKNOWN")?.to_owned() },
            other => Self::Unrecognised { version, kind: other.to_owned() },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_reads_back_as_it_was_written() {
        for message in crate::handoff::fuzz::every_message() {
            assert_eq!(Message::decode(&message.encode()), Ok(message));
        }
    }

    #[test]
    fn the_words_between_fork_and_exec_are_messages() {
        let complete = |words: &[u8]| Message::decode(&[words, b"12\n"].concat()).unwrap();
        assert_eq!(complete(WORDS.born), Message::Born);
        assert_eq!(complete(WORDS.fork_failed), Message::ForkFailed { errno: 12 });
        assert_eq!(complete(WORDS.exec_failed), Message::ExecFailed { errno: 12 });
    }

    #[test]
    fn an_unknown_kind_or_version_is_a_message_and_garbage_is_not() {
        let unknown =
            |version, kind: &str| Ok(Message::Unrecognised { version, kind: kind.to_owned() });
        assert_eq!(Message::decode(b"VERSION=2\nKIND=novel\nCOUNT=3\n"), unknown(2, "novel"));
        assert_eq!(Message::decode(b"VERSION=1\nKIND=ready\n"), unknown(1, "ready"));
        for garbage in [
            &b""[..],
            b"\n",
            b"garbage",
            b"VERSION=2\nKIND=ready\nPI",
            b"KIND=ready\nPID=1\n",
            b"\xff\n",
            b"VERSION=2\nKIND=active\nPID=-1\n",
            b"VERSION=2\nKIND=ready\nCLOSED=x\n",
        ] {
            assert!(Message::decode(garbage).is_err(), "{garbage:?}");
        }
    }

    #[test]
    fn a_message_may_grow_and_text_cannot_forge_a_line() {
        assert_eq!(Message::decode(b"VERSION=2\nKIND=stop\nNOVEL=1\n"), Ok(Message::Stop));
        let forged = Message::Failed { reason: "bad\nKIND=ready".into() }.encode();
        assert_eq!(
            Message::decode(&forged),
            Ok(Message::Failed { reason: "bad KIND=ready".into() })
        );
        let long = Message::Failed { reason: "x".repeat(1 << 20) }.encode();
        assert_eq!(Message::decode(&long), Ok(Message::Failed { reason: "x".repeat(REASON_MAX) }));
    }
}
