//! This module gives the parsers of the services to `fuzz/`.

use super::{Echo, Service};
use crate::carry::Parcel;
pub(crate) use crate::service::proxy::fuzz::proxy_header;

/// Takes up a parcel of any service, and returns whether one of them does.
pub(crate) fn take_up(parcel: Parcel) -> bool {
    Echo.accepts("web", &parcel).is_ok() || super::proxy::fuzz::take_up(parcel)
}

/// A parcel of each service at each stage.
#[cfg(test)]
pub(crate) fn parcels() -> Vec<(String, Parcel)> {
    let mut parcels = super::proxy::fuzz::parcels();
    parcels.push(("echo".to_owned(), Parcel::new("echo/1", b"owed".to_vec())));
    parcels
}
