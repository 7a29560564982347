//! A room as a local user may see it: whether they may look at all, up to where, and which events.
//!
//! Every read of rooms by clients goes through here, so that membership and history visibility are judged in one place.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::protocol::pdu::Membership;
use crate::protocol::rooms::visibility::{self, EventView, HistoryVisibility};
use crate::protocol::{Pdu, RoomId, UserId};
use crate::service::accounts::ignored_users::Ignored;
use crate::service::events::erasure::Erasure;
use crate::service::rooms::pagination_token::PaginationToken;
use crate::store::rooms::relations::RelatedEvent;
use crate::store::{Db, EventKey, Place, Room, SnapshotId, StoredEvent};

/// What somebody is to a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Joined, without a break since this stream position.
    Joined {
        /// The position of the join.
        since: i64,
    },
    /// Was joined until this stream position, which is that of the leave, kick or ban.
    Left {
        /// The position of the leave.
        at: i64,
    },
    /// Never was joined.
    Outsider,
    /// Has left and forgotten the room: sees what anybody may see.
    Forgotten,
}

/// A user's view of a room in one snapshot of the database.
pub struct RoomView<'v> {
    db: &'v Db<'v>,
    /// The room.
    pub room: &'v Room,
    /// Who looks.
    pub user: &'v UserId,
    /// What they are to the room.
    pub access: Access,
    /// The history visibility of the present.
    visibility_now: HistoryVisibility,
    /// Users whose events are not shown.
    ignored: Arc<Ignored>,
    /// What of the events of erased users is not shown.
    pub erasure: Erasure<'v>,
}

/// How an event looks to the viewer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventAccess {
    /// Whether they may see it.
    pub visible: bool,
    /// What they were in the room at the event, including what it changed.
    pub membership: Membership,
}

impl<'v> RoomView<'v> {
    /// The user's view of the room, without the events of those whom they ignore; only state events of theirs are seen.
    /// This alone permits nothing: see [`RoomView::require_readable`].
    pub fn new(db: &'v Db<'v>, room: &'v Room, user: &'v UserId) -> Result<Self> {
        Self::ignoring(db, room, user, Arc::new(Ignored::of(db, user)?))
    }

    /// [`RoomView::new`] for whoever has read already whom the user ignores.
    pub fn ignoring(db: &'v Db<'v>, room: &'v Room, user: &'v UserId, ignored: Arc<Ignored>) -> Result<Self> {
        let access = access(db, room, user)?;
        let visibility_now =
            visibility_of(db.state_event(room.key, "m.room.history_visibility", "")?.as_ref());
        let erasure = Erasure::for_user(db, room.key, user);
        Ok(Self { db, room, user, access, visibility_now, ignored, erasure })
    }

    /// The stream position whose state is the user's present.
    pub fn present(&self) -> i64 {
        match self.access {
            Access::Left { at } => at,
            Access::Joined { .. } | Access::Outsider | Access::Forgotten => i64::MAX,
        }
    }

    /// Whether the user is joined and sees all that was said since, but for what those said whom they ignore. The history
    /// from before they joined may be hidden from them all the same: see [`RoomView::was_always_open`].
    pub fn sees_all_since_joining(&self) -> bool {
        matches!(self.access, Access::Joined { .. }) && self.visibility_now.shows_members_all()
    }

    /// Whether those who come later were always to see what was said before, by all that this server knows of the room's
    /// settings.
    pub fn was_always_open(&self) -> Result<bool> {
        let changes = self.db.state_tuple_changes(self.room.key, "m.room.history_visibility", "")?;
        if changes.len() > SETTINGS_LOOKED_AT_MAX {
            return Ok(false);
        }
        for key in changes.iter().flat_map(|change| [change.event, change.previous]).flatten() {
            let setting = visibility_of(Some(&self.db.pdu_by_key(key)?));
            if !setting.shows_members_all() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether something stands behind the user's join, without a break since.
    pub fn is_since_joining(&self, place: Place) -> bool {
        matches!(self.access, Access::Joined { since } if place.stream > since)
    }

    /// Whom the user ignores.
    pub fn ignored(&self) -> &Ignored {
        &self.ignored
    }

    /// The exclusive end of what the user may read.
    pub fn end_exclusive(&self) -> Place {
        match self.access {
            Access::Left { at } => PaginationToken::at(at).start_back(),
            _ => Place::END,
        }
    }

    /// Whether anybody may read the room as it is now.
    pub fn is_world_readable(&self) -> bool {
        self.visibility_now == HistoryVisibility::WorldReadable
    }

    /// Errors unless the user is or was joined, or anybody may read the room: 403 `M_FORBIDDEN`.
    pub fn require_readable(&self) -> Result<()> {
        if matches!(self.access, Access::Outsider | Access::Forgotten) && !self.is_world_readable() {
            return Err(Error::not_in_room());
        }
        Ok(())
    }

    /// Errors unless the user is joined now: 403 `M_FORBIDDEN`.
    pub fn require_joined(&self) -> Result<()> {
        if matches!(self.access, Access::Joined { .. }) { Ok(()) } else { Err(Error::not_in_room()) }
    }

    /// An event that relates to another, with what the reader was at it, if they may see it. Looks at no more than
    /// `looks_left`.
    pub fn visible_related(
        &self,
        row: &RelatedEvent,
        looks_left: &mut usize,
    ) -> Result<Option<(StoredEvent, Membership)>> {
        if self.ignored.has(&row.sender) || *looks_left == 0 {
            return Ok(None);
        }
        *looks_left -= 1;
        let event = self.db.event_by_key(row.key)?;
        let access = self.look(&event)?;
        // What was erased is to this reader as if it were redacted, and that relates to nothing.
        let is_shown = access.visible && !self.erasure.hides(&event)?;
        Ok(is_shown.then_some((event, access.membership)))
    }

    /// How an event looks to the user, by the rules of "Room history visibility" in the state at that event.
    pub fn look(&self, event: &StoredEvent) -> Result<EventAccess> {
        let own = event.pdu.is("m.room.member", self.user.as_str()).then(|| event.pdu.membership()).flatten();
        let place = event.place.unwrap_or(Place::START);
        if !event.pdu.is_state() && self.ignored.has(event.pdu.sender().as_str()) {
            return Ok(EventAccess { visible: false, membership: Membership::Leave });
        }
        if let Access::Joined { since } = self.access
            && place.stream > since
            && self.visibility_now.shows_members_all()
        {
            // Since their join the user is a member by any order of events, and no rule of the present hides anything
            // from members: the common case costs no look into the state.
            return Ok(EventAccess { visible: true, membership: own.unwrap_or(Membership::Join) });
        }
        let (visibility, mut membership) = self.state_at(event.state_before)?;
        let mut own = own;
        if self.access == Access::Forgotten {
            (membership, own) = (None, None);
        }
        let (joined_since, within) = match self.access {
            Access::Joined { .. } => (true, true),
            // "They may see any events which they were allowed to see before they left the room, but no events received
            // after they left."
            Access::Left { at } => (place.stream <= at, place.stream <= at || own.is_some()),
            Access::Outsider | Access::Forgotten => (false, true),
        };
        let view = EventView {
            visibility,
            visibility_after: event
                .pdu
                .is("m.room.history_visibility", "")
                .then(|| visibility_of(Some(&event.pdu))),
            membership,
            membership_after: own,
            joined_since,
        };
        let visible = within && visibility::may_see(&view);
        Ok(EventAccess { visible, membership: own.or(membership).unwrap_or(Membership::Leave) })
    }

    /// The position as of which the state is to be shown to who asks for that as of `at`: no later than their present; and where
    /// they may see nothing that was said then, the beginning of their membership, which tokens of a newcomer's first answers
    /// are before. Errors: 403 `M_FORBIDDEN` for a position that the history visibility hides from who is not in the room.
    pub fn state_position(&self, at: i64) -> Result<i64> {
        let at = at.min(self.present());
        let is_in = match self.access {
            Access::Joined { since } => at >= since,
            Access::Left { at: left } => at >= left,
            Access::Outsider | Access::Forgotten => false,
        };
        if is_in {
            return Ok(at);
        }
        let as_of = |event_type: &str, state_key: &str| -> Result<Option<Pdu>> {
            let key = self.db.state_event_as_of(self.room.key, event_type, state_key, at)?;
            key.map(|key| self.db.pdu_by_key(key)).transpose()
        };
        let was = match self.access {
            Access::Joined { .. } | Access::Left { .. } => as_of("m.room.member", self.user.as_str())?,
            Access::Outsider | Access::Forgotten => None,
        };
        let then = EventView {
            visibility: visibility_of(as_of("m.room.history_visibility", "")?.as_ref()),
            visibility_after: None,
            membership: was.and_then(|event| event.membership()),
            membership_after: None,
            joined_since: matches!(self.access, Access::Joined { .. } | Access::Left { .. }),
        };
        match self.access {
            _ if visibility::may_see(&then) => Ok(at),
            Access::Joined { since } => Ok(since),
            _ => Err(Error::forbidden("You may not see the room as it was then")),
        }
    }

    /// The visibility and the viewer's membership in a state.
    fn state_at(&self, state: Option<SnapshotId>) -> Result<(HistoryVisibility, Option<Membership>)> {
        let Some(state) = state else { return Ok((visibility_of(None), None)) };
        let visibility = self.db.state_event_in(state, "m.room.history_visibility", "")?;
        let member = self.db.state_event_in(state, "m.room.member", self.user.as_str())?;
        Ok((visibility_of(visibility.as_ref()), member.and_then(|event| event.membership())))
    }

    /// The event that a state event replaced, if there was one.
    pub fn replaced(&self, event: &StoredEvent) -> Result<Option<EventKey>> {
        let Some(state_key) = event.pdu.state_key() else { return Ok(None) };
        match (event.place, event.state_before) {
            (Some(Place { stream, sub: 0 }), _) => {
                self.db.replaced_at(self.room.key, event.pdu.event_type(), state_key, stream)
            }
            (_, Some(state)) => match self.db.state_tuple_id(event.pdu.event_type(), state_key)? {
                Some(tuple_id) => self.db.state_row_at(state, tuple_id),
                None => Ok(None),
            },
            _ => Ok(None),
        }
    }

    /// The database snapshot behind this view.
    pub fn db(&self) -> &'v Db<'v> {
        self.db
    }
}

fn visibility_of(event: Option<&Pdu>) -> HistoryVisibility {
    HistoryVisibility::from_content(event.map(Pdu::content).as_ref())
}

/// Whether everybody who is joined for longer sees each event that comes into the room now, whatever the state at it.
pub fn everybody_sees_what_comes(db: &Db<'_>, room: &Room) -> Result<bool> {
    let visibility = visibility_of(db.state_event(room.key, "m.room.history_visibility", "")?.as_ref());
    Ok(visibility.shows_members_all())
}

/// A room that we know. Errors: 403 `M_FORBIDDEN`, so that nobody learns which rooms there are.
pub fn readable_room(db: &Db<'_>, id: &RoomId) -> Result<Room> {
    db.room(id)?.ok_or_else(Error::not_in_room)
}

/// What the user is to the room now, with the position at which that began.
fn access(db: &Db<'_>, room: &Room, user: &UserId) -> Result<Access> {
    let Some(member) = db.member(room.key, user)? else { return Ok(Access::Outsider) };
    // "After this API is called, however, a user will no longer be able to retrieve history for this room."
    if member.forgotten {
        return Ok(Access::Forgotten);
    }
    if member.membership != Membership::Join {
        return Ok(left_at(db, room, user)?.map_or(Access::Outsider, |at| Access::Left { at }));
    }
    let changes = db.state_tuple_changes(room.key, "m.room.member", user.as_str())?;
    // Back through changes of the profile (that it was redacted is none) to the join. Giving up early only costs the short cut
    // of `look`.
    let mut since = member.stream;
    let changes = changes.iter().filter(|change| change.event != change.previous);
    for change in changes.take(PROFILE_CHANGES_MAX) {
        since = change.stream;
        let Some(previous) = change.previous else { break };
        let previous = db.event_by_key(previous)?;
        if previous.pdu.membership() != Some(Membership::Join) {
            break;
        }
        // A room that came to us with its state has no change for the join itself.
        since = previous.place.map_or(since, |place| place.stream.min(since));
    }
    Ok(Access::Joined { since })
}

/// When a user who is not in the room left it last: the position of the leave, kick or ban. None: they never were in it.
pub fn left_at(db: &Db<'_>, room: &Room, user: &UserId) -> Result<Option<i64>> {
    for change in db.state_tuple_changes(room.key, "m.room.member", user.as_str())? {
        let Some(previous) = change.previous else { continue };
        if said_by(db, Some(previous))? == Some(Membership::Join)
            && !db.is_from_before_us(room.key, previous)?
        {
            return Ok(Some(change.stream));
        }
    }
    Ok(None)
}

/// A room whose setting was changed more often than this counts as one that was closed at times.
const SETTINGS_LOOKED_AT_MAX: usize = 16;

/// How many changes of a joined member's profile are walked back through in search of the join.
const PROFILE_CHANGES_MAX: usize = 16;

fn said_by(db: &Db<'_>, event: Option<EventKey>) -> Result<Option<Membership>> {
    Ok(event.map(|key| db.pdu_by_key(key)).transpose()?.and_then(|pdu| pdu.membership()))
}

/// What the user was in the room as of a stream position, by what this server knew then. Other than the state as of
/// that position, it does not reach back before the room came to us.
pub fn membership_known_at(db: &Db<'_>, room: &Room, user: &UserId, at: i64) -> Result<Option<Membership>> {
    let Some(key) = db.state_event_as_of(room.key, "m.room.member", user.as_str(), at)? else {
        return Ok(None);
    };
    let event = db.event_by_key(key)?;
    let known = event.place.is_some_and(|place| place.stream <= at);
    Ok(if known { event.pdu.membership() } else { None })
}
