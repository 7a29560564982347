//! The check of an answer to `send_join`: whether what another server sent is a room that our join may enter. Pure:
//! each event's format, hash and signatures are checked elsewhere, and nothing is written here.
//!
//! A large room has few events that others rest on, its *auth events*, and tens of thousands that no other cites: the
//! members who never did more than join. The auth events are checked together, generation by generation; after that
//! any other event can be checked on its own, in any order, and forgotten.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::protocol::event_auth::{
    AuthChecker, check, check_against_auth_events, check_auth_events, is_auth_type,
};
use crate::protocol::json::read_object;
use crate::protocol::unchecked_event::UncheckedEvent;
use crate::protocol::{EventId, Pdu, RoomVersion, VerifiedPdu};

/// The events of an answer, by their index.
#[derive(Debug, Default)]
pub struct Classified {
    /// Those that others may rest on.
    pub auth_events: Vec<usize>,
    /// Those that no other may rest on.
    pub others: Vec<usize>,
}

/// What a state has once an event of the room rests on it: what is set can be replaced, and never unset. A state without them would
/// have the defaults in force, by which anybody may invite. Memberships are not among these: in rooms of old versions the resolution
/// of forks does lose some, and such a room can be come into all the same.
const NEVER_UNSET: [&str; 2] = ["m.room.power_levels", "m.room.join_rules"];

/// Tells the auth events from the others. By "auth events selection" a membership carries an event of its user, an
/// event about them, or one that names them as the one who lets somebody in. One that is cited beyond that makes the
/// citing event fail anyway (rule 3.2), so that a mistake here lets nothing in.
pub struct Classifier<'a> {
    classified: Classified,
    members: Vec<(usize, Cow<'a, str>)>,
    /// The users that events speak of: true once others than their one membership may rest on it.
    users: HashMap<Cow<'a, str>, bool>,
}

impl<'a> Classifier<'a> {
    /// Begins with the join that the room was asked to take.
    pub fn new(join: &Pdu) -> Self {
        let mut users = HashMap::new();
        users.insert(Cow::Owned(join.sender().as_str().to_owned()), true);
        users.extend(authoriser(join.content_raw()).map(|user| (Cow::Owned(user), true)));
        Self { classified: Classified::default(), members: Vec::new(), users }
    }

    /// Takes the next event, as it looks before any check.
    pub fn add(&mut self, index: usize, event: Option<UncheckedEvent<'a>>) {
        let Some(event) = event else {
            // Written oddly: to be on the safe side.
            self.classified.auth_events.push(index);
            return;
        };
        self.users.extend(event.authoriser().map(|user| (user, true)));
        let Some(user) = event.state_key.filter(|_| event.event_type == "m.room.member") else {
            self.users.insert(event.sender, true);
            // Memberships without a state key carry nothing.
            let carries = event.event_type != "m.room.member" && is_auth_type(&event.event_type);
            if carries { &mut self.classified.auth_events } else { &mut self.classified.others }.push(index);
            return;
        };
        if user != event.sender {
            self.users.insert(event.sender, true);
        }
        // The second membership of a user may rest on the first.
        self.users.entry(user.clone()).and_modify(|carries| *carries = true).or_insert(false);
        self.members.push((index, user));
    }

    /// All have been seen.
    pub fn finish(self) -> Classified {
        let Self { mut classified, members, users } = self;
        for (index, user) in members {
            let carries = users.get(&user).is_some_and(|carries| *carries);
            if carries { &mut classified.auth_events } else { &mut classified.others }.push(index);
        }
        classified
    }
}

fn authoriser(content: &str) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Content<'c> {
        #[serde(borrow)]
        join_authorised_via_users_server: Cow<'c, str>,
    }
    let content: Content<'_> = read_object(content.as_bytes()).ok()?;
    Some(content.join_authorised_via_users_server.into_owned())
}

/// The events of a room that others rest on, those that the authorisation rules allow.
pub struct AuthGraph {
    version: RoomVersion,
    create: VerifiedPdu,
    allowed: HashMap<EventId, VerifiedPdu>,
    in_state: HashSet<EventId>,
    /// Those that the others rest on.
    resting_on: HashSet<EventId>,
    dropped: usize,
}

impl AuthGraph {
    /// Checks them; `true` marks those of the state. Events that the authorisation rules do not allow, of another
    /// room, or that rest on events that are missing, are dropped; what remains must be a room (one create event, of
    /// the version that we were told) that allows our join. Errors: 400 `M_BAD_JSON`, 403 `M_FORBIDDEN`, in words for
    /// the log.
    pub fn check(join: &Pdu, events: Vec<(VerifiedPdu, bool)>) -> Result<Self> {
        let version = join.version();
        let mut in_state = HashSet::new();
        let mut by_id = HashMap::with_capacity(events.len());
        let mut strange = 0;
        for (event, of_state) in events {
            if event.room_id() != join.room_id() {
                strange += 1;
                continue;
            }
            if of_state && event.is_state() {
                in_state.insert(event.event_id().clone());
            }
            by_id.insert(event.event_id().clone(), event);
        }
        let create = find_create(&by_id, version)?;
        let allowed = allowed_events(&by_id, &create, version);
        // What is in the state is often in the auth chain too.
        let dropped = strange + by_id.len() - allowed.len();
        let resting_on = join.auth_events().iter().cloned().collect();
        let graph = Self { version, create, allowed, in_state, resting_on, dropped };
        graph.check_state()?;
        graph.check_join(join)?;
        Ok(graph)
    }

    /// How many events were dropped.
    pub fn dropped(&self) -> usize {
        self.dropped
    }

    /// Takes down on what these others rest.
    pub fn note_resting(&mut self, others: &[(VerifiedPdu, bool)]) {
        for (other, _) in others {
            for id in other.auth_events() {
                if !self.resting_on.contains(id) {
                    self.resting_on.insert(id.clone());
                }
            }
        }
    }

    /// They themselves, each with whether it is part of the state. What nothing of the state rests on is not among them:
    /// it would be there only to be believed later.
    pub fn events(&self) -> Vec<(VerifiedPdu, bool)> {
        let mut wanted: HashSet<&EventId> = self.in_state.iter().chain(&self.resting_on).collect();
        let mut next: Vec<&EventId> = wanted.iter().copied().collect();
        while let Some(id) = next.pop() {
            let cited = self.allowed.get(id).into_iter().flat_map(|event| event.auth_events());
            next.extend(cited.filter(|id| wanted.insert(id)));
        }
        let events = self.allowed.values().filter(|event| wanted.contains(event.event_id()));
        events.map(|event| (event.clone(), self.in_state.contains(event.event_id()))).collect()
    }

    /// Whether the room allows an event that nothing rests on.
    pub fn allow(&self, checker: &AuthChecker, event: &Pdu) -> bool {
        event.room_id() == self.create.room_id()
            && is_allowed(checker, event, &self.allowed, &self.create, self.version)
    }

    fn state(&self) -> impl Iterator<Item = &VerifiedPdu> {
        self.allowed.values().filter(|event| self.in_state.contains(event.event_id()))
    }

    /// The state has the create event, no two events for one type and state key (of the others the store sees it), and what the
    /// room had of [`NEVER_UNSET`] when others came to rest on it.
    fn check_state(&self) -> Result<()> {
        let mut seen = HashSet::new();
        for event in self.state() {
            if !seen.insert((event.event_type(), event.state_key().unwrap_or_default())) {
                return Err(Error::bad_json("a state with two events for one type and state key"));
            }
        }
        if !self.in_state.contains(self.create.event_id()) {
            return Err(Error::bad_json("a state without m.room.create"));
        }
        let is_missing = |event: &&VerifiedPdu| {
            let event_type = event.event_type();
            NEVER_UNSET.iter().any(|never| event.is(never, "")) && !seen.contains(&(event_type, ""))
        };
        if let Some(event) = self.allowed.values().find(is_missing) {
            let event_type = event.event_type();
            return Err(Error::bad_json(format!("a state without the {event_type} that the room rests on")));
        }
        Ok(())
    }

    /// Whether the join is allowed by what it rests on and by the state that it enters.
    fn check_join(&self, join: &Pdu) -> Result<()> {
        let auth = auth_of(join, |id| self.allowed.get(id), &self.create, self.version);
        check_auth_events(join, &auth, &|_| false, self.version)?;
        check_against_auth_events(join, &auth, self.version)?;
        let lookup: HashMap<(&str, &str), &VerifiedPdu> =
            self.state().map(|e| ((e.event_type(), e.state_key().unwrap_or_default()), e)).collect();
        check(join, self.version, &|kind, key| lookup.get(&(kind, key)).map(|e| Pdu::clone(e)))?;
        Ok(())
    }
}
/// The room's create event, of the version that the template was made for.
fn find_create(events: &HashMap<EventId, VerifiedPdu>, version: RoomVersion) -> Result<VerifiedPdu> {
    let mut creates = events.values().filter(|event| event.is("m.room.create", ""));
    let create = creates.next().ok_or_else(|| Error::bad_json("a room without m.room.create"))?;
    if creates.next().is_some() {
        return Err(Error::bad_json("a room with two m.room.create"));
    }
    let said = create.content_str("room_version");
    // Versions 1 and 2 sign and hash alike, and a template without a version may be either.
    if said.as_deref().unwrap_or("1") != version.id {
        return Err(Error::bad_json("a room of another version than its template"));
    }
    Ok(create.clone())
}

/// Checks every event against those it rests on, generation by generation: all events whose auth events are judged can
/// be judged at once. Returns those that are allowed.
fn allowed_events(
    events: &HashMap<EventId, VerifiedPdu>,
    create: &Pdu,
    version: RoomVersion,
) -> HashMap<EventId, VerifiedPdu> {
    let mut resting_on: HashMap<&EventId, Vec<&VerifiedPdu>> = HashMap::new();
    let mut unjudged: HashMap<&EventId, usize> = HashMap::with_capacity(events.len());
    let mut generation: Vec<&VerifiedPdu> = Vec::new();
    for event in events.values() {
        let waits_for: HashSet<&EventId> = event.auth_events().iter().collect();
        if waits_for.is_empty() {
            generation.push(event);
        }
        unjudged.insert(event.event_id(), waits_for.len());
        for id in waits_for {
            resting_on.entry(id).or_default().push(event);
        }
    }
    let mut allowed: HashMap<EventId, VerifiedPdu> = HashMap::with_capacity(events.len());
    while !generation.is_empty() {
        // Each thread remembers the power levels that it has read, which most events of a generation share.
        let verdicts: Vec<bool> = generation
            .par_iter()
            .map_init(
                || AuthChecker::new(version),
                |checker, event| is_allowed(checker, event, &allowed, create, version),
            )
            .collect();
        let mut following = Vec::new();
        for (event, good) in generation.into_iter().zip(verdicts) {
            // What rests on a rejected event is rejected (rule 3.3): it is never taken up.
            if !good {
                continue;
            }
            allowed.insert(event.event_id().clone(), event.clone());
            for next in resting_on.get(event.event_id()).into_iter().flatten() {
                let Some(left) = unjudged.get_mut(next.event_id()) else { continue };
                *left -= 1;
                if *left == 0 {
                    following.push(*next);
                }
            }
        }
        generation = following;
    }
    allowed
}

fn is_allowed(
    checker: &AuthChecker,
    event: &Pdu,
    allowed: &HashMap<EventId, VerifiedPdu>,
    create: &Pdu,
    version: RoomVersion,
) -> bool {
    let auth = auth_of(event, |id| allowed.get(id), create, version);
    let find = |kind: &str, key: &str| auth.iter().find(|e| e.is(kind, key)).cloned();
    let verdict =
        check_auth_events(event, &auth, &|_| false, version).and_then(|()| checker.check(event, &find));
    if let Err(why) = &verdict {
        log::debug!("{} is not allowed: {why}", event.event_id());
    }
    verdict.is_ok()
}

/// The events that an event rests on; from room version 12 on the create event is not named and always among them.
fn auth_of<'e>(
    event: &Pdu,
    find: impl Fn(&EventId) -> Option<&'e VerifiedPdu>,
    create: &Pdu,
    version: RoomVersion,
) -> Vec<Pdu> {
    let mut auth: Vec<Pdu> =
        event.auth_events().iter().filter_map(|id| find(id).map(|e| Pdu::clone(e))).collect();
    if version.room_id_is_create_hash && event.event_id() != create.event_id() {
        auth.push(create.clone());
    }
    auth
}
