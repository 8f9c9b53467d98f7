//! The private addresses of a program, to which this process forwards client connections.
//!
//! Each generation has its own addresses, so that the old and the new program can run side by side.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, TcpListener};

use crate::address::Address;
use crate::config::Attach;
use crate::sys::temporary_folder::TemporaryFolder;

/// The range from which private ports are chosen. It is below the default range for outgoing
/// connections (see `ip_local_port_range` in ip(7)). So no outgoing connection takes the port
/// before the program listens on it.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
/// How many ports of the range `PORTS` to try before falling back to any free port.
const TRIES: u16 = 64;

/// Returns the private address of each instance of the program. All are `None` if the program
/// inherits the listeners.
pub(super) fn addresses(
    attach: Attach,
    folder: &TemporaryFolder,
    instances: usize,
) -> io::Result<Vec<Option<Address>>> {
    Ok(match attach {
        Attach::Inherit => vec![None; instances],
        Attach::Detect | Attach::PrivatePort => {
            // Keep each port bound until all are found, so that no two instances get the same one.
            let kept: Vec<_> = (0..instances).map(|_| free_port()).collect::<Result<_, _>>()?;
            let ports = kept.iter().map(TcpListener::local_addr);
            ports.map(|port| Ok(Some(Address::Tcp(port?)))).collect::<io::Result<_>>()?
        }
        Attach::PrivateSocket => {
            let path = |number| folder.path().join(format!("program-{number}.sock"));
            (0..instances).map(|number| Some(Address::UnixPath(path(number)))).collect()
        }
    })
}

/// Removes the socket file that an earlier process of the program has left at its private address.
/// Many servers do not remove the file themselves, and then cannot bind their socket.
pub(super) fn clear(address: Option<&Address>) {
    if let Some(Address::UnixPath(path)) = address {
        // An error usually means that there is no file. Otherwise the program reports its own error
        // when it binds the socket.
        let _ = fs::remove_file(path);
    }
}

/// Returns a listener on a free port of 127.0.0.1. Drop the listener to make the port free again.
fn free_port() -> io::Result<TcpListener> {
    let is_free = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    let span = PORTS.end - PORTS.start;
    // Begin with a random port, so that programs that start at the same time try different ports.
    let mut random = [0; 2];
    getrandom(&mut random)?;
    let start = u16::from_ne_bytes(random) % span;
    let mut ports = (0..TRIES).map(|offset| PORTS.start + (start + offset * 97) % span);
    ports.find_map(|port| is_free(port).ok()).map_or_else(|| is_free(0), Ok)
}

fn getrandom(bytes: &mut [u8; 2]) -> io::Result<()> {
    use std::io::Read;
    fs::File::open("/dev/urandom")?.read_exact(bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn private_ports_are_free_and_below_those_of_outgoing_connections() {
        for _ in 0..20 {
            let address = free_port().unwrap().local_addr().unwrap();
            assert!(PORTS.contains(&address.port()), "{address}");
            TcpListener::bind(address).unwrap();
        }
    }

    #[test]
    fn every_instance_has_a_private_port_of_its_own() {
        let folder = TemporaryFolder::create(None).unwrap();
        let addresses = addresses(Attach::PrivatePort, &folder, 500).unwrap();
        let different: HashSet<_> = addresses.iter().map(|one| format!("{one:?}")).collect();
        assert_eq!(different.len(), 500);
    }
}
