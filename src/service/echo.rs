//! The echo service, which returns every byte that a client sends.
//!
//! The service imitates the example server of the Go library goagain, but without a bug of that
//! server, which always returned the whole buffer. Each read counts as one request. All connections
//! of a thread share one buffer, so an idle connection needs no memory for one. The service copies
//! bytes only if the client does not accept them yet.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Connection, Next, Service};
use crate::carry::{CarriedState, Declined};
use crate::net::Stream;

/// The largest number of bytes per read.
const BUFFER: usize = 16 * 1024;

/// The echo service. It runs unless the configuration names another service.
#[derive(Clone, Copy, Debug, Default)]
pub struct Echo;

/// The format of the state that moves to the successor with a connection: its name and its version.
/// The state contains only the bytes that are not yet written back to the client.
const FORMAT: &str = "echo/1";

impl Service for Echo {
    async fn serve(&self, connection: &mut Connection) -> io::Result<()> {
        drop(connection.stream.take_descriptor_claim());
        if let Some(saved_state) = connection.resumed_state() {
            if Box::pin(pay(connection, saved_state.bytes)).await? == UnsentOutcome::NotAll {
                return Ok(());
            }
        }
        loop {
            match connection.next_request().await? {
                Next::Read => {
                    match poll_fn(|cx| Poll::Ready(echo(&mut connection.stream, cx))).await? {
                        Echoed::All => {}
                        // Box this future, because most connections never have remaining bytes and
                        // should not reserve memory for it.
                        Echoed::Owing(rest) => {
                            if Box::pin(pay(connection, rest)).await? == UnsentOutcome::NotAll {
                                return Ok(());
                            }
                        }
                        Echoed::PeerFinished => return Ok(()),
                    }
                }
                Next::End => return Ok(()),
                Next::Carry => {
                    connection.detach(CarriedState::new(FORMAT, Vec::new()));
                    return Ok(());
                }
            }
        }
    }

    fn carries(&self, _listener: &str) -> bool {
        true
    }

    fn accepts(&self, _listener: &str, saved_state: &CarriedState) -> Result<(), Declined> {
        if saved_state.format == FORMAT && saved_state.descriptors.is_empty() {
            Ok(())
        } else {
            Err(format!(
                "the echo service cannot continue a saved connection of the format {} with {} \
                file descriptors",
                saved_state.format,
                saved_state.descriptors.len()
            )
            .into())
        }
    }
}

/// The outcome of writing bytes that the client did not accept at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum UnsentOutcome {
    All,
    /// The service has detached the connection. The remaining bytes move to the successor with it.
    NotAll,
}

/// Writes the bytes in `owed` to the client. Detaches the connection if the server asks to move it
/// before all bytes are written.
async fn pay(connection: &mut Connection, mut owed: Vec<u8>) -> io::Result<UnsentOutcome> {
    let mut written = 0;
    let paid = poll_fn(|cx| {
        while written < owed.len() {
            if connection.carry_requested() {
                return Poll::Ready(Ok(UnsentOutcome::NotAll));
            }
            written += ready!(Pin::new(&mut connection.stream).poll_write(cx, &owed[written..]))?;
        }
        Poll::Ready(Ok::<_, io::Error>(UnsentOutcome::All))
    })
    .await?;
    if paid == UnsentOutcome::NotAll {
        owed.drain(..written);
        connection.detach(CarriedState::new(FORMAT, owed));
    }
    Ok(paid)
}

/// The outcome of one read.
enum Echoed {
    /// The service has written back all bytes that it read. It may have read none.
    All,
    /// The client does not accept these bytes yet.
    Owing(Vec<u8>),
    /// The client has half-closed: it will send nothing more.
    PeerFinished,
}

/// Reads once and immediately writes the bytes back. Does not wait if nothing has arrived.
fn echo(stream: &mut Stream, cx: &mut Context<'_>) -> io::Result<Echoed> {
    thread_local! {
        static SHARED: RefCell<Box<[MaybeUninit<u8>]>> =
            RefCell::new(Box::new_uninit_slice(BUFFER));
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
