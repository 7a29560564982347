//! Event authorisation on rooms out of bytes.

use doorstep::protocol::event_auth::{
    AuthChecker, PowerLevelKey, PowerLevels, auth_types, check, check_against_auth_events, check_auth_events,
};
use doorstep::protocol::room_version::RoomVersion;
use doorstep::protocol::{EventId, Pdu};

use super::room::{Room, State, USERS, key};

/// A small room is judged often, and no rule looks at more than a few events.
const MOST_EVENTS: usize = 24;

/// Each event is judged every way; some become the state of those that follow, allowed or not.
pub fn event_auth(data: &[u8]) {
    let Some(mut room) = Room::new(data) else { return };
    let mut state = room.first_state();
    let version = room.version;
    let judge = AuthChecker::new(version);
    levels(&state, version);
    for _ in 0..MOST_EVENTS {
        if room.source.is_empty() {
            break;
        }
        let Some(event) = room.event(&state) else { continue };
        let lookup =
            |kind: &str, state_key: &str| state.get(&(kind.to_owned(), state_key.to_owned())).cloned();
        let verdict = check(&event, version, &lookup);
        assert_eq!(judge.check(&event, &lookup), verdict, "a judge who remembers and one who does not");

        let rejected = |id: &EventId| room.rejected.contains(id);
        let mut auth: Vec<Pdu> =
            event.auth_events().iter().filter_map(|id| room.events.get(id).cloned()).collect();
        auth.push(room.create.clone());
        let cited = check_auth_events(&event, &auth, &rejected, version);
        auth.reverse();
        assert_eq!(check_auth_events(&event, &auth, &rejected, version), cited, "the order means nothing");
        let by_cited = check_against_auth_events(&event, &auth, version);
        auth.reverse();
        if cited.is_ok() {
            assert_eq!(
                check_against_auth_events(&event, &auth, version),
                by_cited,
                "the order means nothing"
            );
        }

        let wanted = auth_types(
            event.event_type(),
            event.sender().as_str(),
            event.state_key(),
            &event.content(),
            version,
        );
        for (at, key) in wanted.iter().enumerate() {
            assert!(!wanted[..at].contains(key), "{key:?} twice");
        }
        // Those that cite wrongly never get this far with a server; states that no rules led to do.
        if event.is_state() && (verdict.is_ok() || room.source.chance(60)) {
            let gives_power = matches!(event.event_type(), "m.room.create" | "m.room.power_levels");
            state.insert(key(&event), event);
            if gives_power {
                levels(&state, version);
            }
        }
    }
}

/// What this state lets everybody do.
fn levels(state: &State, version: RoomVersion) {
    let lookup = |kind: &str, state_key: &str| state.get(&(kind.to_owned(), state_key.to_owned())).cloned();
    let levels = PowerLevels::of(version, &lookup);
    for user in USERS {
        let _ = levels.user(user).reaches(levels.named(PowerLevelKey::Ban));
        let _ = (levels.may_invite(user), levels.may_redact(user), levels.notification("room"));
        for target in USERS {
            let _ = levels.may_kick(user, target);
        }
        let _ = levels.required("m.room.topic", true);
    }
}
