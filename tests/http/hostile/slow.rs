//! Who sends or reads slowly, or never.

use super::*;

#[test]
fn a_head_without_end_is_refused_while_it_comes() {
    let (_server, address) = serve(ConnectionLimits::default());
    let line = format!("GET /{} HTTP/1.1\r\n", "a".repeat(20_000));
    assert_refused(address, line.as_bytes(), 414);
    let many = "A: b\r\n".repeat(2000);
    assert_refused(address, format!("GET / HTTP/1.1\r\nHost: x\r\n{many}\r\n").as_bytes(), 431);
    let many = "A: b\r\n".repeat(100);
    assert_refused(address, format!("GET / HTTP/1.1\r\nHost: x\r\n{many}\r\n").as_bytes(), 431);
    let many = "A: b\r\n".repeat(99);
    let mut client = Client::connect(address);
    client.send(format!("GET / HTTP/1.1\r\nHost: x\r\n{many}\r\n"));
    assert_eq!(client.read().status, 200);
}

#[test]
fn enormous_heads_cost_no_memory_and_nobody_else_waits() {
    let house = ChildHouse::start(None);
    for filler in [b"x".as_slice(), b"A: b\r\n".as_slice()] {
        let mut client = Client::connect(house.address);
        client.send("GET / HTTP/1.1\r\nHost: x\r\nLong: ");
        let block = filler.repeat(MIB / filler.len());
        // 300 MB, or until the server has had enough of it.
        let sent = (0..300).take_while(|_| client.stream.write_all(&block).is_ok()).count();
        assert!(sent < 300, "the server took in all of it");
        assert_serves(house.address);
    }
    assert!(house.resident() < 40 * MIB, "{} bytes resident", house.resident());
}

#[test]
fn a_head_that_is_never_finished_is_answered_in_time_however_it_trickles() {
    let limits = ConnectionLimits { head_timeout: Duration::from_millis(500), ..ConnectionLimits::default() };
    let (_server, address) = serve(limits);
    let mut silent = Client::connect(address);
    silent.send("GET /hello HTTP/1.1\r\nHost:");
    let mut trickling = Client::connect(address);
    trickling.stream.set_nonblocking(true).unwrap();
    let mut seen = Vec::new();
    // A byte every now and then: the deadline is for the whole head, not for each byte.
    until("the trickling head is refused", || {
        let _ = trickling.stream.write(b"x");
        thread::park_timeout(Duration::from_millis(20));
        let mut buffer = [0; 1024];
        if let Ok(n) = trickling.stream.read(&mut buffer) {
            seen.extend_from_slice(&buffer[..n]);
        }
        seen.starts_with(b"HTTP/1.1 408 ")
    });
    assert_eq!(silent.read().status, 408);
    assert!(silent.is_closed());
    assert_serves(address);
}

#[test]
fn a_slow_body_is_given_up_and_does_not_delay_others() {
    let limits =
        ConnectionLimits { transfer_grace: Duration::from_millis(500), ..ConnectionLimits::default() };
    let (_server, address) = serve(limits);
    let mut slow: Vec<Client> = (0..300).map(|_| Client::connect(address)).collect();
    for client in &mut slow {
        client.send(post("/echo", "Content-Length: 1000000\r\n", "a"));
    }
    for _ in 0..20 {
        assert_serves(address);
    }
    for client in &mut slow {
        let answer = client.read();
        assert_eq!((answer.status, answer.errcode().as_str()), (408, "M_UNKNOWN"));
    }
}

#[test]
fn who_has_sent_much_of_a_body_quickly_has_earned_no_time_to_be_silent_or_to_trickle() {
    let much = || (post("/echo", "Content-Length: 8000000\r\n", ""), vec![b'a'; 7_900_000]);
    let limits =
        ConnectionLimits { silence_timeout: Duration::from_millis(300), ..ConnectionLimits::default() };
    let (_server, address) = serve(limits);
    let mut silent = Client::connect(address);
    silent.send(much().0).send(much().1);
    assert_eq!(silent.read().status, 408);
    let limits = ConnectionLimits {
        transfer_grace: Duration::from_millis(300),
        body_timeout: Duration::from_millis(600),
        ..ConnectionLimits::default()
    };
    let (_server, address) = serve(limits);
    let mut trickling = Client::connect(address);
    trickling.send(much().0).send(much().1);
    trickling.stream.set_nonblocking(true).unwrap();
    until("the body is refused", || {
        let _ = trickling.stream.write(b"a");
        thread::park_timeout(Duration::from_millis(20));
        trickling.stream.peek(&mut [0]).is_ok()
    });
    trickling.stream.set_nonblocking(false).unwrap();
    assert_eq!(trickling.read().status, 408);
}

#[test]
fn a_body_that_is_handed_on_takes_its_time_but_neither_memory_nor_patience_without_end() {
    let limits = ConnectionLimits {
        transfer_grace: Duration::from_millis(500),
        transfer_rate: MIB,
        body_memory: MIB,
        ..ConnectionLimits::default()
    };
    let house = Arc::new(House::default());
    let server = serve_house(&house, limits);
    let address = server.local_addrs()[0];
    let (handed, under_way) =
        (|| house.handed.0.load(Ordering::SeqCst), || house.handed.1.load(Ordering::SeqCst));
    // Larger than all bodies that are kept may be together.
    let mut client = Client::connect(address);
    client.send(post("/handed", &format!("Content-Length: {}\r\n", 16 * MIB), ""));
    client.send(vec![b'x'; 16 * MIB]);
    assert_eq!((client.read().body, handed()), (b"hello".to_vec(), 16 * MIB));
    // The connection goes on, and so do chunks, and what is asked for first.
    client.send(post("/handed", "Transfer-Encoding: chunked\r\n", "3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"));
    assert_eq!((client.read().status, handed()), (200, 16 * MIB + 5));
    client.send(post("/handed", "Content-Length: 3\r\nExpect: 100-continue\r\n", ""));
    assert_eq!(client.read().status, 100);
    client.send("abc");
    assert_eq!((client.read().status, under_way()), (200, 0));
    // Whoever it is handed to has enough of it.
    let mut client = Client::connect(address);
    client.send(post("/handed", "Transfer-Encoding: chunked\r\n", ""));
    let chunk = format!("100000\r\n{}\r\n", "x".repeat(MIB));
    until("it is under way", || under_way() == 1);
    while client.stream.write_all(chunk.as_bytes()).is_ok() && under_way() > 0 {}
    let answer = client.read();
    assert_eq!((answer.status, answer.errcode().as_str(), under_way()), (413, "M_TOO_LARGE", 0));
    // Who trickles is given up; who is gone leaves nothing.
    let mut slow = Client::connect(address);
    slow.send(post("/handed", "Content-Length: 1000000\r\n", "a"));
    let mut gone = Client::connect(address);
    gone.send(post("/handed", "Content-Length: 1000000\r\n", "a"));
    until("both are under way", || under_way() == 2);
    drop(gone);
    let answer = slow.read();
    assert_eq!((answer.status, answer.errcode().as_str()), (408, "M_UNKNOWN"));
    until("nothing is under way", || under_way() == 0);
}

#[test]
fn a_reader_that_never_reads_its_reply_is_given_up() {
    let limits = ConnectionLimits {
        transfer_grace: Duration::from_millis(300),
        transfer_rate: 1 << 30,
        ..ConnectionLimits::default()
    };
    let (server, address) = serve(limits);
    let clients: Vec<Client> = (0..4)
        .map(|_| {
            let mut client = Client::connect(address);
            client.send("GET /big HTTP/1.1\r\nHost: x\r\n\r\n");
            client
        })
        .collect();
    assert_serves(address);
    until("the connections are closed", || server.connections() == 0);
    drop(clients);
}

#[test]
fn who_has_read_much_has_earned_no_time_to_read_nothing() {
    // The same rate, that of the reply and that of all of them.
    for (path, transfer_rate) in [("/big-and-quick", 2048), ("/big", 64 << 10)] {
        let transfer_grace = Duration::from_millis(300);
        let limits = ConnectionLimits { transfer_grace, transfer_rate, ..ConnectionLimits::default() };
        let (server, address) = serve(limits);
        let mut connection = TcpStream::connect(address).expect("a connection");
        let head = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        connection.write_all(head.as_bytes()).expect("sent");
        // All together this would be worth minutes.
        connection.read_exact(&mut vec![0; 16 * MIB]).expect("much of it");
        until("the connection is closed", || server.connections() == 0);
        let (mut got, mut buffer) = (16 * MIB, vec![0; MIB]);
        while let Ok(count @ 1..) = connection.read(&mut buffer) {
            got += count;
        }
        assert!(got < 64 * MIB, "{path} came whole");
    }
}

#[test]
fn when_every_slot_is_taken_whoever_holds_most_by_reading_slowly_makes_room_and_others_who_are_slow_stay() {
    // Nobody is given up because they take too long.
    let limits =
        ConnectionLimits { connections: 32, transfer_grace: 100 * PATIENCE, ..ConnectionLimits::default() };
    let server = serve_house(&Arc::default(), limits);
    let big = |from: &str| {
        let mut client = connect_from(&server, from);
        client.send("GET /big HTTP/1.1\r\nHost: x\r\n\r\n");
        client
    };
    let mut greedy: Vec<Client> = (0..31).map(|_| big("192.0.2.1")).collect();
    for client in &mut greedy {
        // Its reply has begun: whoever comes now is not held up for longer than this one.
        client.reader.read_line(&mut String::new()).unwrap();
    }
    let mut honest = big("192.0.2.9");
    until("all slots are taken", || server.connections() == 32);
    // Far fewer than could leave the greedy one no more than the other, also where those who went are still there.
    for _ in 0..2 {
        assert_serves(server.local_addrs()[0]);
        // Those who are served make room themselves if they only stay.
        let mut other = connect_from(&server, "192.0.2.2");
        assert_eq!(other.send("GET /hello HTTP/1.1\r\nHost: x\r\n\r\n").read().body, b"hello");
    }
    assert_eq!(honest.read().body.len(), 64 * MIB);
    drop(greedy);
}

#[test]
fn the_operator_is_let_in_while_every_slot_is_at_work_and_others_wait_to_be_accepted() {
    let folder = std::env::temp_dir().join(format!("doorstep-slots-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let listen =
        [ListenSpec::plain("127.0.0.1:0".parse().unwrap()), ListenSpec::local(folder.join("doorstep.sock"))];
    let limits = ConnectionLimits {
        connections: 4,
        quota_timeout: Duration::from_millis(20),
        ..ConnectionLimits::default()
    };
    let house = Arc::new(House::default());
    let server = Server::serve(house.clone(), limits, &listen).unwrap();
    let address = server.local_addrs()[0];
    // This one takes connections and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    *house.neighbour.lock().unwrap() = Some(silent.local_addr().unwrap());
    let ask = |path: &str| {
        let mut client = Client::connect(address);
        client.send(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"));
        client
    };
    let _working = ["/wait", "/wait", "/server", "/server"].map(ask);
    let asked: Vec<_> = (0..2).map(|_| silent.accept().unwrap()).collect();
    until("the others wait", || house.waiting.load(Ordering::SeqCst) == 2);
    let _unheard = [ask("/hello"), ask("/hello")];
    let answer = doorstep::internals::ask(&folder.join("doorstep.sock"), "GET", "/keys", None).unwrap();
    assert_eq!(answer, (200, b"hello".to_vec()));
    drop(asked);
    server.stop();
    let _ = std::fs::remove_dir_all(folder);
}
