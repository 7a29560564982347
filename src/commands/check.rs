//! `doorstep check`: whether a server is set up so that others find it.

use std::net::{SocketAddr, ToSocketAddrs};

use argh::{
    ArgsInfo, CommandInfo, CommandInfoWithArgs, EarlyExit, FlagInfo, FlagInfoKind, FromArgs, Optionality,
    SubCommand,
};
use doorstep::check::{self, Finding, Subject};
use doorstep::config::{Config, Kind, SETTINGS, Settings};
use doorstep::internals::{Detour, Names};
use doorstep::{Result, protocol::ServerName};
use serde_json::json;

use super::{Failure, say, say_as_it_is, with_pinned_name};

const ABOUT: &str = "Checks whether a server is set up so that others find it, and whether it is well.";
const FLAGS: [(&str, &str, &str); 3] = [
    ("json", "", "print one JSON object"),
    ("dns", "address", "ask this name server, such as 9.9.9.9:53, as others do, and not the system's"),
    (
        "connect-to",
        "host:port=address:port",
        "connect there for this host and port, before names or routers lead there; repeatable",
    ),
];

/// What is asked for: the settings of `serve`, and what to check by them.
pub struct Check {
    name: Option<String>,
    json: bool,
    dns: Option<SocketAddr>,
    detours: Vec<Detour>,
    settings: Settings,
}

impl FromArgs for Check {
    fn from_args(command_name: &[&str], args: &[&str]) -> Result<Self, EarlyExit> {
        let mut check =
            Self { name: None, json: false, dns: None, detours: Vec::new(), settings: Settings::default() };
        let (mut rest, mut args) = (Vec::new(), args.iter().copied());
        while let Some(arg) = args.next() {
            if ["--help", "-h", "help"].contains(&arg) {
                return Err(EarlyExit { output: help(&command_name.join(" ")), status: Ok(()) });
            }
            let (flag, joined) = arg.split_once('=').map_or((arg, None), |(flag, value)| (flag, Some(value)));
            let mut value = |wanted: &str| {
                let value = joined.or_else(|| args.next()).filter(|value| !value.starts_with("--"));
                value.map(str::to_owned).ok_or_else(|| format!("{flag} needs a value: {flag} <{wanted}>"))
            };
            match flag {
                "--json" => check.json = true,
                "--dns" => check.dns = Some(name_server(&value("address")?)?),
                "--connect-to" => {
                    let text = value("host:port=address:port")?;
                    check
                        .detours
                        .push(Detour::parse(&text).map_err(|e| format!("--connect-to {text:?}: {e}"))?);
                }
                _ if !arg.starts_with('-') && check.name.is_none() => check.name = Some(arg.to_owned()),
                _ => {
                    rest.push(arg);
                    let setting =
                        SETTINGS.iter().find(|setting| flag.strip_prefix("--") == Some(setting.flag));
                    // Its value is no name of a server to check.
                    if joined.is_none() && setting.is_some_and(|of| !matches!(of.kind, Kind::Switch(_))) {
                        rest.extend(args.next());
                    }
                }
            }
        }
        check.settings = Settings::from_args(command_name, &rest)?;
        Ok(check)
    }
}

fn name_server(text: &str) -> Result<SocketAddr, String> {
    let with_port = |text: &str| text.to_socket_addrs().ok().and_then(|mut all| all.next());
    let found = text.parse().ok().map(|ip| SocketAddr::new(ip, 53)).or_else(|| with_port(text));
    found.ok_or_else(|| format!("--dns {text:?}: should be an address, such as 9.9.9.9 or 127.0.0.1:5353"))
}

impl SubCommand for Check {
    const COMMAND: &'static CommandInfo = &CommandInfo { name: "check", short: &'\0', description: ABOUT };
}

impl ArgsInfo for Check {
    fn get_args_info() -> CommandInfoWithArgs {
        static OWN: std::sync::LazyLock<Vec<FlagInfo<'static>>> = std::sync::LazyLock::new(|| {
            let own = FLAGS.iter().map(|(long, value, description)| FlagInfo {
                kind: match *value {
                    "" => FlagInfoKind::Switch,
                    arg_name => FlagInfoKind::Option { arg_name },
                },
                optionality: Optionality::Optional,
                long,
                short: None,
                description,
                hidden: false,
            });
            own.chain(Settings::flags()).collect()
        });
        CommandInfoWithArgs { name: "check", description: ABOUT, flags: &OWN, ..Default::default() }
    }
}

fn help(command: &str) -> String {
    let mut out = format!(
        "Usage: {command} [<server name>] [<options>]\n\n{ABOUT} Without a name, or with its own, of the server of this \
         machine, running or not: give the settings of `doorstep serve` (--config, --data, …). With another name: of that \
         server, as far as everybody can see it.\n\nOptions:\n"
    );
    for (flag, value, about) in FLAGS {
        let value = if value.is_empty() { String::new() } else { format!(" <{value}>") };
        out.push_str(&format!("  --{flag}{value}\n                    {about}\n"));
    }
    out.push_str("  --help, help      display usage information\n\nEvery option of `doorstep serve`, too.");
    out
}

/// Checks, and prints a line for each thing.
pub fn run(asked: Check) -> Result<(), Failure> {
    let json = asked.json;
    let (config, subject) = subject(asked).map_err(Failure::Misuse)?;
    let name = match &subject {
        Subject::Own => config.server_name.to_string(),
        Subject::Other(name) => name.to_string(),
    };
    let mut findings = Vec::new();
    let mut tell = |finding: &Finding| {
        if json {
            findings.push(finding.to_json());
        } else {
            say(&line(finding));
        }
    };
    let is_well = check::run(config, subject, &mut tell)?;
    if json {
        say_as_it_is(&json!({ "name": name, "ok": is_well, "findings": findings }).to_string());
    }
    if is_well { Ok(()) } else { Err(Failure::Failed(format!("something is wrong with {name}"))) }
}

fn line(finding: &Finding) -> String {
    let mut line = format!("{:5}  {}: {}", finding.state.word(), finding.about, finding.found);
    if let Some(advice) = &finding.advice {
        line.push_str(&format!("\n       → {advice}"));
    }
    line
}

/// The settings to check by, and of which server. Errors: a sentence.
fn subject(asked: Check) -> Result<(Config, Subject), String> {
    let names = Names::new(asked.detours, asked.dns);
    let settings = asked.settings.with_file().map(with_pinned_name).map_err(|e| e.for_people())?;
    let mut config = Config::from_settings(settings).map_err(|e| e.for_people())?;
    config.names = names;
    let other = match asked.name {
        None => None,
        Some(name) => {
            let wrong = |_| format!("{name:?} is no server name, such as example.org");
            Some(ServerName::parse(&name).map_err(wrong)?).filter(|name| *name != config.server_name)
        }
    };
    Ok((config, other.map_or(Subject::Own, Subject::Other)))
}
