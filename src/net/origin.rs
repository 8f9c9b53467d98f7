//! Remembers where a listener comes from, as long as its line lives.
//!
//! Who made a socket decides who may unlink its path, and by what it is matched: a name, or the
//! address that was asked for. That outlives the process that knew it first, so it is written into
//! messages and read from them. It is no word about where the socket listens now: that is asked of
//! the socket.

use std::fmt;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::str::FromStr;

use crate::address::Address;
use crate::error::Error;

/// Where a listener comes from, which decides who may unlink its path and what it is matched by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A parent made it (systemd, say), for this process or for one before it in the line.
    Inherited,
    /// This process or one before it in the line bound it.
    Bound(Binding),
}

/// What the line needs to remember of a socket that it bound itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The address that was asked for, port 0 included.
    pub(crate) address: Address,
    /// Which file a Unix path was then, so that nobody else's is ever unlinked.
    pub(crate) file: Option<FileId>,
}

/// A file, whatever its name: device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        Ok(Self::from(&std::fs::symlink_metadata(path)?))
    }

    /// Whether this file, and no other one, is at `path`.
    pub(super) fn is_at(self, path: &Path) -> bool {
        Self::of(path).is_ok_and(|found| found == self)
    }
}

impl From<&Metadata> for FileId {
    fn from(status: &Metadata) -> Self {
        Self { device: status.dev(), inode: status.ino() }
    }
}

/// What [`Binding`] looks like in a message: `ADDRESS`, or `DEVICE:INODE ADDRESS` for a Unix path.
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
