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
//! What users see is looked at with [`TestUser::events`], [`TestUser::knocks`] and [`TestUser::invites`], and waited for with
//! [`TestUser::wait_for`] and [`TestUser::wait_for_membership`]: no test needs to sleep. What does not come fails at the line
//! of the test, with the room's timeline and what the server was asked last. How long is waited is set by
//! [`TestServer::set_patience`], and on a slow machine by `DOORSTEP_TEST_PATIENCE=60` in the environment. Clients under test
//! are given [`TestServer::url`] and [`TestUser::token`].
//!
//! # In asynchronous tests
//!
//! All of this blocks its thread, and what is tested runs on the same runtime, perhaps on the same thread: so it belongs on a
//! thread of its own, as with tokio's `spawn_blocking`.
//!
//! ```
//! # mod tokio {
//! #     pub mod task {
//! #         pub async fn spawn_blocking<T>(f: impl FnOnce() -> T) -> Result<T, ()> { Ok(f()) }
//! #     }
//! #     pub fn spawn(_: impl Future<Output = ()>) {}
//! # }
//! # async fn bot(_: String, _: String) {}
//! use doorstep::TestServer;
//! use tokio::task::spawn_blocking;
//!
//! // #[tokio::test]
//! async fn the_bot_answers_whoever_calls_it() {
//!     let server = spawn_blocking(TestServer::start).await.unwrap();
//!     let (alice, robot) = (server.user("alice"), server.user("robot"));
//!     tokio::spawn(bot(server.url().to_owned(), robot.token().to_owned()));
//!     let answer = spawn_blocking(move || {
//!         let room = alice.room_with(&[&robot], &["!ping"]);
//!         alice.wait_for(&room, |event| event["sender"] == robot.id() && event["type"] == "m.room.message")
//!     });
//!     assert_eq!(answer.await.unwrap()["content"]["body"], "pong");
//! }
//! # drop(the_bot_answers_whoever_calls_it());
//! ```
//!
//! Here: the server; `user`: a client of it; `waiting`: what a user sees and waits for, and what a failure says; `patience`:
//! for how long; `certificates`: what two servers of a test trust each other by; `folders`: where data is; `ports`: what a
//! stopped server keeps; `faults`: what goes wrong because the test wants it to.

mod certificates;
mod end_to_end_keys;
mod faults;
mod folders;
mod patience;
mod ports;
mod user;
mod waiting;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::config::{Config, Data, Registration};
use crate::error::{Error, Result, reason};
use crate::federation::{AnswerScript, Client, Neighbours};
use crate::http::{Certificate, ListenSpec, Service};
use crate::launch::Launched;
use crate::protocol::{ServerName, UserId};
use crate::service::Homeserver;

use faults::{Faults, Watched};
use patience::Patience;

pub use certificates::{Certificates, PemCertificates, certificates, pem_certificates};
pub use end_to_end_keys::{TestDeviceKeys, TestSigningKeys};
pub use faults::SeenRequest;
pub use folders::temporary_folder;
pub use patience::patience;
pub use ports::hold_port;
pub use user::{TestUser, segment};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Deletes what processes left that were killed while they began to keep a database in memory.
pub fn sweep_memory() {
    crate::store::sweep_memory();
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
/// registration, no rate limits and cheap password hashes. Stopped, and its data deleted, when dropped, or at the end of the
/// process if it is in a `static`; a test that panics keeps the data for a day and says where it is.
pub struct TestServer {
    running: Option<Launched>,
    /// The last launch of a server in memory, until the next one has its data.
    stopped: Option<Launched>,
    /// Its ports, while it is stopped.
    held: Option<[TcpListener; 2]>,
    config: Config,
    clock: Clock,
    faults: Arc<Faults>,
    patience: Patience,
    neighbours: Neighbours,
    /// Empty: the data is in memory.
    folder: PathBuf,
    url: String,
}

/// Where and as what a test's server is, where that is not as usual.
pub struct Placement {
    /// Whether nothing of it is on the disk; it outlives `restart` all the same.
    pub in_memory: bool,
    /// Its name; none: `localhost:` and its TLS port.
    pub name: Option<ServerName>,
    /// The port of the client-server API; 0: any free one.
    pub port: u16,
    /// Where that port is: loopback, or every address of the machine.
    pub address: IpAddr,
    /// The servers that find it by its name, if that has no port.
    pub neighbours: Neighbours,
}

impl Default for Placement {
    fn default() -> Self {
        let (name, address) = (None, IpAddr::V4(Ipv4Addr::LOCALHOST));
        Self { in_memory: false, name, port: 0, address, neighbours: Neighbours::default() }
    }
}

impl TestServer {
    /// Starts a server. Its name is `localhost:` and its TLS port.
    ///
    /// ```
    /// let server = doorstep::TestServer::start();
    /// assert!(server.name().starts_with("localhost:"));
    /// ```
    ///
    /// # Panics
    /// If there is no port, or no folder for temporary files.
    #[track_caller]
    pub fn start() -> Self {
        Self::start_with(|_| {})
    }

    /// Starts a server whose settings were changed by the caller.
    ///
    /// ```
    /// let server = doorstep::TestServer::start_with(|config| config.knocks_per_hour = 1);
    /// ```
    ///
    /// A bridge or a bot is registered with it; its `as_token` is the token of a user:
    ///
    /// ```
    /// use doorstep::protocol::appservice::Registration;
    /// use doorstep::testing::TestUser;
    ///
    /// let file = "id: irc\nurl: null\nas_token: secret\nhs_token: other\nsender_localpart: ircbot\n";
    /// let irc = Registration::parse(file).unwrap();
    /// let server = doorstep::TestServer::start_with(|config| config.appservices.push(irc));
    /// let bot = TestUser::new(server.url(), &format!("@ircbot:{}", server.name()), "secret");
    /// bot.send(&bot.create_room(), "I am the bridge");
    /// ```
    ///
    /// # Panics
    /// As [`Self::start`], and if it does not start with these settings.
    #[track_caller]
    pub fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        match Self::start_at(Placement::default(), change) {
            Ok(server) => server,
            Err(e) => panic!("the test server did not start: {e}"),
        }
    }

    /// The same somewhere else. Errors: a port that is taken; a name that nobody could reach it by.
    ///
    /// ```
    /// use doorstep::testing::Placement;
    ///
    /// let place = Placement { in_memory: true, ..Placement::default() };
    /// let server = doorstep::TestServer::start_at(place, |_| {}).unwrap();
    /// assert_eq!(server.folder().as_os_str(), "");
    /// ```
    pub fn start_at(at: Placement, change: impl FnOnce(&mut Config)) -> Result<Self> {
        let plain = bind((at.address, at.port).into())?;
        let tls = bind((LOOPBACK, at.name.as_ref().map_or(Ok(0), port_in_name)?).into())?;
        let tls_port = port(&tls);
        let name = match at.name {
            Some(name) => name,
            None => ServerName::parse(&format!("localhost:{tls_port}"))?,
        };
        if name.port().is_none() {
            at.neighbours.add(name.host(), format!("localhost:{tls_port}"));
        }
        let mut config = Config::for_name(name);
        let folder = if at.in_memory { PathBuf::new() } else { folders::folder_until_the_end("server") };
        config.data = if at.in_memory { Data::Memory } else { Data::Folder(folder.clone()) };
        config.durable = false;
        config.registration = Registration::Open;
        config.rate_limits = false;
        config.cheap_passwords = true;
        config.allow_private_addresses = true;
        config.listen = vec![plain.local_addr()?];
        config.listen_tls = vec![tls.local_addr()?];
        // Where it is, whatever address it is to tell its clients.
        let url = format!("http://127.0.0.1:{}", port(&plain));
        config.public_url.clone_from(&url);
        change(&mut config);
        let mut server = Self {
            running: None,
            stopped: None,
            held: None,
            config,
            clock: Clock::new(),
            faults: Arc::default(),
            patience: Patience::default(),
            neighbours: at.neighbours,
            folder,
            url,
        };
        server.running = Some(server.launch(plain, tls)?);
        Ok(server)
    }

    /// A server that is named by its address, `127.0.0.1:` and its TLS port: one that a server ACL, which looks at no
    /// ports, can tell from the others.
    ///
    /// ```
    /// let server = doorstep::TestServer::start_by_address();
    /// assert!(server.name().starts_with("127.0.0.1:"));
    /// ```
    #[track_caller]
    pub fn start_by_address() -> Self {
        Self::start_with(|config| {
            let name = config.server_name.as_str().replace("localhost", "127.0.0.1");
            config.server_name = ServerName::parse(&name).expect("an address and a port are a server name");
        })
    }

    /// Two servers that federate with each other.
    ///
    /// ```
    /// let (here, there) = doorstep::TestServer::pair();
    /// let (alice, bob) = (here.user("alice"), there.user("bob"));
    /// let room = alice.create_room();
    /// bob.join_via(&room, &[here.name()]);
    /// bob.send(&room, "hello from over there");
    /// assert_eq!(alice.next_message(&room), "hello from over there");
    /// ```
    #[track_caller]
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

    /// Where other servers reach it: HTTPS, with a certificate of [`pem_certificates`].
    pub fn federation_url(&self) -> String {
        format!("https://localhost:{}", self.config.listen_tls[0].port())
    }

    /// The folder of its database; an empty path if that is in memory.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The homeserver itself, for what no client can see.
    ///
    /// # Panics
    /// While the server is stopped.
    #[track_caller]
    pub fn homeserver(&self) -> &Arc<Homeserver> {
        &self.running.as_ref().expect("the test server is running").homeserver
    }

    /// Registers an account of this localpart and logs it in.
    ///
    /// ```
    /// let server = doorstep::TestServer::start();
    /// assert_eq!(server.user("alice").id(), format!("@alice:{}", server.name()));
    /// ```
    ///
    /// # Panics
    /// If the name is taken or not a localpart.
    #[track_caller]
    pub fn user(&self, localpart: &str) -> TestUser {
        match self.homeserver().accounts().register_user(localpart, None) {
            Ok((user_id, token)) => self.client(user_id.as_str(), &token),
            Err(e) => panic!("register {localpart}: {e}"),
        }
    }

    /// A user on another device, which is logged in by this: a client of its own, that has seen nothing yet.
    ///
    /// ```
    /// let server = doorstep::TestServer::start();
    /// let alice = server.user("alice");
    /// let phone = server.device_of(&alice, "PHONE");
    /// let room = phone.create_room();
    /// alice.wait_for_room("join", &room);
    /// assert_ne!(alice.device_id(), phone.device_id());
    /// ```
    ///
    /// # Panics
    /// If the user is none of this server's.
    #[track_caller]
    pub fn device_of(&self, user: &TestUser, device_id: &str) -> TestUser {
        let homeserver = self.homeserver();
        let own = UserId::parse(user.id()).ok().filter(|id| homeserver.is_local(id));
        let Some(own) = own else { panic!("{} is no user of {}", user.id(), self.name()) };
        match homeserver.accounts().log_in(&own, Some(device_id), Some(device_id), false) {
            Ok(login) => self.client(user.id(), &login.access_token),
            Err(e) => panic!("log {} in at {}: {e}", user.id(), self.name()),
        }
    }

    /// How long this server's users wait for what must come before the test fails: thirty seconds, unless this says
    /// otherwise. On a slow machine, `DOORSTEP_TEST_PATIENCE` in the environment is the least number of seconds for all.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let server = doorstep::TestServer::start();
    /// server.set_patience(Duration::from_secs(2));
    /// ```
    pub fn set_patience(&self, patience: Duration) {
        self.patience.set(patience);
    }

    #[track_caller]
    fn client(&self, user_id: &str, token: &str) -> TestUser {
        TestUser::new(&self.url, user_id, token).of(&self.patience, &self.faults)
    }

    /// The full id of a user of this server, who may be named by the localpart. Errors: there is no such account.
    pub fn account(&self, name: &str) -> Result<UserId> {
        let id = if name.starts_with('@') { name.to_owned() } else { format!("@{name}:{}", self.name()) };
        let user = UserId::parse(&id)?;
        let account = self.homeserver().store.read(|db| db.account(&user))?;
        account.map(|_| user).ok_or_else(|| Error::not_found(format!("There is no account {id}")))
    }

    /// Moves this server's clock forward; what is due by then becomes due.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let server = doorstep::TestServer::start();
    /// server.advance(Duration::from_secs(24 * 3600));
    /// ```
    ///
    /// # Panics
    /// If it would stand more than a hundred thousand years ahead.
    #[track_caller]
    pub fn advance(&self, by: Duration) {
        assert!(self.try_advance(by), "the clock of {} cannot be moved so far ahead", self.name());
    }

    /// The same for who goes on without it. False: that is too far, and the clock stands where it stood.
    pub fn try_advance(&self, by: Duration) -> bool {
        let moved = self.clock.try_advance(by);
        if let Some(running) = self.running.as_ref().filter(|_| moved) {
            running.homeserver.clock_moved();
        }
        moved
    }

    /// Sets this server's clock so many milliseconds wrong, as the machine's would be set: no time passes by that, and nobody is
    /// told. With 0 it is right again, but for what it was advanced by.
    ///
    /// ```
    /// let server = doorstep::TestServer::start();
    /// server.set_clock_wrong_by(3 * 3_600_000);
    /// server.set_clock_wrong_by(0);
    /// ```
    pub fn set_clock_wrong_by(&self, ms: i64) {
        self.clock.set_wrong_by(ms);
    }

    /// Stops the server; its ports refuse connections until `resume`.
    ///
    /// ```
    /// let (here, mut there) = doorstep::TestServer::pair();
    /// let (alice, bob) = (here.user("alice"), there.user("bob"));
    /// let room = alice.room_with(&[&bob], &[]);
    /// there.stop();
    /// alice.send(&room, "are you there?");
    /// there.resume();
    /// assert_eq!(bob.next_message(&room), "are you there?");
    /// ```
    pub fn stop(&mut self) {
        let Some(running) = self.running.take() else { return };
        running.stop();
        if self.config.data == Data::Memory {
            self.stopped = Some(running);
        }
        let [plain, tls] = [self.config.listen[0], self.config.listen_tls[0]].map(ports::hold_port);
        // Without them it is as everywhere: they are asked for again.
        self.held = plain.and_then(|plain| Ok([plain, tls?])).ok();
    }

    /// Changes the settings that a stopped server is started with again.
    pub fn change(&mut self, change: impl FnOnce(&mut Config)) {
        change(&mut self.config);
    }

    /// Starts a stopped server again on the same ports and the same data.
    ///
    /// # Panics
    /// If it does not start.
    #[track_caller]
    pub fn resume(&mut self) {
        if let Err(e) = self.try_resume() {
            panic!("the test server did not start: {e}");
        }
    }

    /// The same for who goes on without it. Errors: a port that somebody else has taken meanwhile.
    pub fn try_resume(&mut self) -> Result<()> {
        if self.running.is_none() {
            let places = [self.config.listen[0], self.config.listen_tls[0]];
            let is_there = |held: &[TcpListener; 2]| {
                held.iter().zip(places).all(|(held, at)| held.local_addr().is_ok_and(|held| held == at))
            };
            let [plain, tls] = match self.held.take().filter(is_there) {
                Some(held) => held,
                None => [bind(places[0])?, bind(places[1])?],
            };
            self.running = Some(self.launch(plain, tls)?);
            self.stopped = None;
        }
        Ok(())
    }

    /// Whether it is not stopped.
    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Stops and starts again: only what is on disk remains.
    ///
    /// ```
    /// let mut server = doorstep::TestServer::start();
    /// let alice = server.user("alice");
    /// let room = alice.room_with(&[], &["still here?"]);
    /// server.restart();
    /// alice.wait_for(&room, |event| event["content"]["body"] == "still here?");
    /// ```
    #[track_caller]
    pub fn restart(&mut self) {
        self.stop();
        self.resume();
    }
}

impl TestServer {
    fn launch(&self, plain: TcpListener, tls: TcpListener) -> Result<Launched> {
        let pem = pem_certificates();
        let (cuts, neighbours) = (Arc::clone(&self.faults), self.neighbours.clone());
        let way_out = |settings, key| {
            let client = Client::among(settings, key, neighbours, &pem.ca)?;
            Ok(client.cut_off_where(Box::new(move |server| cuts.is_cut_off(server))))
        };
        let before = self.stopped.as_ref().map(|launched| &*launched.homeserver);
        let homeserver = Homeserver::open_after(before, self.config.clone(), self.clock.clone(), way_out)?;
        let own = || Certificate::Pem { chain: pem.chain.clone(), key: pem.key.clone() };
        let certificate = Launched::certificate(&homeserver)?.unwrap_or_else(own);
        let listeners = [ListenSpec::bound(plain, None)?, ListenSpec::bound(tls, Some(certificate))?];
        let front = |router| Arc::new(Watched::new(router, Arc::clone(&self.faults))) as Arc<dyn Service>;
        Launched::serve_through(homeserver, &listeners, front)
    }
}

impl Drop for TestServer {
    #[allow(clippy::print_stderr, reason = "a failed test wants to know where its data is")]
    fn drop(&mut self) {
        self.running = None;
        if self.folder.as_os_str().is_empty() {
            return;
        }
        if std::thread::panicking() {
            folders::keep(&self.folder);
            eprintln!("the data of {} is kept in {} for a day", self.name(), self.folder.display());
        } else {
            folders::delete(&self.folder);
        }
    }
}

/// Where a server of this name has to listen for other servers: at its port, if it names one. Errors: nobody would look
/// for that here.
fn port_in_name(name: &ServerName) -> Result<u16> {
    match name.port() {
        None => Ok(0),
        Some(port) if matches!(name.host(), "localhost" | "127.0.0.1") => Ok(port),
        Some(_) => Err(Error::invalid_param(format!(
            "A server of the name {name} would be looked for elsewhere: without a port it is found here"
        ))),
    }
}

fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address)
        .map_err(|e| Error::invalid_param(format!("Cannot listen on {address}: {}", reason(&e))))
}

fn port(listener: &TcpListener) -> u16 {
    listener.local_addr().map_or(0, |address| address.port())
}
