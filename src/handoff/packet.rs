//! This module receives a packet from a channel. The result is a message with its file descriptors,
//! or the reason why the packet is not valid.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use super::message::Message;
use crate::error::Malformed;
use crate::sys;
use crate::sys::ancillary::{AncillaryData, Rights, Sender, receive_with_attachments};
use crate::sys::socket::{Packet, retry};

/// The maximum size of a packet in bytes. It is less than half of the default send buffer
/// (`net.core.wmem_default`), so that two packets fit into an empty buffer.
pub(super) const PACKET_MAX: usize = 64 * 1024;

/// The maximum size in bytes of a message that is passed in a file. The limit protects this process
/// from a broken successor that sends too much. A message about 10,000 listeners and 10,000
/// upstreams takes about 10 MB.
const FILE_MAX: u64 = 256 * 1024 * 1024;

/// The result of receiving one packet from a channel.
#[derive(Debug)]
pub(crate) enum Received {
    /// A message of a known kind, without a file descriptor.
    Message(Message),
    /// A message of a known kind that came with a file descriptor.
    Passed(Message, OwnedFd),
    /// A packet that is not a valid message, with the reason as text.
    Garbage(String),
    /// The peer has ended, and no more messages will arrive.
    End,
}

/// Receives one message without waiting. This function is for use before a tokio runtime exists.
pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut Vec<u8>) -> io::Result<Received> {
    take_packet(socket, buffer).map(|(received, _)| received)
}

/// Takes one packet from the socket. Returns the result and, if the kernel reports it, the process
/// that sent the packet.
pub(super) fn take_packet(
    socket: BorrowedFd<'_>,
    buffer: &mut Vec<u8>,
) -> io::Result<(Received, Option<Sender>)> {
    buffer.resize(PACKET_MAX, 0);
    let (packet, attached) = retry(|| receive_with_attachments(socket, buffer))?;
    let AncillaryData { rights, sender } = attached;
    let received = match packet {
        Packet::End => Received::End,
        Packet::Truncated => {
            Received::Garbage(format!("the packet has more than {PACKET_MAX} bytes"))
        }
        Packet::Whole(length) => match (Message::decode(&buffer[..length]), rights) {
            (Ok(Message::File), rights) => read_file(rights),
            (Ok(message), Rights::All(mut descriptors)) if descriptors.len() == 1 => {
                Received::Passed(message, descriptors.remove(0))
            }
            // No valid message has more than one file descriptor. Dropping the attached descriptors
            // closes them.
            (Ok(message), Rights::All(_) | Rights::Truncated) => Received::Message(message),
            (Err(why), _) => Received::Garbage(why.to_string()),
        },
    };
    *buffer = Vec::new();
    Ok((received, sender))
}

/// Reads a message that was too long for a packet. The sender has written it to an in-memory file
/// and passed the descriptor of that file.
fn read_file(rights: Rights) -> Received {
    let Rights::All(mut descriptors) = rights else {
        return Received::Garbage("no free file descriptor to receive a long message".to_owned());
    };
    if descriptors.len() != 1 {
        return Received::Garbage(format!(
            "a long message came with {} file descriptors instead of one",
            descriptors.len()
        ));
    }
    let read = sys::memory_file::read(descriptors.remove(0), FILE_MAX);
    match read
        .map_err(|error| Malformed::from(format!("cannot read a long message: {error}")))
        .and_then(|text| Message::decode(&text))
    {
        Ok(Message::File) => Received::Garbage("a long message contains another one".to_owned()),
        Ok(message) => Received::Message(message),
        Err(why) => Received::Garbage(why.to_string()),
    }
}
