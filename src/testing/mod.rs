//! A real homeserver inside a test: real ports, real SQLite, real TLS between two of them, only the clock is ours.
//!
//! ```
//! use doorstep::TestServer;
//!
//! let server = TestServer::start();
//! let (alice, bob) = (server.user("alice"), server.user("bob"));
//! let room = alice.create_room();
//! bob.join(&room);
//! bob.send(&room, "pong");
//! assert_eq!(alice.next_message(&room), "pong");
//! ```
//!
//! Here: the server; `user`: a client of it; `certificates`: what two servers of a test trust each other by; `faults`:
//! what goes wrong because the test wants it to.

mod certificates;
mod end_to_end_keys;
mod faults;
mod user;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Clock;
use crate::config::{Config, Data, Registration, TlsFiles};
use crate::federation::{AnswerScript, Client};
use crate::http::{Certificate, ListenSpec, Service};
use crate::launch::Launched;
use crate::protocol::ServerName;
use crate::service::Homeserver;

use faults::{Faults, Watched};

pub use certificates::{Certificates, certificates};
pub use end_to_end_keys::{TestDeviceKeys, TestSigningKeys};
pub use faults::SeenRequest;
pub use user::{TestUser, segment};

/// A folder of its own under the system's temporary folder.
///
/// # Panics
/// If it cannot be made.
pub fn temporary_folder(what: &str) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    loop {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("doorstep-{what}-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        match std::fs::create_dir(&folder) {
            Ok(()) => return folder,
            // What a process left that had this one's id before.
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => panic!("{}: {e}", folder.display()),
        }
    }
}

/// A homeserver by itself: no listeners, nothing in the background, and no way to other servers, whose every request
/// fails at once without a look-up.
///
/// # Panics
/// If the database cannot be opened.
pub fn secluded(config: Config) -> Arc<Homeserver> {
    Homeserver::open_with(config, Clock::new(), |settings, key| Ok(Client::offline(settings, key)))
        .unwrap_or_else(|e| panic!("the homeserver did not open: {e}"))
}

/// A homeserver by itself, as [`secluded`], for which a script plays all other servers: it says byte by byte what
/// they answer.
///
/// # Panics
/// If the database cannot be opened.
pub fn scripted(config: Config, script: Arc<AnswerScript>) -> Arc<Homeserver> {
    Homeserver::open_with(config, Clock::new(), |settings, key| Ok(Client::to_script(settings, key, script)))
        .unwrap_or_else(|e| panic!("the homeserver did not open: {e}"))
}

/// A homeserver with a plain and a TLS port on loopback, an empty database in a temporary folder, open
/// registration and no rate limits. Stopped, and its data deleted, when dropped; a test that panics keeps the data
/// and says where it is.
pub struct TestServer {
    running: Option<Launched>,
    config: Config,
    clock: Clock,
    faults: Arc<Faults>,
    folder: PathBuf,
    url: String,
}

impl TestServer {
    /// Starts a server. Its name is `localhost:` and its TLS port.
    pub fn start() -> Self {
        Self::start_with(|_| {})
    }

    /// Starts a server whose settings were changed by the caller.
    pub fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let (plain, tls) = (bind(0), bind(0));
        let name = format!("localhost:{}", port(&tls));
        let files = certificates();
        let folder = temporary_folder("server");
        let mut config =
            Config::for_name(ServerName::parse(&name).expect("localhost and a port are a server name"));
        config.data = Data::Folder(folder.clone());
        config.durable = false;
        config.tls = Some(TlsFiles { cert: files.cert.clone(), key: files.key.clone() });
        config.trust_ca = vec![files.ca.clone()];
        config.registration = Registration::Open;
        config.rate_limits = false;
        config.allow_private_addresses = true;
        config.listen = vec![plain.local_addr().expect("a bound socket has an address")];
        config.listen_tls = vec![tls.local_addr().expect("a bound socket has an address")];
        config.public_url = format!("http://127.0.0.1:{}", port(&plain));
        change(&mut config);
        let url = config.public_url.clone();
        let clock = Clock::new();
        let faults = Arc::default();
        let running = Some(launch(&config, &clock, &faults, plain, tls));
        Self { running, config, clock, faults, folder, url }
    }

    /// A server that is named by its address, `127.0.0.1:` and its TLS port: one that a server ACL, which looks at no
    /// ports, can tell from the others.
    pub fn start_by_address() -> Self {
        Self::start_with(|config| {
            let name = config.server_name.as_str().replace("localhost", "127.0.0.1");
            config.server_name = ServerName::parse(&name).expect("an address and a port are a server name");
        })
    }

    /// Two servers that federate with each other.
    pub fn pair() -> (Self, Self) {
        (Self::start(), Self::start())
    }

    /// Base URL of the client-server API, plain HTTP.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The server name, the part behind the colon in user ids.
    pub fn name(&self) -> &str {
        self.config.server_name.as_str()
    }

    /// Where its numbers are, if its settings say that they are served.
    pub fn metrics_url(&self) -> Option<String> {
        let address = self.running.as_ref()?.metrics_addresses().first()?;
        Some(format!("http://{address}/metrics"))
    }

    /// The folder of its database.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The homeserver itself, for what no client can see.
    ///
    /// # Panics
    /// While the server is stopped.
    pub fn homeserver(&self) -> &Arc<Homeserver> {
        &self.running.as_ref().expect("the test server is running").homeserver
    }

    /// Registers an account of this localpart and logs it in.
    ///
    /// # Panics
    /// If the name is taken or not a localpart.
    pub fn user(&self, localpart: &str) -> TestUser {
        let made = self.homeserver().accounts().register_user(localpart, None);
        let (user_id, token) = made.unwrap_or_else(|e| panic!("register {localpart}: {e}"));
        TestUser::new(&self.url, user_id.as_str(), &token)
    }

    /// Moves this server's clock forward; what is due by then becomes due.
    pub fn advance(&self, by: Duration) {
        self.clock.advance(by);
        if let Some(running) = &self.running {
            running.homeserver.clock_moved();
        }
    }

    /// Stops the server; its ports refuse connections until `resume`.
    pub fn stop(&mut self) {
        self.running = None;
    }

    /// Starts a stopped server again on the same ports and the same data.
    pub fn resume(&mut self) {
        if self.running.is_none() {
            let (plain, tls) = (bind(self.config.listen[0].port()), bind(self.config.listen_tls[0].port()));
            self.running = Some(launch(&self.config, &self.clock, &self.faults, plain, tls));
        }
    }

    /// Stops and starts again: only what is on disk remains.
    pub fn restart(&mut self) {
        self.stop();
        self.resume();
    }
}

impl Drop for TestServer {
    #[allow(clippy::print_stderr, reason = "a failed test wants to know where its data is")]
    fn drop(&mut self) {
        self.running = None;
        if std::thread::panicking() {
            eprintln!("the data of {} is kept in {}", self.name(), self.folder.display());
        } else if let Err(e) = std::fs::remove_dir_all(&self.folder) {
            log::warn!("cannot delete {}: {e}", self.folder.display());
        }
    }
}

fn launch(
    config: &Config,
    clock: &Clock,
    faults: &Arc<Faults>,
    plain: TcpListener,
    tls: TcpListener,
) -> Launched {
    let certificate = config.tls.clone().map(Certificate::Files);
    let cuts = Arc::clone(faults);
    let way_out = |settings, key| {
        let client = Client::new(settings, key)?;
        Ok(client.cut_off_where(Box::new(move |server| cuts.is_cut_off(server))))
    };
    Homeserver::open_with(config.clone(), clock.clone(), way_out)
        .and_then(|homeserver| {
            let listeners = [ListenSpec::bound(plain, None)?, ListenSpec::bound(tls, certificate)?];
            let front = |router| Arc::new(Watched::new(router, Arc::clone(faults))) as Arc<dyn Service>;
            Launched::serve_through(homeserver, &listeners, front)
        })
        .unwrap_or_else(|e| panic!("the test server did not start: {e}"))
}

fn bind(port: u16) -> TcpListener {
    TcpListener::bind(("127.0.0.1", port)).unwrap_or_else(|e| panic!("no port on loopback: {e}"))
}

fn port(listener: &TcpListener) -> u16 {
    listener.local_addr().expect("a bound socket has an address").port()
}
