//! What of a user's rooms asks something of them: the rooms into which they may let others, and their invites.

use serde_json::Value;

use super::knocks::room_name;
use crate::clock::Millis;
use crate::error::Result;
use crate::order;
use crate::protocol::event_auth::JoinRule;
use crate::protocol::json::tree;
use crate::protocol::pdu::{Membership, Pdu};
use crate::protocol::remote_membership::{RemoteMembership, SyncSection};
use crate::protocol::{RoomId, UserId};
use crate::service::accounts::ignored_users::Ignored;
use crate::service::admin::Admin;
use crate::service::events::power_levels::power_levels;
use crate::service::membership::blocks_invites;
use crate::store::rooms::memberships::RoomOfUser;
use crate::store::{Db, RoomKey};

/// So many invites are looked up at once, and so often until enough are found of whom the user does not ignore.
const LOOKED_AT_ONCE: usize = 16;
const LOOKED_AT_TIMES_MAX: usize = 64;

/// So many of a user's rooms are looked at, those first that they came into last.
const ROOMS_LOOKED_AT_MAX: usize = 500;

/// A room into which a user may let others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnDoor {
    /// The room.
    pub room_id: RoomId,
    /// What it is called: its name, or its canonical alias.
    pub room_name: Option<String>,
    /// Whether anybody may knock upon it.
    pub takes_knocks: bool,
    /// Whether anybody may come in without asking.
    pub is_open: bool,
    /// How many wait before it.
    pub waiting: usize,
}

/// An invite that waits for the user's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitingInvite {
    /// The room.
    pub room_id: RoomId,
    /// What it is called, as far as the invite tells.
    pub room_name: Option<String>,
    /// Who invites.
    pub inviter: UserId,
    /// Why, as they say.
    pub reason: Option<String>,
    /// When, as their server says; never later than now.
    pub since_ms: Millis,
}

impl Admin<'_> {
    /// The rooms of this server into which the user may let others, those that take knocks first.
    pub fn own_doors(&self, user: &UserId) -> Result<Vec<OwnDoor>> {
        self.store.read(|db| {
            let joined =
                db.rooms_of(user)?.into_iter().filter(|of_user| of_user.membership == Membership::Join);
            let mut doors = Vec::new();
            for of_user in joined.rev().take(ROOMS_LOOKED_AT_MAX) {
                let room = db.room_by_key(of_user.room)?;
                if room.resident && power_levels(db, &room)?.may_invite(user.as_str()) {
                    let rule = join_rule(db, room.key)?;
                    doors.push(OwnDoor {
                        takes_knocks: rule.takes_knocks(room.version),
                        is_open: rule == JoinRule::Public,
                        room_name: room_name(db, &room)?,
                        waiting: db.waiting_knocks_count(room.key)?,
                        room_id: room.room_id,
                    });
                }
            }
            order::sort_by_key(&mut doors, |door| (std::cmp::Reverse(door.waiting), !door.takes_knocks));
            Ok(doors)
        })
    }

    /// The invites that the user has not answered, the last first, so many at most; as `/sync` shows them, without those of
    /// whom they ignore.
    pub fn invites_waiting(&self, user: &UserId, most: usize) -> Result<Vec<WaitingInvite>> {
        let now = self.clock.now_ms();
        self.store.read(|db| {
            if blocks_invites(db, user)? {
                return Ok(Vec::new());
            }
            let ignored = Ignored::of(db, user)?;
            let is_heard = |invite: &WaitingInvite| !ignored.has(invite.inviter.as_str());
            let mut invites = last_invites(
                most,
                |before| db.invites_of(user, before, LOOKED_AT_ONCE),
                |of_user| of_user.stream,
                |of_user| Ok(invite_here(db, user, of_user, now)?.filter(is_heard)),
            )?;
            invites.extend(last_invites(
                most,
                |before| db.remote_invites_of(user, before, LOOKED_AT_ONCE),
                |row| row.stream,
                |row| Ok(invite_elsewhere(row, now).filter(is_heard)),
            )?);
            order::sort_by_key(&mut invites, |(stream, _)| std::cmp::Reverse(*stream));
            invites.truncate(most);
            Ok(invites.into_iter().map(|(_, invite)| invite).collect())
        })
    }

    /// The user's invite to one room, if it waits for their answer.
    pub fn invite_waiting(&self, user: &UserId, room: &RoomId) -> Result<Option<WaitingInvite>> {
        let now = self.clock.now_ms();
        self.store.read(|db| {
            if let Some(row) = db.remote_membership(room, user)? {
                return Ok(invite_elsewhere(&row, now));
            }
            let Some(known) = db.room(room)? else { return Ok(None) };
            let member = db.member(known.key, user)?;
            let Some(member) = member.filter(|m| m.membership == Membership::Invite && !m.forgotten) else {
                return Ok(None);
            };
            let name = room_name(db, &known)?;
            Ok(Some(waiting_invite(&db.pdu_by_key(member.event)?, name, now)))
        })
    }
}

/// The last of a user's invites, with their positions: what `shown` makes of the rows that `look_up` finds before a position, the
/// last first. So many at least, if there are.
fn last_invites<R>(
    most: usize,
    look_up: impl Fn(i64) -> Result<Vec<R>>,
    position: impl Fn(&R) -> i64,
    shown: impl Fn(&R) -> Result<Option<WaitingInvite>>,
) -> Result<Vec<(i64, WaitingInvite)>> {
    let (mut invites, mut before) = (Vec::new(), i64::MAX);
    for _ in 0..LOOKED_AT_TIMES_MAX {
        let rows = look_up(before)?;
        let Some(last) = rows.last() else { break };
        before = position(last);
        for row in &rows {
            invites.extend(shown(row)?.map(|invite| (position(row), invite)));
        }
        if invites.len() >= most {
            break;
        }
    }
    Ok(invites)
}

/// An invite to a room of this server, unless it is over.
fn invite_here(
    db: &Db<'_>,
    user: &UserId,
    of_user: &RoomOfUser,
    now: Millis,
) -> Result<Option<WaitingInvite>> {
    if of_user.forgotten || db.has_remote_membership(&of_user.room_id, user)? {
        return Ok(None);
    }
    let name = room_name(db, &db.room_by_key(of_user.room)?)?;
    Ok(Some(waiting_invite(&db.pdu_by_key(of_user.event)?, name, now)))
}

/// An invite to a room elsewhere, unless it is over.
fn invite_elsewhere(row: &RemoteMembership, now: Millis) -> Option<WaitingInvite> {
    let event = row.event.as_ref().filter(|_| row.section() == Some(SyncSection::Invite))?;
    Some(waiting_invite(event, told_name(row), now))
}

fn waiting_invite(event: &Pdu, room_name: Option<String>, now: Millis) -> WaitingInvite {
    WaitingInvite {
        room_id: event.room_id().clone(),
        room_name,
        inviter: event.sender().clone(),
        reason: event.content_str("reason").filter(|reason| !reason.is_empty()),
        since_ms: event.origin_server_ts().min(now),
    }
}

/// What the stripped state of an invite calls the room.
fn told_name(row: &RemoteMembership) -> Option<String> {
    let entries: Vec<Value> = row.stripped_state.iter().filter_map(|entry| tree(entry.get()).ok()).collect();
    [("m.room.name", "name"), ("m.room.canonical_alias", "alias")].iter().find_map(|(event_type, field)| {
        let entry = entries.iter().find(|entry| entry["type"] == *event_type)?;
        entry["content"][field].as_str().filter(|name| !name.is_empty()).map(str::to_owned)
    })
}

fn join_rule(db: &Db<'_>, room: RoomKey) -> Result<JoinRule> {
    let event = db.state_event(room, "m.room.join_rules", "")?;
    Ok(event.map_or(JoinRule::Invite, |event| JoinRule::of(&event)))
}
