//! The allocator of the static binaries, for SQLite too. That of musl has one lock for all threads and searches long: with it a
//! handshake takes half as long again. Here each thread has pages of its own, which it would keep: two hundred initial syncs at
//! once would leave two megabytes with each of their threads.

use std::ffi::{c_int, c_long};

use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// For so long, in milliseconds, pages that nothing is on any more stay.
const PURGE_DELAY_MS: c_long = 10;
/// Its number among the allocator's options (`mi_option_e` in mimalloc.h).
const MI_OPTION_PURGE_DELAY: c_int = 15;

// SAFETY: declared as in mimalloc.h; both may be called by any thread at any time, with any numbers.
unsafe extern "C" {
    safe fn mi_option_set(option: c_int, value: c_long);
    safe fn mi_collect(force: bool);
}

/// Has pages go back to the system soon after they are freed, and a thread give up at once those that nothing is on when it has
/// nothing to do.
pub fn keep_little() {
    mi_option_set(MI_OPTION_PURGE_DELAY, PURGE_DELAY_MS);
    doorstep::allocator::on_rest(|| mi_collect(true));
}
