//! Which events of a room's timeline a client gets.

use crate::error::Result;
use crate::protocol::EventId;
use crate::protocol::filter::EventFilter;
use crate::protocol::pdu::Membership;
use crate::service::rooms::pagination_token::PaginationToken;
use crate::service::rooms::view::RoomView;
use crate::store::rooms::events::TimelineRange;
use crate::store::{Place, StoredEvent};

/// No request looks at more than about this many events of one room in search of those that a filter lets through.
pub(super) const SCANNED_MAX: usize = 2000;

/// A page ends with the event that makes it this large, so that no answer is large by its events alone.
pub(super) const PAGE_BYTES_MAX: usize = 256 << 10;
/// Events that are read together.
const EVENTS_AT_ONCE: usize = 101;

/// So many that relate to one event in one way are looked at for one that the reader may see, and so many events in all
/// for one page.
const RELATED_LOOKED_AT_MAX: usize = 100;
const RELATED_LOOKS_MAX: usize = 5000;

/// An event with what its reader was when it happened.
#[derive(Clone)]
pub struct TimelineEvent {
    /// The event.
    pub event: StoredEvent,
    /// The reader's membership at the event.
    pub membership: Membership,
}

/// A range of what somebody may see of a room.
#[derive(Default)]
pub struct Page {
    /// The events, in the direction that was walked.
    pub events: Vec<TimelineEvent>,
    /// How far the walk came; none if it came to the end of the range with nothing left behind.
    pub stopped_at: Option<PaginationToken>,
}

/// What becomes of an event that could be in a page.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is in it.
    Shown,
    /// It is left out.
    LeftOut,
    /// The page ends before it.
    Beyond,
}

/// Decides on the events that could be in a page, in the order in which they are walked over.
type Decide<'d> = dyn FnMut(&StoredEvent) -> Result<Verdict> + 'd;

/// Walks a range of a room's timeline and keeps what the reader may see and the filter lets through, at most `limit`
/// events and no more than make a page: of none the page says whether there is anything to see. `range.limit` does not
/// matter.
pub fn walk(view: &RoomView<'_>, filter: &EventFilter, range: TimelineRange, limit: usize) -> Result<Page> {
    walk_judging(view, filter, range, limit, &mut |_| Ok(Verdict::Shown))
}

/// [`walk`], where what the reader may see and the filter lets through is judged as well.
fn walk_judging(
    view: &RoomView<'_>,
    filter: &EventFilter,
    mut range: TimelineRange,
    mut limit: usize,
    judge: &mut Decide<'_>,
) -> Result<Page> {
    let mut page = Page::default();
    if !filter.wants_room(view.room.room_id.as_str()) {
        return Ok(page);
    }
    let (mut scanned, mut looks_left, start) = (0, RELATED_LOOKS_MAX, range.from);
    let mut bytes = 0;
    // One more than wanted, to know whether something is left.
    range.limit = limit.saturating_add(1).min(EVENTS_AT_ONCE);
    loop {
        let batch = view.db().timeline(view.room.key, range)?;
        let exhausted = batch.len() < range.limit;
        for event in batch {
            let Some(place) = event.place else { continue };
            if !filter.wants_everything() && !filter.wants(&event.pdu) {
                range.from = place;
                continue;
            }
            if filter.asks_for_related() && !is_related(view, filter, event.pdu.event_id(), &mut looks_left)?
            {
                range.from = place;
                continue;
            }
            let access = view.look(&event)?;
            let verdict = if access.visible { judge(&event)? } else { Verdict::LeftOut };
            let is_left = verdict == Verdict::Shown && page.events.len() == limit;
            if is_left || verdict == Verdict::Beyond {
                page.stopped_at = Some(match range.from == start {
                    true => token_before(place, range.backwards),
                    false => token_behind(range),
                });
                return Ok(page);
            }
            range.from = place;
            if verdict == Verdict::Shown {
                bytes += event.pdu.json().len();
                page.events.push(TimelineEvent { event, membership: access.membership });
                if bytes >= PAGE_BYTES_MAX {
                    limit = page.events.len();
                }
            }
        }
        scanned += range.limit * filter.weight();
        if exhausted {
            return Ok(page);
        }
        if scanned >= SCANNED_MAX {
            page.stopped_at = Some(token_behind(range));
            return Ok(page);
        }
    }
}

/// Whether something that the reader may see relates to an event as the filter asks.
fn is_related(
    view: &RoomView<'_>,
    filter: &EventFilter,
    event: &EventId,
    looks_left: &mut usize,
) -> Result<bool> {
    let asked = (filter.related_by_rel_types.as_deref(), filter.related_by_senders.as_deref());
    let bounds = (view.end_exclusive(), RELATED_LOOKED_AT_MAX);
    view.db().is_related((view.room.key, event), asked, bounds, |row| {
        Ok(view.visible_related(row, looks_left)?.is_some())
    })
}

/// The latest events between two places that the reader may see and the filter lets through, newest first, without a
/// gap among them: where our history has one the page stops, for who goes on from there by `/messages` has it
/// filled.
pub fn latest(
    view: &RoomView<'_>,
    filter: &EventFilter,
    range: (Place, Place),
    limit: usize,
) -> Result<Page> {
    latest_judging(view, filter, range, limit, &mut |_| Ok(Verdict::Shown))
}

/// [`latest`], where each of them is judged, the newest first.
pub fn latest_judging(
    view: &RoomView<'_>,
    filter: &EventFilter,
    (from, to): (Place, Place),
    limit: usize,
    judge: &mut Decide<'_>,
) -> Result<Page> {
    let above = Place { stream: to.stream, sub: to.sub.saturating_add(1) };
    // Of a room that this server is not in nobody gives us any more.
    let gaps = match view.room.resident && above < from {
        true => view.db().gaps_between(view.room.key, above, from, 1)?,
        false => Vec::new(),
    };
    let gap = gaps.first().map(|gap| PaginationToken::before(gap.before));
    let to = gap.map_or(to, |PaginationToken(behind)| behind);
    let range = TimelineRange { from, to, limit: 0, backwards: true };
    let mut page = walk_judging(view, filter, range, limit, judge)?;
    page.stopped_at = page.stopped_at.or(gap);
    Ok(page)
}

/// The token for the place before an event that was not walked over.
fn token_before(place: Place, backwards: bool) -> PaginationToken {
    match backwards {
        true => PaginationToken::after(place),
        false => PaginationToken::before(place),
    }
}

/// The token for the place behind the event that was walked over last.
pub(super) fn token_behind(range: TimelineRange) -> PaginationToken {
    match range.backwards {
        true => PaginationToken::before(range.from),
        false => PaginationToken::after(range.from),
    }
}
