//! What others see of a server: each step by which they find it, and what answers at its end.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use serde_json::{Map, json};

use super::pages::{self, Delegation};
use super::{Own, Report};
use crate::clock::{Clock, Millis};
use crate::config::Config;
use crate::error::{Result, reason, without_number};
use crate::federation::calls::enc;
use crate::federation::discovery::HostPort;
use crate::federation::inspect::{Page, TlsProbe};
use crate::federation::{Client, ClientSettings};
use crate::protocol::ServerName;
use crate::protocol::signatures::sign::SigningKey;
use crate::random;
use crate::service::keys::ring::read_statement;
use crate::store::engine::inspect::Inspection;

/// Time for each question that is asked.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Notaries that are asked, and the time for each, who has to ask in turn.
const NOTARIES_MAX: usize = 3;
const NOTARY_TIMEOUT: Duration = Duration::from_secs(40);
/// Addresses of a server that are tried.
const ADDRESSES_MAX: usize = 8;
/// Other servers whose clocks are compared with ours.
const CLOCKS_MAX: u32 = 3;
/// So far apart clocks may be, and so far they are before something fails.
const SKEW_NOTED_MS: Millis = 30_000;
const SKEW_WRONG_MS: Millis = 300_000;

const NOT_FROM_HERE: &str = "let it listen, open the port in firewalls and have routers lead there; behind a router this machine may \
                             not see itself by its public address: then run `doorstep check` with the name on another machine";

/// A client that finds servers as ours does; `to_anywhere`: also at addresses that nobody else can reach.
pub(super) fn client(config: &Config, to_anywhere: bool) -> Result<Client> {
    let settings = ClientSettings {
        server_name: config.server_name.clone(),
        trust_ca: config.trust_ca.clone(),
        allow_private_addresses: to_anywhere || config.allow_private_addresses,
        names: config.names.clone(),
        clock: Clock::new(),
    };
    // Nothing is signed with it.
    let key = SigningKey::generate(random::bytes(), "none");
    Client::new(settings, Arc::new(ArcSwap::from_pointee(key)))
}

/// Looks at a server.
pub(super) fn check(
    config: &Config,
    name: &ServerName,
    own: Option<&Own>,
    report: &mut Report<'_>,
) -> Result<()> {
    let (client, probe) = (client(config, false)?, TlsProbe::new(&config.trust_ca)?);
    let mut looks = Looks { client, probe, name, own, report, clocks: Vec::new() };
    looks.well_known_server();
    let Some(authority) = looks.authority() else { return Ok(()) };
    looks.srv(&authority);
    if looks.addresses(&authority) {
        looks.federation();
    }
    looks.notaries(config);
    looks.clients();
    looks.clocks(config);
    Ok(())
}

struct Looks<'l, 'r> {
    client: Client,
    probe: TlsProbe,
    name: &'l ServerName,
    own: Option<&'l Own>,
    report: &'l mut Report<'r>,
    /// How far others' clocks are before ours.
    clocks: Vec<(String, Millis)>,
}

impl Looks<'_, '_> {
    /// A page of a web server, whose clock is noted.
    fn page(&mut self, url: &str) -> Result<Page, String> {
        let begun = (Clock::new().now_ms(), Instant::now());
        let page = self
            .client
            .look_at(url, QUESTION_TIMEOUT)
            .map_err(|e| format!("{url}: {}", without_number(&e.to_string())))?;
        self.note_clock(self.name.to_string(), &page, begun);
        Ok(page)
    }

    fn note_clock(&mut self, whose: String, page: &Page, (asked, at): (Millis, Instant)) {
        let took = Millis::try_from(at.elapsed().as_millis()).unwrap_or(0);
        // A date is cut to the second.
        self.clocks.extend(page.date.map(|date| (whose, date + 500 - (asked + took / 2))));
    }

    /// Steps 1 to 3: whether others are sent elsewhere.
    fn well_known_server(&mut self) {
        const ABOUT: &str = "well-known for servers";
        let Some(name) = HostPort::parse(self.name.as_str()) else {
            return self.report.wrong(
                "name",
                format!("{} cannot be looked up", self.name),
                "choose a name that DNS knows",
            );
        };
        if name.port.is_some() || name.ip().is_some() {
            return self.report.fine(ABOUT, "nobody asks for it, since the name has a port or is an address");
        }
        let url = format!("https://{}/.well-known/matrix/server", name.host.to_ascii_lowercase());
        let advice =
            format!("let {url} answer with {{\"m.server\": \"HOST:443\"}}, HOST being where the server is");
        match self.page(&url).map(|page| pages::delegation(&page)) {
            Ok(Delegation::To(to)) => self.report.fine(ABOUT, format!("others are sent to {to}")),
            Ok(Delegation::None) => {
                let found = format!("{url} is not there: others go on to SRV records and port 8448");
                self.report.fine(ABOUT, found);
            }
            Ok(Delegation::Bad(why)) => self.report.wrong(ABOUT, why, advice),
            Err(why) => self.report.note(
                ABOUT,
                format!("others cannot ask, and go on to SRV records and port 8448: {why}"),
                advice,
            ),
        }
    }

    /// `host[:port]` that others make their requests to.
    fn authority(&mut self) -> Option<String> {
        match self.client.authority(self.name, QUESTION_TIMEOUT) {
            Ok(authority) => Some(authority),
            Err(why) => {
                self.report.wrong("name", why, "choose a name that DNS knows");
                None
            }
        }
    }

    /// Steps 3.3, 3.4, 4 and 5.
    fn srv(&mut self, authority: &str) {
        const ABOUT: &str = "SRV records";
        let Some(HostPort { host, port: None }) =
            HostPort::parse(authority).filter(|name| name.ip().is_none())
        else {
            return self
                .report
                .fine(ABOUT, format!("nobody asks for them, since {authority} says where to go"));
        };
        let lookups = self.client.srv_records(host, QUESTION_TIMEOUT);
        let mut found = Vec::new();
        for lookup in &lookups {
            match &lookup.records {
                Ok(records) => found.extend(records.iter().map(|record| {
                    format!("{}.{host} leads to {}:{}", lookup.service, record.target, record.port)
                })),
                Err(e) => {
                    let found = format!(
                        "no name server could say whether there is {}.{host}: {}",
                        lookup.service,
                        reason(e)
                    );
                    return self.report.note(ABOUT, found, "see that the name servers of the domain answer");
                }
            }
        }
        let is_there = |at: usize| {
            lookups.get(at).is_some_and(|of| of.records.as_ref().is_ok_and(|all| !all.is_empty()))
        };
        let refuses = lookups
            .iter()
            .filter_map(|of| of.records.as_ref().ok())
            .any(|all| matches!(all.as_slice(), [only] if only.target.is_empty()));
        if refuses {
            let found = format!("a record says that {host} does not federate (its target is the root)");
            self.report.wrong(ABOUT, found, "remove it, or let it lead to the server");
        } else if is_there(0) {
            self.report.fine(ABOUT, found.join("; "));
        } else if is_there(1) {
            let advice = format!("that is deprecated: name it _matrix-fed._tcp.{host}");
            self.report.note(ABOUT, found.join("; "), advice);
        } else {
            self.report.fine(ABOUT, format!("there are none for {host}: others go to its port 8448"));
        }
    }

    /// Whether others can connect, and what they are shown at each address. True if any of them will do.
    fn addresses(&mut self, authority: &str) -> bool {
        let route = self.client.route_to(authority, QUESTION_TIMEOUT);
        let inside: Vec<String> = route.inside.iter().map(ToString::to_string).collect();
        if let Some(why) = route.failure {
            let (found, advice) = match inside.as_slice() {
                [] => (why, "give the name an A or AAAA record"),
                inside => (
                    format!("{authority} is {} here, where nobody else can connect to", inside.join(", ")),
                    "give the name its public address; if only this network's DNS says so, ask another one: --dns 9.9.9.9:53",
                ),
            };
            self.report.wrong("addresses", found, advice);
            return false;
        }
        let shown: Vec<String> = route.addresses.iter().map(ToString::to_string).collect();
        match inside.as_slice() {
            [] => self.report.fine("addresses", format!("{authority} is at {}", shown.join(", "))),
            inside => {
                let found = format!(
                    "{authority} is at {}, and at {}, where nobody else can connect to",
                    shown.join(", "),
                    inside.join(", ")
                );
                self.report.note("addresses", found, "remove the addresses of the inside from public DNS");
            }
        }
        let host = HostPort::parse(authority).map_or(authority, |name| name.host);
        let mut any = false;
        for address in route.addresses.into_iter().take(ADDRESSES_MAX) {
            match self.probe.look(address, host, QUESTION_TIMEOUT) {
                Ok(shown) => match (shown.refused, shown.facts) {
                    (None, Some(facts)) => {
                        any = true;
                        pages::days_left(
                            "certificate",
                            &address.to_string(),
                            &facts,
                            shown.chain,
                            self.report,
                        );
                    }
                    (refused, facts) => {
                        let why = refused.unwrap_or_else(|| "it cannot be read".into());
                        let names = facts.map_or_else(String::new, |facts| {
                            format!(" (it is for {}, by {})", facts.names.join(", "), facts.issuer)
                        });
                        let found = format!("nobody believes what {address} shows for {host}: {why}{names}");
                        let advice = format!(
                            "have one issued for {host} by an authority that browsers trust, and serve its whole chain"
                        );
                        self.report.wrong("certificate", found, advice);
                    }
                },
                Err(e) if address.is_ipv6() && e.kind() == ErrorKind::NetworkUnreachable => {
                    self.report.note(
                        "certificate",
                        format!("{address}: this machine has no IPv6, so nobody knows"),
                        "",
                    );
                }
                Err(e) => {
                    let found = format!("{address} cannot be connected to by TLS: {}", reason(&e));
                    self.report.wrong("certificate", found, NOT_FROM_HERE);
                }
            }
        }
        any
    }

    /// Whether a homeserver answers where others ask, and whether it is this one.
    fn federation(&mut self) {
        let begun = (Clock::new().now_ms(), Instant::now());
        let page = self.client.look_at_server(self.name, "/_matrix/federation/v1/version", QUESTION_TIMEOUT);
        let advice = "have the proxy lead /_matrix/ there to the homeserver, as it is";
        let version = page.map_err(|e| without_number(&e.to_string())).and_then(|page| {
            self.note_clock(self.name.to_string(), &page, begun);
            let body = pages::object(&page)?;
            let server = body.get("server").filter(|_| page.status == 200);
            let server = server
                .ok_or_else(|| format!("{} answers with status {} and no version", page.url, page.status))?;
            let part = |key: &str| server.get(key).and_then(|part| part.as_str()).unwrap_or("?").to_owned();
            Ok(format!("{} {} answers", part("name"), part("version")))
        });
        match version {
            Ok(found) => self.report.fine("federation", found),
            Err(why) => self.report.wrong("federation", why, advice),
        }
        let page = self.client.look_at_server(self.name, "/_matrix/key/v2/server", QUESTION_TIMEOUT);
        let keys = page
            .map_err(|e| without_number(&e.to_string()))
            .and_then(|page| pages::signed_keys(&page, self.name));
        let ours = self.own.and_then(|own| own.database.as_ref()).map(keys_in_use);
        match (keys, ours) {
            (Err(why), _) => self.report.wrong("keys", why, advice),
            (Ok(_), Some(Err(e))) => {
                self.report.wrong("keys", e.for_people(), "see what is said of the database")
            }
            (Ok(keys), Some(Ok(ours))) if !ours.iter().any(|key| keys.contains(key)) => {
                let found =
                    "what answers to this name signs with another key than this database has".to_owned();
                let advice = "two servers have one name: stop the other, or have the name lead to this one";
                self.report.wrong("keys", found, advice);
            }
            (Ok(keys), ours) => {
                let ids: Vec<String> = keys.into_iter().map(|(id, _)| id).collect();
                let whose = if ours.is_some() { "ours, and signed" } else { "signed by itself" };
                self.report.fine("keys", format!("{}: {whose}", ids.join(", ")));
            }
        }
    }

    /// Whether servers that others trust see it: what they say of its keys they have from it.
    fn notaries(&mut self, config: &Config) {
        for notary in config.notaries.iter().take(NOTARIES_MAX).filter(|notary| *notary != self.name) {
            let query = Map::from_iter([(self.name.to_string(), json!({}))]);
            let answer = self.client.notary_query(notary, &query, NOTARY_TIMEOUT);
            let said = answer.map_err(|e| without_number(&e.to_string()));
            let now = Clock::new().now_ms();
            let good = said.map(|all| all.iter().any(|keys| read_statement(keys, self.name, now).is_ok()));
            match good {
                Ok(true) => self.report.fine("notary", format!("{notary} sees it, or did before")),
                Ok(false) => {
                    let advice = "see what is said above; what this machine sees may be otherwise elsewhere";
                    self.report.wrong("notary", format!("{notary} does not see it"), advice);
                }
                Err(why) => self.report.note("notary", format!("{notary} does not say: {why}"), ""),
            }
        }
    }

    /// How clients find it, and whether it answers them.
    fn clients(&mut self) {
        const ABOUT: &str = "well-known for clients";
        let host = self.name.host().to_ascii_lowercase();
        let url = format!("https://{host}/.well-known/matrix/client");
        let told = self.own.map(|own| own.config.public_url.clone());
        let wanted = told.clone().unwrap_or_else(|| "https://HOST".into());
        let advice = format!(
            "let {url} answer with {{\"m.homeserver\": {{\"base_url\": \"{wanted}\"}}}} and Access-Control-Allow-Origin: *"
        );
        let page = self.page(&url);
        let found = page.as_ref().map_err(Clone::clone).and_then(pages::base_url);
        match (&found, page.as_ref().ok().and_then(pages::cors_fault)) {
            (Err(why), _) => self.report.note(
                ABOUT,
                format!("whoever gives a client the name alone is not led here: {why}"),
                advice,
            ),
            (Ok(_), Some(fault)) => {
                self.report.wrong(ABOUT, format!("clients in a browser cannot read it: {fault}"), advice)
            }
            (Ok(base), None) => match &told {
                Some(told) if told.trim_end_matches('/') != base.trim_end_matches('/') => {
                    self.report.note(
                        ABOUT,
                        format!("clients are sent to {base}, but --public-url is {told}"),
                        advice,
                    );
                }
                _ => self.report.fine(ABOUT, format!("clients are sent to {base}")),
            },
        }
        let base = found.ok().or(told).unwrap_or_else(|| format!("https://{host}"));
        let base = base.trim_end_matches('/').to_owned();
        let advice =
            "have the proxy lead /_matrix/ there to the homeserver, as it is, and add no headers of its own";
        match self.page(&format!("{base}/_matrix/client/versions")) {
            Err(why) => {
                let advice = "see that the name is in DNS, and that something answers there by HTTPS";
                self.report.wrong("clients", why, advice);
            }
            Ok(page) => match (pages::versions(&page), pages::cors_fault(&page)) {
                (Err(why), _) => self.report.wrong("clients", why, advice),
                (_, Some(fault)) => {
                    self.report.wrong("clients", format!("browsers cannot use it: {fault}"), advice)
                }
                (Ok(_), None) => {
                    self.report.fine("clients", format!("{base} answers"));
                    self.escapes(&base);
                }
            },
        }
    }

    /// Whether what stands between changes addresses: then signatures of other servers, and aliases, come to nothing.
    fn escapes(&mut self, base: &str) {
        let url = format!(
            "{base}/_matrix/client/v3/directory/room/%23doorstep%2Fcheck%3A{}",
            enc(self.name.as_str())
        );
        let Ok(page) = self.page(&url) else { return };
        let code = pages::object(&page).ok().and_then(|body| Some(body.get("errcode")?.as_str()?.to_owned()));
        match code.as_deref() {
            // Asked for a room that there is not, and understood.
            Some("M_NOT_FOUND") => self.report.fine("proxy", "addresses come through as they are"),
            None | Some("M_UNRECOGNIZED") => {
                let advice = "nginx: `proxy_pass` without a path behind the port; Apache: `nocanon` and `AllowEncodedSlashes NoDecode`";
                self.report.wrong(
                    "proxy",
                    "something on the way changes %2F in addresses, or refuses it",
                    advice,
                );
            }
            // Something else is the matter, which says nothing of the address.
            _ => {}
        }
    }

    /// Our clock beside those of others: of other servers for our own server, and its own for another.
    fn clocks(&mut self, config: &Config) {
        if let Some(own) = self.own {
            self.clocks.clear();
            let known =
                own.database.as_ref().and_then(|database| database.good_destinations(CLOCKS_MAX).ok());
            let others = config.notaries.iter().cloned().chain(known.unwrap_or_default());
            for other in
                others.filter(|other| other != self.name).take(CLOCKS_MAX as usize).collect::<Vec<_>>()
            {
                let begun = (Clock::new().now_ms(), Instant::now());
                let page =
                    self.client.look_at_server(&other, "/_matrix/federation/v1/version", QUESTION_TIMEOUT);
                if let Ok(page) = page {
                    self.note_clock(other.to_string(), &page, begun);
                }
            }
        }
        // Of several, one may be wrong itself: the nearest speaks for ours.
        let Some((whose, ahead)) = self.clocks.iter().min_by_key(|(_, ahead)| ahead.abs()) else {
            return self.report.note("clock", "there was no other server to compare it with", "");
        };
        let found = match ahead / 1000 {
            0 => format!("as that of {whose}"),
            s if s > 0 => format!("{s} s behind that of {whose}"),
            s => format!("{} s before that of {whose}", -s),
        };
        let advice = "let the time be kept by NTP";
        match ahead.abs() {
            ..SKEW_NOTED_MS => self.report.fine("clock", found),
            SKEW_NOTED_MS..SKEW_WRONG_MS => self.report.note("clock", found, advice),
            _ => self.report.wrong("clock", found, advice),
        }
    }
}

/// The keys that a server signs with at present: id, and public half in base64.
fn keys_in_use(database: &Inspection) -> Result<Vec<(String, String)>> {
    let keys = database.signing_keys()?.into_iter().filter(|key| key.retired_ms.is_none());
    Ok(keys.map(|key| (key.id, key.public_base64)).collect())
}
