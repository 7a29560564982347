//! Memberships: joining, knocking, inviting, leaving, kicking and banning.
//!
//! A room that this server is in follows its own state, and a membership changes there by an ordinary event. A room
//! that it is not in has a row in `remote_memberships`, which only `protocol::remote_membership::apply` may change.
//! What is about to be said to another server is committed first; what an answer means is judged against the row as
//! it is by then, so that a late answer changes nothing.
//!
//! Both ends of a handshake live in one file:
//!
//! - `knock`, `invite`, `leave`, `join/`: a local user's, and that of another server's user here.
//! - `kick_ban`: what members do to others' memberships. `third_party_invite`: invites of e-mail addresses.
//!
//! What the handshakes share:
//!
//! - `guard`: which requests are let in (`admit`), and the one check of a signed event that is handed in
//!   (`check_signed`).
//! - `template`: member events for others to sign, and others' for us to. `restricted_join`: in whose name somebody
//!   is let in.
//! - `guest_access`: which rooms guests may come into. `replaced_rooms`: what follows somebody into the room that replaces
//!   another.
//! - `candidates`: which servers are asked, one after the other, until one says yes.
//! - `template_expectation`: what a server should know of a local user by the time that it is asked.
//! - `rows`: the rows of `remote_memberships`, read and changed. `locks`: one handshake at a time.
//! - `invite_place`: how many invites strangers may make, and which are awaited of rooms that this server is in; how
//!   many knocks, `service/limits/knock_budget.rs` says.
//! - `open_door`: who is joined because their knock was accepted.
//! - `owed_invites`: a new room's invites, which may have to wait for other servers. `offered_invites`: invites that another
//!   server may hold though the room has none.
//!
//! # Who waits for whom
//!
//! Two handshakes of one user in one room may meet: on one server, or on the wire. What comes later in the room
//! counts, and nobody sees the whole room from outside; so there is one order.
//!
//! 1. **Here, one at a time.** Joining, knocking and telling a leave take turns (`locks`). A leave is written down at
//!    once and told in its turn; the answer to the user waits a moment until it is told.
//! 2. **An invite waits for a leave that is being handed in**, since nobody is invited without the signature of their
//!    own server. A leave that nobody was handed yet is dropped for a newer invite. One that was is in the row,
//!    signed, before it is sent, and until its outcome is known an invite gets no answer (`note_invite`). What is
//!    signed then was made after the leave, or is refused; the inviter's server drafts it anew (`invite_with`).
//! 3. **At the resident, what is asked for that user waits for the invite that is under way to them**: a template for
//!    a leave, a knock, and a join that would be refused (`after_their_invite`). Their server shows an invite when it
//!    signs it, before the room has it. Only `send_leave` does not wait. And an invite is not offered before the
//!    server of somebody who was removed has heard of that (`after_removal`).
//!    The other way round, in a room that this server is in, a local user's answer to an invite that it has signed waits
//!    until the room tells of the invite (`wait_for_signed_invite`).
//! 4. **Who asks a server that does not wait asks again** for a second or two (`template_expectation`): while a
//!    template rests on what the local user is no longer, or an invite that this server signed is not known yet.
//! 5. **What the events' own order does not tell is asked of the room**: whether an invite that met a removal stands,
//!    or one with which the local user was not let in; and whether a removal is one that neither the inviter's server nor
//!    the one that took the knock vouches for (`look_up`). So is, once a day, a knock or an invite that stands. Where others have confirmed it, that server is told if the
//!    user leaves, in the background like of any leave.
//! 6. **What meets a join that a server has taken waits for its answer.** Who left meanwhile leaves the room that they
//!    are in then, who was removed is removed from it; and if they were invited anew after that, the room is not entered
//!    (`become_resident`).
//!
//! So other requests wait for an invite, an invite for `send_leave` (or a transaction), and these for nobody: there
//! is no circle. And every wait ends by itself: 3 within 5 seconds and for four requests at most, 2 within 3 seconds
//! with a refusal, 1 for the user's answer within 2, as long as the answer to a signed invite waits. A crash loses
//! nothing but the waiting: each of these is a row with a time.

mod candidates;
mod guard;
mod guest_access;
mod invite;
mod invite_place;
pub mod join;
mod kick_ban;
mod knock;
mod leave;
mod locks;
mod offered_invites;
mod open_door;
mod owed_invites;
mod replaced_rooms;
mod restricted_join;
pub(in crate::service) mod rows;
mod shown_state;
mod template;
mod template_expectation;
pub mod third_party_invite;

use std::ops::Deref;

pub use self::candidates::JoinTarget;
pub use self::invite::InviteReceived;
pub(in crate::service) use self::invite::{blocks_invites, check_invitee};
pub use self::locks::HandshakeLocks;
pub use self::owed_invites::{FirstInvites, FirstRefusal};
pub(in crate::service) use self::replaced_rooms::{follow_tombstone, follow_upgrade, replacement_of};
pub(crate) use self::restricted_join::AUTHORISER;
pub(in crate::service) use self::rows::stripped_state_for_client;
pub(in crate::service) use self::shown_state::stripped_state_for_servers;
pub(in crate::service) use self::template::check_names;
use super::Homeserver;
use crate::error::Result;
use crate::protocol::remote_membership::RemoteState;
use crate::protocol::{Millis, RoomId, UserId};
use crate::store::Room;

/// Joining, knocking, inviting, leaving, kicking and banning.
#[derive(Clone, Copy)]
pub struct Memberships<'h> {
    hs: &'h Homeserver,
    /// When an event that is made here says that it was sent; none: now.
    at: Option<Millis>,
}

impl Deref for Memberships<'_> {
    type Target = Homeserver;

    fn deref(&self) -> &Homeserver {
        self.hs
    }
}

impl Homeserver {
    /// Joining, knocking, inviting, leaving, kicking and banning.
    pub fn membership(&self) -> Memberships<'_> {
        Memberships { hs: self, at: None }
    }
}

impl<'h> Memberships<'h> {
    /// The same verbs of what was done at another time, as application services may say of what they bring from elsewhere. In rooms
    /// that this server is not in, others write the event.
    pub(in crate::service) fn said_at(self, at: Option<Millis>) -> Memberships<'h> {
        Memberships { at, ..self }
    }
}

impl Memberships<'_> {
    /// What the scheduler does with a row that is due: whatever its state still has to be told to other servers.
    pub(in crate::service) fn pursue_membership(&self, room_id: &RoomId, user: &UserId) -> Result<()> {
        let Some(_guard) = self.handshake_locks.try_take(room_id, user) else {
            // A request of the user's is at it, and may settle the matter.
            let (room_id, user, soon) = (room_id.clone(), user.clone(), self.clock.now_ms() + 2_000);
            return self.store.write(move |tx| tx.lease_remote_membership(&room_id, &user, soon));
        };
        let Some(row) = self.store.read(|db| db.remote_membership(room_id, user))? else { return Ok(()) };
        match row.state {
            RemoteState::Knocking => self.deliver_knock(&row, &row.via),
            RemoteState::Joining => self.resume_join(&row),
            RemoteState::Leaving => self.deliver_leave(&row),
            RemoteState::Invited | RemoteState::Knocked => self.look_up(&row),
            // Nothing to tell anybody: settled since it was looked up.
            RemoteState::Closed => Ok(()),
        }
    }

    /// Does what the local user asks for while no other handshake of theirs in the room is under way. What they asked
    /// for meanwhile is taken up after it: they may have left.
    pub(super) fn with_handshake_lock<T>(
        &self,
        room_id: &RoomId,
        user: &UserId,
        ask: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let guard = self.handshake_locks.take(room_id, user)?;
        let answer = ask();
        drop(guard);
        self.take_up_leave(room_id, user)?;
        answer
    }

    /// Has a leave told at once for which the user asked while a handshake of theirs was under way.
    fn take_up_leave(&self, room_id: &RoomId, user: &UserId) -> Result<()> {
        let row = self.store.read(|db| db.remote_membership(room_id, user))?;
        match row.is_some_and(|row| row.state == RemoteState::Leaving) {
            true => self.hasten(room_id, user),
            false => Ok(()),
        }
    }

    /// Has the scheduler take up a row now that is due some day.
    pub(super) fn hasten(&self, room_id: &RoomId, user: &UserId) -> Result<()> {
        let (room_id, user, now) = (room_id.clone(), user.clone(), self.clock.now_ms());
        self.store.write(move |tx| tx.hasten_remote_membership(&room_id, &user, now))?;
        self.scheduler.wake();
        Ok(())
    }

    /// Does the one thing in a room that this server is in, the other for a room that this server is not in; and if
    /// that changes at the same moment (the user is removed and this server is out with them, or another local user
    /// comes in), what it has become.
    pub(super) fn as_resident_or_remotely<T>(
        &self,
        room_id: &RoomId,
        as_resident: impl Fn(&Room) -> Result<T>,
        remotely: impl Fn() -> Result<T>,
    ) -> Result<T> {
        if let Some(room) = self.resident_room(room_id)? {
            match as_resident(&room) {
                Err(_) if self.resident_room(room_id)?.is_none() => {}
                other => return other,
            }
        }
        remotely().or_else(|e| match self.resident_room(room_id)? {
            Some(room) => as_resident(&room),
            None => Err(e),
        })
    }

    /// The room, if this server is in it: then everything is an ordinary event.
    pub(super) fn resident_room(&self, room_id: &RoomId) -> Result<Option<Room>> {
        self.store.read(|db| db.resident_room(room_id))
    }
}
