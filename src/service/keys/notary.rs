//! This server as a notary: what it says of other servers' keys to whoever asks (`/_matrix/key/v2/query`).

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::clock::Millis;
use crate::error::Result;
use crate::order::Gather;
use crate::protocol::json::CanonicalObject;
use crate::protocol::{ServerName, json};
use crate::service::keys::Keys;
use crate::service::keys::attempts::KeyPurpose;
use crate::service::keys::fetch::{FoundKeys, MissingKeys, WantedKey, too_many_asked};
use crate::service::keys::ring::signed_part;
use crate::service::limits::request_permits::Asker;
use crate::store::servers::server_keys::StoredStatement;

/// Time for all answers of strangers to a question to us as a notary.
const NOTARY_TIMEOUT: Duration = Duration::from_secs(10);
/// Servers that one question to us as a notary may have us ask.
const AS_NOTARY_SERVERS_MAX: usize = 50;
/// Statements of one server that are repeated as a notary: those that were fetched last. Others name keys of long ago.
const AS_NOTARY_STATEMENTS_PER_SERVER_MAX: usize = 8;
/// The largest answer as a notary, in bytes. Servers that it has no room for can be asked about by themselves; a
/// statement usually has a thousand.
const AS_NOTARY_ANSWER_BYTES_MAX: usize = 4 << 20;

impl Keys<'_> {
    /// What we know as a notary (`/_matrix/key/v2/query`): of each server the statements that have the keys asked for
    /// (all keys if none is named), signed by us as well. A server is asked itself if what we have is not valid until
    /// the time wanted, or past half of its life; if it does not answer, what we have is better than nothing. Gives
    /// their JSON texts, as many as an answer has room for.
    ///
    /// Errors: 429 `M_LIMIT_EXCEEDED` if there is nothing to say because too many servers are being asked already.
    pub fn notarise(&self, asker: &Asker, queries: &[NotaryQuery]) -> Result<Vec<Vec<u8>>> {
        let now = self.clock.now_ms();
        let mut stale = MissingKeys::new();
        for query in queries.iter().filter(|q| q.server != *self.server_name()) {
            let known = self.store.read(|db| db.key_statements(&query.server))?;
            let wanted = query.stale_keys(&known, now);
            if !wanted.is_empty() && stale.len() < AS_NOTARY_SERVERS_MAX {
                stale.entry(query.server.clone()).or_default().extend(wanted);
            }
        }
        let mut found = FoundKeys::default();
        let until = Instant::now() + NOTARY_TIMEOUT;
        self.ask_servers(&mut stale, &mut found, (KeyPurpose::Notary(asker), false), until);

        let (mut answer, mut size) = (Vec::new(), 0);
        for statement in queries.iter().map(|query| self.statements_for(query)) {
            for statement in statement? {
                size += statement.len();
                if size > AS_NOTARY_ANSWER_BYTES_MAX {
                    log::debug!("an answer as a notary has no room for all of {} servers", queries.len());
                    return Ok(answer);
                }
                answer.push(statement);
            }
        }
        if answer.is_empty() && found.lacks_slots() {
            return Err(too_many_asked());
        }
        Ok(answer)
    }

    /// The statements that answer a question to us as a notary. They are put together of the texts that are kept:
    /// anybody can make them, as full as they like, and nothing is to be a tree here.
    fn statements_for(&self, query: &NotaryQuery) -> Result<Vec<Vec<u8>>> {
        if query.server == *self.server_name() {
            return Ok(vec![json::canonical_object(&self.key_ring.own_statement())]);
        }
        let texts = self.store.read(|db| {
            let mut known = db.key_statements(&query.server)?;
            known.retain(|k| query.keys.is_empty() || query.keys.iter().any(|(id, _)| *id == k.key_id));
            // Numbers grow with time.
            let numbers: BTreeSet<i64> = known.iter().map(|known| known.statement).gather();
            let last = numbers.into_iter().rev().take(AS_NOTARY_STATEMENTS_PER_SERVER_MAX);
            last.map(|number| db.key_statement(number)).collect::<Result<Vec<_>>>()
        })?;
        let (us, key) = (self.server_name().as_str(), self.key_ring.signing_key());
        let sign = |text: Vec<u8>| {
            let (statement, _) = CanonicalObject::read(&text)?;
            let signature = key.sign_bytes(&signed_part(&statement));
            Ok(statement.with_signature(us, key.key_id(), &signature).into_bytes())
        };
        texts.into_iter().map(sign).collect()
    }
}

/// One server in a question to us as a notary.
#[derive(Debug, Clone)]
pub struct NotaryQuery {
    /// Whose keys.
    pub server: ServerName,
    /// Which keys, each with the time until which it should be valid at least; all if empty.
    pub keys: Vec<(String, Option<Millis>)>,
    /// That time for the case that no key is named.
    pub valid_until: Option<Millis>,
}

impl NotaryQuery {
    /// The keys for which the server should be asked again.
    fn stale_keys(&self, known: &[StoredStatement], now: Millis) -> Vec<WantedKey> {
        let is_fresh = |statement: &StoredStatement, valid_until: Option<Millis>| {
            let half = statement.fetched_ms + (statement.valid_until_ms - statement.fetched_ms) / 2;
            statement.retired || (statement.valid_until_ms >= valid_until.unwrap_or(now) && now < half)
        };
        let want = |key_id: &str, at: Option<Millis>| WantedKey {
            server: self.server.clone(),
            key_id: key_id.to_owned(),
            valid_at: at.unwrap_or(now),
        };
        if self.keys.is_empty() {
            let fresh = known.iter().any(|s| !s.retired && is_fresh(s, self.valid_until));
            // Any key will do; an id that no server has makes the question count as unanswered only if there is none.
            let any = known.iter().find(|s| !s.retired).map_or("", |s| s.key_id.as_str());
            return if fresh { Vec::new() } else { vec![want(any, self.valid_until)] };
        }
        let is_known = |id: &str, at| known.iter().any(|s| s.key_id == id && is_fresh(s, at));
        self.keys.iter().filter(|(id, at)| !is_known(id, *at)).map(|(id, at)| want(id, *at)).collect()
    }
}
