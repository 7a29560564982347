//! Which state of a room goes into an answer: what is wanted and new, and the members that the client needs for what else
//! is told (rules 3, 8 and 12).

use std::collections::BTreeSet;

use super::connection::Told;
use super::request::{RequiredState, WantedMembers, digest};
use crate::error::Result;
use crate::service::rooms::client_format::{self, Json};
use crate::service::rooms::timeline::Page;
use crate::service::rooms::view::RoomView;
use crate::service::sync::SyncContext;
use crate::store::EventKey;

const MEMBER: &str = "m.room.member";

/// What an answer tells of a room's state.
#[derive(Default)]
pub struct StateNews {
    keys: BTreeSet<EventKey>,
    /// State that there is no more, by type and state key.
    pub removed: Vec<(String, String)>,
    /// Members, as digests, that are told because the client needs them.
    pub members: Vec<u64>,
    /// Whether the name changed since the client looked.
    pub name_changed: bool,
    /// Whether the avatar did.
    pub avatar_changed: bool,
    /// Whether members came or went, or changed their profiles.
    pub members_changed: bool,
}

/// What to work it out for.
pub struct StateWanted<'w> {
    /// What is wanted.
    pub required: &'w RequiredState,
    /// What was wanted when the client was last told of the room; none if nothing is known of that.
    pub before: Option<&'w RequiredState>,
    /// What the client knows; none if it knows nothing.
    pub told: Option<&'w Told>,
    /// Up to which position; `i64::MAX` for the present.
    pub end: i64,
}

impl StateWanted<'_> {
    /// Whether the client knows the room, and wants members as it needs them only from now on.
    pub fn begins_lazy_members(&self) -> bool {
        self.told.is_some()
            && self.required.lazy_members()
            && self.before.is_none_or(|before| !before.lazy_members())
    }
}

impl StateNews {
    /// What is new of the state that is wanted. `spoken`: the timeline of which the client needs the members; `page`: that
    /// which is told now.
    pub fn of(
        context: &SyncContext<'_>,
        view: &RoomView<'_>,
        wanted: &StateWanted<'_>,
        spoken: &Page,
        page: &Page,
    ) -> Result<Self> {
        let mut news = Self::default();
        let limited = page.stopped_at.is_some();
        match wanted.told {
            None => {
                (news.name_changed, news.avatar_changed, news.members_changed) = (true, true, true);
                news.add_present(context, view, wanted, None)?;
            }
            Some(told) => {
                news.add_changes(context, view, wanted, told, limited)?;
                if wanted.before.is_none_or(|before| !wanted.required.is_within(before)) {
                    news.add_present(context, view, wanted, wanted.before)?;
                }
            }
        }
        if wanted.required.lazy_members() {
            let known = wanted.told.filter(|_| !limited).map_or(&[][..], |told| &told.members);
            news.add_needed_members(context, view, wanted.end, spoken, known)?;
        }
        Ok(news)
    }

    /// The state that is wanted now and was not before.
    fn add_present(
        &mut self,
        context: &SyncContext<'_>,
        view: &RoomView<'_>,
        wanted: &StateWanted<'_>,
        before: Option<&RequiredState>,
    ) -> Result<()> {
        if wanted.required.is_empty() {
            return Ok(());
        }
        let room = view.room.key;
        let members = wanted.required.members();
        let is_new = |event_type: &str, state_key: &str| {
            wanted.required.wants(event_type, state_key)
                && before.is_none_or(|before| !before.wants(event_type, state_key))
        };
        let all = members == WantedMembers::All;
        let mut keep = |event_type: &str, state_key: &str, event: EventKey| {
            if is_new(event_type, state_key) {
                self.keys.insert(event);
            }
        };
        if wanted.end == i64::MAX {
            context.db.current_state_events(room, all, &mut keep)?;
        } else {
            context.db.state_events_as_of(room, wanted.end, all, &mut keep)?;
        }
        if let WantedMembers::Of(users) = members {
            for user in users {
                if let Some(event) = context.db.state_event_as_of(room, MEMBER, user, wanted.end)? {
                    keep(MEMBER, user, event);
                }
            }
        }
        Ok(())
    }

    /// What changed since the client was told of the room, also where no event of the timeline says so.
    fn add_changes(
        &mut self,
        context: &SyncContext<'_>,
        view: &RoomView<'_>,
        wanted: &StateWanted<'_>,
        told: &Told,
        limited: bool,
    ) -> Result<()> {
        // "All membership updates since the last sync when `limited` is false."
        let all_members = wanted.required.lazy_members() && !limited;
        for change in context.db.state_changes_between(view.room.key, told.seen, wanted.end)? {
            let is_member = change.event_type == MEMBER;
            self.members_changed |= is_member;
            self.name_changed |= change.event_type == "m.room.name" && change.state_key.is_empty();
            self.avatar_changed |= change.event_type == "m.room.avatar" && change.state_key.is_empty();
            let needed = is_member && all_members;
            if !needed && !wanted.required.wants(&change.event_type, &change.state_key) {
                continue;
            }
            match change.after {
                Some(event) => drop(self.keys.insert(event)),
                None => self.removed.push((change.event_type, change.state_key)),
            }
        }
        Ok(())
    }

    /// "All the senders of events in the timeline" and "the target of all membership events" in it, but for those that
    /// the client has.
    fn add_needed_members(
        &mut self,
        context: &SyncContext<'_>,
        view: &RoomView<'_>,
        end: i64,
        page: &Page,
        known: &[u64],
    ) -> Result<()> {
        let mut users: BTreeSet<&str> = BTreeSet::new();
        for seen in &page.events {
            users.insert(seen.event.pdu.sender().as_str());
            let target = seen.event.pdu.state_key().filter(|_| seen.event.pdu.event_type() == MEMBER);
            users.extend(target);
        }
        for user in users {
            let member = digest(&user);
            if known.contains(&member) {
                continue;
            }
            if let Some(event) = context.db.state_event_as_of(view.room.key, MEMBER, user, end)? {
                self.keys.insert(event);
                self.members.push(member);
            }
        }
        Ok(())
    }

    /// Puts the user's own membership in the place of what it was when they were in the room: without it a client does
    /// not know that it is out (rule 11).
    pub fn put_own(&mut self, event: EventKey, before: Option<EventKey>) {
        if let Some(before) = before {
            self.keys.remove(&before);
        }
        self.keys.insert(event);
    }

    /// The events, written.
    pub fn write(&self, context: &SyncContext<'_>, view: &RoomView<'_>) -> Result<Vec<Json>> {
        let mut events = Vec::with_capacity(self.keys.len());
        context.db.each_event(self.keys.iter().copied(), |row| {
            let mut event = Vec::with_capacity(row.json.len());
            client_format::push_state(&mut event, &view.erasure, &context.format, view.room, &row)?;
            events.push(client_format::written(event)?);
            Ok(())
        })?;
        Ok(events)
    }
}
