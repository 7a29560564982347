//! A large room on a scripted peer: members of many servers that exist no more, whose keys only the peer still has. All
//! is signed before anybody asks.

use std::sync::Arc;

use doorstep::internals::Reply;
use doorstep::protocol::signatures::sign::{self, SigningKey};
use doorstep::protocol::{Pdu, ServerName, UserId, handshake};
use rayon::prelude::*;
use serde_json::{Map, Value, json};

use super::peer::{FakeRoom, Peer, now_ms};

/// A server that is gone.
pub struct Gone {
    /// Its name: a port of this machine where nobody listens.
    pub name: ServerName,
    /// Its key.
    pub key: SigningKey,
}

/// The room, and what is told of it.
pub struct Crowd {
    /// The room; its state has what is not a member of the crowd.
    pub room: FakeRoom,
    /// The servers of the members.
    pub servers: Vec<Gone>,
    /// The members' joins.
    pub members: Vec<Pdu>,
}

impl Crowd {
    /// A public room with so many members, spread over so many servers.
    pub fn new(peer: &Peer, version: &str, members: usize, servers: usize) -> Self {
        let room = FakeRoom::new(peer, version, "public");
        let servers: Vec<Gone> = (0..servers).map(Gone::new).collect();
        let join = |number: usize| room_member(&room, &servers[number % servers.len()], number);
        let members = (0..members).into_par_iter().map(join).collect();
        Self { room, servers, members }
    }

    /// The crowd's member of this number.
    pub fn member(&self, number: usize) -> UserId {
        member(&self.servers[number % self.servers.len()], number)
    }

    /// The room's whole state, as the bytes of a JSON array.
    fn state(&self) -> Vec<u8> {
        let mut out = b"[".to_vec();
        for event in self.room.state.values().chain(&self.members) {
            if out.len() > 1 {
                out.push(b',');
            }
            out.extend_from_slice(event.json());
        }
        out.push(b']');
        out
    }

    /// The answer to `send_join`, whole. (The peer does not know the wish to do without members.)
    pub fn join_answer(&self) -> Vec<u8> {
        let chain: Vec<Value> = self.room.state.values().map(|p| Value::Object(p.to_object())).collect();
        let chain = serde_json::to_vec(&chain).expect("JSON");
        let (head, middle): (&[u8], &[u8]) = (b"{\"members_omitted\":false,\"auth_chain\":", b",\"state\":");
        [head, &chain, middle, &self.state(), b"}"].concat()
    }

    /// Has the peer answer all that is asked of a resident server, and of a notary.
    pub fn serve(&self, peer: &Peer) {
        let answer: Arc<[u8]> = self.join_answer().into();
        peer.answer("/send_join/", move |_| Reply::raw_json(answer.to_vec()));
        let template = self.room.template("@nobody:localhost", "join");
        peer.answer("/make_join/", move |asked| {
            let path = asked.target.split('?').next().unwrap_or_default();
            let user = decode(path.rsplit('/').next().unwrap_or_default());
            let mut template = template.clone();
            template["event"]["sender"] = json!(user);
            template["event"]["state_key"] = json!(user);
            Reply::json(&template)
        });
        let ids: Vec<Value> = self.room.state.values().map(|p| json!(p.event_id())).collect();
        let all: Vec<Value> =
            ids.iter().cloned().chain(self.members.iter().map(|p| json!(p.event_id()))).collect();
        peer.answer_json("/state_ids/", 200, json!({ "auth_chain_ids": ids, "pdu_ids": all }));
        let known: Vec<Pdu> = self.room.state.values().chain(&self.members).cloned().collect();
        peer.answer("/v1/event/", move |asked| {
            let id = decode(asked.target.rsplit('/').next().unwrap_or_default());
            match known.iter().find(|p| p.event_id().as_str() == id) {
                Some(event) => Reply::json(&json!({ "pdus": [event.to_object()] })),
                None => Reply::json_status(404, &json!({ "errcode": "M_NOT_FOUND", "error": "none" })),
            }
        });
        peer.answer_json("/backfill/", 200, json!({ "pdus": [] }));
        peer.answer_json("/get_missing_events/", 200, json!({ "events": [] }));
        peer.take_transactions();
        self.serve_keys(peer);
    }

    /// What the servers said of their keys, signed by them and by the peer as their notary.
    pub fn statements(&self, peer: &Peer) -> Vec<Map<String, Value>> {
        let signed = self.servers.par_iter().map(|server| {
            let mut statement = server.statement();
            peer.sign_object(&mut statement);
            statement
        });
        signed.collect()
    }

    fn serve_keys(&self, peer: &Peer) {
        let names = self.servers.iter().map(|server| server.name.as_str().to_owned());
        let statements: Vec<(String, Value)> =
            names.zip(self.statements(peer).into_iter().map(Value::Object)).collect();
        peer.answer("/_matrix/key/v2/query", move |asked| {
            let wanted = asked.body["server_keys"].as_object().cloned().unwrap_or_default();
            let told = statements.iter().filter(|(server, _)| wanted.contains_key(server));
            let told: Vec<&Value> = told.map(|(_, statement)| statement).collect();
            Reply::json(&json!({ "server_keys": told }))
        });
    }
}

impl Gone {
    fn new(number: usize) -> Self {
        let mut seed = [3; 32];
        seed[..8].copy_from_slice(&(number as u64).to_be_bytes());
        // Low ports, which no test is ever given.
        let name = ServerName::parse(&format!("localhost:{}", number + 1)).expect("a server name");
        Self { name, key: SigningKey::generate(seed, "gone") }
    }

    /// What it said of its keys when it was there.
    pub fn statement(&self) -> Map<String, Value> {
        let statement = json!({
            "server_name": self.name, "valid_until_ts": now_ms() + 86_400_000, "old_verify_keys": {},
            "verify_keys": { self.key.key_id(): { "key": self.key.public_base64() } },
        });
        let mut statement = statement.as_object().expect("an object").clone();
        sign::sign_json(&mut statement, &self.name, &self.key);
        statement
    }
}

fn member(server: &Gone, number: usize) -> UserId {
    UserId::parse(&format!("@member{number}:{}", server.name)).expect("a user id")
}

/// The join of a member, as long as they are in life.
fn room_member(room: &FakeRoom, server: &Gone, number: usize) -> Pdu {
    let user = member(server, number);
    let content = json!({
        "membership": "join", "displayname": format!("Member number {number}"),
        "avatar_url": format!("mxc://example.org/{number:024}"),
    });
    let event = room.unsigned("m.room.member", user.as_str(), &user, content);
    handshake::sign_new_event(event, &server.name, &server.key, room.version).expect("an event")
}

/// Undoes the percent-encoding of a path segment.
fn decode(segment: &str) -> String {
    let mut bytes = segment.bytes();
    let mut out = Vec::new();
    while let Some(byte) = bytes.next() {
        let hex = |digit: Option<u8>| char::from(digit.unwrap_or(b'0')).to_digit(16).unwrap_or(0);
        out.push(match byte {
            b'%' => u8::try_from(hex(bytes.next()) * 16 + hex(bytes.next())).unwrap_or(b'?'),
            byte => byte,
        });
    }
    String::from_utf8_lossy(&out).into_owned()
}
