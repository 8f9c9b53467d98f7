//! DNS lookups on separate threads, because getaddrinfo(3) can block for minutes.
//!
//! A lookup thread that hangs does not delay a start, a handoff or a stop. A proxy has at most one
//! lookup thread for each host name, and a process has at most [`THREADS_MAX`] lookup threads.

use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

use crate::config::HostPort;

/// How long a lookup may take. This is the default timeout for one name server in resolv.conf(5).
const TIMEOUT: Duration = Duration::from_secs(5);
/// The largest number of lookup threads in this process, including threads that hang.
const THREADS_MAX: usize = 16;

static THREADS: Semaphore = Semaphore::const_new(THREADS_MAX);

type LookupResult = io::Result<Vec<SocketAddr>>;

/// A blocking function that looks up a host name, and its timeout.
#[derive(Clone)]
pub(super) struct Resolver {
    resolve: Arc<dyn Fn(&HostPort) -> LookupResult + Send + Sync>,
    timeout: Duration,
}

impl Resolver {
    /// Returns the resolver of the operating system, as nsswitch.conf(5) configures it.
    pub(super) fn system() -> Self {
        Self::new(|host| (host.name(), host.port()).to_socket_addrs().map(Iterator::collect))
    }

    pub(super) fn new(resolve: impl Fn(&HostPort) -> LookupResult + Send + Sync + 'static) -> Self {
        Self { resolve: Arc::new(resolve), timeout: TIMEOUT }
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Resolver")
    }
}

/// The state of the lookups of one host name.
#[derive(Debug, Default)]
pub(super) struct Lookup {
    /// The channel for the answer of a lookup that has timed out but is still running.
    pending: Option<oneshot::Receiver<LookupResult>>,
}

impl Lookup {
    /// Returns all addresses of a host name.
    ///
    /// A lookup that times out continues in the background. The next call waits for the answer of
    /// that lookup. It does not start a second thread, because the second thread could hang too.
    /// Cancel safe.
    ///
    /// # Errors
    /// Fails if the host name does not resolve, or if the lookup takes too long.
    pub(super) async fn addresses(
        &mut self,
        host: &Arc<HostPort>,
        resolver: &Resolver,
    ) -> LookupResult {
        match timeout(resolver.timeout, self.answer(host, resolver)).await {
            Ok(Ok(addresses)) if addresses.is_empty() => {
                Err(io::Error::other("the name has no address"))
            }
            Ok(answer) => answer,
            Err(_) => {
                let seconds = resolver.timeout.as_secs();
                let why = match &self.pending {
                    Some(_) => format!("there was no answer within {seconds} s"),
                    None => format!("all threads that resolve names were busy for {seconds} s"),
                };
                Err(io::Error::new(io::ErrorKind::TimedOut, why))
            }
        }
    }

    async fn answer(&mut self, host: &Arc<HostPort>, resolver: &Resolver) -> LookupResult {
        match self.pending.as_mut().map(oneshot::Receiver::try_recv) {
            Some(Ok(Ok(addresses))) => {
                self.pending = None;
                return Ok(addresses);
            }
            // Ignore this failure, because the earlier call has already reported the lookup as
            // timed out. A new lookup may succeed.
            Some(Ok(Err(_)) | Err(TryRecvError::Closed)) => self.pending = None,
            Some(Err(TryRecvError::Empty)) | None => {}
        }
        let pending = match &mut self.pending {
            Some(pending) => pending,
            None => self.pending.insert(start(Arc::clone(host), resolver.clone()).await?),
        };
        let answer = pending.await;
        self.pending = None;
        answer
            .unwrap_or_else(|_| Err(io::Error::other("the thread that resolves the name has died")))
    }
}

/// Starts a lookup on a new thread. If [`THREADS_MAX`] lookup threads are running, waits until one
/// ends.
async fn start(
    host: Arc<HostPort>,
    resolver: Resolver,
) -> io::Result<oneshot::Receiver<LookupResult>> {
    let permit = THREADS.acquire().await.map_err(io::Error::other)?;
    let (tell, answer) = oneshot::channel();
    let body = move || {
        let addresses = (resolver.resolve)(&host);
        drop(permit);
        // Sending fails only if the proxy no longer exists, and then no caller waits for the
        // answer.
        let _ = tell.send(addresses);
    };
    std::thread::Builder::new().name("resolver".into()).spawn(body)?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;
    use crate::config::UpstreamTarget;

    fn host(text: &str) -> Arc<HostPort> {
        let Ok(UpstreamTarget::Host(host)) = text.parse() else { panic!("{text}") };
        Arc::new(host)
    }

    #[tokio::test]
    async fn localhost_has_addresses_at_the_port() {
        let addresses =
            Lookup::default().addresses(&host("localhost:80"), &Resolver::system()).await.unwrap();
        assert!(
            addresses.iter().all(|address| address.ip().is_loopback() && address.port() == 80),
            "{addresses:?}"
        );
        let none = Resolver::new(|_| Ok(Vec::new()));
        assert!(Lookup::default().addresses(&host("localhost:80"), &none).await.is_err());
    }

    /// A lookup that hangs times out. Later calls wait for this lookup instead of starting another
    /// one.
    #[tokio::test]
    async fn a_lookup_that_hangs_is_given_up_and_started_once() {
        let (go, wait) = mpsc::channel::<()>();
        let (wait, started) = (Mutex::new(wait), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&started);
        let mut resolver = Resolver::new(move |host| {
            count.fetch_add(1, Ordering::SeqCst);
            wait.lock().unwrap().recv().map_err(io::Error::other)?;
            Ok(vec![([192, 0, 2, 1], host.port()).into()])
        });
        let (mut lookup, host) = (Lookup::default(), host("backend:80"));
        resolver.timeout = Duration::from_millis(20);
        for _ in 0..3 {
            let error = lookup.addresses(&host, &resolver).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        }
        resolver.timeout = Duration::from_secs(60);
        go.send(()).unwrap();
        assert_eq!(
            lookup.addresses(&host, &resolver).await.unwrap(),
            [([192, 0, 2, 1], 80).into()]
        );
        assert_eq!(started.load(Ordering::SeqCst), 1);
    }
    /// If a lookup fails after it has timed out, the failure is ignored and a new lookup starts.
    #[tokio::test]
    async fn a_failure_that_comes_too_late_is_no_answer() {
        let (go, wait) = mpsc::channel::<bool>();
        let wait = Mutex::new(wait);
        let mut resolver = Resolver::new(move |host| match wait.lock().unwrap().recv() {
            Ok(true) => Ok(vec![([192, 0, 2, 1], host.port()).into()]),
            _ => Err(io::Error::other("no name server")),
        });
        let (mut lookup, host) = (Lookup::default(), host("backend:80"));
        resolver.timeout = Duration::from_millis(20);
        lookup.addresses(&host, &resolver).await.unwrap_err();
        go.send(false).unwrap();
        while lookup.pending.as_ref().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        resolver.timeout = Duration::from_secs(60);
        go.send(true).unwrap();
        assert_eq!(
            lookup.addresses(&host, &resolver).await.unwrap(),
            [([192, 0, 2, 1], 80).into()]
        );
    }
}
