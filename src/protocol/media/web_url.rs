//! Addresses of web pages, as far as they are fetched: RFC 3986 with what people write into messages. What is parsed here is what is asked
//! for: nobody else reads the text again, and finds another host in it.

use std::fmt;

/// Longest address that is looked at, in bytes.
pub const URL_BYTES_MAX: usize = 4 << 10;

/// An `http` or `https` address without user, password and fragment.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct WebUrl {
    is_https: bool,
    /// In lower case; an IPv6 address stands in brackets.
    host: String,
    port: Option<u16>,
    /// From the first `/` on, percent-encoded.
    path_and_query: String,
}

impl fmt::Display for WebUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.is_https { "https" } else { "http" }, self.host)?;
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        f.write_str(&self.path_and_query)
    }
}

impl WebUrl {
    /// None for everything else: other schemes, a user or password, a host that is none (also one with letters outside of ASCII,
    /// which browsers send in their ASCII form).
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim_matches([' ', '\t', '\r', '\n', '\x0c']);
        if text.len() > URL_BYTES_MAX || text.contains(|c: char| c.is_control()) {
            return None;
        }
        let (scheme, rest) = text.split_once("://")?;
        let is_https = match scheme.to_ascii_lowercase().as_str() {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        // A backslash is a slash to some and a letter to others, so that the two see different hosts.
        let end = rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len());
        let (authority, after) = rest.split_at(end);
        if after.starts_with('\\') {
            return None;
        }
        let (host, port) = host_and_port(authority)?;
        let port = port.filter(|port| *port != if is_https { 443 } else { 80 });
        let (path, query) = path_and_query(after);
        let path = without_dots(if path.is_empty() { "/" } else { path });
        Some(Self { is_https, host, port, path_and_query: encoded(&format!("{path}{query}")) })
    }

    /// What a link on this page leads to (RFC 3986, 5.2).
    pub fn join(&self, link: &str) -> Option<Self> {
        let link = link.trim_matches([' ', '\t', '\r', '\n', '\x0c']);
        let scheme = if self.is_https { "https" } else { "http" };
        if let Some(rest) = link.strip_prefix("//") {
            return Self::parse(&format!("{scheme}://{rest}"));
        }
        let is_scheme = |name: &str| {
            name.starts_with(|c: char| c.is_ascii_alphabetic())
                && name.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
        };
        if link.split_once(':').is_some_and(|(name, _)| is_scheme(name)) {
            return Self::parse(link);
        }
        let (path, query) = path_and_query(link);
        let (own_path, own_query) = path_and_query(&self.path_and_query);
        let target = match path {
            "" if query.is_empty() => format!("{own_path}{own_query}"),
            "" => format!("{own_path}{query}"),
            _ if path.starts_with(['/', '\\']) => format!("{path}{query}"),
            _ => {
                let folder = own_path.rfind('/').map_or("/", |at| &own_path[..=at]);
                format!("{folder}{path}{query}")
            }
        };
        let port = self.port.map(|port| format!(":{port}")).unwrap_or_default();
        Self::parse(&format!("{scheme}://{}{port}{target}", self.host))
    }

    /// Whether it is asked for over TLS.
    pub fn is_https(&self) -> bool {
        self.is_https
    }

    /// Whether its port is the one of its scheme, or that of the other.
    pub fn has_usual_port(&self) -> bool {
        matches!(self.port, None | Some(80 | 443))
    }

    /// The host.
    pub fn host(&self) -> &str {
        &self.host
    }
}

fn host_and_port(authority: &str) -> Option<(String, Option<u16>)> {
    if authority.contains('@') {
        return None;
    }
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (ip, after) = rest.split_once(']')?;
            ip.parse::<std::net::Ipv6Addr>().ok()?;
            let port = if after.is_empty() { None } else { Some(after.strip_prefix(':')?) };
            (format!("[{ip}]"), port)
        }
        None => {
            let (host, port) = match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            };
            let is_name = host.len() <= 253
                && host.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c))
                && host.split('.').next().is_some_and(|label| !label.is_empty());
            if !is_name {
                return None;
            }
            (host.to_owned(), port)
        }
    };
    let port = match port {
        None | Some("") => None,
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => {
            Some(digits.parse::<u16>().ok().filter(|port| *port != 0)?)
        }
        Some(_) => return None,
    };
    Some((host.to_ascii_lowercase(), port))
}

/// Without the fragment; the query has its question mark.
fn path_and_query(text: &str) -> (&str, &str) {
    let text = text.split('#').next().unwrap_or_default();
    text.split_at(text.find('?').unwrap_or(text.len()))
}

/// RFC 3986, 5.2.4.
fn without_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    let last = segments.len().saturating_sub(1);
    for (n, segment) in segments.into_iter().enumerate() {
        let is_dots = matches!(segment, "." | "..");
        if segment == ".." {
            kept.pop();
        }
        if !is_dots {
            kept.push(segment);
        } else if n == last {
            kept.push("");
        }
    }
    format!("/{}", kept.join("/"))
}

/// The text with everything but the unreserved characters (RFC 3986) percent-encoded: a segment of a path, or a value of a
/// query.
pub fn percent_encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// What may not stand in a request line is percent-encoded; what is encoded already stays.
fn encoded(text: &str) -> String {
    let mut to = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'!' | b'#'..=b';' | b'=' | b'?'..=b'[' | b']' | b'_' | b'a'..=b'z' | b'~' => {
                to.push(char::from(byte))
            }
            _ => to.push_str(&format!("%{byte:02X}")),
        }
    }
    to
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Option<String> {
        WebUrl::parse(text).map(|url| url.to_string())
    }

    #[test]
    fn what_people_write_becomes_what_is_asked_for() {
        for (written, asked) in [
            ("https://example.org", "https://example.org/"),
            (" HTTP://Example.ORG:80?q ", "http://example.org/?q"),
            ("https://example.org:443/a/./b/../c#part", "https://example.org/a/c"),
            ("http://example.org:8080/ä b?ü", "http://example.org:8080/%C3%A4%20b?%C3%BC"),
            ("https://example.org/%41%zz", "https://example.org/%41%zz"),
            ("https://[::1]:8448/x", "https://[::1]:8448/x"),
            ("https://example.org:/x", "https://example.org/x"),
            ("https://example.org/../../x/..", "https://example.org/"),
            ("https://example.org/a?b=http://c@d/", "https://example.org/a?b=http://c@d/"),
        ] {
            assert_eq!(parsed(written).as_deref(), Some(asked), "{written}");
        }
    }

    #[test]
    fn what_is_no_address_of_the_web_or_means_another_host_to_others_is_none() {
        for bad in [
            "",
            "example.org",
            "ftp://example.org/",
            "file:///etc/passwd",
            "gopher://example.org/",
            "javascript:alert(1)",
            "https://",
            "https:///x",
            "https://user@example.org/",
            "https://user:password@example.org/",
            "https://example.org\\@inside/",
            "https://example.org:0/",
            "https://example.org:65536/",
            "https://example.org:+80/",
            "https://example.org:80:80/",
            "https://exa mple.org/",
            "https://exämple.org/",
            "https://[::1/",
            "https://[fe80::1%25eth0]/",
            "https://.example.org/",
            "https://example.org/\r\nHost: inside",
            "https://example.org/\0",
        ] {
            assert_eq!(parsed(bad), None, "{bad:?}");
        }
        assert_eq!(parsed(&format!("https://example.org/{}", "x".repeat(URL_BYTES_MAX))), None);
    }

    #[test]
    fn links_lead_to_where_they_lead_in_a_browser() {
        let page = WebUrl::parse("http://a.example:81/b/c/d?q#f").expect("an address");
        for (link, to) in [
            ("g", "http://a.example:81/b/c/g"),
            ("./g", "http://a.example:81/b/c/g"),
            ("g/", "http://a.example:81/b/c/g/"),
            ("/g", "http://a.example:81/g"),
            ("//g", "http://g/"),
            ("?y", "http://a.example:81/b/c/d?y"),
            ("g?y/../x", "http://a.example:81/b/c/g?y/../x"),
            ("#s", "http://a.example:81/b/c/d?q"),
            ("", "http://a.example:81/b/c/d?q"),
            ("..", "http://a.example:81/b/"),
            ("../../../g", "http://a.example:81/g"),
            ("https://b.example/x", "https://b.example/x"),
            ("a:b/c", ""),
            ("javascript:alert(1)", ""),
            ("data:image/png;base64,AAAA", ""),
            ("//user@b.example/", ""),
        ] {
            let joined = page.join(link).map(|url| url.to_string()).unwrap_or_default();
            assert_eq!(joined, to, "{link}");
        }
    }
}
