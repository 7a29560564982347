//! What a commit is: opening, the writer, the readers, the write-ahead log, migrations, and the news of commits.

pub(super) mod checkpoint;
pub(super) mod commit_feed;
pub(super) mod folder;
pub(super) mod gate;
pub mod migrate;
pub(super) mod readers;
pub(super) mod sqlite_error;
pub(super) mod sweep;
pub(super) mod writer;
