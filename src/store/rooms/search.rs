//! The index of the texts that search finds events by: what is in it, how it follows the events, and looking into it.
//!
//! It is written behind the events, many of them together, since a message by itself costs the index several times what it
//! costs among others. An event's row tells how far it is: nothing is written along with a new event. Who searches has it
//! catch up before ([`Tx::index_texts`]); a redaction takes the text out at once.

use rusqlite::{OptionalExtension, params};

use crate::error::{Error, Result};
use crate::protocol::search_text::{SearchKey, SearchQuery, SearchableText, indexable, searchable_text};
use crate::store::rooms::events::StoredEvent;
use crate::store::{Db, EventKey, RoomKey, Status, Tx};

/// So many events are indexed in one commit,
const PORTION_EVENTS_MAX: usize = 500;
/// as long as their texts come to no more than this.
const PORTION_BYTES_MAX: usize = 128 * 1024;
/// So many changes that came before their message are taken out when it comes.
const CHANGES_FORGOTTEN_MAX: usize = 10;
/// Over so many rows of the events one commit looks for some that have a text.
const PORTION_ROWS_MAX: i64 = 2000;

/// What is looked for.
pub struct TextSearch<'q> {
    /// The words.
    pub query: &'q SearchQuery,
    /// The rooms to look into; none: all of them.
    pub rooms: Option<&'q [RoomKey]>,
    /// Where the words are to stand.
    pub keys: &'q [SearchKey],
}

impl TextSearch<'_> {
    /// In the language of the index. Nothing gets in there but names of columns, numbers, and words of letters.
    fn expression(&self) -> String {
        let mut expression = String::new();
        if let Some(rooms) = self.rooms {
            let rooms: Vec<String> = rooms.iter().map(|room| format!("\"{room}\"")).collect();
            expression = format!("room : ({}) AND ", rooms.join(" OR "));
        }
        let columns: Vec<&str> = self.keys.iter().map(|key| column(*key)).collect();
        let phrase = |text: &str, is_prefix| format!("\"{text}\"{}", if is_prefix { " *" } else { "" });
        let phrases: Vec<String> =
            self.query.phrases().iter().map(|wanted| phrase(&wanted.text, wanted.is_prefix)).collect();
        expression + &format!("{{{}}} : ({})", columns.join(" "), phrases.join(" AND "))
    }

    /// Whether nothing can be found.
    fn is_void(&self) -> bool {
        self.query.phrases().is_empty() || self.keys.is_empty() || self.rooms.is_some_and(<[_]>::is_empty)
    }
}

fn column(key: SearchKey) -> &'static str {
    match key {
        SearchKey::Body => "body",
        SearchKey::Name => "name",
        SearchKey::Topic => "topic",
    }
}

impl Db<'_> {
    /// The events in whose text the words are, as far as they are indexed: those that came last first, from this one on.
    pub fn events_with_text(
        &self,
        search: &TextSearch<'_>,
        from: EventKey,
        limit: usize,
    ) -> Result<Vec<EventKey>> {
        if search.is_void() {
            return Ok(Vec::new());
        }
        let mut statement = self.conn().prepare_cached(
            "SELECT rowid FROM event_texts WHERE event_texts MATCH ?1 AND rowid <= ?2 ORDER BY rowid DESC LIMIT ?3",
        )?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = statement.query_map(params![search.expression(), from, limit], |row| row.get(0))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// How many rows the index is behind the events.
    pub fn events_to_index(&self) -> Result<usize> {
        let behind: i64 = self
            .conn()
            .prepare_cached(
                "SELECT coalesce((SELECT max(event_key) FROM events), 0) - upto
                   + (SELECT count(*) FROM (SELECT 1 FROM search_again LIMIT 1000)) FROM search_progress",
            )?
            .query_row([], |row| row.get(0))?;
        Ok(usize::try_from(behind).unwrap_or(0))
    }

    /// What an event itself says, if clients may see it at all.
    fn text_shown(&self, event: &StoredEvent) -> Result<Option<SearchableText>> {
        if event.status != Status::Accepted || event.place.is_none() || event.redacted_by.is_some() {
            return Ok(None);
        }
        Ok(searchable_text(event.pdu.json()))
    }

    /// What an event says itself, by which it is found unless it was changed; empty if it has no text.
    pub fn text_itself(&self, event: &StoredEvent) -> Result<String> {
        Ok(self.text_shown(event)?.map(|text| text.text).unwrap_or_default())
    }

    /// The change by whose text a message is found, if there is one.
    pub fn change_found_by(&self, event: &StoredEvent) -> Result<Option<StoredEvent>> {
        match self.text_shown(event)? {
            Some(text) => Ok(self.change_of(event, &text)?.map(|(change, _)| change)),
            None => Ok(None),
        }
    }

    /// The text of an event, or what its sender changed it into.
    fn text_now(&self, event: &StoredEvent) -> Result<Option<SearchableText>> {
        let Some(text) = self.text_shown(event)? else { return Ok(None) };
        let changed = self.change_of(event, &text)?;
        Ok(Some(changed.map_or(text, |(_, text)| text)))
    }

    /// What a message of this text was changed into last, with the change.
    fn change_of(
        &self,
        event: &StoredEvent,
        text: &SearchableText,
    ) -> Result<Option<(StoredEvent, SearchableText)>> {
        if text.key != SearchKey::Body || text.replaces.is_some() {
            return Ok(None);
        }
        let Some(change) = self.edits_of(event.room, &event.pdu, i64::MAX, 1)?.pop() else { return Ok(None) };
        let change = self.event_by_key(change)?;
        Ok(self.text_shown(&change)?.map(|text| (change, text)))
    }

    /// The message that an event changes: of the same sender and room, and not a change itself.
    fn changed_message(&self, event: &StoredEvent, text: &SearchableText) -> Result<Option<StoredEvent>> {
        let Some(target) = &text.replaces else { return Ok(None) };
        let target = self.event(target)?.filter(|target| {
            target.room == event.room
                && target.pdu.sender() == event.pdu.sender()
                && target.pdu.event_type() == event.pdu.event_type()
        });
        let Some(target) = target else { return Ok(None) };
        let is_original = self.text_shown(&target)?.is_some_and(|text| text.replaces.is_none());
        Ok(Some(target).filter(|_| is_original))
    }
}

impl Tx<'_> {
    /// Indexes some of the events that came since. Whether more are left.
    pub fn index_texts(&mut self) -> Result<bool> {
        let (mut events, mut bytes) = (0, 0);
        let again: Vec<EventKey> = self
            .conn()
            .prepare_cached("SELECT event_key FROM search_again LIMIT ?1")?
            .query_map([PORTION_EVENTS_MAX as i64], |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        for key in again {
            bytes += self.index_text(key)?;
            self.execute("DELETE FROM search_again WHERE event_key = ?1", params![key])?;
            events += 1;
            if bytes >= PORTION_BYTES_MAX {
                return Ok(true);
            }
        }
        let upto: EventKey = self
            .conn()
            .prepare_cached("SELECT upto FROM search_progress")?
            .query_row([], |row| row.get(0))?;
        let last: EventKey = self
            .conn()
            .prepare_cached("SELECT coalesce(max(event_key), 0) FROM events")?
            .query_row([], |row| row.get(0))?;
        let mut reached = upto;
        let end = last.min(upto.saturating_add(PORTION_ROWS_MAX));
        let keys: Vec<EventKey> = self
            .conn()
            .prepare_cached(
                "SELECT event_key FROM events WHERE event_key > ?1 AND event_key <= ?2 AND status = 0
                   AND stream IS NOT NULL ORDER BY event_key LIMIT ?3",
            )?
            .query_map(params![upto, end, (PORTION_EVENTS_MAX - events) as i64], |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        let is_all = keys.len() < PORTION_EVENTS_MAX - events;
        let mut stopped = !is_all;
        for key in keys {
            bytes += self.index_text(key)?;
            reached = key;
            if bytes >= PORTION_BYTES_MAX {
                stopped = true;
                break;
            }
        }
        if !stopped {
            reached = end;
        }
        if reached > upto {
            self.execute("UPDATE search_progress SET upto = ?1", params![reached])?;
        }
        Ok(reached < last)
    }

    /// Puts the text of an event into the index, in place of what is there. Gives the length of the text.
    fn index_text(&mut self, key: EventKey) -> Result<usize> {
        let event = self.event_by_key(key)?;
        let Some(text) = self.text_shown(&event)? else {
            self.forget_text(key)?;
            return Ok(0);
        };
        // What a message was changed into is what it is shown with, and so what it is found by. The change itself is
        // shown nowhere.
        let original = match self.changed_message(&event, &text)? {
            Some(original) => {
                self.forget_text(key)?;
                original
            }
            None => event,
        };
        // Changes that came before it stand there by themselves.
        for change in self.edits_of(original.room, &original.pdu, i64::MAX, CHANGES_FORGOTTEN_MAX)? {
            self.forget_text(change)?;
        }
        let Some(text) = self.text_now(&original)? else { return Ok(0) };
        self.put_text(original.key, original.room, &text)?;
        Ok(text.text.len())
    }

    fn put_text(&mut self, key: EventKey, room: RoomKey, text: &SearchableText) -> Result<()> {
        self.forget_text(key)?;
        let sql = match text.key {
            SearchKey::Body => "INSERT INTO event_texts (rowid, room, body) VALUES (?1, ?2, ?3)",
            SearchKey::Name => "INSERT INTO event_texts (rowid, room, name) VALUES (?1, ?2, ?3)",
            SearchKey::Topic => "INSERT INTO event_texts (rowid, room, topic) VALUES (?1, ?2, ?3)",
        };
        self.execute(sql, params![key, room.to_string(), indexable(&text.text)])?;
        Ok(())
    }

    /// Takes the text of an event out of the index, if it is there.
    pub(in crate::store) fn forget_text(&mut self, key: EventKey) -> Result<()> {
        self.execute("DELETE FROM event_texts WHERE rowid = ?1", params![key])?;
        Ok(())
    }

    /// Has the text of an event indexed anew that is there for longer.
    pub(in crate::store) fn index_again(&mut self, key: EventKey) -> Result<()> {
        self.execute("INSERT OR IGNORE INTO search_again (event_key) VALUES (?1)", params![key])?;
        Ok(())
    }

    /// Follows the redaction of an event, which is as it was before: its text goes, and if it changed a message, that one
    /// is found by what it said before.
    pub(in crate::store) fn forget_redacted_text(&mut self, key: EventKey) -> Result<()> {
        self.forget_text(key)?;
        let Some(event) = self.stored_text(key)? else { return Ok(()) };
        let Some(target) = event.replaces else { return Ok(()) };
        if let Some(target) = self.event_key(&target)? {
            self.forget_text(target)?;
            self.index_again(target)?;
        }
        Ok(())
    }
}

impl Db<'_> {
    fn stored_text(&self, key: EventKey) -> Result<Option<SearchableText>> {
        let mut statement = self.conn().prepare_cached("SELECT json FROM events WHERE event_key = ?1")?;
        let text =
            statement.query_row([key], |row| Ok(row.get_ref(0)?.as_blob().ok().and_then(searchable_text)));
        text.optional().map(Option::flatten).map_err(Error::from)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use rusqlite::Connection;

    use super::*;
    use crate::protocol::search_text::is_of_word;
    use crate::store::engine::migrate::SCHEMA;

    /// The index of a database, or one of other characters, with a table of its words.
    fn index(categories: Option<&str>) -> Connection {
        let database = Connection::open_in_memory().unwrap();
        let from = SCHEMA.find("CREATE VIRTUAL TABLE event_texts").unwrap();
        let mut sql = SCHEMA[from..].split_inclusive(';').next().unwrap().to_owned();
        if let Some(other) = categories {
            let (before, after) = sql.split_once("categories '").unwrap();
            let (_, after) = after.split_once('\'').unwrap();
            sql = format!("{before}categories '{other}'{after}");
        }
        database.execute_batch(&sql).unwrap();
        database.execute_batch("CREATE VIRTUAL TABLE words USING fts5vocab(event_texts, instance)").unwrap();
        database
    }

    fn put(database: &Connection, row: usize, text: &str) {
        let sql = "INSERT INTO event_texts (rowid, body) VALUES (?1, ?2)";
        database.prepare_cached(sql).unwrap().execute(params![row as i64, text]).unwrap();
    }

    /// The words of each row, in their order.
    fn words(database: &Connection) -> Vec<String> {
        let mut statement = database.prepare("SELECT term FROM words ORDER BY doc, \"offset\"").unwrap();
        let words = statement.query_map([], |row| row.get(0)).unwrap();
        words.collect::<rusqlite::Result<_>>().unwrap()
    }

    #[test]
    fn the_index_has_the_very_words_that_a_text_was_cut_into_whatever_characters_they_have() {
        let database = index(None);
        let all: Vec<char> = (char::MIN..=char::MAX).filter(|c| is_of_word(*c)).collect();
        let mut expected = Vec::new();
        for (row, characters) in all.chunks(2000).enumerate() {
            let text: Vec<String> = characters.iter().map(|c| format!("{c}x{c}")).collect();
            let cut = indexable(&text.join(" - "));
            put(&database, row, &cut);
            expected.extend(cut.split(' ').map(str::to_owned));
        }
        let words = words(&database);
        let differing = words.iter().zip(&expected).find(|(word, expected)| word != expected);
        assert_eq!((differing, words.len()), (None, expected.len()));
    }

    #[test]
    fn what_the_index_takes_for_a_mark_is_part_of_a_word() {
        // The planes that are left out have characters for private use, or none.
        let all: Vec<char> = ('\u{1}'..'\u{40000}').chain('\u{e0000}'..'\u{f0000}').collect();
        let [marks, unknown] = ["Mn Mc", "Zp"].map(|categories| {
            let database = index(Some(categories));
            for (row, characters) in all.chunks(4000).enumerate() {
                put(&database, row, &characters.iter().flat_map(|c| [*c, ' ']).collect::<String>());
            }
            words(&database)
        });
        // What it does not know at all it takes for a letter.
        let [marks, unknown]: [HashSet<char>; 2] =
            [marks, unknown].map(|words| words.iter().filter_map(|word| word.chars().next()).collect());
        let marks: Vec<&char> = marks.difference(&unknown).collect();
        assert!(marks.len() > 1500, "{}", marks.len());
        assert_eq!(marks.iter().find(|mark| !is_of_word(***mark)), None);
    }
}
