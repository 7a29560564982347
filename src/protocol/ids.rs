//! Matrix identifiers as cheap-to-clone strings that were checked once (appendices, "Identifier grammar").
//!
//! The grammars are those for what other servers may send, historical user ids included. What this server may
//! *allocate* is narrower: see [`UserId::is_allocatable_localpart`]. Which form of room id or event id belongs to
//! which room version is not decided here but by [`crate::protocol::Pdu`], which knows the version.

use std::borrow::Borrow;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Error, Result};

/// The most bytes that an identifier of a user, room, alias or event may have, sigil and domain included.
const ID_BYTES_MAX: usize = 255;

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident, $what:literal, $check:path) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            #[doc = concat!("Checks and wraps a ", $what, ". Errors: 400 `M_INVALID_PARAM`.")]
            pub fn parse(text: &str) -> Result<Self> {
                if $check(text) { Ok(Self(text.into())) } else { Err(Error::invalid_param(concat!("not a valid ", $what))) }
            }

            /// The identifier as text.
            pub fn as_str(&self) -> &str { &self.0 }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(&self.0) }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(&self.0) }
        }
        impl Borrow<str> for $name { fn borrow(&self) -> &str { &self.0 } }
        impl AsRef<str> for $name { fn as_ref(&self) -> &str { &self.0 } }
        impl PartialEq<str> for $name { fn eq(&self, other: &str) -> bool { &*self.0 == other } }
        impl PartialEq<&str> for $name { fn eq(&self, other: &&str) -> bool { &*self.0 == *other } }
        impl std::str::FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self> { Self::parse(text) }
        }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> { s.serialize_str(&self.0) }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl serde::de::Visitor<'_> for Visitor {
                    type Value = $name;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(concat!("a ", $what)) }
                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$name, E> {
                        $name::parse(text).map_err(|e| E::custom(e.message()))
                    }
                }
                d.deserialize_str(Visitor)
            }
        }
    };
}

identifier! {
    /// A server name: hostname or IP literal with an optional port.
    ServerName, "server name", is_server_name
}
identifier! {
    /// `@localpart:server`, historical localparts included.
    UserId, "user id", is_user_id
}
identifier! {
    /// `!opaque:server`, or from room version 12 on `!` and the create event's reference hash.
    RoomId, "room id", is_room_id
}
identifier! {
    /// `$opaque:server` in room versions 1 and 2, `$` and the reference hash in later ones.
    EventId, "event id", is_event_id
}
identifier! {
    /// `#localpart:server`.
    RoomAlias, "room alias", is_room_alias
}

impl Default for ServerName {
    /// `localhost`: the machine itself.
    fn default() -> Self {
        Self("localhost".into())
    }
}

impl ServerName {
    /// The name without its port, IPv6 brackets kept: what server ACLs compare.
    pub fn host(&self) -> &str {
        split_port(&self.0).0
    }

    /// The explicit port, if there is one that a connection can use.
    pub fn port(&self) -> Option<u16> {
        split_port(&self.0).1?.parse().ok()
    }

    /// Whether the host is an IPv4 or bracketed IPv6 literal.
    pub fn is_ip_literal(&self) -> bool {
        is_ip_literal(self.host())
    }
}

impl UserId {
    /// The part between `@` and the first `:`.
    pub fn localpart(&self) -> &str {
        self.0[1..].split_once(':').map_or("", |(l, _)| l)
    }
    /// The server name behind the first `:`.
    pub fn server_name(&self) -> &str {
        server_of(&self.0)
    }
    /// The server name behind the first `:` as a [`ServerName`].
    pub fn server(&self) -> ServerName {
        // The grammar of user ids was checked when this value was made, and it includes the server name's.
        ServerName(self.server_name().into())
    }
    /// Whether `localpart` may be given to a *new* user: `[a-z0-9._=/+-]`, not empty.
    pub fn is_allocatable_localpart(localpart: &str) -> bool {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._=-/+".contains(&b);
        !localpart.is_empty() && localpart.bytes().all(allowed)
    }
    /// Whether the localpart is within the current or the historical character set (U+0021 to U+007E, not empty).
    /// Other user ids are accepted in events, but should not be shown to clients outside of them.
    pub fn is_compliant(&self) -> bool {
        let localpart = self.localpart();
        !localpart.is_empty() && localpart.bytes().all(|b| (0x21..=0x7e).contains(&b))
    }
}

/// The server name in the text of a user id.
pub fn server_of(user: &str) -> &str {
    user.split_once(':').map_or("", |(_, server)| server)
}

impl RoomId {
    /// The server name behind the first `:`; none in room ids of version 12.
    pub fn server_name(&self) -> Option<&str> {
        self.0.split_once(':').map(|(_, s)| s)
    }
    /// The room id of a version 12 room: its create event's id with the other sigil.
    pub fn of_create_event(create: &EventId) -> Self {
        Self(format!("!{}", &create.0[1..]).into())
    }
    /// The create event's id of a version 12 room; none where the room id has a domain.
    pub fn create_event_id(&self) -> Option<EventId> {
        self.server_name().is_none().then(|| EventId(format!("${}", &self.0[1..]).into()))
    }
}

impl EventId {
    /// The server name behind the first `:`; only in room versions 1 and 2.
    pub fn server_name(&self) -> Option<&str> {
        self.0.split_once(':').map(|(_, s)| s)
    }
}

impl RoomAlias {
    /// The part between `#` and the first `:`.
    pub fn localpart(&self) -> &str {
        self.0[1..].split_once(':').map_or("", |(l, _)| l)
    }
    /// The server name behind the first `:`.
    pub fn server_name(&self) -> &str {
        self.0.split_once(':').map_or("", |(_, s)| s)
    }
    /// The server name behind the first `:` as a [`ServerName`].
    pub fn server(&self) -> ServerName {
        ServerName(self.server_name().into())
    }
}

/// Splits `host[:port]`; the port is given only if it is all digits, so that an IPv6 literal stays whole.
fn split_port(name: &str) -> (&str, Option<&str>) {
    match name.rsplit_once(':') {
        Some((host, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => {
            (host, Some(port))
        }
        _ => (name, None),
    }
}

/// Whether a host (no port) is an IPv4 literal or a bracketed IPv6 literal.
pub fn is_ip_literal(host: &str) -> bool {
    host.starts_with('[') || host.parse::<Ipv4Addr>().is_ok()
}

/// `server_name = hostname [ ":" port ]`, port `1*5DIGIT`.
fn is_server_name(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let Some((address, rest)) = rest.split_once(']') else { return false };
            // `Ipv6Addr` also knows scope ids ("%eth0"), which the grammar's characters leave out.
            let allowed = |b: u8| b.is_ascii_hexdigit() || b == b':' || b == b'.';
            if address.len() > 45 || !address.bytes().all(allowed) || address.parse::<Ipv6Addr>().is_err() {
                return false;
            }
            match rest.strip_prefix(':') {
                Some(port) => (None, Some(port)),
                None if rest.is_empty() => (None, None),
                None => return false,
            }
        }
        None => match text.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(text), None),
        },
    };
    let host_fits = host.is_none_or(|host| {
        (1..=255).contains(&host.len())
            && host.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.')
    });
    let port_fits =
        port.is_none_or(|port| (1..=5).contains(&port.len()) && port.bytes().all(|b| b.is_ascii_digit()));
    host_fits && port_fits
}

/// Sigil, any localpart without `:` and NUL (it may be empty), `:`, server name; at most 255 bytes.
fn has_localpart_and_server(text: &str, sigil: char) -> bool {
    let Some((localpart, server)) = text.strip_prefix(sigil).and_then(|rest| rest.split_once(':')) else {
        return false;
    };
    text.len() <= ID_BYTES_MAX && !localpart.contains('\0') && is_server_name(server)
}

/// Sigil and a non-empty opaque part without `:` and NUL; at most 255 bytes.
fn is_opaque(text: &str, sigil: char) -> bool {
    let Some(opaque) = text.strip_prefix(sigil) else { return false };
    let has = |byte: u8| opaque.as_bytes().contains(&byte);
    text.len() <= ID_BYTES_MAX && !opaque.is_empty() && !has(b':') && !has(b'\0')
}

fn is_user_id(text: &str) -> bool {
    has_localpart_and_server(text, '@')
}
fn is_room_id(text: &str) -> bool {
    is_opaque(text, '!') || has_localpart_and_server(text, '!')
}
fn is_event_id(text: &str) -> bool {
    is_opaque(text, '$') || has_localpart_and_server(text, '$')
}
fn is_room_alias(text: &str) -> bool {
    has_localpart_and_server(text, '#')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_names_are_hosts_and_ip_literals_with_an_optional_port() {
        for good in [
            "matrix.org",
            "matrix.org:8888",
            "1.2.3.4",
            "1.2.3.4:1234",
            "[1234:5678::abcd]",
            "[1234:5678::abcd]:5678",
            "[::1]",
            "[::ffff:1.2.3.4]",
            "localhost",
            "LocalHost:1",
            "a-b.c",
            "h:00001",
        ] {
            assert!(ServerName::parse(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            ":80",
            "host:",
            "host:123456",
            "host:8x",
            "host:+80",
            "a_b",
            "a b",
            "é.example",
            "[::1",
            "[::1]x",
            "[::1]:",
            "[]",
            "[1.2.3.4]",
            "[fe80::1%eth0]",
            "::1",
            "a:1:2",
            "host/path",
            "host\0",
            "host\n",
        ] {
            assert!(ServerName::parse(bad).is_err(), "{bad:?}");
        }
        assert!(ServerName::parse(&"a".repeat(255)).is_ok());
        assert!(ServerName::parse(&"a".repeat(256)).is_err());
    }

    #[test]
    fn a_server_name_splits_into_host_and_port() {
        let split = |text| {
            let name = ServerName::parse(text).expect("valid");
            (name.host().to_owned(), name.port(), name.is_ip_literal())
        };
        assert_eq!(split("a.example:8448"), ("a.example".to_owned(), Some(8448), false));
        assert_eq!(split("[::1]"), ("[::1]".to_owned(), None, true));
        assert_eq!(split("[::1]:80"), ("[::1]".to_owned(), Some(80), true));
        assert_eq!(split("1.2.3.4:99999"), ("1.2.3.4".to_owned(), None, true));
    }

    #[test]
    fn historical_user_ids_are_accepted_but_not_allocated() {
        for good in ["@alice:a.example", "@:a.example", "@A b\u{7}é😀/:a.example:8448", "@x:[::1]:1"] {
            assert!(UserId::parse(good).is_ok(), "{good:?}");
        }
        for bad in
            ["", "@", "@alice", "alice:a.example", "@a\0b:a.example", "@alice:", "@alice:b c", "@a:b:c"]
        {
            assert!(UserId::parse(bad).is_err(), "{bad:?}");
        }
        assert!(UserId::is_allocatable_localpart("a.b_c=d-e/f+9"));
        assert!(!UserId::is_allocatable_localpart(""));
        assert!(!UserId::is_allocatable_localpart("Alice"));
        assert!(UserId::parse("@Alice!:a").expect("historical").is_compliant());
        assert!(!UserId::parse("@al ice:a").expect("historical").is_compliant());
        let longest = format!("@{}:a", "x".repeat(252));
        assert!(UserId::parse(&longest).is_ok());
        assert!(UserId::parse(&longest.replace("@x", "@xx")).is_err());
    }

    #[test]
    fn room_and_event_ids_have_a_domain_or_are_opaque() {
        let hash = "Rqnc-F-dvnEYJTyHq_iKxU2bZ1CI92-kuZq3a5lr5Zg";
        let event = EventId::parse(&format!("${hash}")).expect("valid");
        let room = RoomId::of_create_event(&event);
        assert_eq!(room.as_str(), format!("!{hash}"));
        assert_eq!(room.create_event_id(), Some(event));
        assert_eq!(RoomId::parse("!a:b").expect("valid").create_event_id(), None);
        assert!(EventId::parse("$acR1l0raoZnm60CBwAVgqbZqoO/mYU81xysh1u7XcJk").is_ok());
        for bad in ["!", "!a:", "!a:b c", "!a\0", "a:b", "!a:b:c"] {
            assert!(RoomId::parse(bad).is_err(), "{bad:?}");
        }
        assert!(RoomAlias::parse("#a b:c").is_ok());
        assert!(RoomAlias::parse("#ab").is_err());
    }
}
