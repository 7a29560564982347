//! The media that are shared in a room, as who runs the server looks at them: what its events say that can be read here.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::error::Result;
use crate::protocol::RoomId;
use crate::protocol::json::parse_object;
use crate::protocol::media::MxcUri;
use crate::service::accounts::moderation::Administrator;
use crate::service::admin::Admin;
use crate::store::Place;

/// So many events are read at once, and so many files are put into quarantine with one commit.
const EVENTS_AT_ONCE_MAX: usize = 500;
const FILES_AT_ONCE_MAX: usize = 64;

impl Admin<'_> {
    /// `GET /_synapse/admin/v1/room/{roomId}/media`: what the events of a room have as their file, its thumbnail, or their
    /// picture; in encrypted rooms nothing can be seen. None for a room that is not known here.
    pub fn media_of_room(&self, room: &RoomId) -> Result<BTreeSet<MxcUri>> {
        let mut found = BTreeSet::new();
        let Some(room) = self.store.read(|db| db.room(room))? else { return Ok(found) };
        let mut after = Place::START;
        loop {
            let events = self.store.read(|db| db.placed_events_after(room.key, after, EVENTS_AT_ONCE_MAX))?;
            let Some((last, _)) = events.last() else { return Ok(found) };
            after = *last;
            found.extend(events.iter().flat_map(|(_, json)| files_of(json)));
        }
    }

    /// `POST /_synapse/admin/v1/room/{roomId}/media/quarantine`: nobody is given these any more. How many were given out until
    /// then.
    pub fn quarantine_media_of_room(&self, by: &Administrator, room: &RoomId) -> Result<usize> {
        let (uris, now) = (Vec::from_iter(self.media_of_room(room)?), self.clock.now_ms());
        let mut quarantined = 0;
        for portion in uris.chunks(FILES_AT_ONCE_MAX) {
            let portion = portion.to_vec();
            quarantined += self.write_as(by, move |tx| {
                let mut new = 0;
                for uri in portion {
                    let is_already = tx.media(&uri, now)?.is_some_and(|row| row.quarantined);
                    // What others have and nobody has fetched yet is not to be fetched either.
                    if !is_already && tx.quarantine_media(&uri, true, now)? {
                        new += 1;
                    }
                }
                Ok(new)
            })?;
        }
        log::info!("{by} has quarantined {quarantined} files of the room {room}");
        Ok(quarantined)
    }
}

fn files_of(json: &[u8]) -> Vec<MxcUri> {
    const SCHEME: &[u8] = b"mxc://";
    if !json.windows(SCHEME.len()).any(|part| part == SCHEME) {
        return Vec::new();
    }
    let content = parse_object(json).ok().and_then(|mut event| event.remove("content"));
    let content = content.unwrap_or(Value::Null);
    let info = &content["info"];
    [&content["url"], &content["file"]["url"], &info["thumbnail_url"], &info["thumbnail_file"]["url"]]
        .into_iter()
        .filter_map(|uri| MxcUri::parse(uri.as_str()?).ok())
        .collect()
}
