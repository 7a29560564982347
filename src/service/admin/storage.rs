//! Where the bytes are: tables, rooms, media. Looked up when somebody asks, within a bound, and never by the writer.

use serde::Serialize;

use super::Admin;
use super::knocks::room_name;
use crate::config::Data;
use crate::error::Result;
use crate::protocol::RoomId;
use crate::service::media::files;
use crate::store::Room;
use crate::store::engine::space::DatabaseSpace;

/// So many tables, rooms and users are told, the largest first.
const TOLD_MAX: usize = 20;

/// Where the bytes are.
#[derive(Debug, Clone, Serialize)]
pub struct Storage {
    /// The database.
    pub database: DatabaseBytes,
    /// Rooms by what their events take, the largest first.
    pub rooms: Vec<RoomBytes>,
    /// Whether these were reckoned from some of the events, because there are many.
    pub rooms_are_estimates: bool,
    /// States of forked rooms that nothing needs any more: they go by themselves within a few hours.
    pub spare_states: SpareStatesBytes,
    /// The files of media.
    pub media: MediaBytes,
    /// How much of the disk is free, where that can be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_free_bytes: Option<u64>,
}

/// What the database takes.
#[derive(Debug, Clone, Serialize)]
pub struct DatabaseBytes {
    /// All of it, without the log.
    pub bytes: u64,
    /// Its write-ahead log.
    pub log_bytes: u64,
    /// What is free in it and used again, or given back by `doorstep vacuum`.
    pub free_bytes: u64,
    /// Tables, the largest first.
    pub tables: Vec<TableBytes>,
    /// All other tables.
    pub other_tables_bytes: u64,
    /// What of long rows does not fit into a page, of whatever table.
    pub long_rows_bytes: u64,
}

/// What a table takes.
#[derive(Debug, Clone, Serialize)]
pub struct TableBytes {
    /// Its name, as in the schema.
    pub name: String,
    /// Its rows.
    pub bytes: u64,
    /// Its indexes.
    pub index_bytes: u64,
}

/// What a room takes.
#[derive(Debug, Clone, Serialize)]
pub struct RoomBytes {
    /// The room.
    pub room_id: RoomId,
    /// What it is called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// How many events of it there are.
    pub events: u64,
    /// What these are in bytes, without indexes and state.
    pub bytes: u64,
    /// How many are joined.
    pub joined_members: u64,
}

/// What spare states take.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct SpareStatesBytes {
    /// How many there are, up to a bound.
    pub states: u64,
    /// What they come to.
    pub bytes: u64,
}

/// What the files of media take. A small one counts for what the disk gives it.
#[derive(Debug, Clone, Serialize)]
pub struct MediaBytes {
    /// What local users uploaded.
    pub local: FilesBytes,
    /// What was fetched from elsewhere and can be fetched again.
    pub cached: FilesBytes,
    /// Local users by what they uploaded, the most first.
    pub users: Vec<UserBytes>,
}

/// Some files.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct FilesBytes {
    /// How many.
    pub files: u64,
    /// What they come to.
    pub bytes: u64,
}

/// The files of a user.
#[derive(Debug, Clone, Serialize)]
pub struct UserBytes {
    /// The user.
    pub user_id: String,
    /// Their files.
    #[serde(flatten)]
    pub files: FilesBytes,
}

impl Admin<'_> {
    /// Where the bytes are. What rooms take is reckoned from a few thousand events where there are more.
    pub fn storage(&self) -> Result<Storage> {
        let DatabaseSpace { bytes, log_bytes, free_bytes, mut tables, long_rows_bytes } =
            self.store.space()?;
        let others = tables.split_off(tables.len().min(TOLD_MAX));
        let other_tables_bytes = others.iter().map(|table| table.bytes + table.index_bytes).sum();
        let tables = tables
            .into_iter()
            .map(|table| TableBytes { name: table.name, bytes: table.bytes, index_bytes: table.index_bytes })
            .collect();
        let database =
            DatabaseBytes { bytes, log_bytes, free_bytes, tables, other_tables_bytes, long_rows_bytes };
        let (rooms, rooms_are_estimates) = self.store.read(|db| {
            let (largest, are_estimates) = db.largest_rooms(TOLD_MAX)?;
            let mut rooms = Vec::new();
            for found in largest {
                let room = db.room_by_key(found.room)?;
                let name = room_name(db, &room)?;
                let (events, bytes) = (found.events, found.bytes);
                let Room { room_id, joined: joined_members, .. } = room;
                rooms.push(RoomBytes { room_id, name, events, bytes, joined_members });
            }
            Ok((rooms, are_estimates))
        })?;
        let (states, bytes) = self.store.read(|db| db.spare_states_sum())?;
        let spare_states = SpareStatesBytes { states, bytes };
        let media = self.store.read(|db| {
            let of = |(files, bytes): (u64, u64)| FilesBytes { files, bytes };
            let users = db.media_shares(TOLD_MAX)?;
            let users = users.into_iter().map(|(user_id, share)| UserBytes { user_id, files: of(share) });
            let (local, cached) = db.media_sums()?;
            Ok(MediaBytes { local: of(local), cached: of(cached), users: users.collect() })
        })?;
        let disk_free_bytes = match &self.config.data {
            Data::Folder(folder) => files::free_bytes(folder),
            Data::Memory => None,
        };
        Ok(Storage { database, rooms, rooms_are_estimates, spare_states, media, disk_free_bytes })
    }
}
