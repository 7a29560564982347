//! Event authorisation and state resolution against ruma's, on random rooms of versions 6 to 12.
//!
//! Everything is made from seeds by a generator of our own, so a failure names the seed that shows it again. The
//! environment variable `DOORSTEP_DIFFERENTIAL_ROOMS` says how many rooms of each version are made instead of the
//! few that suit every test run, `DOORSTEP_DIFFERENTIAL_SEED` where the seeds begin.
//!
//! Where the two disagree on purpose (we follow Synapse there, as the vectors show):
//!
//! - A single power level (`ban`, `invite` …) that is added or removed: ruma takes the default as the value that it
//!   had or gets, and refuses a sender below it. Synapse and we compare only what is written.
//! - Memberships of users of other servers in a room that does not federate: Synapse and we refuse them, ruma looks
//!   at the sender alone.

#![allow(clippy::print_stdout, reason = "how much was compared, for those who ask with --nocapture")]

mod theirs;
mod world;

use std::collections::HashMap;

use crate::common::random::number;
use doorstep::protocol::event_auth::{self, PowerLevel, PowerLevels};
use doorstep::protocol::room_version::{RoomVersion, all};
use doorstep::protocol::state_res;
use doorstep::protocol::{EventId, Pdu};
use serde_json::Value;

use self::theirs::TheirRules;
use self::world::{Draft, State, USERS, World, key, state_map};

/// Versions, rules and seeds to try: so many rooms of each version.
fn rooms(few: u64) -> impl Iterator<Item = (RoomVersion, TheirRules, u64)> {
    let (count, first) =
        (number("DOORSTEP_DIFFERENTIAL_ROOMS", few), number("DOORSTEP_DIFFERENTIAL_SEED", 1));
    all().iter().filter(|version| version.strict_canonical_json).flat_map(move |version| {
        (first..first + count).map(move |seed| (version, TheirRules::of(version), seed))
    })
}

#[derive(Debug, Default)]
struct Tally {
    allowed: usize,
    refused: usize,
    by_defaults: usize,
    by_federation: usize,
}

#[test]
fn ruma_and_we_allow_the_same_events() {
    let mut tally = Tally::default();
    for (version, rules, seed) in rooms(40) {
        let mut world = World::new(version, seed);
        let mut state = world.first_state();
        let mut tip = world.create.clone();
        settle(&mut world, &mut state, &mut tip);
        for step in 0..80 {
            let draft = world.draft(&state);
            let event = candidate(&mut world, &draft, &state, &tip);
            let context = || format!("version {} seed {seed} step {step}: {}", version.id, event.json_str());

            let lookup = |kind: &str, key: &str| state.get(&(kind.to_owned(), key.to_owned())).cloned();
            let allowed = event_auth::check(&event, version, &lookup);
            let theirs = theirs::check(&event, &rules, &lookup);

            let cited = check_auth_events(&world, &event);
            let their_cited = theirs::check_auth_events(&event, &world.events, &world.rejected, &rules);
            // Content too malformed to select auth events for fails early with ruma, late with us.
            let fails_anyway = allowed.is_err() && theirs.is_err();
            if cited.is_ok() != their_cited.is_ok() && !fails_anyway {
                panic!("auth events: {cited:?} {their_cited:?} {}", context());
            }
            match (&allowed, &theirs) {
                (Ok(()), Ok(())) => tally.allowed += 1,
                (Err(_), Err(_)) => tally.refused += 1,
                (Ok(()), Err(_)) if is_about_defaults(&event, version, &lookup) => tally.by_defaults += 1,
                (Err(e), Ok(())) if e.to_string().contains("does not federate") && is_foreign(&event) => {
                    tally.by_federation += 1;
                }
                _ => panic!("state: {allowed:?} {theirs:?} {}", context()),
            }
            let good = cited.is_ok() && allowed.is_ok();
            if !good && world.random.chance(20) {
                world.rejected.insert(event.event_id().clone());
            }
            if good && event.is_state() && world.random.chance(80) {
                state.insert(key(&event), event.clone());
                tip = event;
            }
        }
    }
    println!("{tally:?}");
    let total = tally.allowed + tally.refused;
    assert!(tally.allowed * 5 > total && tally.refused * 5 > total, "too one-sided to mean much: {tally:?}");
    assert!((tally.by_defaults + tally.by_federation) * 50 < total, "too many differences: {tally:?}");
}

/// The start that most rooms have: the creator joins, sets levels, opens the door; some others come in.
fn settle(world: &mut World, state: &mut State, tip: &mut Pdu) {
    let creator = USERS[0];
    let mut drafts = vec![Draft::member(creator, creator, "join")];
    if world.random.chance(85) {
        let content = world.usual_power_levels();
        drafts.push(state_event("m.room.power_levels", creator, content));
    }
    drafts.push(state_event("m.room.join_rules", creator, serde_json::json!({ "join_rule": "public" })));
    drafts.extend(USERS[1..5].iter().map(|user| Draft::member(user, user, "join")));
    for draft in drafts {
        advance(world, state, tip, &draft);
    }
}

fn state_event(event_type: &str, sender: &str, content: Value) -> Draft {
    let (event_type, sender) = (event_type.to_owned(), sender.to_owned());
    Draft { event_type, sender, state_key: Some(String::new()), content }
}

/// Makes an event and puts it into the state if it is allowed. Whether it was.
fn advance(world: &mut World, state: &mut State, tip: &mut Pdu, draft: &Draft) -> bool {
    let event = world.make(draft, state, tip);
    let allowed = check_auth_events(world, &event).is_ok()
        && event_auth::check(&event, world.version, &|kind, key| {
            state.get(&(kind.to_owned(), key.to_owned())).cloned()
        })
        .is_ok();
    if allowed {
        if event.is_state() {
            state.insert(key(&event), event.clone());
        }
        *tip = event;
    }
    allowed
}

/// The event, mostly citing what it should, now and then something else.
fn candidate(world: &mut World, draft: &Draft, state: &State, tip: &Pdu) -> Pdu {
    let mut auth = world.selection(draft, state);
    let mut others: Vec<EventId> = world.events.keys().cloned().collect();
    others.sort();
    let other = others[world.random.below(others.len())].clone();
    match world.random.below(12) {
        0 => {
            auth.pop();
        }
        1 => auth.push(other),
        2 if !auth.is_empty() => {
            let at = world.random.below(auth.len());
            auth[at] = other;
        }
        3 if !auth.is_empty() => auth.push(auth[0].clone()),
        _ => {}
    }
    let prev = match world.random.below(10) {
        0 => world.create.event_id().clone(),
        _ => tip.event_id().clone(),
    };
    world.make_citing(draft, &auth, &[prev])
}

fn check_auth_events(world: &World, event: &Pdu) -> Result<(), event_auth::AuthError> {
    let mut auth: Vec<Pdu> = event.auth_events().iter().map(|id| world.events[id].clone()).collect();
    auth.push(world.create.clone());
    event_auth::check_auth_events(event, &auth, &|id| world.rejected.contains(id), world.version)
}

/// The first of the differences above: a single level comes or goes, and its default is above the sender.
fn is_about_defaults(event: &Pdu, version: RoomVersion, state: event_auth::StateLookup<'_>) -> bool {
    let Some(current) =
        state("m.room.power_levels", "").filter(|_| event.event_type() == "m.room.power_levels")
    else {
        return false;
    };
    let level = PowerLevels::of(version, state).user(event.sender().as_str());
    let (old, new) = (current.content(), event.content());
    ["state_default", "ban", "redact", "kick", "users_default", "events_default", "invite"]
        .iter()
        .enumerate()
        .any(|(at, name)| {
            let default = if at < 4 { 50 } else { 0 };
            old.contains_key(*name) != new.contains_key(*name) && level < PowerLevel::Finite(default)
        })
}

/// The second: a membership of a user of another server than the creator's.
fn is_foreign(event: &Pdu) -> bool {
    event.event_type() == "m.room.member"
        && event.state_key().is_some_and(|user| !user.ends_with(":one.example"))
}

#[test]
fn ruma_and_we_resolve_to_the_same_state() {
    let (mut resolved, mut conflicts) = (0, 0);
    for (version, rules, seed) in rooms(30) {
        let mut world = World::new(version, seed.wrapping_mul(7919));
        let sets = forks(&mut world);
        let ours = state_res::resolve(version, &sets, &|id| world.events.get(id).cloned(), &|_| false)
            .expect("a state");
        let theirs = theirs::resolve(&sets, &world.events, &rules).expect("ruma's state");
        if ours != theirs {
            let differing: HashMap<_, _> = ours
                .iter()
                .chain(&theirs)
                .map(|(key, _)| (key, (ours.get(key), theirs.get(key))))
                .filter(|(_, (ours, theirs))| ours != theirs)
                .collect();
            panic!("version {} seed {seed}: {differing:#?}", version.id);
        }
        resolved += 1;
        conflicts += usize::from(sets.windows(2).any(|pair| pair[0] != pair[1]));
    }
    println!("{resolved} resolutions, {conflicts} with conflicts");
    assert!(conflicts * 2 > resolved, "too few conflicts to mean much");
}

/// The states of some branches of a room, now and then with holes, as a server gets them that was told lies.
fn forks(world: &mut World) -> Vec<state_res::StateMap> {
    let mut state = world.first_state();
    let mut tip = world.create.clone();
    settle(world, &mut state, &mut tip);
    for _ in 0..world.random.below(15) {
        let draft = world.draft(&state);
        advance(world, &mut state, &mut tip, &draft);
    }
    let mut branches = vec![(state, tip); 2 + world.random.below(3)];
    for _ in 0..20 + world.random.below(60) {
        let at = world.random.below(branches.len());
        let (mut state, mut tip) = branches[at].clone();
        let draft = world.draft(&state);
        advance(world, &mut state, &mut tip, &draft);
        branches[at] = (state, tip);
        if branches.len() < 6 && world.random.chance(4) {
            branches.push(branches[at].clone());
        }
    }
    let mut sets: Vec<_> = branches.iter().map(|(state, _)| state_map(state)).collect();
    if world.random.chance(15) {
        for set in &mut sets {
            set.retain(|(kind, _), _| &**kind == "m.room.create" || !world.random.chance(10));
        }
    }
    sets
}
