//! A room in one answer: its state and its last messages, for who looks in from outside ("Room Previews"). Its parts are
//! those of `/messages` and `/state`, and so are those who may see them.

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::protocol::RoomId;
use crate::protocol::filter::EventFilter;
use crate::protocol::json::parse_object;
use crate::service::rooms::Rooms;
use crate::service::rooms::client_format::{ClientFormat, Json, written};
use crate::service::rooms::messages::MessagesRequest;

impl Rooms<'_> {
    /// `GET /rooms/{roomId}/initialSync`: a JSON object. Errors: 403 `M_FORBIDDEN` for who is not and was not in the room, if
    /// it is not for everybody to read.
    pub fn room_initial_sync(
        &self,
        format: &ClientFormat<'_>,
        room_id: &RoomId,
        limit: usize,
    ) -> Result<Vec<u8>> {
        let last =
            MessagesRequest { from: None, to: None, backwards: true, limit, filter: EventFilter::default() };
        let mut page = self.messages(format, room_id, &last)?;
        page.chunk.reverse();
        let (earlier, later) = (page.end, page.start);
        let state = written(self.room_state(format, room_id, usize::MAX)?.unwrap_or_default())?;
        let (membership, published, account_data) = self.store.read(|db| {
            let room = db.known_room(room_id)?;
            let data = db.account_data_of_room_since(format.user, room_id, -1)?;
            Ok((db.membership(room.key, format.user)?, db.is_published(room_id)?, data))
        })?;
        let account_data: Vec<Value> = account_data
            .into_iter()
            .filter_map(|data| {
                let content = parse_object(data.content.as_bytes()).ok()?;
                Some(json!({ "type": data.event_type, "content": content }))
            })
            .collect();
        let answer = RoomInitialSync {
            room_id,
            membership: membership.map(|membership| membership.as_str()),
            messages: Chunk { start: earlier, end: later, chunk: page.chunk },
            state,
            visibility: if published { "public" } else { "private" },
            account_data,
        };
        serde_json::to_vec(&answer).map_err(Error::internal)
    }
}

#[derive(serde::Serialize)]
struct RoomInitialSync<'a> {
    room_id: &'a RoomId,
    #[serde(skip_serializing_if = "Option::is_none")]
    membership: Option<&'static str>,
    messages: Chunk,
    state: Json,
    visibility: &'static str,
    account_data: Vec<Value>,
}

/// Messages, the oldest first.
#[derive(serde::Serialize)]
struct Chunk {
    #[serde(skip_serializing_if = "Option::is_none")]
    start: Option<String>,
    end: String,
    chunk: Vec<Json>,
}
