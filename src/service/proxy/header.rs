//! Headers of the PROXY protocol. With such a header, a proxy tells the next server the client's
//! address.
//!
//! The parser keeps only the addresses of a header. A header may end with additional fields (TLVs)
//! of up to 64 KiB, which the proxy skips. Every byte after the header belongs to the upstream. The
//! crate `ppp` is used only to write headers, because its address parser rejects headers that real
//! senders use.

#[cfg(test)]
mod tests;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};

use ppp::{v1, v2};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;

use crate::config::HeaderVersion;
use crate::net::Stream;

/// The longest header of version 1 that the specification allows, in bytes.
const LONGEST_V1: usize = 107;
/// The length of the fixed part of a version 2 header, in bytes.
const FIXED_V2: usize = 16;
/// The length in bytes of the longest address block: two addresses of Unix sockets.
const LONGEST_ADDRESSES: usize = 216;

/// The source and destination addresses of a client's connection, as given in a PROXY header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Route {
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
}

/// The result of parsing the first bytes of a connection as a PROXY header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HeaderStart {
    /// How many bytes of the header were parsed.
    length: usize,
    /// How many more bytes of the connection belong to the header. The proxy skips them.
    rest: usize,
    /// The client's addresses, or `None` if the header contains no addresses. A sender omits them
    /// if it has opened the connection itself, as for a health check, or does not know its client.
    route: Option<Route>,
}

/// Reads the PROXY header at the beginning of a connection. Returns `None` if the header contains
/// no client address.
///
/// While only a part of the header has been read, `is_within` is true. Cancel safe as long as
/// `is_within` is false.
///
/// Returns `InvalidData` if the connection does not begin with a header, or ends in the middle of
/// one. Returns `UnexpectedEof` if the connection ends before its first byte.
pub(super) async fn receive(
    stream: &mut Stream,
    is_within: &AtomicBool,
) -> io::Result<Option<Route>> {
    let mut buffer = vec![0; FIXED_V2 + LONGEST_ADDRESSES];
    let mut is_silent = true;
    let look = |bytes: &[u8]| {
        is_silent = bytes.is_empty();
        Ok(parse(bytes)?.map(|head| (head.length, head)))
    };
    let ended = |error: io::Error| {
        let is_end = error.kind() == io::ErrorKind::UnexpectedEof;
        if is_end { invalid("the connection ended during its PROXY header") } else { error }
    };
    let head = match stream.read_head(&mut buffer, look).await {
        Err(error) if is_silent => return Err(error),
        head => head.map_err(ended)?,
    };
    let mut rest = head.rest;
    is_within.store(rest > 0, Ordering::Relaxed);
    while rest > 0 {
        let most = rest.min(buffer.len());
        rest -= match stream.read(&mut buffer[..most]).await? {
            0 => return Err(ended(io::ErrorKind::UnexpectedEof.into())),
            count => count,
        };
    }
    is_within.store(false, Ordering::Relaxed);
    Ok(head.route)
}

/// Parses the PROXY header at the beginning of `bytes`. Returns `None` if the header is incomplete.
pub(super) fn parse(bytes: &[u8]) -> io::Result<Option<HeaderStart>> {
    let has_begun = |prefix: &[u8]| {
        let length = bytes.len().min(prefix.len());
        bytes[..length] == prefix[..length]
    };
    if has_begun(v2::PROTOCOL_PREFIX) {
        binary(bytes)
    } else if has_begun(b"PROXY ") {
        line(bytes)
    } else {
        Err(invalid("the connection does not begin with a PROXY header"))
    }
}

/// Parses a PROXY header of version 1, which is a line of text.
fn line(bytes: &[u8]) -> io::Result<Option<HeaderStart>> {
    let bytes = &bytes[..bytes.len().min(LONGEST_V1)];
    let Some(end) = bytes.windows(2).position(|pair| pair == b"\r\n") else {
        return if bytes.len() == LONGEST_V1 {
            Err(invalid("the PROXY header is too long"))
        } else {
            Ok(None)
        };
    };
    let head = |route| Ok(Some(HeaderStart { length: end + 2, rest: 0, route }));
    let text = std::str::from_utf8(&bytes[..end]).map_err(|_| wrong("it is not ASCII"))?;
    let mut words = text.split(' ').skip(1);
    let family = words.next().unwrap_or_default();
    if family == "UNKNOWN" {
        // Ignore the rest of an UNKNOWN line, as the specification requires.
        return head(None);
    }
    let is_of_family = |address: &IpAddr| match family {
        "TCP4" => Some(address.is_ipv4()),
        "TCP6" => Some(address.is_ipv6()),
        _ => None,
    };
    let mut next = || words.next().unwrap_or_default();
    let (source, destination) = (address(next())?, address(next())?);
    let (source_port, destination_port) = (port(next())?, port(next())?);
    if words.next().is_some() {
        return Err(wrong("it has too many fields"));
    }
    // Accept two addresses of different families, IPv4 and IPv6. Nginx takes the family from the
    // client's address only, so the server's address may be of the other family. HAProxy writes
    // both addresses as IPv6 if their families differ.
    match (is_of_family(&source), is_of_family(&destination)) {
        (Some(source), Some(destination)) if source || destination => {}
        (None, _) | (_, None) => return Err(wrong("expected TCP4, TCP6 or UNKNOWN")),
        (Some(_), Some(_)) => {
            return Err(wrong("its addresses do not match its address family"));
        }
    }
    head(Some(Route::new((source, source_port), (destination, destination_port))))
}

fn address(word: &str) -> io::Result<IpAddr> {
    IpAddr::from_str(word).map_err(|_| wrong("expected an IP address"))
}

/// Parses a port number in the form that the specification requires: digits only, without leading
/// zeros.
fn port(word: &str) -> io::Result<u16> {
    let is_plain =
        word.bytes().all(|byte| byte.is_ascii_digit()) && (word == "0" || !word.starts_with('0'));
    word.parse().ok().filter(|_| is_plain).ok_or_else(|| wrong("expected a port"))
}

/// Parses a PROXY header of version 2, which is binary.
fn binary(bytes: &[u8]) -> io::Result<Option<HeaderStart>> {
    const LOCAL: u8 = 0x20;
    const PROXY: u8 = 0x21;
    let Some(fixed) = bytes.get(..FIXED_V2) else { return Ok(None) };
    let after_fixed = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    let head = |addresses, route| {
        Ok(Some(HeaderStart { length: FIXED_V2 + addresses, rest: after_fixed - addresses, route }))
    };
    match fixed[12] {
        // Ignore the rest of a LOCAL header, as the specification requires. The sending proxy has
        // opened such a connection for itself, not for a client.
        LOCAL => return head(0, None),
        PROXY => {}
        _ => return Err(wrong("expected version 2, and LOCAL or PROXY")),
    }
    let (family, transport) = (fixed[13] >> 4, fixed[13] & 0xf);
    match transport {
        0 | 1 => {}
        2 => return Err(invalid("the PROXY header is for datagrams, not for a stream")),
        _ => return Err(wrong("its transport protocol is unknown")),
    }
    let addresses = match family {
        0 => return head(0, None),
        1 => 12,
        2 => 36,
        3 => LONGEST_ADDRESSES,
        _ => return Err(wrong("its address family is unknown")),
    };
    if after_fixed < addresses {
        return Err(wrong("it is too short for its addresses"));
    }
    let Some(block) = bytes.get(FIXED_V2..FIXED_V2 + addresses) else { return Ok(None) };
    head(addresses, route(block))
}

/// Parses the addresses of a version 2 header. Returns `None` for addresses of Unix sockets.
fn route(block: &[u8]) -> Option<Route> {
    fn split<const LENGTH: usize>(block: &[u8]) -> Option<([IpAddr; 2], &[u8])>
    where
        IpAddr: From<[u8; LENGTH]>,
    {
        let (source, rest) = block.split_first_chunk::<LENGTH>()?;
        let (destination, ports) = rest.split_first_chunk::<LENGTH>()?;
        Some(([(*source).into(), (*destination).into()], ports))
    }
    let ([source, destination], ports) = match block.len() {
        12 => split::<4>(block)?,
        36 => split::<16>(block)?,
        _ => return None,
    };
    let port = |at: usize| u16::from_be_bytes([ports[at], ports[at + 1]]);
    Some(Route::new((source, port(0)), (destination, port(2))))
}

/// Checks the parser with arbitrary bytes from a fuzzer. Returns whether `bytes` begin with a
/// header. Panics if the parser accepts an incomplete header, or if the bytes after a header change
/// the result. Also panics if writing and parsing a header changes its addresses.
#[cfg(any(fuzzing, test))]
pub(crate) fn fuzz(bytes: &[u8]) -> bool {
    let Ok(Some(head)) = parse(bytes) else { return false };
    assert!(head.length <= bytes.len().min(FIXED_V2 + LONGEST_ADDRESSES));
    for part in 0..head.length {
        assert!(matches!(parse(&bytes[..part]), Ok(None)), "a part of {part} bytes");
    }
    assert_eq!(parse(&bytes[..head.length]).ok(), Some(Some(head)));
    let route = head.route;
    for version in [HeaderVersion::V1, HeaderVersion::V2] {
        let announced = announce(version, route);
        let again = parse(&announced).ok().flatten();
        let said = again.map(|again| (again.length + again.rest, again.route.map(canonical)));
        assert_eq!(said, Some((announced.len(), route.map(canonical))));
    }
    true
}

/// Converts IPv4-mapped IPv6 addresses to IPv4, so that both forms of an address are equal.
#[cfg(any(fuzzing, test))]
fn canonical(Route { source, destination }: Route) -> [(IpAddr, u16); 2] {
    [source, destination].map(|address| (address.ip().to_canonical(), address.port()))
}

fn wrong(why: &str) -> io::Error {
    invalid(&format!("the PROXY header is invalid: {why}"))
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

impl Route {
    fn new(source: impl Into<SocketAddr>, destination: impl Into<SocketAddr>) -> Self {
        Self { source: source.into(), destination: destination.into() }
    }
}

/// Converts the source and the destination address of a connection, in this order.
impl From<(SocketAddr, SocketAddr)> for Route {
    fn from((source, destination): (SocketAddr, SocketAddr)) -> Self {
        Self { source, destination }
    }
}

/// Builds the PROXY header for a client with the addresses `route`. `None` means that the client's
/// addresses are not known.
pub(super) fn announce(version: HeaderVersion, route: Option<Route>) -> Vec<u8> {
    let addresses = route.map(|Route { source, destination }| {
        match (source.ip().to_canonical(), destination.ip().to_canonical()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                v1::Addresses::new_tcp4(from, to, source.port(), destination.port())
            }
            // Write both addresses as IPv6 if their families differ, because a header has only one
            // family.
            (from, to) => {
                v1::Addresses::new_tcp6(six(from), six(to), source.port(), destination.port())
            }
        }
    });
    match version {
        HeaderVersion::V1 => addresses.unwrap_or(v1::Addresses::Unknown).to_string().into_bytes(),
        HeaderVersion::V2 => {
            let addresses = match addresses {
                Some(v1::Addresses::Tcp4(at)) => v2::Addresses::IPv4(at),
                Some(v1::Addresses::Tcp6(at)) => v2::Addresses::IPv6(at),
                Some(v1::Addresses::Unknown) | None => v2::Addresses::Unspecified,
            };
            let protocol =
                if route.is_some() { v2::Protocol::Stream } else { v2::Protocol::Unspecified };
            binary_header(v2::Command::Proxy, protocol, addresses)
        }
    }
}

/// Builds the PROXY header for a health check, which is a connection that the proxy opens without a
/// client.
pub(super) fn own(version: HeaderVersion) -> Vec<u8> {
    match version {
        HeaderVersion::V1 => announce(version, None),
        HeaderVersion::V2 => {
            binary_header(v2::Command::Local, v2::Protocol::Unspecified, v2::Addresses::Unspecified)
        }
    }
}

fn binary_header(
    command: v2::Command,
    protocol: v2::Protocol,
    addresses: v2::Addresses,
) -> Vec<u8> {
    let built =
        v2::Builder::with_addresses(v2::Version::Two | command, protocol, addresses).build();
    // Building fails only if the additional fields exceed 64 KiB, and these headers have none.
    built.unwrap_or_default()
}

fn six(address: IpAddr) -> std::net::Ipv6Addr {
    match address {
        IpAddr::V4(four) => four.to_ipv6_mapped(),
        IpAddr::V6(six) => six,
    }
}
