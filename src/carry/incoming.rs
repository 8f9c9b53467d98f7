//! The successor's side of the transfer of connections. It receives connections from the
//! predecessor and sends an answer for each.
//!
//! The successor sends the answer before it uses a connection, so it has not touched a connection
//! without an answer. If this process has no free file descriptor, the kernel discards the
//! descriptors of a packet. The successor then refuses that connection, and the predecessor
//! continues to serve it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::packet::{self, CarryAnswer, PACKET_MAX, PacketHead};
use super::state::CarriedState;
use crate::sys;
use crate::sys::ancillary::{Rights, receive_with_attachments};
use crate::sys::socket::{Packet, retry, will_pass};

/// How long to wait before a retry, when the kernel has no memory to receive a packet.
const PAUSE: Duration = Duration::from_millis(10);

/// The successor's end of the channel through which connections arrive.
#[derive(Debug)]
pub(crate) struct Incoming {
    socket: AsyncFd<OwnedFd>,
    buffer: Vec<u8>,
}

/// The result of waiting for a connection from the predecessor.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// A connection has arrived. The caller can accept or refuse it.
    Connection(Box<CarriedConnection>),
    /// A connection has arrived, but cannot be accepted. `why` is the reason.
    Damaged { id: u64, why: String },
    /// The channel is closed, so no more connections arrive.
    End,
}

/// A connection that has arrived from the predecessor, and for which this process has not sent an
/// answer yet.
#[derive(Debug)]
pub(crate) struct CarriedConnection {
    pub(crate) head: PacketHead,
    pub(crate) socket: OwnedFd,
    pub(crate) parcel: CarriedState,
}

impl Incoming {
    /// Creates the successor's end of the channel from its socket. Must be called within a tokio
    /// runtime.
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Self> {
        let socket = sys::fd::watch(socket, Interest::READABLE | Interest::WRITABLE)?;
        Ok(Self { socket, buffer: vec![0; PACKET_MAX] })
    }

    /// Receives the next connection from the predecessor. Cancel safe.
    pub(crate) async fn next(&mut self) -> Arrival {
        let Self { socket, buffer } = self;
        let received = loop {
            let receive = |socket: &OwnedFd| receive_with_attachments(socket.as_fd(), buffer);
            match socket.async_io(Interest::READABLE, receive).await {
                // Retry after a pause. This loses nothing, because the packet is still in the
                // queue.
                Err(error) if will_pass(&error) => tokio::time::sleep(PAUSE).await,
                received => break received,
            }
        };
        let why = match received {
            Ok((Packet::Whole(length), attached)) => {
                match packet::read_connection(&self.buffer[..length]) {
                    Ok((head, bytes)) => return arrived(head, bytes.to_vec(), attached.rights),
                    Err(why) => why.to_string(),
                }
            }
            Ok((Packet::Truncated, _)) => "the packet is too long".to_owned(),
            Ok((Packet::End, _)) => return Arrival::End,
            Err(error) => error.to_string(),
        };
        // Receive no more packets, because an answer is not possible without an id. When this
        // process closes the channel, the predecessor learns that the connection was not accepted.
        tracing::warn!(
            event = "carry.message_invalid",
            reason = why,
            "invalid packet from the predecessor, accepting no more connections: {why}"
        );
        Arrival::End
    }

    /// Sends the answer for a connection to the predecessor. If the predecessor has died, this
    /// function succeeds although no answer can be sent, because the connection then belongs to
    /// this process.
    ///
    /// # Errors
    /// Fails when the answer cannot be sent although the predecessor may be alive. The connection
    /// then still belongs to the predecessor.
    pub(crate) async fn answer(&self, id: u64, answer: CarryAnswer) -> io::Result<()> {
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

fn arrived(head: PacketHead, bytes: Vec<u8>, rights: Rights) -> Arrival {
    let damaged = |why: &str| Arrival::Damaged { id: head.id, why: why.to_owned() };
    let mut descriptors = match rights {
        Rights::All(descriptors) => descriptors,
        Rights::Truncated => return damaged("no descriptors are left"),
    };
    // Refuse the connection if it got a descriptor number that is reserved for other purposes,
    // because this process is short of file descriptors. The predecessor then drains the
    // connection.
    if descriptors.iter().any(sys::reserve::is_reserved) {
        return damaged("no descriptors are left");
    }
    if descriptors.is_empty() {
        return damaged("the packet has no socket");
    }
    let socket = descriptors.remove(0);
    let parcel = CarriedState { format: head.format.clone(), bytes, descriptors };
    Arrival::Connection(Box::new(CarriedConnection { head, socket, parcel }))
}

impl CarriedConnection {
    /// Returns the id of the connection. The answer to the predecessor must contain it.
    pub(crate) const fn id(&self) -> u64 {
        self.head.id
    }
}
