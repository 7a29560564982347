//! What invites from elsewhere a local user has to bear: how many wait for their answer, and how many one server sends them
//! in an hour; and how many are awaited as events of rooms that this server is in.

use std::time::Duration;

use crate::error::{ErrCode, Error, Result};
use crate::protocol::limits::fair_share::{self, ServerStanding};
use crate::protocol::remote_membership::{RemoteMembership, RemoteState};
use crate::protocol::{Millis, Pdu, ServerName, UserId, VerifiedPdu};
use crate::service::membership::Memberships;
use crate::store::rooms::pending_events::NewPendingEvent;
use crate::store::{Db, Room, Status, Tx};

/// How many invites to rooms that this server is not in wait for one user's answer at most.
const OPEN_INVITES_MAX: usize = 200;
/// And of these, so many by one inviter who shares no room with them.
const OPEN_INVITES_OF_ONE_MAX: usize = 10;
/// When an invite that is one too many may be tried again.
const RETRY_AFTER_MS: i64 = 3_600_000;

/// An invite to a room that this server is in has come as an event of the room within so long. None is awaited where more than
/// so many of its server's events are pending: it would have come.
const AWAITED_MS: i64 = 10_000;
const AWAITED_BESIDE_MAX: usize = 50;
/// For so long somebody waits who answers an invite before it has come, if it was signed within so long.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
const SIGNED_OF_LATE_MS: Millis = 60_000;

impl Memberships<'_> {
    /// Counts an invite that comes in: not one that was seen before, nor the answer to a knock, which is asked for. Errors: 429
    /// `M_LIMIT_EXCEEDED`.
    pub(super) fn count_invite(&self, origin: &ServerName, invite: &Pdu, invitee: &UserId) -> Result<()> {
        if !self.config.rate_limits {
            return Ok(());
        }
        let standing = self.store.read(|db| {
            let row = db.remote_membership(invite.room_id(), invitee)?;
            let is_asked_for = |row: &RemoteMembership| {
                matches!(row.state, RemoteState::Knocking | RemoteState::Knocked) || row.has_seen(invite)
            };
            if row.is_some_and(|row| is_asked_for(&row)) || db.resident_room(invite.room_id())?.is_some() {
                return Ok(None);
            }
            let known = db.shares_a_room_with_server(invitee, origin)?;
            Ok(Some(if known { ServerStanding::Known } else { ServerStanding::Stranger }))
        })?;
        let now = self.clock.steady();
        standing.map_or(Ok(()), |standing| self.invite_budget.count(invitee, origin, standing, now))
    }
}

/// Whether one more invite may wait for this user's answer. Whoever invites to a room that the user deals with
/// already (they knocked, or were invited before) takes no further place. Errors: 429 `M_LIMIT_EXCEEDED`.
pub(super) fn check_place(db: &Db<'_>, invite: &Pdu, invitee: &UserId) -> Result<()> {
    let row = db.remote_membership(invite.room_id(), invitee)?;
    let deals_with_it = row.is_some_and(|row| !row.state.is_over());
    if deals_with_it || db.resident_room(invite.room_id())?.is_some() {
        return Ok(());
    }
    let (inviter, server) = (invite.sender(), invite.sender().server());
    let waiting = db.inviters(invitee)?;
    let of_inviter = waiting.iter().filter(|user| *user == inviter.as_str()).count();
    let known = db.shares_a_room_with_server(invitee, &server)?;
    let too_many = of_inviter >= OPEN_INVITES_OF_ONE_MAX && !(known && db.share_a_room(invitee, inviter)?);
    let servers = waiting.iter().filter_map(|user| Some(user.split_once(':')?.1));
    let standing = if known { ServerStanding::Known } else { ServerStanding::Stranger };
    if too_many || !fair_share::has_place(OPEN_INVITES_MAX, servers, server.as_str(), standing) {
        return Err(Error::new(
            ErrCode::LimitExceeded,
            format!("Too many invites wait for {invitee} already"),
        )
        .with_field("retry_after_ms", RETRY_AFTER_MS));
    }
    Ok(())
}

/// The inviting server may know before us that our last user is out of the room, and then tells us nothing more of it: the
/// invite is looked at again once we are out.
pub(super) fn await_invite(
    tx: &mut Tx<'_>,
    room: &Room,
    (invite, invitee): (&VerifiedPdu, &UserId),
    origin: &ServerName,
    now: Millis,
) -> Result<()> {
    // Who is not in the room has invited nobody to it, and there is no end of those.
    let may_be_true = tx.is_resident(room.key, origin)?
        && tx.pending_counts(room.key, origin)?.of_origin < AWAITED_BESIDE_MAX;
    if !may_be_true || tx.event_key(invite.event_id())?.is_some() {
        return Ok(());
    }
    let event = NewPendingEvent::signed_invite(room.key, invite, invitee, now + AWAITED_MS);
    tx.add_pending(&event, origin, now)
}

impl Memberships<'_> {
    /// Who answers an invite to a room that this server is in may do so before the room has told of it, for the inviter's server
    /// had the signature first. They wait for that; not for long, and only for an invite of theirs that was signed of late.
    pub(in crate::service) fn wait_for_signed_invite(&self, room: &Room, user: &UserId) -> Result<()> {
        let until = self.clock.instant() + ANSWER_TIMEOUT;
        while self.clock.instant() < until {
            // Before the look: what comes after it wakes them.
            let seen = self.store.position();
            let since = self.clock.now_ms() - SIGNED_OF_LATE_MS;
            let awaited = self.store.read(|db| is_awaited(db, room, user, since))?;
            if !awaited || !self.notifier.has_news(user, seen, until) {
                break;
            }
        }
        Ok(())
    }
}

/// Whether there is an invite of this user of which it does not show yet what the room makes of it.
fn is_awaited(db: &Db<'_>, room: &Room, user: &UserId, since: Millis) -> Result<bool> {
    for invite in db.pending_invites(room.key, user, since)? {
        match db.event_status(&invite)? {
            Some((Status::Rejected | Status::SoftFailed, false)) => {}
            // The current state may be worked out after it has come.
            Some((Status::Accepted, false)) if db.late_extremities(room.key)?.is_empty() => {}
            _ => return Ok(true),
        }
    }
    Ok(false)
}
