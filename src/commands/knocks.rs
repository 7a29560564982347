//! `doorstep knocks`: who waits before which room's door.

use argh::{ArgsInfo, FromArgs};
use serde_json::{Value, json};

use super::Failure;
use super::ask::{Operator, segment, table};
use super::room::{rows_of, text};

/// Shows who waits where, since when and why, and lets them in or sends them away.
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "knocks")]
pub struct Knocks {
    /// let this user in
    #[argh(option)]
    accept: Option<String>,
    /// send this user away
    #[argh(option)]
    refuse: Option<String>,
    /// into which room, if they knock upon several
    #[argh(option)]
    room: Option<String>,
    /// why they are sent away, which they are told
    #[argh(option)]
    reason: Option<String>,
}

/// Does it, and prints what came of it.
pub fn run(knocks: &Knocks, operator: &Operator) -> Result<(), Failure> {
    let misuse = |why: &str| Err(Failure::Misuse(why.to_owned()));
    let answer = match (&knocks.accept, &knocks.refuse) {
        (Some(_), Some(_)) => return misuse("either --accept or --refuse"),
        (Some(_), None) if knocks.reason.is_some() => return misuse("--reason goes with --refuse"),
        (Some(user), None) => Some((user, "accept")),
        (None, Some(user)) => Some((user, "refuse")),
        (None, None) if knocks.reason.is_some() => return misuse("--reason goes with --refuse"),
        (None, None) => None,
    };
    let waiting = operator.ask("GET", "/_doorstep/admin/v1/knocks", None)?;
    let is_there = |knock: &&Value| knocks.room.as_ref().is_none_or(|room| knock["room_id"] == room.as_str());
    let here: Vec<&Value> = rows_of(&waiting, "knocks").iter().filter(is_there).collect();
    let Some((user, verb)) = answer else {
        operator.print(&json!({ "knocks": here }), |_| shown(&here));
        return Ok(());
    };
    let theirs: Vec<&&Value> = here.iter().filter(|knock| knock["user_id"] == user.as_str()).collect();
    let room_id = match theirs.as_slice() {
        [] => return Err(Failure::Failed(format!("{user} waits nowhere"))),
        [one] => text(one, "room_id"),
        several => {
            let rooms: Vec<String> = several.iter().map(|knock| text(knock, "room_id")).collect();
            return Err(Failure::Misuse(format!(
                "{user} knocks upon several rooms, say which --room:\n{}",
                rooms.join("\n")
            )));
        }
    };
    let body = knocks.reason.as_ref().map_or_else(|| json!({}), |reason| json!({ "reason": reason }));
    let target = format!("/_doorstep/admin/v1/knocks/{}/{}/{verb}", segment(&room_id), segment(user));
    let done = operator.ask("POST", &target, Some(&body))?;
    operator.print(&done, |_| match verb {
        "accept" => format!("{user} is invited into {room_id}."),
        _ => format!("{user} was sent away from {room_id}."),
    });
    Ok(())
}

fn shown(knocks: &[&Value]) -> String {
    if knocks.is_empty() {
        return "Nobody waits.".to_owned();
    }
    let mut rows = vec![["WHO", "NAME", "SINCE", "ROOM", "ROOM'S NAME", "WHY"].map(str::to_owned).to_vec()];
    rows.extend(knocks.iter().map(|knock| {
        let since = knock["since_ms"]
            .as_i64()
            .map(doorstep::protocol::certificates::calendar::utc)
            .unwrap_or_default();
        vec![
            text(knock, "user_id"),
            text(knock, "displayname"),
            since,
            text(knock, "room_id"),
            text(knock, "room_name"),
            text(knock, "reason"),
        ]
    }));
    table(&rows)
}
