//! The age of a database: new ones get `schema.sql`, old ones the steps up to it, newer ones are left alone.

use std::collections::HashMap;
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

/// What a database may be that is made ready.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::store) struct MayBe {
    /// One without anything in it.
    pub new: bool,
    /// One of another name that nobody was ever served by.
    pub renamed: bool,
}

/// Makes the database ready for this program. One transaction: either the database is of the present version
/// afterwards, or it is untouched.
pub(in crate::store) fn prepare(
    connection: &mut Connection,
    path: &Path,
    server_name: &ServerName,
    may_be: MayBe,
) -> Result<()> {
    let sql = |e: rusqlite::Error| unusable(path, &e);
    let shown = path.display();
    let application: i32 = connection.query_row("PRAGMA application_id", [], |r| r.get(0)).map_err(sql)?;
    let version: i32 = connection.query_row("PRAGMA user_version", [], |r| r.get(0)).map_err(sql)?;
    let is_new = application == 0 && version == 0 && {
        connection.query_row("SELECT count(*) = 0 FROM sqlite_schema", [], |r| r.get(0)).map_err(sql)?
    };
    if is_new && !may_be.new {
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
        && !(may_be.renamed && is_without_users(connection).map_err(sql)?)
    {
        return Err(refusal(format!(
            "{shown} belongs to the server {name}, not to {server_name}: a server's name can never change. Leave \
             --name out, or say --name {name}"
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

/// A table, an index or a trigger of the database that is not what the schema says, or one that it lacks; none if all is as it
/// should be. Spaces and comments do not matter. Until the first release the schema changes without a new version, and a database of
/// another state of it would fail where its tables are asked.
pub(super) fn difference(connection: &Connection) -> rusqlite::Result<Option<String>> {
    if is_as_written(connection)? { Ok(None) } else { different_definition(connection) }
}

/// What a database consists of.
const DEFINITIONS: &str = "SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL";

/// Whether something is in a database because the schema says so; the tables of the index of words are SQLite's own.
fn is_defined_by_us(name: &str) -> bool {
    !name.starts_with("sqlite_") && !name.starts_with("event_texts_")
}

/// Whether a database is the schema to the letter and in its order, as one is that this program laid out: no start has to wait for
/// more than that.
fn is_as_written(connection: &Connection) -> rusqlite::Result<bool> {
    let mut statement = connection.prepare(DEFINITIONS)?;
    let (mut rows, mut to_come) = (statement.query([])?, next_definition(SCHEMA));
    while let Some(row) = rows.next()? {
        if !is_defined_by_us(row.get_ref(0)?.as_str()?) {
            continue;
        }
        match to_come.strip_prefix(row.get_ref(1)?.as_str()?).and_then(|rest| rest.strip_prefix(';')) {
            Some(rest) => to_come = next_definition(rest),
            None => return Ok(false),
        }
    }
    Ok(to_come.is_empty())
}

/// The schema from its next definition on.
fn next_definition(schema: &str) -> &str {
    let mut rest = schema.trim_start();
    while rest.starts_with("--") || rest.starts_with("INSERT ") {
        rest = rest.split_once('\n').map_or("", |(_, after)| after.trim_start());
    }
    rest
}

fn different_definition(connection: &Connection) -> rusqlite::Result<Option<String>> {
    let mut wanted = definitions(SCHEMA);
    let mut statement = connection.prepare(DEFINITIONS)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let name = row.get_ref(0)?.as_str()?;
        if !is_defined_by_us(name) {
            continue;
        }
        let definition = evened(row.get_ref(1)?.as_str()?);
        if wanted.remove(name).is_none_or(|wanted| wanted != definition) {
            return Ok(Some(name.to_owned()));
        }
    }
    Ok(wanted.into_keys().min())
}

/// What a schema makes, by name, evened out.
fn definitions(schema: &str) -> HashMap<String, String> {
    let (mut all, mut statement) = (HashMap::new(), String::new());
    for line in schema.lines() {
        let code = line.split("--").next().unwrap_or_default().trim();
        statement.push_str(code);
        statement.push(' ');
        let is_trigger = statement.trim_start().starts_with("CREATE TRIGGER");
        let is_whole = if is_trigger { code == "END;" } else { code.ends_with(';') };
        if is_whole {
            let mut words = statement.split_whitespace();
            if words.next() == Some("CREATE")
                && words.any(|word| ["TABLE", "INDEX", "TRIGGER"].contains(&word))
                && let Some(name) = words.next()
            {
                all.insert(name.to_owned(), evened(&statement));
            }
            statement.clear();
        }
    }
    all
}

/// A definition without comments, spaces and its end.
fn evened(sql: &str) -> String {
    let code = sql.lines().flat_map(|line| line.split("--").next());
    let mut evened: String = code.flat_map(|code| code.chars().filter(|c| !c.is_whitespace())).collect();
    evened.truncate(evened.trim_end_matches(';').len());
    evened
}

/// Makes a database that was laid out the one of this server; one that is somebody's stays theirs.
pub(super) fn pin(connection: &Connection, server_name: &ServerName) -> rusqlite::Result<()> {
    let name = server_name.as_str();
    let sql = "INSERT INTO server (one, name, stream) VALUES (1, ?1, 0) ON CONFLICT (one) DO NOTHING";
    connection.execute(sql, [name]).map(drop)
}

/// Whether nobody was ever served by this database, so that its server may still be called otherwise. The users of application
/// services that are made at the start are nobody, until they have as much as a name.
fn is_without_users(connection: &Connection) -> rusqlite::Result<bool> {
    let sql = "SELECT NOT EXISTS (SELECT 1 FROM rooms) AND NOT EXISTS (
         SELECT 1 FROM users u WHERE appservice IS NULL
           OR EXISTS (SELECT 1 FROM profile_fields p WHERE p.user_id = u.user_id)
           OR EXISTS (SELECT 1 FROM devices d WHERE d.user_id = u.user_id))";
    connection.query_row(sql, [], |row| row.get(0))
}

/// Gives a database that was made ready to this server, if it was one that may get another name; whether it did.
pub(super) fn rename(connection: &Connection, server_name: &ServerName) -> rusqlite::Result<bool> {
    let sql = "UPDATE server SET name = ?1 WHERE name <> ?1";
    let tx = connection.unchecked_transaction()?;
    let is_renamed = tx.execute(sql, [server_name.as_str()])? > 0;
    if is_renamed {
        // Those of services that bear the other name, see above.
        tx.execute("DELETE FROM users", [])?;
    }
    tx.commit()?;
    Ok(is_renamed)
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

    #[test]
    fn a_database_of_another_state_of_the_schema_is_told_from_one_of_this() {
        let made = || {
            let fresh = Connection::open_in_memory().unwrap();
            fresh.execute_batch(SCHEMA).unwrap();
            fresh
        };
        assert!(is_as_written(&made()).unwrap());
        assert_eq!(
            definitions(SCHEMA).len(),
            SCHEMA.lines().filter(|line| line.starts_with("CREATE ")).count()
        );
        let vacuumed = made();
        vacuumed.execute_batch("VACUUM").unwrap();
        assert_eq!(difference(&vacuumed).unwrap(), None);
        let (spaced, words) = (Connection::open_in_memory().unwrap(), "\n   -- and a word\n (");
        spaced.execute_batch(&SCHEMA.replacen(" (\n", words, 1).replace(" STRICT", "  STRICT")).unwrap();
        assert_eq!(difference(&spaced).unwrap(), None);
        for (change, told) in [
            ("CREATE TABLE another (x INTEGER) STRICT", "another"),
            ("DROP TABLE media", "media"),
            ("DROP INDEX users_erased", "users_erased"),
            ("DROP TRIGGER media_filled", "media_filled"),
            ("ALTER TABLE server ADD COLUMN more TEXT", "server"),
            ("DROP TABLE event_texts", "event_texts"),
        ] {
            let other = made();
            other.execute_batch(change).unwrap();
            let found = difference(&other).unwrap();
            assert!(found.as_deref().is_some_and(|name| name.starts_with(told)), "{change}: {found:?}");
        }
    }

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
