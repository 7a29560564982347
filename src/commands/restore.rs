//! `doorstep restore`: a server is made of a backup.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use argh::{ArgsInfo, FromArgs};
use doorstep::clock::Clock;
use doorstep::config::{Config, Data, Settings};
use doorstep::internals::{restore, restore_from};

use super::{Failure, say};

/// What stands for `-`.
const STANDARD_INPUT: &str = "/dev/stdin";

/// Says it in words that the parser of arguments takes for no flag. Errors: it stands where a folder or a file is named.
pub fn name_standard_input(args: &mut [&str]) -> Result<(), Failure> {
    for at in 1..args.len() {
        let before = args[at - 1];
        if args[at] != "-" {
            continue;
        }
        if before.starts_with("--") && before.len() > 2 {
            return Err(Failure::Misuse(format!("{before} needs a value: `-` is for the backup alone")));
        }
        args[at] = STANDARD_INPUT;
    }
    Ok(())
}

/// Makes the data folder of a server from a backup. The folder must be empty, or not be there.
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "restore")]
pub struct Restore {
    /// the backup, or `-` for standard input
    #[argh(positional)]
    file: PathBuf,
    /// folder to restore into [doorstep-data]
    #[argh(option)]
    data: Option<String>,
    /// the server's configuration file, which names the folder and the server
    #[argh(option)]
    config: Option<String>,
    /// name of the server that it has to be a backup of
    #[argh(option)]
    name: Option<String>,
}

/// Restores, and says what happens next.
pub fn run(asked: &Restore) -> Result<(), Failure> {
    let flags = [("--data", &asked.data), ("--config", &asked.config), ("--name", &asked.name)];
    let given: Vec<&str> =
        flags.iter().filter_map(|(flag, value)| Some([*flag, value.as_deref()?])).flatten().collect();
    let misuse = |told: String| Failure::Misuse(told);
    let settings = Settings::from_args(&["doorstep"], &given).map_err(|e| misuse(e.output))?;
    let settings = settings.with_file().map_err(|e| misuse(e.for_people()))?;
    let is_named = settings.all("name").next().is_some();
    let config = Config::from_settings(settings).map_err(|e| misuse(e.for_people()))?;
    let Data::Folder(folder) = &config.data else {
        return Err(misuse("a server is restored into a folder, not into memory".into()));
    };
    let name = is_named.then_some(&config.server_name);
    let restored = if asked.file.as_os_str() == STANDARD_INPUT {
        let mut backup = io::stdin().lock();
        if backup.is_terminal() {
            return Err(misuse(
                "a backup does not come from a terminal: name a file, or have it piped".into(),
            ));
        }
        restore_from(folder, &mut backup, name, &Clock::new())?
    } else {
        restore(folder, &asked.file, name, &Clock::new())?
    };
    let (manifest, end) = (&restored.manifest, &restored.end);
    say(&format!(
        "{} is restored in {}, as it was on {}, with {} files of media.",
        manifest.server_name,
        folder.display(),
        doorstep::protocol::certificates::calendar::utc(manifest.begun_ms),
        end.media_files - restored.spoilt as u64,
    ));
    if restored.spoilt > 0 {
        say(&format!(
            "{} files of media were spoilt already when they were backed up, and are left out.",
            restored.spoilt
        ));
    }
    say(
        "One-time keys, and whatever else is given out once, are dropped: clients bring new ones by themselves.",
    );
    say(
        "Accounts, devices and passwords are those of that time: who was logged out since is logged in again, and",
    );
    say("a name that was registered since can be registered by anybody.");
    say(&format!("Never start the server that it was made of again. Now: {}", next(folder)));
    Ok(())
}

fn next(folder: &Path) -> String {
    format!("doorstep serve --data {} and the flags that it had before", folder.display())
}
