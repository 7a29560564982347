//! How the commands reach the homeserver: by the local socket of the one that runs on the data folder, or, where none
//! runs, by opening the folder themselves. Either way it is the same request with the same answer. The folder's lock
//! decides which way it is, so that nothing comes in between.

use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use argh::FromArgs;
use doorstep::config::{Config, Data, Settings};
use doorstep::error::reason;
use doorstep::internals::{Store, ask, ask_for_stream};
use doorstep::launch::{SOCKET, answer_operator, stream_to_operator};
pub use doorstep::protocol::media::web_url::percent_encoded as segment;
use serde_json::Value;

use super::{Failure, for_terminal, say, say_as_it_is};

/// How long a command waits for a folder that another process has which listens to nobody: a server that starts or
/// stops, or another command.
const FOLDER_TIMEOUT: Duration = Duration::from_secs(10);
/// How soon it looks again.
const FOLDER_PAUSE: Duration = Duration::from_millis(50);

/// What stands for `-`.
pub const STANDARD_OUTPUT: &str = "/dev/stdout";

/// What all of these commands understand, wherever it stands: appended to the help of each.
pub const HELP: &str = "\nOf every such command:
  --data <folder>   folder of the server's database [doorstep-data]
  --config <file>   the server's configuration file, which names the folder
  --json            print the answer as it is, for programs";

/// Which homeserver a command is for, and how its answer is printed.
pub struct Operator {
    config: Option<Config>,
    folder: PathBuf,
    json: bool,
}

impl Operator {
    /// Takes what all commands understand out of their arguments. Errors: a flag without a value, a configuration file
    /// that cannot be used, a server in memory.
    pub fn from_args(args: &mut Vec<&str>) -> Result<Self, Failure> {
        let (mut settings, mut json, mut rest) = (Vec::new(), false, Vec::new());
        let mut given = args.iter().copied();
        while let Some(arg) = given.next() {
            match arg.split_once('=').unwrap_or((arg, "")) {
                ("--json", "") => json = true,
                (flag @ ("--data" | "--config"), "") => {
                    let value = given.next().filter(|value| !value.starts_with("--"));
                    let value = value.ok_or_else(|| Failure::Misuse(format!("{flag} needs a value")))?;
                    settings.extend([flag, value]);
                }
                (flag @ ("--data" | "--config"), value) => settings.extend([flag, value]),
                // The parser of arguments takes it for a flag.
                ("-", _) => rest.push(STANDARD_OUTPUT),
                _ => rest.push(arg),
            }
        }
        *args = rest;
        let wrong = |told: &str| Failure::Misuse(told.to_owned());
        let settings = Settings::from_args(&["doorstep"], &settings).map_err(|e| wrong(&e.output))?;
        let has_file = settings.all("config").next().is_some();
        let config = settings.with_file().and_then(Config::from_settings);
        let config = config.map_err(|e| wrong(&e.for_people()))?;
        match &config.data {
            Data::Memory => Err(wrong("a server that keeps its data in memory is not reached by commands")),
            Data::Folder(folder) => {
                Ok(Self { folder: folder.clone(), config: has_file.then_some(config), json })
            }
        }
    }

    /// Asks, and gives the answer. Errors: what the server says, or why it cannot be reached.
    pub fn ask(&self, method: &str, target: &str, body: Option<&Value>) -> Result<Value, Failure> {
        let body = body.map(|body| body.to_string().into_bytes());
        let (status, answer) = self.ask_raw(method, target, body.as_deref())?;
        let answer: Value = serde_json::from_slice(&answer).unwrap_or_default();
        if (200..300).contains(&status) {
            return Ok(answer);
        }
        Err(failure(status, &answer))
    }

    /// The same with bytes. Gives the status and the body of the answer, whatever they are.
    pub fn ask_raw(
        &self,
        method: &str,
        target: &str,
        body: Option<&[u8]>,
    ) -> Result<(u16, Vec<u8>), Failure> {
        self.reach(
            |socket| ask(socket, method, target, body),
            |config| answer_operator(config, method, target, body),
        )
    }

    /// Asks for something that may be large, and gives it to be read as it comes. Errors: those of `ask`.
    pub fn ask_for_stream(&self, target: &str) -> Result<Box<dyn Read>, Failure> {
        let (status, mut answer) = self.reach(
            |socket| ask_for_stream(socket, target),
            |config| {
                stream_to_operator(config, target).map(|(status, answer)| (status, answer as Box<dyn Read>))
            },
        )?;
        if (200..300).contains(&status) {
            return Ok(answer);
        }
        let mut told = Vec::new();
        // What cannot be read says nothing.
        let _ = answer.read_to_end(&mut told);
        let told: Value = serde_json::from_slice(&told).unwrap_or_default();
        Err(failure(status, &told))
    }

    /// The folder of the server's database.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// By the socket of the server that runs, or else by the folder.
    #[allow(clippy::disallowed_methods, reason = "a lock of another process tells nobody when it is free")]
    fn reach<T>(
        &self,
        by_socket: impl Fn(&Path) -> std::io::Result<T>,
        by_folder: impl Fn(Config) -> doorstep::Result<T>,
    ) -> Result<T, Failure> {
        let socket = self.folder.join(SOCKET);
        let deadline = Instant::now() + FOLDER_TIMEOUT;
        loop {
            match by_socket(&socket) {
                Ok(answer) => return Ok(answer),
                // Nobody listens there: no server runs, or it starts or stops.
                Err(e) if is_nobody(e.kind()) => {}
                Err(e) => return Err(Failure::Failed(unreachable(&socket, &e))),
            }
            match by_folder(self.config_of_folder()?) {
                Err(e) if e.is_in_use() && Instant::now() < deadline => std::thread::sleep(FOLDER_PAUSE),
                Err(e) if e.is_in_use() => {
                    return Err(Failure::Failed(format!(
                        "{} is in use by a process that does not answer by {SOCKET}: a server that is starting or \
                         stopping, or another command. Try again in a moment (a server that cannot have it says so in its log)",
                        self.folder.display()
                    )));
                }
                answered => return Ok(answered?),
            }
        }
    }

    /// The settings to open the folder with. Errors: there is no server's database in it, and a command makes none.
    pub fn config_of_folder(&self) -> Result<Config, Failure> {
        let name = Store::name_of(&self.folder).map_err(|e| {
            let (folder, told) = (self.folder.display(), e.for_people());
            Failure::Failed(format!("there is no server in {folder}: {told}.\nSay where it is with --data"))
        })?;
        let mut config = self.config.clone().unwrap_or_else(|| Config::for_name(name.clone()));
        config.server_name = name;
        config.data = Data::Folder(self.folder.clone());
        Ok(config)
    }

    /// Prints an answer: as it is, if that was asked for, else as these lines.
    pub fn print(&self, answer: &Value, lines: impl FnOnce(&Value) -> String) {
        match self.json {
            true => say_as_it_is(&answer.to_string()),
            false => say(&lines(answer)),
        }
    }
}

/// What the server says of why it does not do what was asked.
fn failure(status: u16, answer: &Value) -> Failure {
    let told = answer["error"].as_str().map(str::to_owned);
    Failure::Failed(told.unwrap_or_else(|| format!("the server answered {status}")))
}

fn is_nobody(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::NotFound | ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset)
}

fn unreachable(socket: &Path, e: &std::io::Error) -> String {
    let socket = socket.display();
    match e.kind() {
        ErrorKind::PermissionDenied => {
            format!("{socket} is not yours to open: be the user that the server runs as, or root")
        }
        ErrorKind::TimedOut => format!(
            "the server that has {socket} does not answer: it was stopped (SIGSTOP, Ctrl-Z), or hangs. Nothing was done: have it \
             go on (SIGCONT), or restart it"
        ),
        ErrorKind::ConnectionAborted => {
            format!(
                "the server ended before it answered by {socket}: look whether it was done, and ask again"
            )
        }
        _ => format!("the server is not reached by {socket}: {}", reason(e)),
    }
}

/// Rows as columns that stand below each other, with two spaces between them. What strangers write keeps to its line.
pub fn table(rows: &[Vec<String>]) -> String {
    let in_line = |cell: &String| for_terminal(&cell.replace('\n', " "));
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(in_line).collect()).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |n: usize| rows.iter().filter_map(|row| row.get(n)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|n| width(n).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}
