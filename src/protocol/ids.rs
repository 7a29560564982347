//! Matrix identifiers as cheap-to-clone strings that were checked once (appendices, "Identifier grammar").

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Error, Result};

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
        impl std::str::FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self> { Self::parse(text) }
        }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> { s.serialize_str(&self.0) }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
                Self::parse(&text).map_err(|e| serde::de::Error::custom(e.message()))
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

impl UserId {
    /// The part between `@` and the first `:`.
    pub fn localpart(&self) -> &str {
        self.0[1..].split_once(':').map_or("", |(l, _)| l)
    }
    /// The server name behind the first `:`.
    pub fn server_name(&self) -> &str {
        self.0.split_once(':').map_or("", |(_, s)| s)
    }
}

impl RoomId {
    /// The server name behind the first `:`; none in room ids of version 12.
    pub fn server_name(&self) -> Option<&str> {
        self.0.split_once(':').map(|(_, s)| s)
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
}

fn is_server_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= 255
}
fn is_user_id(text: &str) -> bool {
    text.len() <= 255 && text.starts_with('@') && text.contains(':')
}
fn is_room_id(text: &str) -> bool {
    text.len() <= 255 && text.starts_with('!') && text.len() > 1
}
fn is_event_id(text: &str) -> bool {
    text.len() <= 255 && text.starts_with('$') && text.len() > 1
}
fn is_room_alias(text: &str) -> bool {
    text.len() <= 255 && text.starts_with('#') && text.contains(':')
}
