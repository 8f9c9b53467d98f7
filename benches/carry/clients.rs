//! Busy connections: clients that send requests at a constant total rate, whatever their number,
//! and record how long each answer takes.
//!
//! This module also has the upstream for the proxy, in the same process. Clients, upstream and
//! daemon share the processors.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::sleep_until;

/// How many connections may be in progress at once: no more than fit into a listener's backlog.
const DOORS: usize = 128;

/// Clients that send requests at a constant rate.
pub(crate) struct Clients {
    tasks: JoinSet<()>,
    is_over: Arc<AtomicBool>,
    pauses: Arc<Pauses>,
}

/// The time of each request, and how long its answer took.
type Pauses = Mutex<Vec<(Instant, Duration)>>;

impl Clients {
    /// Starts `count` clients that together send `rate` requests per second. When this returns,
    /// each client has had one answer.
    pub(crate) fn start(runtime: &Runtime, address: SocketAddr, count: u32, rate: f64) -> Self {
        let (doors, ready) = (Arc::new(Semaphore::new(DOORS)), Arc::new(Semaphore::new(0)));
        let (is_over, pauses) = (Arc::new(AtomicBool::new(false)), Arc::<Pauses>::default());
        let every = Duration::from_secs_f64(f64::from(count) / rate);
        let mut tasks = JoinSet::new();
        for number in 0..count {
            let (doors, ready) = (Arc::clone(&doors), Arc::clone(&ready));
            let (is_over, pauses) = (Arc::clone(&is_over), Arc::clone(&pauses));
            let task = async move {
                let door = doors.acquire().await.expect("the semaphore is never closed");
                let mut client = TcpStream::connect(address).await.expect("connect");
                client.set_nodelay(true).expect("set an option");
                ask(&mut client).await;
                drop(door);
                ready.add_permits(1);
                // Spreads the requests of the clients evenly over time.
                let mut next =
                    tokio::time::Instant::now() + every.mul_f64(f64::from(number % 97) / 97.0);
                while !is_over.load(Ordering::Relaxed) {
                    sleep_until(next).await;
                    let began = Instant::now();
                    ask(&mut client).await;
                    pauses
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push((began, began.elapsed()));
                    next += every;
                }
            };
            tasks.spawn_on(task, runtime.handle());
        }
        drop(runtime.block_on(ready.acquire_many(count)).expect("the semaphore is never closed"));
        Self { tasks, is_over, pauses }
    }

    /// Returns the pauses since the last call.
    pub(crate) fn pauses(&self) -> Vec<(Instant, Duration)> {
        std::mem::take(&mut *self.pauses.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Stops the clients. Panics if any of them has lost its connection.
    pub(crate) fn end(mut self, runtime: &Runtime) {
        self.is_over.store(true, Ordering::Relaxed);
        runtime.block_on(async {
            while let Some(ended) = self.tasks.join_next().await {
                ended.expect("a client lost its connection");
            }
        });
    }
}

/// Sends one request and reads the answer.
async fn ask(client: &mut TcpStream) {
    let (request, mut answer) = ([7; 64], [0; 64]);
    client.write_all(&request).await.expect("send a request");
    client.read_exact(&mut answer).await.expect("read the answer");
    assert_eq!(answer, request);
}

/// Starts the upstream of the proxy, an echo server, and returns its address.
pub(crate) async fn upstream() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let address = listener.local_addr().expect("read the address");
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
