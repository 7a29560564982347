//! What a client asks of a search, and what it is told (client-server API, "Server Side Search").

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::protocol::filter::EventFilter;
use crate::protocol::{EventId, RoomId, UserId};
use crate::service::rooms::client_format::Json;

/// What to search for in events.
#[derive(Debug, Deserialize)]
pub struct SearchCriteria {
    /// The words.
    pub search_term: String,
    #[serde(default)]
    pub(super) keys: Option<Vec<String>>,
    #[serde(default)]
    pub(super) filter: EventFilter,
    #[serde(default)]
    pub(super) order_by: SearchOrder,
    #[serde(default)]
    pub(super) event_context: Option<ContextWanted>,
    #[serde(default)]
    pub(super) include_state: Option<bool>,
    #[serde(default)]
    pub(super) groupings: Option<Groupings>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum SearchOrder {
    /// "By default, this is `"rank"`."
    #[default]
    Rank,
    Recent,
}

#[derive(Debug, Deserialize)]
pub(super) struct ContextWanted {
    #[serde(default)]
    pub(super) before_limit: Option<u64>,
    #[serde(default)]
    pub(super) after_limit: Option<u64>,
    #[serde(default)]
    pub(super) include_profile: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Groupings {
    #[serde(default)]
    pub(super) group_by: Vec<Grouping>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Grouping {
    pub(super) key: GroupKey,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum GroupKey {
    RoomId,
    Sender,
}

/// What was found.
#[derive(Serialize)]
pub struct SearchAnswer {
    pub(super) count: usize,
    pub(super) highlights: Vec<String>,
    pub(super) results: Vec<SearchResult>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) state: Option<BTreeMap<RoomId, Vec<Json>>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) groups: BTreeMap<GroupKey, BTreeMap<String, Group>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) next_batch: Option<String>,
}

#[derive(Serialize)]
pub(super) struct SearchResult {
    pub(super) rank: f64,
    pub(super) result: Json,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) context: Option<ResultContext>,
}

#[derive(Serialize)]
pub(super) struct ResultContext {
    pub(super) start: String,
    pub(super) end: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) profile_info: Option<BTreeMap<UserId, Map<String, Value>>>,
    pub(super) events_before: Vec<Json>,
    pub(super) events_after: Vec<Json>,
}

#[derive(Serialize)]
pub(super) struct Group {
    pub(super) order: usize,
    pub(super) results: Vec<EventId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) next_batch: Option<String>,
}

impl SearchCriteria {
    /// Whether the answer has the state of rooms, which may be large.
    pub fn wants_state(&self) -> bool {
        self.include_state == Some(true)
    }
}

impl SearchResult {
    /// How large it is, about.
    pub(super) fn bytes(&self) -> usize {
        let around =
            self.context.iter().flat_map(|around| around.events_before.iter().chain(&around.events_after));
        around.chain([&self.result]).map(|event| event.get().len()).sum()
    }
}
