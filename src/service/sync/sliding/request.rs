//! What a client asks of sliding sync, the same for both dialects: which rooms, and what of each.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::order;
use crate::protocol::RoomId;

/// Lists of one request ("Max lists: 100").
pub const LISTS_MAX: usize = 100;
/// The longest name of a connection or list, in bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// Ranges of one list.
pub const RANGES_MAX: usize = 100;
/// Patterns of state that one list or subscription may name.
pub const PATTERNS_MAX: usize = 500;
/// The longest event type, state key, tag or room id that a request may name, in bytes: there are no longer ones.
pub const TERM_BYTES_MAX: usize = 255;
/// Entries of one filter.
pub const FILTER_ENTRIES_MAX: usize = 500;
/// Events of one timeline, whatever is asked for.
pub const TIMELINE_MAX: usize = 100;

/// What a client asks.
#[derive(Debug, Clone, Default)]
pub struct SlidingRequest {
    /// The connection's name; empty if it has none.
    pub conn_id: String,
    /// The token of the last answer; none to begin anew.
    pub pos: Option<String>,
    /// Lists by their names.
    pub lists: BTreeMap<String, SlidingList>,
    /// Rooms that are wanted whether or not a list has them.
    pub subscriptions: BTreeMap<RoomId, RoomConfig>,
    /// What is wanted beside rooms.
    pub extensions: Extensions,
}

/// One list.
#[derive(Debug, Clone, Hash)]
pub struct SlidingList {
    /// The places of the wanted rooms in the list, both ends included; none for all.
    pub ranges: Option<Vec<(u64, u64)>>,
    /// What is wanted of them.
    pub config: RoomConfig,
    /// Which rooms are in the list.
    pub filters: RoomFilters,
}

/// What is wanted of a room.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct RoomConfig {
    /// How many events of its timeline.
    pub timeline_limit: usize,
    /// Which of its state.
    pub required_state: RequiredState,
}

/// Which state of a room is wanted: all that any of the selectors lets through.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RequiredState(Vec<StateSelector>);

/// What is let through by one list or subscription.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StateSelector {
    /// What is wanted.
    pub include: Vec<StatePattern>,
    /// What is not, although it would be.
    pub exclude: Vec<StatePattern>,
    /// Whether memberships come as they are needed; then only patterns that name their type let them through.
    pub lazy_members: bool,
}

/// State events by type and state key; none matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StatePattern {
    /// The event type.
    #[serde(rename = "type")]
    pub event_type: Option<String>,
    /// The state key.
    pub state_key: Option<String>,
}

impl StatePattern {
    fn matches(&self, event_type: &str, state_key: &str) -> bool {
        self.event_type.as_deref().is_none_or(|wanted| wanted == event_type)
            && self.state_key.as_deref().is_none_or(|wanted| wanted == state_key)
    }

    /// About how many bytes it has, written.
    fn bytes(&self) -> usize {
        let text = |text: &Option<String>| text.as_ref().map_or(4, String::len);
        text(&self.event_type) + text(&self.state_key) + 25
    }

    /// Whether it names nothing that is longer than any there is.
    fn is_short(&self) -> bool {
        let short = |text: &Option<String>| text.as_ref().is_none_or(|text| text.len() <= TERM_BYTES_MAX);
        short(&self.event_type) && short(&self.state_key)
    }

    /// Whether it may let memberships through: all of them (none), or that of one user.
    fn members(&self) -> bool {
        self.event_type.as_deref().is_none_or(|wanted| wanted == MEMBER)
    }
}

const MEMBER: &str = "m.room.member";

impl StateSelector {
    /// Whether it lets this state through.
    fn matches(&self, event_type: &str, state_key: &str) -> bool {
        let wanted = |pattern: &StatePattern| {
            pattern.matches(event_type, state_key)
                && !(self.lazy_members && event_type == MEMBER && pattern.event_type.is_none())
        };
        self.include.iter().any(wanted)
            && !self.exclude.iter().any(|pattern| pattern.matches(event_type, state_key))
    }
}

/// Which memberships a room's state is to have for a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WantedMembers<'r> {
    /// All of them.
    All,
    /// Those of these users, beside those that come as they are needed.
    Of(Vec<&'r str>),
}

impl RequiredState {
    /// Of one list or subscription.
    pub fn new(mut selectors: Vec<StateSelector>) -> Self {
        order::sort(&mut selectors);
        selectors.dedup();
        Self(selectors)
    }

    /// What any of the two lets through.
    fn or(&mut self, other: &Self) {
        if self != other {
            let all = self.0.iter().chain(&other.0).cloned().collect();
            *self = Self::new(all);
        }
    }

    /// Whether this state is wanted.
    pub fn wants(&self, event_type: &str, state_key: &str) -> bool {
        self.0.iter().any(|selector| selector.matches(event_type, state_key))
    }

    /// Whether memberships come as they are needed.
    pub fn lazy_members(&self) -> bool {
        self.0.iter().any(|selector| selector.lazy_members)
    }

    /// Whether nothing is wanted, but for memberships that are needed.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|selector| selector.include.is_empty())
    }

    /// Which memberships are wanted in any case.
    pub fn members(&self) -> WantedMembers<'_> {
        let mut users = Vec::new();
        for selector in &self.0 {
            let of_members = |pattern: &&StatePattern| {
                pattern.members() && !(selector.lazy_members && pattern.event_type.is_none())
            };
            for pattern in selector.include.iter().filter(of_members) {
                match &pattern.state_key {
                    None => return WantedMembers::All,
                    Some(user) => users.push(user.as_str()),
                }
            }
        }
        WantedMembers::Of(users)
    }

    /// Whether everything that this lets through is let through by the other as well, as far as that can be told
    /// without looking at a state.
    pub fn is_within(&self, other: &Self) -> bool {
        self.0.iter().all(|selector| other.0.contains(selector))
    }

    fn patterns(&self) -> impl Iterator<Item = &StatePattern> {
        self.0.iter().flat_map(|selector| selector.include.iter().chain(&selector.exclude))
    }

    /// About how many bytes it has, written.
    pub fn bytes(&self) -> usize {
        self.patterns().map(StatePattern::bytes).sum()
    }

    /// A number by which it can be told from others.
    pub fn digest(&self) -> u64 {
        digest(self)
    }
}

/// A number for a value; the same in each run of one program.
pub fn digest(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

impl RoomConfig {
    /// "If a room matches multiple rules … the room configs are combined": the most of both.
    pub fn or(&mut self, other: &Self) {
        self.timeline_limit = self.timeline_limit.max(other.timeline_limit);
        self.required_state.or(&other.required_state);
    }
}

/// Which rooms are in a list; all of what is given must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct RoomFilters {
    /// Rooms that the user's `m.direct` names, or those that it does not.
    pub is_dm: Option<bool>,
    /// Rooms that one of these spaces, which the user is in, has as a child.
    pub spaces: Option<Vec<String>>,
    /// Rooms in which messages are encrypted, or the others.
    pub is_encrypted: Option<bool>,
    /// Invites, or everything else.
    pub is_invited: Option<bool>,
    /// Rooms of these types; none is a room that has no type.
    pub room_types: Option<Vec<Option<String>>>,
    /// Rooms of other types than these, which weighs more than `room_types`.
    pub not_room_types: Option<Vec<Option<String>>>,
    /// Rooms with one of these tags.
    pub tags: Option<Vec<String>>,
    /// Rooms with none of these tags, which weighs more than `tags`.
    pub not_tags: Option<Vec<String>>,
}

/// What is wanted beside rooms.
#[derive(Debug, Clone, Default, Hash)]
pub struct Extensions {
    /// Messages to the device.
    pub to_device: Option<ToDeviceRequest>,
    /// What end-to-end encryption needs to know.
    pub e2ee: bool,
    /// Account data, global and of rooms.
    pub account_data: Option<ExtensionScope>,
    /// Read receipts.
    pub receipts: Option<ExtensionScope>,
    /// Who is typing.
    pub typing: Option<ExtensionScope>,
    /// How many changes of thread subscriptions at most.
    pub thread_subscriptions: Option<usize>,
}

/// Which messages to the device are wanted.
#[derive(Debug, Clone, Hash)]
pub struct ToDeviceRequest {
    /// How many at most.
    pub limit: usize,
    /// The token of the last answer that had any.
    pub since: Option<i64>,
}

/// Of which rooms an extension tells: none is all lists, or all subscriptions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct ExtensionScope {
    /// The rooms of these lists.
    pub lists: Option<Vec<String>>,
    /// These rooms.
    pub rooms: Option<Vec<String>>,
}

/// What stands for all lists, or for all subscriptions.
const ALL: &str = "*";

impl ExtensionScope {
    /// Whether it has a room that is in these lists, and subscribed to or not.
    pub fn has(&self, room: &RoomId, lists: &[&str], subscribed: bool) -> bool {
        let by_list = match &self.lists {
            None => !lists.is_empty(),
            Some(names) if names.iter().any(|name| name == ALL) => !lists.is_empty(),
            Some(names) => names.iter().any(|name| lists.contains(&name.as_str())),
        };
        by_list
            || match &self.rooms {
                None => subscribed,
                Some(rooms) => rooms.iter().any(|name| {
                    (name == ALL && subscribed)
                        || (name == room.as_str() && (subscribed || !lists.is_empty()))
                }),
            }
    }
}

impl SlidingRequest {
    /// Whether the request is one that can be answered. Errors: 400 `M_INVALID_PARAM`.
    pub fn check(&self) -> Result<()> {
        let wrong = |what: &'static str| Err(Error::invalid_param(what));
        if self.conn_id.len() > NAME_BYTES_MAX {
            return wrong("The conn_id is too long");
        }
        if self.lists.len() > LISTS_MAX {
            return wrong("There are too many lists");
        }
        for (name, list) in &self.lists {
            if name.len() > NAME_BYTES_MAX {
                return wrong("The name of a list is too long");
            }
            let ranges = list.ranges.as_deref().unwrap_or_default();
            if ranges.len() > RANGES_MAX || ranges.iter().any(|(first, last)| first > last) {
                return wrong("A range ends before it begins, or there are too many");
            }
            list.filters.check()?;
        }
        let configs = self.lists.values().map(|list| &list.config).chain(self.subscriptions.values());
        for config in configs {
            if config.required_state.patterns().count() > PATTERNS_MAX {
                return wrong("The required_state has too many entries");
            }
            if !config.required_state.patterns().all(StatePattern::is_short) {
                return wrong("The required_state names a type or state key that is too long");
            }
        }
        let scopes = [&self.extensions.account_data, &self.extensions.receipts, &self.extensions.typing];
        for scope in scopes.into_iter().flatten() {
            if [&scope.lists, &scope.rooms]
                .into_iter()
                .flatten()
                .any(|names| names.len() > FILTER_ENTRIES_MAX)
            {
                return wrong("An extension names too many lists or rooms");
            }
        }
        Ok(())
    }

    /// Whether any rooms are asked for. A connection for extensions alone, as clients have one for what they encrypt
    /// with, has none.
    pub fn asks_for_rooms(&self) -> bool {
        !self.lists.is_empty() || !self.subscriptions.is_empty()
    }

    /// A number that stays the same as long as the same is asked of the same rooms.
    pub fn wishes(&self) -> u64 {
        digest(&(&self.lists, &self.subscriptions))
    }

    /// A number that stays the same as long as the same lists and the same extensions of rooms are asked for.
    pub fn shape(&self) -> u64 {
        let Extensions { account_data, receipts, typing, .. } = &self.extensions;
        digest(&(&self.lists, account_data, receipts, typing))
    }
}

impl RoomFilters {
    fn check(&self) -> Result<()> {
        let lists = [&self.spaces, &self.tags, &self.not_tags].map(|list| list.as_ref().map_or(0, Vec::len));
        let types = [&self.room_types, &self.not_room_types].map(|list| list.as_ref().map_or(0, Vec::len));
        if lists.into_iter().chain(types).any(|entries| entries > FILTER_ENTRIES_MAX) {
            return Err(Error::invalid_param("A filter has too many entries"));
        }
        if self.terms().any(|term| term.len() > TERM_BYTES_MAX) {
            return Err(Error::invalid_param("A filter names something that is too long"));
        }
        Ok(())
    }

    /// All that it names.
    fn terms(&self) -> impl Iterator<Item = &String> {
        let lists = [&self.spaces, &self.tags, &self.not_tags].into_iter().flatten().flatten();
        let types = [&self.room_types, &self.not_room_types].into_iter().flatten().flatten().flatten();
        lists.chain(types)
    }

    /// How many bytes all has that it names.
    pub fn bytes(&self) -> usize {
        self.terms().map(String::len).sum()
    }
}

/// The places that these ranges have in a list of so many rooms: `[start, end)`, in order, without overlap.
pub fn places_in(ranges: Option<&[(u64, u64)]>, count: usize) -> Vec<(usize, usize)> {
    let Some(ranges) = ranges else { return vec![(0, count)] };
    let place = |place: u64| usize::try_from(place).unwrap_or(usize::MAX).min(count);
    let mut places: Vec<_> =
        ranges.iter().map(|&(first, last)| (place(first), place(last.saturating_add(1)))).collect();
    places.retain(|(start, end)| start < end);
    order::sort(&mut places);
    let mut merged: Vec<(usize, usize)> = Vec::new();
    for (start, end) in places {
        match merged.last_mut() {
            Some((_, last)) if start <= *last => *last = end.max(*last),
            _ => merged.push((start, end)),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(event_type: Option<&str>, state_key: Option<&str>) -> StatePattern {
        StatePattern { event_type: event_type.map(str::to_owned), state_key: state_key.map(str::to_owned) }
    }

    fn selector(include: Vec<StatePattern>, exclude: Vec<StatePattern>, lazy_members: bool) -> RequiredState {
        RequiredState::new(vec![StateSelector { include, exclude, lazy_members }])
    }

    #[test]
    fn everything_but_members_is_wanted_where_these_come_as_they_are_needed() {
        let all = selector(vec![pattern(None, None)], vec![], true);
        assert!(all.wants("m.room.name", "") && all.wants("m.space.child", "!r:s"));
        assert!(!all.wants("m.room.member", "@a:s"));
        assert_eq!(all.members(), WantedMembers::Of(vec![]));
        let with_members = selector(vec![pattern(None, None)], vec![], false);
        assert!(with_members.wants("m.room.member", "@a:s"));
        assert_eq!(with_members.members(), WantedMembers::All);
    }

    #[test]
    fn what_is_excluded_by_one_rule_may_be_wanted_by_another() {
        let mut one = RoomConfig {
            timeline_limit: 1,
            required_state: selector(
                vec![pattern(None, None)],
                vec![pattern(Some("m.room.create"), Some(""))],
                false,
            ),
        };
        assert!(!one.required_state.wants("m.room.create", ""));
        let other = RoomConfig {
            timeline_limit: 20,
            required_state: selector(vec![pattern(Some("m.room.create"), None)], vec![], true),
        };
        one.or(&other);
        assert_eq!(one.timeline_limit, 20);
        assert!(one.required_state.wants("m.room.create", "") && one.required_state.lazy_members());
        assert!(other.required_state.is_within(&one.required_state));
        assert!(!one.required_state.is_within(&other.required_state));
    }

    #[test]
    fn an_extension_is_about_the_rooms_of_its_lists_and_about_those_it_names() {
        let (room, other) = (RoomId::parse("!r:s").unwrap(), RoomId::parse("!o:s").unwrap());
        let names = |names: &[&str]| Some(names.iter().map(|name| (*name).to_owned()).collect());
        let everything = ExtensionScope::default();
        assert!(everything.has(&room, &["a"], false) && everything.has(&room, &[], true));
        let nothing = ExtensionScope { lists: names(&[]), rooms: names(&[]) };
        assert!(!nothing.has(&room, &["a"], true));
        let by_name = ExtensionScope { lists: names(&["b"]), rooms: names(&["!r:s"]) };
        assert!(by_name.has(&room, &["a"], false) && by_name.has(&other, &["b"], false));
        assert!(!by_name.has(&other, &["a"], true));
        let stars = ExtensionScope { lists: names(&["*"]), rooms: names(&["*"]) };
        assert!(
            stars.has(&room, &["a"], false) && stars.has(&room, &[], true) && !stars.has(&room, &[], false)
        );
    }

    #[test]
    fn ranges_of_any_kind_are_places_of_the_list() {
        assert_eq!(places_in(None, 7), [(0, 7)]);
        assert_eq!(places_in(Some(&[(0, 99)]), 7), [(0, 7)]);
        assert_eq!(places_in(Some(&[(7, 99)]), 7), []);
        assert_eq!(places_in(Some(&[(0, u64::MAX)]), 0), []);
        assert_eq!(places_in(Some(&[(5, 6), (0, 1), (1, 3)]), 10), [(0, 4), (5, 7)]);
        assert_eq!(places_in(Some(&[(0, 1), (2, 3)]), 10), [(0, 4)], "what touches is one");
        assert_eq!(places_in(Some(&[(2, 3)]), 10), [(2, 4)]);
    }
}
