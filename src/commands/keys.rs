//! `doorstep keys`: this server's signing keys.

use std::path::PathBuf;

use argh::{ArgsInfo, FromArgs};
use doorstep::Homeserver;
use doorstep::clock::Clock;
use doorstep::config::{Config, Data};
use doorstep::internals::Store;

use super::{Failure, say};

/// Shows or replaces the keys that this server signs with. The server must not be running.
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "keys")]
pub struct Keys {
    /// folder of the database [doorstep-data]
    #[argh(option, default = "PathBuf::from(\"doorstep-data\")")]
    data: PathBuf,
    #[argh(subcommand)]
    what: What,
}

#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand)]
enum What {
    List(List),
    Rotate(Rotate),
}

/// Lists the public keys as other servers see them.
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "list")]
struct List {}

/// Retires the key in use and makes another. The old one stays published for what it signed.
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "rotate")]
struct Rotate {}

/// Does it, and prints the keys as they are then: each with its id, and since when it is out of use.
pub fn run(keys: &Keys) -> Result<(), Failure> {
    let mut config = Config::for_name(Store::name_of(&keys.data)?);
    config.data = Data::Folder(keys.data.clone());
    let homeserver = Homeserver::open(config, Clock::new())?;
    if let What::Rotate(Rotate {}) = keys.what {
        homeserver.keys().rotate_signing_key()?;
    }
    let published = homeserver.key_ring.own_statement();
    let entries = |field: &str| published.get(field).and_then(|keys| keys.as_object()).into_iter().flatten();
    for (id, key) in entries("old_verify_keys") {
        say(&format!("{id} {} retired at {} ms", text(&key["key"]), key["expired_ts"]));
    }
    for (id, key) in entries("verify_keys") {
        say(&format!("{id} {} in use", text(&key["key"])));
    }
    Ok(())
}

fn text(value: &serde_json::Value) -> &str {
    value.as_str().unwrap_or_default()
}
