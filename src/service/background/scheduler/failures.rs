//! What becomes of a job that came to nothing without anybody having written down what: the work could not even be read, or nothing
//! could be written. It is put off and counted like one that other servers do not answer, instead of coming up with its lease again
//! and again.

use std::fmt::Display;
use std::sync::Arc;

use super::{AFTER_FAILED_LOOK_MS, LEASE_MS, SchedulerShared};
use crate::clock::Millis;
use crate::error::{Error, Result};
use crate::service::Homeserver;
use crate::store::Tx;

/// Takes a job up: it is put off by a lease, and a thread of this name does it, which holds the `guard` meanwhile. Where there is no
/// thread it is due again soon, and what else is due is gone on with.
pub(super) fn take_up(
    shared: &Arc<SchedulerShared>,
    hs: &Arc<Homeserver>,
    (name, guard): (&str, impl Send + 'static),
    now: Millis,
    put_off: impl Fn(&mut Tx<'_>, Millis) -> Result<()> + Clone + Send + 'static,
    job: impl FnOnce(&Homeserver, Lease) + Send + 'static,
) -> Result<()> {
    let (until, lease, worker) = (now + LEASE_MS, put_off.clone(), hs.clone());
    hs.store.write(move |tx| lease(tx, until))?;
    let begun = shared.begin(name, move || {
        job(&worker, Lease { until });
        // In this order: who waits for the end of the work wants the homeserver back.
        drop(worker);
        drop(guard);
    });
    match begun {
        true => Ok(()),
        false => hs.store.write(move |tx| {
            tx.is_due(now + AFTER_FAILED_LOOK_MS);
            put_off(tx, now + AFTER_FAILED_LOOK_MS)
        }),
    }
}

/// A job that was taken up: until when it was put off by that, which nobody else says of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lease {
    until: Millis,
}

impl Lease {
    /// Says how a job has ended, and if it failed has it put off, unless it has been put off since it was taken up. `put_off` gets
    /// the time of the lease, and that of now.
    pub(super) fn end(
        self,
        hs: &Homeserver,
        outcome: Result<()>,
        (what, level): (&dyn Display, log::Level),
        put_off: impl FnOnce(&mut Tx<'_>, Millis, Millis) -> Result<()> + Send + 'static,
    ) {
        let Err(error) = outcome else { return };
        log::log!(error.level(level), "{what}: {error}");
        let now = hs.clock.now_ms();
        if let Err(error) = hs.store.write(move |tx| put_off(tx, self.until, now)) {
            log_unwritten(&error);
        }
    }
}

pub(super) fn log_unwritten(error: &Error) {
    log::log!(error.level(log::Level::Error), "nor put off: {error}");
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;
    use std::time::Duration;

    use super::*;
    use crate::clock::Clock;
    use crate::config::Config;
    use crate::protocol::ServerName;
    use crate::protocol::remote_membership::{ATTEMPTS_MAX, backoff_ms};
    use crate::testing::patience;

    const TABLES: [&str; 3] = ["owed_joins", "owed_invites", "remote_memberships"];

    /// How often each was tried, and when it is due again; none where there is no such row.
    fn found(hs: &Homeserver) -> [Option<(u32, Option<Millis>)>; 3] {
        TABLES.map(|table| {
            let row = format!("SELECT attempts, due_ms FROM {table}");
            let found = hs.store.read(|db| {
                let mut rows = db.conn().prepare(&row)?;
                let mut rows = rows.query([])?;
                Ok(rows
                    .next()?
                    .map(|row| Ok::<_, rusqlite::Error>((row.get(0)?, row.get(1)?)))
                    .transpose()?)
            });
            found.expect("readable")
        })
    }

    fn has_been_tried(hs: &Homeserver, times: u32) -> bool {
        found(hs).iter().all(|row| row.is_none_or(|(tried, _)| tried >= times))
    }

    #[allow(clippy::disallowed_methods, reason = "between two looks at a condition, never instead of one")]
    fn wait_until(mut holds: impl FnMut() -> bool) {
        let until = std::time::Instant::now() + patience(Duration::from_secs(30));
        while !holds() {
            assert!(std::time::Instant::now() < until, "it never came to pass");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// A server with a job of each kind that cannot be read.
    fn server_with_jobs(clock: &Clock) -> Arc<Homeserver> {
        let config = Config::for_name(ServerName::parse("here.example").expect("a name"));
        let hs = Homeserver::open(config, clock.clone()).expect("a server");
        hs.store
            .write(|tx| {
                tx.wake_timer();
                let id = "'!a:there.example', '@bob:here.example'";
                Ok(tx.conn().execute_batch(&format!(
                    "INSERT INTO owed_joins VALUES ({id}, 'no event id', 0, 0);
                     INSERT INTO owed_invites
                       VALUES ('!a:there.example', '@eve:there.example', 'there.example', 'nobody', '{{}}', 0, 0, 0);
                     INSERT INTO remote_memberships (room_id, user_id, state, room_version, stripped_state, via, attempts,
                       due_ms, host_unaware, forgotten, may_be_in, stream)
                       VALUES ({id}, 'knocking', 'unheard of', x'5b5d', '[]', 0, 0, 0, 0, 0, 1)"
                ))?)
            })
            .expect("written");
        hs
    }

    #[test]
    fn what_no_thread_can_be_had_for_is_due_again_soon_and_puts_nothing_else_off() {
        let clock = Clock::new();
        let hs = server_with_jobs(&clock);
        hs.scheduler.shared.refuses_threads.store(true, Ordering::Relaxed);
        hs.start_background().expect("threads");
        let soon = || {
            let upto = clock.now_ms() + AFTER_FAILED_LOOK_MS;
            found(&hs)
                .iter()
                .all(|row| row.is_some_and(|(_, due)| due.is_some_and(|due| 0 < due && due <= upto)))
        };
        wait_until(soon);
        assert!(found(&hs).iter().all(|row| row.is_some_and(|(tried, _)| tried == 0)), "nobody has tried");
        hs.scheduler.shared.refuses_threads.store(false, Ordering::Relaxed);
        clock.advance(Duration::from_millis(AFTER_FAILED_LOOK_MS.unsigned_abs() + 1));
        wait_until(|| has_been_tried(&hs, 1));
        hs.stop_background();
    }

    #[test]
    fn a_job_that_cannot_be_read_is_tried_again_after_pauses_and_given_up_in_the_end_like_any_other() {
        let clock = Clock::new();
        let hs = server_with_jobs(&clock);
        hs.start_background().expect("threads");
        for tried in 1..ATTEMPTS_MAX {
            wait_until(|| has_been_tried(&hs, tried));
            let now = clock.now_ms();
            for (row, table) in found(&hs).into_iter().zip(TABLES) {
                let (attempts, due) = row.unwrap_or_else(|| panic!("{table} is given up after {tried}"));
                let due = due.unwrap_or_else(|| panic!("{table} is given up after {tried}"));
                assert_eq!(attempts, tried, "{table}");
                assert!(due > now && due <= now + backoff_ms(tried), "{table} after {tried}");
            }
            let pause = u64::try_from(backoff_ms(tried)).expect("a pause");
            clock.advance(Duration::from_millis(pause));
            hs.scheduler.wake();
        }
        wait_until(|| matches!(found(&hs), [None, None, Some((_, None))]));
        hs.stop_background();
    }
}
