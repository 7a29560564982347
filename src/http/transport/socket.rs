//! One TCP connection, plain or TLS, where every read and write ends by a deadline.
//!
//! The socket is non-blocking and waits in `poll(2)`. So a deadline covers a whole head or a whole reply, however
//! many small reads and writes it takes, and an idle connection needs no buffer at all.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::protocol::certificates::acme::TLS_PROTOCOL;

/// Waits until one of the descriptors has one of its events, or the deadline passes (`None`: forever). Returns
/// whether something happened; each entry's `revents` says what.
pub(super) fn poll(fds: &mut [libc::pollfd], deadline: Option<Instant>) -> io::Result<bool> {
    loop {
        let timeout = match deadline {
            None => -1,
            Some(at) => {
                let left = at.saturating_duration_since(Instant::now());
                // Rounded up, so that a wait never ends a little early and spins.
                i32::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX)
            }
        };
        // SAFETY: the pointer and the length are those of one live slice of `pollfd`, which the kernel only reads and
        // whose `revents` it writes.
        let ready = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout) };
        match ready {
            0 => return Ok(false),
            n if n > 0 => return Ok(true),
            _ => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

/// One entry for `poll`.
pub(super) fn interest(fd: RawFd, events: libc::c_short) -> libc::pollfd {
    libc::pollfd { fd, events, revents: 0 }
}

/// Whether the other side has closed its end or reset the connection, whatever it sent before that.
pub(super) fn is_gone(tcp: &TcpStream) -> bool {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        let mut fds = [interest(tcp.as_raw_fd(), libc::POLLRDHUP)];
        poll(&mut fds, Some(Instant::now())).unwrap_or(true)
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    {
        matches!(tcp.peek(&mut [0]), Ok(0)) || matches!(tcp.take_error(), Ok(Some(_)) | Err(_))
    }
}

/// A non-blocking socket whose reads and writes wait, at most until `deadline`.
pub(super) struct Socket {
    tcp: Arc<TcpStream>,
    deadline: Instant,
}

impl Socket {
    fn wait(&self, events: libc::c_short) -> io::Result<()> {
        if poll(&mut [interest(self.tcp.as_raw_fd(), events)], Some(self.deadline))? {
            Ok(())
        } else {
            Err(io::ErrorKind::TimedOut.into())
        }
    }

    fn retry<T>(
        &self,
        events: libc::c_short,
        mut attempt: impl FnMut(&TcpStream) -> io::Result<T>,
    ) -> io::Result<T> {
        loop {
            match attempt(&self.tcp) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.wait(events)?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                done => return done,
            }
        }
    }
}

impl Read for Socket {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.retry(libc::POLLIN, |mut tcp| tcp.read(buf))
    }
}

impl Socket {
    fn send(&self, attempt: impl FnMut(&TcpStream) -> io::Result<usize>) -> io::Result<usize> {
        // Also checked here, because a reader that takes a little now and then never lets a write wait long.
        if Instant::now() > self.deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.retry(libc::POLLOUT, attempt)
    }
}

impl Write for Socket {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.send(|mut tcp| tcp.write(buf))
    }

    /// By this TLS hands over all the records that it has at once.
    fn write_vectored(&mut self, bufs: &[io::IoSlice<'_>]) -> io::Result<usize> {
        self.send(|mut tcp| tcp.write_vectored(bufs))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A connection's bytes, plain or through TLS.
pub(super) enum Transport {
    Plain(Socket),
    Tls(Box<StreamOwned<ServerConnection, Socket>>),
}

impl Transport {
    /// Takes over an accepted socket. The TLS handshake happens within the first read.
    pub(super) fn new(
        tcp: Arc<TcpStream>,
        tls: Option<Arc<ServerConfig>>,
        deadline: Instant,
    ) -> io::Result<Self> {
        let socket = Socket { tcp, deadline };
        Ok(match tls {
            None => Self::Plain(socket),
            Some(config) => {
                let connection = ServerConnection::new(config).map_err(io::Error::other)?;
                Self::Tls(Box::new(StreamOwned::new(connection, socket)))
            }
        })
    }

    /// Whether what goes over it is encrypted.
    pub(super) fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    fn socket(&self) -> &Socket {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => &stream.sock,
        }
    }

    /// From now on reads and writes end by this time.
    pub(super) fn set_deadline(&mut self, deadline: Instant) {
        match self {
            Self::Plain(socket) => socket.deadline = deadline,
            Self::Tls(stream) => stream.sock.deadline = deadline,
        }
    }

    /// Writes what the other side takes at once. Returns how many of the bytes need not be written again; a flush may be left to
    /// do.
    pub(super) fn write_now(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let at_once = |sent: io::Result<usize>| match sent {
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(0),
            sent => sent,
        };
        match self {
            Self::Plain(socket) => at_once((&*socket.tcp).write(bytes)),
            Self::Tls(stream) => {
                let taken = stream.conn.writer().write(bytes)?;
                while stream.conn.wants_write() && at_once(stream.conn.write_tls(&mut &*stream.sock.tcp))? > 0
                {
                }
                Ok(taken)
            }
        }
    }

    /// Waits, holding no buffer, until there is something to read. False: the deadline passed.
    pub(super) fn wait_readable(&mut self, deadline: Instant) -> io::Result<bool> {
        if let Self::Tls(stream) = self {
            let state = stream.conn.process_new_packets().map_err(io::Error::other)?;
            if state.plaintext_bytes_to_read() > 0 {
                return Ok(true);
            }
        }
        poll(&mut [interest(self.socket().tcp.as_raw_fd(), libc::POLLIN)], Some(deadline))
    }

    /// Whether the other side has closed its end or reset the connection, whatever it sent before that.
    pub(super) fn is_gone(&self) -> bool {
        is_gone(&self.socket().tcp)
    }

    /// Says that nothing more will be sent, then reads and drops what the other side still sends, for a bounded time
    /// and amount: a close with unread input would reset the connection and could destroy the reply on its way.
    pub(super) fn close_gently(&mut self, time: Duration, bytes: usize) {
        self.set_deadline(Instant::now() + time);
        if let Self::Tls(stream) = self {
            stream.conn.send_close_notify();
            let _ = stream.flush();
        }
        let socket = match self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => &mut stream.sock,
        };
        let _ = socket.tcp.shutdown(Shutdown::Write);
        let mut buffer = [0; 2048];
        let mut left = bytes;
        while left > 0 && Instant::now() < socket.deadline {
            match socket.read(&mut buffer) {
                Ok(n) if n > 0 => left = left.saturating_sub(n),
                _ => break,
            }
        }
    }
}

impl Read for Transport {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read(buf),
            Self::Tls(stream) => {
                let count = stream.read(buf)?;
                // "Once the TLS handshake is completed, the connection MUST be closed" (RFC 8737, 3).
                let is_proof = stream.conn.alpn_protocol() == Some(TLS_PROTOCOL);
                Ok(if is_proof { 0 } else { count })
            }
        }
    }
}

impl Write for Transport {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.write(buf),
            Self::Tls(stream) => stream.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}
