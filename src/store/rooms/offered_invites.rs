//! Invites that users of other servers may be shown though the room has none: their server was offered one, and its answer was
//! lost, or the room wanted the invite no more when it was there. Nothing but this says whom a later removal is to be told.

use rusqlite::params;

use crate::clock::Millis;
use crate::error::Result;
use crate::protocol::UserId;
use crate::store::{Db, RoomKey, Tx};

/// Of those that one of our users made, the last so many are known.
const OFFERED_PER_USER_MAX: u32 = 500;
/// For how long.
const OFFERED_FOR_MS: Millis = 90 * 24 * 3_600_000;
/// Old ones that go when one comes, so that no single commit has much to do.
const SWEPT_ROWS_MAX: u32 = 20;

impl Db<'_> {
    /// Whether this user's server may show them an invite that the room has not.
    pub fn is_offered_invite(&self, room: RoomKey, invitee: &UserId) -> Result<bool> {
        let mut statement = self
            .conn()
            .prepare_cached("SELECT 1 FROM offered_invites WHERE room_key = ?1 AND invitee = ?2")?;
        Ok(statement.exists(params![room, invitee.as_str()])?)
    }
}

impl Tx<'_> {
    /// This user's server may show them an invite that the room has not.
    pub fn keep_offered_invite(
        &mut self,
        room: RoomKey,
        (inviter, invitee): (&UserId, &UserId),
        now: Millis,
    ) -> Result<()> {
        self.execute(
            "INSERT OR REPLACE INTO offered_invites (room_key, invitee, inviter, made_ms) VALUES (?1, ?2, ?3, ?4)",
            params![room, invitee.as_str(), inviter.as_str(), now],
        )?;
        self.execute(
            "DELETE FROM offered_invites WHERE (room_key, invitee) IN
               (SELECT room_key, invitee FROM offered_invites WHERE made_ms < ?1 ORDER BY made_ms LIMIT ?2)",
            params![now - OFFERED_FOR_MS, SWEPT_ROWS_MAX],
        )?;
        self.execute(
            "DELETE FROM offered_invites WHERE (room_key, invitee) IN
               (SELECT room_key, invitee FROM offered_invites WHERE inviter = ?1
                ORDER BY made_ms DESC LIMIT ?3 OFFSET ?2)",
            params![inviter.as_str(), OFFERED_PER_USER_MAX, SWEPT_ROWS_MAX],
        )?;
        Ok(())
    }

    /// The room says by now what this user is. Whether their server may show them an invite from before.
    pub(in crate::store) fn end_offered_invite(&mut self, room: RoomKey, invitee: &str) -> Result<bool> {
        let sql = "DELETE FROM offered_invites WHERE room_key = ?1 AND invitee = ?2";
        Ok(self.conn().prepare_cached(sql)?.execute(params![room, invitee])? > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::in_memory;

    #[test]
    fn of_invites_that_others_may_hold_the_last_of_each_inviter_are_known_for_a_while() {
        let store = in_memory("a.org");
        let user = |id: &str| UserId::parse(id).expect("a user id");
        let (alice, bob) = (user("@alice:a.org"), user("@bob:a.org"));
        let invitee = move |n: u32| user(&format!("@u{n}:b.org"));
        let written = store.write(move |tx| {
            let room = tx.pretend_room("!r:a.org", &[])?;
            let at = Millis::from;
            tx.keep_offered_invite(room, (&bob, &invitee(9_999)), 5)?;
            for n in 0..=OFFERED_PER_USER_MAX {
                tx.keep_offered_invite(room, (&alice, &invitee(n)), at(n))?;
            }
            let known = |tx: &Tx<'_>, n| tx.is_offered_invite(room, &invitee(n)).expect("read");
            assert!(!known(tx, 0) && known(tx, 1) && known(tx, OFFERED_PER_USER_MAX));
            assert!(known(tx, 9_999), "another's stays");
            tx.keep_offered_invite(room, (&alice, &invitee(600)), OFFERED_FOR_MS + 10)?;
            assert!(!known(tx, 9_999) && known(tx, 100) && known(tx, 600));
            assert!(tx.end_offered_invite(room, invitee(600).as_str())?);
            assert!(!tx.end_offered_invite(room, invitee(600).as_str())?);
            Ok(())
        });
        written.expect("written");
    }
}
