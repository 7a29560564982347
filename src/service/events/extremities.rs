//! The ends of a room's graph, and an event's place among them: which forward extremities stay beside it, and which
//! late extremities it follows. Reads, decides, writes nothing.

use std::collections::HashSet;

use crate::error::Result;
use crate::protocol::{EventId, Pdu};
use crate::store::rooms::late_extremities::LateExtremity;
use crate::store::{Db, EventKey, Room, Status};

/// How many rejected and soft-failed events are looked through to find the accepted ones behind them.
const UNACCEPTED_PASSED_MAX: usize = 1000;

/// How many forward extremities stay beside a new one. Whoever forks a room more often does it to make us work: the
/// oldest are let go, and come back with the events that refer to them.
const EXTREMITIES_MAX: usize = 200;

/// How many late extremities a room has. What comes beyond waits.
const LATE_EXTREMITIES_MAX: usize = 200;

/// An event's place among the ends of a room's graph.
pub(in crate::service) struct GraphPlace {
    /// The forward extremities that stay beside it.
    pub kept: Vec<EventKey>,
    /// The late extremities that it follows.
    pub overtakes: Vec<EventKey>,
    /// The forward extremities, and the late extremities that are being caught up with, that it follows, through late
    /// extremities too.
    pub followed: Vec<EventKey>,
    /// Whether it can be no more than a late extremity: it follows some, and leaves others.
    pub is_late: bool,
}

/// The forward extremities that stay when the event comes are all but those that it follows, also through events that
/// were never extremities: because they were not accepted, or because they are late.
pub(in crate::service) fn place_in_graph(
    db: &Db<'_>,
    room: &Room,
    pdu: &Pdu,
    extremities: &[EventKey],
) -> Result<GraphPlace> {
    let (late, overtaken_before): (Vec<LateExtremity>, Vec<LateExtremity>) =
        db.late_extremities(room.key)?.into_iter().partition(|late| !late.is_overtaken);
    let mut behind = followed_by(db, pdu, extremities, &late)?;
    let (overtaken, beside): (Vec<&LateExtremity>, Vec<&LateExtremity>) =
        late.iter().partition(|late| behind.contains(&late.key));
    let (through, _): (Vec<&LateExtremity>, Vec<_>) =
        overtaken_before.iter().partition(|late| behind.contains(&late.key));
    let more = overtaken.iter().chain(&through).flat_map(|late| late.followed.iter().copied());
    behind.extend(more);
    let mut kept: Vec<EventKey> = extremities.iter().filter(|key| !behind.contains(key)).copied().collect();
    kept.drain(..kept.len().saturating_sub(EXTREMITIES_MAX));
    // What is neither a forward extremity nor about to become one will never be one again.
    let received = late.iter().chain(&overtaken_before).filter(|late| late.is_taken).map(|late| late.key);
    let followed = extremities.iter().copied().chain(received).filter(|key| behind.contains(key)).collect();
    let overtakes: Vec<EventKey> = overtaken.iter().map(|late| late.key).collect();
    let is_late = (!overtakes.is_empty() && !beside.is_empty()) || !through.is_empty();
    Ok(GraphPlace { kept, overtakes, followed, is_late })
}

/// The events that this one follows, as far as they matter to the ends of the graph.
fn followed_by(
    db: &Db<'_>,
    pdu: &Pdu,
    extremities: &[EventKey],
    late: &[LateExtremity],
) -> Result<HashSet<EventKey>> {
    let mut followed = HashSet::new();
    let mut seen = HashSet::new();
    let mut next: Vec<EventId> = pdu.prev_events().to_vec();
    while let Some(id) = next.pop() {
        if seen.len() > UNACCEPTED_PASSED_MAX || !seen.insert(id.clone()) {
            continue;
        }
        let Some(key) = db.event_key(&id)? else { continue };
        followed.insert(key);
        if extremities.binary_search(&key).is_err()
            && !late.iter().any(|late| late.key == key)
            && matches!(db.event_status(&id)?, Some((status, _)) if status != Status::Accepted)
        {
            db.count_examined(1);
            next.extend(db.pdu_by_key(key)?.prev_events().iter().cloned());
        }
    }
    Ok(followed)
}

/// Whether there is a place for one more late extremity, which overtakes these.
pub(in crate::service) fn may_be_late(db: &Db<'_>, room: &Room, overtakes: &[EventKey]) -> Result<bool> {
    Ok(db.late_extremities(room.key)?.len().saturating_sub(overtakes.len()) < LATE_EXTREMITIES_MAX)
}
