//! What a flow has at hand: two servers (which may be one), accounts on them, and somebody who starts and kills servers.

use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use matrix_sdk::ruma::OwnedUserId;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

/// How long an expectation may take to come true: far more than any of them needs, on a machine that does other things. (The engine
/// itself comes back to some things after a minute and a half only.)
const PATIENCE: Duration = Duration::from_secs(180);

/// One of the two homeservers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    Server,
    Other,
}

/// Somebody who can log in.
#[derive(Clone, Debug)]
pub struct Account {
    pub at: At,
    pub id: OwnedUserId,
    pub password: String,
}

pub struct Stage {
    server: String,
    other: String,
    pub folder: PathBuf,
    all_are_doorsteps: bool,
    asking: Mutex<()>,
}

impl Stage {
    pub fn new(server: String, other: Option<String>, all_are_doorsteps: bool, folder: PathBuf) -> Self {
        let other = other.unwrap_or_else(|| server.clone());
        Self { server, other, folder, all_are_doorsteps, asking: Mutex::new(()) }
    }

    pub fn url(&self, at: At) -> &str {
        match at {
            At::Server => &self.server,
            At::Other => &self.other,
        }
    }

    /// Whether both are one server.
    pub fn is_one_server(&self) -> bool {
        self.server == self.other
    }

    /// Whether a refused knock is told to the knocker, here or on another server. Synapse does that among its own alone.
    pub fn tells_of_refused_knocks(&self) -> bool {
        self.is_one_server() || self.all_are_doorsteps
    }

    /// A new account, which the one who started us makes: not every server lets clients register.
    pub fn account(&self, at: At, name: &str) -> Result<Account> {
        let answer = self.ask(&format!("account {} {name}", word(at)))?;
        let (id, password) = answer.split_once(' ').context("an account is `ID PASSWORD`")?;
        Ok(Account { at, id: OwnedUserId::try_from(id)?, password: password.to_owned() })
    }

    /// Ends the server in order; its port is closed when this returns.
    pub fn stop(&self, at: At) -> Result<()> {
        self.ask(&format!("stop {}", word(at))).map(drop)
    }

    /// `kill -9`.
    pub fn kill(&self, at: At) -> Result<()> {
        self.ask(&format!("kill {}", word(at))).map(drop)
    }

    /// Starts a server that was stopped or killed, and waits until it answers.
    pub fn start(&self, at: At) -> Result<()> {
        self.ask(&format!("start {}", word(at))).map(drop)
    }

    /// Has the web client do something: an act of `tests/clients/web/drive.mjs`, and its words.
    pub fn web(&self, words: &[&str]) -> Result<()> {
        self.ask(&format!("web {}", serde_json::to_string(words)?)).map(drop)
    }

    fn ask(&self, words: &str) -> Result<String> {
        let _one_at_a_time = self.asking.lock().unwrap();
        let mut out = std::io::stdout().lock();
        writeln!(out, "ask {words}")?;
        out.flush()?;
        let mut line = String::new();
        std::io::stdin().lock().read_line(&mut line)?;
        match line.trim_end().strip_prefix("ok") {
            Some(answer) => Ok(answer.trim_start().to_owned()),
            None => bail!("{words:?} was answered by {line:?}"),
        }
    }
}

fn word(at: At) -> &'static str {
    match at {
        At::Server => "server",
        At::Other => "other",
    }
}

/// Looks until there is something, and gives it. What was seen last is in the error: `look` says it in its `Err`.
pub async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Result<T, String>) -> Result<T> {
    let begun = Instant::now();
    let mut pause = Duration::from_millis(20);
    loop {
        match look().await {
            Ok(found) => {
                tracing::info!("seen after {:?}: {what}", begun.elapsed());
                return Ok(found);
            }
            Err(seen) if begun.elapsed() > PATIENCE => {
                bail!("not seen within {PATIENCE:?}: {what}; last seen: {seen}")
            }
            Err(_) => tokio::time::sleep(pause).await,
        }
        pause = (pause * 2).min(Duration::from_millis(200));
    }
}

/// Waits until the engine announces what is wanted. Of announcements that come faster than they are read it keeps the newest:
/// both of its syncs may announce the same.
pub async fn announced<T: Clone>(
    what: &str,
    announcements: &mut Receiver<T>,
    wanted: impl Fn(&T) -> bool,
) -> Result<T> {
    let wait = async {
        loop {
            match announcements.recv().await {
                Ok(next) if wanted(&next) => return Ok(next),
                Ok(_) | Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => bail!("the engine ended before it announced {what}"),
            }
        }
    };
    match tokio::time::timeout(PATIENCE, wait).await {
        Ok(announced) => announced,
        Err(_) => bail!("not announced within {PATIENCE:?}: {what}"),
    }
}

/// Fails with the words if it is not so.
pub fn demand(so: bool, words: impl std::fmt::Display) -> Result<()> {
    if so { Ok(()) } else { bail!("{words}") }
}
