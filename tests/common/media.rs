//! Uploads and downloads byte by byte, over a connection of their own.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use doorstep::testing::{TestUser, segment};
use serde_json::Value;

/// Where files are downloaded.
pub const DOWNLOAD: &str = "/_matrix/client/v1/media/download";
/// Where files are uploaded.
pub const UPLOAD: &str = "/_matrix/media/v3/upload";

/// An answer as it came.
#[derive(Debug)]
pub struct RawAnswer {
    /// The status.
    pub status: u16,
    headers: HashMap<String, String>,
    /// The body; of a `HEAD` and of a 304 there is none.
    pub body: Vec<u8>,
}

impl RawAnswer {
    /// Reads everything up to the end of the connection.
    pub fn read(mut connection: impl Read) -> io::Result<Self> {
        let mut bytes = Vec::new();
        let read = connection.read_to_end(&mut bytes);
        let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
            read?;
            return Err(io::Error::other("no answer"));
        };
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
        let headers = lines.filter_map(|line| line.split_once(": "));
        Ok(Self {
            status: status.ok_or_else(|| io::Error::other("no status"))?,
            headers: headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect(),
            body: bytes.split_off(end + 4),
        })
    }

    /// A header; empty if there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// The status and the errcode.
    pub fn error(&self) -> (u16, String) {
        (self.status, self.json()["errcode"].as_str().unwrap_or_default().to_owned())
    }
}

/// A connection on which a head was sent: method, target, more lines each with their `\r\n`.
pub fn begin(user: &TestUser, method: &str, target: &str, more: &str) -> TcpStream {
    try_begin(user, method, target, more).expect("a server that listens")
}

/// The same of a server that may be killed meanwhile.
pub fn try_begin(user: &TestUser, method: &str, target: &str, more: &str) -> io::Result<TcpStream> {
    let address = user.url().strip_prefix("http://").expect("plain HTTP");
    let mut connection = TcpStream::connect(address)?;
    connection.set_read_timeout(Some(Duration::from_secs(90)))?;
    let head = format!("{method} {target} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    let authorization = format!("Authorization: Bearer {}\r\n", user.token());
    connection.write_all(format!("{head}{authorization}{more}\r\n").as_bytes())?;
    Ok(connection)
}

/// One request and its answer. The body is sent as far as the server takes it.
pub fn exchange(user: &TestUser, method: &str, target: &str, more: &str, body: &[u8]) -> RawAnswer {
    let has_length = more.to_ascii_lowercase().contains("transfer-encoding") || body.is_empty();
    let length = if has_length { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    let mut connection = begin(user, method, target, &format!("{more}{length}"));
    let _ = connection.write_all(body);
    RawAnswer::read(connection).unwrap_or_else(|e| panic!("{method} {target}: {e}"))
}

/// Uploads a file; its URI.
#[track_caller]
pub fn upload(user: &TestUser, content_type: &str, name: &str, body: &[u8]) -> String {
    let target = format!("{UPLOAD}?filename={}", segment(name));
    let answer = exchange(user, "POST", &target, &format!("Content-Type: {content_type}\r\n"), body);
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["content_uri"].as_str().expect("a URI").to_owned()
}

/// The path at which a URI's file is downloaded.
pub fn download_path(uri: &str) -> String {
    format!("{DOWNLOAD}/{}", uri.strip_prefix("mxc://").expect("an mxc:// URI"))
}

/// Downloads what is to be had by a URI, with these lines in the head.
pub fn download(user: &TestUser, uri: &str, more: &str) -> RawAnswer {
    exchange(user, "GET", &download_path(uri), more, b"")
}
