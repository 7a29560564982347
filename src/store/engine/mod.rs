//! What a commit is, and how a database is opened.
//!
//! - `open`: opening it, in a `folder` with its lock, or in a `scratch` folder; `connection`: what every connection is told;
//!   `migrate`: its schema;
//! - `writer`: the thread that writes, and its group commit; `commit_feed`: who is told of commits;
//! - `due_rows`: what debug builds hold every write against: the timer is told of what is due;
//! - `readers`: the connections that read; `gate`: what keeps new ones out now and then;
//! - `statements`: how most statements are run;
//! - `backlogs`: how much there is still to be done;
//! - `inspect`: a database that is looked at and not opened;
//! - `restoring`: an empty folder that a server is restored into; `restored`: what becomes of a database that comes from a
//!   backup;
//! - `checkpoint`: the write-ahead log is folded into the database; `copy`, by `copy_steps`: a copy of it is made while
//!   it is written;
//! - `set_clock`: every time that is kept, and what becomes of it when a clock that was ahead is set right;
//! - `space`: what each table takes, and a database that is written anew;
//! - `template`: the schema, compiled once for all databases that are worth nothing;
//! - `sweep`: how tables that strangers fill are kept short; `sqlite_error`: what SQLite's errors mean.

pub(super) mod backlogs;
pub(super) mod checkpoint;
pub(super) mod commit_feed;
pub(super) mod connection;
pub(super) mod copy;
pub(super) mod copy_steps;
mod due_rows;
pub(super) mod folder;
pub(super) mod gate;
pub(crate) mod inspect;
pub mod migrate;
pub(super) mod open;
pub(super) mod readers;
pub mod restored;
pub mod restoring;
pub(super) mod scratch;
pub mod set_clock;
pub mod space;
pub(super) mod sqlite_error;
pub(super) mod statements;
pub(super) mod sweep;
pub(super) mod template;
pub(super) mod writer;
