//! How other servers stand with us: who does not take what we owe them, since when, and when they are tried next.

use serde::Serialize;

use crate::clock::Millis;
use crate::protocol::ServerName;
use crate::service::admin::Admin;

/// A server that did not take our last transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FailingServer {
    /// Which.
    pub server_name: ServerName,
    /// When it failed first since it took one.
    pub since_ms: Millis,
    /// How often it failed since.
    pub failures: u32,
    /// When it is tried next, unless it speaks to us before.
    pub next_try_ms: Millis,
}

impl Admin<'_> {
    /// The servers that are behind, those first that are for longest.
    pub fn failing_servers(&self) -> Vec<FailingServer> {
        let failing = self.outgoing.failing().into_iter().map(|(server_name, kept)| FailingServer {
            server_name,
            since_ms: kept.failing_since_ms,
            failures: kept.failures,
            next_try_ms: kept.retry_ms,
        });
        let mut failing: Vec<FailingServer> = failing.collect();
        failing.sort_by(|a, b| (a.since_ms, &a.server_name).cmp(&(b.since_ms, &b.server_name)));
        failing
    }
}
