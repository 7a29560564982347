//! What the process asks of its memory allocator. For the binary; a library has no business changing its host's.

use std::cell::Cell;
use std::sync::OnceLock;

/// Arenas for each processor: with one each, threads that are at work at the same time wait for each other at every turn,
/// which takes a twentieth of a busy server's time.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const ARENAS_PER_PROCESSOR: usize = 2;

/// Whoever reads or writes so many bytes at once has had to do with much.
const MUCH_BYTES: usize = 1 << 20;

/// Has large blocks (the 19 MiB of a password's hash, a room's whole state) go back to the system when they are freed,
/// and small ones be used again by whichever thread asks next. Left to itself, the GNU allocator keeps blocks of such a
/// size for later once it has seen the first, and eight arenas for each processor, each of which grows to what one
/// thread once needed: two hundred initial syncs, a few at a time, left a multiple of what those few had taken.
pub fn keep_little() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const LARGE: libc::c_int = 256 << 10;
        let processors = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        let arenas = processors.max(2) * ARENAS_PER_PROCESSOR;
        let arenas = libc::c_int::try_from(arenas).unwrap_or(libc::c_int::MAX);
        // SAFETY: sets three numbers of the allocator; called before the process has other threads.
        unsafe {
            libc::mallopt(libc::M_ARENA_MAX, arenas);
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
            libc::mallopt(libc::M_TRIM_THRESHOLD, LARGE);
        }
        let _ = ON_REST.set(OnRest { give_back: trim, after_much: true });
    }
    #[cfg(all(target_os = "linux", target_env = "musl"))]
    {
        // Memory is taken as one large area there, of which the kernel would make pages of two megabytes where it may.
        // SAFETY: has no pointers; says no to huge pages for this process.
        unsafe {
            libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0);
        }
    }
}

static ON_REST: OnceLock<OnRest> = OnceLock::new();

struct OnRest {
    give_back: fn(),
    /// Only by those that have had to do with much.
    after_much: bool,
}

thread_local! {
    static HAD_MUCH: Cell<bool> = const { Cell::new(false) };
}

/// Has this called by each thread that has served requests and has nothing to do for a while.
pub fn on_rest(give_back: fn()) {
    // Who came first stays.
    let _ = ON_REST.set(OnRest { give_back, after_much: false });
}

/// This thread has to do with so many bytes at once, which may have become a multiple of that in small blocks.
pub(crate) fn has(bytes: usize) {
    if bytes >= MUCH_BYTES {
        HAD_MUCH.set(true);
    }
}

/// Whether this thread has anything to give back.
pub(crate) fn gives_back() -> bool {
    ON_REST.get().is_some_and(|on_rest| !on_rest.after_much || HAD_MUCH.get())
}

/// This thread has nothing to do for a while.
pub(crate) fn rest() {
    if let Some(on_rest) = ON_REST.get().filter(|_| gives_back()) {
        HAD_MUCH.set(false);
        (on_rest.give_back)();
    }
}

/// One block that stays at the end of an arena keeps all the free ones before it there. Going through all of them takes
/// milliseconds, and is not for every request.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn trim() {
    // SAFETY: has no pointers; any thread may call it at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}
