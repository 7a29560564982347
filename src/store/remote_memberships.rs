//! Remote memberships: rows of our users' knocks, invites and leaves in rooms that this server is not resident in.
//! Which state may follow which is decided in `protocol::remote_membership`, never here.

use rusqlite::{OptionalExtension, Row, params};
use serde_json::value::RawValue;

use super::{Db, Tx};
use crate::clock::Millis;
use crate::error::{Error, Result};
use crate::protocol::pdu::Membership;
use crate::protocol::remote_membership::{Order, State, order_of_invite};
use crate::protocol::{EventId, Pdu, RoomId, RoomVersion, ServerName, UserId, room_version};

/// One row. See `schema.sql` for what the fields mean.
#[derive(Clone)]
pub struct RemoteMembership {
    /// The room that we are not in.
    pub room_id: RoomId,
    /// Our user.
    pub user_id: UserId,
    /// Where the membership stands.
    pub state: State,
    /// The room's version, as the other side said it.
    pub room_version: RoomVersion,
    /// The member event that clients are told.
    pub event: Option<Pdu>,
    /// The member event before that one.
    pub previous: Option<Pdu>,
    /// The signed join that is being sent; while leaving and afterwards, the leave that a server was handed.
    pub pending: Option<Pdu>,
    /// Stripped state for clients, without the user's own member event.
    pub stripped_state: Vec<Box<RawValue>>,
    /// Servers worth asking, best first.
    pub via: Vec<ServerName>,
    /// How often the scheduler tried in this state.
    pub attempts: u32,
    /// When it tries next.
    pub due_ms: Option<Millis>,
    /// Whether the user asked to forget the room.
    pub forgotten: bool,
    /// When it came to its end.
    pub ended_ms: Option<Millis>,
    /// While joining: whether a server may have taken a join that was handed in before the pending one.
    pub may_be_in: bool,
    /// Position of the last change that clients can see.
    pub stream: i64,
}

/// How long a membership that has ended is kept, so that clients which were away for so long are told. Beyond that they
/// show an invite that there is not any more.
const ENDED_KEPT: Millis = 90 * 24 * 3_600_000;
/// How many of these one user has at most: whoever invites and takes back in ever new rooms fills no more.
const MOST_ENDED: u32 = 200;
/// Old ones that go when one comes, so that no single commit has much to do.
const SWEPT_AT_ONCE: u32 = 20;

/// The section of `/sync` that shows a remote membership.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// `rooms.invite`.
    Invite,
    /// `rooms.knock`.
    Knock,
    /// `rooms.leave`.
    Leave,
}

impl RemoteMembership {
    /// A row of which nobody has heard yet, in this state.
    pub fn new(room_id: &RoomId, user_id: &UserId, state: State, room_version: RoomVersion) -> Self {
        Self {
            room_id: room_id.clone(),
            user_id: user_id.clone(),
            state,
            room_version,
            event: None,
            previous: None,
            pending: None,
            stripped_state: Vec::new(),
            via: Vec::new(),
            attempts: 0,
            due_ms: None,
            forgotten: false,
            ended_ms: None,
            may_be_in: false,
            stream: 0,
        }
    }

    /// Nothing is left to be told to anybody in the present state; and if that is the end, it is kept for a while from now.
    pub fn settle(&mut self, now: Millis) {
        (self.attempts, self.due_ms) = (0, None);
        self.ended_ms = (self.state == State::Closed).then_some(now);
    }

    /// Who invited, while nobody has answered.
    fn inviter(&self) -> Option<&UserId> {
        let invite = self.event.as_ref().filter(|_| self.state == State::Invited)?;
        Some(invite.sender())
    }

    /// Where clients see this row. None: nowhere, because there is nothing to show yet (a knock that no server has
    /// taken, a join out of the blue) or because the user forgot the room.
    pub fn section(&self) -> Option<Section> {
        if self.forgotten {
            return None;
        }
        match self.state {
            State::Knocking if self.stripped_state.is_empty() => None,
            State::Knocking | State::Knocked => Some(Section::Knock),
            State::Invited => Some(Section::Invite),
            State::Joining => match self.event.as_ref()?.membership()? {
                Membership::Invite => Some(Section::Invite),
                Membership::Knock => Some(Section::Knock),
                _ => None,
            },
            State::Leaving | State::Closed => Some(Section::Leave),
        }
    }

    /// The event id of the knock that this invite answers: the link of the two.
    pub fn answers(&self) -> Option<&EventId> {
        let knock = self.previous.as_ref().filter(|p| p.membership() == Some(Membership::Knock))?;
        self.event.as_ref().filter(|e| e.membership() == Some(Membership::Invite))?;
        Some(knock.event_id())
    }

    /// The leave that a server of the room was handed, if it was.
    pub fn leave_handed_in(&self) -> Option<&Pdu> {
        let is_over = matches!(self.state, State::Leaving | State::Closed);
        self.pending.as_ref().filter(|event| is_over && event.membership() == Some(Membership::Leave))
    }

    /// Where an invite that comes in stands beside the user's last leave, or the ban that ended it.
    pub fn order_of(&self, invite: &Pdu) -> Order {
        let is_known = self.state == State::Closed;
        let ban = self.event.as_ref().filter(|e| is_known && e.membership() == Some(Membership::Ban));
        let leave = ban.or(self.leave_handed_in()).map(|leave| (leave, is_known));
        order_of_invite(invite, leave, self.previous.as_ref())
    }

    /// Makes this the member event that clients are told; the one before becomes `previous`.
    pub fn tell(&mut self, event: Pdu) {
        self.previous = self.event.replace(event);
    }

    /// Puts servers in front of those that are known to be worth asking, without repeats and without growing for ever.
    pub fn prefer(&mut self, servers: impl IntoIterator<Item = ServerName>) {
        const MOST: usize = 20;
        let mut via: Vec<ServerName> = Vec::new();
        for server in servers.into_iter().chain(std::mem::take(&mut self.via)) {
            if via.len() < MOST && !via.contains(&server) {
                via.push(server);
            }
        }
        self.via = via;
    }
}

const COLUMNS: &str = "room_id, user_id, state, room_version, event_id, event_version, event, previous_id, \
     previous_version, previous, pending_id, pending_version, pending, stripped_state, via, attempts, due_ms, \
     forgotten, ended_ms, may_be_in, stream";

/// An event's id, room version and bytes.
type RawEvent = (Option<String>, Option<String>, Option<Vec<u8>>);

/// What a row holds before its texts are made into types again.
struct Raw {
    names: [String; 4],
    events: [RawEvent; 3],
    stripped_state: Vec<u8>,
    via: String,
    attempts: u32,
    due_ms: Option<Millis>,
    forgotten: bool,
    ended_ms: Option<Millis>,
    may_be_in: bool,
    stream: i64,
}

fn raw(row: &Row<'_>) -> rusqlite::Result<Raw> {
    let event = |first: usize| -> rusqlite::Result<RawEvent> {
        Ok((row.get(first)?, row.get(first + 1)?, row.get(first + 2)?))
    };
    Ok(Raw {
        names: [row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?],
        events: [event(4)?, event(7)?, event(10)?],
        stripped_state: row.get(13)?,
        via: row.get(14)?,
        attempts: row.get(15)?,
        due_ms: row.get(16)?,
        forgotten: row.get(17)?,
        ended_ms: row.get(18)?,
        may_be_in: row.get(19)?,
        stream: row.get(20)?,
    })
}

impl Raw {
    fn typed(self) -> Result<RemoteMembership> {
        let [room_id, user_id, state, version] = self.names;
        let odd =
            |what: &str| Error::internal(format!("remote membership of {user_id} in {room_id}: {what}"));
        let known =
            |version: &str| room_version::room_version(version).ok_or_else(|| odd("unknown room version"));
        let event = |raw: RawEvent| match raw {
            (Some(id), Some(version), Some(json)) => {
                Pdu::trusted(EventId::parse(&id)?, json, known(&version)?).map(Some)
            }
            _ => Ok(None),
        };
        let [told, previous, pending] = self.events;
        Ok(RemoteMembership {
            room_id: RoomId::parse(&room_id)?,
            user_id: UserId::parse(&user_id)?,
            state: State::parse(&state).ok_or_else(|| odd("unknown state"))?,
            room_version: known(&version)?,
            event: event(told)?,
            previous: event(previous)?,
            pending: event(pending)?,
            stripped_state: serde_json::from_slice(&self.stripped_state).map_err(Error::internal)?,
            via: serde_json::from_str(&self.via).map_err(Error::internal)?,
            attempts: self.attempts,
            due_ms: self.due_ms,
            forgotten: self.forgotten,
            ended_ms: self.ended_ms,
            may_be_in: self.may_be_in,
            stream: self.stream,
        })
    }
}

impl Db<'_> {
    /// The user's remote membership in this room.
    pub fn remote_membership(&self, room: &RoomId, user: &UserId) -> Result<Option<RemoteMembership>> {
        let sql = format!("SELECT {COLUMNS} FROM remote_memberships WHERE room_id = ?1 AND user_id = ?2");
        let mut statement = self.conn().prepare_cached(&sql)?;
        statement.query_row([room.as_str(), user.as_str()], raw).optional()?.map(Raw::typed).transpose()
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
        rows.map(|row| row.map_err(Error::from).and_then(Raw::typed)).collect()
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
        let mut statement = self.conn().prepare_cached(
            "SELECT inviter FROM remote_memberships WHERE user_id = ?1 AND inviter IS NOT NULL",
        )?;
        let rows = statement.query_map([user.as_str()], |row| row.get(0))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// The version of a room that one of us is joining right now: that of the join that was signed for it.
    pub fn joining_version(&self, room: &RoomId) -> Result<Option<RoomVersion>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT pending_version FROM remote_memberships
             WHERE room_id = ?1 AND state = 'joining' AND pending_version IS NOT NULL LIMIT 1",
        )?;
        let version: Option<String> = statement.query_row([room.as_str()], |row| row.get(0)).optional()?;
        Ok(version.and_then(|version| room_version::room_version(&version)))
    }

    /// Whether a server is one that a room would be reached through which one of us deals with from outside.
    pub fn is_way_into(&self, room: &RoomId, server: &ServerName) -> Result<bool> {
        let mut statement = self.conn().prepare_cached(
            "SELECT 1 FROM remote_memberships m, json_each(m.via) v WHERE m.room_id = ?1 AND v.value = ?2 LIMIT 1",
        )?;
        Ok(statement.exists(params![room.as_str(), server.as_str()])?)
    }

    /// Rows that the scheduler should act upon at this time, the longest due first.
    pub fn remote_memberships_due(&self, now: Millis, limit: usize) -> Result<Vec<(RoomId, UserId)>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT room_id, user_id FROM remote_memberships WHERE due_ms <= ?1 ORDER BY due_ms LIMIT ?2",
        )?;
        let rows = statement.query_map(params![now, i64::try_from(limit).unwrap_or(i64::MAX)], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
        })?;
        rows.map(|row| {
            let (room, user) = row?;
            Ok((RoomId::parse(&room)?, UserId::parse(&user)?))
        })
        .collect()
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
    /// Writes the row as a change that the user's clients see: it gets a new stream position, and the user is woken.
    pub fn save_remote_membership(&mut self, row: &RemoteMembership) -> Result<()> {
        let stream = self.next_stream();
        self.write_remote_membership(row, stream)?;
        self.wake_user(&row.user_id);
        Ok(())
    }

    /// Writes the row as a change that no client sees: when to try again, that a leave was delivered.
    pub fn save_remote_membership_quietly(&mut self, row: &RemoteMembership) -> Result<()> {
        self.write_remote_membership(row, row.stream)
    }

    fn write_remote_membership(&mut self, row: &RemoteMembership, stream: i64) -> Result<()> {
        let mut statement = self.conn().prepare_cached(
            "INSERT OR REPLACE INTO remote_memberships VALUES \
             (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22)",
        )?;
        let [event, previous, pending] = [&row.event, &row.previous, &row.pending]
            .map(|e| e.as_ref().map(|e| (e.event_id().as_str(), e.version().id, e.json())));
        // Who has left is shown nothing more of the room.
        let has_left = matches!(row.state, State::Leaving | State::Closed);
        let shown = if has_left { &[][..] } else { &row.stripped_state };
        let ended_ms = row.ended_ms.filter(|_| row.state == State::Closed);
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
            serde_json::to_vec(shown).map_err(Error::internal)?,
            serde_json::to_string(&row.via).map_err(Error::internal)?,
            row.attempts,
            row.due_ms,
            row.forgotten,
            ended_ms,
            row.may_be_in,
            stream,
        ])?;
        drop(statement);
        if row.state == State::Closed { self.sweep_ended(&row.user_id, ended_ms) } else { Ok(()) }
    }

    /// Lets go of what has ended long ago, and of the oldest of this user's if there are too many.
    fn sweep_ended(&mut self, user: &UserId, now: Option<Millis>) -> Result<()> {
        if let Some(now) = now {
            let mut old = self.conn().prepare_cached(
                "DELETE FROM remote_memberships WHERE (room_id, user_id) IN
                   (SELECT room_id, user_id FROM remote_memberships WHERE ended_ms < ?1 LIMIT ?2)",
            )?;
            old.execute((now - ENDED_KEPT, SWEPT_AT_ONCE))?;
        }
        let mut many = self.conn().prepare_cached(
            "DELETE FROM remote_memberships WHERE user_id = ?1 AND state = 'closed' AND stream <=
               (SELECT stream FROM remote_memberships WHERE user_id = ?1 AND state = 'closed'
                ORDER BY stream DESC LIMIT 1 OFFSET ?2)",
        )?;
        many.execute((user.as_str(), MOST_ENDED))?;
        Ok(())
    }

    /// Puts a row off until then, because somebody takes it up now; see `service::scheduler`. One that has come to its end
    /// since it was looked at stays so.
    pub fn lease_remote_membership(&mut self, room: &RoomId, user: &UserId, until: Millis) -> Result<()> {
        let mut statement = self.conn().prepare_cached(
            "UPDATE remote_memberships SET due_ms = ?3
             WHERE room_id = ?1 AND user_id = ?2 AND due_ms IS NOT NULL",
        )?;
        statement.execute(params![room.as_str(), user.as_str(), until])?;
        Ok(())
    }

    /// Makes a row due that is due later.
    pub fn hasten_remote_membership(&mut self, room: &RoomId, user: &UserId, now: Millis) -> Result<()> {
        let mut statement = self.conn().prepare_cached(
            "UPDATE remote_memberships SET due_ms = ?3 WHERE room_id = ?1 AND user_id = ?2 AND due_ms > ?3",
        )?;
        statement.execute(params![room.as_str(), user.as_str(), now])?;
        Ok(())
    }

    /// Makes everything due that is due some day: after a start nothing is under way.
    pub fn hasten_remote_memberships(&mut self, now: Millis) -> Result<()> {
        self.conn().execute("UPDATE remote_memberships SET due_ms = ?1 WHERE due_ms > ?1", [now])?;
        Ok(())
    }

    /// Deletes the row.
    pub fn delete_remote_membership(&mut self, room: &RoomId, user: &UserId) -> Result<()> {
        let mut statement = self
            .conn()
            .prepare_cached("DELETE FROM remote_memberships WHERE room_id = ?1 AND user_id = ?2")?;
        statement.execute([room.as_str(), user.as_str()])?;
        drop(statement);
        self.wake_user(user);
        Ok(())
    }

    /// This server became resident: from now on the room's own state says who is a member. Only leaves that were still
    /// to be told stay, for the scheduler to put into the room now.
    pub fn end_remote_memberships(&mut self, room: &RoomId, now: Millis) -> Result<()> {
        self.conn().execute(
            "UPDATE remote_memberships SET due_ms = ?2 WHERE room_id = ?1",
            params![room.as_str(), now],
        )?;
        let mut statement = self.conn().prepare_cached(
            "DELETE FROM remote_memberships WHERE room_id = ?1 AND state <> 'leaving' RETURNING user_id",
        )?;
        let users: Vec<String> =
            statement.query_map([room.as_str()], |row| row.get(0))?.collect::<Result<_, _>>()?;
        drop(statement);
        for user in users {
            self.wake_user(&UserId::parse(&user)?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Location, Options, Store};

    fn store() -> Store {
        let name = ServerName::parse("a.org").unwrap();
        Store::open(Location::Memory, &name, Box::new(|_| ()), &Options { durable: false, readers: 1 })
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

    #[test]
    fn a_row_is_read_back_as_it_was_written_and_found_by_its_stream_and_its_time() {
        let store = store();
        let (room, user) = (RoomId::parse("!r:b.org").unwrap(), UserId::parse("@u:a.org").unwrap());
        let version = room_version::room_version("11").unwrap();
        let mut row = RemoteMembership::new(&room, &user, State::Knocking, version);
        row.tell(knock(&room, &user));
        row.prefer([ServerName::parse("b.org").unwrap()]);
        row.due_ms = Some(50);
        let written = row.clone();
        store.write(move |tx| tx.save_remote_membership(&written)).unwrap();
        let read = store.read(|db| db.remote_membership(&room, &user)).unwrap().unwrap();
        assert_eq!(read.event.as_ref().map(Pdu::event_id), row.event.as_ref().map(Pdu::event_id));
        assert_eq!((read.state, read.via.len(), read.section()), (State::Knocking, 1, None));
        assert!(read.stream > 0);
        let found = store.read(|db| db.remote_memberships_of(&user, read.stream - 1, true)).unwrap();
        assert_eq!(found.len(), 1);
        assert!(store.read(|db| db.remote_memberships_of(&user, read.stream, true)).unwrap().is_empty());
        assert!(store.read(|db| db.remote_memberships_due(49, 9)).unwrap().is_empty());
        assert_eq!(
            store.read(|db| db.remote_memberships_due(50, 9)).unwrap(),
            [(room.clone(), user.clone())]
        );
        assert_eq!(store.read(|db| db.next_remote_membership_due()).unwrap(), Some(50));
    }

    #[test]
    fn a_quiet_change_is_seen_by_no_client_and_residence_ends_all_but_leaves() {
        let store = store();
        let room = RoomId::parse("!r:b.org").unwrap();
        let [leaving, invited] = ["@l:a.org", "@i:a.org"].map(|id| UserId::parse(id).unwrap());
        let version = room_version::room_version("11").unwrap();
        for (user, state) in [(&leaving, State::Leaving), (&invited, State::Invited)] {
            let mut row = RemoteMembership::new(&room, user, state, version);
            row.due_ms = Some(7);
            store.write(move |tx| tx.save_remote_membership(&row)).unwrap();
        }
        let row = store.read(|db| db.remote_membership(&room, &invited)).unwrap().unwrap();
        let quiet = RemoteMembership { attempts: 3, ..row.clone() };
        store.write(move |tx| tx.save_remote_membership_quietly(&quiet)).unwrap();
        let again = store.read(|db| db.remote_membership(&room, &invited)).unwrap().unwrap();
        assert_eq!((again.attempts, again.stream), (3, row.stream));
        let here = room.clone();
        store.write(move |tx| tx.end_remote_memberships(&here, 100)).unwrap();
        assert!(store.read(|db| db.remote_membership(&room, &invited)).unwrap().is_none());
        let left = store.read(|db| db.remote_membership(&room, &leaving)).unwrap().unwrap();
        assert_eq!(left.due_ms, Some(100));
        // Whoever takes up what has ended meanwhile changes nothing.
        let (here, us) = (room.clone(), leaving.clone());
        let ended = RemoteMembership { state: State::Closed, due_ms: None, ..left };
        store
            .write(move |tx| {
                tx.save_remote_membership_quietly(&ended)?;
                tx.lease_remote_membership(&here, &us, 200)
            })
            .unwrap();
        let ended = store.read(|db| db.remote_membership(&room, &leaving)).unwrap().unwrap();
        assert_eq!(ended.due_ms, None);
    }

    #[test]
    fn what_has_ended_is_small_bounded_and_goes_with_time() {
        let store = store();
        let [user, other] = ["@u:a.org", "@o:a.org"].map(|id| UserId::parse(id).unwrap());
        let version = room_version::room_version("11").unwrap();
        let close = |user: &UserId, n: u32, now: Millis| {
            let room = RoomId::parse(&format!("!r{n}:b.org")).unwrap();
            let mut row = RemoteMembership::new(&room, user, State::Closed, version);
            row.stripped_state = vec![RawValue::from_string("{\"shown\":\"before\"}".to_owned()).unwrap()];
            row.settle(now);
            store.write(move |tx| tx.save_remote_membership(&row)).unwrap();
        };
        let rooms = |user: &UserId| -> Vec<String> {
            let rows = store.read(|db| db.remote_memberships_of(user, 0, true)).unwrap();
            assert!(rows.iter().all(|row| row.stripped_state.is_empty() && row.ended_ms.is_some()));
            rows.into_iter().map(|row| row.room_id.as_str().to_owned()).collect()
        };
        close(&other, 0, 1);
        (0..MOST_ENDED + 5).for_each(|n| close(&user, n, 2));
        let kept = rooms(&user);
        assert_eq!((kept.len(), kept[0].as_str()), (200, "!r5:b.org"), "the oldest go");
        assert_eq!(rooms(&other).len(), 1, "another user's are not touched");
        assert!(store.read(|db| db.remote_memberships_of(&user, 0, false)).unwrap().is_empty());
        assert!(store.read(|db| db.rooms_dealt_with_from_outside(&user)).unwrap().is_empty());
        (0..20).for_each(|n| close(&other, 1000 + n, 3 + ENDED_KEPT));
        assert!(rooms(&user).is_empty());
        assert_eq!(rooms(&other).len(), 20);
        // One that begins anew has not ended.
        let mut row =
            RemoteMembership::new(&RoomId::parse("!r:b.org").unwrap(), &user, State::Closed, version);
        row.settle(7);
        row.state = State::Knocked;
        let (room, read) = (row.room_id.clone(), user.clone());
        store.write(move |tx| tx.save_remote_membership(&row)).unwrap();
        assert_eq!(store.read(|db| db.remote_membership(&room, &read)).unwrap().unwrap().ended_ms, None);
    }

    #[test]
    fn servers_worth_asking_are_few_and_without_repeats() {
        let (room, user) = (RoomId::parse("!r:b.org").unwrap(), UserId::parse("@u:a.org").unwrap());
        let version = room_version::room_version("11").unwrap();
        let mut row = RemoteMembership::new(&room, &user, State::Knocked, version);
        let server = |n: usize| ServerName::parse(&format!("s{n}.org")).unwrap();
        row.prefer((0..30).map(server));
        row.prefer([server(5), server(5)]);
        assert_eq!((row.via.len(), row.via[0].as_str()), (20, "s5.org"));
    }
}
