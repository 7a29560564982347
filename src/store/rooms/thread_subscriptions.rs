//! Threads that local users have subscribed to, or unsubscribed from (MSC4306), and who of them subscribes at all: what is said
//! in threads is something else to these than to the others.

use std::collections::HashSet;
use std::rc::Rc;

use rusqlite::{OptionalExtension, Row, params};

use crate::error::Result;
use crate::protocol::{EventId, RoomId, UserId};
use crate::store::{Db, RoomKey, Tx};

/// Threads of one user of which it is known whether they are subscribed to them. A client subscribes to each thread that its user
/// writes in or is mentioned in: these are years of them.
const SUBSCRIPTIONS_MAX: i64 = 10_000;

/// What a thread is to a user who has subscribed to it at some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subscription {
    /// Not subscribed to any more.
    Ended,
    /// Subscribed to by a client, because of an event that concerns the user.
    Automatic,
    /// Subscribed to as the user wished.
    Manual,
}

impl Subscription {
    fn number(self) -> i64 {
        match self {
            Self::Ended => 0,
            Self::Automatic => 1,
            Self::Manual => 2,
        }
    }

    fn of_number(number: i64) -> Self {
        match number {
            0 => Self::Ended,
            1 => Self::Automatic,
            _ => Self::Manual,
        }
    }
}

/// That a thread became something else to a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscriptionChange {
    /// When that was.
    pub stream: i64,
    /// The thread's room.
    pub room_id: RoomId,
    /// Its root.
    pub root: EventId,
    /// What it is since then.
    pub subscription: Subscription,
}

fn change_of(row: &Row<'_>) -> Result<SubscriptionChange> {
    Ok(SubscriptionChange {
        stream: row.get(0)?,
        room_id: RoomId::parse(&row.get::<_, String>(1)?)?,
        root: EventId::parse(&row.get::<_, String>(2)?)?,
        subscription: Subscription::of_number(row.get(3)?),
    })
}

const CHANGES: &str = "SELECT t.stream, r.room_id, t.root, t.subscription FROM thread_subscriptions t
     CROSS JOIN memberships m ON m.room_key = t.room_key AND m.user_id = t.user_id AND m.membership = 'join'
     CROSS JOIN rooms r ON r.room_key = t.room_key WHERE t.user_id = ?1";

/// Those who follow threads, whichever these are.
pub(in crate::store) type ThreadFollowers = Rc<HashSet<UserId>>;

/// Each user by a look-up of their own: most have many rows.
const FOLLOWERS: &str = "WITH RECURSIVE followers (user_id) AS (
       SELECT min(user_id) FROM thread_subscriptions
       UNION ALL
       SELECT (SELECT min(t.user_id) FROM thread_subscriptions t WHERE t.user_id > f.user_id)
       FROM followers f WHERE f.user_id IS NOT NULL)
     SELECT user_id FROM followers WHERE user_id IS NOT NULL";

impl Db<'_> {
    /// What a thread is to a user, and since when. None: they never subscribed to it.
    pub fn thread_subscription(
        &self,
        user: &UserId,
        room: RoomKey,
        root: &EventId,
    ) -> Result<Option<(Subscription, i64)>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT subscription, stream FROM thread_subscriptions
             WHERE user_id = ?1 AND room_key = ?2 AND root = ?3",
        )?;
        let found = statement.query_row(params![user.as_str(), room, root.as_str()], |row| {
            Ok((Subscription::of_number(row.get(0)?), row.get(1)?))
        });
        Ok(found.optional()?)
    }

    /// What became something else to a user after a position and up to another, in the rooms that they are joined to, the latest
    /// first, so many at most. Of rooms that they came into after the first position everything, whenever that was: nothing was
    /// told of it while they were out.
    pub fn thread_subscription_changes(
        &self,
        user: &UserId,
        (after, upto): (i64, i64),
        limit: usize,
    ) -> Result<Vec<SubscriptionChange>> {
        let came_in = "SELECT 1 FROM memberships WHERE user_id = ?1 AND local = 1 AND stream > ?2 AND joined_since > ?2";
        let came_in = self.conn().prepare_cached(came_in)?.exists(params![user.as_str(), after])?;
        let wanted = match came_in {
            false => "t.stream > ?2",
            true => "(t.stream > ?2 OR m.joined_since > ?2)",
        };
        let mut statement = self.conn().prepare_cached(&format!(
            "{CHANGES} AND {wanted} AND t.stream <= ?3 ORDER BY t.stream DESC LIMIT ?4"
        ))?;
        let mut rows = statement.query(params![user.as_str(), after, upto, limit as i64])?;
        let mut changes = Vec::new();
        while let Some(row) = rows.next()? {
            changes.push(change_of(row)?);
        }
        Ok(changes)
    }

    /// Who is subscribed to a thread.
    pub(in crate::store) fn thread_subscribers(&self, room: RoomKey, root: &str) -> Result<HashSet<UserId>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT user_id FROM thread_subscriptions INDEXED BY thread_subscriptions_by_thread
             WHERE room_key = ?1 AND root = ?2 AND subscription <> 0",
        )?;
        let rows = statement.query_map(params![room, root], |row| row.get::<_, String>(0))?;
        rows.map(|user| UserId::parse(&user?)).collect()
    }

    /// The users of whom it is known of any thread whether they are subscribed to it.
    pub(in crate::store) fn thread_followers(&self) -> Result<ThreadFollowers> {
        if let Some(known) = self.recall(|cache| cache.thread_followers()) {
            return Ok(known);
        }
        let followers = self.stored_thread_followers()?;
        self.remember(|cache| cache.keep_thread_followers(followers.clone()));
        Ok(followers)
    }

    pub(in crate::store) fn stored_thread_followers(&self) -> Result<ThreadFollowers> {
        let mut statement = self.conn().prepare_cached(FOLLOWERS)?;
        let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
        rows.map(|user| UserId::parse(&user?)).collect::<Result<_>>().map(Rc::new)
    }
}

impl Tx<'_> {
    /// Makes a thread something else to a user, and wakes their clients.
    pub fn set_thread_subscription(
        &mut self,
        user: &UserId,
        (room, root): (RoomKey, &EventId),
        subscription: Subscription,
    ) -> Result<()> {
        if self.thread_subscription(user, room, root)?.is_none() {
            self.make_place_for_thread_subscription(user)?;
        }
        let stream = self.next_stream();
        self.execute(
            "INSERT OR REPLACE INTO thread_subscriptions (user_id, room_key, root, subscription, stream)
             VALUES (?1, ?2, ?3, ?4, ?5)",
            params![user.as_str(), room, root.as_str(), subscription.number(), stream],
        )?;
        self.remember(|cache| cache.add_thread_follower(user));
        self.wake_user(user);
        Ok(())
    }

    /// Of too many, that goes which is worth least: one that has ended, or the one that is oldest.
    fn make_place_for_thread_subscription(&mut self, user: &UserId) -> Result<()> {
        let count = "SELECT count(*) FROM thread_subscriptions WHERE user_id = ?1";
        let there: i64 = self.conn().prepare_cached(count)?.query_row([user.as_str()], |row| row.get(0))?;
        if there >= SUBSCRIPTIONS_MAX {
            self.execute(
                "DELETE FROM thread_subscriptions WHERE user_id = ?1 AND (room_key, root) = (
                   SELECT room_key, root FROM thread_subscriptions WHERE user_id = ?1
                   ORDER BY subscription <> 0, stream LIMIT 1)",
                params![user.as_str()],
            )?;
        }
        Ok(())
    }

    /// Forgets what threads were to a user: those of one room, or all.
    pub fn delete_thread_subscriptions(&mut self, user: &UserId, room: Option<RoomKey>) -> Result<()> {
        let gone = match room {
            Some(room) => self.execute(
                "DELETE FROM thread_subscriptions WHERE user_id = ?1 AND room_key = ?2",
                params![user.as_str(), room],
            )?,
            None => {
                self.execute("DELETE FROM thread_subscriptions WHERE user_id = ?1", params![user.as_str()])?
            }
        };
        if gone > 0 {
            self.remember(|cache| cache.forget_thread_followers());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::in_memory;

    fn root(number: i64) -> EventId {
        EventId::parse(&format!("$root{number:05}")).unwrap()
    }

    #[test]
    fn a_user_has_a_bounded_number_of_thread_subscriptions_and_of_more_the_oldest_go() {
        let store = in_memory("us.example");
        let [alice, bob] = ["@alice:us.example", "@bob:us.example"].map(|id| UserId::parse(id).unwrap());
        let (user, other) = (alice.clone(), bob.clone());
        let written = store.write(move |tx| {
            tx.set_thread_subscription(&other, (1, &root(0)), Subscription::Manual)?;
            for number in 0..SUBSCRIPTIONS_MAX {
                tx.set_thread_subscription(&user, (1, &root(number)), Subscription::Automatic)?;
            }
            tx.set_thread_subscription(&user, (1, &root(7)), Subscription::Ended)?;
            // What is there already takes no place; the first that does takes that of one that has ended.
            tx.set_thread_subscription(&user, (1, &root(0)), Subscription::Manual)?;
            tx.set_thread_subscription(&user, (2, &root(0)), Subscription::Manual)?;
            tx.set_thread_subscription(&user, (2, &root(1)), Subscription::Manual)
        });
        written.unwrap();
        let there = |user: &UserId, room: RoomKey, number: i64| {
            store.read(|db| Ok(db.thread_subscription(user, room, &root(number))?.is_some())).unwrap()
        };
        assert!(!there(&alice, 1, 7) && !there(&alice, 1, 1), "the ended one, and then the oldest");
        for (room, number) in [(1, 0), (1, 2), (1, SUBSCRIPTIONS_MAX - 1), (2, 0), (2, 1)] {
            assert!(there(&alice, room, number), "{room} {number}");
        }
        assert!(there(&bob, 1, 0), "everybody for themselves");
        let count = "SELECT count(*) FROM thread_subscriptions WHERE user_id = '@alice:us.example'";
        let count: i64 = store.read(|db| Ok(db.conn().query_row(count, [], |row| row.get(0))?)).unwrap();
        assert_eq!(count, SUBSCRIPTIONS_MAX);
    }

    #[test]
    fn who_follows_threads_is_known_as_they_come_and_go() {
        let store = in_memory("us.example");
        let users = ["@alice:us.example", "@bob:us.example", "@carol:us.example"];
        let [alice, bob, carol] = users.map(|id| UserId::parse(id).unwrap());
        let known = store.write(move |tx| {
            let mut known = vec![tx.thread_followers()?];
            for (user, number) in [(&bob, 1), (&bob, 2), (&alice, 1), (&carol, 3)] {
                tx.set_thread_subscription(user, (1, &root(number)), Subscription::Manual)?;
                known.push(tx.thread_followers()?);
            }
            assert_eq!(*tx.thread_followers()?, *tx.stored_thread_followers()?);
            tx.set_thread_subscription(&carol, (1, &root(3)), Subscription::Ended)?;
            known.push(tx.thread_followers()?);
            tx.delete_thread_subscriptions(&bob, Some(2))?;
            tx.delete_thread_subscriptions(&carol, Some(1))?;
            tx.delete_thread_subscriptions(&alice, None)?;
            known.push(tx.thread_followers()?);
            let subscribers = tx.thread_subscribers(1, root(1).as_str())?;
            Ok((
                known.iter().map(|followers| followers.len()).collect::<Vec<_>>(),
                subscribers == [bob].into(),
            ))
        });
        assert_eq!(known.unwrap(), (vec![0, 1, 1, 2, 3, 3, 1], true));
    }
}
