//! Files: as many uploads and downloads as several connections are let make, each with a file of its own; then one large
//! file, which goes through the server's memory or past it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::clock::Clock;
use crate::http::{self, Connection};
use crate::{Result, process, tokens};

const UPLOAD: &str = "/_matrix/media/v3/upload";
/// Bytes that are written at once.
const PIECE_BYTES: usize = 64 << 10;

/// One connection of a user.
struct Uploader {
    authorization: String,
    connection: Connection<TcpStream>,
    content: Vec<u8>,
    uris: Vec<String>,
    times: Vec<Duration>,
}

/// Uploads and downloads for the given time each, then the large file.
pub fn answer(given: &crate::Media) -> Result<Value> {
    let mut uploaders = Vec::new();
    for (number, token) in tokens(&given.tokens)?.iter().enumerate() {
        let content =
            (0..given.bytes).map(|at| u8::try_from((at * 31 + number) % 251).unwrap_or(0)).collect();
        uploaders.push(Uploader {
            authorization: format!("Bearer {token}"),
            connection: http::connect(&given.client)?,
            content,
            uris: Vec::new(),
            times: Vec::new(),
        });
    }
    let uploads = for_a_while(given, &mut uploaders, |uploader, number| uploader.upload(number))?;
    let downloads = for_a_while(given, &mut uploaders, |uploader, number| uploader.download(number))?;
    let large = large(given, &uploaders.first().ok_or("no token")?.authorization)?;
    Ok(json!({ "uploads": uploads, "downloads": downloads, "large": large }))
}

fn for_a_while(
    given: &crate::Media,
    uploaders: &mut [Uploader],
    deed: impl Fn(&mut Uploader, usize) -> Result<()> + Sync,
) -> Result<Value> {
    let clock = Clock::start(given.pid)?;
    let (begun, time) = (Instant::now(), Duration::from_secs(given.seconds));
    std::thread::scope(|scope| {
        let mut running = Vec::new();
        for uploader in uploaders.iter_mut() {
            let deed = &deed;
            running.push(scope.spawn(move || -> Result<()> {
                for number in 0.. {
                    if begun.elapsed() >= time {
                        break;
                    }
                    deed(&mut *uploader, number)?;
                }
                Ok(())
            }));
        }
        running.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|_| Err("a panic".into())))
    })?;
    clock.stop(uploaders.iter_mut().flat_map(|uploader| std::mem::take(&mut uploader.times)).collect())
}

impl Uploader {
    /// Another file each time, or the server would keep one.
    fn upload(&mut self, number: usize) -> Result<()> {
        let mark = format!("{number:016}");
        if let Some(begin) = self.content.get_mut(..mark.len()) {
            begin.copy_from_slice(mark.as_bytes());
        }
        let begun = Instant::now();
        let answer = self.connection.call("POST", UPLOAD, &self.authorization, Some(&self.content))?;
        self.times.push(begun.elapsed());
        let answer: Value = serde_json::from_slice(&answer)?;
        self.uris.push(answer["content_uri"].as_str().ok_or("no URI")?.to_owned());
        Ok(())
    }

    fn download(&mut self, number: usize) -> Result<()> {
        let uri = self.uris.get(number % self.uris.len().max(1)).ok_or("nothing was uploaded")?;
        let begun = Instant::now();
        let file = self.connection.call("GET", &path(uri)?, &self.authorization, None)?;
        self.times.push(begun.elapsed());
        if file.len() == self.content.len() { Ok(()) } else { Err("another file".into()) }
    }
}

fn path(uri: &str) -> Result<String> {
    let rest = uri.strip_prefix("mxc://").ok_or("no mxc:// URI")?;
    Ok(format!("/_matrix/client/v1/media/download/{rest}"))
}

/// One file of many megabytes, up and down again: how long it takes, and what the server's memory grows by meanwhile.
fn large(given: &crate::Media, authorization: &str) -> Result<Value> {
    let piece = vec![b'x'; PIECE_BYTES];
    let size = given.large_bytes.next_multiple_of(PIECE_BYTES);
    let head = |method: &str, target: &str, more: &str| {
        let host = &given.client;
        format!(
            "{method} {target} HTTP/1.1\r\nHost: {host}\r\nAuthorization: {authorization}\r\nConnection: close\r\n{more}\r\n"
        )
    };
    let mut uri = String::new();
    let up = weighed(given.pid, || {
        let mut stream = TcpStream::connect(&given.client)?;
        stream.write_all(head("POST", UPLOAD, &format!("Content-Length: {size}\r\n")).as_bytes())?;
        (0..size / PIECE_BYTES).try_for_each(|_| stream.write_all(&piece))?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let begin = answer.find("mxc://").ok_or_else(|| format!("no URI in {answer}"))?;
        uri = answer[begin..].split('"').next().unwrap_or_default().to_owned();
        Ok(())
    })?;
    let down = weighed(given.pid, || {
        let mut stream = TcpStream::connect(&given.client)?;
        stream.write_all(head("GET", &path(&uri)?, "").as_bytes())?;
        let read = std::io::copy(&mut stream, &mut std::io::sink())?;
        if read > size as u64 { Ok(()) } else { Err(format!("{read} bytes of {size}").into()) }
    })?;
    Ok(json!({ "bytes": size, "up": up, "down": down }))
}

/// The time that something takes, and how far the server's memory goes beyond what it was before.
fn weighed(pid: u32, deed: impl FnOnce() -> Result<()>) -> Result<Value> {
    let before = process::resident_kib(pid)?;
    // "5": sets the most to what there is now.
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5")?;
    let begun = Instant::now();
    deed()?;
    let seconds = begun.elapsed().as_secs_f64();
    Ok(json!({ "seconds": seconds, "more_kib": process::peak_kib(pid)?.saturating_sub(before) }))
}
