//! What happens: one `Homeserver`, and its verbs in one file a subject. A verb gathers (network), judges
//! (protocol) and commits (store), in that order. No HTTP types here.

pub mod notifier;
pub mod random;
pub mod room_plan;

use std::sync::Arc;

use self::notifier::Notifier;
use crate::clock::Clock;
use crate::config::Config;
use crate::error::Result;
use crate::protocol::{ServerName, UserId};

/// A running homeserver without its listeners. Shared as `Arc<Homeserver>` by every thread.
pub struct Homeserver {
    /// Checked settings.
    pub config: Config,
    /// The one clock.
    pub clock: Clock,
    /// Who waits for news.
    pub notifier: Notifier,
}

impl Homeserver {
    /// Opens the database and everything that hangs on it. Nothing runs in the background yet.
    pub fn open(config: Config, clock: Clock) -> Result<Arc<Self>> {
        Ok(Arc::new(Self { config, clock, notifier: Notifier::new() }))
    }

    /// This server's name.
    pub fn server_name(&self) -> &ServerName {
        &self.config.server_name
    }

    /// Whether this user id belongs to this server (whether or not there is such an account).
    pub fn is_ours(&self, user: &UserId) -> bool {
        user.server_name() == self.config.server_name.as_str()
    }
}
