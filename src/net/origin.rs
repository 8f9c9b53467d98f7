//! The origin of a listening socket: who created it, and for which address.
//!
//! The origin decides who may unlink the path of a socket, and whether it is matched by its name or
//! by the configured address. It outlives the process that created the socket, so it is written to
//! messages and read back from them. It does not say where the socket listens now; the socket
//! itself knows that.

use std::fmt;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::str::FromStr;

use crate::address::Address;
use crate::error::Error;

/// The origin of a listener. It decides who may unlink the path of the socket and how the socket is
/// matched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A parent (such as systemd) created it, for this process or for an earlier generation of its
    /// lineage.
    Inherited,
    /// This process or an earlier generation of its lineage bound it.
    Bound(Binding),
}

/// What a lineage must remember about a socket that it bound itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The configured address, in which port 0 stays 0.
    pub(crate) address: Address,
    /// The file that was created for a Unix path, so that no other file is ever unlinked.
    pub(crate) file: Option<FileId>,
}

/// The identity of a file, independent of its name: device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        Ok(Self::from(&std::fs::symlink_metadata(path)?))
    }

    /// Returns whether exactly this file is at `path`.
    pub(super) fn is_at(self, path: &Path) -> bool {
        Self::of(path).is_ok_and(|found| found == self)
    }
}

impl From<&Metadata> for FileId {
    fn from(status: &Metadata) -> Self {
        Self { device: status.dev(), inode: status.ino() }
    }
}

/// Prints the form used in messages: `ADDRESS`, or `DEVICE:INODE ADDRESS` for a Unix path.
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
