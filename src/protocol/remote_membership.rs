//! A user of ours and a room that we are not in: one small state machine for knocks, invites, joins and leaves.
//!
//! The state is a column of the `remote_memberships` table; no row means "nothing to do with that room". [`next`] says
//! what a fact makes of it, for every state and fact, so that no two places can disagree about it. It holds no clock
//! and sends nothing: `service::membership` does, and asks here inside the transaction that writes the result.
//!
//! Two properties are tested over the whole table: from every state both `Closed` and residence (no row) can be
//! reached, and an answer that nobody waits for any more changes nothing. The machine cannot know whether an answer is
//! about the event that is in the row *now*; the caller compares event ids in the same transaction, and drops answers
//! about others.
//!
//! What two servers do at the same moment is put in order by what the events rest on: by "auth events selection" a
//! member event names the member event of its target that it follows. [`order_of_invite`] and [`bearing`] read that.
//! Clocks are no evidence.

use std::fmt;

use crate::error::Error;
use crate::protocol::pdu::{Membership, Pdu};

/// Where a remote membership stands. No row is `None` of this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// A knock is signed and committed; no server has taken it yet.
    Knocking,
    /// A server of the room has taken our knock.
    Knocked,
    /// Somebody in the room invited our user.
    Invited,
    /// A join is signed and committed; we are not in the room yet.
    Joining,
    /// Our user left (withdrew, rejected); the room has not taken the leave yet.
    Leaving,
    /// It is over: left, refused, kicked or banned.
    Closed,
}

impl State {
    /// Every state, for tests and tables.
    pub const ALL: [Self; 6] =
        [Self::Knocking, Self::Knocked, Self::Invited, Self::Joining, Self::Leaving, Self::Closed];

    /// The word in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Knocking => "knocking",
            Self::Knocked => "knocked",
            Self::Invited => "invited",
            Self::Joining => "joining",
            Self::Leaving => "leaving",
            Self::Closed => "closed",
        }
    }

    /// The state with this word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == word)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Something that happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fact {
    /// Our user asks to knock.
    UserKnocks,
    /// Answer: a server of the room took the knock.
    KnockAccepted,
    /// Answer: a server of the room took the knock after our user had withdrawn it: what it was told of that before, if
    /// anything, counts for nothing.
    WithdrawnKnockAccepted,
    /// Answer: every server that could be asked refused the knock.
    KnockRefused,
    /// Another server invites our user. With what shows of the invite's place in the room.
    InviteArrives(Order),
    /// Answer: the room does not know this invite. With the membership of the event that stands in its place.
    InviteVoid(Option<Membership>),
    /// Our user asks to join.
    UserJoins,
    /// Answer: no server let the join in. With the membership of the event that stood before the join, which the row
    /// keeps meanwhile: that is what holds again.
    JoinFailed(Option<Membership>),
    /// Answer: a server took the join, or may have, and the room cannot be entered from here: it is to be left again.
    JoinLost,
    /// This server came into the room, through this user or another one of ours.
    NowResident,
    /// Our user leaves: withdraws a knock, rejects an invite, gives up a join.
    UserLeaves,
    /// Answer: no server took the leave this time.
    LeaveFailed,
    /// Answer: the room took the leave, or it was given up.
    LeaveDone,
    /// Somebody else in the room kicked or banned our user: a refused knock, a rescinded invite.
    KickedOrBanned,
}

impl Fact {
    /// Whether this answers a request of ours, and so may come late.
    pub fn is_answer(self) -> bool {
        matches!(
            self,
            Self::KnockAccepted
                | Self::WithdrawnKnockAccepted
                | Self::KnockRefused
                | Self::InviteVoid(_)
                | Self::JoinFailed(_)
                | Self::JoinLost
                | Self::LeaveFailed
                | Self::LeaveDone
        )
    }
}

/// What becomes of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// The state from now on; `None`: no row.
    pub to: Option<State>,
    /// Whether anything is to be written: a new state, or a new event in the same state.
    pub changed: bool,
    /// The invite answers our user's knock: show it so, and keep the knock's event as the one before.
    pub link: bool,
}

/// Why a user may not do something now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Who is invited need not knock: join.
    AlreadyInvited,
    /// A join is under way.
    JoinUnderWay,
    /// There is nothing to leave.
    NotInRoom,
    /// The leave is being handed in: only its outcome tells what the invite is worth.
    LeaveUnderWay,
    /// The invite was made before the user left or was banned, and the room knows that they did.
    LeftSince,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AlreadyInvited => "you are invited to this room already: join it",
            Self::JoinUnderWay => "you are joining this room already",
            Self::NotInRoom => "you have nothing to do with this room",
            Self::LeaveUnderWay => "the user is leaving the room at this very moment",
            Self::LeftSince => "the user has left the room since this invite was made",
        })
    }
}

impl std::error::Error for Refusal {}

/// 403 `M_FORBIDDEN`.
impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Self::forbidden(refusal.to_string())
    }
}

/// What shows of an invite's place in the room, beside a leave of our user's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Nothing of ours is in its way, or it was made by who knew of that.
    After,
    /// It does not show.
    Unclear,
    /// It was made before the room had the leave (or ban) that has taken effect since.
    Before,
    /// A leave is being handed in, or was and its outcome is not known.
    Meets,
}

/// Where an invite stands. `leave`: the leave that was handed in last, and whether it is known to be in the room; or the
/// ban that ended the membership. `left`: the event that it ended.
pub fn order_of_invite(invite: &Pdu, leave: Option<(&Pdu, bool)>, left: Option<&Pdu>) -> Order {
    let rests_on = |event: &Pdu| invite.auth_events().contains(event.event_id());
    match leave {
        None => Order::After,
        Some((leave, _)) if rests_on(leave) => Order::After,
        Some((_, false)) => Order::Meets,
        Some(_) if left.is_some_and(rests_on) => Order::Before,
        Some((ban, _)) if ban.membership() == Some(Membership::Ban) => Order::After,
        Some(_) => Order::Unclear,
    }
}

/// What somebody else's removal of our user means for what they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bearing {
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
/// Whoever removes the present membership rests on its event, or at least comes later in the room. An invite and a removal
/// that were made at the same moment rest on the same event. By state resolution the removal comes first then, and so an
/// invite survives a kick, but not a ban; if the room ever got the invite.
pub fn bearing(state: State, removal: &Pdu, present: Option<&Pdu>, previous: Option<&Pdu>) -> Bearing {
    let Some(present) = present.filter(|_| state != State::Closed) else {
        return if state == State::Closed { Bearing::Over } else { Bearing::Ends };
    };
    if removal.auth_events().contains(present.event_id()) {
        return Bearing::Ends;
    }
    let is_later = removal.depth() > present.depth();
    if state != State::Invited {
        return if is_later { Bearing::Ends } else { Bearing::Over };
    }
    if present.auth_events().contains(removal.event_id()) {
        return Bearing::Over;
    }
    let both_rest_on =
        |event: &Pdu| [removal, present].iter().all(|e| e.auth_events().contains(event.event_id()));
    match (previous.is_some_and(both_rest_on), removal.membership()) {
        (true, Some(Membership::Ban)) => Bearing::Ends,
        (false, _) if is_later => Bearing::Ends,
        _ => Bearing::Unclear,
    }
}

/// What a fact makes of a state. What our own user asks for can be refused, and an invite that a leave has overtaken.
pub fn next(state: Option<State>, fact: Fact) -> Result<Step, Refusal> {
    use State::{Closed, Invited, Joining, Knocked, Knocking, Leaving};
    let to = |state| Ok(Step { to: Some(state), changed: true, link: false });
    let gone = Ok(Step { to: None, changed: state.is_some(), link: false });
    let unchanged = Ok(Step { to: state, changed: false, link: false });
    match (fact, state) {
        // Knocking again while the first knock waits for its answer is the same event again; while another server has
        // it, a new one.
        (Fact::UserKnocks, Some(Knocking)) => unchanged,
        (Fact::UserKnocks, None | Some(Knocked | Leaving | Closed)) => to(Knocking),
        (Fact::UserKnocks, Some(Invited)) => Err(Refusal::AlreadyInvited),
        (Fact::UserKnocks, Some(Joining)) => Err(Refusal::JoinUnderWay),

        (Fact::KnockAccepted, Some(Knocking)) => to(Knocked),
        (Fact::KnockAccepted, _) => unchanged,
        (Fact::WithdrawnKnockAccepted, Some(Leaving | Closed)) => to(Leaving),
        (Fact::WithdrawnKnockAccepted, _) => unchanged,
        (Fact::KnockRefused, Some(Knocking)) => gone,
        (Fact::KnockRefused, _) => unchanged,

        // A leave that the room has, or may have at any moment, is not undone by an invite from before it: whoever
        // invites is told, and may invite anew.
        (Fact::InviteArrives(Order::Meets), Some(Leaving)) => Err(Refusal::LeaveUnderWay),
        (Fact::InviteArrives(Order::Before), Some(Leaving | Closed)) => Err(Refusal::LeftSince),
        // The specification leaves it to us to see that this invite is the answer to that knock.
        (Fact::InviteArrives(_), Some(Knocking | Knocked)) => {
            Ok(Step { to: Some(Invited), changed: true, link: true })
        }
        // Newer wins; also over a leave that nobody was told yet, and over what was closed.
        (Fact::InviteArrives(_), None | Some(Invited | Leaving | Closed)) => to(Invited),
        // The join goes on; the invite is what is fallen back on if it fails.
        (Fact::InviteArrives(_), Some(Joining)) => to(Joining),
        (Fact::InviteVoid(Some(Membership::Knock)), Some(Invited)) => to(Knocked),
        (Fact::InviteVoid(_), Some(Invited)) => to(Closed),
        (Fact::InviteVoid(_), _) => unchanged,

        (Fact::UserJoins, Some(Joining)) => unchanged,
        (Fact::UserJoins, None | Some(Knocking | Knocked | Invited | Leaving | Closed)) => to(Joining),
        (Fact::JoinFailed(before), Some(Joining)) => match before {
            None => gone,
            Some(Membership::Invite) => to(Invited),
            // It may not have been handed in yet: that is done again, which harms nothing.
            Some(Membership::Knock) => to(Knocking),
            Some(Membership::Join | Membership::Leave | Membership::Ban) => to(Closed),
        },
        (Fact::JoinFailed(_), _) => unchanged,
        (Fact::JoinLost, Some(Joining)) => to(Leaving),
        (Fact::JoinLost, _) => unchanged,

        (Fact::NowResident, _) => gone,

        (Fact::UserLeaves, None) => Err(Refusal::NotInRoom),
        (Fact::UserLeaves, Some(Knocking | Knocked | Invited | Joining)) => to(Leaving),
        (Fact::UserLeaves, Some(Leaving | Closed)) => unchanged,
        // Told again later.
        (Fact::LeaveFailed, _) => unchanged,
        (Fact::LeaveDone, Some(Leaving)) => to(Closed),
        (Fact::LeaveDone, _) => unchanged,

        (Fact::KickedOrBanned, Some(Knocking | Knocked | Invited | Joining | Leaving)) => to(Closed),
        (Fact::KickedOrBanned, None | Some(Closed)) => unchanged,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::State::{Closed, Invited, Joining, Knocked, Knocking, Leaving};
    use super::*;

    const FACTS: [Fact; 21] = [
        Fact::UserKnocks,
        Fact::KnockAccepted,
        Fact::WithdrawnKnockAccepted,
        Fact::KnockRefused,
        Fact::InviteArrives(Order::After),
        Fact::InviteArrives(Order::Unclear),
        Fact::InviteArrives(Order::Before),
        Fact::InviteArrives(Order::Meets),
        Fact::InviteVoid(None),
        Fact::InviteVoid(Some(Membership::Knock)),
        Fact::UserJoins,
        Fact::JoinFailed(None),
        Fact::JoinFailed(Some(Membership::Invite)),
        Fact::JoinFailed(Some(Membership::Knock)),
        Fact::JoinFailed(Some(Membership::Leave)),
        Fact::JoinLost,
        Fact::NowResident,
        Fact::UserLeaves,
        Fact::LeaveFailed,
        Fact::LeaveDone,
        Fact::KickedOrBanned,
    ];

    fn states() -> impl Iterator<Item = Option<State>> {
        std::iter::once(None).chain(State::ALL.map(Some))
    }

    /// Where a fact leads, written as in the table of the design: `-` no row, `=` unchanged, `!` refused, `+` linked.
    fn cell(state: Option<State>, fact: Fact) -> String {
        match next(state, fact) {
            Err(_) => "!".to_owned(),
            Ok(step) if !step.changed => {
                assert_eq!(step.to, state);
                "=".to_owned()
            }
            Ok(step) => {
                let link = if step.link { "+" } else { "" };
                step.to.map_or("-".to_owned(), |to| format!("{to}{link}"))
            }
        }
    }

    #[test]
    fn every_cell_of_the_table_is_as_written() {
        let table = [
            // state, then: knocks, accepted, accepted although withdrawn, refused, invite (after a leave, unclear, before it,
            // at the same moment), invite void (nothing before, knock before), joins, join failed (nothing, invite, knock,
            // leave before), join lost, resident, leaves, leave failed, leave done, kicked
            (None, "knocking = = = invited invited invited invited = = joining = = = = = = ! = = ="),
            (
                Some(Knocking),
                "= knocked = - invited+ invited+ invited+ invited+ = = joining = = = = = - leaving = = closed",
            ),
            (
                Some(Knocked),
                "knocking = = = invited+ invited+ invited+ invited+ = = joining = = = = = - leaving = = closed",
            ),
            (
                Some(Invited),
                "! = = = invited invited invited invited closed knocked joining = = = = = - leaving = = closed",
            ),
            (
                Some(Joining),
                "! = = = joining joining joining joining = = = - invited knocking closed leaving - leaving = = closed",
            ),
            (
                Some(Leaving),
                "knocking = leaving = invited invited ! ! = = joining = = = = = - = = closed closed",
            ),
            (Some(Closed), "knocking = leaving = invited invited ! invited = = joining = = = = = - = = = ="),
        ];
        for (state, row) in table {
            let cells: Vec<_> = FACTS.iter().map(|fact| cell(state, *fact)).collect();
            assert_eq!(cells.join(" "), row, "{state:?}");
        }
        assert_eq!(table.len(), states().count());
    }

    #[test]
    fn from_every_state_both_the_end_and_residence_can_be_reached() {
        for start in states() {
            let mut reached = BTreeSet::from([start]);
            let mut resident = false;
            let mut todo = vec![start];
            while let Some(state) = todo.pop() {
                for fact in FACTS {
                    let Ok(step) = next(state, fact) else { continue };
                    resident |= fact == Fact::NowResident && step.to.is_none();
                    if reached.insert(step.to) {
                        todo.push(step.to);
                    }
                }
            }
            assert!(reached.contains(&Some(Closed)) && resident, "from {start:?}");
            assert_eq!(reached.len(), 1 + State::ALL.len(), "from {start:?}");
        }
    }

    #[test]
    fn an_answer_that_nobody_waits_for_changes_nothing() {
        for state in states() {
            for fact in FACTS.into_iter().filter(|fact| fact.is_answer()) {
                let waits = match fact {
                    Fact::KnockAccepted | Fact::KnockRefused => state == Some(Knocking),
                    Fact::JoinFailed(_) | Fact::JoinLost => state == Some(Joining),
                    Fact::InviteVoid(_) => state == Some(Invited),
                    Fact::WithdrawnKnockAccepted => matches!(state, Some(Leaving | Closed)),
                    _ => state == Some(Leaving),
                };
                let step = next(state, fact).expect("answers are never refused");
                assert!(
                    waits || step == Step { to: state, changed: false, link: false },
                    "{fact:?} in {state:?}"
                );
            }
        }
    }

    #[test]
    fn a_fact_that_comes_twice_does_no_more_than_once() {
        for state in states() {
            for fact in FACTS {
                let Ok(once) = next(state, fact) else { continue };
                // Knocking on in the state that a knock led to is the same knock again, and so on.
                let twice = next(once.to, fact);
                assert!(
                    twice.is_ok_and(|twice| twice.to == once.to),
                    "{fact:?} twice in {state:?}: {once:?}, {twice:?}"
                );
            }
        }
    }

    #[test]
    fn only_our_own_user_can_be_refused_and_an_invite_that_a_leave_overtook() {
        for state in states() {
            for fact in FACTS {
                let asked = matches!(
                    fact,
                    Fact::UserKnocks
                        | Fact::UserLeaves
                        | Fact::UserJoins
                        | Fact::InviteArrives(Order::Before | Order::Meets)
                );
                assert!(asked || next(state, fact).is_ok(), "{fact:?} in {state:?}");
            }
        }
        assert_eq!(Error::from(Refusal::AlreadyInvited).status(), 403);
    }

    /// A member event of carol's of this depth that rests on these others.
    fn event(sender: &str, membership: &str, depth: i64, rests_on: &[&Pdu]) -> Pdu {
        use crate::protocol::test_events::{member, pdu, version};
        let auth: Vec<&str> = rests_on.iter().map(|e| e.event_id().as_str()).collect();
        let mut event = member("@carol:a.example", membership);
        event["sender"] = sender.into();
        event["depth"] = depth.into();
        event["auth_events"] = auth.into();
        pdu(version("11"), &event, &[])
    }

    const CAROL: &str = "@carol:a.example";
    const HOST: &str = "@host:b.example";

    #[test]
    fn an_invite_stands_where_the_events_that_it_rests_on_put_it() {
        let knock = event(CAROL, "knock", 5, &[]);
        let leave = event(CAROL, "leave", 6, &[&knock]);
        let stale = event(HOST, "invite", 6, &[&knock]);
        let fresh = event(HOST, "invite", 7, &[&leave]);
        let other = event(HOST, "invite", 9, &[]);
        let order = |invite, leave| order_of_invite(invite, leave, Some(&knock));
        assert_eq!(order(&stale, None), Order::After);
        for (known, met) in [(true, Order::Before), (false, Order::Meets)] {
            assert_eq!(order(&stale, Some((&leave, known))), met);
            assert_eq!(order(&fresh, Some((&leave, known))), Order::After);
        }
        assert_eq!(order(&other, Some((&leave, true))), Order::Unclear);
        assert_eq!(order(&other, Some((&leave, false))), Order::Meets);
        // A ban that was lifted since is not named by what follows it.
        let ban = event(HOST, "ban", 6, &[&knock]);
        assert_eq!(order(&stale, Some((&ban, true))), Order::Before);
        assert_eq!(order(&other, Some((&ban, true))), Order::After);
    }

    #[test]
    fn a_removal_bears_on_what_it_rests_on_and_on_what_comes_before_it() {
        let knock = event(CAROL, "knock", 5, &[]);
        let invite = event(HOST, "invite", 6, &[&knock]);
        let at_once = |membership| event("@other:b.example", membership, 8, &[&knock]);
        let of_invite = event("@other:b.example", "leave", 7, &[&invite]);
        let on =
            |state, removal: &Pdu, present: &Pdu, previous| bearing(state, removal, Some(present), previous);
        assert_eq!(on(Invited, &of_invite, &invite, Some(&knock)), Bearing::Ends);
        assert_eq!(on(Invited, &at_once("leave"), &invite, Some(&knock)), Bearing::Unclear);
        assert_eq!(on(Invited, &at_once("ban"), &invite, Some(&knock)), Bearing::Ends);
        assert_eq!(
            on(Invited, &at_once("ban"), &invite, None),
            Bearing::Ends,
            "later, as far as one can see"
        );
        // What came before.
        let old = event("@other:b.example", "ban", 4, &[]);
        assert_eq!(on(Invited, &old, &invite, Some(&knock)), Bearing::Unclear);
        let again = event(HOST, "invite", 6, &[&old]);
        assert_eq!(on(Invited, &old, &again, None), Bearing::Over);
        for state in [Knocking, Knocked] {
            assert_eq!(on(state, &old, &knock, None), Bearing::Over);
            assert_eq!(on(state, &at_once("leave"), &knock, None), Bearing::Ends);
        }
        assert_eq!(on(Closed, &of_invite, &invite, None), Bearing::Over);
        assert_eq!(bearing(Joining, &of_invite, None, None), Bearing::Ends);
    }

    #[test]
    fn the_words_of_the_states_are_read_back() {
        assert!(State::ALL.into_iter().all(|state| State::parse(state.as_str()) == Some(state)));
        assert_eq!(State::parse("joined"), None);
        assert_eq!(State::ALL, [Knocking, Knocked, Invited, Joining, Leaving, Closed]);
    }
}
