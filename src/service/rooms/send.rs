//! Rooms as their members write to them: spoken in, changed, redacted.

use std::sync::Mutex;

use serde_json::{Map, Value};

use crate::error::{ErrCode, Error, Result};
use crate::locks::lock;
use crate::order;
use crate::protocol::pdu::Membership;
use crate::protocol::{EventId, RoomAlias, RoomId, UserId};
use crate::service::accounts::moderation::{not_for_guests, suspended};
use crate::service::events::accept::Sent;
use crate::service::events::build::Draft;
use crate::service::events::power_levels::power_levels;
use crate::service::limits::request_permits::{Asker, AskerId};
use crate::service::membership::{AUTHORISER, JoinTarget};
use crate::service::rooms::Rooms;
use crate::service::rooms::view::{RoomView, readable_room};
use crate::store::Tx;
use crate::store::accounts::client_transactions::ClientTxn;

impl Rooms<'_> {
    /// An alias of this server by its local part. Errors: 400 `M_INVALID_PARAM`.
    pub(super) fn own_alias(&self, localpart: &str) -> Result<RoomAlias> {
        if localpart.is_empty() || localpart.contains(':') || localpart.chars().any(char::is_whitespace) {
            return Err(Error::invalid_param("room_alias_name must be the local part of an alias"));
        }
        RoomAlias::parse(&format!("#{localpart}:{}", self.server_name()))
    }

    /// Sends an event without a state key. A repeat of the same transaction answers the first event. Errors: 403
    /// `M_FORBIDDEN`, 400, 413 as the room has it; 400 `M_UNKNOWN` for what is to begin a thread at an event that relates
    /// to another, 400 `M_DUPLICATE_ANNOTATION`.
    pub fn send_message(&self, mut draft: Draft, txn: ClientTxn) -> Result<EventId> {
        if draft.event_type == "m.room.redaction" {
            // A repeat gets its answer whatever the redaction would come to now.
            if let Some(event_id) = self.store.read(|db| db.client_txn_event(&txn))? {
                return Ok(event_id);
            }
            self.check_redaction(&mut draft)?;
        }
        let sender = draft.sender.clone();
        let event_id =
            self.events().send_once(draft, Some(txn), check_relation).map_err(not_there_as_forbidden)?;
        self.ephemeral().note_activity(&sender);
        Ok(event_id)
    }

    /// Sends an event of any kind that a client asked for before, and does something else in the same transaction, which
    /// can still undo it. Errors as of [`Rooms::send_message`] and [`Rooms::send_state`].
    pub(super) fn send_and_then(
        &self,
        mut draft: Draft,
        extra: impl FnOnce(&mut Tx<'_>) -> Result<()> + Send + 'static,
    ) -> Result<EventId> {
        match (draft.event_type.as_str(), draft.state_key.clone()) {
            ("m.room.member", Some(target)) => {
                // That may take another server: what is to be done once is done before.
                self.store.write(extra)?;
                return self.send_membership(draft, &target);
            }
            ("m.room.redaction", None) => self.check_redaction(&mut draft)?,
            ("m.room.canonical_alias", Some(key)) if key.is_empty() => {
                let old = self.store.read(|db| {
                    let room = readable_room(db, &draft.room)?;
                    db.state_event(room.key, &draft.event_type, &key)
                })?;
                let old = old.map(|old| old.content()).unwrap_or_default();
                self.check_canonical_alias((&draft.room, &draft.sender), &old, &draft.content)?;
            }
            _ => {}
        }
        let is_state = draft.state_key.is_some();
        self.events().send_with(draft, move |tx, sent| {
            if !is_state {
                check_relation(tx, sent)?;
            }
            extra(tx)
        })
    }

    /// Finds what a redaction redacts, and whether it may. Errors: 400 `M_MISSING_PARAM`, 403 `M_FORBIDDEN`.
    fn check_redaction(&self, draft: &mut Draft) -> Result<()> {
        // "Homeservers MUST allow clients to send m.room.redaction events with this endpoint for all room versions."
        if draft.redacts.is_none() {
            let redacts = draft.content.remove("redacts");
            let redacts = redacts.as_ref().and_then(Value::as_str);
            let redacts = redacts.ok_or_else(|| Error::missing_param("A redaction needs `redacts`"))?;
            draft.redacts = Some(EventId::parse(redacts)?);
        }
        self.may_redact(draft)
    }

    /// Whether a redaction would take effect: one's own events may be redacted by whoever may send redactions, others'
    /// by those with the power. The auth rules of newer rooms let every redaction pass, so this is asked before.
    fn may_redact(&self, draft: &Draft) -> Result<()> {
        let Some(redacts) = &draft.redacts else { return Ok(()) };
        self.store.read(|db| {
            let room = readable_room(db, &draft.room)?;
            // Before anything else, so that nobody else learns which events there are.
            RoomView::new(db, &room, &draft.sender)?.require_joined()?;
            let target = db.event(redacts)?.filter(|target| target.room == room.key);
            let target = target.ok_or_else(|| Error::not_found("There is no such event in this room"))?;
            if *target.pdu.sender() == draft.sender
                || power_levels(db, &room)?.may_redact(draft.sender.as_str())
            {
                return Ok(());
            }
            Err(Error::forbidden("You may not redact the events of others in this room"))
        })
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

    /// `PUT /rooms/{roomId}/state/…`. Memberships go the way of their own endpoints; a state that would not change
    /// makes no new event. Errors: 403 `M_FORBIDDEN`; 400 `M_BAD_ALIAS`, `M_INVALID_PARAM` for canonical aliases.
    pub fn send_state(&self, draft: Draft) -> Result<EventId> {
        let state_key = draft.state_key.clone().unwrap_or_default();
        let present = self.store.read(|db| {
            let room = readable_room(db, &draft.room)?;
            db.state_event(room.key, &draft.event_type, &state_key)
        });
        if draft.event_type == "m.room.member" {
            return self.send_membership(draft, &state_key);
        }
        let present = present?;
        if let Some(present) = &present
            && *present.sender() == draft.sender
            && present.content() == draft.content
            && self.is_joined_to(&draft.room, &draft.sender)?
        {
            return Ok(present.event_id().clone());
        }
        if draft.event_type == "m.room.tombstone"
            && state_key.is_empty()
            && draft.content.get("replacement_room") == Some(&draft.room.as_str().into())
        {
            return Err(Error::invalid_param("A room cannot be replaced by itself"));
        }
        if draft.event_type == "m.room.canonical_alias" && state_key.is_empty() {
            let old = present.map(|present| present.content()).unwrap_or_default();
            self.check_canonical_alias((&draft.room, &draft.sender), &old, &draft.content)?;
        }
        self.events().send(draft).map_err(not_there_as_forbidden)
    }

    fn is_joined_to(&self, room: &RoomId, user: &UserId) -> Result<bool> {
        self.store.read(|db| match db.room(room)? {
            Some(room) => Ok(db.membership(room.key, user)? == Some(Membership::Join)),
            None => Ok(false),
        })
    }

    /// A membership by way of `PUT /state`: what takes more than an event goes where it is done.
    fn send_membership(&self, mut draft: Draft, target: &str) -> Result<EventId> {
        let target = UserId::parse(target)?;
        // Only the server that lets somebody in may say in whose name, and servers refuse the event without the
        // signature of that user's server.
        draft.content.remove(AUTHORISER);
        let membership = draft.content.get("membership").and_then(Value::as_str).and_then(Membership::parse);
        let membership =
            membership.ok_or_else(|| Error::bad_json("m.room.member needs a valid membership"))?;
        let own = target == draft.sender;
        let reason = draft.content.get("reason").and_then(Value::as_str).map(str::to_owned);
        let room = JoinTarget { room_id: draft.room.clone(), via: Vec::new() };
        let resident = self.store.read(|db| db.resident_room(&draft.room))?;
        match membership {
            Membership::Invite => {
                let mut extra = draft.content.clone();
                extra.remove("membership");
                extra.remove("reason");
                self.membership().invite(&draft.sender, &draft.room, &target, reason.as_deref(), extra)?;
            }
            Membership::Join if own && !self.is_joined_to(&draft.room, &draft.sender)? => {
                self.membership().join_with(
                    &draft.sender,
                    &room,
                    reason.as_deref(),
                    draft.content.clone(),
                )?;
            }
            Membership::Knock if own => self.membership().knock(&draft.sender, &room, reason.as_deref())?,
            Membership::Leave if own => match resident {
                None => self.membership().leave(&draft.sender, &draft.room, reason.as_deref())?,
                Some(room) => {
                    self.membership().wait_for_signed_invite(&room, &target)?;
                    return self.events().send(draft).map_err(not_there_as_forbidden);
                }
            },
            _ => return self.events().send(draft).map_err(not_there_as_forbidden),
        }
        self.store.read(|db| {
            if let Some(room) = db.room(&draft.room)?
                && let Some(event) = db.state_event(room.key, "m.room.member", target.as_str())?
            {
                return Ok(event.event_id().clone());
            }
            let remote = db.remote_membership(&draft.room, &target)?.and_then(|row| row.event.clone());
            let remote = remote.ok_or_else(|| Error::internal("a membership went missing"))?;
            Ok(remote.event_id().clone())
        })
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
        let bad =
            || Error::new(ErrCode::BadAlias, format!("The alias '{alias}' does not point to this room."));
        match self.look_up_alias(asker, alias) {
            Ok((found, _)) if found == *room => Ok(()),
            Err(error) if error.errcode() == ErrCode::LimitExceeded => Err(error),
            _ => Err(bad()),
        }
    }
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
fn check_relation(tx: &mut Tx<'_>, sent: &Sent) -> Result<()> {
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

/// The aliases in the content of `m.room.canonical_alias`. Errors: 400 `M_INVALID_PARAM` for values of other types.
fn aliases_in(content: &Map<String, Value>) -> Result<Vec<String>> {
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

/// Clients get the same answer for a room that is not theirs and for one that does not exist.
pub(super) fn not_there_as_forbidden(error: Error) -> Error {
    if error.errcode() == ErrCode::NotFound { Error::not_in_room() } else { error }
}
