//! Sliding sync as it was accepted: `POST /_matrix/client/v4/sync` (MSC4186).

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::{RawValue, to_raw_value};

use super::presence;
use super::sliding::{
    Asked, ExtensionsBody, ExtensionsJson, FiltersBody, ListAnswer, answer, lists, range, subscriptions,
    timeline_limit,
};
use crate::error::{Error, Result};
use crate::http::{Outcome, Poll, Request, Requester};
use crate::order::Gather;
use crate::protocol::RoomId;
use crate::service::Homeserver;
use crate::service::sync::sliding::request::{
    RequiredState, RoomConfig, SlidingList, SlidingRequest, StatePattern, StateSelector,
};
use crate::service::sync::sliding::{Hero, RoomAnswer, SlidingAnswer};
use crate::store::ephemeral::presence::PresenceState;

/// Rooms that one request may subscribe to.
const SUBSCRIPTIONS_MAX: usize = 100;

#[derive(Deserialize)]
struct SlidingBody {
    conn_id: Option<String>,
    pos: Option<String>,
    timeout: Option<i64>,
    set_presence: Option<String>,
    lists: Option<BTreeMap<String, ListBody>>,
    room_subscriptions: Option<BTreeMap<String, ConfigBody>>,
    extensions: Option<ExtensionsBody>,
}

#[derive(Deserialize)]
struct ListBody {
    range: Option<(i64, i64)>,
    #[serde(flatten)]
    config: ConfigBody,
    filters: Option<FiltersBody>,
}

#[derive(Deserialize)]
struct ConfigBody {
    timeline_limit: i64,
    required_state: RequiredStateBody,
}

#[derive(Deserialize)]
struct RequiredStateBody {
    #[serde(default)]
    include: Vec<StatePattern>,
    #[serde(default)]
    exclude: Vec<StatePattern>,
    #[serde(default)]
    lazy_members: bool,
}

impl ConfigBody {
    fn into_config(self) -> Result<RoomConfig> {
        let RequiredStateBody { include, exclude, lazy_members } = self.required_state;
        let required_state = RequiredState::new(vec![StateSelector { include, exclude, lazy_members }]);
        Ok(RoomConfig { timeline_limit: timeline_limit(self.timeline_limit)?, required_state })
    }
}

/// `POST /_matrix/client/v4/sync`.
pub fn sync(hs: &Arc<Homeserver>, request: &Request, requester: &Requester, poll: Poll) -> Result<Outcome> {
    let body: SlidingBody = request.json_or_empty()?;
    let mut asked_lists = BTreeMap::new();
    for (name, list) in body.lists.unwrap_or_default() {
        let ranges = list.range.map(|ends| Ok::<_, Error>(vec![range(ends)?])).transpose()?;
        let (config, filters) = (list.config.into_config()?, list.filters.unwrap_or_default().filters(true));
        asked_lists.insert(name, SlidingList { ranges, config, filters });
    }
    let asked = Asked {
        timeout: body.timeout,
        presence: body.set_presence.as_deref().map_or(Ok(PresenceState::Online), presence::state)?,
        request: SlidingRequest {
            conn_id: body.conn_id.unwrap_or_default(),
            pos: body.pos.filter(|pos| !pos.is_empty()),
            lists: asked_lists,
            subscriptions: subscriptions(
                body.room_subscriptions.unwrap_or_default(),
                SUBSCRIPTIONS_MAX,
                ConfigBody::into_config,
            )?,
            extensions: body.extensions.unwrap_or_default().extensions()?,
        },
    };
    let names: Vec<String> = asked.request.lists.keys().cloned().collect();
    answer(hs, (request, poll), requester, &asked, |answer| AcceptedAnswer::of(answer, &names))
}

#[derive(Serialize)]
struct AcceptedAnswer {
    pos: String,
    lists: BTreeMap<String, ListAnswer>,
    rooms: BTreeMap<RoomId, AcceptedRoom>,
    extensions: ExtensionsJson,
}

#[derive(Serialize)]
struct AcceptedRoom {
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    initial: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    membership: Option<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    lists: Vec<String>,
    /// null: there is none any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<Option<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    avatar: Option<Option<String>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    heroes: Vec<Hero>,
    #[serde(skip_serializing_if = "Option::is_none")]
    is_dm: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stripped_state: Option<Vec<Box<RawValue>>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    required_state: Vec<Box<RawValue>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    timeline_events: Vec<Box<RawValue>>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    expanded_timeline: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    prev_batch: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    limited: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    num_live: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    joined_count: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    invited_count: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bump_stamp: Option<i64>,
}

impl AcceptedAnswer {
    fn of(answer: SlidingAnswer, names: &[String]) -> Result<Self> {
        let rooms =
            answer.rooms.into_iter().map(|(room_id, room)| Ok((room_id, AcceptedRoom::of(room, names)?)));
        Ok(Self {
            pos: answer.pos,
            lists: lists(answer.counts),
            rooms: rooms.try_gather::<_, Error, _>()?,
            extensions: ExtensionsJson::of(answer.extensions),
        })
    }
}

impl AcceptedRoom {
    fn of(room: RoomAnswer, names: &[String]) -> Result<Self> {
        let mut required_state = room.required_state;
        for (event_type, state_key) in room.removed_state {
            // A stub: "the presence or absence of the `content` field can be used to differentiate".
            let stub = json!({ "type": event_type, "state_key": state_key });
            required_state.push(to_raw_value(&stub).map_err(Error::internal)?);
        }
        Ok(Self {
            initial: room.initial,
            membership: room.membership.map(|membership| membership.as_str()),
            lists: room.lists.iter().filter_map(|number| names.get(*number).cloned()).collect(),
            name: room.name,
            avatar: room.avatar,
            heroes: room.heroes,
            is_dm: room.is_dm,
            stripped_state: room.stripped_state,
            required_state,
            timeline_events: room.timeline,
            expanded_timeline: room.expanded_timeline,
            prev_batch: room.prev_batch,
            limited: room.limited,
            num_live: room.num_live,
            joined_count: room.joined_count,
            invited_count: room.invited_count,
            bump_stamp: room.bump_stamp,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_that_there_is_no_more_is_told_by_a_stub_without_content() {
        let removed_state = vec![("org.example.thing".to_owned(), "a".to_owned())];
        let answer = RoomAnswer { removed_state, name: Some(None), ..RoomAnswer::default() };
        let room = serde_json::to_value(AcceptedRoom::of(answer, &[]).unwrap()).unwrap();
        let stub = json!({ "type": "org.example.thing", "state_key": "a" });
        assert_eq!(room, json!({ "name": null, "required_state": [stub] }));
    }
}
