//! Login tokens ("Login via existing session", `m.login.token`): who is logged in, and proves it once more, gets a token by
//! which another client logs in. A token is good once and for two minutes, and ends with the device that asked for it.

use super::token_hash;
use crate::clock::Millis;
use crate::error::{ErrCode, Error, Result};
use crate::protocol::UserId;
use crate::random;
use crate::service::accounts::Accounts;
use crate::service::accounts::sessions::{Login, NewLogin};

/// "`120000` (2 minutes) is recommended as a default."
pub const LOGIN_TOKEN_LIFE_MS: Millis = 120_000;
/// How many tokens a user has at a time; a new one takes the place of the oldest.
const LOGIN_TOKENS_MAX: usize = 5;

impl Accounts<'_> {
    /// A new token by which one client can log in as the user, whose device asks for it. Errors: 401 `M_UNKNOWN_TOKEN` if
    /// the device was logged out meanwhile.
    pub fn make_login_token(&self, user: &UserId, device: &str) -> Result<String> {
        let token = random::token();
        let (user, device, hash, now) =
            (user.clone(), device.to_owned(), token_hash(&token), self.clock.now_ms());
        let life = (now, now + LOGIN_TOKEN_LIFE_MS);
        let added = self
            .store
            .write(move |tx| tx.add_login_token((&user, &device), &hash, life, LOGIN_TOKENS_MAX))?;
        let gone = || Error::new(ErrCode::UnknownToken, "This device was logged out");
        if added { Ok(token) } else { Err(gone()) }
    }

    /// Logs in by a login token, which is used up if and only if that works. Errors: 403 `M_FORBIDDEN` for a token that is
    /// not good (any more); as [`Accounts::log_in_with`].
    pub fn log_in_by_token(&self, token: &str, login: &NewLogin<'_>) -> Result<Login> {
        let now = self.clock.now_ms();
        let prepared = login.prepared(now)?;
        let hash = token_hash(token);
        let unknown = || Error::forbidden("The login token is unknown, used or expired");
        // Who guesses keeps no writer busy.
        let user = self.store.read(|db| db.login_token_user(&hash, now))?.ok_or_else(unknown)?;
        let (owner, session) = (user.clone(), prepared.clone());
        self.store.write(move |tx| {
            if tx.login_token_user(&hash, now)?.as_ref() != Some(&owner) {
                return Err(unknown());
            }
            tx.forget_login_token(&hash)?;
            session.begin(tx, &owner)
        })?;
        Ok(prepared.into_login(&user))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Barrier};
    use std::time::Duration;

    use super::*;
    use crate::config::Config;
    use crate::protocol::ServerName;
    use crate::service::Homeserver;
    use crate::store::accounts::Standing;

    /// A server with a user, and a device of theirs.
    fn scene() -> (Arc<Homeserver>, UserId) {
        let hs = crate::testing::secluded(Config::for_name(ServerName::parse("example.org").unwrap()));
        let (alice, _) = hs.accounts().register_user("alice", None).unwrap();
        hs.accounts().log_in(&alice, Some("PHONE"), None, false).unwrap();
        (hs, alice)
    }

    fn lock(hs: &Homeserver, user: &UserId, locked: bool) {
        let user = user.clone();
        hs.store.write(move |tx| tx.set_standing(&user, Standing { locked, ..Standing::default() })).unwrap();
    }

    fn log_in(hs: &Homeserver, token: &str) -> Result<Login> {
        hs.accounts().log_in_by_token(token, &NewLogin::default())
    }

    #[test]
    fn login_tokens_are_bounded_in_number_and_go_with_time() {
        let (hs, alice) = scene();
        let make = || hs.accounts().make_login_token(&alice, "PHONE").unwrap();
        let first = make();
        let rest: Vec<_> = (0..LOGIN_TOKENS_MAX)
            .map(|_| {
                hs.clock.advance(Duration::from_millis(1));
                make()
            })
            .collect();
        let kept = || hs.store.read(|db| db.login_tokens()).unwrap();
        assert_eq!(kept(), LOGIN_TOKENS_MAX);
        assert_eq!(log_in(&hs, &first).unwrap_err().status(), 403, "the oldest had to go");
        assert_eq!(log_in(&hs, &rest[0]).unwrap().user_id, alice);
        hs.clock.advance(Duration::from_millis(LOGIN_TOKEN_LIFE_MS as u64));
        assert_eq!(log_in(&hs, &rest[1]).unwrap_err().errcode(), ErrCode::Forbidden);
        make();
        assert_eq!(kept(), 1, "a new one takes out those that have expired");
    }

    #[test]
    fn of_many_who_log_in_by_one_token_at_once_one_is_logged_in() {
        let (hs, alice) = scene();
        let token = hs.accounts().make_login_token(&alice, "PHONE").unwrap();
        let start = Barrier::new(8);
        let logins = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        start.wait();
                        log_in(&hs, &token).is_ok()
                    })
                })
                .collect();
            threads.into_iter().filter_map(|thread| thread.join().ok()).filter(|in_| *in_).count()
        });
        assert_eq!(logins, 1);
        assert_eq!(hs.store.read(|db| db.login_tokens()).unwrap(), 0);
    }

    #[test]
    fn a_login_token_ends_with_the_device_that_asked_for_it_and_is_kept_where_nobody_was_logged_in() {
        let (hs, alice) = scene();
        hs.accounts().log_in(&alice, Some("TABLET"), None, false).unwrap();
        let of = |device: &str| hs.accounts().make_login_token(&alice, device).unwrap();
        let (phones, tablets) = (of("PHONE"), of("TABLET"));
        hs.accounts().delete_devices(&alice, vec!["PHONE".into()]).unwrap();
        assert_eq!(log_in(&hs, &phones).unwrap_err().errcode(), ErrCode::Forbidden);
        assert_eq!(
            hs.accounts().make_login_token(&alice, "PHONE").unwrap_err().errcode(),
            ErrCode::UnknownToken
        );
        let impossible = NewLogin { device_id: Some(""), ..NewLogin::default() };
        assert_eq!(hs.accounts().log_in_by_token(&tablets, &impossible).unwrap_err().status(), 400);
        lock(&hs, &alice, true);
        assert_eq!(log_in(&hs, &tablets).unwrap_err().errcode(), ErrCode::UserLocked);
        lock(&hs, &alice, false);
        assert!(log_in(&hs, &tablets).is_ok());
        let last = of("TABLET");
        hs.deactivate(&alice, false).unwrap();
        assert_eq!(log_in(&hs, &last).unwrap_err().errcode(), ErrCode::Forbidden);
    }
}
