//! What a pusher has to send next, read on one snapshot: the first thing that its user is notified of behind the cursor and
//! that is still worth a push, or the number at the app's icon if the gateway was told another one.
//!
//! Knocks are told by a bell: the first one upon a room at once, those of the next minute together when it is over, and
//! of them only the last that still waits, so that a burst of them wakes nobody more than twice.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::payload::{self, EventNames, PushedEvent, PusherData};
use crate::clock::Millis;
use crate::error::Result;
use crate::protocol::pdu::Membership;
use crate::protocol::remote_membership::RemoteMembership;
use crate::protocol::{Pdu, UserId};
use crate::store::accounts::pushers::{Bell, Pusher, PusherKey};
use crate::store::push::notifications::Notification;
use crate::store::{Db, RoomKey};

/// After so long a time of failures what was to be sent when it began is let go, in milliseconds: nobody wants it any
/// more.
const GIVE_UP_AFTER_MS: Millis = 24 * 3_600_000;
/// After a knock was told, those upon the same room are told together after so long, in milliseconds.
pub(in crate::service) const BELL_PAUSE_MS: Millis = 60_000;
/// A cursor that moved no further is not written for that alone.
const UNWRITTEN_POSITIONS_MAX: i64 = 1000;
/// Notifications that are looked at together.
const LOOK_MAX: usize = 50;

/// What is to be done for a pusher.
pub(super) enum Next {
    /// It is not there, or switched off.
    Gone,
    /// Nothing before this time.
    Wait(Millis),
    /// This is sent.
    Send(Box<GatewayRequest>),
    /// Nothing is sent.
    Nothing {
        /// What was passed over, if anything was.
        passed: Option<Passed>,
        /// When a bell is to be rung.
        wake_at: Option<Millis>,
    },
}

/// What the row moves on to without anything being sent.
pub(super) struct Passed {
    /// The cursor.
    pub cursor: i64,
    /// Bells at which something waits now, or nothing any more.
    pub bells: Vec<Bell>,
    /// Whether there may be more behind it.
    pub more: bool,
}

/// One request to a gateway.
pub(super) struct GatewayRequest {
    /// Whose it is.
    pub pusher: Pusher,
    /// Where it goes.
    pub url: String,
    /// What goes.
    pub body: String,
    /// The cursor once it was taken, and if it was not: what failed for too long is let go all the same.
    pub cursor: i64,
    pub otherwise: i64,
    /// Whether something was let go.
    pub given_up: bool,
    /// The number that the gateway knows then.
    pub badge: i64,
    /// Bells that are rung by it, or at which something waits now.
    pub bells: Vec<Bell>,
}

/// When and where a pusher is looked at.
#[derive(Debug, Clone, Copy)]
pub(super) struct LookAt {
    pub now: Millis,
    /// Up to here there is nothing to be sent: it was looked at before.
    pub known: i64,
    /// The stream position that the snapshot has at least.
    pub position: i64,
    /// Whether the number at the icon is looked at, too.
    pub badge: bool,
}

/// Looks what is next.
pub(super) fn next(db: &Db<'_>, key: PusherKey, at: LookAt) -> Result<Next> {
    let LookAt { now, known, position, badge } = at;
    let Some(pusher) = db.pusher(key)?.filter(|pusher| pusher.set.enabled) else { return Ok(Next::Gone) };
    if pusher.retry_ms > now {
        return Ok(Next::Wait(pusher.retry_ms));
    }
    // Who is locked out reads nothing here, so neither does their phone. What came meanwhile they see when they are back.
    if db.account(&pusher.set.user_id)?.is_some_and(|account| account.standing.locked) {
        return Ok(Next::Nothing { passed: None, wake_at: None });
    }
    let data = PusherData::of(&pusher);
    let given_up = pusher.failing_since.filter(|(since, _)| now - since >= GIVE_UP_AFTER_MS);
    let cursor = given_up.map_or(pusher.cursor, |(_, upto)| pusher.cursor.max(upto)).max(known);
    let mut look =
        Look { db, user: &pusher.set.user_id, key, now, cursor, bells: HashMap::new(), wake_at: None };
    let (otherwise, given_up) = (cursor, given_up.is_some());
    let found = match look.behind_the_cursor()? {
        Found::Nothing => look.at_the_bells()?,
        found => found,
    };
    let unread = match &found {
        Found::Event(_) => unread(db, &pusher, &data)?,
        Found::Nothing if badge => unread(db, &pusher, &data)?.filter(|unread| *unread != pusher.badge),
        Found::Nothing | Found::More => None,
    };
    let Look { cursor, bells, wake_at, .. } = look;
    let bells: Vec<Bell> = bells.into_values().collect();
    let body = match (found, unread) {
        (Found::Event(due), unread) => {
            let names = if data.wants_names() { due.names(db)? } else { EventNames::default() };
            let Due { event, tweaks, .. } = *due;
            let pushed = PushedEvent { event: &event, names, tweaks };
            payload::of_event(&pusher, &data, pushed, unread)
        }
        (Found::Nothing, Some(unread)) => payload::of_badge(&pusher, &data, unread),
        (found, _) => {
            let more = matches!(found, Found::More);
            // Who is notified of nothing has their cursor written now and then.
            let cursor = if more { cursor } else { cursor.max(position) };
            let has_moved = more || cursor > pusher.cursor + UNWRITTEN_POSITIONS_MAX || !bells.is_empty();
            return Ok(Next::Nothing {
                passed: has_moved.then_some(Passed { cursor, bells, more }),
                wake_at,
            });
        }
    };
    let (url, body) = (data.url().to_owned(), body.to_string());
    let badge = unread.unwrap_or(pusher.badge);
    Ok(Next::Send(Box::new(GatewayRequest { pusher, url, body, cursor, otherwise, given_up, badge, bells })))
}

/// The number at the app's icon, if it is to be told: "the number of unread messages a user has across all of the rooms they
/// are a member of", and invites.
fn unread(db: &Db<'_>, pusher: &Pusher, data: &PusherData) -> Result<Option<i64>> {
    if !data.wants_badge() {
        return Ok(None);
    }
    let badge = db.badge(&pusher.set.user_id)?;
    Ok(Some(i64::try_from(badge.invites + badge.notifications).unwrap_or(i64::MAX)))
}

enum Found {
    Event(Box<Due>),
    /// Nothing so far, and more to be looked at.
    More,
    Nothing,
}

/// An event that is to be sent.
struct Due {
    /// None for an invite to a room that this server is not in.
    room: Option<RoomKey>,
    event: Pdu,
    tweaks: Map<String, Value>,
    /// For such an invite.
    remote: Option<RemoteMembership>,
}

impl Due {
    fn names(&self, db: &Db<'_>) -> Result<EventNames> {
        let sender = self.event.sender().as_str();
        match (self.room, &self.remote) {
            (Some(room), _) => EventNames::of(sender, |event_type, state_key| {
                Ok(db.state_event(room, event_type, state_key)?.map(|event| event.content()))
            }),
            (None, Some(row)) => EventNames::of(sender, |event_type, state_key| {
                Ok(payload::content_of_stripped(&row.stripped_state, event_type, state_key))
            }),
            (None, None) => Ok(EventNames::default()),
        }
    }
}

struct Look<'l, 'c> {
    db: &'l Db<'c>,
    user: &'l UserId,
    key: PusherKey,
    now: Millis,
    /// Up to where was looked.
    cursor: i64,
    /// Those that have changed.
    bells: HashMap<RoomKey, Bell>,
    wake_at: Option<Millis>,
}

impl Look<'_, '_> {
    fn behind_the_cursor(&mut self) -> Result<Found> {
        let looked = self.db.notifications_after(self.user, self.cursor, LOOK_MAX)?;
        // What was found of so many is looked at first; behind the last of it nothing was passed over.
        let stopped_at = looked.stopped_at.filter(|_| looked.found.len() < LOOK_MAX);
        let is_all = looked.found.len() < LOOK_MAX && stopped_at.is_none();
        for notification in looked.found {
            self.cursor = notification.stream;
            let Some(due) = self.due(&notification)? else { continue };
            if due.event.membership() != Some(Membership::Knock) {
                return Ok(Found::Event(Box::new(due)));
            }
            let room = notification.room;
            let mut bell = self.bell(room)?;
            if bell.until_ms <= self.now && bell.waiting.is_none() {
                bell.until_ms = self.now + BELL_PAUSE_MS;
                self.bells.insert(room, bell);
                return Ok(Found::Event(Box::new(due)));
            }
            bell.waiting.get_or_insert(notification.stream);
            self.bells.insert(room, bell);
        }
        self.cursor = self.cursor.max(stopped_at.unwrap_or(self.cursor));
        Ok(if is_all { Found::Nothing } else { Found::More })
    }

    fn bell(&self, room: RoomKey) -> Result<Bell> {
        let changed = self.bells.get(&room).copied();
        let bell = changed.map_or_else(|| self.db.bell(self.key, room), |bell| Ok(Some(bell)))?;
        Ok(bell.unwrap_or(Bell { room, until_ms: 0, waiting: None }))
    }

    /// The last knock that still waits, of a room whose pause is over.
    fn at_the_bells(&mut self) -> Result<Found> {
        let mut waiting: HashMap<RoomKey, Bell> =
            self.db.waiting_bells(self.key)?.into_iter().map(|bell| (bell.room, bell)).collect();
        waiting.extend(self.bells.iter().map(|(room, bell)| (*room, *bell)));
        for (room, mut bell) in waiting {
            let Some(first) = bell.waiting else { continue };
            if bell.until_ms > self.now {
                self.wake_at = Some(self.wake_at.map_or(bell.until_ms, |at| at.min(bell.until_ms)));
                continue;
            }
            bell.waiting = None;
            let due = match self.db.last_knock_since(room, first)? {
                Some(stream) => {
                    let of_room = |notification: &Notification| notification.room == room;
                    let at = self.db.notifications_after(self.user, stream - 1, 1)?.found;
                    let at = at.into_iter().next().filter(|n| n.stream == stream && of_room(n));
                    at.map(|notification| self.due(&notification)).transpose()?.flatten()
                }
                None => None,
            };
            if due.is_some() {
                bell.until_ms = self.now + BELL_PAUSE_MS;
            }
            self.bells.insert(room, bell);
            if let Some(due) = due {
                return Ok(Found::Event(Box::new(due)));
            }
        }
        Ok(Found::Nothing)
    }

    /// What is to be sent of a notification, if it still is: not what was read meanwhile, nor an answered invite or knock.
    fn due(&self, notification: &Notification) -> Result<Option<Due>> {
        let Notification { room, room_id, stream, .. } = notification;
        let (event, remote) = match notification.event {
            Some(key) => (self.db.event_by_key(key)?, None),
            None => {
                // What rang for an earlier one is gone.
                let row =
                    self.db.remote_membership(room_id, self.user)?.filter(|row| row.inviter().is_some());
                let Some(event) = row.as_ref().and_then(|row| row.event.clone()) else { return Ok(None) };
                let due = Due { room: None, event, tweaks: tweaks(&notification.actions()?), remote: row };
                return Ok(Some(due));
            }
        };
        let stands = match (event.pdu.membership(), event.pdu.state_key()) {
            (Some(Membership::Knock), Some(user)) => {
                self.db.state_event_key(*room, "m.room.member", user)? == Some(event.key)
            }
            _ => true,
        };
        let read = self.db.read_positions(*room, self.user)?;
        let is_read = read.is_some_and(|read| read.has_read(notification.thread.as_deref(), *stream));
        if is_read || !stands || event.redacted_by.is_some() {
            return Ok(None);
        }
        Ok(Some(Due {
            room: Some(*room),
            event: event.pdu,
            tweaks: tweaks(&notification.actions()?),
            remote,
        }))
    }
}

/// The tweaks among a rule's actions.
fn tweaks(actions: &[Value]) -> Map<String, Value> {
    let set = |action: &Value| {
        let name = action.get("set_tweak")?.as_str()?;
        // "If a highlight tweak is given with no value, its value is defined to be true."
        Some((name.to_owned(), action.get("value").cloned().unwrap_or(Value::Bool(true))))
    };
    actions.iter().filter_map(set).collect()
}
