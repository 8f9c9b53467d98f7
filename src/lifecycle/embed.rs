//! The interface for your own server: axum, hyper, or any program that accepts connections itself.
//!
//! Each stage is a type. [`Starting`] holds the listeners. [`Starting::ready`] turns it into
//! [`Serving`], which signals when to stop accepting and when to end connections. The server
//! reports back when its last connection has ended. A step out of order does not compile.
//!
//! How connections are served, counted and cut is up to the server.

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

/// A generation that has its listeners but has not reported readiness yet.
///
/// Dropping it ends the generation. A predecessor then keeps serving.
#[derive(Debug)]
#[must_use = "a generation that never becomes ready is killed by its predecessor"]
pub struct Starting {
    driver: Driver<Embedded>,
    handle: Handle,
}

/// A generation that accepts connections.
#[derive(Debug)]
pub struct Serving {
    listeners: ListenerSet,
    handle: Handle,
    driver: JoinHandle<Result<RunReport, Error>>,
}

/// What to do after the connections have ended.
#[expect(clippy::large_enum_variant, reason = "created only a few times per process")]
#[derive(Debug)]
pub enum AfterDrain {
    /// Return from `main`.
    Exit,
    /// The successor died. Accept again, with a new [`Serving::acceptor`].
    AcceptAgain(Serving),
}

/// An accept loop's view of one listener: yields connections until the generation retires.
#[derive(Debug)]
pub struct Acceptor {
    acceptor: net::Acceptor,
    retired: Signal,
    awaiting_first_byte: TaskTracker,
    open: TaskTracker,
    /// Held until accepting stops. It delays [`Serving::draining`], because a connection may just
    /// have been accepted.
    accepting: Option<TaskTrackerToken>,
}

/// The server's end of its channels to the driver.
#[derive(Debug)]
struct Handle {
    phase: watch::Receiver<ServerRequest>,
    told: watch::Sender<ServerStatus>,
    /// Tracks the accepted connections that have not sent anything yet.
    awaiting_first_byte: TaskTracker,
    /// Tracks the accepted connections that are open.
    open: TaskTracker,
    first_request_grace: Duration,
}

/// A handle that tells a server whether a reply is the last one on its connection.
///
/// An HTTP client keeps its connection for the next request, unless a reply says `Connection:
/// close`. If the server closes the connection without announcing it, a request that is already on
/// its way is lost.
#[derive(Clone, Debug)]
pub struct Retirement(watch::Receiver<ServerRequest>);

impl Retirement {
    /// Returns whether the generation has retired or was told to stop. Connections must end then.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        *self.0.borrow() != ServerRequest::Accepting
    }
}

/// What the driver wants the server to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ServerRequest {
    Accepting,
    Draining,
    Cut,
}

/// What the server has reported to the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ServerStatus {
    Nothing,
    Drained,
}

impl Starting {
    /// Adopts or binds the listeners. Must be called in a tokio runtime with I/O and time enabled.
    ///
    /// # Errors
    /// When a listener cannot be adopted or bound, or when another resource is unavailable. A
    /// predecessor is told the reason and keeps serving.
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

    /// Returns the number of this generation in its lineage.
    #[must_use]
    pub const fn generation(&self) -> Generation {
        self.driver.generation()
    }

    /// Returns all listeners.
    #[must_use]
    pub const fn listeners(&self) -> &ListenerSet {
        self.driver.listeners()
    }

    /// Reports that this generation accepts connections. From now on it reacts to signals, and
    /// handoffs can happen. Clients that connect before the first accept wait in the listener's
    /// backlog.
    ///
    /// # Errors
    /// When the kernel refuses a system call.
    pub fn ready(self) -> Result<Serving, Error> {
        let Self { driver, handle } = self;
        let listeners = driver.listeners().clone();
        Ok(Serving { listeners, handle, driver: tokio::spawn(driver.live()?.run()) })
    }
}

impl Serving {
    /// Returns an acceptor for the listener called `name`. It accepts until the generation retires.
    ///
    /// # Errors
    /// [`Error::NoSuchListener`], or an error of the kernel when the socket cannot be registered
    /// for events.
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

    /// Returns a new file descriptor of the TCP listener called `name`, for a server that accepts
    /// by itself. Stop accepting on it when [`Serving::retired`] resolves.
    ///
    /// # Errors
    /// [`Error::NoSuchListener`], or when the process has no file descriptor left.
    pub fn listener(&self, name: &str) -> Result<TcpListener, Error> {
        let copy = self.listeners.get(name)?.try_clone();
        copy.map(TcpListener::from).map_err(Error::system("copy a listener's descriptor"))
    }

    /// Waits until it is time to stop accepting: a successor has taken over, or the service was
    /// told to stop.
    pub fn retired(&self) -> impl Future<Output = ()> + Send + Sync + use<> {
        self.handle.until(|phase| phase != ServerRequest::Accepting)
    }

    /// Waits until it is time to ask the connections to end.
    ///
    /// First the generation must have retired. Then every [`Acceptor`] must have returned `None` or
    /// been dropped, and every connection accepted through an [`Acceptor`] must have received
    /// something. The second wait takes at most `first_request_grace`.
    ///
    /// Do not end connections at [`Serving::retired`] already: the first request of a connection
    /// accepted in the last instant may still be on its way, and would be lost.
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

    /// Returns a handle that tells, before each reply, whether it is the last one on its
    /// connection.
    #[must_use]
    pub fn retirement(&self) -> Retirement {
        Retirement(self.handle.phase.clone())
    }

    /// Waits until it is time to close connections that wait for another request.
    ///
    /// It waits like [`Serving::draining`]. After that it waits until every connection accepted
    /// through an [`Acceptor`] is closed, for at most `keep_alive`.
    ///
    /// This is for protocols whose replies announce the end of the connection, see [`Retirement`].
    /// A client that sends a request within `keep_alive` sees the announcement in the reply, and
    /// loses no request. A generation that has to accept again stops waiting, because new clients
    /// are in the backlog.
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

    /// Waits until the drain deadline has passed. Then drop the remaining connections.
    pub fn cut(&self) -> impl Future<Output = ()> + Send + Sync + use<> {
        self.handle.until(|phase| phase == ServerRequest::Cut)
    }

    /// Waits until this generation, after it has retired, must accept again because its successor
    /// died.
    ///
    /// It is for a server that can accept again while its old connections drain. Other servers
    /// learn it from [`Serving::drained`].
    pub fn recalled(&self) -> impl Future<Output = ()> + Send + Sync + use<> {
        let (retired, accepting) =
            (self.retired(), self.handle.until(|phase| phase == ServerRequest::Accepting));
        async move {
            retired.await;
            accepting.await;
        }
    }

    /// Reports that the last connection has ended, and returns what to do next. Call it after
    /// [`Serving::retired`].
    ///
    /// # Errors
    /// What ended the generation early.
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
    /// Returns the next connection, or `None` once the generation has retired. Cancel safe.
    ///
    /// The stream is non-blocking. Until something has been read from it, [`Serving::draining`]
    /// waits for it.
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

    /// Returns the listener.
    #[must_use]
    pub const fn listener(&self) -> &Listener {
        self.acceptor.listener()
    }
}

impl Handle {
    /// Waits until the driver's request satisfies `wanted`. Never resolves once the driver has
    /// ended, because the driver requests nothing more.
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

/// A future that several calls poll in turn until it resolves.
struct Signal(Pin<Box<dyn Future<Output = ()> + Send + Sync>>);

impl std::fmt::Debug for Signal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Signal")
    }
}

/// The driver's end of the channels.
#[derive(Debug)]
struct Embedded {
    asked: watch::Sender<ServerRequest>,
    heard: watch::Receiver<ServerStatus>,
}
