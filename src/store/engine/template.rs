//! A database with nothing in it but the schema, made once in a process for all those whose data is worth nothing: each of a
//! hundred servers of a test would compile the same SQL again, and keep the pages that it wrote in its cache.

use std::fs;
use std::sync::OnceLock;

use crate::error::{Result, reason};
use crate::store::engine::connection::{Options, open_for_writing, refusal, unusable};
use crate::store::engine::migrate;
use crate::store::engine::scratch::ScratchFolder;

/// The bytes of one. It belongs to no server before [`migrate::pin`].
pub(super) fn bytes() -> Result<&'static [u8]> {
    static MADE: OnceLock<Vec<u8>> = OnceLock::new();
    match MADE.get() {
        Some(made) => Ok(made),
        // Of two who come at once, one has made it in vain.
        None => make().map(|made| MADE.get_or_init(|| made).as_slice()),
    }
}

fn make() -> Result<Vec<u8>> {
    let scratch = ScratchFolder::new()?;
    let path = scratch.path().join("template.db");
    let mut connection = open_for_writing(&path, &Options { durable: false, ..Options::default() })?;
    migrate::lay_out(&mut connection, &path)?;
    // The last to close folds the log into the database.
    connection.close().map_err(|(_, e)| unusable(&path, &e))?;
    fs::read(&path).map_err(|e| refusal(format!("{} cannot be read: {}", path.display(), reason(&e))))
}
