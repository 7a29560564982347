//! `doorstep token`: registration tokens, with which people make accounts by themselves.

use argh::{ArgsInfo, FromArgs};
use doorstep::clock::Clock;
use doorstep::protocol::certificates::calendar::utc;
use serde_json::{Value, json};

use super::Failure;
use super::ask::{Operator, segment, table};

/// Lists, makes and revokes registration tokens, with which people make accounts by themselves.
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "token")]
pub struct Token {
    #[argh(subcommand)]
    what: What,
}

#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand)]
enum What {
    Add(Add),
    List(List),
    Revoke(Revoke),
}

/// Makes a token and prints it, once: only its hash is kept.
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "add")]
struct Add {
    /// how many accounts may be made with it, or any [1]
    #[argh(option, default = "\"1\".into()")]
    uses: String,
    /// after how long it is good no more: 30m, 12h, 7d, or never [never]
    #[argh(option, default = "\"never\".into()")]
    expires: String,
}

/// Lists the tokens by their names, with what they are good for.
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "list")]
struct List {}

/// Revokes a token.
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "revoke")]
struct Revoke {
    /// its name in the list, or the token itself
    #[argh(positional)]
    token: String,
}

const TOKENS: &str = "/_synapse/admin/v1/registration_tokens";

/// Does it, and prints what came of it.
pub fn run(token: &Token, operator: &Operator) -> Result<(), Failure> {
    match &token.what {
        What::Add(Add { uses, expires }) => {
            let body =
                json!({ "uses_allowed": uses_of(uses)?, "expiry_time": expiry(expires)?, "length": 24 });
            let made = operator.ask("POST", &format!("{TOKENS}/new"), Some(&body))?;
            operator.print(&made, |made| {
                let [token, name] = ["token", "name"].map(|field| made[field].as_str().unwrap_or_default());
                format!("{token}\nThis is shown once. To revoke it: doorstep token revoke {name}")
            });
        }
        What::List(List {}) => {
            let tokens = operator.ask("GET", TOKENS, None)?;
            operator.print(&tokens, |answer| {
                let tokens = answer["registration_tokens"].as_array().map(Vec::as_slice).unwrap_or_default();
                let mut rows = vec![["TOKEN", "USED", "OF", "EXPIRES"].map(str::to_owned).to_vec()];
                rows.extend(tokens.iter().map(row));
                table(&rows)
            });
        }
        What::Revoke(Revoke { token }) => {
            let done = operator.ask("DELETE", &format!("{TOKENS}/{}", segment(token)), None)?;
            operator.print(&done, |_| "revoked".to_owned());
        }
    }
    Ok(())
}

fn row(token: &Value) -> Vec<String> {
    let allowed = token["uses_allowed"].as_i64().map_or_else(|| "any".to_owned(), |uses| uses.to_string());
    let expires = token["expiry_time"].as_i64().map_or_else(|| "never".to_owned(), utc);
    let name = token["token"].as_str().unwrap_or_default().to_owned();
    vec![name, token["completed"].to_string(), allowed, expires]
}

fn uses_of(text: &str) -> Result<Option<u32>, Failure> {
    if text == "any" {
        return Ok(None);
    }
    let uses = text.parse().ok().filter(|uses| *uses > 0).map(Some);
    uses.ok_or_else(|| Failure::Misuse(format!("--uses {text:?} should be a number from 1 on, or any")))
}

/// When somebody says how long, in milliseconds of the clock.
fn expiry(text: &str) -> Result<Option<i64>, Failure> {
    if text == "never" {
        return Ok(None);
    }
    let seconds = [('s', 1), ('m', 60), ('h', 3600), ('d', 86_400), ('w', 604_800)];
    let unit = seconds.iter().find(|(unit, _)| text.ends_with(*unit));
    let number = unit.and_then(|(unit, seconds)| {
        text.strip_suffix(*unit)?.parse::<u32>().ok().map(|n| i64::from(n) * seconds)
    });
    let number = number.filter(|seconds| *seconds > 0).ok_or_else(|| {
        Failure::Misuse(format!("--expires {text:?} should be a time such as 30m, 12h or 7d, or never"))
    })?;
    Ok(Some(Clock::new().now_ms() + number * 1000))
}
