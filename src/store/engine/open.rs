//! Opening a database, in a folder or in memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::{Connection, OpenFlags};

use crate::error::Result;
use crate::protocol::ServerName;
use crate::store::engine::checkpoint::Checkpointer;
use crate::store::engine::commit_feed::OnCommit;
use crate::store::engine::connection::{
    Options, WRITER_CACHE_KIB, keep_few_pages, open_for_writing, refusal, unusable,
};
use crate::store::engine::folder::{self, FILE, cannot};
use crate::store::engine::migrate::{self, MayBe};
use crate::store::engine::readers::Readers;
use crate::store::engine::scratch::ScratchFolder;
use crate::store::engine::space::PagesFile;
use crate::store::engine::template;
use crate::store::engine::writer::Writer;
use crate::store::{Store, StoreState};

/// Where the database lives.
#[derive(Debug, Clone)]
pub enum Location {
    /// A folder that holds `doorstep.db`; created (mode 0700) if it does not exist.
    Folder(PathBuf),
    /// Nowhere: gone with the process, however the process ends. For fixtures.
    Memory,
    /// The same, beginning with what another one held.
    MemoryAgain(Arc<ScratchFolder>),
}

/// Positions that are passed over at each start: clients may have been told of some that a power cut took back, because
/// only light commits had written them. There is no shortage of positions.
const POSITIONS_PASSED_OVER: i64 = 20_000;

impl Store {
    /// Opens the database, creating or migrating it if need be. `server_name` is pinned on the first opening.
    ///
    /// Errors are sentences for the operator: not our file, made by a newer Doorstep, another server's name, already
    /// open in another process, not writable. In each case nothing was changed.
    pub fn open(
        location: Location,
        server_name: &ServerName,
        on_commit: OnCommit,
        options: &Options,
    ) -> Result<Store> {
        let (folder, scratch) = match location {
            Location::Folder(folder) => (folder, None),
            Location::Memory => {
                let scratch = Arc::new(ScratchFolder::new()?);
                let made = fs::write(scratch.path().join(FILE), template::bytes()?);
                made.map_err(|e| cannot(scratch.path(), e))?;
                (scratch.path().to_owned(), Some(scratch))
            }
            Location::MemoryAgain(scratch) => (scratch.path().to_owned(), Some(scratch)),
        };
        let lock = if scratch.is_none() { Some(folder::lock(&folder)?) } else { None };
        let path = folder.join(FILE);
        let mut connection = match &lock {
            Some(lock) => folder::open(&folder, lock, server_name, options)?,
            None => {
                let mut connection = open_for_writing(&path, options)?;
                migrate::prepare(&mut connection, &path, server_name, MayBe { new: true, renamed: false })?;
                migrate::pin(&connection, server_name).map_err(|e| unusable(&path, &e))?;
                connection
            }
        };
        let position = pass_over(&connection).map_err(|e| unusable(&path, &e))?;
        let shared = StoreState::new(&connection, server_name, position).map_err(|e| unusable(&path, &e))?;
        let shared = Arc::new(shared);
        let readers = Readers::new(path.clone(), options, scratch.is_some(), shared.clone())?;
        keep_few_pages(&connection, WRITER_CACHE_KIB).map_err(|e| unusable(&path, &e))?;
        let checkpointer = match &scratch {
            None => Some(Checkpointer::new(&mut connection, &path, options.durable, readers.gate())?),
            // Nothing waits for a disk there.
            Some(_) => None,
        };
        // From here on only open handles lead to a scratch database; nothing is left behind, even by a kill.
        drop(scratch);
        let writer = Writer::start(connection, checkpointer, shared.clone(), on_commit, options.durable)?;
        let pages = PagesFile::default();
        Ok(Store { readers, writer, shared, pages, _lock: lock })
    }

    /// A copy of all there is, for another store in memory to begin with.
    pub fn copy_to_memory(&self) -> Result<Location> {
        let scratch = ScratchFolder::new()?;
        self.readers.copy_to(&scratch.path().join(FILE))?;
        Ok(Location::MemoryAgain(Arc::new(scratch)))
    }

    /// The name of the server whose database is in this folder. Errors: sentences for the operator.
    pub fn name_of(folder: &Path) -> Result<ServerName> {
        let path = folder.join(FILE);
        let open = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY);
        let name = open.and_then(|connection| migrate::pinned_name(&connection));
        let name = name.map_err(|e| unusable(&path, &e))?;
        name.and_then(|name| ServerName::parse(&name).ok())
            .ok_or_else(|| refusal(format!("{} belongs to no server", path.display())))
    }
}

/// Begins behind every position that may ever have been given out; gives the last one that is taken.
fn pass_over(connection: &Connection) -> rusqlite::Result<i64> {
    connection.execute("UPDATE server SET stream = stream + ?1 WHERE stream > 0", [POSITIONS_PASSED_OVER])?;
    connection.query_row("SELECT stream FROM server", [], |row| row.get(0))
}
