//! `doorstep media`: files that users have uploaded, and those of other servers.

use argh::{ArgsInfo, FromArgs};
use doorstep::clock::Clock;
use doorstep::config::bytes;
use serde_json::{Value, json};

use super::Failure;
use super::ask::{Operator, segment, table};
use super::room::{self, rows_of, text};
use super::user::id_of;

/// How many are asked for at a time.
const PAGE: usize = 500;
const DAY_MS: u64 = 86_400_000;

/// Lists, quarantines and deletes files, whether the server runs or not.
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "media")]
pub struct Media {
    #[argh(subcommand)]
    what: What,
}

#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand)]
enum What {
    Usage(Usage),
    List(List),
    Quarantine(Quarantine),
    Delete(Delete),
}

/// Shows who has uploaded how much.
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "usage")]
struct Usage {}

/// Lists what a user has uploaded, what is newest first.
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "list")]
struct List {
    /// the user, as alice
    #[argh(positional)]
    user: String,
}

/// Gives nobody a file any more, nor lets anybody upload it again.
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "quarantine")]
struct Quarantine {
    /// the file: mxc://server/id, or a user, as alice, for all that they have uploaded, or a room, as !id or #alias, for all that
    /// can be read of being shared in it (of what is encrypted nothing can)
    #[argh(positional)]
    what: String,
    /// give it to them again
    #[argh(switch)]
    undo: bool,
}

/// Deletes a file, all files of a user, or those that nobody has asked for in a long time.
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "delete")]
struct Delete {
    /// the file: mxc://server/id, or a user, as alice, for all that they have uploaded
    #[argh(positional)]
    what: Option<String>,
    /// what nobody has asked for in so many days; avatars stay
    #[argh(option)]
    days: Option<u64>,
    /// of those only what is larger, such as 5M
    #[argh(option, from_str_fn(bytes))]
    larger: Option<u64>,
    /// of other servers, which can be had again, and not of our users
    #[argh(switch)]
    remote: bool,
}

/// Does it, and prints what came of it.
pub fn run(media: &Media, operator: &Operator) -> Result<(), Failure> {
    match &media.what {
        What::Usage(_) => usage(operator),
        What::List(what) => list(&what.user, operator),
        What::Quarantine(what) => quarantine(what, operator),
        What::Delete(what) => delete(what, operator),
    }
}

/// Whether a file is meant, or else a user: whose name has none of these.
fn is_file(what: &str) -> bool {
    what.contains("//")
}

/// A URI as the rest of a path.
fn uri_path(uri: &str) -> Result<String, Failure> {
    let parts = uri.strip_prefix("mxc://").and_then(|rest| rest.split_once('/'));
    let (server, id) =
        parts.ok_or_else(|| Failure::Misuse(format!("{uri} is neither mxc://server/id nor a user")))?;
    Ok(format!("{}/{}", segment(server), segment(id)))
}

/// All pages of a list that goes on behind a number.
fn all_of(operator: &Operator, target: &str, field: &str) -> Result<Vec<Value>, Failure> {
    let (mut all, mut from) = (Vec::new(), Some(0));
    while let Some(at) = from {
        let join = if target.contains('?') { '&' } else { '?' };
        let mut page = operator.ask("GET", &format!("{target}{join}limit={PAGE}&from={at}"), None)?;
        from = page["next_token"].as_u64();
        all.extend(page[field].as_array_mut().map(std::mem::take).unwrap_or_default());
    }
    Ok(all)
}

fn usage(operator: &Operator) -> Result<(), Failure> {
    let target = "/_synapse/admin/v1/statistics/users/media?order_by=media_length&dir=b";
    let users = all_of(operator, target, "users")?;
    operator.print(&json!({ "users": users }), |answer| {
        let mut rows = vec![["USER", "NAME", "FILES", "BYTES"].map(str::to_owned).to_vec()];
        rows.extend(rows_of(answer, "users").iter().map(|user| {
            ["user_id", "displayname", "media_count", "media_length"].map(|field| text(user, field)).to_vec()
        }));
        table(&rows)
    });
    Ok(())
}

fn list(user: &str, operator: &Operator) -> Result<(), Failure> {
    let user = id_of(user, operator)?;
    let media = all_of(operator, &format!("/_synapse/admin/v1/users/{}/media", segment(&user)), "media")?;
    let server = user.split_once(':').map_or("", |(_, server)| server);
    operator.print(&json!({ "media": media }), |answer| {
        let mut rows = vec![["FILE", "NAME", "TYPE", "BYTES", "UPLOADED", ""].map(str::to_owned).to_vec()];
        rows.extend(rows_of(answer, "media").iter().map(|file| {
            let uploaded = file["created_ts"]
                .as_i64()
                .map(doorstep::protocol::certificates::calendar::utc)
                .unwrap_or_default();
            let quarantined = if file["quarantined_by"].is_null() { "" } else { "quarantined" };
            let uri = format!("mxc://{server}/{}", text(file, "media_id"));
            let [name, media_type, bytes] =
                ["upload_name", "media_type", "media_length"].map(|field| text(file, field));
            vec![uri, name, media_type, bytes, uploaded, quarantined.to_owned()]
        }));
        table(&rows)
    });
    Ok(())
}

fn quarantine(what: &Quarantine, operator: &Operator) -> Result<(), Failure> {
    if !is_file(&what.what) {
        if what.undo {
            return Err(Failure::Misuse("what is in quarantine is given back file by file".to_owned()));
        }
        let target = match what.what.starts_with(['!', '#']) {
            true => {
                let room = room::id_of(&what.what, operator)?;
                format!("/_synapse/admin/v1/room/{}/media/quarantine", segment(&room))
            }
            false => {
                format!("/_synapse/admin/v1/user/{}/media/quarantine", segment(&id_of(&what.what, operator)?))
            }
        };
        let answer = operator.ask("POST", &target, None)?;
        operator.print(&answer, |answer| {
            format!("Nobody is given those {} files any more.", answer["num_quarantined"])
        });
        return Ok(());
    }
    let verb = if what.undo { "unquarantine" } else { "quarantine" };
    let target = format!("/_synapse/admin/v1/media/{verb}/{}", uri_path(&what.what)?);
    let answer = operator.ask("POST", &target, None)?;
    operator.print(&answer, |_| match what.undo {
        true => "It is given to users again.".to_owned(),
        false => "Nobody is given it any more.".to_owned(),
    });
    Ok(())
}

fn delete(what: &Delete, operator: &Operator) -> Result<(), Failure> {
    let answer = match (&what.what, what.days) {
        (Some(user), None) if !is_file(user) => delete_of_user(&id_of(user, operator)?, operator)?,
        (Some(uri), None) => {
            operator.ask("DELETE", &format!("/_synapse/admin/v1/media/{}", uri_path(uri)?), None)?
        }
        (None, Some(days)) => {
            let now = u64::try_from(Clock::new().now_ms()).unwrap_or(0);
            let before = now.saturating_sub(days.saturating_mul(DAY_MS)).max(1_000_000_000_000);
            if what.remote {
                operator.ask(
                    "POST",
                    &format!("/_synapse/admin/v1/purge_media_cache?before_ts={before}"),
                    None,
                )?
            } else {
                let larger = what.larger.unwrap_or(0);
                let target = format!("/_synapse/admin/v1/media/delete?before_ts={before}&size_gt={larger}");
                operator.ask("POST", &target, None)?
            }
        }
        _ => return Err(Failure::Misuse("say which file or whose files, or how old with --days".to_owned())),
    };
    operator.print(&answer, |answer| {
        let count = answer["total"].as_u64().or_else(|| answer["deleted"].as_u64()).unwrap_or(0);
        format!("{count} {} gone.", if count == 1 { "file is" } else { "files are" })
    });
    Ok(())
}

/// A page after the other, until none is left that can go.
fn delete_of_user(user: &str, operator: &Operator) -> Result<Value, Failure> {
    let target = format!("/_synapse/admin/v1/users/{}/media?limit={PAGE}", segment(user));
    let mut gone: Vec<Value> = Vec::new();
    let mut from = 0;
    loop {
        let page = operator.ask("GET", &format!("{target}&from={from}"), None)?;
        let shown = rows_of(&page, "media").len();
        if shown == 0 {
            let total = gone.len();
            return Ok(json!({ "deleted_media": gone, "total": total }));
        }
        let answer = operator.ask("DELETE", &format!("{target}&from={from}"), None)?;
        let deleted = rows_of(&answer, "deleted_media").len();
        gone.extend(rows_of(&answer, "deleted_media").iter().cloned());
        // What is in quarantine stays where it is.
        from += shown.saturating_sub(deleted);
    }
}
