//! The part of the event loop ([`Driver`]) that performs the actions of the state machine.
//!
//! The state machine in `machine` decides what an event means and in which order the actions are
//! performed. The modules `handoff` and `drain` perform the actions of a handoff and of a drain.
//! This module performs all other actions, such as closing listeners.

use super::active_role::ActiveRole;
use super::driver::Driver;
use super::machine::Action;
use super::pid_file::log_failure;
use crate::data_plane::DataPlane;
use crate::error::{Error, HandoffFailure};
use crate::generation::Generation;
use crate::handoff::{Message, Successor};
use crate::net::Listener;
use crate::notify::Notifier;

impl<P: DataPlane> Driver<P> {
    /// Performs one action that the state machine has returned. If the successor was lost,
    /// `failure` is the reason.
    pub(super) async fn perform(
        &mut self,
        action: Action,
        failure: &mut Option<HandoffFailure>,
    ) -> Result<(), Error> {
        match action {
            Action::TellReady => self.tell_ready(),
            Action::TellRollback => self.tell_rollback(),
            Action::BecomeActive => self.become_active(),
            Action::NotifyReady => self.notify_ready(),
            Action::StartSuccessor => self.start_successor(),
            Action::StartBake => self.start_bake(),
            Action::Commit(commit) => self.commit(commit).await,
            Action::DropSuccessor => {
                if let Some(failure) = failure.take() {
                    self.drop_successor(failure).await;
                }
            }
            Action::ForgetSuccessor => self.forget_successor(),
            Action::ReleaseOlder => self.predecessors.let_go(),
            Action::Resign => self.resign().await,
            Action::StopSuccessor => self.stop_successor(),
            Action::StopAccepting => self.stop_accepting().await,
            Action::CloseListeners => self.close_listeners().await,
            Action::ServeBacklogs => self.serve_backlogs(),
            Action::LeaveListeners => self.leave_listeners(),
            Action::TellStopping => self.tell_stopping(),
            Action::Drain => self.begin_drain(),
            Action::DrainUncarried => self.drain_uncarried(),
            Action::Resume => self.resume().await?,
            Action::Cut => self.cut().await,
            Action::Exit => self.exit().await,
        }
        Ok(())
    }

    fn tell_ready(&self) {
        let listeners = &self.listeners.set;
        let (closed, replaced) = (listeners.unclaimed().to_vec(), listeners.replaced().to_vec());
        self.predecessors.tell_predecessor(&Message::Ready { closed, replaced });
    }

    fn tell_rollback(&mut self) {
        // Send a last status report, so that the predecessor can add the counters of this process
        // to the totals of the service.
        self.predecessors.tell_predecessor(&Message::Report(Box::new(self.report())));
        self.predecessors.tell_predecessor(&Message::Rollback {
            reason: self.life.rollback.take().unwrap_or_default(),
        });
        // For now, close only the listeners that this generation has bound itself. The inherited
        // ones are closed after the predecessor has reacted.
        self.listeners.given_up = self.listeners.set.bound_here().to_vec();
    }

    fn notify_ready(&mut self) {
        let status = self.status().to_string();
        if let Some(active) = &mut self.active {
            active.ready(status);
        }
    }

    fn tell_stopping(&mut self) {
        self.predecessors.tell_all(&Message::Stopping);
        let status = self.status().to_string();
        if let Some(active) = &mut self.active {
            active.stopping(status);
        }
    }

    /// Makes this process the active generation, which handles signals and status requests of
    /// operators and notifies the service manager.
    fn become_active(&mut self) {
        let generation = self.process.generation;
        if let Some(pid_file) = &mut self.pid_file {
            // If the pid file cannot be written, continue, because clients may already be
            // connected. The write is retried later. A wrong path has already failed the start.
            if let Err(error) = pid_file.name(std::process::id()) {
                log_failure(&error);
            }
        }
        if let Some(init) = &self.process.init {
            init.tell_active(std::process::id());
        }
        self.predecessors.attend();
        self.predecessors.cut_all_but(self.config.max_generations.get() - 1);
        let active =
            ActiveRole::new(self.process.notifier.clone(), self.process.program.watchdog());
        self.store_listeners(&active);
        self.active = Some(active);
        self.listeners.set.grant_access();
        self.listeners.set.forget_replacements();
        if let Some(control) = self.listeners.set.control() {
            self.operators.control.open(control.clone());
        }
        self.plane.committed();
        self.life.become_active();
        if !self.plane.is_taking_over() {
            // Release the permits that the connection limits reserve for the predecessor's
            // connections, because none will arrive. A predecessor offers its connections before it
            // commits the handoff, or not at all.
            self.plane.expect_no_more();
        }
        if generation != Generation::FIRST {
            self.history.took_over(generation);
        }
        tracing::info!(
            event = "generation.serving",
            draining = self.predecessors.count(),
            "this process (generation {generation}) is serving"
        );
    }

    /// Stores the listening sockets with the service manager, which keeps them open even if every
    /// generation dies.
    fn store_listeners(&self, active: &ActiveRole) {
        if !self.process.notifier.is_supervised() {
            return;
        }
        let until = Notifier::deadline();
        for name in self.listeners.set.no_longer_stored() {
            active.unstore(name, until);
        }
        for (listener, name) in self.listeners.set.to_store() {
            match name {
                Some(name) => active.store(&name, listener, until),
                None => tracing::warn!(
                    event = "store.refused", listener = %listener.name(),
                    address = listener.address(),
                    "the service manager cannot keep the socket of the listener {} across a crash: \
                    its name and address are too long",
                    listener.name()
                ),
            }
        }
    }

    /// Lets an older generation accept connections again, if one is alive. Otherwise closes the
    /// listeners.
    async fn resign(&mut self) {
        if self.predecessors.count() > 0 {
            self.predecessors.let_go();
        } else {
            self.close_listeners().await;
        }
    }

    /// Stops accepting on all listeners. Closes only the listeners on which no other generation
    /// will accept.
    async fn stop_accepting(&mut self) {
        self.life.retire();
        self.plane.stop_accepting().await;
        let given_up = std::mem::take(&mut self.listeners.given_up);
        let (given_up, control) = self.listeners.set.remove(&given_up);
        given_up.iter().chain(&control).for_each(Listener::unlink);
        let replaced = given_up.iter().filter(|listener| listener.is_replaced()).cloned();
        let replaced: Vec<_> = replaced.collect();
        replaced.iter().for_each(Listener::divert);
        // Tell older generations that these sockets are no longer in use. An older generation has
        // copies of these sockets, and would use them if it had to accept again.
        let sockets = given_up.iter().filter_map(|listener| listener.cookie().ok());
        let sockets: Vec<_> = sockets.collect();
        if !sockets.is_empty() {
            self.predecessors.tell_all(&Message::GivenUp { sockets });
        }
        self.plane.accept_backlog(&given_up);
        self.plane.accept_late(replaced);
    }

    /// Accepts the clients in the backlogs after a rollback, and then closes this process's copies
    /// of the listening sockets. Keeps the paths of Unix sockets.
    fn serve_backlogs(&mut self) {
        let all = self.listeners.set.take();
        drop(self.listeners.set.take_control());
        self.plane.serve_backlogs(&all);
    }

    /// Closes this process's copies of the listening sockets after a rollback. Otherwise the
    /// sockets would stay open until this generation has drained, even if the service ends earlier.
    fn leave_listeners(&mut self) {
        drop(self.listeners.set.take());
        drop(self.listeners.set.take_control());
        self.plane.leave_listeners();
    }

    /// Stops accepting for good: serves the clients in the backlogs, removes the paths of Unix
    /// sockets, and closes the listening sockets.
    async fn close_listeners(&mut self) {
        self.life.retire_all_but_last();
        self.plane.stop_accepting().await;
        let all = self.listeners.set.take();
        // Remove the paths of Unix sockets first, so that no new client connects to a socket that
        // is about to close. Under a service manager keep the paths, because the next start of the
        // service uses the stored sockets.
        if !self.process.notifier.is_supervised() {
            all.iter().for_each(Listener::unlink);
        }
        self.plane.accept_backlog(&all);
        self.listeners.control_ends = true;
        let successor_pid = self.successor().and_then(Successor::pid);
        if let Some(pid_file) = &mut self.pid_file {
            pid_file.remove(successor_pid);
        }
    }
}
