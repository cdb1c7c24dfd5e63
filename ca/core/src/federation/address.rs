//! Which addresses are on the public internet, so that nobody's endpoint leads us into our own network.
//!
//! Laws: an address is refused unless it may be a public host's; one that carries another (mapped, translated, 6to4) is
//! judged by the one it carries. Whoever connects, connects to the address that was judged and to no other (a name may
//! answer differently the next time).
//! Sources: the IANA special-purpose address registries for IPv4 and IPv6 (RFC 6890, RFC 8190); RFC 4291 §2.5.5
//! (mapped), RFC 6052 (NAT64), RFC 3056 (6to4).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Why `address` is not one of a public host; `None` when it may be.
pub fn not_public(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => v4(address),
        IpAddr::V6(address) => v6(address),
    }
}

const fn v4(address: Ipv4Addr) -> Option<&'static str> {
    Some(match address.octets() {
        [0, ..] => "this network (0.0.0.0/8)",
        [10, ..] | [192, 168, ..] | [172, 16..=31, ..] => "a private network",
        [100, 64..=127, ..] => "a provider's private network (100.64.0.0/10)",
        [127, ..] => "this machine (loopback)",
        [169, 254, ..] => "link-local, where clouds serve credentials",
        [192, 0, 0, _] => "reserved for protocols (192.0.0.0/24)",
        [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => "for documentation",
        [192, 88, 99, _] => "a 6to4 relay",
        [198, 18..=19, ..] => "for benchmarks (198.18.0.0/15)",
        [224..=239, ..] => "multicast",
        [240..=255, ..] => "reserved (240.0.0.0/4)",
        _ => return None,
    })
}

fn v6(address: Ipv6Addr) -> Option<&'static str> {
    let segments = address.segments();
    let carried = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        v4(Ipv4Addr::new(a, b, c, d))
    };
    match segments {
        [0, 0, 0, 0, 0, 0, 0, 0] => Some("the unspecified address"),
        [0, 0, 0, 0, 0, 0, 0, 1] => Some("this machine (loopback)"),
        // IPv4-mapped, IPv4-compatible, and behind the well-known prefix of NAT64.
        [0, 0, 0, 0, 0, 0xffff | 0, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => carried(high, low),
        [0x64, 0xff9b, 1, ..] => Some("behind a local NAT64"),
        [0x2002, high, low, ..] => carried(high, low),
        [0x100, 0, 0, 0, ..] => Some("for discarding (100::/64)"),
        [0x2001, 0, ..] => Some("a Teredo tunnel"),
        [0x2001, 0..=0x1ff, ..] => Some("reserved for protocols (2001::/23)"),
        [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => Some("for documentation"),
        [0x5f00, ..] => Some("for segment routing"),
        [0xfc00..=0xfdff, ..] => Some("a private network"),
        [0xfe80..=0xfebf, ..] => Some("link-local"),
        [0xfec0..=0xfeff, ..] => Some("site-local"),
        [0xff00..=0xffff, ..] => Some("multicast"),
        [0x2000..=0x3fff, ..] => None,
        _ => Some("not assigned to hosts"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> bool {
        not_public(text.parse().unwrap()).is_some()
    }

    #[test]
    fn every_way_of_spelling_this_machine_or_this_network_is_refused() {
        let inside = "127.0.0.1 127.255.255.254 0.0.0.0 0.1.2.3 10.0.0.1 172.16.0.1 172.31.255.255 192.168.1.1 \
                      169.254.169.254 100.64.0.1 100.127.255.255 192.0.0.1 192.0.2.1 198.18.0.1 198.19.255.255 \
                      198.51.100.7 203.0.113.7 224.0.0.1 239.1.1.1 240.0.0.1 255.255.255.255 192.88.99.1 \
                      :: ::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::127.0.0.1 64:ff9b::127.0.0.1 64:ff9b::a9fe:a9fe \
                      64:ff9b:1::1 2002:7f00:1:: 2002:a00:1:: 100::1 2001::1 2001:db8::1 3fff::1 5f00::1 fc00::1 \
                      fd12:3456::1 fe80::1 febf::1 fec0::1 ff02::1 4000::1 1::1";
        for text in inside.split_whitespace() {
            assert!(refused(text), "{text}");
        }
    }

    #[test]
    fn public_hosts_are_let_through_on_both_sides_of_every_border() {
        let outside = "1.1.1.1 9.255.255.255 11.0.0.1 100.63.255.255 100.128.0.1 126.255.255.255 128.0.0.1 \
                       169.253.255.255 169.255.0.1 172.15.255.255 172.32.0.1 192.0.1.1 192.167.255.255 192.169.0.1 \
                       198.17.255.255 198.20.0.1 223.255.255.255 2606:4700::1111 2a00:1450::1 2001:200::1 \
                       ::ffff:1.1.1.1 64:ff9b::101:101 2002:101:101::1 2000::1";
        for text in outside.split_whitespace() {
            assert!(!refused(text), "{text}");
        }
    }
}
