//! The commands of the binary, one file each: `serve`, `keys`, `routes`, and `fixture` for tests. `logger`: what is said
//! while one runs; `misuse`: what is said to who mistypes one; `notify`: what systemd is told.

mod fixture;
mod keys;
mod logger;
pub mod misuse;
mod notify;
mod routes;
mod serve;

use std::io::{self, Write};

use argh::{ArgsInfo, FromArgs};
use doorstep::Error;
use doorstep::config::Settings;

/// What the binary can do.
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand)]
pub enum Command {
    /// `serve`
    Serve(Settings),
    /// `fixture`
    Fixture(fixture::Fixture),
    /// `keys`
    Keys(keys::Keys),
    /// `routes`
    Routes(routes::Routes),
}

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
pub fn run(command: Command) -> Result<(), Failure> {
    logger::install().map_err(Failure::Misuse)?;
    match command {
        Command::Serve(settings) => serve::run(settings),
        Command::Fixture(fixture) => fixture::run(&fixture),
        Command::Keys(keys) => keys::run(&keys),
        Command::Routes(routes) => {
            routes::run(&routes);
            Ok(())
        }
    }
}

/// Prints these lines. Whoever closed the other end wants no more of them, and no complaint.
pub fn say(lines: &str) {
    let mut out = io::stdout();
    let _ = out.write_all(lines.as_bytes()).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush());
}
