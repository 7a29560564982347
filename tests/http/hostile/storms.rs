//! Connections and requests by the thousand, at a server in a process of its own whose memory and descriptors are
//! counted.

use super::*;

#[test]
fn a_thousand_connections_that_stay_open_are_all_served() {
    let (_server, address) = serve(ConnectionLimits::default());
    let mut clients: Vec<Client> = (0..1000).map(|_| Client::connect(address)).collect();
    for client in &mut clients {
        client.send("GET /hello HTTP/1.1\r\nHost: x\r\n\r\n");
    }
    for client in &mut clients {
        assert_eq!(client.read().body, b"hello");
    }
    for client in clients.iter_mut().rev() {
        client.send("GET /hello HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(client.read().body, b"hello");
    }
}

#[test]
fn a_thousand_waiting_requests_fit_in_forty_megabytes_and_all_are_woken() {
    let house = ChildHouse::start(None);
    let mut clients: Vec<Client> = (0..1000).map(|_| Client::connect(house.address)).collect();
    for client in &mut clients {
        client.send("GET /wait HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer abcdefghijklmnop\r\n\r\n");
    }
    until("all wait", || get(house.address, "/count").body == b"1000");
    assert!(house.resident() < 40 * MIB, "{} bytes resident", house.resident());
    get(house.address, "/wake");
    for client in &mut clients {
        assert_eq!(client.read().body, b"news");
    }
}

#[test]
fn a_storm_of_connects_and_resets_leaves_the_server_serving() {
    let (server, address) = serve(ConnectionLimits::default());
    for n in 0..3000 {
        let Ok(mut stream) = TcpStream::connect(address) else { continue };
        if n % 3 > 0 {
            let _ =
                stream.write(if n % 3 == 1 { b"GET /he" } else { b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n" });
        }
        reset(&stream);
    }
    assert_serves(address);
    until("the books are even", || server.connections() == 0);
}

/// Makes the close of this socket a reset.
fn reset(stream: &TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: the option's value is a live local of the size that is given.
    let done = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of::<libc::linger>() as libc::socklen_t,
        )
    };
    assert_eq!(done, 0);
}

#[test]
fn a_million_pipelined_requests_are_answered_in_bounded_memory() {
    const REQUESTS: usize = 1_000_000;
    let house = ChildHouse::start(None);
    let mut client = Client::connect(house.address);
    client.send("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let mut reply = Vec::new();
    client.reader.read_to_end(&mut reply).unwrap();
    let length = reply.len() - "Connection: close\r\n".len();
    let client = Client::connect(house.address);
    let mut sender = client.stream.try_clone().unwrap();
    let mut reader = client.stream;
    let done = AtomicUsize::new(0);
    thread::scope(|scope| {
        scope.spawn(move || {
            let block = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1000);
            for _ in 0..REQUESTS / 1000 {
                sender.write_all(&block).unwrap();
            }
            sender.shutdown(Shutdown::Write).unwrap();
        });
        let house = &house;
        let done = &done;
        scope.spawn(move || {
            while done.load(Ordering::SeqCst) == 0 {
                assert_serves(house.address);
                thread::park_timeout(Duration::from_millis(50));
            }
        });
        // All replies are of one length.
        let (mut received, mut buffer) = (0, vec![0; 256 << 10]);
        loop {
            let n = reader.read(&mut buffer).unwrap();
            if n == 0 {
                break;
            }
            received += n;
        }
        done.store(1, Ordering::SeqCst);
        assert_eq!(received, REQUESTS * length);
    });
    assert!(house.resident() < 40 * MIB, "{} bytes resident", house.resident());
}

#[test]
fn pipelined_requests_whose_replies_nobody_reads_are_not_collected() {
    let house = ChildHouse::start(None);
    let client = Client::connect(house.address);
    client.stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let block = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1000);
    // Until the kernel's buffers are full both ways: then the server waits for its reader and takes nothing more in.
    let sent = (0..2000).take_while(|_| (&client.stream).write_all(&block).is_ok()).count();
    assert!(sent < 2000, "the server took in everything");
    assert_serves(house.address);
    assert!(house.resident() < 40 * MIB, "{} bytes resident", house.resident());
}

#[test]
fn a_server_without_file_descriptors_recovers_when_there_are_some_again() {
    let mut house = ChildHouse::start(Some(200));
    assert_serves(house.address);
    house.command("exhaust");
    // Connections now stay in the kernel's queue, or take the place of an idle one.
    let mut clients: Vec<Client> = (0..60).map(|_| Client::connect(house.address)).collect();
    for client in &mut clients {
        client.send("GET /hello HTTP/1.1\r\nHost: x\r\n\r\n");
    }
    house.command("free");
    for client in &mut clients {
        assert_eq!(client.read().body, b"hello");
    }
    assert_serves(house.address);
}

#[test]
#[ignore = "no test: what `ChildHouse` runs"]
fn the_house_of_the_storms() {
    if std::env::var_os("DOORSTEP_TEST_HOUSE").is_none() {
        return;
    }
    let server = serve_house(&Arc::default(), ConnectionLimits::default());
    let mut out = io::stdout();
    writeln!(out, "\nlistening on {}", server.local_addrs()[0]).unwrap();
    let mut hoard = Vec::new();
    for line in io::stdin().lines() {
        match line.unwrap().as_str() {
            "exhaust" => hoard.extend(std::iter::from_fn(|| std::fs::File::open("/dev/null").ok())),
            _ => hoard.clear(),
        }
        writeln!(out, "\ndone {}", hoard.len()).unwrap();
    }
}
