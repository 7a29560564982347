//! `doorstep room`: rooms.

use argh::{ArgsInfo, FromArgs};
use doorstep::internals::Store;
use serde_json::{Value, json};

use super::Failure;
use super::ask::{Operator, segment, table};

/// How many rooms are asked for at a time.
const PAGE: usize = 500;

/// Lists, blocks and deletes rooms, whether the server runs or not.
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "room")]
pub struct Room {
    #[argh(subcommand)]
    what: What,
}

#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand)]
enum What {
    List(List),
    Show(Show),
    Block(Block),
    Delete(Delete),
}

/// Lists the rooms that the server knows.
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "list")]
struct List {
    /// only those with this in their name or alias
    #[argh(positional)]
    name: Option<String>,
    /// only those that nobody is in any more
    #[argh(switch)]
    empty: bool,
    /// the blocked ones, also those that the server knows nothing else of
    #[argh(switch)]
    blocked: bool,
    /// what comes first: name, members, local-members, state-events or version [name]
    #[argh(option)]
    by: Option<String>,
}

/// Shows one room, and who of this server is in it.
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "show")]
struct Show {
    /// the room: !id or #alias, of one of ours also without # and server
    #[argh(positional)]
    room: String,
}

/// Lets nobody of this server into a room: by no join, no knock and no invite.
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "block")]
struct Block {
    /// the room: !id or #alias, of one of ours also without # and server
    #[argh(positional)]
    room: String,
    /// let them in again
    #[argh(switch)]
    undo: bool,
}

/// Deletes a room: users of this server leave it, and everything goes that there is of it here. Files that were shared in it
/// stay, since they may be shown elsewhere too: `doorstep media quarantine` gives nobody those of a room any more, as long as it
/// is there.
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "delete")]
struct Delete {
    /// the room: !id or #alias, of one of ours also without # and server
    #[argh(positional)]
    room: String,
    /// have the users of this server leave it, if there are any
    #[argh(switch)]
    leave: bool,
    /// let nobody in any more
    #[argh(switch)]
    block: bool,
    /// bring the users to a new room, made by this one of them
    #[argh(option)]
    to_room_of: Option<String>,
    /// what is said in that room
    #[argh(option)]
    message: Option<String>,
    /// delete it although some cannot be made to leave
    #[argh(switch)]
    force: bool,
}

/// Does it, and prints what came of it.
pub fn run(room: &Room, operator: &Operator) -> Result<(), Failure> {
    match &room.what {
        What::List(what) if what.blocked => list_blocked(operator),
        What::List(what) => list(what, operator),
        What::Show(what) => show(what, operator),
        What::Block(what) => block(what, operator),
        What::Delete(what) => delete(what, operator),
    }
}

/// The room's id, also of one that is named by an alias, or by what stands in front of the server in one of ours.
pub(super) fn id_of(room: &str, operator: &Operator) -> Result<String, Failure> {
    let of_ours;
    let room = match room.chars().next() {
        Some('!') => return Ok(room.to_owned()),
        Some('#') => room,
        Some(_) if !room.contains(':') => {
            of_ours = format!("#{room}:{}", Store::name_of(operator.folder())?);
            &of_ours
        }
        _ => {
            let told = "is no room: it should be !id or #alias, or parlour for the alias of one of ours";
            return Err(Failure::Misuse(format!("{room:?} {told}")));
        }
    };
    let found = operator.ask("GET", &format!("/_matrix/client/v3/directory/room/{}", segment(room)), None)?;
    Ok(text(&found, "room_id"))
}

fn path(room_id: &str, rest: &str) -> String {
    format!("/_synapse/admin/v1/rooms/{}{rest}", segment(room_id))
}

/// A field as a person reads it. What strangers write keeps to its line, and says nothing to the terminal.
pub(super) fn text(value: &Value, field: &str) -> String {
    match &value[field] {
        Value::String(text) => text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

pub(super) fn rows_of<'v>(value: &'v Value, field: &str) -> &'v [Value] {
    value[field].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn list(what: &List, operator: &Operator) -> Result<(), Failure> {
    let order = match what.by.as_deref() {
        None | Some("name") => "name",
        Some("members") => "joined_members",
        Some("local-members") => "joined_local_members",
        Some("state-events") => "state_events",
        Some("version") => "version",
        Some(other) => {
            let told = "should be name, members, local-members, state-events or version";
            return Err(Failure::Misuse(format!("--by {other:?} {told}")));
        }
    };
    let mut query = format!("limit={PAGE}&order_by={order}");
    if let Some(name) = &what.name {
        query += &format!("&search_term={}", segment(name));
    }
    if what.empty {
        query += "&empty_rooms=true";
    }
    let mut all: Vec<Value> = Vec::new();
    // Page by page, until there is no more.
    let mut from = Some(0);
    while let Some(at) = from {
        let mut page = operator.ask("GET", &format!("/_synapse/admin/v1/rooms?{query}&from={at}"), None)?;
        from = page["next_batch"].as_u64();
        all.extend(page["rooms"].as_array_mut().map(std::mem::take).unwrap_or_default());
    }
    let total = all.len();
    operator.print(&json!({ "rooms": all, "total_rooms": total }), |answer| {
        let mut rows = vec![["ROOM", "NAME", "MEMBERS", "HERE", "WHAT"].map(str::to_owned).to_vec()];
        rows.extend(rows_of(answer, "rooms").iter().map(row));
        table(&rows)
    });
    Ok(())
}

fn row(room: &Value) -> Vec<String> {
    let is = |field: &str| room[field].as_bool().unwrap_or(false);
    let mut what = vec![text(room, "join_rules")];
    what.extend(is("public").then(|| "published".to_owned()));
    what.extend(room["encryption"].is_string().then(|| "encrypted".to_owned()));
    what.extend(is("blocked").then(|| "blocked".to_owned()));
    what.extend((room["room_type"] == "m.space").then(|| "space".to_owned()));
    what.retain(|word| !word.is_empty());
    let name = Some(text(room, "name")).filter(|name| !name.is_empty());
    let name = name.unwrap_or_else(|| text(room, "canonical_alias"));
    let joined = text(room, "joined_members");
    vec![text(room, "room_id"), name, joined, text(room, "joined_local_members"), what.join(", ")]
}

fn list_blocked(operator: &Operator) -> Result<(), Failure> {
    let (mut all, mut from) = (Vec::new(), String::new());
    loop {
        let target = format!("/_doorstep/admin/v1/blocked_rooms?from={}", segment(&from));
        let mut page = operator.ask("GET", &target, None)?;
        all.extend(page["rooms"].as_array_mut().map(std::mem::take).unwrap_or_default());
        match page["next_batch"].as_str() {
            Some(next) => from = next.to_owned(),
            None => break,
        }
    }
    operator.print(&json!({ "rooms": all }), |answer| {
        let mut rows = vec![["ROOM", "SINCE", "BY"].map(str::to_owned).to_vec()];
        rows.extend(rows_of(answer, "rooms").iter().map(|room| {
            let since = room["blocked_ts"]
                .as_i64()
                .map(doorstep::protocol::certificates::calendar::utc)
                .unwrap_or_default();
            let by = Some(text(room, "user_id")).filter(|by| !by.is_empty());
            vec![text(room, "room_id"), since, by.unwrap_or_else(|| "the operator".to_owned())]
        }));
        table(&rows)
    });
    Ok(())
}

fn show(what: &Show, operator: &Operator) -> Result<(), Failure> {
    let room_id = id_of(&what.room, operator)?;
    let mut room = operator.ask("GET", &path(&room_id, ""), None)?;
    let members = operator.ask("GET", &path(&room_id, "/members"), None)?;
    room["members"] = members["members"].clone();
    operator.print(&room, |room| {
        let fields = [
            ("room", "room_id"),
            ("name", "name"),
            ("topic", "topic"),
            ("alias", "canonical_alias"),
            ("version", "version"),
            ("made by", "creator"),
            ("join rule", "join_rules"),
            ("history", "history_visibility"),
            ("encryption", "encryption"),
            ("published", "public"),
            ("blocked", "blocked"),
            ("replaced by", "replacement_room"),
            ("state events", "state_events"),
            ("members", "joined_members"),
            ("of them here", "joined_local_members"),
        ];
        let mut rows: Vec<Vec<String>> =
            fields.iter().map(|(name, field)| vec![(*name).to_owned(), text(room, field)]).collect();
        rows.retain(|row| !row[1].is_empty());
        let here = room["creator"].as_str().map(|_| rows_of(room, "members")).unwrap_or_default();
        rows.extend(
            here.iter()
                .take(50)
                .map(|user| vec![String::new(), user.as_str().unwrap_or_default().to_owned()]),
        );
        if here.len() > 50 {
            rows.push(vec![String::new(), format!("and {} more", here.len() - 50)]);
        }
        table(&rows)
    });
    Ok(())
}

fn block(what: &Block, operator: &Operator) -> Result<(), Failure> {
    let room_id = id_of(&what.room, operator)?;
    let answer = operator.ask("PUT", &path(&room_id, "/block"), Some(&json!({ "block": !what.undo })))?;
    operator.print(&answer, |_| match what.undo {
        true => format!("{room_id} is open again, as far as this server is concerned."),
        false => format!("Nobody of this server comes into {room_id} any more. Who is in it stays in it."),
    });
    Ok(())
}

fn delete(what: &Delete, operator: &Operator) -> Result<(), Failure> {
    let room_id = id_of(&what.room, operator)?;
    if !(what.leave || what.to_room_of.is_some()) {
        // A room that is known only by a block, or by an invite, has no details.
        let here = operator.ask("GET", &path(&room_id, ""), None).ok();
        let here = here.and_then(|room| room["joined_local_members"].as_u64()).unwrap_or(0);
        if here > 0 {
            let them = if here == 1 {
                "1 user of this server is".into()
            } else {
                format!("{here} users of this server are")
            };
            return Err(Failure::Misuse(format!(
                "{them} in {room_id}: say --leave to have them leave it first"
            )));
        }
    }
    let mut order = json!({ "purge": true, "block": what.block, "force_purge": what.force });
    if let Some(user) = &what.to_room_of {
        order["new_room_user_id"] = user.as_str().into();
    }
    if let Some(message) = &what.message {
        order["message"] = message.as_str().into();
    }
    let answer = operator.ask("DELETE", &path(&room_id, ""), Some(&order))?;
    let status =
        operator.ask("GET", &format!("/_synapse/admin/v2/rooms/{}/delete_status", segment(&room_id)), None);
    operator.print(&answer, |answer| {
        let left = rows_of(answer, "kicked_users").len();
        let done = status.is_ok_and(|status| status["results"][0]["status"] == "complete");
        let mut lines = match done {
            true => format!("{room_id} is gone; {left} had left it before."),
            false => format!(
                "{left} have left {room_id}. The rest goes when the server runs, which has to tell the room's other servers."
            ),
        };
        if let Some(new) = answer["new_room_id"].as_str() {
            lines += &format!("\nThey are in {new} now.");
        }
        for user in rows_of(answer, "failed_to_kick_users") {
            lines += &format!("\n{} could not leave.", user.as_str().unwrap_or_default());
        }
        lines
    });
    Ok(())
}
