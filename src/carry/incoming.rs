//! Takes connections from the predecessor: receives each, and answers.
//!
//! Whoever takes one answers before it touches the connection, so that what was not answered was
//! not touched. When no descriptor is left the kernel drops those that came, which is an error of
//! that packet alone: it is refused, and the predecessor still has them.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::packet::{self, Answer, Head, PACKET_MAX};
use super::parcel::Parcel;
use crate::sys;
use crate::sys::ancillary::{Rights, receive_with_attachments};
use crate::sys::socket::{Packet, retry, will_pass};

/// How long after the kernel had no memory for a packet it is asked again.
const PAUSE: Duration = Duration::from_millis(10);

/// The successor's end.
#[derive(Debug)]
pub(crate) struct Incoming {
    socket: AsyncFd<OwnedFd>,
    buffer: Vec<u8>,
}

/// What came.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// A connection.
    Connection(Box<Arrived>),
    /// One that cannot be taken; why.
    Damaged { id: u64, why: String },
    /// Nothing more comes.
    End,
}

/// A connection that waits to be taken or refused.
#[derive(Debug)]
pub(crate) struct Arrived {
    pub(crate) head: Head,
    pub(crate) socket: OwnedFd,
    pub(crate) parcel: Parcel,
}

impl Incoming {
    /// Must be called in a tokio runtime.
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Self> {
        let socket = sys::fd::watch(socket, Interest::READABLE | Interest::WRITABLE)?;
        Ok(Self { socket, buffer: vec![0; PACKET_MAX] })
    }

    /// The next connection. Cancel safe.
    pub(crate) async fn next(&mut self) -> Arrival {
        let Self { socket, buffer } = self;
        let received = loop {
            let receive = |socket: &OwnedFd| receive_with_attachments(socket.as_fd(), buffer);
            match socket.async_io(Interest::READABLE, receive).await {
                // The packet is still in the queue.
                Err(error) if will_pass(&error) => tokio::time::sleep(PAUSE).await,
                received => break received,
            }
        };
        let why = match received {
            Ok((Packet::Whole(length), attached)) => {
                match packet::read_connection(&self.buffer[..length]) {
                    Ok((head, bytes)) => return arrived(head, bytes.to_vec(), attached.rights),
                    Err(why) => why,
                }
            }
            Ok((Packet::Truncated, _)) => "it is too long".to_owned(),
            Ok((Packet::End, _)) => return Arrival::End,
            Err(error) => error.to_string(),
        };
        // Nobody could be answered. The end tells the predecessor that it was not taken.
        tracing::warn!(
            event = "carry.message_invalid",
            reason = why,
            "what the predecessor sent is no connection, taking no more: {why}"
        );
        Arrival::End
    }

    /// Answers. If nobody is left to hear it, the predecessor is dead, and what it sent is ours.
    ///
    /// # Errors
    /// When it could not be said though somebody may wait for it: then what it sent is still the
    /// predecessor's.
    pub(crate) async fn answer(&self, id: u64, answer: Answer) -> io::Result<()> {
        let packet = packet::answer(id, answer);
        let send = |socket: &OwnedFd| retry(|| sys::socket::send_packet(socket.as_fd(), &packet));
        match self.socket.async_io(Interest::WRITABLE, send).await {
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
                ) =>
            {
                Ok(())
            }
            said => said,
        }
    }
}

fn arrived(head: Head, bytes: Vec<u8>, rights: Rights) -> Arrival {
    let damaged = |why: &str| Arrival::Damaged { id: head.id, why: why.to_owned() };
    let mut descriptors = match rights {
        Rights::All(descriptors) => descriptors,
        Rights::Truncated => return damaged("no descriptors are left"),
    };
    // The predecessor still has it, and drains it.
    if descriptors.iter().any(sys::reserve::is_reserved) {
        return damaged("no descriptors are left");
    }
    if descriptors.is_empty() {
        return damaged("it came without its socket");
    }
    let socket = descriptors.remove(0);
    let parcel = Parcel { format: head.format.clone(), bytes, descriptors };
    Arrival::Connection(Box::new(Arrived { head, socket, parcel }))
}

impl Arrived {
    /// By which it is answered.
    pub(crate) const fn id(&self) -> u64 {
        self.head.id
    }
}
