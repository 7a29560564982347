//! Log lines on standard error: level, thread, text. `DOORSTEP_LOG` is `error`, `warn`, `info` (default), `debug`,
//! `trace` or `off`. A terminal is told the time too. The journal of systemd has its own, and is told each line's
//! priority instead; other readers, such as container runtimes, add what they want.

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;

use doorstep::clock::Clock;
use doorstep::config::nearest;
use doorstep::log_tail;
pub use doorstep::protocol::certificates::calendar::utc;
use log::{Level, LevelFilter, Log, Metadata, Record};

/// Who reads the lines.
enum Reader {
    Terminal,
    Journal,
    Other,
}

struct Logger {
    reader: Reader,
    clock: Clock,
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Dependencies speak only when something is wrong.
        metadata.target().starts_with("doorstep") || metadata.level() <= Level::Warn
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let begin = match &self.reader {
                Reader::Terminal => format!("{} ", utc(self.clock.now_ms())),
                Reader::Journal => format!("<{}>", priority(record.level())),
                Reader::Other => String::new(),
            };
            let thread = std::thread::current();
            let level = record.level().as_str().to_ascii_lowercase();
            let text = one_line(&record.args().to_string());
            let line = format!("{begin}{level:5} [{}] {text}\n", thread.name().unwrap_or("-"));
            log_tail::add(self.clock.now_ms(), record.level(), &text);
            // A log on a full disk is no reason to fail: `eprintln` would panic.
            let _ = std::io::stderr().write_all(line.as_bytes());
        }
    }

    fn flush(&self) {}
}

/// Makes `log` write to standard error; `briefly`: what is worth a warning, if nothing else is asked for. A second call
/// changes nothing. Errors: a level that there is not.
pub fn install(briefly: bool) -> Result<(), String> {
    let usual = if briefly { LevelFilter::Warn } else { LevelFilter::Info };
    let level = match std::env::var_os("DOORSTEP_LOG") {
        None => usual,
        Some(text) if text.is_empty() => usual,
        Some(text) => level(&text.to_string_lossy())?,
    };
    static LOGGER: OnceLock<Logger> = OnceLock::new();
    if log::set_logger(LOGGER.get_or_init(|| Logger { reader: reader(), clock: Clock::new() })).is_ok() {
        log::set_max_level(level);
    }
    Ok(())
}

fn level(text: &str) -> Result<LevelFilter, String> {
    text.parse().map_err(|_| {
        let near = nearest(text, ["error", "warn", "info", "debug", "trace", "off"].into_iter());
        let hint = near.map(|near| format!(": did you mean {near}?")).unwrap_or_default();
        format!("DOORSTEP_LOG is {text:?}, but should be error, warn, info, debug, trace or off{hint}")
    })
}

fn reader() -> Reader {
    let stderr = std::io::stderr();
    // systemd says which stream is the journal's, because a child may have been given another.
    let journal = std::env::var("JOURNAL_STREAM").ok().filter(|stream| !stream.is_empty());
    if journal.is_some() && journal == stream_id(&stderr) {
        Reader::Journal
    } else if stderr.is_terminal() {
        Reader::Terminal
    } else {
        Reader::Other
    }
}

/// Device and inode of an open file, as `JOURNAL_STREAM` has them.
fn stream_id(file: &impl AsFd) -> Option<String> {
    let data = File::from(file.as_fd().try_clone_to_owned().ok()?).metadata().ok()?;
    Some(format!("{}:{}", data.dev(), data.ino()))
}

/// The priorities of sd-daemon(3).
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

/// The text without control characters: what others sent begins no line of its own, and tells no terminal what to do.
fn one_line(text: &str) -> String {
    let shown = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    if text.contains(char::is_control) { text.chars().map(shown).collect() } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_that_there_is_not_is_refused_with_the_nearest() {
        assert_eq!(level("DEBUG"), Ok(LevelFilter::Debug));
        assert_eq!(level("off"), Ok(LevelFilter::Off));
        assert!(level("debgu").unwrap_err().contains("did you mean debug?"));
        assert!(level("doorstep=debug").unwrap_err().contains("should be error, warn"));
    }

    #[test]
    fn what_others_sent_stays_in_its_line() {
        assert_eq!(one_line("a\n<0>b\u{1b}[2J ü"), "a\\n<0>b\\u{1b}[2J ü");
    }
}
