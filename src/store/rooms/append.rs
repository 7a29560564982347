//! Putting an event into its room once there is a verdict on it: the row, its state, the forward extremities, the
//! current state and all that follows it. The one place where a room changes.

use super::{Gap, Room};
use crate::error::{Error, Result};
use crate::protocol::event_auth::PowerLevels;
use crate::protocol::pdu::PREV_EVENTS_MAX;
use crate::protocol::{EventId, Pdu, VerifiedPdu};
use crate::store::push::evaluate::PlacedEvent;
use crate::store::rooms::events::{CachedEvent, ForwardExtremity, NewEvent, Place, Status};
use crate::store::rooms::snapshots::Delta;
use crate::store::rooms::state::StateRef;
use crate::store::{EventKey, SnapshotId, Tx};

/// The type of events that only merge the forks of a room. Nobody is shown them. (The specification does not know it;
/// it is what servers use.)
pub const DUMMY_EVENT: &str = "org.matrix.dummy_event";
/// More forward extremities than these should be merged: each makes every further event dearer.
pub const EXTREMITIES_WANTED_MAX: usize = 10;

/// What an accepted event makes the room's current state.
#[derive(Debug, Clone)]
pub enum Current {
    /// What it was: the event is not accepted, or others that we have come after it.
    Unchanged,
    /// The state after it: it is the only forward extremity now.
    AfterThis,
    /// What resolving the states after all forward extremities came to.
    Resolved(StateRef),
    /// What it was, until there is time: the event follows these forward extremities and late extremities, and becomes
    /// a late extremity.
    Later(Vec<EventKey>),
}

/// An event with the verdict on it.
pub struct Append<'a> {
    /// Its room, as it is in this transaction.
    pub room: &'a Room,
    /// The event.
    pub pdu: &'a VerifiedPdu,
    /// The verdict.
    pub status: Status,
    /// Whether other servers get it from us.
    pub outgoing: bool,
    /// The state before it.
    pub state_before: StateRef,
    /// Whether that is nothing but what another server said.
    pub given: bool,
    /// The forward extremities as they are.
    pub old_extremities: &'a [EventKey],
    /// Those that stay beside the new event.
    pub kept_extremities: Vec<EventKey>,
    /// Late extremities that it follows.
    pub overtakes: Vec<EventKey>,
    /// Whether the event becomes a forward extremity. Not looked at unless the event is accepted.
    pub becomes_extremity: bool,
    /// The new current state. Not looked at unless the event is accepted.
    pub current: Current,
    /// Previous events that we do not have.
    pub missing: Vec<EventId>,
    /// The place of an event that fills a gap in the history; the live end of the timeline if none.
    pub history: Option<Place>,
}

/// What became of an event that was put into its room.
#[derive(Debug, Clone, Copy)]
pub struct Appended {
    /// Its row.
    pub key: EventKey,
    /// Its stream position, if it has a place in the timeline.
    pub stream: Option<i64>,
    /// The state after it.
    pub state_after: SnapshotId,
}

impl Tx<'_> {
    /// Puts an event into its room. The caller has authorised it by the very extremities that the room has in this
    /// transaction.
    pub fn append(&mut self, event: &Append<'_>) -> Result<Appended> {
        let Append { room, pdu, status, .. } = event;
        let accepted = *status == Status::Accepted;
        let redaction = if accepted { self.redaction_in(room, event)? } else { RedactionEffect::None };
        // Room versions 3+, "Handling redactions": clients hear of a redaction once it takes effect. Ours go out
        // anyway.
        let takes_effect = match redaction {
            RedactionEffect::None | RedactionEffect::Acts(_) => true,
            RedactionEffect::Waits(_) => event.outgoing || pdu.version().redactions_authorised,
            RedactionEffect::Void => event.outgoing,
        };
        let visible = takes_effect && pdu.event_type() != DUMMY_EVENT;
        // An event that changes something without being seen needs a position too, for what it changes.
        let place = match event.history {
            Some(place) => place,
            None if accepted => Place::live(self.next_stream()),
            None => Place::live(self.stream()),
        };
        let (at, stream) = (place.stream, (accepted && visible).then_some(place.stream));
        let state_before = self.materialise(&event.state_before)?;
        let (key, is_new) = self.insert_event(&NewEvent {
            room: room.key,
            pdu,
            status: *status,
            place: (accepted && visible).then_some(place),
            outgoing: event.outgoing,
            state_before: Some(state_before),
            given: event.given,
        })?;
        let state_after = self.state_after(event, key, state_before)?;
        let appended = Appended { key, stream, state_after };
        if is_new {
            self.remember_event(CachedEvent {
                key,
                room: room.key,
                status: *status,
                state_after: Some(state_after),
                given: event.given,
                pdu: Pdu::clone(pdu),
            });
        }
        let relates = accepted && visible && self.note_relation_of(event, (key, place), is_new)?;
        if accepted {
            if let Some(state_key) = pdu.state_key().filter(|_| event.history.is_none()) {
                self.cancel_delayed_state(&room.room_id, (pdu.event_type(), state_key), pdu.sender())?;
            }
            self.owe_to_those_removed(event, key, at)?;
            let current = self.follow_current_state(event, &appended, (state_before, at))?;
            if event.becomes_extremity {
                let late = matches!(event.current, Current::Later(_));
                self.overtake_late_extremities(room.key, &event.overtakes, late)?;
            }
            if let (true, Current::Later(followed)) = (event.becomes_extremity, &event.current) {
                self.add_late_extremity(room.key, key, followed)?;
            } else if event.becomes_extremity {
                let mut extremities = event.kept_extremities.clone();
                extremities.push(key);
                // With more, the current state is not what resolving them all would come to.
                if (2..=PREV_EVENTS_MAX).contains(&extremities.len())
                    && let Some(current) = current
                {
                    self.remember_state_after(&extremities, current);
                }
                let before = self.recall(|cache| cache.extremities(room.key));
                self.set_extremities(room.key, event.old_extremities, &extremities)?;
                if extremities.len() > EXTREMITIES_WANTED_MAX && !event.outgoing {
                    self.room_is_forked(room.key);
                }
                let (event_id, depth) = (pdu.event_id().clone(), pdu.depth());
                let new = ForwardExtremity { key, event_id, depth, state_after };
                self.remember_extremities(room.key, new, (&event.kept_extremities, before));
            }
            if let Some(stream) = appended.stream.filter(|_| event.history.is_none()) {
                let state_before = Some(state_before);
                self.notify(&PlacedEvent { room, pdu, key, stream, state_before, relates })?;
            }
            self.apply_redactions(event, key, redaction)?;
            if event.outgoing {
                self.owes(room.key, pdu.sender().server_name())?;
            }
            if event.history.is_none() {
                if visible || current.is_some_and(|current| room.state != Some(current)) {
                    self.note_activity(room.key, at, visible.then(|| pdu.event_type()))?;
                }
                self.room_changed(room.key)?;
            }
        }
        if accepted || event.history.is_some() {
            // History that is not shown is there all the same: nobody need look for it again, but for what it follows.
            self.note_gaps(event, place)?;
        }
        Ok(appended)
    }

    /// The row of a state, made if it is a resolved one.
    pub(in crate::store) fn materialise(&mut self, state: &StateRef) -> Result<SnapshotId> {
        let delta = self.delta_of(&state.change)?;
        self.snapshot_after(state.base, &delta)
    }

    /// The row of what the forks of a room come to, and how it differs from the room's current state. Where it does not, that
    /// is the row: most events of a forked room change nothing of it, and are not to leave a row each that nothing needs.
    pub(in crate::store) fn resolved_state(
        &mut self,
        room: &Room,
        state: &StateRef,
    ) -> Result<(SnapshotId, Delta)> {
        let change = self.delta_of(&state.change)?;
        let mut difference = Delta::new();
        if let Some(old) = room.state {
            difference = self.state_difference(old, state.base)?;
            for (tuple_id, event) in &change {
                if self.state_row_at(old, *tuple_id)? == *event {
                    difference.remove(tuple_id);
                } else {
                    difference.insert(*tuple_id, *event);
                }
            }
            if difference.is_empty() {
                return Ok((old, difference));
            }
        }
        let new = self.snapshot_after(state.base, &change)?;
        if new != state.base {
            self.note_spare_state(room.key, new)?;
        }
        Ok((new, difference))
    }

    fn state_after(&mut self, event: &Append<'_>, key: EventKey, before: SnapshotId) -> Result<SnapshotId> {
        let Some(state_key) = event.pdu.state_key().filter(|_| event.status != Status::Rejected) else {
            return Ok(before);
        };
        let tuple_id = self.make_state_tuple(event.pdu.event_type(), state_key)?;
        let after = self.snapshot_after(before, &Delta::from([(tuple_id, Some(key))]))?;
        self.set_state_after(key, after)?;
        Ok(after)
    }

    /// Returns the new current state, if the event makes one.
    fn follow_current_state(
        &mut self,
        event: &Append<'_>,
        appended: &Appended,
        (state_before, at): (SnapshotId, i64),
    ) -> Result<Option<SnapshotId>> {
        let room = event.room;
        let (new, resolved) = match &event.current {
            Current::Unchanged | Current::Later(_) => return Ok(None),
            Current::AfterThis => (appended.state_after, None),
            Current::Resolved(state) => {
                let (new, difference) = self.resolved_state(room, state)?;
                (new, Some(difference))
            }
        };
        if room.state == Some(new) {
            return Ok(Some(new));
        }
        let delta = match (room.state, resolved, event.pdu.state_key()) {
            (Some(_), Some(difference), _) => difference,
            // The usual state event: what changes is its own entry.
            (Some(old), None, Some(state_key)) if old == state_before => {
                let tuple_id = self.make_state_tuple(event.pdu.event_type(), state_key)?;
                Delta::from([(tuple_id, Some(appended.key))])
            }
            (Some(old), ..) => self.state_difference(old, new)?,
            (None, ..) => {
                self.state_rows_at(new)?.into_iter().map(|(tuple_id, key)| (tuple_id, Some(key))).collect()
            }
        };
        self.set_room_state(room.key, new)?;
        for user in self.move_current_state(room.key, &delta, at, true)? {
            self.wake_user(&user);
        }
        Ok(Some(new))
    }

    /// Returns whether the event relates to another. An outlier may have been redacted before it got its place, or be kept
    /// in another copy than this one.
    fn note_relation_of(&mut self, event: &Append<'_>, at: (EventKey, Place), is_new: bool) -> Result<bool> {
        let (room, is_made_here) = (event.room.key, self.is_made_here(event));
        if is_new {
            return self.note_relation(room, at, event.pdu, is_made_here);
        }
        let stored = self.event_by_key(at.0)?;
        self.note_relation(room, at, &stored.pdu, is_made_here)
    }

    /// Whether nobody can have referred to the event before.
    fn is_made_here(&self, event: &Append<'_>) -> bool {
        event.outgoing && self.is_local(event.pdu.sender().as_str())
    }

    fn note_gaps(&mut self, event: &Append<'_>, before: Place) -> Result<()> {
        for event_id in &event.missing {
            self.add_gap(event.room.key, &Gap { event_id: event_id.clone(), before })?;
        }
        if !self.is_made_here(event) {
            self.close_gap(event.room.key, event.pdu.event_id())?;
        }
        Ok(())
    }
}

/// What a redaction will do.
enum RedactionEffect {
    /// The event is none.
    None,
    /// It takes effect on this event now.
    Acts(EventKey),
    /// Its target is not here yet.
    Waits(EventId),
    /// It is not allowed to, or its target is in another room.
    Void,
}

impl Tx<'_> {
    fn redaction_in(&mut self, room: &Room, event: &Append<'_>) -> Result<RedactionEffect> {
        // With a state key it is one too, as the type says and other servers have it.
        if event.pdu.event_type() != "m.room.redaction" {
            return Ok(RedactionEffect::None);
        }
        let Some(target_id) = event.pdu.redacts() else { return Ok(RedactionEffect::Void) };
        let Some(target) = self.event(&target_id)? else { return Ok(RedactionEffect::Waits(target_id)) };
        // The levels are those before the redaction; who may redact changes seldom, so any resolution of forks that is
        // not stored yet is looked through: the base of the state, then what the resolution changed.
        let allowed =
            target.room == room.key && self.may_redact(event.pdu, &target.pdu, &event.state_before)?;
        Ok(if allowed { RedactionEffect::Acts(target.key) } else { RedactionEffect::Void })
    }

    fn apply_redactions(
        &mut self,
        event: &Append<'_>,
        key: EventKey,
        redaction: RedactionEffect,
    ) -> Result<()> {
        match redaction {
            RedactionEffect::Acts(target) => {
                if let Some(redacts) = event.pdu.redacts() {
                    self.note_redaction(&redacts, key)?;
                }
                self.let_redaction_act(key, target)?;
            }
            RedactionEffect::Waits(target) => {
                self.let_redaction_wait(&target, key, event.pdu.sender().server_name())?;
            }
            RedactionEffect::None | RedactionEffect::Void => {}
        }
        if !self.is_made_here(event) {
            self.redact_if_awaited(event.pdu, key)?;
        }
        Ok(())
    }

    fn let_redaction_act(&mut self, redaction: EventKey, target: EventKey) -> Result<()> {
        let target = self.event_by_key(target)?;
        if target.redacted_by.is_none() {
            self.redact_event(target.key, redaction, &target.pdu.redacted()?)?;
            self.forget_notifications(&target)?;
            self.note_redacted_state(target.room, target.key, &target.pdu)?;
        }
        Ok(())
    }

    /// Lets the redactions that came before their target act on it, and shows them to clients.
    pub(crate) fn redact_if_awaited(&mut self, target: &Pdu, target_key: EventKey) -> Result<()> {
        for key in self.redactions_of(target.event_id())? {
            let redaction = self.event_by_key(key)?;
            let Some(state) = redaction.state_before else { continue };
            if redaction.pdu.room_id() != target.room_id()
                || !self.may_redact(&redaction.pdu, target, &StateRef::snapshot(state))?
            {
                continue;
            }
            self.let_redaction_act(key, target_key)?;
            if redaction.place.is_none() {
                let stream = self.next_stream();
                self.place_event(key, Place::live(stream))?;
                self.note_relation(redaction.room, (key, Place::live(stream)), &redaction.pdu, false)?;
                self.note_activity(redaction.room, stream, None)?;
                self.room_changed(redaction.room)?;
            }
        }
        Ok(())
    }
}

impl crate::store::Db<'_> {
    /// Whether a redaction may take effect on its target (rooms/v3, "Handling redactions"). In versions 1 and 2 the
    /// auth rules have seen to it. A create event is never redacted: it would take the room's version and whom it lets
    /// in along, and with them the room. (The specification does not say so; Synapse does so too.)
    pub fn may_redact(&self, redaction: &Pdu, target: &Pdu, state: &StateRef) -> Result<bool> {
        if target.event_type() == "m.room.create" {
            return Ok(false);
        }
        if redaction.version().redactions_authorised
            || redaction.sender().server_name() == target.sender().server_name()
        {
            return Ok(true);
        }
        let lookup = |event_type: &str, state_key: &str| {
            self.state_event_of(state, event_type, state_key)
                .inspect_err(|e| log::error!("{e}"))
                .ok()
                .flatten()
        };
        Ok(PowerLevels::of(redaction.version(), &lookup).may_redact(redaction.sender().as_str()))
    }

    /// The event in a state that may not have a row yet.
    pub fn state_event_of(&self, state: &StateRef, event_type: &str, state_key: &str) -> Result<Option<Pdu>> {
        if !state.change.is_empty()
            && let Some(event) = state.change.get(&(event_type.into(), state_key.into()))
        {
            return match event {
                Some(id) => Ok(Some(self.pdu(id)?.ok_or_else(|| Error::internal(format!("no event {id}")))?)),
                None => Ok(None),
            };
        }
        self.state_event_in(state.base, event_type, state_key)
    }
}
