//! `doorstep routes`: every endpoint that this binary serves.

use argh::FromArgs;
use doorstep::http::routes::ROUTES;

/// Lists every endpoint that is served.
#[derive(FromArgs)]
#[argh(subcommand, name = "routes")]
pub struct Routes {
    /// as a Markdown table
    #[argh(switch)]
    markdown: bool,
}

/// Prints the table.
#[allow(clippy::print_stdout, reason = "a command line talks to its user")]
pub fn run(routes: &Routes) {
    if routes.markdown {
        println!("| method | path | for |\n|---|---|---|");
    }
    for route in ROUTES {
        let (method, path, who) = (route.method, route.path, route.handler.who());
        if routes.markdown {
            println!("| {method} | `{path}` | {who} |");
        } else {
            println!("{method:7} {path}  ({who})");
        }
    }
}
