//! A homeserver with its listeners: what the binary, the fixture and the tests start and stop.

use std::io::Read;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::clock::{Clock, Millis};
use crate::config::{Config, Data};
use crate::error::{Error, Result};
use crate::http::metrics::MetricsPage;
use crate::http::router::Router;
use crate::http::{
    Certificate, ConnectionLimits, ListenSpec, Reply, Request, Server, Service, is_listened_on,
};
use crate::protocol::certificates::calendar::utc;
use crate::served_certificate::CheckedCertificate;
use crate::service::Homeserver;

/// The local socket in a data folder, by which commands reach the server that runs there.
pub const SOCKET: &str = "doorstep.sock";
/// Connections of who watches: a Prometheus or two.
const METRICS_CONNECTIONS_MAX: usize = 32;

/// A homeserver that answers. Stops when dropped.
pub struct Launched {
    /// The homeserver behind the listeners.
    pub homeserver: Arc<Homeserver>,
    http: Arc<Server>,
    metrics: Option<Server>,
}

impl Launched {
    /// Opens the database, binds the addresses of the settings and serves. Ports are bound last, so that whoever
    /// can connect is also answered.
    pub fn start(config: Config, clock: Clock) -> Result<Self> {
        let homeserver = open_when_free(&config, &clock)?;
        let config = &homeserver.config;
        let mut listeners: Vec<ListenSpec> = config.listen.iter().map(|&a| ListenSpec::plain(a)).collect();
        if let Some(certificate) = Self::certificate(&homeserver)? {
            listeners.extend(config.listen_tls.iter().map(|&a| ListenSpec::tls(a, certificate.clone())));
        }
        let launched = Self::serve(homeserver, &listeners)?;
        warn_of_certificate(&launched.homeserver);
        warn_of_clock(&launched.homeserver);
        Ok(launched)
    }

    /// What the HTTPS listeners of an opened homeserver are to serve, by its settings.
    pub(crate) fn certificate(homeserver: &Homeserver) -> Result<Option<Certificate>> {
        let config = &homeserver.config;
        let served = homeserver.acme.certificate(config)?.map(Certificate::Served);
        Ok(served.or_else(|| config.tls.clone().map(Certificate::Files)))
    }

    /// Serves an opened homeserver on these listeners, and on the local socket in its folder.
    pub fn serve(homeserver: Arc<Homeserver>, listeners: &[ListenSpec]) -> Result<Self> {
        Self::serve_through(homeserver, listeners, |router| router)
    }

    /// The same with something in front of the router.
    pub(crate) fn serve_through(
        homeserver: Arc<Homeserver>,
        listeners: &[ListenSpec],
        front: impl FnOnce(Arc<dyn Service>) -> Arc<dyn Service>,
    ) -> Result<Self> {
        let mut listeners = listeners.to_vec();
        if let Data::Folder(folder) = &homeserver.config.data {
            listeners.push(ListenSpec::local(folder.join(SOCKET)));
        }
        let each = homeserver.config.max_connections;
        let limits = ConnectionLimits {
            connections: each.saturating_mul(2),
            in_flight: each,
            proxies: homeserver.config.trusted_proxies.clone(),
            ..ConnectionLimits::default()
        };
        let router = Arc::new(Router::new(Arc::clone(&homeserver)));
        let requests = router.requests();
        let http = Arc::new(Server::serve(front(router), limits, &listeners)?);
        let metrics = match (requests, homeserver.metrics.clone()) {
            (Some(requests), Some(metrics)) => {
                let page = MetricsPage::new(Arc::clone(&homeserver), requests, metrics, &http);
                Some(Self::serve_metrics(&homeserver.config, page)?)
            }
            _ => None,
        };
        homeserver.start_background()?;
        Ok(Self { homeserver, http, metrics })
    }

    fn serve_metrics(config: &Config, page: MetricsPage) -> Result<Server> {
        let limits = ConnectionLimits {
            connections: METRICS_CONNECTIONS_MAX,
            in_flight: 2,
            ..ConnectionLimits::default()
        };
        let listeners: Vec<ListenSpec> = config.metrics.iter().map(|&a| ListenSpec::plain(a)).collect();
        Server::serve(Arc::new(page), limits, &listeners)
    }

    /// Where numbers are served for Prometheus, if they are.
    pub fn metrics_addresses(&self) -> &[SocketAddr] {
        self.metrics.as_ref().map_or(&[], |metrics| metrics.local_addrs())
    }

    /// The addresses that are served, in the order of the listeners: plain HTTP first when started by `start`.
    pub fn addresses(&self) -> &[SocketAddr] {
        self.http.local_addrs()
    }

    /// Reads every certificate file again; connections stay. One that an authority did not give is asked for again.
    pub fn reload_certificates(&self) {
        self.http.reload_certificates_aside();
        self.homeserver.acme.hurry();
    }

    /// Stops: at once if no request is being answered, within about a second if one is. No new requests, what is being
    /// answered is finished, and everything that was acknowledged is on disk. A second call does nothing.
    pub fn stop(&self) {
        self.http.stop();
        if let Some(metrics) = &self.metrics {
            metrics.stop();
        }
        self.homeserver.stop_background();
    }
}

/// Tells the operator of a certificate that nobody else can take for one of this server.
fn warn_of_certificate(homeserver: &Homeserver) {
    let config = &homeserver.config;
    let Some(files) = &config.tls else { return };
    let read = |path| std::fs::read(path).map_err(Error::internal);
    let certificate =
        read(&files.cert).and_then(|chain| CheckedCertificate::read(&chain, &read(&files.key)?));
    let url = config.public_url.split("://").nth(1).unwrap_or_default();
    let host = url.split(['/', ':']).next().unwrap_or_default();
    let mut hosts = vec![config.server_name.host()];
    if host != hosts[0] && !url.starts_with('[') && config.public_url.starts_with("https:") {
        hosts.push(host);
    }
    // What cannot be read was said where it is served.
    let complaint = certificate.ok().and_then(|it| it.complaint(&hosts, homeserver.clock.now_ms()));
    if let Some(complaint) = complaint {
        log::warn!("others do not take the certificate {}: {complaint}", files.cert.display());
    }
}

/// So far a clock may be set back without a word.
const CLOCK_SLACK_MS: Millis = 60_000;

/// Tells the operator of a clock that stands before what it told once: on a machine without a battery for it, until the network
/// has told the time.
fn warn_of_clock(homeserver: &Homeserver) {
    let now = homeserver.clock.now_ms();
    // A database that cannot be asked has said so.
    let newest = homeserver.store.read(|db| db.newest_time()).ok().flatten();
    if let Some(newest) = newest.filter(|newest| now + CLOCK_SLACK_MS < *newest) {
        log::warn!(
            "the clock says {}, and the database is from {} or later: see that the clock is set, since certificates, tokens and \
             the times of messages go by it",
            utc(now),
            utc(newest)
        );
    }
}

/// How long a server waits for a data folder that a command has.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);
/// How soon it looks again.
const COMMAND_PAUSE: Duration = Duration::from_millis(20);

/// Opens a homeserver. A folder that another server has is refused at once; one that nobody listens in is a command's, who
/// has done with it soon.
#[allow(clippy::disallowed_methods, reason = "a lock of another process tells nobody when it is free")]
fn open_when_free(config: &Config, clock: &Clock) -> Result<Arc<Homeserver>> {
    let deadline = Instant::now() + COMMAND_TIMEOUT;
    let is_served = || match &config.data {
        Data::Folder(folder) => is_listened_on(&folder.join(SOCKET)),
        Data::Memory => true,
    };
    loop {
        match Homeserver::open(config.clone(), clock.clone()) {
            Err(e) if e.is_in_use() && !is_served() && Instant::now() < deadline => {
                std::thread::sleep(COMMAND_PAUSE);
            }
            opened => return opened,
        }
    }
}

/// Answers one request of the operator's from a data folder where no server runs: nothing is listened on, nothing happens
/// in the background. Gives the status and the body.
///
/// Errors: the folder cannot be opened, as where a server has it ([`Error::is_in_use`]).
pub fn answer_operator(
    config: Config,
    method: &str,
    target: &str,
    body: Option<&[u8]>,
) -> Result<(u16, Vec<u8>)> {
    let reply = reply_to_operator(config, method, target, body)?;
    Ok((reply.status(), reply.into_bytes()?))
}

/// The same for a `GET` whose answer may be large: gives the body to be read.
pub fn stream_to_operator(config: Config, target: &str) -> Result<(u16, Box<dyn Read + Send>)> {
    let reply = reply_to_operator(config, "GET", target, None)?;
    Ok((reply.status(), reply.into_reader()))
}

fn reply_to_operator(config: Config, method: &str, target: &str, body: Option<&[u8]>) -> Result<Reply> {
    let method = method.parse().map_err(|()| Error::internal("there is no such method"))?;
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
    let request = Request::new(method, target.to_owned(), Vec::new(), nowhere)?;
    let router = Arc::new(Router::new(Homeserver::open(config, Clock::new())?));
    Ok(router.answer_operator(request.with_body(body.unwrap_or_default().to_vec())))
}

impl Drop for Launched {
    fn drop(&mut self) {
        self.stop();
    }
}
