//! The bans beyond those that come with a new room: carried over one by one in the background, the last ones first, across
//! a restart. How far that is goes with each ban, in its transaction, so that none is made twice: who is let in again in
//! the new room stays in. So does who was invited there before their ban came: somebody who may has decided anew. Who came
//! by themselves, because the new room is open, has nobody's word for it and is banned. Who upgraded the room bans, or who
//! else of ours may; while nobody may, it waits.

use std::sync::mpsc;

use super::plan::ban_content;
use crate::clock::Millis;
use crate::error::{Error, Result};
use crate::protocol::event_auth::{PowerLevelKey, PowerLevels};
use crate::protocol::pdu::Membership;
use crate::protocol::{RoomId, UserId};
use crate::service::events::accept::Sent;
use crate::service::events::draft::Draft;
use crate::service::events::power_levels::{mightiest_local_member, power_levels};
use crate::service::rooms::Rooms;
use crate::store::accounts::Account;
use crate::store::rooms::memberships::RoomMember;
use crate::store::rooms::owed_bans::OwedBans;
use crate::store::{Db, Room, Tx};

/// Bans that are looked up together.
const PORTION: usize = 500;
/// When one is tried again that could not be made for a reason that passes, and how often.
const RETRY_MS: Millis = 10_000;
const ATTEMPTS_MAX: u32 = 20;
/// When it is looked again whether there is somebody who may ban: one who was away may come back, or be given the power.
const NOBODY_RETRY_MS: Millis = 10 * 60_000;
/// How many of somebody's member events are looked at for one that others made: those since are their own, such as a new name.
const OWN_MEMBER_EVENTS_MAX: usize = 100;

/// What has become of one ban.
#[derive(Debug, PartialEq, Eq)]
enum Carried {
    /// It was made, or never will be.
    Done,
    /// It is tried again later.
    Later,
    /// Who was to make it may not any more.
    NotByThem,
}

impl Rooms<'_> {
    /// Carries over the bans that a room is owed, as far as that is possible now. Errors: 500, 507.
    pub(in crate::service) fn carry_bans(&self, room_id: &RoomId) -> Result<()> {
        loop {
            let found = self.store.read(|db| {
                let Some(owed) = db.owed_bans(room_id)? else { return Ok(None) };
                let (Some(new), Some(old)) = (db.room(room_id)?, db.room(&owed.old_room_id)?) else {
                    return Ok(Some((owed, None, Vec::new())));
                };
                let bans = db.bans_before(old.key, (owed.stream, &owed.user_id), PORTION)?;
                let reasons = bans.into_iter().map(|ban| {
                    let reason = db.pdu_by_key(ban.event)?.content_str("reason");
                    Ok((ban, reason))
                });
                let by = who_bans(db, &new, &owed)?;
                Ok(Some((owed, by, reasons.collect::<Result<Vec<_>>>()?)))
            })?;
            let Some((owed, by, bans)) = found else { return Ok(()) };
            let room = room_id.clone();
            if bans.is_empty() {
                return self.store.write(move |tx| tx.end_owed_bans(&room));
            }
            let Some(by) = by else {
                let (due, is_new) = (self.clock.now_ms() + NOBODY_RETRY_MS, owed.attempts == 0);
                if is_new {
                    log::info!("bans of {} wait for somebody who may ban in {room}", owed.old_room_id);
                }
                return self.store.write(move |tx| tx.put_off_owed_bans(&room, due, is_new));
            };
            let mut attempts = owed.attempts;
            for (ban, reason) in bans {
                if self.scheduler.is_stopping() {
                    return Ok(());
                }
                match self.carry_ban((&owed, &by), &ban, reason, attempts)? {
                    Carried::Done => attempts = 0,
                    Carried::Later => return Ok(()),
                    Carried::NotByThem => break,
                }
            }
        }
    }

    /// One ban.
    fn carry_ban(
        &self,
        (owed, by): (&OwedBans, &UserId),
        ban: &RoomMember,
        reason: Option<String>,
        attempts: u32,
    ) -> Result<Carried> {
        let (room, stream, user) = (owed.room_id.clone(), ban.stream, ban.user_id.clone());
        let carried = {
            let (room, user) = (room.clone(), user.clone());
            move |tx: &mut Tx<'_>| tx.carried_ban(&room, (stream, user.as_str()))
        };
        let (done, banned) = (carried.clone(), user.clone());
        let draft = ban_draft(&room, by, &user, &reason);
        let (note, was_decided) = mpsc::channel();
        let sent = self.events().send_with(draft, move |tx, ban| {
            if is_decided_anew(tx, ban, &banned)? {
                // Nobody is left to hear it only if we stopped waiting for the commit.
                let _ = note.send(());
                return Err(Error::internal("undone: the room has decided about them"));
            }
            done(tx)
        });
        let Err(error) = sent else { return Ok(Carried::Done) };
        if was_decided.try_recv().is_ok() {
            log::info!(
                "{user} is not banned from {room} after its upgrade: the new room has decided about them"
            );
            self.store.write(carried)?;
            return Ok(Carried::Done);
        }
        let passes = error.status() == 429 || error.status() >= 500;
        if passes && attempts + 1 < ATTEMPTS_MAX {
            if error.is_own_failure() {
                // It is put off by whoever took it up.
                return Err(error);
            }
            let due = self.clock.now_ms() + RETRY_MS;
            self.store.write(move |tx| tx.put_off_owed_bans(&room, due, true))?;
            return Ok(Carried::Later);
        }
        let may_still = self.store.read(|db| match db.room(&room)? {
            Some(new) => Ok(who_bans(db, &new, owed)?.as_ref() == Some(by)),
            None => Ok(false),
        })?;
        if !may_still {
            return Ok(Carried::NotByThem);
        }
        log::info!("{user} is not banned from {room} after its upgrade: {error}");
        self.store.write(carried)?;
        Ok(Carried::Done)
    }
}

/// Whether what a user was in the new room until this ban of theirs is somebody else's word of there: an invite, with which they may
/// have come in since, or a ban, and its end. Who took an invite back decided that it does not count, and who kicked somebody lets
/// nobody in.
fn is_decided_anew(db: &Db<'_>, ban: &Sent, user: &UserId) -> Result<bool> {
    let mut state = db.event_by_key(ban.key)?.state_before;
    let mut taken_back = false;
    for _ in 0..OWN_MEMBER_EVENTS_MAX {
        let Some(before) = state.map(|state| db.state_event_in(state, "m.room.member", user.as_str())) else {
            return Ok(false);
        };
        let Some(member) = before? else { return Ok(false) };
        match member.membership() {
            Some(Membership::Ban) => return Ok(true),
            _ if taken_back => return Ok(false),
            Some(Membership::Invite) => return Ok(true),
            _ => taken_back = member.sender() != user,
        }
        state = db.event(member.event_id())?.and_then(|event| event.state_before);
    }
    Ok(false)
}

/// In whose name bans are carried over: that of the user who upgraded the room, or, where that one has left it or may ban nobody
/// any more, that of the local member who has most power. Who is suspended or locked, or has closed their account, does nothing
/// else either. None: there is nobody who may, for now.
fn who_bans(db: &Db<'_>, new: &Room, owed: &OwedBans) -> Result<Option<UserId>> {
    if !new.resident {
        return Ok(None);
    }
    let may_ban = |levels: &PowerLevels, user: &UserId| {
        let has_power = levels.user(user.as_str()).reaches(levels.named(PowerLevelKey::Ban));
        Ok(has_power && db.account(user)?.is_some_and(|account| is_free_to_act(&account)))
    };
    let is_in = db.membership(new.key, &owed.sender)? == Some(Membership::Join);
    if is_in && may_ban(&power_levels(db, new)?, &owed.sender)? {
        return Ok(Some(owed.sender.clone()));
    }
    mightiest_local_member(db, new, may_ban)
}

fn is_free_to_act(account: &Account) -> bool {
    !account.deactivated && !account.standing.suspended && !account.standing.locked
}

fn ban_draft(room: &RoomId, by: &UserId, user: &UserId, reason: &Option<String>) -> Draft {
    Draft {
        room: room.clone(),
        sender: by.clone(),
        event_type: "m.room.member".to_owned(),
        state_key: Some(user.to_string()),
        content: ban_content(reason),
        redacts: None,
        origin_server_ts: None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Map, json};

    use super::*;
    use crate::clock::Clock;
    use crate::config::Config;
    use crate::protocol::{ServerName, room_version};
    use crate::service::Homeserver;
    use crate::service::accounts::moderation::Administrator;
    use crate::service::membership::JoinTarget;
    use crate::service::rooms::create::CreateRoom;
    use crate::service::rooms::upgrade::{BANS_AT_ONCE_MAX, UpgradeRoom};

    /// A server, users of it, a room of the first of them with so many bans beyond those that come with a new room, in which the
    /// second one is a moderator, and the room that has replaced it. Nothing runs in the background, as if it were killed right
    /// after the upgrade.
    struct Replaced {
        hs: Arc<Homeserver>,
        config: Config,
        alice: UserId,
        bob: UserId,
        new: RoomId,
    }

    fn banned(n: usize) -> UserId {
        UserId::parse(&format!("@u{n}:here.example")).expect("a user id")
    }

    fn member(room: &RoomId, by: &UserId, user: &UserId, membership: &str) -> Draft {
        Draft {
            room: room.clone(),
            sender: by.clone(),
            event_type: "m.room.member".into(),
            state_key: Some(user.to_string()),
            content: Map::from_iter([
                ("membership".into(), membership.into()),
                ("reason".into(), "spam".into()),
            ]),
            redacts: None,
            origin_server_ts: None,
        }
    }

    impl Replaced {
        fn with_more_bans(more: usize) -> Self {
            let config = Config::for_name(ServerName::parse("here.example").expect("a name"));
            let hs = Homeserver::open(config.clone(), Clock::new()).expect("a server");
            let user = |name: &str| hs.accounts().register_user(name, None).expect("an account").0;
            let (alice, bob) = (user("alice"), user("bob"));
            let version = room_version::room_version("10").expect("a version");
            let levels = json!({ "users": { alice.as_str(): 100, bob.as_str(): 50 } });
            let public = json!({ "preset": "public_chat", "power_level_content_override": levels });
            let public: CreateRoom = serde_json::from_value(public).expect("a room");
            let events = public.plan(&alice, &Map::new(), version, None).expect("its events");
            let old = hs.rooms().create_room_with(version, &alice, &events, |_, _| Ok(())).expect("made");
            for n in 0..BANS_AT_ONCE_MAX + more {
                hs.events().send(member(&old, &alice, &banned(n), "ban")).expect("banned");
            }
            let asked: UpgradeRoom =
                serde_json::from_value(json!({ "new_version": "11" })).expect("a request");
            let new = hs.rooms().upgrade(&alice, &old, &asked).expect("upgraded");
            Self { hs, config, alice, bob, new }
        }

        fn bans(&self) -> usize {
            let members =
                self.hs.store.read(|db| db.members(db.known_room(&self.new)?.key, Some(Membership::Ban)));
            members.expect("read").len()
        }

        /// Who banned somebody, and why.
        fn ban_of(&self, user: &UserId) -> (String, Option<String>) {
            let event = self
                .hs
                .store
                .read(|db| db.state_event(db.known_room(&self.new)?.key, "m.room.member", user.as_str()));
            let event = event.expect("read").expect("a ban");
            (event.sender().to_string(), event.content_str("reason"))
        }

        fn owed(&self) -> Option<OwedBans> {
            self.hs.store.read(|db| db.owed_bans(&self.new)).expect("read")
        }
    }

    #[test]
    fn bans_by_the_thousand_follow_a_room_that_was_upgraded_across_a_restart_and_each_once() {
        let more = 7;
        let before = Replaced::with_more_bans(more);
        assert_eq!(before.bans(), BANS_AT_ONCE_MAX, "the last ones first");
        let (config, clock) = (before.config.clone(), Clock::new());
        let hs = Homeserver::open_after(Some(&before.hs), config, clock, crate::federation::Client::new);
        let after = Replaced { hs: hs.expect("the same server"), ..before };
        after.hs.rooms().carry_bans(&after.new).expect("carried over");
        assert_eq!(after.bans(), BANS_AT_ONCE_MAX + more);
        assert_eq!(after.ban_of(&banned(0)), (after.alice.to_string(), Some("spam".into())));
        let let_in = member(&after.new, &after.alice, &banned(0), "leave");
        after.hs.events().send(let_in).expect("let in again");
        after.hs.rooms().carry_bans(&after.new).expect("nothing is owed");
        assert_eq!(after.bans(), BANS_AT_ONCE_MAX + more - 1, "and stays so");
        assert_eq!(after.owed(), None);
    }

    #[test]
    fn bans_follow_a_room_whose_upgrader_has_left_it_as_soon_as_somebody_of_ours_may_ban_there() {
        let room = Replaced::with_more_bans(3);
        let (hs, new) = (&room.hs, &room.new);
        let (carol, _) = hs.accounts().register_user("carol", None).expect("an account");
        let target = JoinTarget { room_id: new.clone(), via: Vec::new() };
        hs.membership().join(&carol, &target, None).expect("joined");
        // Who was to ban is gone, and nobody else of this server may: what is owed is not forgotten.
        hs.membership().leave(&room.alice, new, None).expect("left");
        hs.rooms().carry_bans(new).expect("nobody may");
        hs.rooms().carry_bans(new).expect("nobody may");
        let owed = room.owed().expect("it is owed still");
        assert_eq!((room.bans(), &owed.sender), (BANS_AT_ONCE_MAX, &room.alice));
        let due = hs.store.read(|db| db.next_owed_bans_due()).expect("read").expect("it is");
        assert!(due > hs.clock.now_ms(), "and keeps nobody busy meanwhile");
        // A moderator does. Of those who leave while it is under way no ban is lost.
        hs.membership().join(&room.bob, &target, None).expect("joined");
        let (old, last) = (&owed.old_room_id, (owed.stream, owed.user_id.as_str()));
        let bans = hs.store.read(|db| db.bans_before(db.known_room(old)?.key, last, 1)).expect("read");
        let tried = hs.rooms().carry_ban((&owed, &room.alice), &bans[0], None, 0).expect("tried");
        assert_eq!((tried, room.bans()), (Carried::NotByThem, BANS_AT_ONCE_MAX));
        hs.rooms().carry_bans(new).expect("carried over");
        assert_eq!((room.bans(), room.owed()), (BANS_AT_ONCE_MAX + 3, None));
        assert_eq!(room.ban_of(&banned(0)), (room.bob.to_string(), Some("spam".into())));
        assert_eq!(room.ban_of(&banned(3)).0, room.alice.as_str());
    }

    #[test]
    fn who_was_let_into_the_new_room_anew_is_not_banned_there_and_who_came_by_themselves_or_was_put_out_is() {
        let room = Replaced::with_more_bans(7);
        let (hs, new, alice) = (&room.hs, &room.new, &room.alice);
        let say = |by: &UserId, user: &UserId, membership: &str| {
            hs.events().send(member(new, by, user, membership)).expect("allowed");
        };
        let [invited, came, open, rescinded, kicked, unbanned, rejected] = [0, 1, 2, 3, 4, 5, 6].map(banned);
        say(alice, &invited, "invite");
        say(alice, &came, "invite");
        for _ in 0..3 {
            // The next ones are no more than a new name.
            say(&came, &came, "join");
            say(&open, &open, "join");
        }
        say(alice, &rescinded, "invite");
        say(alice, &rescinded, "leave");
        say(&kicked, &kicked, "join");
        say(alice, &kicked, "leave");
        say(alice, &unbanned, "ban");
        say(alice, &unbanned, "leave");
        say(alice, &rejected, "invite");
        say(&rejected, &rejected, "leave");
        hs.rooms().carry_bans(new).expect("carried over");
        assert_eq!(room.owed(), None);
        let is = |user: &UserId| {
            hs.store.read(|db| db.membership(db.known_room(new)?.key, user)).expect("read").expect("a member")
        };
        let (stays, is_banned) = ([&invited, &came, &unbanned, &rejected], [&open, &rescinded, &kicked]);
        assert_eq!(
            stays.map(is),
            [Membership::Invite, Membership::Join, Membership::Leave, Membership::Leave]
        );
        assert_eq!(is_banned.map(is), [Membership::Ban; 3]);
    }

    #[test]
    fn nobody_who_is_suspended_bans_in_a_room_because_another_was_upgraded() {
        let room = Replaced::with_more_bans(1);
        let (hs, new) = (&room.hs, &room.new);
        let target = JoinTarget { room_id: new.clone(), via: Vec::new() };
        hs.membership().join(&room.bob, &target, None).expect("joined");
        hs.membership().leave(&room.alice, new, None).expect("left");
        let suspend = |to: bool| {
            let by = Administrator::Operator;
            hs.accounts().change_standing(&by, &room.bob, move |standing| standing.suspended = to)
        };
        suspend(true).expect("suspended");
        hs.rooms().carry_bans(new).expect("nobody may");
        assert!(room.owed().is_some());
        assert_eq!(room.bans(), BANS_AT_ONCE_MAX);
        suspend(false).expect("not any more");
        hs.rooms().carry_bans(new).expect("carried over");
        assert_eq!((room.bans(), room.owed()), (BANS_AT_ONCE_MAX + 1, None));
        assert_eq!(room.ban_of(&banned(0)).0, room.bob.as_str());
    }
}
