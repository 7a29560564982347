//! Every setting once. `Settings` is at the same time the flags of `doorstep serve` and the keys of the
//! configuration file (the same names with `_`); `Config` is what they mean after they were checked.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;

use argh::FromArgs;
use serde::Deserialize;

use crate::error::{Error, Result};
use crate::protocol::room_version::{self, RoomVersion};
use crate::protocol::server_acl::ServerAcl;
use crate::protocol::{ServerName, UserId};

/// Runs the homeserver.
#[derive(FromArgs, Deserialize, Default, Debug, Clone)]
#[argh(subcommand, name = "serve")]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// configuration file (TOML) with the same names as these flags, `_` for `-`; flags win
    #[argh(option)]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// server name, the part behind the colon in user ids; pinned on the first start [localhost:8448]
    #[argh(option)]
    pub name: Option<String>,
    /// folder of the database, made if missing, or `:memory:` [doorstep-data]
    #[argh(option)]
    pub data: Option<String>,
    /// address to serve every API on over plain HTTP; repeatable [127.0.0.1:8008]
    #[argh(option)]
    pub listen: Vec<String>,
    /// address to serve every API on over HTTPS; repeatable; needs --tls-cert and --tls-key
    #[argh(option)]
    pub listen_tls: Vec<String>,
    /// certificate chain (PEM) for --listen-tls; read again when it changes and on SIGHUP
    #[argh(option)]
    pub tls_cert: Option<PathBuf>,
    /// private key (PEM) for --listen-tls
    #[argh(option)]
    pub tls_key: Option<PathBuf>,
    /// extra root certificates (PEM) for outgoing federation; repeatable
    #[argh(option)]
    pub trust_ca: Vec<PathBuf>,
    /// who may register: `open`, `token` or `closed` [token]
    #[argh(option)]
    pub registration: Option<String>,
    /// shared secret for registration by /_synapse/admin/v1/register
    #[argh(option)]
    pub registration_secret: Option<String>,
    /// version of new rooms where the client names none [12]
    #[argh(option)]
    pub default_room_version: Option<String>,
    /// base URL that clients are told in /.well-known/matrix/client [https://<name>; for a name of this machine only,
    /// such as localhost:8448, the first --listen as http://, or else the first --listen-tls]
    #[argh(option)]
    pub public_url: Option<String>,
    /// server to ask for the keys of servers that cannot be reached; repeatable
    #[argh(option)]
    pub notary: Vec<String>,
    /// servers not to talk to, in neither direction, as patterns such as `*.example.org`; ports do not matter; repeatable
    #[argh(option)]
    pub deny_server: Vec<String>,
    /// if any is named: the only servers to talk to, as patterns; repeatable
    #[argh(option)]
    pub allow_server: Vec<String>,
    /// most connections at once, clients and servers each [4096]
    #[argh(option)]
    pub max_connections: Option<usize>,
    /// most knocks upon one room within an hour, shared out between their servers; 0: no limit, and who was refused need
    /// not wait for a day [100]
    #[argh(option)]
    pub knocks_per_hour: Option<usize>,
    /// most knocks upon one room that wait for an answer, shared out between their servers; 0: no limit [100]
    #[argh(option)]
    pub knocks_waiting: Option<usize>,
    /// tell nobody who is at a client, nor take it in
    #[argh(switch)]
    pub no_presence: bool,
    /// no rate limits, for tests
    #[argh(switch)]
    pub no_rate_limits: bool,
    /// let federation and push connect to loopback and private ranges, for tests and closed networks
    #[argh(switch)]
    pub allow_private_addresses: bool,
}

impl Settings {
    /// These settings, with those of the configuration file (if one is named) where a flag is absent.
    pub fn with_file(self) -> Result<Self> {
        let Some(path) = &self.config else { return Ok(self) };
        let wrong = |e: String| Error::invalid_param(format!("configuration file {}: {e}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
        let file: Settings = basic_toml::from_str(&text).map_err(|e| wrong(e.to_string()))?;
        let many = |flags: Vec<String>, file: Vec<String>| if flags.is_empty() { file } else { flags };
        Ok(Self {
            config: None,
            name: self.name.or(file.name),
            data: self.data.or(file.data),
            listen: many(self.listen, file.listen),
            listen_tls: many(self.listen_tls, file.listen_tls),
            tls_cert: self.tls_cert.or(file.tls_cert),
            tls_key: self.tls_key.or(file.tls_key),
            trust_ca: if self.trust_ca.is_empty() { file.trust_ca } else { self.trust_ca },
            registration: self.registration.or(file.registration),
            registration_secret: self.registration_secret.or(file.registration_secret),
            default_room_version: self.default_room_version.or(file.default_room_version),
            public_url: self.public_url.or(file.public_url),
            notary: many(self.notary, file.notary),
            deny_server: many(self.deny_server, file.deny_server),
            allow_server: many(self.allow_server, file.allow_server),
            max_connections: self.max_connections.or(file.max_connections),
            knocks_per_hour: self.knocks_per_hour.or(file.knocks_per_hour),
            knocks_waiting: self.knocks_waiting.or(file.knocks_waiting),
            no_presence: self.no_presence || file.no_presence,
            no_rate_limits: self.no_rate_limits || file.no_rate_limits,
            allow_private_addresses: self.allow_private_addresses || file.allow_private_addresses,
        })
    }
}

/// Who may make an account by themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Registration {
    /// Everybody who can reach the server.
    Open,
    /// Who has a registration token.
    Token,
    /// Nobody; accounts are made on the command line or with the shared secret.
    Closed,
}

/// Where the database is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// A folder on disk, everything durable.
    Folder(PathBuf),
    /// Nowhere: gone when the server stops.
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

/// Checked settings.
#[derive(Clone)]
pub struct Config {
    /// This server's name.
    pub server_name: ServerName,
    /// Where the database is.
    pub data: Data,
    /// Plain HTTP addresses.
    pub listen: Vec<SocketAddr>,
    /// HTTPS addresses.
    pub listen_tls: Vec<SocketAddr>,
    /// Certificate of the HTTPS listeners; present if there are any.
    pub tls: Option<TlsFiles>,
    /// Extra root certificates for outgoing federation, PEM files.
    pub trust_ca: Vec<PathBuf>,
    /// Who may register.
    pub registration: Registration,
    /// Shared secret of `/_synapse/admin/v1/register`; the endpoint does not exist without one.
    pub registration_secret: Option<String>,
    /// Version of new rooms.
    pub default_room_version: RoomVersion,
    /// What clients are told in `/.well-known/matrix/client`; without trailing slash.
    pub public_url: String,
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
    /// Whether what was acknowledged survives a power cut; only throw-away servers do without.
    pub durable: bool,
    /// Whether it is told, and taken in, who is at a client.
    pub presence: bool,
    /// Whether requests are limited in rate.
    pub rate_limits: bool,
    /// Whether federation and push may connect to loopback and private ranges.
    pub allow_private_addresses: bool,
}

impl Config {
    /// The defaults for a server of this name, in memory, listening nowhere: what a test starts from.
    pub fn for_name(server_name: ServerName) -> Self {
        let public_url = format!("https://{server_name}");
        Self {
            server_name,
            data: Data::Memory,
            listen: Vec::new(),
            listen_tls: Vec::new(),
            tls: None,
            trust_ca: Vec::new(),
            registration: Registration::Token,
            registration_secret: None,
            default_room_version: room_version::default_version(),
            public_url,
            notaries: Vec::new(),
            peers: ServerAcl::from_lists(&[], &[]),
            max_connections: 4096,
            knocks_per_hour: 100,
            knocks_waiting: 100,
            durable: true,
            presence: true,
            rate_limits: true,
            allow_private_addresses: false,
        }
    }

    /// Checks the settings. Errors say which setting is wrong, in the words of the flags.
    pub fn from_settings(settings: Settings) -> Result<Self> {
        let name = settings.name.as_deref().unwrap_or("localhost:8448");
        let server_name = ServerName::parse(name).map_err(|_| wrong("name", name, "a server name"))?;
        // A user id may have 255 bytes; leave room for `@`, `:` and a localpart.
        UserId::parse(&format!("@a:{server_name}")).map_err(|_| wrong("name", name, "shorter"))?;
        let mut config = Self::for_name(server_name);
        config.data = match settings.data.as_deref() {
            Some(":memory:") => Data::Memory,
            folder => Data::Folder(folder.unwrap_or("doorstep-data").into()),
        };
        config.listen_tls = addresses("listen-tls", &settings.listen_tls)?;
        config.listen = addresses("listen", &settings.listen)?;
        if config.listen.is_empty() && config.listen_tls.is_empty() {
            config.listen = vec![SocketAddr::from(([127, 0, 0, 1], 8008))];
        }
        config.tls = match (settings.tls_cert, settings.tls_key) {
            (Some(cert), Some(key)) => Some(TlsFiles { cert, key }),
            (None, None) if config.listen_tls.is_empty() => None,
            _ => return Err(Error::invalid_param("--listen-tls needs both --tls-cert and --tls-key")),
        };
        config.trust_ca = settings.trust_ca;
        config.registration = match settings.registration.as_deref() {
            None | Some("token") => Registration::Token,
            Some("open") => Registration::Open,
            Some("closed") => Registration::Closed,
            Some(other) => return Err(wrong("registration", other, "open, token or closed")),
        };
        if settings.registration_secret.as_deref() == Some("") {
            return Err(wrong("registration-secret", "", "a secret that is not empty"));
        }
        config.registration_secret = settings.registration_secret;
        if let Some(id) = &settings.default_room_version {
            config.default_room_version =
                room_version::room_version(id).ok_or_else(|| wrong("default-room-version", id, "1 to 12"))?;
        }
        if let Some(url) = settings.public_url {
            if !url.starts_with("https://") && !url.starts_with("http://") {
                return Err(wrong("public-url", &url, "an http or https URL"));
            }
            config.public_url = url.trim_end_matches('/').to_owned();
        } else if let Some(url) = config.url_on_this_machine() {
            config.public_url = url;
        }
        config.notaries = settings
            .notary
            .iter()
            .map(|n| ServerName::parse(n).map_err(|_| wrong("notary", n, "a server name")))
            .collect::<Result<_>>()?;
        config.peers = ServerAcl::from_lists(&settings.allow_server, &settings.deny_server);
        if let Some(n) = settings.max_connections {
            config.max_connections = n.clamp(8, 1_000_000);
        }
        // What is counted is held in memory, and looked at for each knock.
        let bounded = |most: Option<usize>, usual: usize| most.unwrap_or(usual).min(10_000);
        config.knocks_per_hour = bounded(settings.knocks_per_hour, config.knocks_per_hour);
        config.knocks_waiting = bounded(settings.knocks_waiting, config.knocks_waiting);
        config.presence = !settings.no_presence;
        config.rate_limits = !settings.no_rate_limits;
        config.allow_private_addresses = settings.allow_private_addresses;
        Ok(config)
    }
}

impl Config {
    /// Where clients find a server whose name nobody else knows: at its plain listener if there is one, since its
    /// certificate, if it has any, is one of its own making, and the port in its name is where other servers call.
    fn url_on_this_machine(&self) -> Option<String> {
        let host = self.server_name.host().to_ascii_lowercase();
        let bare = host.trim_matches(['[', ']']);
        let is_loopback = bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        if host != "localhost" && !host.ends_with(".localhost") && !is_loopback {
            return None;
        }
        match (self.listen.first(), self.listen_tls.first()) {
            (Some(plain), _) => Some(format!("http://{}", reachable(*plain))),
            (None, Some(tls)) => Some(format!("https://{host}:{}", tls.port())),
            (None, None) => None,
        }
    }
}

/// An address to connect to for one that is listened on: every address of this machine is one of loopback too.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

fn addresses(flag: &str, texts: &[String]) -> Result<Vec<SocketAddr>> {
    let mut all = Vec::new();
    for text in texts {
        let found =
            text.to_socket_addrs().map_err(|_| wrong(flag, text, "an address such as 127.0.0.1:8008"))?;
        all.extend(found);
    }
    Ok(all)
}

fn wrong(flag: &str, value: &str, wanted: &str) -> Error {
    Error::invalid_param(format!("--{flag} {value:?}: should be {wanted}"))
}

#[cfg(test)]
mod tests {
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
        for name in
            ["localhost:8448", "localhost", "LOCALHOST:8448", "127.0.0.1:8448", "[::1]:8448", "a.localhost"]
        {
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
    fn a_wrong_setting_is_named_in_the_error() {
        let e = config(&["--registration", "maybe"]).err().unwrap();
        assert!(e.message().contains("--registration") && e.message().contains("maybe"), "{e}");
        let e = config(&["--listen-tls", "127.0.0.1:0"]).err().unwrap();
        assert!(e.message().contains("--tls-cert"), "{e}");
    }
}
