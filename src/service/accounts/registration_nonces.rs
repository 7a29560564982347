//! The nonces of registrations with the shared secret: each is good for one of them.

use std::collections::HashMap;
use std::sync::Mutex;

use crate::clock::{Millis, Steady};
use crate::locks::lock;
use crate::random;
use crate::service::accounts::Accounts;

/// How long a nonce is good.
const NONCE_LIFE_MS: Millis = 60 * 1000;
/// Most nonces at once; beyond, the oldest are forgotten.
const NONCES_MAX: usize = 4096;

/// The nonces that were given out, with the time at which each was.
#[derive(Default)]
pub struct RegistrationNonces(Mutex<HashMap<String, Steady>>);

impl Accounts<'_> {
    /// A nonce that is good for one registration within a minute.
    pub fn new_registration_nonce(&self) -> String {
        let (nonce, now) = (random::token(), self.clock.steady());
        let mut nonces = lock(&self.registration_nonces.0);
        if nonces.len() >= NONCES_MAX {
            nonces.retain(|_, made| now - *made < NONCE_LIFE_MS);
        }
        if nonces.len() >= NONCES_MAX
            && let Some(oldest) = nonces.iter().min_by_key(|(_, made)| **made).map(|(nonce, _)| nonce.clone())
        {
            nonces.remove(&oldest);
        }
        nonces.insert(nonce.clone(), now);
        nonce
    }

    /// Whether this nonce was given out within the last minute and not used since; it is used now.
    pub fn use_registration_nonce(&self, nonce: &str) -> bool {
        let made = lock(&self.registration_nonces.0).remove(nonce);
        made.is_some_and(|made| self.clock.steady() - made < NONCE_LIFE_MS)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::config::Config;
    use crate::protocol::ServerName;

    #[test]
    fn a_nonce_is_good_once_and_for_a_minute() {
        let hs = crate::testing::secluded(Config::for_name(ServerName::parse("example.org").unwrap()));
        let nonce = hs.accounts().new_registration_nonce();
        assert!(
            hs.accounts().use_registration_nonce(&nonce)
                && !hs.accounts().use_registration_nonce(&nonce)
                && !hs.accounts().use_registration_nonce("made up")
        );
        let nonce = hs.accounts().new_registration_nonce();
        hs.clock.advance(Duration::from_secs(60));
        assert!(!hs.accounts().use_registration_nonce(&nonce));
    }
}
