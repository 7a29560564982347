//! `doorstep knocks`: who waits before which room's door.

use argh::{ArgsInfo, FromArgs};
use serde_json::{Value, json};

use super::Failure;
use super::ask::{Operator, segment, table};
use super::room::{id_of, rows_of, text};

const KNOCKS: &str = "/_doorstep/admin/v1/knocks";

/// Shows who waits where, since when and why, and lets them in or sends them away.
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "knocks")]
pub struct Knocks {
    /// let this user in: @bob:example.org, or bob for one of ours
    #[argh(option)]
    accept: Option<String>,
    /// send this user away, named alike
    #[argh(option)]
    refuse: Option<String>,
    /// upon this room: !id, #alias, or the alias of one of ours without # and server
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
    let room_id = knocks.room.as_deref().map(|room| id_of(room, operator)).transpose()?;
    let Some((user, verb)) = answer else {
        let only = room_id.map(|room_id| format!("?room_id={}", segment(&room_id))).unwrap_or_default();
        let waiting = operator.ask("GET", &format!("{KNOCKS}{only}"), None)?;
        operator.print(&waiting, shown);
        return Ok(());
    };
    let room_id = match room_id {
        Some(room_id) => room_id,
        None => room_of(user, operator)?,
    };
    let body = knocks.reason.as_ref().map_or_else(|| json!({}), |reason| json!({ "reason": reason }));
    let target = format!("{KNOCKS}/{}/{}/{verb}", segment(&room_id), segment(user));
    let done = operator.ask("POST", &target, Some(&body))?;
    operator.print(&done, |_| match verb {
        "accept" => format!("{user} is invited into {room_id}."),
        _ => format!("{user} was sent away from {room_id}."),
    });
    Ok(())
}

/// The room upon which somebody knocks. Errors: it is none, or there are several.
fn room_of(user: &str, operator: &Operator) -> Result<String, Failure> {
    let waiting = operator.ask("GET", &format!("{KNOCKS}?user_id={}", segment(user)), None)?;
    match rows_of(&waiting, "knocks") {
        [] => Err(Failure::Failed(format!("{user} waits nowhere"))),
        [one] => Ok(text(one, "room_id")),
        several => {
            let rooms: Vec<String> = several.iter().map(|knock| text(knock, "room_id")).collect();
            Err(Failure::Misuse(format!(
                "{user} knocks upon several rooms, say which --room:\n{}",
                rooms.join("\n")
            )))
        }
    }
}

fn shown(waiting: &Value) -> String {
    let knocks = rows_of(waiting, "knocks");
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
    let more = waiting["total"].as_u64().unwrap_or(0).saturating_sub(knocks.len() as u64);
    let more = if more == 0 {
        String::new()
    } else {
        format!("\nAnd {more} more, who came before. Those of one room: --room")
    };
    format!("{}{more}", table(&rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_more_who_wait_than_are_shown_it_is_told_how_many_they_are() {
        let knocks =
            vec![json!({ "user_id": "@bob:b.example", "room_id": "!r:a.example", "since_ms": 0 }); 2];
        assert!(shown(&json!({ "knocks": knocks, "total": 132 })).contains("And 130 more"));
        assert!(!shown(&json!({ "knocks": knocks, "total": 2 })).contains("more"));
        assert_eq!(shown(&json!({ "knocks": [], "total": 0 })), "Nobody waits.");
    }
}
