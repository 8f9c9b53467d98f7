//! The load generator: many clients in one thread, with persistent connections or a new one for
//! each request.
//!
//! It uses one epoll, and only one write and one read for each request. So it takes as little as
//! possible of the processors that it shares with the proxy. Without a pace, each client sends its
//! next request as soon as it has its reply. With a pace, requests start when they are due, and the
//! time of a late request counts from when it was due.

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use socket2::{SockAddr, Socket, Type};

use crate::support::clients::REQUEST;
use crate::support::figures::Figures;

/// The event number of the timer. The numbers of clients are small.
const TIMER: u64 = u64::MAX;

/// The results of the clients.
#[derive(Default)]
pub(crate) struct Tally {
    /// The time to each reply on a persistent connection, in microseconds.
    pub(crate) requests: Figures,
    /// The time from the connect to the reply on a new connection, in microseconds.
    pub(crate) visits: Figures,
    /// How many connections could not be made.
    pub(crate) refused: usize,
    /// How many new connections ended before the reply.
    pub(crate) reset: usize,
    /// How many persistent connections ended.
    pub(crate) cut: usize,
}

impl Tally {
    /// Adds the results of another run.
    pub(crate) fn add(&mut self, other: Self) {
        self.requests.extend(other.requests);
        self.visits.extend(other.visits);
        self.refused += other.refused;
        self.reset += other.reset;
        self.cut += other.cut;
    }
}

/// How long a client keeps its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    /// For all its requests.
    All,
    /// For one request.
    One,
}

/// A client with a request in progress, or with an idle connection.
struct Client {
    socket: Socket,
    keep: Keep,
    since: Instant,
    /// How many bytes of the request are sent, and of the reply received.
    sent: usize,
    received: usize,
    waits: bool,
}

/// When requests start.
enum Rhythm {
    /// As soon as the previous request has its reply.
    Eager,
    /// When they are due.
    Paced(Pace),
    /// Never again.
    Over,
}

struct Pace {
    timer: TimerFd,
    /// When the next request is due.
    due: Instant,
    every: Duration,
    /// The persistent client that sends the next request.
    turn: usize,
}

/// A set of clients under load.
pub(crate) struct Load {
    address: SockAddr,
    /// The request of every client, and its reply.
    request: Vec<u8>,
    buffer: Vec<u8>,
    epoll: Epoll,
    clients: Vec<Option<Client>>,
    free: Vec<usize>,
    /// The number of persistent clients, which are the first ones.
    staying: usize,
    rhythm: Rhythm,
    /// Clients that must reconnect.
    again: Vec<Keep>,
    tally: Tally,
}

impl Load {
    /// Creates `count` clients that send requests of `size` bytes without a pause.
    pub(crate) fn eager(address: SocketAddr, count: usize, keep: Keep, size: usize) -> Self {
        let mut load = Self::new(address, size);
        load.again = vec![keep; count];
        load
    }

    /// Creates `staying` persistent clients, and visits at a rate per second. With each visit, one
    /// persistent client sends a request too.
    pub(crate) fn paced(address: SocketAddr, staying: usize, visits_a_second: u32) -> Self {
        let every = Duration::from_secs(1) / visits_a_second;
        let timer = TimerFd::new(
            ClockId::CLOCK_MONOTONIC,
            TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC,
        );
        let timer = timer.expect("create a timer");
        let expiration = Expiration::Interval(TimeSpec::from_duration(every));
        timer.set(expiration, TimerSetTimeFlags::empty()).expect("set the timer");
        let pace = Pace { timer, due: Instant::now() + every, every, turn: 0 };
        let mut load = Self::new(address, REQUEST.len());
        load.epoll
            .add(&pace.timer, EpollEvent::new(EpollFlags::EPOLLIN, TIMER))
            .expect("watch a descriptor");
        load.rhythm = Rhythm::Paced(pace);
        load.staying = staying;
        for _ in 0..staying {
            load.start(Keep::All, Instant::now());
        }
        load
    }

    fn new(address: SocketAddr, size: usize) -> Self {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("create an epoll");
        let (clients, free, again) = (Vec::new(), Vec::new(), Vec::new());
        Self {
            address: address.into(),
            request: REQUEST.into_iter().cycle().take(size).collect(),
            buffer: vec![0; size],
            epoll,
            clients,
            free,
            staying: 0,
            rhythm: Rhythm::Eager,
            again,
            tally: Tally::default(),
        }
    }

    /// Runs the clients for `time`, and returns the results of that time.
    pub(crate) fn run(&mut self, time: Duration) -> Tally {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.turn();
        }
        std::mem::take(&mut self.tally)
    }

    /// Starts no more requests, and waits for those in progress. A visit that has no reply by then
    /// counts as reset.
    pub(crate) fn finish(mut self, patience: Duration) -> Tally {
        let until = Instant::now() + patience;
        self.rhythm = Rhythm::Over;
        let visiting = |load: &Self| load.clients[load.staying..].iter().flatten().count();
        while visiting(&self) > 0 && Instant::now() < until {
            self.turn();
        }
        self.tally.reset += visiting(&self);
        self.tally
    }

    fn turn(&mut self) {
        for keep in std::mem::take(&mut self.again) {
            self.start(keep, Instant::now());
        }
        let mut events = [EpollEvent::empty(); 256];
        let ready = self.epoll.wait(&mut events, 100_u8).expect("wait for events");
        for event in &events[..ready] {
            match event.data() {
                TIMER => self.start_what_is_due(),
                number => self.go_on(usize::try_from(number).expect("the number of a client")),
            }
        }
    }

    fn start_what_is_due(&mut self) {
        let now = Instant::now();
        while let Rhythm::Paced(pace) = &mut self.rhythm {
            if pace.due > now {
                return;
            }
            // This clears the level-triggered timer until the next request is due.
            let _ = pace.timer.wait();
            let (due, turn) = (pace.due, pace.turn);
            pace.due += pace.every;
            pace.turn = (turn + 1) % self.staying.max(1);
            self.start(Keep::One, due);
            if let Some(client) = self.clients[turn]
                .as_mut()
                .filter(|client| client.keep == Keep::All && !client.waits)
            {
                client.since = due;
                client.waits = true;
                client.sent = 0;
                self.ask(turn);
            }
        }
    }

    /// Connects, and sends the request at once if possible. On loopback that is possible unless the
    /// backlog is full.
    fn start(&mut self, keep: Keep, since: Instant) {
        let kind = Type::STREAM.nonblocking();
        let socket = Socket::new(self.address.domain(), kind, None).expect("create a socket");
        match socket.connect(&self.address) {
            Err(error) if error.raw_os_error() != Some(nix::errno::Errno::EINPROGRESS as i32) => {
                self.tally.refused += 1;
                return self.come_again(keep);
            }
            _ => {}
        }
        let number = self.free.pop().unwrap_or_else(|| {
            self.clients.push(None);
            self.clients.len() - 1
        });
        let interest = EpollEvent::new(EpollFlags::EPOLLIN, number as u64);
        self.epoll.add(&socket, interest).expect("watch a descriptor");
        self.clients[number] =
            Some(Client { socket, keep, since, sent: 0, received: 0, waits: true });
        self.ask(number);
    }

    /// Sends the rest of the request, or registers for when the connection is writable.
    fn ask(&mut self, number: usize) {
        let Some(client) = &mut self.clients[number] else { return };
        match (&client.socket).write(&self.request[client.sent..]) {
            Ok(length) => client.sent += length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return self.end(number, Some(error)),
        }
        if client.sent < self.request.len() {
            let mut interest =
                EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT, number as u64);
            self.epoll.modify(&client.socket, &mut interest).expect("watch a descriptor");
        }
    }

    fn go_on(&mut self, number: usize) {
        let Some(client) = &mut self.clients[number] else { return };
        if client.sent < self.request.len() && client.waits {
            let is_new = client.sent == 0;
            let mut interest = EpollEvent::new(EpollFlags::EPOLLIN, number as u64);
            self.epoll.modify(&client.socket, &mut interest).expect("watch a descriptor");
            self.ask(number);
            if is_new {
                return;
            }
        }
        let Some(client) = &mut self.clients[number] else { return };
        match (&client.socket).read(&mut self.buffer) {
            Ok(0) => self.end(number, Some(ErrorKind::UnexpectedEof.into())),
            Ok(length) => {
                assert_eq!(
                    self.buffer[..length],
                    self.request[client.received..client.received + length],
                    "the reply was altered"
                );
                client.received += length;
                if client.received == self.request.len() {
                    self.replied(number);
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => self.end(number, Some(error)),
        }
    }

    fn replied(&mut self, number: usize) {
        let Some(client) = &mut self.clients[number] else { return };
        let now = Instant::now();
        let time = (now - client.since).as_secs_f64() * 1e6;
        client.waits = false;
        client.sent = 0;
        client.received = 0;
        if client.keep == Keep::One {
            self.tally.visits.push(time);
            return self.end(number, None);
        }
        self.tally.requests.push(time);
        if let Rhythm::Eager = self.rhythm {
            client.since = now;
            client.waits = true;
            self.ask(number);
        }
    }

    /// Handles the end of a connection. Without a pace, the client reconnects.
    fn end(&mut self, number: usize, error: Option<io::Error>) {
        let Some(client) = self.clients[number].take() else { return };
        let keep = client.keep;
        drop(client);
        match (error.map(|error| error.kind()), keep) {
            (None, _) => {}
            (Some(ErrorKind::ConnectionRefused), _) => self.tally.refused += 1,
            (Some(_), Keep::One) => self.tally.reset += 1,
            (Some(_), Keep::All) => self.tally.cut += 1,
        }
        // The entry of a persistent client stays empty, because these clients are counted by
        // number.
        if number >= self.staying {
            self.free.push(number);
        }
        self.come_again(keep);
    }

    fn come_again(&mut self, keep: Keep) {
        if let Rhythm::Eager = self.rhythm {
            self.again.push(keep);
        }
    }
}
