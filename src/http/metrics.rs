//! Requests by route and status, counted, and the page of numbers for Prometheus, which is served on a listener of its own.

use std::array;
use std::fs;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tiny_http::Method;

use crate::config::Data;
use crate::error::{ErrCode, Error};
use crate::http::route::Route;
use crate::http::transport::bounds::Quota;
use crate::http::transport::reply::Reply;
use crate::http::transport::request::Request;
use crate::http::transport::server::Server;
use crate::http::transport::service::{Admission, BodyUse, Call, Outcome, Poll, Service};
use crate::metrics::exposition::{CONTENT_TYPE, Exposition};
use crate::metrics::{Histogram, Metrics};
use crate::protocol::UserId;
use crate::service::Homeserver;

/// The statuses that are told apart; the last stands for all others.
const STATUSES: [(u16, &str); 21] = [
    (200, "200"),
    (206, "206"),
    (302, "302"),
    (304, "304"),
    (307, "307"),
    (400, "400"),
    (401, "401"),
    (403, "403"),
    (404, "404"),
    (405, "405"),
    (409, "409"),
    (413, "413"),
    (416, "416"),
    (429, "429"),
    (500, "500"),
    (502, "502"),
    (503, "503"),
    (504, "504"),
    (507, "507"),
    // The body did not come whole, or the server was too busy to begin.
    (0, "none"),
    (u16::MAX, "other"),
];
/// What a request has that was not answered by its handler.
const UNANSWERED: u16 = 0;

/// Requests of one route.
#[derive(Default)]
struct RouteCounts {
    statuses: [AtomicU64; STATUSES.len()],
    took: Histogram,
}

/// Requests of all routes, and behind these of those that have none.
pub struct RequestCounts {
    routes: &'static [Route],
    counts: Vec<RouteCounts>,
}

impl RequestCounts {
    /// Nothing counted yet.
    pub fn new(routes: &'static [Route]) -> Self {
        Self { routes, counts: (0..=routes.len()).map(|_| RouteCounts::default()).collect() }
    }

    fn of(&self, route: Option<&'static Route>) -> usize {
        let found = route.and_then(|route| self.routes.iter().position(|one| std::ptr::eq(one, route)));
        found.unwrap_or(self.routes.len())
    }

    fn add(&self, at: usize, status: u16, took: Duration) {
        let counts = &self.counts[at];
        let status = STATUSES.iter().position(|(one, _)| *one == status).unwrap_or(STATUSES.len() - 1);
        counts.statuses[status].fetch_add(1, Relaxed);
        counts.took.add(took);
    }

    /// Counts a request that got no further than its head.
    pub(super) fn refused(&self, route: Option<&'static Route>, head: &Request, reply: &Reply) {
        self.add(self.of(route), reply.status(), head.received().elapsed());
    }

    /// This call, which counts its request when it is over.
    pub(super) fn counted(
        self: &Arc<Self>,
        route: Option<&'static Route>,
        head: &Request,
        call: Call,
    ) -> Call {
        let counted = Counted {
            counts: self.clone(),
            at: self.of(route),
            received: head.received(),
            state: array::from_fn(|_| AtomicU64::new(0)),
        };
        Box::new(move |request, poll| {
            counted.begins();
            let outcome = call(request, poll);
            match &outcome {
                Outcome::Reply(reply) => counted.ends(reply.status()),
                Outcome::Wait { .. } => counted.waits(),
            }
            outcome
        })
    }

    fn write(&self, page: &mut Exposition) {
        let names = self.routes.iter().map(|route| (route.method.as_str(), route.path)).chain([("", "none")]);
        let all: Vec<_> = names.zip(&self.counts).collect();
        let name = "doorstep_http_requests_total";
        page.family(
            name,
            "counter",
            "Requests by the route that they were for and the status of the answer.",
        );
        for ((method, path), counts) in &all {
            for (count, (_, status)) in counts.statuses.iter().zip(STATUSES) {
                let count = count.load(Relaxed);
                if count > 0 {
                    page.sample(
                        name,
                        &[("method", method), ("route", path), ("status", status)],
                        count as f64,
                    );
                }
            }
        }
        let name = "doorstep_http_request_seconds";
        page.family(
            name,
            "histogram",
            "Time from a request's head to its answer, without what it waited for news.",
        );
        for ((method, path), counts) in &all {
            if counts.took.read().0.iter().any(|count| *count > 0) {
                page.histogram(name, &[("method", method), ("route", path)], &counts.took);
            }
        }
    }
}

/// One request on its way. It is counted when it is dropped: a panic is a 500, and one that waited and is not called again
/// was told the news from where it waited.
struct Counted {
    counts: Arc<RequestCounts>,
    at: usize,
    received: Instant,
    /// The status; what it has waited, and since when it waits, plus 1, in microseconds since it came.
    state: [AtomicU64; 3],
}

impl Counted {
    fn now(&self) -> u64 {
        u64::try_from(self.received.elapsed().as_micros()).unwrap_or(u64::MAX >> 1)
    }

    fn begins(&self) {
        let [status, waited, since] = &self.state;
        status.store(500, Relaxed);
        if let Some(since) = since.swap(0, Relaxed).checked_sub(1) {
            waited.fetch_add(self.now().saturating_sub(since), Relaxed);
        }
    }

    fn ends(&self, with: u16) {
        self.state[0].store(with.into(), Relaxed);
    }

    fn waits(&self) {
        self.state[0].store(200, Relaxed);
        self.state[2].store(self.now() + 1, Relaxed);
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let [status, waited, since] = self.state.each_ref().map(|part| part.load(Relaxed));
        let status = u16::try_from(status).unwrap_or(UNANSWERED);
        let until = since.checked_sub(1).unwrap_or_else(|| self.now());
        self.counts.add(self.at, status, Duration::from_micros(until.saturating_sub(waited)));
    }
}

/// The page, as a service of its own.
pub struct MetricsPage {
    hs: Arc<Homeserver>,
    requests: Arc<RequestCounts>,
    metrics: Arc<Metrics>,
    server: Weak<Server>,
}

impl MetricsPage {
    /// The page of this homeserver, of what its router counts and of the connections of its server.
    pub fn new(
        hs: Arc<Homeserver>,
        requests: Arc<RequestCounts>,
        metrics: Arc<Metrics>,
        server: &Arc<Server>,
    ) -> Self {
        Self { hs, requests, metrics, server: Arc::downgrade(server) }
    }

    fn text(&self) -> String {
        let mut page = Exposition::default();
        page.family("doorstep_build_info", "gauge", "Which Doorstep this is.");
        page.sample("doorstep_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1.0);
        self.requests.write(&mut page);
        self.write_counts(&mut page);
        self.write_present(&mut page);
        self.write_database(&mut page);
        write_process(&mut page);
        page.into_text()
    }

    fn write_counts(&self, page: &mut Exposition) {
        let name = "doorstep_federation_transactions_total";
        page.family(name, "counter", "Transactions with other servers, by direction and how they ended.");
        page.endings(name, &[("direction", "out")], &self.metrics.transactions_out);
        page.endings(name, &[("direction", "in")], &self.metrics.transactions_in);
        let name = "doorstep_appservice_transactions_total";
        page.family(name, "counter", "Transactions sent to application services, each try, by how it ended.");
        page.endings(name, &[], &self.metrics.service_transactions);
        let name = "doorstep_handshakes_total";
        page.family(name, "counter", "Knocks and invites, by direction and how the request for them ended.");
        let Metrics { knocks_out, knocks_in, invites_out, invites_in, .. } = &*self.metrics;
        for (kind, direction, endings) in [
            ("knock", "out", knocks_out),
            ("knock", "in", knocks_in),
            ("invite", "out", invites_out),
            ("invite", "in", invites_in),
        ] {
            page.endings(name, &[("kind", kind), ("direction", direction)], endings);
        }
    }

    fn write_present(&self, page: &mut Exposition) {
        let name = "doorstep_federation_destinations";
        page.family(
            name,
            "gauge",
            "Other servers that are known at present, by what is done about them; `failing` are behind.",
        );
        for (doing, count) in self.hs.outgoing.by_activity() {
            page.sample(name, &[("state", doing)], count as f64);
        }
        let name = "doorstep_appservices";
        page.family(
            name,
            "gauge",
            "Application services; `failing` have not taken what they were sent last.",
        );
        for (state, count) in self.hs.service_sender.by_state() {
            page.sample(name, &[("state", state)], count as f64);
        }
        let waiting = self.hs.notifier.waiting() as f64;
        page.single("doorstep_sync_waiting", "gauge", "Requests that wait for news.", waiting);
        let connections = self.server.upgrade().map_or(0, |server| server.connections());
        page.single(
            "doorstep_connections",
            "gauge",
            "Connections of clients and servers that are open.",
            connections as f64,
        );
    }

    fn write_database(&self, page: &mut Exposition) {
        if let Some(counts) = self.hs.store.counts() {
            let queued = counts.queued.load(Relaxed) as f64;
            page.single(
                "doorstep_writer_queue",
                "gauge",
                "Writes that wait for the database's writer.",
                queued,
            );
            let writes = counts.writes.load(Relaxed) as f64;
            page.single("doorstep_writes_total", "counter", "Writes that had their turn.", writes);
            let lost = counts.lost.load(Relaxed) as f64;
            page.single(
                "doorstep_commits_lost_total",
                "counter",
                "Commits that the disk did not take.",
                lost,
            );
            let name = "doorstep_commit_seconds";
            page.family(name, "histogram", "Time for a commit, of one write or of many, to be on disk.");
            page.histogram(name, &[], &counts.commits);
        }
        if let Data::Folder(folder) = &self.hs.config.data {
            let name = "doorstep_database_bytes";
            page.family(name, "gauge", "Size of the database and of its write-ahead log.");
            for (file, path) in [("database", "doorstep.db"), ("wal", "doorstep.db-wal")] {
                let size = fs::metadata(folder.join(path)).map_or(0, |found| found.len());
                page.sample(name, &[("file", file)], size as f64);
            }
            if let Some(free) = crate::service::media::files::free_bytes(folder) {
                page.single(
                    "doorstep_disk_free_bytes",
                    "gauge",
                    "What the disk of the data folder still takes.",
                    free as f64,
                );
            }
        }
        match self.hs.store.read(|db| Ok((db.backlogs()?, db.remote_memberships_by_state()?))) {
            Ok((backlogs, memberships)) => {
                let name = "doorstep_backlog";
                page.family(
                    name,
                    "gauge",
                    "What is still to be done, by kind; no more than 100000 are counted.",
                );
                for (kind, count) in backlogs {
                    page.sample(name, &[("kind", kind)], count as f64);
                }
                let name = "doorstep_remote_memberships";
                page.family(
                    name,
                    "gauge",
                    "Knocks, invites and leaves of local users in rooms elsewhere, by their state.",
                );
                for (state, count) in memberships {
                    page.sample(name, &[("state", state)], count as f64);
                }
            }
            Err(e) => log::warn!("backlogs cannot be counted: {e}"),
        }
    }
}

/// Memory, processor time and descriptors, under the names that Prometheus' own libraries give them. Only where `/proc` is.
fn write_process(page: &mut Exposition) {
    const TICKS_PER_SECOND: f64 = 100.0;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = |field: &str| -> Option<f64> {
        status.lines().find_map(|line| line.strip_prefix(field))?.trim().trim_end_matches(" kB").parse().ok()
    };
    if let Some(rss) = kib("VmRSS:") {
        page.single("process_resident_memory_bytes", "gauge", "Resident memory.", rss * 1024.0);
    }
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Behind the name, which may have spaces: user and system time are the 14th and 15th fields of all.
    let fields: Vec<f64> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(11)
        .take(2)
        .flat_map(str::parse)
        .collect();
    if let [user, system] = fields[..] {
        let seconds = (user + system) / TICKS_PER_SECOND;
        page.single("process_cpu_seconds_total", "counter", "Processor time.", seconds);
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        page.single("process_open_fds", "gauge", "Open file descriptors.", open.count() as f64);
    }
}

impl Service for MetricsPage {
    fn admit(self: Arc<Self>, head: &mut Request) -> Result<Admission, Reply> {
        if head.path() != "/metrics" {
            return Err(Reply::error(&Error::new(ErrCode::Unrecognized, "Only /metrics is here")));
        }
        if !matches!(head.method(), Method::Get | Method::Head) {
            let error = Error::new(ErrCode::Unrecognized, "Only GET is known here").with_status(405);
            return Err(Reply::error(&error).with_header("Allow", "GET, HEAD"));
        }
        let call = Box::new(move |_: &Request, _: Poll| {
            Outcome::Reply(Reply::bytes(CONTENT_TYPE, self.text().into_bytes()))
        });
        Ok(Admission { body: BodyUse::Whole(0), quota: Quota::Clients, call })
    }

    fn is_for_browsers(&self, _target: &str) -> bool {
        false
    }

    fn wait(&self, _user: &UserId, _after: i64, _until: Instant) -> Option<Poll> {
        None
    }

    fn interrupt(&self) {}
}
