//! The state of a connection that a service saves, so that another process can continue to serve
//! it.

use std::os::fd::OwnedFd;

/// The state of a connection besides the client's socket, in a format of the service's choice.
///
/// The same service reads it in another process, which may run an older or a newer build. So the
/// state names its format, and a service refuses a format that it does not know.
#[derive(Debug)]
pub struct CarriedState {
    /// The name and version of the format, such as `echo/1`.
    pub format: String,
    /// The state itself, such as bytes that still have to be written. At most
    /// [`CarriedState::BYTES_MAX`] bytes.
    pub bytes: Vec<u8>,
    /// Descriptors that belong to the state, at most [`CarriedState::DESCRIPTORS_MAX`]. The other
    /// process gets copies. Until it has accepted the connection, this process keeps its own copies
    /// and must not read from or write to them.
    pub descriptors: Vec<OwnedFd>,
}

impl CarriedState {
    /// The maximum size of the state. A connection with more is drained instead of carried.
    pub const BYTES_MAX: usize = 120 * 1024;
    /// The maximum number of descriptors. One message holds these and the client's socket, unix(7).
    pub const DESCRIPTORS_MAX: usize = 252;

    /// Creates a state without descriptors.
    #[must_use]
    pub fn new(format: &str, bytes: Vec<u8>) -> Self {
        Self { format: format.to_owned(), bytes, descriptors: Vec::new() }
    }
}
