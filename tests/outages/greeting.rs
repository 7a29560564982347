//! What is said at the start: to the operator on the first screen, and to systemd.

use std::io::{BufRead, BufReader};
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use doorstep::testing::certificates;

use crate::terminal::{Scratch, doorstep, signal};

/// The first screen of a server with these flags, up to the lines about accounts.
fn greeting(args: &[&str]) -> Vec<String> {
    let scratch = Scratch::new();
    let folder = scratch.path("data");
    let mut command = doorstep(&["serve", "--data", &folder, "--listen", "0", "--registration", "open"]);
    let mut child = command.args(args).spawn().expect("the binary was built with the tests");
    let lines = BufReader::new(child.stdout.take().expect("piped")).lines().map_while(Result::ok);
    let lines: Vec<String> = lines.take_while(|line| !line.starts_with("No account yet")).collect();
    child.kill().expect("a running child");
    child.wait().expect("an end");
    lines
}

#[test]
fn the_first_screen_has_the_public_address_and_in_one_line_what_is_missing() {
    let count = |lines: &[String], what: &str| lines.iter().filter(|line| line.contains(what)).count();
    let local = greeting(&[]);
    assert_eq!((count(&local, "https://"), count(&local, "HTTPS")), (0, 0), "{local:#?}");

    let named = greeting(&["--name", "doorstep.example"]);
    assert_eq!(count(&named, "  https://doorstep.example for everybody else"), 1, "{named:#?}");
    assert_eq!(count(&named, "a reverse proxy has to lead https://doorstep.example to it"), 1, "{named:#?}");
    assert_eq!(named.len(), local.len() + 2, "one line each: {named:#?}");
    // What is said to be asked asks of this very server.
    let asks = "doorstep check --data ";
    let goes_on = " --listen 0 --registration open --name doorstep.example";
    let is_so = |line: &String| line.contains(asks) && line.ends_with(goes_on);
    assert!(named.iter().any(is_so), "{named:#?}");

    let apex = greeting(&["--name", "doorstep.example", "--public-url", "https://matrix.doorstep.example"]);
    assert_eq!(count(&apex, "  https://matrix.doorstep.example for everybody else"), 1, "{apex:#?}");

    let files = certificates();
    let [cert, key] = [&files.cert, &files.key].map(|path| path.to_str().expect("a path of text"));
    let tls = ["--listen-tls", "0", "--tls-cert", cert, "--tls-key", key, "--name", "doorstep.example"];
    let tls = greeting(&tls);
    assert_eq!((count(&tls, "for everybody else"), count(&tls, "HTTPS")), (1, 0), "{tls:#?}");
}

#[test]
fn systemd_is_told_when_the_server_answers_and_when_it_stops() {
    let scratch = Scratch::new();
    let path = scratch.path("notify");
    let abstract_name = format!("doorstep-test-{}", std::process::id());
    let by_path = SocketAddr::from_pathname(&path).expect("a short path");
    let mut sockets = vec![(path, by_path)];
    #[cfg(target_os = "linux")]
    {
        use std::os::linux::net::SocketAddrExt;
        let address = SocketAddr::from_abstract_name(&abstract_name).expect("a short name");
        sockets.push((format!("@{abstract_name}"), address));
    }
    for (name, address) in sockets {
        let manager = UnixDatagram::bind_addr(&address).expect("a socket");
        manager.set_read_timeout(Some(Duration::from_secs(30))).expect("a time");
        let told = || {
            let mut buffer = [0; 256];
            let n = manager.recv(&mut buffer).expect("systemd is told");
            String::from_utf8(buffer[..n].to_vec()).expect("text")
        };
        let folder = scratch.path(&format!("data{}", name.len()));
        let mut command = doorstep(&["serve", "--data", &folder, "--listen", "0", "--registration", "open"]);
        let mut child =
            command.env("NOTIFY_SOCKET", &name).spawn().expect("the binary was built with the tests");
        assert_eq!(told(), "READY=1", "{name}");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines().map_while(Result::ok);
        let url = lines.map(|line| line.trim().to_owned()).find(|line| line.starts_with("http://"));
        // Who is told so can already connect.
        let address = url.expect("a greeting").replace("http://", "");
        std::net::TcpStream::connect(address).expect("it listens");
        signal(child.id(), libc::SIGTERM);
        assert_eq!(told(), "STOPPING=1", "{name}");
        assert_eq!(child.wait().expect("an end").code(), Some(0));
    }
    // A socket that is not there keeps no server from starting.
    let folder = scratch.path("none");
    let mut command = doorstep(&["serve", "--data", &folder, "--listen", "0"]);
    let mut child = command.env("NOTIFY_SOCKET", scratch.path("nobody")).spawn().expect("a binary");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("registration token")));
    child.kill().expect("a running child");
    child.wait().expect("an end");
}
