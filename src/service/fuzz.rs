//! Entry points to the parsers of the services, for `fuzz/`.

use super::{Echo, Service};
use crate::carry::CarriedState;
pub(crate) use crate::service::proxy::fuzz::proxy_header;

/// Restores a carried state of any service. Returns whether one of the services accepts it.
pub(crate) fn take_up(parcel: CarriedState) -> bool {
    Echo.accepts("web", &parcel).is_ok() || super::proxy::fuzz::take_up(parcel)
}

/// Returns a carried state of each service at each stage.
#[cfg(test)]
pub(crate) fn parcels() -> Vec<(String, CarriedState)> {
    let mut parcels = super::proxy::fuzz::parcels();
    parcels.push(("echo".to_owned(), CarriedState::new("echo/1", b"owed".to_vec())));
    parcels
}
