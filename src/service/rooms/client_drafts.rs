//! What clients may not send though the rules of the room allow it, asked by whichever door it comes: `/send`, `/state`,
//! `/redact`, and as an event that is sent later. (What the events of a new room may not be: `create/plan`.)

use std::sync::Mutex;

use serde_json::{Map, Value};

use crate::error::{ErrCode, Error, Result};
use crate::locks::lock;
use crate::order;
use crate::protocol::event_auth::PowerLevels;
use crate::protocol::pdu::Membership;
use crate::protocol::{EventId, RoomAlias, RoomId, ServerName, UserId};
use crate::service::accounts::moderation::{not_for_guests, suspended};
use crate::service::events::accept::Sent;
use crate::service::events::build::check_server_acl;
use crate::service::events::draft::Draft;
use crate::service::limits::request_permits::{Asker, AskerId};
use crate::service::rooms::Rooms;
use crate::service::rooms::view::{RoomView, readable_room};
use crate::store::{Db, Room, Tx};

impl Rooms<'_> {
    /// Whether a client may send this now, as far as it does not show only when the event is in its room
    /// ([`check_relation`]). Of a redaction what it redacts is put where a draft has it. Memberships are judged where they
    /// are made. Errors: those of [`Rooms::check_content`]; 404 `M_NOT_FOUND` for what is to be redacted; 400
    /// `M_BAD_ALIAS`; 403 `M_FORBIDDEN` for who is not in the room.
    pub(super) fn check_draft(&self, draft: &mut Draft) -> Result<()> {
        self.check_content(draft)?;
        match (draft.event_type.as_str(), draft.state_key.as_deref()) {
            ("m.room.redaction", _) => self.find_redacted(draft),
            _ => self.check_new_aliases(draft),
        }
    }

    /// Whether the aliases lead to the room that a draft gives it. Errors: 400 `M_BAD_ALIAS`; 429 `M_LIMIT_EXCEEDED`.
    pub(super) fn check_new_aliases(&self, draft: &Draft) -> Result<()> {
        if (draft.event_type.as_str(), draft.state_key.as_deref()) != ("m.room.canonical_alias", Some("")) {
            return Ok(());
        }
        let old = self.store.read(|db| {
            let room = readable_room(db, &draft.room)?;
            db.state_event(room.key, &draft.event_type, "")
        })?;
        let old = old.map(|old| old.content()).unwrap_or_default();
        self.check_canonical_alias((&draft.room, &draft.sender), &old, &draft.content)
    }

    /// What shows by the event itself, whatever becomes of its room until it is sent. Errors: 400 `M_MISSING_PARAM`,
    /// `M_INVALID_PARAM`, `M_BAD_JSON`.
    pub(super) fn check_content(&self, draft: &Draft) -> Result<()> {
        match (draft.event_type.as_str(), draft.state_key.as_deref()) {
            ("m.room.redaction", _) => redacted_by(draft).map(drop),
            ("m.room.canonical_alias", Some("")) => aliases_in(&draft.content).map(drop),
            // As a message it replaces no room, and is no less wrong.
            ("m.room.tombstone", None | Some(""))
                if draft.content.get("replacement_room") == Some(&draft.room.as_str().into()) =>
            {
                Err(Error::invalid_param("A room cannot be replaced by itself"))
            }
            ("m.room.server_acl", Some("")) => check_server_acl(self.server_name(), &draft.content),
            ("m.room.member", Some(target)) => {
                membership_in(&draft.content).and_then(|_| UserId::parse(target)).map(drop)
            }
            _ => Ok(()),
        }
    }

    /// Finds what a redaction redacts. Whether its sender may redact that is asked with the other rights, where the
    /// event is authorised. A redaction is one whether or not it has a state key: other servers apply it all the same.
    fn find_redacted(&self, draft: &mut Draft) -> Result<()> {
        let redacts = redacted_by(draft)?;
        // "Homeservers MUST allow clients to send m.room.redaction events with this endpoint for all room versions."
        draft.content.remove("redacts");
        self.store.read(|db| {
            let room = readable_room(db, &draft.room)?;
            // Before anything else, so that nobody else learns which events there are.
            RoomView::new(db, &room, &draft.sender)?.require_joined()?;
            let is_there = match db.event(&redacts)? {
                Some(target) => target.room == room.key,
                // A moderator who has come in just now, or whose server has refused what others took, acts by the id alone:
                // the redaction waits for its target then. Without that level it could only be for an event of their own,
                // which would be here.
                None => is_event_id(&redacts) && may_redact_any(db, &room, &draft.sender)?,
            };
            if is_there { Ok(()) } else { Err(Error::not_found("There is no such event in this room")) }
        })?;
        draft.redacts = Some(redacts);
        Ok(())
    }

    /// What a suspended user may send ("Account suspension"): their leave, and redactions of their own events. Errors: 403
    /// `M_USER_SUSPENDED`.
    pub fn check_sent_while_suspended(&self, draft: &Draft) -> Result<()> {
        let is_own = match (draft.event_type.as_str(), &draft.state_key) {
            ("m.room.member", Some(target)) => {
                *target == draft.sender.as_str() && draft.content.get("membership") == Some(&"leave".into())
            }
            ("m.room.redaction", None) => {
                let in_content = draft.content.get("redacts").and_then(Value::as_str);
                let target = draft.redacts.clone().or_else(|| EventId::parse(in_content?).ok());
                let target =
                    target.map(|target| self.store.read(|db| db.pdu(&target))).transpose()?.flatten();
                target.is_some_and(|target| *target.sender() == draft.sender)
            }
            _ => false,
        };
        if is_own { Ok(()) } else { Err(suspended()) }
    }

    /// "Servers SHOULD ensure that any new aliases being listed in the event are valid per their grammar/syntax and
    /// that they point to the room ID where the state event is to be sent."
    fn check_canonical_alias(
        &self,
        (room, sender): (&RoomId, &UserId),
        old: &Map<String, Value>,
        new: &Map<String, Value>,
    ) -> Result<()> {
        let known = aliases_in(old).unwrap_or_default();
        let added = aliases_in(new)?.into_iter().filter(|alias| !known.contains(alias));
        let mut added: Vec<RoomAlias> = added.map(|alias| RoomAlias::parse(&alias)).collect::<Result<_>>()?;
        // Ours first: these cost nothing, and if one is wrong nobody else need be asked.
        order::sort_by_key(&mut added, |alias| alias.server_name() != self.server_name().as_str());
        let (next, failed) = (Mutex::new(added.into_iter()), Mutex::new(None));
        let asker = Asker::new(AskerId::User(sender.clone()));
        let work = || {
            loop {
                let alias = lock(&next).next();
                let Some(alias) = alias.filter(|_| lock(&failed).is_none()) else { return };
                if let Err(error) = self.check_points_to(&asker, &alias, room) {
                    lock(&failed).get_or_insert(error);
                }
            }
        };
        // Side by side, since others may be silent, each as long as we have patience.
        std::thread::scope(|scope| {
            let count = lock(&next).len();
            for _ in 1..ALIASES_ASKED_AT_ONCE.min(count) {
                let _ = std::thread::Builder::new().name("alias".to_owned()).spawn_scoped(scope, work);
            }
            work();
        });
        let failed = lock(&failed).take();
        failed.map_or(Ok(()), Err)
    }

    /// Errors: 400 `M_BAD_ALIAS` for an alias of another room, or of none; 429 `M_LIMIT_EXCEEDED`.
    fn check_points_to(&self, asker: &Asker, alias: &RoomAlias, room: &RoomId) -> Result<()> {
        match self.look_up_alias(asker, alias) {
            Ok((found, _)) if found == *room => Ok(()),
            Err(error) if error.errcode() == ErrCode::LimitExceeded => Err(error),
            _ => Err(bad_alias(alias.as_str())),
        }
    }
}

/// What a draft redacts, from wherever its client has put that. Errors: 400 `M_MISSING_PARAM`, `M_INVALID_PARAM`.
fn redacted_by(draft: &Draft) -> Result<EventId> {
    if let Some(redacts) = &draft.redacts {
        return Ok(redacts.clone());
    }
    let redacts = draft.content.get("redacts").and_then(Value::as_str);
    EventId::parse(redacts.ok_or_else(|| Error::missing_param("A redaction needs `redacts`"))?)
}

/// Whether an event can have this id, in one version of rooms or another: what a permalink has is sometimes of an old form.
fn is_event_id(id: &EventId) -> bool {
    const HASH_LEN: usize = 43;
    match id.server_name() {
        Some(server) => ServerName::parse(server).is_ok(),
        None => {
            let hash = &id.as_str()[1..];
            let fits = |b: u8| b.is_ascii_alphanumeric() || b"-_+/".contains(&b);
            hash.len() == HASH_LEN && hash.bytes().all(fits)
        }
    }
}

/// Whether the user's level suffices to redact anybody's events, by the room as it is now.
fn may_redact_any(db: &Db<'_>, room: &Room, user: &UserId) -> Result<bool> {
    let state = |event_type: &str, key: &str| db.state_event(room.key, event_type, key).ok().flatten();
    Ok(PowerLevels::of(room.version, &state).may_redact(user.as_str()))
}

/// The membership of a member event. Errors: 400 `M_BAD_JSON`.
pub(super) fn membership_in(content: &Map<String, Value>) -> Result<Membership> {
    let membership = content.get("membership").and_then(Value::as_str).and_then(Membership::parse);
    membership.ok_or_else(|| Error::bad_json("m.room.member needs a valid membership"))
}

/// Of memberships, a guest sends those that have endpoints for guests: their own, which join, change their profile or leave. Errors:
/// 403 `M_GUEST_ACCESS_FORBIDDEN`.
pub fn check_sent_by_guest(draft: &Draft) -> Result<()> {
    if draft.event_type != "m.room.member" {
        return Ok(());
    }
    let membership = draft.content.get("membership").and_then(Value::as_str);
    let is_own = draft.state_key.as_deref() == Some(draft.sender.as_str());
    match membership.and_then(Membership::parse) {
        Some(Membership::Join | Membership::Leave) if is_own => Ok(()),
        _ => Err(not_for_guests("Guests may only join and leave")),
    }
}

/// What the relation of an event that was just put into its room makes of it.
pub(super) fn check_relation(tx: &mut Tx<'_>, sent: &Sent) -> Result<()> {
    // "Homeservers should prevent users from sending a second annotation for a given event with identical event `type` and
    // annotation `key`."
    if tx.repeats_annotation(sent.key)? {
        return Err(Error::new(ErrCode::DuplicateAnnotation, "You have sent the same reaction already"));
    }
    // "Servers SHOULD reject client requests which attempt to start a thread off an event with an `m.relates_to` property …
    // servers should use `M_UNKNOWN` alongside the HTTP 400 status code." That of a mere reply is none of these: "any event
    // without a `rel_type` can become a thread root".
    if tx.is_in_thread_of_related(sent.key)? {
        let error = Error::new(ErrCode::Unknown, "No thread can begin at an event that relates to another");
        return Err(error.with_status(400));
    }
    Ok(())
}

/// So many of them are asked for side by side.
const ALIASES_ASKED_AT_ONCE: usize = 8;
/// No canonical alias event lists more new aliases than this, since each may ask another server.
const ALIASES_MAX: usize = 50;

/// Errors of an alias that a room is to show and that does not lead to it.
pub(super) fn bad_alias(alias: &str) -> Error {
    Error::new(ErrCode::BadAlias, format!("The alias '{alias}' does not point to this room."))
}

/// The aliases in the content of `m.room.canonical_alias`. Errors: 400 `M_INVALID_PARAM` for values of other types.
pub(super) fn aliases_in(content: &Map<String, Value>) -> Result<Vec<String>> {
    let wrong = || Error::invalid_param("Aliases must be strings");
    let mut aliases = Vec::new();
    match content.get("alias") {
        None | Some(Value::Null) => {}
        // An empty alias is the usual way to say that there is none.
        Some(Value::String(alias)) if alias.is_empty() => {}
        Some(Value::String(alias)) => aliases.push(alias.clone()),
        Some(_) => return Err(wrong()),
    }
    match content.get("alt_aliases") {
        None | Some(Value::Null) => {}
        Some(Value::Array(list)) => {
            for alias in list {
                aliases.push(alias.as_str().ok_or_else(wrong)?.to_owned());
            }
        }
        Some(_) => return Err(wrong()),
    }
    if aliases.len() > ALIASES_MAX {
        return Err(Error::invalid_param("Too many aliases"));
    }
    Ok(aliases)
}
