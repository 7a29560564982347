//! The command line. Thin: every command is a few calls into the library.

mod commands;
#[cfg(target_env = "musl")]
mod static_allocator;

use std::io::Write;
use std::process::ExitCode;

use argh::{ArgsInfo, FromArgs};

use commands::ask::{self, Operator};
use commands::{Failure, for_terminal, misuse, say};

/// Doorstep, a Matrix homeserver in one small binary.
#[derive(FromArgs, ArgsInfo)]
#[argh(name = "doorstep")]
struct Doorstep {
    /// print the version and exit
    #[argh(switch)]
    version: bool,
    #[argh(subcommand)]
    command: Option<commands::Command>,
}

fn main() -> ExitCode {
    doorstep::allocator::keep_little();
    #[cfg(target_env = "musl")]
    static_allocator::keep_little();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Failed(why)) => complain(&why, 1),
        Err(Failure::Misuse(why)) => complain(&why, 2),
    }
}

fn run() -> Result<(), Failure> {
    let args: Result<Vec<String>, _> = std::env::args_os().skip(1).map(|arg| arg.into_string()).collect();
    let args = args.map_err(|arg| Failure::Misuse(format!("{} is not UTF-8", arg.display())))?;
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    // As other tools have them.
    let spelled = |(number, arg)| match (number, arg) {
        (_, "-h") => "--help",
        (0, "version" | "-V") => "--version",
        _ => arg,
    };
    let mut args: Vec<&str> = args.into_iter().enumerate().map(spelled).collect();
    let operator = match args.first() {
        Some(command) if commands::OF_OPERATOR.contains(command) => Some(Operator::from_args(&mut args)?),
        Some(&"restore") => {
            commands::restore::name_standard_input(&mut args)?;
            None
        }
        _ => None,
    };
    let asked = match Doorstep::from_args(&["doorstep"], &args) {
        Ok(asked) => asked,
        Err(help) if help.status.is_ok() => {
            let more = operator.map(|_| ask::HELP).unwrap_or_default();
            say(&format!("{}{more}", help.output));
            return Ok(());
        }
        Err(wrong) => {
            return Err(Failure::Misuse(misuse::explain(&wrong, Doorstep::get_args_info(), &args)));
        }
    };
    match asked.command {
        _ if asked.version => {
            say(&format!("doorstep {}", env!("CARGO_PKG_VERSION")));
            Ok(())
        }
        Some(command) => commands::run(command, operator.as_ref()),
        None => Err(Failure::Misuse(
            "nothing is asked for.\nRun `doorstep serve` to start, `doorstep --help` for everything else."
                .into(),
        )),
    }
}

/// Tells a person why, on a terminal that may be gone.
fn complain(why: &str, status: u8) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "doorstep: {}", for_terminal(why));
    ExitCode::from(status)
}
