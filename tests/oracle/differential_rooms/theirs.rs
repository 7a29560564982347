//! Our events as ruma wants to see them, and ruma's answers to our questions.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use doorstep::protocol::room_version::RoomVersion;
use doorstep::protocol::state_res::StateMap;
use doorstep::protocol::{EventId, Pdu};
use ruma_common::room_version_rules::{AuthorizationRules, StateResolutionV2Rules};
use ruma_common::{
    MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, RoomVersionId, UserId,
};
use ruma_events::{StateEventType, TimelineEventType};
use ruma_state_res::Event;
use serde_json::value::RawValue;

/// One event as ruma sees it.
pub struct Theirs {
    event_id: OwnedEventId,
    room_id: Option<OwnedRoomId>,
    sender: OwnedUserId,
    timestamp: MilliSecondsSinceUnixEpoch,
    event_type: TimelineEventType,
    state_key: Option<String>,
    content: Box<RawValue>,
    prev_events: Vec<OwnedEventId>,
    auth_events: Vec<OwnedEventId>,
    rejected: bool,
}

impl Theirs {
    pub fn of(event: &Pdu, rejected: bool) -> Arc<Self> {
        let ids = |ids: &[EventId]| ids.iter().map(their_id).collect();
        let hashed_room_id = event.version().room_id_is_create_hash && event.event_type() == "m.room.create";
        Arc::new(Self {
            event_id: their_id(event.event_id()),
            room_id: (!hashed_room_id).then(|| event.room_id().as_str().try_into().expect("a room id")),
            sender: event.sender().as_str().try_into().expect("a user id"),
            timestamp: serde_json::from_value(event.origin_server_ts().into()).expect("a timestamp"),
            event_type: event.event_type().into(),
            state_key: event.state_key().map(str::to_owned),
            content: RawValue::from_string(event.content_raw().to_owned()).expect("JSON"),
            prev_events: ids(event.prev_events()),
            auth_events: ids(event.auth_events()),
            rejected,
        })
    }
}

impl Event for Theirs {
    type Id = OwnedEventId;
    fn event_id(&self) -> &OwnedEventId {
        &self.event_id
    }
    fn room_id(&self) -> Option<&RoomId> {
        self.room_id.as_deref()
    }
    fn sender(&self) -> &UserId {
        &self.sender
    }
    fn origin_server_ts(&self) -> MilliSecondsSinceUnixEpoch {
        self.timestamp
    }
    fn event_type(&self) -> &TimelineEventType {
        &self.event_type
    }
    fn content(&self) -> &RawValue {
        &self.content
    }
    fn state_key(&self) -> Option<&str> {
        self.state_key.as_deref()
    }
    fn prev_events(&self) -> Box<dyn DoubleEndedIterator<Item = &OwnedEventId> + '_> {
        Box::new(self.prev_events.iter())
    }
    fn auth_events(&self) -> Box<dyn DoubleEndedIterator<Item = &OwnedEventId> + '_> {
        Box::new(self.auth_events.iter())
    }
    fn redacts(&self) -> Option<&OwnedEventId> {
        None
    }
    fn rejected(&self) -> bool {
        self.rejected
    }
}

pub fn their_id(id: &EventId) -> OwnedEventId {
    id.as_str().try_into().expect("an event id")
}

/// ruma's rules of a room version.
pub struct TheirRules {
    pub authorization: AuthorizationRules,
    state_resolution: StateResolutionV2Rules,
}

impl TheirRules {
    pub fn of(version: RoomVersion) -> Self {
        let id = RoomVersionId::try_from(version.id).expect("a room version");
        let rules = id.rules().expect("a known room version");
        let state_resolution = *rules.state_res.v2_rules().expect("version 2 or 2.1");
        Self { authorization: rules.authorization, state_resolution }
    }
}

/// Whether ruma allows an event by its auth events.
pub fn check_auth_events(
    event: &Pdu,
    known: &HashMap<EventId, Pdu>,
    rejected: &HashSet<EventId>,
    rules: &TheirRules,
) -> Result<(), String> {
    let fetch = |id: &ruma_common::EventId| {
        let id = EventId::parse(id.as_str()).ok()?;
        known.get(&id).map(|event| Theirs::of(event, rejected.contains(&id)))
    };
    ruma_state_res::check_state_independent_auth_rules(&rules.authorization, Theirs::of(event, false), fetch)
}

/// Whether ruma allows an event by a state.
pub fn check(
    event: &Pdu,
    rules: &TheirRules,
    state: &dyn Fn(&str, &str) -> Option<Pdu>,
) -> Result<(), String> {
    let fetch = |kind: &StateEventType, key: &str| {
        state(&kind.to_string(), key).map(|event| Theirs::of(&event, false))
    };
    ruma_state_res::check_state_dependent_auth_rules(&rules.authorization, Theirs::of(event, false), fetch)
}

/// ruma's resolution of states. The auth chains and the subgraph are ours to give: they are made here by the
/// definitions, without any of the shortcuts of the code under test.
pub fn resolve(
    sets: &[StateMap],
    events: &HashMap<EventId, Pdu>,
    rules: &TheirRules,
) -> Result<StateMap, String> {
    let theirs: HashMap<OwnedEventId, Arc<Theirs>> =
        events.iter().map(|(id, event)| (their_id(id), Theirs::of(event, false))).collect();
    let maps: Vec<ruma_state_res::StateMap<OwnedEventId>> = sets
        .iter()
        .map(|set| {
            let entry = |((kind, key), id): (&(Arc<str>, Arc<str>), &EventId)| {
                ((StateEventType::from(&**kind), key.to_string()), their_id(id))
            };
            set.iter().map(entry).collect()
        })
        .collect();
    let chains =
        sets.iter().map(|set| chain(events, set.values()).into_iter().map(their_id).collect()).collect();
    let subgraph = |conflicted: &ruma_state_res::StateMap<Vec<OwnedEventId>>| {
        let conflicted: HashSet<EventId> =
            conflicted.values().flatten().filter_map(|id| EventId::parse(id.as_str()).ok()).collect();
        let leads = |id: &&EventId| chain(events, [*id]).iter().any(|id| conflicted.contains(*id));
        Some(chain(events, &conflicted).into_iter().filter(leads).map(their_id).collect())
    };
    let resolved = ruma_state_res::resolve(
        &rules.authorization,
        &rules.state_resolution,
        &maps,
        chains,
        |id| theirs.get(id).cloned(),
        subgraph,
    )
    .map_err(|e| e.to_string())?;
    Ok(resolved
        .into_iter()
        .map(|((kind, key), id)| {
            ((kind.to_string().into(), key.into()), EventId::parse(id.as_str()).expect("an event id"))
        })
        .collect())
}

/// Some events and everything that they rest on, the create event of version 12 included.
fn chain<'e>(
    events: &'e HashMap<EventId, Pdu>,
    of: impl IntoIterator<Item = &'e EventId>,
) -> HashSet<&'e EventId> {
    let mut found = HashSet::new();
    let mut todo: Vec<&EventId> = of.into_iter().collect();
    while let Some(id) = todo.pop() {
        if found.insert(id) {
            let event = &events[id];
            todo.extend(event.auth_events());
            if let Some(create) = event.room_id().create_event_id() {
                todo.extend(events.get_key_value(&create).map(|(id, _)| id));
            }
        }
    }
    found
}
