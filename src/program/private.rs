//! The private addresses of a program, and a private folder for the sockets of a generation.
//!
//! Each generation has its own addresses, so that the old and the new program can run side by side.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use nix::unistd::mkdtemp;

use crate::address::Address;
use crate::config::Attach;

/// The range from which private ports are chosen. It is below the default range for outgoing
/// connections (see `ip_local_port_range` in ip(7)), so no outgoing connection takes the port
/// before the program listens on it.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
/// How many ports of that range to try before falling back to any free port.
const TRIES: u16 = 64;

/// A folder that only this generation uses. Dropping this value removes the folder.
#[derive(Debug)]
pub(super) struct Folder(PathBuf);

impl Folder {
    /// Creates a folder that only this process's user can enter. Creates it in `parent`, or else in
    /// the directory for temporary files.
    pub(super) fn create(parent: Option<&Path>) -> io::Result<Self> {
        let parent = parent.map_or_else(std::env::temp_dir, Path::to_owned);
        Ok(Self(mkdtemp(&parent.join("handoffd-XXXXXX"))?))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Ignore errors, because at worst the folder is left behind.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Returns the private address of the instance with this number, or `None` if the program inherits
/// the listeners.
pub(super) fn address(
    attach: Attach,
    folder: &Folder,
    instance: usize,
) -> io::Result<Option<Address>> {
    Ok(match attach {
        Attach::Inherit => None,
        Attach::Detect | Attach::PrivatePort => Some(Address::Tcp(free_port()?)),
        Attach::PrivateSocket => {
            Some(Address::UnixPath(folder.path().join(format!("program-{instance}.sock"))))
        }
    })
}

/// Returns a port of 127.0.0.1 that is free now.
fn free_port() -> io::Result<SocketAddr> {
    let is_free = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    let span = PORTS.end - PORTS.start;
    // Begin with a random port, so that programs that start at the same time try different ports.
    let mut random = [0; 2];
    getrandom(&mut random)?;
    let start = u16::from_ne_bytes(random) % span;
    let mut ports = (0..TRIES).map(|offset| PORTS.start + (start + offset * 97) % span);
    let found = ports.find_map(|port| is_free(port).ok()).map_or_else(|| is_free(0), Ok)?;
    found.local_addr()
}

fn getrandom(bytes: &mut [u8; 2]) -> io::Result<()> {
    use std::io::Read;
    fs::File::open("/dev/urandom")?.read_exact(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_ports_are_free_and_below_those_of_outgoing_connections() {
        for _ in 0..20 {
            let address = free_port().unwrap();
            assert!(PORTS.contains(&address.port()), "{address}");
            TcpListener::bind(address).unwrap();
        }
    }

    #[test]
    fn the_folder_of_a_generation_is_removed_with_what_is_in_it() {
        let folder = Folder::create(None).unwrap();
        let path = folder.path().to_owned();
        fs::write(path.join("socket"), "").unwrap();
        drop(folder);
        assert!(!path.exists());
    }
}
