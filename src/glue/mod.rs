//! These modules connect handoffd to other server libraries. Each public module belongs to the
//! Cargo feature of the same name, and is built on [`crate::embed`].

#[cfg(any(feature = "hyper", feature = "tower"))]
mod announce;

#[cfg(feature = "actix")]
pub mod actix;
#[cfg(feature = "axum")]
pub mod axum;
#[cfg(feature = "hyper")]
pub mod hyper;
#[cfg(feature = "tonic")]
pub mod tonic;
#[cfg(feature = "tower")]
pub mod tower;
