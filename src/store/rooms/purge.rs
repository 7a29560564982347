//! Everything that there is of a room goes, a portion at a time: what a portion takes away is gone, and what it leaves is
//! found by the next one, whatever happened in between. Nobody is in the room by then.
//!
//! Of a room that is being entered anew everything goes that others said of it. What users keep there for themselves stays: their
//! account data with their tags, up to where they have read, and which threads they wish to hear of. So does what is pending:
//! other servers send it to who is coming in, are told that it is here, and do not send it again.

use std::collections::BTreeSet;

use rusqlite::{Row, params};

use crate::clock::Millis;
use crate::error::Result;
use crate::protocol::pdu::Membership;
use crate::protocol::remote_membership::{Effect, RemoteMembership};
use crate::protocol::{RoomId, UserId};
use crate::store::rooms::memberships::MembershipChange;
use crate::store::{Db, EventKey, RoomKey, SnapshotId, Tx};

/// Tables whose rows belong to a room, and what names few of them: how they are found by it (the plus keeps SQLite from
/// going through all rows of the room where a row is found by that name alone).
const TABLES_BY_ROOM: [(&str, &str, &str); 17] = [
    ("extremities", "room_key = ?1", "event_key"),
    ("late_extremities", "room_key = ?1", "event_key"),
    ("gaps", "room_key = ?1", "event_id"),
    ("event_relations", "+room_key = ?1", "event_key"),
    ("threads", "room_key = ?1", "root"),
    ("thread_subscriptions", "+room_key = ?1", "user_id, room_key, root"),
    ("current_state", "room_key = ?1", "tuple_id"),
    ("state_changes", "+room_key = ?1", "room_key, tuple_id, stream"),
    ("memberships", "room_key = ?1", "user_id"),
    ("lost_memberships", "room_key = ?1", "user_id"),
    ("resident_servers", "room_key = ?1", "server"),
    ("receipts", "room_key = ?1", "user_id"),
    ("typing", "room_key = ?1", "user_id"),
    ("pending_events", "+room_key = ?1", "pending"),
    ("notifications", "room_key = ?1", "stream"),
    ("vouched_events", "room_key = ?1", "event_key"),
    ("offered_invites", "room_key = ?1", "invitee"),
];

/// Those of them of which nothing goes if the room is entered anew.
const KEPT_IF_ENTERED_ANEW: [&str; 2] = ["thread_subscriptions", "pending_events"];

/// Takes so many rows of the room `?1` of one of those tables: `?2` at most, or all that have the same names.
fn purge_sql((table, found, key): (&str, &str, &str)) -> String {
    let only = found.trim_start_matches('+');
    format!(
        "DELETE FROM {table} WHERE {found} AND ({key}) IN (SELECT {key} FROM {table} WHERE {only} LIMIT ?2)"
    )
}

/// Tables with a row for a room.
const ROWS_OF_ROOM: [&str; 6] =
    ["room_activity", "ephemeral_changes", "guest_removals", "bells", "rooms_behind_backup", "owed_upgrades"];
/// Tables whose rows belong to a room by its id.
const TABLES_BY_ROOM_ID: [&str; 7] = [
    "owed_bans",
    "owed_invites",
    "owed_joins",
    "published_rooms",
    "network_rooms",
    "room_aliases",
    "delayed_events",
];

/// An event that is to go, with what goes with it.
#[derive(Debug)]
pub struct PurgedEvent {
    /// Its row.
    pub key: EventKey,
    /// The states before and after it.
    pub snapshots: [Option<SnapshotId>; 2],
    /// Its JSON.
    pub json: String,
}

fn purged_event_of(row: &Row<'_>) -> rusqlite::Result<PurgedEvent> {
    let json: Vec<u8> = row.get(3)?;
    let json = String::from_utf8(json).unwrap_or_default();
    Ok(PurgedEvent { key: row.get(0)?, snapshots: [row.get(1)?, row.get(2)?], json })
}

impl Db<'_> {
    /// Events of a room that have a place in its timeline, so many at most.
    pub fn events_to_purge(&self, room: RoomKey, most: usize) -> Result<Vec<PurgedEvent>> {
        self.rows(
            "SELECT event_key, state_before, state_after, json FROM events
             WHERE room_key = ?1 AND stream IS NOT NULL LIMIT ?2",
            params![room, most as i64],
            purged_event_of,
        )
    }

    /// Events of a room among the rows from one to another, whether or not they have a place: so many at most.
    pub fn events_to_purge_between(
        &self,
        room: RoomKey,
        (from, to): (EventKey, EventKey),
        most: usize,
    ) -> Result<Vec<PurgedEvent>> {
        self.rows(
            "SELECT event_key, state_before, state_after, json FROM events NOT INDEXED
             WHERE event_key >= ?2 AND event_key <= ?3 AND room_key = ?1 LIMIT ?4",
            params![room, from, to, most as i64],
            purged_event_of,
        )
    }

    /// The position of the last event of a room that its servers are to be sent.
    pub fn last_outgoing_event(&self, room: RoomKey) -> Result<Option<i64>> {
        let last = "SELECT max(stream) FROM events WHERE room_key = ?1 AND outgoing = 1";
        Ok(self.conn().prepare_cached(last)?.query_row([room], |row| row.get(0))?)
    }

    /// The last row of any event.
    pub fn last_event_key(&self) -> Result<EventKey> {
        let last = "SELECT coalesce(max(event_key), 0) FROM events";
        Ok(self.conn().prepare_cached(last)?.query_row([], |row| row.get(0))?)
    }

    /// Local users of whom a room's state speaks, whatever they are in it: so many at most.
    pub fn local_users_of(&self, room: RoomKey, most: usize) -> Result<Vec<UserId>> {
        let mut statement = self
            .conn()
            .prepare_cached("SELECT user_id FROM memberships WHERE room_key = ?1 AND local = 1 LIMIT ?2")?;
        let rows = statement.query_map(params![room, most as i64], |row| row.get::<_, String>(0))?;
        rows.map(|row| UserId::parse(&row?)).collect()
    }

    /// Local users who are joined, invited or knocking.
    pub fn local_users_in(&self, room: RoomKey) -> Result<Vec<(UserId, Membership)>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT user_id, membership FROM memberships
             WHERE room_key = ?1 AND local = 1 AND membership IN ('join', 'invite', 'knock')",
        )?;
        let rows =
            statement.query_map([room], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
        let mut users = Vec::new();
        for row in rows {
            let (user, membership) = row?;
            users.extend(UserId::parse(&user).ok().zip(Membership::parse(&membership)));
        }
        Ok(users)
    }

    /// Which of these states, and of those that they are built upon, have so many entries that they stand by themselves.
    fn snapshots_with_entries(&self, snapshots: &BTreeSet<SnapshotId>) -> Result<Vec<SnapshotId>> {
        let mut statement =
            self.conn().prepare_cached("SELECT 1 FROM snapshot_entries WHERE snapshot = ?1 LIMIT 1")?;
        let mut large = Vec::new();
        for snapshot in snapshots {
            if statement.exists([snapshot])? {
                large.push(*snapshot);
            }
        }
        Ok(large)
    }
}

/// The states of events, and those that they are built upon.
fn states_of(db: &Db<'_>, states: impl Iterator<Item = SnapshotId>) -> Result<BTreeSet<SnapshotId>> {
    let mut found = BTreeSet::new();
    let mut parent = db.conn().prepare_cached("SELECT parent FROM snapshots WHERE snapshot = ?1")?;
    for state in states {
        let mut next = Some(state);
        while let Some(state) = next.filter(|state| found.insert(*state)) {
            let mut rows = parent.query([state])?;
            next = rows.next()?.map(|row| row.get(0)).transpose()?.flatten();
        }
    }
    Ok(found)
}

impl Tx<'_> {
    /// A local user has nothing to do with the room any more: what was kept for them goes, so many rows at most. True
    /// once all of it is gone; what their clients do not know yet of their leave stays, and, if the room is `entered_anew`,
    /// what is the user's own.
    pub fn purge_user_of_room(
        &mut self,
        (key, room_id, entered_anew): (RoomKey, &RoomId, bool),
        user: &UserId,
        most: usize,
        now: Millis,
    ) -> Result<bool> {
        let gone = self.execute(
            "DELETE FROM notifications_of_users WHERE user_id = ?1 AND room_key = ?2 AND stream IN
             (SELECT stream FROM notifications_of_users WHERE user_id = ?1 AND room_key = ?2 LIMIT ?3)",
            params![user.as_str(), key, most as i64],
        )?;
        if gone == most {
            return Ok(false);
        }
        if !entered_anew {
            self.execute(
                "DELETE FROM read_positions WHERE user_id = ?1 AND room_key = ?2",
                params![user.as_str(), key],
            )?;
            self.delete_thread_subscriptions(user, Some(key))?;
            self.execute(
                "DELETE FROM account_data WHERE user_id = ?1 AND room_id = ?2",
                params![user.as_str(), room_id.as_str()],
            )?;
        }
        if let Some(member) = self.member(key, user)? {
            let event = self.pdu_by_key(member.event)?;
            if matches!(member.membership, Membership::Leave | Membership::Ban)
                && !member.forgotten
                && !self.has_remote_membership(room_id, user)?
            {
                let row = Box::new(RemoteMembership::ended(event, user, member.stream, now));
                self.write_remote_membership(&Effect::Save { row, tell: false, rings: false })?;
            }
            let change = MembershipChange {
                user: user.as_str(),
                old: Some(member.membership),
                new: None,
                stream: self.next_stream(),
            };
            self.change_membership(key, &change)?;
        }
        Ok(true)
    }

    /// The room is one of which we have nothing: what is left of it is found by nobody but who deletes it.
    pub fn begin_purge(&mut self, room: RoomKey) -> Result<()> {
        self.remember(|cache| cache.forget_all());
        self.front_changed();
        self.execute(
            "UPDATE rooms SET state = NULL, resident = 0, joined = 0, invited = 0 WHERE room_key = ?1",
            params![room],
        )?;
        Ok(())
    }

    /// Takes so many rows of one of the tables that belong to a room. Whether there was none left anywhere.
    pub fn purge_rows(&mut self, room: RoomKey, most: usize, entered_anew: bool) -> Result<bool> {
        let goes = |name: &str| !(entered_anew && KEPT_IF_ENTERED_ANEW.contains(&name));
        for table in TABLES_BY_ROOM.into_iter().filter(|(name, ..)| goes(name)) {
            let gone = self.execute(&purge_sql(table), params![room, most as i64])?;
            if gone > 0 {
                self.remember(|cache| cache.forget_all());
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Takes so many entries of the states of these events. Whether there was none left.
    pub fn purge_state_entries(&mut self, events: &[PurgedEvent], most: usize) -> Result<bool> {
        let states = states_of(self, events.iter().flat_map(|event| event.snapshots).flatten())?;
        let large = self.snapshots_with_entries(&states)?;
        let Some(snapshot) = large.first() else { return Ok(true) };
        self.execute(
            "DELETE FROM snapshot_entries WHERE snapshot = ?1 AND tuple_id IN
             (SELECT tuple_id FROM snapshot_entries WHERE snapshot = ?1 LIMIT ?2)",
            params![snapshot, most as i64],
        )?;
        self.remember(|cache| cache.forget_all());
        Ok(false)
    }

    /// Takes these events, what is found by them, and their states.
    pub fn purge_events(&mut self, events: &[(PurgedEvent, Option<String>)]) -> Result<()> {
        let states = events.iter().flat_map(|(event, _)| event.snapshots).flatten();
        let states = states_of(self, states)?;
        if let Some(last) = states.last() {
            let retire = "UPDATE retired_keys SET snapshot = max(snapshot, ?1)";
            self.execute(retire, params![last])?;
        }
        for state in states {
            self.execute("DELETE FROM snapshots WHERE snapshot = ?1", params![state])?;
        }
        for (event, redacts) in events {
            for sql in [
                "DELETE FROM event_texts WHERE rowid = ?1",
                "DELETE FROM search_again WHERE event_key = ?1",
                "DELETE FROM client_transactions WHERE event_key = ?1",
                "UPDATE retired_keys SET event_key = max(event_key, ?1)",
                "DELETE FROM events WHERE event_key = ?1",
            ] {
                self.execute(sql, params![event.key])?;
            }
            if let Some(redacts) = redacts {
                self.execute(
                    "DELETE FROM redactions WHERE redacts = ?1 AND event_key = ?2",
                    params![redacts, event.key],
                )?;
            }
        }
        self.remember(|cache| cache.forget_all());
        Ok(())
    }

    /// Forgets so many events that other servers are owed and that are not here any more. Whether there was none.
    pub fn purge_lost_owed_events(&mut self, most: usize) -> Result<bool> {
        let gone = self.execute(
            "DELETE FROM owed_events WHERE (server, stream) IN
             (SELECT server, stream FROM owed_events o
              WHERE NOT EXISTS (SELECT 1 FROM events e WHERE e.event_key = o.event_key) LIMIT ?1)",
            params![most as i64],
        )?;
        Ok(gone < most)
    }

    /// The last that there is of a room, once its events are gone. If the room is to be entered anew what is known by its
    /// id stays, and a row like that of any room of which there is nothing yet, by which the rest is found that stays.
    pub fn finish_purge(&mut self, room: RoomKey, room_id: &RoomId, entered_anew: bool) -> Result<()> {
        for table in ROWS_OF_ROOM {
            let sql = format!("DELETE FROM {table} WHERE room_key = ?1");
            self.execute(&sql, params![room])?;
        }
        self.front_changed();
        if entered_anew {
            // By what the room is then, which may be of another version.
            self.execute("UPDATE pending_events SET verified = 0 WHERE room_key = ?1", params![room])?;
        } else {
            for table in TABLES_BY_ROOM_ID {
                let sql = format!("DELETE FROM {table} WHERE room_id = ?1");
                self.execute(&sql, params![room_id.as_str()])?;
            }
            self.execute("UPDATE retired_keys SET room_key = max(room_key, ?1)", params![room])?;
            self.execute("DELETE FROM rooms WHERE room_key = ?1", params![room])?;
        }
        self.remember(|cache| cache.forget_all());
        Ok(())
    }
}

#[cfg(test)]
impl Db<'_> {
    /// How many rows each table has that has anything to do with rooms, but for what is kept of rooms that are gone.
    pub(crate) fn rows_of_rooms(&self) -> Vec<(String, i64)> {
        const KEPT: [&str; 4] = ["blocked_rooms", "room_deletions", "retired_keys", "remote_memberships"];
        const BESIDE: [&str; 6] =
            ["snapshots", "snapshot_entries", "redactions", "search_again", "event_texts", "owed_events"];
        let names = "SELECT m.name FROM sqlite_schema m WHERE m.type = 'table' AND EXISTS
            (SELECT 1 FROM pragma_table_info(m.name) c WHERE c.name IN ('room_key', 'room_id')) ORDER BY 1";
        let mut statement = self.conn().prepare(names).unwrap();
        let names = statement.query_map([], |row| row.get::<_, String>(0)).unwrap().map(Result::unwrap);
        let names: Vec<String> = names.chain(BESIDE.map(str::to_owned)).collect();
        let count = |name: &String| {
            // Those of global account data, and of pages of sliding sync, belong to no room.
            let only = if name == "account_data" { " WHERE room_id <> ''" } else { "" };
            let count = format!("SELECT count(*) FROM {name}{only}");
            self.conn().query_row(&count, [], |row| row.get::<_, i64>(0)).unwrap()
        };
        let kept = |name: &&String| !KEPT.contains(&name.as_str()) && *name != "sliding_rooms";
        names.iter().filter(kept).map(|name| (name.clone(), count(name))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::in_memory;

    #[test]
    fn no_portion_goes_through_all_rows_of_a_room() {
        let store = in_memory("example.org");
        for table in TABLES_BY_ROOM {
            let explain = format!("EXPLAIN QUERY PLAN {}", purge_sql(table));
            let plan = store.read(|db| {
                let mut statement = db.conn().prepare(&explain)?;
                let lines = statement.query_map([1, 2], |row| row.get::<_, String>(3))?;
                Ok(lines.collect::<rusqlite::Result<Vec<_>>>()?)
            });
            let plan = plan.unwrap();
            assert!(!plan.iter().any(|line| line.starts_with("SCAN")), "{table:?}: {plan:?}");
            // The outer search goes by more than the room.
            assert!(!plan[0].ends_with("(room_key=?)"), "{table:?}: {plan:?}");
        }
    }
}
