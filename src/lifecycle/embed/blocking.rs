//! A listener with blocking calls, for a server that uses threads instead of a tokio runtime.
//!
//! The listening socket itself must stay non-blocking, because other generations share it. So this
//! module waits with poll(2) and then accepts without blocking.
//!
//! When the service stops, all threads may be busy. So a task accepts the clients that are left in
//! the backlog, and the threads get these clients from a queue. Clients in the queue count as open
//! connections, so that the process does not exit before they are served.

use std::future::Future;
use std::net::{SocketAddr, TcpStream};
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::error::Error;
use crate::ledger::{HeldPermit, Source};
use crate::lifecycle::life::{Life, OpenConnection, ServedListener, SocketUse, StopOrder, Term};
use crate::net::{Listener, Peer, accept_blocking};
use crate::sys::interrupt::start_watcher;

/// The pause before another accept(2) during a shortage of file descriptors or memory.
const PAUSE: Duration = Duration::from_millis(10);

/// How long to accept clients that are left when the service stops, while a thread holds the socket
/// open. The time is limited, because the server may keep that thread waiting.
const LAST_CLIENTS: Duration = Duration::from_secs(1);

/// The pause until a thread has probably released the socket.
const IN_USE_PAUSE: Duration = Duration::from_millis(1);

/// A listener whose calls block the calling thread. Made by [`Life::blocking`].
///
/// ```no_run
/// # fn example(life: handoffd::embed::Life) -> Result<(), handoffd::Error> {
/// use std::io::Write;
///
/// let listener = life.blocking("web")?;
/// std::thread::spawn(move || {
///     while let Some((mut client, _)) = listener.accept_tcp() {
///         std::thread::spawn(move || client.write_all(b"hello\n"));
///     }
/// });
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct BlockingListener {
    /// The sockets with the name of the listener.
    all: Vec<Arc<ServedListener>>,
    /// A socket that becomes readable when the generation has stopped accepting and the drain has
    /// begun.
    retired: UnixStream,
    /// The clients that were left when this generation stopped accepting.
    last_clients: Mutex<UnboundedReceiver<BlockingClient>>,
    term: Term,
    /// A token that this listener holds until it stops accepting. [`Life::draining`] waits until
    /// the token is dropped.
    _accepting: Option<TaskTrackerToken>,
}

/// A connection that counts as open until this value is dropped. It dereferences to the connection.
#[derive(Debug)]
pub struct Tracked<S> {
    stream: S,
    _open: OpenConnection,
}

impl Life {
    /// Returns a listener with blocking calls for the listener called `name`. Must be called in a
    /// tokio runtime.
    ///
    /// # Errors
    /// Returns [`Error::NoSuchListener`] if the name is unknown, or the kernel's error if no
    /// descriptor is free.
    pub fn blocking(&self, name: &str) -> Result<BlockingListener, Error> {
        let all = self.served_all(name)?;
        start_watcher();
        let failed = Error::system("create a socket for a blocking listener");
        let (retired, told) = UnixStream::pair().map_err(failed)?;
        let term = self.term();
        let order = all[0].order;
        let accepting = match order {
            StopOrder::First => Some(term.awaiting_first_byte().token()),
            StopOrder::Last => None,
        };
        let (sender, last_clients) = mpsc::unbounded_channel();
        let told = Arc::new(told);
        for served in &all {
            let (served, sender, told) = (Arc::clone(served), sender.clone(), Arc::clone(&told));
            let (over, held) = (stopped_accepting(&term, order), served.hold_open());
            // Do not keep a handle to this task. It ends in the drain, which waits for it, or with
            // the runtime.
            drop(tokio::spawn(async move {
                over.await;
                drop(told);
                queue_last_clients(&served, &sender).await;
                drop(held);
            }));
        }
        Ok(BlockingListener {
            all,
            retired,
            last_clients: Mutex::new(last_clients),
            term,
            _accepting: accepting,
        })
    }
}

/// Waits until the generation has stopped accepting and the drain has begun.
fn stopped_accepting(term: &Term, order: StopOrder) -> impl Future<Output = ()> + Send + use<> {
    let (first, last, drain) = (term.retired(), term.last_retired(), term.drain_begun());
    async move {
        match order {
            StopOrder::First => first.await,
            StopOrder::Last => last.await,
        }
        drain.await;
    }
}

/// Accepts the clients that are left on a listener on which no other generation accepts, even if
/// the listener has reached its limit. Then closes the socket. Does nothing if the server has
/// dropped its [`BlockingListener`].
async fn queue_last_clients(served: &Arc<ServedListener>, queue: &UnboundedSender<BlockingClient>) {
    if queue.is_closed() || !served.is_given_up() {
        return;
    }
    let enqueue = |(socket, peer)| {
        // A send fails if the server has dropped its listener in the meantime.
        if let Err(unsent) = queue.send(BlockingClient::new(served, socket, peer, None)) {
            unsent.0.open.cut();
        }
    };
    if let Some(mut late) = served.watch_late() {
        while let Some(left) = served.late_clients() {
            if let Ok(accepted) = timeout(left, late.accept(|| {})).await {
                accepted.into_blocking().into_iter().for_each(enqueue);
            }
        }
    }
    let until = Instant::now() + LAST_CLIENTS;
    loop {
        let (clients, socket_use) = served.take_backlog_blocking();
        clients.into_iter().for_each(enqueue);
        if socket_use == SocketUse::Over || Instant::now() >= until {
            return served.close();
        }
        sleep(IN_USE_PAUSE).await;
    }
}

impl BlockingListener {
    /// Waits for the next TCP connection. Returns `None` once the generation has stopped accepting,
    /// or if the client came over a Unix socket. If no other generation accepts on the listener,
    /// first returns the clients that are left in the backlog. Several threads may call this
    /// function at the same time.
    pub fn accept_tcp(&self) -> Option<(Tracked<TcpStream>, SocketAddr)> {
        let client = self.accept()?;
        client.peer.address().map(|address| (client.track(), address))
    }

    /// Waits for the next connection to a Unix listener. Returns `None` once the generation has
    /// stopped accepting, or if the client came over TCP.
    pub fn accept_unix(&self) -> Option<Tracked<UnixStream>> {
        let client = self.accept()?;
        (client.peer == Peer::Unix).then(|| client.track())
    }

    fn accept(&self) -> Option<BlockingClient> {
        loop {
            let open: Vec<_> =
                self.all.iter().filter_map(|one| Some((one, one.socket()?))).collect();
            if self.wait(open.iter().map(|(_, socket)| socket)) {
                drop(open);
                return self.last_client();
            }
            for (served, socket) in &open {
                let permit = if !served.is_limited() {
                    None
                } else if socket.has_clients() {
                    let Some(permit) = self.permit(served) else { continue };
                    Some(permit)
                } else {
                    // Take no permit yet, because another socket of the listener may need it.
                    continue;
                };
                match accept_blocking(socket, || served.count_shortage()) {
                    Ok(Some((socket, peer))) => {
                        return Some(BlockingClient::new(served, socket, peer, permit));
                    }
                    Ok(None) => {}
                    Err(_) => pause(),
                }
            }
        }
    }

    /// Waits for a client that is left after this generation has stopped accepting. Returns `None`
    /// when there are no more.
    fn last_client(&self) -> Option<BlockingClient> {
        let mut queue = self.last_clients.lock().unwrap_or_else(PoisonError::into_inner);
        block_on(queue.recv())
    }

    /// Waits until the listener has fewer connections than its limit. Returns `None` if the
    /// generation stops accepting before that.
    fn permit(&self, served: &ServedListener) -> Option<HeldPermit> {
        block_on(async {
            tokio::select! {
                biased;
                () = stopped_accepting(&self.term, served.order) => None,
                permit = served.take_permit() => permit,
            }
        })
    }

    /// Waits until a client is in the backlog or the generation has stopped accepting. Returns
    /// whether the generation has stopped accepting.
    fn wait<'a>(&self, sockets: impl Iterator<Item = &'a Listener>) -> bool {
        let mut watched = vec![PollFd::new(self.retired.as_fd(), PollFlags::POLLIN)];
        watched.extend(sockets.map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)));
        let _ = poll(&mut watched, PollTimeout::NONE);
        watched[0].any().unwrap_or(false)
    }
}

impl Drop for BlockingListener {
    /// Cuts the clients that are left in the queue, because no thread serves them.
    fn drop(&mut self) {
        let queue = self.last_clients.get_mut().unwrap_or_else(PoisonError::into_inner);
        queue.close();
        let left = std::iter::from_fn(|| queue.try_recv().ok());
        let count = left.map(|client| client.open.cut()).count();
        if count > 0 {
            let listener = self.all.first().map_or("", |served| &served.name);
            let reason = "the server has dropped its listener";
            tracing::error!(
                event = "listener.backlog_lost",
                listener,
                reason,
                "the last {count} clients of {listener} are reset: {reason}"
            );
        }
    }
}

/// A client that a [`BlockingListener`] has accepted.
#[derive(Debug)]
struct BlockingClient {
    socket: OwnedFd,
    peer: Peer,
    open: OpenConnection,
}

impl BlockingClient {
    /// Counts an accepted connection as open.
    fn new(
        served: &Arc<ServedListener>,
        socket: OwnedFd,
        peer: Peer,
        permit: Option<HeldPermit>,
    ) -> Self {
        let permit = permit.map(HeldPermit::used);
        let open = served.admit(Source::New, &Arc::default(), Instant::now(), permit);
        Self { socket, peer, open }
    }

    fn track<S: From<OwnedFd>>(self) -> Tracked<S> {
        Tracked { stream: self.socket.into(), _open: self.open }
    }
}

/// Blocks the calling thread until `future` resolves. The runtime cannot do this, because the
/// calling thread may belong to it.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let (mut future, mut context) = (pin!(future), Context::from_waker(&waker));
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(value) => return value,
            Poll::Pending => thread::park(),
        }
    }
}

/// Waits a moment during a shortage of file descriptors or memory, because the kernel does not
/// report when it is over.
#[expect(clippy::disallowed_methods, reason = "a thread of the server's own waits")]
fn pause() {
    thread::sleep(PAUSE);
}

impl<S> Tracked<S> {
    /// Returns the connection itself, which no longer counts as open.
    pub fn into_inner(self) -> S {
        self.stream
    }
}

impl<S> Deref for Tracked<S> {
    type Target = S;

    fn deref(&self) -> &S {
        &self.stream
    }
}

impl<S> DerefMut for Tracked<S> {
    fn deref_mut(&mut self) -> &mut S {
        &mut self.stream
    }
}
