//! How a server is set up. `SETTINGS` has a row for each setting, `Settings` is what the operator gives (flags of
//! `doorstep serve`, keys of the configuration file), and `Config` is what that means after it was checked.
//!
//! Here: what is in force; `table`: the rows; `checks`: what their values have to be; `amounts`: sizes and times as people
//! write them; `appservices`: registrations of application services; `secret_file`: secrets in files; `settings`: flags, file and the help, made of the rows.

mod amounts;
mod appservices;
mod checks;
mod secret_file;
mod settings;
mod table;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use crate::address::TrustedProxies;
use crate::clock::Millis;
use crate::error::{Error, Result};
use crate::federation::Names;
use crate::order;
use crate::protocol::appservice;
use crate::protocol::certificates::acme::is_certifiable;
use crate::protocol::room_version::RoomVersion;
use crate::protocol::rooms::server_acl::ServerAcl;
use crate::protocol::{ServerName, UserId};

pub use amounts::bytes;
pub use settings::{Settings, nearest};
pub use table::{Check, Kind, SETTINGS, Setting, Usual};

/// Who may make an account by themselves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Registration {
    /// Everybody who can reach the server.
    Open,
    /// Who has a registration token.
    #[default]
    Token,
    /// Nobody; accounts are made on the command line or with the shared secret.
    Closed,
}

/// Where the database is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Data {
    /// A folder on disk, everything durable.
    Folder(PathBuf),
    /// Nowhere: gone when the server stops.
    #[default]
    Memory,
}

/// The certificate files of the HTTPS listeners.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// Certificate chain, PEM.
    pub cert: PathBuf,
    /// Private key, PEM.
    pub key: PathBuf,
}

/// How the certificate of the HTTPS listeners is got from an authority (ACME).
#[derive(Debug, Clone, Default)]
pub struct AcmeSettings {
    /// Whether it is.
    pub is_on: bool,
    /// What it is for, in lower case.
    pub names: Vec<String>,
    /// Whom the authority may write to.
    pub contact: Option<String>,
    /// The address of its directory.
    pub directory: String,
    /// What it knows a customer by, where it has only such: a key identifier, and the file with the key.
    pub external_account: Option<(String, PathBuf)>,
    /// Extra root certificates for it, PEM files.
    pub trust_ca: Vec<PathBuf>,
}

/// Somebody whom users of this server may turn to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SupportContact {
    /// By Matrix.
    User(UserId),
    /// By e-mail.
    Email(String),
}

/// Names that one certificate is for, at most: so many Let's Encrypt takes.
const ACME_NAMES_MAX: usize = 100;

/// Checked settings. Its `Default` is a blank for [`SETTINGS`] to fill, and stays in here.
#[derive(Clone, Default)]
pub struct Config {
    /// This server's name.
    pub server_name: ServerName,
    /// Where the database is.
    pub data: Data,
    /// Plain HTTP addresses.
    pub listen: Vec<SocketAddr>,
    /// HTTPS addresses.
    pub listen_tls: Vec<SocketAddr>,
    /// Certificate of the HTTPS listeners; present if there are any, unless there is `acme`.
    pub tls: Option<TlsFiles>,
    /// How that certificate is got without such files, if it is.
    pub acme: AcmeSettings,
    /// Extra root certificates for outgoing federation, PEM files.
    pub trust_ca: Vec<PathBuf>,
    /// Who may register.
    pub registration: Registration,
    /// Whether anybody gets an account as a guest, with which they may do little.
    pub guests: bool,
    /// Shared secret of `/_synapse/admin/v1/register`; the endpoint does not exist without one.
    pub registration_secret: Option<String>,
    /// The TURN servers that clients are told of, as `turn:` URIs; none without a secret.
    pub turn_uris: Vec<String>,
    /// The secret that is shared with them.
    pub turn_secret: Option<String>,
    /// For how many seconds a client may use them with what it is told.
    pub turn_ttl_s: usize,
    /// Version of new rooms.
    pub default_room_version: RoomVersion,
    /// What clients are told in `/.well-known/matrix/client`; without trailing slash.
    pub public_url: String,
    /// The application services, none of which has the id or the `as_token` of another.
    pub appservices: Vec<appservice::Registration>,
    /// Servers to ask for others' keys.
    pub notaries: Vec<ServerName>,
    /// Which servers we talk to. What others relay of the rest is taken in like anything else, and their published keys
    /// are asked for, since rooms would fall apart otherwise.
    pub peers: ServerAcl,
    /// Most connections at once, for the client API and for federation each.
    pub max_connections: usize,
    /// Most knocks upon one room within an hour; 0: no limit.
    pub knocks_per_hour: usize,
    /// Most knocks upon one room that wait for an answer; 0: no limit.
    pub knocks_waiting: usize,
    /// Whether users whose knock is accepted are joined by this server, where they have not said themselves.
    pub join_on_accepted_knock: bool,
    /// The largest file that a user may upload, and that is fetched from another server, in bytes.
    pub media_max_upload: u64,
    /// What the files of one user may come to, in bytes; 0: no limit.
    pub media_per_user: u64,
    /// What the files that were fetched from other servers may come to, in bytes.
    pub media_cache_bytes: u64,
    /// After so many days without being asked for, what was fetched goes; 0: never.
    pub media_cache_days: u32,
    /// So much of the disk with the data folder no file of media takes, in bytes.
    pub media_keep_free: u64,
    /// Where backups go that are made by themselves; none: none are.
    pub backup_to: Option<PathBuf>,
    /// How long after one the next is made.
    pub backup_every_ms: Millis,
    /// How many of them are kept; 0: all.
    pub backup_keep: usize,
    /// Whether pages that users link to are fetched for previews.
    pub url_previews: bool,
    /// Whether what was acknowledged survives a power cut; only throw-away servers do without.
    pub durable: bool,
    /// Whether it is told, and taken in, who is at a client.
    pub presence: bool,
    /// Whether every account of this server can be found by its name, and not only by who shares a room with it or could.
    pub user_directory_of_all: bool,
    /// Where clients get the tokens for LiveKit, by which they speak in calls; none: there is none for them.
    pub livekit_service_url: Option<String>,
    /// Whether hashing a password costs next to nothing, as it may where there is nothing to guess: in tests. No setting.
    pub cheap_passwords: bool,
    /// Whether requests are limited in rate.
    pub rate_limits: bool,
    /// Whether federation and push may connect to loopback and private ranges.
    pub allow_private_addresses: bool,
    /// Which reverse proxies are believed when they say for whom they ask.
    pub trusted_proxies: TrustedProxies,
    /// Whom users may turn to, as clients show it: `/.well-known/matrix/support`.
    pub support_contacts: Vec<SupportContact>,
    /// The page where they find help.
    pub support_page: Option<String>,
    /// Where numbers are served for Prometheus; empty: nowhere, and nothing is counted.
    pub metrics: Vec<SocketAddr>,
    /// Where some names lead, if not the system's resolver is to say so: for `doorstep check` and for tests.
    pub names: Names,
    /// Whether everybody's push rules are with those that make a call ring (MSC4075).
    pub call_rules: bool,
}

impl Config {
    /// The defaults for a server of this name, in memory, listening nowhere: what a test starts from.
    pub fn for_name(server_name: ServerName) -> Self {
        let mut config = Self::blank();
        for setting in SETTINGS {
            if let Usual::Value(usual) = setting.usual {
                let applied = setting.apply(&mut config, usual);
                debug_assert!(applied.is_ok(), "--{}: {applied:?}", setting.flag);
            }
        }
        let public_url = format!("https://{server_name}");
        Self { server_name, public_url, data: Data::Memory, ..config }
    }

    /// Sets what this flag of [`SETTINGS`] sets. Errors: what the value should be.
    pub fn set(&mut self, flag: &str, value: &str) -> std::result::Result<(), String> {
        let setting = SETTINGS.iter().find(|setting| setting.flag == flag);
        setting.ok_or_else(|| format!("there is no setting {flag}"))?.apply(self, value)
    }

    /// Checks the settings. Errors say which setting is wrong, in the words of who gave it.
    pub fn from_settings(settings: Settings) -> Result<Self> {
        let mut config = Self::blank();
        for setting in SETTINGS {
            let mut is_given = false;
            for (value, name) in settings.of(setting) {
                is_given = true;
                setting
                    .apply(&mut config, value)
                    .map_err(|e| Error::invalid_param(format!("{name}: {e}")))?;
            }
            if let (false, Usual::Value(usual)) = (is_given, &setting.usual) {
                setting.apply(&mut config, usual).map_err(Error::invalid_param)?;
            }
        }
        config.complete(&settings)?;
        Ok(config)
    }

    /// Before any setting: what no setting says is as a server of its own needs it.
    fn blank() -> Self {
        Self { durable: true, ..Self::default() }
    }

    /// What follows from several settings together.
    fn complete(&mut self, settings: &Settings) -> Result<()> {
        if self.listen.is_empty() && self.listen_tls.is_empty() {
            self.listen = vec![SocketAddr::from(([127, 0, 0, 1], 8008))];
        }
        let [cert, key] = ["tls-cert", "tls-key"].map(|flag| settings.all(flag).next());
        self.tls = match (cert, key) {
            (Some(cert), Some(key)) => Some(TlsFiles { cert: cert.into(), key: key.into() }),
            (None, None) if self.listen_tls.is_empty() || self.acme.is_on => None,
            _ => {
                let needs = "--listen-tls needs both --tls-cert and --tls-key, or --acme";
                return Err(Error::invalid_param(needs));
            }
        };
        if self.public_url.is_empty() {
            let url = self.url_on_this_machine();
            self.public_url = url.unwrap_or_else(|| format!("https://{}", self.server_name));
        }
        self.complete_acme()?;
        for service in &self.appservices {
            appservice::Appservice::new(service.clone(), &self.server_name).map_err(|_| {
                let (name, id) = (&service.sender_localpart, &service.id);
                Error::invalid_param(format!(
                    "--appservice: {id:?}: sender_localpart: {name:?} is too long for a name of this server"
                ))
            })?;
        }
        if self.turn_uris.is_empty() != self.turn_secret.is_none() {
            return Err(Error::invalid_param("--turn-uri and --turn-secret need each other"));
        }
        let [allowed, denied] = ["allow-server", "deny-server"]
            .map(|flag| settings.all(flag).map(str::to_owned).collect::<Vec<_>>());
        self.peers = ServerAcl::from_lists(&allowed, &denied);
        Ok(())
    }

    /// What the certificate is for, and whether everything is there that it takes to get one.
    fn complete_acme(&mut self) -> Result<()> {
        let refuse = |why: &str| Err(Error::invalid_param(why.to_owned()));
        if !self.acme.is_on {
            return Ok(());
        }
        if self.tls.is_some() {
            return refuse("--acme stands in place of --tls-cert and --tls-key: leave one of both out");
        }
        if self.listen_tls.is_empty() {
            return refuse("--acme needs --listen-tls, as in --listen-tls :443 --listen-tls :8448");
        }
        if self.data == Data::Memory {
            return refuse("--acme needs a data folder, to keep its certificate across a restart");
        }
        if self.acme.names.is_empty() {
            let url = self.public_url.strip_prefix("https://").unwrap_or_default();
            let authority = url.split('/').next().unwrap_or_default();
            let host = authority.split(':').next().unwrap_or_default();
            let names = [self.server_name.host(), host].map(str::to_ascii_lowercase);
            // An authority of one's own may give one for this machine.
            let is_own = self.acme.directory != table::LETS_ENCRYPT;
            let may_be = |name: &str| is_certifiable(name) && (is_own || !is_local_host(name));
            self.acme.names.extend(names.into_iter().filter(|name| may_be(name)));
            if !may_be(&self.server_name.host().to_ascii_lowercase()) {
                return refuse(
                    "--acme needs a --name of the DNS, or one in --acme-name: there is no certificate for \
                    an address, nor for localhost",
                );
            }
        }
        order::sort(&mut self.acme.names);
        self.acme.names.dedup();
        if self.acme.names.len() > ACME_NAMES_MAX {
            return refuse("--acme-name: a certificate can be for a hundred names at most");
        }
        Ok(())
    }
}

/// Whether a host is this machine whoever asks, so that nobody else can find a server of this name.
pub fn is_local_host(host: &str) -> bool {
    let host = host.to_ascii_lowercase();
    let is_loopback = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    host == "localhost" || host.ends_with(".localhost") || is_loopback
}

impl Config {
    /// Whether the server's name is one of this machine only.
    pub fn has_local_name(&self) -> bool {
        is_local_host(self.server_name.host())
    }

    /// Where clients find a server whose name nobody else knows: at its plain listener if there is one, since its
    /// certificate, if it has any, is one of its own making, and the port in its name is where other servers call.
    fn url_on_this_machine(&self) -> Option<String> {
        if !self.has_local_name() {
            return None;
        }
        let host = self.server_name.host().to_ascii_lowercase();
        match (self.listen.first(), self.listen_tls.first()) {
            (Some(plain), _) => Some(format!("http://{}", reachable(*plain))),
            (None, Some(tls)) => Some(format!("https://{host}:{}", tls.port())),
            (None, None) => None,
        }
    }
}

/// An address to connect to for one that is listened on: every address of this machine is one of loopback too.
pub fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

#[cfg(test)]
mod tests {
    use argh::FromArgs;

    use super::*;

    fn config(args: &[&str]) -> Result<Config> {
        let settings = Settings::from_args(&["serve"], args).map_err(|e| Error::invalid_param(e.output))?;
        Config::from_settings(settings.with_file()?)
    }

    #[test]
    fn a_server_without_any_flag_listens_on_loopback_and_keeps_a_folder() {
        let config = config(&[]).unwrap();
        assert_eq!(config.server_name.as_str(), "localhost:8448");
        assert_eq!(config.listen, ["127.0.0.1:8008".parse().unwrap()]);
        assert_eq!(config.data, Data::Folder("doorstep-data".into()));
        assert_eq!(config.registration, Registration::Token);
        assert!(config.rate_limits && !config.allow_private_addresses);
        assert_eq!(config.public_url, "http://127.0.0.1:8008", "clients are told where it really is");
    }

    #[test]
    fn a_server_with_a_name_of_its_own_is_told_to_clients_by_that_name() {
        assert_eq!(config(&["--name", "example.org"]).unwrap().public_url, "https://example.org");
        let told = config(&["--public-url", "https://matrix.example.org/"]).unwrap().public_url;
        assert_eq!(told, "https://matrix.example.org");
    }

    #[test]
    fn a_local_name_sends_clients_to_the_plain_listener_and_never_to_another_port_than_is_served() {
        let told = |args: &[&str]| config(args).unwrap().public_url;
        let tls = ["--listen-tls", "127.0.0.1:8443", "--tls-cert", "c", "--tls-key", "k"];
        let both = [&tls[..], &["--listen", "0.0.0.0:8008"]].concat();
        for name in ["localhost:8448", "localhost", "127.0.0.1:8448", "[::1]:8448", "a.localhost"] {
            let named = |args: &[&str]| told(&[&["--name", name], args].concat());
            assert_eq!(named(&both), "http://127.0.0.1:8008", "{name}");
            assert_eq!(named(&["--listen", "[::]:8008"]), "http://[::1]:8008", "{name}");
            let host = name.trim_end_matches(":8448").to_lowercase();
            assert_eq!(named(&tls), format!("https://{host}:8443"), "{name}");
            assert_eq!(
                named(&[&both[..], &["--public-url", "https://x.example"]].concat()),
                "https://x.example"
            );
        }
        for name in ["example.org", "localhost.example.org", "192.0.2.1"] {
            let url = told(&[&["--name", name], &both[..]].concat());
            assert_eq!(url, format!("https://{name}"));
        }
    }

    #[test]
    fn flags_win_over_the_configuration_file() {
        let path = std::env::temp_dir().join(format!("doorstep-config-{}.toml", std::process::id()));
        std::fs::write(
            &path,
            "name = \"file.example\"\nregistration = \"open\"\nlisten = [\"127.0.0.1:1\"]\n",
        )
        .unwrap();
        let config = config(&["--config", path.to_str().unwrap(), "--name", "flag.example"]).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(config.server_name.as_str(), "flag.example");
        assert_eq!(config.registration, Registration::Open);
        assert_eq!(config.listen, ["127.0.0.1:1".parse().unwrap()]);
    }

    #[test]
    fn the_limits_of_knocks_can_be_set_and_switched_off() {
        let limits = |args: &[&str]| {
            let config = config(args).unwrap();
            (config.knocks_per_hour, config.knocks_waiting)
        };
        assert_eq!(limits(&[]), (100, 100));
        assert_eq!(limits(&["--knocks-per-hour", "0", "--knocks-waiting", "7"]), (0, 7));
        assert_eq!(limits(&["--knocks-waiting", "99999999"]), (100, 10_000));
    }

    #[test]
    fn a_secret_in_a_file_is_that_of_the_file_without_the_end_of_its_line() {
        let folder = crate::testing::temporary_folder("secret");
        let secret = |text: &[u8], flags: &[&str]| {
            let file = folder.join("secret");
            std::fs::write(&file, text).unwrap();
            config(&[&["--registration-secret-file", file.to_str().unwrap()], flags].concat())
                .map(|config| config.registration_secret.unwrap())
        };
        assert_eq!(secret(b"s3cret\n", &[]).unwrap(), "s3cret");
        assert_eq!(secret(b" two words \r\n", &[]).unwrap(), " two words ");
        for (text, flags, told) in [
            (&b""[..], &[][..], "has no secret"),
            (b"\n", &[], "has no secret"),
            (b"\xff\xfe", &[], "cannot be read"),
            (&[b'a'; 5000], &[], "more than a secret"),
            (b"one", &["--registration-secret", "two"], "one secret too many"),
        ] {
            let e = secret(text, flags).unwrap_err();
            assert!(e.message().contains(told) && e.message().contains("--registration-secret-file"), "{e}");
            assert!(!e.message().contains("two\"") && !e.message().contains("aaaa"), "{e}");
        }
        let e = config(&["--registration-secret-file", "/nowhere/at/all"]).err().unwrap();
        assert!(e.message().contains("cannot be read"), "{e}");
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn sizes_are_written_as_people_write_them() {
        let upload = |text: &str| config(&["--media-max-upload", text]).map(|config| config.media_max_upload);
        for (text, bytes) in [
            ("100M", 100 << 20),
            ("1G", 1 << 30),
            ("64k", 64 << 10),
            ("64 KiB", 64 << 10),
            ("2mb", 2 << 20),
            ("5000", 5000),
        ] {
            assert_eq!(upload(text).unwrap(), bytes, "{text}");
        }
        for wrong in ["", "M", "-1M", "1.5G", "1T2", "much", "99999999999999999999", "99999999999G"] {
            let e = upload(wrong).expect_err(wrong);
            assert!(e.message().contains("--media-max-upload"), "{e}");
        }
        assert_eq!(upload("0").unwrap(), 0, "nobody uploads anything");
        let cache = |text: &str| config(&["--media-cache-size", text]).unwrap().media_cache_bytes;
        assert_eq!((cache("1G"), cache("0")), (1 << 30, u64::MAX));
    }

    #[test]
    fn times_are_written_as_people_write_them() {
        let every = |text: &str| config(&["--backup-every", text]).map(|config| config.backup_every_ms);
        for (text, minutes) in [("1m", 1), ("30 m", 30), ("6h", 360), ("1d", 1440), ("2w", 20_160)] {
            assert_eq!(every(text).unwrap(), minutes * 60_000, "{text}");
        }
        for wrong in ["", "d", "0d", "1", "1y", "-1d", "+1d", "1.5h", "9999999999d", "soon"] {
            let e = every(wrong).expect_err(wrong);
            assert!(e.message().contains("--backup-every"), "{e}");
        }
        assert_eq!(config(&[]).unwrap().backup_to, None);
    }

    #[test]
    fn each_default_is_taken_in_and_is_what_the_servers_of_tests_have_too() {
        let name = ServerName::parse("localhost:8448").unwrap();
        let (test, usual) = (Config::for_name(name), config(&[]).unwrap());
        assert_eq!(usual.max_connections, 4096);
        assert!(usual.presence && usual.durable && test.presence && test.durable);
        assert_eq!(test.default_room_version.id, "12");
        assert_eq!((test.data, test.listen.len()), (Data::Memory, 0));
        assert_eq!(test.public_url, "https://localhost:8448");
        assert!(test.peers.allows("anybody.example") && usual.peers.allows("anybody.example"));
        assert_eq!(
            (usual.knocks_per_hour, usual.knocks_waiting),
            (test.knocks_per_hour, test.knocks_waiting)
        );
    }

    /// The configuration from a file with this text and these flags.
    fn from_file(text: &str, flags: &[&str]) -> Result<Config> {
        static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("doorstep-{}-{number}.toml", std::process::id()));
        std::fs::write(&path, text).unwrap();
        let config = config(&[&["--config", path.to_str().unwrap()], flags].concat());
        std::fs::remove_file(&path).unwrap();
        config
    }

    #[test]
    fn every_setting_can_stand_in_the_file() {
        let text = "name = \"a.example\"\ndata = \":memory:\"\nlisten = [\"8008\", \"[::1]:1\"]\nlisten_tls = [\"2\"]\n\
            tls_cert = \"c\"\ntls_key = \"k\"\ntrust_ca = [\"ca\"]\nregistration = \"closed\"\n\
            registration_secret = \"s\"\ndefault_room_version = \"9\"\npublic_url = \"http://x/\"\n\
            notary = [\"n.example\"]\ndeny_server = [\"*.bad\"]\nallow_server = [\"*\"]\nmax_connections = 9\n\
            knocks_per_hour = 1\nknocks_waiting = 2\njoin_on_accepted_knock = true\nmedia_max_upload = \"7M\"\nmedia_per_user = \"2G\"\n\
            media_cache_size = \"3G\"\nmedia_cache_days = 9\nmedia_keep_free = \"1G\"\nbackup_to = \"b\"\nbackup_every = \"6h\"\nbackup_keep = 3\nurl_previews = true\nno_presence = true\ncall_rules = true\n\
            user_directory = \"all\"\nlivekit_service_url = \"https://l.example\"\nno_rate_limits = true\n\
            allow_private_addresses = true\ntrust_proxy = \"10.0.0.1\"\nsupport_contact = [\"a@b.example\"]\n\
            support_page = \"https://s.example/\"\n\
            appservice = []\nacme = false\nacme_name = [\"A.example\"]\nacme_contact = \"a@b.example\"\nacme_eab = \"kid:f\"\n\
            acme_directory = \"https://d.example/dir\"\nacme_ca = [\"r\"]\n\
            guests = true\nmetrics = \"[::1]:9\"\nturn_uri = [\"turn:t\"]\nturn_secret = \"t\"\nturn_ttl = 7\n";
        for setting in SETTINGS.iter().filter_map(Setting::key) {
            // It stands instead of the secret.
            let elsewhere = setting == "registration_secret_file";
            assert!(elsewhere || text.contains(&format!("{setting} = ")), "{setting}");
        }
        let e = from_file("registration_secret_file = \"/nowhere/at/all\"\n", &[]).err().unwrap();
        assert!(e.message().contains("/nowhere/at/all") && e.message().contains("cannot be read"), "{e}");
        let e = from_file("appservice = [\"/nowhere/at/all\"]\n", &[]).err().unwrap();
        assert!(e.message().contains("/nowhere/at/all") && e.message().contains("cannot be read"), "{e}");
        let config = from_file(text, &[]).unwrap();
        assert_eq!((config.server_name.as_str(), config.data), ("a.example", Data::Memory));
        assert_eq!((config.listen.len(), config.listen_tls[0].port()), (2, 2));
        assert_eq!(config.tls.unwrap().key, PathBuf::from("k"));
        assert_eq!((config.trust_ca, config.registration), (vec!["ca".into()], Registration::Closed));
        assert_eq!((config.registration_secret.as_deref(), config.default_room_version.id), (Some("s"), "9"));
        assert_eq!((config.public_url.as_str(), config.notaries.len()), ("http://x", 1));
        assert!(!config.peers.allows("a.bad") && config.peers.allows("a.good"));
        assert_eq!((config.max_connections, config.knocks_per_hour, config.knocks_waiting), (9, 1, 2));
        assert_eq!(config.livekit_service_url.as_deref(), Some("https://l.example"));
        assert!(config.user_directory_of_all);
        assert_eq!((config.media_max_upload, config.media_per_user), (7 << 20, 2 << 30));
        assert_eq!((config.media_cache_bytes, config.media_cache_days), (3 << 30, 9));
        assert_eq!(config.media_keep_free, 1 << 30);
        assert_eq!(
            (config.backup_to, config.backup_every_ms, config.backup_keep),
            (Some("b".into()), 21_600_000, 3)
        );
        assert!(config.url_previews);
        assert!(!config.presence && !config.rate_limits && config.allow_private_addresses);
        assert!(config.join_on_accepted_knock && config.call_rules && config.guests);
        assert!(!config.acme.is_on && config.acme.directory == "https://d.example/dir");
        assert_eq!(
            (config.acme.names, config.acme.trust_ca),
            (vec!["a.example".to_owned()], vec!["r".into()])
        );
        assert_eq!(config.acme.contact.as_deref(), Some("a@b.example"));
        assert_eq!(config.acme.external_account, Some(("kid".to_owned(), "f".into())));
        assert_eq!((config.turn_uris.as_slice(), config.turn_ttl_s), (["turn:t".to_owned()].as_slice(), 7));
        assert!(from_file(text, &[]).is_ok() && from_file("turn_secret = \"t\"", &[]).is_err());
        assert!(from_file("turn_uri = [\"http:t\"]\nturn_secret = \"t\"", &[]).is_err());
        assert!(from_file("no_presence = false", &[]).unwrap().presence);
        assert!(!from_file("no_presence = false", &["--no-presence"]).unwrap().presence);
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said_with_the_key_and_what_is_wanted() {
        for (text, told) in [
            ("lisen = []", "lisen. Did you mean listen?"),
            ("listen-tls = []", "listen-tls. Did you mean listen_tls?"),
            ("config = \"x\"", "config"),
            ("flavour = 1", "flavour"),
            ("listen = \"8008\"", "listen: it should be a list of texts"),
            ("listen = [8008]", "listen: it should be a list of texts"),
            ("name = 5", "name: it should be text"),
            ("max_connections = \"9\"", "max_connections: it should be a whole number"),
            ("max_connections = -1", "max_connections: it should be a whole number"),
            ("max_connections = 1.5", "max_connections: it should be a whole number"),
            ("no_presence = \"yes\"", "no_presence: it should be true or false"),
            ("[name]\nx = 1", "name: it should be text"),
            ("name = \"a.example\"\nname = \"b.example\"", "name"),
            ("name", "is not TOML"),
            (
                "registration = \"maybe\"",
                "registration = \"maybe\" in the configuration file: should be open",
            ),
        ] {
            let e = from_file(text, &[]).err().unwrap_or_else(|| panic!("{text:?} is taken"));
            assert!(e.message().contains(told), "{text:?}: {}", e.message());
        }
        // A flag does not hide what is wrong in the file.
        assert!(from_file("name = 5", &["--name", "a.example"]).is_err());
        let secret = from_file("registration_secret = 12345", &[]).err().unwrap();
        assert!(!secret.message().contains("12345"), "{secret}");
    }

    #[test]
    fn a_certificate_is_got_for_the_name_and_where_clients_go_unless_names_are_given() {
        let names = |args: &[&str]| {
            config(&[&["--acme", "--listen-tls", "1"], args].concat()).map(|config| config.acme.names)
        };
        assert_eq!(names(&["--name", "example.org:8448"]).unwrap(), ["example.org"]);
        let apart = ["--name", "example.org", "--public-url", "https://m.example.org:8443/x"];
        assert_eq!(names(&apart).unwrap(), ["example.org", "m.example.org"]);
        let given = [&apart[..], &["--acme-name", "b.example", "--acme-name", "A.example"]].concat();
        assert_eq!(names(&given).unwrap(), ["a.example", "b.example"]);
        let usual = config(&["--acme", "--listen-tls", "1", "--name", "a.example"]).unwrap().acme;
        assert_eq!(usual.directory, "https://acme-v02.api.letsencrypt.org/directory");
        assert!(usual.contact.is_none() && usual.trust_ca.is_empty());

        for (args, told) in [
            (&["--acme"][..], "--listen-tls"),
            (&["--acme", "--listen-tls", "1", "--data", ":memory:"], "data folder"),
            (&["--acme", "--listen-tls", "1", "--tls-cert", "c", "--tls-key", "k"], "leave one"),
            (&["--acme", "--listen-tls", "1", "--tls-cert", "c"], "--tls-key"),
            (&["--acme", "--listen-tls", "1", "--name", "192.0.2.1"], "--acme-name"),
            (&["--acme", "--listen-tls", "1", "--name", "[::1]:8448"], "--acme-name"),
            (&["--acme", "--listen-tls", "1"], "nor for localhost"),
            (&["--name", "Example.ORG"], "write example.org"),
            (&["--name", ""], "should be this server's name"),
            (&["--trust-proxy", "0.0.0.0/0"], "everybody"),
            (&["--acme-name", "*.example.org"], "no pattern"),
            (&["--acme-name", "example.org:443"], "no port"),
            (&["--acme-contact", "nobody"], "e-mail"),
            (&["--acme-contact", "a@b?subject=x"], "e-mail"),
            (&["--acme-directory", "http://a.example/"], "https"),
            (&["--acme-eab", "kid"], "key identifier"),
            (&["--acme-eab", ":file"], "key identifier"),
            (&["--acme-eab", "kid:"], "key identifier"),
            (&["--acme-directory", "https:///dir"], "https"),
            (&["--listen-tls", "1"], "--acme"),
        ] {
            let e = config(args).err().unwrap_or_else(|| panic!("{args:?} is taken"));
            assert!(e.message().contains(told), "{args:?}: {e}");
        }
    }

    #[test]
    fn a_wrong_setting_is_named_in_the_error() {
        let e = config(&["--registration", "maybe"]).err().unwrap();
        assert!(e.message().contains("--registration") && e.message().contains("maybe"), "{e}");
        let e = config(&["--listen-tls", "127.0.0.1:0"]).err().unwrap();
        assert!(e.message().contains("--tls-cert"), "{e}");
    }
}
