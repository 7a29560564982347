//! `doorstep routes`: every endpoint that this binary serves.

use argh::{ArgsInfo, FromArgs};
use doorstep::internals::ROUTES;

use super::say;

/// Lists every endpoint that is served.
#[derive(FromArgs, ArgsInfo)]
#[argh(subcommand, name = "routes")]
pub struct Routes {
    /// as a Markdown table
    #[argh(switch)]
    markdown: bool,
}

/// Prints the table.
pub fn run(routes: &Routes) {
    let mut lines = Vec::new();
    if routes.markdown {
        lines.push("| method | path | for |\n|---|---|---|".to_owned());
    }
    for route in ROUTES {
        let (method, path, who) = (route.method, route.path, route.handler.who());
        lines.push(match routes.markdown {
            true => format!("| {method} | `{path}` | {who} |"),
            false => format!("{method:7} {path}  ({who})"),
        });
    }
    say(&lines.join("\n"));
}
