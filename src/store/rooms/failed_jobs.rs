//! Jobs of the timer that failed without anything having been written of it, mostly because their rows could not be read: they
//! are counted and put off without being looked into, like those that other servers do not answer.

use rusqlite::{OptionalExtension, params};

use crate::clock::Millis;
use crate::error::Result;
use crate::protocol::remote_membership::{ATTEMPTS_MAX, backoff_ms};
use crate::protocol::{RoomId, UserId};
use crate::store::Tx;

/// Where rows of a room and a user are that the timer takes up, and what becomes of one after its last attempt.
struct Jobs {
    table: &'static str,
    user: &'static str,
    give_up: &'static str,
}

const REMOTE_MEMBERSHIPS: Jobs = Jobs {
    table: "remote_memberships",
    user: "user_id",
    give_up: "UPDATE remote_memberships SET due_ms = NULL",
};
const OWED_JOINS: Jobs = Jobs { table: "owed_joins", user: "user_id", give_up: "DELETE FROM owed_joins" };
const OWED_INVITES: Jobs =
    Jobs { table: "owed_invites", user: "invitee", give_up: "DELETE FROM owed_invites" };

impl Tx<'_> {
    /// What is to be told of a remote membership failed; `leased`: the time until which it was put off when it was taken up. If
    /// that has been changed since, nothing is done.
    pub fn remote_membership_failed(
        &mut self,
        of: (&RoomId, &UserId),
        leased: Millis,
        now: Millis,
    ) -> Result<()> {
        self.job_failed(&REMOTE_MEMBERSHIPS, of, leased, now)
    }

    /// The same of a join that is owed.
    pub fn owed_join_failed(&mut self, of: (&RoomId, &UserId), leased: Millis, now: Millis) -> Result<()> {
        self.job_failed(&OWED_JOINS, of, leased, now)
    }

    /// The same of an invite that is owed.
    pub fn owed_invite_failed(&mut self, of: (&RoomId, &UserId), leased: Millis, now: Millis) -> Result<()> {
        self.job_failed(&OWED_INVITES, of, leased, now)
    }

    fn job_failed(
        &mut self,
        jobs: &Jobs,
        (room, user): (&RoomId, &UserId),
        leased: Millis,
        now: Millis,
    ) -> Result<()> {
        let which = format!("WHERE room_id = ?1 AND {} = ?2", jobs.user);
        let (room, user) = (room.as_str(), user.as_str());
        let before: Option<u32> = self
            .conn()
            .prepare_cached(&format!("SELECT attempts FROM {} {which} AND due_ms = ?3", jobs.table))?
            .query_row(params![room, user, leased], |row| row.get(0))
            .optional()?;
        let Some(attempts) = before.map(|before| before.saturating_add(1)) else { return Ok(()) };
        if attempts >= ATTEMPTS_MAX {
            self.execute(&format!("{} {which}", jobs.give_up), params![room, user])?;
            return Ok(());
        }
        self.execute(
            &format!("UPDATE {} SET attempts = ?3, due_ms = ?4 {which}", jobs.table),
            params![room, user, attempts, now + backoff_ms(attempts)],
        )?;
        self.is_due(now + backoff_ms(attempts));
        Ok(())
    }
}
