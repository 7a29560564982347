//! Lines of messages: who may have how much in them, and how that is counted.

use super::*;
use crate::store::Store;
use crate::store::tests::with_device_of_bob;

const DAY: Millis = 24 * 3_600_000;
/// When the first came of those that [`pretend`] has wait.
const PRETENDED: Millis = DAY - 60_000;

fn name(name: &str) -> ServerName {
    ServerName::parse(name).expect("a name")
}

fn user(id: &str) -> UserId {
    UserId::parse(id).expect("a user id")
}

fn bob() -> UserId {
    user("@bob:us.example")
}

/// A user of an origin.
fn of(origin: MessageOrigin<'_>) -> UserId {
    match origin {
        MessageOrigin::User(user) => user.clone(),
        MessageOrigin::Neighbour(server) | MessageOrigin::Stranger(server) => user(&format!("@a:{server}")),
    }
}

/// Sends to Bob's device, which was heard of then.
fn send(
    tx: &mut Tx<'_>,
    last_seen_ms: Option<Millis>,
    message: (&UserId, &str),
    origin: MessageOrigin<'_>,
    now: Millis,
) -> Result<InboxOutcome> {
    tx.conn().execute("UPDATE devices SET last_seen_ms = ?1", [last_seen_ms])?;
    let device = tx.device_recipient(&bob(), "D")?.expect("a device");
    tx.add_to_device(&bob(), &device, message, origin, now)
}

/// As if so many messages waited of this share, and so many of them of the origin.
fn pretend(tx: &mut Tx<'_>, share: i64, origin: &str, of_origin: i64, of_all: i64) -> Result<()> {
    let line = tx.begin_line(&bob(), "D")?.expect("a line");
    tx.conn().execute("UPDATE to_device_lines SET messages = ?1, counted = 1", [of_all])?;
    for (origin, messages) in [(origin, of_origin), ("", of_all)] {
        tx.conn().execute(
            "INSERT OR REPLACE INTO to_device_shares (line, share, origin, messages, bytes, since_ms)
             VALUES (?1, ?2, ?3, ?4, 0, ?5)",
            params![line, share, origin, messages, PRETENDED],
        )?;
    }
    Ok(())
}

#[test]
fn each_origin_has_its_share_of_a_line_and_a_fair_one_however_many_others_there_are() {
    let (friend, stranger) = (name("friend.example"), name("stranger.example"));
    let alice = user("@alice:us.example");
    with_device_of_bob()
        .write(move |tx| {
            let mut add = |origin: MessageOrigin<'_>, counts: (i64, i64)| {
                let (share, name) = origin.of();
                pretend(tx, share, name, counts.0, counts.1)?;
                send(tx, None, (&of(origin), "{}"), origin, DAY)
            };
            for origin in [MessageOrigin::User(&alice), MessageOrigin::Neighbour(&friend)] {
                assert_eq!(add(origin, (9_999, 9_999))?, InboxOutcome::Waits);
                assert_eq!(add(origin, (10_000, 10_000))?, InboxOutcome::Full, "{origin:?}");
                assert_eq!(add(origin, (499, 50_000))?, InboxOutcome::Waits, "{origin:?} has a fair share");
                assert_eq!(add(origin, (500, 50_000))?, InboxOutcome::Full, "{origin:?}");
            }
            let origin = MessageOrigin::Stranger(&stranger);
            assert_eq!(add(origin, (99, 999))?, InboxOutcome::Waits);
            assert_eq!(add(origin, (100, 100))?, InboxOutcome::Full);
            assert_eq!(add(origin, (0, 1000))?, InboxOutcome::Full, "names have no end");
            Ok(())
        })
        .expect("written");
}

#[test]
fn nobody_is_made_to_wait_for_a_device_that_sleeps() {
    let alice = user("@alice:us.example");
    with_device_of_bob()
        .write(move |tx| {
            pretend(tx, 0, "@alice:us.example", 10_000, 10_000)?;
            let mut add = |seen| send(tx, Some(seen), (&alice, "{}"), MessageOrigin::User(&alice), 100 * DAY);
            assert_eq!(add(99 * DAY)?, InboxOutcome::Full);
            assert_eq!(add(90 * DAY)?, InboxOutcome::Asleep);
            Ok(())
        })
        .expect("written");
}

#[test]
fn no_server_is_held_up_for_longer_than_minutes_by_a_device_that_fetches_nothing() {
    let (friend, stranger) = (name("friend.example"), name("stranger.example"));
    with_device_of_bob()
        .write(move |tx| {
            // Its own share is full, or the one of all.
            for (origin, counts) in [
                (MessageOrigin::Neighbour(&friend), (10_000, 10_000)),
                (MessageOrigin::Neighbour(&friend), (600, 50_000)),
                (MessageOrigin::Stranger(&stranger), (100, 100)),
                (MessageOrigin::Stranger(&stranger), (1, 1000)),
            ] {
                let (share, name) = origin.of();
                pretend(tx, share, name, counts.0, counts.1)?;
                let mut add = |now: Millis| send(tx, Some(now), (&of(origin), "{}"), origin, now);
                assert_eq!(add(PRETENDED + HOLD_MAX_MS)?, InboxOutcome::Full, "{origin:?}");
                assert_eq!(add(PRETENDED + HOLD_MAX_MS + 1)?, InboxOutcome::Asleep, "{origin:?}");
                assert_eq!(add(PRETENDED + 3 * DAY)?, InboxOutcome::Asleep, "{origin:?}");
            }
            Ok(())
        })
        .expect("written");
}

#[test]
fn no_server_is_held_up_for_longer_than_that_by_what_was_counted_under_a_clock_that_was_ahead() {
    let friend = name("friend.example");
    with_device_of_bob()
        .write(move |tx| {
            let origin = MessageOrigin::Neighbour(&friend);
            pretend(tx, origin.of().0, origin.of().1, 10_000, 10_000)?;
            let right = PRETENDED - 30 * DAY;
            tx.hasten_all(right)?;
            let mut add = |now: Millis| send(tx, Some(now), (&of(origin), "{}"), origin, now);
            assert_eq!(add(right + HOLD_MAX_MS)?, InboxOutcome::Full);
            assert_eq!(add(right + HOLD_MAX_MS + 1)?, InboxOutcome::Asleep);
            Ok(())
        })
        .expect("written");
}

#[test]
fn one_user_of_a_server_takes_a_part_of_its_share_and_loses_what_goes_beyond() {
    let (friend, stranger) = (name("friend.example"), name("stranger.example"));
    with_device_of_bob()
        .write(move |tx| {
            for (origin, most) in
                [(MessageOrigin::Neighbour(&friend), 2500), (MessageOrigin::Stranger(&stranger), 75)]
            {
                let (_, server) = origin.of();
                let mut add = |name: &str| {
                    let sender = user(&format!("@{name}:{server}"));
                    send(tx, None, (&sender, "{}"), origin, DAY)
                };
                for n in 0..most {
                    assert_eq!(add("loud")?, InboxOutcome::Waits, "{n}");
                }
                assert_eq!(add("loud")?, InboxOutcome::Beyond);
                assert_eq!(add("quiet")?, InboxOutcome::Waits, "the others lose nothing");
            }
            Ok(())
        })
        .expect("written");
}

/// What is noted of who has how much in any line: rows, and the sums of their messages and bytes.
fn shares(store: &Store) -> (i64, i64, i64) {
    let sql = "SELECT count(*), coalesce(sum(messages), 0), coalesce(sum(bytes), 0) FROM to_device_shares";
    let counts = store
        .read(|db| Ok(db.conn().query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?));
    counts.expect("counts")
}

/// How many messages are in lines and what they come to: as it is noted, and as it is.
fn lines(store: &Store) -> [(i64, i64); 2] {
    let counts = store.read(|db| {
        let mut counts = [(0, 0); 2];
        for (count, sql) in counts.iter_mut().zip([
            "SELECT coalesce(sum(messages), 0), coalesce(sum(bytes), 0) FROM to_device_lines",
            "SELECT count(*), coalesce(sum(length(message)), 0) FROM to_device",
        ]) {
            *count = db.conn().query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
        }
        Ok(counts)
    });
    counts.expect("counts")
}

/// Sends so many messages of ten bytes, half of them from a neighbour.
fn send_some(store: &Store, count: usize) {
    let (friend, stranger) = (name("friend.example"), name("stranger.example"));
    let written = store.write(move |tx| {
        for n in 0..count {
            let origin = match n % 2 {
                0 => MessageOrigin::Neighbour(&friend),
                _ => MessageOrigin::Stranger(&stranger),
            };
            assert_eq!(send(tx, None, (&of(origin), "0123456789"), origin, 0)?, InboxOutcome::Waits);
        }
        Ok(())
    });
    written.expect("written");
}

/// Forgets all but so many.
fn keep(store: &Store, count: usize) {
    let waiting = store.read(|db| db.to_device_after(&bob(), "D", 0, usize::MAX >> 1)).expect("read");
    let upto = waiting[waiting.len() - count - 1].number;
    store.write(move |tx| tx.forget_to_device(&bob(), "D", upto, 0)).expect("written");
}

#[test]
fn shares_are_counted_as_messages_come_and_go_and_end_with_the_device() {
    let store = with_device_of_bob();
    send_some(&store, 75);
    assert_eq!((shares(&store), lines(&store)), ((0, 0, 0), [(75, 750); 2]), "a short line needs no count");
    send_some(&store, 4);
    let each = "each message counts for its sender, for the origin and for the share";
    assert_eq!((shares(&store), lines(&store)), ((6, 237, 2370), [(79, 790); 2]), "{each}");
    keep(&store, 6);
    assert_eq!((shares(&store), lines(&store)), ((6, 18, 180), [(6, 60); 2]));
    send_some(&store, 2);
    assert_eq!((shares(&store), lines(&store)), ((6, 24, 240), [(8, 80); 2]), "counted until it is empty");
    keep(&store, 0);
    assert_eq!((shares(&store), lines(&store)), ((0, 0, 0), [(0, 0); 2]));
    send_some(&store, 2);
    assert_eq!((shares(&store), lines(&store)), ((0, 0, 0), [(2, 20); 2]), "it is a short one again");
    send_some(&store, 80);
    assert_eq!(shares(&store), (6, 3 * 82, 3 * 820));
    assert!(store.write(|tx| tx.delete_device(&bob(), "D")).expect("written"));
    while store.write(|tx| tx.empty_ended_lines(50)).expect("written") {}
    assert_eq!((shares(&store), lines(&store)), ((0, 0, 0), [(0, 0); 2]));
}

#[test]
fn what_waits_for_a_device_that_is_logged_out_goes_a_portion_at_a_time_and_never_to_the_next_of_its_name() {
    let store = with_device_of_bob();
    send_some(&store, 120);
    let amount = |store: &Store| lines(store)[1].0;
    assert!(store.write(|tx| tx.delete_device(&bob(), "D")).expect("written"));
    assert_eq!(amount(&store), 120, "nobody waits for so many to be deleted");
    let written = store.write(|tx| {
        let bob = bob();
        tx.conn().execute("INSERT INTO devices (user_id, device_id) VALUES (?1, 'D')", [bob.as_str()])?;
        Ok(tx.to_device_after(&bob, "D", 0, 1000)?.len())
    });
    assert_eq!(written.expect("written"), 0, "a device that logs in begins with nothing");
    send_some(&store, 3);
    for left in [73, 23, 3] {
        assert!(store.write(|tx| tx.empty_ended_lines(50)).expect("written"));
        assert_eq!(amount(&store), left);
    }
    while store.write(|tx| tx.empty_ended_lines(50)).expect("written") {}
    let kept = store.read(|db| Ok((db.has_ended_lines()?, db.to_device_after(&bob(), "D", 0, 10)?.len())));
    assert_eq!((kept.expect("read"), lines(&store)), ((false, 3), [(3, 30); 2]));
}

#[test]
fn who_fills_a_line_before_it_is_counted_has_the_same_share_as_after() {
    // Bytes make a line long as well as messages do.
    for size in [2, 9_000] {
        let store = with_device_of_bob();
        let (alice, stranger) = (user("@alice:us.example"), name("stranger.example"));
        let message = "x".repeat(size);
        let outcomes = store.write(move |tx| {
            for _ in 0..20 {
                let origin = MessageOrigin::User(&alice);
                assert_eq!(send(tx, None, (&alice, &message), origin, DAY)?, InboxOutcome::Waits);
            }
            let loud = user("@loud:stranger.example");
            let mut waiting = 0;
            loop {
                let origin = MessageOrigin::Stranger(&stranger);
                match send(tx, None, (&loud, &message), origin, DAY)? {
                    InboxOutcome::Waits => waiting += 1,
                    outcome => return Ok((waiting, outcome)),
                }
            }
        });
        let most = if size == 2 { 75 } else { (192 << 10) / 9_000 };
        assert_eq!(outcomes.expect("written"), (most, InboxOutcome::Beyond), "{size} bytes each");
    }
}

#[test]
fn a_message_for_a_device_that_is_gone_reaches_no_other() {
    let store = with_device_of_bob();
    let outcomes = store.write(|tx| {
        let bob = bob();
        let send = |tx: &mut Tx<'_>, device: &Recipient| {
            tx.add_to_device(&bob, device, (&bob, "{}"), MessageOrigin::User(&bob), 0)
        };
        let unused = tx.device_recipient(&bob, "D")?.expect("a device");
        assert_eq!((unused.line, send(tx, &unused)?), (None, InboxOutcome::Waits));
        let used = tx.device_recipient(&bob, "D")?.expect("a device");
        assert!(used.line.is_some());
        assert_eq!(send(tx, &unused)?, InboxOutcome::Waits, "its line was begun meanwhile");
        tx.delete_device(&bob, "D")?;
        tx.conn().execute("INSERT INTO devices (user_id, device_id) VALUES (?1, 'E')", [bob.as_str()])?;
        let other = tx.device_recipient(&bob, "E")?.expect("a device");
        send(tx, &other)?;
        let outcomes = (send(tx, &unused)?, send(tx, &used)?);
        Ok((outcomes, tx.to_device_after(&bob, "E", 0, 10)?.len()))
    });
    assert_eq!(outcomes.expect("written"), ((InboxOutcome::Gone, InboxOutcome::Gone), 1));
}

#[test]
fn of_the_messages_that_were_received_the_last_of_each_origin_are_known_again() {
    let store = with_device_of_bob();
    let friend = name("friend.example");
    let known = store.write(move |tx| {
        tx.receive_to_device(MessageOrigin::Neighbour(&friend), "m", 0)?;
        for n in 0..30 {
            let stranger = name(&format!("s{n}.example"));
            let origin = MessageOrigin::Stranger(&stranger);
            for m in 0..100 {
                assert!(tx.receive_to_device(origin, &m.to_string(), 0)?);
            }
            tx.sweep_received_to_device(origin, 0)?;
            assert!(!tx.receive_to_device(origin, "99", 0)?);
        }
        assert!(
            !tx.receive_to_device(MessageOrigin::Neighbour(&friend), "m", 0)?,
            "strangers wash away only strangers"
        );
        for m in 0..3000 {
            tx.receive_to_device(MessageOrigin::Neighbour(&friend), &format!("m{m}"), 0)?;
            if m % 100 == 0 {
                tx.sweep_received_to_device(MessageOrigin::Neighbour(&friend), 0)?;
            }
        }
        tx.sweep_received_to_device(MessageOrigin::Neighbour(&friend), 0)?;
        let count = "SELECT count(*) FROM to_device_received WHERE stranger = ?1";
        let count = |tx: &Tx<'_>, stranger: bool| tx.conn().query_row(count, [stranger], |row| row.get(0));
        let kept: (i64, i64) = (count(tx, true)?, count(tx, false)?);
        (0..20).try_for_each(|_| tx.sweep_received_to_device(MessageOrigin::Neighbour(&friend), 8 * DAY))?;
        Ok((kept, count(tx, true)? + count(tx, false)?))
    });
    let most = i64::from(RECEIVED_MAX);
    assert_eq!(known.expect("written"), ((most, most), 0));
}
