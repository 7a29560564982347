//! Rooms.
//!
//! - here: rooms, their forward extremities, the gaps in their history, and the servers in them;
//! - `events`: events, as they are stored; `append`: an event is put into its room, with all that follows from it;
//!   `whole_copies`: the content of events that came in their redacted form;
//! - `snapshots`: room states as a tree of differences; `state`: the state of a room by type and state key;
//! - `relations`: which events relate to which, and threads; `thread_subscriptions`: who follows which of these;
//!   `redactions`: what is taken back;
//! - `timeline`: what clients are told of a room since a position; `activity`: when rooms moved last;
//! - `late_extremities`: events that the current state does not know of yet; `pending_events`: events that cannot be
//!   authorised yet;
//! - `memberships`: the members of rooms; `remote_memberships`: local users' memberships in rooms that this server is not
//!   in; `owed_invites`: invites that wait for the invitee's server; `offered_invites`: those that it may have though the room has none; `owed_joins`: joins of those whose knock was accepted;
//!   `owed_removals`: kicks, bans and refusals that servers outside of the room are told;
//!   `owed_bans`: bans of a room that was replaced, which the new one is to have; `owed_upgrades`: rooms whose members were in
//!   them before they replaced another; `failed_jobs`: what becomes of those
//!   that could not be read;
//! - `room_import`: a room that comes with its whole state; `vouched_events`: what of it rests on a server's word;
//! - `listed`: what who runs the server is told of rooms;
//! - `directory`: aliases and published rooms; `blocked_rooms`: rooms that nobody is to come into;
//! - `deletions`: rooms that are being deleted, and how far that is; `purge`: what is deleted then;
//! - `search`: the index of the texts that search finds events by; `delayed_events`: events to be sent later.

pub mod activity;
pub mod append;
pub mod behind_backup;
pub mod blocked_rooms;
pub mod delayed_events;
pub mod deletions;
pub mod directory;
pub mod events;
mod failed_jobs;
pub mod late_extremities;
pub mod listed;
pub mod memberships;
pub mod offered_invites;
pub mod owed_bans;
pub mod owed_invites;
pub mod owed_joins;
mod owed_removals;
pub mod owed_upgrades;
pub mod pending_events;
pub mod purge;
pub(super) mod redactions;
pub mod relations;
pub mod remote_memberships;
pub mod room_import;
pub mod search;
pub mod snapshots;
pub mod spare_snapshots;
pub mod state;
pub mod thread_subscriptions;
pub mod timeline;
pub mod vouched_events;
pub(super) mod whole_copies;

use std::sync::Arc;

use rusqlite::{OptionalExtension, Row, params};

use super::{Db, EventKey, RoomKey, SnapshotId, Tx};
use crate::error::{Error, Result};
use crate::order;
use crate::protocol::room_version::room_version;
use crate::protocol::{EventId, RoomId, RoomVersion, ServerName};
use crate::store::rooms::events::ForwardExtremity;

/// A room that we have events of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Room {
    /// Its row.
    pub key: RoomKey,
    /// Its id.
    pub room_id: RoomId,
    /// The rules it follows.
    pub version: RoomVersion,
    /// Whether a local user is joined: only then do other servers send us its events.
    pub resident: bool,
    /// The snapshot of its current state; none while the room is being made.
    pub state: Option<SnapshotId>,
    /// How many users are joined.
    pub joined: u64,
    /// How many users are invited.
    pub invited: u64,
}

/// The other servers that were ever in a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum OtherServers {
    None,
    One(Box<str>),
    Several,
}

/// A gap in the history: an event that we do not have, and the place of the event that names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// The event that is missing.
    pub event_id: EventId,
    /// What is fetched goes right before this place.
    pub before: super::Place,
}

/// An interval in which a server was in a room, both ends exclusive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerParticipation {
    /// The room.
    pub room: RoomKey,
    /// The stream position that brought the server in.
    pub since: i64,
    /// The one that took it out.
    pub until: Option<i64>,
}

const ROOM: &str = "SELECT room_key, room_id, version, resident, state, joined, invited FROM rooms";
/// One by its id: written out, since every request asks for it.
const ROOM_BY_ID: &str =
    "SELECT room_key, room_id, version, resident, state, joined, invited FROM rooms WHERE room_id = ?1";

fn room_of(row: &Row<'_>) -> Result<Room> {
    let text = |column| row.get_ref(column)?.as_str().map_err(Error::internal);
    let version = text(2)?;
    Ok(Room {
        key: row.get(0)?,
        room_id: RoomId::parse(text(1)?)?,
        version: room_version(version)
            .ok_or_else(|| Error::internal(format!("a room of the unknown version {version}")))?,
        resident: row.get(3)?,
        state: row.get(4)?,
        joined: row.get::<_, i64>(5)?.max(0).unsigned_abs(),
        invited: row.get::<_, i64>(6)?.max(0).unsigned_abs(),
    })
}

/// 404 `M_NOT_FOUND` for a request about a room that this server is not in, whether or not there is such a room.
pub fn not_resident() -> Error {
    Error::not_found("This server is not in the room")
}

impl Db<'_> {
    /// The room with this id, if we have any of its events.
    pub fn room(&self, id: &RoomId) -> Result<Option<Room>> {
        if let Some(room) = self.recall(|cache| cache.room(id)) {
            return Ok(Some(room));
        }
        let mut statement = self.conn().prepare_cached(ROOM_BY_ID)?;
        let mut rows = statement.query([id.as_str()])?;
        let Some(room) = rows.next()?.map(room_of).transpose()? else { return Ok(None) };
        self.remember(|cache| cache.keep_room(&room));
        Ok(Some(room))
    }

    /// The room with this id, if this server is in it.
    pub fn resident_room(&self, id: &RoomId) -> Result<Option<Room>> {
        Ok(self.room(id)?.filter(|room| room.resident))
    }

    /// The room with this id, or 404 `M_NOT_FOUND`.
    pub fn known_room(&self, id: &RoomId) -> Result<Room> {
        self.room(id)?.ok_or_else(|| Error::not_found("This server does not know the room"))
    }

    /// The room with this row, unless it is gone, or on its way there.
    pub fn room_with_state(&self, key: RoomKey) -> Result<Option<Room>> {
        let mut statement = self.conn().prepare_cached(&format!("{ROOM} WHERE room_key = ?1"))?;
        let room = statement.query([key])?.next()?.map(room_of).transpose()?;
        Ok(room.filter(|room| room.state.is_some()))
    }

    /// The room with this row.
    pub fn room_by_key(&self, key: RoomKey) -> Result<Room> {
        if let Some(room) = self.recall(|cache| cache.room_by_key(key)) {
            return Ok(room);
        }
        let mut statement = self.conn().prepare_cached(&format!("{ROOM} WHERE room_key = ?1"))?;
        let mut rows = statement.query([key])?;
        let room = rows
            .next()?
            .map(room_of)
            .transpose()?
            .ok_or_else(|| Error::internal(format!("no room {key}")))?;
        self.remember(|cache| cache.keep_room(&room));
        Ok(room)
    }

    /// The forward extremities of a room, in the order in which they came.
    pub fn extremity_keys(&self, room: RoomKey) -> Result<Vec<EventKey>> {
        if let Some(extremities) = self.recall(|cache| cache.extremities(room)) {
            return Ok(extremities.iter().map(|extremity| extremity.key).collect());
        }
        self.rows(
            "SELECT event_key FROM extremities WHERE room_key = ?1 ORDER BY event_key",
            params![room],
            |r| r.get(0),
        )
    }

    /// The servers that have a joined user in the room, ours among them, longest resident first.
    pub fn resident_servers(&self, room: RoomKey) -> Result<Vec<ServerName>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT server FROM resident_servers WHERE room_key = ?1 AND until IS NULL ORDER BY since, server",
        )?;
        let mut rows = statement.query([room])?;
        let mut servers = Vec::new();
        while let Some(row) = rows.next()? {
            // A server may be in a room under a name that is none; it cannot be spoken to.
            if let Ok(server) = ServerName::parse(&row.get::<_, String>(0)?) {
                servers.push(server);
            }
        }
        Ok(servers)
    }

    /// The other servers that were ever in the room.
    pub(crate) fn other_servers(&self, room: RoomKey) -> Result<OtherServers> {
        let mut statement = self.conn().prepare_cached(
            "SELECT DISTINCT server FROM resident_servers WHERE room_key = ?1 AND server <> ?2 LIMIT 2",
        )?;
        let mut rows = statement.query(params![room, self.server_name().as_str()])?;
        let Some(first) = rows.next()?.map(|row| row.get::<_, String>(0)).transpose()? else {
            return Ok(OtherServers::None);
        };
        Ok(if rows.next()?.is_some() { OtherServers::Several } else { OtherServers::One(first.into()) })
    }

    /// Whether the server has a joined user in the room.
    pub fn is_resident(&self, room: RoomKey, server: &ServerName) -> Result<bool> {
        let mut statement = self.conn().prepare_cached(
            "SELECT 1 FROM resident_servers WHERE room_key = ?1 AND server = ?2 AND until IS NULL",
        )?;
        Ok(statement.exists(params![room, server.as_str()])?)
    }

    /// Whether another server is in a room with a local user: who is not is a stranger.
    pub fn is_neighbour(&self, server: &ServerName) -> Result<bool> {
        let mut statement = self.conn().prepare_cached(
            "SELECT 1 FROM resident_servers s JOIN rooms r USING (room_key)
             WHERE s.server = ?1 AND s.until IS NULL AND r.resident = 1 LIMIT 1",
        )?;
        Ok(statement.exists([server.as_str()])?)
    }

    /// When the server was in which rooms, as far as it matters beyond a stream position.
    pub fn server_participations(&self, server: &ServerName, after: i64) -> Result<Vec<ServerParticipation>> {
        self.rows(
            "SELECT room_key, since, until FROM resident_servers
             WHERE server = ?1 AND (until IS NULL OR until > ?2) ORDER BY room_key, since",
            params![server.as_str(), after],
            |r| Ok(ServerParticipation { room: r.get(0)?, since: r.get(1)?, until: r.get(2)? }),
        )
    }

    /// The gaps that lie at or after a place and before another (both ends as places of the events that name them).
    pub fn gaps_between(
        &self,
        room: RoomKey,
        from: super::Place,
        to: super::Place,
        limit: usize,
    ) -> Result<Vec<Gap>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT event_id, stream, sub FROM gaps
             WHERE room_key = ?1 AND (stream, sub) >= (?2, ?3) AND (stream, sub) <= (?4, ?5)
             ORDER BY stream DESC, sub DESC LIMIT ?6",
        )?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut rows = statement.query(params![room, from.stream, from.sub, to.stream, to.sub, limit])?;
        let mut gaps = Vec::new();
        while let Some(row) = rows.next()? {
            let event_id = EventId::parse(&row.get::<_, String>(0)?)?;
            gaps.push(Gap { event_id, before: super::Place { stream: row.get(1)?, sub: row.get(2)? } });
        }
        Ok(gaps)
    }

    /// The place of the gap that one comes to first between two places, both inclusive, of those that are not to be
    /// passed over.
    pub fn first_gap(
        &self,
        room: RoomKey,
        (low, high): (super::Place, super::Place),
        backwards: bool,
        passes_over: impl Fn(&Gap) -> Result<bool>,
    ) -> Result<Option<super::Place>> {
        let order = if backwards { "stream DESC, sub DESC" } else { "stream, sub" };
        // The first two conditions are the index's; the row values make the ends exact.
        let mut statement = self.conn().prepare_cached(&format!(
            "SELECT event_id, stream, sub FROM gaps
             WHERE room_key = ?1 AND stream >= ?2 AND stream <= ?4
               AND (stream, sub) >= (?2, ?3) AND (stream, sub) <= (?4, ?5) ORDER BY {order}"
        ))?;
        let mut rows = statement.query(params![room, low.stream, low.sub, high.stream, high.sub])?;
        while let Some(row) = rows.next()? {
            let event_id = EventId::parse(&row.get::<_, String>(0)?)?;
            let gap = Gap { event_id, before: super::Place { stream: row.get(1)?, sub: row.get(2)? } };
            if !passes_over(&gap)? {
                return Ok(Some(gap.before));
            }
        }
        Ok(None)
    }

    /// The gap that this event would fill.
    pub fn gap(&self, room: RoomKey, event: &EventId) -> Result<Option<Gap>> {
        let mut statement = self
            .conn()
            .prepare_cached("SELECT stream, sub FROM gaps WHERE room_key = ?1 AND event_id = ?2")?;
        let before = statement
            .query_row(params![room, event.as_str()], |r| {
                Ok(super::Place { stream: r.get(0)?, sub: r.get(1)? })
            })
            .optional()?;
        Ok(before.map(|before| Gap { event_id: event.clone(), before }))
    }
}

impl Tx<'_> {
    /// The row of the room, made if need be. Errors: 403 `M_FORBIDDEN` if the room is known under another version: who
    /// named this one was wrong, or lied.
    pub fn make_room(&mut self, id: &RoomId, version: RoomVersion) -> Result<Room> {
        if let Some(room) = self.room(id)? {
            if room.version.id != version.id {
                self.change_version(&room, version)?;
                return self.room_by_key(room.key);
            }
            return Ok(room);
        }
        self.execute(
            "INSERT INTO rooms (room_key, room_id, version)
             SELECT max(room_key, coalesce((SELECT max(room_key) FROM rooms), 0)) + 1, ?1, ?2 FROM retired_keys",
            params![id.as_str(), version.id],
        )?;
        self.room_by_key(self.conn().last_insert_rowid())
    }

    /// Somebody was wrong about the version of a room of which we have nothing yet, but perhaps what waits for its room.
    fn change_version(&mut self, room: &Room, version: RoomVersion) -> Result<()> {
        let mut events = self.conn().prepare_cached("SELECT 1 FROM events WHERE room_key = ?1 LIMIT 1")?;
        if room.state.is_some() || events.exists([room.key])? {
            let (id, known, said) = (&room.room_id, room.version.id, version.id);
            return Err(Error::forbidden(format!("{id} has version {known}, not {said}")));
        }
        self.front_changed();
        self.execute("UPDATE rooms SET version = ?2 WHERE room_key = ?1", params![room.key, version.id])?;
        self.remember(|cache| cache.change_room(room.key, |row| row.version = version));
        Ok(())
    }

    /// Sets which snapshot is the room's current state.
    pub(crate) fn set_room_state(&mut self, room: RoomKey, state: SnapshotId) -> Result<()> {
        self.execute("UPDATE rooms SET state = ?2 WHERE room_key = ?1", params![room, state])?;
        self.remember(|cache| cache.change_room(room, |row| row.state = Some(state)));
        Ok(())
    }

    /// Remembers the forward extremities of a room: a new one, and those of before that stay beside it, as far as it is
    /// remembered what they were.
    pub(crate) fn remember_extremities(
        &self,
        room: RoomKey,
        new: ForwardExtremity,
        (kept, before): (&[EventKey], Option<Arc<[ForwardExtremity]>>),
    ) {
        let stays = |old: &&ForwardExtremity| kept.contains(&old.key);
        let mut all: Vec<ForwardExtremity> =
            before.iter().flat_map(|before| before.iter()).filter(stays).cloned().collect();
        if all.len() == kept.len() {
            all.push(new);
            order::sort_by_key(&mut all, |extremity| extremity.key);
            self.remember(|cache| cache.keep_extremities(room, all.into()));
        }
    }

    /// Remembers the state after these forward extremities, all that a room has.
    pub(crate) fn remember_state_after(&self, extremities: &[EventKey], state: SnapshotId) {
        let mut extremities = extremities.to_vec();
        extremities.sort_unstable();
        self.remember(|cache| cache.events.keep_state_after(&extremities, state));
    }

    /// Makes `new` the forward extremities of the room, which has `old`.
    pub(crate) fn set_extremities(
        &mut self,
        room: RoomKey,
        old: &[EventKey],
        new: &[EventKey],
    ) -> Result<()> {
        self.remember(|cache| cache.forget_extremities(room));
        if let ([old], [new]) = (old, new) {
            // The usual message: one row is renamed.
            self.execute(
                "UPDATE extremities SET event_key = ?3 WHERE room_key = ?1 AND event_key = ?2",
                params![room, *old, *new],
            )?;
            return Ok(());
        }
        for gone in old.iter().filter(|key| !new.contains(key)) {
            self.execute(
                "DELETE FROM extremities WHERE room_key = ?1 AND event_key = ?2",
                params![room, *gone],
            )?;
        }
        for extremity in new.iter().filter(|key| !old.contains(key)) {
            self.execute(
                "INSERT INTO extremities (room_key, event_key) VALUES (?1, ?2)",
                params![room, *extremity],
            )?;
        }
        Ok(())
    }

    /// Notes that an event names a previous one that we do not have.
    pub(crate) fn add_gap(&mut self, room: RoomKey, gap: &Gap) -> Result<()> {
        // If two events name it, it goes before the earlier of them.
        self.execute(
            "INSERT INTO gaps (room_key, event_id, stream, sub) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT DO UPDATE SET stream = excluded.stream, sub = excluded.sub
             WHERE (excluded.stream, excluded.sub) < (stream, sub)",
            params![room, gap.event_id.as_str(), gap.before.stream, gap.before.sub],
        )?;
        Ok(())
    }

    /// The gap is filled, or nobody has what belongs there.
    pub fn close_gap(&mut self, room: RoomKey, event: &EventId) -> Result<()> {
        self.execute(
            "DELETE FROM gaps WHERE room_key = ?1 AND event_id = ?2",
            params![room, event.as_str()],
        )?;
        Ok(())
    }

    /// Counts a server's users in the room up or down, and opens or closes its interval with that. Whether the server has come
    /// into the room by it.
    pub(crate) fn count_resident(
        &mut self,
        room: RoomKey,
        server: &str,
        by: i64,
        stream: i64,
    ) -> Result<bool> {
        let open = self
            .conn()
            .prepare_cached(
                "SELECT since, users FROM resident_servers WHERE room_key = ?1 AND server = ?2 AND until IS NULL",
            )?
            .query_row(params![room, server], |r| Ok((r.get::<_, i64>(0)?, r.get::<_, i64>(1)?)))
            .optional()?;
        let users = open.map_or(0, |(_, users)| users) + by;
        match open {
            Some((since, _)) => {
                let until = (users <= 0).then_some(stream);
                self.execute(
                    "UPDATE resident_servers SET users = ?4, until = ?5
                     WHERE room_key = ?1 AND server = ?2 AND since = ?3",
                    params![room, server, since, users.max(0), until],
                )?;
            }
            None if users > 0 => {
                self.remember(|cache| cache.forget_other_servers(room));
                // Out and in again at the same position is no interruption.
                self.execute(
                    "INSERT INTO resident_servers (room_key, server, since, users) VALUES (?1, ?2, ?3, ?4)
                     ON CONFLICT DO UPDATE SET users = excluded.users, until = NULL",
                    params![room, server, stream, users],
                )?;
            }
            None => {}
        }
        if server == self.server_name().as_str() && (open.is_some() != (users > 0)) {
            self.remember(|cache| cache.forget_room(room));
            self.front_changed();
            self.execute("UPDATE rooms SET resident = ?2 WHERE room_key = ?1", params![room, users > 0])?;
            if users <= 0 {
                // What waits may say what became of somebody of ours there, for which it needs no past any more.
                self.hasten_pending_in(room)?;
            }
        }
        Ok(open.is_none() && users > 0)
    }

    /// Counts the joined and invited members of the room.
    pub(crate) fn count_members(&mut self, room: RoomKey, joined: i64, invited: i64) -> Result<()> {
        if joined != 0 || invited != 0 {
            self.execute(
                "UPDATE rooms SET joined = joined + ?2, invited = invited + ?3 WHERE room_key = ?1",
                params![room, joined, invited],
            )?;
            self.remember(|cache| {
                cache.change_room(room, |row| {
                    row.joined = row.joined.saturating_add_signed(joined);
                    row.invited = row.invited.saturating_add_signed(invited);
                });
            });
        }
        Ok(())
    }
}
