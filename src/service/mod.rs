//! What happens: one `Homeserver`, and its verbs in one file a subject. A verb gathers (network), judges
//! (protocol) and commits (store), in that order. No HTTP types here.

pub mod account_data;
pub mod accounts;
pub mod client_format;
pub mod directory;
pub mod filters;
pub mod login;
pub mod notifier;
pub mod push_rules;
pub mod random;
pub mod room_plan;
pub mod room_view;
pub mod timeline;

use std::sync::Arc;

use self::notifier::Notifier;
use crate::clock::Clock;
use crate::config::{Config, Data};
use crate::error::Result;
use crate::protocol::{ServerName, UserId};
use crate::store::{Location, Options, Store};

/// A running homeserver without its listeners. Shared as `Arc<Homeserver>` by every thread.
pub struct Homeserver {
    /// Checked settings.
    pub config: Config,
    /// The one clock.
    pub clock: Clock,
    /// Who waits for news.
    pub notifier: Arc<Notifier>,
    /// The database.
    pub store: Store,
}

impl Homeserver {
    /// Opens the database and everything that hangs on it. Nothing runs in the background yet.
    pub fn open(config: Config, clock: Clock) -> Result<Arc<Self>> {
        let notifier = Arc::new(Notifier::new());
        let store = {
            let location = match &config.data {
                Data::Folder(folder) => Location::Folder(folder.clone()),
                Data::Memory => Location::Memory,
            };
            let options = Options { durable: config.durable, ..Options::default() };
            let notifier = Arc::clone(&notifier);
            let on_commit = move |changes: &crate::store::Changes| {
                notifier.publish(changes.position, &changes.users);
            };
            Store::open(location, &config.server_name, Box::new(on_commit), &options)?
        };
        Ok(Arc::new(Self { config, clock, notifier, store }))
    }

    /// Starts the threads that work without being asked: the sender and the scheduler.
    pub fn start_background(self: &Arc<Self>) -> Result<()> {
        Ok(())
    }

    /// Ends those threads and every wait. What they had left to do is in the database.
    pub fn stop_background(&self) {
        self.notifier.stop();
    }

    /// Tells whoever sleeps until a time of the wall clock that it has been moved (tests advance it).
    pub fn clock_moved(&self) {}

    /// This server's name.
    pub fn server_name(&self) -> &ServerName {
        &self.config.server_name
    }

    /// Whether this user id belongs to this server (whether or not there is such an account).
    pub fn is_ours(&self, user: &UserId) -> bool {
        user.server_name() == self.config.server_name.as_str()
    }
}
