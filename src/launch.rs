//! A homeserver with its listeners: what the binary, the fixture and the tests start and stop.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::clock::Clock;
use crate::config::Config;
use crate::error::Result;
use crate::http::router::Router;
use crate::http::{Certificate, ConnectionLimits, ListenSpec, Server, Service};
use crate::service::Homeserver;

/// A homeserver that answers. Stops when dropped.
pub struct Launched {
    /// The homeserver behind the listeners.
    pub homeserver: Arc<Homeserver>,
    http: Server,
}

impl Launched {
    /// Opens the database, binds the addresses of the settings and serves. Ports are bound last, so that whoever
    /// can connect is also answered.
    pub fn start(config: Config, clock: Clock) -> Result<Self> {
        let homeserver = Homeserver::open(config, clock)?;
        let config = &homeserver.config;
        let mut listeners: Vec<ListenSpec> = config.listen.iter().map(|&a| ListenSpec::plain(a)).collect();
        if let Some(files) = &config.tls {
            let certificate = Certificate::Files(files.clone());
            listeners.extend(config.listen_tls.iter().map(|&a| ListenSpec::tls(a, certificate.clone())));
        }
        Self::serve(homeserver, &listeners)
    }

    /// Serves an opened homeserver on these listeners.
    pub fn serve(homeserver: Arc<Homeserver>, listeners: &[ListenSpec]) -> Result<Self> {
        Self::serve_through(homeserver, listeners, |router| router)
    }

    /// The same with something in front of the router.
    pub(crate) fn serve_through(
        homeserver: Arc<Homeserver>,
        listeners: &[ListenSpec],
        front: impl FnOnce(Arc<dyn Service>) -> Arc<dyn Service>,
    ) -> Result<Self> {
        let each = homeserver.config.max_connections;
        let limits = ConnectionLimits {
            connections: each.saturating_mul(2),
            in_flight: each,
            ..ConnectionLimits::default()
        };
        let router: Arc<dyn Service> = Arc::new(Router::new(Arc::clone(&homeserver)));
        let http = Server::serve(front(router), limits, listeners)?;
        homeserver.start_background()?;
        Ok(Self { homeserver, http })
    }

    /// The addresses that are served, in the order of the listeners: plain HTTP first when started by `start`.
    pub fn addresses(&self) -> &[SocketAddr] {
        self.http.local_addrs()
    }

    /// Reads every certificate file again; connections stay.
    pub fn reload_certificates(&self) {
        self.http.reload_certificates();
    }

    /// Stops: at once if no request is being answered, within about a second if one is. No new requests, what is being
    /// answered is finished, and everything that was acknowledged is on disk. A second call does nothing.
    pub fn stop(&self) {
        self.http.stop();
        self.homeserver.stop_background();
    }
}

impl Drop for Launched {
    fn drop(&mut self) {
        self.stop();
    }
}
