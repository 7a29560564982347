//! No way out: for a homeserver that is asked many things and must not ask anybody, nor any name server.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

use crate::federation::discovery::dns::Srv;
use crate::federation::discovery::{Lookups, WellKnown};

/// A world in which nobody has an address.
#[derive(Debug, Clone, Copy)]
pub(super) struct Offline;

fn nobody() -> io::Error {
    io::Error::other("this server reaches nobody")
}

impl Lookups for Offline {
    fn well_known(&self, _: &str, _: Duration) -> WellKnown {
        WellKnown::Failed
    }

    fn srv(&self, _: &str, _: Duration) -> io::Result<Vec<Srv>> {
        Err(nobody())
    }

    fn addresses(&self, _: &str, _: Duration) -> io::Result<Vec<IpAddr>> {
        Err(nobody())
    }
}

/// Also for addresses that are spelled out, which need no look-up.
impl Resolver for Offline {
    fn resolve(&self, _: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        Err(ureq::Error::Io(nobody()))
    }
}
