//! `doorstep keys`: this server's signing keys.

use argh::{ArgsInfo, FromArgs};
use doorstep::Homeserver;
use doorstep::clock::Clock;
use doorstep::internals::Store;
use doorstep::protocol::certificates::calendar::utc;
use serde_json::json;

use super::Failure;
use super::ask::{Operator, table};

/// Shows or replaces the keys that this server signs with.
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "keys")]
pub struct Keys {
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

/// Retires the key in use and makes another, while the server does not run. The old one stays published for what it signed.
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "rotate")]
struct Rotate {}

/// Does it, and prints the keys as they are then: each with its id, and since when it is out of use.
pub fn run(keys: &Keys, operator: &Operator) -> Result<(), Failure> {
    if let What::Rotate(Rotate {}) = keys.what {
        let config = operator.config_of_folder()?;
        Homeserver::open(config, Clock::new())?.keys().rotate_signing_key()?;
    }
    let all = Store::inspect(operator.folder())?.signing_keys()?;
    let told = all
        .iter()
        .map(|key| json!({ "key_id": key.id, "key": key.public_base64, "retired_ts": key.retired_ms }));
    operator.print(&json!({ "keys": told.collect::<Vec<_>>() }), |_| {
        let rows = all.iter().map(|key| {
            let state =
                key.retired_ms.map_or_else(|| "in use".to_owned(), |at| format!("retired {}", utc(at)));
            vec![key.id.clone(), key.public_base64.clone(), state]
        });
        table(&rows.collect::<Vec<_>>())
    });
    Ok(())
}
