//! Bulk transfers at the lowest cost that the kernel offers. Processor time that the load generator
//! saves is available to the proxies.
//!
//! Sent bytes are pages of a file in memory and are not copied. The kernel drops received bytes.
//! Nothing here looks at the bytes: the tests verify that they arrive unaltered.

use std::fs::File;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::sendfile::sendfile;
use nix::sys::socket::{MsgFlags, recv};

/// The most bytes that one call moves.
const PIECE: usize = 1 << 20;

/// The direction of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// From the upstream to the client.
    Download,
    /// From the client to the upstream.
    Upload,
}

impl Way {
    /// Returns the first byte of a connection, which tells the upstream the direction.
    pub(crate) fn wish(self) -> u8 {
        match self {
            Self::Download => b'd',
            Self::Upload => b'u',
        }
    }
}

/// A sender and receiver of bulk data.
pub(crate) struct Mover {
    source: File,
    scratch: Vec<u8>,
}

impl Mover {
    pub(crate) fn new() -> Self {
        let memory =
            memfd_create(c"compare", MFdFlags::MFD_CLOEXEC).expect("create a file in memory");
        let mut source = File::from(memory);
        source.write_all(&vec![b'x'; PIECE]).expect("fill the file");
        Self { source, scratch: vec![0; PIECE] }
    }

    /// Sends as many bytes as there is room for. Returns how many, or 0 if there is no room now.
    pub(crate) fn pour(&self, to: impl AsFd) -> io::Result<usize> {
        moved(sendfile(to, &self.source, Some(&mut 0), PIECE).map(Some))
    }

    /// Drops received bytes. Returns how many, or 0 if there are none now. The end of stream is an
    /// error.
    pub(crate) fn drop_from(&mut self, from: &impl AsRawFd) -> io::Result<usize> {
        let dropped = recv(from.as_raw_fd(), &mut self.scratch, MsgFlags::MSG_TRUNC);
        moved(dropped.map(|length| (length > 0).then_some(length)))
    }
}

fn moved(result: nix::Result<Option<usize>>) -> io::Result<usize> {
    match result {
        Ok(Some(length)) => Ok(length),
        Ok(None) => Err(io::ErrorKind::UnexpectedEof.into()),
        Err(Errno::EAGAIN) => Ok(0),
        Err(error) => Err(error.into()),
    }
}

/// Connections that transfer without a pause.
pub(crate) struct Streams {
    epoll: Epoll,
    streams: Vec<TcpStream>,
    mover: Mover,
    way: Way,
}

impl Streams {
    /// Opens `count` connections.
    pub(crate) fn open(address: SocketAddr, count: usize, way: Way) -> Self {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("create an epoll");
        let interest = match way {
            Way::Download => EpollFlags::EPOLLIN,
            Way::Upload => EpollFlags::EPOLLOUT,
        };
        let open = |number: usize| {
            let mut stream = TcpStream::connect(address).expect("connect");
            stream.write_all(&[way.wish()]).expect("send the direction");
            stream.set_nonblocking(true).expect("make the stream non-blocking");
            epoll.add(&stream, EpollEvent::new(interest, number as u64)).expect("watch the stream");
            stream
        };
        let streams = (0..count).map(open).collect();
        Self { epoll, streams, mover: Mover::new(), way }
    }

    /// Transfers for `time`, and returns the number of bytes.
    pub(crate) fn run(&mut self, time: Duration) -> usize {
        let until = Instant::now() + time;
        let mut events = [EpollEvent::empty(); 64];
        let mut total = 0;
        while Instant::now() < until {
            let ready = self.epoll.wait(&mut events, 100_u8).expect("wait for streams");
            for event in &events[..ready] {
                let stream =
                    &self.streams[usize::try_from(event.data()).expect("the number of a stream")];
                let moved = match self.way {
                    Way::Download => self.mover.drop_from(stream),
                    Way::Upload => self.mover.pour(stream),
                };
                total += moved.expect("a stream was cut");
            }
        }
        total
    }
}
