//! `GET /messages`: pages of a room's history, which are fetched from other servers where this one lacks some.
//!
//! No page goes beyond a gap that may be filled. A page backwards that comes to one ends there, with the token from which a
//! client goes on, and so does one forwards: what lies in a gap is fetched from its end on, so that it may take several
//! requests until something follows. An empty page says so by an `end` that is another than its `start` (matrix-js-sdk
//! takes one without `end`, or with the same, for the last one). If nobody can be asked at this moment the answer is a
//! gateway's error, after which clients try again, and no empty page, which they would take for the beginning of the
//! room. What nobody has is passed over.
//!
//! What we have ourselves is not kept from anybody for what others do not give: servers die for good, and one that is in
//! the room can send an event that follows nothing, and then keep silent. So who goes on backwards at a gap for which nobody
//! can be asked is given what is here before it. Tokens stand for places, and what is fetched later gets its place in the
//! gap: who asks again from where it was passed over is given that. Forwards, and where nothing is here, such a gap is
//! passed over after some attempts over some minutes, as one that nobody can fill: then a page without `end` is the last
//! one, and whoever reads the room anew has it asked for again.

use std::time::{Duration, Instant};

use super::timeline::{Page, walk};
use crate::error::{Error, Result};
use crate::protocol::RoomId;
use crate::service::events::fetch::backfill::GapFilled;
use crate::service::rooms::Rooms;
use crate::service::rooms::bundles::write_with_bundles;
use crate::service::rooms::client_format::ClientFormat;
use crate::service::rooms::messages::{Messages, MessagesRequest, PAGE_MAX, lazy_members};
use crate::service::rooms::pagination_token::PaginationToken;
use crate::service::rooms::view::{Access, RoomView};
use crate::store::rooms::events::TimelineRange;
use crate::store::{Db, Place, Room};

/// One answer asks other servers for history at most so many times: backwards, and forwards, where the whole gap has to be
/// filled before anything follows.
const FETCHES_MAX: usize = 3;
const FETCHES_FORWARDS_MAX: usize = 10;
/// After so long no more is asked for.
const FETCHING_TIMEOUT: Duration = Duration::from_secs(10);

/// A page of what this server has.
struct LocalPage {
    messages: Messages,
    /// The gap at which it ends although there is place for more.
    gap: Option<(Room, Place)>,
    /// Whether something is here behind it, which is told if nobody can be asked for it.
    may_pass: bool,
}

impl Rooms<'_> {
    /// `GET /messages`. Errors: 403 `M_FORBIDDEN`; 504 where the next events are those of other servers, of which none can be
    /// asked now.
    pub fn messages(
        &self,
        format: &ClientFormat<'_>,
        room: &RoomId,
        request: &MessagesRequest,
    ) -> Result<Messages> {
        let most = if request.backwards { FETCHES_MAX } else { FETCHES_FORWARDS_MAX };
        let (began, mut fetches, mut tried) = (Instant::now(), 0, Vec::new());
        loop {
            let page =
                self.view(format.user, room, |db, view| self.local_page(db, view, format, request, &tried))?;
            let Some((room, gap)) = page.gap else { return Ok(page.messages) };
            if fetches == most || (fetches > 0 && began.elapsed() > FETCHING_TIMEOUT) {
                return Ok(page.messages);
            }
            fetches += 1;
            if self.events().fill_history(&room, gap)? == GapFilled::NotNow {
                if !page.messages.chunk.is_empty() {
                    return Ok(page.messages);
                }
                if tried.contains(&gap) || !page.may_pass {
                    let message = "No server that has more of the history can be reached now";
                    return Err(Error::bad_gateway(message).with_status(504));
                }
                tried.push(gap);
            }
        }
    }

    fn local_page(
        &self,
        db: &Db<'_>,
        view: &RoomView<'_>,
        format: &ClientFormat<'_>,
        request: &MessagesRequest,
        tried: &[Place],
    ) -> Result<LocalPage> {
        view.require_readable()?;
        let range = ReadableRange::new(view, request.from, request.to, request.backwards);
        let start = match request.from {
            Some(from) => from,
            None if request.backwards => match view.access {
                Access::Left { at } => PaginationToken::at(at),
                _ => PaginationToken::at(db.snapshot_position()?),
            },
            None => PaginationToken::at(0),
        };
        let (range, gap) = match request.filter.wants_room(view.room.room_id.as_str()) {
            true => self.up_to_gap(db, view, range, tried)?,
            false => (range, None),
        };
        let limit = request.limit.min(PAGE_MAX);
        let page =
            if range.is_empty() { Page::default() } else { walk(view, &request.filter, range.0, limit)? };
        let chunk = write_with_bundles(view, format, &page.events)?;
        let state = match request.filter.lazy_load_members {
            true => lazy_members(view, format, &page)?,
            false => Vec::new(),
        };
        let start_text = start.to_string();
        let (end, gap) = match (page.stopped_at, gap) {
            (Some(stopped_at), _) => (Some(stopped_at.to_string()), None),
            (None, None) => (None, None),
            // Who wants none of the events has nothing fetched, and is told where there is something.
            (None, Some(_)) if limit == 0 => (Some(start_text.clone()), None),
            (None, Some(gap)) => {
                let last = page.events.last().and_then(|shown| shown.event.place);
                let end = match request.backwards {
                    true => PaginationToken::before(gap),
                    false => last.map_or(start, PaginationToken::after),
                };
                let mut end = end.to_string();
                if end == start_text {
                    // The same place, said otherwise with everything that comes.
                    end = format!("{end}~{}", PaginationToken(gap));
                }
                let is_full = page.events.len() >= limit;
                (Some(end), (!is_full).then(|| (view.room.clone(), gap)))
            }
        };
        let may_pass = match &gap {
            Some((_, gap)) if request.backwards => is_anything_before(db, view, *gap)?,
            _ => false,
        };
        Ok(LocalPage { messages: Messages { start: start_text, end, chunk, state }, gap, may_pass })
    }

    /// A range up to the first gap that may be filled, and the place of that one. Of a room that this server is not in
    /// nobody gives us any more. Backwards those are passed over for which nobody could be asked, just before or when they
    /// were `tried`, where something is here behind them.
    pub(super) fn up_to_gap(
        &self,
        db: &Db<'_>,
        view: &RoomView<'_>,
        range: ReadableRange,
        tried: &[Place],
    ) -> Result<(ReadableRange, Option<Place>)> {
        if !view.room.resident || range.is_empty() {
            return Ok((range, None));
        }
        let TimelineRange { from, to, backwards, .. } = range.0;
        // A gap lies right before the event that names it.
        let between = if backwards { (above(to), from) } else { (above(from), below(to)) };
        let is_passed = |gap: Place, is_unreached: bool| {
            let may_be = backwards && (is_unreached || tried.contains(&gap));
            Ok(may_be && is_anything_before(db, view, gap)?)
        };
        let Some(gap) = self.events().open_gap(db, view.room.key, between, backwards, &is_passed)? else {
            return Ok((range, None));
        };
        let to = if backwards { below(gap) } else { gap };
        Ok((ReadableRange(TimelineRange { to, ..range.0 }), Some(gap)))
    }
}

/// Whether we have anything of a room's timeline from before a place.
fn is_anything_before(db: &Db<'_>, view: &RoomView<'_>, place: Place) -> Result<bool> {
    let range = TimelineRange { from: place, to: Place::START, limit: 1, backwards: true };
    Ok(!db.timeline(view.room.key, range)?.is_empty())
}

fn above(place: Place) -> Place {
    Place { sub: place.sub.saturating_add(1), ..place }
}

fn below(place: Place) -> Place {
    Place { sub: place.sub.saturating_sub(1), ..place }
}

/// A range to walk, within what the user may read.
pub(super) struct ReadableRange(pub(super) TimelineRange);

impl ReadableRange {
    pub(super) fn is_empty(&self) -> bool {
        let TimelineRange { from, to, backwards, .. } = self.0;
        if backwards { from <= to } else { to <= from }
    }

    pub(super) fn new(
        view: &RoomView<'_>,
        from: Option<PaginationToken>,
        to: Option<PaginationToken>,
        backwards: bool,
    ) -> Self {
        let end = view.end_exclusive();
        let (from, to) = if backwards {
            (from.map_or(end, |from| from.start_back().min(end)), to.map_or(Place::START, |to| to.0))
        } else {
            (from.map_or(Place::START, |from| from.0), to.map_or(end, |to| to.start_back().min(end)))
        };
        Self(TimelineRange { from, to, limit: 0, backwards })
    }

    /// What lies on one side of an event.
    pub(super) fn beside(view: &RoomView<'_>, event: Place, backwards: bool) -> Self {
        let token = if backwards { PaginationToken::before(event) } else { PaginationToken::after(event) };
        Self::new(view, Some(token), None, backwards)
    }
}
