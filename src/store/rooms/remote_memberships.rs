//! Remote memberships: rows of local users' knocks, invites and leaves in rooms that this server is not resident in.
//! What becomes of a row is decided in `protocol::remote_membership`, never here: this writes what it is given. Three
//! things are done to rows without looking into them: the timer moves the time of those that are due some day, those
//! that failed on our account are counted (`failed_jobs`), and those that ended long ago go.

use rusqlite::{OptionalExtension, Row, params};

use crate::clock::Millis;
use crate::error::{Error, Result};
use crate::protocol::remote_membership::{CoveredMembership, Effect, Fields, RemoteMembership, RemoteState};
use crate::protocol::{EventId, Pdu, RoomId, RoomVersion, ServerName, UserId, VerifiedPdu, room_version};
use crate::store::{Db, EventKey, RoomKey, Tx};

/// How long a membership that has ended is kept, so that clients which were away for so long are told. Beyond that they
/// show an invite that there is not any more.
const ENDED_KEPT_MS: Millis = 90 * 24 * 3_600_000;
/// How many of these one user has at most: whoever invites and takes back in ever new rooms fills no more.
const ENDED_PER_USER_MAX: u32 = 200;
/// Old ones that go when one comes, so that no single commit has much to do.
const SWEPT_ROWS_MAX: u32 = 20;

const COLUMNS: &str = "room_id, user_id, state, room_version, event_id, event_version, event, previous_id, \
     previous_version, previous, pending_id, pending_version, pending, removal_id, removal_version, removal, \
     covered_id, covered_version, covered, covered_stripped_state, stripped_state, via, attempts, due_ms, \
     host_unaware, forgotten, ended_ms, may_be_in, stream";

/// A row that is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DueMembership {
    /// The room.
    pub room: RoomId,
    /// One of ours.
    pub user: UserId,
    /// The server that is asked first, as far as the row says.
    pub server: String,
}

/// How many of the rows that are due are read.
#[derive(Debug, Clone, Copy)]
pub struct DueShares {
    /// Of those for which the same server is asked first.
    pub of_server: usize,
    /// Of these, those of one user.
    pub of_user: usize,
    /// In all.
    pub limit: usize,
}

/// An event's id, room version and bytes.
type MemberEventColumns = (Option<String>, Option<String>, Option<Vec<u8>>);

/// What a row holds before its texts are made into types again.
struct RemoteMembershipRow {
    names: [String; 4],
    events: [MemberEventColumns; 5],
    covered_stripped_state: Option<Vec<u8>>,
    stripped_state: Vec<u8>,
    via: String,
    attempts: u32,
    due_ms: Option<Millis>,
    host_unaware: bool,
    forgotten: bool,
    ended_ms: Option<Millis>,
    may_be_in: bool,
    stream: i64,
}

fn columns_of(event: &Pdu) -> (&str, &str, &[u8]) {
    (event.event_id().as_str(), event.version().id, event.json())
}

fn raw(row: &Row<'_>) -> rusqlite::Result<RemoteMembershipRow> {
    let event = |first: usize| -> rusqlite::Result<MemberEventColumns> {
        Ok((row.get(first)?, row.get(first + 1)?, row.get(first + 2)?))
    };
    Ok(RemoteMembershipRow {
        names: [row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?],
        events: [event(4)?, event(7)?, event(10)?, event(13)?, event(16)?],
        covered_stripped_state: row.get(19)?,
        stripped_state: row.get(20)?,
        via: row.get(21)?,
        attempts: row.get(22)?,
        due_ms: row.get(23)?,
        host_unaware: row.get(24)?,
        forgotten: row.get(25)?,
        ended_ms: row.get(26)?,
        may_be_in: row.get(27)?,
        stream: row.get(28)?,
    })
}

impl RemoteMembershipRow {
    fn typed(self) -> Result<RemoteMembership> {
        let [room_id, user_id, state, version] = self.names;
        let odd =
            |what: &str| Error::internal(format!("remote membership of {user_id} in {room_id}: {what}"));
        let known =
            |version: &str| room_version::room_version(version).ok_or_else(|| odd("unknown room version"));
        let event = |raw: MemberEventColumns| match raw {
            (Some(id), Some(version), Some(json)) => {
                Pdu::trusted(EventId::parse(&id)?, json, known(&version)?).map(Some)
            }
            _ => Ok(None),
        };
        let [told, previous, pending, removal, covered] = self.events;
        let shown = |json: &[u8]| serde_json::from_slice(json).map_err(Error::internal);
        let covered = match (event(covered)?, self.covered_stripped_state) {
            (Some(event), Some(json)) => Some(CoveredMembership { event, stripped_state: shown(&json)? }),
            _ => None,
        };
        Ok(RemoteMembership::from_store(Fields {
            room_id: RoomId::parse(&room_id)?,
            user_id: UserId::parse(&user_id)?,
            state: RemoteState::parse(&state).ok_or_else(|| odd("unknown state"))?,
            room_version: known(&version)?,
            event: event(told)?,
            previous: event(previous)?,
            pending: event(pending)?,
            removal: event(removal)?,
            covered,
            stripped_state: shown(&self.stripped_state)?,
            via: serde_json::from_str(&self.via).map_err(Error::internal)?,
            attempts: self.attempts,
            due_ms: self.due_ms,
            host_unaware: self.host_unaware,
            forgotten: self.forgotten,
            ended_ms: self.ended_ms,
            may_be_in: self.may_be_in,
            stream: self.stream,
        }))
    }
}

impl Db<'_> {
    /// The user's remote membership in this room.
    pub fn remote_membership(&self, room: &RoomId, user: &UserId) -> Result<Option<RemoteMembership>> {
        let sql = format!("SELECT {COLUMNS} FROM remote_memberships WHERE room_id = ?1 AND user_id = ?2");
        let mut statement = self.conn().prepare_cached(&sql)?;
        statement
            .query_row([room.as_str(), user.as_str()], raw)
            .optional()?
            .map(RemoteMembershipRow::typed)
            .transpose()
    }

    /// All users' remote memberships in this room.
    pub fn remote_memberships_in(&self, room: &RoomId) -> Result<Vec<RemoteMembership>> {
        let sql = format!("SELECT {COLUMNS} FROM remote_memberships WHERE room_id = ?1");
        let mut statement = self.conn().prepare_cached(&sql)?;
        let rows = statement.query_map([room.as_str()], raw)?;
        rows.map(|row| row.map_err(Error::from).and_then(RemoteMembershipRow::typed)).collect()
    }

    /// What a row says that the user is, and what an invite covers in it. What others sent was verified when it came, and the
    /// rest was made here.
    pub fn member_events_of(&self, row: &RemoteMembership) -> Vec<VerifiedPdu> {
        let covered = row.covered.as_ref().map(|covered| &covered.event);
        covered.into_iter().chain(&row.event).cloned().map(VerifiedPdu::from_store).collect()
    }

    /// Whether there is one.
    pub fn has_remote_membership(&self, room: &RoomId, user: &UserId) -> Result<bool> {
        let mut statement = self
            .conn()
            .prepare_cached("SELECT 1 FROM remote_memberships WHERE room_id = ?1 AND user_id = ?2")?;
        Ok(statement.exists([room.as_str(), user.as_str()])?)
    }

    /// The user's remote memberships that changed after this stream position (0: all), oldest change first; with those
    /// that the user has left or that have ended, or without them. The others are not read at all.
    pub fn remote_memberships_of(
        &self,
        user: &UserId,
        after: i64,
        with_left: bool,
    ) -> Result<Vec<RemoteMembership>> {
        let sql = format!(
            "SELECT {COLUMNS} FROM remote_memberships WHERE user_id = ?1 AND stream > ?2
             AND (?3 OR state NOT IN ('leaving', 'closed')) ORDER BY stream"
        );
        let mut statement = self.conn().prepare_cached(&sql)?;
        let rows = statement.query_map(params![user.as_str(), after, with_left], raw)?;
        rows.map(|row| row.map_err(Error::from).and_then(RemoteMembershipRow::typed)).collect()
    }

    /// The invites of local users to rooms elsewhere, and what ended of these, that came at positions in `(after, upto]`.
    pub fn remote_invites_between(&self, (after, upto): (i64, i64)) -> Result<Vec<RemoteMembership>> {
        let sql = format!(
            "SELECT {COLUMNS} FROM remote_memberships
             WHERE state IN ('invited', 'closed') AND stream > ?1 AND stream <= ?2 ORDER BY +stream"
        );
        let mut statement = self.conn().prepare_cached(&sql)?;
        let rows = statement.query_map([after, upto], raw)?;
        rows.map(|row| row.map_err(Error::from).and_then(RemoteMembershipRow::typed)).collect()
    }

    /// The user's invites to rooms elsewhere, and what they are joining, before a stream position, the last first, so many at most.
    pub fn remote_invites_of(
        &self,
        user: &UserId,
        before: i64,
        most: usize,
    ) -> Result<Vec<RemoteMembership>> {
        let sql = format!(
            "SELECT {COLUMNS} FROM remote_memberships WHERE user_id = ?1 AND stream < ?2 AND state IN ('invited', 'joining')
             ORDER BY stream DESC LIMIT ?3"
        );
        let mut statement = self.conn().prepare_cached(&sql)?;
        let rows = statement.query_map(params![user.as_str(), before, most as i64], raw)?;
        rows.map(|row| row.map_err(Error::from).and_then(RemoteMembershipRow::typed)).collect()
    }

    /// The rooms where the user has a remote membership that has not come to its end.
    pub fn rooms_dealt_with_from_outside(&self, user: &UserId) -> Result<Vec<RoomId>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT room_id FROM remote_memberships WHERE user_id = ?1 AND state <> 'closed'",
        )?;
        let rows = statement.query_map([user.as_str()], |row| row.get::<_, String>(0))?;
        rows.map(|room| RoomId::parse(&room?)).collect()
    }

    /// Who invited this user to rooms that we are not in, once for each invite that waits for an answer.
    pub fn inviters(&self, user: &UserId) -> Result<Vec<String>> {
        self.rows(
            "SELECT inviter FROM remote_memberships WHERE user_id = ?1 AND inviter IS NOT NULL",
            params![user.as_str()],
            |row| row.get(0),
        )
    }

    /// The version of a room that a local user is joining right now: that of the join that was signed for it.
    pub fn joining_version(&self, room: &RoomId) -> Result<Option<RoomVersion>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT pending_version FROM remote_memberships
             WHERE room_id = ?1 AND state = 'joining' AND pending_version IS NOT NULL LIMIT 1",
        )?;
        let version: Option<String> = statement.query_row([room.as_str()], |row| row.get(0)).optional()?;
        Ok(version.and_then(|version| room_version::room_version(&version)))
    }

    /// Rooms that a local user is joining at the moment, at most so many.
    pub fn rooms_being_joined(&self, limit: usize) -> Result<Vec<RoomId>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT DISTINCT room_id FROM remote_memberships WHERE state = 'joining' LIMIT ?1",
        )?;
        let rows = statement.query_map([limit as i64], |row| row.get::<_, String>(0))?;
        rows.map(|room| RoomId::parse(&room?)).collect()
    }

    /// Whether a server is one that a room would be reached through which a local user deals with from outside.
    pub fn is_via_of(&self, room: &RoomId, server: &ServerName) -> Result<bool> {
        let mut statement = self.conn().prepare_cached(
            "SELECT 1 FROM remote_memberships m, json_each(m.via) v WHERE m.room_id = ?1 AND v.value = ?2 LIMIT 1",
        )?;
        Ok(statement.exists(params![room.as_str(), server.as_str()])?)
    }

    /// Rows that are due, the longest due first: the invites and knocks to be looked up (`looked_up`), or what is to be told. Of those
    /// for which the same server is asked first no more than so many, nor of one user more than so many of the rest.
    pub fn remote_memberships_due(
        &self,
        now: Millis,
        looked_up: bool,
        shares: DueShares,
    ) -> Result<Vec<DueMembership>> {
        let DueShares { of_server, of_user, limit } = shares;
        let mut statement = self.conn().prepare_cached(
            "SELECT room_id, user_id, server FROM (
               SELECT room_id, user_id, server, due_ms,
                 row_number() OVER (PARTITION BY user_id ORDER BY due_ms) AS of_user
               FROM (
                 SELECT room_id, user_id, due_ms, server,
                   row_number() OVER (PARTITION BY server ORDER BY due_ms) AS of_server
                 FROM (
                   SELECT room_id, user_id, due_ms,
                     iif(json_valid(via), ifnull(json_extract(via, '$[0]'), ''), '') AS server
                   FROM remote_memberships WHERE due_ms <= ?1 AND (state IN ('invited', 'knocked')) = ?2))
               WHERE of_server <= ?3)
             WHERE of_user <= ?4 ORDER BY due_ms LIMIT ?5",
        )?;
        let most = [of_server, of_user, limit].map(|most| i64::try_from(most).unwrap_or(i64::MAX));
        let mut rows = statement.query(params![now, looked_up, most[0], most[1], most[2]])?;
        let mut due = Vec::new();
        while let Some(row) = rows.next()? {
            due.push(DueMembership {
                room: RoomId::parse(&row.get::<_, String>(0)?)?,
                user: UserId::parse(&row.get::<_, String>(1)?)?,
                server: row.get(2)?,
            });
        }
        Ok(due)
    }

    /// When the next row is due.
    pub fn next_remote_membership_due(&self) -> Result<Option<Millis>> {
        let mut statement = self
            .conn()
            .prepare_cached("SELECT MIN(due_ms) FROM remote_memberships WHERE due_ms IS NOT NULL")?;
        Ok(statement.query_row([], |row| row.get(0))?)
    }
}

impl Tx<'_> {
    /// Does with the row what the machine says. A change that the user's clients see gets a new stream position, and
    /// the user is woken.
    pub fn write_remote_membership(&mut self, effect: &Effect) -> Result<()> {
        match effect {
            Effect::Unchanged => Ok(()),
            Effect::Save { row, tell: false, .. } => self.save_remote_membership(row, row.stream),
            Effect::Save { row, tell: true, rings } => {
                let stream = self.next_stream();
                self.save_remote_membership(row, stream)?;
                if *rings {
                    self.forget_remote_invite(row)?;
                }
                if *rings && row.state == RemoteState::Invited {
                    self.notify_of_remote_invite(row, stream)?;
                }
                self.wake_user(&row.user_id);
                Ok(())
            }
            Effect::Delete(row) => self.delete_remote_membership(row),
        }
    }

    fn save_remote_membership(&mut self, row: &RemoteMembership, stream: i64) -> Result<()> {
        let mut statement = self.conn().prepare_cached(
            "INSERT OR REPLACE INTO remote_memberships VALUES \
             (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22, ?23, \
              ?24, ?25, ?26, ?27, ?28, ?29, ?30)",
        )?;
        let covered = row.covered.as_ref();
        let shown_before = covered.map(|covered| serde_json::to_vec(&covered.stripped_state)).transpose();
        let events = [row.event.as_ref(), row.previous.as_ref(), row.pending.as_ref(), row.removal.as_ref()];
        let [event, previous, pending, removal] = events.map(|e| e.map(columns_of));
        let covered = covered.map(|covered| columns_of(&covered.event));
        statement.execute(params![
            row.room_id.as_str(),
            row.user_id.as_str(),
            row.state.as_str(),
            row.inviter().map(UserId::as_str),
            row.room_version.id,
            event.map(|e| e.0),
            event.map(|e| e.1),
            event.map(|e| e.2),
            previous.map(|e| e.0),
            previous.map(|e| e.1),
            previous.map(|e| e.2),
            pending.map(|e| e.0),
            pending.map(|e| e.1),
            pending.map(|e| e.2),
            removal.map(|e| e.0),
            removal.map(|e| e.1),
            removal.map(|e| e.2),
            covered.map(|e| e.0),
            covered.map(|e| e.1),
            covered.map(|e| e.2),
            shown_before.map_err(Error::internal)?,
            serde_json::to_vec(&row.stripped_state).map_err(Error::internal)?,
            serde_json::to_string(&row.via).map_err(Error::internal)?,
            row.attempts,
            row.due_ms,
            row.host_unaware,
            row.forgotten,
            row.ended_ms,
            row.may_be_in,
            stream,
        ])?;
        drop(statement);
        if let Some(due) = row.due_ms {
            self.is_due(due);
        }
        row.ended_ms.map_or(Ok(()), |now| self.sweep_ended(&row.user_id, now))
    }

    /// Lets go of what has ended long ago, and of the oldest of this user's if there are too many.
    fn sweep_ended(&mut self, user: &UserId, now: Millis) -> Result<()> {
        let mut old = self.conn().prepare_cached(
            "DELETE FROM remote_memberships WHERE (room_id, user_id) IN
               (SELECT room_id, user_id FROM remote_memberships WHERE ended_ms < ?1 LIMIT ?2)",
        )?;
        old.execute((now - ENDED_KEPT_MS, SWEPT_ROWS_MAX))?;
        let mut many = self.conn().prepare_cached(
            "DELETE FROM remote_memberships WHERE user_id = ?1 AND state = 'closed' AND stream <=
               (SELECT stream FROM remote_memberships WHERE user_id = ?1 AND state = 'closed'
                ORDER BY stream DESC LIMIT 1 OFFSET ?2)",
        )?;
        many.execute((user.as_str(), ENDED_PER_USER_MAX))?;
        Ok(())
    }

    /// Puts a row off until then, because somebody takes it up now; see `service::scheduler`. One that has come to its
    /// end since it was looked at stays so.
    pub fn lease_remote_membership(&mut self, room: &RoomId, user: &UserId, until: Millis) -> Result<()> {
        let mut statement = self.conn().prepare_cached(
            "UPDATE remote_memberships SET due_ms = ?3
             WHERE room_id = ?1 AND user_id = ?2 AND due_ms IS NOT NULL",
        )?;
        statement.execute(params![room.as_str(), user.as_str(), until])?;
        drop(statement);
        self.is_due(until);
        Ok(())
    }

    /// Makes a row due that is due later.
    pub fn hasten_remote_membership(&mut self, room: &RoomId, user: &UserId, now: Millis) -> Result<()> {
        let mut statement = self.conn().prepare_cached(
            "UPDATE remote_memberships SET due_ms = ?3 WHERE room_id = ?1 AND user_id = ?2 AND due_ms > ?3",
        )?;
        statement.execute(params![room.as_str(), user.as_str(), now])?;
        drop(statement);
        self.is_due(now);
        Ok(())
    }

    /// Has a local user join once more whose join is not in the room's state any more, if this server is out of the room by
    /// that and somebody else is in it.
    pub(in crate::store) fn rejoin_if_out(&mut self, room: RoomKey, join: EventKey) -> Result<()> {
        let room = self.room_by_key(room)?;
        let via = self.resident_servers(room.key)?;
        let join = self.pdu_by_key(join)?;
        if room.resident || via.is_empty() || self.has_remote_membership(&room.room_id, join.sender())? {
            return Ok(());
        }
        let row = Box::new(RemoteMembership::lost(join, via));
        self.write_remote_membership(&Effect::Save { row, tell: false, rings: false })
    }

    fn delete_remote_membership(&mut self, row: &RemoteMembership) -> Result<()> {
        let mut statement = self
            .conn()
            .prepare_cached("DELETE FROM remote_memberships WHERE room_id = ?1 AND user_id = ?2")?;
        statement.execute([row.room_id.as_str(), row.user_id.as_str()])?;
        drop(statement);
        self.wake_user(&row.user_id);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::*;
    use crate::store::{Location, Options, Store};

    fn store() -> Store {
        let name = ServerName::parse("a.org").unwrap();
        Store::open(
            Location::Memory,
            &name,
            Box::new(|_| ()),
            &Options { durable: false, readers: 1, ..Options::default() },
        )
        .unwrap()
    }

    fn knock(room: &RoomId, user: &UserId) -> Pdu {
        let version = room_version::room_version("11").unwrap();
        let event = serde_json::json!({
            "type": "m.room.member", "room_id": room, "sender": user, "state_key": user, "depth": 5,
            "content": {"membership": "knock"}, "origin_server_ts": 1, "prev_events": [], "auth_events": [],
            "hashes": {"sha256": "x"}, "signatures": {},
        });
        Pdu::from_object(event.as_object().unwrap().clone(), version).unwrap()
    }

    fn fields(room: &RoomId, user: &UserId, state: RemoteState) -> Fields {
        Fields {
            room_id: room.clone(),
            user_id: user.clone(),
            state,
            room_version: room_version::room_version("11").unwrap(),
            event: Some(knock(room, user)),
            previous: None,
            pending: None,
            removal: None,
            covered: None,
            stripped_state: vec![RawValue::from_string("{\"shown\":\"before\"}".to_owned()).unwrap()],
            via: vec![ServerName::parse("b.org").unwrap()],
            attempts: 2,
            due_ms: None,
            host_unaware: false,
            forgotten: false,
            ended_ms: None,
            may_be_in: false,
            stream: 0,
        }
    }

    fn save(store: &Store, row: Fields, tell: bool) {
        let effect = Effect::Save { row: Box::new(RemoteMembership::from_store(row)), tell, rings: tell };
        store.write(move |tx| tx.write_remote_membership(&effect)).unwrap();
    }

    #[test]
    fn a_row_is_read_back_as_it_was_written_and_found_by_its_stream_and_its_time() {
        let store = store();
        let (room, user) = (RoomId::parse("!r:b.org").unwrap(), UserId::parse("@u:a.org").unwrap());
        let other = UserId::parse("@o:a.org").unwrap();
        let mut row = fields(&room, &user, RemoteState::Knocking);
        (row.due_ms, row.host_unaware, row.forgotten, row.may_be_in) = (Some(50), true, true, true);
        (row.previous, row.pending) = (Some(knock(&room, &other)), Some(knock(&room, &user)));
        row.removal = row.previous.clone();
        row.covered = row
            .event
            .clone()
            .map(|event| CoveredMembership { event, stripped_state: row.stripped_state.clone() });
        save(&store, row.clone(), true);
        let read = store.read(|db| db.remote_membership(&room, &user)).unwrap().unwrap();
        assert!(read.stream > 0);
        let written = Fields { stream: read.stream, ..row };
        assert_eq!(format!("{:?}", RemoteMembership::from_store(written)), format!("{read:?}"));
        let found = store.read(|db| db.remote_memberships_of(&user, read.stream - 1, true)).unwrap();
        assert_eq!(found.len(), 1);
        assert!(store.read(|db| db.remote_memberships_of(&user, read.stream, true)).unwrap().is_empty());
        let due = |now, looked_up| {
            let shares = DueShares { of_server: 9, of_user: 9, limit: 9 };
            let due = store.read(|db| db.remote_memberships_due(now, looked_up, shares)).unwrap();
            due.into_iter().map(|due| (due.room, due.user)).collect::<Vec<_>>()
        };
        assert!(due(49, true).is_empty() && due(49, false).is_empty());
        assert_eq!([due(50, true), due(50, false)].concat(), [(room.clone(), user.clone())]);
        assert_eq!(store.read(|db| db.next_remote_membership_due()).unwrap(), Some(50));
        save(&store, fields(&room, &other, RemoteState::Invited), true);
        assert_eq!(store.read(|db| db.remote_memberships_in(&room)).unwrap().len(), 2);
        store.write(move |tx| tx.write_remote_membership(&Effect::Delete(Box::new(read)))).unwrap();
        let left = store.read(|db| db.remote_memberships_in(&room)).unwrap();
        assert_eq!(left.iter().map(|row| row.user_id.as_str()).collect::<Vec<_>>(), ["@o:a.org"]);
    }

    #[test]
    fn a_quiet_change_is_seen_by_no_client_and_what_is_due_no_day_is_not_put_off() {
        let store = store();
        let (room, user) = (RoomId::parse("!r:b.org").unwrap(), UserId::parse("@u:a.org").unwrap());
        save(&store, Fields { due_ms: Some(7), ..fields(&room, &user, RemoteState::Invited) }, true);
        let row = store.read(|db| db.remote_membership(&room, &user)).unwrap().unwrap();
        save(&store, Fields { attempts: 3, ..(*row).clone() }, false);
        let again = store.read(|db| db.remote_membership(&room, &user)).unwrap().unwrap();
        assert_eq!((again.attempts, again.stream, again.due_ms), (3, row.stream, Some(7)));
        let lease = |until| {
            let (there, us) = (room.clone(), user.clone());
            store.write(move |tx| tx.lease_remote_membership(&there, &us, until)).unwrap();
            store.read(|db| db.remote_membership(&room, &user)).unwrap().unwrap().due_ms
        };
        assert_eq!(lease(200), Some(200));
        save(&store, Fields { due_ms: None, ..(*again).clone() }, false);
        assert_eq!(lease(300), None);
    }

    #[test]
    fn what_has_ended_is_bounded_and_goes_with_time() {
        let store = store();
        let [user, other] = ["@u:a.org", "@o:a.org"].map(|id| UserId::parse(id).unwrap());
        let close = |user: &UserId, n: u32, now: Millis| {
            let room = RoomId::parse(&format!("!r{n}:b.org")).unwrap();
            save(&store, Fields { ended_ms: Some(now), ..fields(&room, user, RemoteState::Closed) }, true);
        };
        let rooms = |user: &UserId| -> Vec<String> {
            let rows = store.read(|db| db.remote_memberships_of(user, 0, true)).unwrap();
            rows.into_iter().map(|row| row.room_id.as_str().to_owned()).collect()
        };
        close(&other, 0, 1);
        (0..ENDED_PER_USER_MAX + 5).for_each(|n| close(&user, n, 2));
        let kept = rooms(&user);
        assert_eq!((kept.len(), kept[0].as_str()), (200, "!r5:b.org"), "the oldest go");
        assert_eq!(rooms(&other).len(), 1, "another user's are not touched");
        assert!(store.read(|db| db.remote_memberships_of(&user, 0, false)).unwrap().is_empty());
        assert!(store.read(|db| db.rooms_dealt_with_from_outside(&user)).unwrap().is_empty());
        (0..20).for_each(|n| close(&other, 1000 + n, 3 + ENDED_KEPT_MS));
        assert!(rooms(&user).is_empty());
        assert_eq!(rooms(&other).len(), 20);
    }
}
