//! The age of a database: new ones get `schema.sql`, old ones the steps up to it, newer ones are left alone.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use crate::error::Result;
use crate::protocol::ServerName;
use crate::store::engine::connection::{refusal, unusable};

/// The present schema.
pub const SCHEMA: &str = include_str!("../../../schema.sql");

/// `PRAGMA application_id` of our files: "Door".
const APPLICATION_ID: i32 = 0x446f_6f72;

/// `STEPS[i]` makes version `i + 2` of version `i + 1`. A step is never changed once released; the schema that it
/// starts from is kept beside the tests.
const STEPS: &[&str] = &[];

/// The version of `SCHEMA`.
pub const VERSION: i32 = STEPS.len() as i32 + 1;

/// Makes the database ready for this program. One transaction: either the database is of the present version
/// afterwards, or it is untouched. `may_be_new`: whether one without anything in it is made ours, or refused.
pub(in crate::store) fn prepare(
    connection: &mut Connection,
    path: &Path,
    server_name: &ServerName,
    may_be_new: bool,
) -> Result<()> {
    let sql = |e: rusqlite::Error| unusable(path, &e);
    let shown = path.display();
    let application: i32 = connection.query_row("PRAGMA application_id", [], |r| r.get(0)).map_err(sql)?;
    let version: i32 = connection.query_row("PRAGMA user_version", [], |r| r.get(0)).map_err(sql)?;
    let is_new = application == 0 && version == 0 && {
        connection.query_row("SELECT count(*) = 0 FROM sqlite_schema", [], |r| r.get(0)).map_err(sql)?
    };
    if is_new && !may_be_new {
        return Err(refusal(format!(
            "The database {shown} has nothing in it: it may have been copied without its log ({shown}-wal). Please \
             restore all of it, or remove it to begin anew"
        )));
    }
    if !is_new && application != APPLICATION_ID {
        return Err(refusal(format!("{shown} is a database of another program, not Doorstep's")));
    }
    if version > VERSION {
        return Err(refusal(format!(
            "{shown} was made by a newer Doorstep (its schema is version {version}, this program knows {VERSION}): \
             please start that one"
        )));
    }
    if !is_new
        && let Some(name) = pinned_name(connection).map_err(sql)?
        && name != server_name.as_str()
    {
        return Err(refusal(format!(
            "{shown} belongs to the server {name}, not to {server_name}: a server's name can never change"
        )));
    }
    keep_log(connection).map_err(sql)?;
    if is_new {
        create(connection, Some(server_name)).map_err(sql)?;
    } else if version < VERSION {
        upgrade(connection, version, STEPS).map_err(sql)?;
    }
    Ok(())
}

/// Makes an empty file the database of nobody yet.
pub(super) fn lay_out(connection: &mut Connection, path: &Path) -> Result<()> {
    keep_log(connection).and_then(|()| create(connection, None)).map_err(|e| unusable(path, &e))
}

fn keep_log(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "journal_size_limit", 16 << 20)
}

/// Makes a database that was laid out the one of this server; one that is somebody's stays theirs.
pub(super) fn pin(connection: &Connection, server_name: &ServerName) -> rusqlite::Result<()> {
    let name = server_name.as_str();
    let sql = "INSERT INTO server (one, name, stream) VALUES (1, ?1, 0) ON CONFLICT (one) DO NOTHING";
    connection.execute(sql, [name]).map(drop)
}

pub(in crate::store) fn pinned_name(connection: &Connection) -> rusqlite::Result<Option<String>> {
    use rusqlite::OptionalExtension;
    connection.query_row("SELECT name FROM server", [], |r| r.get(0)).optional()
}

fn create(connection: &mut Connection, server_name: Option<&ServerName>) -> rusqlite::Result<()> {
    let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    tx.execute_batch(SCHEMA)?;
    if let Some(server_name) = server_name {
        pin(&tx, server_name)?;
    }
    tx.pragma_update(None, "application_id", APPLICATION_ID)?;
    tx.pragma_update(None, "user_version", VERSION)?;
    tx.commit()
}

/// Runs the steps from `version` on in one transaction.
fn upgrade(connection: &mut Connection, version: i32, steps: &[&str]) -> rusqlite::Result<()> {
    let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let first = usize::try_from(version - 1).unwrap_or(0);
    for (done, step) in steps.iter().enumerate().skip(first) {
        tx.execute_batch(step)?;
        log::info!("the database is now version {}", done + 2);
    }
    tx.pragma_update(None, "user_version", steps.len() as i32 + 1)?;
    tx.commit()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The schemas that were ever released, oldest first, with the version that each is.
    const RELEASED: &[(i32, &str)] = &[];

    /// Every table, index and trigger with its definition, spaces evened out.
    fn shape(connection: &Connection) -> Vec<(String, String)> {
        let mut statement = connection
            .prepare("SELECT name, coalesce(sql, '') FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%' ORDER BY name")
            .unwrap();
        let rows = statement.query_map([], |r| Ok((r.get::<_, String>(0)?, r.get::<_, String>(1)?))).unwrap();
        rows.map(|row| {
            let (name, sql) = row.unwrap();
            let without_comments: Vec<&str> =
                sql.lines().map(|l| l.split("--").next().unwrap_or("")).collect();
            let words =
                without_comments.join(" ").replace('(', " ( ").replace(')', " ) ").replace(',', " , ");
            (name, words.split_whitespace().collect::<Vec<_>>().join(" "))
        })
        .collect()
    }

    #[test]
    fn an_old_database_and_the_steps_make_the_present_schema() {
        let fresh = Connection::open_in_memory().unwrap();
        fresh.execute_batch(SCHEMA).unwrap();
        for (version, schema) in RELEASED {
            let mut old = Connection::open_in_memory().unwrap();
            old.execute_batch(schema).unwrap();
            upgrade(&mut old, *version, STEPS).unwrap();
            assert_eq!(shape(&old), shape(&fresh), "from version {version}");
        }
    }

    #[test]
    fn every_table_is_strict() {
        let fresh = Connection::open_in_memory().unwrap();
        fresh.execute_batch(SCHEMA).unwrap();
        let lax: i64 = fresh
            .query_row(
                "SELECT count(*) FROM pragma_table_list
                 WHERE strict = 0 AND type = 'table' AND name NOT LIKE 'sqlite_%'",
                [],
                |r| r.get(0),
            )
            .unwrap();
        assert_eq!(lax, 0);
    }

    #[test]
    fn steps_run_in_order_and_from_where_the_database_stands() {
        let steps = ["CREATE TABLE a (x INTEGER) STRICT", "ALTER TABLE a ADD COLUMN y TEXT", "DROP TABLE a"];
        let mut connection = Connection::open_in_memory().unwrap();
        upgrade(&mut connection, 1, &steps[..2]).unwrap();
        connection.execute("INSERT INTO a VALUES (1, 'kept')", []).unwrap();
        let version: i32 = connection.query_row("PRAGMA user_version", [], |r| r.get(0)).unwrap();
        assert_eq!(version, 3);
        upgrade(&mut connection, version, &steps).unwrap();
        assert!(connection.execute("INSERT INTO a VALUES (2, 'gone')", []).is_err());
    }

    #[test]
    fn a_step_that_fails_leaves_the_database_as_it_was() {
        let mut connection = Connection::open_in_memory().unwrap();
        connection.pragma_update(None, "user_version", 1).unwrap();
        assert!(upgrade(&mut connection, 1, &["CREATE TABLE a (x INTEGER) STRICT", "nonsense"]).is_err());
        let version: i32 = connection.query_row("PRAGMA user_version", [], |r| r.get(0)).unwrap();
        assert_eq!((version, shape(&connection).len()), (1, 0));
    }
}
