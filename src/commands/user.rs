//! `doorstep user`: accounts.

use argh::{ArgsInfo, FromArgs};
use serde_json::Value;

use super::Failure;
use super::ask::{Operator, segment, table};

/// Lists, makes and changes accounts, whether the server runs or not.
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "user")]
pub struct User {
    #[argh(subcommand)]
    what: What,
}

#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand)]
enum What {
    List(List),
}

/// Lists the accounts.
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "list")]
struct List {
    /// only those with this in their name
    #[argh(positional)]
    name: Option<String>,
    /// also those that were deactivated
    #[argh(switch)]
    all: bool,
}

/// Does it, and prints what came of it.
pub fn run(user: &User, operator: &Operator) -> Result<(), Failure> {
    match &user.what {
        What::List(what) => list(what, operator),
    }
}

fn list(what: &List, operator: &Operator) -> Result<(), Failure> {
    let mut query = format!("locked=true&limit=1000&deactivated={}", what.all);
    if let Some(name) = &what.name {
        query += &format!("&name={}", segment(name));
    }
    let mut all = operator.ask("GET", &format!("/_synapse/admin/v2/users?{query}"), None)?;
    // Page by page, until there is no more.
    while let Some(next) = all["next_token"].as_str().map(str::to_owned) {
        let mut page = operator.ask("GET", &format!("/_synapse/admin/v2/users?{query}&from={next}"), None)?;
        let more = page["users"].as_array_mut().map(std::mem::take).unwrap_or_default();
        if let Some(users) = all["users"].as_array_mut() {
            users.extend(more);
        }
        all["next_token"] = page["next_token"].take();
    }
    if let Some(answer) = all.as_object_mut() {
        answer.remove("next_token");
    }
    operator.print(&all, |answer| {
        let users = answer["users"].as_array().map(Vec::as_slice).unwrap_or_default();
        let mut rows = vec![["USER", "NAME", "WHAT", "LAST SEEN"].map(str::to_owned).to_vec()];
        rows.extend(users.iter().map(row));
        table(&rows)
    });
    Ok(())
}

fn row(user: &Value) -> Vec<String> {
    let is = |field: &str| user[field].as_bool().unwrap_or(false);
    let states = [
        ("admin", "admin"),
        ("is_guest", "guest"),
        ("deactivated", "deactivated"),
        ("erased", "erased"),
        ("locked", "locked"),
    ];
    let what: Vec<&str> = states.iter().filter(|(field, _)| is(field)).map(|(_, word)| *word).collect();
    let text = |field: &str| user[field].as_str().unwrap_or_default().to_owned();
    let seen = user["last_seen_ts"].as_i64().map(doorstep::protocol::calendar::utc).unwrap_or_default();
    vec![text("name"), text("displayname"), what.join(", "), seen]
}
