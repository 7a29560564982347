//! Heads and bodies that are wrong, or can be read in two ways.

use super::*;

#[test]
fn a_body_of_absurd_length_is_refused_before_it_comes() {
    let (_server, address) = serve(ConnectionLimits::default());
    for length in
        ["1000000000000", "18446744073709551615", "18446744073709551616", "99999999999999999999999999"]
    {
        let request = post("/echo", &format!("Content-Length: {length}\r\n"), "");
        assert_refused(address, &request, 413);
    }
    assert_refused(address, &post("/small", "Content-Length: 101\r\n", ""), 413);
    assert_refused(address, &post("/echo", "Transfer-Encoding: chunked\r\n", "fffffffffffffff\r\nabc"), 413);
    assert_serves(address);
}

#[test]
fn framing_that_can_be_read_in_two_ways_is_refused() {
    let (_server, address) = serve(ConnectionLimits::default());
    for headers in [
        "Content-Length: 3\r\nContent-Length: 4\r\n",
        "Content-Length: +5\r\n",
        "Content-Length: -1\r\n",
        "Content-Length: 5 5\r\n",
        "Content-Length: 3, 3\r\n",
        "Content-Length: 0x3\r\n",
        "Content-Length: \r\n",
        "Content-Length: three\r\n",
        "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n",
        "Content-Length : 3\r\n",
        "Content-Length: 3\r\n folded\r\n",
        "Bad Header: x\r\n",
        ": x\r\n",
        "Host: y\r\n",
    ] {
        assert_refused(address, &post("/echo", headers, "abc"), 400);
    }
    for headers in [
        "Transfer-Encoding: identity\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: chunked, chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: \r\n",
        "Transfer-Encoding: xchunked\r\n",
    ] {
        assert_refused(address, &post("/echo", headers, "3\r\nabc\r\n0\r\n\r\n"), 501);
    }
    assert_refused(address, b"POST /echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400);
    // Twice the same length is one length.
    let mut client = Client::connect(address);
    client.send(post("/echo", "Content-Length: 3\r\nContent-Length: 3\r\n", "abc"));
    assert_eq!(client.read().body, b"abc");
}

#[test]
fn a_chunked_body_is_read_whole_and_a_broken_one_refused() {
    let (_server, address) = serve(ConnectionLimits::default());
    let chunked = |body: &str| post("/echo", "Transfer-Encoding: Chunked\r\n", body);
    let mut client = Client::connect(address);
    client.send(chunked("3\r\nabc\r\nA;ext=\"1\"\r\n0123456789\r\n000\r\nTrailer: x\r\n\r\n"));
    assert_eq!(client.read().body, b"abc0123456789");
    client.send(chunked("0\r\n\r\n"));
    assert_eq!(client.read().body, b"");
    for body in [
        "zz\r\nabc\r\n0\r\n\r\n",
        "\r\nabc\r\n0\r\n\r\n",
        "+3\r\nabc\r\n0\r\n\r\n",
        "-1\r\nabc\r\n0\r\n\r\n",
        "0x3\r\nabc\r\n0\r\n\r\n",
        "11111111111111111\r\nabc\r\n0\r\n\r\n",
        "3\r\nabcd\r\n0\r\n\r\n",
        "3\nabc\n0\n\n",
        &format!("3;{}\r\nabc\r\n0\r\n\r\n", "x".repeat(2000)),
        &format!("0\r\n{}\r\n", "Trailer: x\r\n".repeat(1000)),
    ] {
        assert_refused(address, &chunked(body), 400);
    }
}

#[test]
fn a_body_that_is_cut_off_is_refused() {
    let (_server, address) = serve(ConnectionLimits::default());
    for request in [
        post("/echo", "Content-Length: 10\r\n", "abc"),
        post("/echo", "Transfer-Encoding: chunked\r\n", "5\r\nabc"),
        post("/echo", "Transfer-Encoding: chunked\r\n", "3\r\nabc\r\n"),
        b"GET /hello HTTP/1.1\r\nHost: x\r\n".to_vec(),
    ] {
        let mut client = Client::connect(address);
        client.send(&request);
        client.stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(client.read().status, 400);
    }
    assert_serves(address);
}

#[test]
fn a_body_that_nobody_looks_at_does_not_become_the_next_request() {
    let (_server, address) = serve(ConnectionLimits::default());
    let mut client = Client::connect(address);
    let smuggled = "GET /panic HTTP/1.1\r\nHost: x\r\n\r\n";
    let length = format!("Content-Length: {}\r\n", smuggled.len());
    client.send(post("/unread", &length, smuggled)).send("GET /hello HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(client.read().body, b"not looked at");
    assert_eq!(client.read().body, b"hello");
    let chunk = format!("{:x}\r\n{smuggled}\r\n0\r\n\r\n", smuggled.len());
    client.send(post("/unread", "Transfer-Encoding: chunked\r\n", &chunk));
    assert_eq!(client.read().body, b"not looked at");
    // Refused by its head: a small body is passed over, a large one costs the connection.
    client.send(post("/secret", &length, smuggled));
    assert_eq!(client.read().errcode(), "M_MISSING_TOKEN");
    client.send("GET /hello HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(client.read().body, b"hello");
    client.send(post("/secret", "Content-Length: 5000000\r\n", "abc"));
    let answer = client.read();
    assert_eq!((answer.status, answer.headers["connection"].as_str()), (401, "close"));
    assert!(client.is_closed());
}

#[test]
fn a_request_without_host_or_that_is_none_is_refused() {
    let (_server, address) = serve(ConnectionLimits::default());
    assert_refused(address, b"GET /hello HTTP/1.1\r\n\r\n", 400);
    assert_refused(address, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400);
    assert_refused(address, b"GET\r\n\r\n", 400);
    assert_refused(address, b"GET hello HTTP/1.1\r\nHost: x\r\n\r\n", 400);
    assert_refused(address, b"GET /a?b=%ff HTTP/1.1\r\nHost: x\r\n\r\n", 400);
    assert_refused(address, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505);
    assert_refused(address, b"GET / HTTP/1.1\r\nHost: x\r\nExpect: tea\r\n\r\n", 417);
    assert_serves(address);
}

#[test]
fn expectations_heads_and_http_1_0_work() {
    let (_server, address) = serve(ConnectionLimits::default());
    let mut client = Client::connect(address);
    client.send(post("/echo", "Content-Length: 3\r\nExpect: 100-Continue\r\n", ""));
    assert_eq!(client.read().status, 100);
    client.send("abc");
    assert_eq!(client.read().body, b"abc");
    // Refused before the body was asked for.
    client.send(post("/secret", "Content-Length: 3\r\nExpect: 100-continue\r\n", ""));
    let answer = client.read();
    assert_eq!((answer.status, answer.headers["connection"].as_str()), (401, "close"));

    let mut client = Client::connect(address);
    client.send("HEAD /hello HTTP/1.1\r\nHost: x\r\n\r\n");
    let answer = client.try_read(true).unwrap();
    assert_eq!((answer.status, answer.headers["content-length"].as_str()), (200, "5"));
    client.send("GET /hello HTTP/1.1\r\nhost: x\r\nconnection: foo , Close\r\n\r\n");
    let answer = client.read();
    assert_eq!(
        (answer.body.as_slice(), answer.headers["connection"].as_str()),
        (b"hello".as_slice(), "close")
    );
    assert!(client.is_closed());

    let mut client = Client::connect(address);
    client.send("GET /hello HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n");
    assert_eq!(client.read().headers["connection"], "keep-alive");
    client.send("GET http://elsewhere.example/hello HTTP/1.0\r\n\r\n");
    let answer = client.read();
    assert_eq!(
        (answer.body.as_slice(), answer.headers["connection"].as_str()),
        (b"hello".as_slice(), "close")
    );
    assert!(client.is_closed());
}

#[test]
fn header_values_outside_ascii_are_read() {
    let (_server, address) = serve(ConnectionLimits::default());
    for (sent, read) in [("ké".as_bytes(), "ké"), (b"k\xe9", "ké"), (b"", ""), (b"\"a b\"", "\"a b\"")] {
        let mut client = Client::connect(address);
        client.send("GET /header HTTP/1.1\r\nHost: x\r\nX-Test: ").send(sent).send("\r\n\r\n");
        assert_eq!(String::from_utf8(client.read().body).unwrap(), read);
    }
}
