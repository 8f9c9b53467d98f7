//! HTTP clients that put a server under load, and count what becomes of their requests.
//!
//! Half of the clients make a connection for each request, the others send up to [`REUSE`] requests
//! on each connection.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// How many clients put the server under load.
const CLIENTS: usize = 4;
/// How many requests a client sends on a connection that it keeps.
const REUSE: usize = 20;
/// The pause of a client before each request. Without it, the clients would use all processors, and
/// the programs would hardly start.
const PAUSE: Duration = Duration::from_millis(2);
/// How long a client waits. Far above the usual time: a deadline, not a measurement.
const TIMEOUT: Duration = Duration::from_secs(60);

/// What became of the requests.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    pub(crate) served: usize,
    /// Kept connections that the server closed before it answered a request. A client may send such
    /// a request again (RFC 9112, section 9.3.1).
    pub(crate) closed_idle: usize,
    /// How many requests failed in each way.
    pub(crate) failed: BTreeMap<String, usize>,
}

/// Clients that send requests until they are stopped.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Requests>>,
}

impl Load {
    /// Starts clients of the server at `address`. Each reply must contain `expected`.
    pub(crate) fn start(address: &str, expected: &'static str) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let clients = (0..CLIENTS).map(|number| {
            let (stop, address) = (Arc::clone(&stop), address.to_owned());
            let reuse = if number % 2 == 0 { 1 } else { REUSE };
            std::thread::spawn(move || {
                let mut requests = Requests::default();
                while !stop.load(Ordering::Relaxed) {
                    requests.make(&address, reuse, expected);
                }
                requests
            })
        });
        Self { clients: clients.collect(), stop }
    }

    /// Lets the clients finish their requests, and returns what became of all of them.
    pub(crate) fn finish(self) -> Requests {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Requests::default();
        for client in self.clients {
            let requests = client.join().unwrap();
            all.served += requests.served;
            all.closed_idle += requests.closed_idle;
            for (how, count) in requests.failed {
                *all.failed.entry(how).or_default() += count;
            }
        }
        all
    }
}

impl Requests {
    /// Makes a connection, and sends up to `reuse` requests on it.
    fn make(&mut self, address: &str, reuse: usize, expected: &str) {
        let stream = match connect(address) {
            Ok(stream) => stream,
            Err(error) => return self.fail(format!("not connected: {error}")),
        };
        let mut stream = BufReader::new(stream);
        for number in 1..=reuse {
            pause();
            match request(&mut stream, number == reuse) {
                Ok(Reply { status: 200, body, .. }) if !body.contains(expected) => {
                    return self.fail(format!("wrong reply: {body:?}"));
                }
                Ok(Reply { status: 200, closes, .. }) => {
                    self.served += 1;
                    if closes {
                        return;
                    }
                }
                Ok(Reply { status, .. }) => return self.fail(format!("status {status}")),
                Err(Unanswered::Nothing) if number > 1 => {
                    self.closed_idle += 1;
                    return;
                }
                Err(Unanswered::Nothing) => return self.fail("no reply".to_owned()),
                Err(Unanswered::Cut(how)) => return self.fail(format!("cut: {how}")),
            }
        }
    }

    fn fail(&mut self, how: String) {
        *self.failed.entry(how).or_default() += 1;
    }
}

/// A client that keeps its connection.
pub(crate) struct Kept(BufReader<Box<dyn Connection>>);

impl Kept {
    pub(crate) fn connect(address: &str) -> Self {
        Self(BufReader::new(connect(address).unwrap()))
    }

    /// Sends a request. Returns whether the reply says that the connection ends.
    pub(crate) fn is_last_reply(&mut self) -> bool {
        match request(&mut self.0, false) {
            Ok(reply) if reply.status == 200 => reply.closes,
            Ok(reply) => panic!("status {}", reply.status),
            Err(Unanswered::Nothing) => panic!("no reply"),
            Err(Unanswered::Cut(how)) => panic!("cut: {how}"),
        }
    }

    /// Asserts that the server closes the connection.
    pub(crate) fn expect_end(mut self) {
        assert_eq!(self.0.read(&mut [0]).unwrap(), 0);
    }
}

struct Reply {
    status: u16,
    body: String,
    /// Whether the server closes the connection.
    closes: bool,
}

/// Why a request has no whole reply.
enum Unanswered {
    /// Not a byte of a reply has arrived.
    Nothing,
    /// A part of the reply is missing.
    Cut(String),
}

impl From<io::Error> for Unanswered {
    fn from(error: io::Error) -> Self {
        Self::Cut(error.to_string())
    }
}

/// A connection, TCP or Unix.
pub(crate) trait Connection: Read + Write {}

impl<S: Read + Write> Connection for S {}

#[expect(clippy::disallowed_methods, reason = "the pace of a load, not a wait for an event")]
fn pause() {
    std::thread::sleep(PAUSE);
}

/// Connects to a TCP address or to the path of a Unix socket.
fn connect(address: &str) -> io::Result<Box<dyn Connection>> {
    if address.starts_with('/') {
        let stream = UnixStream::connect(address)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        return Ok(Box::new(stream));
    }
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.set_nodelay(true)?;
    Ok(Box::new(stream))
}

/// Sends a request and reads its reply.
fn request(
    stream: &mut BufReader<Box<dyn Connection>>,
    is_last: bool,
) -> Result<Reply, Unanswered> {
    let connection = if is_last { "close" } else { "keep-alive" };
    let request = format!("GET / HTTP/1.1\r\nHost: test\r\nConnection: {connection}\r\n\r\n");
    let sent = stream.get_mut().write_all(request.as_bytes());
    let mut line = String::new();
    match sent.and_then(|()| stream.read_line(&mut line)) {
        Ok(0) => return Err(Unanswered::Nothing),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error.into()),
        Err(_) => return Err(Unanswered::Nothing),
    }
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| Unanswered::Cut(format!("no status: {line:?}")))?;
    let mut closes = is_last || line.starts_with("HTTP/1.0");
    let (mut length, mut is_chunked) = (None, false);
    loop {
        line.clear();
        if stream.read_line(&mut line)? == 0 {
            return Err(Unanswered::Cut("within the headers".to_owned()));
        }
        let header = line.trim().to_ascii_lowercase();
        match header.split_once(": ") {
            Some(("content-length", value)) => length = value.parse().ok(),
            Some(("transfer-encoding", value)) => is_chunked = value == "chunked",
            Some(("connection", value)) => closes |= value == "close",
            Some(_) => {}
            None if header.is_empty() => break,
            None => return Err(Unanswered::Cut(format!("no header: {line:?}"))),
        }
    }
    let body = if is_chunked {
        chunks(stream)?
    } else if let Some(length) = length {
        exactly(stream, length)?
    } else {
        closes = true;
        let mut body = Vec::new();
        stream.read_to_end(&mut body)?;
        body
    };
    Ok(Reply { status, body: String::from_utf8_lossy(&body).into_owned(), closes })
}

fn exactly(stream: &mut BufReader<Box<dyn Connection>>, length: usize) -> io::Result<Vec<u8>> {
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok(body)
}

/// Reads a body in chunks (RFC 9112, section 7.1).
fn chunks(stream: &mut BufReader<Box<dyn Connection>>) -> Result<Vec<u8>, Unanswered> {
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let length = usize::from_str_radix(line.trim(), 16)
            .map_err(|_| Unanswered::Cut(format!("no chunk: {line:?}")))?;
        body.extend(exactly(stream, length)?);
        exactly(stream, 2)?;
        if length == 0 {
            return Ok(body);
        }
    }
}
