//! Who waits before which room's door, and the answer to them: by a user who may give it, or by who runs this server, in
//! the name of a local member who may.

use serde::Serialize;

use crate::error::{Error, Result};
use crate::order;
use crate::protocol::event_auth::PowerLevels;
use crate::protocol::pdu::Membership;
use crate::protocol::{RoomId, UserId};
use crate::service::accounts::moderation::{Administrator, check_still_admin};
use crate::service::admin::Admin;
use crate::service::events::power_levels::{mightiest_local_member, power_levels};
use crate::store::{Db, Room};

/// So many are told of at once, the last who came: more than anybody answers one by one.
const KNOCKS_MAX: usize = 1000;
/// However many rooms there are, so many of each are told of before others' turn comes.
const KNOCKS_OF_A_ROOM_MIN: usize = 100;
/// What is told of a name or a reason, in characters: who knocks writes both, and they may be long.
const TEXT_CHARS_MAX: usize = 500;

/// Somebody who waits before a room's door.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WaitingKnock {
    /// The room.
    pub room_id: RoomId,
    /// What it is called: its name, or its canonical alias.
    pub room_name: Option<String>,
    /// Who knocks.
    pub user_id: UserId,
    /// The name that they give themselves.
    pub displayname: Option<String>,
    /// Why they want to come in, as they say.
    pub reason: Option<String>,
    /// When they knocked, as their server says; never later than now.
    pub since_ms: i64,
}

/// Those who wait, as far as they are told of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct WaitingKnocks {
    /// The last who came first.
    pub knocks: Vec<WaitingKnock>,
    /// How many wait in all.
    pub total: usize,
}

/// Which of those who wait are asked for.
#[derive(Debug, Clone, Copy, Default)]
pub struct KnockFilter<'a> {
    /// Before rooms into which this user may let them.
    pub may_answer: Option<&'a UserId>,
    /// Before this room.
    pub room: Option<&'a RoomId>,
    /// This user.
    pub knocker: Option<&'a UserId>,
}

/// Who answers a knock.
#[derive(Debug, Clone, Copy)]
pub enum KnockAnswerer<'a> {
    /// A user who may, in their own name.
    Member(&'a UserId),
    /// Who runs this server, in the name of the local member who has most power among those who may.
    Administrator(&'a Administrator),
}

/// What a knock is answered with, and what the answer takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum KnockAnswer {
    Accept,
    Refuse,
}

impl Admin<'_> {
    /// Who waits before rooms that this server is in, the last who came first. All are counted, and a thousand are told of, some
    /// of each room. Names and reasons are cut after 500 characters.
    pub fn knocks_waiting(&self, asked: KnockFilter<'_>) -> Result<WaitingKnocks> {
        let now = self.clock.now_ms();
        self.store.read(|db| {
            let rooms = doors(db, asked)?;
            let most = (KNOCKS_MAX / rooms.len().max(1)).max(KNOCKS_OF_A_ROOM_MIN);
            let (mut knocks, mut total) = (Vec::new(), 0);
            for room in &rooms {
                let waiting = match asked.knocker {
                    Some(knocker) => vec![knocker.as_str().to_owned()],
                    None => db.waiting_knocks(room.key, most.min(KNOCKS_MAX.saturating_sub(knocks.len())))?,
                };
                total += if asked.knocker.is_some() { 1 } else { db.waiting_knocks_count(room.key)? };
                add_knocks(db, room, waiting, now, &mut knocks)?;
            }
            order::sort_by_key(&mut knocks, |(stream, _)| std::cmp::Reverse(*stream));
            Ok(WaitingKnocks { knocks: knocks.into_iter().map(|(_, knock)| knock).collect(), total })
        })
    }

    /// Lets somebody in who waits: they are invited. Errors: 404 `M_NOT_FOUND` if they do not wait, 403 `M_FORBIDDEN` if `by`,
    /// or no local member, may invite, or for who is no administrator any more; and those of an invite.
    pub fn accept_knock(&self, by: KnockAnswerer<'_>, room_id: &RoomId, user: &UserId) -> Result<()> {
        let member = self.who_answers(by, room_id, user, KnockAnswer::Accept)?;
        self.membership().accept_knock(&member, room_id, user)?;
        if let KnockAnswerer::Administrator(by) = by {
            log::info!("{by} has let {user} into {room_id}, in the name of {member}");
        }
        Ok(())
    }

    /// Sends somebody away who waits; they are told the reason. Errors: 404 `M_NOT_FOUND` if they do not wait, 403
    /// `M_FORBIDDEN` if `by`, or no local member, may, or for who is no administrator any more.
    pub fn refuse_knock(
        &self,
        by: KnockAnswerer<'_>,
        room_id: &RoomId,
        user: &UserId,
        reason: Option<&str>,
    ) -> Result<()> {
        let member = self.who_answers(by, room_id, user, KnockAnswer::Refuse)?;
        self.membership().refuse_knock(&member, room_id, user, reason)?;
        if let KnockAnswerer::Administrator(by) = by {
            log::info!("{by} has refused {user}, who knocked upon {room_id}, in the name of {member}");
        }
        Ok(())
    }

    /// In whose name a knock is answered.
    fn who_answers(
        &self,
        by: KnockAnswerer<'_>,
        room_id: &RoomId,
        knocker: &UserId,
        answer: KnockAnswer,
    ) -> Result<UserId> {
        let by = match by {
            KnockAnswerer::Member(user) => return Ok(user.clone()),
            KnockAnswerer::Administrator(by) => by,
        };
        self.store.read(|db| {
            check_still_admin(db, by)?;
            let no_knock = || Error::not_found("That user does not wait before the room");
            let room = db.resident_room(room_id)?.ok_or_else(no_knock)?;
            if db.membership(room.key, knocker)? != Some(Membership::Knock) {
                return Err(no_knock());
            }
            let may = |levels: &PowerLevels, member: &UserId| {
                Ok(match answer {
                    KnockAnswer::Accept => levels.may_invite(member.as_str()),
                    KnockAnswer::Refuse => levels.may_kick(member.as_str(), knocker.as_str()),
                })
            };
            mightiest_local_member(db, &room, may)?.ok_or_else(|| {
                Error::forbidden(format!("No user of this server may answer knocks upon {room_id}"))
            })
        })
    }
}

/// The rooms before which those wait who are asked for.
fn doors(db: &Db<'_>, asked: KnockFilter<'_>) -> Result<Vec<Room>> {
    let mut rooms = Vec::new();
    for key in db.rooms_with_knocks(asked.may_answer)? {
        let room = db.room_by_key(key)?;
        let is_asked_for = room.resident && asked.room.is_none_or(|only| *only == room.room_id);
        let waits = || match asked.knocker {
            Some(knocker) => Ok(db.membership(key, knocker)? == Some(Membership::Knock)),
            None => Ok::<_, Error>(true),
        };
        let may = || match asked.may_answer {
            Some(user) => Ok(power_levels(db, &room)?.may_invite(user.as_str())),
            None => Ok::<_, Error>(true),
        };
        if is_asked_for && waits()? && may()? {
            rooms.push(room);
        }
    }
    Ok(rooms)
}

fn add_knocks(
    db: &Db<'_>,
    room: &Room,
    waiting: Vec<String>,
    now: i64,
    knocks: &mut Vec<(i64, WaitingKnock)>,
) -> Result<()> {
    let room_name = room_name(db, room)?;
    for user in waiting {
        let Ok(user) = UserId::parse(&user) else { continue };
        let Some(member) = db.member(room.key, &user)? else { continue };
        let event = db.pdu_by_key(member.event)?;
        let text = |field: &str| event.content_str(field).filter(|text| !text.is_empty()).map(cut);
        let knock = WaitingKnock {
            room_id: room.room_id.clone(),
            room_name: room_name.clone(),
            user_id: user,
            displayname: text("displayname"),
            reason: text("reason"),
            since_ms: event.origin_server_ts().min(now),
        };
        knocks.push((member.stream, knock));
    }
    Ok(())
}

/// What a room is called: its name, or its canonical alias.
pub(in crate::service) fn room_name(db: &Db<'_>, room: &Room) -> Result<Option<String>> {
    for (event_type, field) in [("m.room.name", "name"), ("m.room.canonical_alias", "alias")] {
        let event = db.state_event(room.key, event_type, "")?;
        let text = event.and_then(|event| event.content_str(field)).filter(|text| !text.is_empty());
        if text.is_some() {
            return Ok(text.map(cut));
        }
    }
    Ok(None)
}

fn cut(text: String) -> String {
    match text.char_indices().nth(TEXT_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
