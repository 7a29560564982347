//! `doorstep user`: accounts.

use argh::{ArgsInfo, FromArgs};
use doorstep::protocol::certificates::calendar::utc;
use serde_json::{Value, json};

use super::Failure;
use super::ask::{Operator, segment, table};
use super::room::rows_of;
use super::secret::{confirm, new_password};

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
    Add(Add),
    List(List),
    Passwd(Passwd),
    Admin(Admin),
    Lock(Lock),
    Suspend(Suspend),
    Deactivate(Deactivate),
    Sessions(Sessions),
    Logout(Logout),
}

/// Makes an account. The password is asked for at the terminal, or is the first line of standard input.
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "add")]
struct Add {
    /// the name, as alice
    #[argh(positional)]
    name: String,
    /// make an administrator
    #[argh(switch)]
    admin: bool,
    /// what the user is called
    #[argh(option)]
    displayname: Option<String>,
    /// make a password, and print it once
    #[argh(switch)]
    generate: bool,
}

/// Sets a new password, and logs all devices out.
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "passwd")]
struct Passwd {
    /// whose, as alice
    #[argh(positional)]
    name: String,
    /// make a password, and print it once
    #[argh(switch)]
    generate: bool,
    /// leave the devices logged in
    #[argh(switch)]
    keep_sessions: bool,
}

/// Makes a user an administrator.
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "admin")]
struct Admin {
    /// who, as alice
    #[argh(positional)]
    name: String,
    /// an administrator no more
    #[argh(switch)]
    off: bool,
}

/// Keeps a user out: their devices stay, and can do nothing until the lock is lifted.
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "lock")]
struct Lock {
    /// whose account, as alice
    #[argh(positional)]
    name: String,
    /// lift the lock
    #[argh(switch)]
    off: bool,
}

/// Has a user look and leave rooms only: they send nothing and come into no room.
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "suspend")]
struct Suspend {
    /// whose account, as alice
    #[argh(positional)]
    name: String,
    /// let them again
    #[argh(switch)]
    off: bool,
}

/// Closes an account for good: its devices are logged out, its rooms left, its name stays taken.
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "deactivate")]
struct Deactivate {
    /// whose, as alice
    #[argh(positional)]
    name: String,
    /// show what the user sent to nobody who comes later, and delete what else there is
    #[argh(switch)]
    erase: bool,
    /// do not ask
    #[argh(switch)]
    yes: bool,
}

/// Lists the devices that are logged in.
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "sessions")]
struct Sessions {
    /// whose, as alice
    #[argh(positional)]
    name: String,
}

/// Logs devices out: all of them, unless some are named.
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "logout")]
struct Logout {
    /// whose, as alice
    #[argh(positional)]
    name: String,
    /// the devices, as `user sessions` lists them
    #[argh(positional)]
    devices: Vec<String>,
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
        What::Add(what) => add(what, operator),
        What::List(what) => list(what, operator),
        What::Passwd(what) => passwd(what, operator),
        What::Admin(Admin { name, off }) => {
            let path = format!("{USERS}/{}/admin", segment(name));
            let done = operator.ask("PUT", &path, Some(&json!({ "admin": !off })))?;
            let told = if *off { "is no administrator any more" } else { "is an administrator" };
            operator.print(&done, |_| format!("{name} {told}"));
            Ok(())
        }
        What::Lock(Lock { name, off }) => moderate(name, ("lock", "locked"), !off, operator),
        What::Suspend(Suspend { name, off }) => moderate(name, ("suspend", "suspended"), !off, operator),
        What::Deactivate(what) => deactivate(what, operator),
        What::Sessions(Sessions { name }) => sessions(name, operator),
        What::Logout(what) => log_out(what, operator),
    }
}

const USERS: &str = "/_synapse/admin/v1/users";

/// A password that somebody chose, or one that nobody guesses (114 bits), and whether it has to be told.
fn password(name: &str, generate: bool) -> Result<String, Failure> {
    if generate { Ok(doorstep::random::letters(20)) } else { new_password(name) }
}

/// The answer with the password that was made.
fn with_password(mut answer: Value, password: &str, generate: bool) -> Value {
    if generate && let Some(answer) = answer.as_object_mut() {
        answer.insert("password".to_owned(), password.into());
    }
    answer
}

/// The lines that tell the password that was made.
fn told_password(answer: &Value) -> String {
    let password = answer["password"].as_str();
    password.map(|password| format!("\n{password}\nThis password is shown once.")).unwrap_or_default()
}

fn add(what: &Add, operator: &Operator) -> Result<(), Failure> {
    let Add { name, admin, displayname, generate } = what;
    // Before anybody types something for nobody.
    operator.ask("GET", "/_synapse/admin/v1/server_version", None)?;
    let password = password(name, *generate)?;
    let body = json!({ "name": name, "password": password, "admin": admin, "displayname": displayname });
    let made = operator.ask("POST", "/_doorstep/admin/v1/users", Some(&body))?;
    operator.print(&with_password(made, &password, *generate), |made| {
        let user = made["name"].as_str().unwrap_or(name);
        let what = if made["admin"] == true { "the administrator " } else { "" };
        format!("made {what}{user}{}", told_password(made))
    });
    Ok(())
}

fn passwd(what: &Passwd, operator: &Operator) -> Result<(), Failure> {
    let Passwd { name, generate, keep_sessions } = what;
    // Before anybody types something for nobody.
    operator.ask("GET", &format!("{USERS}/{}/admin", segment(name)), None)?;
    let password = password(name, *generate)?;
    let body = json!({ "new_password": password, "logout_devices": !keep_sessions });
    let path = format!("/_synapse/admin/v1/reset_password/{}", segment(name));
    let done = operator.ask("POST", &path, Some(&body))?;
    operator.print(&with_password(done, &password, *generate), |done| {
        let devices = if *keep_sessions { "stays logged in" } else { "is logged out everywhere" };
        format!("{name} has a new password and {devices}{}", told_password(done))
    });
    Ok(())
}

/// The id of a user who may be named by the localpart. Errors: there is no such account.
pub(super) fn id_of(name: &str, operator: &Operator) -> Result<String, Failure> {
    let user = operator.ask("GET", &format!("/_synapse/admin/v2/users/{}", segment(name)), None)?;
    Ok(user["name"].as_str().unwrap_or(name).to_owned())
}

/// Locks or suspends an account, or does so no more.
fn moderate(name: &str, what: (&str, &str), on: bool, operator: &Operator) -> Result<(), Failure> {
    let (verb, state) = what;
    let user = id_of(name, operator)?;
    let path = format!("/_matrix/client/v1/admin/{verb}/{}", segment(&user));
    let done = operator.ask("PUT", &path, Some(&json!({ (state): on })))?;
    operator.print(&done, |_| format!("{user} is {state}{}", if on { "" } else { " no more" }));
    Ok(())
}

fn log_out(what: &Logout, operator: &Operator) -> Result<(), Failure> {
    let Logout { name, devices } = what;
    if devices.is_empty() {
        let path = format!("/_doorstep/admin/v1/users/{}/logout", segment(name));
        let done = operator.ask("POST", &path, Some(&json!({})))?;
        operator.print(&done, |done| match done["total"].as_u64() {
            Some(1) => format!("{name} is logged out of 1 device"),
            count => format!("{name} is logged out of {} devices", count.unwrap_or(0)),
        });
        return Ok(());
    }
    let user = format!("/_synapse/admin/v2/users/{}", segment(name));
    let there = operator.ask("GET", &format!("{user}/devices"), None)?;
    let is_there = |device: &str| rows_of(&there, "devices").iter().any(|row| row["device_id"] == device);
    if let Some(unknown) = devices.iter().find(|device| !is_there(device)) {
        let told = "Nothing was done; `doorstep user sessions` lists them";
        return Err(Failure::Failed(format!("{name} has no device {unknown}. {told}")));
    }
    let done =
        operator.ask("POST", &format!("{user}/delete_devices"), Some(&json!({ "devices": devices })))?;
    operator.print(&done, |_| format!("{name} is logged out of {}", devices.join(", ")));
    Ok(())
}

fn deactivate(what: &Deactivate, operator: &Operator) -> Result<(), Failure> {
    let Deactivate { name, erase, yes } = what;
    let user = id_of(name, operator)?;
    if !yes {
        confirm(&format!("Deactivate {user}? This cannot be undone."))?;
    }
    let path = format!("/_synapse/admin/v1/deactivate/{}", segment(name));
    let done = operator.ask("POST", &path, Some(&json!({ "erase": erase })))?;
    operator.print(&done, |_| format!("{name} is deactivated"));
    Ok(())
}

fn sessions(name: &str, operator: &Operator) -> Result<(), Failure> {
    let path = format!("/_synapse/admin/v2/users/{}/devices", segment(name));
    let answer = operator.ask("GET", &path, None)?;
    operator.print(&answer, |answer| {
        let devices = answer["devices"].as_array().map(Vec::as_slice).unwrap_or_default();
        let mut rows = vec![["DEVICE", "NAME", "LAST SEEN", "FROM"].map(str::to_owned).to_vec()];
        let text = |device: &Value, field: &str| device[field].as_str().unwrap_or_default().to_owned();
        rows.extend(devices.iter().map(|device| {
            let seen = device["last_seen_ts"].as_i64().map(utc).unwrap_or_default();
            vec![text(device, "device_id"), text(device, "display_name"), seen, text(device, "last_seen_ip")]
        }));
        table(&rows)
    });
    Ok(())
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
        ("suspended", "suspended"),
    ];
    let what: Vec<&str> = states.iter().filter(|(field, _)| is(field)).map(|(_, word)| *word).collect();
    let text = |field: &str| user[field].as_str().unwrap_or_default().to_owned();
    let seen = user["last_seen_ts"].as_i64().map(utc).unwrap_or_default();
    vec![text("name"), text("displayname"), what.join(", "), seen]
}
