//! What somebody is told who asked for something that there is not.

use argh::{CommandInfoWithArgs, EarlyExit};
use doorstep::config::nearest;

/// What argh says of these arguments, in a sentence that names the nearest flag or command, and what to do next.
pub fn explain(exit: &EarlyExit, program: CommandInfoWithArgs, args: &[&str]) -> String {
    let (mut path, mut here) = ("doorstep".to_owned(), program);
    for arg in args {
        if let Some(found) = here.commands.iter().find(|command| command.name == *arg) {
            path = format!("{path} {}", found.name);
            here = found.command.clone();
        }
    }
    let told = exit.output.trim();
    let told = match told.strip_prefix("Unrecognized argument: ") {
        Some(arg) => unrecognized(arg, &path, &here),
        None if told.starts_with("One of the following subcommands must be present") => {
            let names: Vec<&str> = here.commands.iter().map(|command| command.name).collect();
            format!("{path} needs to be told what to do: {}", names.join(" or "))
        }
        None => of_value(told).unwrap_or_else(|| told.to_owned()),
    };
    format!("{told}\nRun `{path} --help` for what there is.")
}

/// What argh says of a flag's value.
fn of_value(told: &str) -> Option<String> {
    if let Some(flag) = told.strip_prefix("No value provided for option '") {
        return Some(format!("{} needs a value", flag.trim_end_matches(['.', '\''])));
    }
    let (flag, rest) = told.strip_prefix("Error parsing option '")?.split_once('\'')?;
    if rest.ends_with("duplicate values provided") {
        return Some(format!("{flag} is given twice"));
    }
    let rest = rest.strip_prefix(" with value")?;
    let in_words = [
        ("invalid digit found in string", "should be a whole number"),
        ("number too large to fit in target type", "is too large"),
    ];
    let sentence = in_words.iter().find_map(|(parser, words)| {
        let value = rest.strip_suffix(parser)?.trim_end_matches([':', ' ']);
        Some(format!("{flag}{value} {words}"))
    });
    Some(sentence.unwrap_or_else(|| format!("{flag}{rest}")))
}

fn unrecognized(arg: &str, path: &str, here: &CommandInfoWithArgs) -> String {
    let name = arg.trim_start_matches('-');
    let quoted = match (arg.starts_with('-'), here.commands.is_empty()) {
        (true, _) => format!("flag {arg}"),
        (false, false) => format!("command {arg:?}"),
        (false, true) => format!("place for {arg:?}"),
    };
    let flags = here.flags.iter().map(|flag| flag.long.trim_start_matches('-')).chain(["help"]);
    let hint = if !arg.starts_with('-') && !here.commands.is_empty() {
        nearest(name, here.commands.iter().map(|command| command.name)).map(|name| format!("{path} {name}"))
    } else {
        nearest(name, flags).map(|flag| format!("--{flag}"))
    };
    // A flag of `serve` that stands before it, or without it.
    let misplaced = || {
        let has = |command: &&argh::SubCommandInfo| {
            command.command.flags.iter().any(|flag| flag.long.trim_start_matches('-') == name)
        };
        here.commands.iter().find(has).map(|command| format!("{path} {} {arg}", command.name))
    };
    match hint.or_else(misplaced) {
        Some(meant) => format!("there is no {quoted}: did you mean {meant}?"),
        None if !here.commands.is_empty() && !arg.starts_with('-') => {
            let names: Vec<&str> = here.commands.iter().map(|command| command.name).collect();
            format!("there is no {quoted}: there is {}", names.join(", "))
        }
        None => format!("there is no {quoted}"),
    }
}
