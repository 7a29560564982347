//! Groups of closures of which some fail: who is told that it is done, and what is there then.

use std::sync::mpsc;
use std::thread;

use super::*;
use crate::store::Store;
use crate::store::tests::in_memory;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Outcome {
    Done,
    Fails,
    Panics,
    /// The disk is full, and SQLite undoes the whole transaction.
    FillsDisk,
}

use Outcome::{Done, Fails, FillsDisk, Panics};

fn add_room(tx: &mut Tx<'_>, number: usize) -> Result<()> {
    tx.execute("INSERT INTO rooms (room_id, version) VALUES (?1, '12')", &[&format!("!{number}:x")])?;
    tx.next_stream();
    Ok(())
}

fn rooms(db: &Db<'_>) -> Result<Vec<String>> {
    db.rows("SELECT room_id FROM rooms ORDER BY room_key", &[], |row| row.get(0))
}

fn run(tx: &mut Tx<'_>, number: usize, outcome: Outcome) -> Result<Vec<String>> {
    add_room(tx, number)?;
    match outcome {
        Done => rooms(tx),
        Fails => Err(Error::forbidden("no")),
        // Not told of with a backtrace, which on a busy machine takes longer than those after it may have to wait for.
        Panics => std::panic::resume_unwind(Box::new("on purpose")),
        FillsDisk => {
            let pages = |most: i64| tx.conn().pragma_update(None, "max_page_count", most);
            pages(1)?;
            let full =
                tx.execute("INSERT INTO rooms (room_id, version) VALUES (hex(zeroblob(100000)), '12')", &[]);
            pages(1 << 30)?;
            assert!(full.expect_err("no room").is_disk_full() && tx.conn().is_autocommit());
            Err(Error::internal("full"))
        }
    }
}

/// Has the writer come upon all of these at once, in this order.
fn write_together(store: &Store, outcomes: &[Outcome]) -> Vec<Result<Vec<String>>> {
    let counts = store.counts().expect("counted");
    let wait_for = |queued: usize| {
        while counts.queued.load(Ordering::Relaxed) != queued as i64 {
            thread::yield_now();
        }
    };
    thread::scope(|scope| {
        let ((holds, held), (release, released)) = (mpsc::channel(), mpsc::channel::<()>());
        scope.spawn(move || {
            store.write(move |_| {
                holds.send(()).map_err(Error::internal)?;
                released.recv().map_err(Error::internal)
            })
        });
        held.recv().expect("held");
        let mut threads = Vec::new();
        for (number, outcome) in outcomes.iter().copied().enumerate() {
            threads.push(scope.spawn(move || store.write(move |tx| run(tx, number, outcome))));
            wait_for(number + 1);
        }
        release.send(()).expect("released");
        threads.into_iter().map(|thread| thread.join().expect("an answer")).collect()
    })
}

#[test]
fn who_runs_the_server_is_told_what_a_write_panicked_with() {
    let store = in_memory("us.example");
    let error = store.write(|_| -> Result<()> { panic!("on purpose") }).expect_err("a panic");
    assert!(error.to_string().contains("a write panicked: on purpose"), "{error}");
}

#[test]
fn of_a_group_what_is_acknowledged_is_there_and_nothing_else_wherever_one_fails() {
    let all = [Done, Fails, Panics, FillsDisk];
    for pattern in 0..all.len().pow(4) {
        let outcomes: Vec<Outcome> = (0..4).map(|place| all[pattern >> (2 * place) & 3]).collect();
        let store = in_memory("us.example");
        store.count_writes();
        let answers = write_together(&store, &outcomes);
        // Those before a full disk are gone with it; those after it have another transaction.
        let last_full = outcomes.iter().rposition(|outcome| *outcome == FillsDisk);
        let is_lasting = |at: &usize| outcomes[*at] == Done && last_full.is_none_or(|full| *at > full);
        let lasting: Vec<usize> = (0..4).filter(is_lasting).collect();
        for (at, answer) in answers.iter().enumerate() {
            assert_eq!(answer.is_ok(), lasting.contains(&at), "{at} of {outcomes:?}");
            if let Ok(seen) = answer {
                let before = lasting.iter().filter(|other| **other <= at);
                let before: Vec<String> = before.map(|number| format!("!{number}:x")).collect();
                assert_eq!(*seen, before, "{at} of {outcomes:?}");
            }
        }
        let there: Vec<String> = lasting.iter().map(|number| format!("!{number}:x")).collect();
        assert_eq!(store.read(rooms).expect("readable"), there, "{outcomes:?}");
        assert_eq!(store.position(), lasting.len() as i64, "{outcomes:?}");
    }
}
