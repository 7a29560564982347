//! What a server is told that has just come into a room with a join of its own: what was said while that was on its way. The
//! join does not follow it, since it is made after a template that knew nothing of it, and no other server owes it to one that
//! was not there. What the room says next rests on it; and whoever is put out by that very event could not ask for it any more.

use super::serve::may_be_shown_to;
use crate::error::Result;
use crate::protocol::pdu::Membership;
use crate::protocol::{Pdu, ServerName};
use crate::store::rooms::events::TimelineRange;
use crate::store::{Place, Room, Status, Tx};

/// Of more that was said beside a join only the last events are owed: they lead to the others.
const BESIDE_A_JOIN_MAX: usize = 50;

/// The server that an event brings into a room which was handed in to us, if it is a join and the server is not there yet.
pub(super) fn newcomer_of(tx: &Tx<'_>, room: &Room, join: &Pdu) -> Result<Option<ServerName>> {
    if join.membership() != Some(Membership::Join) {
        return Ok(None);
    }
    let server = join.sender().server();
    let is_new = !tx.is_local(join.sender().as_str()) && !tx.is_resident(room.key, &server)?;
    Ok(is_new.then_some(server))
}

/// Owes a server that has come in with a join what the room has beside that: after the join, and before what follows.
pub(super) fn owe_what_came_beside(
    tx: &mut Tx<'_>,
    room: &Room,
    join: &Pdu,
    server: &ServerName,
) -> Result<()> {
    let mut followed = None;
    for id in join.prev_events() {
        followed = followed.max(tx.event(id)?.and_then(|event| event.place));
    }
    // What came before the last of those that it follows, it follows as well.
    let Some(from) = followed else { return Ok(()) };
    let range = TimelineRange { from: Place::END, to: from, limit: BESIDE_A_JOIN_MAX + 1, backwards: true };
    let mut beside = tx.timeline(room.key, range)?;
    beside.retain(|event| event.pdu.event_id() != join.event_id());
    beside.truncate(BESIDE_A_JOIN_MAX);
    for event in beside.into_iter().rev() {
        if event.status == Status::Accepted && may_be_shown_to(tx, room, server, &event)? {
            let stream = tx.next_stream();
            tx.owe_event(server, event.key, stream)?;
        }
    }
    Ok(())
}
