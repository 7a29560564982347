//! The calls that ask about one thing: who is behind an alias, a profile.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::{SMALL_ANSWER_BYTES_MAX, enc, object};
use crate::federation::call_error::CallResult;
use crate::federation::client::Client;
use crate::protocol::json::{First, read};
use crate::protocol::{RoomAlias, RoomId, ServerName, UserId};

/// Most server names believed from one answer.
const SERVERS_MAX: usize = 10_000;

/// The answer of `query/directory`.
#[derive(Debug, Deserialize)]
pub struct DirectoryAnswer {
    /// The room behind the alias.
    pub room_id: RoomId,
    /// Servers that may know the room; what was not a server name is left out.
    #[serde(default, deserialize_with = "only_server_names")]
    pub servers: Vec<ServerName>,
}

fn only_server_names<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Vec<ServerName>, D::Error> {
    let First(texts) = First::<Box<RawValue>, SERVERS_MAX>::deserialize(d)?;
    Ok(texts.iter().filter_map(|text| read(text.get().as_bytes()).ok()).collect())
}

impl Client {
    /// `GET query/directory`: the room behind an alias of the peer's.
    pub fn query_directory(
        &self,
        peer: &ServerName,
        alias: &RoomAlias,
        within: Duration,
    ) -> CallResult<DirectoryAnswer> {
        let path = format!("/_matrix/federation/v1/query/directory?room_alias={}", enc(alias));
        object(self.get(peer, path, within, SMALL_ANSWER_BYTES_MAX)?)
    }

    /// `GET query/profile`: the profile of a user of the peer's, or one field of it.
    pub fn query_profile(
        &self,
        peer: &ServerName,
        user: &UserId,
        field: Option<&str>,
        within: Duration,
    ) -> CallResult<Map<String, Value>> {
        let mut path = format!("/_matrix/federation/v1/query/profile?user_id={}", enc(user));
        if let Some(field) = field {
            let _ = write!(path, "&field={}", enc(field));
        }
        object(self.get(peer, path, within, SMALL_ANSWER_BYTES_MAX)?)
    }
}
