//! The receiving side of connection transfer. The successor receives open connections from the
//! predecessor, and accepts or refuses each one.
//!
//! The successor answers before it uses a connection. So if the predecessor gets no answer, the
//! successor has not touched the connection. If the successor has no free file descriptor, the
//! kernel discards the descriptors attached to a packet. The successor then refuses that
//! connection, and the predecessor continues to serve it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use super::packet::{self, CarryAnswer, PACKET_MAX, PacketHead};
use super::state::{CarriedState, Declined};
use crate::net::{ByteCounts, Peer, Stream, Traffic};
use crate::sys;
use crate::sys::ancillary::{Rights, receive_with_attachments};
use crate::sys::socket::{Packet, retry, will_pass};

/// The delay before a retry when the kernel has no memory to receive a packet.
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
    /// A connection has arrived, but this process cannot accept it. `why` is the reason.
    Damaged { id: u64, why: String },
    /// The channel is closed, so no more connections arrive.
    End,
}

/// A connection that this process has received from the predecessor, but neither accepted nor
/// refused yet.
#[derive(Debug)]
pub(crate) struct CarriedConnection {
    pub(crate) head: PacketHead,
    pub(crate) socket: OwnedFd,
    pub(crate) saved_state: CarriedState,
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
                // Retry after a pause. The packet is not lost, because it is still in the receive
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
        // Stop receiving, because this process cannot answer a packet without an id. Closing the
        // channel tells the predecessor that the connection was not accepted.
        tracing::warn!(
            event = "carry.message_invalid",
            reason = why,
            "received an invalid packet from the old process, so its remaining client connections \
            stay there: {why}"
        );
        Arrival::End
    }

    /// Tells the predecessor whether this process accepts a connection. Succeeds even if the
    /// predecessor has died, because the connection then belongs to this process.
    ///
    /// # Errors
    /// Fails if the answer cannot be sent and the predecessor may still be alive. The connection
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
        Rights::Truncated => return damaged("the new process has no free file descriptor"),
    };
    // A descriptor number in the reserved range means that no other descriptor is free. Clients may
    // not use reserved descriptors, so refuse the connection. The predecessor then drains it.
    if descriptors.iter().any(sys::reserve::is_reserved) {
        return damaged("the new process has no free file descriptor");
    }
    if descriptors.is_empty() {
        return damaged("the packet has no socket");
    }
    let socket = descriptors.remove(0);
    let saved_state = CarriedState { format: head.format.clone(), bytes, descriptors };
    Arrival::Connection(Box::new(CarriedConnection { head, socket, saved_state }))
}

impl CarriedConnection {
    /// Returns the id of the connection, which the answer to the predecessor must contain.
    pub(crate) const fn id(&self) -> u64 {
        self.head.id
    }

    /// Returns why this connection is refused: this process does not have its listener, or does not
    /// take over connections for it.
    pub(crate) fn unknown_listener(&self) -> Declined {
        let listener = &self.head.listener;
        format!("the new process has no listener {listener:?} that takes over connections").into()
    }

    /// Returns the client's stream and address, the time at which the connection began, and its
    /// saved state. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// Returns the reason to refuse the connection if its socket cannot be used.
    pub(crate) fn into_stream(self) -> Result<((Stream, Peer), Instant, CarriedState), Declined> {
        let Self { head, socket, saved_state } = self;
        let peer = head.peer.map_or(Peer::Unix, Peer::Tcp);
        let traffic = Traffic::so_far(ByteCounts { received: head.received, sent: head.sent });
        let stream = Stream::taken_up(socket, peer, traffic, head.peer_finished)
            .map_err(|error| error.to_string())?;
        let now = Instant::now();
        let since = now.checked_sub(Duration::from_millis(head.age_ms)).unwrap_or(now);
        Ok(((stream, peer), since, saved_state))
    }
}
