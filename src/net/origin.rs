//! The origin of a listening socket: which process created it, and for which configured address.
//!
//! The origin decides which process may unlink the path of a socket. It also decides whether the
//! socket is matched to a listener by name or by address. Each generation tells its successor the
//! origin of every socket, because a socket may outlive the process that created it. The origin
//! does not contain the address on which the socket listens, because the kernel can report that
//! address.

use std::fmt;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::str::FromStr;

use crate::address::Address;
use crate::error::Error;

/// The origin of a listening socket. It decides which process may unlink the socket's path, and how
/// the socket is matched to a configured listener.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// A parent such as systemd created the socket, for this process or for an earlier generation.
    Inherited,
    /// This process or an earlier generation bound the socket.
    Bound(Binding),
}

/// What this service remembers about a socket that one of its generations has bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The address as it was configured. Port 0 stays 0 here and is not replaced by the port that
    /// the kernel chose.
    pub(crate) address: Address,
    /// If the address is a Unix socket path, the socket file that the bind created. The service
    /// later removes only this file, and no other file at the same path.
    pub(crate) file: Option<FileId>,
}

/// The identity of a file, independent of its name: its device and inode numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        Ok(Self::from(&std::fs::symlink_metadata(path)?))
    }

    /// Returns whether the file at `path` is this file.
    pub(super) fn is_at(self, path: &Path) -> bool {
        Self::of(path).is_ok_and(|found| found == self)
    }
}

impl From<&Metadata> for FileId {
    fn from(status: &Metadata) -> Self {
        Self { device: status.dev(), inode: status.ino() }
    }
}

/// Formats the binding for messages between generations: `ADDRESS`, or `DEVICE:INODE ADDRESS` for a
/// Unix path.
impl fmt::Display for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(FileId { device, inode }) = self.file {
            write!(f, "{device}:{inode} ")?;
        }
        self.address.fmt(f)
    }
}

impl FromStr for Binding {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let file = text.split_once(' ').and_then(|(file, address)| {
            let (device, inode) = file.split_once(':')?;
            Some((FileId { device: device.parse().ok()?, inode: inode.parse().ok()? }, address))
        });
        Ok(match file {
            Some((file, address)) => Self { address: address.parse()?, file: Some(file) },
            None => Self { address: text.parse()?, file: None },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binding_reads_back_what_it_prints() {
        for text in ["127.0.0.1:0", "8:42 /run/a b.sock", "@name with 1:2 in it"] {
            let binding: Binding = text.parse().unwrap();
            assert_eq!(binding.to_string(), text);
        }
    }
}
