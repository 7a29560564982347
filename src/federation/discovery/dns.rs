//! Names to addresses. Ordinary names go through the system's resolver, so that `/etc/hosts` and whatever else the
//! operator set up counts. The system has no call for SRV records: those are asked for here, over UDP (TCP when
//! the answer was cut), at the servers of `/etc/resolv.conf`.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use simple_dns::rdata::RData;
use simple_dns::{CLASS, Name, Packet, PacketFlag, Question, RCODE, TYPE};

use crate::federation::connections::Connections;
use crate::order;

/// System look-ups that may be under way at once. A look-up cannot be cancelled, so a stuck resolver would
/// otherwise collect a thread for every request.
const LOOKUPS_MAX: usize = 32;
/// Most records of one answer that are looked at.
const RECORDS_MAX: usize = 64;
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// One SRV record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Srv {
    /// Lower is tried first.
    pub priority: u16,
    /// Share of the choice among the same priority.
    pub weight: u16,
    /// TCP port.
    pub port: u16,
    /// Host name without the final dot; empty if the service is decidedly not there.
    pub target: String,
    /// Seconds that the record may be kept.
    pub ttl: u32,
}

/// One record of a kind that is asked for here.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Record {
    Srv(Srv),
    Address(IpAddr),
}

impl Record {
    fn into_srv(self) -> Option<Srv> {
        if let Self::Srv(srv) = self { Some(srv) } else { None }
    }
}

/// A system look-up that is under way.
struct LookupUnderWay;

static LOOKUPS_UNDER_WAY: AtomicUsize = AtomicUsize::new(0);

impl Drop for LookupUnderWay {
    fn drop(&mut self) {
        LOOKUPS_UNDER_WAY.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The addresses of a host name, asked of the system, within the time given. IP literals (without brackets) are
/// answered at once. Errors: `NotFound`, `TimedOut`, `Interrupted`, `WouldBlock` when too many look-ups hang.
pub fn addresses(connections: &Connections, host: &str, within: Duration) -> io::Result<Vec<IpAddr>> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(vec![ip]);
    }
    let before = LOOKUPS_UNDER_WAY.fetch_add(1, Ordering::AcqRel);
    let running = LookupUnderWay;
    if before >= LOOKUPS_MAX {
        return Err(io::Error::new(ErrorKind::WouldBlock, "too many name look-ups are under way"));
    }
    let name = host.to_owned();
    let mut found = connections.wait_for(within, move || {
        let _running = running;
        Ok((name.as_str(), 0).to_socket_addrs()?.map(|a| a.ip()).collect::<Vec<_>>())
    })?;
    // The same address comes once for each socket type on some systems.
    let mut seen = Vec::with_capacity(found.len());
    found.retain(|ip| {
        !seen.contains(ip) && {
            seen.push(*ip);
            true
        }
    });
    if found.is_empty() { Err(io::Error::new(ErrorKind::NotFound, "no address")) } else { Ok(found) }
}

/// The SRV records of a name; none if there is no such name or no such record. Errors mean that nobody could say.
pub fn srv(name: &str, within: Duration) -> io::Result<Vec<Srv>> {
    ask(name, &name_servers(&std::fs::read_to_string(RESOLV_CONF).unwrap_or_default()), within)
}

/// The SRV records of a name, asked of these servers.
pub fn ask(name: &str, servers: &[SocketAddr], within: Duration) -> io::Result<Vec<Srv>> {
    let records = ask_for(TYPE::SRV, name, servers, within)?;
    Ok(records.into_iter().filter_map(Record::into_srv).collect())
}

/// The addresses of a name by these servers, and not by the system. Errors: `NotFound`; nobody could say.
pub fn ask_addresses(name: &str, servers: &[SocketAddr], within: Duration) -> io::Result<Vec<IpAddr>> {
    let mut found = Vec::new();
    for kind in [TYPE::AAAA, TYPE::A] {
        let records = ask_for(kind, name, servers, within / 2)?;
        found.extend(records.into_iter().filter_map(|record| match record {
            Record::Address(ip) => Some(ip),
            Record::Srv(_) => None,
        }));
    }
    if found.is_empty() { Err(io::Error::new(ErrorKind::NotFound, "no address")) } else { Ok(found) }
}

/// Asks each name server in turn, sharing out the time.
fn ask_for(kind: TYPE, name: &str, servers: &[SocketAddr], within: Duration) -> io::Result<Vec<Record>> {
    let deadline = Instant::now() + within;
    let mut last = io::Error::new(ErrorKind::NotFound, "no name server");
    for (at, server) in servers.iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        let share = left / u32::try_from(servers.len() - at).unwrap_or(1);
        if share.is_zero() {
            break;
        }
        match ask_one(kind, name, *server, Instant::now() + share) {
            Ok(records) => return Ok(records),
            Err(e) => last = e,
        }
    }
    Err(last)
}

fn ask_one(kind: TYPE, name: &str, server: SocketAddr, deadline: Instant) -> io::Result<Vec<Record>> {
    let mut id = [0; 2];
    getrandom::fill(&mut id).map_err(io::Error::other)?;
    let id = u16::from_be_bytes(id);
    let query = query(id, kind, name)?;

    let from: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    // The port is the system's random choice, and a connected socket hears only this server.
    let socket = UdpSocket::bind((from, 0))?;
    socket.connect(server)?;
    socket.send(&query)?;
    let mut buffer = [0; 4096];
    loop {
        socket.set_read_timeout(Some(time_left(deadline)?))?;
        let length = match socket.recv(&mut buffer) {
            Ok(n) => n,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => continue,
            Err(e) => return Err(e),
        };
        match read_answer(&buffer[..length], id, name) {
            DnsAnswer::Records(records) => return Ok(records),
            DnsAnswer::Cut => return ask_by_tcp(&query, id, name, server, deadline),
            DnsAnswer::Failed(why) => return Err(io::Error::other(why)),
            // Somebody else's answer, or a forged one: keep listening.
            DnsAnswer::NotOurs => {}
        }
    }
}

fn ask_by_tcp(
    query: &[u8],
    id: u16,
    name: &str,
    server: SocketAddr,
    deadline: Instant,
) -> io::Result<Vec<Record>> {
    let mut stream = TcpStream::connect_timeout(&server, time_left(deadline)?)?;
    stream.set_write_timeout(Some(time_left(deadline)?))?;
    let length = u16::try_from(query.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), query].concat())?;
    let mut prefix = [0; 2];
    read_by(&mut stream, &mut prefix, deadline)?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(prefix))];
    read_by(&mut stream, &mut answer, deadline)?;
    match read_answer(&answer, id, name) {
        DnsAnswer::Records(records) => Ok(records),
        DnsAnswer::Failed(why) => Err(io::Error::other(why)),
        DnsAnswer::Cut | DnsAnswer::NotOurs => {
            Err(io::Error::new(ErrorKind::InvalidData, "a name server's broken answer"))
        }
    }
}

fn read_by(stream: &mut TcpStream, mut into: &mut [u8], deadline: Instant) -> io::Result<()> {
    while !into.is_empty() {
        stream.set_read_timeout(Some(time_left(deadline)?))?;
        match stream.read(into) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(n) => into = &mut into[n..],
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn time_left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        Err(io::Error::new(ErrorKind::TimedOut, "the name server took too long"))
    } else {
        Ok(left)
    }
}

fn query(id: u16, kind: TYPE, name: &str) -> io::Result<Vec<u8>> {
    let mut packet = Packet::new_query(id);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    let name = Name::new(name).map_err(io::Error::other)?;
    packet.questions.push(Question::new(name, kind.into(), CLASS::IN.into(), false));
    packet.build_bytes_vec().map_err(io::Error::other)
}

#[derive(Debug, PartialEq)]
enum DnsAnswer {
    Records(Vec<Record>),
    /// Too long for UDP.
    Cut,
    Failed(String),
    NotOurs,
}

fn read_answer(bytes: &[u8], id: u16, name: &str) -> DnsAnswer {
    let Ok(packet) = Packet::parse(bytes) else { return DnsAnswer::NotOurs };
    let ours = packet.id() == id
        && packet.has_flags(PacketFlag::RESPONSE)
        && packet.questions.iter().any(|q| q.qname.to_string().eq_ignore_ascii_case(name));
    if !ours {
        return DnsAnswer::NotOurs;
    }
    if packet.has_flags(PacketFlag::TRUNCATION) {
        return DnsAnswer::Cut;
    }
    match packet.rcode() {
        RCODE::NoError => {}
        RCODE::NameError => return DnsAnswer::Records(Vec::new()),
        code => return DnsAnswer::Failed(format!("the name server answered {code:?}")),
    }
    // The owner names need no check: the answer section follows aliases, and holds nothing that was not asked for.
    let records = packet.answers.iter().take(RECORDS_MAX).filter_map(|record| match &record.rdata {
        RData::SRV(srv) => Some(Record::Srv(Srv {
            priority: srv.priority,
            weight: srv.weight,
            port: srv.port,
            target: srv.target.to_string().trim_end_matches('.').to_ascii_lowercase(),
            ttl: record.ttl,
        })),
        RData::A(a) => Some(Record::Address(Ipv4Addr::from(a.address).into())),
        RData::AAAA(aaaa) => Some(Record::Address(Ipv6Addr::from(aaaa.address).into())),
        _ => None,
    });
    DnsAnswer::Records(records.collect())
}

/// The `nameserver` lines; the local host if there are none, as resolvers do.
fn name_servers(resolv_conf: &str) -> Vec<SocketAddr> {
    let mut servers = Vec::new();
    for line in resolv_conf.lines() {
        let mut words = line.split_whitespace();
        // A zone (`fe80::1%eth0`) cannot be said with std's parser; such a server is left out.
        if let (Some("nameserver"), Some(ip)) =
            (words.next(), words.next().and_then(|w| w.parse::<IpAddr>().ok()))
        {
            servers.push(SocketAddr::new(ip, 53));
        }
    }
    servers.truncate(3);
    if servers.is_empty() { vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 53))] } else { servers }
}

/// Brings records into the order in which RFC 2782 has them tried: by priority, and among the same priority by
/// chance in proportion to the weight. `random` gives a number below its argument.
pub fn in_order(mut records: Vec<Srv>, mut random: impl FnMut(u32) -> u32) -> Vec<Srv> {
    // Zero weights first, so that they have their small chance.
    order::sort_by_key(&mut records, |r| (r.priority, r.weight));
    let mut ordered = Vec::with_capacity(records.len());
    while let Some(priority) = records.first().map(|r| r.priority) {
        let same = records.iter().take_while(|r| r.priority == priority).count();
        let total: u32 = records[..same].iter().map(|r| u32::from(r.weight)).sum();
        let chosen = random(total + 1);
        let mut sum = 0;
        let at = records[..same].iter().position(|r| {
            sum += u32::from(r.weight);
            sum >= chosen
        });
        ordered.push(records.remove(at.unwrap_or(0)));
    }
    ordered
}

#[cfg(test)]
mod tests {
    use simple_dns::ResourceRecord;
    use simple_dns::rdata::SRV;

    use super::*;

    fn answer(id: u16, name: &str, targets: &[(&str, u16)], flags: PacketFlag) -> Vec<u8> {
        let mut packet = Packet::new_reply(id);
        packet.set_flags(PacketFlag::RESPONSE | flags);
        let owner = Name::new(name).expect("a name").into_owned();
        packet.questions.push(Question::new(owner.clone(), TYPE::SRV.into(), CLASS::IN.into(), false));
        for (target, port) in targets {
            let target = Name::new(target).expect("a name").into_owned();
            let srv = SRV { priority: 10, weight: 5, port: *port, target };
            packet.answers.push(ResourceRecord::new(owner.clone(), CLASS::IN, 300, RData::SRV(srv)));
        }
        packet.build_bytes_vec().expect("a packet")
    }

    /// A name server that answers each of so many UDP questions (and one TCP question) with what `reply` makes of its
    /// id.
    fn serve(udp: usize, reply: impl Fn(u16, bool) -> Vec<Vec<u8>> + Send + 'static) -> SocketAddr {
        let (socket, address, listener) = (0..100)
            .find_map(|_| {
                let socket = UdpSocket::bind("127.0.0.1:0").ok()?;
                let address = socket.local_addr().ok()?;
                Some((socket, address, std::net::TcpListener::bind(address).ok()?))
            })
            .expect("a port that is free for UDP and TCP");
        std::thread::spawn(move || {
            for _ in 0..udp {
                let mut buffer = [0; 512];
                let (n, from) = socket.recv_from(&mut buffer).expect("a question");
                let id = Packet::parse(&buffer[..n]).expect("well formed").id();
                for bytes in reply(id, false) {
                    socket.send_to(&bytes, from).expect("sent");
                }
            }
            let Ok((mut stream, _)) = listener.accept() else { return };
            let mut prefix = [0; 2];
            stream.read_exact(&mut prefix).expect("a length");
            let mut question = vec![0; usize::from(u16::from_be_bytes(prefix))];
            stream.read_exact(&mut question).expect("a question");
            let id = Packet::parse(&question).expect("well formed").id();
            for bytes in reply(id, true) {
                let length = u16::try_from(bytes.len()).expect("short").to_be_bytes();
                stream.write_all(&[&length[..], &bytes].concat()).expect("sent");
            }
        });
        address
    }

    const NAME: &str = "_matrix-fed._tcp.example.org";
    const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

    #[test]
    fn an_srv_record_is_found() {
        let server =
            serve(1, |id, _| vec![answer(id, NAME, &[("Host.Example.org", 4443)], PacketFlag::empty())]);
        let found = ask(NAME, &[server], LOOKUP_TIMEOUT).expect("an answer");
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].target.as_str(), found[0].port, found[0].ttl), ("host.example.org", 4443, 300));
    }

    #[test]
    fn an_answer_with_another_id_or_question_is_not_believed() {
        let server = serve(1, |id, _| {
            vec![
                b"garbage".to_vec(),
                answer(id.wrapping_add(1), NAME, &[("evil.example", 1)], PacketFlag::empty()),
                answer(id, "_matrix._tcp.other.example", &[("evil.example", 1)], PacketFlag::empty()),
                answer(id, NAME, &[("good.example", 2)], PacketFlag::empty()),
            ]
        });
        assert_eq!(ask(NAME, &[server], LOOKUP_TIMEOUT).expect("an answer")[0].target, "good.example");
    }

    #[test]
    fn an_answer_that_was_cut_is_asked_for_again_by_tcp() {
        let server = serve(1, |id, tcp| match tcp {
            false => vec![answer(id, NAME, &[], PacketFlag::TRUNCATION)],
            true => vec![answer(id, NAME, &[("a.example", 1), ("b.example", 2)], PacketFlag::empty())],
        });
        assert_eq!(ask(NAME, &[server], LOOKUP_TIMEOUT).expect("an answer").len(), 2);
    }

    #[test]
    fn a_name_that_does_not_exist_has_no_records_and_a_failing_server_is_an_error() {
        let refuse = |code: RCODE| {
            move |id, _| {
                let mut packet = Packet::new_reply(id);
                packet.set_flags(PacketFlag::RESPONSE);
                *packet.rcode_mut() = code;
                let name = Name::new(NAME).expect("a name");
                packet.questions.push(Question::new(name, TYPE::SRV.into(), CLASS::IN.into(), false));
                vec![packet.build_bytes_vec().expect("a packet")]
            }
        };
        assert_eq!(ask(NAME, &[serve(1, refuse(RCODE::NameError))], LOOKUP_TIMEOUT).expect("an answer"), []);
        assert!(ask(NAME, &[serve(1, refuse(RCODE::ServerFailure))], LOOKUP_TIMEOUT).is_err());
        // The second server helps when the first does not.
        let servers = [
            serve(1, refuse(RCODE::ServerFailure)),
            serve(1, |id, _| vec![answer(id, NAME, &[("a.example", 1)], PacketFlag::empty())]),
        ];
        assert_eq!(ask(NAME, &servers, LOOKUP_TIMEOUT).expect("an answer").len(), 1);
    }

    #[test]
    fn name_servers_come_from_resolv_conf() {
        let text = "# comment\nnameserver 9.9.9.9\nsearch lan\nnameserver fe80::1%eth0\nnameserver 2620:fe::fe\noptions x\n";
        let found: Vec<String> = name_servers(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["9.9.9.9:53", "[2620:fe::fe]:53"]);
        assert_eq!(name_servers(""), ["127.0.0.1:53".parse().expect("an address")]);
    }

    #[test]
    fn srv_records_are_tried_by_priority_and_then_by_weight() {
        let record =
            |priority, weight, target: &str| Srv { priority, weight, port: 1, target: target.into(), ttl: 1 };
        let records = vec![record(20, 0, "last"), record(10, 0, "light"), record(10, 90, "heavy")];
        let names = |random: fn(u32) -> u32| {
            in_order(records.clone(), random).into_iter().map(|r| r.target).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(names(|_| 0), "light heavy last");
        assert_eq!(names(|n| n - 1), "heavy light last");
    }

    #[test]
    fn the_local_host_is_found_through_the_system() {
        let found = addresses(&Connections::default(), "localhost", LOOKUP_TIMEOUT).expect("an address");
        assert!(found.iter().all(IpAddr::is_loopback));
        assert_eq!(
            addresses(&Connections::default(), "192.0.2.7", LOOKUP_TIMEOUT).expect("a literal"),
            ["192.0.2.7".parse::<IpAddr>().expect("ip")]
        );
    }
}
