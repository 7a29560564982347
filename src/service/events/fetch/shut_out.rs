//! The removal of the last of our users in a room. Its servers tell those who are not in the room nothing more of it, and so
//! not what the removal follows: what somebody said while our user came in, say. It is the last word that the room has for us.

use crate::error::Result;
use crate::protocol::VerifiedPdu;
use crate::protocol::pdu::Membership;
use crate::service::events::Events;
use crate::service::events::accept::{EventSource, Received};
use crate::store::Db;
use crate::store::rooms::state::StateRef;

impl Events<'_> {
    /// Receives, by the room's state as it is here, the removal of one of our users whose past no server gives us because the
    /// room has put us out. Its signatures were checked, its auth events have to allow it (check 4), and so has the power that
    /// its sender has here (5 and 6). None if it is no such removal, or is not allowed by that: it waits.
    pub(super) fn receive_last_word(&self, pdu: &VerifiedPdu) -> Result<Option<Received>> {
        let Some(state) = self.store.read(|db| state_for_removal(db, pdu))? else { return Ok(None) };
        match self.receive_event(pdu, EventSource::Transaction, Some(&state))? {
            Received::NeedsAuth(_) | Received::NeedsPrev | Received::NeedsTime(_) => Ok(None),
            received => {
                log::info!("{} puts us out of {}, and nothing more is told", pdu.event_id(), pdu.room_id());
                Ok(Some(received))
            }
        }
    }
}

/// The room's state, if the event removes one of our users from it, and rests on what they are there to our knowledge: that
/// is what nobody knows who has not seen it.
fn state_for_removal(db: &Db<'_>, pdu: &VerifiedPdu) -> Result<Option<StateRef>> {
    let Some(room) = db.resident_room(pdu.room_id())? else { return Ok(None) };
    let Some(user) = pdu.state_key().filter(|user| db.is_local(user) && *user != pdu.sender().as_str())
    else {
        return Ok(None);
    };
    if !matches!(pdu.membership(), Some(Membership::Leave | Membership::Ban)) {
        return Ok(None);
    }
    let present = db.state_event(room.key, "m.room.member", user)?;
    let is_known = present.is_some_and(|present| pdu.auth_events().contains(present.event_id()));
    Ok(room.state.filter(|_| is_known).map(StateRef::snapshot))
}
