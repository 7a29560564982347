//! A browser without scripts, as far as forms, cookies and redirects go: what a page is told by one, and what it shows.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use doorstep::testing::segment;

/// What a page answered.
#[derive(Debug, Clone)]
pub struct Page {
    /// The status.
    pub status: u16,
    /// The headers, as they came.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub text: String,
}

impl Page {
    /// A header's value; empty without one.
    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value)
    }

    /// The value of the first hidden field of this name.
    pub fn field(&self, name: &str) -> Option<&str> {
        let (_, rest) = self.text.split_once(&format!("name=\"{name}\" value=\""))?;
        rest.split('"').next()
    }
}

/// One browser at one server.
#[derive(Debug, Clone)]
pub struct Browser {
    address: String,
    /// Its cookies.
    pub cookies: BTreeMap<String, String>,
    /// What it sends with each request beside these.
    pub headers: Vec<(&'static str, String)>,
    /// What it was shown last.
    pub shown: Option<Page>,
}

impl Browser {
    /// A browser that was never here.
    pub fn new(url: &str) -> Self {
        let address = url.strip_prefix("http://").expect("plain HTTP").trim_end_matches('/').to_owned();
        Self { address, cookies: BTreeMap::new(), headers: Vec::new(), shown: None }
    }

    /// One that has logged in with a password.
    #[track_caller]
    pub fn logged_in(url: &str, user: &str, password: &str) -> Self {
        let mut browser = Self::new(url);
        browser.get("/");
        let home = browser.submit("/page/login", &[("user", user), ("password", password)]);
        assert!(home.status == 200 && home.text.contains("Log out"), "{home:?}");
        browser
    }

    /// Goes to an address.
    pub fn get(&mut self, path: &str) -> Page {
        let page = self.request("GET", path, &[], "");
        self.shown = Some(page.clone());
        page
    }

    /// Sends a form of the page that is shown, with its token and these fields, and follows where that leads.
    #[track_caller]
    pub fn submit(&mut self, action: &str, fields: &[(&str, &str)]) -> Page {
        let token =
            self.shown.as_ref().and_then(|page| page.field("form")).expect("a form is shown").to_owned();
        let mut all = vec![("form", token.as_str())];
        all.extend(fields);
        let page = self.send(action, &all);
        match page.status {
            303 => self.get(page.header("location")),
            _ => page,
        }
    }

    /// [`Browser::submit`], and again with `confirmed` once the page has asked.
    #[track_caller]
    pub fn submit_surely(&mut self, action: &str, fields: &[(&str, &str)]) -> Page {
        let asked = self.submit(action, fields);
        assert!(
            asked.status == 200 && asked.field("confirmed") == Some("yes"),
            "{action} does not ask: {asked:?}"
        );
        let mut sure = fields.to_vec();
        sure.push(("confirmed", "yes"));
        self.submit(action, &sure)
    }

    /// Sends just these fields, whatever is shown.
    pub fn send(&mut self, action: &str, fields: &[(&str, &str)]) -> Page {
        let pairs: Vec<String> =
            fields.iter().map(|(name, value)| format!("{name}={}", segment(value))).collect();
        let mut headers = vec![("Content-Type", "application/x-www-form-urlencoded".to_owned())];
        if !self.headers.iter().any(|(name, _)| ["Origin", "Sec-Fetch-Site"].contains(name)) {
            headers.push(("Sec-Fetch-Site", "same-origin".to_owned()));
        }
        let page = self.request("POST", action, &headers, &pairs.join("&"));
        self.shown = Some(page.clone());
        page
    }

    /// One request, whose cookies are kept.
    pub fn request(&mut self, method: &str, path: &str, more: &[(&str, String)], body: &str) -> Page {
        let mut connection = TcpStream::connect(&self.address).expect("a connection");
        connection.set_read_timeout(Some(Duration::from_secs(60))).expect("a time-out");
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", self.address);
        for (name, value) in
            self.headers.iter().map(|(n, v)| (*n, v)).chain(more.iter().map(|(n, v)| (*n, v)))
        {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !self.cookies.is_empty() {
            let cookies: Vec<String> =
                self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
            head.push_str(&format!("Cookie: {}\r\n", cookies.join("; ")));
        }
        if method == "POST" {
            head.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        connection.write_all(format!("{head}\r\n{body}").as_bytes()).expect("sent");
        let mut answer = Vec::new();
        connection.read_to_end(&mut answer).expect("an answer");
        let page = read_page(&String::from_utf8(answer).expect("text"));
        for (_, cookie) in page.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("set-cookie")) {
            let (name, value) =
                cookie.split(';').next().and_then(|pair| pair.split_once('=')).expect("a cookie");
            if value.is_empty() {
                self.cookies.remove(name);
            } else {
                self.cookies.insert(name.to_owned(), value.to_owned());
            }
        }
        page
    }
}

fn read_page(answer: &str) -> Page {
    let (head, text) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).expect("a status");
    let headers = lines.filter_map(|line| line.split_once(": "));
    let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    Page { status, headers, text: text.to_owned() }
}
