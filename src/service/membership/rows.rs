//! The rows of `remote_memberships` as the handshakes use them: read together with what a room's last state says,
//! changed only by facts.

use serde_json::Value;
use serde_json::value::RawValue;

use crate::error::{Error, Result};
use crate::protocol::json::object_of;
use crate::protocol::pdu::Membership;
use crate::protocol::remote_membership::{Effect, Fact, RemoteMembership, apply};
use crate::protocol::rooms::stripped_state::{self, STRIPPED_TYPES};
use crate::protocol::{Millis, Pdu, RoomId, ServerName, UserId};
use crate::service::events::entry::check_not_closed;
use crate::service::membership::Memberships;
use crate::store::{Db, RoomKey, Tx};

/// Lets a fact take effect on the user's row, as it is in this transaction. Errors: 403 `M_FORBIDDEN`, also for a knock or a join of
/// who has no account any more, and others of [`Refusal`](crate::protocol::remote_membership::Refusal).
pub(in crate::service) fn note(
    tx: &mut Tx<'_>,
    room_id: &RoomId,
    user: &UserId,
    fact: Fact,
    now: Millis,
) -> Result<Effect> {
    if matches!(fact, Fact::UserKnocks(_) | Fact::UserJoins { .. }) {
        check_not_closed(tx, user.as_str())?;
    }
    let row = remote_membership_or_state(tx, room_id, user)?;
    let effect = apply(row, fact, now)?;
    tx.write_remote_membership(&effect)?;
    Ok(effect)
}

impl Memberships<'_> {
    /// [`note`] in a transaction of its own.
    pub(in crate::service) fn note_fact(
        &self,
        room_id: &RoomId,
        user: &UserId,
        fact: Fact,
    ) -> Result<Effect> {
        let (room_id, user, now) = (room_id.clone(), user.clone(), self.clock.now_ms());
        let effect = self.store.write(move |tx| note(tx, &room_id, &user, fact, now))?;
        self.scheduler.wake();
        Ok(effect)
    }

    /// [`Memberships::note_fact`] where no server said yes or no: it is tried again when one of these speaks to us,
    /// or later; after a week it is let go.
    pub(in crate::service) fn note_unanswered(
        &self,
        row: &RemoteMembership,
        servers: &[ServerName],
        fact: Fact,
    ) -> Result<()> {
        self.scheduler.waits_for(servers, &row.room_id, &row.user_id);
        warn_if_given_up(row, &self.note_fact(&row.room_id, &row.user_id, fact)?);
        Ok(())
    }

    /// The leave that the local user's clients are told at once. No server gets it: the event that the room gets is
    /// made from a server's template once one answers.
    pub(in crate::service) fn local_leave(
        &self,
        row: &RemoteMembership,
        reason: Option<&str>,
    ) -> Result<Pdu> {
        let template = object_of([
            ("type", Value::from("m.room.member")),
            ("room_id", row.room_id.as_str().into()),
            ("sender", row.user_id.as_str().into()),
            ("state_key", row.user_id.as_str().into()),
            ("prev_events", Value::Array(Vec::new())),
            ("auth_events", Value::Array(Vec::new())),
            ("depth", row.event.as_ref().map_or(1, |event| event.depth().saturating_add(1)).into()),
        ]);
        let content = self.member_content(&row.user_id, Membership::Leave, reason)?;
        self.sign_template(&template, row.room_version, &content)
    }
}

/// Says so if what no server answered is not tried again.
pub(in crate::service) fn warn_if_given_up(row: &RemoteMembership, effect: &Effect) {
    if effect.saved().is_some_and(|after| after.due_ms.is_none()) {
        log::warn!("gave up on {} for {} ({}) after a week of trying", row.room_id, row.user_id, row.state);
    }
}

/// This server came into the room: from now on its own state says who is a member.
pub(in crate::service) fn note_residence(tx: &mut Tx<'_>, room_id: &RoomId, now: Millis) -> Result<()> {
    for row in tx.remote_memberships_in(room_id)? {
        let effect = apply(Some(row), Fact::NowResident, now)?;
        tx.write_remote_membership(&effect)?;
    }
    Ok(())
}

/// The user's remote membership, also where only the room's last state that we know speaks of it: they were invited
/// (or knocked) while another local user was in the room, and that other one has left since.
pub(in crate::service) fn remote_membership_or_state(
    db: &Db<'_>,
    room_id: &RoomId,
    user: &UserId,
) -> Result<Option<RemoteMembership>> {
    if let Some(row) = db.remote_membership(room_id, user)? {
        return Ok(Some(row));
    }
    let Some(room) = db.room(room_id)?.filter(|room| !room.resident) else { return Ok(None) };
    if !matches!(db.membership(room.key, user)?, Some(Membership::Invite | Membership::Knock)) {
        return Ok(None);
    }
    let Some(event) = db.state_event(room.key, "m.room.member", user.as_str())? else { return Ok(None) };
    let shown = stripped_state_for_client(db, room.key, &event, user)?;
    Ok(RemoteMembership::left_behind(event, user, shown, db.resident_servers(room.key)?))
}

/// What somebody who is invited to a room whose state this server has, or knocks on it, is shown of it. `own`: their
/// member event.
pub(in crate::service) fn stripped_state_for_client(
    db: &Db<'_>,
    room: RoomKey,
    own: &Pdu,
    user: &UserId,
) -> Result<Vec<Box<RawValue>>> {
    let mut shown = Vec::new();
    for event_type in STRIPPED_TYPES {
        shown.extend(db.state_event(room, event_type, "")?);
    }
    // The inviter, so that the invitation can show a name and a face.
    let inviter = Some(own.sender()).filter(|sender| *sender != user);
    if let Some(inviter) = inviter {
        shown.extend(db.state_event(room, "m.room.member", inviter.as_str())?);
    }
    Ok(stripped_state::shown(&shown, inviter))
}

/// While this server is not in the room, a user's dealings with it are a row; once it is in, the room itself says who
/// is a member. Errors: 403 `M_FORBIDDEN`.
pub(in crate::service) fn check_not_resident(db: &Db<'_>, room_id: &RoomId) -> Result<()> {
    match db.room(room_id)? {
        Some(room) if room.resident => {
            Err(Error::forbidden("This server has come into the room in the meantime"))
        }
        _ => Ok(()),
    }
}
