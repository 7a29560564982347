//! Which addresses outgoing requests may connect to. Server names come from strangers: without this guard anybody
//! could have this server knock at the doors of its own network. The guard judges the addresses that are really
//! connected to, after every name was resolved, so a name that changes its mind in between gains nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The judgement, with its one setting.
#[derive(Debug, Clone, Copy)]
pub struct AddressGuard {
    /// Let everything pass except what can never be a server (unspecified, multicast, broadcast): for tests and
    /// closed networks.
    pub allow_private: bool,
}

impl AddressGuard {
    /// Whether a request may go to this address.
    pub fn allows(self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => self.allows_v4(v4),
            IpAddr::V6(v6) => match embedded_v4(v6) {
                Some(v4) => self.allows_v4(v4),
                None => self.allows_v6(v6),
            },
        }
    }

    fn allows_v4(self, ip: Ipv4Addr) -> bool {
        if ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast() {
            return false;
        }
        self.allow_private || is_global_v4(ip)
    }

    fn allows_v6(self, ip: Ipv6Addr) -> bool {
        if ip.is_unspecified() || ip.is_multicast() {
            return false;
        }
        self.allow_private || is_global_v6(ip)
    }
}

/// The IPv4 address that a packet to this IPv6 address ends at: `::ffff:0:0/96` (mapped) and the well-known
/// prefix of NAT64, `64:ff9b::/96`, through which networks without IPv4 reach the rest.
fn embedded_v4(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    match ip.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            Some(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)))
        }
        _ => None,
    }
}

/// Not in the IANA registry of special-purpose IPv4 addresses.
fn is_global_v4(ip: Ipv4Addr) -> bool {
    match ip.octets() {
        // This network, private, loopback, link-local.
        [0 | 10 | 127, ..] | [169, 254, ..] | [192, 168, ..] => false,
        [172, second, ..] if second & 0xf0 == 16 => false,
        // Shared address space of carriers (CGNAT).
        [100, second, ..] if second & 0xc0 == 64 => false,
        // Protocol assignments, documentation, 6to4 relays, benchmarks.
        [192, 0, 0 | 2, _] | [192, 88, 99, _] | [198, 18 | 19, ..] | [198, 51, 100, _] | [203, 0, 113, _] => {
            false
        }
        // Multicast, reserved, broadcast.
        [224..=255, ..] => false,
        _ => true,
    }
}

/// Global unicast (`2000::/3`) without its special parts. Everything else (loopback, unique local, link-local,
/// site-local, discard, local NAT64 prefixes, multicast) is outside `2000::/3`.
fn is_global_v6(ip: Ipv6Addr) -> bool {
    match ip.segments() {
        [first, ..] if first & 0xe000 != 0x2000 => false,
        // IETF protocol assignments `2001::/23` (Teredo, benchmarks, ORCHID …) and documentation.
        [0x2001, second, ..] => second >= 0x200 && second != 0xdb8,
        // 6to4, and the newer documentation prefix `3fff::/20`.
        [0x2002, ..] => false,
        [0x3fff, second, ..] => second >= 0x1000,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn public(text: &str) -> bool {
        AddressGuard { allow_private: false }.allows(text.parse().expect("an address"))
    }

    #[test]
    fn addresses_of_the_inside_are_refused() {
        for inside in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.9.9",
            "198.51.100.7",
            "203.0.113.7",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::7f00:1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:10::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "3fff::1",
            "fc00::1",
            "fd12::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!public(inside), "{inside} should be refused");
        }
    }

    #[test]
    fn addresses_of_the_outside_are_allowed() {
        for outside in [
            "1.1.1.1",
            "100.63.0.1",
            "100.128.0.1",
            "172.15.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "198.20.0.1",
            "223.255.255.255",
            "::ffff:1.1.1.1",
            "64:ff9b::101:101",
            "2001:4860:4860::8888",
            "2606:4700::1111",
            "2a00::1",
        ] {
            assert!(public(outside), "{outside} should be allowed");
        }
    }

    #[test]
    fn a_closed_network_may_use_private_addresses_but_never_multicast() {
        let open = AddressGuard { allow_private: true };
        assert!(open.allows("127.0.0.1".parse().expect("an address")));
        assert!(open.allows("fd00::1".parse().expect("an address")));
        assert!(!open.allows("224.0.0.1".parse().expect("an address")));
        assert!(!open.allows("::ffff:224.0.0.1".parse().expect("an address")));
        assert!(!open.allows("0.0.0.0".parse().expect("an address")));
    }
}
