//! The commands of the binary, one file each.

mod fixture;
mod keys;
mod logger;
mod routes;
mod serve;

use argh::FromArgs;
use doorstep::Result;
use doorstep::config::Settings;

/// What the binary can do.
#[derive(FromArgs)]
#[argh(subcommand)]
#[allow(clippy::large_enum_variant, reason = "there is one of it in the life of the process")]
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

/// Does what was asked; returns when it is done, which for a server is when it was told to stop.
pub fn run(command: Command) -> Result<()> {
    logger::install();
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
