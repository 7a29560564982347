//! What systemd is told of a service of `Type=notify` (sd_notify(3)): datagrams to the socket that it names.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The server answers.
pub const READY: &str = "READY=1";
/// It was told to stop, and is doing so.
pub const STOPPING: &str = "STOPPING=1";

/// Tells whoever started this process, if they want to know.
pub fn tell(state: &str) {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else { return };
    if let Err(e) = send(&name, state) {
        log::warn!("the socket {} of NOTIFY_SOCKET cannot be told {state}: {e}", name.display());
    }
}

fn send(name: &OsStr, state: &str) -> io::Result<()> {
    let address = address(name)?;
    let socket = UnixDatagram::unbound()?;
    // Whoever does not listen is not waited for.
    socket.set_nonblocking(true)?;
    socket.send_to_addr(state.as_bytes(), &address).map(drop)
}

/// A path, or behind an `@` a name in the abstract namespace, which Linux has.
fn address(name: &OsStr) -> io::Result<SocketAddr> {
    match name.as_bytes().strip_prefix(b"@") {
        #[cfg(target_os = "linux")]
        Some(name) => {
            use std::os::linux::net::SocketAddrExt;
            SocketAddr::from_abstract_name(name)
        }
        _ => SocketAddr::from_pathname(name),
    }
}
