//! Erased users: of ours, those who asked with their deactivation that what they sent be erased (client-server API,
//! "POST /account/deactivate").
//!
//! "Any users (or servers) which join the room after the erasure request are served redacted copies of the events sent
//! by this account. Users which had visibility on those events prior to the erasure are still able to see unredacted
//! copies." So nothing is changed in the database: whoever was not in the room between the event and the erasure is
//! given the redacted form. Every way out to clients (`client_format`,
//! [`RoomView`](crate::service::rooms::view::RoomView)) and to other servers (`serve/`) asks here.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::collections::HashMap;

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::protocol::json::read;
use crate::protocol::pdu::Membership;
use crate::protocol::rooms::visibility::HistoryVisibility;
use crate::protocol::{Pdu, ServerName, UserId};
use crate::store::{Db, EventKey, RoomKey, SnapshotId, StoredEvent};

/// Who looks.
#[derive(Clone, Copy)]
enum Reader<'v> {
    User(&'v UserId),
    Server(&'v ServerName),
}

/// What erasure takes from one reader's view of one room. Costs one look-up as long as nobody is erased.
pub struct Erasure<'v> {
    db: &'v Db<'v>,
    room: RoomKey,
    reader: Reader<'v>,
    /// The erased users, and the stream position at which each was.
    erased: OnceCell<HashMap<String, i64>>,
    /// When the reader was in the room: from one stream position to another.
    stays: OnceCell<Vec<(i64, i64)>>,
}

impl<'v> Erasure<'v> {
    /// For a local user.
    pub fn for_user(db: &'v Db<'v>, room: RoomKey, user: &'v UserId) -> Self {
        let (erased, stays) = (OnceCell::new(), OnceCell::new());
        Self { db, room, reader: Reader::User(user), erased, stays }
    }

    /// For another server.
    pub fn for_server(db: &'v Db<'v>, room: RoomKey, server: &'v ServerName) -> Self {
        let (erased, stays) = (OnceCell::new(), OnceCell::new());
        Self { db, room, reader: Reader::Server(server), erased, stays }
    }

    /// The database snapshot that is looked at.
    pub fn db(&self) -> &'v Db<'v> {
        self.db
    }

    /// The event as the reader may have it.
    pub fn shown<'e>(&self, event: &'e StoredEvent) -> Result<Cow<'e, Pdu>> {
        Ok(if self.hides(event)? { Cow::Owned(event.pdu.redacted()?) } else { Cow::Borrowed(&event.pdu) })
    }

    /// Whether the reader gets nothing but the redacted form of the event.
    pub fn hides(&self, event: &StoredEvent) -> Result<bool> {
        let Some(at) = self.erased_at(event.pdu.sender().as_str())? else { return Ok(false) };
        Ok(!is_needed(self.db, event)? && !self.had_sight(event, at)?)
    }

    /// Of these events those that the reader gets in their redacted form, and that form.
    pub fn redacted_among(&self, events: &[EventKey]) -> Result<HashMap<EventKey, Vec<u8>>> {
        #[derive(Deserialize)]
        struct Sent<'e> {
            #[serde(borrow)]
            sender: Cow<'e, str>,
        }
        let mut redacted = HashMap::new();
        if self.erased()?.is_empty() {
            return Ok(redacted);
        }
        let mut keys = events.iter();
        let mut candidates: Vec<&EventKey> = Vec::new();
        self.db.each_event(events.iter().copied(), |row| {
            let (key, sent) = (keys.next(), read::<Sent<'_>>(row.json.as_bytes()));
            if self.erased_at(&sent.map_err(Error::internal)?.sender)?.is_some() {
                candidates.extend(key);
            }
            Ok(())
        })?;
        for key in candidates {
            let event = self.db.event_by_key(*key)?;
            if self.hides(&event)? {
                redacted.insert(*key, event.pdu.redacted()?.json().to_vec());
            }
        }
        Ok(redacted)
    }

    /// When this user was erased, if they were.
    pub fn erased_at(&self, user: &str) -> Result<Option<i64>> {
        Ok(self.erased()?.get(user).copied())
    }

    fn erased(&self) -> Result<&HashMap<String, i64>> {
        if let Some(erased) = self.erased.get() {
            return Ok(erased);
        }
        let erased = self.db.erased_users()?;
        Ok(self.erased.get_or_init(|| erased))
    }

    /// Whether the reader could see the event before its sender was erased.
    fn had_sight(&self, event: &StoredEvent, erased_at: i64) -> Result<bool> {
        let sent_at = event.place.map_or(0, |place| place.stream);
        if self.stays()?.iter().any(|(from, to)| *from <= erased_at && *to > sent_at) {
            return Ok(true);
        }
        let Reader::User(user) = self.reader else { return Ok(false) };
        for state in [event.state_before, event.state_after].into_iter().flatten() {
            let member = self.db.state_event_in(state, "m.room.member", user.as_str())?;
            match member.and_then(|member| member.membership()) {
                Some(Membership::Join) => return Ok(true),
                Some(Membership::Invite) if self.shows_invited(state)? => return Ok(true),
                _ => {}
            }
        }
        Ok(false)
    }

    fn shows_invited(&self, state: SnapshotId) -> Result<bool> {
        let setting = self.db.state_event_in(state, "m.room.history_visibility", "")?;
        let content = setting.map(|event| event.content());
        Ok(HistoryVisibility::from_content(content.as_ref()) == HistoryVisibility::Invited)
    }

    fn stays(&self) -> Result<&[(i64, i64)]> {
        if let Some(stays) = self.stays.get() {
            return Ok(stays);
        }
        let stays = match self.reader {
            Reader::User(user) => stays_of_user(self.db, self.room, user)?,
            Reader::Server(server) => {
                let all = self
                    .db
                    .server_participations(server, 0)?
                    .into_iter()
                    .filter(|stay| stay.room == self.room);
                all.map(|stay| (stay.since, stay.until.unwrap_or(i64::MAX))).collect()
            }
        };
        Ok(self.stays.get_or_init(|| stays))
    }
}

/// When a local user was in a room.
fn stays_of_user(db: &Db<'_>, room: RoomKey, user: &UserId) -> Result<Vec<(i64, i64)>> {
    let is_join = |event: Option<EventKey>| -> Result<bool> {
        let membership = event.map(|key| db.pdu_by_key(key)).transpose()?.and_then(|pdu| pdu.membership());
        Ok(membership == Some(Membership::Join))
    };
    let (mut stays, mut until) = (Vec::new(), i64::MAX);
    let changes = db.state_tuple_changes(room, "m.room.member", user.as_str())?;
    for change in &changes {
        if is_join(change.event)? {
            stays.push((change.stream, until));
        }
        until = change.stream;
    }
    // Before the first change that we know of.
    let first = match changes.last() {
        Some(change) => change.previous,
        None => db.state_event_key(room, "m.room.member", user.as_str())?,
    };
    if is_join(first)? {
        stays.push((0, until));
    }
    Ok(stays)
}

/// Whether the event is needed whole by whoever takes part in the room, whoever sent it: what others' events are
/// authorised by, as far as redaction would take that away, and what the room is at present. None of it is what its
/// sender had to say of themselves, but for memberships.
fn is_needed(db: &Db<'_>, event: &StoredEvent) -> Result<bool> {
    let Some(state_key) = event.pdu.state_key() else { return Ok(false) };
    match event.pdu.event_type() {
        "m.room.create" | "m.room.power_levels" | "m.room.join_rules" | "m.room.third_party_invite" => {
            Ok(true)
        }
        "m.room.member" => {
            let (content, version) = (event.pdu.content(), event.pdu.version());
            let judged_by = |field: &str, kept: bool| content.contains_key(field) && !kept;
            Ok(judged_by("third_party_invite", version.redact_by_version_11)
                || judged_by("join_authorised_via_users_server", version.redact_keeps_authoriser))
        }
        event_type => Ok(db.state_event_key(event.room, event_type, state_key)? == Some(event.key)),
    }
}
