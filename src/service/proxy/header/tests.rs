//! Tests of the PROXY header parser, and of the headers that the proxy writes.

use super::*;

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

fn v2(command: u8, family: u8, length: u16, block: &[u8]) -> Vec<u8> {
    [SIGNATURE, &[command, family], &length.to_be_bytes(), block].concat()
}

fn route(source: &str, destination: &str) -> Route {
    Route { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
}

/// Parses a complete PROXY header. Asserts that every shorter prefix is incomplete, and that the
/// bytes after the header do not change the result.
fn said(header: &[u8]) -> Option<Route> {
    let head = parse(header).unwrap().unwrap();
    for part in 0..head.length {
        assert!(parse(&header[..part]).unwrap().is_none(), "{part} bytes are not enough");
    }
    assert_eq!(head.length + head.rest, header.len());
    assert_eq!(parse(&[header, b"PROXY \r\n"].concat()).unwrap().unwrap(), head);
    head.route
}

/// The parser understands every PROXY header that the proxy writes.
#[test]
fn written_headers_parse_back_from_any_parts() {
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

/// The proxy writes PROXY headers with exactly the bytes that the specification requires.
#[test]
fn written_headers_match_the_specification() {
    let four = route("[::ffff:192.0.2.1]:1234", "198.51.100.7:80");
    assert_eq!(
        announce(HeaderVersion::V1, Some(four)),
        b"PROXY TCP4 192.0.2.1 198.51.100.7 1234 80\r\n"
    );
    let block = [
        192,
        0,
        2,
        1,
        198,
        51,
        100,
        7,
        1234_u16.to_be_bytes()[0],
        1234_u16.to_be_bytes()[1],
        0,
        80,
    ];
    assert_eq!(announce(HeaderVersion::V2, Some(four)), v2(0x21, 0x11, 12, &block));
    let mixed = route("[2001:db8::1]:1", "198.51.100.7:2");
    assert_eq!(
        announce(HeaderVersion::V1, Some(mixed)),
        b"PROXY TCP6 2001:db8::1 ::ffff:198.51.100.7 1 2\r\n"
    );
    assert_eq!(announce(HeaderVersion::V1, None), b"PROXY UNKNOWN\r\n");
    assert_eq!(announce(HeaderVersion::V2, None), v2(0x21, 0, 0, &[]));
    assert_eq!(own(HeaderVersion::V2), v2(0x20, 0, 0, &[]));
}

/// The parser accepts headers without a usable client address: UNKNOWN, LOCAL, and Unix sockets.
#[test]
fn headers_without_client_addresses_are_skipped() {
    assert_eq!(said(b"PROXY UNKNOWN\r\n"), None);
    assert_eq!(said(b"PROXY UNKNOWN ffff::1 anything at all, and  more \r\n"), None);
    assert_eq!(said(&v2(0x20, 0x11, 3, &[1, 2, 3])), None);
    assert_eq!(said(&v2(0x20, 0xff, 0, &[])), None);
    assert_eq!(said(&v2(0x21, 0, 5, &[0; 5])), None);
    assert_eq!(said(&v2(0x21, 0x31, 216, &[7; 216])), None);
}

/// Additional fields (TLVs) after the addresses belong to the header.
#[test]
fn additions_after_the_addresses_belong_to_the_header() {
    let block =
        [&[10, 0, 0, 1, 10, 0, 0, 2, 0, 1, 0, 2][..], &[0x03, 0, 4, 1, 2, 3, 4], &[0x20; 700]]
            .concat();
    let length = u16::try_from(block.len()).unwrap();
    assert_eq!(said(&v2(0x21, 0x11, length, &block)), Some(route("10.0.0.1:1", "10.0.0.2:2")));
}

/// A header may have as many bytes of additional fields (TLVs) as its length field allows.
#[test]
fn additions_may_fill_the_whole_length() {
    let block = [10, 0, 0, 1, 10, 0, 0, 2, 0, 1, 0, 2];
    for length in [2_036, 4_000, u16::MAX] {
        let additions = vec![0xee; usize::from(length) - block.len()];
        let header = v2(0x21, 0x11, length, &[&block[..], &additions].concat());
        assert_eq!(said(&header), Some(route("10.0.0.1:1", "10.0.0.2:2")));
        assert_eq!(said(&v2(0x20, 0, length, &vec![0xee; usize::from(length)])), None);
        assert_eq!(said(&v2(0x21, 0, length, &vec![0xee; usize::from(length)])), None);
    }
}

/// nginx sends headers in which one address is IPv4 and the other IPv6. Such a header is valid if
/// the address family that it names fits one of the two addresses.
#[test]
fn the_two_addresses_of_a_line_may_be_of_two_families() {
    for (line, source, destination) in [
        ("TCP6 2001:db8::1 192.0.2.7 1234 443", "[2001:db8::1]:1234", "192.0.2.7:443"),
        ("TCP6 192.0.2.7 2001:db8::1 1234 443", "192.0.2.7:1234", "[2001:db8::1]:443"),
        ("TCP4 192.0.2.7 2001:db8::1 1234 443", "192.0.2.7:1234", "[2001:db8::1]:443"),
        ("TCP6 ::ffff:192.0.2.7 ::1 0 65535", "[::ffff:192.0.2.7]:0", "[::1]:65535"),
    ] {
        assert_eq!(
            said(format!("PROXY {line}\r\n").as_bytes()),
            Some(route(source, destination)),
            "{line}"
        );
    }
}

/// The parser rejects a malformed header at once, without waiting for more bytes.
#[test]
fn a_malformed_header_is_refused_at_once() {
    let long = [b"PROXY UNKNOWN ".as_slice(), &[b'x'; LONGEST_V1]].concat();
    for wrong in [
        &b"GET / HTTP/1.1\r\n"[..],
        b"PROXX",
        b"\r\n\r\n\0\r\nQUIX",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 +2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3\r\n",
        b"PROXY TCP4  1.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY TCP4 ::1 ::1 1 2\r\n",
        b"PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n",
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
        &v2(0x21, 0x13, 12, &[0; 12]),
        &v2(0x21, 0x31, 215, &[0; 215]),
    ] {
        assert!(parse(wrong).is_err(), "{:?}", String::from_utf8_lossy(wrong));
    }
}
