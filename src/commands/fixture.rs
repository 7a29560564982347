//! `doorstep fixture`: a homeserver for somebody else's test, in whatever language it is written.

use std::io::Read;

use argh::{ArgsInfo, FromArgs};
use doorstep::TestServer;
use doorstep::config::{Data, Registration};
use serde_json::{Map, json};

use super::{Failure, say};

/// Runs an in-memory homeserver on free ports for a test: prints one JSON line when it is ready, and lives until its
/// standard input closes.
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "fixture")]
pub struct Fixture {
    /// accounts to make, by localpart, separated by commas
    #[argh(option, default = "String::new()")]
    users: String,
    /// let nobody else register
    #[argh(switch)]
    closed: bool,
}

/// Runs until standard input ends.
pub fn run(fixture: &Fixture) -> Result<(), Failure> {
    let server = TestServer::start_with(|config| {
        config.data = Data::Memory;
        if fixture.closed {
            config.registration = Registration::Closed;
        }
    });
    let mut users = Map::new();
    for localpart in fixture.users.split(',').map(str::trim).filter(|u| !u.is_empty()) {
        let (user_id, token) = server.homeserver().accounts().register_user(localpart, Some(localpart))?;
        let user = json!({ "user_id": user_id, "access_token": token, "password": localpart });
        users.insert(localpart.to_owned(), user);
    }
    say(&json!({ "name": server.name(), "url": server.url(), "users": users }).to_string());
    let mut rest = std::io::stdin().lock();
    let mut buffer = [0; 1024];
    while rest.read(&mut buffer).is_ok_and(|n| n > 0) {}
    Ok(())
}
