//! Measures connections and requests per second, beside a bare tokio echo loop.
//!
//! Turns of both servers alternate in one run. The figures of a turn are divided by those of the
//! neighbouring turn, and the median of these ratios is shown. The clients share the processors
//! with the servers, so the rates differ less than the servers do. The table therefore also shows
//! the server's own processor time for each connection or request.

mod support;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use support::bare;
use support::clients::REQUEST;
use support::daemon::Daemon;
use support::figures::Figures;
use support::table::{Table, Target};
use support::usage::time_of;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

const TURNS: usize = 15;
const TURN: Duration = Duration::from_millis(500);
const CLIENTS: usize = 32;

/// The work of the clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    /// One connection for each request.
    Connections,
    /// One connection for all requests of a client.
    Requests,
}

/// The measurements of one of the two servers.
struct Side {
    address: SocketAddr,
    pid: Pid,
    /// The rates per second.
    rates: Figures,
    /// The server's own processor time for each connection or request, in microseconds.
    costs: Figures,
}

fn main() {
    bare::serve_if_asked();
    support::run(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .expect("start a runtime");
        let (daemon, bare) = (Daemon::start(1, &[]), bare::start());
        for work in [Work::Connections, Work::Requests] {
            let mut ours = Side::new(daemon.address(), daemon.first());
            let mut theirs = Side::new(bare.address(), bare.pid());
            for turn in 0..TURNS {
                // Each server is first equally often.
                if turn % 2 == 0 {
                    ours.turn(&runtime, work);
                    theirs.turn(&runtime, work);
                } else {
                    theirs.turn(&runtime, work);
                    ours.turn(&runtime, work);
                }
            }
            print(work, &ours, &theirs);
        }
    });
}

fn print(work: Work, ours: &Side, theirs: &Side) {
    let (title, target) = match work {
        Work::Connections => ("connections: connect, request, reply, close", Target::AtLeast(0.95)),
        Work::Requests => ("requests on connections that stay", Target::AtLeast(0.95)),
    };
    let mut table = Table::new(title, &["ratio", "daemon", "bare"]);
    let row = |ours: &Figures, theirs: &Figures| {
        [ours.over(theirs).median(), ours.median(), theirs.median()]
    };
    table.row("a second", &row(&ours.rates, &theirs.rates), target);
    table.row(
        "server's processor time for each, us",
        &row(&ours.costs, &theirs.costs),
        Target::None,
    );
    table.print();
}

impl Side {
    fn new(address: SocketAddr, pid: Pid) -> Self {
        Self { address, pid, rates: Figures::default(), costs: Figures::default() }
    }

    fn turn(&mut self, runtime: &Runtime, work: Work) {
        let (since, before) = (Instant::now(), time_of(self.pid));
        let done = runtime.block_on(load(self.address, work));
        let (wall, processor) = (since.elapsed(), time_of(self.pid) - before);
        self.rates.push(f64::from(done) / wall.as_secs_f64());
        self.costs.push(processor.as_secs_f64() * 1e6 / f64::from(done));
    }
}

/// Runs many clients for one turn, and returns how often they were served.
async fn load(address: SocketAddr, work: Work) -> u32 {
    let until = Instant::now() + TURN;
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        clients.spawn(client(address, work, until));
    }
    clients.join_all().await.iter().sum()
}

async fn client(address: SocketAddr, work: Work, until: Instant) -> u32 {
    let mut done = 0;
    let mut kept = None;
    while Instant::now() < until {
        let mut stream = match kept.take() {
            Some(stream) => stream,
            None => TcpStream::connect(address).await.expect("connect"),
        };
        let mut reply = [0; REQUEST.len()];
        stream.write_all(&REQUEST).await.expect("send");
        stream.read_exact(&mut reply).await.expect("read the reply");
        assert_eq!(reply, REQUEST, "the reply was altered");
        done += 1;
        if work == Work::Requests {
            kept = Some(stream);
        }
    }
    done
}
