//! What the process asks of its memory allocator. For the binary; a library has no business changing its host's.

/// Has large blocks (the 19 MiB of a password's hash, a room's whole state) go back to the system when they are freed,
/// and small ones be used again by whichever thread asks next. Left to itself, the GNU allocator keeps blocks of such a
/// size for later once it has seen the first, and eight arenas for each processor, each of which grows to what one
/// thread once needed: two hundred initial syncs, a few at a time, left a multiple of what those few had taken.
pub fn keep_little() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const LARGE: libc::c_int = 256 << 10;
        let processors = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        let arenas = libc::c_int::try_from(processors.max(2)).unwrap_or(libc::c_int::MAX);
        // SAFETY: sets three numbers of the allocator; called before the process has other threads.
        unsafe {
            libc::mallopt(libc::M_ARENA_MAX, arenas);
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
            libc::mallopt(libc::M_TRIM_THRESHOLD, LARGE);
        }
    }
}
