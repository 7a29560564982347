//! Events as they are stored, and the timeline they stand in.

use rusqlite::{OptionalExtension, Row, params};

use crate::error::{Error, Result};
use crate::protocol::room_version::room_version;
use crate::protocol::{EventId, Pdu, RoomVersion, VerifiedPdu};
use crate::store::{Db, EventKey, RoomKey, SnapshotId, Tx};

/// The verdict on an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It passed every check.
    Accepted,
    /// The state before it allows it, the current state does not: clients do not see it, nothing of ours refers to it.
    SoftFailed,
    /// The auth rules forbid it: no client and no peer gets it, and it changes no state.
    Rejected,
}

impl Status {
    fn code(self) -> i64 {
        match self {
            Self::Accepted => 0,
            Self::SoftFailed => 1,
            Self::Rejected => 2,
        }
    }

    fn of(code: i64) -> Self {
        match code {
            0 => Self::Accepted,
            1 => Self::SoftFailed,
            _ => Self::Rejected,
        }
    }
}

/// A place in a room's timeline. Live events have `sub` 0; history that came later stands before the event whose gap it
/// filled, with the same `stream` and a negative `sub`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The stream position.
    pub stream: i64,
    /// The order among those with the same stream position.
    pub sub: i64,
}

impl Place {
    /// Before everything.
    pub const START: Place = Place { stream: i64::MIN, sub: i64::MIN };
    /// After everything.
    pub const END: Place = Place { stream: i64::MAX, sub: i64::MAX };

    /// The place of a live event; also the place "as of this stream position", which is after that event.
    pub const fn live(stream: i64) -> Place {
        Place { stream, sub: 0 }
    }
}

/// An event with what we know of it.
#[derive(Clone)]
pub struct StoredEvent {
    /// Its row.
    pub key: EventKey,
    /// Its room's row.
    pub room: RoomKey,
    /// The event; in its redacted form if a redaction took effect.
    pub pdu: Pdu,
    /// What became of it.
    pub status: Status,
    /// Where clients see it, if they do.
    pub place: Option<Place>,
    /// The state before it; none for outliers.
    pub state_before: Option<SnapshotId>,
    /// The state after it; none for outliers.
    pub state_after: Option<SnapshotId>,
    /// The redaction that took effect.
    pub redacted_by: Option<EventKey>,
    /// Whether the state before it is nothing but what another server said.
    pub given: bool,
}

impl StoredEvent {
    /// Whether we know nothing of its place in the graph: it is only there because others name it as an auth event.
    pub fn is_outlier(&self) -> bool {
        self.state_before.is_none()
    }
}

/// A forward extremity, as far as the event that follows it needs to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardExtremity {
    /// Its row.
    pub key: EventKey,
    /// Its id.
    pub event_id: EventId,
    /// Its depth.
    pub depth: i64,
    /// The state after it.
    pub state_after: SnapshotId,
}

/// An event as far as those that follow or cite it need to know it.
#[derive(Clone)]
pub(in crate::store) struct CachedEvent {
    pub key: EventKey,
    pub room: RoomKey,
    pub status: Status,
    /// None for outliers.
    pub state_after: Option<SnapshotId>,
    /// Whether the state before it is nothing but what another server said.
    pub given: bool,
    pub pdu: Pdu,
}

/// What an event leaves to those that follow it.
pub(crate) struct PreviousEvent {
    pub room: RoomKey,
    pub key: EventKey,
    /// None for outliers.
    pub state_after: Option<SnapshotId>,
    /// Whether that state is nothing but what another server said of the state before it.
    pub given: bool,
}

/// Two ends of a range of timeline and the direction in which to walk it.
#[derive(Debug, Clone, Copy)]
pub struct TimelineRange {
    /// Where to begin, exclusive.
    pub from: Place,
    /// Where to stop, exclusive.
    pub to: Place,
    /// At most so many events.
    pub limit: usize,
    /// From newer to older: `from` is the later end.
    pub backwards: bool,
}

/// What is to be stored of a new event, or of an outlier that found its place.
pub(crate) struct NewEvent<'a> {
    pub room: RoomKey,
    pub pdu: &'a VerifiedPdu,
    pub status: Status,
    pub place: Option<Place>,
    pub outgoing: bool,
    pub state_before: Option<SnapshotId>,
    /// Whether that is nothing but what another server said.
    pub given: bool,
}

/// What lists of many events are written from.
pub struct EventRow<'r> {
    /// The event's id.
    pub event_id: &'r str,
    /// The event in federation format, as it is stored.
    pub json: &'r str,
    /// The redaction that took effect.
    pub redacted_by: Option<EventKey>,
}

impl<'r> EventRow<'r> {
    /// From a row that begins with these columns.
    pub(crate) fn of(row: &'r Row<'_>) -> Result<Self> {
        Ok(Self {
            event_id: row.get_ref(0)?.as_str().map_err(Error::internal)?,
            json: std::str::from_utf8(row.get_ref(1)?.as_blob().map_err(Error::internal)?)
                .map_err(Error::internal)?,
            redacted_by: row.get(2)?,
        })
    }
}

const EVENT: &str = "SELECT e.event_key, e.room_key, e.event_id, e.status, e.stream, e.sub, e.state_before,
       e.state_after, e.redacted_by, e.json, r.version, e.given
     FROM events e JOIN rooms r ON r.room_key = e.room_key";

fn version_of(row: &Row<'_>, column: usize) -> Result<RoomVersion> {
    let version = row.get_ref(column)?.as_str().map_err(Error::internal)?;
    room_version(version).ok_or_else(|| Error::internal(format!("a room of the unknown version {version}")))
}

fn event_of(row: &Row<'_>) -> Result<StoredEvent> {
    let event_id = EventId::parse(row.get_ref(2)?.as_str().map_err(Error::internal)?)?;
    let version = version_of(row, 10)?;
    let stream: Option<i64> = row.get(4)?;
    let sub = row.get(5)?;
    Ok(StoredEvent {
        key: row.get(0)?,
        room: row.get(1)?,
        pdu: Pdu::trusted(event_id, row.get(9)?, version)?,
        status: Status::of(row.get(3)?),
        place: stream.map(|stream| Place { stream, sub }),
        state_before: row.get(6)?,
        state_after: row.get(7)?,
        redacted_by: row.get(8)?,
        given: row.get(11)?,
    })
}

impl Db<'_> {
    /// The event that names one that we do not have as its previous one.
    pub fn event_before_gap(&self, room: RoomKey, missing: &EventId) -> Result<Option<StoredEvent>> {
        let mut statement = self.conn().prepare_cached(&format!(
            "{EVENT} JOIN gaps g ON g.room_key = e.room_key AND g.stream = e.stream AND g.sub = e.sub
             WHERE g.room_key = ?1 AND g.event_id = ?2"
        ))?;
        let mut rows = statement.query(params![room, missing.as_str()])?;
        rows.next()?.map(event_of).transpose()
    }

    /// The event with this id, whatever became of it.
    pub fn event(&self, id: &EventId) -> Result<Option<StoredEvent>> {
        let mut statement = self.conn().prepare_cached(&format!("{EVENT} WHERE e.event_id = ?1"))?;
        let mut rows = statement.query([id.as_str()])?;
        rows.next()?.map(event_of).transpose()
    }

    /// The event with this row.
    pub fn event_by_key(&self, key: EventKey) -> Result<StoredEvent> {
        let mut statement = self.conn().prepare_cached(&format!("{EVENT} WHERE e.event_key = ?1"))?;
        let mut rows = statement.query([key])?;
        rows.next()?.map(event_of).transpose()?.ok_or_else(|| Error::internal(format!("no event {key}")))
    }

    /// The event with this row, if it is still there.
    pub fn find_event(&self, key: EventKey) -> Result<Option<StoredEvent>> {
        let mut statement = self.conn().prepare_cached(&format!("{EVENT} WHERE e.event_key = ?1"))?;
        let mut rows = statement.query([key])?;
        rows.next()?.map(event_of).transpose()
    }

    /// The event's content alone.
    pub fn pdu(&self, id: &EventId) -> Result<Option<Pdu>> {
        if let Some(known) = self.recall(|cache| cache.events.event(id)) {
            return Ok(Some(known.pdu));
        }
        if self.epoch.is_some() {
            return self.event_key(id)?.map(|key| self.pdu_by_key(key)).transpose();
        }
        Ok(self.event(id)?.map(|event| self.keep(event)))
    }

    /// The content of the event with this row.
    pub fn pdu_by_key(&self, key: EventKey) -> Result<Pdu> {
        let known = self.recall(|cache| cache.events.event(&cache.events.id(key)?)).map(|known| known.pdu);
        let known = known.or_else(|| self.shared.pdus.get(self.epoch?, key));
        match known {
            Some(pdu) => Ok(pdu),
            None => Ok(self.keep(self.event_by_key(key)?)),
        }
    }

    /// Remembers an event, for the writer or for the readers.
    fn keep(&self, event: StoredEvent) -> Pdu {
        let StoredEvent { key, room, status, state_after, given, pdu, .. } = event;
        match self.epoch {
            Some(epoch) => self.shared.pdus.put(epoch, key, &pdu),
            None => self.remember(|cache| {
                let pdu = pdu.clone();
                cache.events.keep_event(&CachedEvent { key, room, status, state_after, given, pdu });
            }),
        }
        pdu
    }

    /// The state after these events, if they were once all forward extremities of their room, and the writer remembers.
    /// `extremities`: in order.
    pub fn state_after_extremities(&self, extremities: &[EventKey]) -> Option<SnapshotId> {
        self.recall(|cache| cache.events.state_after(extremities))
    }

    /// How many bytes these events have together as they are stored.
    pub fn bytes_of_events(&self, keys: &[EventKey]) -> Result<u64> {
        let mut statement =
            self.conn().prepare_cached("SELECT length(json) FROM events WHERE event_key = ?1")?;
        let mut bytes = 0;
        for key in keys {
            bytes += statement.query_row([key], |row| row.get::<_, i64>(0))?.unsigned_abs();
        }
        Ok(bytes)
    }

    /// Tells of the events with these rows, one after the other, without holding any of them.
    pub fn each_event(
        &self,
        keys: impl IntoIterator<Item = EventKey>,
        mut tell: impl FnMut(EventRow<'_>) -> Result<()>,
    ) -> Result<()> {
        let mut statement = self
            .conn()
            .prepare_cached("SELECT event_id, json, redacted_by FROM events WHERE event_key = ?1")?;
        for key in keys {
            let mut rows = statement.query([key])?;
            let row = rows.next()?.ok_or_else(|| Error::internal(format!("no event {key}")))?;
            tell(EventRow::of(row)?)?;
        }
        Ok(())
    }

    /// The forward extremities of a room, in the order in which they came.
    pub fn forward_extremities(&self, room: RoomKey) -> Result<Vec<ForwardExtremity>> {
        if let Some(extremities) = self.recall(|cache| cache.extremities(room)) {
            return Ok(extremities.to_vec());
        }
        let mut statement = self.conn().prepare_cached(
            "SELECT e.event_key, e.event_id, e.depth, e.state_after FROM extremities x
             JOIN events e ON e.event_key = x.event_key WHERE x.room_key = ?1 ORDER BY x.event_key",
        )?;
        let mut rows = statement.query([room])?;
        let mut extremities = Vec::new();
        while let Some(row) = rows.next()? {
            let event_id = EventId::parse(row.get_ref(1)?.as_str().map_err(Error::internal)?)?;
            extremities.push(ForwardExtremity {
                key: row.get(0)?,
                event_id,
                depth: row.get(2)?,
                state_after: row.get(3)?,
            });
        }
        self.remember(|cache| cache.keep_extremities(room, extremities.as_slice().into()));
        Ok(extremities)
    }

    /// The row of an event.
    pub fn event_key(&self, id: &EventId) -> Result<Option<EventKey>> {
        if let Some(known) = self.recall(|cache| cache.events.event(id)) {
            return Ok(Some(known.key));
        }
        let mut statement = self.conn().prepare_cached("SELECT event_key FROM events WHERE event_id = ?1")?;
        Ok(statement.query_row([id.as_str()], |r| r.get(0)).optional()?)
    }

    /// The id of the event with this row.
    pub fn event_id(&self, key: EventKey) -> Result<EventId> {
        if let Some(id) = self.recall(|cache| cache.events.id(key)) {
            return Ok(id);
        }
        let mut statement = self.conn().prepare_cached("SELECT event_id FROM events WHERE event_key = ?1")?;
        let mut rows = statement.query([key])?;
        let row = rows.next()?.ok_or_else(|| Error::internal(format!("no event {key}")))?;
        let id = EventId::parse(row.get_ref(0)?.as_str().map_err(Error::internal)?)?;
        self.remember(|cache| cache.events.keep_id(key, &id));
        Ok(id)
    }

    /// For each id: whether we have the event, as an outlier or better.
    pub fn has_events(&self, ids: &[EventId]) -> Result<Vec<bool>> {
        ids.iter().map(|id| Ok(self.event_key(id)?.is_some())).collect()
    }

    /// What those that follow an event have to know of it.
    pub(crate) fn previous_event(&self, id: &EventId) -> Result<Option<PreviousEvent>> {
        if let Some(CachedEvent { room, key, state_after, given, .. }) =
            self.recall(|cache| cache.events.event(id))
        {
            return Ok(Some(PreviousEvent { room, key, state_after, given }));
        }
        let mut statement = self.conn().prepare_cached(
            "SELECT room_key, event_key, state_after, given FROM events WHERE event_id = ?1",
        )?;
        let previous = |r: &Row<'_>| {
            Ok(PreviousEvent { room: r.get(0)?, key: r.get(1)?, state_after: r.get(2)?, given: r.get(3)? })
        };
        Ok(statement.query_row([id.as_str()], previous).optional()?)
    }

    /// What became of an event, and whether it is an outlier.
    pub fn event_status(&self, id: &EventId) -> Result<Option<(Status, bool)>> {
        if let Some(known) = self.recall(|cache| cache.events.event(id)) {
            return Ok(Some((known.status, known.state_after.is_none())));
        }
        let mut statement = self
            .conn()
            .prepare_cached("SELECT status, state_before IS NULL FROM events WHERE event_id = ?1")?;
        Ok(statement.query_row([id.as_str()], |r| Ok((Status::of(r.get(0)?), r.get(1)?))).optional()?)
    }

    /// A range of a room's timeline, in the direction asked for. Ends are exclusive: to read from "now" backwards,
    /// start at `Place { stream: position + 1, sub: i64::MIN }`.
    pub fn timeline(&self, room: RoomKey, range: TimelineRange) -> Result<Vec<StoredEvent>> {
        let (order, low, high) = match range.backwards {
            true => ("e.stream DESC, e.sub DESC", range.to, range.from),
            false => ("e.stream, e.sub", range.from, range.to),
        };
        // The first two conditions are the index's; the row values make the ends exact.
        let mut statement = self.conn().prepare_cached(&format!(
            "{EVENT} WHERE e.room_key = ?1 AND e.stream >= ?2 AND e.stream <= ?4
               AND (e.stream, e.sub) > (?2, ?3) AND (e.stream, e.sub) < (?4, ?5) ORDER BY {order} LIMIT ?6"
        ))?;
        let limit = i64::try_from(range.limit).unwrap_or(i64::MAX);
        let mut rows = statement.query(params![room, low.stream, low.sub, high.stream, high.sub, limit])?;
        let mut events = Vec::new();
        while let Some(row) = rows.next()? {
            events.push(event_of(row)?);
        }
        Ok(events)
    }

    /// The `sub` below which so many events of history fit that go right before a place: below the place itself, or, if
    /// something else sits there (another fork), below everything at that stream position.
    pub(crate) fn room_below(&self, room: RoomKey, place: Place, count: i64) -> Result<i64> {
        match self.next_sub_below(room, place)? {
            Some(next) if place.sub.saturating_sub(next) <= count => {
                let mut statement = self.conn().prepare_cached(
                    "SELECT coalesce(min(sub), 0) FROM events WHERE room_key = ?1 AND stream = ?2",
                )?;
                Ok(statement.query_row([room, place.stream], |r| r.get(0))?)
            }
            _ => Ok(place.sub),
        }
    }

    /// A place for one event from amid the gap right before a place, with room on both sides for what is fetched
    /// later. None if there is no such room left.
    pub(crate) fn place_amid(&self, room: RoomKey, place: Place) -> Result<Option<Place>> {
        // What nobody will ever fetch between an event and the next one, even a page at a time.
        const WIDE: i64 = 1 << 41;
        const NARROW: i64 = 10_000;
        let free = match self.next_sub_below(room, place)? {
            Some(next) => place.sub.saturating_sub(next),
            None => 2 * WIDE,
        };
        let sub = place.sub.checked_sub(free / 2).filter(|_| free > 2 * NARROW);
        Ok(sub.filter(|sub| *sub > i64::MIN / 2).map(|sub| Place { stream: place.stream, sub }))
    }

    fn next_sub_below(&self, room: RoomKey, place: Place) -> Result<Option<i64>> {
        let mut statement = self
            .conn()
            .prepare_cached("SELECT max(sub) FROM events WHERE room_key = ?1 AND stream = ?2 AND sub < ?3")?;
        Ok(statement.query_row([room, place.stream, place.sub], |r| r.get(0))?)
    }

    /// Events of a room that have a place in its timeline, by their places behind this one, so many at most: the place and
    /// the JSON of each.
    pub fn placed_events_after(
        &self,
        room: RoomKey,
        after: Place,
        most: usize,
    ) -> Result<Vec<(Place, Vec<u8>)>> {
        self.rows(
            "SELECT stream, sub, json FROM events WHERE room_key = ?1 AND stream IS NOT NULL
             AND (stream, sub) > (?2, ?3) ORDER BY stream, sub LIMIT ?4",
            params![room, after.stream, after.sub, most as i64],
            |r| Ok((Place { stream: r.get(0)?, sub: r.get(1)? }, r.get(2)?)),
        )
    }
}

impl Tx<'_> {
    /// Stores an event that we do not have, or gives an outlier its place. The state after it is set by
    /// [`Tx::set_state_after`] once the row is known. With the row: whether it is new. An outlier gets the form of this
    /// copy, which was judged.
    pub(crate) fn insert_event(&mut self, new: &NewEvent<'_>) -> Result<(EventKey, bool)> {
        let (stream, sub) = (new.place.map(|p| p.stream), new.place.map_or(0, |p| p.sub));
        if let Some(state) = new.state_before {
            self.event_has_state(state)?;
        }
        let insert =
            "INSERT INTO events (event_key, room_key, event_id, stream, sub, depth, origin_server_ts, status,
             outgoing, state_before, state_after, json, given) VALUES (
               (SELECT max(event_key, coalesce((SELECT max(event_key) FROM events), 0)) + 1 FROM retired_keys),
               ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?9, ?10, ?11)
             ON CONFLICT (event_id) DO NOTHING";
        let inserted = self.execute(
            insert,
            params![
                new.room,
                new.pdu.event_id().as_str(),
                stream,
                sub,
                new.pdu.depth(),
                new.pdu.origin_server_ts(),
                new.status.code(),
                new.outgoing,
                new.state_before,
                new.pdu.json(),
                new.given,
            ],
        )?;
        let key = self.conn().last_insert_rowid();
        if inserted == 1 {
            self.note_proof_of_new(new.room, key, new.pdu)?;
            self.hasten_pending_that_needs(new.pdu.event_id().as_str())?;
            return Ok((key, true));
        }
        self.complete_outlier(new.pdu)?;
        self.remember(|cache| cache.events.forget_event(new.pdu.event_id()));
        let update = "UPDATE events SET stream = ?2, sub = ?3, status = ?4, outgoing = ?5, state_before = ?6,
             state_after = ?6, given = ?7 WHERE event_id = ?1 AND state_before IS NULL";
        let placed = self.execute(
            update,
            params![
                new.pdu.event_id().as_str(),
                stream,
                sub,
                new.status.code(),
                new.outgoing,
                new.state_before,
                new.given,
            ],
        )?;
        if placed == 0 {
            return Err(Error::internal(format!("{} is known already", new.pdu.event_id())));
        }
        self.hasten_pending_that_needs(new.pdu.event_id().as_str())?;
        let key = self.event_key(new.pdu.event_id())?;
        let key = key.ok_or_else(|| Error::internal("an event went missing"))?;
        self.note_proof_of_known(new.room, key, new.pdu.proof())?;
        if new.place.is_some() {
            self.index_again(key)?;
        }
        Ok((key, false))
    }

    /// Stores an event that is only referred to. Nothing happens if we have it.
    pub(crate) fn insert_outlier(
        &mut self,
        room: RoomKey,
        pdu: &VerifiedPdu,
        status: Status,
    ) -> Result<EventKey> {
        if let Some(key) = self.event_key(pdu.event_id())? {
            return Ok(key);
        }
        let outlier =
            NewEvent { room, pdu, status, place: None, outgoing: false, state_before: None, given: false };
        Ok(self.insert_event(&outlier)?.0)
    }

    /// The same in one step, for many that are likely to be new. None if we have it.
    pub(crate) fn insert_outlier_unless_known(
        &mut self,
        room: RoomKey,
        pdu: &VerifiedPdu,
        status: Status,
    ) -> Result<Option<EventKey>> {
        let insert = "INSERT INTO events (event_key, room_key, event_id, depth, origin_server_ts, status, json)
             VALUES (
               (SELECT max(event_key, coalesce((SELECT max(event_key) FROM events), 0)) + 1 FROM retired_keys),
               ?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (event_id) DO NOTHING";
        let inserted = self.execute(
            insert,
            params![
                room,
                pdu.event_id().as_str(),
                pdu.depth(),
                pdu.origin_server_ts(),
                status.code(),
                pdu.json(),
            ],
        )?;
        if inserted == 0 {
            return Ok(None);
        }
        let key = self.conn().last_insert_rowid();
        self.note_proof_of_new(room, key, pdu)?;
        Ok(Some(key))
    }

    pub(crate) fn set_state_after(&mut self, event: EventKey, state: SnapshotId) -> Result<()> {
        self.remember(|cache| {
            if let Some(id) = cache.events.id(event) {
                cache.events.forget_event(&id);
            }
        });
        self.execute("UPDATE events SET state_after = ?2 WHERE event_key = ?1", params![event, state])?;
        Ok(())
    }

    /// Remembers an event that was just put into its room.
    pub(in crate::store) fn remember_event(&self, event: CachedEvent) {
        self.remember(|cache| cache.events.keep_event(&event));
    }

    /// Gives an accepted event that clients did not see yet its place.
    pub(crate) fn place_event(&mut self, event: EventKey, place: Place) -> Result<()> {
        self.execute(
            "UPDATE events SET stream = ?2, sub = ?3 WHERE event_key = ?1",
            params![event, place.stream, place.sub],
        )?;
        Ok(())
    }
}
