//! Addresses of clients: which of them count as one, and whom a reverse proxy speaks for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Addresses that count as one: an IPv4 address, or a /64 of IPv6, which is what one host is usually given.
pub fn group(ip: IpAddr) -> IpAddr {
    masked(ip, 32, 64)
}

/// The network that an address is in, coarsely: a /16 of IPv4 or a /32 of IPv6, which is about what one provider is
/// given.
pub fn network(ip: IpAddr) -> IpAddr {
    masked(ip, 16, 32)
}

fn masked(ip: IpAddr, v4_bits: u32, v6_bits: u32) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(v4) => {
            IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & !u32::MAX.checked_shr(v4_bits).unwrap_or(0)))
        }
        IpAddr::V6(v6) if v6.is_loopback() => IpAddr::V6(v6),
        IpAddr::V6(v6) => {
            IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::MAX.checked_shr(v6_bits).unwrap_or(0)))
        }
    }
}

/// The networks in which reverse proxies are that are believed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustedProxies(Vec<(IpAddr, u32)>);

impl TrustedProxies {
    /// Reads networks such as `127.0.0.0/8,::1`. Errors end a sentence that begins with the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let network = |text: &str| {
            let (address, bits) = text.split_once('/').map_or((text, None), |(ip, bits)| (ip, Some(bits)));
            let address: IpAddr = address.parse().ok()?;
            let most = if address.is_ipv4() { 32 } else { 128 };
            let bits = bits.map_or(Some(most), |bits| bits.parse().ok()).filter(|bits| *bits <= most)?;
            Some((address, bits))
        };
        let wrong = "should be addresses or networks, such as 172.18.0.0/16 or 10.0.0.2,::1";
        let all: Option<Vec<_>> = text.split(',').map(str::trim).map(network).collect();
        let all = all.ok_or(wrong)?;
        if all.iter().any(|(_, bits)| *bits == 0) {
            return Err("would believe everybody: name the network that the proxy is in".into());
        }
        Ok(Self(all))
    }

    /// Whether a proxy at this address is believed.
    pub fn trusts(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.0.iter().any(|(network, bits)| match (network.to_canonical(), ip) {
            (IpAddr::V4(network), IpAddr::V4(ip)) => {
                // A network of IPv4 that is written as one of IPv6 has 96 bits in front.
                (network.to_bits() ^ ip.to_bits()).leading_zeros() >= *bits.min(&32)
            }
            (IpAddr::V6(network), IpAddr::V6(ip)) => {
                (network.to_bits() ^ ip.to_bits()).leading_zeros() >= *bits
            }
            _ => false,
        })
    }
}

/// Who asks: the other end of the socket, or the client that a reverse proxy speaks for which is believed. `forwarded`
/// are the values of all `X-Forwarded-For` headers, in the order sent.
///
/// A proxy adds the address that it was called from at the end, behind whatever its caller claimed: so only what
/// comes from one that is trusted is read at all, from the end, past further ones, up to the first address elsewhere.
/// Where the last word is no address nothing before it is believed either.
pub fn client<'h>(
    peer: IpAddr,
    proxies: &TrustedProxies,
    forwarded: impl DoubleEndedIterator<Item = &'h str>,
) -> IpAddr {
    let mut client = peer.to_canonical();
    let hops = forwarded.rev().flat_map(|header| header.rsplit(','));
    for hop in hops {
        if !proxies.trusts(client) {
            break;
        }
        let Some(address) = address_in(hop.trim()) else { break };
        client = address;
    }
    client
}

/// An address as proxies write it: bare, with a port, IPv6 in brackets or not.
fn address_in(hop: &str) -> Option<IpAddr> {
    let bracketed = || hop.strip_prefix('[')?.strip_suffix(']')?.parse::<Ipv6Addr>().ok().map(IpAddr::V6);
    let with_port = || hop.parse::<SocketAddr>().ok().map(|address| address.ip());
    let address = hop.parse().ok().or_else(bracketed).or_else(with_port)?;
    Some(address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(peer: &str, headers: &[&str]) -> String {
        seen_behind("127.0.0.0/8,::1", peer, headers)
    }

    fn seen_behind(proxies: &str, peer: &str, headers: &[&str]) -> String {
        let proxies = TrustedProxies::parse(proxies).unwrap();
        client(peer.parse().unwrap(), &proxies, headers.iter().copied()).to_string()
    }

    #[test]
    fn a_proxy_in_a_network_that_is_trusted_is_believed_and_no_other() {
        let networks = "172.18.0.0/16, 2001:db8::/32,192.0.2.1";
        assert_eq!(seen_behind(networks, "172.18.3.4", &["203.0.113.1, 198.51.100.7"]), "198.51.100.7");
        assert_eq!(seen_behind(networks, "::ffff:172.18.3.4", &["198.51.100.7"]), "198.51.100.7");
        assert_eq!(seen_behind(networks, "2001:db8:9::1", &["198.51.100.7, 192.0.2.1"]), "198.51.100.7");
        for peer in ["172.19.0.1", "192.0.2.2", "2001:db9::1", "127.0.0.1"] {
            assert_eq!(seen_behind(networks, peer, &["198.51.100.7"]), peer);
        }
        for wrong in
            ["", "x", "10.0.0.0/33", "::/129", "10.0.0.0/", "10.0.0.1,", "0.0.0.0/0", "::/0", "10.0.0.0-9"]
        {
            assert!(TrustedProxies::parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn only_the_last_hop_that_a_proxy_on_this_machine_added_counts() {
        assert_eq!(seen("127.0.0.1", &["192.0.2.7"]), "192.0.2.7");
        assert_eq!(seen("::1", &["192.0.2.7"]), "192.0.2.7");
        assert_eq!(seen("::ffff:127.0.0.1", &["192.0.2.7"]), "192.0.2.7");
        // What the client claimed itself stands before what the proxy saw, in one header or in several.
        assert_eq!(seen("127.0.0.1", &["203.0.113.1, 192.0.2.7"]), "192.0.2.7");
        assert_eq!(seen("127.0.0.1", &["203.0.113.1", "192.0.2.7"]), "192.0.2.7");
        assert_eq!(
            seen("127.0.0.1", &["203.0.113.1,198.51.100.1", "203.0.113.9 ,\t192.0.2.7 "]),
            "192.0.2.7"
        );
        // Two proxies on this machine, one behind the other.
        assert_eq!(seen("127.0.0.1", &["203.0.113.1, 192.0.2.7, 127.0.0.1"]), "192.0.2.7");
        assert_eq!(seen("127.0.0.1", &["192.0.2.7", "::1"]), "192.0.2.7");
    }

    #[test]
    fn who_is_not_on_this_machine_speaks_for_nobody_else() {
        for peer in ["198.51.100.2", "10.0.0.2", "192.168.1.2", "172.17.0.1", "2001:db8::2", "fe80::1"] {
            assert_eq!(seen(peer, &["192.0.2.7"]), peer);
        }
        assert_eq!(seen("::ffff:198.51.100.2", &["192.0.2.7"]), "198.51.100.2");
    }

    #[test]
    fn what_is_no_address_is_believed_no_more_than_what_stands_before_it() {
        for header in
            ["", " ", "unknown", "_hidden", "192.0.2.7,", "192.0.2.7, unknown", "999.1.1.1", "[::1", "1.2.3"]
        {
            assert_eq!(seen("127.0.0.1", &["203.0.113.1", header]), "127.0.0.1", "{header:?}");
        }
        assert_eq!(seen("127.0.0.1", &[]), "127.0.0.1");
    }

    #[test]
    fn addresses_are_read_in_every_form_that_proxies_write() {
        for (header, address) in [
            ("192.0.2.7:50123", "192.0.2.7"),
            ("2001:db8::7", "2001:db8::7"),
            ("[2001:db8::7]", "2001:db8::7"),
            ("[2001:db8::7]:443", "2001:db8::7"),
            ("2001:DB8:0:0::7", "2001:db8::7"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
            ("[::ffff:192.0.2.7]:80", "192.0.2.7"),
        ] {
            assert_eq!(seen("127.0.0.1", &[header]), address, "{header}");
        }
    }

    #[test]
    fn an_ipv6_host_counts_by_its_network() {
        let group = |ip: &str| group(ip.parse().unwrap()).to_string();
        assert_eq!(group("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(group("::ffff:192.0.2.7"), "192.0.2.7");
        assert_eq!(group("::1"), "::1");
        let network = |ip: &str| network(ip.parse().unwrap()).to_string();
        assert_eq!(network("2001:db8:1:2:3:4:5:6"), "2001:db8::");
        assert_eq!(network("192.0.2.7"), "192.0.0.0");
    }
}
