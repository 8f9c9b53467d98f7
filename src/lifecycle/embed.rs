//! The interface for a program that uses its own server, such as axum or hyper, instead of this
//! library's server.
//!
//! Each stage of a generation is a type, so that calls in the wrong order do not compile.
//! [`Starting`] holds the listeners. [`Starting::ready`] returns a [`Serving`], which tells your
//! server when to stop accepting and when to end connections. Your server calls
//! [`Serving::drained`] when its last connection has ended.
//!
//! Your server decides how connections are served, counted and cut.

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

/// A generation that has its listeners but has not reported yet that it is ready.
///
/// Dropping this value ends the generation. Its predecessor, if it has one, then keeps serving
/// clients.
///
/// ```no_run
/// use handoffd::embed::{AfterDrain, Starting};
/// use tokio::io::AsyncWriteExt;
///
/// async fn serve(starting: Starting) -> Result<(), Box<dyn std::error::Error>> {
///     let mut serving = starting.ready()?; // the predecessor, if any, retires after the bake
///     loop {
///         let mut acceptor = serving.acceptor("web")?;
///         // Ends when a successor has taken over, or on SIGTERM.
///         while let Some((mut client, _)) = acceptor.accept().await {
///             client.write_all(b"hello\n").await?;
///         }
///         serving = match serving.drained().await? {
///             AfterDrain::Exit => return Ok(()),
///             AfterDrain::AcceptAgain(serving) => serving, // the successor has died
///         };
///     }
/// }
/// ```
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

/// What a server does after its connections have ended.
#[expect(clippy::large_enum_variant, reason = "created only a few times per process")]
#[derive(Debug)]
pub enum AfterDrain {
    /// Return from `main`, because the generation has ended.
    Exit,
    /// Accept connections again with a new [`Serving::acceptor`], because the successor has died.
    AcceptAgain(Serving),
}

/// A source of connections from one listener. It returns connections until the generation retires,
/// that is, stops accepting.
#[derive(Debug)]
pub struct Acceptor {
    acceptor: net::WatchedListener,
    retired: Signal,
    awaiting_first_byte: TaskTracker,
    open: TaskTracker,
    /// A token that is held until this acceptor stops accepting. [`Serving::draining`] waits until
    /// the token is dropped, because this acceptor may just have accepted a connection.
    accepting: Option<TaskTrackerToken>,
}

/// The server's end of the channels between the driver and the server.
#[derive(Debug)]
struct Handle {
    phase: watch::Receiver<ServerRequest>,
    told: watch::Sender<ServerStatus>,
    /// Tracks the accepted connections on which the client has not sent anything yet.
    awaiting_first_byte: TaskTracker,
    /// Tracks the accepted connections that are open.
    open: TaskTracker,
    first_request_grace: Duration,
}

/// A handle that tells a server whether its next reply must be the last one on each connection.
///
/// An HTTP client reuses its connection for the next request, unless a reply contains `Connection:
/// close`. If the server closes the connection without this header, a request that is already on
/// its way is lost.
#[derive(Clone, Debug)]
pub struct Retirement(watch::Receiver<ServerRequest>);

impl Retirement {
    /// Returns whether the generation has stopped accepting. If so, the next reply on each
    /// connection must be the last.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        *self.0.borrow() != ServerRequest::Accepting
    }
}

/// The driver's current request to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ServerRequest {
    Accepting,
    Draining,
    Cut,
}

/// The latest report of the server to the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ServerStatus {
    Nothing,
    Drained,
}

impl Starting {
    /// Adopts the inherited listeners, and binds the others. Must be called in a tokio runtime with
    /// I/O and time enabled.
    ///
    /// # Errors
    /// Fails when a listener cannot be adopted or bound, or when another resource is unavailable. A
    /// predecessor receives the reason and keeps serving clients.
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

    /// Returns the generation number of this process. The first process of a service has number 1.
    #[must_use]
    pub const fn generation(&self) -> Generation {
        self.driver.generation()
    }

    /// Returns all listeners of this generation, adopted or newly bound.
    #[must_use]
    pub const fn listeners(&self) -> &ListenerSet {
        self.driver.listeners()
    }

    /// Reports that this generation is ready to accept connections. From then on, the generation
    /// handles signals and handoffs in a background task. Clients that connect before the server's
    /// first accept wait in the listener's backlog.
    ///
    /// # Errors
    /// Returns an error if a system call fails.
    pub fn ready(self) -> Result<Serving, Error> {
        let Self { driver, handle } = self;
        let listeners = driver.listeners().clone();
        Ok(Serving { listeners, handle, driver: tokio::spawn(driver.live()?.run()) })
    }
}

impl Serving {
    /// Returns an acceptor for the listener called `name`. It accepts connections until a successor
    /// has taken over or this generation was told to stop.
    ///
    /// # Errors
    /// Returns [`Error::NoSuchListener`] if the name is unknown, or the kernel's error if the
    /// socket cannot be registered for events.
    pub fn acceptor(&self, name: &str) -> Result<Acceptor, Error> {
        let acceptor = net::WatchedListener::new(self.listeners.get(name)?.clone())
            .map_err(Error::system("register a listener for events"))?;
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
    /// connections itself. Stop accepting on it when [`Serving::retired`] resolves.
    ///
    /// # Errors
    /// Returns [`Error::NoSuchListener`] if the name is unknown, or the kernel's error if the
    /// process has run out of file descriptors.
    pub fn listener(&self, name: &str) -> Result<TcpListener, Error> {
        let copy = self.listeners.get(name)?.try_clone();
        copy.map(TcpListener::from)
            .map_err(Error::system("duplicate the file descriptor of a listener"))
    }

    /// Waits until the server must stop accepting connections, because a successor has taken over
    /// or this generation was told to stop.
    pub fn retired(&self) -> impl Future<Output = ()> + Send + Sync + use<> {
        self.handle.until(|phase| phase != ServerRequest::Accepting)
    }

    /// Waits until it is time to ask the connections to end.
    ///
    /// This function first waits until the server must stop accepting. Then it waits until each
    /// [`Acceptor`] has returned `None` or has been dropped, and the server has read something from
    /// each accepted connection. The second wait takes at most `first_request_grace`.
    ///
    /// Do not end connections as soon as [`Serving::retired`] resolves. A client whose connection
    /// was just accepted may have sent its first request, which would be lost.
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

    /// Returns a handle that tells whether the next reply on a connection must be the last.
    #[must_use]
    pub fn retirement(&self) -> Retirement {
        Retirement(self.handle.phase.clone())
    }

    /// Waits until it is time to close connections that wait for another request.
    ///
    /// This function first waits as [`Serving::draining`] does. Then it waits until all connections
    /// from an [`Acceptor`] are closed, but at most for `keep_alive`.
    ///
    /// Use this function for protocols such as HTTP, in which a reply can announce the end of the
    /// connection (see [`Retirement`]). A client that sends a request within `keep_alive` gets such
    /// a reply, so no request is lost. The wait ends early if the generation has to accept again,
    /// because new clients wait in the backlog.
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

    /// Waits until the drain deadline has passed. The server must then drop its remaining
    /// connections.
    pub fn cut(&self) -> impl Future<Output = ()> + Send + Sync + use<> {
        self.handle.until(|phase| phase == ServerRequest::Cut)
    }

    /// Waits until this generation has stopped accepting, and then must accept again because its
    /// successor has died.
    ///
    /// Use this function in a server that can accept again while its old connections still end. Any
    /// other server can rely on [`Serving::drained`], which returns [`AfterDrain::AcceptAgain`].
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
    /// Returns the error that has ended the generation early.
    ///
    /// # Panics
    /// Panics when the task that drives the generation has panicked.
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
    /// Waits for the next connection. Returns `None` once the generation has stopped accepting.
    /// Cancel safe.
    ///
    /// The stream is non-blocking. [`Serving::draining`] waits until the server has read something
    /// from the stream, but at most for `first_request_grace`.
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

    /// Returns the listener whose connections this acceptor accepts.
    #[must_use]
    pub const fn listener(&self) -> &Listener {
        self.acceptor.listener()
    }
}

impl Handle {
    /// Waits until `wanted` returns `true` for the current request of the driver. If the driver
    /// ends before that, the wait never ends, because no further request will come.
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

/// A boxed future that several calls can poll until it resolves.
struct Signal(Pin<Box<dyn Future<Output = ()> + Send + Sync>>);

impl std::fmt::Debug for Signal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Signal")
    }
}

/// The driver's end of the channels between the driver and the server.
#[derive(Debug)]
struct Embedded {
    asked: watch::Sender<ServerRequest>,
    heard: watch::Receiver<ServerStatus>,
}
