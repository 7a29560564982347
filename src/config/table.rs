//! The settings, one row each: the flags of `doorstep serve`, the keys of the configuration file, `--help` and the
//! table in the README are read from here. A new setting is a row of [`SETTINGS`] and the field of [`Config`] that it
//! fills.

use super::amounts::{bytes, time_ms};
use super::appservices::appservice;
use super::checks::{
    acme_contact, acme_directory, acme_eab, acme_name, addresses, cache_size, data, default_room_version,
    livekit_service_url, notary, path, pattern, public_url, registration, registration_secret, server_name,
    support_contact, support_page, trust_proxy, turn_secret, turn_uri, user_directory,
};
use super::{Config, secret_file};

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

/// The directory of the authority that everybody asks.
pub(super) const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";

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
        help: "server name, the part behind the colon in user ids; fixed by the first account, and need not be said again",
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
        usual: Usual::Value(LETS_ENCRYPT),
        help: "directory of the authority that --acme asks; the usual one is that of Let's Encrypt",
        kind: Kind::One(acme_directory),
    },
    Setting {
        flag: "acme-eab",
        value: "id:file",
        usual: Usual::Nothing,
        help: "external account binding, for an authority that has only customers: the key identifier that it gave, and a file \
               with the key (HMAC, base64url)",
        kind: Kind::One(acme_eab),
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
        flag: "appservice",
        value: "path",
        usual: Usual::Nothing,
        help: "registration of an application service (a bridge or a bot), YAML, or a folder of them; repeatable",
        kind: Kind::Many(appservice),
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
        flag: "trust-proxy",
        value: "networks",
        usual: Usual::Value("127.0.0.0/8,::1"),
        help: "where a reverse proxy may be that is believed when it says for whom it asks (`X-Forwarded-For`), such as \
               `172.18.0.0/16`",
        kind: Kind::One(trust_proxy),
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
        flag: "support-contact",
        value: "contact",
        usual: Usual::Nothing,
        help: "whom users may turn to, and who is told of abuse: a user id or an e-mail address; repeatable",
        kind: Kind::Many(support_contact),
    },
    Setting {
        flag: "support-page",
        value: "URL",
        usual: Usual::Nothing,
        help: "page where users find help; clients show it with the contacts",
        kind: Kind::One(support_page),
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
