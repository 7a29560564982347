//! What each setting's value has to be, and where it goes: the checks that the rows of `table` name. Errors end a sentence
//! that begins with the value.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::path::PathBuf;

use super::amounts::bytes;
use super::{Config, Data, Registration, SupportContact};
use crate::address::TrustedProxies;
use crate::protocol::certificates::acme::is_certifiable;
use crate::protocol::room_version;
use crate::protocol::{ServerName, UserId};

pub(super) fn server_name(config: &mut Config, text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("should be this server's name, such as example.org: write it between the quotes".into());
    }
    if text.contains(|c: char| c.is_ascii_uppercase()) {
        let small = text.to_ascii_lowercase();
        return Err(format!("has capitals, by which names of servers differ: write {small}"));
    }
    config.server_name = ServerName::parse(text).map_err(|_| SERVER_NAME)?;
    // A user id may have 255 bytes; leave room for `@`, `:` and a localpart.
    UserId::parse(&format!("@a:{text}")).map(drop).map_err(|_| "should be shorter".into())
}

const SERVER_NAME: &str = "should be a server name, such as example.org or example.org:8448";

pub(super) fn data(config: &mut Config, text: &str) -> Result<(), String> {
    config.data = if text == ":memory:" { Data::Memory } else { Data::Folder(path(text)?) };
    Ok(())
}

pub(super) fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() { Err("should be a path".into()) } else { Ok(text.into()) }
}

pub(super) fn acme_name(config: &mut Config, text: &str) -> Result<(), String> {
    let name = text.to_ascii_lowercase();
    if !is_certifiable(&name) {
        return Err(
            "should be a name of the DNS, such as example.org: no address, no port, no pattern".into()
        );
    }
    config.acme.names.push(name);
    Ok(())
}

pub(super) fn acme_contact(config: &mut Config, text: &str) -> Result<(), String> {
    let address = email(text).ok_or("should be an e-mail address, such as admin@example.org")?;
    config.acme.contact = Some(address);
    Ok(())
}

fn email(text: &str) -> Option<String> {
    let address = text.strip_prefix("mailto:").unwrap_or(text);
    let (local, host) = address.split_once('@')?;
    let is_odd = |c: char| c.is_whitespace() || c.is_control() || "?,".contains(c);
    (!local.is_empty() && !host.is_empty() && !address.contains(is_odd)).then(|| address.to_owned())
}

pub(super) fn acme_directory(config: &mut Config, text: &str) -> Result<(), String> {
    let rest = text.strip_prefix("https://").unwrap_or_default();
    if rest.is_empty() || rest.starts_with('/') || text.contains(char::is_whitespace) {
        return Err("should be an https URL, such as https://acme-v02.api.letsencrypt.org/directory".into());
    }
    config.acme.directory = text.to_owned();
    Ok(())
}

pub(super) fn acme_eab(config: &mut Config, text: &str) -> Result<(), String> {
    let parts = text.split_once(':').filter(|(id, file)| {
        let is_id = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_graphic());
        is_id && !file.is_empty()
    });
    let Some((id, file)) = parts else {
        return Err("should be a key identifier and a file, such as kid-1:/etc/doorstep/eab.key".into());
    };
    config.acme.external_account = Some((id.to_owned(), file.into()));
    Ok(())
}

pub(super) fn registration(config: &mut Config, text: &str) -> Result<(), String> {
    config.registration = match text {
        "open" => Registration::Open,
        "token" => Registration::Token,
        "closed" => Registration::Closed,
        _ => return Err("should be open, token or closed".into()),
    };
    Ok(())
}

pub(super) fn registration_secret(config: &mut Config, text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("should be a secret that is not empty".into());
    }
    config.registration_secret = Some(text.into());
    Ok(())
}

pub(super) fn turn_uri(config: &mut Config, text: &str) -> Result<(), String> {
    let rest = ["turn:", "turns:"].iter().find_map(|scheme| text.strip_prefix(scheme));
    if rest.is_none_or(|rest| rest.is_empty() || rest.contains(char::is_whitespace)) {
        return Err("should be a URI that begins with turn: or turns:".into());
    }
    config.turn_uris.push(text.into());
    Ok(())
}

pub(super) fn turn_secret(config: &mut Config, text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("should be a secret that is not empty".into());
    }
    config.turn_secret = Some(text.into());
    Ok(())
}

pub(super) fn default_room_version(config: &mut Config, text: &str) -> Result<(), String> {
    config.default_room_version = room_version::room_version(text).ok_or("should be 1 to 12")?;
    Ok(())
}

pub(super) fn cache_size(config: &mut Config, text: &str) -> Result<(), String> {
    config.media_cache_bytes = match bytes(text)? {
        0 => u64::MAX,
        size => size,
    };
    Ok(())
}

pub(super) fn public_url(config: &mut Config, text: &str) -> Result<(), String> {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    if rest.is_none_or(|rest| rest.trim_matches('/').is_empty()) {
        return Err("should be an http or https URL, such as https://matrix.example.org".into());
    }
    config.public_url = text.trim_end_matches('/').to_owned();
    Ok(())
}

pub(super) fn support_contact(config: &mut Config, text: &str) -> Result<(), String> {
    let contact = match text.strip_prefix('@') {
        Some(_) => UserId::parse(text).ok().map(SupportContact::User),
        None => email(text).map(SupportContact::Email),
    };
    let wrong = "should be a user id or an e-mail address, such as @admin:example.org or admin@example.org";
    config.support_contacts.push(contact.ok_or(wrong)?);
    Ok(())
}

pub(super) fn support_page(config: &mut Config, text: &str) -> Result<(), String> {
    config.support_page = Some(http_url(text, "https://example.org/help")?);
    Ok(())
}

/// An address of the web, as it was written.
fn http_url(text: &str, such_as: &str) -> Result<String, String> {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    match rest.is_some_and(|rest| !rest.trim_matches('/').is_empty()) {
        true => Ok(text.to_owned()),
        false => Err(format!("should be an http or https URL, such as {such_as}")),
    }
}

pub(super) fn trust_proxy(config: &mut Config, text: &str) -> Result<(), String> {
    config.trusted_proxies = TrustedProxies::parse(text)?;
    Ok(())
}

pub(super) fn user_directory(config: &mut Config, text: &str) -> Result<(), String> {
    config.user_directory_of_all = match text {
        "known" => false,
        "all" => true,
        _ => return Err("should be known or all".into()),
    };
    Ok(())
}

pub(super) fn livekit_service_url(config: &mut Config, text: &str) -> Result<(), String> {
    config.livekit_service_url = Some(http_url(text, "https://livekit.example.org")?);
    Ok(())
}

pub(super) fn notary(config: &mut Config, text: &str) -> Result<(), String> {
    config.notaries.push(ServerName::parse(text).map_err(|_| SERVER_NAME)?);
    Ok(())
}

/// A pattern that no server name can match is a mistake, and as a ban a dangerous one.
pub(super) fn pattern(text: &str) -> Result<(), String> {
    let wild = |c: char| c == '*' || c == '?';
    let is_literal = text.starts_with('[')
        && text.ends_with([']', '*'])
        && text.chars().all(|c| c.is_ascii_hexdigit() || wild(c) || "[:.]".contains(c));
    let is_name = |name: &str| {
        let may_be = |c: char| c.is_ascii_alphanumeric() || wild(c) || c == '-' || c == '.';
        !name.is_empty() && name.chars().all(may_be)
    };
    if let Some(parent) = text.strip_prefix('.').filter(|parent| is_name(parent)) {
        return Err(format!("matches no server: for those below {parent}, write *.{parent}"));
    }
    if is_literal || is_name(text) {
        return Ok(());
    }
    if let Some((host, port)) = text.rsplit_once(':')
        && port.chars().all(|c| c.is_ascii_digit() || wild(c))
        && (is_name(host) || host.ends_with(']'))
    {
        return Err(format!("should have no port, since ports do not matter: write {host}"));
    }
    if text.parse::<IpAddr>().is_ok() {
        return Err(format!("should be in brackets: [{text}]"));
    }
    Err("matches no server: it should be a server's name, or a pattern such as *.example.org".into())
}

/// The addresses to listen on: a port alone is one of loopback, `:` and a port one of every address, as with other
/// servers; a name is looked up.
pub(super) fn addresses(text: &str) -> Result<Vec<SocketAddr>, String> {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let port = |text: &str| text.parse::<u16>().map_err(|_| "should have a port of at most 65535");
    if is_number(text) {
        return Ok(vec![SocketAddr::from(([127, 0, 0, 1], port(text)?))]);
    }
    if let Some(number) = text.strip_prefix(':').filter(|number| is_number(number)) {
        // IPv4 comes in there too, where the system has IPv6 at all.
        let every = if UdpSocket::bind("[::]:0").is_ok() { "[::]" } else { "0.0.0.0" };
        return addresses(&format!("{every}:{}", port(number)?));
    }
    if let Ok(address) = text.parse() {
        return Ok(vec![address]);
    }
    match text.parse() {
        Ok(IpAddr::V4(_)) => return Err(format!("should have a port: {text}:8008")),
        Ok(IpAddr::V6(_)) => return Err(format!("should have brackets and a port: [{text}]:8008")),
        Err(_) => {}
    }
    match text.rsplit_once(':') {
        Some((host, number)) if is_number(number) && !host.is_empty() && !host.contains([':', '/']) => {
            let found = (host, port(number)?).to_socket_addrs();
            found.map(Iterator::collect).map_err(|_| format!("cannot be looked up: nobody knows {host}"))
        }
        _ => Err("should be an address such as 127.0.0.1:8008, or a port".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_one_of_loopback_and_a_colon_and_a_port_one_of_every_address() {
        let first = |text: &str| addresses(text).map(|all| all[0].to_string());
        assert_eq!(first("8008").unwrap(), "127.0.0.1:8008");
        assert_eq!(first("0").unwrap(), "127.0.0.1:0");
        let every = first(":8008").unwrap();
        assert!(["[::]:8008", "0.0.0.0:8008"].contains(&every.as_str()), "{every}");
        assert_eq!(first("[::1]:8008").unwrap(), "[::1]:8008");
        assert_eq!(first("192.0.2.1:80").unwrap(), "192.0.2.1:80");
        assert!(
            addresses("localhost:8008").unwrap().iter().all(|a| a.ip().is_loopback() && a.port() == 8008)
        );
        for (wrong, told) in [
            ("", "such as 127.0.0.1:8008"),
            (":", "such as"),
            ("70000", "65535"),
            (":70000", "65535"),
            ("127.0.0.1:70000", "65535"),
            ("127.0.0.1", "127.0.0.1:8008"),
            ("::1", "[::1]:8008"),
            ("localhost", "such as"),
            ("localhost:", "such as"),
            ("localhost:http", "such as"),
            ("localhost:70000", "65535"),
            ("http://127.0.0.1:8008", "such as"),
            ("-1", "such as"),
        ] {
            let e = addresses(wrong).unwrap_err();
            assert!(e.contains(told), "{wrong:?}: {e}");
        }
    }

    #[test]
    fn a_pattern_that_no_server_name_can_match_is_refused() {
        for good in [
            "*",
            "example.org",
            "*.example.org",
            "EVIL?.example",
            "192.0.2.*",
            "[2001:db8::1]",
            "[2001:db8:*",
        ] {
            assert_eq!(pattern(good), Ok(()), "{good}");
        }
        for (wrong, told) in [
            ("", "a server's name"),
            (" ", "a server's name"),
            ("example.org ", "a server's name"),
            ("example.org:8448", "write example.org"),
            ("*:8448", "write *"),
            ("*:*", "write *"),
            ("[::1]:8448", "write [::1]"),
            ("::1", "[::1]"),
            ("https://example.org", "a server's name"),
            ("example.org/", "a server's name"),
            ("@alice:example.org", "a server's name"),
            ("a.example,b.example", "a server's name"),
            ("bücher.example", "a server's name"),
            (".example.org", "write *.example.org"),
            ("^evil$", "a server's name"),
        ] {
            let e = pattern(wrong).unwrap_err();
            assert!(e.contains(told), "{wrong:?}: {e}");
        }
    }
}
