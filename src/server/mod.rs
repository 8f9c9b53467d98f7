//! Serves: an accept loop for each listener on each worker, a task for each connection, and a drain over all of them.
//!
//! A stranger to handoffs: it accepts, stops, resumes, drains and cuts when it is told to. Listeners on which it stops
//! accepting stay open, for what waits in their queues belongs to whoever accepts next; which of them to close, the
//! caller decides.

mod accept;
mod census;
mod connection;
mod deaths;
mod late;
mod places;
mod takeover;
#[cfg(test)]
mod tests;
mod workers;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::carry::{Incoming, Outgoing};
use crate::config::{Config, OnHandoff};
use crate::drain::{Drain, DrainReport, Way};
use crate::error::Error;
use crate::net::{Acceptor, Listener, waiting};
use crate::report::{self, Counters};
use crate::service::Service;
use accept::Accepting;
use census::{Came, Census};
use connection::{Connections, Newcomer};
use places::Places;
use takeover::{Door, TakingOver};

pub use workers::Workers;

/// How long the accept loops may take to stop. One that hangs in accept(2) is interrupted sooner.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);

/// How it ended that connections went to the successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CarryEnd {
    /// None is left that might go.
    AllWent,
    /// The successor takes no more: it does not know how, was told to stop, or is dead.
    Alone,
}

/// A service on its listeners.
#[derive(Debug)]
pub(crate) struct Server<S> {
    config: Config,
    workers: Workers,
    /// For each listener that has a limit, the places that it has.
    places: HashMap<String, Arc<Places>>,
    /// For each listener that says so, what becomes of its connections.
    on_handoff: HashMap<String, OnHandoff>,
    /// For each worker and listener. They outlive the accept loops.
    census: BTreeMap<(usize, Arc<str>), Census>,
    connections: Connections<S>,
    drain: Drain,
    /// Ends the accept loops that run now; they are owned, and waited for, here.
    stop: CancellationToken,
    loops: JoinSet<()>,
    /// The way to each loop for a heartbeat: a token that it drops when it comes round.
    hearts: Vec<mpsc::Sender<TaskTrackerToken>>,
    /// The names of all listeners on which it has accepted.
    names: BTreeSet<Arc<str>>,
    /// Reads what the successor answers to those that are carried to it; and the end of that.
    carrying: JoinSet<()>,
    carry_ended: Option<watch::Receiver<Option<CarryEnd>>>,
    /// Take over what the predecessor carries here, until this is cancelled.
    taking: TaskTracker,
    stop_taking: CancellationToken,
    /// Accept the last clients of replaced listeners, until this is cancelled.
    late: TaskTracker,
    stop_late: CancellationToken,
}

impl<S: Service> Server<S> {
    /// Serves nothing yet.
    pub(crate) fn new(service: S, workers: Workers, config: Config) -> Self {
        let taking = TaskTracker::new();
        taking.close();
        let late = TaskTracker::new();
        late.close();
        let limits = config.listeners.limits();
        let places = limits.iter().map(|(name, limit)| (name.clone(), Arc::new(Places::new(*limit))));
        Self {
            workers,
            places: places.collect(),
            on_handoff: config.listeners.on_handoff(),
            census: BTreeMap::new(),
            connections: Connections::new(service, config.first_request_grace, limits),
            drain: Drain::new(),
            stop: CancellationToken::new(),
            loops: JoinSet::new(),
            hearts: Vec::new(),
            names: BTreeSet::new(),
            carrying: JoinSet::new(),
            carry_ended: None,
            taking,
            stop_taking: CancellationToken::new(),
            late,
            stop_late: CancellationToken::new(),
            config,
        }
    }

    /// Accepts on all of `listeners`, for the first time or again. Must be called in a tokio runtime.
    ///
    /// The loops run once a [`Server::heartbeat`] is over.
    ///
    /// # Errors
    /// [`Error::System`] when the kernel will not watch a listener, and [`Error::Died`] when a worker has died.
    pub(crate) fn accept(&mut self, listeners: &[Listener]) -> Result<(), Error> {
        if let Some(died) = self.workers.deaths().first() {
            return Err(died);
        }
        self.drain.resume();
        self.end_carry();
        if self.stop_taking.is_cancelled() {
            self.stop_taking = CancellationToken::new();
        }
        self.names.extend(listeners.iter().map(|listener| Arc::clone(listener.name())));
        self.stop = CancellationToken::new();
        let workers = Arc::clone(self.workers.all());
        for (own, worker) in workers.iter().enumerate() {
            // The worker's runtime watches.
            let _within = worker.handle().enter();
            let (mut loops, stop) = (Vec::new(), CancellationToken::new());
            for listener in listeners {
                let acceptor = Acceptor::new(listener.clone()).map_err(Error::system("watch a listener"))?;
                let (heart, beats) = mpsc::channel(1);
                self.hearts.push(heart);
                loops.push(Accepting {
                    acceptor,
                    connections: self.connections.clone(),
                    workers: Arc::clone(&workers),
                    own,
                    census: (0..workers.len()).map(|number| self.census(number, listener.name())).collect(),
                    places: self.places.get(&**listener.name()).cloned(),
                    way: self.way(listener.name()),
                    entry: self.drain.entry(self.way(listener.name())),
                    stop: stop.clone(),
                    beats,
                });
            }
            let deaths = self.workers.deaths().clone();
            self.loops.spawn_on(accept::run_all(loops, stop, self.stop.clone(), deaths), worker.handle());
        }
        Ok(())
    }

    /// Stops accepting: when this returns nothing more is accepted, and the kernel watches no listener for us. A worker that
    /// hangs is not waited for: it stops when it comes round.
    pub(crate) async fn stop_accepting(&mut self) {
        self.stop.cancel();
        self.hearts.clear();
        let stopped = async { while self.loops.join_next().await.is_some() {} };
        if timeout(STOP_TIMEOUT, stopped).await.is_err() {
            let workers = self.loops.len();
            tracing::error!(workers, "{workers} workers hang and have not stopped accepting: going on without them");
            self.loops.detach_all();
        }
    }

    /// Asks every accept loop to come round once: the beat is over when all have. A loop that hangs, that has died, or that the
    /// runtime does not get to, never does; and where there is no loop, no beat is ever over.
    pub(crate) fn heartbeat(&self) -> TaskTracker {
        let beat = TaskTracker::new();
        let takes = |heart: &mpsc::Sender<TaskTrackerToken>| heart.try_send(beat.token()).is_ok();
        // One that stays open has no end.
        if !self.hearts.is_empty() && self.hearts.iter().all(takes) {
            beat.close();
        }
        beat
    }

    /// Waits until a worker or an accept loop has died. Cancel safe.
    pub(crate) async fn died(&self) -> Error {
        self.workers.deaths().wait().await
    }

    /// Accepts what waits in the queues of listeners that nobody will accept on any more. Comes before [`Server::drain`].
    pub(crate) fn sweep(&mut self, listeners: &[Listener]) {
        let workers = Arc::clone(self.workers.all());
        for (listener, (number, worker)) in listeners.iter().zip(workers.iter().enumerate().cycle()) {
            let _within = worker.handle().enter();
            let census = self.census(number, listener.name());
            let way = self.way(listener.name());
            let entry = self.drain.entry(way);
            for (stream, peer) in waiting(listener) {
                // However many there may be: they came when they were welcome.
                let traffic = Arc::clone(stream.traffic());
                let counted = census.enter(Instant::now(), Came::Accepted, traffic, worker.load(), None);
                let listener = listener.name();
                self.connections.spawn(Newcomer { stream, peer, listener, counted, way, entry: &entry, parcel: None });
            }
        }
    }

    /// The connections of a listener that a worker serves.
    fn census(&mut self, worker: usize, listener: &Arc<str>) -> Census {
        self.census.entry((worker, Arc::clone(listener))).or_default().clone()
    }

    /// What becomes of a listener's connections in a drain.
    fn way(&self, listener: &str) -> Way {
        match self.on_handoff.get(listener).copied().unwrap_or(self.config.on_handoff) {
            OnHandoff::Carry if self.connections.service().carries(listener) => Way::Carry,
            OnHandoff::Carry | OnHandoff::Drain => Way::End,
        }
    }

    /// How many connections there are that can be carried, by the name of their listener, where their number is limited. None if no
    /// listener's can be.
    pub(crate) fn carries(&self) -> Option<Vec<(usize, String)>> {
        let mut carried = self.names.iter().filter(|name| self.way(name) == Way::Carry).peekable();
        carried.peek()?;
        let open = |name: &Arc<str>| {
            let all = (0..self.workers.all().len()).filter_map(|worker| self.census.get(&(worker, Arc::clone(name))));
            all.map(Census::open).sum()
        };
        let limited = carried.filter(|name| self.places.contains_key(&***name));
        Some(limited.map(|name| (open(name), name.to_string())).collect())
    }

    /// So many may be carried here: their places are kept for them. Comes before the first [`Server::accept`].
    pub(crate) fn expect(&self, coming: Vec<(usize, String)>) {
        for (count, listener) in coming {
            if let Some(places) = self.places.get(&listener).filter(|_| self.way(&listener) == Way::Carry) {
                places.keep(count);
            }
        }
    }

    /// No more will be.
    pub(crate) fn expect_no_more(&self) {
        self.places.values().for_each(|places| places.keep_no_more());
    }

    /// Takes over what the predecessor carries here. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// [`Error::System`] when the kernel will not watch the channel. Then the predecessor keeps its connections.
    pub(crate) fn take_over(&mut self, channel: OwnedFd) -> Result<(), Error> {
        let incoming = Incoming::new(channel).map_err(Error::system("watch the predecessor's connections"))?;
        let workers = Arc::clone(self.workers.all());
        let names: Vec<_> = self.names.iter().filter(|name| self.way(name) == Way::Carry).cloned().collect();
        let doors = names.into_iter().map(|name| {
            let census = (0..workers.len()).map(|number| self.census(number, &name)).collect();
            (name.to_string(), Door { places: self.places.get(&*name).cloned(), census, name })
        });
        let doors = doors.collect();
        let (connections, entry) = (self.connections.clone(), self.drain.entry(Way::Carry));
        let stop = self.stop_taking.clone();
        self.taking.spawn(TakingOver { incoming, connections, workers, doors, entry, stop }.run());
        Ok(())
    }

    /// Whether a predecessor still carries connections here.
    pub(crate) fn is_taking_over(&self) -> bool {
        !self.taking.is_empty()
    }

    /// Waits until none does. Cancel safe.
    pub(crate) async fn taken_over(&self) {
        self.taking.wait().await;
    }

    /// Tells every connection to come to an end, but for those that are carried, if there is a channel to a `successor`: these
    /// are asked, one after another, to be given up. Without one nothing more is taken over from a predecessor either.
    pub(crate) fn drain(&mut self, successor: Option<OwnedFd>) {
        self.census.values().for_each(Census::begin_drain);
        // It may have carried some to a successor that has died, and been recalled.
        self.connections.turns().forget();
        self.drain.begin();
        let outgoing = successor.and_then(|channel| match Outgoing::new(channel) {
            Ok(outgoing) => Some(Arc::new(outgoing)),
            Err(error) => {
                tracing::error!(reason = %error, "no connection can be carried: {error}");
                None
            }
        });
        let Some(outgoing) = outgoing else {
            self.stop_taking.cancel();
            self.drain.tell_the_rest();
            return;
        };
        self.connections.carry_to(Some(Arc::clone(&outgoing)));
        let turns = Arc::clone(self.connections.turns());
        turns.begin();
        let (taking, connections) = (self.taking.clone(), self.connections.clone());
        let (ended, carry_ended) = watch::channel(None);
        self.carry_ended = Some(carry_ended);
        self.carrying.spawn(async move {
            // Those that a predecessor is still carrying here are to go on as well.
            let all_went = async {
                taking.wait().await;
                turns.all_went().await;
            };
            // Or nobody else is to be sent: then the channel ends with the last answer.
            let called_off = async {
                outgoing.closed().await;
                connections.settled().await;
            };
            let end = tokio::select! {
                () = outgoing.answers() => CarryEnd::Alone,
                () = all_went => CarryEnd::AllWent,
                () = called_off => CarryEnd::AllWent,
            };
            ended.send_replace(Some(end));
        });
    }

    /// Waits until no more connections go to the successor: none is left that it might take, or it hears nothing any more.
    /// Pends for ever when none go. Cancel safe.
    pub(crate) async fn carry_ended(&self) -> CarryEnd {
        if let Some(mut ended) = self.carry_ended.clone() {
            if let Ok(end) = ended.wait_for(Option::is_some).await {
                return end.unwrap_or(CarryEnd::Alone);
            }
        }
        std::future::pending().await
    }

    /// Tells those to come to an end that were not carried.
    pub(crate) fn tell_the_rest(&mut self) {
        // What comes from a predecessor would not go on from here either.
        self.stop_taking.cancel();
        // In this order, so that one that was refused and ends in between is told of its end by one word or the other.
        self.drain.tell_the_rest();
        self.end_carry();
    }

    fn end_carry(&mut self) {
        self.connections.carry_to(None);
        self.connections.turns().end();
        // The task goes on until whoever has been sent has heard what the successor says.
        self.carry_ended = None;
    }

    /// Waits until it is known what became of those that were on their way to a successor that has died. Cancel safe.
    pub(crate) async fn settled(&self) {
        self.connections.settled().await;
    }

    /// The successor has died: how many of those are lost with it that it has taken over, at most.
    pub(crate) fn successor_lost(&self) -> u64 {
        self.census.values().map(Census::successor_lost).sum()
    }

    /// Waits until no connection is left. Pends for ever unless [`Server::drain`] came first. Cancel safe.
    pub(crate) async fn drained(&self) {
        self.taking.wait().await;
        self.late.wait().await;
        self.drain.drained().await;
    }

    /// Cuts the connections that are left.
    pub(crate) fn cut(&mut self) {
        self.stop_taking.cancel();
        self.stop_late.cancel();
        // First, so that none is given up any more, and none that was is cut as if it were on its way.
        self.end_carry();
        self.drain.cut();
    }

    /// How its connections stand.
    pub(crate) fn connections(&self) -> report::Connections {
        let all = self.census.values().map(Census::connections);
        all.fold(report::Connections::default(), |sum, one| report::Connections {
            open: sum.open + one.open,
            oldest_ms: sum.oldest_ms.max(one.oldest_ms),
            carried: sum.carried + one.carried,
        })
    }

    /// What it has done until now.
    pub(crate) fn counters(&self) -> Counters {
        let service = self.connections.service();
        let mut counters = Counters { upstreams: service.upstreams(), ..Counters::default() };
        for ((_, listener), census) in &self.census {
            counters.listeners.entry(listener.to_string()).or_default().add(census.counters());
        }
        for (listener, count) in service.header_errors() {
            counters.listeners.entry(listener).or_default().header_errors += count;
        }
        counters
    }

    /// How they ended that were there when the drain began, or came after that.
    pub(crate) fn report(&self) -> DrainReport {
        self.drain.report(self.connections.turns().carried())
    }
}
