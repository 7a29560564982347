//! What imports of rooms leave behind.

use std::sync::Arc;
use std::time::Duration;

use super::{SchedulerShared, WORKERS_MAX, WorkingGuard};
use crate::error::Result;
use crate::service::Homeserver;

/// Deletes it, on a thread of its own: that of a large room is much.
pub(super) fn delete_leftovers(shared: &Arc<SchedulerShared>, hs: &Arc<Homeserver>) -> Result<()> {
    hs.import_leftovers.find(&hs.store)?;
    if !hs.import_leftovers.any() {
        return Ok(());
    }
    let Some(working) = WorkingGuard::new(shared, "import leftovers".to_owned(), WORKERS_MAX) else {
        return Ok(());
    };
    let hs = Arc::clone(hs);
    shared.begin("due", move || {
        let goes_on = || hs.scheduler.rest(Duration::ZERO);
        if let Err(error) = hs.import_leftovers.delete(&hs.store, goes_on) {
            log::log!(error.level(log::Level::Warn), "what an import left is not deleted yet: {error}");
        }
        drop(hs);
        drop(working);
    });
    Ok(())
}
