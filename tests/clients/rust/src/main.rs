//! Element X's engine, unchanged, led through what people do: the crates matrix-sdk and matrix-sdk-ui with their
//! SyncService (RoomListService and EncryptionSyncService) over simplified sliding sync.
//!
//! `doorstep-rust-client FLOW --server URL --other URL --kinds doorstep,synapse --folder DIR` runs one flow and ends with 0 if all of it was seen.
//! The accounts, and the fate of the servers, are in the hands of who started it: a line `ask WORDS` on the standard
//! output is answered by one line on the standard input (see `stage`). `tests/clients/rust_run.py` does that.

#![recursion_limit = "256"]

mod flows;
mod phone;
mod stage;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use stage::Stage;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let flow = words.next().context("name a flow, or say `list`")?;
    if flow == "list" {
        for (name, _) in flows::ALL {
            println!("{name}");
        }
        return Ok(());
    }
    let (mut server, mut other, mut folder, mut kinds) = (None, None, None, String::new());
    while let Some(word) = words.next() {
        let value = words.next().with_context(|| format!("{word} needs a value"))?;
        match word.as_str() {
            "--server" => server = Some(value),
            "--other" => other = Some(value),
            "--kinds" => kinds = value,
            "--folder" => folder = Some(PathBuf::from(value)),
            _ => bail!("{word} is no option"),
        }
    }
    let server = server.context("--server is needed")?;
    let folder = folder.context("--folder is needed")?;
    std::fs::create_dir_all(&folder)?;
    log_into(&folder)?;
    let stage = Stage::new(server, other, kinds.split(',').all(|kind| kind == "doorstep"), folder);
    let (_, play) =
        flows::ALL.iter().find(|(name, _)| *name == flow).with_context(|| format!("no flow {flow}"))?;
    play(&stage).await
}

/// What the engine says about the answers it got, for the reader of a failed run, and for the count of its warnings.
fn log_into(folder: &std::path::Path) -> Result<()> {
    let file = std::fs::File::create(folder.join("engine.log"))?;
    let wanted = std::env::var("RUST_LOG")
        .unwrap_or_else(|_| "info,matrix_sdk=debug,matrix_sdk_crypto=debug".to_owned());
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(wanted))
        .with_writer(std::sync::Mutex::new(file))
        .with_ansi(false)
        .init();
    Ok(())
}
