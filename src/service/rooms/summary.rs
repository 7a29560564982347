//! What outsiders are told of a room, and which of them: the rules of "who may join, knock or peek", for users and for
//! servers; and the summary of one room, wherever it is.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::error::{Error, Result};
use crate::protocol::content::{federates, nonempty};
use crate::protocol::event_auth::{JoinRule, JoinRules};
use crate::protocol::pdu::Membership;
use crate::protocol::rooms::visibility::HistoryVisibility;
use crate::protocol::{RoomId, ServerName, UserId};
use crate::service::events::server_acl::RoomAcl;
use crate::service::membership::JoinTarget;
use crate::service::rooms::Rooms;
use crate::service::rooms::directory::published_room;
use crate::service::rooms::space_cache::{RoomKnowledge, RoomQuestion};
use crate::service::rooms::space_room::{ChildEvent, RoomSummary, SpaceRoom};
use crate::store::{Db, Room};

/// Time for other servers to sum up a room: enough for one behind two that never answer.
const SUMMARY_TIMEOUT: Duration = Duration::from_secs(16);

/// A room that this server is in, for those outside.
pub(in crate::service) fn summary(db: &Db<'_>, room: &Room) -> Result<RoomSummary> {
    let encryption = db.state_event(room.key, "m.room.encryption", "")?;
    Ok(RoomSummary {
        room: published_room(db, room)?,
        allowed_room_ids: join_rules(db, room)?.allowed_rooms,
        encryption: encryption.and_then(|event| nonempty(&event.content(), "algorithm").map(str::to_owned)),
        room_version: Some(room.version.id.to_owned()),
    })
}

/// The summary of a room with its children.
pub(in crate::service) fn space_room(db: &Db<'_>, room: &Room, suggested_only: bool) -> Result<SpaceRoom> {
    let summary = summary(db, room)?;
    let mut children_state = Vec::new();
    if summary.room.room_type.as_deref() == Some("m.space") {
        for (_, key) in db.state_of_type(room.key, "m.space.child")? {
            children_state.extend(ChildEvent::of(&db.pdu_by_key(key)?));
        }
    }
    Ok(SpaceRoom { summary, children_state }.tidied(suggested_only))
}

/// Who wants to know of a room.
#[derive(Clone, Copy)]
pub(in crate::service) enum Visitor<'a> {
    /// Somebody of whom we know nothing.
    Anybody,
    /// A local user.
    User(&'a UserId),
    /// Another server, for any of its users.
    Server(&'a ServerName),
}

/// Whether somebody may be told of a room that this server is in: they are in it, or could join it, knock on it or
/// peek into it.
pub(in crate::service) fn may_know(db: &Db<'_>, room: &Room, visitor: Visitor<'_>) -> Result<bool> {
    let rules = join_rules(db, room)?;
    let setting = db.state_event(room.key, "m.room.history_visibility", "")?.map(|event| event.content());
    let peeks = HistoryVisibility::from_content(setting.as_ref()) == HistoryVisibility::WorldReadable;
    let open = rules.rule == JoinRule::Public || rules.rule.takes_knocks(room.version);
    match visitor {
        Visitor::Anybody => Ok(open || peeks),
        Visitor::User(user) => Ok(match db.membership(room.key, user)? {
            Some(Membership::Join | Membership::Invite) => true,
            Some(Membership::Ban) => peeks,
            _ => open || peeks || is_in_any(db, user, &rules.allowed_rooms)?,
        }),
        Visitor::Server(server) => {
            if !RoomAcl::of(db, room)?.allows(server) {
                return Ok(false);
            }
            let create = db.state_event(room.key, "m.room.create", "")?;
            if create.is_some_and(|create| !federates(&create.content())) {
                return Ok(false);
            }
            Ok(open
                || peeks
                || db.is_resident(room.key, server)?
                || has_invite(db, room, server)?
                || is_server_in_any(db, server, &rules.allowed_rooms)?)
        }
    }
}

fn join_rules(db: &Db<'_>, room: &Room) -> Result<JoinRules> {
    let event = db.state_event(room.key, "m.room.join_rules", "")?;
    Ok(JoinRules::of(room.version, &|_, _| event.clone()))
}

fn has_invite(db: &Db<'_>, room: &Room, server: &ServerName) -> Result<bool> {
    let invited = db.members(room.key, Some(Membership::Invite))?;
    Ok(invited.iter().any(|member| member.user_id.server_name() == server.as_str()))
}

/// Whether a local user is joined to any of these rooms.
fn is_in_any(db: &Db<'_>, user: &UserId, rooms: &[RoomId]) -> Result<bool> {
    for id in rooms {
        if let Some(room) = db.resident_room(id)?
            && db.membership(room.key, user)? == Some(Membership::Join)
        {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_server_in_any(db: &Db<'_>, server: &ServerName, rooms: &[RoomId]) -> Result<bool> {
    for id in rooms {
        if let Some(room) = db.resident_room(id)?
            && db.is_resident(room.key, server)?
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The servers that may know a room say nothing of it. 504.
pub(super) fn servers_are_silent() -> Error {
    Error::bad_gateway("The room's servers do not answer").with_status(504)
}

/// A summary, and what the user who asked is to the room.
#[derive(Debug, Serialize)]
pub struct RoomSummaryFor {
    /// The room.
    #[serde(flatten)]
    pub summary: RoomSummary,
    #[serde(skip_serializing_if = "Option::is_none")]
    membership: Option<&'static str>,
}

impl Rooms<'_> {
    /// The summary of a room, asked of other servers if this server is not in it and a local user wants to know.
    /// Errors: 404 `M_NOT_FOUND`, also if it may not be told to them; 504 if no server that may know it answers.
    pub fn room_summary(&self, user: Option<&UserId>, target: &JoinTarget) -> Result<RoomSummaryFor> {
        let not_found = || Error::not_found("Room not found.");
        let visitor = user.map_or(Visitor::Anybody, Visitor::User);
        let here = self.store.read(|db| {
            let Some(room) = db.resident_room(&target.room_id)? else { return Ok(None) };
            if !may_know(db, &room, visitor)? {
                return Err(not_found());
            }
            let membership = user.map(|user| db.membership(room.key, user)).transpose()?;
            Ok(Some((summary(db, &room)?, membership.flatten())))
        })?;
        let (summary, membership) = match (here, user) {
            (Some(here), _) => here,
            (None, None) => return Err(not_found()),
            (None, Some(user)) => {
                let (membership, servers) = self.membership().remote_view(user, target)?;
                let room = target.room_id.clone();
                let question = RoomQuestion { room, servers, suggested_only: false, insists: true };
                let until = Instant::now() + SUMMARY_TIMEOUT;
                let told = match self.know_of(user, &question, Some(until))? {
                    RoomKnowledge::Answered(told) => told,
                    RoomKnowledge::Unknown => return Err(not_found()),
                    RoomKnowledge::Unanswered | RoomKnowledge::Unasked => return Err(servers_are_silent()),
                };
                let summary = told.room.summary.clone();
                if !self.may_know_remote(user, membership, &summary)? {
                    return Err(not_found());
                }
                (summary, membership)
            }
        };
        let membership = user.map(|_| membership.unwrap_or(Membership::Leave).as_str());
        Ok(RoomSummaryFor { summary, membership })
    }

    /// Whether a local user may be told of a room that we only heard of: the other server has judged whether *we*
    /// may be.
    pub(in crate::service) fn may_know_remote(
        &self,
        user: &UserId,
        membership: Option<Membership>,
        summary: &RoomSummary,
    ) -> Result<bool> {
        let open = matches!(summary.room.join_rule.as_str(), "public" | "knock" | "knock_restricted");
        if membership == Some(Membership::Invite) || open || summary.room.world_readable {
            return Ok(true);
        }
        if summary.room.join_rule != "restricted" {
            return Ok(false);
        }
        self.store.read(|db| is_in_any(db, user, &summary.allowed_room_ids))
    }
}
