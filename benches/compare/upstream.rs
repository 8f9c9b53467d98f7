//! The upstream of the proxies: a server in its own process, whose processor time is not counted.
//!
//! It uses one thread and one epoll, so that it takes as little as possible of the processors that
//! it shares with the proxy. The first byte of a connection says what the client wants: bytes
//! without end, all its bytes dropped, or an echo.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use rustix::net::{SocketFlags, accept_with};
use socket2::{Domain, Socket, Type};

use crate::bulk::{Mover, Way};
use crate::support::itself::{Itself, is_asked_to_be, say_where};

/// The argument that makes the bench run as the upstream.
const ARGUMENT: &str = "upstream";
const BACKLOG: i32 = 4096;

// Event numbers that are no descriptors, which are small.
const LISTENER: u64 = u64::MAX;
const PARENT: u64 = u64::MAX - 1;

/// Starts the upstream.
pub(crate) fn start() -> Itself {
    Itself::start(ARGUMENT)
}

/// Serves if this process was started as the upstream. Returns whether it was.
pub(crate) fn serve_if_asked() -> bool {
    let asked = is_asked_to_be(ARGUMENT);
    if asked {
        Server::new().run();
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

struct Server {
    listener: Socket,
    epoll: Epoll,
    /// The connections, indexed by descriptor.
    connections: Vec<Option<(TcpStream, Wish)>>,
    mover: Mover,
}

impl Server {
    fn new() -> Self {
        let listener =
            Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None).expect("create a socket");
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("bind");
        listener.listen(BACKLOG).expect("listen");
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("create an epoll");
        epoll
            .add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))
            .expect("watch the listener");
        epoll
            .add(std::io::stdin(), EpollEvent::new(EpollFlags::EPOLLIN, PARENT))
            .expect("watch the parent");
        say_where(
            listener.local_addr().expect("read the address").as_socket().expect("an IP address"),
        );
        Self { listener, epoll, connections: Vec::new(), mover: Mover::new() }
    }

    fn run(&mut self) {
        let mut events = [EpollEvent::empty(); 256];
        loop {
            let ready = self.epoll.wait(&mut events, EpollTimeout::NONE).expect("wait for events");
            for event in &events[..ready] {
                match event.data() {
                    LISTENER => self.accept(),
                    PARENT => return,
                    number => self.serve(usize::try_from(number).expect("a descriptor")),
                }
            }
        }
    }

    fn accept(&mut self) {
        while let Ok(descriptor) =
            accept_with(&self.listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)
        {
            let stream = TcpStream::from(descriptor);
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
            Wish::Unknown | Wish::Echo => echo(stream, wish),
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

fn echo(mut stream: &TcpStream, wish: &mut Wish) -> bool {
    let mut buffer = [0; 4096];
    let length = match stream.read(&mut buffer) {
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
    // A request is small and its client waits for the reply, so there is room for it.
    stream.write_all(&buffer[..length]).is_ok()
}
