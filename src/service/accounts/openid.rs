//! OpenID: a user proves to a third party who they are, by a token that the third party shows to this server.

use super::token_hash;
use crate::clock::Millis;
use crate::error::{ErrCode, Error, Result};
use crate::protocol::UserId;
use crate::random;
use crate::service::accounts::Accounts;

/// For how long a token is good.
pub const TOKEN_LIFE_MS: Millis = 3_600_000;
/// How many tokens a user has at a time; a new one takes the place of the oldest.
const TOKENS_MAX: usize = 50;

impl Accounts<'_> {
    /// A new token that proves who this user is for [`TOKEN_LIFE_MS`], and is good for nothing else.
    pub fn make_openid_token(&self, user: &UserId) -> Result<String> {
        let token = random::token();
        let (user, hash, now) = (user.clone(), token_hash(&token), self.clock.now_ms());
        self.store
            .write(move |tx| tx.add_openid_token(&user, &hash, (now, now + TOKEN_LIFE_MS), TOKENS_MAX))?;
        Ok(token)
    }

    /// Whom a token stands for. Errors: 401 `M_UNKNOWN_TOKEN`.
    pub fn openid_user(&self, token: &str) -> Result<UserId> {
        let now = self.clock.now_ms();
        let user = self.store.read(|db| db.openid_user(&token_hash(token), now))?;
        user.ok_or_else(|| Error::new(ErrCode::UnknownToken, "Access token unknown or expired"))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::clock::Clock;
    use crate::config::{Config, Data};
    use crate::protocol::ServerName;
    use crate::service::Homeserver;

    #[test]
    fn tokens_are_bounded_in_number_and_go_with_time() {
        let mut config = Config::for_name(ServerName::parse("here.example").unwrap());
        config.data = Data::Memory;
        let clock = Clock::new();
        let hs = Homeserver::open(config, clock.clone()).unwrap();
        let (alice, _) = hs.accounts().register_user("alice", None).unwrap();
        let first = hs.accounts().make_openid_token(&alice).unwrap();
        for _ in 0..super::TOKENS_MAX {
            clock.advance(Duration::from_millis(1));
            let token = hs.accounts().make_openid_token(&alice).unwrap();
            assert_eq!(hs.accounts().openid_user(&token).unwrap(), alice);
        }
        assert_eq!(hs.accounts().openid_user(&first).unwrap_err().status(), 401, "the oldest had to go");
        let kept = || hs.store.read(|db| db.openid_tokens()).unwrap();
        assert_eq!(kept(), super::TOKENS_MAX);
        clock.advance(Duration::from_secs(3601));
        hs.accounts().make_openid_token(&alice).unwrap();
        assert_eq!(kept(), 1);
    }
}
