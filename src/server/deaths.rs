//! A record of failed workers, accept loops and relay planes. The process exits at the first
//! failure.
//!
//! A dead worker serves no connections, and a dead accept loop accepts none. Without this record,
//! the rest of the process would continue, and nobody would notice that clients are lost.

use std::any::Any;

use tokio::sync::watch;

use crate::error::Error;

/// The first failure of a worker, an accept loop or a relay plane. `None` if none has failed.
/// Clones share the same record.
#[derive(Clone, Debug, Default)]
pub(super) struct Deaths(watch::Sender<Option<Death>>);

#[derive(Clone, Debug)]
struct Death {
    what: String,
    reason: String,
}

impl Deaths {
    /// Records that `what` has died because of `reason`. Later failures are not recorded, because
    /// the first failure may have caused them.
    pub(super) fn report(&self, what: &str, reason: &str) {
        self.0.send_if_modified(|first| {
            let is_first = first.is_none();
            first.get_or_insert_with(|| Death { what: what.to_owned(), reason: reason.to_owned() });
            is_first
        });
    }

    /// Returns the first recorded failure as the error with which this process exits.
    pub(super) fn first(&self) -> Option<Error> {
        self.0.borrow().clone().map(Death::into_error)
    }

    /// Waits until a worker, an accept loop or a relay plane has died. Cancel safe.
    pub(super) async fn wait(&self) -> Error {
        // `wait_for` cannot fail, because `self` owns the sender, which keeps the channel open.
        match self.0.subscribe().wait_for(Option::is_some).await.map(|first| first.clone()) {
            Ok(Some(death)) => death.into_error(),
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }
}

impl Death {
    fn into_error(self) -> Error {
        Error::Died { what: self.what, reason: self.reason }
    }
}

/// Returns the message of a panic as a single line.
pub(super) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked");
    text.lines().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only the first failure is reported, with its reason on one line.
    #[tokio::test]
    async fn the_first_death_is_reported() {
        let deaths = Deaths::default();
        assert!(deaths.first().is_none());
        for (what, panic) in [("worker-2", "no\nmemory"), ("worker-1", "later")] {
            let panic: Box<dyn Any + Send> = Box::new(panic.to_owned());
            deaths.clone().report(what, &panic_text(&*panic));
        }
        assert_eq!(deaths.wait().await.to_string(), "worker-2 has died: no memory");
        assert_eq!(deaths.first().unwrap().exit(), crate::error::ExitStatus::System);
    }
}
