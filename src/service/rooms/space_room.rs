//! A room as those outside see it, of this server or of another: its summary, and its children if it is a space.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::order;
use crate::protocol::json::{First, ObjectText, read, read_object};
use crate::protocol::{Pdu, RoomId, ServerName, UserId};
use crate::service::rooms::directory::PublishedRoom;

/// No more children of one space are looked at, in the order in which they are shown.
pub const CHILDREN_MAX: usize = 1000;
/// And so many are read, of which those are chosen.
const CHILDREN_READ_MAX: usize = 10_000;

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
    fn is_space(&self) -> bool {
        self.room.room_type.as_deref() == Some("m.space")
    }

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

/// A child, as the server that is asked about its space describes it. "The room's children" is said of the space alone, and
/// most servers say it of no child: which ones a space among them has is asked for by itself.
#[derive(Deserialize)]
pub(super) struct SpaceChild {
    #[serde(flatten)]
    summary: RoomSummary,
    #[serde(default, deserialize_with = "children_if_said")]
    children_state: Option<Vec<ChildEvent>>,
}

impl SpaceChild {
    /// The room, and whether all is said of it that there is to show.
    pub(super) fn into_room(self) -> (SpaceRoom, bool) {
        let is_whole = self.children_state.is_some() || !self.summary.is_space();
        (
            SpaceRoom { summary: self.summary, children_state: self.children_state.unwrap_or_default() },
            is_whole,
        )
    }
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
        if self.summary.is_space() {
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
    Ok(children_among(&ChildrenRead::deserialize(d)?))
}

fn children_if_said<'de, D: serde::Deserializer<'de>>(
    d: D,
) -> std::result::Result<Option<Vec<ChildEvent>>, D::Error> {
    Ok(Option::<ChildrenRead>::deserialize(d)?.map(|events| children_among(&events)))
}

type ChildrenRead = First<Box<RawValue>, CHILDREN_READ_MAX>;

fn children_among(events: &ChildrenRead) -> Vec<ChildEvent> {
    events.iter().filter_map(|event| read_object(event.get().as_bytes()).ok()).collect()
}

impl ChildEvent {
    pub(super) fn of(pdu: &Pdu) -> Option<Self> {
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
