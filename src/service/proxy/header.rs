//! Reads and writes the header of the PROXY protocol, by which proxies tell each other who the client is.
//!
//! Crate ppp knows the format; where a header ends, and what is ignored in it, is decided here: what follows belongs to the
//! upstream, to the byte. A header is at most so long, whatever it says of itself.

use std::io;
use std::net::{IpAddr, SocketAddr};

use ppp::{v1, v2};
use serde::{Deserialize, Serialize};

use crate::config::HeaderVersion;
use crate::net::Stream;

/// A line has at most so many bytes, by the specification.
const LONGEST_V1: usize = 107;
/// Bytes before the length of a binary header takes effect.
const FIXED_V2: usize = 16;
/// More than addresses and everything that proxies are known to add.
const LONGEST: usize = 2048;

/// From where to where a client connected, by somebody's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Route {
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
}

/// Reads the header with which a connection begins. `None` is a proxy that speaks for itself, or does not know.
///
/// # Errors
/// When it begins with something else, or ends.
pub(super) async fn receive(stream: &mut Stream) -> io::Result<Option<Route>> {
    let mut buffer = vec![0; LONGEST];
    stream.read_head(&mut buffer, parse).await
}

/// How long the header is at the head of `bytes`, and what it says; `None` when it goes on.
pub(super) fn parse(bytes: &[u8]) -> io::Result<Option<(usize, Option<Route>)>> {
    let has_begun = |prefix: &[u8]| {
        let length = bytes.len().min(prefix.len());
        bytes[..length] == prefix[..length]
    };
    if has_begun(v2::PROTOCOL_PREFIX) {
        binary(bytes)
    } else if has_begun(b"PROXY ") {
        line(bytes)
    } else {
        Err(invalid("it does not begin with a PROXY header"))
    }
}

/// A header of version 1. It is parsed when it is whole: ppp takes parts of some for wrong.
fn line(bytes: &[u8]) -> io::Result<Option<(usize, Option<Route>)>> {
    let bytes = &bytes[..bytes.len().min(LONGEST_V1)];
    let Some(end) = bytes.windows(2).position(|pair| pair == b"\r\n") else {
        return if bytes.len() == LONGEST_V1 { Err(invalid("its PROXY header is too long")) } else { Ok(None) };
    };
    let (length, text) = (end + 2, &bytes[..end]);
    if text == b"PROXY UNKNOWN" || text.starts_with(b"PROXY UNKNOWN ") {
        // Whatever follows is to be ignored.
        return Ok(Some((length, None)));
    }
    let header = v1::Header::try_from(&bytes[..length]).map_err(|error| wrong(&error))?;
    let route = match header.addresses {
        v1::Addresses::Tcp4(at) => {
            Route::new((at.source_address, at.source_port), (at.destination_address, at.destination_port))
        }
        v1::Addresses::Tcp6(at) => {
            Route::new((at.source_address, at.source_port), (at.destination_address, at.destination_port))
        }
        v1::Addresses::Unknown => return Ok(Some((length, None))),
    };
    Ok(Some((length, Some(route))))
}

/// A header of version 2.
fn binary(bytes: &[u8]) -> io::Result<Option<(usize, Option<Route>)>> {
    let Some(fixed) = bytes.get(..FIXED_V2) else { return Ok(None) };
    let length = FIXED_V2 + usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if length > LONGEST {
        return Err(invalid("its PROXY header is too long"));
    }
    let Some(whole) = bytes.get(..length) else { return Ok(None) };
    if fixed[12] == 0x20 {
        // LOCAL: the proxy itself, whatever addresses follow.
        return Ok(Some((length, None)));
    }
    let header = v2::Header::try_from(whole).map_err(|error| wrong(&error))?;
    if header.protocol == v2::Protocol::Datagram {
        return Err(invalid("its PROXY header speaks of datagrams"));
    }
    let route = match header.addresses {
        v2::Addresses::IPv4(at) => {
            Some(Route::new((at.source_address, at.source_port), (at.destination_address, at.destination_port)))
        }
        v2::Addresses::IPv6(at) => {
            Some(Route::new((at.source_address, at.source_port), (at.destination_address, at.destination_port)))
        }
        v2::Addresses::Unix(_) | v2::Addresses::Unspecified => None,
    };
    Ok(Some((length, route)))
}

/// For fuzzing: how long a whole header is. Neither may a part of it be taken for the whole, nor may what follows count.
#[cfg(any(fuzzing, test))]
pub(crate) fn fuzz(bytes: &[u8]) -> Option<usize> {
    let (length, route) = parse(bytes).ok()??;
    assert!(length <= LONGEST.min(bytes.len()));
    for part in 0..length {
        assert!(matches!(parse(&bytes[..part]), Ok(None)), "a part of {part} bytes");
    }
    assert_eq!(parse(&bytes[..length]).ok(), Some(Some((length, route))));
    for version in [HeaderVersion::V1, HeaderVersion::V2] {
        let announced = announce(version, route);
        let (whole, again) = parse(&announced).ok()??;
        assert_eq!((whole, again.is_some()), (announced.len(), route.is_some()));
    }
    Some(length)
}

fn wrong(error: &dyn std::fmt::Display) -> io::Error {
    invalid(&format!("its PROXY header is wrong: {error}"))
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

impl Route {
    fn new(source: impl Into<SocketAddr>, destination: impl Into<SocketAddr>) -> Self {
        Self { source: source.into(), destination: destination.into() }
    }
}

/// The header that tells an upstream of a client that came by `route`; one without addresses is not known.
pub(super) fn announce(version: HeaderVersion, route: Option<Route>) -> Vec<u8> {
    let addresses = route.map(|Route { source, destination }| {
        match (source.ip().to_canonical(), destination.ip().to_canonical()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => v1::Addresses::new_tcp4(from, to, source.port(), destination.port()),
            // Both are said in one family: that of the longer addresses.
            (from, to) => v1::Addresses::new_tcp6(six(from), six(to), source.port(), destination.port()),
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
            let protocol = if route.is_some() { v2::Protocol::Stream } else { v2::Protocol::Unspecified };
            binary_header(v2::Command::Proxy, protocol, addresses)
        }
    }
}

/// The header of a connection that is made for no client: a check.
pub(super) fn own(version: HeaderVersion) -> Vec<u8> {
    match version {
        HeaderVersion::V1 => announce(version, None),
        HeaderVersion::V2 => binary_header(v2::Command::Local, v2::Protocol::Unspecified, v2::Addresses::Unspecified),
    }
}

fn binary_header(command: v2::Command, protocol: v2::Protocol, addresses: v2::Addresses) -> Vec<u8> {
    let built = v2::Builder::with_addresses(v2::Version::Two | command, protocol, addresses).build();
    // It fails for more than 64 KiB of additions, and there are none.
    built.unwrap_or_default()
}

fn six(address: IpAddr) -> std::net::Ipv6Addr {
    match address {
        IpAddr::V4(four) => four.to_ipv6_mapped(),
        IpAddr::V6(six) => six,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

    #[test]
    fn every_file_of_the_corpus_begins_with_a_header_and_is_told_from_what_follows() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/proxy_header");
        let files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(files.len() > 5, "the corpus is gone");
        for file in files {
            assert!(fuzz(&std::fs::read(&file).unwrap()).is_some(), "{}", file.display());
        }
    }

    fn v2(command: u8, family: u8, length: u16, block: &[u8]) -> Vec<u8> {
        [SIGNATURE, &[command, family], &length.to_be_bytes(), block].concat()
    }

    fn route(source: &str, destination: &str) -> Route {
        Route { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    /// What is said of a header, which is the same however it arrives and whatever follows.
    fn said(header: &[u8]) -> Option<Route> {
        for part in 0..header.len() {
            assert!(parse(&header[..part]).unwrap().is_none(), "{part} bytes are not all of it");
        }
        let (length, route) = parse(header).unwrap().unwrap();
        assert_eq!(length, header.len());
        assert_eq!(parse(&[header, b"PROXY \r\n"].concat()).unwrap().unwrap(), (length, route));
        route
    }

    #[test]
    fn what_is_announced_is_understood_in_any_parts() {
        for version in [HeaderVersion::V1, HeaderVersion::V2] {
            for (source, destination) in
                [("192.0.2.1:1234", "198.51.100.7:80"), ("[2001:db8::1]:65535", "[2001:db8::2]:1")]
            {
                let route = route(source, destination);
                assert_eq!(said(&announce(version, Some(route))), Some(route));
            }
            assert_eq!(said(&announce(version, None)), None);
            assert_eq!(said(&own(version)), None);
        }
    }

    #[test]
    fn what_is_announced_is_what_the_specification_says() {
        let four = route("[::ffff:192.0.2.1]:1234", "198.51.100.7:80");
        assert_eq!(announce(HeaderVersion::V1, Some(four)), b"PROXY TCP4 192.0.2.1 198.51.100.7 1234 80\r\n");
        let block = [192, 0, 2, 1, 198, 51, 100, 7, 1234_u16.to_be_bytes()[0], 1234_u16.to_be_bytes()[1], 0, 80];
        assert_eq!(announce(HeaderVersion::V2, Some(four)), v2(0x21, 0x11, 12, &block));
        let mixed = route("[2001:db8::1]:1", "198.51.100.7:2");
        assert_eq!(announce(HeaderVersion::V1, Some(mixed)), b"PROXY TCP6 2001:db8::1 ::ffff:198.51.100.7 1 2\r\n");
        assert_eq!(announce(HeaderVersion::V1, None), b"PROXY UNKNOWN\r\n");
        assert_eq!(announce(HeaderVersion::V2, None), v2(0x21, 0, 0, &[]));
        assert_eq!(own(HeaderVersion::V2), v2(0x20, 0, 0, &[]));
    }

    #[test]
    fn what_a_proxy_says_of_itself_or_does_not_know_is_passed_over() {
        assert_eq!(said(b"PROXY UNKNOWN\r\n"), None);
        assert_eq!(said(b"PROXY UNKNOWN ffff::1 anything at all, and  more \r\n"), None);
        assert_eq!(said(&v2(0x20, 0x11, 3, &[1, 2, 3])), None);
        assert_eq!(said(&v2(0x20, 0xff, 0, &[])), None);
        assert_eq!(said(&v2(0x21, 0, 5, &[0; 5])), None);
        assert_eq!(said(&v2(0x21, 0x31, 216, &[7; 216])), None);
    }

    #[test]
    fn what_follows_the_addresses_is_part_of_the_header() {
        let block = [&[10, 0, 0, 1, 10, 0, 0, 2, 0, 1, 0, 2][..], &[0x03, 0, 4, 1, 2, 3, 4], &[0x20; 700]].concat();
        let length = u16::try_from(block.len()).unwrap();
        assert_eq!(said(&v2(0x21, 0x11, length, &block)), Some(route("10.0.0.1:1", "10.0.0.2:2")));
    }

    #[test]
    fn what_is_no_header_is_refused_as_soon_as_that_is_seen() {
        let long = [b"PROXY UNKNOWN ".as_slice(), &[b'x'; LONGEST_V1]].concat();
        for wrong in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"PROXX",
            b"\r\n\r\n\0\r\nQUIX",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n",
            b"PROXY TCP4 1.2.3.4 ::1 1 2\r\n",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n",
            b"PROXY TCP5 1.2.3.4 1.2.3.4 1 2\r\n",
            b"PROXY \r\n",
            b"PROXY TCP4 \xff\xff\r\n",
            &long,
            &v2(0x31, 0x11, 12, &[0; 12]),
            &v2(0x22, 0x11, 12, &[0; 12]),
            &v2(0x21, 0x41, 12, &[0; 12]),
            &v2(0x21, 0x12, 12, &[0; 12]),
            &v2(0x21, 0x11, 11, &[0; 11]),
            &v2(0x21, 0x11, 2033, &[]),
        ] {
            assert!(parse(wrong).is_err(), "{:?}", String::from_utf8_lossy(wrong));
        }
    }
}
