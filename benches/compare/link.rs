//! A network link with a delay between the proxies and the upstream.
//!
//! On loopback, a connect takes no time. netem could delay it, but not every kernel has netem. So
//! the link is a pair of virtual interfaces. This process holds one of them, in a network of its
//! own, and sends each packet back after the delay, with its two addresses exchanged. So a
//! connection to [`FAR`] reaches the same port of this end, through the link in both directions.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use nix::unistd::getppid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::network::ip;
use crate::support::itself::{Itself, is_asked_to_be, say_where};

/// The time that a packet needs in each direction.
pub(crate) const DELAY: Duration = Duration::from_millis(1);
/// The address at which an upstream on [`NEAR`] is reached through the link.
pub(crate) const FAR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

/// The argument that makes the bench run as the link.
const ARGUMENT: &str = "link";
const NEAR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// Both interfaces have this hardware address, so that each takes every packet without ARP.
const HARDWARE: &str = "02:00:00:00:00:01";

// Numbers of protocols, and positions in an IPv4 and a TCP header.
const ETHERNET_IPV4: u16 = 0x0800;
const RAW_IP: i32 = 255;
const TCP: u8 = 6;
const PROTOCOL: usize = 9;
const SOURCE: usize = 12;
const DESTINATION: usize = 16;
const HEADERS_END: usize = 40;
const TCP_CHECKSUM: usize = 16;
const LARGEST_PACKET: usize = 65_535;

/// Starts the link. The network of this process must be a private one.
pub(crate) fn start() -> Itself {
    let link = Itself::start(ARGUMENT);
    ip(&["address", "add", &format!("{NEAR}/24"), "dev", "near"]);
    ip(&["link", "set", "near", "arp", "off", "up"]);
    link
}

/// Runs the link if this process was started as the link. Returns whether it was.
pub(crate) fn serve_if_asked() -> bool {
    let asked = is_asked_to_be(ARGUMENT);
    if asked {
        run().expect("forward packets");
    }
    asked
}

/// Sets up the far end, and forwards until the bench ends.
fn run() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    let bench = getppid().to_string();
    let ends = ["link", "add", "far", "address", HARDWARE, "type", "veth"];
    let peer = ["peer", "name", "near", "address", HARDWARE, "netns", &bench];
    ip(&[&ends[..], &peer[..]].concat());
    ip(&["link", "set", "far", "arp", "off", "up"]);
    ip(&["route", "add", &NEAR.to_string(), "dev", "far"]);
    let mut wire = Wire::new()?;
    say_where(SocketAddr::from((FAR, 0)));
    wire.forward()
}

/// The packets on their way.
struct Wire {
    incoming: Socket,
    outgoing: Socket,
    near: SockAddr,
    /// Each packet with the time at which it is due.
    packets: VecDeque<(Instant, Vec<u8>)>,
    buffer: Vec<u8>,
}

impl Wire {
    fn new() -> io::Result<Self> {
        let ipv4 = Protocol::from(i32::from(ETHERNET_IPV4.to_be()));
        let incoming = Socket::new(Domain::PACKET, Type::DGRAM.nonblocking(), Some(ipv4))?;
        let outgoing = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(RAW_IP)))?;
        let near = SocketAddr::from((NEAR, 0)).into();
        let (packets, buffer) = (VecDeque::new(), vec![0; LARGEST_PACKET]);
        Ok(Self { incoming, outgoing, near, packets, buffer })
    }

    /// Forwards packets until the standard input ends.
    fn forward(&mut self) -> io::Result<()> {
        let stdin = io::stdin();
        loop {
            let next = self.packets.front().map(|(due, _)| {
                Timespec::try_from(due.saturating_duration_since(Instant::now())).expect("short")
            });
            let mut ready =
                [PollFd::new(&self.incoming, PollFlags::IN), PollFd::new(&stdin, PollFlags::IN)];
            poll(&mut ready, next.as_ref())?;
            if !ready[1].revents().is_empty() {
                return Ok(());
            }
            self.receive()?;
            self.send_due()?;
        }
    }

    fn receive(&mut self) -> io::Result<()> {
        let due = Instant::now() + DELAY;
        loop {
            match self.incoming.read(&mut self.buffer) {
                Ok(length) => {
                    let mut packet = self.buffer[..length].to_vec();
                    if exchange_addresses(&mut packet) {
                        self.packets.push_back((due, packet));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    fn send_due(&mut self) -> io::Result<()> {
        let now = Instant::now();
        while self.packets.front().is_some_and(|(due, _)| *due <= now) {
            let (_, packet) = self.packets.pop_front().expect("the first packet");
            self.outgoing.send_to(&packet, &self.near)?;
        }
        Ok(())
    }
}

/// Exchanges the addresses of a TCP packet. Returns false for any other packet.
fn exchange_addresses(packet: &mut [u8]) -> bool {
    let is_tcp = packet.len() >= HEADERS_END && packet[PROTOCOL] == TCP;
    if !is_tcp || packet[DESTINATION..DESTINATION + 4] != FAR.octets() {
        return false;
    }
    packet[SOURCE..DESTINATION + 4].rotate_left(4);
    // The kernel leaves the checksum of TCP to the interface, so it is not complete yet.
    let header = usize::from(packet[0] & 0x0f) * 4;
    let at = header + TCP_CHECKSUM;
    packet[at..at + 2].fill(0);
    let length = u32::try_from(packet.len() - header).expect("at most 64 KB");
    let pseudo_header = sum(&packet[SOURCE..DESTINATION + 4]) + u32::from(TCP) + length;
    let mut total = pseudo_header + sum(&packet[header..]);
    while total > 0xffff {
        total = (total >> 16) + (total & 0xffff);
    }
    let checksum = !u16::try_from(total).expect("16 bits");
    packet[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    true
}

/// Returns the sum of the words of 16 bits.
fn sum(bytes: &[u8]) -> u32 {
    let word = |pair: &[u8]| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    bytes.chunks(2).map(word).sum()
}
