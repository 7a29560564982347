//! `GET /relations`: the events that relate to one (client-server API, "Relationships API").

use serde::Serialize;

use crate::error::Result;
use crate::order;
use crate::protocol::EventId;
use crate::protocol::RoomId;
use crate::protocol::rooms::relations::RELATION_HOPS_MAX;
use crate::service::rooms::Rooms;
use crate::service::rooms::bundles::write_with_bundles;
use crate::service::rooms::client_format::{self, ClientFormat, Json};
use crate::service::rooms::history::ReadableRange;
use crate::service::rooms::messages::{found_or_not, visible_event};
use crate::service::rooms::pagination_token::PaginationToken;
use crate::service::rooms::timeline::{PAGE_BYTES_MAX, SCANNED_MAX, TimelineEvent, token_behind};
use crate::service::rooms::view::RoomView;
use crate::store::rooms::events::TimelineRange;
use crate::store::rooms::relations::{RelatedEvent, RelationFilter};

/// Events in an answer if the client does not say how many, and whatever it says.
const PAGE_USUAL: usize = 50;
const PAGE_MAX: usize = 500;
/// With `recurse` so many events are looked at for those that relate by way of others.
const INDIRECT_LOOKED_AT_MAX: usize = 10_000;

/// What a client asks of `/relations`.
#[derive(Default)]
pub struct RelationsRequest {
    /// Only those that relate in this way.
    pub rel_type: Option<String>,
    /// Only those of this type.
    pub event_type: Option<String>,
    /// Where to begin; the end or the start of the history if not said.
    pub from: Option<PaginationToken>,
    /// Where to stop.
    pub to: Option<PaginationToken>,
    /// From newer to older.
    pub backwards: bool,
    /// At most so many events.
    pub limit: Option<usize>,
    /// Also those that relate by way of others. Whether it was said changes the answer.
    pub recurse: Option<bool>,
    /// The event itself too, as it was before anything related to it.
    pub with_original: bool,
}

/// A page of events that relate to one.
#[derive(Serialize)]
pub struct Relations {
    chunk: Vec<Json>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_batch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prev_batch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    recursion_depth: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    original_event: Option<Json>,
}

impl Rooms<'_> {
    /// The events that relate to one, as far as the user may see them. Those of a redacted event are told as before; none
    /// that is redacted itself is. Errors: 404 `M_NOT_FOUND`, also if the user may not see the event.
    pub fn relations(
        &self,
        format: &ClientFormat<'_>,
        room: &RoomId,
        event: &EventId,
        request: &RelationsRequest,
    ) -> Result<Relations> {
        let found = self.view(format.user, room, |_, view| {
            let Some((original, membership)) = visible_event(view, event)? else { return Ok(None) };
            let (events, stopped_at) = page(view, event, request)?;
            Ok(Some(Relations {
                chunk: write_with_bundles(view, format, &events)?,
                next_batch: stopped_at.map(|token| token.to_string()),
                prev_batch: request.from.map(|token| token.to_string()),
                recursion_depth: request.recurse.map(|recurse| if recurse { RELATION_HOPS_MAX } else { 0 }),
                original_event: match request.with_original {
                    true => Some(client_format::full(view, format, &original, Some(membership))?),
                    false => None,
                },
            }))
        });
        found_or_not(found)
    }
}

fn page(
    view: &RoomView<'_>,
    parent: &EventId,
    request: &RelationsRequest,
) -> Result<(Vec<TimelineEvent>, Option<PaginationToken>)> {
    let mut limit = request.limit.unwrap_or(PAGE_USUAL).min(PAGE_MAX);
    let range = ReadableRange::new(view, request.from, request.to, request.backwards);
    let (mut events, mut bytes) = (Vec::new(), 0);
    if range.is_empty() {
        return Ok((events, None));
    }
    let mut range = range.0;
    let filter =
        RelationFilter { rel_type: request.rel_type.as_deref(), event_type: request.event_type.as_deref() };
    let indirect = match request.recurse {
        Some(true) => {
            view.db().related_by_way_of_others(view.room.key, parent, filter, INDIRECT_LOOKED_AT_MAX)?
        }
        _ => Vec::new(),
    };
    // One more than wanted, to know whether something is left.
    range.limit = limit.saturating_add(1);
    let (mut scanned, mut looks_left) = (0, usize::MAX);
    loop {
        let rows = next_rows(view, parent, filter, &indirect, range)?;
        let exhausted = rows.len() < range.limit;
        for row in rows {
            if filter.event_type.is_none_or(|event_type| event_type == row.event_type)
                && let Some((event, membership)) = view.visible_related(&row, &mut looks_left)?
            {
                if events.len() == limit {
                    return Ok((events, Some(token_behind(range))));
                }
                bytes += event.pdu.json().len();
                events.push(TimelineEvent { event, membership });
                if bytes >= PAGE_BYTES_MAX {
                    limit = events.len();
                }
            }
            range.from = row.place;
        }
        scanned += range.limit;
        if exhausted {
            return Ok((events, None));
        }
        if scanned >= SCANNED_MAX {
            return Ok((events, Some(token_behind(range))));
        }
    }
}

/// The first rows of a range: those that relate to the event and those that do by way of others, in one order.
fn next_rows(
    view: &RoomView<'_>,
    parent: &EventId,
    filter: RelationFilter<'_>,
    indirect: &[RelatedEvent],
    range: TimelineRange,
) -> Result<Vec<RelatedEvent>> {
    let mut rows = view.db().related_to(view.room.key, parent, filter.rel_type, range)?;
    let (low, high) = if range.backwards { (range.to, range.from) } else { (range.from, range.to) };
    // They come newest first. No more of them are wanted than fit.
    let start = indirect.partition_point(|row| row.place >= high);
    let end = indirect.partition_point(|row| row.place > low).max(start);
    let within = &indirect[start..end];
    let most = range.limit.min(within.len());
    let next = if range.backwards { &within[..most] } else { &within[within.len() - most..] };
    rows.extend_from_slice(next);
    order::sort_by_key(&mut rows, |row| row.place);
    if range.backwards {
        rows.reverse();
    }
    rows.truncate(range.limit);
    Ok(rows)
}
