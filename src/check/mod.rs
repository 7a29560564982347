//! `doorstep check`: whether a server is set up so that others find it, and it is well. Each finding says what was found,
//! and what to do where something is wrong. Nothing is changed.
//!
//! - `here`: what only this machine can see: settings, files, ports, the disk, the database.
//! - `outside`: what others see of a server, found as they find it; of any server.
//! - `pages`: what is judged of the pages and keys that were answered.

mod here;
mod outside;
mod pages;

use serde_json::{Value, json};

use crate::config::Config;
use crate::error::Result;
use crate::protocol::ServerName;
use crate::store::engine::inspect::Inspection;

/// How it stands with one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// As it should be.
    Fine,
    /// Something to know, that keeps nobody out.
    Note,
    /// Something does not work, or will not.
    Wrong,
}

impl State {
    /// A word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Fine => "ok",
            Self::Note => "note",
            Self::Wrong => "wrong",
        }
    }
}

/// What was found of one thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Of which.
    pub about: &'static str,
    /// How it stands.
    pub state: State,
    /// What was seen.
    pub found: String,
    /// What to do; nothing where nothing is to be done.
    pub advice: Option<String>,
}

impl Finding {
    /// As JSON: `about`, `state` (`ok`, `note`, `wrong`), `found`, and `advice` if there is any.
    pub fn to_json(&self) -> Value {
        let mut json = json!({ "about": self.about, "state": self.state.word(), "found": self.found });
        if let Some(advice) = &self.advice {
            json["advice"] = advice.as_str().into();
        }
        json
    }
}

/// Characters of what was found that are told: others wrote some of them.
const FOUND_CHARS_MAX: usize = 1000;

/// Text that strangers had a part in, for a terminal: without control characters, and not without end.
fn in_a_line(text: &str) -> String {
    text.chars().take(FOUND_CHARS_MAX).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Where findings go, one by one as they are made.
pub(crate) struct Report<'r> {
    tell: &'r mut dyn FnMut(&Finding),
    wrong: usize,
}

impl Report<'_> {
    fn add(&mut self, about: &'static str, state: State, found: impl Into<String>, advice: Option<String>) {
        self.wrong += usize::from(state == State::Wrong);
        (self.tell)(&Finding { about, state, found: in_a_line(&found.into()), advice });
    }

    fn fine(&mut self, about: &'static str, found: impl Into<String>) {
        self.add(about, State::Fine, found, None);
    }

    fn note(&mut self, about: &'static str, found: impl Into<String>, advice: impl Into<String>) {
        self.add(about, State::Note, found, Some(advice.into()).filter(|advice| !advice.is_empty()));
    }

    fn wrong(&mut self, about: &'static str, found: impl Into<String>, advice: impl Into<String>) {
        self.add(about, State::Wrong, found, Some(advice.into()));
    }
}

/// What is known of a server that is ours, to compare what others see with.
pub(crate) struct Own {
    config: Config,
    database: Option<Inspection>,
}

/// What is checked.
pub enum Subject {
    /// The server of these settings, on this machine.
    Own,
    /// Another one, of which only that is checked which everybody can see.
    Other(ServerName),
}

/// Checks a server and tells each finding. Whether nothing was wrong. Errors: a file of root certificates that cannot be
/// read.
pub fn run(config: Config, subject: Subject, tell: &mut dyn FnMut(&Finding)) -> Result<bool> {
    let mut report = Report { tell, wrong: 0 };
    match subject {
        Subject::Other(name) => outside::check(&config, &name, None, &mut report)?,
        Subject::Own => {
            let own = here::check(config, &mut report)?;
            let (config, name) = (own.config.clone(), own.config.server_name.clone());
            if config.has_local_name() && !config.allow_private_addresses {
                let found = format!("{name} is a name of this machine: nobody else can find it");
                report.note(
                    "name",
                    found,
                    "to federate, start a new server with --name and a name that DNS knows",
                );
            } else {
                outside::check(&config, &name, Some(&own), &mut report)?;
            }
        }
    }
    Ok(report.wrong == 0)
}
