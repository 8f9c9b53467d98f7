//! The only module that talks to the kernel directly. It contains all unsafe code, all handling of
//! raw descriptors and all access to the environment.
//!
//! Every descriptor that this module returns has an owner and a type, and is close-on-exec. This
//! module contains no handoff logic.
#![allow(unsafe_code, reason = "the one place for it; every block says who meets its duty")]
#![allow(
    clippy::disallowed_methods,
    reason = "the one place that reads and cleans the environment"
)]

pub(crate) mod ancillary;
#[cfg(feature = "program")]
pub(crate) mod child;
pub(crate) mod env;
pub(crate) mod fd;
pub(crate) mod init;
pub(crate) mod interrupt;
pub(crate) mod memory_file;
pub(crate) mod namespace;
pub(crate) mod process;
pub(crate) mod reserve;
#[cfg(feature = "program")]
pub(crate) mod settings_file;
pub(crate) mod signals;
pub(crate) mod socket;
pub(crate) mod spawn;
#[cfg(feature = "proxy")]
pub(crate) mod splice;
pub(crate) mod temporary_folder;
