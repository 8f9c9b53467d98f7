//! Lends a generation's life to a server of one's own: axum, hyper, anything that takes
//! connections.
//!
//! The steps are values: [`Starting`] has the listeners, [`Starting::ready`] turns it into
//! [`Serving`], which tells when to stop accepting and when to end connections, and is told when
//! the last one has ended. What cannot be done in one step does not compile. How connections are
//! served, counted and cut is the server's affair.

mod data_plane;

use std::future::Future;
use std::net::TcpListener;
use std::pin::Pin;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::driver::{Driver, RunReport};
use crate::config::Config;
use crate::error::Error;
use crate::generation::Generation;
use crate::handoff::Inheritance;
use crate::net::{self, Listener, ListenerSet, Peer, Stream};

/// A generation that has its listeners and has not said that it is ready.
///
/// Dropped, it ends: a predecessor serves on.
#[derive(Debug)]
#[must_use = "a generation that never says that it is ready is killed by its predecessor"]
pub struct Starting {
    driver: Driver<Embedded>,
    handle: Handle,
}

/// A generation that serves.
#[derive(Debug)]
pub struct Serving {
    listeners: ListenerSet,
    handle: Handle,
    driver: JoinHandle<Result<RunReport, Error>>,
}

/// What is to be done once the connections have ended.
#[expect(clippy::large_enum_variant, reason = "one is made in the life of a generation")]
#[derive(Debug)]
pub enum AfterDrain {
    /// Nothing: return from `main`.
    Exit,
    /// The successor died. Accept again, with a fresh [`Serving::acceptor`].
    AcceptAgain(Serving),
}

/// Accepts connections on one listener until the generation retires.
#[derive(Debug)]
pub struct Acceptor {
    acceptor: net::Acceptor,
    retired: Signal,
    awaiting_first_byte: TaskTracker,
    open: TaskTracker,
    /// Stands for the connection that is being accepted at this instant, until nothing more is.
    accepting: Option<TaskTrackerToken>,
}

/// The server's side of what it shares with the driver.
#[derive(Debug)]
struct Handle {
    phase: watch::Receiver<ServerRequest>,
    told: watch::Sender<ServerStatus>,
    /// Counts the connections that were accepted and have not sent anything yet.
    awaiting_first_byte: TaskTracker,
    /// Counts the connections that were accepted and are open.
    open: TaskTracker,
    first_request_grace: Duration,
}

/// Tells a server whether each reply is the last one on its connection.
///
/// A client of HTTP keeps its connection for the next request, unless a reply says `Connection:
/// close`. A server that closes it without that word may meet a request that is on its way.
#[derive(Clone, Debug)]
pub struct Retirement(watch::Receiver<ServerRequest>);

impl Retirement {
    /// Whether the generation has retired or was told to stop, so that connections are to end.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        *self.0.borrow() != ServerRequest::Accepting
    }
}

/// What the driver asks of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ServerRequest {
    Accepting,
    Draining,
    Cut,
}

/// What the server has told the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ServerStatus {
    Nothing,
    Drained,
}

impl Starting {
    /// Adopts or binds the listeners. Must be called in a tokio runtime with I/O and time.
    ///
    /// # Errors
    /// When they cannot be had. A predecessor is told why, and serves on.
    pub fn new(config: Config, inheritance: Inheritance) -> Result<Self, Error> {
        let (asked, phase) = watch::channel(ServerRequest::Accepting);
        let (told, heard) = watch::channel(ServerStatus::Nothing);
        let first_request_grace = config.first_request_grace;
        let driver = Driver::start(config, inheritance, Embedded { asked, heard })?;
        let (awaiting_first_byte, open) = (TaskTracker::new(), TaskTracker::new());
        Ok(Self {
            driver,
            handle: Handle { phase, told, awaiting_first_byte, open, first_request_grace },
        })
    }

    /// The ordinal of this process in its line.
    #[must_use]
    pub const fn generation(&self) -> Generation {
        self.driver.generation()
    }

    /// All listeners.
    #[must_use]
    pub const fn listeners(&self) -> &ListenerSet {
        self.driver.listeners()
    }

    /// Says that connections are accepted. From here on signals are heeded, and handoffs happen.
    /// What comes between now and the first accept waits in the listener's queue.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn ready(self) -> Result<Serving, Error> {
        let Self { driver, handle } = self;
        let listeners = driver.listeners().clone();
        Ok(Serving { listeners, handle, driver: tokio::spawn(driver.live()?.run()) })
    }
}

impl Serving {
    /// Accepts on the listener of that name until the generation retires.
    ///
    /// # Errors
    /// [`Error::NoSuchListener`], or when the kernel will not watch it.
    pub fn acceptor(&self, name: &str) -> Result<Acceptor, Error> {
        let acceptor = net::Acceptor::new(self.listeners.get(name)?.clone())
            .map_err(Error::system("watch a listener"))?;
        let (awaiting_first_byte, open) =
            (self.handle.awaiting_first_byte.clone(), self.handle.open.clone());
        let accepting = Some(awaiting_first_byte.token());
        Ok(Acceptor {
            acceptor,
            retired: Signal(Box::pin(self.retired())),
            awaiting_first_byte,
            open,
            accepting,
        })
    }

    /// A descriptor of the TCP listener of that name, for a server that must have one; stop
    /// accepting at [`Serving::retired`].
    ///
    /// # Errors
    /// [`Error::NoSuchListener`], or when no descriptor is left.
    pub fn listener(&self, name: &str) -> Result<TcpListener, Error> {
        let copy = self.listeners.get(name)?.try_clone();
        copy.map(TcpListener::from).map_err(Error::system("copy a listener's descriptor"))
    }

    /// Pends until it is time to stop accepting: a successor has taken over, or the service is told
    /// to stop.
    pub fn retired(&self) -> impl Future<Output = ()> + Send + Sync + use<> {
        self.handle.until(|phase| phase != ServerRequest::Accepting)
    }

    /// Pends until it is time to tell the connections to end: the generation has retired, every
    /// [`Acceptor`] has said so or is gone, and every connection that came by one has sent
    /// something; or `first_request_grace` is over.
    ///
    /// A server that ends connections at [`Serving::retired`] loses those that it accepted in the
    /// last instant: their first request is still on the way.
    pub fn draining(&self) -> impl Future<Output = ()> + Send + Sync + use<> {
        let (retired, awaiting_first_byte, grace) = (
            self.retired(),
            self.handle.awaiting_first_byte.clone(),
            self.handle.first_request_grace,
        );
        async move {
            retired.await;
            awaiting_first_byte.close();
            let _ = tokio::time::timeout(grace, awaiting_first_byte.wait()).await;
        }
    }

    /// Returns what a server asks before each reply: whether it is the last one on its connection.
    #[must_use]
    pub fn retirement(&self) -> Retirement {
        Retirement(self.handle.phase.clone())
    }

    /// Pends until it is time to close connections that wait for another request: as
    /// [`Serving::draining`], and then until every connection that came by an [`Acceptor`] is
    /// closed, or `keep_alive` is over.
    ///
    /// For protocols whose replies announce the end of the connection, see [`Retirement`]. A client
    /// that asks within `keep_alive` learns it by the reply, and loses no request. A generation
    /// that has to accept again does not wait: new clients are in the listener's queue.
    pub fn closing(&self, keep_alive: Duration) -> impl Future<Output = ()> + Send + Sync + use<> {
        let (draining, recalled, open) =
            (self.draining(), self.recalled(), self.handle.open.clone());
        async move {
            draining.await;
            open.close();
            tokio::select! {
                _ = tokio::time::timeout(keep_alive, open.wait()) => {}
                () = recalled => {}
            }
        }
    }

    /// Pends until the drain deadline has passed: drop the connections that are left.
    pub fn cut(&self) -> impl Future<Output = ()> + Send + Sync + use<> {
        self.handle.until(|phase| phase == ServerRequest::Cut)
    }

    /// Pends until a generation that was retired has to accept again, because its successor died.
    /// For a server that can accept anew while its old connections still drain; others learn it
    /// from [`Serving::drained`].
    pub fn recalled(&self) -> impl Future<Output = ()> + Send + Sync + use<> {
        let (retired, accepting) =
            (self.retired(), self.handle.until(|phase| phase == ServerRequest::Accepting));
        async move {
            retired.await;
            accepting.await;
        }
    }

    /// Says that the last connection has ended, and learns what is next. Await it after
    /// [`Serving::retired`].
    ///
    /// # Errors
    /// What ended the generation before its time.
    ///
    /// # Panics
    /// When the task that drives the generation has panicked.
    pub async fn drained(mut self) -> Result<AfterDrain, Error> {
        self.handle.told.send_replace(ServerStatus::Drained);
        let recalled = self.handle.until(|phase| phase == ServerRequest::Accepting);
        tokio::select! {
            ended = &mut self.driver => match ended {
                Ok(ended) => ended.map(|_| AfterDrain::Exit),
                Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
            },
            () = recalled => {
                self.handle.told.send_replace(ServerStatus::Nothing);
                Ok(AfterDrain::AcceptAgain(self))
            }
        }
    }
}

impl Acceptor {
    /// The next connection; none once the generation has retired. Cancel safe.
    ///
    /// The stream is non-blocking and counts as awaiting_first_byte until something has been read from it.
    pub async fn accept(&mut self) -> Option<(Stream, Peer)> {
        self.accepting.as_ref()?;
        tokio::select! {
            biased;
            () = &mut self.retired.0 => {
                self.accepting = None;
                None
            }
            (mut stream, peer) = self.acceptor.accept_here() => {
                drop(stream.take_earmark());
                stream.awaiting_first_byte(self.awaiting_first_byte.token());
                stream.open(self.open.token());
                Some((stream, peer))
            }
        }
    }

    /// The listener.
    #[must_use]
    pub const fn listener(&self) -> &Listener {
        self.acceptor.listener()
    }
}

impl Handle {
    /// Pends for ever once the driver has ended, for nothing is asked any more.
    fn until(
        &self,
        wanted: fn(ServerRequest) -> bool,
    ) -> impl Future<Output = ()> + Send + Sync + use<> {
        let mut phase = self.phase.clone();
        async move {
            if phase.wait_for(|phase| wanted(*phase)).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// Something that is awaited again and again until it has come.
struct Signal(Pin<Box<dyn Future<Output = ()> + Send + Sync>>);

impl std::fmt::Debug for Signal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Signal")
    }
}

/// The driver's side.
#[derive(Debug)]
struct Embedded {
    asked: watch::Sender<ServerRequest>,
    heard: watch::Receiver<ServerStatus>,
}
