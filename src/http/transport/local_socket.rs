//! The local socket: by it the commands of this program reach a server that runs, both ends. Whoever can open it
//! operates that server, and needs no token: it lies in the data folder, is for its owner alone, and who opens it must be
//! the user that the server runs as, or root.

use std::fs::{self, File, Permissions};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::mem;
use std::net::TcpStream;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// A local socket that is listened on. Its name goes when it is dropped.
pub(super) struct LocalSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl LocalSocket {
    /// Listens on a socket of this name. A socket that is there already is one that a killed server left: whoever calls
    /// holds the lock of the folder. Errors: the system's; what is there and is no socket stays.
    pub(super) fn bind(path: &Path) -> io::Result<Self> {
        let is_free = |path: &Path| match fs::symlink_metadata(path) {
            Ok(found) if found.file_type().is_socket() => Ok(()),
            Ok(_) => Err(io::Error::new(ErrorKind::AlreadyExists, "something else has its name")),
            Err(_) => Ok(()),
        };
        // Nobody sees it by its name before it is as it should be.
        let beside = path.with_extension("new");
        is_free(path)?;
        is_free(&beside)?;
        let _ = fs::remove_file(&beside);
        let (_folder, short) = short_enough(&beside)?;
        let listener = UnixListener::bind(short)?;
        fs::set_permissions(&beside, Permissions::from_mode(0o600))?;
        fs::rename(&beside, path)?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, path: path.to_owned() })
    }

    pub(super) fn as_raw_fd(&self) -> RawFd {
        self.listener.as_raw_fd()
    }

    /// The next connection, as the stream socket that it is. None: it was somebody else's, and is closed.
    pub(super) fn accept(&self) -> io::Result<Option<TcpStream>> {
        let (stream, _) = self.listener.accept()?;
        let peer = peer_uid(&stream)?;
        // SAFETY: asks the kernel for a number, and touches no memory.
        let own = unsafe { libc::geteuid() };
        if peer != own && peer != 0 {
            log::warn!("the user {peer} of this machine opened the local socket, and was not let in");
            return Ok(None);
        }
        Ok(Some(TcpStream::from(OwnedFd::from(stream))))
    }
}

impl Drop for LocalSocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Who the process at the other end runs as.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn peer_uid(stream: &UnixStream) -> io::Result<libc::uid_t> {
    let mut peer = libc::ucred { pid: 0, uid: libc::uid_t::MAX, gid: libc::gid_t::MAX };
    let mut length = mem::size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, which is the size of the live `ucred`, and then the length itself.
    let asked = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut length,
        )
    };
    if asked == 0 { Ok(peer.uid) } else { Err(io::Error::last_os_error()) }
}

/// Who the process at the other end runs as.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn peer_uid(stream: &UnixStream) -> io::Result<libc::uid_t> {
    let (mut uid, mut gid) = (libc::uid_t::MAX, libc::gid_t::MAX);
    // SAFETY: the kernel writes one number to each of the two pointers, which are to live locals.
    let asked = unsafe { libc::getpeereid(stream.as_raw_fd(), &raw mut uid, &raw mut gid) };
    if asked == 0 { Ok(uid) } else { Err(io::Error::last_os_error()) }
}

/// The socket's path in as many bytes as the system takes for one (108 on Linux), by way of its opened folder where it
/// has more. The path holds as long as the folder is open. Errors: too long, and no such way.
fn short_enough(path: &Path) -> io::Result<(Option<File>, PathBuf)> {
    let too_long = match SocketAddr::from_pathname(path) {
        Ok(_) => return Ok((None, path.to_owned())),
        Err(e) => e,
    };
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return Err(too_long) };
    let folder = File::open(folder)?;
    let short = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string());
    if !short.is_dir() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "the path is too long for a socket"));
    }
    Ok((Some(folder), short.join(name)))
}

/// Whether a server listens on a local socket.
pub fn is_listened_on(path: &Path) -> bool {
    connect_within(path, WELL_TIMEOUT).map_or_else(|e| e.kind() == ErrorKind::TimedOut, |_| true)
}

/// Connects, on a thread of its own, since it takes as long as the line of those that a server has not taken yet is full: before
/// one that was stopped it fills by and by, and gets no shorter. Errors: the system's; `TimedOut` if there is no place within this
/// time.
fn connect_within(path: &Path, within: Duration) -> io::Result<UnixStream> {
    let (folder, short) = short_enough(path)?;
    let (tell, told) = mpsc::channel();
    thread::Builder::new().spawn(move || {
        let connected = UnixStream::connect(short);
        drop(folder);
        // Nobody waits for it any more.
        let _ = tell.send(connected);
    })?;
    told.recv_timeout(within).unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))
}

/// A server that goes on says how it is within this time, whatever else it is asked for; what it is asked for may take long.
const WELL_TIMEOUT: Duration = Duration::from_secs(5);

/// Connects to the server that listens on a local socket, once it has shown that it goes on: the system takes connections also
/// for one that was stopped. Errors: those of [`ask`].
fn connect(path: &Path) -> io::Result<UnixStream> {
    let mut asked = connect_within(path, WELL_TIMEOUT)?;
    asked.set_read_timeout(Some(WELL_TIMEOUT))?;
    let unheard = |e: io::Error| match e.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => ErrorKind::TimedOut.into(),
        _ => io::Error::from(ErrorKind::ConnectionReset),
    };
    write!(asked, "GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").map_err(unheard)?;
    // Whatever it says.
    asked.read_exact(&mut [0]).map_err(unheard)?;
    connect_within(path, WELL_TIMEOUT)
}

/// Asks the server that listens on a local socket: one request, and its whole answer. The body, if there is one, is JSON.
/// What changes something (all but `GET`) is sent whole only when the server has said that it goes on: who was not told
/// to knows that nothing was done.
///
/// Errors: `NotFound`, `ConnectionRefused`: no server listens there; `ConnectionReset`: it ended, and nothing was done;
/// `ConnectionAborted`: it ended before it answered; `TimedOut`: it is stopped, or hangs, and nothing was done.
pub fn ask(path: &Path, method: &str, target: &str, body: Option<&[u8]>) -> io::Result<(u16, Vec<u8>)> {
    let mut stream = connect(path)?;
    let unheard = |_| io::Error::from(ErrorKind::ConnectionReset);
    let mut answer = Vec::new();
    if method == "GET" {
        write!(stream, "GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .map_err(unheard)?;
        stream.read_to_end(&mut answer).map_err(unheard)?;
        return read_answer(&answer).ok_or_else(|| ErrorKind::ConnectionReset.into());
    }
    let body = body.unwrap_or(b"{}");
    let head = format!(
        "{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nExpect: 100-continue\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).map_err(unheard)?;
    let mut begin = [0; GO_ON.len()];
    stream.read_exact(&mut begin).map_err(unheard)?;
    if begin == *GO_ON {
        // From here on it may have been done.
        stream.write_all(body)?;
    } else {
        answer.extend_from_slice(&begin);
    }
    let ended = |_| io::Error::from(ErrorKind::ConnectionAborted);
    stream.read_to_end(&mut answer).map_err(ended)?;
    read_answer(&answer).ok_or_else(|| ErrorKind::ConnectionAborted.into())
}

/// Asks for something that may be large, and is read as it comes: its status, and its body. A body that the server does not end
/// is an error of its reader. Errors: those of [`ask`].
pub fn ask_for_stream(path: &Path, target: &str) -> io::Result<(u16, Box<dyn Read>)> {
    let mut stream = connect(path)?;
    let unheard = |_| io::Error::from(ErrorKind::ConnectionReset);
    // What has no length comes in chunks: so its end is told from the server's.
    write!(stream, "GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .map_err(unheard)?;
    let mut stream = BufReader::with_capacity(STREAM_BUFFER_BYTES, stream);
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let read = stream.by_ref().take(HEAD_BYTES_MAX).read_until(b'\n', &mut head).map_err(unheard)?;
        if read == 0 || head.len() as u64 > HEAD_BYTES_MAX {
            return Err(ErrorKind::ConnectionReset.into());
        }
    }
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut parsed = httparse::Response::new(&mut headers);
    let no_answer = || io::Error::from(ErrorKind::ConnectionReset);
    parsed.parse(&head).map_err(|_| no_answer())?;
    let status = parsed.code.ok_or_else(no_answer)?;
    let length = parsed.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let length: Option<u64> = match length {
        Some(length) => {
            let length = std::str::from_utf8(length.value).ok().and_then(|text| text.parse().ok());
            Some(length.ok_or_else(no_answer)?)
        }
        None => None,
    };
    let (is_chunked, left) = (length.is_none(), length.unwrap_or(0));
    Ok((status, Box::new(StreamedBody { stream, is_chunked, left, is_over: false })))
}

const STREAM_BUFFER_BYTES: usize = 64 << 10;
const HEAD_BYTES_MAX: u64 = 16 << 10;

/// A body that is read as it comes.
struct StreamedBody {
    stream: BufReader<UnixStream>,
    is_chunked: bool,
    /// Of the body, or of the chunk that is being read.
    left: u64,
    is_over: bool,
}

impl StreamedBody {
    /// Reads up to the next chunk's bytes; whether there are any.
    fn next_chunk(&mut self) -> io::Result<bool> {
        let mut line = Vec::new();
        // The first chunk has no end of another before it.
        while line.is_empty() || line == b"\r\n" {
            line.clear();
            if self.stream.by_ref().take(32).read_until(b'\n', &mut line)? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        match httparse::parse_chunk_size(&line) {
            Ok(httparse::Status::Complete((_, length))) => self.left = length,
            _ => return Err(ErrorKind::UnexpectedEof.into()),
        }
        Ok(self.left > 0)
    }
}

impl Read for StreamedBody {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.is_over || buf.is_empty() {
            return Ok(0);
        }
        if self.left == 0 && !(self.is_chunked && self.next_chunk()?) {
            self.is_over = true;
            return Ok(0);
        }
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buf.len());
        let read = self.stream.read(&mut buf[..most])?;
        if read == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        self.left -= read as u64;
        Ok(read)
    }
}

/// What a server says that is to be sent the body.
const GO_ON: &[u8; 25] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Status and body of an answer; none if it is not whole.
fn read_answer(answer: &[u8]) -> Option<(u16, Vec<u8>)> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut head = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(length) = head.parse(answer).ok()? else { return None };
    let body = &answer[length..];
    let header = |name: &str| head.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
    let body = match header("content-length") {
        Some(length) => {
            let length = std::str::from_utf8(length.value).ok()?.parse::<usize>().ok()?;
            (length == body.len()).then(|| body.to_vec())?
        }
        None if header("transfer-encoding").is_some() => joined(body)?,
        None => body.to_vec(),
    };
    Some((head.code?, body))
}

/// The bytes of a body that comes in chunks; none if the last is missing.
fn joined(mut chunks: &[u8]) -> Option<Vec<u8>> {
    let mut whole = Vec::new();
    loop {
        let httparse::Status::Complete((begin, length)) = httparse::parse_chunk_size(chunks).ok()? else {
            return None;
        };
        let end = begin.checked_add(usize::try_from(length).ok()?)?;
        if length == 0 {
            return Some(whole);
        }
        whole.extend_from_slice(chunks.get(begin..end)?);
        chunks = chunks.get(end..)?.strip_prefix(b"\r\n")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::temporary_folder;

    #[test]
    fn a_socket_is_for_its_owner_alone_and_takes_the_place_of_one_that_was_left() {
        let folder = temporary_folder("local-socket");
        let path = folder.join("a.sock");
        drop(UnixListener::bind(&path).unwrap());
        let socket = LocalSocket::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let _stream = UnixStream::connect(&path).unwrap();
        assert!(socket.accept().unwrap().is_some());
        drop(socket);
        assert!(!path.exists());
        fs::write(&path, b"precious").unwrap();
        assert_eq!(LocalSocket::bind(&path).err().unwrap().kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_path_that_is_too_long_for_a_socket_is_no_hindrance() {
        let folder = temporary_folder("local-socket");
        let deep = folder.join("x".repeat(120));
        fs::create_dir(&deep).unwrap();
        let path = deep.join("a.sock");
        let socket = LocalSocket::bind(&path).unwrap();
        assert!(path.exists());
        let (_open, short) = short_enough(&path).unwrap();
        let _stream = UnixStream::connect(short).unwrap();
        drop(socket);
        assert!(!path.exists());
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn who_finds_the_line_before_a_server_full_is_told_so_and_does_not_wait_for_ever() {
        let folder = temporary_folder("local-socket");
        let path = folder.join("a.sock");
        let listener = UnixListener::bind(&path).unwrap();
        // SAFETY: makes the line of a socket that is open as short as can be, and touches no memory.
        assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 0) }, 0);
        let taken: Vec<_> = (0..10)
            .map(|_| connect_within(&path, Duration::from_millis(200)))
            .take_while(Result::is_ok)
            .collect();
        assert!((1..10).contains(&taken.len()), "{}", taken.len());
        assert_eq!(ask(&path, "GET", "/", None).unwrap_err().kind(), ErrorKind::TimedOut);
        assert!(is_listened_on(&path));
        drop(listener);
        assert!(!is_listened_on(&path));
        fs::remove_dir_all(&folder).unwrap();
    }

    /// What comes of an answer that is read as it comes.
    fn streamed(answer: &[u8]) -> io::Result<(u16, Vec<u8>)> {
        let folder = temporary_folder("local-socket");
        let path = folder.join("a.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let answer = answer.to_vec();
        let server = std::thread::spawn(move || {
            for answer in [b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), answer] {
                let mut stream = listener.accept().unwrap().0;
                // What is closed before all of it was read is a reset to the other end.
                let mut asked = Vec::new();
                while !asked.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).unwrap();
                    asked.extend(byte);
                }
                stream.write_all(&answer).unwrap();
            }
        });
        let found = ask_for_stream(&path, "/x").and_then(|(status, mut body)| {
            let mut bytes = Vec::new();
            body.read_to_end(&mut bytes).map(|_| (status, bytes))
        });
        server.join().unwrap();
        fs::remove_dir_all(&folder).unwrap();
        found
    }

    #[test]
    fn an_answer_that_is_read_as_it_comes_is_whole_or_an_error() {
        let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\n\n\r\n0\r\n\r\n";
        let measured = b"HTTP/1.1 409 x\r\nContent-Length: 2\r\n\r\n{}";
        assert_eq!(streamed(chunked).unwrap(), (200, b"ab\n".to_vec()));
        assert_eq!(streamed(measured).unwrap(), (409, b"{}".to_vec()));
        for (answer, end) in [(&chunked[..], chunked.len() - 4), (measured, measured.len())] {
            for end in (0..end).step_by(5).chain([end - 1]) {
                assert!(streamed(&answer[..end]).is_err(), "{end} of {:?}", String::from_utf8_lossy(answer));
            }
        }
    }

    #[test]
    fn half_an_answer_is_none() {
        let whole = b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}";
        assert_eq!(read_answer(whole), Some((200, b"{}".to_vec())));
        for end in 0..whole.len() {
            assert_eq!(read_answer(&whole[..end]), None, "{end}");
        }
        let chunked = b"HTTP/1.1 404 x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n";
        assert_eq!(read_answer(chunked), Some((404, b"abc".to_vec())));
        for end in 0..chunked.len() - 4 {
            assert_eq!(read_answer(&chunked[..end]), None, "{end}");
        }
    }
}
