//! A room whose members are all on different servers, as a real joined one would have them, and what its database
//! holds, counted row by row.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;

use doorstep::Homeserver;
use doorstep::clock::Clock;
use doorstep::config::{Config, Data};
use doorstep::internals::Draft;
use doorstep::internals::ImportedRoom;
use doorstep::protocol::signatures::sign::SigningKey;
use doorstep::protocol::{RoomId, ServerName, UserId, VerifiedPdu, room_version};
use doorstep::testing::temporary_folder;
use serde_json::{Map, Value, json};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const US: &str = "@alice:here.example";

/// A homeserver that is in the room, without listeners: only its write side works.
pub struct WideRoom {
    hs: Option<Arc<Homeserver>>,
    folder: PathBuf,
    room: RoomId,
}

impl WideRoom {
    /// A room with a member on each of so many other servers, and one of ours.
    pub fn new(servers: usize) -> Result<WideRoom> {
        let folder = temporary_folder("wide-room");
        let mut config = Config::for_name(ServerName::parse("here.example")?);
        config.data = Data::Folder(folder.clone());
        config.durable = false;
        let hs = Homeserver::open(config, Clock::new())?;
        let mut state = State::new()?;
        for number in 0..servers {
            let user = format!("@user:server{number}.example");
            state.member(&user)?;
        }
        let join = state.event("m.room.member", US, US, json!({ "membership": "join" }), &[2, 3])?;
        let room = state.events[0].room_id().clone();
        hs.membership().import_room(
            ImportedRoom {
                version: room_version::default_version(),
                room_id: room.clone(),
                auth_chain: Vec::new(),
                state: state.events,
                join,
            },
            |_| Ok(()),
        )?;
        Ok(WideRoom { hs: Some(hs), folder, room })
    }

    fn hs(&self) -> Result<&Homeserver> {
        Ok(self.hs.as_deref().ok_or("the homeserver was closed")?)
    }

    /// Our user says something.
    pub fn say(&mut self, body: &str) -> Result<()> {
        let content = json!({ "msgtype": "m.text", "body": body });
        self.hs()?.events().send(Draft {
            room: self.room.clone(),
            sender: UserId::parse(US)?,
            event_type: "m.room.message".into(),
            state_key: None,
            content: object(content)?,
            redacts: None,
            origin_server_ts: None,
        })?;
        Ok(())
    }

    /// How many servers are in the room, ours among them.
    pub fn servers(&self) -> Result<usize> {
        Ok(self.hs()?.store.read(|db| Ok(db.resident_servers(db.known_room(&self.room)?.key)?.len()))?)
    }

    /// How many servers are owed anything.
    pub fn owed_servers(&self) -> Result<usize> {
        Ok(self.hs()?.store.read(|db| Ok(db.owed_servers()?.len()))?)
    }

    /// The rows of every table.
    pub fn rows(&self) -> Result<BTreeMap<String, i64>> {
        let database = rusqlite::Connection::open(self.folder.join("doorstep.db"))?;
        let mut tables = database.prepare("SELECT name FROM sqlite_schema WHERE type = 'table'")?;
        let tables = tables
            .query_map([], |row| row.get::<_, String>(0))?
            .collect::<std::result::Result<Vec<_>, _>>()?;
        let count = |table: String| {
            let rows =
                database.query_row(&format!("SELECT count(*) FROM \"{table}\""), [], |row| row.get(0))?;
            Ok((table, rows))
        };
        tables.into_iter().map(count).collect()
    }
}

impl Drop for WideRoom {
    fn drop(&mut self) {
        self.hs = None;
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// The room's state as its resident server would give it.
struct State {
    events: Vec<VerifiedPdu>,
    depth: i64,
}

impl State {
    fn new() -> Result<State> {
        let mut state = State { events: Vec::new(), depth: 0 };
        let owner = "@owner:there.example";
        let version = room_version::default_version();
        let create = json!({ "room_version": version.id });
        for (kind, key, content, auth) in [
            ("m.room.create", "", create, &[][..]),
            ("m.room.member", owner, json!({ "membership": "join" }), &[]),
            ("m.room.power_levels", "", json!({}), &[1]),
            ("m.room.join_rules", "", json!({ "join_rule": "public" }), &[1, 2]),
        ] {
            let event = state.event(kind, key, owner, content, auth)?;
            state.events.push(event);
        }
        Ok(state)
    }

    fn member(&mut self, user: &str) -> Result<()> {
        let event = self.event("m.room.member", user, user, json!({ "membership": "join" }), &[2, 3])?;
        self.events.push(event);
        Ok(())
    }

    fn event(
        &mut self,
        kind: &str,
        key: &str,
        sender: &str,
        content: Value,
        auth: &[usize],
    ) -> Result<VerifiedPdu> {
        self.depth += 1;
        let auth: Vec<&str> = auth.iter().map(|index| self.events[*index].event_id().as_str()).collect();
        let prev: Vec<&str> = self.events.last().iter().map(|event| event.event_id().as_str()).collect();
        let mut event = object(json!({
            "type": kind, "state_key": key, "sender": sender, "content": content, "prev_events": prev,
            "auth_events": auth, "depth": self.depth, "origin_server_ts": self.depth,
        }))?;
        if let Some(create) = self.events.first() {
            event.insert("room_id".into(), create.room_id().as_str().into());
        }
        // All servers of this room have one key.
        let key = SigningKey::generate([5; 32], "wide");
        let server = UserId::parse(sender)?.server();
        Ok(VerifiedPdu::seal(&event, &server, &key, room_version::default_version())?)
    }
}

fn object(value: Value) -> Result<Map<String, Value>> {
    match value {
        Value::Object(object) => Ok(object),
        _ => Err("not an object".into()),
    }
}
