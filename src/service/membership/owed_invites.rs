//! The invites of a new room that travel to other servers. They are written down with the room and delivered by the
//! scheduler: side by side, again and again while a server cannot be reached, for about a week. Until the invitee's
//! server has signed an invite it is no event, and the room's members see nobody invited.

use std::sync::{Mutex, Weak};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::locks::lock;
use crate::protocol::pdu::Membership;
use crate::protocol::remote_membership::{ATTEMPTS_MAX, backoff_ms};
use crate::protocol::{RoomId, UserId};
use crate::service::events::power_levels::power_levels;
use crate::service::membership::Memberships;
use crate::store::rooms::owed_invites::OwedInvite;
use crate::store::{Db, Room};

/// How long who makes a room waits for those whom they invite.
const FIRST_INVITES_TIMEOUT: Duration = Duration::from_secs(10);
/// When an invite is looked at again whose invitee has a handshake under way.
const LOCKED_PAUSE_MS: i64 = 2_000;

/// What an invitee's server has against the first invite to a new room, for good; none as long as it has said nothing.
pub type FirstRefusal = Mutex<Option<Error>>;

/// The new rooms whose makers wait for the answer to their first invite.
#[derive(Default)]
pub struct FirstInvites(Mutex<Vec<(RoomId, Weak<FirstRefusal>)>>);

impl FirstInvites {
    /// Has a refusal noted there, as long as somebody waits for it.
    pub(in crate::service) fn watch(&self, room_id: &RoomId, refusal: Weak<FirstRefusal>) {
        let mut watched = lock(&self.0);
        watched.retain(|(_, refusal)| refusal.strong_count() > 0);
        watched.push((room_id.clone(), refusal));
    }

    fn note(&self, room_id: &RoomId, error: Error) {
        let watched = lock(&self.0).iter().find(|(room, _)| room == room_id).and_then(|(_, w)| w.upgrade());
        if let Some(refusal) = watched {
            *lock(&refusal) = Some(error);
        }
    }
}

impl Memberships<'_> {
    /// Waits until every invite to a new room was tried once, but not for long.
    pub(in crate::service) fn await_first_invites(&self, room_id: &RoomId) {
        self.scheduler.wake();
        self.scheduler.wait_for_invites(Instant::now() + FIRST_INVITES_TIMEOUT, || {
            // Who cannot look need not wait.
            !self.store.read(|db| db.has_untried_invites(room_id)).unwrap_or(false)
        });
    }

    /// Delivers an invite that is owed, or puts it off, or lets go of it: it was taken back, the inviter has left, the
    /// invitee is in the room, or their server has said no.
    pub(in crate::service) fn deliver_owed_invite(&self, room_id: &RoomId, invitee: &UserId) -> Result<()> {
        let now = self.clock.now_ms();
        let (room, user) = (room_id.clone(), invitee.clone());
        let Some(_guard) = self.handshake_locks.try_take(room_id, invitee) else {
            return self
                .store
                .write(move |tx| tx.put_off_owed_invite(&room, &user, now + LOCKED_PAUSE_MS, false));
        };
        let Some(owed) = self.store.read(|db| db.owed_invite(room_id, invitee))? else { return Ok(()) };
        if !self.store.read(|db| is_owed_still(db, &owed))? {
            return self.store.write(move |tx| tx.end_owed_invite(&room, &user).map(drop));
        }
        let invited = self.invite_with_lock(&owed.inviter, room_id, invitee, None, owed.content.clone());
        let Err(error) = invited else {
            return self.store.write(move |tx| tx.end_owed_invite(&room, &user).map(drop));
        };
        if is_final(&error) || owed.attempts + 1 >= ATTEMPTS_MAX {
            log::log!(error.level(log::Level::Warn), "{invitee} is not invited to {room_id}: {error}");
            self.first_invites.note(room_id, error);
            return self.store.write(move |tx| tx.end_owed_invite(&room, &user).map(drop));
        }
        log::info!("{invitee} will be invited to {room_id} later: {error}");
        let server = invitee.server();
        self.scheduler.waits_for(std::slice::from_ref(&server), room_id, invitee);
        let (until, gone) = (now + backoff_ms(owed.attempts + 1), error.status() == 504);
        self.store.write(move |tx| {
            tx.put_off_owed_invite(&room, &user, until, true)?;
            if gone { tx.put_off_owed_invites_of(&server, now, until) } else { Ok(()) }
        })
    }

    /// Takes back an invite that is only owed so far. Whether there was one, and whoever asks may take it back: the
    /// inviter, or who could kick the invitee.
    pub(super) fn rescind_owed_invite(&self, room: &Room, sender: &UserId, invitee: &UserId) -> Result<bool> {
        let may = self.store.read(|db| {
            let Some(owed) = db.owed_invite(&room.room_id, invitee)? else { return Ok(false) };
            Ok(owed.inviter == *sender || power_levels(db, room)?.may_kick(sender.as_str(), invitee.as_str()))
        })?;
        if !may {
            return Ok(false);
        }
        let (room, invitee) = (room.room_id.clone(), invitee.clone());
        self.store.write(move |tx| tx.end_owed_invite(&room, &invitee))
    }
}

/// Whether somebody is still to be invited: whoever invites them is in the room, and nothing has become of the invitee
/// there since.
fn is_owed_still(db: &Db<'_>, owed: &OwedInvite) -> Result<bool> {
    let Some(room) = db.resident_room(&owed.room_id)? else { return Ok(false) };
    if db.membership(room.key, &owed.inviter)? != Some(Membership::Join) {
        return Ok(false);
    }
    Ok(match db.member(room.key, &owed.invitee)? {
        None => true,
        Some(member) => member.membership == Membership::Leave && member.stream <= owed.stream,
    })
}

/// Whether trying again is of no use: the invitee's server has said no to this invite, or the room does not allow it.
fn is_final(error: &Error) -> bool {
    matches!(error.status(), 400..=404)
}
