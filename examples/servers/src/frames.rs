//! A stream that never reads beyond the end of a websocket frame.
//!
//! A websocket library usually reads as much as has arrived, and keeps what it does not need yet in
//! a buffer that it does not give back. Below this stream, it gets one frame at a time. A library
//! uses up a complete frame at once. So after the last frame of a message, its buffer is empty, and
//! the socket can move to another process.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream of websocket frames that a client sends.
#[derive(Debug)]
pub struct Frames<S> {
    stream: S,
    /// The part of the next frame's header that was read.
    header: Vec<u8>,
    /// How many bytes of the current frame are still to be read behind its header.
    payload: u64,
    /// Whether another frame of the current message follows.
    is_fragmented: bool,
}

impl<S> Frames<S> {
    /// Reads frames from `stream`. The next byte must be the first one of a message.
    pub fn new(stream: S) -> Self {
        Self { stream, header: Vec::with_capacity(14), payload: 0, is_fragmented: false }
    }

    /// Returns whether the last message was read completely, and nothing of the next one.
    pub fn is_between_messages(&self) -> bool {
        self.header.is_empty() && self.payload == 0 && !self.is_fragmented
    }

    /// Returns the stream.
    pub fn into_inner(self) -> S {
        self.stream
    }

    /// Returns how many bytes the next read may return.
    fn room(&self) -> u64 {
        match (self.payload, header_length(&self.header)) {
            (0, length) => (length - self.header.len()) as u64,
            (payload, _) => payload,
        }
    }

    /// Follows the frames through the bytes that were read.
    fn advance(&mut self, read: &[u8]) {
        if self.payload > 0 {
            self.payload -= read.len() as u64;
            return;
        }
        self.header.extend_from_slice(read);
        if self.header.len() < 2 || self.header.len() < header_length(&self.header) {
            return;
        }
        let (is_last, is_control) = (self.header[0] & 0x80 != 0, self.header[0] & 0x08 != 0);
        // A control frame may come between two frames of a message.
        if !is_control {
            self.is_fragmented = !is_last;
        }
        self.payload = match self.header[1] & 0x7f {
            126 => number(&self.header[2..4]),
            127 => number(&self.header[2..10]),
            short => short.into(),
        };
        self.header.clear();
    }
}

/// Returns the length of a frame's header, as far as its beginning tells.
fn header_length(header: &[u8]) -> usize {
    let Some(second) = header.get(1) else { return 2 };
    let length = match second & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    let mask = if second & 0x80 == 0 { 0 } else { 4 };
    2 + length + mask
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| (number << 8) | u64::from(*byte))
}

impl<S: AsyncRead + Unpin> AsyncRead for Frames<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let room = usize::try_from(self.room()).unwrap_or(usize::MAX);
        let part = buffer.initialize_unfilled_to(room.min(buffer.remaining()));
        let mut part = ReadBuf::new(part);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut part))?;
        self.advance(part.filled());
        let length = part.filled().len();
        buffer.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Frames<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    /// Frames with short, medium and long lengths, masked and unmasked, a fragmented message with a
    /// ping in it, and an empty frame: each read ends within one frame.
    #[tokio::test]
    async fn each_read_ends_within_one_frame() {
        let mut frame = |first: u8, mask: u8, length: usize| {
            let mut frame = vec![first];
            match length {
                0..126 => frame.push(mask | length as u8),
                126..65536 => {
                    frame.push(mask | 126);
                    frame.extend((length as u16).to_be_bytes());
                }
                _ => {
                    frame.push(mask | 127);
                    frame.extend((length as u64).to_be_bytes());
                }
            }
            let mask = if mask == 0 { 0 } else { 4 };
            frame.resize(frame.len() + mask + length, 0xff);
            frame
        };
        let frames = [
            (frame(0x81, 0x80, 5), true),
            (frame(0x81, 0x80, 0), true),
            (frame(0x82, 0, 200), true),
            (frame(0x02, 0x80, 70_000), false),
            (frame(0x89, 0x80, 3), false),
            (frame(0x80, 0x80, 126), true),
        ];
        let all: Vec<u8> = frames.iter().flat_map(|(frame, _)| frame.clone()).collect();
        let mut stream = Frames::new(&all[..]);
        let mut buffer = vec![0; 100_000];
        for (frame, is_between) in frames {
            let mut length = 0;
            while length < frame.len() {
                assert!(length == 0 || !stream.is_between_messages());
                length += stream.read(&mut buffer[..]).await.unwrap();
            }
            assert_eq!((length, stream.is_between_messages()), (frame.len(), is_between));
        }
        assert_eq!(stream.read(&mut buffer[..]).await.unwrap(), 0);
    }
}
