//! What the writer does for a copy of the database, a moment at a time between two commits: it is begun, goes on for some
//! pages, and ends. (`copy.rs` says why it is the writer that copies.)

use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use rusqlite::backup::{Backup, StepResult};

use crate::error::{Error, Result};

/// So many pages are copied at once, and again until this much time has passed: that is how long a commit waits for it.
const PAGES_AT_ONCE: i32 = 16;
const SLICE: Duration = Duration::from_millis(2);
/// A page of ours.
const PAGE_BYTES: u64 = 4096;

/// How far a copy is, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyProgress {
    /// How much is copied.
    pub done: u64,
    /// How large it will be, if the database does not grow meanwhile.
    pub of: u64,
}

/// To begin a copy, for the writer.
pub(in crate::store) struct CopyOrder {
    pub(super) to: Connection,
    pub(super) begun: SyncSender<Result<()>>,
    /// Where the copy's connection goes when it is over: closing it is not the writer's business.
    pub(super) ended: SyncSender<Connection>,
}

impl CopyOrder {
    /// Begins it, calls `serve` with it, and ends it.
    pub(in crate::store) fn carry_out(self, from: &Connection, serve: impl FnOnce(&Backup<'_, '_>)) {
        let Self { mut to, begun, ended } = self;
        // Nobody else has ever changed the copy, and whoever waits is there until it ends: a send that fails is no loss.
        match Backup::new(from, &mut to) {
            Ok(copy) => {
                let _ = begun.send(Ok(()));
                serve(&copy);
            }
            Err(e) => drop(begun.send(Err(e.into()))),
        }
        let _ = ended.send(to);
    }

    /// There is one being made.
    pub(in crate::store) fn refuse(self) {
        let _ = self.begun.send(Err(Error::internal("two copies of the database at once")));
    }
}

/// Some pages that were copied.
pub(super) struct CopiedPages {
    pub(super) result: StepResult,
    pub(super) progress: CopyProgress,
    /// How long the writer was at it.
    pub(super) took: Duration,
    /// Whether others have written since those before.
    pub(super) others_wrote: bool,
}

/// To copy some pages more, or to end.
pub(in crate::store) struct CopyStep {
    /// None: it is over.
    pub(super) answer: Option<SyncSender<Result<CopiedPages>>>,
}

impl CopyStep {
    /// Whether the copy is over with this.
    pub(in crate::store) fn is_last(&self) -> bool {
        self.answer.is_none()
    }

    /// Copies for a moment.
    pub(in crate::store) fn take(self, copy: &Backup<'_, '_>, others_wrote: bool) {
        let begun = Instant::now();
        let outcome = loop {
            match copy.step(PAGES_AT_ONCE) {
                Ok(StepResult::More) if begun.elapsed() < SLICE => {}
                Ok(result) => {
                    let progress = copy.progress();
                    let [of, left] =
                        [progress.pagecount, progress.remaining].map(|pages| pages.unsigned_abs().into());
                    let [of, left]: [u64; 2] = [of, left];
                    let done = of.saturating_sub(left) * PAGE_BYTES;
                    let progress = CopyProgress { done, of: of * PAGE_BYTES };
                    break Ok(CopiedPages { result, progress, took: begun.elapsed(), others_wrote });
                }
                Err(e) => break Err(e.into()),
            }
        };
        if let Some(answer) = self.answer {
            let _ = answer.send(outcome);
        }
    }

    /// There is none to go on with.
    pub(in crate::store) fn refuse(self) {
        if let Some(answer) = self.answer {
            let _ = answer.send(Err(Error::internal("no copy of the database was begun")));
        }
    }
}
