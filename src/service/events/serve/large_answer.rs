//! Answers as large as a room: its whole state, for another server. They are read from the database while they are
//! being sent, so that nobody who reads slowly has us hold them, however many they are. What is no larger than other
//! answers is put together at once, of events that are likely to be in memory.

use std::collections::HashMap;
use std::io::{self, Read};
use std::sync::Arc;

use crate::error::Result;
use crate::protocol::Pdu;
use crate::service::Homeserver;
use crate::store::{Db, EventKey};

/// An answer that knows how long it will be.
#[derive(Default)]
pub struct LargeAnswer {
    pieces: Vec<AnswerPiece>,
    length: u64,
    /// The bytes of events that are held.
    held: usize,
}

enum AnswerPiece {
    Text(Vec<u8>),
    /// Events as they are kept, with commas between them: those that are held, as readers remember them.
    Held(Vec<Pdu>),
    /// The same, of events that are read when it is their turn.
    Events(Vec<EventKey>),
}

/// Events that are read at once.
const EVENTS_READ_AT_ONCE: usize = 64;

/// How many events are held, and how many bytes: a room that is no larger is asked for often while it
/// fills, and its events stay in the readers' cache.
pub(super) const EVENTS_HELD_MAX: usize = 512;
pub(super) const BYTES_HELD_MAX: usize = 256 * 1024;

impl LargeAnswer {
    /// Goes on with text.
    pub(in crate::service) fn text(&mut self, text: impl Into<Vec<u8>>) {
        let text = text.into();
        self.length += text.len() as u64;
        match self.pieces.last_mut() {
            Some(AnswerPiece::Text(before)) => before.extend_from_slice(&text),
            _ => self.pieces.push(AnswerPiece::Text(text)),
        }
    }

    /// Goes on with events as they are kept, with commas between them: holding them while they are little.
    fn kept_events(&mut self, db: &Db<'_>, events: &[EventKey], at_hand: &[Pdu]) -> Result<()> {
        let (mut held, mut rest): (Vec<Pdu>, _) = (Vec::new(), events);
        while let Some((key, others)) = rest.split_first()
            && events.len() <= EVENTS_HELD_MAX
            && self.held < BYTES_HELD_MAX
        {
            let event = match at_hand.get(held.len()) {
                Some(event) => event.clone(),
                None => db.pdu_by_key(*key)?,
            };
            self.held += event.json().len();
            self.length += event.json().len() as u64;
            held.push(event);
            rest = others;
        }
        if !held.is_empty() {
            self.length += (held.len() - 1) as u64;
            self.pieces.push(AnswerPiece::Held(held));
        }
        if !rest.is_empty() {
            if rest.len() < events.len() {
                self.text(",");
            }
            self.length += db.bytes_of_events(rest)? + (rest.len() - 1) as u64;
            self.pieces.push(AnswerPiece::Events(rest.to_vec()));
        }
        Ok(())
    }

    /// Goes on with a JSON array of events, each as it is kept but for those that have another form for this reader.
    pub(in crate::service) fn events(
        &mut self,
        db: &Db<'_>,
        events: &[EventKey],
        other_form: HashMap<EventKey, Vec<u8>>,
    ) -> Result<()> {
        self.events_at_hand(db, (events, &[]), other_form)
    }

    /// [`Self::events`], of which some, or all, are at hand: in the same order, from the first on.
    pub(in crate::service) fn events_at_hand(
        &mut self,
        db: &Db<'_>,
        (events, mut at_hand): (&[EventKey], &[Pdu]),
        mut other_form: HashMap<EventKey, Vec<u8>>,
    ) -> Result<()> {
        self.text("[");
        let mut rest = events;
        while !rest.is_empty() {
            let whole = rest.iter().take_while(|key| !other_form.contains_key(key)).count();
            let (as_kept, others) = rest.split_at(whole);
            self.kept_events(db, as_kept, at_hand)?;
            at_hand = at_hand.get(whole + 1..).unwrap_or_default();
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
            held: Vec::new().into_iter(),
            is_between: false,
            events: Vec::new().into_iter(),
            present: ReadText::Text(Vec::new()),
            at: 0,
        }
    }
}

struct AnswerReader {
    hs: Arc<Homeserver>,
    pieces: std::vec::IntoIter<AnswerPiece>,
    /// Those of the present piece that are still to come, if it is one of events.
    held: std::vec::IntoIter<Pdu>,
    events: std::vec::IntoIter<EventKey>,
    /// Whether a comma comes before the next event that is held.
    is_between: bool,
    /// What is being read.
    present: ReadText,
    at: usize,
}

enum ReadText {
    Text(Vec<u8>),
    Event(Pdu),
    Comma,
}

impl ReadText {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Text(text) => text,
            Self::Event(event) => event.json(),
            Self::Comma => b",",
        }
    }
}

impl AnswerReader {
    /// Has something to read. False: there is nothing more.
    fn refill(&mut self) -> Result<bool> {
        self.at = 0;
        if std::mem::take(&mut self.is_between) {
            self.present = ReadText::Comma;
        } else if let Some(event) = self.held.next() {
            self.is_between = self.held.len() > 0;
            self.present = ReadText::Event(event);
        } else if self.events.len() > 0 {
            self.present = ReadText::Text(self.next_events()?);
        } else {
            self.present = ReadText::Text(Vec::new());
            match self.pieces.next() {
                None => return Ok(false),
                Some(AnswerPiece::Text(text)) => self.present = ReadText::Text(text),
                Some(AnswerPiece::Held(events)) => self.held = events.into_iter(),
                Some(AnswerPiece::Events(events)) => self.events = events.into_iter(),
            }
        }
        Ok(true)
    }

    /// The text of a few events more, with a comma at its end unless they are the last.
    fn next_events(&mut self) -> Result<Vec<u8>> {
        let (mut text, next) = (Vec::new(), self.events.by_ref().take(EVENTS_READ_AT_ONCE));
        let next: Vec<EventKey> = next.collect();
        self.hs.store.read(|db| {
            db.each_event(next, |row| {
                text.extend_from_slice(row.json.as_bytes());
                text.push(b',');
                Ok(())
            })
        })?;
        if self.events.len() == 0 {
            text.pop();
        }
        Ok(text)
    }
}

impl Read for AnswerReader {
    /// As much as there is room for: what is written for each little piece would be a lot of writing.
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let mut count = 0;
        while count < out.len() {
            let rest = &self.present.bytes()[self.at..];
            if rest.is_empty() {
                if !self.refill().map_err(io::Error::other)? {
                    break;
                }
                continue;
            }
            let taken = rest.len().min(out.len() - count);
            out[count..count + taken].copy_from_slice(&rest[..taken]);
            self.at += taken;
            count += taken;
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::service::events::tests::{alice, draft, homeserver, room};

    #[test]
    fn an_answer_is_whole_and_as_long_as_it_says_whether_its_events_are_held_or_read_later() {
        let hs = homeserver();
        let room = room(&hs, "11");
        let long = "x".repeat(50_000);
        for (few, few_at_hand) in [(true, 0), (true, 3), (true, 100), (false, 0), (false, 3)] {
            if !few && few_at_hand == 0 {
                for number in 0..2 * BYTES_HELD_MAX / long.len() {
                    let event_type = format!("x.{number}");
                    let event = draft(&room, &alice(), &event_type, Some(""), json!({ "long": long }));
                    hs.events().send(event).expect("allowed");
                }
            }
            let read = |db: &Db<'_>| {
                let keys: Vec<EventKey> =
                    db.current_state_rows(db.known_room(&room)?.key)?.into_values().collect();
                let last = keys.len() - 1;
                let mut expected = Vec::new();
                for key in &keys {
                    expected.push(serde_json::from_slice(db.pdu_by_key(*key)?.json()).expect("JSON"));
                }
                let (redacted, mut others) = (json!({ "redacted": true }), HashMap::new());
                for at in [1, last] {
                    expected[at] = redacted.clone();
                    others.insert(keys[at], redacted.to_string().into_bytes());
                }
                let mut answer = LargeAnswer::default();
                let at_hand: Vec<_> =
                    keys.iter().take(few_at_hand).map(|key| db.pdu_by_key(*key)).collect::<Result<_>>()?;
                answer.events_at_hand(db, (&keys, &at_hand), others)?;
                Ok((answer.wrapped("{\"events\":", "}"), expected))
            };
            let (answer, expected): (LargeAnswer, Vec<Value>) = hs.store.read(read).expect("readable");
            let held = !answer.pieces.iter().any(|piece| matches!(piece, AnswerPiece::Events(_)));
            assert_eq!(held, few, "{} bytes", answer.length());
            let (length, mut text) = (answer.length(), String::new());
            answer.into_reader(hs.clone()).read_to_string(&mut text).expect("readable");
            assert_eq!(text.len() as u64, length);
            assert_eq!(serde_json::from_str::<Value>(&text).expect("JSON"), json!({ "events": expected }));
        }
    }
}
