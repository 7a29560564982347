//! Tells what commits have changed, on a thread of its own: waking a thousand who wait must not keep the next commit.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::thread::JoinHandle;

use crate::error::Result;
use crate::store::{Changes, OnCommit};

/// Dropping it tells what is left to be told first.
pub(in crate::store) struct Herald {
    news: Option<mpsc::Sender<Changes>>,
    thread: Option<JoinHandle<()>>,
}

impl Herald {
    pub(in crate::store) fn start(on_commit: OnCommit) -> Result<Herald> {
        let (news, told) = mpsc::channel::<Changes>();
        let body = move || {
            while let Ok(mut changes) = told.recv() {
                // What was committed during the last telling is told at once.
                for later in told.try_iter() {
                    changes.absorb(later);
                }
                if catch_unwind(AssertUnwindSafe(|| on_commit(&changes))).is_err() {
                    log::error!("the notifier panicked");
                }
            }
        };
        let thread = std::thread::Builder::new().name("store-herald".into()).spawn(body)?;
        Ok(Herald { news: Some(news), thread: Some(thread) })
    }

    /// Everything in it is on disk.
    pub(in crate::store) fn tell(&self, changes: Changes) {
        if let Some(news) = &self.news {
            let _ = news.send(changes);
        }
    }
}

impl Drop for Herald {
    fn drop(&mut self) {
        self.news = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
