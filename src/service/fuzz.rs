//! Fuzzing entry points for the parsers of the services. The fuzz targets in `fuzz/` call these
//! functions.

use super::{Echo, Service};
use crate::carry::CarriedState;
pub(crate) use crate::service::proxy::fuzz::proxy_header;

/// Restores a connection from a state that a fuzzer has made up, as after a move from another
/// process. Returns whether one of the services accepts the state.
pub(crate) fn take_up(saved_state: CarriedState) -> bool {
    Echo.accepts("web", &saved_state).is_ok() || super::proxy::fuzz::take_up(saved_state)
}

/// Returns example states of moved connections: one for each service and each stage of a
/// connection.
#[cfg(test)]
pub(crate) fn saved_states() -> Vec<(String, CarriedState)> {
    let mut saved_states = super::proxy::fuzz::saved_states();
    saved_states.push(("echo".to_owned(), CarriedState::new("echo/1", b"owed".to_vec())));
    saved_states
}
