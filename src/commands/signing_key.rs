//! `doorstep export-key` and `import-key`: the key that a server signs with. Who has it is that server for all others.

use std::fs;
use std::io::Read;
use std::path::Path;

use argh::{ArgsInfo, FromArgs};
use doorstep::Homeserver;
use doorstep::clock::Clock;
use doorstep::config::{Config, Data};
use doorstep::error::reason;
use doorstep::internals::write_file;
use doorstep::protocol::ServerName;
use serde_json::json;

use super::ask::{Operator, STANDARD_OUTPUT};
use super::{Failure, say};

/// More than any file with a key has.
const KEY_BYTES_MAX: u64 = 4096;

/// Writes the key that the server signs with, as Synapse's `signing.key` has it. Keep it as you keep a password.
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "export-key")]
pub struct ExportKey {
    /// file to write, or `-` for standard output
    #[argh(positional)]
    file: String,
}

/// Has the server sign with a key that it had before, or in another database. Those before it stay published for what they
/// signed.
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "import-key")]
pub struct ImportKey {
    /// file with the key, as `export-key` or Synapse writes it
    #[argh(positional)]
    file: String,
    /// name of the server, where there is no database yet: one is made
    #[argh(option)]
    name: Option<String>,
}

/// Writes it.
pub fn export(asked: &ExportKey, operator: &Operator) -> Result<(), Failure> {
    let answer = operator.ask("GET", "/_doorstep/admin/v1/signing_key", None)?;
    let key = answer["key"].as_str().unwrap_or_default();
    if asked.file == STANDARD_OUTPUT {
        say(key);
        return Ok(());
    }
    let path = Path::new(&asked.file);
    // It may be the only copy of another key, or anything.
    if fs::symlink_metadata(path).is_ok_and(|found| found.is_file() && found.len() > 0)
        && !fs::read(path).is_ok_and(|text| text.trim_ascii() == key.as_bytes())
    {
        return Err(Failure::Failed(format!(
            "{} is there, and is not this key: name another file",
            path.display()
        )));
    }
    write_file(path, &mut format!("{key}\n").as_bytes())?;
    Ok(())
}

/// Brings it in, and prints its id.
pub fn import(asked: &ImportKey, operator: &Operator) -> Result<(), Failure> {
    let mut text = String::new();
    let file = fs::File::open(&asked.file);
    file.and_then(|file| file.take(KEY_BYTES_MAX).read_to_string(&mut text))
        .map_err(|e| Failure::Failed(format!("{} cannot be read: {}", asked.file, reason(&e))))?;
    let key_id = match &asked.name {
        Some(name) if !operator.folder().join("doorstep.db").exists() => {
            let name = ServerName::parse(name).map_err(|e| Failure::Misuse(e.for_people()))?;
            let mut config = Config::for_name(name);
            config.data = Data::Folder(operator.folder().to_owned());
            Homeserver::open(config, Clock::new())?.admin().import_signing_key(&text)?
        }
        given => {
            if let Some(name) = given {
                let known = operator.config_of_folder()?.server_name;
                if known.as_str() != name {
                    return Err(Failure::Failed(format!("This is the database of {known}, not of {name}")));
                }
            }
            let answer =
                operator.ask("POST", "/_doorstep/admin/v1/signing_key", Some(&json!({ "key": text })))?;
            answer["key_id"].as_str().unwrap_or_default().to_owned()
        }
    };
    operator.print(&json!({ "key_id": key_id }), |_| format!("The server signs with {key_id} now"));
    Ok(())
}
