//! What outsiders are told of a room, and which of them: the rules of "who may join, knock or peek", for users and for
//! servers; and the summary of one room, wherever it is.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::error::{Error, Result};
use crate::order;
use crate::protocol::content::{federates, nonempty};
use crate::protocol::event_auth::{JoinRule, JoinRules};
use crate::protocol::json::{First, ObjectText, read, read_object};
use crate::protocol::pdu::Membership;
use crate::protocol::rooms::visibility::HistoryVisibility;
use crate::protocol::{Pdu, RoomId, ServerName, UserId};
use crate::service::events::server_acl::RoomAcl;
use crate::service::membership::JoinTarget;
use crate::service::rooms::Rooms;
use crate::service::rooms::directory::{PublishedRoom, published_room};
use crate::service::rooms::space_cache::{RoomKnowledge, RoomQuestion};
use crate::store::{Db, Room};

/// No more children of one space are looked at, in the order in which they are shown.
pub const CHILDREN_MAX: usize = 1000;
/// And so many are read, of which those are chosen.
const CHILDREN_READ_MAX: usize = 10_000;

/// Time for other servers to sum up a room: enough for one behind two that never answer.
const SUMMARY_TIMEOUT: Duration = Duration::from_secs(16);

/// Children of one space that take more than so many bytes are left out.
const CHILD_BYTES_MAX: usize = 1 << 20;
/// A room of another server of which more than so many bytes are said, its children apart, is not shown.
const SUMMARY_BYTES_MAX: usize = 64 << 10;

/// One room, for those outside.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RoomSummary {
    /// What directories say of rooms too.
    #[serde(flatten)]
    pub room: PublishedRoom,
    /// The rooms whose members a restricted room lets in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_room_ids: Vec<RoomId>,
    /// The algorithm of an encrypted room.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encryption: Option<String>,
    /// The room's version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub room_version: Option<String>,
}

impl RoomSummary {
    /// How many bytes its texts are.
    fn texts_bytes(&self) -> usize {
        let Self { room, allowed_room_ids, encryption, room_version } = self;
        let allowed: usize = allowed_room_ids.iter().map(|id| id.as_str().len()).sum();
        let optional = [encryption, room_version].into_iter().flatten();
        room.texts_bytes() + allowed + optional.map(String::len).sum::<usize>()
    }
}

/// One room of a hierarchy.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SpaceRoom {
    /// The room.
    #[serde(flatten)]
    pub summary: RoomSummary,
    /// If it is a space, its children in the order in which they are shown.
    #[serde(deserialize_with = "only_children")]
    pub children_state: Vec<ChildEvent>,
}

impl SpaceRoom {
    /// The room's id.
    pub fn id(&self) -> &RoomId {
        &self.summary.room.room_id
    }

    /// About how many bytes it takes in an answer.
    pub(in crate::service) fn weight(&self) -> usize {
        let children: usize = self.children_state.iter().map(ChildEvent::weight).sum();
        1000 + self.summary.texts_bytes() + children
    }

    /// Whether more is said of it than any room has to say.
    pub(super) fn is_too_large(&self) -> bool {
        self.summary.texts_bytes() > SUMMARY_BYTES_MAX
    }

    /// The room with the children that a space really has: none if it is no space.
    pub fn tidied(mut self, suggested_only: bool) -> Self {
        if self.summary.room.room_type.as_deref() == Some("m.space") {
            self.children_state = in_order(self.children_state, suggested_only);
        } else {
            self.children_state.clear();
        }
        self
    }
}

/// An `m.space.child` event, stripped.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ChildEvent {
    content: ObjectText,
    origin_server_ts: i64,
    sender: UserId,
    /// The child.
    pub state_key: RoomId,
    #[serde(rename = "type")]
    event_type: String,
}

/// What is looked at of its content; what has another shape is as if it was not there.
#[derive(Default, Deserialize)]
struct ChildContent<'t> {
    #[serde(borrow)]
    via: Option<&'t RawValue>,
    #[serde(borrow)]
    suggested: Option<&'t RawValue>,
    #[serde(borrow)]
    order: Option<&'t RawValue>,
}

fn only_children<'de, D: serde::Deserializer<'de>>(d: D) -> std::result::Result<Vec<ChildEvent>, D::Error> {
    let events = First::<Box<RawValue>, CHILDREN_READ_MAX>::deserialize(d)?;
    Ok(events.iter().filter_map(|event| read_object(event.get().as_bytes()).ok()).collect())
}

impl ChildEvent {
    fn of(pdu: &Pdu) -> Option<Self> {
        Some(Self {
            content: ObjectText::try_from(pdu.content_raw().as_bytes()).ok()?,
            origin_server_ts: pdu.origin_server_ts(),
            sender: pdu.sender().clone(),
            // A state key that is no room id names no room.
            state_key: RoomId::parse(pdu.state_key()?).ok()?,
            event_type: pdu.event_type().to_owned(),
        })
    }

    /// "When not present or invalid, the child room is not considered to be part of the space."
    fn is_child(&self) -> bool {
        let via = self.said().via.and_then(|via| read::<Vec<Cow<'_, str>>>(via.get().as_bytes()).ok());
        self.event_type == "m.space.child" && via.is_some_and(|via| !via.is_empty())
    }

    fn said(&self) -> ChildContent<'_> {
        read_object(self.content.get().as_bytes()).unwrap_or_default()
    }

    fn weight(&self) -> usize {
        let texts = [self.content.get(), self.sender.as_str(), self.state_key.as_str(), &self.event_type];
        100 + texts.into_iter().map(str::len).sum::<usize>()
    }

    fn is_suggested(&self) -> bool {
        self.said().suggested.is_some_and(|suggested| suggested.get() == "true")
    }

    /// The servers to ask about the child.
    pub fn via(&self) -> Vec<ServerName> {
        let via = self.said().via.and_then(|via| read::<Vec<Cow<'_, str>>>(via.get().as_bytes()).ok());
        let names = via.iter().flatten().filter_map(|name| ServerName::parse(name).ok());
        names.take(20).collect()
    }

    /// "`order` values with the wrong type, or otherwise invalid contents, are to be treated as though the `order` key
    /// was not provided."
    fn order(&self) -> Option<String> {
        let order: String = read(self.said().order?.get().as_bytes()).ok()?;
        (order.len() <= 50 && order.bytes().all(|b| (0x20..=0x7e).contains(&b))).then_some(order)
    }
}

/// The children among these events: those with a valid `order` by that, then the others; equal ones by their time, then
/// by room id.
fn in_order(mut events: Vec<ChildEvent>, suggested_only: bool) -> Vec<ChildEvent> {
    events.retain(|event| event.is_child() && (!suggested_only || event.is_suggested()));
    order::sort_by_cached_key(&mut events, |event| {
        let order = event.order();
        (order.is_none(), order, event.origin_server_ts, event.state_key.clone())
    });
    events.truncate(CHILDREN_MAX);
    let mut left = CHILD_BYTES_MAX;
    events.retain(|event| {
        let fits = event.weight() <= left;
        left = left.saturating_sub(event.weight());
        fits
    });
    events
}

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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn child(room: &str, ts: i64, content: Value) -> ChildEvent {
        let event = json!({
            "type": "m.space.child", "state_key": room, "sender": "@a:b.org", "origin_server_ts": ts, "content": content,
        });
        serde_json::from_str(&event.to_string()).unwrap()
    }

    #[test]
    fn children_are_shown_by_order_then_by_time_then_by_room_id() {
        let via = json!(["b.org"]);
        let long = "x".repeat(51);
        let events = vec![
            child("!late:b.org", 9, json!({"via": via})),
            child("!tie2:b.org", 5, json!({"via": via})),
            child("!tie1:b.org", 5, json!({"via": via})),
            child("!odd:b.org", 6, json!({"via": via, "order": "\u{7f}"})),
            child("!long:b.org", 7, json!({"via": via, "order": long})),
            child("!second:b.org", 1, json!({"via": via, "order": "b"})),
            child("!first:b.org", 8, json!({"via": via, "order": " "})),
            child("!gone:b.org", 1, json!({})),
            child("!empty:b.org", 1, json!({"via": []})),
            child("!wrong:b.org", 1, json!({"via": [7]})),
        ];
        let shown: Vec<String> =
            in_order(events.clone(), false).iter().map(|e| e.state_key.to_string()).collect();
        let expected = ["!first", "!second", "!tie1", "!tie2", "!odd", "!long", "!late"];
        assert_eq!(shown, expected.map(|name| format!("{name}:b.org")));
        assert!(in_order(events, true).is_empty());
        let suggested = vec![child("!a:b.org", 1, json!({"via": via, "suggested": true}))];
        assert_eq!(in_order(suggested, true).len(), 1);
    }
}
