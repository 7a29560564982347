//! Search: events by the words in them (client-server API, "Server Side Search").
//!
//! A search looks at the events that match in windows of a bounded size, those that came last first, judges each of a
//! window (whether the searcher may see it, and whether it is wanted), and puts those that are left in the order that was
//! asked for. So a word that a million messages have costs no more than a rare one: of its matches the latest few
//! hundred are ranked, and the next few hundred when the client asks for more.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::client_format;
use crate::error::{Error, Result};
use crate::order::{self, Gather};
use crate::protocol::filter::EventFilter;
use crate::protocol::search_text::{SearchKey, SearchQuery};
use crate::protocol::{RoomId, UserId};
use crate::service::accounts::ignored_users::Ignored;
use crate::service::limits::search_turns::SearchTurn;
use crate::service::rooms::Rooms;
use crate::service::rooms::bundles::write_with_bundles;
use crate::service::rooms::client_format::{ClientFormat, Json};
use crate::service::rooms::pagination_token::PaginationToken;
use crate::service::rooms::search_format::{
    ContextWanted, Group, GroupKey, ResultContext, SearchAnswer, SearchCriteria, SearchOrder, SearchResult,
};
use crate::service::rooms::search_token::{GroupMember, NextBatch};
use crate::service::rooms::searched_rooms::searched_rooms;
use crate::service::rooms::timeline::{TimelineEvent, walk};
use crate::service::rooms::view::{Access, RoomView};
use crate::store::rooms::events::TimelineRange;
use crate::store::rooms::search::TextSearch;
use crate::store::{Db, EventKey, Place, Room, RoomKey, Status, StoredEvent};

/// Events of one window.
const WINDOW_EVENTS: usize = 300;
/// One request looks at no more events than these, whether or not it may show any of them.
const EVENTS_LOOKED_AT_MAX: usize = 10 * WINDOW_EVENTS;
/// A text of so many bytes counts as one event more.
const TEXT_BYTES_OF_EVENT: usize = 1024;
/// So many changes of a message are looked at for one that the searcher may see.
const CHANGES_LOOKED_AT_MAX: usize = 10;
/// With more rooms than these the index is asked about all rooms: each room makes its part of the work dearer.
const ROOMS_IN_QUERY_MAX: usize = 100;
/// Results where the client does not say how many, and at most.
const RESULTS_USUAL: usize = 10;
const RESULTS_MAX: usize = 100;
/// A page ends with the result that makes it this large.
const RESULTS_BYTES_MAX: usize = 1 << 20;
/// Events on each side of a result, where the client does not say how many, and at most.
const CONTEXT_USUAL: usize = 5;
const CONTEXT_MAX: usize = 20;
/// Most words to be highlighted.
const HIGHLIGHTS_MAX: usize = 100;
/// A search writes down what came since the last one in at most so many portions; what came before those is found later.
const PORTIONS_MAX: usize = 20;
/// This far the index may be behind before it is brought up to date although nobody searches.
const BEHIND_MAX: usize = 400;

/// A match that the searcher may see and wants.
struct Hit {
    shown: TimelineEvent,
    /// How well it fits, where that decides the order.
    rank: f64,
}

/// What a page of a search has.
struct Page {
    hits: Vec<Hit>,
    /// Where a page begins that begins with each of them.
    begins: Vec<NextBatch>,
    next: Option<NextBatch>,
    /// Of the window that the page ends in, what is left for the next one: of which rooms, and by whom.
    left: Vec<(RoomKey, UserId)>,
    /// Whether there may be more windows.
    is_last_window: bool,
    count: usize,
}

impl Page {
    /// Leaves what is behind so many hits for the next page.
    fn end_behind(&mut self, hits: usize) {
        if let Some(next) = self.begins.get(hits) {
            self.next = Some(*next);
            let left = self.hits.split_off(hits);
            self.left.extend(
                left.into_iter().map(|hit| (hit.shown.event.room, hit.shown.event.pdu.sender().clone())),
            );
        }
    }
}

impl Rooms<'_> {
    /// `POST /search`: the events of the searcher's rooms, left ones too, in which the words are. Whoever is `wanted` no more
    /// waits for no turn. Errors: 400 `M_INVALID_PARAM`, `M_BAD_JSON`; 429 `M_LIMIT_EXCEEDED`.
    pub fn search(
        &self,
        format: &ClientFormat<'_>,
        criteria: &SearchCriteria,
        next_batch: Option<&str>,
        wanted: impl Fn() -> bool,
    ) -> Result<SearchAnswer> {
        criteria.filter.check()?;
        let query = SearchQuery::parse(&criteria.search_term)?;
        let keys = match &criteria.keys {
            None => SearchKey::ALL.to_vec(),
            Some(names) => {
                let keys: Result<BTreeSet<SearchKey>> =
                    names.iter().map(|name| SearchKey::parse(name)).try_gather();
                keys?.into_iter().gather()
            }
        };
        let limit = match criteria.filter.limit_or(RESULTS_USUAL, RESULTS_MAX) {
            0 => return Err(Error::invalid_param("limit must be greater than 0")),
            limit => limit,
        };
        let from = next_batch.map_or(Ok(NextBatch::START), NextBatch::parse)?;
        let mut turn = self.search_turns.turn(format.user, wanted)?;
        for _ in 0..PORTIONS_MAX {
            if turn.is_over() || self.store.read(|db| db.events_to_index())? == 0 || !self.index_texts()? {
                break;
            }
        }
        turn.begin();
        self.store.read_until(turn.ends(), |db| {
            let rooms = searched_rooms(db, format.user, &criteria.filter)?;
            let (query, keys, rooms) = (&query, &keys, &rooms);
            let search = Search { db, format, criteria, query, keys, rooms, turn: &turn };
            search.answer(from, limit)
        })
    }

    /// Writes down what search will find events by, some of those that came since. Whether more are left.
    fn index_texts(&self) -> Result<bool> {
        // What a power cut takes of the index is done again: how far it is goes with it.
        self.store.write_lightly(|tx| tx.index_texts())
    }

    /// Brings the index of texts nearer to what came, if it is far behind. Whether it is so still.
    pub(in crate::service) fn index_texts_if_behind(&self) -> Result<bool> {
        let is_far_behind = || Ok(self.store.read(|db| db.events_to_index())? > BEHIND_MAX);
        if !is_far_behind()? {
            return Ok(false);
        }
        self.index_texts()?;
        is_far_behind()
    }
}

/// A search that is under way.
struct Search<'s> {
    db: &'s Db<'s>,
    format: &'s ClientFormat<'s>,
    criteria: &'s SearchCriteria,
    query: &'s SearchQuery,
    keys: &'s [SearchKey],
    rooms: &'s BTreeMap<RoomKey, Room>,
    turn: &'s SearchTurn,
}

/// The searcher's views of rooms that had a match.
type Views<'s> = HashMap<RoomKey, RoomView<'s>>;

impl<'s> Search<'s> {
    fn answer(&self, from: NextBatch, limit: usize) -> Result<SearchAnswer> {
        let mut views = Views::new();
        let mut page = self.page(&mut views, from, limit)?;
        let (mut highlights, mut bytes) = (BTreeSet::new(), 0);
        let mut results: Vec<SearchResult> = Vec::with_capacity(page.hits.len());
        for hit in &page.hits {
            if bytes >= RESULTS_BYTES_MAX {
                break;
            }
            let view =
                views.get(&hit.shown.event.room).ok_or_else(|| Error::internal("a view went missing"))?;
            let text = self.text_for(view, &hit.shown.event)?.unwrap_or_default();
            self.query.highlights(&text, &mut highlights);
            let result = self.result(view, hit, self.query.rank(&text))?;
            bytes += result.bytes();
            results.push(result);
        }
        page.end_behind(results.len());
        let state = match self.criteria.include_state {
            Some(true) => Some(self.state(&views, &page.hits)?),
            _ => None,
        };
        Ok(SearchAnswer {
            count: page.count,
            highlights: highlights.into_iter().take(HIGHLIGHTS_MAX).collect(),
            results,
            state,
            groups: self.groups(&page),
            next_batch: page.next.map(|next| next.to_string()),
        })
    }

    /// The next hits from where the token says, and where the search goes on.
    fn page(&self, views: &mut Views<'s>, from: NextBatch, limit: usize) -> Result<Page> {
        let room_keys: Vec<RoomKey> = self.rooms.keys().copied().collect();
        let rooms = Some(room_keys.as_slice()).filter(|rooms| rooms.len() <= ROOMS_IN_QUERY_MAX);
        let search = TextSearch { query: self.query, rooms, keys: self.keys };
        let ignored = Arc::new(Ignored::of(self.db, self.format.user)?);
        let sender = match from.within {
            Some(GroupMember::SenderOf(event)) => self.sender_of(views, &ignored, event)?,
            _ => None,
        };
        let mut page = Page {
            hits: Vec::new(),
            begins: Vec::new(),
            next: None,
            left: Vec::new(),
            is_last_window: true,
            count: 0,
        };
        let (mut at, mut looked_at) = (from, 0);
        loop {
            let window = self.db.events_with_text(&search, at.top, WINDOW_EVENTS)?;
            let (Some(first), Some(last)) = (window.first(), window.last()) else {
                page.count = at.seen;
                return Ok(page);
            };
            // From here on the window is this one, whatever comes meanwhile.
            at.top = *first;
            let mut hits = self.judged(views, &ignored, &window, &mut looked_at)?;
            self.sort(&mut hits);
            page.is_last_window = window.len() < WINDOW_EVENTS;
            page.count = at.seen + hits.len();
            looked_at += window.len();
            for (number, hit) in hits.into_iter().enumerate().skip(at.skip) {
                let is_within = match from.within {
                    None => true,
                    Some(GroupMember::Room(room)) => hit.shown.event.room == room,
                    Some(GroupMember::SenderOf(_)) => sender.as_ref() == Some(hit.shown.event.pdu.sender()),
                };
                if !is_within {
                    continue;
                }
                if page.hits.len() < limit {
                    page.hits.push(hit);
                    page.begins.push(NextBatch { skip: number, ..at });
                } else {
                    page.next.get_or_insert(NextBatch { skip: number, ..at });
                    page.left.push((hit.shown.event.room, hit.shown.event.pdu.sender().clone()));
                }
            }
            if page.next.is_some() || page.is_last_window || *last <= 1 {
                return Ok(page);
            }
            at = NextBatch { top: last - 1, skip: 0, seen: page.count, within: at.within };
            if page.hits.len() >= limit || looked_at >= EVENTS_LOOKED_AT_MAX || self.turn.is_over() {
                page.next = Some(at);
                return Ok(page);
            }
        }
    }

    /// Who sent the event of a token, which anybody can have written: of one that the searcher may not see it is
    /// nobody, as of one that there is not.
    fn sender_of(
        &self,
        views: &mut Views<'s>,
        ignored: &Arc<Ignored>,
        event: EventKey,
    ) -> Result<Option<UserId>> {
        let Ok(event) = self.db.event_by_key(event) else { return Ok(None) };
        let Some(view) = self.view_of(views, ignored, event.room)? else { return Ok(None) };
        let is_shown = event.status == Status::Accepted && !event.is_outlier() && view.look(&event)?.visible;
        Ok(is_shown.then(|| event.pdu.sender().clone()))
    }

    /// The searcher's view of a room that is searched, if they are or were in it.
    fn view_of<'v>(
        &self,
        views: &'v mut Views<'s>,
        ignored: &Arc<Ignored>,
        room: RoomKey,
    ) -> Result<Option<&'v RoomView<'s>>> {
        let Some(room) = self.rooms.get(&room) else { return Ok(None) };
        let view = match views.entry(room.key) {
            Entry::Occupied(view) => view.into_mut(),
            Entry::Vacant(place) => {
                place.insert(RoomView::ignoring(self.db, room, self.format.user, ignored.clone())?)
            }
        };
        Ok(matches!(view.access, Access::Joined { .. } | Access::Left { .. }).then_some(&*view))
    }

    /// Those of a window that the searcher may see and wants.
    /// `weight` grows by what of their texts was gone through.
    fn judged(
        &self,
        views: &mut Views<'s>,
        ignored: &Arc<Ignored>,
        window: &[EventKey],
        weight: &mut usize,
    ) -> Result<Vec<Hit>> {
        let mut hits = Vec::new();
        for key in window {
            let event = self.db.event_by_key(*key)?;
            if !self.criteria.filter.wants(&event.pdu) {
                continue;
            }
            let Some(view) = self.view_of(views, ignored, event.room)? else { continue };
            let access = view.look(&event)?;
            if !access.visible || view.erasure.hides(&event)? {
                continue;
            }
            let Some(text) = self.text_for(view, &event)? else { continue };
            let rank = match self.criteria.order_by {
                SearchOrder::Rank => self.query.rank(&text),
                SearchOrder::Recent => 0.0,
            };
            *weight += text.len() / TEXT_BYTES_OF_EVENT;
            let shown = TimelineEvent { event, membership: access.membership };
            hits.push(Hit { shown, rank });
        }
        Ok(hits)
    }

    /// The text that a match has for the searcher. None: what it was found by is a change that they may not see, and
    /// without that it is no match.
    fn text_for(&self, view: &RoomView<'_>, event: &StoredEvent) -> Result<Option<String>> {
        let is_shown = |change: &StoredEvent| -> Result<bool> {
            Ok(view.look(change)?.visible && !view.erasure.hides(change)?)
        };
        let Some(change) = self.db.change_found_by(event)? else {
            return self.db.text_itself(event).map(Some);
        };
        if is_shown(&change)? {
            return self.db.text_itself(&change).map(Some);
        }
        for key in self.db.edits_of(event.room, &event.pdu, view.present(), CHANGES_LOOKED_AT_MAX)? {
            let change = self.db.event_by_key(key)?;
            if is_shown(&change)? {
                let text = self.db.text_itself(&change)?;
                return Ok(Some(text).filter(|text| self.query.is_in(text)));
            }
        }
        let text = self.db.text_itself(event)?;
        Ok(Some(text).filter(|text| self.query.is_in(text)))
    }

    fn sort(&self, hits: &mut Vec<Hit>) {
        // Events have no other order across rooms than what they say of their time.
        let time = |hit: &Hit| (hit.shown.event.pdu.origin_server_ts(), hit.shown.event.key);
        match self.criteria.order_by {
            SearchOrder::Recent => order::sort_by_key(hits, |hit| std::cmp::Reverse(time(hit))),
            SearchOrder::Rank => {
                order::sort_by(hits, |a, b| b.rank.total_cmp(&a.rank).then_with(|| time(b).cmp(&time(a))));
            }
        }
    }

    fn result(&self, view: &RoomView<'_>, hit: &Hit, rank: f64) -> Result<SearchResult> {
        let context = match &self.criteria.event_context {
            Some(wanted) => self.context(view, wanted, &hit.shown.event)?,
            None => None,
        };
        let result = write_with_bundles(view, self.format, [&hit.shown])?.pop();
        let result = result.ok_or_else(|| Error::internal("an event was not written"))?;
        Ok(SearchResult { rank, result, context })
    }

    fn context(
        &self,
        view: &RoomView<'_>,
        wanted: &ContextWanted,
        event: &StoredEvent,
    ) -> Result<Option<ResultContext>> {
        let Some(place) = event.place else { return Ok(None) };
        let limit = |limit: Option<u64>| {
            limit
                .map_or(CONTEXT_USUAL, |limit| usize::try_from(limit).unwrap_or(CONTEXT_MAX))
                .min(CONTEXT_MAX)
        };
        let everything = EventFilter::default();
        let back = TimelineRange { from: place, to: Place::START, limit: 0, backwards: true };
        let on = TimelineRange { from: place, to: view.end_exclusive(), limit: 0, backwards: false };
        let before = walk(view, &everything, back, limit(wanted.before_limit))?.events;
        let after = walk(view, &everything, on, limit(wanted.after_limit))?.events;
        let place_of = |shown: Option<&StoredEvent>| shown.and_then(|event| event.place).unwrap_or(place);
        let (first, last) = (before.last().map(|e| &e.event), after.last().map(|e| &e.event));
        let profile_info = match wanted.include_profile {
            Some(true) => {
                let senders = before.iter().chain(&after).map(|shown| &shown.event).chain([event]);
                Some(profiles(view, event, senders)?)
            }
            _ => None,
        };
        Ok(Some(ResultContext {
            start: PaginationToken::before(place_of(first)).to_string(),
            end: PaginationToken::after(place_of(last)).to_string(),
            profile_info,
            events_before: write_with_bundles(view, self.format, &before)?,
            events_after: write_with_bundles(view, self.format, &after)?,
        }))
    }

    /// "The current state for every room in the results": of memberships only those of who is in the results, since a
    /// large room has a hundred thousand of them.
    fn state(&self, views: &Views<'s>, hits: &[Hit]) -> Result<BTreeMap<RoomId, Vec<Json>>> {
        let mut state = BTreeMap::new();
        for hit in hits {
            let Some(view) = views.get(&hit.shown.event.room) else { continue };
            if state.contains_key(&view.room.room_id) {
                continue;
            }
            let keys: Vec<EventKey> = match view.access {
                Access::Left { at } => self.db.state_rows_as_of(view.room.key, at)?.into_values().collect(),
                _ => self.db.current_state_keys(view.room.key, false)?,
            };
            let mut events = Vec::new();
            let mut push = |event: &StoredEvent| -> Result<()> {
                events.push(client_format::state(&view.erasure, self.format, event)?);
                Ok(())
            };
            for key in keys {
                let event = self.db.event_by_key(key)?;
                if event.pdu.event_type() != MEMBER {
                    push(&event)?;
                }
            }
            let of_room = hits.iter().filter(|other| other.shown.event.room == hit.shown.event.room);
            let senders: BTreeSet<&UserId> = of_room.map(|hit| hit.shown.event.pdu.sender()).gather();
            for sender in senders {
                let member =
                    self.db.state_event_as_of(view.room.key, MEMBER, sender.as_str(), view.present())?;
                if let Some(key) = member {
                    push(&self.db.event_by_key(key)?)?;
                }
            }
            state.insert(view.room.room_id.clone(), events);
        }
        Ok(state)
    }

    /// What of the page belongs together, and how to go on with each group by itself.
    fn groups(&self, page: &Page) -> BTreeMap<GroupKey, BTreeMap<String, Group>> {
        let mut groups: BTreeMap<GroupKey, BTreeMap<String, Group>> = BTreeMap::new();
        let wanted = self.criteria.groupings.iter().flat_map(|groupings| &groupings.group_by);
        let wanted: BTreeSet<GroupKey> = wanted.map(|grouping| grouping.key).gather();
        for by in wanted {
            let of_key = groups.entry(by).or_default();
            for hit in &page.hits {
                let (room, sender) = (hit.shown.event.room, hit.shown.event.pdu.sender());
                let name = match by {
                    GroupKey::RoomId => hit.shown.event.pdu.room_id().to_string(),
                    GroupKey::Sender => sender.to_string(),
                };
                let order = of_key.len() + 1;
                let group = of_key.entry(name).or_insert_with(|| {
                    let (member, is_left) = match by {
                        GroupKey::RoomId => {
                            (GroupMember::Room(room), page.left.iter().any(|(other, _)| *other == room))
                        }
                        GroupKey::Sender => {
                            let is_left = page.left.iter().any(|(_, other)| other == sender);
                            (GroupMember::SenderOf(hit.shown.event.key), is_left)
                        }
                    };
                    let next = page.next.filter(|_| is_left || !page.is_last_window);
                    let next = next.map(|next| NextBatch { within: Some(member), ..next }.to_string());
                    Group { order, results: Vec::new(), next_batch: next }
                });
                group.results.push(hit.shown.event.pdu.event_id().clone());
            }
        }
        groups
    }
}

/// Who sent what is shown, as they called themselves in the state at the result.
fn profiles<'e>(
    view: &RoomView<'_>,
    result: &StoredEvent,
    shown: impl Iterator<Item = &'e StoredEvent>,
) -> Result<BTreeMap<UserId, Map<String, Value>>> {
    let senders: BTreeSet<&UserId> = shown.map(|event| event.pdu.sender()).gather();
    let mut profiles = BTreeMap::new();
    let Some(state) = result.state_after else { return Ok(profiles) };
    for sender in senders {
        let tuple_id = view.db().state_tuple_id(MEMBER, sender.as_str())?;
        let key = tuple_id.map(|tuple_id| view.db().state_row_at(state, tuple_id)).transpose()?.flatten();
        let Some(member) = key.map(|key| view.db().event_by_key(key)).transpose()? else { continue };
        let mut profile = view.erasure.shown(&member)?.content();
        profile.retain(|field, value| {
            matches!(field.as_str(), "displayname" | "avatar_url") && value.is_string()
        });
        profiles.insert(sender.clone(), profile);
    }
    Ok(profiles)
}

const MEMBER: &str = "m.room.member";
