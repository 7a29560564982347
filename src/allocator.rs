//! What the process asks of its memory allocator. For the binary; a library has no business changing its host's.

/// Has large blocks (the 19 MiB of a password's hash, a room's whole state) go back to the system when they are freed.
/// Left to itself, the GNU allocator keeps blocks of such a size for later once it has seen the first.
pub fn give_large_blocks_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const LARGE: libc::c_int = 256 << 10;
        // SAFETY: sets two numbers of the allocator; called before the process has other threads.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
            libc::mallopt(libc::M_TRIM_THRESHOLD, LARGE);
        }
    }
}
