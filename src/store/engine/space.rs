//! Where the bytes of the database are: how many pages each table has, and each of its indexes.
//!
//! SQLite's own statistics read every page, within one snapshot, which on a large database takes as long as the disk does and
//! keeps the log from being started over. Here only the pages are read that say where others are, one in a hundred, and from
//! the file itself. What is written meanwhile makes the figures a little wrong, and nothing else: whatever a page says is
//! checked before it is followed.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Mutex;

use rusqlite::Connection;

use crate::durable::{give_to_owner_of, put_in_place};
use crate::error::{Error, Result};
use crate::locks::lock;
use crate::order;
use crate::store::engine::connection::{Options, open_for_writing, refusal, unusable};
use crate::store::engine::folder::{self, FILE, beside, cannot};
use crate::store::engine::migrate::{self, MayBe};
use crate::store::sizes::count;
use crate::store::{Db, Store};

/// A database that is being written anew.
pub const VACUUMED: &str = "doorstep.db.vacuum";

/// A tree of pages is no deeper than this, or it is none.
const DEPTH_MAX: usize = 20;
/// Of a tree at most one page in so many is read, and some more.
const READ_OF_ALL: u64 = 8;
const READ_MAX_OF_SMALL: u64 = 1000;

/// Kinds of pages (SQLite's file format, 1.6).
const INDEX_INTERIOR: u8 = 2;
const TABLE_INTERIOR: u8 = 5;
const INDEX_LEAF: u8 = 10;
const TABLE_LEAF: u8 = 13;

/// What one table takes, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableSpace {
    /// Its name.
    pub name: String,
    /// Its rows, but for what does not fit into a page of one.
    pub bytes: u64,
    /// Its indexes.
    pub index_bytes: u64,
}

/// What the database takes, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DatabaseSpace {
    /// All of it, without the log.
    pub bytes: u64,
    /// The write-ahead log.
    pub log_bytes: u64,
    /// What is free in it: it is used again before the file grows, and given back by `doorstep vacuum`.
    pub free_bytes: u64,
    /// Each table, the largest first; none where the database has no name.
    pub tables: Vec<TableSpace>,
    /// The rest: parts of rows that are longer than a page.
    pub long_rows_bytes: u64,
}

/// The database's file, from when its pages were first looked at until nobody has the database any more. Closed before, it
/// would take all locks of this process on the database with it, SQLite's too (POSIX has it so): then another program that
/// looked into the database would believe to be the only one, and delete the log on closing it.
#[derive(Default)]
pub(in crate::store) struct PagesFile(Mutex<Option<File>>);

impl Store {
    /// Reads bytes of the database's file as they are at the moment, whoever writes them: how many. None: it cannot be read.
    pub(in crate::store) fn read_page_bytes(&self, into: &mut [u8], at: u64) -> Option<usize> {
        let mut held = lock(&self.pages.0);
        if held.is_none() {
            // A database in memory has no name any more.
            *held = File::open(self.readers.path()).ok();
        }
        held.as_ref()?.read_at(into, at).ok()
    }

    /// Where the bytes of the database are.
    pub fn space(&self) -> Result<DatabaseSpace> {
        let path = self.readers.path();
        let found = self.read(|db| {
            let of = |pragma: &str| Ok::<u64, Error>(db.conn().query_row(pragma, [], |row| count(row, 0))?);
            let pages = of("SELECT page_count FROM pragma_page_count")?;
            let page = of("SELECT page_size FROM pragma_page_size")?;
            let free = of("SELECT freelist_count FROM pragma_freelist_count")?;
            Ok((pages, page, free, db.trees()?))
        });
        let (pages, page, free, trees) = found?;
        let mut space = DatabaseSpace {
            bytes: pages * page,
            log_bytes: fs::metadata(beside(path, "-wal")).map_or(0, |log| log.len()),
            free_bytes: free * page,
            ..DatabaseSpace::default()
        };
        let mut held = lock(&self.pages.0);
        if held.is_none() {
            // A database in memory has no name any more.
            *held = File::open(path).ok();
        }
        let Some(file) = &*held else { return Ok(space) };
        let mut tables: BTreeMap<String, TableSpace> = BTreeMap::new();
        let mut counted = 0;
        for Tree { table, is_index, root } in trees {
            let mut walk = Walk {
                file,
                page: vec![0; page as usize],
                pages,
                left: pages / READ_OF_ALL + READ_MAX_OF_SMALL,
            };
            let bytes = walk.count(root, 0) * page;
            counted += bytes;
            let of_table =
                tables.entry(table.clone()).or_insert(TableSpace { name: table, bytes: 0, index_bytes: 0 });
            *(if is_index { &mut of_table.index_bytes } else { &mut of_table.bytes }) += bytes;
        }
        space.long_rows_bytes = space.bytes.saturating_sub(space.free_bytes + counted);
        space.tables = tables.into_values().collect();
        order::sort_by_key(&mut space.tables, |table| std::cmp::Reverse(table.bytes + table.index_bytes));
        Ok(space)
    }

    /// Makes the database of a folder that no server has as small as it can be: all of it is written anew, beside the old one,
    /// which it then replaces. Gives how large it was, and is.
    ///
    /// Errors: sentences for the operator: a server runs; there is no database, or one of another state of this program; the disk has no
    /// room for another. Then the database is as it was.
    pub fn vacuum(folder: &Path) -> Result<(u64, u64)> {
        let (path, new) = (folder.join(FILE), folder.join(VACUUMED));
        let sql = |e: rusqlite::Error| unusable(&path, &e);
        // Also where there is no server: the folder is not to be made.
        let name = Self::name_of(folder)?;
        let _lock = folder::lock(folder)?;
        let options = Options::default();
        let mut connection = open_for_writing(&path, &options)?;
        migrate::prepare(&mut connection, &path, &name, MayBe::default())?;
        folder::refuse_another_schema(&connection, &path)?;
        let size = |path: &Path| fs::metadata(path).map(|found| found.len()).map_err(|e| cannot(folder, e));
        remove(&new).map_err(|e| cannot(folder, e))?;
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)
            .map_err(|e| cannot(folder, e))?;
        let written = write_anew(&connection, &new).map_err(|e| match sql(e) {
            e if e.message().contains("full") => {
                refusal(format!("The disk has no room for a second copy of {}", path.display()))
            }
            e => e,
        });
        let closed = connection.close().map_err(|(_, e)| sql(e));
        let replaced = written.and(closed).and_then(|()| {
            // A log that stayed would be taken for the new database's.
            if fs::metadata(beside(&path, "-wal")).is_ok_and(|log| log.len() > 0) {
                return Err(refusal(format!("The log of {} could not be folded into it", path.display())));
            }
            let before = size(&path)?;
            give_to_owner_of(&path, &new).map_err(|e| cannot(folder, e))?;
            put_in_place(&new, &path).map_err(|e| cannot(folder, e))?;
            Ok((before, size(&path)?))
        });
        if replaced.is_err() {
            let _ = remove(&new);
        }
        replaced
    }
}

fn write_anew(connection: &Connection, new: &Path) -> rusqlite::Result<()> {
    connection.execute("VACUUM INTO ?1", [new.to_string_lossy()])?;
    // The last to close folds the log into the database; this says whether it can.
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
}

fn remove(path: &Path) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// A table, or an index of one, by the page that it begins with.
struct Tree {
    table: String,
    is_index: bool,
    root: u64,
}

impl Db<'_> {
    fn trees(&self) -> Result<Vec<Tree>> {
        let mut query = self.conn().prepare_cached(
            "SELECT tbl_name, type = 'index', rootpage FROM sqlite_schema WHERE rootpage > 0",
        )?;
        // The schema itself begins with the first page.
        let schema = Tree { table: "sqlite_schema".to_owned(), is_index: false, root: 1 };
        let rows = query.query_map([], |row| {
            Ok(Tree { table: row.get(0)?, is_index: row.get(1)?, root: count(row, 2)? })
        })?;
        rows.chain([Ok(schema)]).collect::<rusqlite::Result<_>>().map_err(Into::into)
    }
}

/// A walk through one tree.
struct Walk<'f> {
    file: &'f File,
    page: Vec<u8>,
    /// How many pages there are in all.
    pages: u64,
    /// How many more may be read.
    left: u64,
}

impl Walk<'_> {
    /// The pages beneath this one that others say are there, and itself.
    fn count(&mut self, number: u64, depth: usize) -> u64 {
        let Some(children) = self.children(number) else { return 1 };
        if depth >= DEPTH_MAX {
            return 1;
        }
        // All leaves are equally deep: what the first child is, the others are too.
        let first_is_leaf = children.first().is_none_or(|first| self.children(*first).is_none());
        if first_is_leaf {
            return 1 + children.len() as u64;
        }
        1 + children.into_iter().map(|child| self.count(child, depth + 1)).sum::<u64>()
    }

    /// The children of a page; none if it is a leaf, or what is read there is nothing of the kind.
    fn children(&mut self, number: u64) -> Option<Vec<u64>> {
        self.left = self.left.checked_sub(1)?;
        let at = number.checked_sub(1).filter(|_| number <= self.pages)? * self.page.len() as u64;
        self.file.read_exact_at(&mut self.page, at).ok()?;
        let begin = if number == 1 { 100 } else { 0 };
        let page = &self.page;
        if !matches!(page[begin], INDEX_INTERIOR | TABLE_INTERIOR) {
            debug_assert!(matches!(page[begin], INDEX_LEAF | TABLE_LEAF | 0) || !page.is_empty());
            return None;
        }
        let two = |at: usize| Some(usize::from(u16::from_be_bytes(page.get(at..at + 2)?.try_into().ok()?)));
        let four = |at: usize| Some(u64::from(u32::from_be_bytes(page.get(at..at + 4)?.try_into().ok()?)));
        let cells = two(begin + 3)?;
        let mut children = Vec::with_capacity(cells + 1);
        for cell in 0..cells {
            children.push(four(two(begin + 12 + 2 * cell)?)?);
        }
        children.push(four(begin + 8)?);
        Some(children)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::ServerName;
    use crate::store::tests::Folder;
    use crate::store::{Location, Options};

    fn store(folder: &Folder) -> Store {
        let name = ServerName::parse("example.org").unwrap();
        Store::open(Location::Folder(folder.0.clone()), &name, Box::new(|_| {}), &Options::default()).unwrap()
    }

    fn fill(store: &Store, rows: i64, bytes: i64) {
        store
            .write(move |tx| {
                for row in 0..rows {
                    tx.conn().execute(
                        "INSERT INTO account_data VALUES ('@a:example.org', '', printf('%d-%d', ?2, ?1), hex(randomblob(?2)), ?1)",
                        [row, bytes],
                    )?;
                }
                Ok(())
            })
            .unwrap();
    }

    #[test]
    fn each_table_has_about_the_pages_that_its_rows_take() {
        let folder = Folder::new();
        let open = store(&folder);
        fill(&open, 10_000, 200);
        // As the next start finds it: all of it in the file.
        drop(open);
        let open = store(&folder);
        let space = open.space().unwrap();
        let table = space.tables.first().unwrap();
        assert_eq!(table.name, "account_data", "the largest is first");
        let rows = 10_000 * 2 * 200;
        assert!((rows..rows * 3 / 2).contains(&table.bytes), "{table:?}");
        assert!((10_000 * 20..10_000 * 60).contains(&table.index_bytes), "{table:?}");
        let counted: u64 = space.tables.iter().map(|table| table.bytes + table.index_bytes).sum();
        assert_eq!(counted + space.free_bytes + space.long_rows_bytes, space.bytes);
        assert!(space.long_rows_bytes <= 12 * 4096, "no row is long: {space:?}");
        // What is longer than a page is told as such.
        fill(&open, 100, 20_000);
        drop(open);
        let space = store(&folder).space().unwrap();
        assert!((100 * 36_000..100 * 45_000).contains(&space.long_rows_bytes), "{}", space.long_rows_bytes);
    }

    #[test]
    fn a_file_that_is_not_what_it_was_gives_figures_and_nothing_worse() {
        let folder = Folder::new();
        let open = store(&folder);
        fill(&open, 2000, 200);
        drop(open);
        let path = folder.0.join(FILE);
        let whole = fs::read(&path).unwrap();
        let open = store(&folder);
        for round in 0..50_usize {
            // What a checkpoint that is under way may show: any page in the place of any other, or nothing.
            let mut bytes = whole.clone();
            for n in 0..20_usize {
                let [to, from] =
                    [(round * 31 + n * 7) % 300, (round * 17 + n * 13) % 300].map(|page| page * 4096);
                if to + 4096 <= bytes.len() && from + 4096 <= bytes.len() {
                    bytes.copy_within(from..from + 4096, to);
                }
            }
            let other = folder.0.join("other");
            fs::write(&other, &bytes).unwrap();
            let file = File::open(&other).unwrap();
            let pages = bytes.len() as u64 / 4096;
            for root in 1..=pages {
                let mut walk = Walk { file: &file, page: vec![0; 4096], pages, left: pages };
                walk.count(root, 0);
            }
        }
        drop(open);
    }

    #[test]
    fn a_database_that_was_vacuumed_has_everything_and_is_smaller() {
        let folder = Folder::new();
        let open = store(&folder);
        fill(&open, 3000, 1000);
        let drop_most = "DELETE FROM account_data WHERE stream % 10 > 0";
        open.write(move |tx| Ok(tx.conn().execute(drop_most, [])?)).unwrap();
        assert!(Store::vacuum(&folder.0).unwrap_err().message().contains("in use"), "a server runs");
        drop(open);
        let (before, after) = Store::vacuum(&folder.0).unwrap();
        assert!(after < before / 3, "{before} {after}");
        let names: Vec<_> =
            fs::read_dir(&folder.0).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(names.iter().all(|name| name == FILE || name == "doorstep.lock"), "{names:?}");
        let open = store(&folder);
        let count = "SELECT count(*) FROM account_data";
        let rows: i64 = open.read(|db| Ok(db.conn().query_row(count, [], |row| row.get(0))?)).unwrap();
        assert_eq!(rows, 300);
        assert_eq!(open.space().unwrap().free_bytes, 0);
        assert!(Store::vacuum(&folder.0.join("nothing")).is_err());
        assert!(!folder.0.join("nothing").exists());
    }
}
