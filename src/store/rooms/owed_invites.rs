//! Invites that a local user has asked for and that the invitee's server has not signed yet: until it has, they are no
//! events, and no room knows of them.

use rusqlite::{OptionalExtension, Row, params};
use serde_json::{Map, Value};

use crate::clock::Millis;
use crate::error::{ErrCode, Error, Result};
use crate::protocol::{RoomId, ServerName, UserId, json};
use crate::store::{Db, Tx};

/// Invites that may be owed in the name of one user at a time.
const OWED_PER_USER_MAX: i64 = 500;
/// When who asks for more may try again.
const TRY_AGAIN_MS: Millis = 60_000;

/// An invite that is owed to somebody.
#[derive(Debug, Clone)]
pub struct OwedInvite {
    /// The room.
    pub room_id: RoomId,
    /// Who is invited, a user of another server.
    pub invitee: UserId,
    /// Who invites, one of ours.
    pub inviter: UserId,
    /// What the invite says beside the membership (`is_direct`).
    pub content: Map<String, Value>,
    /// The position of the stream at which it was asked for.
    pub stream: i64,
    /// How often it was tried in vain.
    pub attempts: u32,
}

/// One that is due: the room, the invitee, their server.
pub type Due = (RoomId, UserId, ServerName);

fn due_of(row: &Row<'_>) -> Result<Due> {
    let text = |column| row.get::<_, String>(column);
    Ok((RoomId::parse(&text(0)?)?, UserId::parse(&text(1)?)?, ServerName::parse(&text(2)?)?))
}

impl Db<'_> {
    /// The invite that is owed to somebody in a room.
    pub fn owed_invite(&self, room: &RoomId, invitee: &UserId) -> Result<Option<OwedInvite>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT inviter, content, stream, attempts FROM owed_invites WHERE room_id = ?1 AND invitee = ?2",
        )?;
        let row = statement
            .query_row([room.as_str(), invitee.as_str()], |row| {
                let (inviter, content): (String, String) = (row.get(0)?, row.get(1)?);
                Ok((inviter, content, row.get(2)?, row.get(3)?))
            })
            .optional()?;
        let Some((inviter, content, stream, attempts)) = row else { return Ok(None) };
        Ok(Some(OwedInvite {
            room_id: room.clone(),
            invitee: invitee.clone(),
            inviter: UserId::parse(&inviter)?,
            content: json::object_tree(&content).map_err(Error::internal)?,
            stream,
            attempts,
        }))
    }

    /// Invites that are due, the longest due first; of each server no more than so many.
    pub fn owed_invites_due(&self, now: Millis, of_server: usize, limit: usize) -> Result<Vec<Due>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT room_id, invitee, server FROM (
               SELECT room_id, invitee, server, due_ms,
                 row_number() OVER (PARTITION BY server ORDER BY due_ms) AS number
               FROM owed_invites WHERE due_ms <= ?1)
             WHERE number <= ?2 ORDER BY due_ms LIMIT ?3",
        )?;
        let mut rows = statement.query(params![now, of_server as i64, limit as i64])?;
        let mut due = Vec::new();
        while let Some(row) = rows.next()? {
            due.push(due_of(row)?);
        }
        Ok(due)
    }

    /// When the next one is due.
    pub fn next_owed_invite_due(&self) -> Result<Option<Millis>> {
        let mut statement = self.conn().prepare_cached("SELECT min(due_ms) FROM owed_invites")?;
        Ok(statement.query_row([], |row| row.get(0))?)
    }

    /// Whether some invite to a room has not been tried at all.
    pub fn has_untried_invites(&self, room: &RoomId) -> Result<bool> {
        let mut statement =
            self.conn().prepare_cached("SELECT 1 FROM owed_invites WHERE room_id = ?1 AND attempts = 0")?;
        Ok(statement.exists([room.as_str()])?)
    }
}

impl Tx<'_> {
    /// Invites somebody as soon as their server can be reached. Errors: 429 `M_LIMIT_EXCEEDED` if too much is owed in
    /// the inviter's name.
    pub fn owe_invite(
        &mut self,
        (room, inviter, invitee): (&RoomId, &UserId, &UserId),
        content: &Map<String, Value>,
        now: Millis,
    ) -> Result<()> {
        let owed: i64 = self
            .conn()
            .prepare_cached("SELECT count(*) FROM owed_invites WHERE inviter = ?1")?
            .query_row([inviter.as_str()], |row| row.get(0))?;
        if owed >= OWED_PER_USER_MAX {
            let message = "Too many of your invites wait for servers that cannot be reached";
            return Err(
                Error::new(ErrCode::LimitExceeded, message).with_field("retry_after_ms", TRY_AGAIN_MS)
            );
        }
        let stream = self.stream();
        self.execute(
            "INSERT OR REPLACE INTO owed_invites
               (room_id, invitee, server, inviter, content, stream, attempts, due_ms)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, 0, ?7)",
            params![
                room.as_str(),
                invitee.as_str(),
                invitee.server_name(),
                inviter.as_str(),
                Value::from(content.clone()).to_string(),
                stream,
                now,
            ],
        )?;
        self.is_due(now);
        Ok(())
    }

    /// An invite that is not owed any more. Whether it was.
    pub fn end_owed_invite(&mut self, room: &RoomId, invitee: &UserId) -> Result<bool> {
        let ended = self.execute(
            "DELETE FROM owed_invites WHERE room_id = ?1 AND invitee = ?2",
            params![room.as_str(), invitee.as_str()],
        )?;
        Ok(ended > 0)
    }

    /// Puts an invite off until then; `tried`: whether that counts as an attempt.
    pub fn put_off_owed_invite(
        &mut self,
        room: &RoomId,
        invitee: &UserId,
        until: Millis,
        tried: bool,
    ) -> Result<()> {
        self.execute(
            "UPDATE owed_invites SET due_ms = ?3, attempts = attempts + ?4
             WHERE room_id = ?1 AND invitee = ?2",
            params![room.as_str(), invitee.as_str(), until, tried],
        )?;
        self.is_due(until);
        Ok(())
    }

    /// A server cannot be reached: what else is due for it is put off too, having been tried as good as.
    pub fn put_off_owed_invites_of(&mut self, server: &ServerName, now: Millis, until: Millis) -> Result<()> {
        self.execute(
            "UPDATE owed_invites SET due_ms = ?3, attempts = attempts + 1
             WHERE server = ?1 AND due_ms <= ?2",
            params![server.as_str(), now, until],
        )?;
        self.is_due(until);
        Ok(())
    }

    /// Makes an invite due that is due later.
    pub fn hasten_owed_invite(&mut self, room: &RoomId, invitee: &UserId, now: Millis) -> Result<()> {
        self.execute(
            "UPDATE owed_invites SET due_ms = ?3 WHERE room_id = ?1 AND invitee = ?2 AND due_ms > ?3",
            params![room.as_str(), invitee.as_str(), now],
        )?;
        self.is_due(now);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Location, Options, Store};

    #[test]
    fn what_is_owed_is_bounded_for_each_inviter_and_shared_out_between_servers() {
        let us = ServerName::parse("a.org").unwrap();
        let store = Store::open(
            Location::Memory,
            &us,
            Box::new(|_| ()),
            &Options { durable: false, readers: 1, ..Options::default() },
        )
        .unwrap();
        let (alice, bob) = (UserId::parse("@a:a.org").unwrap(), UserId::parse("@b:a.org").unwrap());
        let room = |n: i64| RoomId::parse(&format!("!r{n}:a.org")).unwrap();
        let owe = |n: i64, inviter: &UserId, invitee: &str| {
            let (room, inviter, invitee) = (room(n), inviter.clone(), UserId::parse(invitee).unwrap());
            store.write(move |tx| tx.owe_invite((&room, &inviter, &invitee), &Map::new(), n))
        };
        for n in 0..OWED_PER_USER_MAX {
            owe(n, &alice, "@x:dead.org").unwrap();
        }
        assert_eq!(owe(OWED_PER_USER_MAX, &alice, "@x:b.org").unwrap_err().status(), 429);
        owe(600, &bob, "@x:b.org").unwrap();
        let due = store.read(|db| db.owed_invites_due(1000, 3, 100)).unwrap();
        let servers: Vec<&str> = due.iter().map(|(_, _, server)| server.as_str()).collect();
        assert_eq!(servers, ["dead.org", "dead.org", "dead.org", "b.org"]);
        assert!(store.read(|db| db.has_untried_invites(&room(7))).unwrap());
        store
            .write(move |tx| {
                tx.put_off_owed_invites_of(&ServerName::parse("dead.org").unwrap(), 1000, 5000)?;
                tx.put_off_owed_invite(&room(600), &UserId::parse("@x:b.org").unwrap(), 4000, false)
            })
            .unwrap();
        assert_eq!(store.read(|db| db.next_owed_invite_due()).unwrap(), Some(4000));
        assert!(!store.read(|db| db.has_untried_invites(&room(7))).unwrap());
        assert!(store.read(|db| db.has_untried_invites(&room(600))).unwrap());
        let ended = store.write(move |tx| {
            let x = UserId::parse("@x:dead.org").unwrap();
            Ok((tx.end_owed_invite(&room(7), &x)?, tx.end_owed_invite(&room(7), &x)?))
        });
        assert_eq!(ended.unwrap(), (true, false));
        owe(OWED_PER_USER_MAX, &alice, "@x:b.org").unwrap();
    }
}
