//! The running calls of the program's server function. There is one call for each term of the
//! generation.
//!
//! A call may still wait for the end of its connections when the next one begins. So several calls
//! can run at the same time, in one task.

use std::fmt::Display;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::watch;

use crate::lifecycle::life::{Life, Term};

/// The running calls of `serve`.
pub(super) struct Turns<'a, S> {
    life: Life,
    serve: &'a S,
    terms: watch::Receiver<Term>,
    running: Vec<Call<'a>>,
}

/// A running call, with the text of the server's error as its result.
type Call<'a> = Pin<Box<dyn Future<Output = Result<(), String>> + 'a>>;

impl<'a, S, E> Turns<'a, S>
where
    S: AsyncFn(Life) -> Result<(), E>,
    E: Display,
{
    /// Begins the first call.
    pub(super) fn new(life: &Life, serve: &'a S) -> Self {
        let terms = life.state.term.subscribe();
        let mut turns = Self { life: life.clone(), serve, terms, running: Vec::new() };
        turns.begin();
        turns
    }

    fn begin(&mut self) {
        let (serve, life) = (self.serve, self.life.of_this_term());
        self.running
            .push(Box::pin(async move { serve(life).await.map_err(|error| error.to_string()) }));
    }

    /// Returns whether no call runs.
    pub(super) fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    /// Waits until a call has returned, and returns its result. Meanwhile begins a new call for
    /// each new term, lets the listeners that stop last stop, and drops all calls at a cut. Returns
    /// `Ok` if it has dropped the calls. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<(), String> {
        loop {
            let is_cut = self.life.state.cut.is_cancelled();
            let life = self.life.clone();
            let last_may_stop = async {
                life.draining().await;
                if let Some(served) = life.state.served.get() {
                    served.first_ended().await;
                }
                let term = life.term();
                term.retire_last();
                std::future::pending::<()>().await;
            };
            tokio::select! {
                biased;
                () = self.life.cut(), if !is_cut => {
                    self.running.clear();
                    return Ok(());
                }
                ended = Finished(&mut self.running) => return ended,
                Ok(()) = self.terms.changed() => self.begin(),
                () = last_may_stop => {}
            }
        }
    }
}

/// A future that resolves when one of the calls has returned. The call is then removed. Never
/// resolves if no call runs.
struct Finished<'a, 'b>(&'a mut Vec<Call<'b>>);

impl Future for Finished<'_, '_> {
    type Output = Result<(), String>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        for place in 0..self.0.len() {
            if let Poll::Ready(ended) = self.0[place].as_mut().poll(cx) {
                drop(self.0.swap_remove(place));
                return Poll::Ready(ended);
            }
        }
        Poll::Pending
    }
}
