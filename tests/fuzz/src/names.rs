//! Identifiers, server names, and the globs of server access control lists.

use doorstep::protocol::glob::Glob;
use doorstep::protocol::rooms::server_acl::ServerAcl;
use doorstep::protocol::{EventId, RoomAlias, RoomId, ServerName, UserId};
use serde_json::{Value, json};

/// Any text as each kind of identifier; two lines as a pattern and what it is matched with.
pub fn names(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    identifier(&text);
    if let Some((pattern, name)) = text.split_once('\n') {
        glob(pattern, name);
        identifier(name);
    }
}

fn identifier(text: &str) {
    if let Ok(name) = ServerName::parse(text) {
        assert_eq!(name.as_str(), text);
        let displayed = format!("{name}");
        assert_eq!(ServerName::parse(&displayed).ok().as_ref(), Some(&name));
        assert!(text.starts_with(name.host()) && !name.host().is_empty());
        let port = &text[name.host().len()..];
        let number = port.strip_prefix(':').and_then(|digits| digits.parse::<u16>().ok());
        assert_eq!(name.port(), number);
        assert!(port.is_empty() || port.starts_with(':'));
        assert!(ServerName::parse(name.host()).is_ok(), "a host alone is a server name");
        assert!(text.len() <= 261 && !text.contains(|c: char| c.is_whitespace() || c == '/'));
    }
    if let Ok(user) = UserId::parse(text) {
        assert_eq!(format!("@{}:{}", user.localpart(), user.server_name()), text);
        assert!(ServerName::parse(user.server_name()).is_ok());
        assert_eq!(user.server().as_str(), user.server_name());
        if UserId::is_allocatable_localpart(user.localpart()) {
            assert!(user.is_compliant());
        }
        through_json(text, serde_json::from_value::<UserId>(json!(text)).map(|id| id.to_string()).ok());
    }
    if let Ok(alias) = RoomAlias::parse(text) {
        assert_eq!(format!("#{}:{}", alias.localpart(), alias.server_name()), text);
        assert!(ServerName::parse(alias.server().as_str()).is_ok());
    }
    if let Ok(room) = RoomId::parse(text) {
        assert_eq!(room.as_str(), text);
        assert!(room.server_name().is_none_or(|server| ServerName::parse(server).is_ok()));
        if let Some(create) = room.create_event_id() {
            assert_eq!(EventId::parse(create.as_str()).ok().as_ref(), Some(&create));
            assert_eq!(RoomId::of_create_event(&create), room);
        }
        through_json(text, serde_json::from_value::<RoomId>(json!(text)).map(|id| id.to_string()).ok());
    }
    if let Ok(event) = EventId::parse(text) {
        assert_eq!(event.as_str(), text);
        assert!(event.server_name().is_none_or(|server| ServerName::parse(server).is_ok()));
        if event.server_name().is_none() {
            assert!(RoomId::parse(RoomId::of_create_event(&event).as_str()).is_ok());
        }
    }
    for (parsed, read) in [
        (ServerName::parse(text).is_ok(), serde_json::from_value::<ServerName>(json!(text)).is_ok()),
        (EventId::parse(text).is_ok(), serde_json::from_value::<EventId>(json!(text)).is_ok()),
    ] {
        assert_eq!(parsed, read, "by itself and within JSON");
    }
}

fn through_json(text: &str, read: Option<String>) {
    assert_eq!(read.as_deref(), Some(text));
}

/// Our matcher against one that needs no cleverness.
fn glob(pattern: &str, text: &str) {
    let (folded_pattern, folded) = (Glob::fold(pattern), Glob::fold(text));
    if folded_pattern.len() > 200 || folded.len() > 200 {
        return;
    }
    // `row[t]`: whether the pattern so far matches the first `t` characters.
    let mut row = vec![false; folded.len() + 1];
    row[0] = true;
    for &c in &folded_pattern {
        let mut next = vec![false; row.len()];
        next[0] = c == '*' && row[0];
        for t in 1..row.len() {
            next[t] = match c {
                '*' => row[t] || next[t - 1],
                '?' => row[t - 1],
                c => row[t - 1] && folded[t - 1] == c,
            };
        }
        row = next;
    }
    assert_eq!(Glob::new(pattern).matches(&folded), row[folded.len()], "{pattern:?} {text:?}");
    let content = json!({ "allow": ["*"], "deny": [pattern], "allow_ip_literals": false });
    let Value::Object(content) = content else { return };
    let _ = ServerAcl::from_content(&content).allows(text);
}
