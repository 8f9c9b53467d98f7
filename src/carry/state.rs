//! The state that a service saves for a connection. With this state, the same service in another
//! process can continue to serve the connection.

use std::os::fd::OwnedFd;

/// The saved state of a connection, without the client's socket. The service chooses the format.
///
/// Another process reads the state, and may run an older or newer build of the same service. So the
/// state contains the name of its format, and a service refuses a format that it does not know.
///
/// ```
/// use handoffd::carry::{CarriedState, Declined};
///
/// // The old process saves how many lines the client has sent.
/// let state = CarriedState::new("lines/1", 42_u64.to_string().into_bytes());
///
/// // The new process checks the format before it accepts the connection.
/// fn read(state: &CarriedState) -> Result<u64, Declined> {
///     let lines = std::str::from_utf8(&state.bytes).ok().and_then(|text| text.parse().ok());
///     lines.filter(|_| state.format == "lines/1").ok_or("an unknown format".into())
/// }
/// assert_eq!(read(&state), Ok(42));
/// ```
#[derive(Debug)]
pub struct CarriedState {
    /// The name and version of the format, such as `echo/1`.
    pub format: String,
    /// The state itself, such as bytes that still have to be written. It has at most
    /// [`CarriedState::BYTES_MAX`] bytes.
    pub bytes: Vec<u8>,
    /// File descriptors that belong to the state, at most [`CarriedState::DESCRIPTORS_MAX`]. The
    /// other process gets copies of these descriptors. This process keeps the originals until the
    /// other process has accepted the connection. Until then, this process must not read from them
    /// or write to them.
    pub descriptors: Vec<OwnedFd>,
}

impl CarriedState {
    /// The maximum size of the state in bytes. A connection with a larger state cannot move to
    /// another process and is drained instead.
    pub const BYTES_MAX: usize = 120 * 1024;
    /// The maximum number of file descriptors in a state. The kernel allows 253 in one message (see
    /// unix(7)), and one of them is the client's socket.
    pub const DESCRIPTORS_MAX: usize = 252;

    /// Creates a state without file descriptors.
    #[must_use]
    pub fn new(format: &str, bytes: Vec<u8>) -> Self {
        Self { format: format.to_owned(), bytes, descriptors: Vec::new() }
    }
}

/// The reason why a service declines to continue a connection from another process.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Declined(String);

impl<T: Into<String>> From<T> for Declined {
    fn from(reason: T) -> Self {
        Self(reason.into())
    }
}
