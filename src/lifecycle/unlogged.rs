//! Reports failures on standard error if the program has installed no `tracing` subscriber.
//! Otherwise nobody would learn of these failures.

use std::io::{self, Write};

use tracing::subscriber::NoSubscriber;

/// Writes one line to standard error if the program has installed no `tracing` subscriber.
pub(super) fn report(what: &str) {
    if tracing::dispatcher::get_default(|subscriber| subscriber.is::<NoSubscriber>()) {
        // Ignore an error, because there is no other place to write to.
        let _ = writeln!(io::stderr(), "handoffd: {what}");
    }
}
