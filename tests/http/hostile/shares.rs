//! Waiting requests, and what each address and crowd has of the server.

use super::*;

#[test]
fn a_panic_in_a_handler_is_a_500_and_the_connection_lives() {
    let (_server, address) = serve(ConnectionLimits::default());
    let mut client = Client::connect(address);
    for _ in 0..20 {
        client.send("GET /panic HTTP/1.1\r\nHost: x\r\n\r\n");
        let answer = client.read();
        assert_eq!((answer.status, answer.errcode().as_str()), (500, "M_UNKNOWN"));
    }
    client.send("GET /hello HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(client.read().body, b"hello");
}

#[test]
fn requests_behind_a_waiting_one_are_served_after_it_and_others_at_once() {
    let house = Arc::new(House::default());
    let server = serve_house(&house, ConnectionLimits::default());
    let address = server.local_addrs()[0];
    let mut client = Client::connect(address);
    client.send("GET /wait HTTP/1.1\r\nHost: x\r\n\r\n");
    client.send("GET /hello HTTP/1.1\r\nHost: x\r\n\r\n".repeat(4));
    until("the request waits", || house.waiting.load(Ordering::SeqCst) == 1);
    for _ in 0..8 {
        assert_serves(address);
    }
    assert_eq!(get(address, "/wake").status, 200);
    assert_eq!(client.read().body, b"news");
    for _ in 0..4 {
        assert_eq!(client.read().body, b"hello");
    }
}

#[test]
fn a_client_that_went_away_frees_its_waiting_thread() {
    let house = Arc::new(House::default());
    let limits =
        ConnectionLimits { hang_up_check_interval: Duration::from_millis(50), ..ConnectionLimits::default() };
    let server = serve_house(&house, limits);
    let address = server.local_addrs()[0];
    let clients: Vec<Client> = (0..20)
        .map(|_| {
            let mut client = Client::connect(address);
            client.send("GET /wait HTTP/1.1\r\nHost: x\r\n\r\nGET /hello HTTP/1.1\r\nHost: x\r\n\r\n");
            client
        })
        .collect();
    until("all wait", || house.waiting.load(Ordering::SeqCst) == 20);
    drop(clients);
    until("nobody waits", || server.connections() == 0);
    // Who only closed the sending half gets an answer early.
    let mut client = Client::connect(address);
    client.send("GET /wait HTTP/1.1\r\nHost: x\r\n\r\n");
    client.stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.read().body, b"nothing");
}

#[test]
fn stopping_answers_who_waits_and_is_quick() {
    let house = Arc::new(House::default());
    let server = serve_house(&house, ConnectionLimits::default());
    let address = server.local_addrs()[0];
    let mut waiting = Client::connect(address);
    waiting.send("GET /wait HTTP/1.1\r\nHost: x\r\n\r\n");
    let mut idle = Client::connect(address);
    idle.send("GET /hello HTTP/1.1\r\nHost: x\r\n\r\n").read();
    let mut unfinished = Client::connect(address);
    unfinished.send("GET /he");
    until("the request waits", || house.waiting.load(Ordering::SeqCst) == 1);
    server.stop();
    assert_eq!(server.connections(), 0);
    assert_eq!(waiting.read().body, b"nothing");
    assert!(idle.is_closed() && unfinished.is_closed());
    assert!(TcpStream::connect(address).is_err() || Client::connect(address).is_closed());
}

#[test]
fn at_the_cap_the_longest_idle_connection_makes_room_and_no_working_one() {
    let house = Arc::new(House::default());
    let server = serve_house(&house, ConnectionLimits { connections: 8, ..ConnectionLimits::default() });
    let address = server.local_addrs()[0];
    let mut working = Client::connect(address);
    working.send("GET /wait HTTP/1.1\r\nHost: x\r\n\r\n");
    until("the request waits", || house.waiting.load(Ordering::SeqCst) == 1);
    let mut idle: Vec<Client> = Vec::new();
    for _ in 0..40 {
        let mut client = Client::connect(address);
        client.send("GET /hello HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(client.read().body, b"hello");
        idle.push(client);
    }
    assert!(server.connections() <= 8);
    assert!(idle[0].is_closed());
    get(address, "/wake");
    assert_eq!(working.read().body, b"news");
}

#[test]
fn an_address_has_its_share_of_connections_and_a_proxy_on_this_machine_has_no_limit() {
    let house = Arc::new(House::default());
    let server = serve_house(&house, ConnectionLimits { per_address: 4, ..ConnectionLimits::default() });
    let wait = |from: &str| {
        let mut client = connect_from(&server, from);
        // It may be closed already.
        let _ = client.stream.write_all(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n");
        client
    };
    // Of a /64 each: that is one host.
    let mut working: Vec<Client> = (1..5).map(|n| wait(&format!("2001:db8::{n}"))).collect();
    until("its share waits", || house.waiting.load(Ordering::SeqCst) == 4);
    assert!(wait("2001:db8::5").is_closed());
    // Every test of this file comes from loopback, and so do all the users of a reverse proxy.
    for from in ["127.0.0.1", "::1", "::ffff:127.0.0.1"] {
        working.extend((0..20).map(|_| wait(from)));
    }
    working.push(wait("192.0.2.1"));
    until("the others wait", || house.waiting.load(Ordering::SeqCst) == working.len());
    get(server.local_addrs()[0], "/wake");
    for client in &mut working {
        assert_eq!(client.read().body, b"news");
    }
}

#[test]
fn two_servers_that_ask_each_other_do_not_lock_each_other_up() {
    let limits = ConnectionLimits { in_flight: 1, quota_timeout: PATIENCE, ..ConnectionLimits::default() };
    let houses = [Arc::new(House::default()), Arc::new(House::default())];
    let servers = [serve_house(&houses[0], limits.clone()), serve_house(&houses[1], limits)];
    let [a, b] = [servers[0].local_addrs()[0], servers[1].local_addrs()[0]];
    *houses[0].neighbour.lock().unwrap() = Some(b);
    *houses[1].neighbour.lock().unwrap() = Some(a);
    thread::scope(|scope| {
        for n in 0..8 {
            let address = if n % 2 == 0 { a } else { b };
            scope.spawn(move || {
                for _ in 0..5 {
                    assert_eq!(get(address, "/ask").body, b"hello");
                }
            });
        }
    });
}

#[test]
fn a_crowd_whose_share_is_full_is_told_so_and_the_other_crowd_is_served() {
    let house = Arc::new(House::default());
    let limits = ConnectionLimits {
        in_flight: 2,
        quota_timeout: Duration::from_millis(20),
        ..ConnectionLimits::default()
    };
    let server = serve_house(&house, limits);
    let address = server.local_addrs()[0];
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    *house.neighbour.lock().unwrap() = Some(silent.local_addr().unwrap());
    let mut asking = [Client::connect(address), Client::connect(address)];
    for client in &mut asking {
        client.send("GET /ask HTTP/1.1\r\nHost: x\r\n\r\n");
    }
    let _asked = [silent.accept().unwrap(), silent.accept().unwrap()];
    let answer = get(address, "/hello");
    assert_eq!((answer.status, answer.headers["retry-after"].as_str()), (503, "1"));
    assert_eq!(answer.errcode(), "M_LIMIT_EXCEEDED");
    *house.neighbour.lock().unwrap() = Some(address);
    assert_eq!(get(address, "/server").body, b"hello");
}

#[test]
fn large_bodies_beyond_their_memory_are_told_to_come_back() {
    let limits = ConnectionLimits { body_memory: 2 * MIB, ..ConnectionLimits::default() };
    let (server, address) = serve(limits);
    let mut first = Client::connect(address);
    first.send(post("/echo", "Content-Length: 2000000\r\n", &"a".repeat(1_900_000)));
    let mut second = Client::connect(address);
    until("the memory is nearly used up", || server.body_bytes() >= 1_900_000);
    let mut refused = Client::connect(address);
    // The rest of it may find the connection closed already.
    let _ = refused.stream.write_all(&post("/echo", "Content-Length: 500000\r\n", &"a".repeat(500_000)));
    let answer = refused.read();
    assert_eq!((answer.status, answer.errcode().as_str()), (503, "M_LIMIT_EXCEEDED"));
    // Small bodies have nothing to do with it, and a finished large one gives its memory back.
    second.send(post("/echo", "Content-Length: 3\r\n", "abc"));
    assert_eq!(second.read().body, b"abc");
    first.send("a".repeat(100_000));
    assert_eq!(first.read().body.len(), 2_000_000);
    until("the memory is given back", || server.body_bytes() == 0);
    second.send(post("/echo", "Content-Length: 500000\r\n", &"a".repeat(500_000)));
    assert_eq!(second.read().body.len(), 500_000);
}

#[test]
fn who_holds_all_memory_for_bodies_by_sending_most_of_some_makes_room_for_others() {
    let limits = ConnectionLimits { body_memory: 12 * MIB, ..ConnectionLimits::default() };
    let (server, _) = serve(limits);
    let begin = |from: &str, whole: usize, part: usize| {
        let mut client = connect_from(&server, from);
        client.send(post("/echo", &format!("Content-Length: {whole}\r\n"), &"a".repeat(part)));
        client
    };
    let mut silent = [begin("192.0.2.1", 8_000_000, 7_900_000), begin("192.0.2.2", 5_000_000, 4_600_000)];
    until("the memory is used up", || server.body_bytes() >= 12_000_000);
    for n in 3..9 {
        assert_eq!(begin(&format!("192.0.2.{n}"), 300_000, 300_000).read().body.len(), 300_000);
    }
    let answer = silent[0].read();
    assert_eq!((answer.status, answer.errcode().as_str()), (503, "M_LIMIT_EXCEEDED"));
    // The other has room enough now, if it goes on.
    silent[1].send("a".repeat(400_000));
    assert_eq!(silent[1].read().body.len(), 5_000_000);
}

#[test]
fn bodies_of_ordinary_size_are_bounded_however_many_addresses_they_come_from() {
    let (server, _) = serve(ConnectionLimits { body_memory: MIB, ..ConnectionLimits::default() });
    let mut clients: Vec<Client> = (0..40)
        .map(|n| {
            let mut client = connect_from(&server, &format!("192.0.2.{n}"));
            client.send(post("/echo", "Content-Length: 60000\r\n", &"a".repeat(59_000)));
            client
        })
        .collect();
    // At a time: whoever has been at it for long makes room for others.
    let answers: Vec<Answer> = clients.iter_mut().rev().take(24).map(Client::read).collect();
    assert!(answers.iter().all(|answer| answer.status == 503));
    assert!(server.body_bytes() <= MIB);
}

#[test]
fn who_makes_many_requests_that_take_long_has_a_share_of_the_places_and_others_are_served() {
    let limits = ConnectionLimits {
        in_flight: 32,
        quota_timeout: Duration::from_millis(20),
        ..ConnectionLimits::default()
    };
    let house = Arc::new(House::default());
    let server = serve_house(&house, limits);
    // This one takes connections and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    *house.neighbour.lock().unwrap() = Some(silent.local_addr().unwrap());
    let ask = |from: &str| {
        let mut client = connect_from(&server, from);
        client.send("GET /ask HTTP/1.1\r\nHost: x\r\n\r\n");
        client
    };
    let _greedy: Vec<Client> = (0..8).map(|_| ask("192.0.2.1")).collect();
    let _asked: Vec<_> = (0..8).map(|_| silent.accept().unwrap()).collect();
    let answer = ask("192.0.2.1").read();
    assert_eq!((answer.status, answer.errcode().as_str()), (503, "M_LIMIT_EXCEEDED"));
    let _other = ask("192.0.2.2");
    silent.accept().unwrap();
}

#[test]
fn who_waits_too_often_has_their_oldest_wait_answered_and_others_are_served_however_many_wait() {
    let limits = ConnectionLimits {
        in_flight: 40,
        quota_timeout: Duration::from_millis(20),
        hang_up_check_interval: Duration::from_millis(50),
        long_wait: Duration::ZERO,
        ..ConnectionLimits::default()
    };
    let house = Arc::new(House::default());
    let server = serve_house(&house, limits);
    let address = server.local_addrs()[0];
    let wait = |from: &str| {
        let mut client = connect_from(&server, from);
        client.send("GET /wait HTTP/1.1\r\nHost: x\r\n\r\n");
        client
    };
    let waiting = || house.waiting.load(Ordering::SeqCst);
    let mut greedy: Vec<Client> = Vec::new();
    for count in 1..=32 {
        greedy.push(wait("192.0.2.1"));
        until("it waits", || waiting() == count);
    }
    greedy.push(wait("192.0.2.1"));
    assert_eq!(greedy.remove(0).read().body, b"nothing");
    until("the others wait", || waiting() == 32);
    // When all places are taken whoever has most makes way, and who asks for no news is served.
    let mut others: Vec<Client> = Vec::new();
    for n in 2..=10 {
        others.push(wait(&format!("192.0.2.{n}")));
        let most = 32 + others.len().min(8);
        until("it waits", || waiting() == most);
    }
    assert_eq!(greedy.remove(0).read().body, b"nothing");
    assert_serves(address);
    get(address, "/wake");
    for client in greedy.iter_mut().chain(&mut others) {
        assert_eq!(client.read().body, b"news");
    }
}

#[test]
fn who_waits_too_often_and_has_not_waited_for_long_waits_briefly_beyond_their_share() {
    let serve_with = |brief_wait: Duration| {
        let house = Arc::new(House::default());
        let limits = ConnectionLimits { brief_wait, ..ConnectionLimits::default() };
        (serve_house(&house, limits), house)
    };
    let wait = |server: &Server| {
        let mut client = connect_from(server, "192.0.2.1");
        client.send("GET /wait HTTP/1.1\r\nHost: x\r\n\r\n");
        client
    };
    let wait_so_many = |(server, house): &(Server, Arc<House>), count: usize| {
        let wait_one = |count: usize| {
            let client = wait(server);
            until("it waits", || house.waiting.load(Ordering::SeqCst) == count);
            client
        };
        (1..=count).map(wait_one).collect::<Vec<Client>>()
    };
    let house = serve_with(Duration::from_millis(20));
    let mut first = wait_so_many(&house, 32);
    for _ in 0..3 {
        assert_eq!(wait(&house.0).read().body, b"nothing");
    }
    assert_eq!(house.1.waiting.load(Ordering::SeqCst), 32);
    get(house.0.local_addrs()[0], "/wake");
    first.iter_mut().for_each(|client| assert_eq!(client.read().body, b"news"));
    // News comes to them, too, while they wait; and there is an end to how many are let wait so.
    let house = serve_with(PATIENCE);
    let mut all = wait_so_many(&house, 32 + 96);
    let answer = wait(&house.0).read();
    assert_eq!((answer.status, answer.errcode().as_str()), (503, "M_LIMIT_EXCEEDED"));
    get(house.0.local_addrs()[0], "/wake");
    all.iter_mut().for_each(|client| assert_eq!(client.read().body, b"news"));
}

#[test]
fn forty_others_go_on_while_one_address_has_all_that_may_be_built_of_large_bodies() {
    let house = Arc::new(House::default());
    let (body_memory, body_tree_memory) = (256 * MIB, 16 * MIB);
    let limits = ConnectionLimits { body_memory, body_tree_memory, ..ConnectionLimits::default() };
    let server = serve_house(&house, limits);
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    *house.neighbour.lock().unwrap() = Some(silent.local_addr().unwrap());
    let sent = |from: &str, path: &str, bytes: usize| {
        let mut client = connect_from(&server, from);
        client.send(post(path, &format!("Content-Length: {bytes}\r\n"), &"a".repeat(bytes)));
        client
    };
    let _at_work = sent("192.0.2.1", "/ask", MIB);
    let asked = silent.accept().unwrap();
    // Of these sixteen may wait.
    let mut waiting: Vec<Client> = (0..17).map(|_| sent("192.0.2.1", "/echo", MIB)).collect();
    let is_answered = |client: &Client| {
        client.stream.set_nonblocking(true).unwrap();
        let answered = client.stream.peek(&mut [0]).is_ok();
        client.stream.set_nonblocking(false).unwrap();
        answered
    };
    until("one too many is refused", || waiting.iter().any(is_answered));
    let at = waiting.iter().position(is_answered).unwrap();
    let answer = waiting.remove(at).read();
    assert_eq!((answer.status, answer.errcode().as_str()), (429, "M_LIMIT_EXCEEDED"));
    assert!(!waiting.iter().any(is_answered));
    for n in 0..40 {
        let mut honest = sent(&format!("192.0.2.{}", 100 + n), "/echo", 60_000);
        assert_eq!((honest.read().status, n), (200, n));
    }
    let mut honest = sent("192.0.2.2", "/echo", MIB);
    drop(asked);
    assert_eq!(honest.read().body.len(), MIB);
    for client in &mut waiting {
        assert_eq!(client.read().status, 200);
    }
}
