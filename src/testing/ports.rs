//! Ports that a stopped server keeps: nobody can connect to them, and the system gives them to nobody else. Tests side by side
//! take hundreds of free ports a minute, and a server that is started again wants its own.

use std::io;
use std::net::{SocketAddr, TcpListener};
#[cfg(target_os = "linux")]
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// A socket with this address that does not listen. Whoever serves it has it listen, or listens beside it with another one.
/// Errors: the system's, as of every way to get an address; elsewhere than on Linux there is none.
#[cfg(target_os = "linux")]
pub fn hold_port(address: SocketAddr) -> io::Result<TcpListener> {
    // Connections of the server that had the port may not be over yet.
    bound(address, true)
}

/// Nothing: addresses are written in another way there.
#[cfg(not(target_os = "linux"))]
pub fn hold_port(_: SocketAddr) -> io::Result<TcpListener> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(target_os = "linux")]
fn bound(address: SocketAddr, beside_old_connections: bool) -> io::Result<TcpListener> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: a plain system call.
    let socket = checked(unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the descriptor was made just now, and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    let reuse = libc::c_int::from(beside_old_connections);
    // SAFETY: the value lives until the call is over, and its size is told.
    checked(unsafe {
        let (level, name) = (libc::SOL_SOCKET, libc::SO_REUSEADDR);
        libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const reuse).cast(), size_of_val(&reuse) as _)
    })?;
    let result = match address {
        SocketAddr::V4(v4) => {
            let address = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                sin_zero: [0; 8],
            };
            // SAFETY: the address lives until the call is over, and its size is told.
            unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as _) }
        }
        SocketAddr::V6(v6) => {
            let address = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            };
            // SAFETY: the address lives until the call is over, and its size is told.
            unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as _) }
        }
    };
    checked(result)?;
    Ok(TcpListener::from(socket))
}

#[cfg(target_os = "linux")]
fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr, TcpStream};

    use super::*;

    #[test]
    fn a_port_that_is_held_is_given_to_nobody_and_refuses_connections() {
        for address in [SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), (Ipv6Addr::LOCALHOST, 0).into()] {
            // There is not everywhere a loopback of the newer kind.
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let address = listener.local_addr().expect("an address");
            let client = TcpStream::connect(address).expect("it listens");
            let (accepted, _) = listener.accept().expect("a connection");
            drop((listener, accepted));
            assert!(bound(address, false).is_err(), "the old connection has it still");
            let held = hold_port(address).expect("the port, although the connection is not over");
            drop(client);
            assert_eq!(held.local_addr().expect("an address"), address);
            assert!(TcpStream::connect(address).is_err());
            assert!(bound(address, false).is_err(), "it is held");
        }
    }
}
