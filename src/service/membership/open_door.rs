//! The open door: whose knock was accepted is joined, if they want it so, without having to answer the invite.
//!
//! That an invite answers a knock this server knows by itself: by the link in the row of a room that it is not in
//! ([`RemoteMembership::answers`](crate::protocol::remote_membership::RemoteMembership)), by the state before the invite in a
//! room that it is in. What the inviter cites does not count. The join is owed from the transaction on in which the
//! invite takes effect (`store/rooms/owed_joins.rs`), whether or not it is wanted, which is asked when it is made. It is
//! made once: in a room that this server is in, the debt ends with the join; elsewhere with the row that says that the
//! user is joining, and from then on that row knows what is to be done. Whatever else becomes of the invite ends it.
//! So does a refusal by the server that the knock went through: whoever else says yes may have sent the invite without being
//! allowed to, and show a room in which they were.
//!
//! The server's default is to leave the invite to the user: the specification permits to accept it for them, clients of
//! today expect to do so, and only a client's own join has it fetch the keys of what was said before. Accounts
//! say otherwise by account data, `org.doorstep.door.accept_knocks` with `enabled`.

use std::time::Duration;

use serde_json::json;

use super::candidates::JoinTarget;
use super::rows::remote_membership_or_state;
use crate::clock::Millis;
use crate::error::{Error, Result};
use crate::protocol::remote_membership::{ATTEMPTS_MAX, RemoteMembership, RemoteState, backoff_ms};
use crate::protocol::{EventId, Pdu, RoomId, ServerName, UserId, json as matrix_json};
use crate::service::accounts::ignored_users::Ignored;
use crate::service::membership::Memberships;
use crate::store::Db;
use crate::store::accounts::Account;
use crate::store::devices::to_device::MessageOrigin;
use crate::store::rooms::owed_joins::OwedJoin;

/// The account data by which users say whether they are joined.
const ACCEPT_KNOCKS: &str = "org.doorstep.door.accept_knocks";
/// How long another handshake of the user's in the room is waited for: the invite itself, mostly.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);
/// When it is looked again after one that takes longer.
const LOCKED_PAUSE_MS: Millis = 2_000;
/// What tells one of the user's devices to fetch the keys that the inviter shares with them (MSC4509).
const KEY_BUNDLE_CLAIM: &str = "org.matrix.msc4509.key_bundle_claim";

impl Memberships<'_> {
    /// Makes a join that is owed, or puts it off, or lets go of it: the invite does not stand any more, the user wants
    /// to answer it themselves, or the room has said no, which leaves them the invite.
    pub(in crate::service) fn pursue_owed_join(&self, room_id: &RoomId, user: &UserId) -> Result<()> {
        let Some(guard) = self.handshake_locks.take_within(room_id, user, LOCK_TIMEOUT) else {
            return self.put_off_join(room_id, user, self.clock.now_ms() + LOCKED_PAUSE_MS, false);
        };
        let pursued = self.join_if_wanted(room_id, user);
        drop(guard);
        self.take_up_leave(room_id, user)?;
        pursued
    }

    fn join_if_wanted(&self, room_id: &RoomId, user: &UserId) -> Result<()> {
        let Some(owed) = self.store.read(|db| db.owed_join(room_id, user))? else { return Ok(()) };
        let Some(invite) = self.store.read(|db| self.wanted(db, &owed))? else {
            return self.end_owed_join(owed);
        };
        let target = JoinTarget { room_id: room_id.clone(), via: Vec::new() };
        let Err(error) = self.join_with_lock(user, &target, None, Some(&owed.invite)) else {
            log::info!("{user} is in {room_id}: {} accepted their knock", invite.sender());
            return self.tell_to_claim_keys(user, room_id);
        };
        if is_final(&error) || owed.attempts + 1 >= ATTEMPTS_MAX {
            log::log!(error.level(log::Level::Info), "{user} stays invited to {room_id}: {error}");
            return self.end_owed_join(owed);
        }
        log::info!("{user}, whose knock was accepted, will be joined to {room_id} later: {error}");
        self.scheduler.waits_for(&[invite.sender().server()], room_id, user);
        self.put_off_join(room_id, user, self.clock.now_ms() + backoff_ms(owed.attempts + 1), true)
    }

    /// The invite by which the user is to be joined, if it stands and they want that.
    fn wanted(&self, db: &Db<'_>, owed: &OwedJoin) -> Result<Option<Pdu>> {
        let OwedJoin { room_id, user_id, invite, .. } = owed;
        let present = match db.resident_room(room_id)? {
            Some(room) => db.state_event(room.key, "m.room.member", user_id.as_str())?,
            None => remote_membership_or_state(db, room_id, user_id)?
                .filter(|row| row.is_invited_by(invite))
                .and_then(|row| row.event.clone()),
        };
        let Some(present) = present.filter(|present| present.event_id() == invite) else { return Ok(None) };
        let wanted = is_wanted(db, user_id, present.sender(), self.config.join_on_accepted_knock)?;
        Ok(wanted.then_some(present))
    }

    fn end_owed_join(&self, owed: OwedJoin) -> Result<()> {
        self.store.write(move |tx| tx.end_owed_join(&owed.room_id, &owed.user_id, &owed.invite))
    }

    fn put_off_join(&self, room_id: &RoomId, user: &UserId, until: Millis, tried: bool) -> Result<()> {
        let (room_id, user) = (room_id.clone(), user.clone());
        self.store.write(move |tx| tx.put_off_owed_join(&room_id, &user, until, tried))
    }

    /// All devices find their user joined at the same moment; the one that was used last is told to fetch the keys of
    /// the room's past, so that not all of them do. A hint: it may be lost.
    fn tell_to_claim_keys(&self, user: &UserId, room_id: &RoomId) -> Result<()> {
        let message = json!({ "type": KEY_BUNDLE_CLAIM, "sender": user, "content": { "room_id": room_id } });
        let (user, now) = (user.clone(), self.clock.now_ms());
        self.store.write(move |tx| {
            let devices = tx.devices(&user)?;
            let Some(last) = devices.iter().max_by_key(|device| device.last_seen_ms) else { return Ok(()) };
            let Some(last) = tx.device_recipient(&user, &last.device_id)? else { return Ok(()) };
            let message = message.to_string();
            tx.add_to_device(&user, &last, (&user, &message), MessageOrigin::User(&user), now).map(drop)
        })
    }
}

/// Whether a user is to be joined by an invite of this inviter, by the transaction that does it: other servers were asked since it
/// was looked at. `by_default`: whether those are who say nothing about it. Errors: 403 `M_FORBIDDEN`.
pub(super) fn check_wanted(db: &Db<'_>, user: &UserId, inviter: &UserId, by_default: bool) -> Result<()> {
    match is_wanted(db, user, inviter, by_default)? {
        true => Ok(()),
        false => Err(Error::forbidden("The user wants to answer the invite themselves")),
    }
}

fn is_wanted(db: &Db<'_>, user: &UserId, inviter: &UserId, by_default: bool) -> Result<bool> {
    Ok(accepts_knocks(db, user)?.unwrap_or(by_default)
        && db.account(user)?.is_some_and(|account| may_join(&account))
        // Invites of those are not even shown.
        && !Ignored::of(db, user)?.has(inviter.as_str()))
}

/// What the user says about it, if they do.
fn accepts_knocks(db: &Db<'_>, user: &UserId) -> Result<Option<bool>> {
    let content = db.account_data(user, None, ACCEPT_KNOCKS)?;
    let content = content.and_then(|text| matrix_json::parse_object(text.as_bytes()).ok());
    Ok(content.and_then(|content| content.get("enabled")?.as_bool()))
}

/// Who is suspended, or locked out, joins nothing by themselves either.
fn may_join(account: &Account) -> bool {
    !account.deactivated && !account.standing.locked && !account.standing.suspended
}

/// Whether the room has said no, and would say so again.
fn is_final(error: &Error) -> bool {
    matches!(error.status(), 400..=404)
}

/// The invite of a row that one from this server takes the place of, also as what the user is joined by: that one of another server
/// is an answer to their knock is its own word alone.
pub(super) fn invite_in_place_of<'r>(row: &'r RemoteMembership, from: &ServerName) -> Option<&'r EventId> {
    row.told().filter(|told| row.is_invited_by(told) && row.via.first() == Some(from))
}

/// Whether the server that the user knocked through answers their knock, after somebody else did.
pub(super) fn answers_beside(row: &RemoteMembership, invite: &Pdu, from: &ServerName) -> bool {
    row.state == RemoteState::Invited
        && row.via.first() == Some(from)
        && row.answers().is_some_and(|knock| invite.auth_events().contains(knock))
}
