//! The sessions that were asked for lately, in memory: every request of a client asks for one, and a reader that has to
//! look finds its page cache emptied by each commit.
//!
//! Whatever changes a session, its device or its user empties this cache after its commit and before anybody is told
//! of it, so a token that was taken back is not believed any longer than without it.

use std::sync::Mutex;

use crate::bounded::{BoundedMap, Worth};
use crate::error::Result;
use crate::locks::lock;
use crate::store::accounts::TokenHash;
use crate::store::accounts::devices::Session;

/// Sessions that are remembered.
const SESSIONS_MAX: usize = 10_000;

/// Sessions by the digests of their access tokens.
#[derive(Default)]
pub(in crate::store) struct SessionCache(Mutex<CachedSessions>);

#[derive(Default)]
struct CachedSessions {
    /// How often it was emptied: what was read before may not be put in after.
    emptied: u64,
    sessions: BoundedMap<TokenHash, Session, SESSIONS_MAX>,
}

impl SessionCache {
    /// The session of a token, by `look` if it is not remembered.
    pub(in crate::store) fn get(
        &self,
        hash: &TokenHash,
        look: impl FnOnce() -> Result<Option<Session>>,
    ) -> Result<Option<Session>> {
        let known = lock(&self.0);
        if let Some(session) = known.sessions.get(hash) {
            return Ok(Some(session.clone()));
        }
        let emptied = known.emptied;
        drop(known);
        let session = look()?;
        if let Some(session) = &session {
            let mut known = lock(&self.0);
            if known.emptied == emptied {
                known.sessions.insert(*hash, session.clone(), |_| Worth::Little);
            }
        }
        Ok(session)
    }

    /// Called when a change of sessions can be seen by readers.
    pub(in crate::store) fn empty(&self) {
        let mut known = lock(&self.0);
        known.emptied += 1;
        known.sessions.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::UserId;

    fn session(device_id: &str) -> Session {
        Session {
            key: 1,
            user_id: UserId::parse("@alice:example.org").unwrap(),
            device_id: device_id.to_owned(),
            expires_ms: None,
            replaces: None,
            admin: false,
            standing: Default::default(),
            own_rate: None,
            last_seen_ms: None,
        }
    }

    #[test]
    fn a_session_is_looked_for_once_until_something_changes() {
        let cache = SessionCache::default();
        let looks = std::cell::Cell::new(0);
        let ask = || {
            cache.get(&[1; 32], || {
                looks.set(looks.get() + 1);
                Ok(Some(session("PHONE")))
            })
        };
        assert_eq!(ask().unwrap().unwrap().device_id, "PHONE");
        assert_eq!(ask().unwrap().unwrap().device_id, "PHONE");
        assert_eq!(looks.get(), 1);
        cache.empty();
        ask().unwrap();
        assert_eq!(looks.get(), 2);
    }

    #[test]
    fn what_was_read_before_a_change_is_not_remembered_after_it() {
        let cache = SessionCache::default();
        let old = cache.get(&[1; 32], || {
            cache.empty();
            Ok(Some(session("PHONE")))
        });
        assert!(old.unwrap().is_some());
        assert!(cache.get(&[1; 32], || Ok(None)).unwrap().is_none());
    }

    #[test]
    fn an_unknown_token_is_looked_for_each_time() {
        let cache = SessionCache::default();
        assert!(cache.get(&[1; 32], || Ok(None)).unwrap().is_none());
        assert!(cache.get(&[1; 32], || Ok(Some(session("PHONE")))).unwrap().is_some());
    }
}
