//! Bundled aggregations (client-server API, "Aggregations of child events"): what an event's `unsigned` says of those
//! that relate to it. Threads, edits and references are told; annotations are "*not* aggregated by the server".
//!
//! All of it is made for the one who reads, at the moment of reading: nobody is told of an event that they may not see, or
//! of one by somebody whom they ignore. Events without relations cost one look-up for all that are told at once.

use std::collections::HashMap;

use serde::Serialize;
use serde_json::value::to_raw_value;

use crate::error::{Error, Result};
use crate::protocol::filter::EventFormat;
use crate::protocol::json::JsonList;
use crate::protocol::rooms::relations::{REFERENCE, THREAD, is_edit_of, may_be_edited, may_be_thread_root};
use crate::protocol::{EventId, UserId};
use crate::service::rooms::client_format::{self, Beside, ClientFormat, Json};
use crate::service::rooms::timeline::TimelineEvent;
use crate::service::rooms::view::{Access, RoomView};
use crate::store::rooms::events::TimelineRange;
use crate::store::rooms::relations::RelatedEvent;
use crate::store::{EventKey, Place, StoredEvent};

/// References that are told with one event: the latest.
const REFERENCES_MAX: usize = 100;
/// So many edits are looked at for one that the reader may see.
const EDITS_LOOKED_AT_MAX: usize = 10;
/// So many of the last replies are looked at for one that the reader may see.
const REPLIES_LOOKED_AT_MAX: usize = 5000;
/// Replies that are looked at together, at first and then.
const REPLIES_AT_FIRST: usize = 4;
const REPLIES_AT_ONCE: usize = 200;
/// Replies that are counted one by one, for who may not see all of them.
const REPLIES_COUNTED_MAX: usize = 100;
/// Replies that are counted together, and of one ignored user taken off a count.
const REPLIES_MAX: u64 = 100_000;
/// Events that one answer looks at for its bundles, beside those that it tells.
const LOOKS_MAX: usize = 2000;
/// What an answer has of bundles; events beyond go without.
const BUNDLES_BYTES_MAX: usize = 1 << 20;

/// `m.relations` of one event.
#[derive(Default, Serialize)]
struct Bundle {
    #[serde(rename = "m.reference", skip_serializing_if = "Option::is_none")]
    references: Option<References>,
    #[serde(rename = "m.replace", skip_serializing_if = "Option::is_none")]
    edit: Option<Json>,
    #[serde(rename = "m.thread", skip_serializing_if = "Option::is_none")]
    thread: Option<ThreadSummary>,
}

/// "A single `chunk` property, which lists all the events which `m.reference` the event."
#[derive(Serialize)]
struct References {
    chunk: Vec<EventReference>,
}

#[derive(Serialize)]
struct EventReference {
    event_id: String,
}

#[derive(Serialize)]
struct ThreadSummary {
    latest_event: Json,
    count: u64,
    current_user_participated: bool,
}

/// Events of a room as a reader gets them, each with its bundled aggregations, in the order given. The reader may see
/// them all.
pub fn write_with_bundles<'e>(
    view: &RoomView<'_>,
    format: &ClientFormat<'_>,
    events: impl IntoIterator<Item = &'e TimelineEvent>,
) -> Result<Vec<Json>> {
    let mut written = Vec::new();
    Bundler::new(view, format).each(events, |shown, beside| {
        written.push(client_format::with_more(view, format, &shown.event, beside)?);
        Ok(())
    })?;
    Ok(written)
}

/// The same without bundles.
pub fn write_without_bundles<'e>(
    view: &RoomView<'_>,
    format: &ClientFormat<'_>,
    events: impl IntoIterator<Item = &'e TimelineEvent>,
) -> Result<Vec<Json>> {
    let mut written = Vec::new();
    each_beside(view, format, events, HashMap::new(), |shown, beside| {
        written.push(client_format::with_more(view, format, &shown.event, beside)?);
        Ok(())
    })?;
    Ok(written)
}

/// [`write_with_bundles`] into a list.
pub fn push_with_bundles<'e>(
    view: &RoomView<'_>,
    format: &ClientFormat<'_>,
    events: impl IntoIterator<Item = &'e TimelineEvent>,
    list: &mut JsonList,
) -> Result<()> {
    Bundler::new(view, format).each(events, |shown, beside| {
        list.push_with(|out| client_format::push_with_more(out, view, format, &shown.event, beside))
    })
}

/// [`write_without_bundles`] into a list.
pub fn push_without_bundles<'e>(
    view: &RoomView<'_>,
    format: &ClientFormat<'_>,
    events: impl IntoIterator<Item = &'e TimelineEvent>,
    list: &mut JsonList,
) -> Result<()> {
    each_beside(view, format, events, HashMap::new(), |shown, beside| {
        list.push_with(|out| client_format::push_with_more(out, view, format, &shown.event, beside))
    })
}

/// Tells of events with what is told beside each.
fn each_beside<'e>(
    view: &RoomView<'_>,
    format: &ClientFormat<'_>,
    events: impl IntoIterator<Item = &'e TimelineEvent>,
    mut bundles: HashMap<EventKey, Json>,
    mut tell: impl FnMut(&TimelineEvent, Beside) -> Result<()>,
) -> Result<()> {
    let events: Vec<&TimelineEvent> = events.into_iter().collect();
    let mut sent_by = client_format::sent_by(view, format, events.iter().map(|shown| &shown.event))?;
    for shown in events {
        let beside = Beside {
            membership: Some(shown.membership),
            relations: bundles.remove(&shown.event.key),
            sent_by: sent_by.remove(&shown.event.key).unwrap_or_default(),
        };
        tell(shown, beside)?;
    }
    Ok(())
}

struct Bundler<'b> {
    view: &'b RoomView<'b>,
    format: &'b ClientFormat<'b>,
    bytes_left: usize,
    looks_left: usize,
    /// Those whom the reader ignores who have been in the room.
    ignored_here: Option<Vec<String>>,
    /// Whether nothing in the room's history was closed to those who come later.
    was_always_open: Option<bool>,
}

impl<'b> Bundler<'b> {
    fn new(view: &'b RoomView<'b>, format: &'b ClientFormat<'b>) -> Self {
        Self {
            view,
            format,
            bytes_left: BUNDLES_BYTES_MAX,
            looks_left: LOOKS_MAX,
            ignored_here: None,
            was_always_open: None,
        }
    }

    fn each<'e>(
        &mut self,
        events: impl IntoIterator<Item = &'e TimelineEvent>,
        tell: impl FnMut(&TimelineEvent, Beside) -> Result<()>,
    ) -> Result<()> {
        let events: Vec<&TimelineEvent> = events.into_iter().collect();
        let bundles = self.bundles_of(&events)?;
        each_beside(self.view, self.format, events, bundles, tell)
    }

    fn bundles_of(&mut self, events: &[&TimelineEvent]) -> Result<HashMap<EventKey, Json>> {
        let mut bundles = HashMap::new();
        if self.format.event_format == EventFormat::Federation {
            return Ok(bundles);
        }
        // "State events do not currently receive bundled aggregations."
        let events = events.iter().map(|shown| &shown.event).filter(|event| !event.pdu.is_state());
        let by_id: HashMap<&EventId, &StoredEvent> =
            events.map(|event| (event.pdu.event_id(), event)).collect();
        let ids: Vec<&EventId> = by_id.keys().copied().collect();
        for id in self.view.db().have_aggregations(self.view.room.key, &ids)? {
            let Some(event) = by_id.get(&id) else { continue };
            if let Some(bundle) = self.bundle(event)?
                && bundle.get().len() <= self.bytes_left
            {
                self.bytes_left -= bundle.get().len();
                bundles.insert(event.key, bundle);
            }
        }
        Ok(bundles)
    }

    fn bundle(&mut self, event: &StoredEvent) -> Result<Option<Json>> {
        if self.bytes_left == 0 {
            return Ok(None);
        }
        let bundle = Bundle {
            references: self.references(event)?,
            edit: self.edit(event)?,
            thread: self.thread(event)?,
        };
        let is_empty = bundle.references.is_none() && bundle.edit.is_none() && bundle.thread.is_none();
        if is_empty { Ok(None) } else { to_raw_value(&bundle).map(Some).map_err(Error::internal) }
    }

    fn references(&mut self, event: &StoredEvent) -> Result<Option<References>> {
        let mut chunk = Vec::new();
        for row in
            self.last_related(event.pdu.event_id(), REFERENCE, (self.view.end_exclusive(), REFERENCES_MAX))?
        {
            if self.sees(&row, self.view.sees_all_since_joining())? {
                chunk.push(EventReference { event_id: row.event_id });
            }
        }
        chunk.reverse();
        Ok((!chunk.is_empty()).then_some(References { chunk }))
    }

    /// The most recent valid edit, whole. "If the original event is redacted, any `m.replace` relationship should **not**
    /// be bundled with it."
    fn edit(&self, event: &StoredEvent) -> Result<Option<Json>> {
        if event.redacted_by.is_some() || self.view.erasure.hides(event)? || !may_be_edited(&event.pdu) {
            return Ok(None);
        }
        let (db, upto) = (self.view.db(), self.view.present());
        for key in db.edits_of(self.view.room.key, &event.pdu, upto, EDITS_LOOKED_AT_MAX)? {
            let edit = db.event_by_key(key)?;
            let access = self.view.look(&edit)?;
            let is_shown = access.visible && !self.view.erasure.hides(&edit)?;
            if is_shown && is_edit_of(&edit.pdu, &event.pdu) {
                return client_format::full(self.view, self.format, &edit, Some(access.membership)).map(Some);
            }
        }
        Ok(None)
    }

    fn thread(&mut self, root: &StoredEvent) -> Result<Option<ThreadSummary>> {
        if !may_be_thread_root(&root.pdu) {
            return Ok(None);
        }
        let (db, room, id) = (self.view.db(), self.view.room.key, root.pdu.event_id());
        let Some(replies) = db.thread_replies(room, id)? else { return Ok(None) };
        let Some(latest) = latest_reply(self.view, id, &mut self.looks_left)? else { return Ok(None) };
        let count = match (self.view.sees_all_since_joining(), self.view.access) {
            (true, _) if self.was_always_open()? => replies.saturating_sub(self.ignored_replies(id, 0)?),
            (true, Access::Joined { since }) => {
                let later = db.thread_replies_since((room, id), None, (since, REPLIES_MAX))?;
                let earlier = self.visible_replies(id, Place { stream: since + 1, sub: i64::MIN })?;
                later.saturating_sub(self.ignored_replies(id, since)?) + earlier
            }
            _ => self.visible_replies(id, self.view.end_exclusive())?,
        };
        let participated = db.has_participated(room, id, self.view.user.as_str())?;
        // Its own bundle has no thread in it: what is in one is not the root of another.
        let (view, format, mut latest_event) = (self.view, self.format, None);
        self.each([&latest], |shown, beside| {
            latest_event = Some(client_format::with_more(view, format, &shown.event, beside)?);
            Ok(())
        })?;
        let latest_event = latest_event.ok_or_else(|| Error::internal("a reply went missing"))?;
        Ok(Some(ThreadSummary { latest_event, count: count.max(1), current_user_participated: participated }))
    }

    /// Whether the history was never closed to those who come later, as far as is known.
    fn was_always_open(&mut self) -> Result<bool> {
        if self.was_always_open.is_none() {
            self.was_always_open = Some(self.view.was_always_open()?);
        }
        Ok(self.was_always_open == Some(true))
    }

    /// How many replies behind a stream position are those of users whom the reader ignores.
    fn ignored_replies(&mut self, root: &EventId, after: i64) -> Result<u64> {
        let (db, room, mut count) = (self.view.db(), self.view.room.key, 0);
        if self.ignored_here.is_none() {
            let mut here = Vec::new();
            for user in self.view.ignored().users() {
                if let Ok(id) = UserId::parse(user)
                    && db.member(room, &id)?.is_some()
                {
                    here.push(user.to_owned());
                }
            }
            self.ignored_here = Some(here);
        }
        for user in self.ignored_here.iter().flatten() {
            count += db.thread_replies_since((room, root), Some(user), (after, REPLIES_MAX))?;
        }
        Ok(count)
    }

    /// How many of the last replies before a place the reader may see.
    fn visible_replies(&mut self, root: &EventId, before: Place) -> Result<u64> {
        let mut count = 0;
        for row in self.last_related(root, THREAD, (before, REPLIES_COUNTED_MAX))? {
            count += u64::from(self.sees(&row, true)?);
        }
        Ok(count)
    }

    /// Whether the reader may see an event. `since_joining`: what stands behind their join need not be looked at.
    fn sees(&mut self, row: &RelatedEvent, since_joining: bool) -> Result<bool> {
        let view = self.view;
        if view.ignored().has(&row.sender) {
            return Ok(false);
        }
        if since_joining && view.is_since_joining(row.place) && view.erasure.erased_at(&row.sender)?.is_none()
        {
            return Ok(true);
        }
        Ok(view.visible_related(row, &mut self.looks_left)?.is_some())
    }

    /// The last before a place that relate to an event in this way.
    fn last_related(
        &self,
        id: &EventId,
        rel_type: &str,
        (from, limit): (Place, usize),
    ) -> Result<Vec<RelatedEvent>> {
        let range = TimelineRange { from, to: Place::START, limit, backwards: true };
        self.view.db().related_to(self.view.room.key, id, Some(rel_type), range)
    }
}

/// "The most recent event … in the thread sent by an un-ignored user", as far as the reader may see it.
pub(super) fn latest_reply(
    view: &RoomView<'_>,
    root: &EventId,
    looks_left: &mut usize,
) -> Result<Option<TimelineEvent>> {
    let from = view.end_exclusive();
    let mut range = TimelineRange { from, to: Place::START, limit: REPLIES_AT_FIRST, backwards: true };
    let mut passed_over = 0;
    while passed_over < REPLIES_LOOKED_AT_MAX && *looks_left > 0 {
        let rows = view.db().related_to(view.room.key, root, Some(THREAD), range)?;
        for row in &rows {
            if let Some((event, membership)) = view.visible_related(row, looks_left)? {
                return Ok(Some(TimelineEvent { event, membership }));
            }
        }
        match rows.last() {
            Some(last) if rows.len() == range.limit => range.from = last.place,
            _ => break,
        }
        passed_over += rows.len();
        range.limit = REPLIES_AT_ONCE;
    }
    Ok(None)
}
