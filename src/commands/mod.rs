//! The commands of the binary, one file each: `serve`, `check`, `routes`, and `fixture` for tests; those of the operator,
//! which ask the server that runs or do without it: `user`, `token`, `room`, `knocks`, `media`, `backup`, `stats`, `signing_key`,
//! `keys`; and those that need it stopped: `restore`, `vacuum`, `keys rotate`. `ask`: how they do; `secret`: how passwords are typed. `logger`: what is said while a
//! command runs;
//! `misuse`: what is said to who mistypes one; `notify`: what systemd is told.

pub mod ask;
mod backup;
mod check;
mod fixture;
mod keys;
mod knocks;
mod logger;
mod media;
pub mod misuse;
mod notify;
pub mod restore;
mod room;
mod routes;
mod secret;
mod serve;
mod signing_key;
mod stats;
mod token;
mod user;
mod vacuum;

use std::io::{self, Write};
use std::path::PathBuf;

use argh::{ArgsInfo, FromArgs};
use doorstep::Error;
use doorstep::config::Settings;
use doorstep::internals::Store;

/// What the binary can do.
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand)]
pub enum Command {
    /// `serve`
    Serve(Settings),
    /// `check`
    Check(check::Check),
    /// `fixture`
    Fixture(fixture::Fixture),
    /// `keys`
    Keys(keys::Keys),
    /// `restore`
    Restore(restore::Restore),
    /// `routes`
    Routes(routes::Routes),
    /// `token`
    Token(token::Token),
    /// `user`
    User(user::User),
    /// `room`
    Room(room::Room),
    /// `knocks`
    Knocks(knocks::Knocks),
    /// `media`
    Media(media::Media),
    /// `backup`
    Backup(backup::Backup),
    /// `stats`
    Stats(stats::Stats),
    /// `vacuum`
    Vacuum(vacuum::Vacuum),
    /// `export-key`
    ExportKey(signing_key::ExportKey),
    /// `import-key`
    ImportKey(signing_key::ImportKey),
}

/// The commands of the operator: each understands what [`ask::Operator`] does.
pub const OF_OPERATOR: &[&str] = &[
    "user",
    "token",
    "room",
    "knocks",
    "media",
    "keys",
    "backup",
    "export-key",
    "import-key",
    "stats",
    "vacuum",
];

/// Why a command ends without having done what was asked, in a sentence for a person at a terminal.
pub enum Failure {
    /// What was asked cannot be meant: exit status 2, as other tools have it.
    Misuse(String),
    /// It could not be done: exit status 1.
    Failed(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Failed(error.for_people())
    }
}

/// Does what was asked; returns when it is done, which for a server is when it was told to stop.
pub fn run(command: Command, operator: Option<&ask::Operator>) -> Result<(), Failure> {
    logger::install(operator.is_some()).map_err(Failure::Misuse)?;
    // Those of `OF_OPERATOR` are given one.
    let operator = || operator.ok_or_else(|| Failure::Misuse("this command is not the operator's".into()));
    match command {
        Command::Serve(settings) => serve::run(settings),
        Command::Check(asked) => check::run(asked),
        Command::Fixture(fixture) => fixture::run(&fixture),
        Command::Keys(keys) => keys::run(&keys, operator()?),
        Command::Restore(asked) => restore::run(&asked),
        Command::Routes(routes) => {
            routes::run(&routes);
            Ok(())
        }
        Command::Token(token) => token::run(&token, operator()?),
        Command::User(user) => user::run(&user, operator()?),
        Command::Room(room) => room::run(&room, operator()?),
        Command::Knocks(knocks) => knocks::run(&knocks, operator()?),
        Command::Media(media) => media::run(&media, operator()?),
        Command::Backup(asked) => backup::run(&asked, operator()?),
        Command::Stats(_) => stats::run(operator()?),
        Command::Vacuum(_) => vacuum::run(operator()?),
        Command::ExportKey(asked) => signing_key::export(&asked, operator()?),
        Command::ImportKey(asked) => signing_key::import(&asked, operator()?),
    }
}

/// These settings with the name that is pinned in their data folder, unless they say one.
fn with_pinned_name(settings: Settings) -> Settings {
    if settings.all("name").next().is_some() {
        return settings;
    }
    let folder = PathBuf::from(settings.all("data").next().unwrap_or("doorstep-data"));
    match Store::name_of(&folder) {
        Ok(pinned) => settings.with("name", pinned.as_str()),
        Err(_) => settings,
    }
}

/// Prints these lines. Whoever closed the other end wants no more of them, and no complaint.
pub fn say(lines: &str) {
    say_as_it_is(&for_terminal(lines));
}

/// The same of what is for programs: JSON, which is given as it came.
pub fn say_as_it_is(lines: &str) {
    let mut out = io::stdout();
    let _ = out.write_all(lines.as_bytes()).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush());
}

/// Lines in which nothing that somebody chose tells a terminal what to do, or turns around what stands beside it.
pub fn for_terminal(lines: &str) -> String {
    lines.chars().map(|c| if is_command(c) && c != '\n' { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// Control characters, and those that set the direction of what follows.
fn is_command(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::ask::table;
    use super::for_terminal;

    #[test]
    fn what_others_chose_tells_no_terminal_anything_and_stays_in_its_row() {
        let hostile = "a\u{1b}]0;x\u{7}\u{9b}2J\u{202e}b\r\nc\td";
        assert_eq!(for_terminal(hostile), "a\u{fffd}]0;x\u{fffd}\u{fffd}2J\u{fffd}b\u{fffd}\nc\u{fffd}d");
        let rows =
            [["NAME", "WHAT"].map(str::to_owned).to_vec(), vec![hostile.to_owned(), "admin".to_owned()]];
        let shown = table(&rows);
        assert_eq!(shown.lines().count(), 2, "{shown:?}");
        assert_eq!(for_terminal(&shown), shown);
    }
}
