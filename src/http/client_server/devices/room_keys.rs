//! Key backups (client-server API, "Server-side key backups"): versions, and the keys in them.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use crate::error::{ErrCode, Error, Result};
use crate::http::client_server::reply;
use crate::http::{Reply, Request, Requester};
use crate::protocol::RoomId;
use crate::protocol::json::{INTEGER_MAX, ObjectText, read_object};
use crate::protocol::keys::backup::KeyBackupData;
use crate::service::Homeserver;
use crate::service::devices::key_backup::{KeyBackupState, NewKeyBackup};
use crate::service::devices::key_restore::{KeyRestore, session_json};
use crate::store::devices::key_backup::{KeyBackup, NewSession, SessionScope};

/// Keys in one request. Clients send some hundreds.
const SESSIONS_MAX: usize = 10_000;

#[derive(Deserialize)]
struct VersionBody {
    algorithm: Option<String>,
    auth_data: Option<ObjectText>,
    version: Option<String>,
}

impl VersionBody {
    fn into_backup(self) -> Result<NewKeyBackup> {
        let algorithm = self.algorithm.ok_or_else(|| Error::missing_param("Missing algorithm"))?;
        let auth_data = self.auth_data.ok_or_else(|| Error::missing_param("Missing auth_data"))?;
        Ok(NewKeyBackup { algorithm, auth_data })
    }
}

// The parts are kept as text until they are looked at, so that each is an object and no list of its fields.
#[derive(Deserialize)]
struct RoomsBody<'t> {
    #[serde(borrow)]
    rooms: Option<BTreeMap<String, &'t RawValue>>,
}

#[derive(Deserialize)]
struct SessionsBody<'t> {
    #[serde(borrow)]
    sessions: Option<BTreeMap<String, &'t RawValue>>,
}

#[derive(Deserialize)]
struct SessionBody {
    first_message_index: i64,
    forwarded_count: i64,
    is_verified: bool,
    session_data: ObjectText,
}

/// The key of one session.
fn read_session(text: &[u8]) -> Result<KeyBackupData> {
    let SessionBody { first_message_index, forwarded_count, is_verified, session_data } = read_object(text)?;
    let fits = |number| (0..=INTEGER_MAX).contains(&number);
    if !fits(first_message_index) || !fits(forwarded_count) {
        return Err(Error::bad_json("A key's index and count are integers between 0 and 2^53 - 1"));
    }
    Ok(KeyBackupData { first_message_index, forwarded_count, is_verified, session_data })
}

/// The keys of a room, beside those that there are.
fn read_sessions(into: &mut Vec<NewSession>, room: &RoomId, text: &[u8]) -> Result<()> {
    let body: SessionsBody<'_> = read_object(text)?;
    for (session_id, data) in body.sessions.ok_or_else(|| Error::missing_param("Missing sessions"))? {
        if into.len() >= SESSIONS_MAX {
            return Err(Error::new(ErrCode::TooLarge, "These are too many keys at once"));
        }
        let data = read_session(data.get().as_bytes())?;
        into.push(NewSession { room_id: room.clone(), session_id, data });
    }
    Ok(())
}

fn version_reply(backup: &KeyBackup) -> Result<Reply> {
    let KeyBackupState { etag, count } = KeyBackupState::of(backup);
    let mut text = serde_json::to_vec(&json!({
        "algorithm": backup.algorithm, "count": count, "etag": etag, "version": backup.version.to_string(),
    }))
    .map_err(Error::internal)?;
    text.pop();
    text.extend_from_slice(b",\"auth_data\":");
    text.extend_from_slice(backup.auth_data.as_bytes());
    text.push(b'}');
    Ok(Reply::raw_json(text))
}

fn restore_reply(restore: KeyRestore) -> Reply {
    match restore.rest {
        None => Reply::raw_json(restore.text),
        Some(rest) => {
            Reply::unmeasured("application/json", Box::new(std::io::Cursor::new(restore.text).chain(rest)))
        }
    }
}

/// `POST /_matrix/client/v3/room_keys/version`.
pub fn create_version(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let backup = request.json::<VersionBody>()?.into_backup()?;
    let version = hs.devices().create_key_backup(&requester.user_id, backup)?;
    Ok(Reply::json(&json!({ "version": version })))
}

/// `GET /_matrix/client/v3/room_keys/version`.
pub fn current_version(hs: &Arc<Homeserver>, _request: &Request, requester: &Requester) -> Result<Reply> {
    version_reply(&hs.devices().key_backup(&requester.user_id, None)?)
}

/// `GET /_matrix/client/v3/room_keys/version/{version}`.
pub fn version(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    version_reply(&hs.devices().key_backup(&requester.user_id, Some(request.param("version")))?)
}

/// `PUT /_matrix/client/v3/room_keys/version/{version}`.
pub fn update_version(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let version = request.param("version");
    let body: VersionBody = request.json()?;
    if body.version.as_deref().is_some_and(|named| named != version) {
        return Err(Error::invalid_param("The version in the body is not that of the path"));
    }
    hs.devices().update_key_backup(&requester.user_id, version, body.into_backup()?)?;
    Ok(Reply::empty())
}

/// `DELETE /_matrix/client/v3/room_keys/version/{version}`.
pub fn delete_version(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    hs.devices().delete_key_backup(&requester.user_id, request.param("version"))?;
    Ok(Reply::empty())
}

/// `PUT /_matrix/client/v3/room_keys/keys?version=…`.
pub fn put_all(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let body: RoomsBody<'_> = read_object(request.body())?;
    let mut sessions = Vec::new();
    for (room, text) in body.rooms.ok_or_else(|| Error::missing_param("Missing rooms"))? {
        read_sessions(&mut sessions, &RoomId::parse(&room)?, text.get().as_bytes())?;
    }
    put(hs, request, requester, sessions)
}

/// `PUT /_matrix/client/v3/room_keys/keys/{roomId}?version=…`.
pub fn put_of_room(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let mut sessions = Vec::new();
    read_sessions(&mut sessions, &request.room_id()?, request.body())?;
    put(hs, request, requester, sessions)
}

/// `PUT /_matrix/client/v3/room_keys/keys/{roomId}/{sessionId}?version=…`.
pub fn put_one(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let (room_id, session_id) = (request.room_id()?, request.param("sessionId").to_owned());
    let session = NewSession { room_id, session_id, data: read_session(request.body())? };
    put(hs, request, requester, vec![session])
}

fn put(
    hs: &Arc<Homeserver>,
    request: &Request,
    requester: &Requester,
    sessions: Vec<NewSession>,
) -> Result<Reply> {
    let version = request.required_query("version")?;
    reply(&hs.devices().back_up_sessions(&requester.user_id, version, sessions)?)
}

/// `GET /_matrix/client/v3/room_keys/keys?version=…`.
pub fn get_all(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let version = request.required_query("version")?;
    Ok(restore_reply(hs.devices().restore_key_backup(hs, &requester.user_id, version, None)?))
}

/// `GET /_matrix/client/v3/room_keys/keys/{roomId}?version=…`.
pub fn get_of_room(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let (version, room) = (request.required_query("version")?, request.room_id()?);
    Ok(restore_reply(hs.devices().restore_key_backup(hs, &requester.user_id, version, Some(room))?))
}

/// `GET /_matrix/client/v3/room_keys/keys/{roomId}/{sessionId}?version=…`.
pub fn get_one(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let (version, room) = (request.required_query("version")?, request.room_id()?);
    let session = request.param("sessionId");
    let session = hs.devices().backed_up_session(&requester.user_id, version, &room, session)?;
    Ok(Reply::raw_json(session_json(&session)?))
}

/// `DELETE /_matrix/client/v3/room_keys/keys?version=…`.
pub fn delete_all(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    delete(hs, request, requester, &SessionScope::All)
}

/// `DELETE /_matrix/client/v3/room_keys/keys/{roomId}?version=…`.
pub fn delete_of_room(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    delete(hs, request, requester, &SessionScope::Room(request.room_id()?))
}

/// `DELETE /_matrix/client/v3/room_keys/keys/{roomId}/{sessionId}?version=…`.
pub fn delete_one(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let session = request.param("sessionId").to_owned();
    delete(hs, request, requester, &SessionScope::Session(request.room_id()?, session))
}

fn delete(
    hs: &Arc<Homeserver>,
    request: &Request,
    requester: &Requester,
    scope: &SessionScope,
) -> Result<Reply> {
    let version = request.required_query("version")?;
    reply(&hs.devices().delete_backed_up_sessions(&requester.user_id, version, scope)?)
}
