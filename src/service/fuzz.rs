//! Fuzzing entry points for the parsers of the services. The fuzz targets in `fuzz/` call these
//! functions.

use super::{Echo, Service};
use crate::carry::CarriedState;
pub(crate) use crate::service::proxy::fuzz::proxy_header;

/// Restores a connection from a state that a fuzzer has made up, as after a move from another
/// process. Returns whether one of the services accepts the state.
pub(crate) fn take_up(parcel: CarriedState) -> bool {
    Echo.accepts("web", &parcel).is_ok() || super::proxy::fuzz::take_up(parcel)
}

/// Returns example states of moved connections: one for each service and each stage of a
/// connection.
#[cfg(test)]
pub(crate) fn parcels() -> Vec<(String, CarriedState)> {
    let mut parcels = super::proxy::fuzz::parcels();
    parcels.push(("echo".to_owned(), CarriedState::new("echo/1", b"owed".to_vec())));
    parcels
}
