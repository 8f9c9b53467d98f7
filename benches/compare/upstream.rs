//! The upstream of the proxies: a server in its own process, whose processor time is not counted.
//!
//! It uses one thread and one epoll, so that it takes as little as possible of the processors that
//! it shares with the proxy. The first byte of a connection says what the client wants: bytes
//! without end, all its bytes dropped, or an echo.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use rustix::net::{SocketFlags, accept_with};
use socket2::{SockAddr, Socket, Type};

use crate::bulk::{Mover, Way};
use crate::support::itself::{Itself, is_asked_to_be, say_where, settings};

/// The argument that makes the bench run as the upstream.
const ARGUMENT: &str = "upstream";
const BACKLOG: i32 = 4096;
/// Holds the largest request.
const BUFFER: usize = 16 * 1024;

// Event numbers that are no descriptors, which are small.
const TCP_LISTENER: u64 = u64::MAX;
const UNIX_LISTENER: u64 = u64::MAX - 1;
const PARENT: u64 = u64::MAX - 2;

/// Starts the upstream, which listens on all IPv4 addresses, and on a Unix socket at `path`.
pub(crate) fn start(path: &Path) -> Itself {
    Itself::start_with(ARGUMENT, &[path.to_str().expect("a path in UTF-8")])
}

/// Serves if this process was started as the upstream. Returns whether it was.
pub(crate) fn serve_if_asked() -> bool {
    let asked = is_asked_to_be(ARGUMENT);
    if asked {
        let path = settings().next().expect("the path of the Unix socket");
        Server::new(Path::new(&path)).run();
    }
    asked
}

/// The request of a connection.
#[derive(Clone, Copy, Debug)]
enum Wish {
    Unknown,
    Echo,
    Bulk(Way),
}

#[derive(Clone, Copy, Debug)]
enum Listener {
    Tcp,
    Unix,
}

struct Server {
    tcp: Socket,
    unix: Socket,
    epoll: Epoll,
    /// The connections, indexed by descriptor.
    connections: Vec<Option<(Socket, Wish)>>,
    buffer: Vec<u8>,
    mover: Mover,
}

impl Server {
    fn new(path: &Path) -> Self {
        let tcp = listen(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)).into());
        let unix = listen(&SockAddr::unix(path).expect("a short path"));
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("create an epoll");
        for (listener, number) in [(&tcp, TCP_LISTENER), (&unix, UNIX_LISTENER)] {
            let interest = EpollEvent::new(EpollFlags::EPOLLIN, number);
            epoll.add(listener, interest).expect("watch the listener");
        }
        epoll
            .add(std::io::stdin(), EpollEvent::new(EpollFlags::EPOLLIN, PARENT))
            .expect("watch the parent");
        let address = tcp.local_addr().expect("read the address").as_socket();
        let port = address.expect("an IP address").port();
        say_where(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let (connections, buffer) = (Vec::new(), vec![0; BUFFER]);
        Self { tcp, unix, epoll, connections, buffer, mover: Mover::new() }
    }

    fn run(&mut self) {
        let mut events = [EpollEvent::empty(); 256];
        loop {
            let ready = self.epoll.wait(&mut events, EpollTimeout::NONE).expect("wait for events");
            for event in &events[..ready] {
                match event.data() {
                    TCP_LISTENER => self.accept(Listener::Tcp),
                    UNIX_LISTENER => self.accept(Listener::Unix),
                    PARENT => return,
                    number => self.serve(usize::try_from(number).expect("a descriptor")),
                }
            }
        }
    }

    fn accept(&mut self, listener: Listener) {
        let listener = match listener {
            Listener::Tcp => &self.tcp,
            Listener::Unix => &self.unix,
        };
        while let Ok(descriptor) =
            accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)
        {
            let stream = Socket::from(descriptor);
            let number = usize::try_from(stream.as_raw_fd()).expect("a descriptor");
            if self.connections.len() <= number {
                self.connections.resize_with(number + 1, || None);
            }
            self.epoll
                .add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, number as u64))
                .expect("watch the connection");
            self.connections[number] = Some((stream, Wish::Unknown));
        }
    }

    /// Does one step of work for a connection, and closes it after the last.
    fn serve(&mut self, number: usize) {
        let Some((stream, wish)) = &mut self.connections[number] else { return };
        let served = match wish {
            Wish::Unknown | Wish::Echo => echo(stream, wish, &mut self.buffer),
            Wish::Bulk(Way::Download) => self.mover.pour(&*stream).is_ok(),
            Wish::Bulk(Way::Upload) => self.mover.drop_from(stream).is_ok(),
        };
        if !served {
            self.connections[number] = None;
        } else if let Wish::Bulk(Way::Download) = wish {
            // This call repeats for every piece, but costs little compared with the piece.
            let mut event = EpollEvent::new(EpollFlags::EPOLLOUT, number as u64);
            self.epoll.modify(stream, &mut event).expect("watch for room");
        }
    }
}

fn echo(mut stream: &Socket, wish: &mut Wish, buffer: &mut [u8]) -> bool {
    let length = match stream.read(buffer) {
        Ok(0) => return false,
        Ok(length) => length,
        Err(error) => return error.kind() == std::io::ErrorKind::WouldBlock,
    };
    if let Wish::Unknown = wish {
        let way = [Way::Download, Way::Upload].into_iter().find(|way| way.wish() == buffer[0]);
        *wish = way.map_or(Wish::Echo, Wish::Bulk);
        if way.is_some() {
            return true;
        }
    }
    // A connection has one request at a time, and the kernel has room for the largest.
    stream.write_all(&buffer[..length]).is_ok()
}

fn listen(address: &SockAddr) -> Socket {
    let kind = Type::STREAM.nonblocking();
    let listener = Socket::new(address.domain(), kind, None).expect("create a socket");
    listener.bind(address).expect("bind");
    listener.listen(BACKLOG).expect("listen");
    listener
}
