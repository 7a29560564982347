use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::OnceLock;

use serde_json::value::RawValue;

use super::RemoteState::{Closed, Invited, Joining, Knocked, Knocking, Leaving};
use super::*;
use crate::protocol::test_events::{member, pdu, server, version};
use crate::protocol::{Millis, RoomId};

const CAROL: &str = "@carol:a.example";
const HOST: &str = "@host:b.example";
const OTHER: &str = "@other:b.example";
/// Of servers that are neither the host's nor the one that is asked.
const MEMBER: &str = "@member:e.example";
const STRANGER: &str = "@stranger:f.example";
const NOW: Millis = 1_000_000;

thread_local! {
    static MADE: Cell<i64> = const { Cell::new(1) };
}

fn carol() -> UserId {
    UserId::parse(CAROL).expect("a user id")
}

/// A member event of carol's of this depth that rests on these others. No two are the same.
fn event(sender: &str, membership: &str, depth: i64, rests_on: &[&Pdu]) -> Pdu {
    let auth: Vec<&str> = rests_on.iter().map(|e| e.event_id().as_str()).collect();
    let mut event = member(CAROL, membership);
    event["sender"] = sender.into();
    event["depth"] = depth.into();
    event["auth_events"] = auth.into();
    event["origin_server_ts"] = MADE.replace(MADE.get() + 1).into();
    pdu(version("11"), &event, &[])
}

fn shown() -> Vec<Box<RawValue>> {
    vec![RawValue::from_string("{\"type\":\"m.room.name\"}".to_owned()).expect("JSON")]
}

/// A fact, with what the tests want to know of it.
#[derive(Clone)]
struct Case {
    name: &'static str,
    fact: Fact,
    /// It answers a request of this server, about another event than the row's.
    late: bool,
}

fn case(name: &'static str, fact: Fact) -> Case {
    Case { name, fact, late: false }
}

/// Everything that can happen to a row. The depth of what is made later is greater.
fn cases(row: Option<&RemoteMembership>) -> Vec<Case> {
    let told = row.and_then(|row| row.event.clone());
    let previous = row.and_then(|row| row.previous.clone());
    let pending = row.and_then(|row| row.pending.clone());
    let depth = told.as_ref().map_or(5, |event| event.depth() + 1);
    let mut cases = Vec::new();
    cases.extend(wishes(row, depth));
    cases.extend(news(told.as_ref(), previous.as_ref(), pending.as_ref(), depth));
    let stranger = event(OTHER, "leave", 3, &[]);
    let leave = event(CAROL, "leave", depth, &[]);
    for (late, told, previous, pending) in [
        (false, told, previous, pending),
        (true, Some(stranger.clone()), Some(stranger.clone()), Some(stranger.clone())),
    ] {
        let id = |event: &Option<Pdu>| event.as_ref().map_or(stranger.event_id(), Pdu::event_id).clone();
        let about = answers(&id(&told), &id(&previous), &id(&pending), &leave);
        cases.extend(about.into_iter().map(|(name, fact)| Case { name, fact, late }));
    }
    cases
}

/// What the local user and this server do.
fn wishes(row: Option<&RemoteMembership>, depth: i64) -> Vec<Case> {
    let via = || vec![server("b.example")];
    let removal = row.and_then(|row| row.event.clone());
    let prepared = |membership: &str, before: PriorMembership| {
        let rests_on: Vec<&Pdu> = removal.iter().filter(|_| before.state.is_some()).collect();
        Prepared { event: event(CAROL, membership, depth, &rests_on), before, via: via() }
    };
    let join = |before, may_be_in| Fact::UserJoins { join: prepared("join", before), may_be_in };
    vec![
        case("knocks", Fact::UserKnocks(prepared("knock", PriorMembership::of(row)))),
        case("knocks late", Fact::UserKnocks(prepared("knock", PriorMembership::default()))),
        case("joins", join(PriorMembership::of(row), false)),
        case("joins again", join(PriorMembership::of(row), true)),
        case("joins late", join(PriorMembership::default(), false)),
        case("leaves", Fact::UserLeaves(event(CAROL, "leave", depth, &[]))),
        case("forgets", Fact::UserForgets),
        case("doubted", Fact::Doubted),
        case("may go", Fact::LeaveMayGoThrough(server("d.example"))),
        case("resident", Fact::NowResident { lacks_leave: false }),
        case("in room", Fact::AskedInRoom),
    ]
}

/// What the room says by itself.
fn news(told: Option<&Pdu>, previous: Option<&Pdu>, pending: Option<&Pdu>, depth: i64) -> Vec<Case> {
    let invite = |rests_on: Option<&Pdu>, stripped_state: Vec<Box<RawValue>>| Fact::InviteArrives {
        invite: event(HOST, "invite", depth, rests_on.as_slice()),
        invitee: carol(),
        stripped_state,
        from: server("c.example"),
        left: None,
    };
    let removal_by = |sender: &str, membership: &str, depth: i64, rests_on: Option<&Pdu>| {
        let removal = event(sender, membership, depth, rests_on.as_slice());
        Fact::Removed { from: removal.sender().server(), removal }
    };
    let removal =
        |membership: &str, depth: i64, rests_on: Option<&Pdu>| removal_by(OTHER, membership, depth, rests_on);
    vec![
        case("invite", invite(None, shown())),
        case("invite after", invite(pending.or(told), Vec::new())),
        case("invite before", invite(previous, shown())),
        case("kicked", removal("leave", depth, told)),
        case("banned", removal("ban", depth, told)),
        case("kicked at once", removal("leave", depth, previous)),
        case("banned at once", removal("ban", depth, previous)),
        case("kicked before", removal("leave", 1, None)),
        case("kicked by a member", removal_by(MEMBER, "leave", depth, told)),
        case("banned by a member", removal_by(MEMBER, "ban", depth, told)),
        case("kicked by a stranger", removal_by(STRANGER, "leave", depth, told)),
        case(
            "invited by a stranger",
            Fact::InviteArrives {
                invite: event(STRANGER, "invite", depth, &[]),
                invitee: carol(),
                stripped_state: shown(),
                from: server("f.example"),
                left: None,
            },
        ),
    ]
}

/// What other servers answer, about these events.
fn answers(told: &EventId, previous: &EventId, pending: &EventId, leave: &Pdu) -> Vec<(&'static str, Fact)> {
    let leave = || leave.clone();
    let taken = |knock: &EventId, stripped_state| Fact::KnockTaken {
        knock: knock.clone(),
        by: server("b.example"),
        stripped_state,
    };
    let looked_up = |by: &str, answer| {
        let by = Some(server(by));
        Fact::LookedUp { about: told.clone(), answer, by, leave: leave() }
    };
    let failed = |how| Fact::JoinFailed { join: pending.clone(), how, leave: leave() };
    let answered = |answer| Fact::LeaveAnswered { told: told.clone(), answer };
    vec![
        ("taken", taken(told, shown())),
        ("taken, bare", taken(told, Vec::new())),
        ("taken, withdrawn", taken(previous, shown())),
        ("knock refused", Fact::KnockRefused { knock: told.clone(), leave: leave() }),
        ("knock unanswered", Fact::KnockUnanswered { knock: told.clone() }),
        ("stands", looked_up("b.example", RoomAnswer::Stands)),
        ("void", looked_up("b.example", RoomAnswer::Void(None))),
        ("void elsewhere", looked_up("d.example", RoomAnswer::Void(None))),
        ("void, knock", looked_up("b.example", RoomAnswer::Void(Some(Membership::Knock)))),
        ("look unanswered", looked_up("b.example", RoomAnswer::Unanswered)),
        ("join refused", failed(JoinFailure::Refused)),
        ("join unanswered", failed(JoinFailure::Unanswered)),
        ("join useless", failed(JoinFailure::Taken(vec![server("c.example")]))),
        ("leave signed", Fact::LeaveSigned { told: told.clone(), leave: leave(), to: server("c.example") }),
        ("leave taken", answered(LeaveAnswer::Taken)),
        ("leave refused", answered(LeaveAnswer::Refused)),
        ("leave unanswered", answered(LeaveAnswer::Unanswered)),
        ("left in room", answered(LeaveAnswer::InRoom)),
    ]
}

/// What the store makes of an effect.
fn stored(before: Option<&RemoteMembership>, effect: Effect) -> Option<RemoteMembership> {
    match effect {
        Effect::Unchanged => before.cloned(),
        Effect::Delete(_) => None,
        Effect::Save { row, tell, .. } => {
            let mut fields = row.0;
            fields.stream += i64::from(tell);
            Some(RemoteMembership(fields))
        }
    }
}

/// The row after these facts in turn, from no row.
fn after(names: &[&str]) -> Option<RemoteMembership> {
    names.iter().fold(None, |row, name| {
        let found = cases(row.as_ref()).into_iter().find(|case| case.name == *name && !case.late);
        let fact = found.unwrap_or_else(|| panic!("no fact {name}")).fact;
        let effect = apply(row.clone(), fact, NOW).unwrap_or_else(|e| panic!("{names:?}: {name}: {e}"));
        stored(row.as_ref(), effect)
    })
}

/// What a row is like, apart from which events and servers exactly it has. Two rows of one shape go the same ways.
fn shape(row: Option<&RemoteMembership>) -> String {
    let Some(row) = row else { return "none".to_owned() };
    let kind = |event: &Option<Pdu>| {
        event.as_ref().map_or("-".to_owned(), |event| {
            let own = if event.sender() == &row.user_id { "own " } else { "" };
            format!("{own}{}", event.membership().map_or("?", Membership::as_str))
        })
    };
    let previous = kind(&row.previous);
    let previous = if matches!(previous.as_str(), "own knock" | "invite") { &previous } else { "-" };
    // Where counting leads elsewhere.
    let attempts = match (row.state, row.attempts) {
        (_, 0) => 0,
        (_, many) if many >= ATTEMPTS_MAX - 2 => many,
        (Invited | Knocked, few) => few.min(UNANSWERED_LOOKS_MAX),
        (Joining, few) if row.covered.is_some() => few,
        (Leaving, few) => few.min(5) / 5 * 4 + 1,
        _ => 1,
    };
    format!(
        "{} {} < {previous}, covers {}, {} pending, {} in doubt, {attempts} attempts, due {}, unheard {}, forgotten {}, perhaps in {}, shown {} {}",
        row.state,
        kind(&row.event),
        kind(&row.covered.as_ref().map(|covered| covered.event.clone())),
        kind(&row.pending),
        kind(&row.removal),
        row.due_ms.is_some(),
        row.host_unaware,
        row.forgotten,
        row.may_be_in,
        !row.stripped_state.is_empty(),
        row.stream > 0,
    )
}

/// A row that can come to be, with everything that can happen to it: made once, since an event takes its time to make.
struct KnownRow {
    row: Option<RemoteMembership>,
    cases: Vec<Case>,
}

/// Every shape of row that can come to be, by trying everything.
fn every_row() -> &'static BTreeMap<String, KnownRow> {
    static ROWS: OnceLock<BTreeMap<String, KnownRow>> = OnceLock::new();
    ROWS.get_or_init(find_every_row)
}

fn find_every_row() -> BTreeMap<String, KnownRow> {
    let behind =
        |event: Pdu| RemoteMembership::left_behind(event, &carol(), shown(), vec![server("b.example")]);
    let mut rows = BTreeMap::new();
    let mut todo = VecDeque::from([
        None,
        behind(event(HOST, "invite", 5, &[])),
        behind(event(CAROL, "knock", 5, &[])),
        // Nobody tries everything sixty times.
        after(&["knocks"]).map(|row| tried(row, ATTEMPTS_MAX - 2)),
        after(&["joins"]).map(|row| tried(row, ATTEMPTS_MAX - 2)),
        after(&["invite", "leaves"]).map(|row| tried(row, ATTEMPTS_MAX - 2)),
    ]);
    while let Some(row) = todo.pop_front() {
        let shape = shape(row.as_ref());
        if rows.contains_key(&shape) {
            continue;
        }
        let cases = cases(row.as_ref());
        for case in &cases {
            if let Ok(effect) = apply(row.clone(), case.fact.clone(), NOW) {
                todo.push_back(stored(row.as_ref(), effect));
            }
        }
        rows.insert(shape, KnownRow { row, cases });
        assert!(rows.len() < 4_000, "what is counted has an end");
    }
    rows
}

fn tried(row: RemoteMembership, attempts: u32) -> RemoteMembership {
    RemoteMembership(Fields { attempts, ..row.0 })
}

/// Where a fact leads: `-` no row, `=` unchanged (left out of the table), `!` refused; `*`: clients are told.
fn cell(row: Option<&RemoteMembership>, fact: Fact) -> String {
    match apply(row.cloned(), fact, NOW) {
        Err(_) => "!".to_owned(),
        Ok(Effect::Unchanged) => "=".to_owned(),
        Ok(Effect::Delete(_)) => "-".to_owned(),
        Ok(Effect::Save { row, tell, .. }) => format!("{}{}", row.state, if tell { "*" } else { "" }),
    }
}

/// How each row of the table comes to be.
const ROWS: [(&str, &[&str]); 32] = [
    ("none", &[]),
    ("knocking", &["knocks"]),
    ("knocking again", &["knocks", "taken", "knocks"]),
    ("knocked", &["knocks", "taken"]),
    ("invited", &["invite"]),
    ("invited, doubted", &["invite", "doubted"]),
    ("invited after a knock, doubted", &["knocks", "taken", "invite", "doubted"]),
    ("joining", &["joins"]),
    ("joining, invited", &["invite", "joins"]),
    ("joining, knocked", &["knocks", "taken", "joins"]),
    ("joining, left before", &["invite", "leaves", "leave taken", "joins"]),
    ("joining, forgotten", &["invite", "leaves", "leave taken", "forgets", "joins"]),
    ("joining, perhaps in", &["invite", "joins again"]),
    ("leaving", &["knocks", "leaves"]),
    ("leaving, handed in", &["knocks", "leaves", "leave signed"]),
    ("leaving, a join on its way", &["invite", "joins", "leaves"]),
    ("closed", &["knocks", "leaves", "leave signed", "leave taken"]),
    ("closed, a join on its way", &["invite", "joins", "kicked"]),
    ("closed by a ban", &["knocks", "taken", "banned"]),
    ("closed by others, unheard", &["knocks", "taken", "kicked by a member", "void elsewhere"]),
    ("leaving after others, unheard", &["knocks", "taken", "kicked by a member", "void elsewhere", "leaves"]),
    (
        "leaving after others, handed in",
        &["invite", "kicked by a member", "void elsewhere", "leaves", "leave signed"],
    ),
    ("leaving after a ban, unheard", &["invite", "banned by a member", "void elsewhere", "leaves"]),
    ("forgotten", &["invite", "kicked", "forgets"]),
    ("knocking, perhaps refused", &["knocks", "kicked"]),
    ("knocked, perhaps refused", &["knocks", "taken", "kicked by a member"]),
    ("invited, perhaps banned", &["invite", "banned by a member"]),
    ("joining, perhaps removed", &["invite", "joins", "kicked by a member"]),
    ("invited by a stranger, knocked", &["knocks", "taken", "invited by a stranger"]),
    ("invited by a stranger, invited", &["invite", "invited by a stranger"]),
    ("joining by a stranger's invite, knocked", &["knocks", "taken", "invited by a stranger", "joins"]),
    ("leaving a stranger's invite, knocked", &["knocks", "taken", "invited by a stranger", "leaves"]),
];

const TABLE: &str = include_str!("table.txt");

#[test]
fn every_cell_of_the_table_is_as_written() {
    let mut table = String::new();
    for (name, way) in ROWS {
        let row = after(way);
        table.push_str(&format!("{name}\n"));
        let mut ways: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for case in cases(row.as_ref()).into_iter().filter(|case| !case.late) {
            ways.entry(cell(row.as_ref(), case.fact)).or_default().push(case.name);
        }
        for (to, facts) in ways.into_iter().filter(|(to, _)| to != "=") {
            table.push_str(&format!("    {to}: {}\n", facts.join(" | ")));
        }
    }
    assert!(table == TABLE, "the table is now:\n{table}<<<");
    assert!(
        RemoteState::ALL
            .iter()
            .all(|state| ROWS.iter().any(|(_, way)| after(way).is_some_and(|row| row.state == *state)))
    );
}

#[test]
fn every_row_that_can_come_to_be_is_whole() {
    let rows = every_row();
    assert!(rows.len() > 200, "{}", rows.len());
    for (shape, row) in rows.iter().filter_map(|(shape, known)| Some((shape, known.row.as_ref()?))) {
        let is = |event: &Option<Pdu>, allowed: &[Option<Membership>]| {
            allowed.contains(&event.as_ref().map(|event| event.membership().expect("a membership")))
        };
        let [join, knock, invite, leave, ban] =
            ["join", "knock", "invite", "leave", "ban"].map(Membership::parse);
        let (told, pending) = match row.state {
            Knocking | Knocked => (&[knock][..], &[None][..]),
            // A join that was not answered before somebody else ended it, and invited anew.
            Invited => (&[invite][..], &[None, join][..]),
            Joining => (&[None, knock, invite, leave, ban][..], &[join][..]),
            // One that somebody else had ended before.
            Leaving if row.is_ended_by_others() => (&[leave, ban][..], &[None, leave][..]),
            Leaving => (&[leave][..], &[None, join, leave][..]),
            // A join that somebody else ended before it was answered.
            Closed if row.is_ended_by_others() => (&[leave, ban][..], &[None, join, leave][..]),
            Closed => (&[leave][..], &[None, leave][..]),
        };
        assert!(is(&row.event, told) && is(&row.pending, pending), "{shape}");
        assert_eq!(row.ended_ms.is_some(), row.state == Closed, "{shape}");
        // What is owed has a time, until it is given up.
        match row.state {
            Closed => assert_eq!(row.due_ms, None, "{shape}"),
            Joining | Leaving => assert!(row.due_ms.is_some(), "{shape}"),
            Knocking => assert_eq!(row.due_ms.is_none(), row.attempts >= ATTEMPTS_MAX, "{shape}"),
            Invited | Knocked => {}
        }
        let is_asked = row.due_ms.is_some();
        let may_be_in_doubt =
            matches!(row.state, Knocking | Knocked | Invited if is_asked) || row.state == Joining;
        assert!(row.removal.is_none() || may_be_in_doubt, "{shape}");
        let covered = row.covered.as_ref().map(|covered| covered.event.clone());
        let may_cover = matches!(row.state, Invited | Joining | Leaving);
        assert!(is(&covered, &[None, knock, invite]) && (may_cover || covered.is_none()), "{shape}");
        assert!(!row.host_unaware || (row.state == Closed && row.is_ended_by_others()), "{shape}");
        assert!(row.unaware_host().is_none() || row.state == Leaving, "{shape}");
        assert!(!row.may_be_in || matches!(row.state, Joining | Leaving), "{shape}");
        assert!(!row.forgotten || row.state.is_over() || row.state == Joining, "{shape}");
        assert!(row.stripped_state.is_empty() || !row.state.is_over(), "{shape}");
        assert_eq!(row.inviter().is_some(), row.state == Invited, "{shape}");
        let is_link = is(&row.prior().cloned(), &[knock]) && is(&row.event, &[invite]);
        assert_eq!(row.answers().is_some(), is_link, "{shape}");
    }
}

#[test]
fn clients_are_told_whatever_shows_and_did_not() {
    for (shape, KnownRow { row, cases }) in every_row() {
        for case in cases.iter().cloned() {
            let Ok(effect) = apply(row.clone(), case.fact, NOW) else { continue };
            let is_told = matches!(effect, Effect::Save { tell: true, .. });
            let seen = |row: Option<&RemoteMembership>| {
                row.and_then(|row| Some((row.section()?, row.told().cloned(), row.stripped_state.len())))
            };
            let (before, now) = (seen(row.as_ref()), seen(effect.saved()));
            let is_new = effect.saved().is_some_and(|row| row.stream == 0);
            // Another invite of who invited already, that shows nothing else, is no news.
            let repeats = !is_new && row.as_ref().zip(effect.saved()).is_some_and(|(b, now)| now.repeats(b));
            match effect {
                Effect::Unchanged => {}
                // The room's own state tells of what goes, unless nobody was told of it.
                Effect::Delete(row) => assert!(
                    row.stream == 0
                        || row.section().is_none()
                        || matches!(case.name, "resident" | "in room" | "left in room"),
                    "{} of {shape}",
                    case.name
                ),
                Effect::Save { .. } => {
                    assert_eq!(
                        is_told,
                        now.is_some() && (now != before || is_new) && !repeats,
                        "{} of {shape}",
                        case.name
                    );
                }
            }
        }
    }
}

#[test]
fn from_every_row_both_the_end_and_residence_can_be_reached() {
    let rows = every_row();
    let mut into: BTreeMap<String, BTreeSet<&String>> = BTreeMap::new();
    let mut ends: [BTreeSet<String>; 2] = Default::default();
    for (from, KnownRow { row, cases }) in rows {
        if row.as_ref().is_some_and(|row| row.state == Closed) {
            ends[0].insert(from.clone());
        }
        for case in cases.iter().cloned() {
            let Ok(effect) = apply(row.clone(), case.fact, NOW) else { continue };
            if matches!(effect, Effect::Delete(_)) && matches!(case.name, "resident" | "left in room") {
                ends[1].insert(from.clone());
            }
            into.entry(shape(stored(row.as_ref(), effect).as_ref())).or_default().insert(from);
        }
        // Who has nothing to do with a room has no row when we come in.
        ends[1].extend(row.is_none().then(|| from.clone()));
    }
    for (end, mut todo) in ends.map(|end| (end.clone(), end.into_iter().collect::<Vec<_>>())) {
        let mut reach = end;
        while let Some(at) = todo.pop() {
            for from in into.get(&at).into_iter().flatten() {
                if reach.insert((*from).clone()) {
                    todo.push((*from).clone());
                }
            }
        }
        let lost: Vec<_> = rows.keys().filter(|shape| !reach.contains(*shape)).collect();
        assert!(lost.is_empty(), "{lost:?}");
    }
}

#[test]
fn an_answer_that_nobody_waits_for_changes_nothing() {
    for (shape, KnownRow { row, cases }) in every_row() {
        let state = row.as_ref().map(|row| row.state);
        for case in cases.iter().cloned() {
            let waits = match &case.fact {
                Fact::KnockTaken { .. } => matches!(state, Some(Knocking | Leaving | Closed)),
                Fact::KnockRefused { .. } | Fact::KnockUnanswered { .. } => state == Some(Knocking),
                Fact::Doubted => matches!(state, Some(Invited | Knocked)),
                Fact::LookedUp { .. } => {
                    matches!(state, Some(Invited | Knocked))
                        && row.as_ref().is_some_and(|row| row.due_ms.is_some())
                }
                Fact::JoinFailed { .. } => {
                    state == Some(Joining) || row.as_ref().is_some_and(|row| row.has_join_on_its_way())
                }
                Fact::LeaveSigned { .. } | Fact::LeaveAnswered { .. } | Fact::LeaveMayGoThrough(_) => {
                    state == Some(Leaving)
                }
                _ => true,
            };
            let name = case.name;
            if case.late || !waits {
                let effect = apply(row.clone(), case.fact, NOW).expect("answers are never refused");
                assert!(matches!(effect, Effect::Unchanged), "{name} of {shape}");
            }
        }
    }
}

#[test]
fn a_fact_that_comes_twice_does_no_more_than_once() {
    for (shape, KnownRow { row, cases }) in every_row() {
        for case in cases.iter().cloned() {
            // The second of these is another answer, and counts.
            let counts = case.name.starts_with("void")
                || matches!(case.name, "stands" | "look unanswered" | "leave refused");
            let Ok(once) = apply(row.clone(), case.fact.clone(), NOW) else { continue };
            if counts || case.name.ends_with("unanswered") {
                continue;
            }
            let once = stored(row.as_ref(), once);
            let twice = apply(once.clone(), case.fact, NOW);
            let state =
                |row: &Option<RemoteMembership>| row.as_ref().map(|row| (row.state, row.told().cloned()));
            let same = twice.is_ok_and(|twice| state(&stored(once.as_ref(), twice)) == state(&once));
            let is_nothing_left = case.name == "forgets" && once.is_none();
            assert!(same || is_nothing_left, "{} of {shape}", case.name);
        }
    }
}

#[test]
fn only_what_our_own_user_asks_for_can_be_refused_and_an_invite_that_a_leave_overtook() {
    for (shape, KnownRow { row, cases }) in every_row() {
        for case in cases.iter().cloned() {
            let (name, fact) = (case.name, case.fact);
            let may_be = match &fact {
                Fact::UserKnocks(_) | Fact::UserJoins { .. } | Fact::UserLeaves(_) | Fact::UserForgets => {
                    true
                }
                Fact::InviteArrives { .. } => row.as_ref().is_some_and(|row| row.state.is_over()),
                _ => false,
            };
            assert!(may_be || apply(row.clone(), fact, NOW).is_ok(), "{name} of {shape}");
        }
    }
    assert_eq!(Error::from(Refusal::AlreadyInvited).status(), 403);
    assert_eq!(Error::from(Refusal::NotLeft).status(), 400);
}

#[test]
fn what_was_prepared_before_the_user_left_or_was_removed_is_refused_unless_it_rests_on_that() {
    let refused = |way: &[&str], before: &[&str], rests: bool| {
        let (row, before) = (after(way), PriorMembership::of(after(before).as_ref()));
        let removal = row.as_ref().and_then(|row| row.event.clone());
        let rests_on: Vec<&Pdu> = removal.iter().filter(|_| rests).collect();
        let join = Prepared { event: event(CAROL, "join", 9, &rests_on), before, via: Vec::new() };
        apply(row, Fact::UserJoins { join, may_be_in: false }, NOW).err()
    };
    assert_eq!(refused(&["invite", "leaves"], &["invite"], false), Some(Refusal::LeftMeanwhile));
    assert_eq!(refused(&["invite", "kicked"], &["invite"], false), Some(Refusal::RemovedMeanwhile));
    assert_eq!(refused(&["invite", "kicked"], &["invite"], true), None);
    assert_eq!(refused(&["invite", "leaves"], &["invite", "leaves"], false), None);
}

#[test]
fn who_was_removed_and_leaves_tells_the_host_that_has_not_heard_of_it_and_its_word_is_the_last() {
    for was in [&["invite"][..], &["knocks", "taken"]] {
        let then =
            |more: &[&'static str]| after(&[was, &["kicked by a member"], more].concat()).expect("a row");
        let (heard, unheard) = (then(&["void"]), then(&["void elsewhere"]));
        assert!(!heard.host_unaware && heard.is_left() && unheard.host_unaware && !unheard.is_left());
        let leaving = then(&["void elsewhere", "leaves"]);
        assert_eq!((leaving.unaware_host(), leaving.is_left()), (Some(server("b.example")), true));
        assert_eq!(leaving.event.as_ref().map(|removal| removal.sender().as_str()), Some(MEMBER));
        // Also if another server was handed it.
        let handed_in = then(&["void elsewhere", "leaves", "leave signed"]);
        assert_eq!(
            (handed_in.unaware_host(), handed_in.via[1].as_str()),
            (Some(server("b.example")), "c.example")
        );
        let refused = then(&["void elsewhere", "leaves", "leave refused"]);
        assert!(refused.state == Closed && !refused.host_unaware);
    }
    // What was prepared beside a removal makes no sense any more once the user has left.
    let way = ["invite", "kicked by a member", "void elsewhere", "leaves"];
    let (row, before) = (after(&way), PriorMembership::of(after(&way[..3]).as_ref()));
    let rests_on: Vec<&Pdu> = row.iter().filter_map(|row| row.event.as_ref()).collect();
    let join = Prepared { event: event(CAROL, "join", 9, &rests_on), before, via: Vec::new() };
    let refused = apply(row.clone(), Fact::UserJoins { join, may_be_in: false }, NOW).err();
    assert_eq!(refused, Some(Refusal::LeftMeanwhile));
}

#[test]
fn a_room_is_asked_about_an_invite_a_few_times_and_not_for_ever() {
    let look = |row: RemoteMembership, name: &str| {
        let fact =
            cases(Some(&row)).into_iter().find(|case| case.name == name && !case.late).expect(name).fact;
        stored(None, apply(Some(row), fact, NOW).expect("an answer")).expect("a row")
    };
    let doubted = after(&["invite", "doubted"]).expect("a row");
    let (mut row, mut pauses) = (doubted.clone(), Vec::new());
    while row.state == Invited {
        row = look(row, "void");
        pauses.extend(row.due_ms.map(|due| due - NOW));
    }
    assert_eq!((row.state, pauses), (Closed, vec![500, 1_500, 4_000]));
    let (mut row, mut looks) = (doubted.clone(), 0);
    while !row.is_standing() {
        (row, looks) = (look(row, "look unanswered"), looks + 1);
    }
    assert_eq!((row.state, looks), (Invited, 6));
    assert!(look(doubted, "stands").is_standing());
    // A ban that came at the same moment speaks against it as well.
    let banned = after(&["invite", "kicked before"]).expect("a row");
    assert_eq!((banned.state, banned.attempts, banned.due_ms), (Invited, 0, Some(NOW)));
}

/// What the room's host says of the row.
fn looked_up(row: RemoteMembership, answer: RoomAnswer) -> RemoteMembership {
    let about = row.told().expect("it is told something").clone();
    let fact =
        Fact::LookedUp { about, answer, by: Some(server("b.example")), leave: event(CAROL, "leave", 9, &[]) };
    stored(None, apply(Some(row), fact, NOW).expect("an answer")).expect("a row")
}

#[test]
fn a_knock_that_stands_is_looked_up_about_once_a_day_also_while_nobody_answers() {
    const HOUR: Millis = 3_600_000;
    let pause = |row: &RemoteMembership| row.due_ms.expect("it is looked up some day") - NOW;
    let is_far = |row: &RemoteMembership| (20 * HOUR..28 * HOUR).contains(&pause(row));
    let knocked = || after(&["knocks", "taken"]).expect("a row");
    let row = looked_up(knocked(), RoomAnswer::Stands);
    assert!(is_far(&knocked()) && is_far(&row) && row.state == Knocked);
    assert_ne!(pause(&knocked()), pause(&knocked()), "not all at one moment");
    let (mut row, mut pauses) = (row, Vec::new());
    for _ in 0..20 {
        row = looked_up(row, RoomAnswer::Unanswered);
        pauses.push(pause(&row));
    }
    assert!(pauses[..5].is_sorted() && pauses[4] <= 3 * HOUR, "{pauses:?}");
    assert!(pauses[5..].iter().all(|pause| *pause >= 20 * HOUR), "{pauses:?}");
    assert_eq!(looked_up(row.clone(), RoomAnswer::Stands).attempts, 0);
    // Somebody's word against it has it looked up at once.
    let doubted = after(&["knocks", "taken", "kicked by a member"]).expect("a row");
    assert_eq!(doubted.due_ms, Some(NOW));
    let mut row = looked_up(knocked(), RoomAnswer::Void(None));
    for pause in [500, 1_500, 4_000] {
        assert_eq!((row.state, row.due_ms), (Knocked, Some(NOW + pause)));
        row = looked_up(row, RoomAnswer::Void(None));
    }
    assert_eq!((row.state, row.due_ms), (Closed, None));
}

#[test]
fn an_invite_that_stands_is_looked_up_about_once_a_day_and_in_doubt_once_its_server_does_not_know_it() {
    const HOUR: Millis = 3_600_000;
    let pause = |row: &RemoteMembership| row.due_ms.expect("it is looked up some day") - NOW;
    let is_far = |row: &RemoteMembership| row.is_standing() && (20 * HOUR..28 * HOUR).contains(&pause(row));
    let invited = || after(&["invite"]).expect("a row");
    assert!(is_far(&invited()) && is_far(&looked_up(invited(), RoomAnswer::Stands)));
    assert_ne!(pause(&invited()), pause(&invited()), "not all at one moment");
    let mut silent = invited();
    for _ in 0..20 {
        silent = looked_up(silent, RoomAnswer::Unanswered);
        assert!(is_far(&silent), "once a day, and no more often");
    }
    let mut row = silent;
    for pause in [500, 1_500, 4_000] {
        row = looked_up(row, RoomAnswer::Void(None));
        assert_eq!((row.state, row.is_standing(), row.due_ms), (Invited, false, Some(NOW + pause)));
    }
    assert!(is_far(&looked_up(row.clone(), RoomAnswer::Stands)));
    assert_eq!(looked_up(row, RoomAnswer::Void(None)).state, Closed);
    // So is one that the user is invited by again, since the join was refused.
    assert!(is_far(&after(&["invite", "joins", "join refused"]).expect("a row")));
    assert_eq!(after(&["invite", "doubted"]).expect("a row").due_ms, Some(NOW));
    assert_eq!(after(&["knocks", "taken", "doubted"]).expect("a row").due_ms, Some(NOW));
}

#[test]
fn a_knock_that_was_withdrawn_before_anybody_took_it_is_left_a_few_times_more_since_it_may_land() {
    let refused = |mut row: RemoteMembership| {
        let mut asked = 0;
        while row.state == Leaving {
            let told = row.told().expect("a leave").clone();
            let fact = Fact::LeaveAnswered { told, answer: LeaveAnswer::Refused };
            row = stored(None, apply(Some(row), fact, NOW).expect("an answer")).expect("a row");
            asked += 1;
        }
        assert_eq!(row.state, Closed);
        asked
    };
    let then = |way: &[&'static str]| after(way).expect("a row");
    assert_eq!(refused(then(&["knocks", "leaves"])), 6);
    assert_eq!(refused(then(&["knocks", "knock unanswered", "leaves"])), 6);
    assert_eq!(refused(then(&["knocks", "taken", "leaves"])), 1, "what was taken lies there already");
    // Whoever refuses the knock itself will not take it later.
    let withdrawn = then(&["knocks", "leaves"]);
    let knock = withdrawn.previous.as_ref().expect("the knock").event_id().clone();
    let fact = Fact::KnockRefused { knock, leave: event(CAROL, "leave", 9, &[]) };
    let effect = apply(Some(withdrawn), fact, NOW).expect("an answer");
    assert_eq!(refused(stored(None, effect).expect("a row")), 1);
}

#[test]
fn what_crosses_another_knock_ends_it_if_it_is_a_ban_and_else_the_room_is_asked_in_every_order() {
    for (membership, depth) in
        [("leave", 4), ("leave", 6), ("leave", 40), ("ban", 4), ("ban", 6), ("ban", 40)]
    {
        for order in ["knocks removed taken", "knocks taken removed", "removed knocks taken"] {
            let mut row = after(&["knocks", "taken"]);
            let first = row.as_ref().and_then(|row| row.event.clone()).expect("a knock");
            let second = event(CAROL, "knock", 6, &[&first]);
            let before = PriorMembership::of(row.as_ref());
            let removal = event(HOST, membership, depth, &[&first]);
            for what in order.split(' ') {
                let fact = match what {
                    "knocks" => Fact::UserKnocks(Prepared {
                        event: second.clone(),
                        before: before.clone(),
                        via: vec![server("b.example")],
                    }),
                    "taken" => Fact::KnockTaken {
                        knock: second.event_id().clone(),
                        by: server("b.example"),
                        stripped_state: shown(),
                    },
                    _ => Fact::Removed { removal: removal.clone(), from: server("b.example") },
                };
                match apply(row.clone(), fact, NOW) {
                    Ok(effect) => row = stored(row.as_ref(), effect),
                    Err(refusal) => assert_eq!((what, refusal), ("knocks", Refusal::RemovedMeanwhile)),
                }
            }
            let row = row.expect("a row");
            let case = format!("{membership} at {depth}: {order}");
            if membership == "ban" || order.starts_with("removed") {
                assert_eq!((row.state, row.told()), (Closed, Some(removal.event_id())), "{case}");
                continue;
            }
            assert_eq!((row.state, row.due_ms), (Knocked, Some(NOW)), "{case}");
            assert_eq!(row.told(), Some(second.event_id()), "{case}");
            let mut kept = row.clone();
            while kept.removal.is_some() {
                kept = looked_up(kept, RoomAnswer::Stands);
            }
            assert!(kept.state == Knocked && kept.due_ms > Some(NOW + 3_600_000), "{case}");
            let mut ended = row;
            while ended.state == Knocked {
                ended = looked_up(ended, RoomAnswer::Void(None));
            }
            assert_eq!(ended.told(), Some(removal.event_id()), "{case}");
        }
    }
}

#[test]
fn what_cannot_be_told_is_tried_for_about_a_week() {
    let total: Millis = (1..ATTEMPTS_MAX).map(backoff_ms).sum();
    let day = 24 * 3600 * 1000;
    assert!((6 * day..8 * day).contains(&total), "{total}");
    assert!((0..ATTEMPTS_MAX).all(|n| backoff_ms(n) <= backoff_ms(n + 1)));
}

#[test]
fn a_leave_survives_that_another_of_us_comes_in_and_nothing_else_does() {
    for (shape, KnownRow { row, .. }) in every_row() {
        let Some(row) = row.clone() else { continue };
        let (was, due) = (row.state, NOW + 7);
        if was == Closed {
            // Unless the room that we came into has not heard of the leave.
            let lacks = Fact::NowResident { lacks_leave: true };
            let Ok(Effect::Save { row, tell: false, .. }) = apply(Some(row.clone()), lacks, due) else {
                panic!("{shape}: it is told again, or gone");
            };
            assert_eq!((row.state, row.due_ms), (Leaving, Some(due)), "{shape}");
        }
        match apply(Some(row), Fact::NowResident { lacks_leave: false }, due).expect("never refused") {
            Effect::Save { row, tell: false, .. } => {
                assert_eq!((was, row.state, row.due_ms), (Leaving, Leaving, Some(due)), "{shape}");
            }
            effect => assert!(was != Leaving && matches!(effect, Effect::Delete(_)), "{shape}: {effect:?}"),
        }
    }
}

#[test]
fn servers_worth_asking_are_few_and_without_repeats() {
    let room = RoomId::parse("!r:b.example").expect("a room id");
    let mut row = Fields::blank(&room, &carol(), version("11"));
    row.prefer((0..30).map(|n| server(&format!("s{n}.example"))));
    row.prefer([server("s5.example"), server("s5.example")]);
    assert_eq!((row.via.len(), row.via[0].as_str()), (20, "s5.example"));
}

#[test]
fn an_invite_stands_where_the_events_that_it_rests_on_put_it() {
    let knock = event(CAROL, "knock", 5, &[]);
    let leave = event(CAROL, "leave", 6, &[&knock]);
    let stale = event(HOST, "invite", 6, &[&knock]);
    let fresh = event(HOST, "invite", 7, &[&leave]);
    let other = event(HOST, "invite", 9, &[]);
    let order = |invite, leave| order_of_invite(invite, leave, Some(&knock));
    assert_eq!(order(&stale, None), InviteOrder::After);
    for (known, met) in [(true, InviteOrder::Before), (false, InviteOrder::Meets)] {
        assert_eq!(order(&stale, Some((&leave, known))), met);
        assert_eq!(order(&fresh, Some((&leave, known))), InviteOrder::After);
    }
    assert_eq!(order(&other, Some((&leave, true))), InviteOrder::Unclear);
    assert_eq!(order(&other, Some((&leave, false))), InviteOrder::Meets);
    // A ban that was lifted since is not named by what follows it.
    let ban = event(HOST, "ban", 6, &[&knock]);
    assert_eq!(order(&stale, Some((&ban, true))), InviteOrder::Before);
    assert_eq!(order(&other, Some((&ban, true))), InviteOrder::After);
}

#[test]
fn a_removal_bears_on_what_it_rests_on_and_on_what_comes_before_it() {
    let knock = event(CAROL, "knock", 5, &[]);
    let invite = event(HOST, "invite", 6, &[&knock]);
    let at_once = |membership| event("@other:b.example", membership, 8, &[&knock]);
    let of_invite = event("@other:b.example", "leave", 7, &[&invite]);
    let on = |state, removal: &Pdu, present: &Pdu, previous| bearing(state, removal, Some(present), previous);
    assert_eq!(on(Invited, &of_invite, &invite, Some(&knock)), RemovalBearing::Ends);
    assert_eq!(on(Invited, &at_once("leave"), &invite, Some(&knock)), RemovalBearing::Unclear);
    assert_eq!(on(Invited, &at_once("ban"), &invite, Some(&knock)), RemovalBearing::Ends);
    assert_eq!(
        on(Invited, &at_once("ban"), &invite, None),
        RemovalBearing::Ends,
        "later, as far as one can see"
    );
    // What came before.
    let old = event("@other:b.example", "ban", 4, &[]);
    assert_eq!(on(Invited, &old, &invite, Some(&knock)), RemovalBearing::Unclear);
    let again = event(HOST, "invite", 6, &[&old]);
    assert_eq!(on(Invited, &old, &again, None), RemovalBearing::Over);
    // Another knock, at the same moment as a removal of the first.
    let second = event(CAROL, "knock", 6, &[&knock]);
    for state in [Knocking, Knocked] {
        assert_eq!(on(state, &old, &knock, None), RemovalBearing::Unclear);
        assert_eq!(on(state, &at_once("leave"), &knock, None), RemovalBearing::Ends);
        assert_eq!(on(state, &at_once("leave"), &second, Some(&knock)), RemovalBearing::Unclear);
        assert_eq!(on(state, &at_once("ban"), &second, Some(&knock)), RemovalBearing::Ends);
    }
    assert_eq!(on(Closed, &of_invite, &invite, None), RemovalBearing::Over);
    assert_eq!(bearing(Joining, &of_invite, None, None), RemovalBearing::Ends);
}

#[test]
fn the_words_of_the_states_are_read_back() {
    assert!(RemoteState::ALL.into_iter().all(|state| RemoteState::parse(state.as_str()) == Some(state)));
    assert_eq!(RemoteState::parse("joined"), None);
    assert_eq!(RemoteState::ALL, [Knocking, Knocked, Invited, Joining, Leaving, Closed]);
}
