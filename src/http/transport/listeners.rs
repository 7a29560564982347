//! What connections come by: ports, and the local socket.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;

use crate::error::{Error, Result, reason};
use crate::http::transport::local_socket::LocalSocket;
use crate::http::transport::tls::{Certificate, Tls};

/// Length of the kernel's queue of connections that were not accepted yet.
const BACKLOG: libc::c_int = 1024;

/// One address to listen on.
#[derive(Clone)]
pub struct ListenSpec {
    at: ListenAt,
    certificate: Option<Certificate>,
}

#[derive(Clone)]
enum ListenAt {
    Address(SocketAddr),
    Given(Arc<TcpListener>),
    Local(PathBuf),
}

impl ListenSpec {
    /// Plain HTTP at this address; port 0 is any free one.
    pub fn plain(address: SocketAddr) -> Self {
        Self { at: ListenAt::Address(address), certificate: None }
    }

    /// HTTPS at this address.
    pub fn tls(address: SocketAddr, certificate: Certificate) -> Self {
        Self { at: ListenAt::Address(address), certificate: Some(certificate) }
    }

    /// A socket that was bound before, for who must know the port first.
    pub fn bound(listener: TcpListener, certificate: Option<Certificate>) -> Result<Self> {
        Ok(Self { at: ListenAt::Given(Arc::new(listener)), certificate })
    }

    /// A local socket of this name, whose requests are the operator's. Whatever socket is there is taken for one that a
    /// server left which is no more. A server that cannot have it says so in its log, and goes without.
    pub fn local(path: PathBuf) -> Self {
        Self { at: ListenAt::Local(path), certificate: None }
    }
}

/// What connections come by.
pub(super) enum Listener {
    Tcp(TcpListener, Option<Arc<Tls>>),
    Local(LocalSocket),
}

impl Listener {
    pub(super) fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Tcp(listener, _) => listener.as_raw_fd(),
            Self::Local(socket) => socket.as_raw_fd(),
        }
    }
}

/// Errors: an address that cannot be bound, a certificate that cannot be used.
pub(super) fn bind(spec: &ListenSpec) -> Result<Option<Listener>> {
    let tls = spec.certificate.clone().map(Tls::new).transpose()?.map(Arc::new);
    let listener = match &spec.at {
        ListenAt::Given(listener) => listener.try_clone()?,
        ListenAt::Address(address) => TcpListener::bind(address).map_err(|e| cannot_listen(*address, &e))?,
        ListenAt::Local(path) => {
            let bound = LocalSocket::bind(path);
            let told = |e: &io::Error| {
                log::warn!("commands do not reach this server, without {}: {}", path.display(), reason(e));
            };
            return Ok(bound.inspect_err(told).ok().map(Listener::Local));
        }
    };
    prepare(&listener)?;
    Ok(Some(Listener::Tcp(listener, tls)))
}

/// For the operator: why, and what to do.
fn cannot_listen(address: SocketAddr, e: &io::Error) -> Error {
    let why = match e.kind() {
        io::ErrorKind::AddrInUse => {
            "another program listens there already. Stop that one, or choose another address".into()
        }
        io::ErrorKind::PermissionDenied => format!(
            "{}. Ports below 1024 are the administrator's: choose a higher one, and let a reverse proxy lead there",
            reason(e)
        ),
        io::ErrorKind::AddrNotAvailable => "this machine has no such address. Choose another one".into(),
        _ => reason(e),
    };
    Error::invalid_param(format!("Cannot listen on {address}: {why}"))
}

fn prepare(listener: &TcpListener) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    // The standard library listens with a queue of 128; a burst of connections overflows that, and what was dropped
    // comes back only a second or more later.
    // SAFETY: a plain system call on a descriptor that `listener` keeps open.
    if unsafe { libc::listen(listener.as_raw_fd(), BACKLOG) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
