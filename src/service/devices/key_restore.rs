//! The keys of a backup as one answer, whatever it weighs: read from the database page by page while it is being sent. So
//! nobody holds more of it than a page, and whoever reads slowly holds nothing up: between two pages nothing is open.
//!
//! Keys that come, go or become better meanwhile are in it or not; each is whole. If the version is deleted meanwhile the
//! answer breaks off, so that nobody takes a part for all.

use std::io::{self, Read};
use std::sync::Arc;

use serde::Serialize;
use serde_json::value::RawValue;

use crate::error::{Error, Result};
use crate::protocol::{RoomId, UserId};
use crate::service::Homeserver;
use crate::service::devices::Devices;
use crate::service::devices::key_backup::existing;
use crate::store::devices::key_backup::{BackedUpSession, BackupKey};

/// A page ends with the key that goes beyond so many bytes.
const PAGE_BYTES: usize = 64 << 10;

/// The keys of a version of a backup, all of them or a room's, as JSON: `{"rooms": {…}}`, or `{"sessions": {…}}`.
pub struct KeyRestore {
    /// The beginning.
    pub text: Vec<u8>,
    /// What follows it. None: that was all.
    pub rest: Option<KeyRestoreReader>,
}

/// What a client reads of a key (`KeyBackupData`).
#[derive(Serialize)]
struct SessionJson<'t> {
    first_message_index: i64,
    forwarded_count: i64,
    is_verified: bool,
    session_data: &'t RawValue,
}

/// The key of one session as JSON.
pub fn session_json(session: &BackedUpSession) -> Result<Vec<u8>> {
    let mut text = Vec::with_capacity(session.session_data.len() + 100);
    write_session(&mut text, session)?;
    Ok(text)
}

fn write_session(text: &mut Vec<u8>, session: &BackedUpSession) -> Result<()> {
    let BackedUpSession { first_message_index, forwarded_count, is_verified, .. } = *session;
    let session_data = crate::protocol::json::read(session.session_data.as_bytes())?;
    let json = SessionJson { first_message_index, forwarded_count, is_verified, session_data };
    serde_json::to_writer(text, &json).map_err(Error::internal)
}

impl Devices<'_> {
    /// The keys of a version, those of one room if it is given. Errors: 404 `M_NOT_FOUND` if there is no such version.
    pub fn restore_key_backup(
        self,
        hs: &Arc<Homeserver>,
        user: &UserId,
        version: &str,
        room: Option<RoomId>,
    ) -> Result<KeyRestore> {
        let backup = self.store.read(|db| existing(db, user, version))?;
        let mut reader = KeyRestoreReader {
            hs: hs.clone(),
            user: user.clone(),
            version: version.to_owned(),
            backup: backup.key,
            last: room.as_ref().map(|room| (room.to_string(), String::new())),
            room,
            text: Vec::new(),
            at: 0,
            ended: false,
        };
        reader.text.extend_from_slice(if reader.room.is_some() {
            b"{\"sessions\":{"
        } else {
            b"{\"rooms\":{"
        });
        reader.read_page()?;
        let text = std::mem::take(&mut reader.text);
        Ok(KeyRestore { text, rest: (!reader.ended).then_some(reader) })
    }
}

/// Reads the keys of a backup, a page at a time.
pub struct KeyRestoreReader {
    hs: Arc<Homeserver>,
    user: UserId,
    version: String,
    backup: BackupKey,
    /// The room whose keys are wanted; none: those of all rooms.
    room: Option<RoomId>,
    /// Room and session of the key that was read last.
    last: Option<(String, String)>,
    /// What was read and not handed out.
    text: Vec<u8>,
    at: usize,
    /// Whether there is nothing more to read.
    ended: bool,
}

impl KeyRestoreReader {
    /// Reads what follows, and the end with the last of it.
    fn read_page(&mut self) -> Result<()> {
        let one_room = self.room.is_some();
        let (backup, mut failed, mut full) = (self.backup, None, false);
        let (text, last) = (&mut self.text, &mut self.last);
        let begun = text.len();
        let (user, version) = (&self.user, self.version.as_str());
        self.hs.store.read(|db| {
            if existing(db, user, version)?.key != backup {
                return Err(Error::not_found("The backup was deleted"));
            }
            let from = last.clone().unwrap_or_default();
            db.each_backed_up_session(backup, (&from.0, &from.1), one_room, |session| {
                if text.len() - begun >= PAGE_BYTES {
                    full = true;
                    return false;
                }
                failed = append(text, last.as_ref(), &session, one_room).err();
                *last = Some((session.room_id, session.session_id));
                failed.is_none()
            })
        })?;
        if let Some(e) = failed {
            return Err(e);
        }
        if !full {
            let in_a_room = !one_room && self.last.is_some();
            self.text.extend_from_slice(if in_a_room { b"}}}}" } else { b"}}" });
            self.ended = true;
        }
        Ok(())
    }
}

/// One key, with what stands between it and the one before.
fn append(
    text: &mut Vec<u8>,
    before: Option<&(String, String)>,
    session: &BackedUpSession,
    one_room: bool,
) -> Result<()> {
    let in_room = before.filter(|(room, _)| *room == session.room_id);
    if !one_room && in_room.is_none() {
        if before.is_some() {
            text.extend_from_slice(b"}},");
        }
        serde_json::to_writer(&mut *text, &session.room_id).map_err(Error::internal)?;
        text.extend_from_slice(b":{\"sessions\":{");
    } else if in_room.is_some_and(|(_, session)| !session.is_empty()) {
        text.push(b',');
    }
    serde_json::to_writer(&mut *text, &session.session_id).map_err(Error::internal)?;
    text.push(b':');
    write_session(text, session)
}

impl Read for KeyRestoreReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.at == self.text.len() {
            if self.ended {
                return Ok(0);
            }
            (self.at, self.text) = (0, Vec::new());
            self.read_page().map_err(|e| {
                log::log!(e.level(log::Level::Info), "a key backup of {} broke off: {e}", self.user);
                io::Error::other(e)
            })?;
        }
        let count = out.len().min(self.text.len() - self.at);
        out[..count].copy_from_slice(&self.text[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}
