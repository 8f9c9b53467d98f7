//! The running calls of the server function, which the program has passed to the library. The
//! function is called again each time that the generation begins to accept connections again, for
//! example after its successor has died.
//!
//! A call may still wait for the end of its connections when the next call begins. So several calls
//! can run at the same time, in one task.

use std::fmt::Display;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::watch;

use super::data_plane::ServerState;
use crate::lifecycle::life::{Life, Term};

/// The running calls of the server function `serve`.
pub(super) struct ServerCalls<'a, S> {
    life: Life,
    serve: &'a S,
    terms: watch::Receiver<Term>,
    running: Vec<(Life, Call<'a>)>,
    /// The term (period of accepting connections) of the latest call.
    begun: Term,
}

/// A running call of the server function. If the call fails, its result has the text of the error.
type Call<'a> = Pin<Box<dyn Future<Output = Result<(), String>> + 'a>>;

impl<'a, S, T, E> ServerCalls<'a, S>
where
    S: AsyncFn(Life) -> Result<T, E>,
    E: Display,
{
    /// Begins the first call of the server function `serve`.
    pub(super) fn new(life: &Life, serve: &'a S) -> Self {
        let terms = life.state.term.subscribe();
        let (running, begun) = (Vec::new(), life.term());
        let mut calls = Self { life: life.clone(), serve, terms, running, begun };
        calls.begin();
        calls
    }

    fn begin(&mut self) {
        let (serve, life) = (self.serve, self.life.of_this_term());
        let own = life.clone();
        self.begun = life.term();
        let call = async move { serve(own).await.map(drop).map_err(|error| error.to_string()) };
        self.running.push((life, Box::pin(call)));
    }

    /// Returns whether a call of the server function is running.
    pub(super) fn state(&self) -> ServerState {
        if self.running.is_empty() {
            ServerState::Ended(self.begun.clone())
        } else {
            ServerState::Running
        }
    }

    /// Closes the listeners that no generation needs any more, once all calls of the server
    /// function have returned. Usually the acceptors have closed these listeners before, but a
    /// server may drop its acceptors too early.
    fn close_unused(&self) {
        if let Some(served) = self.life.state.served.get().filter(|_| self.running.is_empty()) {
            served.close_unused();
        }
    }

    /// Waits until a call of the server function has returned, and returns how it has ended.
    /// Meanwhile begins a call for each new term (period of accepting connections), stops the
    /// listeners that stop last, and drops all calls at a cut. Cancel safe.
    pub(super) async fn next(&mut self) -> CallEvent {
        loop {
            let is_cut = self.life.state.cut.is_cancelled();
            let stop_last = stop_last(self.life.of_this_term(), self.state());
            tokio::select! {
                biased;
                () = self.life.cut(), if !is_cut => {
                    if !self.running.is_empty() {
                        tracing::warn!(
                            event = "server.dropped",
                            "dropped the server function, which was still running when the \
                            connections were cut"
                        );
                    }
                    self.running.clear();
                    return CallEvent::AsTold;
                }
                (life, ended) = Finished(&mut self.running) => {
                    self.close_unused();
                    return match ended {
                    Err(reason) if life.is_current() => CallEvent::Failed(life.term(), reason),
                    Err(reason) => {
                        tracing::error!(
                            event = "server.failed", reason,
                            "an earlier call of the server function has failed while it ended its \
                            connections: {reason}"
                        );
                        CallEvent::AsTold
                    }
                    Ok(()) if life.has_retired() => CallEvent::AsTold,
                    Ok(()) => CallEvent::Early(life.term()),
                    };
                }
                Ok(()) = self.terms.changed() => {
                    self.begin();
                    return CallEvent::Begun;
                }
                () = stop_last => {}
            }
        }
    }
}

/// Stops the listeners that stop last, once the clients of all other listeners are served. Never
/// returns.
async fn stop_last(life: Life, server: ServerState) {
    life.term().drain_begun().await;
    if let Some(served) = life.state.served.get() {
        match server {
            // The library does not know the connections that the server accepts on a copy.
            ServerState::Running if served.has_unknown_first() => life.closing().await,
            ServerState::Running | ServerState::Ended(_) => life.draining().await,
        }
        served.first_ended().await;
    }
    life.term().retire_last();
    std::future::pending().await
}

/// What [`ServerCalls::next`] reports about the calls of the server function.
pub(super) enum CallEvent {
    /// The call has returned after the server was told to stop, or was dropped.
    AsTold,
    /// Another call has begun.
    Begun,
    /// The call of this term (period of accepting connections) has returned, although nothing told
    /// it to stop.
    Early(Term),
    /// The call of the current term has failed. The text is the reason.
    Failed(Term, String),
}

/// A future that resolves when one of the running calls has returned, and removes that call. Never
/// resolves if no call is running.
struct Finished<'a, 'b>(&'a mut Vec<(Life, Call<'b>)>);

impl Future for Finished<'_, '_> {
    type Output = (Life, Result<(), String>);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        for place in 0..self.0.len() {
            if let Poll::Ready(ended) = self.0[place].1.as_mut().poll(cx) {
                let (life, _) = self.0.swap_remove(place);
                return Poll::Ready((life, ended));
            }
        }
        Poll::Pending
    }
}
