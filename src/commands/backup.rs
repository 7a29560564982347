//! `doorstep backup`: the whole server in one file, beside a server that runs or without one.

use std::fs::{self, File};
use std::io::{self, IsTerminal, Read, Write};
use std::path::Path;

use argh::{ArgsInfo, FromArgs};
use doorstep::error::reason;
use doorstep::internals::write_file;
use serde_json::json;

use super::Failure;
use super::ask::{Operator, STANDARD_OUTPUT};

/// Writes a backup of the whole server, which may run meanwhile: accounts, rooms, files and its signing key.
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "backup")]
pub struct Backup {
    /// file to write (a tar archive, for your eyes only), or `-` for standard output
    #[argh(positional)]
    file: String,
}

/// Does it, and says how large it is.
pub fn run(asked: &Backup, operator: &Operator) -> Result<(), Failure> {
    let is_output = asked.file == STANDARD_OUTPUT;
    if is_output && io::stdout().is_terminal() {
        return Err(Failure::Misuse("a backup is not for a terminal: name a file, or have it piped".into()));
    }
    if !is_output {
        refuse_to_replace_another(Path::new(&asked.file))?;
    }
    let mut backup = operator.ask_for_stream("/_doorstep/admin/v1/backup")?;
    if is_output {
        let mut out = io::stdout();
        let written = io::copy(&mut backup, &mut out).and_then(|_| out.flush());
        return written
            .map_err(|e| Failure::Failed(format!("the backup ended in the middle: {}", reason(&e))));
    }
    let bytes = write_file(Path::new(&asked.file), &mut backup)?;
    operator.print(&json!({ "file": asked.file, "bytes": bytes }), |_| {
        format!("{} has the backup, {}", asked.file, super::stats::size(bytes))
    });
    Ok(())
}

/// A backup of before is replaced. What else has that name, such as the database, is not: the name was not meant.
fn refuse_to_replace_another(path: &Path) -> Result<(), Failure> {
    let is_file = fs::symlink_metadata(path).is_ok_and(|found| found.is_file() && found.len() > 0);
    if !is_file {
        return Ok(());
    }
    let mut begin = Vec::new();
    let read = File::open(path).and_then(|file| file.take(BEGIN.len() as u64).read_to_end(&mut begin));
    if read.is_ok() && begin == BEGIN {
        return Ok(());
    }
    Err(Failure::Failed(format!("{} is there, and is no backup: name another file", path.display())))
}

/// What a backup begins with: the name of its first file.
const BEGIN: &[u8] = b"doorstep-backup.json";
