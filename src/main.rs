//! The command line. Thin: every command is a few calls into the library.

mod commands;

use std::process::ExitCode;

use argh::FromArgs;

/// Doorstep, a Matrix homeserver in one small binary.
#[derive(FromArgs)]
struct Doorstep {
    /// print the version and exit
    #[argh(switch)]
    version: bool,
    #[argh(subcommand)]
    command: Option<commands::Command>,
}

#[allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line talks to its user")]
fn main() -> ExitCode {
    doorstep::allocator::give_large_blocks_back();
    let args: Doorstep = argh::from_env();
    if args.version {
        println!("doorstep {}", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    let Some(command) = args.command else {
        eprintln!("Run `doorstep serve` to start, `doorstep --help` for everything else.");
        return ExitCode::FAILURE;
    };
    match commands::run(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("doorstep: {e}");
            ExitCode::FAILURE
        }
    }
}
