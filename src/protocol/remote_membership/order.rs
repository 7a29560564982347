//! What comes first of what two servers did at the same moment.
//!
//! It is put in order by what the events rest on: by "auth events selection" a member event names the member event of
//! its target that it follows. Clocks are no evidence.

use super::RemoteState;
use crate::protocol::pdu::{Membership, Pdu};

/// What shows of an invite's place in the room, beside a leave of the local user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InviteOrder {
    /// Nothing of ours is in its way, or it was made by who knew of that.
    After,
    /// It does not show.
    Unclear,
    /// It was made before the room had the leave (or ban) that has taken effect since.
    Before,
    /// A leave is being handed in, or was and its outcome is not known.
    Meets,
}

/// Where an invite stands. `leave`: the leave that was handed in last, and whether it is known to be in the room; or
/// the ban that ended the membership. `left`: the event that it ended.
pub fn order_of_invite(invite: &Pdu, leave: Option<(&Pdu, bool)>, left: Option<&Pdu>) -> InviteOrder {
    let rests_on = |event: &Pdu| invite.auth_events().contains(event.event_id());
    match leave {
        None => InviteOrder::After,
        Some((leave, _)) if rests_on(leave) => InviteOrder::After,
        Some((_, false)) => InviteOrder::Meets,
        Some(_) if left.is_some_and(rests_on) => InviteOrder::Before,
        Some((ban, _)) if ban.membership() == Some(Membership::Ban) => InviteOrder::After,
        Some(_) => InviteOrder::Unclear,
    }
}

/// What somebody else's removal of the local user means for what they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemovalBearing {
    /// It ends the membership.
    Ends,
    /// It ended one that another has followed since.
    Over,
    /// The room decides, and has to be asked.
    Unclear,
}

/// What a removal (a kick, a refusal, a ban) means in this state. `present`: the member event that would be removed,
/// `previous`: the one before.
///
/// Whoever removes the present membership rests on its event, or at least comes later in the room. A removal and an invite,
/// or another knock, that were made at the same moment rest on the same event. By state resolution the removal comes first
/// then, and so an invite or a knock survives a kick or a refusal, but not a ban; if the room ever got it. How deep they are
/// says nothing of that: each lies beside the other.
pub fn bearing(
    state: RemoteState,
    removal: &Pdu,
    present: Option<&Pdu>,
    previous: Option<&Pdu>,
) -> RemovalBearing {
    let Some(present) = present.filter(|_| state != RemoteState::Closed) else {
        return if state == RemoteState::Closed { RemovalBearing::Over } else { RemovalBearing::Ends };
    };
    if removal.auth_events().contains(present.event_id()) {
        return RemovalBearing::Ends;
    }
    let is_later = removal.depth() > present.depth();
    if !matches!(state, RemoteState::Knocking | RemoteState::Knocked | RemoteState::Invited) {
        return if is_later { RemovalBearing::Ends } else { RemovalBearing::Over };
    }
    if present.auth_events().contains(removal.event_id()) {
        return RemovalBearing::Over;
    }
    let both_rest_on =
        |event: &Pdu| [removal, present].iter().all(|e| e.auth_events().contains(event.event_id()));
    match (previous.is_some_and(both_rest_on), removal.membership()) {
        (true, Some(Membership::Ban)) => RemovalBearing::Ends,
        (false, _) if is_later => RemovalBearing::Ends,
        _ => RemovalBearing::Unclear,
    }
}
