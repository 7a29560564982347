//! What holds in every database of ours at every moment, whatever happened to the process before: checked from
//! outside, by SQL and with a second reading of the formats that `schema.sql` describes, in one snapshot. The server
//! may be running.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use doorstep::protocol::json::CanonicalObject;
use doorstep::protocol::room_version::{RoomVersion, room_version};
use doorstep::protocol::{EventId, Membership, Pdu};
use rusqlite::{Connection, OpenFlags, OptionalExtension};

/// Looks over the database in this folder. Returns what is wrong, a sentence each. Of the events those with a row id
/// above `after` are read; the highest row id is returned for the next time.
pub fn check(folder: &Path, after: i64) -> (Vec<String>, i64) {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection =
        Connection::open_with_flags(folder.join("doorstep.db"), flags).expect("the database opens");
    connection.busy_timeout(std::time::Duration::from_secs(10)).expect("a time-out");
    connection.execute_batch("BEGIN").expect("a snapshot");
    let mut look = Look { db: &connection, wrong: Vec::new() };
    look.integrity();
    let last = look.events(after);
    look.states();
    look.rooms();
    look.remote_memberships();
    for (what, sql) in NEVER {
        look.never(what, sql);
    }
    for (what, sql) in [
        (
            "a state that is needed is not there",
            "SELECT s FROM needed WHERE s NOT IN (SELECT snapshot FROM snapshots)",
        ),
        (
            "a state is there that nothing needs, and is not known to be spare",
            "SELECT snapshot FROM snapshots WHERE snapshot NOT IN needed",
        ),
    ] {
        look.never(what, &format!("{NEEDED_STATES} {sql}"));
    }
    (look.wrong, last)
}

/// The states before and after each event that has them, by its id: tuple id → event.
pub fn states_of_events(folder: &Path) -> BTreeMap<String, [BTreeMap<i64, i64>; 2]> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(folder.join("doorstep.db"), flags).expect("the database opens");
    db.execute_batch("BEGIN").expect("a snapshot");
    let mut look = Look { db: &db, wrong: Vec::new() };
    let sql = "SELECT event_id, state_before, state_after FROM events WHERE state_before IS NOT NULL";
    let mut statement = db.prepare(sql).expect("events");
    let rows = statement
        .query_map([], |row| Ok((row.get::<_, String>(0)?, row.get(1)?, row.get(2)?)))
        .expect("events");
    let states = rows
        .map(|row| {
            let (id, before, after): (String, i64, i64) = row.expect("an event");
            (id, [before, after].map(|state| look.state_rows_at(state)))
        })
        .collect();
    assert_eq!(look.wrong, Vec::<String>::new());
    states
}

/// Every state that an event, a room or a spare state needs, as `needed (s)`.
const NEEDED_STATES: &str = "WITH RECURSIVE needed (s) AS (
   SELECT state_before FROM events WHERE state_before IS NOT NULL
   UNION SELECT state_after FROM events WHERE state_after IS NOT NULL
   UNION SELECT state FROM rooms WHERE state IS NOT NULL
   UNION SELECT snapshot FROM spare_snapshots JOIN snapshots USING (snapshot)
   UNION SELECT p.parent FROM needed JOIN snapshots p ON p.snapshot = s WHERE p.parent IS NOT NULL)";

/// Rows that there must not be: the first column says which.
const NEVER: &[(&str, &str)] = &[
    (
        "entries are there of a state that is gone, and do not go",
        "SELECT snapshot FROM snapshot_entries WHERE snapshot NOT IN (SELECT snapshot FROM snapshots)
           AND snapshot NOT IN (SELECT snapshot FROM spare_snapshots)",
    ),
    (
        "a state that an event has is said to be spare",
        "SELECT event_id FROM events
         WHERE state_before IN (SELECT snapshot FROM spare_snapshots)
           OR state_after IN (SELECT snapshot FROM spare_snapshots)",
    ),
    (
        "the states that are built upon a spare one are miscounted",
        "SELECT snapshot FROM spare_snapshots s
         WHERE children <> (SELECT count(*) FROM snapshots p WHERE p.parent = s.snapshot)",
    ),
    (
        "a file is counted to be used by another number of rows than it is",
        "SELECT hex(hash) FROM media_blobs b WHERE uses <>
           (SELECT count(*) FROM media m WHERE m.hash = b.hash)
           + (SELECT count(*) FROM media_thumbnails t WHERE t.hash = b.hash)",
    ),
    (
        "somebody's media are not what they are counted for",
        "SELECT owner FROM media_shares s WHERE (files, bytes) <>
           (SELECT count(*), coalesce(sum(max(m.bytes, 4096)), 0) FROM media m
            WHERE m.hash IS NOT NULL AND coalesce(m.uploader, '') = s.owner)",
    ),
    (
        "media have another size than their file",
        "SELECT media_id FROM media m JOIN media_blobs b USING (hash) WHERE m.bytes <> b.bytes",
    ),
    (
        "a forward extremity is no accepted event of its room with a state",
        "SELECT x.event_key FROM extremities x LEFT JOIN events e ON e.event_key = x.event_key
         WHERE e.event_key IS NULL OR e.room_key <> x.room_key OR e.status <> 0 OR e.state_after IS NULL",
    ),
    (
        "a room that we are in has no forward extremity",
        "SELECT room_id FROM rooms r WHERE resident = 1
         AND NOT EXISTS (SELECT 1 FROM extremities x WHERE x.room_key = r.room_key)",
    ),
    (
        "an event of the current state is no accepted event of its room",
        "SELECT c.event_key FROM current_state c LEFT JOIN events e ON e.event_key = c.event_key
         WHERE e.event_key IS NULL OR e.room_key <> c.room_key OR e.status <> 0",
    ),
    (
        "an event that has a place has no state or was not accepted",
        "SELECT event_id FROM events
         WHERE stream IS NOT NULL AND (status <> 0 OR state_before IS NULL OR state_after IS NULL)",
    ),
    (
        "two events have the same place",
        "SELECT min(event_id) FROM events WHERE stream IS NOT NULL GROUP BY room_key, stream, sub HAVING count(*) > 1",
    ),
    (
        "an event has the state before it or after it, but not both",
        "SELECT event_id FROM events WHERE (state_before IS NULL) <> (state_after IS NULL)",
    ),
    (
        "a position is beyond the last one",
        "SELECT p FROM (SELECT max(stream) AS p FROM events UNION ALL SELECT max(stream) FROM memberships
           UNION ALL SELECT max(stream) FROM state_changes UNION ALL SELECT max(stream) FROM remote_memberships
           UNION ALL SELECT max(stream) FROM owed_events UNION ALL SELECT max(since) FROM resident_servers
           UNION ALL SELECT max(until) FROM resident_servers UNION ALL SELECT max(stream) FROM account_data)
         WHERE p > (SELECT stream FROM server)",
    ),
    (
        "a membership is not that of the current state",
        "SELECT m.user_id FROM memberships m LEFT JOIN state_tuples s ON s.type = 'm.room.member' AND s.state_key = m.user_id
         LEFT JOIN current_state c ON c.room_key = m.room_key AND c.tuple_id = s.tuple_id
         WHERE c.event_key IS NULL OR c.event_key <> m.event_key",
    ),
    (
        "one-time keys that wait to be claimed are not those behind the last that was given out",
        "SELECT p.user_id FROM one_time_key_pools p LEFT JOIN one_time_keys k ON k.pool = p.pool AND k.number > p.issued
         GROUP BY p.pool HAVING count(k.number) <> last - issued OR max(k.number) <> last OR min(k.key) = ''",
    ),
    (
        "the keys of a backup, or their bytes, are counted wrong",
        "SELECT user_id FROM key_backups b WHERE (count, bytes) <>
         (SELECT count(*), coalesce(sum(s.bytes), 0) FROM key_backup_sessions s WHERE s.backup = b.backup)",
    ),
    (
        "the joined users of a room are counted wrong",
        "SELECT room_id FROM rooms r WHERE joined <>
         (SELECT count(*) FROM memberships m WHERE m.room_key = r.room_key AND membership = 'join')",
    ),
    (
        "the invited users of a room are counted wrong",
        "SELECT room_id FROM rooms r WHERE invited <>
         (SELECT count(*) FROM memberships m WHERE m.room_key = r.room_key AND membership = 'invite')",
    ),
    (
        "a room is ours without a member of ours, or the other way round",
        "SELECT room_id FROM rooms r WHERE resident <> EXISTS
         (SELECT 1 FROM memberships m WHERE m.room_key = r.room_key AND membership = 'join' AND local = 1)",
    ),
    (
        "the joined users of a server are counted wrong",
        "WITH counted AS (
           SELECT room_key, substr(user_id, instr(user_id, ':') + 1) AS server, count(*) AS users
           FROM memberships WHERE membership = 'join' GROUP BY 1, 2)
         SELECT c.server FROM counted c LEFT JOIN resident_servers r
           ON r.room_key = c.room_key AND r.server = c.server AND r.until IS NULL
           WHERE r.users IS NULL OR r.users <> c.users
         UNION ALL SELECT r.server FROM resident_servers r LEFT JOIN counted c USING (room_key, server)
           WHERE r.until IS NULL AND c.users IS NULL",
    ),
    (
        "a server has left a room that it still has users in, or is there twice",
        "SELECT server FROM resident_servers WHERE until IS NOT NULL AND (users <> 0 OR until < since)
         UNION ALL SELECT server FROM resident_servers WHERE until IS NULL GROUP BY room_key, server HAVING count(*) > 1",
    ),
    (
        "messages that wait for devices are counted wrong",
        "SELECT user_id || ' ' || device_id FROM to_device_lines l WHERE (messages, bytes) <>
         (SELECT count(*), coalesce(sum(bytes), 0) FROM to_device m WHERE m.line = l.line)",
    ),
    (
        "messages that wait for devices are counted wrong by their origins",
        "WITH waiting AS (
           SELECT m.line, share, origin, m.bytes FROM to_device m JOIN to_device_lines l USING (line) WHERE counted = 1),
           counted AS (
           SELECT line, share, origin, count(*) AS messages, sum(bytes) AS bytes FROM waiting GROUP BY 1, 2, 3
           UNION ALL SELECT line, share, substr(origin, instr(origin, ':') + 1), count(*), sum(bytes)
             FROM waiting WHERE share <> 0 GROUP BY 1, 2, 3
           UNION ALL SELECT line, share, '', count(*), sum(bytes) FROM waiting GROUP BY 1, 2),
           noted AS (SELECT line, share, origin, messages, bytes FROM to_device_shares)
         SELECT line || ' ' || origin FROM (SELECT * FROM counted EXCEPT SELECT * FROM noted)
         UNION ALL SELECT line || ' ' || origin FROM (SELECT * FROM noted EXCEPT SELECT * FROM counted)",
    ),
    (
        "a remote membership in a room that we are in",
        "SELECT m.user_id || ' ' || m.state FROM remote_memberships m JOIN rooms r ON r.room_id = m.room_id
         WHERE r.resident = 1 AND m.state <> 'leaving'",
    ),
    (
        "a remote membership that nobody pursues, or a closed one that is",
        "SELECT user_id FROM remote_memberships
         WHERE (due_ms IS NULL AND (state = 'knocked' OR attempts < 3 AND state IN ('knocking', 'joining', 'leaving')))
            OR (due_ms IS NOT NULL AND state = 'closed')",
    ),
    (
        "a gap is an event that we have",
        "SELECT g.event_id FROM gaps g JOIN events e ON e.event_id = g.event_id WHERE e.state_after IS NOT NULL",
    ),
    (
        "an event waits that is in its room already and is not due, or waits for nothing",
        "SELECT w.event_id FROM pending_events w LEFT JOIN events e USING (event_id)
         WHERE (e.state_after IS NOT NULL AND w.due_ms > 0) OR NOT EXISTS (SELECT 1 FROM pending_needs f WHERE f.pending = w.pending)",
    ),
    (
        "an event is owed that there is not",
        "SELECT o.event_key FROM owed_events o LEFT JOIN events e USING (event_key) WHERE e.event_key IS NULL",
    ),
    (
        "a client was told of an event that there is not",
        "SELECT t.txn_id FROM client_transactions t LEFT JOIN events e USING (event_key)
         WHERE t.event_key IS NOT NULL AND e.event_id IS NULL",
    ),
    (
        "a redaction that there is not",
        "SELECT r.redacts FROM redactions r LEFT JOIN events e USING (event_key) WHERE e.event_key IS NULL",
    ),
    (
        "the last change of a tuple_id is not the current state",
        "SELECT s.room_key FROM state_changes s LEFT JOIN current_state c USING (room_key, tuple_id)
         WHERE s.stream = (SELECT max(stream) FROM state_changes t WHERE t.room_key = s.room_key AND t.tuple_id = s.tuple_id)
           AND s.event_key IS NOT c.event_key",
    ),
    (
        "a snapshot has no parent, or has one beside its root",
        "SELECT s.snapshot FROM snapshots s LEFT JOIN snapshots p ON p.snapshot = s.parent
         WHERE (s.number = 0) <> (s.parent IS NULL)
            OR (s.parent IS NOT NULL AND (p.snapshot IS NULL OR p.number <> (s.number & (s.number - 1))))",
    ),
    (
        "an event has a state that there is not",
        "SELECT e.event_id FROM events e
         LEFT JOIN snapshots b ON b.snapshot = e.state_before LEFT JOIN snapshots a ON a.snapshot = e.state_after
         WHERE e.state_before IS NOT NULL AND (a.snapshot IS NULL OR b.snapshot IS NULL)",
    ),
];

struct Look<'c> {
    db: &'c Connection,
    wrong: Vec<String>,
}

impl Look<'_> {
    fn never(&mut self, what: &str, sql: &str) {
        let found: Option<rusqlite::types::Value> =
            self.db.query_row(&format!("{sql} LIMIT 1"), [], |row| row.get(0)).optional().expect(what);
        // `max` of nothing is a row with NULL.
        if let Some(which) = found.filter(|which| *which != rusqlite::types::Value::Null) {
            self.wrong.push(format!("{what}: {which:?}"));
        }
    }

    fn integrity(&mut self) {
        let found: String =
            self.db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("a check");
        if found != "ok" {
            self.wrong.push(format!("integrity_check: {found}"));
        }
        let broken =
            self.db.prepare("PRAGMA foreign_key_check").and_then(|mut s| s.exists([])).expect("a check");
        if broken {
            self.wrong.push("a foreign key leads nowhere".to_owned());
        }
    }

    /// Every event is whole: its id is that of its bytes. And none follows a forward extremity.
    fn events(&mut self, after: i64) -> i64 {
        let mut heads = self
            .db
            .prepare("SELECT e.event_id FROM extremities x JOIN events e USING (event_key)")
            .expect("the extremities");
        let heads: HashSet<String> =
            heads.query_map([], |r| r.get(0)).and_then(Iterator::collect).expect("the extremities");
        let late = self.late_extremities();
        let mut statement = self
            .db
            .prepare(
                "SELECT e.event_key, e.event_id, r.version, e.json, e.depth, e.origin_server_ts, r.room_id,
                   e.status = 0 AND e.state_after IS NOT NULL
                 FROM events e JOIN rooms r USING (room_key) WHERE e.event_key > ?1 ORDER BY e.event_key",
            )
            .expect("the events");
        let mut rows = statement.query([after]).expect("the events");
        let mut last = after;
        while let Some(row) = rows.next().expect("an event") {
            last = row.get_unwrap(0);
            let id: String = row.get_unwrap(1);
            let version = version_of(&row.get_unwrap::<_, String>(2));
            let bytes: Vec<u8> = row.get_unwrap(3);
            let computed = CanonicalObject::read(&bytes).and_then(|(object, _)| object.event_id(version));
            if computed.as_ref().ok().map(|id| id.as_str()) != Some(&*id) {
                self.wrong.push(format!("{id} is {computed:?} by its bytes"));
                continue;
            }
            let Ok(pdu) = Pdu::parse(&bytes, version) else {
                self.wrong.push(format!("{id} is no event"));
                continue;
            };
            let follows = pdu.prev_events().iter().find(|prev| heads.contains(prev.as_str()));
            if let Some(head) = follows.filter(|_| row.get_unwrap(7) && !late.contains(&last)) {
                self.wrong.push(format!("{head} is an extremity although {id} follows it"));
            }
            let columns = (row.get_unwrap(4), row.get_unwrap(5), row.get_unwrap::<_, String>(6));
            if columns != (pdu.depth(), pdu.origin_server_ts(), pdu.room_id().to_string()) {
                self.wrong.push(format!("the columns of {id} are not those of its bytes"));
            }
        }
        last
    }

    /// The late extremities, and the events that they follow so far.
    fn late_extremities(&mut self) -> HashSet<i64> {
        let mut statement = self
            .db
            .prepare("SELECT event_key, followed FROM late_extremities")
            .expect("the late extremities");
        let mut rows = statement.query([]).expect("the late extremities");
        let mut late = HashSet::new();
        while let Some(row) = rows.next().expect("a late extremity") {
            late.insert(row.get_unwrap(0));
            let followed: Vec<u8> = row.get_unwrap(1);
            late.extend(followed.chunks_exact(8).map(big_endian));
        }
        late
    }

    /// The current state is its snapshot put together, and each of its events stands where it belongs.
    fn states(&mut self) {
        let mut rooms = self.db.prepare("SELECT room_key, room_id, state FROM rooms").expect("rooms");
        let rooms: Vec<(i64, String, Option<i64>)> = rooms
            .query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))
            .and_then(Iterator::collect)
            .expect("rooms");
        for (room, id, state) in rooms {
            let mut current =
                self.db.prepare_cached("SELECT tuple_id, event_key FROM current_state WHERE room_key = ?1");
            let current: BTreeMap<i64, i64> = current
                .as_mut()
                .expect("a state")
                .query_map([room], |r| Ok((r.get(0)?, r.get(1)?)))
                .and_then(Iterator::collect)
                .expect("a state");
            let of_snapshot = state.map(|state| self.state_rows_at(state)).unwrap_or_default();
            if current != of_snapshot {
                self.wrong.push(format!("the current state of {id} is not its snapshot"));
            }
            self.heads(room, &id, &current);
        }
        let mut statement = self
            .db
            .prepare(
                "SELECT e.event_id, e.json, r.version, s.type, s.state_key, m.membership
                 FROM current_state c JOIN events e USING (event_key) JOIN rooms r ON r.room_key = c.room_key
                 JOIN state_tuples s USING (tuple_id) LEFT JOIN memberships m
                   ON m.room_key = c.room_key AND m.user_id = s.state_key AND s.type = 'm.room.member'",
            )
            .expect("the current states");
        let mut rows = statement.query([]).expect("the current states");
        while let Some(row) = rows.next().expect("a state event") {
            let id: String = row.get_unwrap(0);
            let version = version_of(&row.get_unwrap::<_, String>(2));
            let pdu = event_of(&id, row.get_unwrap(1), version);
            if !pdu.is(&row.get_unwrap::<_, String>(3), &row.get_unwrap::<_, String>(4)) {
                self.wrong.push(format!("{id} stands in the state where it does not belong"));
            }
            let membership: Option<String> = row.get_unwrap(5);
            if pdu.membership() != membership.as_deref().and_then(Membership::parse) {
                self.wrong.push(format!("by {id} somebody is {membership:?}"));
            }
        }
    }

    /// A room with one forward extremity has the state after it.
    fn heads(&mut self, room: i64, id: &str, current: &BTreeMap<i64, i64>) {
        let mut heads = self
            .db
            .prepare_cached(
                "SELECT e.state_after FROM extremities x JOIN events e USING (event_key)
                 WHERE x.room_key = ?1",
            )
            .expect("the extremities");
        let heads: Vec<i64> = heads
            .query_map([room], |r| Ok(r.get::<_, Option<i64>>(0)?.unwrap_or_default()))
            .and_then(Iterator::collect)
            .expect("the extremities");
        if let [state] = heads.as_slice()
            && self.state_rows_at(*state) != *current
        {
            self.wrong.push(format!("the current state of {id} is not that after its one extremity"));
        }
    }

    /// A state, put together as `schema.sql` says.
    fn state_rows_at(&mut self, snapshot: i64) -> BTreeMap<i64, i64> {
        let (mut state, mut path, mut next) = (BTreeMap::new(), Vec::new(), Some(snapshot));
        while let Some(snapshot) = next {
            let row = self.db.query_row(
                "SELECT parent, delta FROM snapshots WHERE snapshot = ?1",
                [snapshot],
                |r| Ok((r.get::<_, Option<i64>>(0)?, r.get::<_, Option<Vec<u8>>>(1)?)),
            );
            let Some((parent, delta)) = row.optional().expect("a snapshot") else {
                self.wrong.push(format!("there is no snapshot {snapshot}"));
                return state;
            };
            path.push((snapshot, delta));
            next = parent;
        }
        for (snapshot, delta) in path.into_iter().rev() {
            let entries: Vec<(i64, i64)> = match delta {
                Some(delta) => {
                    delta.chunks_exact(10).map(|e| (big_endian(&e[..5]), big_endian(&e[5..]))).collect()
                }
                None => {
                    let sql = "SELECT tuple_id, event_key FROM snapshot_entries WHERE snapshot = ?1";
                    let mut entries = self.db.prepare_cached(sql).expect("entries");
                    let entries = entries.query_map([snapshot], |r| Ok((r.get(0)?, r.get(1)?)));
                    entries.and_then(Iterator::collect).expect("entries")
                }
            };
            for (tuple_id, event) in entries {
                if event == 0 {
                    state.remove(&tuple_id);
                } else {
                    state.insert(tuple_id, event);
                }
            }
        }
        state
    }

    /// Every room's version is one that we speak.
    fn rooms(&mut self) {
        let mut versions = self.db.prepare("SELECT DISTINCT version FROM rooms").expect("versions");
        let versions = versions.query_map([], |r| r.get::<_, String>(0)).expect("versions");
        let unknown = versions.map(|v| v.expect("a version")).find(|v| room_version(v).is_none());
        self.wrong.extend(unknown.map(|v| format!("a room of version {v}")));
    }

    /// Each state of a remote membership has the event that it is about.
    fn remote_memberships(&mut self) {
        let sql = "SELECT room_id, user_id, state, event, event_version, pending, pending_version FROM remote_memberships";
        let mut statement = self.db.prepare(sql).expect("remote memberships");
        let mut rows = statement.query([]).expect("remote memberships");
        while let Some(row) = rows.next().expect("a remote membership") {
            let (room, user, state): (String, String, String) =
                (row.get_unwrap(0), row.get_unwrap(1), row.get_unwrap(2));
            let read = |json: usize, version: usize| {
                let json: Option<Vec<u8>> = row.get_unwrap(json);
                let version: Option<String> = row.get_unwrap(version);
                Pdu::parse(&json?, version_of(&version?)).ok()
            };
            let (told, pending) = (read(3, 4), read(5, 6));
            let is = |event: &Option<Pdu>, allowed: &[Membership]| {
                event.as_ref().is_some_and(|event| {
                    let of_user =
                        event.state_key() == Some(user.as_str()) && event.room_id().as_str() == room;
                    of_user && event.membership().is_some_and(|m| allowed.contains(&m))
                })
            };
            let legal = match state.as_str() {
                "knocking" | "knocked" => is(&told, &[Membership::Knock]),
                "invited" => is(&told, &[Membership::Invite]),
                "joining" => is(&pending, &[Membership::Join]),
                "leaving" => told.is_some(),
                _ => is(&told, &[Membership::Leave, Membership::Ban]),
            };
            if !legal {
                self.wrong.push(format!("{user} is {state} in {room} by {told:?} and {pending:?}"));
            }
        }
    }
}

/// An event whose bytes were looked at before.
fn event_of(id: &str, bytes: Vec<u8>, version: RoomVersion) -> Pdu {
    let id = EventId::parse(id).expect("an event id");
    Pdu::trusted(id, bytes, version).expect("an event")
}

fn big_endian(bytes: &[u8]) -> i64 {
    bytes.iter().fold(0, |number, byte| number << 8 | i64::from(*byte))
}

fn version_of(id: &str) -> RoomVersion {
    room_version(id).unwrap_or_else(|| panic!("room version {id}"))
}
