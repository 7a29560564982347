//! The settings as they are given: by flags, and by a configuration file where a flag is absent.

use std::fs;
use std::sync::LazyLock;

use argh::{
    ArgsInfo, CommandInfo, CommandInfoWithArgs, EarlyExit, FlagInfo, FlagInfoKind, FromArgs, Optionality,
    SubCommand,
};
use serde_json::{Map, Value};

use super::table::{Kind, SETTINGS, Setting, Usual};
use crate::error::{Error, Result, reason};

/// What the operator gives, not checked yet but for which settings there are and that each has a value.
#[derive(Clone, Default)]
pub struct Settings {
    given: Vec<Given>,
}

#[derive(Clone)]
struct Given {
    setting: &'static Setting,
    value: String,
    by_flag: bool,
}

const ABOUT: &str = "Runs the homeserver.";
const HELP: [&str; 3] = ["--help", "-h", "help"];

impl Settings {
    /// These settings, with those of the configuration file (if one is named) where a flag is absent.
    ///
    /// Errors: a file that cannot be read, is not TOML, has a key that is no setting's, or a value of the wrong type.
    pub fn with_file(mut self) -> Result<Self> {
        let Some(path) = self.all("config").next() else { return Ok(self) };
        let wrong = |e: String| Error::invalid_param(format!("The configuration file {path} {e}"));
        let text = fs::read_to_string(path).map_err(|e| wrong(format!("cannot be read: {}", reason(&e))))?;
        let file: Map<String, Value> =
            basic_toml::from_str(&text).map_err(|e| wrong(format!("is not TOML: {e}")))?;
        let mut added = Vec::new();
        for (key, value) in file {
            let setting = SETTINGS.iter().find(|setting| setting.key().as_deref() == Some(&*key));
            let setting = setting.ok_or_else(|| wrong(unknown_key(&key)))?;
            let values = values(setting, &value)
                .ok_or_else(|| wrong(format!("has the wrong type for {key}: {}", wanted(setting))))?;
            if self.of(setting).next().is_none() {
                added.extend(values.into_iter().map(|value| Given { setting, value, by_flag: false }));
            }
        }
        self.given.extend(added);
        Ok(self)
    }

    /// These settings and this one, as if its flag had been given. One that there is not is passed over.
    #[must_use]
    pub fn with(mut self, flag: &str, value: &str) -> Self {
        let setting = SETTINGS.iter().find(|setting| setting.flag == flag);
        self.given.extend(setting.map(|setting| Given { setting, value: value.to_owned(), by_flag: true }));
        self
    }

    /// The flags as they are given, for the command line of another command that takes them. Secrets are left out.
    pub fn command_line(&self) -> String {
        let by_flag =
            self.given.iter().filter(|given| given.by_flag && !given.setting.flag.ends_with("-secret"));
        let words = by_flag.flat_map(|given| {
            let value = (!matches!(given.setting.kind, Kind::Switch(_))).then(|| quoted(&given.value));
            [Some(format!("--{}", given.setting.flag)), value].into_iter().flatten()
        });
        words.collect::<Vec<_>>().join(" ")
    }

    /// The values that are given for this flag.
    pub fn all<'s>(&'s self, flag: &'s str) -> impl Iterator<Item = &'s str> {
        self.given.iter().filter(move |given| given.setting.flag == flag).map(|given| &*given.value)
    }

    /// The values that are given for this setting, each with its name in the words of who gave it.
    pub(super) fn of(&self, setting: &Setting) -> impl Iterator<Item = (&str, String)> {
        self.given.iter().filter(|given| given.setting.flag == setting.flag).map(|given| {
            let (flag, value) = (given.setting.flag, &*given.value);
            let name = match given.by_flag {
                true => format!("--{flag} {value:?}"),
                false => format!("{} = {value:?} in the configuration file", flag.replace('-', "_")),
            };
            (value, name)
        })
    }

    /// Every flag, for the help of commands that take them.
    pub fn flags() -> impl Iterator<Item = FlagInfo<'static>> {
        let info = |setting: &'static Setting| FlagInfo {
            kind: match setting.kind {
                Kind::Switch(_) => FlagInfoKind::Switch,
                _ => FlagInfoKind::Option { arg_name: setting.value },
            },
            optionality: match setting.kind {
                Kind::Many(_) => Optionality::Repeating,
                _ => Optionality::Optional,
            },
            long: setting.flag,
            short: None,
            description: setting.help,
            hidden: false,
        };
        SETTINGS.iter().map(info)
    }

    fn take(&mut self, setting: &'static Setting, value: &str) -> Result<(), String> {
        if !setting.is_repeatable() && self.of(setting).next().is_some() {
            return Err(format!("--{} is given twice", setting.flag));
        }
        self.given.push(Given { setting, value: value.to_owned(), by_flag: true });
        Ok(())
    }
}

impl FromArgs for Settings {
    fn from_args(command_name: &[&str], args: &[&str]) -> Result<Self, EarlyExit> {
        let mut settings = Self::default();
        let mut args = args.iter();
        while let Some(&arg) = args.next() {
            if HELP.contains(&arg) {
                return Err(EarlyExit { output: help(&command_name.join(" ")), status: Ok(()) });
            }
            let (flag, joined) = match arg.split_once('=') {
                Some((flag, value)) => (flag, Some(value)),
                None => (arg, None),
            };
            let setting = by_flag(flag).ok_or_else(|| unknown_flag(flag))?;
            let value = match (&setting.kind, joined) {
                (Kind::Switch(_), None) => Some("true"),
                (Kind::Switch(_), Some(_)) => return Err(format!("{flag} takes no value").into()),
                (_, Some(value)) => Some(value),
                // A flag where a value belongs was forgotten to be given one.
                (_, None) => args.next().copied().filter(|value| by_flag(value).is_none()),
            };
            let value = value.ok_or_else(|| format!("{flag} needs a value: {flag} <{}>", setting.value))?;
            settings.take(setting, value)?;
        }
        Ok(settings)
    }
}

impl SubCommand for Settings {
    const COMMAND: &'static CommandInfo = &CommandInfo { name: "serve", short: &'\0', description: ABOUT };
}

impl ArgsInfo for Settings {
    fn get_args_info() -> CommandInfoWithArgs {
        static FLAGS: LazyLock<Vec<FlagInfo<'static>>> = LazyLock::new(|| Settings::flags().collect());
        CommandInfoWithArgs { name: "serve", description: ABOUT, flags: &FLAGS, ..Default::default() }
    }
}

/// A word as a shell reads it.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "/._-:,@%+=".contains(c);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

fn by_flag(arg: &str) -> Option<&'static Setting> {
    let flag = arg.strip_prefix("--")?;
    SETTINGS.iter().find(|setting| setting.flag == flag)
}

fn unknown_flag(arg: &str) -> String {
    let name = arg.trim_start_matches('-').replace('_', "-");
    let near = nearest(&name, SETTINGS.iter().map(|setting| setting.flag));
    match (near, arg.starts_with('-')) {
        (Some(flag), _) => format!("there is no flag {arg}: did you mean --{flag}?"),
        (None, true) => format!("there is no flag {arg}"),
        (None, false) => format!("{arg:?} belongs to no flag: settings are given as in --name example.org"),
    }
}

fn unknown_key(key: &str) -> String {
    let keys: Vec<String> = SETTINGS.iter().filter_map(Setting::key).collect();
    match nearest(&key.replace('-', "_"), keys.iter().map(String::as_str)) {
        Some(near) => format!("has a key that is no setting: {key}. Did you mean {near}?"),
        None => format!("has a key that is no setting: {key}"),
    }
}

/// The values of a key as text, if they are of the setting's type.
fn values(setting: &Setting, value: &Value) -> Option<Vec<String>> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    match setting.kind {
        Kind::File => None,
        Kind::Switch(_) => Some(vec![value.as_bool()?.to_string()]),
        Kind::Number(_) => Some(vec![value.as_u64()?.to_string()]),
        Kind::One(_) => Some(vec![text(value)?]),
        Kind::Many(_) => value.as_array()?.iter().map(text).collect(),
    }
}

fn wanted(setting: &Setting) -> String {
    match setting.kind {
        Kind::Switch(_) => "it should be true or false".into(),
        Kind::Number(_) => "it should be a whole number".into(),
        Kind::File | Kind::One(_) => format!("it should be text, in quotes: \"<{}>\"", setting.value),
        Kind::Many(_) => format!("it should be a list of texts, in quotes: [\"<{}>\"]", setting.value),
    }
}

/// The name that somebody may have meant: one that begins alike, or differs in few letters.
pub fn nearest<'n>(given: &str, names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let given = given.to_ascii_lowercase();
    if given.len() > 64 {
        return None;
    }
    let far = |name: &str| {
        let begins_alike = given.len() > 2 && (name.starts_with(&given) || given.starts_with(name));
        let letters = distance(&given, name);
        (if begins_alike { letters.min(1) } else { letters }, letters)
    };
    let near = names.map(|name| (far(name), name)).min_by_key(|(far, _)| *far)?;
    (near.0.0 <= (given.len() / 3).max(1)).then_some(near.1)
}

/// How many letters have to be added, left out, replaced or swapped with the next one.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let mut least = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    least = least.min(rows[i - 2][j - 2] + 1);
                }
                least
            };
        }
    }
    rows[a.len()][b.len()]
}

/// The help, as argh writes that of the other commands.
fn help(command: &str) -> String {
    let mut out = format!("Usage: {command} [<options>]\n\n{ABOUT}\n\nOptions:\n");
    for setting in SETTINGS {
        let value = if setting.value.is_empty() { String::new() } else { format!(" <{}>", setting.value) };
        let usual = match (&setting.kind, &setting.usual) {
            (Kind::Switch(_), _) | (_, Usual::Nothing) => String::new(),
            (_, Usual::Value(usual) | Usual::Words(usual)) => format!(" [{usual}]"),
        };
        write_entry(&mut out, &format!("--{}{value}", setting.flag), &format!("{}{usual}", setting.help));
    }
    write_entry(&mut out, "--help, help", "display usage information");
    out.push_str("\nEnvironment:\n");
    write_entry(
        &mut out,
        "DOORSTEP_LOG",
        "least level of log lines: error, warn, info, debug, trace or off [info]",
    );
    out
}

/// The columns of argh's own help.
const INDENT: usize = 20;
const WIDTH: usize = 80;

fn write_entry(out: &mut String, name: &str, text: &str) {
    let mut line = format!("  {name}");
    if line.len() >= INDENT {
        out.push_str(&line);
        out.push('\n');
        line.clear();
    }
    line = format!("{line:INDENT$}");
    for (number, word) in text.split(' ').enumerate() {
        if line.len() + word.len() + 1 > WIDTH && line.trim() != "" {
            out.push_str(&line);
            out.push('\n');
            line = format!("{:INDENT$}{word}", "");
        } else {
            line.push_str(if number == 0 { "" } else { " " });
            line.push_str(word);
        }
    }
    out.push_str(&line);
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_has_the_table_of_the_settings() {
        let mut table = String::from("| flag | key in the file | without it | for |\n|---|---|---|---|\n");
        for setting in SETTINGS {
            let value =
                if setting.value.is_empty() { String::new() } else { format!(" <{}>", setting.value) };
            let key = setting.key().map(|key| format!("`{key}`")).unwrap_or_default();
            let usual = match (&setting.kind, &setting.usual) {
                (Kind::Switch(_), _) | (_, Usual::Nothing) => String::new(),
                (_, Usual::Value(usual)) => format!("`{usual}`"),
                (_, Usual::Words(words)) => (*words).to_owned(),
            };
            table += &format!("| `--{}{value}` | {key} | {usual} | {} |\n", setting.flag, setting.help);
        }
        let readme = include_str!("../../README.md");
        assert!(readme.contains(&table), "the README should have:\n{table}");
    }

    #[test]
    fn the_help_names_each_setting_with_its_default_and_fits_a_terminal() {
        let help = Settings::from_args(&["doorstep", "serve"], &["--help"]).err().unwrap();
        assert_eq!(help.status, Ok(()));
        for setting in SETTINGS {
            assert!(help.output.contains(&format!("  --{}", setting.flag)), "{}", setting.flag);
            if let (Usual::Value(usual), false) = (&setting.usual, setting.value.is_empty()) {
                assert!(help.output.contains(&format!("[{usual}]")), "{}", setting.flag);
            }
        }
        assert!(help.output.lines().all(|line| line.len() <= WIDTH), "{}", help.output);
    }

    #[test]
    fn what_somebody_may_have_meant_is_found() {
        let flags = || SETTINGS.iter().map(|setting| setting.flag);
        for (given, meant) in [
            ("lisen", Some("listen")),
            ("lsiten", Some("listen")),
            ("LISTEN", Some("listen")),
            ("tls-certificate", Some("tls-cert")),
            ("max-conn", Some("max-connections")),
            ("allow-servers", Some("allow-server")),
            ("nme", Some("name")),
            ("port", None),
            ("", None),
            ("verbose", None),
        ] {
            assert_eq!(nearest(given, flags()), meant, "{given}");
        }
        assert_eq!(nearest(&"listen".repeat(100_000), flags()), None);
    }

    #[test]
    fn flags_are_read_as_people_write_them() {
        let read = |args: &[&str]| Settings::from_args(&["doorstep", "serve"], args).map_err(|e| e.output);
        let settings = read(&["--listen", "1", "--listen=2", "--no-presence", "--no-presence"]).unwrap();
        assert_eq!(settings.all("listen").collect::<Vec<_>>(), ["1", "2"]);
        let line = ["--data", "a b", "--no-presence", "--turn-secret", "x", "--name=it's"];
        assert_eq!(read(&line).unwrap().command_line(), r"--data 'a b' --no-presence --name 'it'\''s'");
        assert_eq!(
            read(&["--registration-secret=a=b"]).unwrap().all("registration-secret").next(),
            Some("a=b")
        );
        for (args, told) in [
            (&["--name"][..], "--name needs a value"),
            (&["--name", "--data", "x"], "--name needs a value"),
            (&["--name", "a", "--name", "b"], "--name is given twice"),
            (&["--no-presence=true"], "--no-presence takes no value"),
            (&["--max_connections", "9"], "did you mean --max-connections?"),
            (&["-listen", "1"], "did you mean --listen?"),
            (&["listen", "1"], "did you mean --listen?"),
            (&["stray"], "\"stray\""),
            (&["--"], "there is no flag --"),
        ] {
            let told_there = read(args).err().unwrap();
            assert!(told_there.contains(told), "{args:?}: {told_there}");
        }
    }
}
