//! Writes back exactly what it reads.
//!
//! After the example of the Go library goagain, less its slip: that one wrote its whole buffer,
//! whatever it had read. A request is whatever one read returns. An idle connection holds no
//! buffer: bytes are read into one that the thread shares and written at once, and only what the
//! peer would not take is kept.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Connection, Next, Service};
use crate::carry::Parcel;
use crate::net::Stream;

/// Bytes taken in one read.
const BUFFER: usize = 16 * 1024;

/// The service that is served by default.
#[derive(Clone, Copy, Debug, Default)]
pub struct Echo;

/// How it is given up: the bytes that are not written back yet, and nothing else.
const FORMAT: &str = "echo/1";

impl Service for Echo {
    async fn serve(&self, connection: &mut Connection) -> io::Result<()> {
        drop(connection.stream.take_earmark());
        if let Some(parcel) = connection.taken_up() {
            if Box::pin(pay(connection, parcel.bytes)).await? == Paid::NotAll {
                return Ok(());
            }
        }
        loop {
            match connection.next_request().await? {
                Next::Read => {
                    match poll_fn(|cx| Poll::Ready(echo(&mut connection.stream, cx))).await? {
                        Echoed::All => {}
                        // In a box: most owe nothing.
                        Echoed::Owing(rest) => {
                            if Box::pin(pay(connection, rest)).await? == Paid::NotAll {
                                return Ok(());
                            }
                        }
                        Echoed::PeerFinished => return Ok(()),
                    }
                }
                Next::End => return Ok(()),
                Next::Carry => {
                    connection.give_up(Parcel::new(FORMAT, Vec::new()));
                    return Ok(());
                }
            }
        }
    }

    fn carries(&self, _listener: &str) -> bool {
        true
    }

    fn accepts(&self, _listener: &str, parcel: &Parcel) -> Result<(), String> {
        if parcel.format == FORMAT && parcel.descriptors.is_empty() {
            Ok(())
        } else {
            Err(format!(
                "{} with {} descriptors is not known here",
                parcel.format,
                parcel.descriptors.len()
            ))
        }
    }
}

/// What came of paying what is owed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Paid {
    All,
    /// The connection has been given up with the rest of it.
    NotAll,
}

/// Writes what is owed, or gives the connection up.
async fn pay(connection: &mut Connection, mut owed: Vec<u8>) -> io::Result<Paid> {
    let mut written = 0;
    let paid = poll_fn(|cx| {
        while written < owed.len() {
            if connection.is_asked() {
                return Poll::Ready(Ok(Paid::NotAll));
            }
            written += ready!(Pin::new(&mut connection.stream).poll_write(cx, &owed[written..]))?;
        }
        Poll::Ready(Ok::<_, io::Error>(Paid::All))
    })
    .await?;
    if paid == Paid::NotAll {
        owed.drain(..written);
        connection.give_up(Parcel::new(FORMAT, owed));
    }
    Ok(paid)
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
