//! Log lines on standard error: level, thread, text. `DOORSTEP_LOG` is `error`, `warn`, `info` (default), `debug` or
//! `trace`. No time stamps: journals and container runtimes add their own.

use std::io::Write;

use log::{LevelFilter, Log, Metadata, Record};

struct Logger;

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Dependencies speak only when something is wrong.
        metadata.target().starts_with("doorstep") || metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let thread = std::thread::current();
            let level = record.level().as_str().to_ascii_lowercase();
            let line = format!("{level:5} [{}] {}\n", thread.name().unwrap_or("-"), record.args());
            // A log on a full disk is no reason to fail: `eprintln` would panic.
            let _ = std::io::stderr().write_all(line.as_bytes());
        }
    }

    fn flush(&self) {}
}

/// Makes `log` write to standard error. A second call changes nothing.
pub fn install() {
    let level = std::env::var("DOORSTEP_LOG").ok().and_then(|l| l.parse().ok()).unwrap_or(LevelFilter::Info);
    if log::set_logger(&Logger).is_ok() {
        log::set_max_level(level);
    }
}
