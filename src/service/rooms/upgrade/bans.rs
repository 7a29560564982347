//! The bans beyond those that come with a new room: carried over one by one in the background, the last ones first, across
//! a restart. How far that is goes with each ban, in its transaction, so that none is made twice: who is let in again in
//! the new room stays in.

use super::plan::ban_content;
use crate::clock::Millis;
use crate::error::Result;
use crate::protocol::pdu::Membership;
use crate::protocol::{RoomId, UserId};
use crate::service::events::build::Draft;
use crate::service::rooms::Rooms;
use crate::store::Tx;
use crate::store::rooms::memberships::RoomMember;
use crate::store::rooms::owed_bans::OwedBans;

/// Bans that are looked up together.
const PORTION: usize = 500;
/// When one is tried again that could not be made for a reason that passes, and how often.
const RETRY_MS: Millis = 10_000;
const ATTEMPTS_MAX: u32 = 20;

impl Rooms<'_> {
    /// Carries over the bans that a room is owed, as far as that is possible now. Errors: 500, 507.
    pub(in crate::service) fn carry_bans(&self, room_id: &RoomId) -> Result<()> {
        loop {
            let found = self.store.read(|db| {
                let Some(owed) = db.owed_bans(room_id)? else { return Ok(None) };
                let (Some(new), Some(old)) = (db.resident_room(room_id)?, db.room(&owed.old_room_id)?) else {
                    return Ok(Some((owed, Vec::new())));
                };
                if db.membership(new.key, &owed.sender)? != Some(Membership::Join) {
                    return Ok(Some((owed, Vec::new())));
                }
                let bans = db.bans_before(old.key, (owed.stream, &owed.user_id), PORTION)?;
                let reasons = bans.into_iter().map(|ban| {
                    let reason = db.pdu_by_key(ban.event)?.content_str("reason");
                    Ok((ban, reason))
                });
                Ok(Some((owed, reasons.collect::<Result<Vec<_>>>()?)))
            })?;
            let Some((owed, bans)) = found else { return Ok(()) };
            if bans.is_empty() {
                let room = room_id.clone();
                return self.store.write(move |tx| tx.end_owed_bans(&room));
            }
            let mut attempts = owed.attempts;
            for (ban, reason) in bans {
                if self.scheduler.is_stopping() || !self.carry_ban(&owed, &ban, reason, attempts)? {
                    return Ok(());
                }
                attempts = 0;
            }
        }
    }

    /// One ban. False: it is tried again later.
    fn carry_ban(
        &self,
        owed: &OwedBans,
        ban: &RoomMember,
        reason: Option<String>,
        attempts: u32,
    ) -> Result<bool> {
        let (room, stream, user) = (owed.room_id.clone(), ban.stream, ban.user_id.clone());
        let carried = {
            let (room, user) = (room.clone(), user.clone());
            move |tx: &mut Tx<'_>| tx.carried_ban(&room, (stream, user.as_str()))
        };
        let done = carried.clone();
        let draft = ban_draft(owed, &user, &reason);
        let Err(error) = self.events().send_with(draft, move |tx, _| done(tx)) else { return Ok(true) };
        let passes = error.status() == 429 || error.status() >= 500;
        if passes && attempts + 1 < ATTEMPTS_MAX {
            let due = self.clock.now_ms() + RETRY_MS;
            self.store.write(move |tx| tx.put_off_owed_bans(&room, due, true))?;
            return if error.is_own_failure() { Err(error) } else { Ok(false) };
        }
        log::info!("{user} is not banned from {room} after its upgrade: {error}");
        self.store.write(carried)?;
        Ok(true)
    }
}

fn ban_draft(owed: &OwedBans, user: &UserId, reason: &Option<String>) -> Draft {
    Draft {
        room: owed.room_id.clone(),
        sender: owed.sender.clone(),
        event_type: "m.room.member".to_owned(),
        state_key: Some(user.to_string()),
        content: ban_content(reason),
        redacts: None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, json};

    use crate::clock::Clock;
    use crate::config::Config;
    use crate::protocol::pdu::Membership;
    use crate::protocol::{RoomId, ServerName, UserId, room_version};
    use crate::service::Homeserver;
    use crate::service::events::build::Draft;
    use crate::service::rooms::create::CreateRoom;
    use crate::service::rooms::upgrade::{BANS_AT_ONCE_MAX, UpgradeRoom};

    #[test]
    fn bans_by_the_thousand_follow_a_room_that_was_upgraded_across_a_restart_and_each_once() {
        let config = Config::for_name(ServerName::parse("here.example").expect("a name"));
        // Nothing runs in the background of it, as if it were killed right after the upgrade.
        let hs = Homeserver::open(config.clone(), Clock::new()).expect("a server");
        let (alice, _) = hs.accounts().register_user("alice", None).expect("an account");
        let version = room_version::room_version("10").expect("a version");
        let public: CreateRoom = serde_json::from_value(json!({ "preset": "public_chat" })).expect("a room");
        let events = public.plan(&alice, &Map::new(), version, None).expect("its events");
        let old = hs.rooms().create_room_with(version, &alice, &events, |_, _| Ok(())).expect("made");
        let banned = |n: usize| UserId::parse(&format!("@u{n}:there.example")).expect("a user id");
        let member = |room: &RoomId, user: &UserId, membership: &str| Draft {
            room: room.clone(),
            sender: alice.clone(),
            event_type: "m.room.member".into(),
            state_key: Some(user.to_string()),
            content: Map::from_iter([
                ("membership".into(), membership.into()),
                ("reason".into(), "spam".into()),
            ]),
            redacts: None,
        };
        let more = 7;
        for n in 0..BANS_AT_ONCE_MAX + more {
            hs.events().send(member(&old, &banned(n), "ban")).expect("banned");
        }
        let asked: UpgradeRoom = serde_json::from_value(json!({ "new_version": "11" })).expect("a request");
        let new = hs.rooms().upgrade(&alice, &old, &asked).expect("upgraded");
        let bans = |hs: &Homeserver| {
            let members = hs.store.read(|db| db.members(db.known_room(&new)?.key, Some(Membership::Ban)));
            members.expect("read").len()
        };
        assert_eq!(bans(&hs), BANS_AT_ONCE_MAX, "the last ones first");
        let again = Homeserver::open_after(Some(&hs), config, Clock::new(), crate::federation::Client::new);
        let again = again.expect("the same server");
        again.rooms().carry_bans(&new).expect("carried over");
        assert_eq!(bans(&again), BANS_AT_ONCE_MAX + more);
        let first = again.store.read(|db| {
            let event = db.state_event(db.known_room(&new)?.key, "m.room.member", banned(0).as_str())?;
            Ok(event.and_then(|event| event.content_str("reason")))
        });
        assert_eq!(first.expect("read").as_deref(), Some("spam"));
        again.events().send(member(&new, &banned(0), "leave")).expect("let in again");
        again.rooms().carry_bans(&new).expect("nothing is owed");
        assert_eq!(bans(&again), BANS_AT_ONCE_MAX + more - 1, "and stays so");
        assert_eq!(again.store.read(|db| db.next_owed_bans_due()).expect("read"), None);
    }
}
