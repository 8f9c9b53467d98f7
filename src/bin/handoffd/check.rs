//! The `check` command, which validates the configuration. It binds no socket and changes nothing.

use handoffd::Inheritance;
use handoffd::listen::{DEFAULT_ADDRESS, Listeners};

use crate::failure::Failure;
use crate::output::print;
use crate::settings::{Served, StartSettings, Watched};

/// Checks paths and other settings that the parsers cannot check. Prints the listeners' addresses.
pub(crate) fn run(settings: &StartSettings) -> Result<(), Failure> {
    let config = &settings.config;
    config.check()?;
    if let Served::Program(program) = &settings.served {
        handoffd::program::check(program)?;
    }
    if settings.watched == Watched::ThisProcess || std::process::id() == 1 {
        Inheritance::check_for_init()?;
    }
    let listeners = match &config.listeners {
        Listeners::Inherited => {
            format!("all sockets that are passed in, or {DEFAULT_ADDRESS} if there are none")
        }
        Listeners::Named(named) => {
            let named = named.as_slice().iter().map(|listener| match &listener.name {
                Some(name) => format!("{name}={}", listener.address),
                None => listener.address.to_string(),
            });
            named.collect::<Vec<_>>().join(", ")
        }
    };
    print(
        "the outcome of the check, which succeeded",
        &format!("the configuration is good; the daemon would listen on {listeners}\n"),
    )
}
