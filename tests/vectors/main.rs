//! Runs test vectors: `cargo test --release --test vectors`.
//!
//! The vectors are read from the folder named by the environment variable `DOORSTEP_VECTORS`, or from the project's
//! own selection beside this file (`data/`, made by `curate.py`). A folder has `keys.json`, and any number of
//! `*.jsonl` files of one row a line, each file also as `.gz`. What a row tests is said by the first part of its id
//! (`kind/room version/case`), so that any other corpus in the same format runs too; a kind that is not known fails.
//!
//! Arguments that are no options choose files by parts of their names: `cargo test --test vectors -- state`. With
//! `--speed` it prints instead what reading and checking one event costs.
//!
//! Expected values come from Synapse and from the specification. Rows marked `disputed`, where the two differ or the
//! specification is silent, are followed as Synapse has them: other servers are what a room has to agree with.

#![allow(clippy::print_stdout, reason = "the table is what this test is run for")]

mod acl;
mod auth;
mod events;
mod json;
mod keys;
mod spec;
mod speed;
mod state;

use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rayon::prelude::*;
use serde_json::Value;

use crate::keys::Keys;

/// How many failures of one file are shown.
const SHOWN: usize = 10;

/// What became of one file.
struct Outcome {
    name: String,
    run: usize,
    disputed: usize,
    failures: Vec<String>,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        println!("vectors: test");
        return ExitCode::SUCCESS;
    }
    let wanted: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let folder = std::env::var_os("DOORSTEP_VECTORS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/data"), PathBuf::from);
    if arguments.iter().any(|argument| argument == "--speed") {
        let events = speed::measure(&folder);
        println!("{}", events.unwrap_or_else(|why| why));
        return ExitCode::SUCCESS;
    }
    match run_folder(&folder, &wanted) {
        Ok(outcomes) if outcomes.is_empty() && !wanted.is_empty() => ExitCode::SUCCESS,
        Ok(outcomes) => report(&folder, &outcomes),
        Err(why) => {
            println!("vectors in {}: {why}", folder.display());
            ExitCode::FAILURE
        }
    }
}

fn run_folder(folder: &Path, wanted: &[&String]) -> Result<Vec<Outcome>, String> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .map_err(|e| e.to_string())?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| is_vectors(path))
        .collect();
    files.sort_by_key(|path| name_of(path));
    let keys = files.iter().find(|path| name_of(path) == "keys.json").ok_or("there is no keys.json")?;
    let keys = Keys::read(&parse(&text_of(keys)?)?)?;
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|part| name.contains(part.as_str()));
    let files = files.iter().filter(|path| name_of(path) != "keys.json" && is_wanted(&name_of(path)));
    files.map(|path| run_file(path, &keys)).collect()
}

fn is_vectors(path: &Path) -> bool {
    let name = name_of(path);
    name.ends_with(".jsonl") || name == "keys.json" || name == "spec.json"
}

/// The file's name without `.gz`.
fn name_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    name.strip_suffix(".gz").map_or(name.clone(), str::to_owned)
}

/// The text of a file of the folder, packed or not.
pub(crate) fn file_text(folder: &Path, name: &str) -> Result<String, String> {
    let packed = folder.join(format!("{name}.gz"));
    text_of(&if packed.exists() { packed } else { folder.join(name) })
}

fn text_of(path: &Path) -> Result<String, String> {
    let failed = |e: std::io::Error| format!("{}: {e}", path.display());
    let bytes = std::fs::read(path).map_err(failed)?;
    let mut text = String::new();
    if path.extension().is_some_and(|extension| extension == "gz") {
        flate2::read::GzDecoder::new(bytes.as_slice()).read_to_string(&mut text).map_err(failed)?;
    } else {
        text = String::from_utf8(bytes).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(text)
}

pub(crate) fn parse(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|e| e.to_string())
}

fn run_file(path: &Path, keys: &Keys) -> Result<Outcome, String> {
    let (name, text) = (name_of(path), text_of(path)?);
    let rows: Vec<Value> = if name == "spec.json" {
        spec::rows(&parse(&text)?)?
    } else {
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        let parsed = lines.par_iter().map(|line| parse(line)).collect::<Result<_, _>>();
        parsed.map_err(|e| format!("{name}: {e}"))?
    };
    let failures = rows.par_iter().filter_map(|row| {
        let result = catch_unwind(AssertUnwindSafe(|| run_row(row, keys)));
        let why = result.unwrap_or_else(|_| Err("it panicked".to_owned())).err()?;
        Some(format!("{}: {why}", row["id"].as_str().unwrap_or("a row without id")))
    });
    let disputed = rows.iter().filter(|row| row["disputed"] == true).count();
    Ok(Outcome { name, run: rows.len(), disputed, failures: failures.collect() })
}

/// Runs one row by its kind.
fn run_row(row: &Value, keys: &Keys) -> Result<(), String> {
    let id = row["id"].as_str().ok_or("the row has no id")?;
    match id.split('/').next().unwrap_or_default() {
        "canonical" => json::canonical(row),
        "canonical-strict" => json::strict(row),
        "sign" => json::sign(row, keys),
        "verify" => json::verify(row, keys),
        "request" => json::request(row, keys),
        "acl" => acl::run(row),
        "event" => events::run(row, keys),
        "auth" => auth::run(row, keys),
        "state" => state::run(row),
        "spec" => spec::run(row),
        kind => Err(format!("unknown kind of vector: {kind}")),
    }
}

fn report(folder: &Path, outcomes: &[Outcome]) -> ExitCode {
    println!("vectors in {}", folder.display());
    println!("{:<26} {:>6} {:>7} {:>7}", "file", "run", "passed", "failed");
    for Outcome { name, run, failures, .. } in outcomes {
        println!("{name:<26} {run:>6} {:>7} {:>7}", run - failures.len(), failures.len());
    }
    let run: usize = outcomes.iter().map(|outcome| outcome.run).sum();
    let failed: usize = outcomes.iter().map(|outcome| outcome.failures.len()).sum();
    let disputed: usize = outcomes.iter().map(|outcome| outcome.disputed).sum();
    println!("{:<26} {run:>6} {:>7} {failed:>7}   ({disputed} of them disputed)", "all", run - failed);
    for Outcome { failures, name, .. } in outcomes {
        failures.iter().take(SHOWN).for_each(|failure| println!("FAILED {failure}"));
        if failures.len() > SHOWN {
            println!("FAILED … and {} more in {name}", failures.len() - SHOWN);
        }
    }
    if failed == 0 && run > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Two values that should be the same.
pub(crate) fn same<T: PartialEq + std::fmt::Display>(
    what: &str,
    found: &T,
    expected: &T,
) -> Result<(), String> {
    if found == expected {
        Ok(())
    } else {
        Err(format!("{what} is\n    {found}\n  and should be\n    {expected}"))
    }
}

/// A text of the row.
pub(crate) fn text<'a>(value: &'a Value, pointer: &str) -> Result<&'a str, String> {
    value.pointer(pointer).and_then(Value::as_str).ok_or_else(|| format!("no text at {pointer}"))
}

/// An object of the row.
pub(crate) fn object(value: &Value, pointer: &str) -> Result<serde_json::Map<String, Value>, String> {
    value
        .pointer(pointer)
        .and_then(Value::as_object)
        .cloned()
        .ok_or_else(|| format!("no object at {pointer}"))
}
