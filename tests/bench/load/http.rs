//! As little HTTP/1.1 as a load generator needs: keep-alive requests, and answers with a length or in chunks.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::Result;

/// A connection that is used for one request after the other.
pub struct Connection<S: Read + Write> {
    stream: BufReader<S>,
    host: String,
}

impl<S: Read + Write> Connection<S> {
    /// `host` is what the Host header says.
    pub fn new(stream: S, host: &str) -> Self {
        Self { stream: BufReader::new(stream), host: host.to_owned() }
    }

    /// Sends a request in one write. `authorization` is the whole value of the header.
    pub fn send(&mut self, method: &str, uri: &str, authorization: &str, body: Option<&[u8]>) -> Result<()> {
        let mut out = format!("{method} {uri} HTTP/1.1\r\nHost: {}\r\n", self.host).into_bytes();
        if !authorization.is_empty() {
            write!(out, "Authorization: {authorization}\r\n")?;
        }
        if let Some(body) = body {
            write!(out, "Content-Type: application/json\r\nContent-Length: {}\r\n", body.len())?;
        }
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(body.unwrap_or_default());
        self.stream.get_mut().write_all(&out)?;
        self.stream.get_mut().flush()?;
        Ok(())
    }

    /// Reads one whole answer: status and body.
    pub fn receive(&mut self) -> Result<(u16, Vec<u8>)> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        let status = line.split(' ').nth(1).ok_or_else(|| format!("no status line: {line:?}"))?.parse()?;
        let (mut length, mut chunked) = (0, false);
        loop {
            line.clear();
            self.stream.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse()?;
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                chunked = value.trim().eq_ignore_ascii_case("chunked");
            }
        }
        let body = if chunked { self.chunks()? } else { self.exactly(length)? };
        Ok((status, body))
    }

    fn exactly(&mut self, length: usize) -> Result<Vec<u8>> {
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok(body)
    }

    fn chunks(&mut self) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line)?;
            let size = usize::from_str_radix(line.trim_end(), 16)?;
            body.extend(self.exactly(size + 2)?);
            body.truncate(body.len() - 2);
            if size == 0 {
                return Ok(body);
            }
        }
    }

    /// Request and answer; anything but a 200 is an error that quotes it.
    pub fn call(
        &mut self,
        method: &str,
        uri: &str,
        authorization: &str,
        body: Option<&[u8]>,
    ) -> Result<Vec<u8>> {
        self.send(method, uri, authorization, body)?;
        match self.receive()? {
            (200, body) => Ok(body),
            (status, body) => {
                Err(format!("{method} {uri}: {status} {}", String::from_utf8_lossy(&body)).into())
            }
        }
    }
}

impl Connection<TcpStream> {
    /// What it goes over.
    pub fn socket(&self) -> &TcpStream {
        self.stream.get_ref()
    }
}

/// A plain connection.
pub fn connect(address: &str) -> Result<Connection<TcpStream>> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    Ok(Connection::new(stream, address))
}

/// Whether a server answers there.
pub fn answers(address: &str) -> bool {
    let Ok(mut connection) = connect(address) else { return false };
    let _ = connection.stream.get_ref().set_read_timeout(Some(Duration::from_secs(5)));
    connection.call("GET", "/_matrix/client/versions", "", None).is_ok()
}

/// Everything but letters, digits, `-._~` as `%XX`.
pub fn encode(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(byte.into());
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
