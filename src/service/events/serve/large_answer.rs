//! Answers as large as a room: its whole state, for another server. They are read from the database while they are
//! being sent, so that nobody who reads slowly has us hold them, however many they are.

use std::collections::HashMap;
use std::io::{self, Read};
use std::sync::Arc;

use crate::error::Result;
use crate::service::Homeserver;
use crate::store::{Db, EventKey};

/// An answer that knows how long it will be.
#[derive(Default)]
pub struct LargeAnswer {
    pieces: Vec<AnswerPiece>,
    length: u64,
}

enum AnswerPiece {
    Text(Vec<u8>),
    /// A JSON array of the bytes that events are kept in.
    Events(Vec<EventKey>),
}

/// Events that are read at once.
const EVENTS_READ_AT_ONCE: usize = 64;

impl LargeAnswer {
    /// Goes on with text.
    pub(in crate::service) fn text(&mut self, text: impl Into<Vec<u8>>) {
        let text = text.into();
        self.length += text.len() as u64;
        self.pieces.push(AnswerPiece::Text(text));
    }

    /// Goes on with a JSON array of events, each as it is kept but for those that have another form for this reader.
    pub(in crate::service) fn events(
        &mut self,
        db: &Db<'_>,
        events: Vec<EventKey>,
        mut other_form: HashMap<EventKey, Vec<u8>>,
    ) -> Result<()> {
        self.text("[");
        let mut rest = events.as_slice();
        while !rest.is_empty() {
            let whole = rest.iter().take_while(|key| !other_form.contains_key(key)).count();
            let (as_kept, others) = rest.split_at(whole);
            if !as_kept.is_empty() {
                self.length += db.bytes_of_events(as_kept)? + (whole - 1) as u64;
                self.pieces.push(AnswerPiece::Events(as_kept.to_vec()));
            }
            rest = others;
            if let Some((key, others)) = others.split_first() {
                let form = other_form.remove(key).unwrap_or_default();
                let commas = [if whole > 0 { "," } else { "" }, if others.is_empty() { "" } else { "," }];
                self.text([commas[0].as_bytes(), &form, commas[1].as_bytes()].concat());
                rest = others;
            }
        }
        self.text("]");
        Ok(())
    }

    /// This answer between two texts.
    #[must_use]
    pub fn wrapped(mut self, before: &str, after: &str) -> Self {
        self.length += before.len() as u64;
        self.pieces.insert(0, AnswerPiece::Text(before.into()));
        self.text(after);
        self
    }

    /// How many bytes it has.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The answer, to be read once. If an event was redacted meanwhile it is not as long as it was said to be, and has
    /// to be asked for again.
    pub fn into_reader(self, hs: Arc<Homeserver>) -> impl Read + Send {
        AnswerReader {
            hs,
            pieces: self.pieces.into_iter(),
            events: Vec::new().into_iter(),
            text: Vec::new(),
            at: 0,
        }
    }
}

struct AnswerReader {
    hs: Arc<Homeserver>,
    pieces: std::vec::IntoIter<AnswerPiece>,
    /// Those of the present piece that are still to come, unless it is text.
    events: std::vec::IntoIter<EventKey>,
    text: Vec<u8>,
    at: usize,
}

impl AnswerReader {
    /// Has something to read. False: there is nothing more.
    fn refill(&mut self) -> Result<bool> {
        self.at = 0;
        if self.events.len() == 0 {
            match self.pieces.next() {
                None => return Ok(false),
                Some(AnswerPiece::Text(text)) => self.text = text,
                Some(AnswerPiece::Events(events)) => {
                    self.text.clear();
                    self.events = events.into_iter();
                }
            }
            return Ok(true);
        }
        self.text.clear();
        let (text, next) = (&mut self.text, self.events.by_ref().take(EVENTS_READ_AT_ONCE));
        let next: Vec<EventKey> = next.collect();
        self.hs.store.read(|db| {
            db.each_event(next, |row| {
                text.extend_from_slice(row.json.as_bytes());
                text.push(b',');
                Ok(())
            })
        })?;
        if self.events.len() == 0 {
            self.text.pop();
        }
        Ok(true)
    }
}

impl Read for AnswerReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.at == self.text.len() {
            if !self.refill().map_err(io::Error::other)? {
                return Ok(0);
            }
        }
        let count = out.len().min(self.text.len() - self.at);
        out[..count].copy_from_slice(&self.text[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}
