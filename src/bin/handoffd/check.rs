//! Reads all that the daemon would be told, and says whether it could be served; binds and touches nothing.

use handoffd::{Config, DEFAULT_ADDRESS, Error, Listeners};

use crate::output::print;

/// Runs the command. What is wrong with the command line itself has been said before this.
pub(crate) fn run(config: &Config) -> Result<(), Error> {
    handoffd::check(config)?;
    let listeners = match &config.listeners {
        Listeners::Inherited => format!("whatever is passed in, or {DEFAULT_ADDRESS}"),
        Listeners::Named(named) => {
            let named = named.as_slice().iter().map(|listener| match &listener.name {
                Some(name) => format!("{name}={}", listener.address),
                None => listener.address.to_string(),
            });
            named.collect::<Vec<_>>().join(", ")
        }
    };
    print("the outcome of the check, which is good", &format!("good: would listen on {listeners}\n"))
}
