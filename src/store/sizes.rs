//! What rooms and users take, for whoever runs the server.

use std::collections::HashMap;

use rusqlite::{OptionalExtension, Row, params};

use super::{Db, RoomKey};
use crate::error::Result;
use crate::order;

/// Of more events than this only so many are looked at, evenly among all.
const EVENTS_LOOKED_AT: i64 = 4000;

/// A room and what its events take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoomSize {
    /// The room.
    pub room: RoomKey,
    /// How many events of it there are.
    pub events: u64,
    /// How many bytes these have.
    pub bytes: u64,
}

/// How many files, and how many bytes.
pub type FilesSize = (u64, u64);

/// A number that is not negative.
pub(in crate::store) fn count(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    Ok(row.get::<_, i64>(column)?.max(0).unsigned_abs())
}

impl Db<'_> {
    /// The rooms whose events take most, the largest first, so many at most. Whether that was reckoned from some of the events.
    pub fn largest_rooms(&self, most: usize) -> Result<(Vec<RoomSize>, bool)> {
        let ends = "SELECT coalesce(min(event_key), 0), coalesce(max(event_key), -1) FROM events";
        let (first, last): (i64, i64) =
            self.conn().prepare_cached(ends)?.query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let all = last - first + 1;
        let looked_at = all.min(EVENTS_LOOKED_AT);
        let mut rooms: HashMap<RoomKey, (u64, u64)> = HashMap::new();
        // The length of a value stands at the head of its row.
        let mut look = self.conn().prepare_cached(
            "SELECT room_key, length(json) FROM events WHERE event_key BETWEEN ?1 AND ?2 ORDER BY event_key LIMIT 1",
        )?;
        for n in 0..looked_at {
            let [at, next] = [n, n + 1].map(|n| first + all * n / looked_at);
            let found: Option<(RoomKey, u64)> =
                look.query_row([at, next - 1], |row| Ok((row.get(0)?, count(row, 1)?))).optional()?;
            if let Some((room, bytes)) = found {
                let of_room = rooms.entry(room).or_default();
                *of_room = (of_room.0 + 1, of_room.1 + bytes);
            }
        }
        let scaled =
            |number: u64| (i128::from(number) * i128::from(all) / i128::from(looked_at.max(1))) as u64;
        let mut sizes: Vec<RoomSize> = rooms
            .into_iter()
            .map(|(room, (events, bytes))| RoomSize { room, events: scaled(events), bytes: scaled(bytes) })
            .collect();
        order::sort_by_key(&mut sizes, |size| (std::cmp::Reverse(size.bytes), size.room));
        sizes.truncate(most);
        Ok((sizes, looked_at < all))
    }

    /// Local users by what they uploaded, the most first, so many at most.
    pub fn media_shares(&self, most: usize) -> Result<Vec<(String, FilesSize)>> {
        self.rows(
            "SELECT owner, files, bytes FROM media_shares WHERE owner <> '' AND files > 0 ORDER BY bytes DESC, owner LIMIT ?1",
            params![most as i64],
            |row| Ok((row.get(0)?, (count(row, 1)?, count(row, 2)?))),
        )
    }

    /// What all local users uploaded, and what was fetched from elsewhere.
    pub fn media_sums(&self) -> Result<(FilesSize, FilesSize)> {
        let sums = "SELECT coalesce(sum(files) FILTER (WHERE owner <> ''), 0), coalesce(sum(bytes) FILTER (WHERE owner <> ''), 0),
                           coalesce(sum(files) FILTER (WHERE owner = ''), 0), coalesce(sum(bytes) FILTER (WHERE owner = ''), 0)
                    FROM media_shares";
        Ok(self
            .conn()
            .prepare_cached(sums)?
            .query_row([], |row| Ok(((count(row, 0)?, count(row, 1)?), (count(row, 2)?, count(row, 3)?))))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::in_memory;

    #[test]
    fn the_largest_rooms_are_found_among_few_events_and_among_many() {
        for (rounds, are_estimates) in [(10, false), (3000, true)] {
            let store = in_memory("us.example");
            store
                .write(move |tx| {
                    let rooms = "INSERT INTO rooms (room_key, room_id, version) VALUES (1, 'a', '11'), (2, 'b', '11')";
                    tx.conn().execute(rooms, [])?;
                    for n in 0..rounds * 4 {
                        // Of each four events three are small and the first room's, one is large and the second's.
                        let (room, bytes) = if n % 4 < 3 { (1, 100) } else { (2, 1000) };
                        tx.conn().execute(
                            "INSERT INTO events (room_key, event_id, depth, origin_server_ts, status, json)
                             VALUES (?1, ?2, 0, 0, 0, zeroblob(?3))",
                            params![room, n.to_string(), bytes],
                        )?;
                    }
                    Ok(())
                })
                .unwrap();
            let found = store.read(|db| db.largest_rooms(5)).unwrap();
            let rounds = u64::try_from(rounds).unwrap();
            let (second, first) = (
                RoomSize { room: 2, events: rounds, bytes: rounds * 1000 },
                RoomSize { room: 1, events: rounds * 3, bytes: rounds * 300 },
            );
            assert_eq!(found.1, are_estimates);
            for (found, right) in found.0.iter().zip([second, first]) {
                assert_eq!(found.room, right.room, "{found:?}");
                assert!(found.bytes.abs_diff(right.bytes) <= right.bytes / 5, "{found:?} {right:?}");
                assert!(found.events.abs_diff(right.events) <= right.events / 5, "{found:?} {right:?}");
            }
            assert_eq!(store.read(|db| db.largest_rooms(1)).unwrap().0.len(), 1);
        }
        assert_eq!(in_memory("us.example").read(|db| db.largest_rooms(5)).unwrap(), (Vec::new(), false));
    }
}
