//! What an event is to those whom it may notify: by their rules, in the transaction that accepts it, so that it comes
//! with its count to everybody who hears of it.
//!
//! To most it is the same, whatever their number: they have the predefined rules, and the event names few of them. So
//! there is one row for all of them, and one for each to whom it is something else. If that is what it is to more, the
//! first row says that.
//!
//! What is said in a thread (MSC4306) is something else to those who are subscribed to it, and to those who are not. It is neither
//! to users who have never subscribed to any: their clients may know nothing of that, and would have them miss what they were told
//! before. (Synapse takes them for such as are not subscribed.)

use std::cell::OnceCell;
use std::collections::{BTreeMap, HashMap, HashSet};

use super::notifications::{NewNotification, OwnNotification};
use crate::error::{Error, Result};
use crate::order;
use crate::protocol::event_auth::{PowerLevelKey, PowerLevels};
use crate::protocol::glob::Steps;
use crate::protocol::pdu::Membership;
use crate::protocol::push_rules::{
    Actions, NamedBy, Outcome, PushEvent, Recipient, RoomFacts, RuleSet, StepsUsedUp,
};
use crate::protocol::remote_membership::RemoteMembership;
use crate::protocol::{Pdu, UserId};
use crate::store::push::recipients::Recipients;
use crate::store::push::unread::MAIN_THREAD;
use crate::store::rooms::thread_subscriptions::ThreadFollowers;
use crate::store::{Db, EventKey, Room, RoomKey, SnapshotId, Tx};

/// So many steps, of about a character that is compared, one event is worth for the rules of one user, and for those of all
/// of them together: some ten milliseconds of the writer. Nobody writes rules that need them, unless to keep it busy.
/// To whose rules take more the event is what it is by the predefined rules.
const USER_STEPS_MAX: usize = 500_000;
const EVENT_STEPS_MAX: usize = 4_000_000;
/// So many each user has however many others have taken: enough for some dozens of rules and an ordinary message, so that
/// rules of others do not put one's own out of action.
const USER_STEPS_MIN: usize = 5_000;
/// So many steps it is worth to find out who of all that are in the room are named in the event's body: some milliseconds.
/// What people write takes some hundreds.
const NAMES_STEPS_MAX: usize = 200_000;

/// An event that was put into its room.
pub(in crate::store) struct PlacedEvent<'e> {
    /// The room as it was before the event came.
    pub room: &'e Room,
    pub pdu: &'e Pdu,
    pub key: EventKey,
    pub stream: i64,
    /// The state before the event, by the events that it follows.
    pub state_before: Option<SnapshotId>,
    /// Whether it relates to another event of the room.
    pub relates: bool,
}

/// One event, with all that is asked of it.
struct Evaluation<'e, 'c> {
    db: &'e Db<'c>,
    placed: &'e PlacedEvent<'e>,
    event: PushEvent,
    joined: u64,
    steps_left: usize,
    levels: OnceCell<PowerLevels>,
    /// Those who are in the room.
    recipients: Option<&'e Recipients>,
    /// Whom of them the event's body names, by their places.
    named: OnceCell<BTreeMap<usize, NamedBy>>,
}

impl Evaluation<'_, '_> {
    /// The room's power levels.
    fn levels(&self) -> &PowerLevels {
        let Evaluation { db, placed: PlacedEvent { room, .. }, .. } = self;
        let lookup = |event_type: &str, state_key: &str| {
            let event = db.state_event(room.key, event_type, state_key);
            event.inspect_err(|e| log::error!("{}", e.for_people())).ok().flatten()
        };
        self.levels.get_or_init(|| db.auth_checker(room.version).power_levels_in(&lookup))
    }

    /// Whom of those in the room the event's body names, by their places.
    fn named(&self) -> &BTreeMap<usize, NamedBy> {
        let look = || {
            let Some(recipients) = self.recipients.filter(|_| self.event.has_body()) else {
                return Ok(BTreeMap::new());
            };
            let names = self.db.names_of(self.placed.room.key, recipients)?;
            Ok(self.event.named_in_body(&names, &Steps::new(NAMES_STEPS_MAX)))
        };
        self.named.get_or_init(|| {
            look().inspect_err(|e: &Error| log::error!("{}", e.for_people())).unwrap_or_default()
        })
    }

    /// What the event is to a user by these rules; to one whom it does not name, if there is none. `subscribed`: whether they are
    /// subscribed to its thread, if it is in one and they follow any.
    fn actions(&mut self, rules: &RuleSet, user: Option<&UserId>, subscribed: Option<bool>) -> Actions {
        let Evaluation { db, placed, event, .. } = &*self;
        let (room, sender) = (placed.room, placed.pdu.sender().as_str());
        let may_notify = |kind: &str| {
            let levels = self.levels();
            levels.user(sender).reaches(levels.notification(kind))
        };
        let recipient_may = |user: &UserId, action: &str| {
            let key = match action {
                "invite" => PowerLevelKey::Invite,
                "kick" => PowerLevelKey::Kick,
                "ban" => PowerLevelKey::Ban,
                "redact" => PowerLevelKey::Redact,
                _ => return false,
            };
            let levels = self.levels();
            levels.user(user.as_str()).reaches(levels.named(key))
        };
        let facts = RoomFacts {
            joined: self.joined,
            sender_may_notify: &may_notify,
            recipient_may: &recipient_may,
            thread_subscription: subscribed,
        };
        let name = || {
            let member = db.state_event(room.key, "m.room.member", user?.as_str());
            member.ok().flatten()?.content_str("displayname")
        };
        let place = self.recipients.zip(user).and_then(|(all, user)| all.all.binary_search(user).ok());
        let named = || place.and_then(|place| self.named().get(&place).copied()).unwrap_or_default();
        let recipient = user.map(|user| match place {
            Some(_) => Recipient::found(user, &named),
            None => Recipient::new(user, &name),
        });
        let budget = self.steps_left.clamp(USER_STEPS_MIN, USER_STEPS_MAX);
        let steps = Steps::new(budget);
        let found = match rules.evaluate(event, &facts, recipient.as_ref(), &steps) {
            Ok(found) => found.cloned(),
            Err(StepsUsedUp) => {
                // They look at little, which is remembered with the event.
                let predefined = self.db.shared.predefined_rules();
                let unbounded = Steps::new(usize::MAX);
                predefined.evaluate(event, &facts, recipient.as_ref(), &unbounded).ok().flatten().cloned()
            }
        };
        self.steps_left = self.steps_left.saturating_sub(budget - steps.left());
        found.unwrap_or_default()
    }
}

/// Those who follow threads, and who is subscribed to one of these.
struct ThreadAudience {
    followers: ThreadFollowers,
    subscribers: HashSet<UserId>,
}

impl ThreadAudience {
    /// Whether a user is subscribed to the thread; none if they follow no thread at all.
    fn subscribed(&self, user: &UserId) -> Option<bool> {
        self.followers.contains(user).then(|| self.subscribers.contains(user))
    }

    /// What the event is to the followers among these users that are not in `known`: the same to all who are subscribed, and to all
    /// who are not.
    fn others<'u>(
        &self,
        users: impl Iterator<Item = &'u UserId>,
        known: &[(UserId, Actions)],
        mut actions: impl FnMut(bool) -> Actions,
    ) -> Vec<(UserId, Actions)> {
        let known: HashSet<&UserId> = known.iter().map(|(user, _)| user).collect();
        let [unsubscribed, subscribed] = [false, true].map(&mut actions);
        users
            .filter(|user| !known.contains(user))
            .filter_map(|user| {
                let actions = if self.subscribed(user)? { &subscribed } else { &unsubscribed };
                Some((user.clone(), actions.clone()))
            })
            .collect()
    }
}

impl Tx<'_> {
    /// Notes whom a live event notifies, and that its sender has read what was before it.
    pub(in crate::store) fn notify(&mut self, placed: &PlacedEvent<'_>) -> Result<()> {
        let PlacedEvent { room, pdu, stream, key, relates, .. } = *placed;
        let sender = pdu.sender();
        let thread = if relates { self.thread_root_of(key)? } else { None };
        let thread = thread.map(|root| root.to_string());
        if self.is_local(sender.as_str()) {
            let thread = thread.as_deref().unwrap_or(MAIN_THREAD);
            self.note_spoken(sender, room.key, thread, stream)?;
        }
        let recipients = self.recipients(room.key)?;
        let present = recipients.all.len() - usize::from(recipients.all.binary_search(sender).is_ok());
        let invitee = self.invitee(pdu)?;
        if present == 0 && invitee.is_none() {
            return Ok(());
        }
        let predefined = self.shared.predefined_rules();
        let joined = self.room_by_key(room.key)?.joined;
        let blind = self.who_may_not_see(placed, &recipients)?;
        let event = PushEvent::of(pdu);
        let mut evaluation = Evaluation {
            db: &self.db,
            placed,
            event,
            joined,
            steps_left: EVENT_STEPS_MAX,
            levels: OnceCell::new(),
            recipients: Some(&recipients),
            named: OnceCell::new(),
        };
        let usual = evaluation.actions(&predefined, None, None);
        let audience = self.thread_audience(room.key, thread.as_deref())?;
        let subscribed = |user: &UserId| audience.as_ref().and_then(|audience| audience.subscribed(user));
        let mut own: Vec<(UserId, Actions)> = Vec::new();
        for (user, settings) in recipients.special.iter().filter(|(user, _)| user != sender) {
            let actions = match &settings.rules {
                _ if settings.ignored.has(sender.as_str()) || blind.contains(user) => Actions::default(),
                Some(rules) => evaluation.actions(rules, Some(user), subscribed(user)),
                None => evaluation.actions(&predefined, Some(user), subscribed(user)),
            };
            own.push((user.clone(), actions));
        }
        let named = evaluation.event.names().filter(|user| self.is_local(user));
        let mut named: Vec<UserId> = named.filter_map(|user| UserId::parse(user).ok()).collect();
        if evaluation.event.may_name_in_body() {
            named.extend(evaluation.named().keys().filter_map(|place| recipients.all.get(*place).cloned()));
        }
        if pdu.membership() == Some(Membership::Knock) {
            // Those who may let the knocker in.
            let levels = evaluation.levels();
            named.extend(recipients.all.iter().filter(|user| levels.may_invite(user.as_str())).cloned());
        }
        order::sort(&mut named);
        named.dedup();
        named.retain(|user| user != sender && recipients.has_usual(user) && !blind.contains(user));
        for user in named {
            let actions = evaluation.actions(&predefined, Some(&user), subscribed(&user));
            own.push((user, actions));
        }
        let to_nobody = blind.into_iter().filter(|user| recipients.has_usual(user));
        own.extend(to_nobody.map(|user| (user, Actions::default())));
        if let Some(audience) = &audience {
            let others = recipients.all.iter().filter(|user| *user != sender);
            own.extend(
                audience.others(others, &own, |subscribed| {
                    evaluation.actions(&predefined, None, Some(subscribed))
                }),
            );
        }
        let invited = match &invitee {
            Some(user) => Some(self.actions_for(&mut evaluation, user)?),
            None => None,
        };
        if pdu.membership() == Some(Membership::Knock) {
            // It rings, and is no message that is to be read: it waits until somebody has answered it, whoever has looked.
            own.iter_mut().for_each(|(_, actions)| actions.outcome.uncounted = actions.outcome.notify);
        }
        let usual = in_common(usual, &mut own, recipients.all.iter().filter(|user| *user != sender));
        self.write_notifications(placed, thread.as_deref(), &usual, own)?;
        match (invitee, invited) {
            (Some(user), Some(actions)) if actions.outcome.notify => {
                let own = OwnNotification { user: &user, actions: &actions, instead_of: Outcome::default() };
                self.add_own_notification(&new_of(placed, thread.as_deref()), &own)
            }
            _ => Ok(()),
        }
    }

    fn write_notifications(
        &mut self,
        placed: &PlacedEvent<'_>,
        thread: Option<&str>,
        usual: &Actions,
        own: Vec<(UserId, Actions)>,
    ) -> Result<()> {
        let new = new_of(placed, thread);
        if usual.outcome.notify {
            self.add_notification(&new, usual)?;
        }
        for (user, actions) in own {
            let own = OwnNotification { user: &user, actions: &actions, instead_of: usual.outcome };
            self.add_own_notification(&new, &own)?;
        }
        Ok(())
    }

    /// Whom it makes a difference to that an event is in this thread. None: it is in no thread, or nobody follows any.
    fn thread_audience(&self, room: RoomKey, thread: Option<&str>) -> Result<Option<ThreadAudience>> {
        let Some(root) = thread else { return Ok(None) };
        let followers = self.thread_followers()?;
        if followers.is_empty() {
            return Ok(None);
        }
        Ok(Some(ThreadAudience { followers, subscribers: self.thread_subscribers(room, root)? }))
    }

    /// The local user whom an event invites, if they want to know.
    fn invitee(&self, pdu: &Pdu) -> Result<Option<UserId>> {
        let user = pdu.state_key().filter(|_| pdu.membership() == Some(Membership::Invite));
        let Some(user) = user.filter(|user| self.is_local(user)).and_then(|user| UserId::parse(user).ok())
        else {
            return Ok(None);
        };
        let is_shown = user != *pdu.sender() && self.shown_invites(&user)?(pdu.sender());
        Ok(is_shown.then_some(user))
    }

    fn actions_for(&self, evaluation: &mut Evaluation<'_, '_>, user: &UserId) -> Result<Actions> {
        let settings = self.push_settings(user)?;
        Ok(match settings.as_ref().and_then(|settings| settings.rules.as_ref()) {
            Some(rules) => evaluation.actions(rules, Some(user), None),
            None => evaluation.actions(&self.shared.predefined_rules(), Some(user), None),
        })
    }

    /// Notes that a user was invited to a room that this server is not in.
    pub(in crate::store) fn notify_of_remote_invite(
        &mut self,
        row: &RemoteMembership,
        stream: i64,
    ) -> Result<()> {
        let Some(pdu) = row.event.as_ref().filter(|pdu| pdu.membership() == Some(Membership::Invite)) else {
            return Ok(());
        };
        let user = &row.user_id;
        if user == pdu.sender() || !self.shown_invites(user)?(pdu.sender()) {
            return Ok(());
        }
        let room = Room {
            key: 0,
            room_id: row.room_id.clone(),
            version: row.room_version,
            resident: false,
            state: None,
            joined: 0,
            invited: 0,
        };
        let placed = PlacedEvent { room: &room, pdu, key: 0, stream, state_before: None, relates: false };
        let mut evaluation = Evaluation {
            db: &self.db,
            placed: &placed,
            event: PushEvent::of(pdu),
            joined: 0,
            steps_left: USER_STEPS_MAX,
            levels: OnceCell::new(),
            recipients: None,
            named: OnceCell::new(),
        };
        let actions = self.actions_for(&mut evaluation, user)?;
        if !actions.outcome.notify {
            return Ok(());
        }
        let own = OwnNotification { user, actions: &actions, instead_of: Outcome::default() };
        let new = NewNotification { event: None, room_id: Some(&row.room_id), ..new_of(&placed, None) };
        self.add_own_notification(&new, &own)
    }
}

fn new_of<'n>(placed: &PlacedEvent<'n>, thread: Option<&'n str>) -> NewNotification<'n> {
    NewNotification {
        stream: placed.stream,
        room: placed.room.key,
        event: Some(placed.key),
        room_id: None,
        thread,
    }
}

/// What the event is to the most of those `present`: something of their `own`, or what it is by the predefined rules.
/// Leaves those to whom it is something else.
fn in_common<'u>(
    predefined: Actions,
    own: &mut Vec<(UserId, Actions)>,
    present: impl Iterator<Item = &'u UserId> + Clone,
) -> Actions {
    let mut counts: HashMap<(u8, Option<&str>), (usize, &Actions)> = HashMap::new();
    for (_, actions) in own.iter() {
        let key = (actions.outcome.code(), actions.unusual.as_deref());
        counts.entry(key).or_insert((0, actions)).0 += 1;
    }
    let same = counts.get(&(predefined.outcome.code(), predefined.unusual.as_deref()));
    let usual = present.clone().count() - own.len() + same.map_or(0, |(count, _)| *count);
    let most = counts.values().max_by_key(|(count, _)| *count);
    let common = most.filter(|(count, _)| *count > usual).map(|(_, actions)| Actions::clone(actions));
    if let Some(common) = &common
        && *common != predefined
    {
        let of_own: HashSet<&UserId> = own.iter().map(|(user, _)| user).collect();
        let others: Vec<UserId> = present.filter(|user| !of_own.contains(user)).cloned().collect();
        own.extend(others.into_iter().map(|user| (user, predefined.clone())));
    }
    let common = common.unwrap_or(predefined);
    own.retain(|(_, actions)| *actions != common);
    common
}
