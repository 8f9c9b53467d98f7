//! Many clients under load: some open short connections as fast as they can, others keep one open.
//! Each verifies every byte.
//!
//! No client retries. Every outcome is counted, and the test decides which outcomes are allowed. No
//! server can prevent one of them: a request that crosses the close of an idle connection on the
//! wire. The client detects this case because its request was sent and no byte of a reply arrived.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::signal::Signal;
use socket2::{Domain, Socket, Type};

use super::tally::{Loss, Tally, is_end};
use super::view::pause;
use super::{Client, DEADLINE, Event, Line, signal};

/// How long a persistent client watches for the end of its connection between two requests.
const BETWEEN_REQUESTS: Duration = Duration::from_millis(4);
/// How many source addresses each client rotates through, because a closed connection blocks its
/// port for a while.
const SOURCES: u64 = 200;

/// A group of running clients.
#[derive(Debug)]
pub(crate) struct Storm {
    over: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Tally>>,
}

impl Storm {
    /// Starts `short` clients that reconnect as fast as they can, and `persistent` clients that
    /// stay connected.
    pub(crate) fn start(address: &str, short: usize, persistent: usize) -> Self {
        Self::start_paced(address, short, persistent, 0)
    }

    /// Starts clients as [`Storm::start`] does. A client that reconnects pauses for `pace`
    /// milliseconds before each connection.
    pub(crate) fn start_paced(address: &str, short: usize, persistent: usize, pace: u64) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let clients = (0..short + persistent).map(|number| {
            let address = address.to_owned();
            let worker = Worker { address, number: number as u64, pace, made: 0, asked: 0 };
            let over = Arc::clone(&over);
            std::thread::spawn(move || {
                if number < short { worker.come_and_go(&over) } else { worker.stay(&over) }
            })
        });
        Self { clients: clients.collect(), over }
    }

    /// Stops every client after its current exchange, and returns the combined outcomes.
    pub(crate) fn end(self) -> Tally {
        self.over.store(true, Ordering::Relaxed);
        let mut tally = Tally::default();
        for client in self.clients {
            tally += client.join().unwrap();
        }
        tally
    }
}

/// The state of one client.
struct Worker {
    address: String,
    number: u64,
    pace: u64,
    made: u64,
    asked: u64,
}

/// The outcome of a request on a persistent connection.
enum Asked {
    Answered(u64),
    /// The server closed the connection while the request was on its way.
    Crossed,
}

impl Worker {
    fn come_and_go(mut self, over: &AtomicBool) -> Tally {
        let mut tally = Tally::default();
        while !over.load(Ordering::Relaxed) {
            pause(self.pace);
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

    /// Connects, sends a request, reads the reply, half-closes and reads the end. Every step must
    /// succeed.
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

    /// Uses one connection until the server closes it or the load ends.
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
        // The server's close of an idle connection may cross this half-close too.
        let _ = client.half_close();
        client.expect_end().map_err(|error| Loss::of("end of a kept connection", &error))
    }

    /// Sends one request. The first request of a connection must never cross its close, because the
    /// server has to wait for it.
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

    /// Returns the next loopback address to connect from.
    fn source(&self) -> Ipv4Addr {
        let [.., high, low] = self.number.to_be_bytes();
        Ipv4Addr::new(127, 1 + high, low, u8::try_from(1 + self.made % SOURCES).unwrap())
    }

    /// Returns the bytes of a unique request: usually a few, sometimes more than one read returns.
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

/// Waits briefly, and returns whether the server has closed the connection. Bytes or other errors
/// are losses.
fn is_closed(client: &mut Client) -> Result<bool, Loss> {
    let set = |timeout| {
        client.set_read_timeout(timeout).map_err(|error| Loss::of("set a timeout", &error))
    };
    set(BETWEEN_REQUESTS)?;
    let closed = match client.read(&mut [0; 1]) {
        Ok(0) => Ok(true),
        Ok(_) => Err(Loss::altered("unrequested bytes")),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(Loss::of("waiting between requests", &error)),
    };
    client.set_read_timeout(DEADLINE).map_err(|error| Loss::of("set a timeout", &error))?;
    closed
}

/// Connects from this source address. Each address provides 28,000 ports.
pub(crate) fn connect_from(source: Ipv4Addr, address: SocketAddr) -> io::Result<Client> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((source, 0)).into())?;
    socket.connect(&address.into())?;
    let client = Client::Tcp(TcpStream::from(socket));
    client.set_read_timeout(DEADLINE)?;
    Ok(client)
}

/// Returns the client's name in the server's log.
fn name(client: &Client) -> String {
    match client {
        Client::Tcp(socket) => socket
            .local_addr()
            .map_or_else(|error| error.to_string(), |address| address.to_string()),
        Client::Unix(_) => "unix".to_owned(),
    }
}

/// Consecutive handoffs, as fast as the lineage completes them.
#[derive(Debug)]
pub(crate) struct Handoffs<'a> {
    line: &'a Line,
    seen: usize,
    /// The number of the active generation.
    pub(crate) generation: u64,
    pub(crate) pid: u32,
}

impl<'a> Handoffs<'a> {
    /// Starts with the first generation of `line`.
    pub(crate) const fn of(line: &'a Line) -> Self {
        Self { line, seen: 0, generation: 1, pid: line.first_pid() }
    }

    /// Triggers a handoff, and waits until the successor is the active generation.
    pub(crate) fn next(&mut self) {
        signal(self.pid, Signal::SIGHUP);
        self.generation += 1;
        let what = format!("generation {} as the active one", self.generation);
        self.pid = self
            .line
            .wait_after(&mut self.seen, &what, |record| {
                record.is(self.generation, Event::GenerationServing)
            })
            .pid;
    }
}
