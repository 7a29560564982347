//! Where names lead, if the system's resolver is not to say so: a name server that others ask too shows a server as they
//! see it, and a detour as it will be once a name or a router leads there.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::HostPort;
use super::dns;
use crate::federation::connections::Connections;

/// Connections to this host and port go to that address instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Detour {
    host: String,
    port: u16,
    to: SocketAddr,
}

impl Detour {
    /// `host:port=address:port`. Errors end a sentence that begins with the value.
    pub fn parse(text: &str) -> Result<Self, String> {
        const WANTED: &str = "should be like matrix.example.org:443=127.0.0.1:8443";
        let (from, to) = text.split_once('=').ok_or(WANTED)?;
        let from = HostPort::parse(from).ok_or(WANTED)?;
        let (host, port) = (from.host.to_ascii_lowercase(), from.port.ok_or(WANTED)?);
        Ok(Self { host, port, to: to.parse().map_err(|_| WANTED)? })
    }
}

/// Where names lead. By default as the system says.
#[derive(Debug, Clone, Default)]
pub struct Names {
    detours: Arc<[Detour]>,
    name_server: Option<SocketAddr>,
}

impl Names {
    /// With these detours, and by this name server in place of the system's resolver if one is given.
    pub fn new(detours: Vec<Detour>, name_server: Option<SocketAddr>) -> Self {
        Self { detours: detours.into(), name_server }
    }

    /// Where a connection to this host and port goes instead, if it does.
    pub fn detour(&self, host: &str, port: u16) -> Option<SocketAddr> {
        let found =
            self.detours.iter().find(|detour| detour.port == port && detour.host.eq_ignore_ascii_case(host));
        found.map(|detour| detour.to)
    }

    /// The same for `host[:port]` of a homeserver.
    pub fn detour_of(&self, authority: &str) -> Option<SocketAddr> {
        let name = HostPort::parse(authority).filter(|_| !self.detours.is_empty())?;
        self.detour(name.host, name.port.unwrap_or(super::DEFAULT_PORT))
    }

    /// The addresses of a host.
    pub(in crate::federation) fn addresses(
        &self,
        connections: &Connections,
        host: &str,
        within: Duration,
    ) -> io::Result<Vec<IpAddr>> {
        let (Some(server), Err(_)) = (self.name_server, host.parse::<IpAddr>()) else {
            return dns::addresses(connections, host, within);
        };
        let host = host.to_owned();
        connections.wait_for(within, move || dns::ask_addresses(&host, &[server], within))
    }

    /// The SRV records of a name.
    pub(in crate::federation) fn srv(
        &self,
        connections: &Connections,
        name: &str,
        within: Duration,
    ) -> io::Result<Vec<dns::Srv>> {
        let (name, server) = (name.to_owned(), self.name_server);
        connections.wait_for(within, move || match server {
            Some(server) => dns::ask(&name, &[server], within),
            None => dns::srv(&name, within),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_detour_is_of_one_host_and_port_only() {
        let detours = ["Matrix.example.org:443=127.0.0.1:8443", "[::1]:8448=[::1]:9"];
        let names = Names::new(detours.map(|text| Detour::parse(text).expect(text)).into(), None);
        assert_eq!(names.detour("matrix.EXAMPLE.org", 443), "127.0.0.1:8443".parse().ok());
        assert_eq!(names.detour("matrix.example.org", 8448), None);
        assert_eq!(
            names.detour_of("[::1]"),
            "[::1]:9".parse().ok(),
            "8448 is the port of servers that name none"
        );
        assert_eq!(names.detour_of("example.org"), None);
        for wrong in ["", "a", "a=b", "a=127.0.0.1:1", "a:1=127.0.0.1", "a:0=127.0.0.1:1", "/:1=127.0.0.1:1"]
        {
            assert!(Detour::parse(wrong).is_err(), "{wrong}");
        }
    }
}
