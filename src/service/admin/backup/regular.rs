//! A backup every so often (`--backup-to`, `--backup-every`, `--backup-keep`): the last few are kept.
//!
//! When the last one was made is told by the files themselves, so that a restart makes none too many, and a server that was off
//! makes one when it is on again. Only files that have the name of such a backup of this very server are ever deleted.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::Backup;
use super::written::write_file;
use crate::clock::Millis;
use crate::error::{Error, Result, reason};
use crate::locks::lock;
use crate::order;
use crate::service::Homeserver;
use crate::service::admin::Admin;

/// After one that failed the next is tried so much later, at most.
const RETRY_MS: Millis = 60 * 60 * 1000;

/// While another backup is made it is looked so often whether it is over, or stands still.
const SLOT_RETRY_MS: Millis = 10_000;

/// How often the clock is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// The thread that makes them, where there are to be any.
#[derive(Default)]
pub struct RegularBackups(Mutex<Option<JoinHandle<()>>>);

impl RegularBackups {
    /// Starts the thread, if backups are to be made. It keeps only a weak hold of the homeserver, and ends with it.
    pub fn start(&self, hs: &Arc<Homeserver>) -> Result<()> {
        let Some(folder) = &hs.config.backup_to else { return Ok(()) };
        // Who has to do something about it is there now.
        if let Err(e) = make_last_folder(folder) {
            log::error!("no backups will be made in {}: {}", folder.display(), e.for_people());
        }
        let (weak, scheduler) = (Arc::downgrade(hs), hs.scheduler.clone());
        let work = move || {
            let mut due = Millis::MIN;
            loop {
                let Some(hs) = weak.upgrade() else { return };
                let now = hs.clock.now_ms();
                // A clock that was set back puts nothing off.
                due = due.min(now.saturating_add(hs.config.backup_every_ms));
                if due <= now {
                    // One that was set on may come to where the files say that it is too soon.
                    due = hs.admin().next_backup_due(now);
                }
                if due <= now {
                    due = hs.admin().make_regular_backup();
                }
                drop(hs);
                if !scheduler.rest(LOOK_INTERVAL) {
                    return;
                }
            }
        };
        *lock(&self.0) = Some(thread::Builder::new().name("backups".to_owned()).spawn(work)?);
        Ok(())
    }

    /// Waits for the thread, which ends when the timer does; what it was making is not kept.
    pub fn stop(&self) {
        let thread = lock(&self.0).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

/// Makes a folder for backups, but none that it is in: where those are missing, the disk that they are on is not there, and
/// what would be written fills another one.
fn make_last_folder(folder: &Path) -> Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(folder) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Err(Error::invalid_param(format!(
            "the folder that {} is to be in is missing: see that its disk is mounted, or make it",
            folder.display()
        ))),
        made => made.map_err(|e| unusable(folder, &e)),
    }
}

impl Admin<'_> {
    /// When the next regular backup is due, as far as the files tell.
    fn next_backup_due(&self, now: Millis) -> Millis {
        // A folder that cannot be read is told of when it cannot be written.
        let folder = self.config.backup_to.as_deref().unwrap_or(Path::new(""));
        let made = self.regular_backups_in(folder).unwrap_or_default();
        due_after(made.iter().map(|(at, _)| *at), now, self.config.backup_every_ms)
    }

    /// Makes one, and lets go of those that are too many. What goes wrong is told to the log. When the next is due.
    fn make_regular_backup(&self) -> Millis {
        let Some(folder) = &self.config.backup_to else { return Millis::MAX };
        let (begun, every) = (self.clock.now_ms(), self.config.backup_every_ms);
        match self.back_up_into(folder) {
            Ok(()) => begun + every,
            Err(_) if self.scheduler.is_stopping() => Millis::MAX,
            Err(e) if e.status() == 409 => {
                log::debug!("no backup yet in {}: {}", folder.display(), e.for_people());
                self.clock.now_ms() + SLOT_RETRY_MS
            }
            Err(e) => {
                log::error!("no backup was made in {}: {}", folder.display(), e.for_people());
                self.clock.now_ms() + RETRY_MS.min(every)
            }
        }
    }

    fn back_up_into(&self, folder: &Path) -> Result<()> {
        let begun = self.clock.now_ms();
        make_last_folder(folder)?;
        let path = folder.join(self.name_of_backup(begun));
        self.sweep_unfinished(folder);
        let mut backup = WhileRunning { backup: self.back_up(|| true)?, hs: self };
        let bytes = write_file(&path, &mut backup)?;
        log::info!(
            "a backup of {bytes} bytes was made in {} ms: {}",
            self.clock.now_ms() - begun,
            path.display()
        );
        // The backup is made: were it said to have failed, there would soon be another.
        if let Err(e) = self.delete_old_backups(folder, begun) {
            log::error!("old backups are not deleted: {}", e.for_people());
        }
        Ok(())
    }

    /// Lets go of what is too much, of which the one that was begun at this time is the last.
    fn delete_old_backups(&self, folder: &Path, begun: Millis) -> Result<()> {
        let mut all = self.regular_backups_in(folder)?;
        // What is said to have been made later was made before too, under another clock.
        order::sort_by_key(&mut all, |(at, _)| (*at <= begun, *at));
        let kept = if self.config.backup_keep == 0 { all.len() } else { self.config.backup_keep };
        for (_, old) in all.iter().rev().skip(kept) {
            fs::remove_file(old).map_err(|e| unusable(folder, &e))?;
            log::info!("an old backup was deleted: {}", old.display());
        }
        Ok(())
    }

    /// The regular backups of this server in a folder, each with when it was begun, in the order of that.
    fn regular_backups_in(&self, folder: &Path) -> Result<Vec<(Millis, PathBuf)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(folder).map_err(|e| unusable(folder, &e))? {
            let entry = entry.map_err(|e| unusable(folder, &e))?;
            let at = entry.file_name().to_str().and_then(|name| self.time_in_name(name));
            if let (Some(at), true) = (at, entry.file_type().is_ok_and(|found| found.is_file())) {
                found.push((at, entry.path()));
            }
        }
        order::sort(&mut found);
        Ok(found)
    }

    /// As in `doorstep-example.org_8448-20261129T193000.123Z.tar`.
    fn name_of_backup(&self, at: Millis) -> String {
        format!("{}{}.tar", self.prefix(), stamp(at))
    }

    /// A server name has letters, digits, dots and hyphens, and around a port or an address what is none in a file's name
    /// everywhere.
    fn prefix(&self) -> String {
        format!("doorstep-{}-", self.server_name().as_str().replace([':', '[', ']'], "_"))
    }

    /// Deletes what kills have left of backups that were not whole.
    fn sweep_unfinished(&self, folder: &Path) {
        // Another server whose name goes on where ours ends may be writing into the same folder.
        let is_unfinished = |name: &str| {
            let whole = name.strip_suffix(".new").and_then(|name| name.rsplit_once('.'));
            whole.is_some_and(|(whole, _)| self.time_in_name(whole).is_some())
        };
        let Ok(entries) = fs::read_dir(folder) else { return };
        for entry in entries.flatten() {
            if entry.file_name().to_str().is_some_and(is_unfinished)
                && let Err(e) = fs::remove_file(entry.path())
            {
                log::warn!("{} could not be deleted: {e}", entry.path().display());
            }
        }
    }

    fn time_in_name(&self, name: &str) -> Option<Millis> {
        let stamped = name.strip_prefix(&self.prefix())?.strip_suffix(".tar")?;
        read_stamp(stamped).filter(|at| stamp(*at) == stamped)
    }
}

/// When the next is due after those that were made at these times, as far as one can tell.
fn due_after(made: impl Iterator<Item = Millis>, now: Millis, every: Millis) -> Millis {
    // What a clock far ahead has left says nothing; what lies a little ahead may have been made under one that was set right.
    let last = made.filter(|at| *at <= now.saturating_add(every)).max();
    last.map_or(now, |at| at.saturating_add(every))
}

/// A backup that ends when the server does.
struct WhileRunning<'s> {
    backup: Backup,
    hs: &'s Homeserver,
}

impl Read for WhileRunning<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.hs.scheduler.is_stopping() {
            return Err(io::Error::other("the server stops"));
        }
        self.backup.read(buf)
    }
}

fn unusable(folder: &Path, e: &std::io::Error) -> Error {
    Error::invalid_param(format!("The folder {} cannot be used: {}", folder.display(), reason(e)))
}

/// A time, as in `20261129T193000.123Z`.
fn stamp(at: Millis) -> String {
    let (days, in_day) = (at.div_euclid(86_400_000), at.rem_euclid(86_400_000));
    let (year, month, day) = date(days);
    let (seconds, ms) = (in_day / 1000, in_day % 1000);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}.{ms:03}Z")
}

/// The reverse of [`stamp`], for what it may have written.
fn read_stamp(text: &str) -> Option<Millis> {
    let digits = |range: std::ops::Range<usize>| {
        let part = text.get(range)?;
        part.bytes().all(|b| b.is_ascii_digit()).then(|| part.parse::<i64>().ok())?
    };
    if text.len() != 20 {
        return None;
    }
    let (year, month, day) = (digits(0..4)?, digits(4..6)?, digits(6..8)?);
    let time = (digits(9..11)? * 3600 + digits(11..13)? * 60 + digits(13..15)?) * 1000 + digits(16..19)?;
    Some(days(year, month, day) * 86_400_000 + time)
}

/// Days since 1970-01-01 of a date of the Gregorian calendar, where each year begins in March.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    365 * year + year.div_euclid(4) - year.div_euclid(100)
        + year.div_euclid(400)
        + (153 * month + 2) / 5
        + day
        - 1
        - 719_468
}

/// The date so many days after 1970-01-01.
fn date(since: i64) -> (i64, i64, i64) {
    let (mut year, mut month) = (1970 + since.div_euclid(366), 1);
    while days(year + 1, 1, 1) <= since {
        year += 1;
    }
    while month < 12 && days(year, month + 1, 1) <= since {
        month += 1;
    }
    (year, month, since - days(year, month, 1) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_wrong_puts_no_backup_off() {
        let due = |made: &[Millis], now| due_after(made.iter().copied(), now, 100);
        assert_eq!(due(&[], 1000), 1000);
        assert_eq!(due(&[950, 900], 1000), 1050, "a restart makes none too many");
        assert_eq!(due(&[500], 1000), 600, "a server that was off makes one");
        assert_eq!(due(&[1050], 1000), 1150);
        assert_eq!(due(&[5000, 9000], 1000), 1000, "made under a clock that was ahead");
        assert_eq!(due(&[5000, 950], 1000), 1050);
    }

    #[test]
    fn a_time_in_a_name_is_read_as_it_was_written() {
        assert_eq!(stamp(0), "19700101T000000.000Z");
        assert_eq!(stamp(951_827_696_789), "20000229T123456.789Z");
        assert_eq!(stamp(1_796_000_000_000), "20261130T005320.000Z");
        for day in 0..40_000 {
            let at = day * 86_400_000 + 12_345_678;
            assert_eq!(read_stamp(&stamp(at)), Some(at), "{}", stamp(at));
        }
        for wrong in
            ["", "20261129T193000Z", "2026112xT193000.000Z", "+0261129T193000.000Z", "2026112éT19300.000Z"]
        {
            assert_eq!(read_stamp(wrong), None, "{wrong}");
        }
    }
}
