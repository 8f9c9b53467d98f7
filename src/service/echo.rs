//! Writes back exactly what it reads.
//!
//! After the example of the Go library goagain, less its slip: that one wrote its whole buffer, whatever it had read.
//! A request is whatever one read returns. An idle connection holds no buffer: bytes are read into one that the thread
//! shares and written at once, and only what the peer would not take is kept.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::{Connection, Next, Service};
use crate::net::Stream;

/// Bytes taken in one read.
const BUFFER: usize = 16 * 1024;

/// The service that is served by default.
#[derive(Clone, Copy, Debug, Default)]
pub struct Echo;

impl Service for Echo {
    async fn serve(&self, connection: &mut Connection) -> io::Result<()> {
        while connection.next_request().await? == Next::Read {
            match poll_fn(|cx| Poll::Ready(echo(&mut connection.stream, cx))).await? {
                Echoed::All => {}
                Echoed::Owing(rest) => connection.stream.write_all(&rest).await?,
                Echoed::PeerFinished => break,
            }
        }
        Ok(())
    }
}

/// What came of one read.
enum Echoed {
    /// All of it is written back, if there was anything.
    All,
    /// The peer would not take this much of it yet.
    Owing(Vec<u8>),
    /// The peer has half-closed.
    PeerFinished,
}

/// Reads once and writes at once. Where nothing is to be had it leaves the waiting to the caller.
fn echo(stream: &mut Stream, cx: &mut Context<'_>) -> io::Result<Echoed> {
    thread_local! {
        static SHARED: RefCell<Box<[MaybeUninit<u8>]>> = RefCell::new(Box::new_uninit_slice(BUFFER));
    }
    SHARED.with_borrow_mut(|shared| {
        let mut buffer = ReadBuf::uninit(shared);
        match Pin::new(&mut *stream).poll_read(cx, &mut buffer)? {
            Poll::Pending => return Ok(Echoed::All),
            Poll::Ready(()) if buffer.filled().is_empty() => return Ok(Echoed::PeerFinished),
            Poll::Ready(()) => {}
        }
        let written = match Pin::new(stream).poll_write(cx, buffer.filled())? {
            Poll::Pending => 0,
            Poll::Ready(written) => written,
        };
        let rest = &buffer.filled()[written..];
        Ok(if rest.is_empty() { Echoed::All } else { Echoed::Owing(rest.to_vec()) })
    })
}
