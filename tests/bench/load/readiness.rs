//! Which of many connections have something to be read: one thread that hears a thousand of them takes less of the processor from
//! the server that is measured than a thousand threads do.

use std::net::TcpStream;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::Result;

/// Events taken at once.
const AT_ONCE: usize = 64;

/// Connections that are looked at together (epoll).
pub struct Readiness(OwnedFd);

impl Readiness {
    /// Looks at none yet.
    pub fn new() -> Result<Self> {
        // SAFETY: no memory is touched.
        let descriptor = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if descriptor == -1 {
            return Err(std::io::Error::last_os_error().into());
        }
        // SAFETY: it is new, and nobody else has it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(descriptor) }))
    }

    /// Looks at this one as well, under this number.
    pub fn add(&self, stream: &TcpStream, number: usize) -> Result<()> {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: number as u64 };
        // SAFETY: both descriptors are open, and the event outlives the call, which copies it.
        let outcome = unsafe {
            libc::epoll_ctl(self.0.as_raw_fd(), libc::EPOLL_CTL_ADD, stream.as_raw_fd(), &raw mut event)
        };
        if outcome == 0 { Ok(()) } else { Err(std::io::Error::last_os_error().into()) }
    }

    /// Waits until there is something, and says of which.
    pub fn wait(&self) -> Result<Vec<usize>> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; AT_ONCE];
        // SAFETY: the array has as many places as are told.
        let count = unsafe { libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), AT_ONCE as i32, -1) };
        match usize::try_from(count) {
            Ok(count) => Ok(events[..count].iter().map(|event| event.u64 as usize).collect()),
            Err(_) => match std::io::Error::last_os_error() {
                e if e.kind() == std::io::ErrorKind::Interrupted => Ok(Vec::new()),
                e => Err(e.into()),
            },
        }
    }
}
