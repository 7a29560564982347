//! A connection: what the client has been told, room by room, and the tokens that name it (rule 1).
//!
//! A `pos` is `s`, a position of the stream, `~`, the connection and the version of what it was told: so it stands for
//! a place in any room's history as well. The position moves with each answer; the version only when something was
//! told that has to be remembered, so that an answer without news costs no write.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::hash::Hash;

use serde::{Deserialize, Serialize};

use super::request::{RequiredState, SlidingRequest, digest};
use crate::clock::Millis;
use crate::error::{ErrCode, Error, Result};
use crate::protocol::json::read;
use crate::protocol::{RoomId, UserId};
use crate::store::Db;
use crate::store::accounts::sliding_connections::{SlidingConnection, ToldRoom, UNUSED_MAX_MS};

/// Different wishes for state that one connection remembers. Beyond, those that are not asked for now are forgotten,
/// and state is told once more where it is asked for again.
const CONFIGS_MAX: usize = 50;
/// The same for the bytes that they have together: each answer that tells something new of them writes them all.
const CONFIGS_BYTES_MAX: usize = 64 * 1024;
/// Rooms that could not be told of which it is remembered one by one. If there are more, all are gone through.
const OWED_MAX: usize = 100;
/// Members of one room of whom it is remembered that the client has them.
const MEMBERS_MAX: usize = 200;

/// A token of sliding sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pos {
    /// The position of the stream that the answer covers.
    pub stream: i64,
    connection: i64,
    version: i64,
}

impl Pos {
    fn parse(token: &str) -> Option<Self> {
        let number = |text: &str| -> Option<i64> {
            text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
        };
        let (stream, version) = token.strip_prefix('s')?.split_once('~')?;
        let (connection, version) = version.split_once('.')?;
        Some(Self { stream: number(stream)?, connection: number(connection)?, version: number(version)? })
    }
}

impl fmt::Display for Pos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{}~{}.{}", self.stream, self.connection, self.version)
    }
}

/// What a client knows of a room.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Told {
    /// Up to which position its events and state are told; 0: not at all.
    #[serde(rename = "s")]
    pub seen: i64,
    /// What the user was to it.
    #[serde(rename = "l")]
    pub listed: ToldAs,
    /// Which state was wanted, as a digest.
    #[serde(rename = "c")]
    pub config: u64,
    /// How many of the latest events the client has without a gap.
    #[serde(rename = "t")]
    pub timeline: usize,
    /// Whether it was told to be a direct room.
    #[serde(rename = "d")]
    pub is_dm: bool,
    /// The members, as digests, of whom the client has what it was sent as it needed it.
    #[serde(rename = "m", skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<u64>,
    /// Up to which position receipts are told.
    #[serde(rename = "r")]
    pub receipts: i64,
    /// Account data likewise.
    #[serde(rename = "a")]
    pub account_data: i64,
    /// Who is typing likewise.
    #[serde(rename = "y")]
    pub typing: i64,
}

/// What a client takes the user to be in a room.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToldAs {
    /// In it.
    #[default]
    #[serde(rename = "j")]
    Joined,
    /// Invited or knocking.
    #[serde(rename = "o")]
    Outside,
    /// Out of it.
    #[serde(rename = "g")]
    Gone,
}

impl Told {
    /// Remembers that the client has these members.
    pub fn keep_members(&mut self, members: impl IntoIterator<Item = u64>) {
        self.members.extend(members);
        // The oldest go: the worst is that they are told once more.
        let beyond = self.members.len().saturating_sub(MEMBERS_MAX);
        self.members.drain(..beyond);
    }
}

/// What a client knows that belongs to no room.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct ToldOfAll {
    /// The lists and extensions that it asked for last, as a digest.
    shape: u64,
    /// Whether it has the global account data.
    account_data: bool,
    /// Whether it has the thread subscriptions, or knows where to ask for more.
    thread_subscriptions: bool,
    /// Whether rooms were left out of the last answer.
    behind: bool,
    /// The rooms that could not be told.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    owed: BTreeSet<String>,
    /// How many keys of the device it was told that there are, as a digest.
    key_counts: u64,
    /// Which state the rooms were told with.
    configs: BTreeMap<u64, RequiredState>,
}

/// A connection as a request finds it.
pub struct Connection {
    /// The row and version; none for a request without `pos`.
    row: Option<(SlidingConnection, i64)>,
    /// The position of the client's last answer; 0 if there was none.
    pub since: i64,
    of_all: ToldOfAll,
    /// What becomes of `of_all`.
    next_of_all: ToldOfAll,
    /// All that was told, if it was read whole.
    whole: Option<HashMap<String, String>>,
    /// What was told now.
    noted: Vec<ToldRoom>,
}

impl Connection {
    /// The connection that a request goes on with. Errors: 400 `M_UNKNOWN_POS` for a token that is none of this
    /// device's last two, or of a connection that was not used for a week: clients take it as a word to begin anew;
    /// 401 `M_UNKNOWN_TOKEN` if the device was logged out while the request waited.
    pub fn of(
        db: &Db<'_>,
        user: &UserId,
        device: &str,
        request: &SlidingRequest,
        (position, now): (i64, Millis),
    ) -> Result<Self> {
        let Some(token) = &request.pos else {
            let of_all = ToldOfAll::default();
            let next_of_all = ToldOfAll { shape: request.shape(), ..ToldOfAll::default() };
            return Ok(Self { row: None, since: 0, of_all, next_of_all, whole: None, noted: Vec::new() });
        };
        let pos = Pos::parse(token).filter(|pos| pos.stream <= position).ok_or_else(unknown_pos)?;
        let row = db.sliding_connection(user, device, &request.conn_id)?;
        let is_it = |row: &SlidingConnection| {
            row.connection == pos.connection
                && now - row.used_ms <= UNUSED_MAX_MS
                && pos.version > 0
                && [row.base, row.issued].contains(&pos.version)
        };
        let Some(row) = row.filter(is_it) else {
            return Err(unknown_to(user, device, db)?);
        };
        let of_all = db.told_of_room(row.connection, pos.version, "")?;
        let of_all: ToldOfAll = of_all.map(|told| told_in(&told)).transpose()?.unwrap_or_default();
        let (shape, owed) = (request.shape(), BTreeSet::new());
        let next_of_all = ToldOfAll { shape, behind: false, owed, ..of_all.clone() };
        let row = Some((row, pos.version));
        Ok(Self { row, since: pos.stream, of_all, next_of_all, whole: None, noted: Vec::new() })
    }

    /// Whether nothing was asked before.
    pub fn is_new(&self) -> bool {
        self.row.is_none()
    }

    /// Notes that rooms are left out, so that all are gone through next time.
    pub fn note_behind(&mut self) {
        self.next_of_all.behind = true;
    }

    /// Notes that a room could not be told: it is looked at again with the next request.
    pub fn note_owed(&mut self, room: &RoomId) {
        match self.next_of_all.owed.len() < OWED_MAX {
            true => drop(self.next_of_all.owed.insert(room.as_str().to_owned())),
            false => self.note_behind(),
        }
    }

    /// The rooms that could not be told last time.
    pub fn owed(&self) -> impl Iterator<Item = &str> {
        self.of_all.owed.iter().map(String::as_str)
    }

    /// Notes how many keys of the device the client is told that there are. Whether it was told otherwise last time.
    pub fn note_key_counts(&mut self, counts: &impl Hash) -> bool {
        self.next_of_all.key_counts = digest(counts);
        self.of_all.key_counts != self.next_of_all.key_counts
    }

    /// Whether the same lists and extensions are asked for as last time, and nothing was left out then.
    pub fn is_same_shape(&self) -> bool {
        self.row.is_some() && !self.of_all.behind && self.of_all.shape == self.next_of_all.shape
    }

    /// Whether the client has the global account data as of `since`.
    pub fn has_account_data(&self) -> bool {
        self.of_all.account_data
    }

    /// Notes whether the client has the global account data from now on.
    pub fn note_account_data(&mut self, has_it: bool) {
        self.next_of_all.account_data = has_it;
    }

    /// Whether the client has the user's thread subscriptions as of `since`.
    pub fn has_thread_subscriptions(&self) -> bool {
        self.of_all.thread_subscriptions
    }

    /// Notes whether the client has the user's thread subscriptions from now on.
    pub fn note_thread_subscriptions(&mut self, has_them: bool) {
        self.next_of_all.thread_subscriptions = has_them;
    }

    /// Reads at once what was told of all rooms, for a request that asks after most of them.
    pub fn read_whole(&mut self, db: &Db<'_>) -> Result<()> {
        let mut whole = HashMap::new();
        if let Some((row, version)) = &self.row {
            db.each_told_room(row.connection, *version, |room, told| {
                whole.insert(room.to_owned(), told.to_owned());
                Ok(())
            })?;
        }
        self.whole = Some(whole);
        Ok(())
    }

    /// What the client knows of a room.
    pub fn told(&self, db: &Db<'_>, room: &RoomId) -> Result<Option<Told>> {
        if let Some(whole) = &self.whole {
            return whole.get(room.as_str()).map(|told| told_in(told)).transpose();
        }
        let Some((row, version)) = &self.row else { return Ok(None) };
        let told = db.told_of_room(row.connection, *version, room.as_str())?;
        told.map(|told| told_in(&told)).transpose()
    }

    /// Which state a room was told with, if that is remembered.
    pub fn config(&self, digest: u64) -> Option<&RequiredState> {
        self.of_all.configs.get(&digest)
    }

    /// Remembers which state a room is told with.
    pub fn keep_config(&mut self, digest: u64, required: &RequiredState) {
        self.next_of_all.configs.entry(digest).or_insert_with(|| required.clone());
    }

    /// Notes what the client knows of a room from now on; none: nothing any more.
    pub fn note(&mut self, room: &RoomId, told: Option<&Told>) -> Result<()> {
        let told = told.map(serde_json::to_string).transpose().map_err(Error::internal)?;
        self.noted.push((room.as_str().to_owned(), told));
        Ok(())
    }

    /// What is to be written for the answer.
    pub fn into_step(mut self, asked: &[u64]) -> Result<ConnectionStep> {
        let bytes: usize = self.next_of_all.configs.values().map(RequiredState::bytes).sum();
        if self.next_of_all.configs.len() > CONFIGS_MAX || bytes > CONFIGS_BYTES_MAX {
            self.next_of_all.configs.retain(|digest, _| asked.contains(digest));
        }
        if self.row.is_none() || self.next_of_all != self.of_all {
            let of_all = serde_json::to_string(&self.next_of_all).map_err(Error::internal)?;
            self.noted.push((String::new(), Some(of_all)));
        }
        Ok(ConnectionStep { row: self.row, noted: self.noted })
    }
}

/// What is to be written before an answer goes out.
pub struct ConnectionStep {
    /// The connection and the version that the client has; none for a new connection.
    pub row: Option<(SlidingConnection, i64)>,
    /// What was told.
    pub noted: Vec<ToldRoom>,
}

impl ConnectionStep {
    /// The token of an answer that goes with a version.
    pub fn pos(connection: i64, version: i64, stream: i64) -> String {
        Pos { stream, connection, version }.to_string()
    }
}

fn told_in<T: for<'t> Deserialize<'t>>(json: &str) -> Result<T> {
    read(json.as_bytes()).map_err(Error::internal)
}

/// 400 `M_UNKNOWN_POS`: the client begins anew.
pub fn unknown_pos() -> Error {
    Error::new(ErrCode::UnknownPos, "This position is not known (any more): please begin anew")
}

/// Why a connection is not there: its device is not either, or the client begins anew.
pub fn unknown_to(user: &UserId, device: &str, db: &Db<'_>) -> Result<Error> {
    Ok(match db.device(user, device)? {
        Some(_) => unknown_pos(),
        None => {
            Error::new(ErrCode::UnknownToken, "This device was logged out").with_field("soft_logout", false)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_back_as_it_was_written_and_no_other_is() {
        let pos = Pos { stream: 815, connection: 7, version: 3 };
        assert_eq!(pos.to_string(), "s815~7.3");
        assert_eq!(Pos::parse("s815~7.3"), Some(pos));
        for wrong in [
            "",
            "s815",
            "815~7.3",
            "s-1~7.3",
            "s815~7",
            "s815~7.3.1",
            "s~.",
            "s815~7.+3",
            "s99999999999999999999~1.1",
        ] {
            assert_eq!(Pos::parse(wrong), None, "{wrong}");
        }
    }
}
