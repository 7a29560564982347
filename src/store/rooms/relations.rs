//! Which events relate to which others of their room, as the content of those that have a place in the timeline says:
//! threads, edits, references, annotations. Reading takes no account of who reads: what they may see is asked where bundles
//! and pages are made.

use rusqlite::{OptionalExtension, Row, params};

use crate::error::{Error, Result};
use crate::protocol::rooms::relations::{
    ANNOTATION, RELATION_HOPS_MAX, REPLACE, Relation, THREAD, relation_of,
};
use crate::protocol::{EventId, Pdu};
use crate::store::rooms::events::TimelineRange;
use crate::store::{Db, EventKey, Place, RoomKey, Tx};

/// An event that relates to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelatedEvent {
    /// Its row.
    pub key: EventKey,
    /// Its place in the timeline.
    pub place: Place,
    /// Its id.
    pub event_id: String,
    /// Its type.
    pub event_type: String,
    /// Who sent it.
    pub sender: String,
}

/// Which of the events that relate to another are asked for.
#[derive(Debug, Clone, Copy, Default)]
pub struct RelationFilter<'f> {
    /// Only those that relate in this way.
    pub rel_type: Option<&'f str>,
    /// Only those of this type.
    pub event_type: Option<&'f str>,
}

/// A thread whose root is in the timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThreadRow {
    /// The root's id.
    pub root: EventId,
    /// Where its latest reply stands.
    pub latest: Place,
    /// Whether the user who was asked for sent the root or a reply.
    pub participated: bool,
}

/// A reply in some thread of a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThreadReply {
    /// Its row.
    pub key: EventKey,
    /// Its place in the timeline.
    pub place: Place,
    /// Who sent it.
    pub sender: String,
    /// The root's id.
    pub root: String,
}

const RELATED: &str = "SELECT event_key, stream, sub, event_id, event_type, sender FROM event_relations";

fn related_of(row: &Row<'_>) -> rusqlite::Result<RelatedEvent> {
    Ok(RelatedEvent {
        key: row.get(0)?,
        place: Place { stream: row.get(1)?, sub: row.get(2)? },
        event_id: row.get(3)?,
        event_type: row.get(4)?,
        sender: row.get(5)?,
    })
}

/// What an event relates to, how, and the row of that if it is here.
const RELATION_OF: &str = "SELECT r.parent, r.rel_type, e.event_key FROM event_relations r
     LEFT JOIN events e ON e.event_id = r.parent AND e.room_key = r.room_key WHERE r.event_key = ?1";

impl Db<'_> {
    /// The root of the thread that an event is in: by its own relation, or by that of what it relates to, at most
    /// [`RELATION_HOPS_MAX`] events away. None for an event of the main timeline, a root among them.
    pub fn thread_root_of(&self, event: EventKey) -> Result<Option<EventId>> {
        let mut statement = self.conn().prepare_cached(RELATION_OF)?;
        let mut next = Some(event);
        for _ in 0..=RELATION_HOPS_MAX {
            let Some(key) = next else { break };
            let mut rows = statement.query([key])?;
            let Some(row) = rows.next()? else { break };
            if row.get_ref(1)?.as_str().map_err(Error::internal)? == THREAD {
                return Ok(Some(EventId::parse(row.get_ref(0)?.as_str().map_err(Error::internal)?)?));
            }
            next = row.get(2)?;
        }
        Ok(None)
    }

    /// Whether an event relates to another one, the root of a thread perhaps, or to something that does: over at most
    /// [`RELATION_HOPS_MAX`] relations, whatever they are. What is in the thread of something else is that thread's.
    pub fn leads_to(&self, event: EventKey, root: &str) -> Result<bool> {
        let mut statement = self.conn().prepare_cached(RELATION_OF)?;
        let mut next = Some(event);
        for _ in 0..RELATION_HOPS_MAX {
            let Some(key) = next else { break };
            let mut rows = statement.query([key])?;
            let Some(row) = rows.next()? else { break };
            if row.get_ref(0)?.as_str().map_err(Error::internal)? == root {
                return Ok(true);
            }
            if row.get_ref(1)?.as_str().map_err(Error::internal)? == THREAD {
                break;
            }
            next = row.get(2)?;
        }
        Ok(false)
    }

    /// Which of these events, as JSON a list of ids, have something related that may be told with them. One look-up for
    /// all.
    pub fn have_aggregations(&self, room: RoomKey, ids: &[&EventId]) -> Result<Vec<EventId>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let any = "SELECT 1 FROM event_relations WHERE room_key = ?1 LIMIT 1";
        if !self.conn().prepare_cached(any)?.exists([room])? {
            return Ok(Vec::new());
        }
        let ids = serde_json::to_string(ids).map_err(Error::internal)?;
        // The range has `m.reference`, `m.replace` and `m.thread`, and little else.
        let mut statement = self.conn().prepare_cached(
            "SELECT j.value FROM json_each(?2) j WHERE EXISTS (SELECT 1 FROM event_relations r WHERE r.room_key = ?1
               AND r.parent = j.value AND r.rel_type >= 'm.reference' AND r.rel_type <= 'm.thread')",
        )?;
        let rows = statement.query_map(params![room, ids], |row| row.get::<_, String>(0))?;
        rows.map(|id| EventId::parse(&id?)).collect()
    }

    /// The edits of an event that may be valid ones, the most recent first ("by comparing `origin_server_ts`; if two or
    /// more … are identical, the … lexicographically largest `event_id`"), at most `limit`, up to a stream position.
    pub fn edits_of(&self, room: RoomKey, original: &Pdu, upto: i64, limit: usize) -> Result<Vec<EventKey>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT event_key FROM event_relations WHERE room_key = ?1 AND parent = ?2 AND rel_type = ?3
               AND sender = ?4 AND event_type = ?5 AND detail IS NOT NULL AND stream <= ?6
             ORDER BY detail DESC, event_id DESC LIMIT ?7",
        )?;
        let (parent, sender) = (original.event_id().as_str(), original.sender().as_str());
        let params = params![room, parent, REPLACE, sender, original.event_type(), upto, limit as i64];
        let rows = statement.query_map(params, |row| row.get(0))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// The events that relate to another, in one way or in any, in the direction asked for.
    pub fn related_to(
        &self,
        room: RoomKey,
        parent: &EventId,
        rel_type: Option<&str>,
        range: TimelineRange,
    ) -> Result<Vec<RelatedEvent>> {
        let (order, low, high) = match range.backwards {
            true => ("stream DESC, sub DESC", range.to, range.from),
            false => ("stream, sub", range.from, range.to),
        };
        let in_one_way = if rel_type.is_some() { "AND rel_type = ?7" } else { "AND ?7 IS NULL" };
        let mut statement = self.conn().prepare_cached(&format!(
            "{RELATED} WHERE room_key = ?1 AND parent = ?2 {in_one_way} AND (stream, sub) > (?3, ?4)
               AND (stream, sub) < (?5, ?6) ORDER BY {order} LIMIT ?8"
        ))?;
        let params = params![
            room,
            parent.as_str(),
            low.stream,
            low.sub,
            high.stream,
            high.sub,
            rel_type,
            range.limit as i64
        ];
        let rows = statement.query_map(params, related_of)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// The events that relate to another by way of others, at most [`RELATION_HOPS_MAX`] away, of which each passes the
    /// filter; newest first. Of so many events that no more than `limit` are looked at some are left out.
    pub fn related_by_way_of_others(
        &self,
        room: RoomKey,
        ancestor: &EventId,
        filter: RelationFilter<'_>,
        limit: usize,
    ) -> Result<Vec<RelatedEvent>> {
        let in_one_way = if filter.rel_type.is_some() { "rel_type = ?3" } else { "?3 IS NULL" };
        let r_in_one_way = if filter.rel_type.is_some() { "r.rel_type = ?3" } else { "?3 IS NULL" };
        // What the filter keeps out is looked at too, and so it counts. A level is looked at before the next.
        let mut statement = self.conn().prepare_cached(&format!(
            "WITH RECURSIVE tree (depth, event_key, event_id, passes) AS (
               SELECT * FROM (SELECT 1, event_key, event_id, ?4 IS NULL OR event_type = ?4 FROM event_relations
                 WHERE room_key = ?1 AND parent = ?2 AND {in_one_way} ORDER BY stream DESC, sub DESC LIMIT ?5)
               UNION ALL
               SELECT t.depth + 1, r.event_key, r.event_id, ?4 IS NULL OR r.event_type = ?4
               FROM tree t CROSS JOIN event_relations r
                 WHERE t.passes AND t.depth < ?6 AND r.room_key = ?1 AND r.parent = t.event_id AND {r_in_one_way}
               LIMIT ?5)
             SELECT DISTINCT r.event_key, r.stream, r.sub, r.event_id, r.event_type, r.sender
             FROM tree t JOIN event_relations r ON r.event_key = t.event_key
             WHERE t.depth > 1 AND t.passes AND r.parent <> ?2 AND r.event_id <> ?2
             ORDER BY r.stream DESC, r.sub DESC, r.event_key DESC"
        ))?;
        let params = params![
            room,
            ancestor.as_str(),
            filter.rel_type,
            filter.event_type,
            limit as i64,
            RELATION_HOPS_MAX as i64
        ];
        let rows = statement.query_map(params, related_of)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// Whether an event of one of these types of relation, by one of these senders, stands before a place, relates to
    /// another and is wanted; none stands for any. Of those of one type, or of one sender in it, no more than `limit` are
    /// asked about, the latest if the senders are not said.
    pub fn is_related(
        &self,
        (room, parent): (RoomKey, &EventId),
        (rel_types, senders): (Option<&[String]>, Option<&[String]>),
        (before, limit): (Place, usize),
        mut is_wanted: impl FnMut(&RelatedEvent) -> Result<bool>,
    ) -> Result<bool> {
        let all;
        let rel_types = match rel_types {
            Some(rel_types) => rel_types,
            None => {
                all = self.rel_types_of(room, parent)?;
                &all
            }
        };
        let mut of_any = self.conn().prepare_cached(&format!(
            "{RELATED} WHERE room_key = ?1 AND parent = ?2 AND rel_type = ?3 AND (stream, sub) < (?4, ?5)
             ORDER BY stream DESC, sub DESC LIMIT ?6"
        ))?;
        let mut of_sender = self.conn().prepare_cached(&format!(
            "{RELATED} INDEXED BY event_relations_by_sender WHERE room_key = ?1 AND parent = ?2 AND rel_type = ?3
               AND (stream, sub) < (?4, ?5) AND sender = ?7 LIMIT ?6"
        ))?;
        let limit = limit as i64;
        for rel_type in rel_types {
            let usual = params![room, parent.as_str(), rel_type, before.stream, before.sub, limit];
            let mut rows = of_any.query(usual)?;
            if senders.is_none() {
                while let Some(row) = rows.next()? {
                    if is_wanted(&related_of(row)?)? {
                        return Ok(true);
                    }
                }
            } else if rows.next()?.is_none() {
                continue;
            }
            for sender in senders.into_iter().flatten() {
                let mut rows = of_sender.query(params![
                    room,
                    parent.as_str(),
                    rel_type,
                    before.stream,
                    before.sub,
                    limit,
                    sender
                ])?;
                while let Some(row) = rows.next()? {
                    if is_wanted(&related_of(row)?)? {
                        return Ok(true);
                    }
                }
            }
        }
        Ok(false)
    }

    /// The first types of relation in which anything relates to an event.
    fn rel_types_of(&self, room: RoomKey, parent: &EventId) -> Result<Vec<String>> {
        const REL_TYPES_MAX: usize = 20;
        let mut statement = self.conn().prepare_cached(
            "SELECT rel_type FROM event_relations WHERE room_key = ?1 AND parent = ?2 AND rel_type > ?3
             ORDER BY rel_type LIMIT 1",
        )?;
        let mut found: Vec<String> = Vec::new();
        while found.len() < REL_TYPES_MAX {
            let after = found.last().map_or("", String::as_str);
            let next = statement.query_row(params![room, parent.as_str(), after], |r| r.get(0)).optional()?;
            let Some(next) = next else { break };
            found.push(next);
        }
        Ok(found)
    }

    /// How many replies a thread has; none if there is no such thread, or its root is none.
    pub fn thread_replies(&self, room: RoomKey, root: &EventId) -> Result<Option<u64>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT replies FROM threads WHERE room_key = ?1 AND root = ?2 AND root_sender IS NOT NULL",
        )?;
        let replies: Option<i64> =
            statement.query_row(params![room, root.as_str()], |row| row.get(0)).optional()?;
        Ok(replies.map(|replies| replies.max(0).unsigned_abs()))
    }

    /// How many replies of a thread stand behind a stream position, of one sender or of all; no more than `limit` are
    /// counted.
    pub fn thread_replies_since(
        &self,
        (room, root): (RoomKey, &EventId),
        sender: Option<&str>,
        (after, limit): (i64, u64),
    ) -> Result<u64> {
        let of_sender = if sender.is_some() { "AND sender = ?6" } else { "AND ?6 IS NULL" };
        let mut statement = self.conn().prepare_cached(&format!(
            "SELECT count(*) FROM (SELECT 1 FROM event_relations
               WHERE room_key = ?1 AND parent = ?2 AND rel_type = ?3 {of_sender} AND stream > ?4 LIMIT ?5)"
        ))?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let params = params![room, root.as_str(), THREAD, after, limit, sender];
        let count: i64 = statement.query_row(params, |row| row.get(0))?;
        Ok(count.unsigned_abs())
    }

    /// The threads of a room whose latest reply stands before a place, that of the latest first, and whether a user took
    /// part in each.
    pub fn threads_before(
        &self,
        room: RoomKey,
        before: Place,
        user: &str,
        limit: usize,
    ) -> Result<Vec<ThreadRow>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT t.root, t.stream, t.sub, t.root_sender = ?4 OR EXISTS (SELECT 1 FROM event_relations r
               WHERE r.room_key = t.room_key AND r.parent = t.root AND r.rel_type = 'm.thread' AND r.sender = ?4)
             FROM threads t WHERE t.room_key = ?1 AND t.root_sender IS NOT NULL AND (t.stream, t.sub) < (?2, ?3)
             ORDER BY t.stream DESC, t.sub DESC LIMIT ?5",
        )?;
        let mut rows = statement.query(params![room, before.stream, before.sub, user, limit as i64])?;
        let mut threads = Vec::new();
        while let Some(row) = rows.next()? {
            threads.push(ThreadRow {
                root: EventId::parse(row.get_ref(0)?.as_str().map_err(Error::internal)?)?,
                latest: Place { stream: row.get(1)?, sub: row.get(2)? },
                participated: row.get(3)?,
            });
        }
        Ok(threads)
    }

    /// What was said in the threads of a room before a place, newest first.
    pub fn replies_before(&self, room: RoomKey, before: Place, limit: usize) -> Result<Vec<ThreadReply>> {
        self.rows(
            "SELECT event_key, stream, sub, sender, parent
             FROM event_relations INDEXED BY event_relations_of_threads
             WHERE rel_type = 'm.thread' AND room_key = ?1 AND (stream, sub) < (?2, ?3)
             ORDER BY stream DESC, sub DESC LIMIT ?4",
            params![room, before.stream, before.sub, limit as i64],
            |row| {
                let place = Place { stream: row.get(1)?, sub: row.get(2)? };
                Ok(ThreadReply { key: row.get(0)?, place, sender: row.get(3)?, root: row.get(4)? })
            },
        )
    }

    /// Whether a user took part in a thread: sent the root or a reply.
    pub fn has_participated(&self, room: RoomKey, root: &EventId, user: &str) -> Result<bool> {
        let mut statement = self.conn().prepare_cached(
            "SELECT 1 FROM threads WHERE room_key = ?1 AND root = ?2 AND root_sender = ?3
             UNION ALL SELECT 1 FROM event_relations
               WHERE room_key = ?1 AND parent = ?2 AND rel_type = 'm.thread' AND sender = ?3 LIMIT 1",
        )?;
        Ok(statement.exists(params![room, root.as_str(), user])?)
    }

    /// Whether an event relates to another of its room.
    pub fn has_relation(&self, event: EventKey) -> Result<bool> {
        let mut statement =
            self.conn().prepare_cached("SELECT 1 FROM event_relations WHERE event_key = ?1")?;
        Ok(statement.exists([event])?)
    }

    /// Whether an event claims to be in the thread of one that relates to another itself.
    pub fn is_in_thread_of_related(&self, event: EventKey) -> Result<bool> {
        let mut statement = self.conn().prepare_cached(
            "SELECT 1 FROM event_relations r JOIN events e ON e.event_id = r.parent AND e.room_key = r.room_key
             JOIN event_relations p ON p.event_key = e.event_key WHERE r.event_key = ?1 AND r.rel_type = 'm.thread'",
        )?;
        Ok(statement.exists([event])?)
    }

    /// Whether its sender has sent the same annotation of the same event before.
    pub fn repeats_annotation(&self, event: EventKey) -> Result<bool> {
        let mut statement = self.conn().prepare_cached(
            "SELECT 1 FROM event_relations n JOIN event_relations o USING (room_key, parent, rel_type, sender, event_type, detail)
             WHERE n.event_key = ?1 AND n.rel_type = 'm.annotation' AND o.event_key <> n.event_key LIMIT 1",
        )?;
        Ok(statement.exists([event])?)
    }
}

impl Tx<'_> {
    /// Notes what an event that has got its place says of its relation to another, and returns whether it does.
    /// `is_made_here`: nothing can have named it before.
    pub(crate) fn note_relation(
        &mut self,
        room: RoomKey,
        (event, place): (EventKey, Place),
        pdu: &Pdu,
        is_made_here: bool,
    ) -> Result<bool> {
        let relation = relation_of(pdu);
        if !is_made_here {
            self.note_thread_root(room, pdu, relation.is_none())?;
        }
        let Some(relation) = relation else { return Ok(false) };
        // "As long as both events are in the same room."
        let parent = self.previous_event(&relation.event_id)?;
        if parent.is_some_and(|parent| parent.room != room) || relation.event_id == *pdu.event_id() {
            return Ok(false);
        }
        let detail = match relation.rel_type.as_str() {
            ANNOTATION => relation.key.as_deref().map(Relation::key_hash),
            REPLACE if relation.has_new_content => Some(pdu.origin_server_ts()),
            _ => None,
        };
        let inserted = self.execute(
            "INSERT OR IGNORE INTO event_relations (room_key, parent, rel_type, stream, sub, event_key, event_id,
               event_type, sender, detail) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            params![
                room,
                relation.event_id.as_str(),
                relation.rel_type,
                place.stream,
                place.sub,
                event,
                pdu.event_id().as_str(),
                pdu.event_type(),
                pdu.sender().as_str(),
                detail,
            ],
        )?;
        if relation.is_thread() && inserted == 1 {
            self.add_reply(room, &relation.event_id, place)?;
        }
        Ok(true)
    }

    /// A thread whose root comes after its replies, or that turns out to have none.
    fn note_thread_root(&mut self, room: RoomKey, root: &Pdu, is_unrelated: bool) -> Result<()> {
        let sender = (is_unrelated && !root.is_state()).then(|| root.sender().as_str());
        self.execute(
            "UPDATE threads SET root_sender = ?3 WHERE room_key = ?1 AND root = ?2",
            params![room, root.event_id().as_str(), sender],
        )?;
        Ok(())
    }

    fn add_reply(&mut self, room: RoomKey, root: &EventId, place: Place) -> Result<()> {
        let added = self.execute(
            "UPDATE threads SET replies = replies + 1,
               stream = iif((stream, sub) < (?3, ?4), ?3, stream), sub = iif((stream, sub) < (?3, ?4), ?4, sub)
             WHERE room_key = ?1 AND root = ?2",
            params![room, root.as_str(), place.stream, place.sub],
        )?;
        if added == 1 {
            return Ok(());
        }
        // "It is not possible to create a thread from an event which itself is the child of an event relationship."
        let root_sender = match self.event(root)? {
            Some(event) if event.place.is_some() && !event.pdu.is_state() => {
                (!self.has_relation(event.key)?).then(|| event.pdu.sender().to_string())
            }
            _ => None,
        };
        self.execute(
            "INSERT INTO threads (room_key, root, root_sender, replies, stream, sub) VALUES (?1, ?2, ?3, 1, ?4, ?5)",
            params![room, root.as_str(), root_sender, place.stream, place.sub],
        )?;
        Ok(())
    }

    /// An event is redacted: "when a child event is redacted then the relationship is broken".
    pub(crate) fn remove_relation(&mut self, event: EventKey) -> Result<()> {
        let removed = self
            .conn()
            .prepare_cached(
                "DELETE FROM event_relations WHERE event_key = ?1 RETURNING room_key, parent, rel_type",
            )?
            .query_row([event], |row| {
                Ok((row.get::<_, RoomKey>(0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?))
            })
            .optional()?;
        match removed {
            Some((room, root, rel_type)) if rel_type == THREAD => self.remove_reply(room, &root),
            _ => Ok(()),
        }
    }

    /// A thread goes with its last reply, and moves to where the latest of those stands that are left.
    fn remove_reply(&mut self, room: RoomKey, root: &str) -> Result<()> {
        let latest = self
            .conn()
            .prepare_cached(
                "SELECT stream, sub FROM event_relations WHERE room_key = ?1 AND parent = ?2 AND rel_type = 'm.thread'
                 ORDER BY stream DESC, sub DESC LIMIT 1",
            )?
            .query_row(params![room, root], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)))
            .optional()?;
        let Some((stream, sub)) = latest else {
            self.execute("DELETE FROM threads WHERE room_key = ?1 AND root = ?2", params![room, root])?;
            return Ok(());
        };
        self.execute(
            "UPDATE threads SET replies = replies - 1, stream = ?3, sub = ?4 WHERE room_key = ?1 AND root = ?2",
            params![room, root, stream, sub],
        )?;
        Ok(())
    }
}
