//! Lends a generation's life to a server of one's own: axum, hyper, a thread pool, anything that takes a listener.
//!
//! The steps are values: [`Starting`] gives listeners, [`Starting::ready`] turns it into [`Serving`], which tells when to
//! stop accepting and is told when the last connection has ended. What cannot be done in one step does not compile.

use std::future::Future;
use std::net::TcpListener;
use std::os::fd::OwnedFd;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::driver::{Driver, Ending};
use super::plane::Plane;
use crate::config::Config;
use crate::drain::DrainReport;
use crate::error::Error;
use crate::generation::Generation;
use crate::handoff::Inheritance;
use crate::net::{Listener, ListenerSet};

/// A generation that has its listeners and has not said that it is ready.
///
/// Dropped, it ends: a predecessor serves on.
#[derive(Debug)]
#[must_use = "a generation that never says that it is ready is killed by its predecessor"]
pub struct Starting {
    driver: Driver<Embedded>,
    phase: watch::Receiver<Phase>,
    told: watch::Sender<Told>,
}

/// A generation that serves.
#[derive(Debug)]
pub struct Serving {
    listeners: ListenerSet,
    phase: watch::Receiver<Phase>,
    told: watch::Sender<Told>,
    driver: JoinHandle<Result<Ending, Error>>,
}

/// What is to be done once the connections have ended.
#[derive(Debug)]
pub enum Drained {
    /// Nothing: return from `main`.
    End,
    /// The successor died. Accept again, on fresh listeners from [`Serving::listener`].
    AcceptAgain(Serving),
}

/// What the driver asks of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Accepting,
    Draining,
    Cut,
}

/// What the server has told the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Nothing,
    Drained,
}

impl Starting {
    /// Adopts or binds the listeners. Must be called in a tokio runtime with I/O and time.
    ///
    /// # Errors
    /// When they cannot be had. A predecessor is told why, and serves on.
    pub fn new(config: Config, inheritance: Inheritance) -> Result<Self, Error> {
        let (asked, phase) = watch::channel(Phase::Accepting);
        let (told, heard) = watch::channel(Told::Nothing);
        let driver = Driver::start(config, inheritance, Embedded { asked, heard })?;
        Ok(Self { driver, phase, told })
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

    /// A descriptor of the TCP listener of that name, non-blocking.
    ///
    /// # Errors
    /// [`Error::NoSuchListener`], or when no descriptor is left.
    pub fn listener(&self, name: &str) -> Result<TcpListener, Error> {
        listener(self.driver.listeners(), name)
    }

    /// Says that connections are accepted. From here on signals are heeded, and handoffs happen.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn ready(self) -> Result<Serving, Error> {
        let Self { driver, phase, told } = self;
        let listeners = driver.listeners().clone();
        Ok(Serving { listeners, phase, told, driver: tokio::spawn(driver.live()?.run()) })
    }
}

impl Serving {
    /// A descriptor of the TCP listener of that name, non-blocking.
    ///
    /// # Errors
    /// [`Error::NoSuchListener`], or when no descriptor is left.
    pub fn listener(&self, name: &str) -> Result<TcpListener, Error> {
        listener(&self.listeners, name)
    }

    /// Pends until it is time to stop accepting and to end the connections: a successor has taken over, or the service
    /// is told to stop. May be called any number of times.
    pub fn retired(&self) -> impl Future<Output = ()> + Send + Sync + use<> {
        self.until(|phase| phase != Phase::Accepting)
    }

    /// Pends until the drain deadline has passed: drop the connections that are left.
    pub fn cut(&self) -> impl Future<Output = ()> + Send + Sync + use<> {
        self.until(|phase| phase == Phase::Cut)
    }

    /// Pends until a generation that was retired has to accept again, because its successor died. For a server that can
    /// accept anew while its old connections still drain; others learn it from [`Serving::drained`].
    pub fn recalled(&self) -> impl Future<Output = ()> + Send + Sync + use<> {
        let (retired, accepting) = (self.retired(), self.until(|phase| phase == Phase::Accepting));
        async move {
            retired.await;
            accepting.await;
        }
    }

    /// Says that the last connection has ended, and learns what is next. Await it after [`Serving::retired`].
    ///
    /// # Errors
    /// What ended the generation before its time.
    pub async fn drained(mut self) -> Result<Drained, Error> {
        self.told.send_replace(Told::Drained);
        let recalled = self.until(|phase| phase == Phase::Accepting);
        tokio::select! {
            ended = &mut self.driver => match ended {
                Ok(ended) => ended.map(|_| Drained::End),
                Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
            },
            () = recalled => {
                self.told.send_replace(Told::Nothing);
                Ok(Drained::AcceptAgain(self))
            }
        }
    }

    /// Pends for ever once the driver has ended, for nothing is asked any more.
    fn until(&self, wanted: fn(Phase) -> bool) -> impl Future<Output = ()> + Send + Sync + use<> {
        let mut phase = self.phase.clone();
        async move {
            if phase.wait_for(|phase| wanted(*phase)).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

fn listener(listeners: &ListenerSet, name: &str) -> Result<TcpListener, Error> {
    let descriptor: OwnedFd =
        listeners.get(name)?.try_clone().map_err(Error::system("copy a listener's descriptor"))?;
    Ok(descriptor.into())
}

/// The driver's side.
#[derive(Debug)]
struct Embedded {
    asked: watch::Sender<Phase>,
    heard: watch::Receiver<Told>,
}

impl Plane for Embedded {
    fn accept(&mut self, _listeners: &[Listener]) -> Result<(), Error> {
        self.asked.send_replace(Phase::Accepting);
        Ok(())
    }

    async fn stop_accepting(&mut self) {}

    /// The kernel's queue stays with the descriptors that the server holds: it has not stopped yet.
    fn sweep(&mut self, _listeners: &[Listener]) {}

    fn drain(&mut self) {
        self.asked.send_replace(Phase::Draining);
    }

    async fn drained(&self) {
        let mut heard = self.heard.clone();
        if heard.wait_for(|told| *told == Told::Drained).await.is_err() {
            // The server has dropped its side: it is over.
        }
    }

    fn cut(&mut self) {
        self.asked.send_replace(Phase::Cut);
    }

    /// The server counts its own.
    fn connections(&self) -> usize {
        0
    }

    fn report(&self) -> DrainReport {
        DrainReport { ended: 0, cut: 0 }
    }
}
