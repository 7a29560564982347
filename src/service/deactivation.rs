//! Deactivation (client-server API, "Account deactivation"): an account is closed, and its user leaves all rooms. That they are
//! to be left is written down with the closing: what cannot be left at once, or is cut short, is left by the timer. It stands above
//! `accounts` and `membership`, of which neither knows the other.

use super::Homeserver;
use crate::clock::Millis;
use crate::error::{Error, Result};
use crate::protocol::UserId;
use crate::protocol::appservice::Appservice;
use crate::protocol::pdu::Membership;
use crate::service::accounts::check_not_last_admin;
use crate::service::accounts::moderation::{Administrator, check_still_admin};
use crate::service::accounts::passwords::PasswordProof;

/// When it is tried again to leave rooms that could not be left.
const LEAVING_RETRY_MS: Millis = 60_000;

impl Homeserver {
    /// Closes an account for good, and leaves its rooms. Its name stays taken; of a guest's there is nothing else left. With
    /// `erase`, what it sent is shown redacted to those who come later (see `service/events/erasure.rs`), and what else there
    /// is of it is deleted.
    pub fn deactivate(&self, user: &UserId, erase: bool) -> Result<()> {
        self.accounts().close(user, erase, |_, _| Ok(()))?;
        self.leave_all_rooms(user);
        Ok(())
    }

    /// The same for who has proved that the account is theirs. Errors: 403 `M_FORBIDDEN` if the password is theirs no more.
    pub fn deactivate_own(&self, proof: &PasswordProof, erase: bool) -> Result<()> {
        let user = proof.user();
        if self.store.read(|db| db.is_last_admin(user))? {
            log::warn!(
                "{user}, the only administrator, closes the account: `doorstep user admin` makes another"
            );
        }
        let proved = proof.clone();
        self.accounts().close(user, erase, move |db, _| proved.check(db))?;
        self.leave_all_rooms(user);
        Ok(())
    }

    /// The same for an application service, which need not prove anything of its users. Errors: 403 `M_FORBIDDEN` for the user that it
    /// speaks with itself, which nobody could bring back, and for the only administrator there is.
    pub fn deactivate_by_service(&self, service: &Appservice, user: &UserId, erase: bool) -> Result<()> {
        if service.sender == *user {
            let own = "The application service cannot do without its own user: name another as user_id in the query";
            return Err(Error::forbidden(own));
        }
        self.accounts().close(user, erase, check_not_last_admin)?;
        log::info!("the application service {:?} has closed the account {user}", service.id);
        self.leave_all_rooms(user);
        Ok(())
    }

    /// The same for an administrator. Errors: 403 `M_FORBIDDEN` for the only administrator there is, and
    /// where the one who asks is none any more.
    pub(super) fn deactivate_by_admin(&self, by: &Administrator, user: &UserId, erase: bool) -> Result<()> {
        let by = by.clone();
        self.accounts().close(user, erase, move |db, user| {
            check_still_admin(db, &by)?;
            check_not_last_admin(db, user)
        })?;
        self.leave_all_rooms(user);
        Ok(())
    }

    /// What is left to do once the account is closed. It is, whatever becomes of this: who asked could not even ask again.
    pub(super) fn leave_all_rooms(&self, user: &UserId) {
        if let Err(error) = self.pursue_deactivation(user) {
            log::log!(
                error.level(log::Level::Error),
                "{user} was deactivated, and leaves rooms later: {error}"
            );
        }
    }

    /// Has a user whose account is closed leave all rooms. What cannot be left for a reason that passes is left later. Errors: 500,
    /// 507.
    pub(super) fn pursue_deactivation(&self, user: &UserId) -> Result<()> {
        let present = |m: Membership| matches!(m, Membership::Join | Membership::Invite | Membership::Knock);
        let rooms = self.store.read(|db| {
            let here = db.rooms_of(user)?.into_iter().filter(|room| present(room.membership));
            let elsewhere = db.rooms_dealt_with_from_outside(user)?;
            Ok(here.map(|room| room.room_id).chain(elsewhere).collect::<Vec<_>>())
        })?;
        let mut done = true;
        for room in rooms {
            if self.scheduler.is_stopping() {
                return Ok(());
            }
            // One odd room must not keep the user in all the others.
            let Err(e) = self.membership().leave(user, &room, None) else { continue };
            log::log!(e.level(log::Level::Warn), "{user} was deactivated and cannot leave {room}: {e}");
            done &= e.status() < 500 && e.status() != 429;
        }
        let (user, again) = (user.clone(), self.clock.now_ms() + LEAVING_RETRY_MS);
        self.store.write(move |tx| {
            tx.delete_pending_media_of(&user)?;
            match done {
                true => tx.deactivated_user_left(&user),
                false => tx.put_off_deactivation(&user, again),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::clock::Clock;
    use crate::config::Config;
    use crate::error::ErrCode;
    use crate::protocol::{RoomId, ServerName, UserId};
    use crate::service::Homeserver;
    use crate::service::accounts::NewAccount;
    use crate::service::accounts::moderation::Administrator;
    use crate::service::accounts::sessions::NewLogin;
    use crate::service::membership::JoinTarget;
    use crate::service::rooms::create::CreateRoom;
    use crate::store::ephemeral::presence::PresenceState;
    use crate::testing::TestServer;

    #[test]
    fn what_a_user_had_begun_brings_them_into_no_room_once_their_account_is_closed() {
        has_no_way_in(|hs| {
            let user = UserId::parse(&format!("@bob:{}", hs.server_name())).unwrap();
            hs.deactivate(&user, false).unwrap();
            user
        });
    }

    #[test]
    fn what_a_guest_had_begun_brings_them_into_no_room_once_they_are_forgotten() {
        has_no_way_in(|hs| {
            let guest = hs.register_guest(&NewLogin::default()).unwrap().user_id;
            hs.deactivate(&guest, false).unwrap();
            assert!(hs.store.read(|db| db.account(&guest)).unwrap().is_none());
            guest
        });
    }

    #[test]
    fn a_guest_whose_account_was_being_closed_when_the_server_stopped_is_forgotten_and_nobody_gets_their_name()
     {
        let mut config = Config::for_name(ServerName::parse("here.example").unwrap());
        config.guests = true;
        let hs = Homeserver::open(config.clone(), Clock::new()).unwrap();
        let (admin, _) = hs.accounts().register_user("admin", None).unwrap();
        let guest = || hs.register_guest(&NewLogin::default()).unwrap().user_id;
        let (closed, left, erased, stays) = (guest(), guest(), guest(), guest());
        // One was closed and has not left yet, one has; and then it stopped.
        hs.accounts().close(&closed, false, |_, _| Ok(())).unwrap();
        hs.accounts().close(&left, false, |_, _| Ok(())).unwrap();
        let has_left = left.to_string();
        hs.store
            .write(move |tx| {
                Ok(tx
                    .conn()
                    .execute("UPDATE users SET leaving_due_ms = NULL WHERE user_id = ?1", [has_left])?)
            })
            .unwrap();
        hs.accounts().close(&erased, true, |_, _| Ok(())).unwrap();
        let again = Homeserver::open_after(Some(&hs), config, Clock::new(), crate::federation::Client::new);
        let hs = again.unwrap();
        for user in hs.store.read(|db| db.unfinished_deactivations()).unwrap() {
            hs.pursue_deactivation(&user).unwrap();
        }
        let account = |user: &UserId| hs.store.read(|db| db.account(user)).unwrap();
        for gone in [&closed, &left] {
            assert!(account(gone).is_none(), "{gone}");
        }
        // What they wrote is hidden: that is all that there is of them.
        assert!(account(&erased).unwrap().deactivated);
        assert!(hs.store.read(|db| db.erased_users()).unwrap().contains_key(erased.as_str()));
        assert_eq!(
            hs.store.read(|db| db.count_guests()).unwrap(),
            1,
            "those who are gone take nobody's place"
        );
        // Whatever way somebody asks for such a name, and whether it was anybody's.
        let never = UserId::parse("@guest-abcdefghijkl:here.example").unwrap();
        for name in [&closed, &left, &erased, &stays, &never].map(UserId::localpart) {
            let taken = hs.accounts().available_user_id(name).unwrap_err();
            assert_eq!(taken.errcode(), ErrCode::UserInUse, "{name}");
            let new = NewAccount { localpart: Some(name), ..NewAccount::default() };
            for made in [
                hs.accounts().create_account(&new, None).map(drop),
                hs.admin().add_account(&Administrator::User(admin.clone()), &new).map(drop),
            ] {
                assert_eq!(made.unwrap_err().errcode(), ErrCode::UserInUse, "{name}");
            }
            let user = UserId::parse(&format!("@{name}:here.example")).unwrap();
            let made = hs.store.write(move |tx| tx.create_account(&user, None, false, 0)).unwrap();
            assert!(!made, "at the same moment: {name}");
        }
        for other in ["guest-abc", "guest", "guest-abcdefghijk1", "aguest-abcdefghijkl"] {
            hs.accounts().register_user(other, None).unwrap();
        }
        // Who has become a user has the name for good.
        let new = NewAccount { password: Some("x"), ..NewAccount::default() };
        hs.upgrade_guest(&stays, &new, None).unwrap();
        hs.deactivate(&stays, false).unwrap();
        assert!(account(&stays).unwrap().deactivated);
    }

    #[test]
    fn a_guest_who_becomes_a_user_while_they_are_to_make_place_keeps_the_account() {
        let mut config = Config::for_name(ServerName::parse("here.example").unwrap());
        config.guests = true;
        let hs = Homeserver::open(config, Clock::new()).unwrap();
        let guest = || hs.register_guest(&NewLogin::default()).unwrap().user_id;
        let (quietest, next) = (guest(), guest());
        let new = NewAccount { password: Some("x"), ..NewAccount::default() };
        hs.upgrade_guest(&quietest, &new, None).unwrap();
        assert_eq!(hs.end_guest_account(&quietest).unwrap_err().errcode(), ErrCode::LimitExceeded);
        assert!(hs.store.read(|db| db.is_active_user(&quietest)).unwrap());
        hs.end_guest_account(&next).unwrap();
        assert!(hs.store.read(|db| db.account(&next)).unwrap().is_none());
    }

    #[test]
    fn the_presence_of_whom_nothing_is_kept_is_not_written_down_again_when_they_count_as_gone() {
        let mut config = Config::for_name(ServerName::parse("here.example").unwrap());
        config.guests = true;
        let hs = Homeserver::open(config, Clock::new()).unwrap();
        let user = |name: &str| hs.accounts().register_user(name, None).unwrap().0;
        let (_admin, erased, closed) = (user("admin"), user("erased"), user("closed"));
        let guest = hs.register_guest(&NewLogin::default()).unwrap().user_id;
        let presence = |user: &UserId| hs.store.read(|db| db.presence(user)).unwrap();
        for user in [&guest, &erased, &closed] {
            let status = Some("at the sea".to_owned());
            hs.ephemeral().set_presence(user, None, PresenceState::Online, status).unwrap();
            assert!(presence(user).is_some());
            hs.deactivate(user, user == &erased).unwrap();
        }
        hs.ephemeral().expire_presence(hs.clock.now_ms() + 10 * 60_000).unwrap();
        assert_eq!([&guest, &erased].map(presence), [None, None]);
        assert_eq!(presence(&closed).map(|known| known.state), Some(PresenceState::Offline));
    }

    /// What requests do that were let in before an account was closed, and are done after it has left everything.
    fn has_no_way_in(closed: impl FnOnce(&Homeserver) -> UserId) {
        let (here, there) = (TestServer::start_with(|config| config.guests = true), TestServer::start());
        let (alice, _, carol) = (here.user("alice"), here.user("bob"), there.user("carol"));
        let public = json!({ "preset": "public_chat" });
        let knocking = json!({ "initial_state": [
            { "type": "m.room.join_rules", "state_key": "", "content": { "join_rule": "knock" } }] });
        let rooms = [
            (alice.create_room_with(public.clone()), alice.create_room_with(knocking.clone()), here.name()),
            (carol.create_room_with(public), carol.create_room_with(knocking), there.name()),
        ];
        let hs = here.homeserver();
        let user = closed(hs);
        for (open, knockable, via) in &rooms {
            let target = |room: &str| JoinTarget {
                room_id: RoomId::parse(room).unwrap(),
                via: vec![ServerName::parse(via).unwrap()],
            };
            let joined = hs.membership().join(&user, &target(open), None).unwrap_err();
            assert_eq!(joined.errcode(), ErrCode::Forbidden, "{joined}");
            let knocked = hs.membership().knock(&user, &target(knockable), None).unwrap_err();
            assert_eq!(knocked.errcode(), ErrCode::Forbidden, "{knocked}");
        }
        let request: CreateRoom = serde_json::from_value(json!({})).unwrap();
        let made = hs.rooms().create_room(&user, &request).unwrap_err();
        assert_eq!((made.status(), made.message()), (400, "There is no such account any more"));
        assert!(hs.store.read(|db| db.rooms_of(&user)).unwrap().is_empty());
        assert!(hs.store.read(|db| db.rooms_dealt_with_from_outside(&user)).unwrap().is_empty());
    }
}
