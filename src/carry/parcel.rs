//! Is what a service gives up of a connection, so that it can be taken up elsewhere.

use std::os::fd::OwnedFd;

/// A connection's state, besides the client's socket, as a service has put it into words of its
/// own.
///
/// It is read by the same service in another process, which may be an older or a newer build: so it
/// says in which format it is, and whoever does not know that one refuses it.
#[derive(Debug)]
pub struct Parcel {
    /// Whose words these are and in which version: `echo/1`.
    pub format: String,
    /// What the connection owes and all else that there is to say: at most [`Parcel::BYTES_MAX`].
    pub bytes: Vec<u8>,
    /// What goes with it: at most [`Parcel::DESCRIPTORS_MAX`]. They are copied to the other
    /// process, and stay ours until it has taken them; nobody may read or write through them until
    /// then.
    pub descriptors: Vec<OwnedFd>,
}

impl Parcel {
    /// More than this is not sent: the connection is drained.
    pub const BYTES_MAX: usize = 120 * 1024;
    /// With the client's socket as many as one message can have, unix(7).
    pub const DESCRIPTORS_MAX: usize = 252;

    /// One without descriptors.
    #[must_use]
    pub fn new(format: &str, bytes: Vec<u8>) -> Self {
        Self { format: format.to_owned(), bytes, descriptors: Vec::new() }
    }
}
