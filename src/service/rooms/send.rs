//! Rooms as their members write to them: spoken in, changed, redacted.

use serde_json::Value;

use crate::error::{ErrCode, Error, Result};
use crate::protocol::pdu::Membership;
use crate::protocol::{EventId, RoomAlias, RoomId, UserId};
use crate::service::events::accept::Sent;
use crate::service::events::draft::Draft;
use crate::service::membership::{AUTHORISER, JoinTarget, check_names, follow_tombstone};
use crate::service::rooms::Rooms;
use crate::service::rooms::client_drafts::{check_relation, membership_in};
use crate::service::rooms::view::readable_room;
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
        // A repeat gets its answer whatever the redaction would come to now.
        if draft.event_type == "m.room.redaction"
            && let Some(event_id) = self.store.read(|db| db.client_txn_event(&txn))?
        {
            return Ok(event_id);
        }
        self.check_draft(&mut draft)?;
        let sender = draft.sender.clone();
        let event_id =
            self.events().send_once(draft, Some(txn), check_relation).map_err(not_there_as_forbidden)?;
        self.ephemeral().note_activity(&sender);
        Ok(event_id)
    }

    /// Sends an event of any kind but a membership that a client asked for before, and does something else in the same
    /// transaction, which can still undo it. Errors as of [`Rooms::send_message`] and [`Rooms::send_state`].
    pub(super) fn send_and_then(
        &self,
        mut draft: Draft,
        extra: impl FnOnce(&mut Tx<'_>, &Sent) -> Result<()> + Send + 'static,
    ) -> Result<EventId> {
        self.check_draft(&mut draft)?;
        let replaces = replaces_room(&draft);
        self.events().send_with(draft, move |tx, sent| {
            check_relation(tx, sent)?;
            if replaces {
                follow_tombstone(tx, sent.key)?;
            }
            extra(tx, sent)
        })
    }

    /// `PUT /rooms/{roomId}/state/…`. Memberships go the way of their own endpoints; a state that would not change
    /// makes no new event. Errors: 403 `M_FORBIDDEN`; those of [`Rooms::check_draft`], and for its relation those of
    /// [`Rooms::send_message`].
    pub fn send_state(&self, mut draft: Draft) -> Result<EventId> {
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
        self.check_draft(&mut draft)?;
        let replaces = replaces_room(&draft);
        let follow = move |tx: &mut Tx<'_>, sent: &Sent| {
            check_relation(tx, sent)?;
            if replaces { follow_tombstone(tx, sent.key) } else { Ok(()) }
        };
        self.events().send_with(draft, follow).map_err(not_there_as_forbidden)
    }

    fn is_joined_to(&self, room: &RoomId, user: &UserId) -> Result<bool> {
        self.store.read(|db| match db.room(room)? {
            Some(room) => Ok(db.membership(room.key, user)? == Some(Membership::Join)),
            None => Ok(false),
        })
    }

    /// A membership by way of `PUT /state`: what takes more than an event goes where it is done.
    fn send_membership(&self, mut draft: Draft, target: &str) -> Result<EventId> {
        match self.way_of_membership(&mut draft, target)? {
            MembershipWay::Event => self.events().send(draft).map_err(not_there_as_forbidden),
            MembershipWay::Handshake(target, membership) => self.shake_hands(&draft, &target, membership),
        }
    }

    /// What a membership takes that is a state event of a client's; waits for what it rests on. Errors: 400.
    pub(super) fn way_of_membership(&self, draft: &mut Draft, target: &str) -> Result<MembershipWay> {
        let target = UserId::parse(target)?;
        // Only the server that lets somebody in may say in whose name, and servers refuse the event without the
        // signature of that user's server.
        draft.content.remove(AUTHORISER);
        let membership = membership_in(&draft.content)?;
        let own = target == draft.sender;
        let resident = self.store.read(|db| db.resident_room(&draft.room))?;
        let takes_more = match membership {
            Membership::Invite => true,
            Membership::Join => own && !self.is_joined_to(&draft.room, &draft.sender)?,
            Membership::Knock => own,
            Membership::Leave => own && resident.is_none(),
            Membership::Ban => false,
        };
        if takes_more {
            return Ok(MembershipWay::Handshake(target, membership));
        }
        check_names(&draft.content)?;
        if let Some(room) = resident.filter(|_| own && membership == Membership::Leave) {
            self.membership().wait_for_signed_invite(&room, &target)?;
        }
        Ok(MembershipWay::Event)
    }

    /// Does what the endpoint of a membership does. Errors: those of that.
    pub(super) fn shake_hands(
        &self,
        draft: &Draft,
        target: &UserId,
        membership: Membership,
    ) -> Result<EventId> {
        let reason = draft.content.get("reason").and_then(Value::as_str);
        let room = JoinTarget { room_id: draft.room.clone(), via: Vec::new() };
        let memberships = self.membership().said_at(draft.origin_server_ts);
        match membership {
            Membership::Join => {
                memberships.join_by_state(&draft.sender, &room, reason, draft.content.clone())?;
            }
            Membership::Knock => {
                memberships.knock_by_state(&draft.sender, &room, reason, &draft.content)?;
            }
            Membership::Leave => memberships.leave(&draft.sender, &draft.room, reason)?,
            Membership::Ban => return self.events().send(draft.clone()),
            Membership::Invite => {
                let mut extra = draft.content.clone();
                extra.remove("membership");
                extra.remove("reason");
                memberships.invite(&draft.sender, &draft.room, target, reason, extra)?;
            }
        }
        self.store.read(|db| {
            if let Some(room) = db.room(&draft.room)?
                && let Some(event) = db.state_event(room.key, "m.room.member", target.as_str())?
            {
                return Ok(event.event_id().clone());
            }
            let remote = db.remote_membership(&draft.room, target)?.and_then(|row| row.event.clone());
            let remote = remote.ok_or_else(|| Error::internal("a membership went missing"))?;
            Ok(remote.event_id().clone())
        })
    }
}

/// What a membership takes that is sent as a state event.
pub(super) enum MembershipWay {
    /// An event of the room.
    Event,
    /// What its own endpoint does: another server may have to be asked.
    Handshake(UserId, Membership),
}

/// Whether it is a tombstone.
fn replaces_room(draft: &Draft) -> bool {
    draft.event_type == "m.room.tombstone" && draft.state_key.as_deref() == Some("")
}

/// Clients get the same answer for a room that is not theirs and for one that does not exist.
pub(super) fn not_there_as_forbidden(error: Error) -> Error {
    if error.errcode() == ErrCode::NotFound { Error::not_in_room() } else { error }
}
