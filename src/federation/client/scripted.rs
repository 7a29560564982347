//! Other servers played in memory, for whoever wants to say byte by byte what they answer: no sockets, no TLS, no name
//! servers. Everything from the reading of an answer's head on is as it always is.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport,
};

use super::agent::SystemLookups;
use crate::federation::discovery::dns::Srv;
use crate::federation::discovery::{Lookups, WellKnown};

/// A request to another server, or to a web server on the way there.
#[derive(Debug, Clone)]
pub struct ScriptedRequest {
    /// The method.
    pub method: String,
    /// The host that it is made to, with the port unless it is 443.
    pub host: String,
    /// Path and query.
    pub target: String,
    /// The body.
    pub body: Vec<u8>,
}

/// Says what a request is answered with: all the bytes, from the first of the status line on, behind which the
/// connection ends.
pub type AnswerScript = dyn Fn(&ScriptedRequest) -> Vec<u8> + Send + Sync;

/// Where everybody is said to be.
const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

/// Makes connections to the script.
#[derive(Clone)]
pub(super) struct ScriptedConnector(pub(super) Arc<AnswerScript>);

impl fmt::Debug for ScriptedConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ScriptedConnector")
    }
}

impl Connector for ScriptedConnector {
    type Out = ScriptedConnection;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        _: Option<()>,
    ) -> Result<Option<ScriptedConnection>, ureq::Error> {
        let buffers =
            LazyBuffers::new(details.config.input_buffer_size(), details.config.output_buffer_size());
        let host = details.uri.authority().map_or_else(String::new, ToString::to_string);
        Ok(Some(ScriptedConnection { script: self.clone(), host, buffers, asked: Vec::new(), answer: None }))
    }
}

/// One connection, for one request.
#[derive(Debug)]
pub(super) struct ScriptedConnection {
    script: ScriptedConnector,
    host: String,
    buffers: LazyBuffers,
    asked: Vec<u8>,
    /// What is left of the answer.
    answer: Option<io::Cursor<Vec<u8>>>,
}

impl Transport for ScriptedConnection {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, _: NextTimeout) -> Result<(), ureq::Error> {
        self.asked.extend_from_slice(&self.buffers.output()[..amount]);
        Ok(())
    }

    fn await_input(&mut self, _: NextTimeout) -> Result<bool, ureq::Error> {
        let answer = match &mut self.answer {
            Some(answer) => answer,
            none => {
                let request_in = request_in(&self.host, &std::mem::take(&mut self.asked));
                none.insert(io::Cursor::new(
                    request_in.map_or_else(Vec::new, |request_in| (self.script.0)(&request_in)),
                ))
            }
        };
        let count = io::Read::read(answer, self.buffers.input_append_buf())?;
        self.buffers.input_appended(count);
        Ok(count > 0)
    }

    fn is_open(&mut self) -> bool {
        false
    }

    fn is_tls(&self) -> bool {
        true
    }
}

/// The request in these bytes, which are all of it.
fn request_in(host: &str, asked: &[u8]) -> Option<ScriptedRequest> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut head = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(length) = head.parse(asked).ok()? else { return None };
    let (method, target) = (head.method?.to_owned(), head.path?.to_owned());
    Some(ScriptedRequest { method, host: host.to_owned(), target, body: asked.get(length..)?.to_vec() })
}

/// Well-known pages are the script's, nobody has SRV records, and everybody has an address.
pub(super) struct ScriptedLookups(pub(super) SystemLookups);

impl Lookups for ScriptedLookups {
    fn well_known(&self, host: &str, within: Duration) -> WellKnown {
        self.0.well_known(host, within)
    }

    fn srv(&self, _: &str, _: Duration) -> io::Result<Vec<Srv>> {
        Ok(Vec::new())
    }

    fn addresses(&self, _: &str, _: Duration) -> io::Result<Vec<IpAddr>> {
        Ok(vec![ADDRESS])
    }
}

/// Says so to agents: everybody has an address.
#[derive(Debug)]
pub(super) struct ScriptedResolver;

impl Resolver for ScriptedResolver {
    fn resolve(&self, uri: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let mut addresses = self.empty();
        addresses.push((ADDRESS, uri.port_u16().unwrap_or(443)).into());
        Ok(addresses)
    }
}
