//! Which events of a room's timeline a client gets, and the tokens that stand for the places between events.

use std::fmt;

use crate::error::{Error, Result};
use crate::protocol::EventId;
use crate::protocol::filter::EventFilter;
use crate::protocol::pdu::Membership;
use crate::service::rooms::bundles::visible;
use crate::service::rooms::view::RoomView;
use crate::store::rooms::events::TimelineRange;
use crate::store::{Place, StoredEvent};

/// No request looks at more than about this many events of one room in search of those that a filter lets through.
pub(super) const SCANNED_MAX: usize = 2000;

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

/// A place between two events: right after the event that stands (or would stand) at this place. Written as `s` and the
/// stream position; inside history that was fetched later also `_` and the number of events further back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PaginationToken(pub Place);

impl PaginationToken {
    /// Right after everything up to this stream position: what `next_batch` means.
    pub fn at(position: i64) -> Self {
        Self(Place::live(position))
    }

    /// Right before an event.
    pub fn before(place: Place) -> Self {
        Self(Place { stream: place.stream, sub: place.sub.saturating_sub(1) })
    }

    /// Right after an event.
    pub fn after(place: Place) -> Self {
        Self(place)
    }

    /// Reads a token of `/sync` or `/messages`, or the `pos` of a sliding sync, which has more behind a `~`. Errors: 400
    /// `M_INVALID_PARAM`.
    pub fn parse(token: &str) -> Result<Self> {
        let token = token.split_once('~').map_or(token, |(place, _)| place);
        let parse = || {
            let rest = token.strip_prefix('s')?;
            let (stream, back) = rest.split_once('_').unwrap_or((rest, "0"));
            let number = |text: &str| -> Option<i64> {
                text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
            };
            Some(Self(Place { stream: number(stream)?, sub: -number(back)? }))
        };
        parse().ok_or_else(|| Error::invalid_param("The token is none of this server's"))
    }

    /// The exclusive end from which a walk backwards starts here.
    pub fn start_back(self) -> Place {
        Place { stream: self.0.stream, sub: self.0.sub.saturating_add(1) }
    }
}

impl fmt::Display for PaginationToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{}", self.0.stream.max(0))?;
        if self.0.sub < 0 { write!(f, "_{}", self.0.sub.unsigned_abs()) } else { Ok(()) }
    }
}

/// Walks a range of a room's timeline and keeps what the reader may see and the filter lets through, at most `limit`
/// events: of none the page says whether there is anything to see. `range.limit` does not matter.
pub fn walk(
    view: &RoomView<'_>,
    filter: &EventFilter,
    mut range: TimelineRange,
    limit: usize,
) -> Result<Page> {
    let mut page = Page::default();
    let (mut scanned, mut looks_left, start) = (0, RELATED_LOOKS_MAX, range.from);
    // One more than wanted, to know whether something is left.
    range.limit = limit.saturating_add(1);
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
            if access.visible && page.events.len() == limit {
                page.stopped_at = Some(match range.from == start {
                    true => token_before(place, range.backwards),
                    false => token_behind(range),
                });
                return Ok(page);
            }
            range.from = place;
            if access.visible {
                page.events.push(TimelineEvent { event, membership: access.membership });
            }
        }
        scanned += range.limit;
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
        Ok(visible(view, row, looks_left)?.is_some())
    })
}

/// The latest events between two places that the reader may see and the filter lets through, newest first, without a
/// gap among them: where our history has one the page stops, for who goes on from there by `/messages` has it
/// filled.
pub fn latest(
    view: &RoomView<'_>,
    filter: &EventFilter,
    (from, to): (Place, Place),
    limit: usize,
) -> Result<Page> {
    let above = Place { stream: to.stream, sub: to.sub.saturating_add(1) };
    // Of a room that this server is not in nobody gives us any more.
    let gaps = match view.room.resident && above < from {
        true => view.db().gaps_between(view.room.key, above, from, 1)?,
        false => Vec::new(),
    };
    let gap = gaps.first().map(|gap| PaginationToken::before(gap.before));
    let to = gap.map_or(to, |PaginationToken(behind)| behind);
    let mut page = walk(view, filter, TimelineRange { from, to, limit: 0, backwards: true }, limit)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_back_as_it_was_written() {
        for (stream, sub, text) in [(7, 0, "s7"), (7, -3, "s7_3"), (0, 0, "s0")] {
            let token = PaginationToken(Place { stream, sub });
            assert_eq!(token.to_string(), text);
            assert_eq!(PaginationToken::parse(text).unwrap(), token);
        }
        for wrong in ["", "s", "7", "s7_", "s7_-1", "s_1", "s7_1_1", "t7"] {
            assert!(PaginationToken::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn right_before_an_event_is_right_after_what_stands_before_it() {
        let event = Place { stream: 5, sub: 0 };
        assert!(PaginationToken::before(event) < PaginationToken::after(event));
        assert!(PaginationToken::at(4) < PaginationToken::before(event));
        assert_eq!(PaginationToken::after(event), PaginationToken::at(5));
    }
}
