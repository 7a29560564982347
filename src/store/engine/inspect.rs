//! A database that is looked at and not opened: beside a server that runs, or where none does. Nothing is written, and no
//! lock is kept.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::{folder, migrate};
use crate::clock::Millis;
use crate::error::Result;
use crate::protocol::ServerName;
use crate::protocol::signatures::sign::SigningKey;
use crate::store::Store;
use crate::store::engine::connection::{refusal, unusable};

/// Steps of SQLite between two looks at the time.
const STEPS_BETWEEN_LOOKS: i32 = 10_000;
/// Faults that are told of one database.
const FAULTS_MAX: usize = 20;

/// A key that the server signs with, or signed with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownKey {
    /// As in `ed25519:1`.
    pub id: String,
    /// Its public half, in base64.
    pub public_base64: String,
    /// Since when it is out of use.
    pub retired_ms: Option<Millis>,
}

/// A database that is looked at.
pub struct Inspection {
    connection: Connection,
    path: PathBuf,
    /// Whose it is.
    pub name: ServerName,
}

impl Store {
    /// Looks at the database in a folder. Errors: sentences for the operator.
    pub fn inspect(folder: &Path) -> Result<Inspection> {
        let path = folder.join(folder::FILE);
        let open = || {
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let connection = Connection::open_with_flags(&path, flags)?;
            connection.busy_timeout(Duration::from_secs(5))?;
            let name = migrate::pinned_name(&connection)?;
            Ok((connection, name))
        };
        let (connection, name) = open().map_err(|e: rusqlite::Error| unusable(&path, &e))?;
        let name = name.and_then(|name| ServerName::parse(&name).ok());
        let name = name.ok_or_else(|| refusal(format!("{} belongs to no server", path.display())))?;
        Ok(Inspection { connection, path, name })
    }

    /// Whether a process has this folder: its lock is taken for a moment to find out.
    pub fn is_served(folder: &Path) -> bool {
        File::open(folder.join(folder::LOCK)).is_ok_and(|lock| folder::is_taken(&lock))
    }
}

impl Inspection {
    /// The keys that the server signs with, and signed with before those.
    pub fn signing_keys(&self) -> Result<Vec<KnownKey>> {
        let mut statement = self.connection.prepare(
            "SELECT key_id, seed, expired_ms FROM signing_keys ORDER BY expired_ms IS NULL, expired_ms",
        )?;
        let mut rows = statement.query([])?;
        let mut all = Vec::new();
        while let Some(row) = rows.next()? {
            let (id, seed): (String, [u8; 32]) = (row.get(0)?, row.get(1)?);
            let public_base64 = SigningKey::from_seed(&id, seed)?.public_base64();
            all.push(KnownKey { id, public_base64, retired_ms: row.get(2)? });
        }
        Ok(all)
    }

    /// What of its tables is not as this program has it, in a sentence; none if all are.
    pub fn other_schema(&self) -> Result<Option<String>> {
        let different = migrate::difference(&self.connection).map_err(|e| unusable(&self.path, &e))?;
        Ok(different.map(|what| folder::another_schema(&self.path, &what)))
    }

    /// Other servers that took what they were sent last.
    pub fn good_destinations(&self, most: u32) -> Result<Vec<ServerName>> {
        let mut statement = self.connection.prepare(
            "SELECT server FROM destinations WHERE failures = 0 AND cursor > 0 ORDER BY cursor DESC LIMIT ?1",
        )?;
        let rows = statement.query_map([most], |row| row.get::<_, String>(0))?;
        let mut all = Vec::new();
        for server in rows {
            all.extend(ServerName::parse(&server?).ok());
        }
        Ok(all)
    }

    /// Looks at every page and row for what cannot be. None if that is not done in time; else the faults that were found.
    pub fn faults(&mut self, within: Duration) -> Result<Option<Vec<String>>> {
        let until = Instant::now() + within;
        self.connection.progress_handler(STEPS_BETWEEN_LOOKS, Some(move || Instant::now() > until))?;
        let look = || -> rusqlite::Result<Vec<String>> {
            let mut statement = self.connection.prepare(&format!("PRAGMA quick_check({FAULTS_MAX})"))?;
            statement.query_map([], |row| row.get(0))?.collect()
        };
        let found = look();
        self.connection.progress_handler(0, None::<fn() -> bool>)?;
        match found {
            Ok(lines) => Ok(Some(lines.into_iter().filter(|line| line != "ok").collect())),
            Err(e) if e.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) => Ok(None),
            // Some faults keep SQLite from looking for others.
            Err(e) if e.sqlite_error_code() == Some(ErrorCode::DatabaseCorrupt) => {
                Ok(Some(vec![e.to_string()]))
            }
            Err(e) => Err(unusable(&self.path, &e)),
        }
    }
}
