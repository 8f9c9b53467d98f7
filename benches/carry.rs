//! Measures what a handoff with `--carry` costs: how long until the old process is gone, and how long a client waits meanwhile.
//!
//! All connections are busy, at the same rate together however many they are: so what grows with their number is the carry. A
//! pause is how long one answer took; those count that were awaited between the commit and the end of the old process, beside
//! those of a while before it in the same turn.

mod support;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use support::daemon::Daemon;
use support::figures::Figures;
use support::table::{Table, Target};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until};

const TURNS: usize = 5;
/// Handoffs in a turn.
const HANDOFFS: u64 = 3;
/// Requests a second, of all connections together.
const RATE: f64 = 10_000.0;
/// How long before a handoff pauses are counted that have nothing to do with one.
const BEFORE: Duration = Duration::from_millis(500);
/// Connections that are about to be made at once: no more than wait in a listener's queue.
const DOORS: usize = 128;

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Service {
    Echo,
    Proxy,
}

/// What one number of connections comes to.
struct Case {
    service: Service,
    connections: usize,
    /// From the commit to the end of the old process, in milliseconds.
    carries: Figures,
    /// For each turn, of the pauses in milliseconds: the middle, one of a thousand, the longest; and one of a thousand before.
    medians: Figures,
    rare: Figures,
    longest: Figures,
    rare_before: Figures,
}

fn main() {
    support::run(|| {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
        let upstream = runtime.block_on(upstream());
        let echoed = [500, 1_000, 2_000, 5_000].map(|connections| (Service::Echo, connections));
        let proxied = [500, 1_000, 2_000].map(|connections| (Service::Proxy, connections));
        let mut cases: Vec<Case> = echoed.into_iter().chain(proxied).map(Case::new).collect();
        for _ in 0..TURNS {
            for case in &mut cases {
                case.turn(&runtime, upstream);
            }
        }
        print(&cases);
    });
}

fn print(cases: &[Case]) {
    let columns = ["carry, ms", "per 1,000", "pause p50", "p99.9", "longest", "p99.9 before"];
    let mut table = Table::new("handoff with --carry, medians of turns", &columns);
    for case in cases {
        let carry = case.carries.median();
        let target = match case.service {
            Service::Echo => Target::AtMost(1_000.0),
            Service::Proxy => Target::None,
        };
        let thousands = f64::from(u32::try_from(case.connections).expect("a number of connections")) / 1e3;
        let pauses = [&case.medians, &case.rare, &case.longest, &case.rare_before].map(Figures::median);
        let values = [&[carry, carry / thousands][..], &pauses].concat();
        table.row(&format!("{} connections, {:?}", case.connections, case.service), &values, target);
    }
    table.print();
    let mut table = Table::new("the same, of all turns", &["pause p99.9, ms"]);
    for case in cases {
        table.row(
            &format!("{} connections, {:?}", case.connections, case.service),
            &[case.rare.median()],
            Target::AtMost(50.0),
        );
    }
    table.print();
}

impl Case {
    fn new((service, connections): (Service, usize)) -> Self {
        let none = Figures::default;
        Self {
            service,
            connections,
            carries: none(),
            medians: none(),
            rare: none(),
            longest: none(),
            rare_before: none(),
        }
    }

    /// A daemon, its clients, and some handoffs.
    fn turn(&mut self, runtime: &Runtime, upstream: SocketAddr) {
        let upstream = upstream.to_string();
        let words: &[&str] = match self.service {
            Service::Echo => &[],
            Service::Proxy => &["proxy", "--to", &upstream],
        };
        let daemon = Daemon::start_as(words, 1, &["--carry", "--bake", "0"]);
        let clients = Clients::start(runtime, daemon.address(), self.connections);
        let (mut during, mut before) = (Figures::default(), Figures::default());
        let mut head = daemon.first();
        for generation in 1..=HANDOFFS {
            // The time goes by in which nothing is handed over.
            runtime.block_on(async { sleep(BEFORE).await });
            let asked = Daemon::signal(head, Signal::SIGHUP);
            let handed_over = daemon.await_record(generation, "handed over");
            let (commit, next) = (handed_over.at, handed_over.process("successor_pid"));
            let report = daemon.await_record(generation, "ended").text;
            let end = daemon.reap(head);
            assert!(report.contains(&format!("carried={}", self.connections)), "not all were carried: {report}");
            head = next;
            self.carries.push_time(end - commit);
            // An answer that is late is known when it has come.
            runtime.block_on(async { sleep(BEFORE).await });
            for (began, pause) in clients.pauses() {
                let ended = began + pause;
                if ended >= commit && began <= end {
                    during.push_time(pause);
                } else if ended < asked && began + BEFORE >= asked {
                    before.push_time(pause);
                }
            }
        }
        self.medians.push(during.median());
        self.rare.push(during.per_mille(999));
        self.longest.push(during.max());
        self.rare_before.push(before.per_mille(999));
        clients.end(runtime);
    }
}

/// Clients that ask now and then.
struct Clients {
    tasks: JoinSet<()>,
    is_over: Arc<AtomicBool>,
    pauses: Arc<Pauses>,
}

/// When a request was sent, and how long its answer took.
type Pauses = Mutex<Vec<(Instant, Duration)>>;

impl Clients {
    /// When this returns all of them have been answered once.
    fn start(runtime: &Runtime, address: SocketAddr, count: usize) -> Self {
        let (doors, ready) = (Arc::new(Semaphore::new(DOORS)), Arc::new(Semaphore::new(0)));
        let (is_over, pauses) = (Arc::new(AtomicBool::new(false)), Arc::<Pauses>::default());
        let every = Duration::from_secs_f64(f64::from(u32::try_from(count).expect("few enough")) / RATE);
        let mut tasks = JoinSet::new();
        for number in 0..u32::try_from(count).expect("few enough") {
            let (doors, ready) = (Arc::clone(&doors), Arc::clone(&ready));
            let (is_over, pauses) = (Arc::clone(&is_over), Arc::clone(&pauses));
            let task = async move {
                let door = doors.acquire().await.expect("it is never closed");
                let mut client = TcpStream::connect(address).await.expect("connect");
                client.set_nodelay(true).expect("set an option");
                ask(&mut client).await;
                drop(door);
                ready.add_permits(1);
                // Spread over the whole time, for all that follows.
                let mut next = tokio::time::Instant::now() + every.mul_f64(f64::from(number % 97) / 97.0);
                while !is_over.load(Ordering::Relaxed) {
                    sleep_until(next).await;
                    let began = Instant::now();
                    ask(&mut client).await;
                    pauses.lock().unwrap_or_else(PoisonError::into_inner).push((began, began.elapsed()));
                    next += every;
                }
            };
            tasks.spawn_on(task, runtime.handle());
        }
        let all = u32::try_from(count).expect("few enough");
        drop(runtime.block_on(ready.acquire_many(all)).expect("it is never closed"));
        Self { tasks, is_over, pauses }
    }

    /// Those since the last time.
    fn pauses(&self) -> Vec<(Instant, Duration)> {
        std::mem::take(&mut *self.pauses.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Not one of them may have lost its connection.
    fn end(mut self, runtime: &Runtime) {
        self.is_over.store(true, Ordering::Relaxed);
        runtime.block_on(async {
            while let Some(ended) = self.tasks.join_next().await {
                ended.expect("no client has lost its connection");
            }
        });
    }
}

/// One request and its answer.
async fn ask(client: &mut TcpStream) {
    let (request, mut answer) = ([7; 64], [0; 64]);
    client.write_all(&request).await.expect("send a request");
    client.read_exact(&mut answer).await.expect("read its answer");
    assert_eq!(answer, request);
}

/// What the proxy passes its clients on to: an echo.
async fn upstream() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = client.set_nodelay(true);
                let mut buffer = [0; 1024];
                while let Ok(length @ 1..) = client.read(&mut buffer).await {
                    if client.write_all(&buffer[..length]).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    address
}
