//! Files and rows together, in a data folder and without one.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::upload::UploadHead;
use super::*;
use crate::config::{Config, Data};
use crate::protocol::{ServerName, UserId};
use crate::store::media::BlobHash;
use crate::testing::temporary_folder;

/// A homeserver with a data folder that outlives it, and users.
struct House {
    folder: PathBuf,
    hs: Option<Arc<Homeserver>>,
}

impl Deref for House {
    type Target = Homeserver;

    fn deref(&self) -> &Homeserver {
        self.hs.as_ref().expect("it is open")
    }
}

impl Drop for House {
    fn drop(&mut self) {
        if self.hs.is_some() && !std::thread::panicking() {
            drop(fs::remove_dir_all(&self.folder));
        }
    }
}

impl House {
    fn new(change: impl FnOnce(&mut Config)) -> Self {
        Self::in_folder(temporary_folder("media"), change)
    }

    fn in_folder(folder: PathBuf, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::for_name(ServerName::parse("example.org").expect("a name"));
        config.data = Data::Folder(folder.clone());
        change(&mut config);
        Self { folder, hs: Some(crate::testing::secluded(config)) }
    }

    /// Begins anew in the same folder.
    fn reopen(&mut self) {
        self.hs = None;
        let folder = self.folder.clone();
        self.hs = Self::in_folder(folder, |_| {}).hs.take();
    }

    fn user(&self, name: &str) -> UserId {
        self.accounts().register_user(name, None).expect("an account").0
    }

    fn begin(&self, user: &UserId, uri: Option<&MxcUri>) -> Result<super::upload::Upload> {
        let head = UploadHead { uri, content_type: Some("image/png"), file_name: Some("a.png"), bytes: None };
        self.media().begin_upload(user, head)
    }

    fn try_upload(&self, user: &UserId, bytes: &[u8]) -> Result<MxcUri> {
        let mut upload = self.begin(user, None)?;
        upload.write(bytes)?;
        self.media().finish_upload(upload)
    }

    fn upload(&self, user: &UserId, bytes: &[u8]) -> MxcUri {
        self.try_upload(user, bytes).expect("an upload")
    }

    fn fetched(&self, id: &str, bytes: &[u8]) -> MxcUri {
        let uri = MxcUri::parse(&format!("mxc://elsewhere.example/{id}")).expect("a URI");
        let blob = self.media().store_stream(&mut &bytes[..], 1 << 20).expect("a file");
        self.media().insert_remote(&uri, blob, Some("text/plain"), Some("b.txt")).expect("a row");
        uri
    }

    fn read(&self, uri: &MxcUri) -> Result<Vec<u8>> {
        let mut found = self.media().open(uri)?;
        let mut bytes = Vec::new();
        found.file.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn is_gone(&self, uri: &MxcUri) -> bool {
        self.read(uri).is_err_and(|e| e.errcode() == ErrCode::NotFound)
    }

    /// Until there is nothing more to do at once.
    fn sweep(&self) {
        let now = self.clock.now_ms();
        while self.media().sweep_media(now).expect("a sweep") == Some(now) {}
    }

    /// The names of all files, those of files that are being written with the name of their folder before them.
    fn files(&self) -> Vec<String> {
        fn walk(folder: &std::path::Path, into: &mut Vec<PathBuf>) {
            for entry in
                fs::read_dir(folder).into_iter().flatten().map(|entry| entry.expect("an entry").path())
            {
                if entry.is_dir() { walk(&entry, into) } else { into.push(entry) }
            }
        }
        let mut found = Vec::new();
        let folder = self.folder.join("media");
        walk(&folder, &mut found);
        let mut names: Vec<String> = found
            .iter()
            .map(|path| {
                let name = path.file_name().expect("a name").to_string_lossy().into_owned();
                if path.starts_with(folder.join("new")) { format!("new/{name}") } else { name }
            })
            .collect();
        names.sort();
        names
    }
}

#[test]
fn the_same_file_is_there_once_and_goes_with_the_last_that_has_it() {
    let house = House::new(|_| {});
    let (alice, bob) = (house.user("alice"), house.user("bob"));
    let uris = [
        house.upload(&alice, b"the same"),
        house.upload(&bob, b"the same"),
        house.upload(&alice, b"the same"),
    ];
    assert_eq!(house.files(), [BlobHash(sha2_of(b"the same")).to_string()]);
    assert_eq!(uris.iter().map(|uri| uri.media_id.as_str().len()).min(), Some(24));
    let found = house.media().open(&uris[0]).unwrap();
    assert_eq!(
        (found.row.content_type.as_deref(), found.row.upload_name.as_deref()),
        (Some("image/png"), Some("a.png"))
    );
    for (n, uri) in uris.iter().enumerate() {
        assert_eq!(house.read(uri).unwrap(), b"the same");
        house.media().delete(&Administrator::Operator, uri).unwrap();
        house.sweep();
        assert!(house.is_gone(uri));
        assert_eq!(house.files().len(), usize::from(n < 2), "{n}");
    }
    for user in [Some(&alice), Some(&bob), None] {
        assert_eq!(house.store.read(|db| db.media_bytes(user)).unwrap(), 0);
    }
    assert!(house.media().delete(&Administrator::Operator, &uris[0]).is_err());
    // And it can come again.
    let again = house.upload(&bob, b"the same");
    assert_eq!(house.read(&again).unwrap(), b"the same");
}

fn sha2_of(bytes: &[u8]) -> [u8; 32] {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).into()
}

#[test]
fn of_what_was_fetched_that_goes_which_was_not_asked_for_longest_and_nothing_of_ours() {
    let house = House::new(|config| {
        config.media_cache_bytes = 40_000;
        config.media_cache_days = 30;
    });
    let alice = house.user("alice");
    let own = house.upload(&alice, &[1; 100_000]);
    let first = house.fetched("first", &[2; 15_000]);
    house.clock.advance(Duration::from_secs(7200));
    let second = house.fetched("second", &[3; 15_000]);
    house.clock.advance(Duration::from_secs(7200));
    // It is asked for again, so that the other is what was not asked for longest.
    assert_eq!(house.read(&first).unwrap().len(), 15_000);
    let third = house.fetched("third", &[4; 15_000]);
    house.sweep();
    assert!(house.is_gone(&second));
    assert_eq!(house.files().len(), 3);
    // A flood is no more than the bound, and small files count for what they take of the disk.
    for n in 0..200_u32 {
        house.fetched(&format!("flood{n}"), &n.to_be_bytes());
    }
    house.sweep();
    assert!(house.store.read(|db| db.media_bytes(None)).unwrap() <= 40_000);
    assert!(house.files().len() <= 11, "{:?}", house.files());
    assert!(house.is_gone(&third));
    assert_eq!(house.read(&own).unwrap().len(), 100_000);
    // In time everything goes that nobody asks for.
    house.clock.advance(Duration::from_secs(31 * 86_400));
    house.sweep();
    assert_eq!(house.files().len(), 1);
    assert_eq!(house.read(&own).unwrap().len(), 100_000);
}

#[test]
fn a_file_that_is_larger_than_the_cache_can_be_read_by_who_fetched_it() {
    let house = House::new(|config| config.media_cache_bytes = 5000);
    let uri = MxcUri::parse("mxc://elsewhere.example/large").unwrap();
    let blob = house.media().store_stream(&mut &[7_u8; 20_000][..], 1 << 20).unwrap();
    let mut found = house.media().insert_remote(&uri, blob, Some("image/png, text/html"), None).unwrap();
    house.sweep();
    assert!(house.is_gone(&uri) && house.files().is_empty());
    let mut bytes = Vec::new();
    found.file.read_to_end(&mut bytes).unwrap();
    assert_eq!((bytes.len(), found.row.content_type), (20_000, None));
}

#[test]
fn after_a_start_there_is_no_file_that_nobody_has() {
    let mut house = House::new(|_| {});
    let alice = house.user("alice");
    let kept = house.upload(&alice, b"kept");
    // As a kill leaves them: being written; announced, renamed and not acknowledged.
    let mut cut_off = house.begin(&alice, None).unwrap();
    cut_off.write(b"cut off").unwrap();
    std::mem::forget(cut_off);
    let unacknowledged = house.media().store_stream(&mut &b"unacknowledged"[..], 100).unwrap();
    std::mem::forget(unacknowledged);
    // As a power cut leaves them, and an older copy of the database; and what is nobody's business.
    let untold = BlobHash(sha2_of(b"untold")).to_string();
    let media = house.folder.join("media");
    fs::create_dir_all(media.join(&untold[..2]).join(&untold[2..4])).unwrap();
    fs::write(media.join(&untold[..2]).join(&untold[2..4]).join(&untold), b"untold").unwrap();
    fs::write(media.join("README"), b"mine").unwrap();
    assert_eq!(house.files().len(), 5);
    house.reopen();
    house.sweep();
    let mut files = house.files();
    files.retain(|name| name != "README");
    assert_eq!(files, [BlobHash(sha2_of(b"kept")).to_string()]);
    assert_eq!(house.read(&kept).unwrap(), b"kept");
}

#[test]
fn what_is_quarantined_nobody_is_given_by_any_uri_and_nobody_brings_again() {
    let house = House::new(|config| config.media_cache_bytes = 5000);
    let alice = house.user("alice");
    let (own, fetched) = (house.upload(&alice, b"bad"), house.fetched("bad", b"bad"));
    let good = house.upload(&alice, b"good");
    house.media().quarantine(&Administrator::Operator, &fetched, true).unwrap();
    for uri in [&own, &fetched] {
        assert!(house.is_gone(uri), "{uri}");
    }
    assert_eq!(house.try_upload(&alice, b"bad").unwrap_err().status(), 403);
    let again = house.media().store_stream(&mut &b"bad"[..], 100);
    assert_eq!(again.err().map(|e| e.status()), Some(403));
    // Neither age nor a full cache makes it forgotten, nor does the end of all that has it.
    house.media().delete(&Administrator::Operator, &own).unwrap();
    house.clock.advance(Duration::from_secs(400 * 86_400));
    (0..10_u8).for_each(|n| drop(house.fetched(&format!("f{n}"), &[n])));
    house.sweep();
    assert!(house.is_gone(&fetched));
    assert_eq!(house.try_upload(&alice, b"bad").unwrap_err().status(), 403);
    // What was never here can be refused beforehand, unless it is one of ours.
    let never = MxcUri::parse("mxc://elsewhere.example/never").unwrap();
    house.media().quarantine(&Administrator::Operator, &never, true).unwrap();
    let blob = house.media().store_stream(&mut &b"never"[..], 100).unwrap();
    assert!(house.media().insert_remote(&never, blob, None, None).is_err());
    house
        .media()
        .quarantine(&Administrator::Operator, &MxcUri::parse("mxc://example.org/never").unwrap(), true)
        .unwrap_err();
    // And it can be taken back.
    house.media().quarantine(&Administrator::Operator, &fetched, false).unwrap();
    house.media().quarantine(&Administrator::Operator, &never, false).unwrap();
    assert_eq!(house.read(&fetched).unwrap(), b"bad");
    let blob = house.media().store_stream(&mut &b"never"[..], 100).unwrap();
    house.media().insert_remote(&never, blob, None, None).unwrap();
    assert_eq!(
        (house.read(&never).unwrap(), house.read(&good).unwrap()),
        (b"never".to_vec(), b"good".to_vec())
    );
}

#[test]
fn what_is_announced_is_uploaded_by_its_owner_once_and_in_time() {
    let house = House::new(|_| {});
    let (alice, bob) = (house.user("alice"), house.user("bob"));
    let (uri, expires_ms) = house.media().create(&alice).unwrap();
    assert!((86_400_000 - 60_000..=86_400_000).contains(&(expires_ms - house.clock.now_ms())));
    assert_eq!(house.media().open(&uri).err().map(|e| e.errcode()), Some(ErrCode::NotYetUploaded));
    let refusal = |user, uri: &MxcUri| house.begin(user, Some(uri)).err().map(|e| e.errcode());
    assert_eq!(refusal(&bob, &uri), Some(ErrCode::Forbidden));
    for unknown in ["mxc://example.org/unknown", "mxc://elsewhere.example/x"] {
        assert_eq!(refusal(&alice, &MxcUri::parse(unknown).unwrap()), Some(ErrCode::NotFound));
    }
    // Of two at once the first that is whole is the one.
    let mut both = [house.begin(&alice, Some(&uri)).unwrap(), house.begin(&alice, Some(&uri)).unwrap()];
    both[0].write(b"first").unwrap();
    both[1].write(b"second").unwrap();
    let [first, second] = both;
    assert_eq!(house.media().finish_upload(second).unwrap(), uri);
    assert_eq!(
        house.media().finish_upload(first).err().map(|e| e.errcode()),
        Some(ErrCode::CannotOverwriteMedia)
    );
    assert_eq!(house.read(&uri).unwrap(), b"second");
    assert_eq!(refusal(&alice, &uri), Some(ErrCode::CannotOverwriteMedia));

    let (late, _) = house.media().create(&alice).unwrap();
    let mut begun = house.begin(&alice, Some(&late)).unwrap();
    begun.write(b"late").unwrap();
    house.clock.advance(Duration::from_secs(86_400));
    assert_eq!(house.media().finish_upload(begun).err().map(|e| e.errcode()), Some(ErrCode::NotFound));
    assert_eq!(refusal(&alice, &late), Some(ErrCode::NotFound));
    assert!(house.is_gone(&late));
    house.sweep();
    assert_eq!(house.files(), [BlobHash(sha2_of(b"second")).to_string()]);

    let made = (0..).map_while(|_| house.media().create(&alice).ok()).count();
    assert_eq!(made, 50);
    assert_eq!(house.media().create(&alice).unwrap_err().status(), 429);
    house.media().create(&bob).unwrap();
    house.clock.advance(Duration::from_secs(86_400));
    house.media().create(&alice).unwrap();
}

#[test]
fn a_users_share_is_bounded_in_all_and_at_once_and_nobody_elses_is_touched() {
    let house = House::new(|config| {
        config.media_per_user = 20_000;
        config.media_max_upload = 12_000;
    });
    let (alice, bob) = (house.user("alice"), house.user("bob"));
    let mut large = house.begin(&alice, None).unwrap();
    large.write(&[0; 12_000]).unwrap();
    assert_eq!(large.write(b"x").unwrap_err().status(), 413);
    drop(large);
    let announced = |bytes| {
        let head = UploadHead { uri: None, content_type: None, file_name: None, bytes: Some(bytes) };
        house.media().begin_upload(&alice, head).err().map(|e| e.status())
    };
    assert_eq!((announced(12_000), announced(12_001)), (None, Some(413)));
    let kept = house.upload(&alice, &[0; 12_000]);
    assert_eq!(announced(9000), Some(403));
    assert_eq!(house.try_upload(&alice, &[1; 9000]).unwrap_err().status(), 403);
    // The smallest counts for what it takes of the disk.
    assert!(house.try_upload(&alice, b"a").is_ok());
    assert_eq!(house.try_upload(&alice, b"b").unwrap_err().status(), 403);
    house.upload(&bob, &[0; 12_000]);
    house.media().delete(&Administrator::Operator, &kept).unwrap();
    house.upload(&alice, &[1; 9000]);

    let begun: Vec<_> = (0..).map_while(|_| house.begin(&bob, None).ok()).collect();
    assert_eq!(begun.len(), 8);
    assert_eq!(house.begin(&bob, None).err().map(|e| e.status()), Some(429));
    drop(begun);
    house.begin(&bob, None).unwrap();
    house.sweep();
    assert_eq!(house.files().iter().filter(|name| name.starts_with("new/")).count(), 0);
}

#[test]
fn a_server_without_a_folder_has_files_without_names() {
    let config = Config::for_name(ServerName::parse("example.org").expect("a name"));
    let house = House { folder: temporary_folder("nameless"), hs: Some(crate::testing::secluded(config)) };
    let alice = house.user("alice");
    let uris =
        [house.upload(&alice, b""), house.upload(&alice, b"something"), house.upload(&alice, b"something")];
    assert_eq!(
        (house.read(&uris[0]).unwrap(), house.read(&uris[2]).unwrap()),
        (Vec::new(), b"something".to_vec())
    );
    uris.iter().for_each(|uri| house.media().delete(&Administrator::Operator, uri).unwrap());
    house.sweep();
    assert!(uris.iter().all(|uri| house.is_gone(uri)));
    let hash = BlobHash(sha2_of(b"something"));
    assert!(house.media_files.open_blob(&hash).unwrap().is_none());
}

#[test]
fn a_file_that_somebody_took_away_is_missed_and_what_can_be_had_again_is_forgotten() {
    let house = House::new(|_| {});
    let alice = house.user("alice");
    let (own, fetched) = (house.upload(&alice, b"own"), house.fetched("x", b"fetched"));
    for name in house.files() {
        let path = house.folder.join("media").join(&name[..2]).join(&name[2..4]).join(&name);
        if name == BlobHash(sha2_of(b"own")).to_string() {
            fs::remove_file(path).unwrap();
        } else {
            fs::write(path, b"fet").unwrap();
        }
    }
    assert!(house.is_gone(&own) && house.is_gone(&fetched));
    assert!(matches!(house.media().find(&fetched), Ok(FoundMedia::Absent)));
    house.sweep();
    // It is there again as soon as somebody brings it.
    let again = house.upload(&alice, b"own");
    assert_eq!((house.read(&own).unwrap(), house.read(&again).unwrap()), (b"own".to_vec(), b"own".to_vec()));
    let fetched = house.fetched("x", b"fetched");
    assert_eq!(house.read(&fetched).unwrap(), b"fetched");
}

#[test]
fn who_uploads_and_who_sweeps_at_the_same_moment_lose_nothing() {
    let house = House::new(|config| config.durable = false);
    let alice = house.user("alice");
    std::thread::scope(|scope| {
        let sweeping = scope.spawn(|| {
            for _ in 0..300 {
                house.media().sweep_media(house.clock.now_ms()).expect("a sweep");
            }
        });
        for thread in 0..3 {
            let (house, alice) = (&house, &alice);
            scope.spawn(move || {
                for round in 0..60 {
                    // All of them have the same few files, which come and go.
                    let uri = house.upload(alice, format!("file {}", round % 3).as_bytes());
                    assert!(house.read(&uri).is_ok(), "{thread} {round}");
                    house.media().delete(&Administrator::Operator, &uri).expect("a deletion");
                }
            });
        }
        sweeping.join().expect("no panic");
    });
    house.sweep();
    assert_eq!(house.files(), Vec::<String>::new());
}

#[test]
fn files_leave_room_on_the_disk_for_everything_else() {
    let mut house = House::new(|_| {});
    let alice = house.user("alice");
    let (own, fetched) = (house.upload(&alice, b"own"), house.fetched("x", b"fetched"));
    house.sweep();
    assert_eq!(house.read(&fetched).unwrap(), b"fetched");
    house.hs = None;
    let folder = house.folder.clone();
    // More than any disk has.
    house.hs = House::in_folder(folder, |config| config.media_keep_free = 1 << 60).hs.take();
    let refused = house.try_upload(&alice, b"more").expect_err("no room");
    assert_eq!((refused.status(), refused.errcode()), (507, ErrCode::Unknown));
    assert!(refused.message().contains("disk"), "{refused}");
    let fetch = house.media().store_stream(&mut &b"more"[..], 1 << 20);
    assert_eq!(fetch.err().map(|e| e.status()), Some(507));
    // What can be had again makes room; what cannot stays.
    house.sweep();
    assert!(house.is_gone(&fetched));
    assert_eq!(house.read(&own).unwrap(), b"own");
    assert_eq!(house.files(), [BlobHash(sha2_of(b"own")).to_string()]);
}
