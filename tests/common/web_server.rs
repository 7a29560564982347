//! A plain web server with TLS: for each path, bytes that it answers. It knows nothing of Matrix.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use doorstep::config::TlsFiles;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

type Pages = Arc<Mutex<BTreeMap<String, String>>>;

/// The web server. Stops when dropped.
pub struct WebServer {
    address: SocketAddr,
    pages: Pages,
    stopped: Arc<AtomicBool>,
}

impl WebServer {
    /// Starts one on a free port of loopback, with this certificate.
    pub fn start(files: &TlsFiles) -> Self {
        let chain: Vec<_> = CertificateDer::pem_file_iter(&files.cert).expect("a file").flatten().collect();
        let key = PrivateKeyDer::from_pem_file(&files.key).expect("a key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .expect("a certificate with its key");
        let config = Arc::new(config);
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("loopback has a free port");
        let address = listener.local_addr().expect("an address");
        let (pages, stopped) = (Pages::default(), Arc::new(AtomicBool::new(false)));
        let (served, ends) = (pages.clone(), stopped.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if ends.load(Ordering::Relaxed) {
                    return;
                }
                let (config, pages) = (config.clone(), served.clone());
                std::thread::spawn(move || serve(stream, config, &pages));
            }
        });
        Self { address, pages, stopped }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on this path is answered with these headers, a line each, and this body. Others are not found.
    pub fn put(&self, path: &str, headers: &str, body: &str) {
        let length = body.len();
        let headers: String = headers.lines().map(|line| format!("{line}\r\n")).collect();
        let answer = format!(
            "HTTP/1.1 200 OK\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        );
        self.pages.lock().expect("no panic").insert(path.to_owned(), answer);
    }
}

impl Drop for WebServer {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        // So that it notices.
        let _ = TcpStream::connect(self.address);
    }
}

fn serve(stream: TcpStream, config: Arc<rustls::ServerConfig>, pages: &Pages) {
    let _ = stream.set_read_timeout(Some(Duration::from_secs(20)));
    let connection = rustls::ServerConnection::new(config).expect("a configuration");
    let mut tls = rustls::StreamOwned::new(connection, stream);
    let (mut head, mut buffer) = (Vec::new(), [0; 1024]);
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        match tls.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(n) => head.extend(&buffer[..n]),
        }
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let path = head.split(' ').nth(1).unwrap_or_default();
    const MISSING: &str = "HTTP/1.1 404 Not Found\r\nContent-Length: 7\r\nConnection: close\r\n\r\nnothing";
    let answer = pages.lock().expect("no panic").get(path).cloned();
    let _ = tls.write_all(answer.as_deref().unwrap_or(MISSING).as_bytes());
    tls.conn.send_close_notify();
    let _ = tls.flush();
}
