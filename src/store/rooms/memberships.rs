//! Who is in which room, according to its current state.

use std::collections::HashSet;

use rusqlite::{OptionalExtension, Row, params};

use crate::error::{Error, Result};
use crate::protocol::ids::server_of;
use crate::protocol::pdu::Membership;
use crate::protocol::{RoomId, ServerName, UserId};
use crate::store::rooms::events::{EventRow, TimelineRange};
use crate::store::{Db, EventKey, Place, RoomKey, StateTupleId, Tx};

/// One user's membership in one room.
#[derive(Debug, Clone)]
pub struct RoomMember {
    /// The user.
    pub user_id: UserId,
    /// What they are.
    pub membership: Membership,
    /// The `m.room.member` event that says so.
    pub event: EventKey,
    /// When this came about.
    pub stream: i64,
    /// A local user who wants to hear no more of the room.
    pub forgotten: bool,
}

/// One of a user's rooms.
#[derive(Debug, Clone)]
pub struct RoomOfUser {
    /// The room's row.
    pub room: RoomKey,
    /// The room's id.
    pub room_id: RoomId,
    /// What the user is there.
    pub membership: Membership,
    /// The `m.room.member` event that says so.
    pub event: EventKey,
    /// When this came about.
    pub stream: i64,
    /// The user wants to hear no more of it.
    pub forgotten: bool,
}

/// What changed in somebody's membership: all that the tables beside it need to follow.
pub(crate) struct MembershipChange<'a> {
    pub user: &'a str,
    pub old: Option<Membership>,
    pub new: Option<(Membership, EventKey)>,
    pub stream: i64,
}

fn membership_of(text: &str) -> Result<Membership> {
    Membership::parse(text).ok_or_else(|| Error::internal(format!("a membership of {text}")))
}

fn member_of(row: &Row<'_>) -> Result<Option<RoomMember>> {
    // A member event's state key need not be a user id that we would accept today.
    let Ok(user_id) = UserId::parse(&row.get::<_, String>(0)?) else { return Ok(None) };
    let membership = membership_of(&row.get::<_, String>(1)?)?;
    Ok(Some(RoomMember {
        user_id,
        membership,
        event: row.get(2)?,
        stream: row.get(3)?,
        forgotten: row.get(4)?,
    }))
}

pub(super) fn room_of_user(row: &Row<'_>) -> Result<RoomOfUser> {
    Ok(RoomOfUser {
        room: row.get(0)?,
        room_id: RoomId::parse(&row.get::<_, String>(1)?)?,
        membership: membership_of(&row.get::<_, String>(2)?)?,
        event: row.get(3)?,
        stream: row.get(4)?,
        forgotten: row.get(5)?,
    })
}

/// What [`room_of_user`] reads.
pub(super) const ROOM_OF_USER_COLUMNS: &str =
    "m.room_key, r.room_id, m.membership, m.event_key, m.stream, m.forgotten";

const ROOMS_OF_USER: &str = "SELECT m.room_key, r.room_id, m.membership, m.event_key, m.stream, m.forgotten
     FROM memberships m JOIN rooms r ON r.room_key = m.room_key WHERE m.local = 1 AND m.user_id = ?1";

/// Of those, the last invites before a position.
const INVITES: &str = "AND m.membership = 'invite' AND m.stream < ?2 ORDER BY m.stream DESC LIMIT ?3";

impl Db<'_> {
    /// The state tuples of all users of a server that the room's current state speaks of.
    pub fn member_tuples_of_server(
        &self,
        room: RoomKey,
        server: &ServerName,
    ) -> Result<HashSet<StateTupleId>> {
        let tuples = self.rows(
            "SELECT s.tuple_id FROM memberships m JOIN state_tuples s ON s.type = 'm.room.member' AND s.state_key = m.user_id
             WHERE m.room_key = ?1 AND substr(m.user_id, instr(m.user_id, ':') + 1) = ?2",
            params![room, server.as_str()],
            |row| row.get(0),
        )?;
        Ok(tuples.into_iter().collect())
    }

    /// The user's membership in the room's current state; none if there was never a member event.
    pub fn membership(&self, room: RoomKey, user: &UserId) -> Result<Option<Membership>> {
        Ok(self.member(room, user)?.map(|m| m.membership))
    }

    /// The same with the event behind it. What a user of our name from before us was is nothing that a local user is: who
    /// has that name now comes in by themselves.
    pub fn member(&self, room: RoomKey, user: &UserId) -> Result<Option<RoomMember>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT user_id, membership, event_key, stream, forgotten, local FROM memberships
             WHERE room_key = ?1 AND user_id = ?2",
        )?;
        let mut rows = statement.query(params![room, user.as_str()])?;
        let Some(row) = rows.next()? else { return Ok(None) };
        if !row.get::<_, bool>(5)? && self.is_local(user.as_str()) {
            return Ok(None);
        }
        member_of(row)
    }

    /// The membership as it is stored, whatever the user's name looks like.
    pub(crate) fn stored_membership(&self, room: RoomKey, user: &str) -> Result<Option<Membership>> {
        let mut statement = self
            .conn()
            .prepare_cached("SELECT membership FROM memberships WHERE room_key = ?1 AND user_id = ?2")?;
        let text: Option<String> = statement.query_row(params![room, user], |r| r.get(0)).optional()?;
        text.map(|text| membership_of(&text)).transpose()
    }

    /// What the room's current state says of a user, also of one of our name from before us.
    pub fn membership_in_state(&self, room: RoomKey, user: &UserId) -> Result<Option<Membership>> {
        self.stored_membership(room, user.as_str())
    }

    /// Whether what goes right before a place is from before a local user brought this server into the room: the room's
    /// timeline begins with their join here, and nobody can make up any more what that follows.
    pub fn is_from_before_join(&self, room: RoomKey, place: Place) -> Result<bool> {
        let first = TimelineRange { from: Place::START, to: Place::END, limit: 1, backwards: false };
        let first = self.timeline(room, first)?;
        if first.first().and_then(|event| event.place).is_none_or(|first| first.stream != place.stream) {
            return Ok(false);
        }
        let [from, to] = [-1, 1].map(|sub| Place { stream: place.stream, sub });
        let join = self.timeline(room, TimelineRange { from, to, limit: 1, backwards: false })?;
        Ok(join.first().is_some_and(|join| {
            let is_ours = join.pdu.state_key().is_some_and(|user| self.is_local(user));
            is_ours && join.pdu.membership() == Some(Membership::Join)
        }))
    }

    /// Whether a member event was made by a user of our name from before us: it rests on others' word, and is signed with
    /// none of the keys that we have.
    pub fn is_from_before_us(&self, room: RoomKey, event: EventKey) -> Result<bool> {
        if !self.is_vouched(room, event)? {
            return Ok(false);
        }
        let event = self.pdu_by_key(event)?;
        if !self.is_local(event.sender().as_str()) {
            return Ok(false);
        }
        let (object, own) = (event.canonical(), self.own_keys()?);
        let signatures = object.signatures_of(event.sender().server().as_str());
        Ok(!signatures.iter().any(|(id, _)| own.iter().any(|own| own.key_id == *id)))
    }

    /// The members of the room: all, or those with one membership.
    pub fn members(&self, room: RoomKey, only: Option<Membership>) -> Result<Vec<RoomMember>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT user_id, membership, event_key, stream, forgotten FROM memberships
             WHERE room_key = ?1 AND (?2 IS NULL OR membership = ?2)",
        )?;
        let mut rows = statement.query(params![room, only.map(Membership::as_str)])?;
        let mut members = Vec::new();
        while let Some(row) = rows.next()? {
            members.extend(member_of(row)?);
        }
        Ok(members)
    }

    /// Who knocked upon the room and waits for an answer: the last who came, up to so many.
    pub fn waiting_knocks(&self, room: RoomKey, most: usize) -> Result<Vec<String>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT user_id FROM memberships WHERE room_key = ?1 AND membership = 'knock'
             ORDER BY stream DESC LIMIT ?2",
        )?;
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let rows = statement.query_map(params![room, most], |row| row.get(0))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// How many of them there are.
    pub fn waiting_knocks_count(&self, room: RoomKey) -> Result<usize> {
        let mut statement = self.conn().prepare_cached(
            "SELECT count(*) FROM memberships WHERE room_key = ?1 AND membership = 'knock'",
        )?;
        let count = statement.query_row([room], |row| row.get::<_, i64>(0))?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    /// The rooms in which somebody waits whose knock was not answered: all that we know of, or those that a local user is
    /// joined to.
    pub fn rooms_with_knocks(&self, of: Option<&UserId>) -> Result<Vec<RoomKey>> {
        // From room to room, however many knock upon each.
        const ALL: &str = "WITH RECURSIVE knocked (room_key) AS (
               SELECT min(room_key) FROM memberships WHERE membership = 'knock'
               UNION ALL
               SELECT (SELECT min(room_key) FROM memberships WHERE membership = 'knock' AND room_key > k.room_key)
               FROM knocked k WHERE k.room_key IS NOT NULL)
             SELECT room_key FROM knocked WHERE room_key IS NOT NULL AND ?1 IS NULL";
        const OF_USER: &str = "SELECT room_key FROM memberships m
             WHERE m.local = 1 AND m.user_id = ?1 AND m.membership = 'join' AND EXISTS
               (SELECT 1 FROM memberships k WHERE k.room_key = m.room_key AND k.membership = 'knock')";
        self.rows(if of.is_some() { OF_USER } else { ALL }, params![of.map(UserId::as_str)], |row| row.get(0))
    }

    /// Tells of the membership events of a room, all or those with one membership, without holding any of them.
    pub fn each_member(
        &self,
        room: RoomKey,
        only: Option<Membership>,
        mut tell: impl FnMut(&str, Membership, EventRow<'_>) -> Result<()>,
    ) -> Result<()> {
        let mut statement = self.conn().prepare_cached(
            "SELECT e.event_id, e.json, e.redacted_by, m.user_id, m.membership
             FROM memberships m JOIN events e ON e.event_key = m.event_key
             WHERE m.room_key = ?1 AND (?2 IS NULL OR m.membership = ?2)",
        )?;
        let mut rows = statement.query(params![room, only.map(Membership::as_str)])?;
        while let Some(row) = rows.next()? {
            let text = |column| row.get_ref(column)?.as_str().map_err(Error::internal);
            tell(text(3)?, membership_of(text(4)?)?, EventRow::of(row)?)?;
        }
        Ok(())
    }

    /// Which local users are joined to the room, in order.
    pub fn joined_local_users(&self, room: RoomKey) -> Result<Vec<UserId>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT user_id FROM memberships WHERE room_key = ?1 AND membership = 'join' AND local = 1
             ORDER BY user_id",
        )?;
        let rows = statement.query_map([room], |r| r.get::<_, String>(0))?;
        let mut users = Vec::new();
        for user in rows {
            users.extend(UserId::parse(&user?).ok());
        }
        Ok(users)
    }

    /// All rooms of a local user, forgotten ones too.
    pub fn rooms_of(&self, user: &UserId) -> Result<Vec<RoomOfUser>> {
        self.rooms_of_since(user, 0)
    }

    /// The rooms of a local user in which the membership (or the event behind it) changed after a position.
    pub fn rooms_of_since(&self, user: &UserId, after: i64) -> Result<Vec<RoomOfUser>> {
        let mut statement =
            self.conn().prepare_cached(&format!("{ROOMS_OF_USER} AND m.stream > ?2 ORDER BY m.stream"))?;
        let mut rows = statement.query(params![user.as_str(), after])?;
        let mut rooms = Vec::new();
        while let Some(row) = rows.next()? {
            rooms.push(room_of_user(row)?);
        }
        Ok(rooms)
    }

    /// The rooms to which a local user is invited, by users of rooms that this server has: those whose invite is before a
    /// position, the last first, so many at most.
    pub fn invites_of(&self, user: &UserId, before: i64, most: usize) -> Result<Vec<RoomOfUser>> {
        let sql = format!("{ROOMS_OF_USER} {INVITES}");
        let mut statement = self.conn().prepare_cached(&sql)?;
        let mut rows = statement.query(params![user.as_str(), before, most as i64])?;
        let mut rooms = Vec::new();
        while let Some(row) = rows.next()? {
            rooms.push(room_of_user(row)?);
        }
        Ok(rooms)
    }

    /// The rooms whose state has no word of a local user any more since a position, and had one: with the positions.
    pub fn rooms_lost_since(&self, user: &UserId, after: i64) -> Result<Vec<(RoomId, i64)>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT r.room_id, l.stream FROM lost_memberships l JOIN rooms r ON r.room_key = l.room_key
             WHERE l.user_id = ?1 AND l.stream > ?2 ORDER BY l.stream",
        )?;
        let rows = statement
            .query_map(params![user.as_str(), after], |row| Ok((row.get::<_, String>(0)?, row.get(1)?)))?;
        rows.map(|row| row.map_err(Error::from).and_then(|(id, stream)| Ok((RoomId::parse(&id)?, stream))))
            .collect()
    }

    /// Whether the two users are joined to a common room; `local` is of this server.
    pub fn share_a_room(&self, local: &UserId, other: &UserId) -> Result<bool> {
        let mut statement = self.conn().prepare_cached(
            "SELECT 1 FROM memberships a JOIN memberships b ON b.room_key = a.room_key AND b.user_id = ?2
             WHERE a.local = 1 AND a.user_id = ?1 AND a.membership = 'join' AND b.membership = 'join' LIMIT 1",
        )?;
        Ok(statement.exists(params![local.as_str(), other.as_str()])?)
    }

    /// The rooms that both users are joined to; `local` is of this server.
    pub fn mutual_rooms(&self, local: &UserId, other: &UserId) -> Result<Vec<(RoomKey, RoomId)>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT a.room_key, r.room_id FROM memberships a
               JOIN memberships b ON b.room_key = a.room_key AND b.user_id = ?2
               JOIN rooms r ON r.room_key = a.room_key
             WHERE a.local = 1 AND a.user_id = ?1 AND a.membership = 'join' AND b.membership = 'join'
             ORDER BY a.room_key",
        )?;
        let rows = statement.query_map(params![local.as_str(), other.as_str()], |row| {
            Ok((row.get(0)?, row.get::<_, String>(1)?))
        })?;
        let mut rooms = Vec::new();
        for row in rows {
            let (key, id) = row?;
            rooms.push((key, RoomId::parse(&id)?));
        }
        Ok(rooms)
    }

    /// The rooms that a local user is joined to, that with the fewest members first.
    pub fn joined_rooms_by_size(&self, user: &UserId) -> Result<Vec<RoomKey>> {
        self.rows(
            "SELECT m.room_key FROM memberships m JOIN rooms r ON r.room_key = m.room_key
             WHERE m.local = 1 AND m.user_id = ?1 AND m.membership = 'join' ORDER BY r.joined, m.room_key",
            params![user.as_str()],
            |row| row.get(0),
        )
    }

    /// The rooms that a user of any server is joined to, as far as this server knows, in order: so many of them at most.
    pub fn some_joined_rooms(&self, user: &UserId, limit: usize) -> Result<Vec<RoomKey>> {
        let sql = if self.is_local(user.as_str()) {
            "SELECT room_key FROM memberships WHERE local = 1 AND user_id = ?1 AND membership = 'join' AND ?2 <> ''
             ORDER BY room_key LIMIT ?3"
        } else {
            // By way of the rooms that their server is in: memberships of others are not to be found by name alone.
            "SELECT m.room_key FROM resident_servers r
               CROSS JOIN memberships m ON m.room_key = r.room_key AND m.user_id = ?1
             WHERE r.server = ?2 AND r.until IS NULL AND m.membership = 'join' ORDER BY m.room_key LIMIT ?3"
        };
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.rows(sql, params![user.as_str(), user.server_name(), limit], |row| row.get(0))
    }

    /// Rooms that this server is in, that with the fewest members first, at most so many.
    pub fn resident_rooms_by_size(&self, limit: usize) -> Result<Vec<RoomKey>> {
        self.rows(
            "SELECT room_key FROM rooms WHERE resident = 1 ORDER BY joined, room_key LIMIT ?1",
            params![i64::try_from(limit).unwrap_or(i64::MAX)],
            |row| row.get(0),
        )
    }

    /// Whether a local user is joined to a room that a server has users in.
    pub fn shares_a_room_with_server(&self, local: &UserId, server: &ServerName) -> Result<bool> {
        let mut statement = self.conn().prepare_cached(
            "SELECT 1 FROM resident_servers s JOIN memberships m ON m.room_key = s.room_key AND m.user_id = ?1
             WHERE s.server = ?2 AND s.until IS NULL AND m.local = 1 AND m.membership = 'join' LIMIT 1",
        )?;
        Ok(statement.exists(params![local.as_str(), server.as_str()])?)
    }

    /// The same for rooms in which messages are encrypted.
    pub fn share_an_encrypted_room(&self, local: &UserId, other: &UserId) -> Result<bool> {
        let Some(encryption) = self.state_tuple_id("m.room.encryption", "")? else { return Ok(false) };
        let mut statement = self.conn().prepare_cached(
            "SELECT 1 FROM memberships a JOIN memberships b ON b.room_key = a.room_key AND b.user_id = ?2
               JOIN current_state c ON c.room_key = a.room_key AND c.tuple_id = ?3
             WHERE a.local = 1 AND a.user_id = ?1 AND a.membership = 'join' AND b.membership = 'join' LIMIT 1",
        )?;
        Ok(statement.exists(params![local.as_str(), other.as_str(), encryption])?)
    }

    /// Who is in a room with one of our users, or (`encrypted`) in one in which messages are encrypted.
    pub fn users_who_share_rooms(&self, local: &UserId, encrypted: bool) -> Result<HashSet<String>> {
        let encryption = self.state_tuple_id("m.room.encryption", "")?;
        let mut statement = self.conn().prepare_cached(
            "SELECT DISTINCT o.user_id FROM memberships m
               CROSS JOIN memberships o ON o.room_key = m.room_key AND o.membership = 'join'
             WHERE m.local = 1 AND m.user_id = ?1 AND m.membership = 'join'
               AND (?2 = 0 OR EXISTS
                 (SELECT 1 FROM current_state c WHERE c.room_key = m.room_key AND c.tuple_id = ?3))",
        )?;
        let rows = statement.query_map(params![local.as_str(), encrypted, encryption], |row| row.get(0))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }
}

impl Tx<'_> {
    /// The user does or does not want to hear of the room any more. A later change of membership undoes it.
    pub fn set_forgotten(&mut self, room: RoomKey, user: &UserId, forgotten: bool) -> Result<()> {
        self.execute(
            "UPDATE memberships SET forgotten = ?3 WHERE room_key = ?1 AND user_id = ?2",
            params![room, user.as_str(), forgotten],
        )?;
        Ok(())
    }

    /// Follows a change of a member event in the current state: the member, the counts, the resident servers. Returns
    /// whether the user is local.
    pub(crate) fn change_membership(&mut self, room: RoomKey, change: &MembershipChange<'_>) -> Result<bool> {
        let is_ours = self.is_local(change.user);
        // What a user of our name from before us was concerns nobody here.
        let before = match change.old {
            Some(_) if is_ours && !self.is_of_local_user(room, change.user)? => None,
            old => old,
        };
        let local = is_ours
            && match change.new {
                Some((_, event)) => !self.is_from_before_us(room, event)?,
                None => before == change.old,
            };
        let new = change.new.map(|(membership, _)| membership);
        let comes_in = new == Some(Membership::Join) && before != new;
        // A position of its own: it is owed by itself, also where the event that brought it about is not.
        let joined_since = (local && comes_in).then(|| self.next_stream());
        match change.new {
            Some((membership, event)) => {
                self.execute(
                    "INSERT INTO memberships (room_key, user_id, membership, event_key, stream, local, joined_since)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
                     ON CONFLICT DO UPDATE SET membership = excluded.membership, event_key = excluded.event_key,
                       stream = excluded.stream, local = excluded.local, forgotten = 0, joined_since = CASE
                         WHEN excluded.membership = 'join' THEN coalesce(excluded.joined_since, joined_since) END",
                    params![
                        room,
                        change.user,
                        membership.as_str(),
                        event,
                        change.stream,
                        local,
                        joined_since,
                    ],
                )?;
            }
            None => {
                self.execute(
                    "DELETE FROM memberships WHERE room_key = ?1 AND user_id = ?2",
                    params![room, change.user],
                )?;
            }
        }
        if local {
            self.note_lost_membership(room, change)?;
        }
        let is = |membership: Option<Membership>, what: Membership| i64::from(membership == Some(what));
        let joined = is(new, Membership::Join) - is(change.old, Membership::Join);
        let invited = is(new, Membership::Invite) - is(change.old, Membership::Invite);
        self.count_members(room, joined, invited)?;
        // Whether this server is in the room is a matter of its users.
        let joined = match is_ours {
            true => is(new.filter(|_| local), Membership::Join) - is(before, Membership::Join),
            false => joined,
        };
        if joined < 0 {
            // Who is not there any more does not type.
            self.stop_typing(room, change.user)?;
        }
        if joined != 0 {
            let server = server_of(change.user);
            if self.count_resident(room, server, joined, change.stream)? && !is_ours {
                self.came_into(room, server);
            }
            if is_ours {
                self.remember(|cache| cache.forget_audience(room));
            }
            match (is_ours, comes_in) {
                (true, true) => self.owes(room, server)?,
                (true, false) => self.drop_device_lists_of_room(room)?,
                (false, true) => {}
                (false, false) => self.drop_device_list(change.user)?,
            }
        }
        Ok(local)
    }

    /// Notes that no event says any more what a local user is to the room; or that one does.
    fn note_lost_membership(&mut self, room: RoomKey, change: &MembershipChange<'_>) -> Result<()> {
        match (change.old, change.new) {
            (_, Some(_)) => self
                .conn()
                .prepare_cached("DELETE FROM lost_memberships WHERE room_key = ?1 AND user_id = ?2")?
                .execute(params![room, change.user])?,
            (Some(Membership::Join | Membership::Invite | Membership::Knock), None) => self
                .conn()
                .prepare_cached(
                    "INSERT OR REPLACE INTO lost_memberships (room_key, user_id, stream) VALUES (?1, ?2, ?3)",
                )?
                .execute(params![room, change.user, change.stream])?,
            (_, None) => 0,
        };
        Ok(())
    }

    /// Whether what a user of our name is in a room is told by an event from our time.
    fn is_of_local_user(&self, room: RoomKey, user: &str) -> Result<bool> {
        let mut statement = self
            .conn()
            .prepare_cached("SELECT local FROM memberships WHERE room_key = ?1 AND user_id = ?2")?;
        Ok(statement.query_row(params![room, user], |r| r.get(0)).optional()?.unwrap_or(true))
    }
}
