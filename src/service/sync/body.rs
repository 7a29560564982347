//! The body of an answer to `/sync`. That of somebody who is in many rooms is megabytes: it is written room by room, so
//! that nothing of it is there twice, in pieces, which go one by one as they are read.

use std::collections::VecDeque;
use std::io::{self, Read};

use serde::Serialize;

use crate::error::{Error, Result};

/// Pieces have about so many bytes. Blocks of this size go back to the system when they are freed (`allocator.rs`).
const PIECE_BYTES: usize = 256 << 10;
/// What a piece has room for: the last room in it makes it longer.
const PIECE_ROOM_BYTES: usize = PIECE_BYTES * 3 / 2;

/// The body of an answer, JSON.
#[derive(Default)]
pub struct AnswerBody {
    pieces: VecDeque<Vec<u8>>,
    length: usize,
    /// What was read of the first piece.
    read: usize,
}

impl From<Vec<u8>> for AnswerBody {
    fn from(whole: Vec<u8>) -> Self {
        Self { length: whole.len(), pieces: VecDeque::from([whole]), read: 0 }
    }
}

impl AnswerBody {
    /// How many bytes it has that were not read.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// What was not read of it, in one.
    pub fn into_bytes(mut self) -> Vec<u8> {
        if self.read == 0 && self.pieces.len() == 1 {
            return self.pieces.pop_front().unwrap_or_default();
        }
        let mut whole = Vec::with_capacity(self.length);
        for piece in self.pieces {
            whole.extend_from_slice(piece.get(self.read..).unwrap_or_default());
            self.read = 0;
        }
        whole
    }
}

impl Read for AnswerBody {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let Some(piece) = self.pieces.front() else { return Ok(0) };
        let mut rest = piece.get(self.read..).unwrap_or_default();
        let count = rest.read(buf)?;
        let is_over = rest.is_empty();
        self.length -= count;
        self.read += count;
        if is_over {
            self.pieces.pop_front();
            self.read = 0;
        }
        Ok(count)
    }
}

/// An object whose members are written one after the other, and may be many.
#[derive(Default)]
pub(super) struct BodyWriter {
    pieces: VecDeque<Vec<u8>>,
    last: Vec<u8>,
}

impl BodyWriter {
    /// Writes text as it stands.
    pub(super) fn text(&mut self, text: &str) {
        self.last.extend_from_slice(text.as_bytes());
    }

    /// Writes a value as JSON.
    pub(super) fn value(&mut self, value: &impl Serialize) -> Result<()> {
        if self.last.len() >= PIECE_BYTES {
            let next = Vec::with_capacity(PIECE_ROOM_BYTES);
            self.pieces.push_back(std::mem::replace(&mut self.last, next));
        }
        serde_json::to_writer(&mut self.last, value).map_err(Error::internal)
    }

    /// Writes the members of an object, and the brace behind them.
    pub(super) fn members(&mut self, object: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string(object).map_err(Error::internal)?;
        self.text(text.strip_prefix('{').unwrap_or_default());
        Ok(())
    }

    pub(super) fn finish(mut self) -> AnswerBody {
        self.pieces.push_back(self.last);
        let length = self.pieces.iter().map(Vec::len).sum();
        AnswerBody { pieces: self.pieces, length, read: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_in_pieces_is_read_as_one_and_goes_as_it_is_read() {
        let mut writer = BodyWriter::default();
        writer.text("{\"rooms\":[");
        let long = "x".repeat(PIECE_BYTES / 3);
        for number in 0..10 {
            writer.text(if number == 0 { "" } else { "," });
            writer.value(&long).expect("written");
        }
        writer.text("],");
        writer.members(&serde_json::json!({ "a": 1, "b": {} })).expect("written");
        let (mut body, mut whole, mut pieces) = (writer.finish(), Vec::new(), usize::MAX);
        assert!(body.pieces.len() > 3);
        let length = body.len();
        assert!(length > 3 * PIECE_BYTES);
        let mut some = [0; 100_000];
        loop {
            let count = body.read(&mut some).expect("read");
            if count == 0 {
                break;
            }
            whole.extend_from_slice(&some[..count]);
            assert_eq!(body.len() + whole.len(), length);
            // But for the one that is being read, and the last one.
            assert!(body.pieces.len() <= pieces && body.pieces.len() <= body.len() / PIECE_BYTES + 2);
            pieces = body.pieces.len();
        }
        assert!(body.is_empty() && body.pieces.is_empty());
        let read: serde_json::Value = serde_json::from_slice(&whole).expect("JSON");
        assert_eq!((read["rooms"].as_array().map(Vec::len), &read["a"]), (Some(10), &1.into()));

        let mut small = AnswerBody::from(b"{\"a\":1}".to_vec());
        assert_eq!(small.read(&mut some[..2]).expect("read"), 2);
        assert_eq!((small.len(), small.into_bytes()), (5, b"a\":1}".to_vec()));
    }
}
