//! A server is backed up and restored, and what is not a whole backup of it is refused.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::archive::{BLOCK, Member, head, padding};
use super::restore::{Restored, restore};
use super::written::write_file;
use super::*;
use crate::config::Config;
use crate::error::Result;
use crate::protocol::ServerName;
use crate::protocol::media::MxcUri;
use crate::service::Homeserver;
use crate::store::Store;
use crate::testing::{secluded, temporary_folder};

/// A folder with data folders and backups in it.
struct Place(PathBuf);

impl Drop for Place {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            drop(fs::remove_dir_all(&self.0));
        }
    }
}

impl Place {
    fn new() -> Self {
        Self(temporary_folder("backup"))
    }

    fn open(&self, data: &str) -> Arc<Homeserver> {
        let mut config = Config::for_name(ServerName::parse("example.org").expect("a name"));
        config.data = Data::Folder(self.0.join(data));
        secluded(config)
    }

    fn back_up(&self, hs: &Homeserver) -> Vec<u8> {
        let mut bytes = Vec::new();
        hs.admin().back_up(|| true).expect("a backup").read_to_end(&mut bytes).expect("all of it");
        bytes
    }

    /// Restores these bytes, and says what is in the folder when that was refused.
    fn restore(&self, bytes: &[u8], data: &str) -> Result<Restored> {
        let file = self.0.join("backup.tar");
        fs::write(&file, bytes).expect("written");
        restore(&self.0.join(data), &file, None, &crate::clock::Clock::new())
    }

    fn refused(&self, bytes: &[u8]) -> String {
        let e = self.restore(bytes, "refused").expect_err("it is no whole backup");
        assert!(!self.0.join("refused").exists(), "something was left: {e}");
        e.message().to_owned()
    }
}

fn store_file(hs: &Homeserver, id: &str, bytes: &[u8]) -> MxcUri {
    let uri = MxcUri::parse(&format!("mxc://elsewhere.example/{id}")).expect("a URI");
    let blob = hs.media().store_stream(&mut &bytes[..], 1 << 20).expect("a file");
    hs.media().insert_remote(&uri, blob, Some("text/plain"), None).expect("a row");
    uri
}

fn read_file(hs: &Homeserver, uri: &MxcUri) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    hs.media().open(uri).ok()?.file.read_to_end(&mut bytes).expect("readable");
    Some(bytes)
}

/// Everything beneath a folder that others than its owner could use.
fn open_to_others(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry")) {
        if entry.metadata().expect("it is there").permissions().mode() & 0o077 != 0 {
            found.push(entry.path());
        }
        if entry.path().is_dir() {
            found.extend(open_to_others(&entry.path()));
        }
    }
    found
}

#[test]
fn a_server_is_the_same_after_it_was_restored() {
    let place = Place::new();
    let hs = place.open("first");
    let (alice, token) = hs.accounts().register_user("alice", None).expect("an account");
    let files: Vec<Vec<u8>> = vec![vec![], vec![7; 511], vec![8; 512], vec![9; 100_000]];
    let uris: Vec<MxcUri> =
        files.iter().enumerate().map(|(n, bytes)| store_file(&hs, &format!("f{n}"), bytes)).collect();
    let key = hs.key_ring.signing_key().key_id().to_owned();
    let position = hs.store.position();
    let backup = place.back_up(&hs);
    assert_eq!(backup.len() % BLOCK, 0);
    // It goes on, and a second one can be made.
    let (bob, _) = hs.accounts().register_user("bob", None).expect("an account");
    assert!(place.back_up(&hs).len() >= backup.len());
    drop(hs);
    let restored = place.restore(&backup, "second").expect("restored");
    assert_eq!((restored.end.media_files, restored.spoilt), (4, 0));
    assert_eq!(open_to_others(&place.0.join("second")), Vec::<PathBuf>::new());
    let hs = place.open("second");
    assert_eq!(hs.key_ring.signing_key().key_id(), key, "the signing key is kept");
    let (found, later) =
        hs.store.read(|db| Ok((db.is_active_user(&alice)?, db.is_active_user(&bob)?))).expect("read");
    assert!(found && !later, "who came later is not in it");
    assert!(hs.store.session(&Sha256::digest(&token).into()).expect("read").is_some());
    for (uri, bytes) in uris.iter().zip(&files) {
        assert_eq!(read_file(&hs, uri).as_ref(), Some(bytes));
    }
    assert!(hs.store.position() > position + (1 << 40), "nothing that was given out is given out again");
    assert!(hs.store.is_foreign(position + 1) && !hs.store.is_foreign(hs.store.position()));
    let names: Vec<_> =
        fs::read_dir(place.0.join("second")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!names.iter().any(|name| name.to_string_lossy().contains("new")), "{names:?}");
}

#[test]
fn a_backup_is_opened_by_any_tar() {
    let place = Place::new();
    let hs = place.open("first");
    store_file(&hs, "a", b"contents");
    let backup = place.back_up(&hs);
    let (file, folder) = (place.0.join("b.tar"), place.0.join("unpacked"));
    fs::write(&file, &backup).unwrap();
    fs::create_dir(&folder).unwrap();
    let tar = std::process::Command::new("tar").arg("xf").arg(&file).arg("-C").arg(&folder).output().unwrap();
    assert!(tar.status.success() && tar.stderr.is_empty(), "{tar:?}");
    assert_eq!(Store::name_of(&folder).expect("a database").as_str(), "example.org");
    assert!(folder.join("doorstep-backup.json").is_file() && folder.join("media").is_dir());
}

#[test]
fn a_backup_that_is_cut_anywhere_is_refused_and_leaves_nothing() {
    let place = Place::new();
    let hs = place.open("first");
    store_file(&hs, "a", &[3; 700]);
    let backup = place.back_up(&hs);
    // Around each block's border at the beginning and the end, and here and there between.
    let borders = (0..=8).map(|n| n * BLOCK).chain((0..12).map(|n| backup.len() - n * BLOCK));
    let mut cuts: Vec<usize> = borders.flat_map(|at| [at.saturating_sub(1), at, at + 1]).collect();
    cuts.extend((0..40).map(|n| backup.len() / 40 * n));
    for cut in cuts.into_iter().filter(|cut| *cut < backup.len()) {
        let said = place.refused(&backup[..cut]);
        let expected = if cut < BLOCK { "not a backup" } else { "is cut" };
        assert!(said.contains(expected), "{cut} of {}: {said}", backup.len());
    }
    place.restore(&backup, "whole").expect("whole, it is taken");
}

#[test]
fn a_backup_with_a_wrong_bit_anywhere_is_refused_and_leaves_nothing() {
    let place = Place::new();
    let hs = place.open("first");
    store_file(&hs, "a", &[3; 700]);
    let backup = place.back_up(&hs);
    let interesting = [0, 99, 100, 124, 148, 156, 257, 345, 511, 512, 600, 1000, 1024, 1536, 1600, 5000];
    let behind = (1..=4 * BLOCK).step_by(101).map(|n| backup.len() - n);
    let between = (0..60).map(|n| backup.len() / 60 * n + n);
    for at in interesting.into_iter().chain(behind).chain(between) {
        for bit in [1, 0x80] {
            let mut damaged = backup.clone();
            damaged[at] ^= bit;
            let said = place.refused(&damaged);
            assert!(!said.is_empty(), "{at}");
        }
    }
    let mut longer = backup.clone();
    longer.extend_from_slice(&[0; 7 * BLOCK]);
    place.restore(&longer, "padded").expect("programs pad archives with zeros");
    longer.push(1);
    assert!(place.refused(&longer).contains("behind its end"));
}

/// The archive with another manifest, and whole otherwise.
fn with_manifest(
    backup: &[u8],
    change: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>),
) -> Vec<u8> {
    let end = backup[BLOCK..2 * BLOCK].iter().position(|byte| *byte == 0).expect("it is short");
    let mut manifest: serde_json::Value = serde_json::from_slice(&backup[BLOCK..BLOCK + end]).expect("JSON");
    change(manifest.as_object_mut().expect("an object"));
    let text = manifest.to_string().into_bytes();
    let mut made = head(Member::Manifest, text.len() as u64, 0).to_vec();
    made.extend_from_slice(&text);
    made.resize(made.len() + padding(text.len() as u64), 0);
    made.extend_from_slice(&backup[2 * BLOCK..]);
    let at = made.len() - 4 * BLOCK;
    made.truncate(at);
    let digest: String = Sha256::digest(&made).iter().map(|byte| format!("{byte:02x}")).collect();
    let end = End { bytes: at as u64, sha256: digest, media_files: 0, media_bytes: 0 };
    let text = serde_json::to_vec(&end).expect("JSON");
    made.extend_from_slice(&head(Member::End, text.len() as u64, 0));
    made.extend_from_slice(&text);
    made.resize(made.len() + padding(text.len() as u64) + 2 * BLOCK, 0);
    made
}

#[test]
fn a_backup_of_another_version_or_server_is_refused_in_words_that_say_so() {
    let place = Place::new();
    let hs = place.open("first");
    let backup = place.back_up(&hs);
    place.restore(&with_manifest(&backup, |_| {}), "same").expect("the same is taken");
    for (field, value, said) in [
        ("version", 2.into(), "has version 2, and this Doorstep reads version 1"),
        ("schema", (SCHEMA_VERSION + 1).into(), "newer Doorstep"),
        ("format", "something".into(), "not a backup"),
        ("server_name", serde_json::Value::Null, "cannot be read"),
    ] {
        let other = with_manifest(&backup, |manifest| drop(manifest.insert(field.into(), value)));
        let refused = place.refused(&other);
        assert!(refused.contains(said), "{field}: {refused}");
    }
    // The database says whose it is, too.
    let renamed =
        with_manifest(&backup, |manifest| drop(manifest.insert("server_name".into(), "b.example".into())));
    assert!(place.refused(&renamed).contains("belongs to the server example.org"));
    let (file, folder) = (place.0.join("b.tar"), place.0.join("named"));
    fs::write(&file, &backup).unwrap();
    let clock = crate::clock::Clock::new();
    let b = ServerName::parse("b.example").unwrap();
    let e = restore(&folder, &file, Some(&b), &clock).expect_err("another name");
    assert!(e.message().contains("of the server example.org, not of b.example"), "{e}");
    assert!(!folder.exists());
    restore(&folder, &file, Some(&ServerName::parse("example.org").unwrap()), &clock).expect("the right one");
}

#[test]
fn what_is_no_backup_is_refused() {
    let place = Place::new();
    for other in [&b""[..], b"x", &[0; 4096], &[b'x'; 100_000], b"SQLite format 3\0"] {
        assert!(place.refused(other).contains("not a backup"));
    }
    let clock = crate::clock::Clock::new();
    for path in [place.0.clone(), place.0.join("nothing"), "/dev/null".into()] {
        assert!(restore(&place.0.join("refused"), &path, None, &clock).is_err(), "{path:?}");
        assert!(!place.0.join("refused").exists());
    }
}

#[test]
fn a_server_is_restored_into_an_empty_folder_only() {
    let place = Place::new();
    let hs = place.open("first");
    let backup = place.back_up(&hs);
    for (name, is_folder) in
        [("doorstep.db", false), ("notes.txt", false), ("media", true), (".hidden", false)]
    {
        let folder = place.0.join(format!("with {name}"));
        fs::create_dir(&folder).unwrap();
        let path = folder.join(name);
        if is_folder {
            fs::create_dir(&path).unwrap()
        } else {
            fs::write(&path, b"precious").unwrap()
        }
        let e = place.restore(&backup, &format!("with {name}")).expect_err(name);
        assert!(e.message().contains("is not empty") && e.message().contains(name), "{e}");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    }
    // One that was there before stays where something goes wrong; what a disk has of its own is no hindrance.
    let folder = place.0.join("mounted");
    fs::create_dir(&folder).unwrap();
    fs::create_dir(folder.join("lost+found")).unwrap();
    place.restore(&backup[..backup.len() - 1], "mounted").expect_err("cut");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    place.restore(&backup, "mounted").expect("restored");
    place.open("mounted");
}

#[test]
fn while_a_server_is_restored_and_after_a_kill_no_new_one_is_begun_in_the_folder() {
    let place = Place::new();
    let folder = place.0.join("half");
    let restoring =
        crate::store::engine::restoring::RestoringFolder::begin(&folder, &[]).expect("an empty folder");
    // As a kill leaves it.
    std::mem::forget(restoring);
    let copy = place.0.join("copy");
    fs::create_dir(&copy).unwrap();
    fs::copy(folder.join("doorstep.lock"), copy.join("doorstep.lock")).unwrap();
    let mut config = Config::for_name(ServerName::parse("example.org").expect("a name"));
    config.data = Data::Folder(copy);
    let e = Homeserver::open(config, crate::clock::Clock::new()).err().expect("there should be a database");
    assert!(e.message().contains("restore it"), "{e}");
}

#[test]
fn a_file_that_was_deleted_or_spoilt_is_forgotten_with_what_had_it() {
    let place = Place::new();
    let hs = place.open("first");
    let [kept, deleted, spoilt] = ["kept", "deleted", "spoilt"].map(|id| store_file(&hs, id, id.as_bytes()));
    let path = |contents: &str| {
        let hash = BlobHash(Sha256::digest(contents.as_bytes()).into());
        place.0.join("first").join(Member::Media(hash).name())
    };
    fs::remove_file(path("deleted")).unwrap();
    fs::write(path("spoilt"), b"rotten").unwrap();
    let backup = place.back_up(&hs);
    let restored = place.restore(&backup, "second").expect("restored");
    assert_eq!((restored.end.media_files, restored.spoilt), (2, 1));
    let hs = place.open("second");
    assert_eq!(read_file(&hs, &kept).as_deref(), Some(&b"kept"[..]));
    for gone in [&deleted, &spoilt] {
        let known = hs.store.read(|db| db.media(gone, 0)).expect("read");
        assert!(known.is_none(), "{gone:?} can be fetched again");
    }
}

#[test]
fn a_backup_that_nobody_reads_makes_way_for_another_and_takes_nothing_from_that() {
    let slot = super::BackupSlot::default();
    let take = |stalled: u64| slot.take(0, Duration::from_secs(stalled));
    let forgotten = take(60).expect("free");
    forgotten.go_on().expect("it is the one");
    let e = take(60).err().expect("it has just gone on");
    assert_eq!((e.status(), e.message()), (409, "Another backup is being made, since 1970-01-01 00:00:00Z"));
    let other = take(0).expect("taken from one that stands still");
    assert_eq!(forgotten.go_on().expect_err("it has to end").status(), 503);
    drop(forgotten);
    assert_eq!(take(60).err().expect("the other one goes on").status(), 409);
    other.go_on().expect("it is the one");
    drop(other);
    take(60).expect("free again");
}

#[test]
fn one_backup_is_made_at_a_time_and_none_without_a_data_folder() {
    let place = Place::new();
    let hs = place.open("first");
    let first = hs.admin().back_up(|| true).expect("a backup");
    let e = hs.admin().back_up(|| true).err().expect("one at a time");
    assert_eq!(e.status(), 409);
    assert!(e.message().starts_with("Another backup is being made, since 20"), "{}", e.message());
    assert!(!place.0.join("first").join(COPY).exists(), "the copy has no name");
    drop(first);
    hs.admin().back_up(|| true).expect("the next one");
    // What a kill leaves is gone with the next start.
    let left = place.0.join("first").join(COPY);
    fs::write(&left, b"half a copy").unwrap();
    drop(hs);
    place.open("first");
    assert!(!left.exists());
    let none = secluded(Config::for_name(ServerName::parse("example.org").expect("a name")));
    assert_eq!(none.admin().back_up(|| true).err().expect("nothing to back up").status(), 400);
}

#[test]
fn a_backup_is_restored_twice_and_neither_gives_out_what_the_other_did() {
    let place = Place::new();
    let hs = place.open("first");
    hs.accounts().register_user("alice", None).expect("an account");
    let backup = place.back_up(&hs);
    let mut seen = 0;
    for round in ["one", "two", "three"] {
        place.restore(&backup, round).expect("restored");
        let hs = place.open(round);
        assert!(hs.store.position() > seen);
        seen = hs.store.position();
        assert!(seen < 1 << 53, "it is a number in JSON");
    }
    let path = place.0.join("again.tar");
    let hs = place.open("three");
    write_file(&path, &mut hs.admin().back_up(|| true).expect("a backup of what was restored"))
        .expect("written");
    restore(&place.0.join("four"), &path, None, &hs.clock).expect("restored");
    let four = place.open("four");
    assert!(four.store.is_foreign(hs.store.position() + 1) && !four.store.is_foreign(four.store.position()));
}

#[test]
fn what_a_kill_left_of_a_copy_of_the_database_is_gone_with_the_next_start() {
    let place = Place::new();
    drop(place.open("first"));
    let left = ["doorstep.backup.new", "doorstep.db.vacuum"].map(|name| place.0.join("first").join(name));
    left.iter().for_each(|left| fs::write(left, b"as large as the database").expect("written"));
    drop(place.open("first"));
    assert!(left.iter().all(|left| !left.exists()));
}

#[test]
fn a_server_that_is_restored_under_a_wrong_clock_goes_on_behind_its_backup_and_each_time_elsewhere() {
    let place = Place::new();
    let hs = place.open("first");
    let ahead = crate::clock::Clock::new();
    ahead.advance(std::time::Duration::from_secs(3600));
    let copy = hs.admin().copy_database(&place.0.join("first"), || true).expect("a copy");
    // The clock of who restores is an hour behind that of who made it; or the backup's is of no time that there is.
    for (begun_ms, at_least) in [(ahead.now_ms(), ahead.now_ms() * 1000), (i64::MAX, hs.store.position())] {
        let manifest = Manifest::new(hs.server_name().clone(), SCHEMA_VERSION, begun_ms, copy.bytes());
        let mut seen = Vec::new();
        for round in ["one", "two"] {
            let permit = hs.backup_slot.take(0, STALLED_AFTER).expect("no other one");
            let copy = hs.admin().copy_database(&place.0.join("first"), || true).expect("a copy");
            let mut bytes = Vec::new();
            let pace = ReadPace::new(Box::new(hs.store.positions()));
            let mut backup = Backup::new(manifest.clone(), copy, hs.media_files.clone(), permit, pace);
            backup.read_to_end(&mut bytes).expect("all of it");
            let data = format!("{round} {begun_ms}");
            place.restore(&bytes, &data).expect("restored");
            let position = place.open(&data).store.position();
            assert!(position > at_least && position < 1 << 53, "{position}");
            assert!(!seen.contains(&position), "it goes on elsewhere");
            seen.push(position);
        }
    }
}
