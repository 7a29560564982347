//! Servers of one process that find each other by names which no name server knows: those of a test or a fixture. Every
//! other name is looked up as always.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::agent::SystemLookups;
use crate::federation::discovery::dns::Srv;
use crate::federation::discovery::{Lookups, WellKnown};
use crate::locks::lock;

/// Which names delegate to where, as `/.well-known/matrix/server` would. Clones are the same names.
#[derive(Debug, Clone, Default)]
pub struct Neighbours(Arc<Mutex<BTreeMap<String, String>>>);

impl Neighbours {
    /// This host is served there, a host and a port.
    pub fn add(&self, host: &str, served_at: String) {
        lock(&self.0).insert(host.to_owned(), served_at);
    }

    fn of(&self, host: &str) -> Option<String> {
        lock(&self.0).get(host).cloned()
    }
}

/// Asks them first.
pub(super) struct NeighbourLookups {
    pub(super) neighbours: Neighbours,
    pub(super) others: SystemLookups,
}

impl Lookups for NeighbourLookups {
    fn well_known(&self, host: &str, within: Duration) -> WellKnown {
        match self.neighbours.of(host) {
            Some(to) => WellKnown::Delegates { to, max_age: None },
            None => self.others.well_known(host, within),
        }
    }

    fn srv(&self, name: &str, within: Duration) -> io::Result<Vec<Srv>> {
        self.others.srv(name, within)
    }

    fn addresses(&self, host: &str, within: Duration) -> io::Result<Vec<IpAddr>> {
        self.others.addresses(host, within)
    }

    fn cut(&self) {
        self.others.cut();
    }
}
