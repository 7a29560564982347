//! What is unread: up to where a user has read each room and thread, and the sum of what notifies them behind it. "If the
//! user has both `m.read` and `m.read.private` set in the room then the receipt which is more recent/ahead must be used."

use std::collections::{BTreeMap, HashMap};

use rusqlite::{OptionalExtension, params};

use crate::error::{Error, Result};
use crate::order::Gather;
use crate::protocol::push_rules::Outcome;
use crate::protocol::remote_membership::{RemoteMembership, RemoteState};
use crate::protocol::{Pdu, UserId};
use crate::store::{Db, Place, RoomKey, Tx};

/// The thread of everything that is in none.
pub const MAIN_THREAD: &str = "main";

/// How many notifications there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unread {
    /// All.
    pub notifications: u64,
    /// Those of them that are highlighted.
    pub highlights: u64,
}

/// What is unread in a room.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnreadCounts {
    /// In no thread.
    pub main: Unread,
    /// In each thread, by its root's event id, where there is anything.
    pub threads: BTreeMap<String, Unread>,
}

impl UnreadCounts {
    /// In the whole room.
    pub fn in_all(&self) -> Unread {
        self.threads.values().fold(self.main, |sum, thread| Unread {
            notifications: sum.notifications + thread.notifications,
            highlights: sum.highlights + thread.highlights,
        })
    }
}

/// What a user has not seen: for the number on an app's icon.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Badge {
    /// Invites that wait for an answer.
    pub invites: u64,
    /// Joined rooms with unread notifications.
    pub rooms: u64,
    /// The notifications in them.
    pub notifications: u64,
}

/// Up to where a user has read a room.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReadPositions {
    /// Nothing up to here counts, wherever it is.
    base: i64,
    threads: HashMap<String, i64>,
}

impl ReadPositions {
    /// Whether an event at a position is read.
    pub fn has_read(&self, thread: Option<&str>, stream: i64) -> bool {
        stream <= self.of(thread)
    }

    /// Nothing up to here counts, in whatever thread it is.
    pub(in crate::store) fn base(&self) -> i64 {
        self.base
    }

    fn furthest(&self) -> i64 {
        self.threads.values().copied().fold(self.base, i64::max)
    }

    fn of(&self, thread: Option<&str>) -> i64 {
        self.threads.get(thread.unwrap_or(MAIN_THREAD)).copied().unwrap_or(0).max(self.base)
    }
}

/// What was unread in a room at a position.
#[derive(Debug, Clone)]
pub struct KnownCounts {
    /// The position.
    pub position: i64,
    /// What was unread.
    pub counts: UnreadCounts,
}

/// An event that notifies somebody, as it is to all members of its room.
#[derive(Debug)]
pub struct NotifyingEvent {
    thread: Option<String>,
    outcome: u8,
    own: HashMap<String, u8>,
}

impl NotifyingEvent {
    /// Adds it to what is unread for a user who was there and did not send it.
    pub fn add_to(&self, counts: &mut UnreadCounts, user: &UserId) {
        let outcome = Outcome::of_code(self.own.get(user.as_str()).copied().unwrap_or(self.outcome));
        if !outcome.notify || outcome.uncounted {
            return;
        }
        let unread = match &self.thread {
            None => &mut counts.main,
            Some(thread) => counts.threads.entry(thread.clone()).or_default(),
        };
        unread.notifications += 1;
        unread.highlights += u64::from(outcome.highlight);
    }
}

/// Sums while they are made: rows of a user take from the rows of all.
#[derive(Default, Clone, Copy)]
struct Sum {
    notifications: i64,
    highlights: i64,
}

#[derive(Default, Clone)]
struct Sums {
    main: Sum,
    threads: BTreeMap<String, Sum>,
}

impl Sum {
    fn starting(from: Unread) -> Self {
        let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        Self { notifications: count(from.notifications), highlights: count(from.highlights) }
    }

    fn add(&mut self, outcome: u8, sign: i64) {
        let outcome = Outcome::of_code(outcome);
        if !outcome.uncounted {
            self.notifications += sign * i64::from(outcome.notify);
            self.highlights += sign * i64::from(outcome.highlight);
        }
    }

    fn total(self) -> Unread {
        let total = |sum: i64| u64::try_from(sum).unwrap_or(0);
        Unread { notifications: total(self.notifications), highlights: total(self.highlights) }
    }
}

impl Sums {
    fn starting(from: &UnreadCounts) -> Self {
        let threads = from.threads.iter().map(|(thread, unread)| (thread.clone(), Sum::starting(*unread)));
        Self { main: Sum::starting(from.main), threads: threads.gather() }
    }

    fn of(&mut self, thread: Option<&str>) -> &mut Sum {
        let Some(thread) = thread else { return &mut self.main };
        self.threads.entry(thread.to_owned()).or_default()
    }

    fn total(self) -> UnreadCounts {
        let threads = self.threads.into_iter().map(|(thread, sum)| (thread, sum.total()));
        UnreadCounts {
            main: self.main.total(),
            threads: threads.filter(|(_, unread)| unread.notifications > 0).gather(),
        }
    }
}

/// What adds to what is unread, of all rooms that a user is in: the room, the thread, how many notifications and how many of them
/// are highlighted. Rows of the user take from the rows of all. Those of 8 and more are not counted ([`Outcome::code`]).
const UNREAD_OF_ROOMS: &str = "
    WITH rooms AS MATERIALIZED (
      SELECT m.room_key AS room,
        max(coalesce(m.joined_since, m.stream), coalesce((SELECT stream FROM read_positions p
          WHERE p.user_id = ?1 AND p.room_key = m.room_key AND p.thread = ''), 0)) AS base
      FROM memberships m WHERE m.user_id = ?1 AND m.local = 1 AND m.membership = 'join')
    SELECT room, NULL, count(*), coalesce(sum(n.outcome >> 1 & 1), 0)
      FROM rooms CROSS JOIN notifications n NOT INDEXED
      WHERE n.room_key = room AND n.thread IS NULL AND n.outcome < 8
        AND n.stream > max(base, coalesce((SELECT stream FROM read_positions p
          WHERE p.user_id = ?1 AND p.room_key = room AND p.thread = 'main'), 0))
      GROUP BY room
    UNION ALL
    SELECT room, n.thread, n.outcome & 1, n.outcome >> 1 & 1
      FROM rooms CROSS JOIN notifications n INDEXED BY notifications_in_threads
      WHERE n.room_key = room AND n.thread IS NOT NULL AND n.outcome < 8 AND n.stream > base
        AND n.stream > coalesce((SELECT stream FROM read_positions p
          WHERE p.user_id = ?1 AND p.room_key = room AND p.thread = n.thread), 0)
    UNION ALL
    SELECT room, n.thread,
        (n.outcome & 9 = 1) - (n.instead_of & 9 = 1), (n.outcome & 10 = 2) - (n.instead_of & 10 = 2)
      FROM rooms CROSS JOIN notifications_of_users n
      WHERE n.user_id = ?1 AND n.room_key = room AND n.stream > base
        AND n.stream > coalesce((SELECT stream FROM read_positions p
          WHERE p.user_id = ?1 AND p.room_key = room AND p.thread = coalesce(n.thread, 'main')), 0)";

impl Db<'_> {
    /// The position behind which events of a room count for a user: that of the join by which they came in (again). "When the user
    /// updates their read receipt (either by using the API or by sending an event), notifications prior to and including that event
    /// MUST be marked as read", and their join is an event that they sent. (Synapse goes on from the last receipt of those who come
    /// back.) None if they are not joined.
    pub(in crate::store) fn counts_since(&self, room: RoomKey, user: &UserId) -> Result<Option<i64>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT coalesce(joined_since, stream) FROM memberships
             WHERE room_key = ?1 AND user_id = ?2 AND membership = 'join'",
        )?;
        Ok(statement.query_row(params![room, user.as_str()], |row| row.get(0)).optional()?)
    }

    /// Up to where a user has read a room; none if they are not joined.
    pub fn read_positions(&self, room: RoomKey, user: &UserId) -> Result<Option<ReadPositions>> {
        let Some(mut base) = self.counts_since(room, user)? else { return Ok(None) };
        let mut statement = self.conn().prepare_cached(
            "SELECT thread, stream FROM read_positions WHERE user_id = ?1 AND room_key = ?2",
        )?;
        let mut rows = statement.query(params![user.as_str(), room])?;
        let mut threads = HashMap::new();
        while let Some(row) = rows.next()? {
            match row.get_ref(0)?.as_str().map_err(Error::internal)? {
                "" => base = base.max(row.get(1)?),
                thread => drop(threads.insert(thread.to_owned(), row.get(1)?)),
            }
        }
        Ok(Some(ReadPositions { base, threads }))
    }

    /// The rooms of which a user has read more after a position, other than by speaking there, or has less to read.
    pub fn rooms_read_since(&self, user: &UserId, after: i64) -> Result<Vec<RoomKey>> {
        self.rows(
            "SELECT DISTINCT room_key FROM read_positions WHERE user_id = ?1 AND moved > ?2 AND moved > 0",
            params![user.as_str(), after],
            |row| row.get(0),
        )
    }

    /// When a user last read more of a room than before, other than by speaking there; 0: never.
    pub fn last_read(&self, room: RoomKey, user: &UserId) -> Result<i64> {
        let mut statement = self.conn().prepare_cached(
            "SELECT coalesce(max(moved), 0) FROM read_positions WHERE user_id = ?1 AND room_key = ?2",
        )?;
        Ok(statement.query_row(params![user.as_str(), room], |row| row.get(0))?)
    }

    /// The same for all rooms that they ever read.
    pub fn last_reads(&self, user: &UserId) -> Result<Vec<(RoomKey, i64)>> {
        self.rows(
            "SELECT room_key, max(moved) FROM read_positions WHERE user_id = ?1 GROUP BY room_key",
            params![user.as_str()],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
    }

    /// What a user has not read of a room: the sum of the rows behind their read positions, since they joined. Nothing if
    /// they are not joined.
    pub fn unread_counts(&self, user: &UserId, room: RoomKey) -> Result<UnreadCounts> {
        self.unread_counts_since(user, room, None)
    }

    /// The same, from what it was at an earlier position: the caller knows that nothing but events came since.
    pub fn unread_counts_since(
        &self,
        user: &UserId,
        room: RoomKey,
        known: Option<&KnownCounts>,
    ) -> Result<UnreadCounts> {
        let Some(mut read) = self.read_positions(room, user)? else { return Ok(UnreadCounts::default()) };
        // Where the user has spoken since, it is counted anew.
        let known = known.filter(|known| read.furthest() <= known.position);
        let mut sums = Sums::default();
        if let Some(known) = known {
            sums = Sums::starting(&known.counts);
            read = ReadPositions { base: known.position, threads: HashMap::new() };
        }
        self.add_main(room, &read, &mut sums)?;
        self.add_threads(room, &read, &mut sums)?;
        self.add_own(user, room, &read, &mut sums)?;
        Ok(sums.total())
    }

    fn add_main(&self, room: RoomKey, read: &ReadPositions, sums: &mut Sums) -> Result<()> {
        let mut statement = self.conn().prepare_cached(
            "SELECT count(*), coalesce(sum(outcome >> 1 & 1), 0) FROM notifications NOT INDEXED
             WHERE room_key = ?1 AND stream > ?2 AND thread IS NULL AND outcome < 8",
        )?;
        let (notifications, highlights): (i64, i64) =
            statement.query_row([room, read.of(None)], |row| Ok((row.get(0)?, row.get(1)?)))?;
        sums.main.notifications += notifications;
        sums.main.highlights += highlights;
        Ok(())
    }

    fn add_threads(&self, room: RoomKey, read: &ReadPositions, sums: &mut Sums) -> Result<()> {
        let mut statement = self.conn().prepare_cached(
            "SELECT thread, stream, outcome FROM notifications INDEXED BY notifications_in_threads
             WHERE room_key = ?1 AND stream > ?2 AND thread IS NOT NULL",
        )?;
        let mut rows = statement.query([room, read.base])?;
        while let Some(row) = rows.next()? {
            let thread = row.get_ref(0)?.as_str().map_err(Error::internal)?;
            if !read.has_read(Some(thread), row.get(1)?) {
                sums.of(Some(thread)).add(row.get(2)?, 1);
            }
        }
        Ok(())
    }

    fn add_own(&self, user: &UserId, room: RoomKey, read: &ReadPositions, sums: &mut Sums) -> Result<()> {
        let mut statement = self.conn().prepare_cached(
            "SELECT thread, stream, outcome, instead_of FROM notifications_of_users
             WHERE user_id = ?1 AND room_key = ?2 AND stream > ?3",
        )?;
        let mut rows = statement.query(params![user.as_str(), room, read.base])?;
        while let Some(row) = rows.next()? {
            let thread = row.get_ref(0)?.as_str_or_null().map_err(Error::internal)?;
            if !read.has_read(thread, row.get(1)?) {
                let sum = sums.of(thread);
                sum.add(row.get(2)?, 1);
                sum.add(row.get(3)?, -1);
            }
        }
        Ok(())
    }

    /// What a user has not read of the rooms that they are in, where anything speaks of it: the sums of
    /// [`Db::unread_counts`], of a thousand rooms by one statement. It goes with every push.
    fn unread_sums_of(&self, user: &UserId) -> Result<HashMap<RoomKey, Sums>> {
        let mut statement = self.conn().prepare_cached(UNREAD_OF_ROOMS)?;
        let mut rows = statement.query([user.as_str()])?;
        let mut sums: HashMap<RoomKey, Sums> = HashMap::new();
        while let Some(row) = rows.next()? {
            let thread = row.get_ref(1)?.as_str_or_null().map_err(Error::internal)?;
            let sum = sums.entry(row.get(0)?).or_default().of(thread);
            sum.notifications += row.get::<_, i64>(2)?;
            sum.highlights += row.get::<_, i64>(3)?;
        }
        if cfg!(debug_assertions) {
            for room in self.rooms_of(user)? {
                let (told, whole) = (sums.get(&room.room).cloned(), self.unread_counts(user, room.room)?);
                assert_eq!(told.unwrap_or_default().total(), whole, "of {user} in room {}", room.room);
            }
        }
        Ok(sums)
    }

    /// The events of a room that notify anybody, at positions in `(after, upto]`, for all its members.
    pub fn notifying_events(&self, room: RoomKey, (after, upto): (i64, i64)) -> Result<Vec<NotifyingEvent>> {
        let mut events: BTreeMap<i64, NotifyingEvent> = BTreeMap::new();
        let mut statement = self.conn().prepare_cached(
            "SELECT stream, thread, outcome FROM notifications WHERE room_key = ?3 AND stream > ?1 AND stream <= ?2",
        )?;
        let mut rows = statement.query([after, upto, room])?;
        while let Some(row) = rows.next()? {
            let event = NotifyingEvent { thread: row.get(1)?, outcome: row.get(2)?, own: HashMap::new() };
            events.insert(row.get(0)?, event);
        }
        let mut statement = self.conn().prepare_cached(
            "SELECT stream, thread, user_id, outcome FROM notifications_of_users
             WHERE stream > ?1 AND stream <= ?2 AND room_key = ?3",
        )?;
        let mut rows = statement.query([after, upto, room])?;
        while let Some(row) = rows.next()? {
            let thread = row.get(1)?;
            let event = events.entry(row.get(0)?).or_insert_with(|| NotifyingEvent {
                thread,
                outcome: 0,
                own: HashMap::new(),
            });
            event.own.insert(row.get(2)?, row.get(3)?);
        }
        Ok(events.into_values().collect())
    }

    /// What a user has not seen: invites, as far as they are shown to them, and what is unread in the rooms that they are in.
    pub fn badge(&self, user: &UserId) -> Result<Badge> {
        let (mut badge, is_shown) = (Badge::default(), self.shown_invites(user)?);
        for room in self.invites_of(user, i64::MAX, i64::MAX as usize)? {
            badge.invites += u64::from(is_shown(self.pdu_by_key(room.event)?.sender()));
        }
        for sums in self.unread_sums_of(user)?.into_values() {
            let unread = sums.total().in_all();
            badge.rooms += u64::from(unread.notifications > 0);
            badge.notifications += unread.notifications;
        }
        let invited = |row: &&RemoteMembership| {
            let sender = row.event.as_ref().map(Pdu::sender);
            row.state == RemoteState::Invited && sender.is_some_and(&is_shown)
        };
        badge.invites += self.remote_memberships_of(user, 0, false)?.iter().filter(invited).count() as u64;
        Ok(badge)
    }
}

impl Tx<'_> {
    /// A local user has spoken in a room, or in a thread of it, at a position: what was before is read.
    pub(in crate::store) fn note_spoken(
        &mut self,
        user: &UserId,
        room: RoomKey,
        thread: &str,
        stream: i64,
    ) -> Result<()> {
        self.execute(
            "INSERT INTO read_positions (user_id, room_key, thread, stream, moved) VALUES (?1, ?2, ?3, ?4, 0)
             ON CONFLICT DO UPDATE SET stream = excluded.stream WHERE excluded.stream > stream",
            params![user.as_str(), room, thread, stream],
        )?;
        Ok(())
    }

    /// What a local user has not read of a room is less than it was, other than by reading: their clients are told as if by that.
    pub(in crate::store) fn note_recounted(&mut self, user: &UserId, room: RoomKey) -> Result<()> {
        let now = self.next_stream();
        self.execute(
            "INSERT INTO read_positions (user_id, room_key, thread, stream, moved) VALUES (?1, ?2, '', 0, ?3)
             ON CONFLICT DO UPDATE SET moved = excluded.moved",
            params![user.as_str(), room, now],
        )?;
        self.changes.reads.insert((room, user.clone()));
        self.wake_user(user);
        Ok(())
    }

    /// A local user has read a room, or a thread of it, up to an event's place. If that is further than before, their
    /// clients are woken.
    pub(in crate::store) fn note_read(
        &mut self,
        user: &UserId,
        room: RoomKey,
        thread: &str,
        place: Place,
    ) -> Result<()> {
        // History sits right before the event with its position.
        let upto = if place.sub < 0 { place.stream - 1 } else { place.stream };
        let now = self.stream();
        let changed = self.execute(
            "INSERT INTO read_positions (user_id, room_key, thread, stream, moved) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT DO UPDATE SET stream = excluded.stream, moved = excluded.moved
               WHERE excluded.stream > stream",
            params![user.as_str(), room, thread, upto, now],
        )?;
        if changed > 0 {
            self.changes.reads.insert((room, user.clone()));
            self.wake_user(user);
        }
        Ok(())
    }
}
