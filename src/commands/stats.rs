//! `doorstep stats`: where the bytes are.

use argh::{ArgsInfo, FromArgs};
use serde_json::Value;

use super::Failure;
use super::ask::{Operator, table};

/// Says where the bytes are: tables, rooms, files.
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "stats")]
pub struct Stats {}

/// Looks, and prints what takes most.
pub fn run(operator: &Operator) -> Result<(), Failure> {
    let answer = operator.ask("GET", "/_doorstep/admin/v1/storage", None)?;
    operator.print(&answer, shown);
    Ok(())
}

fn shown(answer: &Value) -> String {
    let bytes = |value: &Value| size(value.as_u64().unwrap_or(0));
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let count = |value: &Value| value.as_u64().unwrap_or(0).to_string();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let (database, media) = (&answer["database"], &answer["media"]);
    let row = |cells: &[&str]| cells.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>();
    let mut all = vec![
        row(&["", "BYTES"]),
        vec!["database".into(), bytes(&database["bytes"])],
        vec!["  of which free".into(), bytes(&database["free_bytes"])],
        vec!["its log".into(), bytes(&database["log_bytes"])],
        vec!["  states that nothing needs any more".into(), bytes(&answer["spare_states"]["bytes"])],
        vec!["files of local users".into(), bytes(&media["local"]["bytes"])],
        vec!["files from elsewhere".into(), bytes(&media["cached"]["bytes"])],
    ];
    if answer.get("disk_free_bytes").is_some() {
        all.push(vec!["free on the disk".into(), bytes(&answer["disk_free_bytes"])]);
    }
    let mut tables = vec![row(&["TABLE", "ROWS", "INDEXES"])];
    for found in list(&database["tables"]) {
        tables.push(vec![text(&found["name"]), bytes(&found["bytes"]), bytes(&found["index_bytes"])]);
    }
    tables.push(vec!["other tables".into(), bytes(&database["other_tables_bytes"])]);
    tables.push(vec!["ends of long rows".into(), bytes(&database["long_rows_bytes"])]);
    let about = if answer["rooms_are_estimates"] == true { "ABOUT SO MANY EVENTS" } else { "EVENTS" };
    let mut rooms = vec![row(&["ROOM", about, "BYTES", "MEMBERS", "NAME"])];
    for found in list(&answer["rooms"]) {
        rooms.push(vec![
            text(&found["room_id"]),
            count(&found["events"]),
            bytes(&found["bytes"]),
            count(&found["joined_members"]),
            text(&found["name"]),
        ]);
    }
    let mut users = vec![row(&["USER", "FILES", "BYTES"])];
    for found in list(&media["users"]) {
        users.push(vec![text(&found["user_id"]), count(&found["files"]), bytes(&found["bytes"])]);
    }
    let parts =
        [all, tables, rooms, users].map(|rows| if rows.len() > 1 { table(&rows) } else { String::new() });
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n\n")
}

/// A size for people.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    let (mut rest, mut unit) = (bytes as f64, "bytes");
    for larger in UNITS {
        if rest < 1000.0 {
            break;
        }
        (rest, unit) = (rest / 1000.0, larger);
    }
    if unit == "bytes" { format!("{bytes} bytes") } else { format!("{rest:.1} {unit}") }
}
