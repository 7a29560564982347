//! The settings, one row each: the flags of `doorstep serve`, the keys of the configuration file, `--help` and the
//! table in the README are read from here. A new setting is a row of [`SETTINGS`] and the field of [`Config`] that it
//! fills.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::path::PathBuf;

use super::amounts::{bytes, time_ms};
use super::{Config, Data, Registration, secret_file};
use crate::protocol::acme::is_certifiable;
use crate::protocol::room_version;
use crate::protocol::{ServerName, UserId};

/// One setting.
pub struct Setting {
    /// Its flag without the dashes. The key in the configuration file is the same with `_` for `-`.
    pub flag: &'static str,
    /// What the help calls its value; empty for a switch, which has none.
    pub value: &'static str,
    /// What holds where it is not given.
    pub usual: Usual,
    /// What it is for, in a sentence without an end.
    pub help: &'static str,
    /// What its value is, and what is done with it.
    pub kind: Kind,
}

/// What holds where a setting is not given.
pub enum Usual {
    /// Nothing.
    Nothing,
    /// This value, taken in like a given one.
    Value(&'static str),
    /// What follows from other settings (`Config::complete`), in words.
    Words(&'static str),
}

/// What a setting's value is, and what is done with it. The functions' errors end a sentence that begins with the
/// value.
pub enum Kind {
    /// The configuration file: a flag, and no key.
    File,
    /// On or off; the flag has no value.
    Switch(fn(&mut Config, bool)),
    /// A whole number.
    Number(fn(&mut Config, usize)),
    /// Text, once.
    One(Check),
    /// Text, any number of times; a list in the configuration file.
    Many(Check),
}

/// Looks at a value, and puts it into the configuration if it stands there by itself.
pub type Check = fn(&mut Config, &str) -> Result<(), String>;

/// What is counted is held in memory, and looked at for each knock.
const KNOCKS_MAX: usize = 10_000;

/// Every setting of `doorstep serve`, in the order of the help.
pub const SETTINGS: &[Setting] = &[
    Setting {
        flag: "config",
        value: "file",
        usual: Usual::Nothing,
        help: "configuration file (TOML) with the same names as these flags, `_` for `-`; flags win",
        kind: Kind::File,
    },
    Setting {
        flag: "name",
        value: "server name",
        usual: Usual::Value("localhost:8448"),
        help: "server name, the part behind the colon in user ids; pinned on the first start",
        kind: Kind::One(server_name),
    },
    Setting {
        flag: "data",
        value: "folder",
        usual: Usual::Value("doorstep-data"),
        help: "folder of the database, made if missing, or `:memory:`",
        kind: Kind::One(data),
    },
    Setting {
        flag: "listen",
        value: "address",
        usual: Usual::Words("127.0.0.1:8008"),
        help: "address to serve every API on over plain HTTP; `8008` is that port for this machine only, `:8008` for \
               everybody; repeatable",
        kind: Kind::Many(|config, text| addresses(text).map(|found| config.listen.extend(found))),
    },
    Setting {
        flag: "listen-tls",
        value: "address",
        usual: Usual::Nothing,
        help: "address to serve every API on over HTTPS; repeatable; needs --tls-cert and --tls-key, or --acme",
        kind: Kind::Many(|config, text| addresses(text).map(|found| config.listen_tls.extend(found))),
    },
    Setting {
        flag: "tls-cert",
        value: "file",
        usual: Usual::Nothing,
        help: "certificate chain (PEM) for --listen-tls; read again when it changes and on SIGHUP",
        kind: Kind::One(|_, text| path(text).map(drop)),
    },
    Setting {
        flag: "tls-key",
        value: "file",
        usual: Usual::Nothing,
        help: "private key (PEM) for --listen-tls",
        kind: Kind::One(|_, text| path(text).map(drop)),
    },
    Setting {
        flag: "acme",
        value: "",
        usual: Usual::Nothing,
        help: "get the certificate for --listen-tls from an authority and renew it, agreeing to its terms of service; \
               the name has to lead here, at port 443 or 80",
        kind: Kind::Switch(|config, on| config.acme.is_on = on),
    },
    Setting {
        flag: "acme-name",
        value: "name",
        usual: Usual::Words("the name, and the host of --public-url"),
        help: "name that the certificate of --acme is for; repeatable",
        kind: Kind::Many(acme_name),
    },
    Setting {
        flag: "acme-contact",
        value: "address",
        usual: Usual::Nothing,
        help: "e-mail address that the authority of --acme is told",
        kind: Kind::One(acme_contact),
    },
    Setting {
        flag: "acme-directory",
        value: "URL",
        usual: Usual::Value("https://acme-v02.api.letsencrypt.org/directory"),
        help: "directory of the authority that --acme asks; the usual one is that of Let's Encrypt",
        kind: Kind::One(acme_directory),
    },
    Setting {
        flag: "acme-ca",
        value: "file",
        usual: Usual::Nothing,
        help: "extra root certificates (PEM) to know that directory by; repeatable",
        kind: Kind::Many(|config, text| path(text).map(|file| config.acme.trust_ca.push(file))),
    },
    Setting {
        flag: "trust-ca",
        value: "file",
        usual: Usual::Nothing,
        help: "extra root certificates (PEM) for outgoing federation; repeatable",
        kind: Kind::Many(|config, text| path(text).map(|file| config.trust_ca.push(file))),
    },
    Setting {
        flag: "registration",
        value: "who",
        usual: Usual::Value("token"),
        help: "who may register: `open`, `token` or `closed`",
        kind: Kind::One(registration),
    },
    Setting {
        flag: "guests",
        value: "",
        usual: Usual::Nothing,
        help: "give accounts to guests, who need neither name nor password, and may come into rooms that let guests in",
        kind: Kind::Switch(|config, on| config.guests = on),
    },
    Setting {
        flag: "registration-secret",
        value: "secret",
        usual: Usual::Nothing,
        help: "shared secret for registration by /_synapse/admin/v1/register",
        kind: Kind::One(registration_secret),
    },
    Setting {
        flag: "registration-secret-file",
        value: "file",
        usual: Usual::Nothing,
        help: "file that holds that secret, where other users of the machine do not see it; read at the start",
        kind: Kind::One(secret_file::registration_secret_file),
    },
    Setting {
        flag: "turn-uri",
        value: "URI",
        usual: Usual::Nothing,
        help: "TURN server for calls, like `turn:turn.example.org?transport=udp`; repeatable; needs --turn-secret",
        kind: Kind::Many(turn_uri),
    },
    Setting {
        flag: "turn-secret",
        value: "secret",
        usual: Usual::Nothing,
        help: "secret that is shared with the TURN servers (`static-auth-secret` of coturn)",
        kind: Kind::One(turn_secret),
    },
    Setting {
        flag: "turn-ttl",
        value: "seconds",
        usual: Usual::Value("86400"),
        help: "for how long a client may use the TURN servers before it asks again",
        kind: Kind::Number(|config, seconds| config.turn_ttl_s = seconds.max(1)),
    },
    Setting {
        flag: "default-room-version",
        value: "version",
        usual: Usual::Value("12"),
        help: "version of new rooms where the client names none",
        kind: Kind::One(default_room_version),
    },
    Setting {
        flag: "public-url",
        value: "URL",
        usual: Usual::Words(
            "https:// and the name; for a name of this machine only, such as localhost:8448, the first --listen as \
             http://, or else the first --listen-tls",
        ),
        help: "base URL that clients are told in /.well-known/matrix/client",
        kind: Kind::One(public_url),
    },
    Setting {
        flag: "notary",
        value: "server name",
        usual: Usual::Nothing,
        help: "server to ask for the keys of servers that cannot be reached; repeatable",
        kind: Kind::Many(notary),
    },
    Setting {
        flag: "deny-server",
        value: "pattern",
        usual: Usual::Nothing,
        help: "servers not to talk to, in neither direction, as patterns such as `*.example.org`; ports do not matter; \
               repeatable",
        kind: Kind::Many(|_, text| pattern(text)),
    },
    Setting {
        flag: "allow-server",
        value: "pattern",
        usual: Usual::Nothing,
        help: "if any is named: the only servers to talk to, as patterns; repeatable",
        kind: Kind::Many(|_, text| pattern(text)),
    },
    Setting {
        flag: "max-connections",
        value: "number",
        usual: Usual::Value("4096"),
        help: "most connections at once, clients and servers each",
        kind: Kind::Number(|config, most| config.max_connections = most.clamp(8, 1_000_000)),
    },
    Setting {
        flag: "knocks-per-hour",
        value: "number",
        usual: Usual::Value("100"),
        help: "most knocks upon one room within an hour, shared out between their servers; 0: no limit, and who was \
               refused need not wait for a day",
        kind: Kind::Number(|config, most| config.knocks_per_hour = most.min(KNOCKS_MAX)),
    },
    Setting {
        flag: "knocks-waiting",
        value: "number",
        usual: Usual::Value("100"),
        help: "most knocks upon one room that wait for an answer, shared out between their servers; 0: no limit",
        kind: Kind::Number(|config, most| config.knocks_waiting = most.min(KNOCKS_MAX)),
    },
    Setting {
        flag: "join-on-accepted-knock",
        value: "",
        usual: Usual::Value("false"),
        help: "join rooms for users whose knock upon them is accepted, unless they want otherwise",
        kind: Kind::Switch(|config, on| config.join_on_accepted_knock = on),
    },
    Setting {
        flag: "media-max-upload",
        value: "size",
        usual: Usual::Value("100M"),
        help: "largest file that users may upload, and that is fetched from other servers, such as `100M`",
        kind: Kind::One(|config, text| bytes(text).map(|size| config.media_max_upload = size)),
    },
    Setting {
        flag: "media-per-user",
        value: "size",
        usual: Usual::Value("10G"),
        help: "what all files of one user may come to, such as `10G`; 0: no limit",
        kind: Kind::One(|config, text| bytes(text).map(|size| config.media_per_user = size)),
    },
    Setting {
        flag: "media-cache-size",
        value: "size",
        usual: Usual::Value("10G"),
        help: "what files of other servers may come to that are kept here, such as `10G`; of more, those go that were \
               not asked for longest, and are fetched again when they are; 0: no limit",
        kind: Kind::One(cache_size),
    },
    Setting {
        flag: "media-cache-days",
        value: "number",
        usual: Usual::Value("0"),
        help: "files of other servers go when nobody has asked for them for so many days; 0: never for that",
        kind: Kind::Number(|config, days| config.media_cache_days = days.try_into().unwrap_or(u32::MAX)),
    },
    Setting {
        flag: "media-keep-free",
        value: "size",
        usual: Usual::Value("512M"),
        help: "so much of the disk is left free by files, for everything else, such as `512M`: beyond that none are \
               taken, and those of other servers go",
        kind: Kind::One(|config, text| bytes(text).map(|size| config.media_keep_free = size)),
    },
    Setting {
        flag: "backup-to",
        value: "folder",
        usual: Usual::Nothing,
        help: "make backups by itself, into this folder; best on another disk",
        kind: Kind::One(|config, text| path(text).map(|folder| config.backup_to = Some(folder))),
    },
    Setting {
        flag: "backup-every",
        value: "time",
        usual: Usual::Value("1d"),
        help: "how often, such as `6h`, `1d` or `1w`",
        kind: Kind::One(|config, text| time_ms(text).map(|every| config.backup_every_ms = every)),
    },
    Setting {
        flag: "backup-keep",
        value: "number",
        usual: Usual::Value("7"),
        help: "so many of them are kept, the older ones are deleted; 0: none is",
        kind: Kind::Number(|config, keep| config.backup_keep = keep),
    },
    Setting {
        flag: "url-previews",
        value: "",
        usual: Usual::Value("false"),
        help: "fetch the pages that users link to, for previews",
        kind: Kind::Switch(|config, on| config.url_previews = on),
    },
    Setting {
        flag: "no-presence",
        value: "",
        usual: Usual::Value("false"),
        help: "tell nobody who is at a client, nor take it in",
        kind: Kind::Switch(|config, off| config.presence = !off),
    },
    Setting {
        flag: "call-rules",
        value: "",
        usual: Usual::Value("false"),
        help: "make the calls of MatrixRTC ring: with the push rules of MSC4075 among everybody's",
        kind: Kind::Switch(|config, on| config.call_rules = on),
    },
    Setting {
        flag: "user-directory",
        value: "who",
        usual: Usual::Value("known"),
        help: "whom users find by name: `known`, who shares a room with them or is in a public one, or `all` accounts \
               of this server as well",
        kind: Kind::One(user_directory),
    },
    Setting {
        flag: "livekit-service-url",
        value: "URL",
        usual: Usual::Nothing,
        help: "service that gives clients their tokens for calls by LiveKit; they are told of it",
        kind: Kind::One(livekit_service_url),
    },
    Setting {
        flag: "metrics",
        value: "address",
        usual: Usual::Nothing,
        help: "address to serve /metrics on for Prometheus, and nothing else; `9100` is that port for this machine only",
        kind: Kind::One(|config, text| addresses(text).map(|found| config.metrics.extend(found))),
    },
    Setting {
        flag: "no-rate-limits",
        value: "",
        usual: Usual::Value("false"),
        help: "no rate limits, for tests",
        kind: Kind::Switch(|config, off| config.rate_limits = !off),
    },
    Setting {
        flag: "allow-private-addresses",
        value: "",
        usual: Usual::Value("false"),
        help: "let federation and push connect to loopback and private ranges, for tests and closed networks",
        kind: Kind::Switch(|config, on| config.allow_private_addresses = on),
    },
];

impl Setting {
    /// Its key in the configuration file, if it has one.
    pub fn key(&self) -> Option<String> {
        (!matches!(self.kind, Kind::File)).then(|| self.flag.replace('-', "_"))
    }

    /// Whether it may be given more than once.
    pub fn is_repeatable(&self) -> bool {
        matches!(self.kind, Kind::Many(_) | Kind::Switch(_))
    }

    /// Checks a value and puts it where it belongs. Errors end a sentence that begins with the value.
    pub(super) fn apply(&self, config: &mut Config, value: &str) -> Result<(), String> {
        match self.kind {
            Kind::File => Ok(()),
            Kind::Switch(set) => {
                set(config, value == "true");
                Ok(())
            }
            Kind::Number(set) => {
                set(config, value.parse().map_err(|_| "should be a whole number")?);
                Ok(())
            }
            Kind::One(set) | Kind::Many(set) => set(config, value),
        }
    }
}

fn server_name(config: &mut Config, text: &str) -> Result<(), String> {
    config.server_name = ServerName::parse(text).map_err(|_| SERVER_NAME)?;
    // A user id may have 255 bytes; leave room for `@`, `:` and a localpart.
    UserId::parse(&format!("@a:{text}")).map(drop).map_err(|_| "should be shorter".into())
}

const SERVER_NAME: &str = "should be a server name, such as example.org or example.org:8448";

fn data(config: &mut Config, text: &str) -> Result<(), String> {
    config.data = if text == ":memory:" { Data::Memory } else { Data::Folder(path(text)?) };
    Ok(())
}

fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() { Err("should be a path".into()) } else { Ok(text.into()) }
}

fn acme_name(config: &mut Config, text: &str) -> Result<(), String> {
    let name = text.to_ascii_lowercase();
    if !is_certifiable(&name) {
        return Err(
            "should be a name of the DNS, such as example.org: no address, no port, no pattern".into()
        );
    }
    config.acme.names.push(name);
    Ok(())
}

fn acme_contact(config: &mut Config, text: &str) -> Result<(), String> {
    let address = text.strip_prefix("mailto:").unwrap_or(text);
    let parts = address.split_once('@').filter(|(local, host)| !local.is_empty() && !host.is_empty());
    if parts.is_none() || address.contains(|c: char| c.is_whitespace() || c.is_control() || "?,".contains(c))
    {
        return Err("should be an e-mail address, such as admin@example.org".into());
    }
    config.acme.contact = Some(address.to_owned());
    Ok(())
}

fn acme_directory(config: &mut Config, text: &str) -> Result<(), String> {
    let rest = text.strip_prefix("https://").unwrap_or_default();
    if rest.is_empty() || rest.starts_with('/') || text.contains(char::is_whitespace) {
        return Err("should be an https URL, such as https://acme-v02.api.letsencrypt.org/directory".into());
    }
    config.acme.directory = text.to_owned();
    Ok(())
}

fn registration(config: &mut Config, text: &str) -> Result<(), String> {
    config.registration = match text {
        "open" => Registration::Open,
        "token" => Registration::Token,
        "closed" => Registration::Closed,
        _ => return Err("should be open, token or closed".into()),
    };
    Ok(())
}

fn registration_secret(config: &mut Config, text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("should be a secret that is not empty".into());
    }
    config.registration_secret = Some(text.into());
    Ok(())
}

fn turn_uri(config: &mut Config, text: &str) -> Result<(), String> {
    let rest = ["turn:", "turns:"].iter().find_map(|scheme| text.strip_prefix(scheme));
    if rest.is_none_or(|rest| rest.is_empty() || rest.contains(char::is_whitespace)) {
        return Err("should be a URI that begins with turn: or turns:".into());
    }
    config.turn_uris.push(text.into());
    Ok(())
}

fn turn_secret(config: &mut Config, text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("should be a secret that is not empty".into());
    }
    config.turn_secret = Some(text.into());
    Ok(())
}

fn default_room_version(config: &mut Config, text: &str) -> Result<(), String> {
    config.default_room_version = room_version::room_version(text).ok_or("should be 1 to 12")?;
    Ok(())
}

fn cache_size(config: &mut Config, text: &str) -> Result<(), String> {
    config.media_cache_bytes = match bytes(text)? {
        0 => u64::MAX,
        size => size,
    };
    Ok(())
}

fn public_url(config: &mut Config, text: &str) -> Result<(), String> {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    if rest.is_none_or(|rest| rest.trim_matches('/').is_empty()) {
        return Err("should be an http or https URL, such as https://matrix.example.org".into());
    }
    config.public_url = text.trim_end_matches('/').to_owned();
    Ok(())
}

fn user_directory(config: &mut Config, text: &str) -> Result<(), String> {
    config.user_directory_of_all = match text {
        "known" => false,
        "all" => true,
        _ => return Err("should be known or all".into()),
    };
    Ok(())
}

fn livekit_service_url(config: &mut Config, text: &str) -> Result<(), String> {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    if rest.is_none_or(|rest| rest.trim_matches('/').is_empty()) {
        return Err("should be an http or https URL, such as https://livekit.example.org".into());
    }
    config.livekit_service_url = Some(text.to_owned());
    Ok(())
}

fn notary(config: &mut Config, text: &str) -> Result<(), String> {
    config.notaries.push(ServerName::parse(text).map_err(|_| SERVER_NAME)?);
    Ok(())
}

/// A pattern that no server name can match is a mistake, and as a ban a dangerous one.
fn pattern(text: &str) -> Result<(), String> {
    let wild = |c: char| c == '*' || c == '?';
    let is_literal = text.starts_with('[')
        && text.ends_with([']', '*'])
        && text.chars().all(|c| c.is_ascii_hexdigit() || wild(c) || "[:.]".contains(c));
    let is_name = |name: &str| {
        let may_be = |c: char| c.is_ascii_alphanumeric() || wild(c) || c == '-' || c == '.';
        !name.is_empty() && name.chars().all(may_be)
    };
    if let Some(parent) = text.strip_prefix('.').filter(|parent| is_name(parent)) {
        return Err(format!("matches no server: for those below {parent}, write *.{parent}"));
    }
    if is_literal || is_name(text) {
        return Ok(());
    }
    if let Some((host, port)) = text.rsplit_once(':')
        && port.chars().all(|c| c.is_ascii_digit() || wild(c))
        && (is_name(host) || host.ends_with(']'))
    {
        return Err(format!("should have no port, since ports do not matter: write {host}"));
    }
    if text.parse::<IpAddr>().is_ok() {
        return Err(format!("should be in brackets: [{text}]"));
    }
    Err("matches no server: it should be a server's name, or a pattern such as *.example.org".into())
}

/// The addresses to listen on: a port alone is one of loopback, `:` and a port one of every address, as with other
/// servers; a name is looked up.
fn addresses(text: &str) -> Result<Vec<SocketAddr>, String> {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let port = |text: &str| text.parse::<u16>().map_err(|_| "should have a port of at most 65535");
    if is_number(text) {
        return Ok(vec![SocketAddr::from(([127, 0, 0, 1], port(text)?))]);
    }
    if let Some(number) = text.strip_prefix(':').filter(|number| is_number(number)) {
        // IPv4 comes in there too, where the system has IPv6 at all.
        let every = if UdpSocket::bind("[::]:0").is_ok() { "[::]" } else { "0.0.0.0" };
        return addresses(&format!("{every}:{}", port(number)?));
    }
    if let Ok(address) = text.parse() {
        return Ok(vec![address]);
    }
    match text.parse() {
        Ok(IpAddr::V4(_)) => return Err(format!("should have a port: {text}:8008")),
        Ok(IpAddr::V6(_)) => return Err(format!("should have brackets and a port: [{text}]:8008")),
        Err(_) => {}
    }
    match text.rsplit_once(':') {
        Some((host, number)) if is_number(number) && !host.is_empty() && !host.contains([':', '/']) => {
            let found = (host, port(number)?).to_socket_addrs();
            found.map(Iterator::collect).map_err(|_| format!("cannot be looked up: nobody knows {host}"))
        }
        _ => Err("should be an address such as 127.0.0.1:8008, or a port".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_one_of_loopback_and_a_colon_and_a_port_one_of_every_address() {
        let first = |text: &str| addresses(text).map(|all| all[0].to_string());
        assert_eq!(first("8008").unwrap(), "127.0.0.1:8008");
        assert_eq!(first("0").unwrap(), "127.0.0.1:0");
        let every = first(":8008").unwrap();
        assert!(["[::]:8008", "0.0.0.0:8008"].contains(&every.as_str()), "{every}");
        assert_eq!(first("[::1]:8008").unwrap(), "[::1]:8008");
        assert_eq!(first("192.0.2.1:80").unwrap(), "192.0.2.1:80");
        assert!(
            addresses("localhost:8008").unwrap().iter().all(|a| a.ip().is_loopback() && a.port() == 8008)
        );
        for (wrong, told) in [
            ("", "such as 127.0.0.1:8008"),
            (":", "such as"),
            ("70000", "65535"),
            (":70000", "65535"),
            ("127.0.0.1:70000", "65535"),
            ("127.0.0.1", "127.0.0.1:8008"),
            ("::1", "[::1]:8008"),
            ("localhost", "such as"),
            ("localhost:", "such as"),
            ("localhost:http", "such as"),
            ("localhost:70000", "65535"),
            ("http://127.0.0.1:8008", "such as"),
            ("-1", "such as"),
        ] {
            let e = addresses(wrong).unwrap_err();
            assert!(e.contains(told), "{wrong:?}: {e}");
        }
    }

    #[test]
    fn a_pattern_that_no_server_name_can_match_is_refused() {
        for good in [
            "*",
            "example.org",
            "*.example.org",
            "EVIL?.example",
            "192.0.2.*",
            "[2001:db8::1]",
            "[2001:db8:*",
        ] {
            assert_eq!(pattern(good), Ok(()), "{good}");
        }
        for (wrong, told) in [
            ("", "a server's name"),
            (" ", "a server's name"),
            ("example.org ", "a server's name"),
            ("example.org:8448", "write example.org"),
            ("*:8448", "write *"),
            ("*:*", "write *"),
            ("[::1]:8448", "write [::1]"),
            ("::1", "[::1]"),
            ("https://example.org", "a server's name"),
            ("example.org/", "a server's name"),
            ("@alice:example.org", "a server's name"),
            ("a.example,b.example", "a server's name"),
            ("bücher.example", "a server's name"),
            (".example.org", "write *.example.org"),
            ("^evil$", "a server's name"),
        ] {
            let e = pattern(wrong).unwrap_err();
            assert!(e.contains(told), "{wrong:?}: {e}");
        }
    }
}
