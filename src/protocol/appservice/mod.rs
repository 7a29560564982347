//! Application services as they are registered: the file that a bridge or a bot writes, and what its namespaces say
//! (application service API, "Registration").
//!
//! Here: a service, and whom it speaks for; `registration`: its file.

mod registration;

use std::fmt;
use std::ops::Deref;

use regex_lite::Regex;

use crate::error::Result;
use crate::protocol::{RoomAlias, RoomId, ServerName, UserId};

/// A token that is told nobody but by [`Secret::expose`].
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The token itself, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a secret")
    }
}

/// What a service says of itself.
#[derive(Debug, Clone)]
pub struct Registration {
    /// Its id, which never changes.
    pub id: String,
    /// Where it is, without a slash at the end; none: it is never sent anything.
    pub url: Option<String>,
    /// The token by which it shows who it is.
    pub as_token: Secret,
    /// The token by which this server shows it who we are.
    pub hs_token: Secret,
    /// Its own user, the part before the colon.
    pub sender_localpart: String,
    /// The users that it speaks for.
    pub users: Vec<Namespace>,
    /// The room aliases that it makes.
    pub aliases: Vec<Namespace>,
    /// The rooms that it wants to hear of.
    pub rooms: Vec<Namespace>,
    /// Whether the requests of its users are limited in rate; those of its own user never are.
    pub rate_limited: bool,
    /// The networks that it bridges.
    pub protocols: Vec<String>,
    /// Whether it wants typing, receipts and presence too.
    pub receive_ephemeral: bool,
    /// Whether it wants what end-to-end encryption of its users takes, with each transaction (MSC3202).
    pub msc3202: bool,
    /// Whether it makes devices for its users by itself (MSC4190). Every service may since v1.17 of the specification.
    pub msc4190: bool,
}

/// Identifiers that a service is interested in, or that are its own.
#[derive(Debug, Clone)]
pub struct Namespace {
    /// Matches from the beginning of an identifier on, as Synapse does it: what is to be its end has to be said with `$`.
    regex: Regex,
    /// Whether nobody else may make such ones.
    pub exclusive: bool,
}

impl Namespace {
    /// Whether an identifier lies in it.
    fn has(&self, id: &str) -> bool {
        self.regex.is_match(id)
    }
}

fn any_has(namespaces: &[Namespace], id: &str) -> bool {
    namespaces.iter().any(|namespace| namespace.has(id))
}

fn any_owns(namespaces: &[Namespace], id: &str) -> bool {
    namespaces.iter().any(|namespace| namespace.exclusive && namespace.has(id))
}

/// A service at this server.
#[derive(Debug, Clone)]
pub struct Appservice {
    registration: Registration,
    /// Its own user.
    pub sender: UserId,
}

impl Deref for Appservice {
    type Target = Registration;

    fn deref(&self) -> &Registration {
        &self.registration
    }
}

impl Appservice {
    /// A service that is registered at this server. Errors: 400 `M_INVALID_PARAM` if its own user's name is too long for it.
    pub fn new(registration: Registration, server: &ServerName) -> Result<Self> {
        let sender = UserId::parse(&format!("@{}:{server}", registration.sender_localpart))?;
        Ok(Self { registration, sender })
    }

    /// Whether it may act as this user: its own, or a local one in its namespaces.
    pub fn may_be(&self, user: &UserId) -> bool {
        self.sender == *user || self.is_local(user) && any_has(&self.users, user.as_str())
    }

    /// Whether it wants to hear what happens to this user. "Application services can only register interest in *local* users".
    pub fn wants_user(&self, user: &UserId) -> bool {
        self.may_be(user)
    }

    /// Whether it wants to hear what happens in a room of this id.
    pub fn wants_room(&self, room: &RoomId) -> bool {
        any_has(&self.rooms, room.as_str())
    }

    /// Whether it wants to hear what happens in a room with this alias, and may make that.
    pub fn wants_alias(&self, alias: &RoomAlias) -> bool {
        any_has(&self.aliases, alias.as_str())
    }

    /// Whether this user is for nobody else to make.
    pub fn is_exclusive_user(&self, user: &UserId) -> bool {
        self.sender == *user || self.is_local(user) && any_owns(&self.users, user.as_str())
    }

    /// Whether this alias is for nobody else to make.
    pub fn is_exclusive_alias(&self, alias: &RoomAlias) -> bool {
        any_owns(&self.aliases, alias.as_str())
    }

    /// The list of a network's rooms that this service publishes, as clients name it: `instance_id` in `/thirdparty/protocols`,
    /// `third_party_instance_id` in `/publicRooms`.
    pub fn instance_id(&self, network: &str) -> String {
        format!("{}|{network}", self.id)
    }

    fn is_local(&self, user: &UserId) -> bool {
        user.server_name() == self.sender.server_name()
    }
}
