//! `doorstep vacuum`: the database gives back what is free in it.

use argh::{ArgsInfo, FromArgs};
use doorstep::internals::Store;
use serde_json::json;

use super::Failure;
use super::ask::Operator;
use super::stats::size;

/// Writes the database anew, as small as it can be. The server must not be running: nobody could write meanwhile.
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "vacuum")]
pub struct Vacuum {}

/// Does it, and says what it gave.
pub fn run(operator: &Operator) -> Result<(), Failure> {
    let (before, after) = Store::vacuum(operator.folder())?;
    operator.print(&json!({ "bytes_before": before, "bytes": after }), |_| {
        format!("The database had {}, and has {} now", size(before), size(after))
    });
    Ok(())
}
