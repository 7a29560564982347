//! Pushers: where users have what they are notified of sent, and how far each is with it.

use rusqlite::{OptionalExtension, Row, params};

use crate::clock::Millis;
use crate::error::{ErrCode, Error, Result};
use crate::protocol::UserId;
use crate::store::{Db, RoomKey, Tx};

/// Pushers of one user.
const PUSHERS_PER_USER_MAX: i64 = 100;

/// The row id of a pusher.
pub type PusherKey = i64;

/// What a client says of a pusher that it sets.
#[derive(Debug, Clone)]
pub struct NewPusher {
    /// Whose it is.
    pub user_id: UserId,
    /// The device that sets it, with which it goes.
    pub device_id: String,
    /// `app_id`.
    pub app_id: String,
    /// `pushkey`.
    pub pushkey: String,
    /// Whether anything is sent.
    pub enabled: bool,
    /// The rest of it as clients read it, a JSON object: names, `lang`, `profile_tag`, `data`.
    pub details: String,
}

/// How a pusher is set, beside what it is.
#[derive(Debug, Clone)]
pub struct PusherChange {
    /// Whether other users have none of this `app_id` and `pushkey` any more.
    pub alone: bool,
    /// Whether the client says that it is switched on or off (MSC3881), rather than that it is there.
    pub says_enabled: bool,
    /// The device whose it is, by what the client says.
    pub named_device: Option<String>,
}

/// A pusher, and how far it is.
#[derive(Debug, Clone)]
pub struct Pusher {
    /// Its row.
    pub key: PusherKey,
    /// What was set.
    pub set: NewPusher,
    /// When that was.
    pub set_ms: Millis,
    /// What the user was notified of up to this stream position was sent, or is not to be.
    pub cursor: i64,
    /// The number that the gateway was told last.
    pub badge: i64,
    /// How often it was tried in vain since something arrived.
    pub failures: u32,
    /// Not tried again before.
    pub retry_ms: Millis,
    /// While it fails: since when, and the stream position by then.
    pub failing_since: Option<(Millis, i64)>,
}

/// How an attempt failed.
#[derive(Debug, Clone, Copy)]
pub struct PusherFailure {
    /// See [`Pusher`].
    pub cursor: i64,
    /// See [`Pusher`].
    pub failures: u32,
    /// See [`Pusher`].
    pub retry_ms: Millis,
    /// See [`Pusher`].
    pub failing_since: (Millis, i64),
}

/// The bell of a room: its knocks are told at once, or after a while together.
#[derive(Debug, Clone, Copy)]
pub struct Bell {
    /// The room.
    pub room: RoomKey,
    /// Until when no further knock is told.
    pub until_ms: Millis,
    /// The stream position of the first one that waits for that.
    pub waiting: Option<i64>,
}

const PUSHER: &str =
    "SELECT pusher, user_id, device_id, app_id, pushkey, enabled, details, set_ms, cursor, badge,
    failures, retry_ms, failing_since_ms, failing_from FROM pushers";

fn pusher_of(row: &Row<'_>) -> Result<Pusher> {
    let failing = (row.get::<_, Option<Millis>>(12)?, row.get::<_, Option<i64>>(13)?);
    Ok(Pusher {
        key: row.get(0)?,
        set: NewPusher {
            user_id: UserId::parse(&row.get::<_, String>(1)?)?,
            device_id: row.get(2)?,
            app_id: row.get(3)?,
            pushkey: row.get(4)?,
            enabled: row.get(5)?,
            details: row.get(6)?,
        },
        set_ms: row.get(7)?,
        cursor: row.get(8)?,
        badge: row.get(9)?,
        failures: row.get(10)?,
        retry_ms: row.get(11)?,
        failing_since: failing.0.zip(failing.1),
    })
}

impl Db<'_> {
    /// The user's pushers, in the order of their making.
    pub fn pushers_of(&self, user: &UserId) -> Result<Vec<Pusher>> {
        let mut statement =
            self.conn().prepare_cached(&format!("{PUSHER} WHERE user_id = ?1 ORDER BY pusher"))?;
        let mut rows = statement.query([user.as_str()])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push(pusher_of(row)?);
        }
        Ok(found)
    }

    /// The pusher with this row.
    pub fn pusher(&self, key: PusherKey) -> Result<Option<Pusher>> {
        let mut statement = self.conn().prepare_cached(&format!("{PUSHER} WHERE pusher = ?1"))?;
        let mut rows = statement.query([key])?;
        rows.next()?.map(pusher_of).transpose()
    }

    /// Whether anybody has a pusher.
    pub fn is_anybody_notified(&self) -> Result<bool> {
        let mut statement = self.conn().prepare_cached("SELECT EXISTS (SELECT 1 FROM pushers)")?;
        Ok(statement.query_row([], |row| row.get(0))?)
    }

    /// All users who have pushers.
    pub fn users_with_pushers(&self) -> Result<Vec<UserId>> {
        let mut statement = self.conn().prepare_cached("SELECT DISTINCT user_id FROM pushers")?;
        let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
        rows.map(|user| UserId::parse(&user?)).collect()
    }

    /// A room's bell, as a pusher last rang it.
    pub fn bell(&self, pusher: PusherKey, room: RoomKey) -> Result<Option<Bell>> {
        let mut statement = self
            .conn()
            .prepare_cached("SELECT until_ms, waiting FROM bells WHERE pusher = ?1 AND room_key = ?2")?;
        let found = statement
            .query_row([pusher, room], |row| Ok(Bell { room, until_ms: row.get(0)?, waiting: row.get(1)? }));
        Ok(found.optional()?)
    }

    /// The bells of a pusher at which something waits.
    pub fn waiting_bells(&self, pusher: PusherKey) -> Result<Vec<Bell>> {
        self.rows(
            "SELECT room_key, until_ms, waiting FROM bells WHERE pusher = ?1 AND waiting IS NOT NULL",
            params![pusher],
            |row| Ok(Bell { room: row.get(0)?, until_ms: row.get(1)?, waiting: row.get(2)? }),
        )
    }

    /// When the last of the knocks was made that wait in a room and were made from this position on.
    pub fn last_knock_since(&self, room: RoomKey, stream: i64) -> Result<Option<i64>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT max(stream) FROM memberships WHERE room_key = ?1 AND membership = 'knock' AND stream >= ?2",
        )?;
        Ok(statement.query_row([room, stream], |row| row.get(0))?)
    }
}

impl Tx<'_> {
    /// Sets a pusher: makes it, from now on, or changes what it is. It becomes that of the device which sets it, unless that has
    /// only switched the pusher of another one on or off, or names whose it is. Errors: 403 `M_FORBIDDEN` if the user has too
    /// many.
    pub fn set_pusher(&mut self, new: &NewPusher, change: &PusherChange, now: Millis) -> Result<()> {
        if change.alone {
            self.execute(
                "DELETE FROM pushers WHERE app_id = ?1 AND pushkey = ?2 AND user_id <> ?3",
                params![new.app_id, new.pushkey, new.user_id.as_str()],
            )?;
        }
        let (user, stream) = (new.user_id.as_str(), self.stream());
        let stays: bool = self
            .conn()
            .prepare_cached(
                "SELECT device_id = ?4 OR (?5 AND enabled <> ?6 AND details = ?7) FROM pushers
                 WHERE user_id = ?1 AND app_id = ?2 AND pushkey = ?3",
            )?
            .query_row(
                params![
                    user,
                    new.app_id,
                    new.pushkey,
                    change.named_device.as_deref().unwrap_or_default(),
                    change.says_enabled,
                    new.enabled,
                    new.details
                ],
                |row| row.get(0),
            )
            .optional()?
            .unwrap_or(false);
        let device = (!stays).then_some(&new.device_id);
        let changed = self.execute(
            "UPDATE pushers SET device_id = coalesce(?4, device_id), details = ?6, set_ms = ?7, failures = 0,
               retry_ms = 0, cursor = CASE WHEN enabled OR NOT ?5 THEN cursor ELSE ?8 END, enabled = ?5
             WHERE user_id = ?1 AND app_id = ?2 AND pushkey = ?3",
            params![user, new.app_id, new.pushkey, device, new.enabled, new.details, now, stream],
        )?;
        if changed > 0 {
            return Ok(());
        }
        let count: i64 = self
            .conn()
            .prepare_cached("SELECT count(*) FROM pushers WHERE user_id = ?1")?
            .query_row([new.user_id.as_str()], |row| row.get(0))?;
        if count >= PUSHERS_PER_USER_MAX {
            return Err(Error::new(ErrCode::Forbidden, "You have too many pushers already: remove some"));
        }
        self.conn()
            .prepare_cached(
                "INSERT INTO pushers (user_id, app_id, pushkey, device_id, enabled, details, set_ms, cursor, badge,
                   failures, retry_ms)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, 0, 0, 0)",
            )?
            .execute(params![
                user,
                new.app_id,
                new.pushkey,
                new.device_id,
                new.enabled,
                new.details,
                now,
                stream
            ])?;
        Ok(())
    }

    /// Removes a user's pusher.
    pub fn delete_pusher(&mut self, user: &UserId, app_id: &str, pushkey: &str) -> Result<()> {
        self.execute(
            "DELETE FROM pushers WHERE user_id = ?1 AND app_id = ?2 AND pushkey = ?3",
            params![user.as_str(), app_id, pushkey],
        )?;
        Ok(())
    }

    /// Removes the pushers of a device: whoever set them has lost its token.
    pub(in crate::store) fn delete_pushers_of_device(&mut self, user: &UserId, device: &str) -> Result<()> {
        self.execute(
            "DELETE FROM pushers WHERE user_id = ?1 AND device_id = ?2",
            params![user.as_str(), device],
        )?;
        Ok(())
    }

    /// Removes a pusher that was refused by its gateway, unless it was set anew since.
    pub fn delete_rejected_pusher(&mut self, key: PusherKey, set_ms: Millis) -> Result<()> {
        self.execute("DELETE FROM pushers WHERE pusher = ?1 AND set_ms = ?2", params![key, set_ms])?;
        Ok(())
    }

    /// A gateway took what is up to this cursor, and knows this number.
    pub fn pusher_delivered(&mut self, key: PusherKey, cursor: i64, badge: i64) -> Result<()> {
        self.execute(
            "UPDATE pushers SET cursor = max(cursor, ?2), badge = ?3, failures = 0, retry_ms = 0,
             failing_since_ms = NULL, failing_from = NULL WHERE pusher = ?1",
            params![key, cursor, badge],
        )?;
        Ok(())
    }

    /// A gateway did not take what it was sent, which says nothing of a pusher that was set anew since.
    pub fn pusher_failed(&mut self, key: PusherKey, set_ms: Millis, failure: &PusherFailure) -> Result<()> {
        let PusherFailure { cursor, failures, retry_ms, failing_since: (since, from) } = failure;
        self.execute(
            "UPDATE pushers SET cursor = max(cursor, ?3), failures = ?4, retry_ms = ?5, failing_since_ms = ?6,
             failing_from = ?7 WHERE pusher = ?1 AND set_ms = ?2",
            params![key, set_ms, cursor, failures, retry_ms, since, from],
        )?;
        Ok(())
    }

    /// Nothing up to this cursor is to be sent.
    pub fn move_pusher_cursor(&mut self, key: PusherKey, cursor: i64) -> Result<()> {
        self.execute("UPDATE pushers SET cursor = max(cursor, ?2) WHERE pusher = ?1", params![key, cursor])?;
        Ok(())
    }

    /// Sets a room's bell. One at which nothing waits goes with the next that is set after its time.
    pub fn set_bell(&mut self, pusher: PusherKey, bell: &Bell, now: Millis) -> Result<()> {
        self.execute(
            "DELETE FROM bells WHERE pusher = ?1 AND waiting IS NULL AND until_ms < ?2",
            params![pusher, now],
        )?;
        // The pusher may have gone meanwhile.
        self.execute(
            "INSERT OR REPLACE INTO bells (pusher, room_key, until_ms, waiting)
             SELECT pusher, ?2, ?3, ?4 FROM pushers WHERE pusher = ?1",
            params![pusher, bell.room, bell.until_ms, bell.waiting],
        )?;
        Ok(())
    }
}
