//! The rows of `remote_memberships` as the handshakes use them: read together with what a room's last state says,
//! changed only by facts.

use serde_json::Value;
use serde_json::value::RawValue;

use crate::error::{Error, Result};
use crate::protocol::json::object_of;
use crate::protocol::pdu::Membership;
use crate::protocol::remote_membership::{Effect, Fact, RemoteMembership, RemoteState, apply};
use crate::protocol::rooms::stripped_state::{self, STRIPPED_TYPES};
use crate::protocol::{Millis, Pdu, RoomId, ServerName, UserId, VerifiedPdu};
use crate::service::events::accept::{EventSource, authorise_copy, store_decision};
use crate::service::events::authorise::{AuthContext, Verdict};
use crate::service::events::entry::check_not_closed;
use crate::service::events::resolve::ResolutionBudget;
use crate::service::events::server_acl::RoomAcl;
use crate::service::membership::Memberships;
use crate::store::rooms::pending_events::NewPendingEvent;
use crate::store::{Db, Room, RoomKey, Status, StoredEvent, Tx};

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
    let room = tx.known_room(room_id)?;
    for row in tx.remote_memberships_in(room_id)? {
        take_along(tx, &room, &row, now)?;
        let lacks_leave = lacks_leave_of(tx, &room, &row)?;
        let effect = apply(Some(row), Fact::NowResident { lacks_leave }, now)?;
        tx.write_remote_membership(&effect)?;
    }
    Ok(())
}

/// Whether the room shows the user as what they have left: a server took their leave, and the state that we came in by is
/// older, or another server's. Nobody tells us of our own events.
fn lacks_leave_of(db: &Db<'_>, room: &Room, row: &RemoteMembership) -> Result<bool> {
    let is_own = row.event.as_ref().is_some_and(|leave| leave.sender() == &row.user_id);
    if row.state != RemoteState::Closed || !is_own {
        return Ok(false);
    }
    let present = db.state_event(room.key, "m.room.member", row.user_id.as_str())?;
    let is_left = |present: Pdu| {
        let id = present.event_id();
        row.leave_handed_in().is_some_and(|leave| leave.auth_events().contains(id))
            || row.previous.as_ref().is_some_and(|left| left.event_id() == id)
    };
    let is_in = |membership| matches!(membership, Membership::Join | Membership::Invite | Membership::Knock);
    Ok(present.filter(|present| present.membership().is_some_and(is_in)).is_some_and(is_left))
}

/// Another local user's invite or knock may have been made beside the join that brings us into the room, and then the state
/// that comes with the room does not know of it; nor need anybody tell us of it again. It is received like an event that the
/// room has sent: at once if nothing is lacking for that, else it is pending.
fn take_along(tx: &mut Tx<'_>, room: &Room, row: &RemoteMembership, now: Millis) -> Result<()> {
    for event in tx.member_events_of(row) {
        take_event_along(tx, room, row, event, now)?;
    }
    Ok(())
}

fn take_event_along(
    tx: &mut Tx<'_>,
    room: &Room,
    row: &RemoteMembership,
    event: VerifiedPdu,
    now: Millis,
) -> Result<()> {
    let from = match (row.state, event.membership()) {
        (RemoteState::Invited | RemoteState::Joining, Some(Membership::Invite)) => {
            Some(event.sender().server())
        }
        // One that is covered by a stranger's invite is still there.
        (RemoteState::Knocked | RemoteState::Invited, Some(Membership::Knock)) => row.via.first().cloned(),
        _ => None,
    };
    // The room lets some servers in no more, which nobody outside of it knows.
    let sender = event.sender();
    if !tx.is_local(sender.as_str()) && !RoomAcl::of(tx, room)?.allows(&sender.server()) {
        return Ok(());
    }
    let present = tx.state_event(room.key, "m.room.member", row.user_id.as_str())?;
    // What the room has in its place is older only if the event rests on it, or if it is the join that was on its way
    // when the invite came: that does not rest on the invite.
    let is_news = present.is_none_or(|present| {
        let met = row.is_entered_by(present.event_id()) && !present.auth_events().contains(event.event_id());
        event.auth_events().contains(present.event_id()) || met
    });
    let Some(from) = from.filter(|_| is_news && event.version().id == room.version.id) else {
        return Ok(());
    };
    let context = AuthContext { budget: ResolutionBudget::Bounded, ..AuthContext::live(None) };
    match authorise_copy(tx, &event, context)? {
        Verdict::Decided(decision) if decision.status == Status::Accepted => {
            store_decision(tx, &event, *decision, EventSource::Transaction).map(drop)
        }
        Verdict::Known(_) | Verdict::Refused(_) => Ok(()),
        // It goes the whole way, from the check of its signatures on.
        Verdict::Decided(_)
        | Verdict::MissingAuth(_)
        | Verdict::MissingPrev
        | Verdict::NeedsWork
        | Verdict::IsBehind => {
            let waiting = (event.event_id().clone(), event.json());
            tx.add_pending(&NewPendingEvent::for_keys(room.key, waiting, &[], (0, now)), &from, now)
        }
    }
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
    let Some(key) = db.state_event_key(room.key, "m.room.member", user.as_str())? else { return Ok(None) };
    let event = db.event_by_key(key)?;
    let shown = stripped_state_for_client(db, room.key, &event, user)?;
    Ok(RemoteMembership::left_behind(event.pdu, user, shown, db.resident_servers(room.key)?))
}

/// What somebody who is invited to a room whose state this server has, or knocks on it, is shown of it: what it was when
/// they were invited or knocked, not what was said behind the door since; as far as that is known, which of a room that came
/// here with its state it is not. `own`: their member event.
pub(in crate::service) fn stripped_state_for_client(
    db: &Db<'_>,
    room: RoomKey,
    own: &StoredEvent,
    user: &UserId,
) -> Result<Vec<Box<RawValue>>> {
    let state_event = |event_type: &str, state_key: &str| match own.state_before {
        Some(state) => db.state_event_in(state, event_type, state_key),
        None => db.state_event(room, event_type, state_key),
    };
    let mut shown = Vec::new();
    for event_type in STRIPPED_TYPES {
        shown.extend(state_event(event_type, "")?);
    }
    // The inviter, so that the invitation can show a name and a face.
    let inviter = Some(own.pdu.sender()).filter(|sender| *sender != user);
    if let Some(inviter) = inviter {
        shown.extend(state_event("m.room.member", inviter.as_str())?);
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

/// The user's own leave from the last state that we know of the room: an invite that does not rest on it may be older, and
/// is looked up.
pub(super) fn last_leave(db: &Db<'_>, room_id: &RoomId, user: &UserId) -> Result<Option<Pdu>> {
    let Some(room) = db.room(room_id)? else { return Ok(None) };
    let present = db.state_event(room.key, "m.room.member", user.as_str())?;
    Ok(present.filter(|event| event.sender() == user && event.membership() == Some(Membership::Leave)))
}

/// Whether the room's version is not another one, to the knowledge of this server: from a time when it was in the room, or by
/// a handshake of one of its users with the room's servers. What others say who invite proves nothing. Errors: 403 `M_FORBIDDEN`.
pub(super) fn check_version(db: &Db<'_>, invite: &Pdu) -> Result<()> {
    let mut known = db.room(invite.room_id())?.filter(|room| room.state.is_some()).map(|room| room.version);
    for row in db.remote_memberships_in(invite.room_id())? {
        known = known.or_else(|| row.version_by_handshake());
    }
    match known {
        Some(version) if version.id != invite.version().id => {
            Err(Error::forbidden(format!("The room is of version {}", version.id)))
        }
        _ => Ok(()),
    }
}
