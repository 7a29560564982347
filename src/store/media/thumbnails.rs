//! Thumbnails: which were made of each file, and of what size.

use rusqlite::{OptionalExtension, params};

use super::{BlobHash, Db, Tx};
use crate::error::Result;

/// Which thumbnail of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ThumbnailKey {
    /// The picture's file.
    pub source: BlobHash,
    /// Of the box, in pixels.
    pub width: u32,
    /// The same.
    pub height: u32,
    /// `crop` or `scale`.
    pub method: &'static str,
}

/// A thumbnail that was made.
#[derive(Debug, Clone)]
pub struct ThumbnailRow {
    /// Its file.
    pub hash: BlobHash,
    /// How large that is.
    pub bytes: u64,
    /// What it is.
    pub content_type: String,
}

impl Db<'_> {
    /// The thumbnail, if it was made.
    pub fn thumbnail(&self, key: &ThumbnailKey) -> Result<Option<ThumbnailRow>> {
        let mut query = self.conn().prepare_cached(
            "SELECT hash, bytes, content_type FROM media_thumbnails JOIN media_blobs USING (hash)
             WHERE source = ?1 AND width = ?2 AND height = ?3 AND method = ?4 AND animated = 0",
        )?;
        let row = query.query_row(params![key.source, key.width, key.height, key.method], |row| {
            let bytes = row.get::<_, i64>(1)?.unsigned_abs();
            Ok(ThumbnailRow { hash: row.get(0)?, bytes, content_type: row.get(2)? })
        });
        Ok(row.optional()?)
    }
}

impl Tx<'_> {
    /// Writes down what was made, unless the picture is gone. What was made before has lost its file.
    pub fn add_thumbnail(&mut self, key: &ThumbnailKey, made: &ThumbnailRow) -> Result<()> {
        // Not by one statement: what REPLACE deletes no trigger counts.
        self.execute(
            "DELETE FROM media_thumbnails
             WHERE source = ?1 AND width = ?2 AND height = ?3 AND method = ?4 AND animated = 0",
            params![key.source, key.width, key.height, key.method],
        )?;
        self.execute(
            "INSERT INTO media_thumbnails (source, width, height, method, animated, hash, content_type)
             SELECT ?1, ?2, ?3, ?4, 0, ?5, ?6 WHERE EXISTS (SELECT 1 FROM media_blobs WHERE hash = ?1)",
            params![key.source, key.width, key.height, key.method, made.hash, made.content_type],
        )?;
        Ok(())
    }
}
