//! Clients in numbers: some connect as fast as they can, some keep their connection; each verifies
//! every byte.
//!
//! Nobody retries anything: what a client meets is counted, and a test decides what may have been
//! met. A request that crosses the close of an idle connection on the wire is the one thing that no
//! server can prevent; it is told apart by what the client sees: its request was on the way, and
//! not one byte of a reply came.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::ops::AddAssign;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::signal::Signal;
use socket2::{Domain, Socket, Type};

use super::{Client, DEADLINE, Event, Line, signal};

/// How long a persistent client looks for the end of its connection between two requests.
const BETWEEN_REQUESTS: Duration = Duration::from_millis(4);
/// Each client goes round these many addresses of its own: a closed connection blocks its port for
/// a while.
const SOURCES: u64 = 200;

/// Clients at work.
#[derive(Debug)]
pub(crate) struct Storm {
    over: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Tally>>,
}

/// What clients have met.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Short connections that were served whole.
    pub(crate) short: u64,
    /// Requests of persistent connections that were answered.
    pub(crate) persistent: u64,
    /// Persistent connections that the server closed in order, between two requests.
    pub(crate) closed: u64,
    /// Persistent requests that crossed such a close on the wire.
    pub(crate) crossed: u64,
    /// Everything else, by kind and by what was being done.
    pub(crate) losses: BTreeMap<String, u64>,
    /// Of every connection, who it was by the server's name for it, and how many bytes came back
    /// verified.
    pub(crate) verified: Vec<(String, u64)>,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.short += other.short;
        self.persistent += other.persistent;
        self.closed += other.closed;
        self.crossed += other.crossed;
        for (kind, count) in other.losses {
            *self.losses.entry(kind).or_default() += count;
        }
        self.verified.extend(other.verified);
    }
}

impl Storm {
    /// Lets `short` clients connect as fast as they can, and `persistent` ones stay.
    pub(crate) fn start(address: &str, short: usize, persistent: usize) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let clients = (0..short + persistent).map(|number| {
            let worker =
                Worker { address: address.to_owned(), number: number as u64, made: 0, asked: 0 };
            let over = Arc::clone(&over);
            std::thread::spawn(move || {
                if number < short { worker.come_and_go(&over) } else { worker.stay(&over) }
            })
        });
        Self { clients: clients.collect(), over }
    }

    /// Has every client end what it is about, and tells what all of them met.
    pub(crate) fn end(self) -> Tally {
        self.over.store(true, Ordering::Relaxed);
        let mut tally = Tally::default();
        for client in self.clients {
            tally += client.join().unwrap();
        }
        tally
    }
}

/// One client.
struct Worker {
    address: String,
    number: u64,
    made: u64,
    asked: u64,
}

/// What came of a request on a connection that is kept.
enum Asked {
    Answered(u64),
    /// The server closed the connection while the request was on its way.
    Crossed,
}

impl Worker {
    fn come_and_go(mut self, over: &AtomicBool) -> Tally {
        let mut tally = Tally::default();
        while !over.load(Ordering::Relaxed) {
            match self.once() {
                Ok(verified) => {
                    tally.short += 1;
                    tally.verified.push(verified);
                }
                Err(loss) => tally.lose(loss),
            }
        }
        tally
    }

    /// Connect, request, reply, half-close, end: all of it has to work.
    fn once(&mut self) -> Result<(String, u64), Loss> {
        let mut client = self.connect()?;
        let name = name(&client);
        let request = self.request();
        client
            .write_all(&request)
            .map_err(|error| Loss::of("write of a new connection", &error))?;
        let mut reply = vec![0; request.len()];
        client.read_exact(&mut reply).map_err(|error| Loss::of("first reply", &error))?;
        if reply != request {
            return Err(Loss::altered("first reply"));
        }
        client.half_close().map_err(|error| Loss::of("half-close", &error))?;
        client.expect_end().map_err(|error| Loss::of("end", &error))?;
        Ok((name, request.len() as u64))
    }

    fn stay(mut self, over: &AtomicBool) -> Tally {
        let mut tally = Tally::default();
        while !over.load(Ordering::Relaxed) {
            let kept = self.connect().and_then(|client| self.keep(client, over, &mut tally));
            if let Err(loss) = kept {
                tally.lose(loss);
            }
        }
        tally
    }

    /// Uses one connection until the server closes it, or the storm is over.
    fn keep(
        &mut self,
        mut client: Client,
        over: &AtomicBool,
        tally: &mut Tally,
    ) -> Result<(), Loss> {
        let name = name(&client);
        let mut bytes = 0;
        let mut first = true;
        while !over.load(Ordering::Relaxed) {
            match self.ask(&mut client, first)? {
                Asked::Answered(length) => {
                    tally.persistent += 1;
                    bytes += length;
                }
                Asked::Crossed => {
                    tally.crossed += 1;
                    tally.verified.push((name, bytes));
                    return Ok(());
                }
            }
            first = false;
            if is_closed(&mut client)? {
                tally.closed += 1;
                tally.verified.push((name, bytes));
                return Ok(());
            }
        }
        tally.verified.push((name, bytes));
        // The close of an idle connection may cross this as well.
        let _ = client.half_close();
        client.expect_end().map_err(|error| Loss::of("end of a kept connection", &error))
    }

    /// One request. The first of a connection may not meet its close: the server has to wait for
    /// it.
    fn ask(&mut self, client: &mut Client, first: bool) -> Result<Asked, Loss> {
        let request = self.request();
        let crosses = |error: &io::Error| !first && is_end(error);
        match client.write_all(&request) {
            Err(error) if crosses(&error) => return Ok(Asked::Crossed),
            other => other.map_err(|error| Loss::of("write of a kept connection", &error))?,
        }
        let mut reply = vec![0; request.len()];
        let mut filled = 0;
        while filled < reply.len() {
            match client.read(&mut reply[filled..]) {
                Ok(0) if filled == 0 && !first => return Ok(Asked::Crossed),
                Ok(0) => return Err(Loss::unanswered("reply of a kept connection")),
                Ok(count) => filled += count,
                Err(error) if filled == 0 && crosses(&error) => return Ok(Asked::Crossed),
                Err(error) => return Err(Loss::of("reply of a kept connection", &error)),
            }
        }
        if reply == request {
            Ok(Asked::Answered(filled as u64))
        } else {
            Err(Loss::altered("kept connection"))
        }
    }

    fn connect(&mut self) -> Result<Client, Loss> {
        self.made += 1;
        let connected = match self.address.parse() {
            Ok(address) => connect_from(self.source(), address),
            Err(_) => Client::connect(&self.address),
        };
        connected.map_err(|error| Loss::of("connect", &error))
    }

    /// A loopback address, another one each time.
    fn source(&self) -> Ipv4Addr {
        let [.., high, low] = self.number.to_be_bytes();
        Ipv4Addr::new(127, 1 + high, low, u8::try_from(1 + self.made % SOURCES).unwrap())
    }

    /// Bytes that no other request has: a few, or now and then more than one read takes.
    fn request(&mut self) -> Vec<u8> {
        self.asked += 1;
        let mut request = format!("client {} request {} ", self.number, self.asked).into_bytes();
        let length =
            if self.asked % 16 == 0 { 40_000 } else { request.len() + usize::from(request[7]) };
        let mut state = (self.number << 32) | self.asked;
        request.resize_with(length, || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            state.to_be_bytes()[0]
        });
        request
    }
}

/// What no client may ever meet: refused, reset, unanswered or altered, and in what.
#[derive(Debug)]
struct Loss(String);

impl Loss {
    fn of(doing: &str, error: &io::Error) -> Self {
        let kind = error.kind();
        if kind == ErrorKind::ConnectionRefused {
            Self(format!("refused: {doing}"))
        } else if is_end(error) {
            Self(format!("reset: {doing}"))
        } else if matches!(
            kind,
            ErrorKind::UnexpectedEof | ErrorKind::WouldBlock | ErrorKind::TimedOut
        ) {
            Self::unanswered(doing)
        } else {
            Self(format!("{doing}: {error}"))
        }
    }

    fn altered(what: &str) -> Self {
        Self(format!("altered: {what}"))
    }

    /// The end came where a reply was due, or nothing came at all.
    fn unanswered(what: &str) -> Self {
        Self(format!("unanswered: {what}"))
    }
}

impl Tally {
    fn lose(&mut self, loss: Loss) {
        *self.losses.entry(loss.0).or_default() += 1;
    }
}

/// Whether the connection was gone: by a reset, or by a close that the kernel noticed first.
fn is_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::NotConnected
    )
}

/// Waits a little for the server's close: an end is one, anything else but silence is a loss.
fn is_closed(client: &mut Client) -> Result<bool, Loss> {
    let set = |timeout| {
        client.set_read_timeout(timeout).map_err(|error| Loss::of("set a timeout", &error))
    };
    set(BETWEEN_REQUESTS)?;
    let closed = match client.read(&mut [0; 1]) {
        Ok(0) => Ok(true),
        Ok(_) => Err(Loss::altered("bytes that nobody asked for")),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(Loss::of("waiting between requests", &error)),
    };
    client.set_read_timeout(DEADLINE).map_err(|error| Loss::of("set a timeout", &error))?;
    closed
}

/// Connects from that address: a client has 28,000 ports for each.
pub(crate) fn connect_from(source: Ipv4Addr, address: SocketAddr) -> io::Result<Client> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((source, 0)).into())?;
    socket.connect(&address.into())?;
    let client = Client::Tcp(TcpStream::from(socket));
    client.set_read_timeout(DEADLINE)?;
    Ok(client)
}

/// How the server's log calls this client.
fn name(client: &Client) -> String {
    match client {
        Client::Tcp(socket) => socket
            .local_addr()
            .map_or_else(|error| error.to_string(), |address| address.to_string()),
        Client::Unix(_) => "unix".to_owned(),
    }
}

/// One handoff after another, as fast as the line takes them.
#[derive(Debug)]
pub(crate) struct Handoffs<'a> {
    line: &'a Line,
    seen: usize,
    /// The head of the line.
    pub(crate) generation: u64,
    pub(crate) pid: u32,
}

impl<'a> Handoffs<'a> {
    /// From the first generation of `line` on.
    pub(crate) const fn of(line: &'a Line) -> Self {
        Self { line, seen: 0, generation: 1, pid: line.first_pid() }
    }

    /// Has the head hand over, and waits until its successor is the head.
    pub(crate) fn next(&mut self) {
        signal(self.pid, Signal::SIGHUP);
        self.generation += 1;
        let what = format!("generation {} as the head", self.generation);
        self.pid = self
            .line
            .wait_after(&mut self.seen, &what, |record| {
                record.is(self.generation, Event::GenerationServing)
            })
            .pid;
    }
}
