//! Transactions of other servers that were answered: a repeat gets the same answer and does nothing.

use rusqlite::{OptionalExtension, params};
use sha2::{Digest, Sha256};

use crate::clock::Millis;
use crate::error::Result;
use crate::protocol::ServerName;
use crate::store::engine::sweep::Sweep;
use crate::store::{Db, Tx};

/// For how long an answer is kept. A peer that repeats a transaction after a longer time finds the events known.
const KEPT_MS: Millis = 3 * 24 * 3_600_000;
/// Of one server the last answers are kept: it repeats only what it has no answer to, a few transactions at once.
const PER_SERVER_MAX: u32 = 200;
/// The same of all servers together that share no room with a local user: there is no end of names.
const OF_STRANGERS_MAX: u32 = 2000;
const SWEEP: Sweep = Sweep {
    table: "transactions",
    per_origin_max: PER_SERVER_MAX,
    of_strangers_max: OF_STRANGERS_MAX,
    kept_ms: KEPT_MS,
    rows_max: 20,
};

/// What is stored of a transaction id for finding it again: 16 bytes, however long the peer made it.
fn digest(txn_id: &str) -> Vec<u8> {
    Sha256::digest(txn_id)[..16].to_vec()
}

impl Db<'_> {
    /// The stored answer of a transaction, if it was received before.
    pub fn transaction_answer(&self, origin: &ServerName, txn_id: &str) -> Result<Option<Vec<u8>>> {
        let mut statement =
            self.conn().prepare_cached("SELECT answer FROM transactions WHERE origin = ?1 AND txn = ?2")?;
        Ok(statement.query_row(params![origin.as_str(), digest(txn_id)], |row| row.get(0)).optional()?)
    }
}

impl Tx<'_> {
    /// Keeps the answer of a transaction, and lets go of a few old ones. If two repeats were worked on at the same
    /// time, the first answer stays.
    pub fn save_transaction_answer(
        &mut self,
        origin: &ServerName,
        txn_id: &str,
        answer: &[u8],
        now: Millis,
    ) -> Result<()> {
        let stranger = !self.is_neighbour(origin)?;
        self.execute(
            "INSERT INTO transactions (origin, txn, received_ms, stranger, answer) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT DO NOTHING",
            params![origin.as_str(), digest(txn_id), now, stranger, answer],
        )?;
        SWEEP.after(self, origin.as_str(), stranger, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::test_events::server as name;
    use crate::store::Store;
    use crate::store::tests::in_memory;

    const DAY: Millis = 24 * 3_600_000;

    fn store() -> Store {
        in_memory("us.example")
    }

    fn count(store: &Store, what: &str) -> i64 {
        let sql = format!("SELECT {what} FROM transactions");
        store.read(|db| Ok(db.conn().query_row(&sql, [], |row| row.get(0))?)).expect("a count")
    }

    #[test]
    fn of_the_answers_to_one_server_the_last_are_kept_and_a_long_id_takes_no_more_room_than_a_short_one() {
        let store = store();
        let (friend, other) = (name("friend.example"), name("other.example"));
        let (one, two) = (friend.clone(), other.clone());
        let id = |n: u32| format!("{n}{}", "x".repeat(16_000));
        store
            .write(move |tx| {
                tx.pretend_room("!r:us.example", &[&one, &two])?;
                tx.save_transaction_answer(&two, "the only one", b"kept", 0)?;
                for n in 0..PER_SERVER_MAX + 100 {
                    tx.save_transaction_answer(&one, &id(n), n.to_string().as_bytes(), 0)?;
                }
                Ok(())
            })
            .expect("written");
        assert_eq!(count(&store, "count(*)"), i64::from(PER_SERVER_MAX) + 1);
        assert!(count(&store, "max(length(txn))") <= 16);
        let answer =
            |of: &ServerName, id: &str| store.read(|db| db.transaction_answer(of, id)).expect("read");
        assert_eq!(answer(&friend, &id(PER_SERVER_MAX + 99)), Some((PER_SERVER_MAX + 99).to_string().into()));
        assert_eq!(answer(&friend, &id(0)), None, "the oldest had to go");
        assert_eq!(answer(&friend, "0"), None, "ids that only begin alike are two");
        assert_eq!(answer(&other, "the only one"), Some(b"kept".to_vec()));
    }

    #[test]
    fn strangers_with_ever_new_names_wash_away_each_others_answers_only_and_all_go_with_time() {
        let store = store();
        let friend = name("friend.example");
        store
            .write(move |tx| {
                tx.pretend_room("!r:us.example", &[&friend])?;
                tx.save_transaction_answer(&friend, "of old", b"kept", 0)?;
                for n in 0..OF_STRANGERS_MAX + 300 {
                    tx.save_transaction_answer(&name(&format!("s{n}.example")), "t", b"{}", 1)?;
                }
                Ok(())
            })
            .expect("written");
        assert_eq!(count(&store, "count(*)"), i64::from(OF_STRANGERS_MAX) + 1);
        let friend = name("friend.example");
        assert!(store.read(|db| db.transaction_answer(&friend, "of old")).expect("read").is_some());
        let written = store.write(move |tx| {
            (0..200).try_for_each(|n| tx.save_transaction_answer(&friend, &n.to_string(), b"{}", 4 * DAY))
        });
        written.expect("written");
        assert_eq!(count(&store, "count(*)"), 200, "whatever was too old is gone");
    }
}
