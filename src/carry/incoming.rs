//! The successor's side of a carry: it receives connections from the predecessor and answers for
//! each.
//!
//! The successor answers before it uses a connection, so an unanswered connection is untouched. If
//! this process has no free descriptor, the kernel drops the descriptors of the packet. Only that
//! connection is refused then, and the predecessor still has it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::packet::{self, Answer, Head, PACKET_MAX};
use super::parcel::CarriedState;
use crate::sys;
use crate::sys::ancillary::{Rights, receive_with_attachments};
use crate::sys::socket::{Packet, retry, will_pass};

/// How long to wait before retrying when the kernel has no memory for a packet.
const PAUSE: Duration = Duration::from_millis(10);

/// The successor's end of the channel.
#[derive(Debug)]
pub(crate) struct Incoming {
    socket: AsyncFd<OwnedFd>,
    buffer: Vec<u8>,
}

/// The result of waiting for a connection.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// A connection has arrived.
    Connection(Box<CarriedConnection>),
    /// A connection has arrived that cannot be accepted, because of `why`.
    Damaged { id: u64, why: String },
    /// The channel has ended: no more connections arrive.
    End,
}

/// A connection that waits to be accepted or refused.
#[derive(Debug)]
pub(crate) struct CarriedConnection {
    pub(crate) head: Head,
    pub(crate) socket: OwnedFd,
    pub(crate) parcel: CarriedState,
}

impl Incoming {
    /// Creates the successor's end of the channel. Must be called within a tokio runtime.
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Self> {
        let socket = sys::fd::watch(socket, Interest::READABLE | Interest::WRITABLE)?;
        Ok(Self { socket, buffer: vec![0; PACKET_MAX] })
    }

    /// Receives the next connection. Cancel safe.
    pub(crate) async fn next(&mut self) -> Arrival {
        let Self { socket, buffer } = self;
        let received = loop {
            let receive = |socket: &OwnedFd| receive_with_attachments(socket.as_fd(), buffer);
            match socket.async_io(Interest::READABLE, receive).await {
                // The packet is still in the queue, so retrying loses nothing.
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
        // Without an id, no answer is possible. When this end closes, the predecessor learns that
        // the connection was not accepted.
        tracing::warn!(
            event = "carry.message_invalid",
            reason = why,
            "invalid packet from the predecessor, accepting no more connections: {why}"
        );
        Arrival::End
    }

    /// Sends the answer for a connection. If the other end is closed, the predecessor is dead and
    /// the connection belongs to this process; that is not an error.
    ///
    /// # Errors
    /// When the answer cannot be sent although the predecessor may wait for it. The connection then
    /// still belongs to the predecessor.
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
    // The predecessor still has the connection and drains it.
    if descriptors.iter().any(sys::reserve::is_reserved) {
        return damaged("no descriptors are left");
    }
    if descriptors.is_empty() {
        return damaged("it came without its socket");
    }
    let socket = descriptors.remove(0);
    let parcel = CarriedState { format: head.format.clone(), bytes, descriptors };
    Arrival::Connection(Box::new(CarriedConnection { head, socket, parcel }))
}

impl CarriedConnection {
    /// Returns the id that the answer must name.
    pub(crate) const fn id(&self) -> u64 {
        self.head.id
    }
}
