//! The store as a whole, on real files: opening, refusing, group commit, snapshots.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use super::*;
use crate::error::Error;
use crate::protocol::room_version::room_version;
use crate::store::engine::folder::FILE;
use crate::store::rooms::snapshots::Delta;

/// A folder that goes with the test.
pub(crate) struct Folder(pub PathBuf);

impl Folder {
    pub(crate) fn new() -> Folder {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("doorstep-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Folder(std::env::temp_dir().join(name))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A store without a file, of the server of this name.
pub(crate) fn in_memory(name: &str) -> Store {
    let (name, options) = (
        ServerName::parse(name).expect("a name"),
        Options { durable: false, readers: 1, ..Options::default() },
    );
    Store::open(Location::Memory, &name, Box::new(|_| ()), &options).expect("a store")
}

/// The same of `us.example`, where bob has one device, `D`.
pub(crate) fn with_device_of_bob() -> Store {
    let store = in_memory("us.example");
    let device = store.write(|tx| {
        tx.conn().execute("INSERT INTO users (user_id, created_ms) VALUES ('@bob:us.example', 0)", [])?;
        tx.conn().execute("INSERT INTO devices (user_id, device_id) VALUES ('@bob:us.example', 'D')", [])?;
        Ok(())
    });
    device.expect("a device");
    store
}

fn name() -> ServerName {
    ServerName::parse("example.org").unwrap()
}

pub(crate) fn open(folder: &Folder) -> Result<Store> {
    open_as(folder, &name())
}

fn open_as(folder: &Folder, name: &ServerName) -> Result<Store> {
    Store::open(Location::Folder(folder.0.clone()), name, Box::new(|_| {}), &Options::default())
}

fn refused(result: Result<Store>) -> String {
    match result {
        Ok(_) => panic!("should have been refused"),
        Err(e) => e.message().to_owned(),
    }
}

fn count_rooms(store: &Store) -> i64 {
    store.read(|db| Ok(db.conn().query_row("SELECT count(*) FROM rooms", [], |r| r.get(0))?)).unwrap()
}

fn add_room(tx: &mut Tx<'_>, id: &str) -> Result<()> {
    tx.conn().execute("INSERT INTO rooms (room_id, version) VALUES (?1, '12')", [id])?;
    tx.next_stream();
    Ok(())
}

#[test]
fn what_was_written_is_there_after_a_restart_and_the_stream_goes_on() {
    let folder = Folder::new();
    let store = open(&folder).unwrap();
    store.write(|tx| add_room(tx, "!a:x")).unwrap();
    assert_eq!(store.position(), 1);
    drop(store);
    let store = open(&folder).unwrap();
    assert_eq!(count_rooms(&store), 1);
    let position = store.position();
    assert!(position > 1, "what a power cut may have taken back is passed over");
    assert_eq!(store.write(|tx| Ok(tx.next_stream())).unwrap(), position + 1);
}

#[test]
fn a_light_write_is_there_for_all_and_after_a_restart_and_the_next_full_one_waits_for_the_disk() {
    let folder = Folder::new();
    let store = open(&folder).unwrap();
    let level = |tx: &mut Tx<'_>| -> Result<i64> {
        Ok(tx.conn().query_row("PRAGMA synchronous", [], |row| row.get(0))?)
    };
    let light = store.write_lightly(move |tx| {
        add_room(tx, "!light:x")?;
        level(tx)
    });
    assert_eq!((light.unwrap(), store.position(), count_rooms(&store)), (1, 1, 1));
    let full = store.write(move |tx| {
        add_room(tx, "!full:x")?;
        level(tx)
    });
    assert_eq!(full.unwrap(), 2);
    let light = store.write_lightly(move |tx| {
        (0..10_000).for_each(|_| _ = tx.next_stream());
        level(tx)
    });
    assert_eq!(light.unwrap(), 1);
    assert_eq!(store.write_lightly(level).unwrap(), 2, "not too many in a row without the disk");
    assert_eq!(store.write_lightly(level).unwrap(), 1);
    drop(store);
    assert_eq!(count_rooms(&open(&folder).unwrap()), 2);
}

#[test]
fn a_log_that_never_rests_is_folded_beside_the_writer_and_starts_over() {
    let folder = Folder::new();
    let options = Options { durable: false, ..Options::default() };
    let location = Location::Folder(folder.0.clone());
    let store = Store::open(location, &name(), Box::new(|_| {}), &options).unwrap();
    store.write(|tx| Ok(tx.conn().execute_batch("CREATE TABLE bulk (data BLOB)")?)).unwrap();
    let (piece, pieces) = (1 << 20, 200);
    for _ in 0..pieces {
        store
            .write(move |tx| Ok(tx.conn().execute("INSERT INTO bulk VALUES (zeroblob(?1))", [piece])?))
            .unwrap();
    }
    let log = fs::metadata(folder.0.join(format!("{FILE}-wal"))).unwrap().len();
    assert!(log < 100 << 20, "of {pieces} MiB that were written, {} are in the log", log >> 20);
    let count =
        |db: &Db<'_>| Ok(db.conn().query_row("SELECT count(*) FROM bulk", [], |r| r.get::<_, i64>(0))?);
    assert_eq!(store.read(count).unwrap(), pieces);
    drop(store);
    assert!(!folder.0.join(format!("{FILE}-wal")).exists(), "the last to close folds the rest");
    let database = Connection::open(folder.0.join(FILE)).unwrap();
    let there: i64 = database.query_row("SELECT count(*) FROM bulk", [], |row| row.get(0)).unwrap();
    assert_eq!(there, pieces);
}

#[test]
fn a_log_starts_over_although_there_is_no_moment_without_a_reader() {
    let folder = Folder::new();
    let options = Options { durable: false, ..Options::default() };
    let location = Location::Folder(folder.0.clone());
    let store = Store::open(location, &name(), Box::new(|_| {}), &options).unwrap();
    store.write(|tx| Ok(tx.conn().execute_batch("CREATE TABLE bulk (data BLOB)")?)).unwrap();
    let (over, begun) = (std::sync::atomic::AtomicBool::new(false), AtomicUsize::new(0));
    let mut longest = 0;
    std::thread::scope(|scope| {
        let (store, over, begun) = (&store, &over, &begun);
        for _ in 0..3 {
            scope.spawn(move || {
                while !over.load(Ordering::SeqCst) {
                    let read = |db: &Db<'_>| {
                        db.file_bytes()?;
                        let own = begun.fetch_add(1, Ordering::SeqCst);
                        // A read takes a while, and nobody leaves before the next one has come, if one comes at all.
                        let start = std::time::Instant::now();
                        let lasts = |ms| start.elapsed() < std::time::Duration::from_millis(ms);
                        while lasts(15) || (lasts(60) && begun.load(Ordering::SeqCst) == own + 1) {
                            std::thread::yield_now();
                        }
                        Ok(())
                    };
                    store.read(read).unwrap();
                }
            });
        }
        for _ in 0..300 {
            store
                .write(|tx| Ok(tx.conn().execute("INSERT INTO bulk VALUES (zeroblob(1 << 20))", [])?))
                .unwrap();
            longest = longest.max(fs::metadata(folder.0.join(format!("{FILE}-wal"))).unwrap().len());
        }
        over.store(true, Ordering::SeqCst);
    });
    assert!(longest < 200 << 20, "of 300 MiB that were written, {} were in the log at once", longest >> 20);
}

#[test]
fn when_nobody_writes_the_database_alone_is_all_there_is() {
    let folder = Folder::new();
    let store = open(&folder).unwrap();
    let copy = Folder::new();
    fs::create_dir(&copy.0).unwrap();
    for round in 0..2 {
        store.write(move |tx| add_room(tx, &format!("!{round}:x"))).unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        loop {
            fs::copy(folder.0.join(FILE), copy.0.join(FILE)).unwrap();
            // The copy is opened as it is, without a log.
            let rooms = Connection::open(copy.0.join(FILE)).unwrap();
            if rooms.query_row("SELECT count(*) FROM rooms", [], |r| r.get::<_, i64>(0)).unwrap() == round + 1
            {
                break;
            }
            assert!(std::time::Instant::now() < deadline, "in round {round} the log is not folded");
            std::thread::yield_now();
        }
    }
}

/// Keeps what is said in the log about the writer.
struct Heard(Mutex<Vec<String>>);

impl log::Log for Heard {
    fn enabled(&self, of: &log::Metadata<'_>) -> bool {
        of.level() <= log::Level::Warn
    }

    fn log(&self, said: &log::Record<'_>) {
        if self.enabled(said.metadata()) && said.target().contains("store::engine::writer") {
            self.0.lock().unwrap().push(said.args().to_string());
        }
    }

    fn flush(&self) {}
}

#[test]
fn a_closure_that_holds_the_writer_for_long_is_told_of_by_its_place_in_the_source() {
    static HEARD: Heard = Heard(Mutex::new(Vec::new()));
    log::set_logger(&HEARD).unwrap();
    log::set_max_level(log::LevelFilter::Warn);
    let store = Store::open(Location::Memory, &name(), Box::new(|_| {}), &Options::default()).unwrap();
    let hold = |ms| {
        let until = std::time::Instant::now() + std::time::Duration::from_millis(ms);
        while std::time::Instant::now() < until {
            std::hint::spin_loop();
        }
    };
    let line = line!() + 1;
    let held = store.write(move |_| {
        hold(60);
        Ok(())
    });
    held.unwrap();
    let heard = HEARD.0.lock().unwrap();
    let place = format!("src/store/tests.rs:{line}:");
    assert_eq!(heard.iter().filter(|said| said.contains(&place)).count(), 1, "{heard:?}");
}

#[test]
fn a_closure_that_fails_or_panics_undoes_its_own_work_only() {
    let folder = Folder::new();
    let store = open(&folder).unwrap();
    std::thread::scope(|scope| {
        for number in 0..30 {
            let store = &store;
            scope.spawn(move || {
                let result = store.write(move |tx| {
                    add_room(tx, &format!("!{number}:x"))?;
                    match number % 3 {
                        0 => Ok(()),
                        1 => Err(Error::forbidden("no")),
                        _ => panic!("on purpose"),
                    }
                });
                assert_eq!(result.is_ok(), number % 3 == 0);
            });
        }
    });
    assert_eq!((store.position(), count_rooms(&store)), (10, 10));
    assert_eq!(store.write(|_| -> Result<()> { Err(Error::forbidden("no")) }).unwrap_err().status(), 403);
}

#[test]
fn the_notifier_hears_of_each_commit() {
    let folder = Folder::new();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let ear = heard.clone();
    let on_commit =
        Box::new(move |changes: &Changes| ear.lock().unwrap().push((changes.position, changes.users.len())));
    let store =
        Store::open(Location::Folder(folder.0.clone()), &name(), on_commit, &Options::default()).unwrap();
    let alice = UserId::parse("@alice:example.org").unwrap();
    store
        .write(move |tx| {
            tx.next_stream();
            tx.wake_user(&alice);
            Ok(())
        })
        .unwrap();
    // Closing waits until everything is told.
    drop(store);
    assert_eq!(*heard.lock().unwrap(), [(1, 1)]);
}

#[test]
fn nobody_is_woken_to_send_what_comes_from_the_only_other_server_of_a_room() {
    let store = in_memory("us.example");
    let is_owed = |room: RoomKey, by: &'static str| {
        let told = store.write(move |tx| {
            tx.owes(room, by)?;
            Ok(tx.changes.outgoing_rooms.contains(&room))
        });
        told.expect("written")
    };
    let make = |id: &'static str, servers: &'static [&'static str]| {
        let servers: Vec<_> = servers.iter().map(|name| ServerName::parse(name).expect("a name")).collect();
        store.write(move |tx| tx.pretend_room(id, &servers.iter().collect::<Vec<_>>())).expect("a room")
    };
    let alone = make("!alone:us.example", &["us.example"]);
    assert!(!is_owed(alone, "us.example"));
    let pair = make("!pair:us.example", &["us.example", "them.example"]);
    assert!(is_owed(pair, "us.example"));
    assert!(!is_owed(pair, "them.example"));
    // Once another comes, it is owed what those say.
    let came = store.write(move |tx| {
        let stream = tx.next_stream();
        tx.count_resident(pair, "third.example", 1, stream)
    });
    came.expect("written");
    assert!(is_owed(pair, "them.example"));
    assert!(is_owed(pair, "third.example"));
}

#[test]
fn a_read_sees_one_snapshot_however_much_is_written_meanwhile() {
    for location in ["file", "memory"] {
        let folder = Folder::new();
        let location = if location == "file" { Location::Folder(folder.0.clone()) } else { Location::Memory };
        let store = Store::open(location, &name(), Box::new(|_| {}), &Options::default()).unwrap();
        store.write(|tx| add_room(tx, "!a:x")).unwrap();
        let (started, start) = std::sync::mpsc::channel();
        let (done, finish) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let store = &store;
            scope.spawn(move || {
                start.recv().unwrap();
                store.write(|tx| add_room(tx, "!b:x")).unwrap();
                done.send(()).unwrap();
            });
            let count =
                |db: &Db<'_>| db.conn().query_row("SELECT count(*) FROM rooms", [], |r| r.get::<_, i64>(0));
            let (before, after) = store
                .read(|db| {
                    let before = count(db)?;
                    started.send(()).unwrap();
                    finish.recv().unwrap();
                    Ok((before, count(db)?))
                })
                .unwrap();
            assert_eq!((before, after), (1, 1));
        });
        assert_eq!(count_rooms(&store), 2);
    }
}

#[test]
fn more_threads_than_readers_all_get_their_turn() {
    let store = Store::open(
        Location::Memory,
        &name(),
        Box::new(|_| {}),
        &Options { durable: false, readers: 2, ..Options::default() },
    )
    .unwrap();
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| (0..50).for_each(|_| assert_eq!(count_rooms(&store), 0)));
        }
    });
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ = store.read(|_| -> Result<()> { panic!("on purpose") });
    }));
    assert!(panicked.is_err());
    for _ in 0..4 {
        assert_eq!(count_rooms(&store), 0);
    }
}

#[test]
fn a_database_in_memory_leaves_nothing_behind() {
    let store = Store::open(Location::Memory, &name(), Box::new(|_| {}), &Options::default()).unwrap();
    store.write(|tx| add_room(tx, "!a:x")).unwrap();
    // Not even while it is open, so that a kill leaves nothing either. Those of other tests come and go meanwhile.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    for folder in scratch_folders() {
        while folder.exists() {
            assert!(std::time::Instant::now() < deadline, "{} is still there", folder.display());
            std::thread::yield_now();
        }
    }
    assert_eq!(count_rooms(&store), 1);
}

fn scratch_folders() -> Vec<PathBuf> {
    let own = format!("doorstep-memory-{}-", std::process::id());
    let entries = fs::read_dir("/dev/shm").into_iter().flatten().flatten();
    entries.filter(|e| e.file_name().to_string_lossy().starts_with(&own)).map(|e| e.path()).collect()
}

#[test]
fn a_second_process_is_refused_and_the_first_goes_on() {
    let folder = Folder::new();
    let store = open(&folder).unwrap();
    // flock is per open file, so a second opening in this process is refused as one in another is.
    assert!(refused(open(&folder)).contains("in use by another Doorstep"));
    store.write(|tx| add_room(tx, "!a:x")).unwrap();
    drop(store);
    assert_eq!(count_rooms(&open(&folder).unwrap()), 1);
}

#[test]
fn a_database_of_another_server_name_is_refused() {
    let folder = Folder::new();
    drop(open(&folder).unwrap());
    let message = refused(open_as(&folder, &ServerName::parse("other.example").unwrap()));
    assert!(message.contains("example.org") && message.contains("other.example"), "{message}");
    drop(open(&folder).unwrap());
}

#[test]
fn a_database_of_a_newer_doorstep_is_refused_and_left_as_it_is() {
    let folder = Folder::new();
    drop(open(&folder).unwrap());
    let connection = Connection::open(folder.0.join(FILE)).unwrap();
    connection.pragma_update(None, "user_version", crate::store::engine::migrate::VERSION + 1).unwrap();
    drop(connection);
    let bytes = fs::read(folder.0.join(FILE)).unwrap();
    assert!(refused(open(&folder)).contains("newer Doorstep"));
    assert_eq!(fs::read(folder.0.join(FILE)).unwrap(), bytes);
}

#[test]
fn files_that_are_no_doorstep_databases_are_refused_and_left_as_they_are() {
    let folder = Folder::new();
    fs::create_dir_all(&folder.0).unwrap();
    let path = folder.0.join(FILE);
    let other = Connection::open(&path).unwrap();
    other.execute_batch("CREATE TABLE recipes (name TEXT)").unwrap();
    drop(other);
    let bytes = fs::read(&path).unwrap();
    assert!(refused(open(&folder)).contains("another program"));
    assert_eq!(fs::read(&path).unwrap(), bytes);
    fs::write(&path, vec![b'x'; 8192]).unwrap();
    assert!(refused(open(&folder)).contains("not a Doorstep database"));
    assert_eq!(fs::read(&path).unwrap(), vec![b'x'; 8192]);
}

#[test]
fn a_database_that_may_not_be_written_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new();
    drop(open(&folder).unwrap());
    fs::set_permissions(&folder.0, fs::Permissions::from_mode(0o777)).unwrap();
    fs::set_permissions(folder.0.join("doorstep.lock"), fs::Permissions::from_mode(0o666)).unwrap();
    fs::set_permissions(folder.0.join(FILE), fs::Permissions::from_mode(0o444)).unwrap();
    let message = as_nobody(|| refused(open(&folder)));
    assert!(message.contains("read-only"), "{message}");
    fs::set_permissions(folder.0.join(FILE), fs::Permissions::from_mode(0o600)).unwrap();
    assert!(as_nobody(|| refused(open(&folder))).contains("cannot be opened"));
    fs::set_permissions(&folder.0, fs::Permissions::from_mode(0o700)).unwrap();
    assert!(as_nobody(|| refused(open(&folder))).contains("cannot be used"));
    drop(open(&folder).unwrap());
}

/// Runs `f` without root's right to write everything, where the tests run as root.
fn as_nobody<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let body = || {
            // SAFETY: setfsuid only changes this thread's own credentials for files; the thread ends right after.
            unsafe { libc::setfsuid(65534) };
            f()
        };
        scope.spawn(body).join().unwrap()
    })
}

#[test]
fn a_full_disk_is_a_clear_error_and_harms_nothing() {
    let folder = Folder::new();
    let store = open(&folder).unwrap();
    store.write(|tx| add_room(tx, "!before:x")).unwrap();
    let limit = |pages: i64| {
        store
            .write(move |tx| {
                let now: i64 = tx.conn().query_row("PRAGMA page_count", [], |r| r.get(0))?;
                Ok(tx.conn().query_row(&format!("PRAGMA max_page_count = {}", now + pages), [], |r| {
                    r.get::<_, i64>(0)
                })?)
            })
            .unwrap()
    };
    limit(2);
    let fill = store.write(|tx| {
        add_room(tx, "!during:x")?;
        tx.conn().execute("INSERT INTO snapshots (number, delta) VALUES (0, zeroblob(1000000))", [])?;
        Ok(())
    });
    let error = fill.unwrap_err();
    assert_eq!((error.status(), error.message()), (507, "The server's disk is full"));
    limit(1_000_000);
    store.write(|tx| add_room(tx, "!after:x")).unwrap();
    assert_eq!((store.position(), count_rooms(&store)), (2, 2));
}

#[test]
#[cfg_attr(debug_assertions, should_panic(expected = "inside a read or a write"))]
fn a_read_inside_a_read_is_an_error_instead_of_a_deadlock() {
    let store = Store::open(Location::Memory, &name(), Box::new(|_| {}), &Options::default()).unwrap();
    let nested = store.read(|_| store.read(|_| Ok(())));
    assert!(nested.is_err());
}

/// Builds a tree of states along with plain maps of the same, and compares.
#[test]
fn states_from_differences_are_the_states_that_were_put_in_forks_and_removals_too() {
    let folder = Folder::new();
    let store = open(&folder).unwrap();
    let mut random = 12345u64;
    let mut next = move |below: u64| {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (random >> 33) % below
    };
    let states = store
        .write(move |tx| {
            let root: BTreeMap<StateTupleId, EventKey> =
                (1..=20).map(|tuple_id| (tuple_id, tuple_id + 100)).collect();
            let mut states = vec![(tx.root_snapshot(&root)?, root)];
            for step in 0..600i64 {
                // Mostly the tip, now and then a fork from anywhere.
                let from = if next(10) == 0 { next(states.len() as u64) as usize } else { states.len() - 1 };
                let (snapshot, mut state) = states[from].clone();
                let mut change = Delta::new();
                // Now and then one that is large enough to get rows of its own.
                for _ in 0..=if next(50) == 0 { 400 } else { next(3) } {
                    let tuple_id = next(500) as i64 + 1;
                    change.insert(tuple_id, (next(8) != 0).then_some(1000 + step));
                }
                for (tuple_id, event) in &change {
                    match event {
                        Some(event) => state.insert(*tuple_id, *event),
                        None => state.remove(tuple_id),
                    };
                }
                states.push((tx.snapshot_after(snapshot, &change)?, state));
            }
            // The writer remembers how the late ones were made.
            compare_states(tx, &states, &mut next)?;
            Ok(states)
        })
        .unwrap();
    // Readers remember nothing of them.
    let mut random = 54321u64;
    let mut next = move |below: u64| {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (random >> 33) % below
    };
    store.read(|db| compare_states(db, &states, &mut next)).unwrap();
}

fn compare_states(
    db: &Db<'_>,
    states: &[(SnapshotId, BTreeMap<StateTupleId, EventKey>)],
    next: &mut dyn FnMut(u64) -> u64,
) -> crate::error::Result<()> {
    for (snapshot, state) in states {
        assert_eq!(&db.state_rows_at(*snapshot)?, state);
    }
    for round in 0..2000 {
        // Every other time two that are near each other.
        let a = next(601);
        let b = if round % 2 == 0 { next(601) } else { (a + next(9)).min(600) };
        let (a, b) = (&states[a as usize], &states[b as usize]);
        let tuple_id = next(502) as i64;
        assert_eq!(db.state_row_at(a.0, tuple_id)?, a.1.get(&tuple_id).copied());
        let mut moved = a.1.clone();
        for (tuple_id, event) in db.state_difference(a.0, b.0)? {
            assert_ne!(moved.get(&tuple_id).copied(), event, "no difference");
            match event {
                Some(event) => moved.insert(tuple_id, event),
                None => moved.remove(&tuple_id),
            };
        }
        assert_eq!(moved, b.1);
    }
    Ok(())
}

#[test]
fn a_state_too_large_for_one_value_is_asked_again_and_again_and_always_says_the_same() {
    let store = in_memory("us.example");
    let root: BTreeMap<StateTupleId, EventKey> = (1..=400).map(|n| (2 * n, 1000 + n)).collect();
    store
        .write(move |tx| {
            let root = tx.root_snapshot(&root)?;
            // The second is what somebody did who came later.
            let next = tx.snapshot_after(root, &Delta::from([(2, None), (900, Some(9))]))?;
            for _ in 0..3 {
                let of_root: Vec<_> = [2, 3, 800, 801, 900]
                    .into_iter()
                    .map(|tuple_id| tx.state_row_at(root, tuple_id))
                    .collect::<crate::error::Result<_>>()?;
                assert_eq!(of_root, [Some(1001), None, Some(1400), None, None]);
                let of_next: Vec<_> = [2, 3, 800, 900, 901]
                    .into_iter()
                    .map(|tuple_id| tx.state_row_at(next, tuple_id))
                    .collect::<crate::error::Result<_>>()?;
                assert_eq!(of_next, [None, None, Some(1400), Some(9), None]);
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_state_change_in_a_large_room_costs_little() {
    let store = Store::open(Location::Memory, &name(), Box::new(|_| {}), &Options::default()).unwrap();
    let bytes: i64 = store
        .write(|tx| {
            let mut at = tx.root_snapshot(&BTreeMap::new())?;
            for tuple_id in 1..=4096 {
                at = tx.snapshot_after(at, &Delta::from([(tuple_id, Some(tuple_id))]))?;
            }
            assert_eq!(tx.state_rows_at(at)?.len(), 4096);
            let sum = "SELECT (SELECT sum(length(delta)) FROM snapshots) + 10 * (SELECT count(*) FROM snapshot_entries)";
            Ok(tx.conn().query_row(sum, [], |r| r.get(0))?)
        })
        .unwrap();
    // log2(4096) / 2 + 1 entries of ten bytes for each change, where full copies would be 2048 on average.
    assert!(bytes / 4096 <= 80, "{} bytes a state event", bytes / 4096);
}

#[test]
fn a_read_that_takes_too_long_is_broken_off_and_its_connection_goes_on() {
    let store = in_memory("us.example");
    let count = |most: i64| {
        move |db: &Db<'_>| {
            let numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
                 SELECT count(*) FROM n";
            Ok(db.conn().query_row(numbers, [most], |row| row.get::<_, i64>(0))?)
        }
    };
    let soon = || Instant::now() + std::time::Duration::from_millis(20);
    for _ in 0..3 {
        let refused = store.read_until(soon(), count(i64::MAX)).expect_err("it has no end");
        assert_eq!((refused.status(), refused.errcode()), (429, crate::error::ErrCode::LimitExceeded));
        assert!(refused.field("retry_after_ms").is_some());
        // There is one connection.
        assert_eq!(
            store.read(count(100_000)).expect("read"),
            100_000,
            "whoever has it next has all the time"
        );
    }
    let long = Instant::now() + std::time::Duration::from_secs(600);
    assert_eq!(store.read_until(long, count(100_000)).expect("read"), 100_000);
}

#[test]
fn a_room_of_which_we_have_nothing_has_the_version_that_was_named_last() {
    let store = in_memory("us.example");
    let id = crate::protocol::RoomId::parse("!a:x").unwrap();
    for version in ["11", "12", "11"] {
        let id = id.clone();
        let made = store.write(move |tx| tx.make_room(&id, room_version(version).unwrap())).unwrap();
        let stored = store.read(|db| db.room_by_key(made.key)).unwrap();
        assert_eq!((made.version.id, stored.version.id), (version, version));
    }
}
