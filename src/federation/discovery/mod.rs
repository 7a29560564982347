//! From a server name to the addresses to connect to, in the order of the specification (server-server API,
//! "Resolving server names", steps 1 to 6).
//!
//! It has two halves. `authority` is the HTTP half: it follows the delegation of `/.well-known/matrix/server` and
//! says which name the request, its `Host` header and the certificate speak of. `socket_addresses` is the DNS half:
//! SRV records and addresses of that name. The first is asked before a request is made, the second by the HTTP
//! client's resolver whenever it needs a connection. Both remember what they learned, within bounds.
//!
//! - `dns`: the queries; `address_guard`: which addresses are allowed; `names`: where names lead, if the system is not to
//!   say so.

pub(super) mod address_guard;
pub(super) mod dns;
pub(super) mod names;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use self::address_guard::AddressGuard;
use self::dns::Srv;
use crate::backoff::Backoff;
use crate::bounded::{BoundedMap, Worth};
use crate::clock::{Clock, Millis, Steady};
use crate::locks::lock;
use crate::protocol::ServerName;
use crate::protocol::certificates::calendar::http_date;

/// The port of servers that name none.
pub(super) const DEFAULT_PORT: u16 = 8448;
/// How many names each memory holds.
const NAMES_MAX: usize = 4096;
/// SRV targets that are tried.
const SRV_TARGETS_MAX: usize = 4;
/// Addresses that are handed to the connector.
const ADDRESSES_MAX: usize = 16;

const HOUR_MS: Millis = 3_600_000;
/// Step 3: "the recommended sensible default is 24 hours", "48 hours is recommended" as the maximum.
const WELL_KNOWN_DEFAULT_MS: Millis = 24 * HOUR_MS;
const WELL_KNOWN_MAX_MS: Millis = 48 * HOUR_MS;
/// A server that says `max-age=0` is still not asked before every request.
const WELL_KNOWN_MIN_MS: Millis = 5 * 60_000;
/// Step 3: "errors are recommended to be cached for up to an hour": longer with each that follows another.
const WELL_KNOWN_ERROR_BACKOFF: Backoff = Backoff::doubling(60_000, HOUR_MS);
/// A delegation to where nobody is may be out of date: it is asked for again after this time at most.
const WELL_KNOWN_IN_DOUBT_MS: Millis = 5 * 60_000;

/// A look-up that had less time than this and none left is not remembered as failed: others may have more.
const LOOKUP_TIME_FAIR: Duration = Duration::from_secs(3);
/// One that ends so shortly before its time was ended by that.
const TIMER_SLACK: Duration = Duration::from_millis(100);

/// Addresses are the system resolver's to remember; this spares a look-up a request.
const ADDRESSES_KEPT_MS: Millis = 60_000;
const NO_ADDRESS_KEPT_MS: Millis = 10_000;
const SRV_KEPT_MIN_MS: Millis = 60_000;
const SRV_KEPT_MAX_MS: Millis = HOUR_MS;
const NO_SRV_KEPT_MS: Millis = 10 * 60_000;
const SRV_FAILURE_KEPT_MS: Millis = 60_000;
/// The services of SRV records (steps 3.3 and 4, 3.4 and 5), the second of which is deprecated.
pub(super) const SRV_SERVICES: [&str; 2] = ["_matrix-fed._tcp", "_matrix._tcp"];
/// SRV records are rare and deprecated; a name server that is silent must not cost more than this.
const SRV_TIMEOUT: Duration = Duration::from_secs(4);

/// What `/.well-known/matrix/server` of a host had to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WellKnown {
    /// The value of `m.server`, and for how long the answer may be kept if it said so.
    Delegates {
        /// `<delegated_hostname>[:<delegated_port>]`, not yet checked.
        to: String,
        /// Lifetime by the answer's cache headers.
        max_age: Option<Duration>,
    },
    /// An answer that delegates nothing: no such page, not JSON, no `m.server`.
    Nothing,
    /// No answer, or one that speaks of a passing trouble.
    Failed,
}

/// The questions that discovery asks of the world. The tests have another world.
pub trait Lookups: Send + Sync {
    /// `GET https://<host>/.well-known/matrix/server`, redirects followed.
    fn well_known(&self, host: &str, within: Duration) -> WellKnown;
    /// SRV records; none if there are none.
    fn srv(&self, name: &str, within: Duration) -> io::Result<Vec<Srv>>;
    /// Addresses of a host name.
    fn addresses(&self, host: &str, within: Duration) -> io::Result<Vec<IpAddr>>;
    /// Ends every look-up that is under way, and lets none begin.
    fn cut(&self) {}
}

/// A server name in parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostPort<'a> {
    /// Host name, IPv4 literal, or IPv6 literal in brackets.
    pub host: &'a str,
    /// The port if one is named.
    pub port: Option<u16>,
}

impl<'a> HostPort<'a> {
    /// Takes `host[:port]` apart; nothing if it is neither a host name nor an IP literal with a sensible port.
    pub fn parse(text: &'a str) -> Option<Self> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let end = rest.find(']')? + 2;
                (&text[..end], text[end..].strip_prefix(':').or(text[end..].is_empty().then_some("")))
            }
            None => match text.split_once(':') {
                Some((host, port)) => (host, Some(port).filter(|p| !p.is_empty())),
                None => (text, Some("")),
            },
        };
        let port = match port? {
            "" if text.ends_with(':') => return None,
            "" => None,
            digits if digits.bytes().all(|b| b.is_ascii_digit()) => {
                Some(digits.parse().ok().filter(|p| *p != 0)?)
            }
            _ => return None,
        };
        let parts = Self { host, port };
        let is_name =
            |h: &str| h.len() <= 253 && h.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
        (parts.ip().is_some() || (!host.is_empty() && !host.starts_with('.') && is_name(host)))
            .then_some(parts)
    }

    /// The address, if the host is an IP literal.
    pub fn ip(&self) -> Option<IpAddr> {
        match self.host.strip_prefix('[') {
            Some(rest) => rest.strip_suffix(']')?.parse().ok().map(IpAddr::V6),
            None => self.host.parse().ok().map(IpAddr::V4),
        }
    }
}

/// Why there is nowhere to connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoRoute(pub String);

/// Finds servers, and remembers them for a while.
pub struct Discovery {
    lookups: Box<dyn Lookups>,
    guard: AddressGuard,
    clock: Clock,
    well_knowns: KnownNames<KnownDelegation>,
    srvs: KnownNames<Option<Vec<Srv>>>,
    addresses: KnownNames<Result<Vec<IpAddr>, String>>,
}

#[derive(Clone)]
struct KnownDelegation {
    to: Option<String>,
    /// A good answer is used beyond its time while its renewal fails, up to here.
    usable_until: Steady,
    failures: u32,
}

impl Discovery {
    /// Ends every look-up that is under way. Later ones fail.
    pub(super) fn cut(&self) {
        self.lookups.cut();
    }

    /// What it asks the world by.
    pub(super) fn lookups(&self) -> &dyn Lookups {
        &*self.lookups
    }

    /// Which addresses it gives out.
    pub(super) fn guard(&self) -> AddressGuard {
        self.guard
    }

    /// Discovery through these look-ups.
    pub fn new(lookups: Box<dyn Lookups>, guard: AddressGuard, clock: Clock) -> Self {
        Self {
            lookups,
            guard,
            clock,
            well_knowns: KnownNames::default(),
            srvs: KnownNames::default(),
            addresses: KnownNames::default(),
        }
    }

    /// The name and perhaps port that requests to this server are addressed to: their `Host` header, and by its
    /// host the certificate. Steps 1 and 2: the server name itself; 3: what its well-known delegates to; 4 to 6: the
    /// host name again.
    pub fn authority(&self, server: &ServerName, within: Duration) -> Result<String, NoRoute> {
        let name = HostPort::parse(server.as_str())
            .ok_or_else(|| NoRoute(format!("{server} is not a name that can be looked up")))?;
        if name.ip().is_some() || name.port.is_some() {
            return Ok(server.as_str().to_owned());
        }
        let host = name.host.to_ascii_lowercase();
        Ok(self.delegation(&host, within).unwrap_or(host))
    }

    fn delegation(&self, host: &str, within: Duration) -> Option<String> {
        let now = self.clock.steady();
        let known = self.well_knowns.get(host);
        if let Some((delegation, until)) = &known
            && now < *until
        {
            return delegation.to.clone();
        }
        let known = known.map(|(delegation, _)| delegation);
        let began = Instant::now();
        let answer = self.lookups.well_known(host, within);
        if answer == WellKnown::Failed && was_cut_short(within, began) {
            return known.filter(|known| now < known.usable_until).and_then(|known| known.to);
        }
        let (fresh, kept) = match answer {
            // An invalid name is an invalid answer: step 4.
            WellKnown::Delegates { to, max_age } if HostPort::parse(&to).is_some() => {
                let asked = max_age.map_or(WELL_KNOWN_DEFAULT_MS, |age| {
                    Millis::try_from(age.as_millis()).unwrap_or(Millis::MAX)
                });
                let kept = asked.clamp(WELL_KNOWN_MIN_MS, WELL_KNOWN_MAX_MS);
                (KnownDelegation { to: Some(to), usable_until: now + WELL_KNOWN_MAX_MS, failures: 0 }, kept)
            }
            answer => {
                let failures = known.as_ref().map_or(0, |k| k.failures).saturating_add(1);
                let kept = WELL_KNOWN_ERROR_BACKOFF.pause_ms(failures);
                let old =
                    known.filter(|k| answer == WellKnown::Failed && k.to.is_some() && now < k.usable_until);
                let usable_until = old.as_ref().map(|k| k.usable_until).unwrap_or_default();
                (KnownDelegation { to: old.and_then(|k| k.to), usable_until, failures }, kept)
            }
        };
        self.well_knowns.put(host, fresh.clone(), now + kept, now);
        fresh.to
    }

    /// The addresses to connect to for an authority: its own port, else SRV records (steps 3.3, 3.4, 4, 5), else
    /// port 8448 (steps 3.5, 6). Only addresses that the guard allows; never an empty list.
    pub fn socket_addresses(&self, authority: &str, within: Duration) -> Result<Vec<SocketAddr>, NoRoute> {
        let name =
            HostPort::parse(authority).ok_or_else(|| NoRoute(format!("{authority} is not a host name")))?;
        if let Some(ip) = name.ip() {
            return self.guarded(name.host, vec![SocketAddr::new(ip, name.port.unwrap_or(DEFAULT_PORT))]);
        }
        let deadline = Instant::now() + within;
        let host = name.host.to_ascii_lowercase();
        if let Some(port) = name.port {
            let found = self.resolve(&host, within).map_err(NoRoute)?;
            return self.guarded(&host, found.into_iter().map(|ip| SocketAddr::new(ip, port)).collect());
        }
        let targets = self.srv_targets(&host, deadline)?;
        if targets.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            let found = self.resolve(&host, left).map_err(NoRoute)?;
            return self
                .guarded(&host, found.into_iter().map(|ip| SocketAddr::new(ip, DEFAULT_PORT)).collect());
        }
        let (mut all, mut last) = (Vec::new(), String::new());
        for target in targets.iter().take(SRV_TARGETS_MAX) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.resolve(&target.target, left) {
                Ok(found) => all.extend(found.into_iter().map(|ip| SocketAddr::new(ip, target.port))),
                Err(why) => last = why,
            }
        }
        if all.is_empty() { Err(NoRoute(last)) } else { self.guarded(&host, all) }
    }

    /// The server could not be connected to at this authority: forgets the addresses, so that the next try looks again,
    /// and doubts the delegation.
    pub fn failed(&self, server: &ServerName, authority: &str) {
        if let Some(name) = HostPort::parse(authority) {
            let host = name.host.to_ascii_lowercase();
            if let Some((Some(targets), _)) = self.srvs.take(&host) {
                for target in targets {
                    self.addresses.take(&target.target);
                }
            }
            self.addresses.take(&host);
        }
        let doubt = self.clock.steady() + WELL_KNOWN_IN_DOUBT_MS;
        self.well_knowns.shorten(&server.as_str().to_ascii_lowercase(), doubt);
    }

    fn guarded(&self, host: &str, mut found: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, NoRoute> {
        found.retain(|a| self.guard.allows(a.ip()));
        found.truncate(ADDRESSES_MAX);
        if found.is_empty() {
            return Err(NoRoute(format!("{host} has no address that this server may connect to")));
        }
        Ok(found)
    }

    /// The SRV targets of a host in the order to try; none if there are no records.
    fn srv_targets(&self, host: &str, deadline: Instant) -> Result<Vec<Srv>, NoRoute> {
        let now = self.clock.steady();
        let records = match self.srvs.get(host) {
            Some((records, until)) if now < until => records,
            _ => {
                let (records, kept) = self.ask_srv(host, deadline);
                if let Some(kept) = kept {
                    self.srvs.put(host, records.clone(), now + kept, now);
                }
                records
            }
        };
        let records = records.unwrap_or_default();
        // RFC 2782: a single record with the root as target says that the service is decidedly not there.
        if let [only] = records.as_slice()
            && only.target.is_empty()
        {
            return Err(NoRoute(format!("{host} says by its SRV record that it does not federate")));
        }
        let random = |below: u32| {
            let mut bytes = [0; 4];
            // Without randomness the order is merely not spread.
            let _ = getrandom::fill(&mut bytes);
            u32::from_le_bytes(bytes) % below.max(1)
        };
        Ok(dns::in_order(records, random))
    }

    /// `_matrix-fed._tcp`, then the deprecated `_matrix._tcp`. A name server that fails is taken like one that has
    /// no record, but not for long: a server without SRV records must not suffer from it. And for how long to remember it.
    fn ask_srv(&self, host: &str, deadline: Instant) -> (Option<Vec<Srv>>, Option<Millis>) {
        let mut kept = Some(NO_SRV_KEPT_MS);
        let within = deadline.saturating_duration_since(Instant::now());
        for service in SRV_SERVICES {
            let left = deadline.saturating_duration_since(Instant::now()).min(SRV_TIMEOUT) / 2;
            match self.lookups.srv(&format!("{service}.{host}"), left) {
                Ok(records) if !records.is_empty() => {
                    let ttl = records.iter().map(|r| Millis::from(r.ttl) * 1000).min().unwrap_or(0);
                    return (Some(records), Some(ttl.clamp(SRV_KEPT_MIN_MS, SRV_KEPT_MAX_MS)));
                }
                Ok(_) => {}
                Err(e) => {
                    log::debug!("SRV records of {host}: {e}");
                    kept = (within >= LOOKUP_TIME_FAIR).then_some(SRV_FAILURE_KEPT_MS);
                }
            }
        }
        (None, kept)
    }

    fn resolve(&self, host: &str, within: Duration) -> Result<Vec<IpAddr>, String> {
        let now = self.clock.steady();
        if let Some((found, until)) = self.addresses.get(host)
            && now < until
        {
            return found;
        }
        let began = Instant::now();
        let found = self.lookups.addresses(host, within).map_err(|e| format!("cannot resolve {host}: {e}"));
        if found.is_err() && was_cut_short(within, began) {
            return found;
        }
        let kept = if found.is_ok() { ADDRESSES_KEPT_MS } else { NO_ADDRESS_KEPT_MS };
        self.addresses.put(host, found.clone(), now + kept, now);
        found
    }
}

/// Whether a look-up that began then and failed may have done so for want of time.
fn was_cut_short(within: Duration, began: Instant) -> bool {
    within < LOOKUP_TIME_FAIR && began.elapsed() + TIMER_SLACK >= within
}

/// Names with what is known of them and until when. Bounded: when full, the outdated go first, then any half.
struct KnownNames<T>(Mutex<BoundedMap<String, (T, Steady), NAMES_MAX>>);

impl<T> Default for KnownNames<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Clone> KnownNames<T> {
    fn get(&self, name: &str) -> Option<(T, Steady)> {
        lock(&self.0).get(name).cloned()
    }

    fn shorten(&self, name: &str, latest: Steady) {
        if let Some((_, until)) = lock(&self.0).get_mut(name) {
            *until = latest.min(*until);
        }
    }

    fn take(&self, name: &str) -> Option<(T, Steady)> {
        lock(&self.0).remove(name)
    }

    fn put(&self, name: &str, value: T, until: Steady, now: Steady) {
        let worth = |(_, until): &(T, Steady)| if *until > now { Worth::Little } else { Worth::Nothing };
        lock(&self.0).insert(name.to_owned(), (value, until), worth);
    }
}

/// For how long an answer may be kept by its `Cache-Control` and `Expires` headers; nothing if they do not say.
pub fn max_age(cache_control: Option<&str>, expires: Option<&str>, now: Millis) -> Option<Duration> {
    let directives = cache_control.unwrap_or_default().split(',').map(str::trim);
    let mut age = None;
    for directive in directives {
        let (name, value) = directive.split_once('=').unwrap_or((directive, ""));
        match name.trim().to_ascii_lowercase().as_str() {
            "no-store" | "no-cache" => return Some(Duration::ZERO),
            "max-age" => age = value.trim().trim_matches('"').parse().ok().map(Duration::from_secs),
            _ => {}
        }
    }
    age.or_else(|| {
        // An `Expires` that cannot be read, such as `0`, means "already" (RFC 9111, 5.3).
        let at = expires.map(|text| http_date(text).unwrap_or(0))?;
        Some(Duration::from_millis(u64::try_from(at - now).unwrap_or(0)))
    })
}

#[cfg(test)]
mod tests;
