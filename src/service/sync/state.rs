//! Which state of a room a client lacks.
//!
//! A client without `state_after` applies the `state` section first and then every state event of the timeline. So the
//! section has, for each type and state key, what the client needs *before* the timeline: if their last event is in the
//! timeline, its value at the timeline's start; else (the filter kept it out, the gap swallowed it, or resolution
//! brought it about) its value at the end. With `state_after` it is always the value at the end.
//!
//! A value that the timeline has and that is not the last one would then be what the client ends with, if the event of the
//! last one is not told behind it. So the timeline does without such values ([`Overtaken`]). Where the last one came later,
//! when the reader was not there, and history visibility hides it, it begins behind the other, as `/messages` finds that and
//! what is before; nothing that comes later is lost for it. Where a filter keeps it out, or state resolution preferred an
//! earlier one, also one that came with the room, the value alone is left out: who forks one of their own, be it their name,
//! takes nothing else from anybody. (Synapse shows what visibility hides instead, and leaves the other two be.)

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, HashSet};

use super::{EventList, SyncContext};
use crate::error::Result;
use crate::protocol::UserId;
use crate::protocol::pdu::Membership;
use crate::service::events::erasure::Erasure;
use crate::service::rooms::client_format;
use crate::service::rooms::timeline::Verdict;
use crate::service::rooms::view::RoomView;
use crate::service::sync::told_members::ToldMember;
use crate::store::{EventKey, Room, StoredEvent};

/// What to work the state out for.
pub struct StateNeeded<'n> {
    /// The position whose state the client has; none if it needs all.
    pub since: Option<i64>,
    /// The position right before the timeline.
    pub start: i64,
    /// The position at the end of the timeline; `i64::MAX` for the present.
    pub end: i64,
    /// The events of the timeline.
    pub timeline: &'n HashSet<EventKey>,
    /// With lazy loading, those whose membership the client needs in any case; none if it gets all memberships.
    pub members: Option<&'n BTreeSet<UserId>>,
    /// Membership events that the client has, and needs no more for that.
    pub known_members: Option<&'n HashSet<ToldMember>>,
}

/// State that a client lacks.
pub struct LackingState {
    keys: BTreeSet<EventKey>,
    /// Those of them that are memberships, as far as that is of interest.
    members: HashSet<EventKey>,
    /// Whether what a room's summary is made of (members, name, alias) changed since the client looked last.
    pub summary_changed: bool,
}

/// Judges the events of a timeline, newest first, for a client that applies them in their order and would take some for the
/// value of their type and state key though that is another.
pub struct Overtaken<'c> {
    context: &'c SyncContext<'c>,
    view: &'c RoomView<'c>,
    end: i64,
    met: HashMap<(String, String), LastWord>,
}

/// What the value of a type and state key is at the end.
#[derive(Clone, Copy)]
enum LastWord {
    /// An event that was met: a client applies it after all that are older.
    Met,
    /// One that was not, or nothing.
    NotMet(Option<EventKey>),
}

impl<'c> Overtaken<'c> {
    /// `end`: the position at the end of the timeline; `i64::MAX` for the present.
    pub fn new(context: &'c SyncContext<'c>, view: &'c RoomView<'c>, end: i64) -> Self {
        Self { context, view, end, met: HashMap::new() }
    }

    /// What becomes of the next older event.
    pub fn judge(&mut self, event: &StoredEvent) -> Result<Verdict> {
        let Some(state_key) = event.pdu.state_key().filter(|_| !self.context.request.state_after) else {
            return Ok(Verdict::Shown);
        };
        let (db, room, event_type) = (self.context.db, self.view.room.key, event.pdu.event_type());
        let last_word = match self.met.entry((event_type.to_owned(), state_key.to_owned())) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => unknown.insert(LastWord::NotMet(match self.end {
                i64::MAX => db.state_event_key(room, event_type, state_key)?,
                end => db.state_event_as_of(room, event_type, state_key, end)?,
            })),
        };
        match *last_word {
            LastWord::Met => Ok(Verdict::Shown),
            LastWord::NotMet(Some(value)) if value == event.key => {
                *last_word = LastWord::Met;
                Ok(Verdict::Shown)
            }
            LastWord::NotMet(Some(value)) if is_hidden_since(self.view, (event, state_key), value)? => {
                Ok(Verdict::Beyond)
            }
            LastWord::NotMet(_) => Ok(Verdict::LeftOut),
        }
    }
}

/// Whether a value came after an event of its type and state key and became that then, and the reader may not see it since
/// they were not there. An event that comes when the value is that already has lost against it, and may come whenever its
/// sender likes; and a value that was there before, or came with the room, and counts again since the event lost against it
/// later, can be brought about by anybody who forks: for neither may anything but the event itself be taken from anybody. Nor
/// for a value that is hidden since its sender left the reader's coming out of what it rests on.
fn is_hidden_since(
    view: &RoomView<'_>,
    (event, state_key): (&StoredEvent, &str),
    value: EventKey,
) -> Result<bool> {
    let Some(place) = event.place else { return Ok(false) };
    // History that was fetched later is from before its place in the stream.
    let then = if place.sub < 0 { place.stream - 1 } else { place.stream };
    let (db, room, event_type) = (view.db(), view.room.key, event.pdu.event_type());
    if db.state_event_as_of(room, event_type, state_key, then)? == Some(value) {
        return Ok(false);
    }
    let value = db.event_by_key(value)?;
    let Some(came) = value.place.filter(|came| *came > place) else { return Ok(false) };
    if view.look(&value)?.visible {
        return Ok(false);
    }
    let reader = db.state_event_as_of(room, "m.room.member", view.user.as_str(), came.stream - 1)?;
    Ok(match reader {
        Some(reader) => db.pdu_by_key(reader)?.membership() != Some(Membership::Join),
        None => true,
    })
}

/// The types of state that the summary of a room is made of.
const OF_SUMMARY: [&str; 3] = ["m.room.member", "m.room.name", "m.room.canonical_alias"];

/// The state that the client lacks, before its filter.
pub fn lacking(context: &SyncContext<'_>, room: &Room, need: &StateNeeded<'_>) -> Result<LackingState> {
    let (mut keys, mut members) = (BTreeSet::new(), HashSet::new());
    let summary_changed = match need.since {
        None => {
            whole(context, room, need, &mut keys)?;
            true
        }
        Some(since) => changes(context, room, need, since, (&mut keys, &mut members))?,
    };
    let mut lacking = LackingState { keys, members, summary_changed };
    if let Some(members) = need.members {
        lacking.add_members(context, room, need, members)?;
    }
    Ok(lacking)
}

impl LackingState {
    /// Adds the membership events of certain users, at the same point as the rest of the state.
    pub fn add_members(
        &mut self,
        context: &SyncContext<'_>,
        room: &Room,
        need: &StateNeeded<'_>,
        members: &BTreeSet<UserId>,
    ) -> Result<()> {
        for user in members {
            let at_end = context.db.state_event_as_of(room.key, "m.room.member", user.as_str(), need.end)?;
            let key = match at_end {
                Some(key) if !context.request.state_after && need.timeline.contains(&key) => {
                    context.db.state_event_as_of(room.key, "m.room.member", user.as_str(), need.start)?
                }
                other => other,
            };
            let key = key.filter(|key| context.request.state_after || !need.timeline.contains(key));
            let key =
                key.filter(|key| need.known_members.is_none_or(|known| !known.contains(&(room.key, *key))));
            self.keys.extend(key);
            self.members.extend(key);
        }
        Ok(())
    }

    /// The events, filtered and written.
    pub fn write(self, context: &SyncContext<'_>, room: &Room) -> Result<EventList> {
        let filter = &context.request.filter.room.state;
        let mut events = EventList::default();
        let erasure = Erasure::for_user(context.db, room.key, context.user);
        // A limit other than 0 would leave clients with half of a state.
        if filter.wants_room(room.room_id.as_str()) && !filter.wants_none() {
            if filter.wants_everything() {
                let told = self.members.into_iter().map(|key| (room.key, key));
                context.told_members.borrow_mut().extend(told);
                context.db.each_event(self.keys, |row| {
                    let push = |out: &mut Vec<u8>| {
                        client_format::push_state(out, &erasure, &context.format, room, &row)
                    };
                    events.events.push_with(push)
                })?;
                return Ok(events);
            }
            for key in self.keys {
                let event = context.db.event_by_key(key)?;
                if filter.wants(&event.pdu) {
                    let told = self.members.get(&key).map(|key| (room.key, *key));
                    context.told_members.borrow_mut().extend(told);
                    events.push(&client_format::state(&erasure, &context.format, &event)?);
                }
            }
        }
        Ok(events)
    }
}

/// All state, but for memberships if they are loaded lazily.
fn whole(
    context: &SyncContext<'_>,
    room: &Room,
    need: &StateNeeded<'_>,
    keys: &mut BTreeSet<EventKey>,
) -> Result<()> {
    let lazy = need.members.is_some();
    if need.end == i64::MAX {
        keys.extend(context.db.current_state_keys(room.key, !lazy)?);
    } else {
        for key in context.db.state_rows_as_of(room.key, need.end)?.into_values() {
            if !lazy || context.db.pdu_by_key(key)?.event_type() != "m.room.member" {
                keys.insert(key);
            }
        }
    }
    if context.request.state_after {
        return Ok(());
    }
    for change in context.db.state_changes_between(room.key, need.start, need.end)? {
        let Some(after) = change.after.filter(|after| need.timeline.contains(after)) else { continue };
        keys.remove(&after);
        if !(lazy && change.event_type == "m.room.member") {
            keys.extend(change.before.filter(|before| !need.timeline.contains(before)));
        }
    }
    // What came with the room has no history: the join that brought us in is in the timeline and nowhere else.
    keys.retain(|key| !need.timeline.contains(key));
    Ok(())
}

/// What changed since the client looked last; and whether it changes the summary.
fn changes(
    context: &SyncContext<'_>,
    room: &Room,
    need: &StateNeeded<'_>,
    since: i64,
    (keys, members): (&mut BTreeSet<EventKey>, &mut HashSet<EventKey>),
) -> Result<bool> {
    let mut changes = context.db.state_changes_between(room.key, since, need.end)?;
    let summary_changed = changes.iter().any(|change| OF_SUMMARY.contains(&change.event_type.as_str()));
    // Of what was redacted those who see the redaction know.
    for change in &mut changes {
        if let Some(event) = change.after.filter(|_| change.before == change.after)
            && let Some(redaction) = context.db.event_by_key(event)?.redacted_by
            && need.timeline.contains(&redaction)
        {
            change.after = None;
        }
    }
    if need.members.is_some() {
        let changed = changes.iter().filter(|change| change.event_type == "m.room.member");
        members.extend(changed.filter_map(|change| change.after).filter(|key| !need.timeline.contains(key)));
    }
    if context.request.state_after {
        keys.extend(changes.iter().filter_map(|change| change.after));
        return Ok(summary_changed);
    }
    let within: HashMap<_, _> = context
        .db
        .state_changes_between(room.key, need.start.max(since), need.end)?
        .into_iter()
        .map(|change| ((change.event_type, change.state_key), change.before))
        .collect();
    for change in changes {
        let Some(after) = change.after else { continue };
        if !need.timeline.contains(&after) {
            keys.insert(after);
            continue;
        }
        let at_start = within.get(&(change.event_type, change.state_key)).copied().unwrap_or(Some(after));
        if at_start != change.before {
            keys.extend(at_start.filter(|at_start| !need.timeline.contains(at_start)));
        }
    }
    Ok(summary_changed)
}
