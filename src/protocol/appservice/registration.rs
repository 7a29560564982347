//! The file of a registration. Its keys are read as Synapse reads them, whose files these are; unknown ones are passed over.
//! Errors end a sentence that begins with the file, and name the line and the key. They show no token.

use regex_lite::Regex;

use super::{Namespace, Registration, Secret};
use crate::protocol::UserId;
use crate::protocol::media::web_url::WebUrl;
use crate::yaml::{self, Node, Value};

/// Namespaces of one kind, at most: each is matched with every user and room that something happens to.
const NAMESPACES_MAX: usize = 1000;

/// A key, and what is wrong with it.
fn wrong(node: &Node, key: &str, what: &str) -> String {
    format!("line {}: {key}: {what}", node.line)
}

impl Registration {
    /// Reads a file.
    pub fn parse(text: &str) -> Result<Self, String> {
        let root = yaml::parse(text)?;
        if root.is_null() {
            return Err("has nothing in it".into());
        }
        if !matches!(root.value, Value::Map(_)) {
            return Err("is no registration: it should have keys, such as id, url and as_token".into());
        }
        let needed = |key: &str| needed_text(&root, key);
        Ok(Self {
            id: needed("id")?.to_owned(),
            url: url(&root)?,
            as_token: token(&root, "as_token")?,
            hs_token: token(&root, "hs_token")?,
            sender_localpart: sender_localpart(&root)?,
            users: namespaces(&root, "users")?,
            aliases: namespaces(&root, "aliases")?,
            rooms: namespaces(&root, "rooms")?,
            rate_limited: switch(&root, "rate_limited")?.unwrap_or(true),
            protocols: protocols(&root)?,
            // Bridges write the one or the other, or both, of which the older one may be the only one that is on.
            receive_ephemeral: any_switch(
                &root,
                &[
                    "receive_ephemeral",
                    "de.sorunome.msc2409.receive_ephemeral",
                    "de.sorunome.msc2409.push_ephemeral",
                    "push_ephemeral",
                ],
            )?,
            msc3202: any_switch(&root, &["org.matrix.msc3202"])?,
            msc4190: any_switch(&root, &["io.element.msc4190"])?,
        })
    }
}

fn needed<'n>(root: &'n Node, key: &str) -> Result<&'n Node, String> {
    root.get(key).ok_or_else(|| format!("has no {key}"))
}

fn needed_text<'n>(root: &'n Node, key: &str) -> Result<&'n str, String> {
    let node = needed(root, key)?;
    node.text()
        .filter(|text| !text.is_empty())
        .ok_or_else(|| wrong(node, key, "should be text that is not empty"))
}

/// A token, which has to fit into a header.
fn token(root: &Node, key: &str) -> Result<Secret, String> {
    let text = needed_text(root, key)?;
    match text.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(Secret(text.to_owned())),
        false => {
            let what = "should have letters of ASCII, digits and signs only, and no spaces";
            Err(wrong(needed(root, key)?, key, what))
        }
    }
}

fn url(root: &Node) -> Result<Option<String>, String> {
    let node = root.get("url").ok_or("has no url: one that is never to be sent anything has url: null")?;
    if node.is_null() || node.text() == Some("") {
        return Ok(None);
    }
    let text = node.text().map(|text| text.trim_end_matches('/')).unwrap_or_default();
    let is_whole = !text.contains(['?', '#']) && !text.contains(char::is_whitespace);
    match WebUrl::parse(text).filter(|_| is_whole) {
        Some(_) => Ok(Some(text.to_owned())),
        None => {
            Err(wrong(node, "url", "should be an http or https URL, such as http://localhost:29328, or null"))
        }
    }
}

/// Capitals and signs of the historical grammar included: bridges make up random ones.
fn sender_localpart(root: &Node) -> Result<String, String> {
    const KEY: &str = "sender_localpart";
    let text = needed_text(root, KEY)?;
    let is_localpart = UserId::parse(&format!("@{text}:a"))
        .is_ok_and(|user| user.localpart() == text && user.is_compliant() && !text.starts_with('@'));
    match is_localpart {
        true => Ok(text.to_owned()),
        false => {
            let what = "should be the name of its user, the part between @ and the colon, such as _irc_bot";
            Err(wrong(needed(root, KEY)?, KEY, what))
        }
    }
}

fn switch(root: &Node, key: &str) -> Result<Option<bool>, String> {
    match root.get(key) {
        None => Ok(None),
        Some(node) if node.is_null() => Ok(None),
        Some(node) => node.truth().map(Some).ok_or_else(|| wrong(node, key, "should be true or false")),
    }
}

fn any_switch(root: &Node, keys: &[&str]) -> Result<bool, String> {
    keys.iter().try_fold(false, |on, key| Ok(switch(root, key)?.unwrap_or(false) || on))
}

fn list<'n>(node: &'n Node, key: &str) -> Result<&'n [Node], String> {
    match &node.value {
        Value::List(items) => Ok(items),
        _ if node.is_null() => Ok(&[]),
        _ => Err(wrong(node, key, "should be a list")),
    }
}

fn protocols(root: &Node) -> Result<Vec<String>, String> {
    let Some(node) = root.get("protocols") else { return Ok(Vec::new()) };
    let text = |item: &Node| {
        let text = item.text().filter(|text| !text.is_empty()).map(str::to_owned);
        text.ok_or_else(|| wrong(item, "protocols", "should be names, such as irc"))
    };
    list(node, "protocols")?.iter().map(text).collect()
}

fn namespaces(root: &Node, kind: &str) -> Result<Vec<Namespace>, String> {
    let Some(all) = root.get("namespaces").filter(|node| !node.is_null()) else { return Ok(Vec::new()) };
    if !matches!(all.value, Value::Map(_)) {
        return Err(wrong(all, "namespaces", "should have the lists users, aliases and rooms"));
    }
    let key = format!("namespaces.{kind}");
    let Some(node) = all.get(kind) else { return Ok(Vec::new()) };
    let items = list(node, &key)?;
    if items.len() > NAMESPACES_MAX {
        return Err(wrong(node, &key, "has more than a thousand entries"));
    }
    items.iter().map(|item| namespace(item, &key)).collect()
}

fn namespace(item: &Node, key: &str) -> Result<Namespace, String> {
    let regex = item.get("regex").ok_or_else(|| wrong(item, key, "an entry has no regex"))?;
    let (regex_key, exclusive_key) = (format!("{key}.regex"), format!("{key}.exclusive"));
    let text = regex.text().ok_or_else(|| wrong(regex, &regex_key, "should be text, in quotes"))?;
    let bad = |e: regex_lite::Error| wrong(regex, &regex_key, &format!("is no regular expression: {e}"));
    // By itself first: with what is put around it, half an expression could become a whole one.
    Regex::new(text).map_err(bad)?;
    let anchored = Regex::new(&format!("^(?:{text})")).map_err(bad)?;
    let exclusive = item
        .get("exclusive")
        .ok_or_else(|| wrong(item, key, "an entry does not say whether it is exclusive"))?;
    let exclusive =
        exclusive.truth().ok_or_else(|| wrong(exclusive, &exclusive_key, "should be true or false"))?;
    Ok(Namespace { regex: anchored, exclusive })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::appservice::Appservice;
    use crate::protocol::{RoomAlias, RoomId, ServerName};

    /// What the shortest registration has.
    const SHORTEST: &str = "id: b\nurl: null\nas_token: a\nhs_token: h\nsender_localpart: bot\n";

    fn service(text: &str) -> Appservice {
        let registration = Registration::parse(text).unwrap();
        Appservice::new(registration, &ServerName::parse("example.org").unwrap()).unwrap()
    }

    fn user(id: &str) -> UserId {
        UserId::parse(id).unwrap()
    }

    #[test]
    fn the_file_of_a_bridge_is_read_with_its_comments_quotes_and_lists_in_brackets() {
        let service = service(
            "---\n# written by hand\nid: \"IRC Bridge\"   # its name\nurl: 'http://127.0.0.1:1234/'\n\
             as_token: 30c05ae9\nhs_token: \"312df522\"\nsender_localpart: Irc_Bot\nrate_limited: no\n\
             protocols: [irc, \"gitter\"]\nde.sorunome.msc2409.push_ephemeral: true\nreceive_ephemeral: false\n\
             org.matrix.msc3202: true\nio.element.msc4190: true\npush_rules: {some: [thing, 1]}\n\
             namespaces:\n  users:\n  - {exclusive: true, regex: '@_irc_.*'}\n  - exclusive: false\n    \
             regex: '@helper:example\\.org$'\n  aliases:\n    - exclusive: true\n      regex: \"#_irc_.*:example\\\\.org\"\n  \
             rooms: []\n",
        );
        assert_eq!(
            (service.id.as_str(), service.url.as_deref()),
            ("IRC Bridge", Some("http://127.0.0.1:1234"))
        );
        assert_eq!((service.as_token.expose(), service.hs_token.expose()), ("30c05ae9", "312df522"));
        assert_eq!(service.sender, "@Irc_Bot:example.org");
        assert!(!service.rate_limited && service.receive_ephemeral && service.msc3202 && service.msc4190);
        assert_eq!(service.protocols, ["irc", "gitter"]);
        assert!(service.is_exclusive_user(&user("@_irc_a:example.org")));
        assert!(
            service.may_be(&user("@helper:example.org"))
                && !service.is_exclusive_user(&user("@helper:example.org"))
        );
        assert!(service.is_exclusive_alias(&RoomAlias::parse("#_irc_x:example.org").unwrap()));
        assert!(!service.wants_room(&RoomId::parse("!r:example.org").unwrap()));
    }

    #[test]
    fn the_shortest_registration_speaks_for_its_own_user_alone_and_is_limited() {
        for url in ["null", "~", "", "''", "\"\""] {
            let service = service(&SHORTEST.replace("null", url));
            assert_eq!(service.url, None, "{url}");
            assert!(service.rate_limited && !service.receive_ephemeral && !service.msc3202);
            assert!(service.may_be(&user("@bot:example.org")) && !service.may_be(&user("@bot:other.org")));
            assert!(!service.may_be(&user("@alice:example.org")));
        }
        let empty = service(&format!("{SHORTEST}namespaces:\n  users:\n  rooms: ~\n"));
        assert!(empty.users.is_empty());
    }

    #[test]
    fn an_expression_matches_from_the_beginning_on_and_goes_as_far_as_it_says() {
        let with = |regex: &str| {
            service(&format!("{SHORTEST}namespaces: {{users: [{{exclusive: true, regex: '{regex}'}}]}}\n"))
        };
        for (regex, matches, does_not) in [
            ("@irc_", "@irc_a:example.org", "@an@irc_:example.org"),
            ("@irc_.*", "@irc_a:example.org", "@xirc_a:example.org"),
            ("^@irc_[a-z]+:example\\.org$", "@irc_a:example.org", "@irc_1:example.org"),
            ("@a:|@b:", "@b:example.org", "@x@b:example.org"),
            ("(?i)@IRC_", "@irc_a:example.org", "@ir:example.org"),
            ("@irc\\-bot:example\\.org", "@irc-bot:example.org", "@ircxbot:example.org"),
            ("", "@alice:example.org", "@alice:other.org"),
        ] {
            let service = with(regex);
            assert!(service.may_be(&user(matches)), "{regex} {matches}");
            assert!(!service.may_be(&user(does_not)), "{regex} {does_not}");
        }
    }

    #[test]
    fn users_of_other_servers_are_nobodys_whatever_an_expression_says() {
        let service =
            service(&format!("{SHORTEST}namespaces: {{users: [{{exclusive: true, regex: '@.*'}}]}}"));
        let other = user("@alice:other.org");
        assert!(!service.may_be(&other) && !service.wants_user(&other) && !service.is_exclusive_user(&other));
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said_with_its_line_and_its_key_and_without_a_token() {
        let users = |item: &str| format!("{SHORTEST}namespaces:\n  users:\n    - {item}\n");
        let without = |key: &str| {
            SHORTEST
                .lines()
                .filter(|line| !line.starts_with(key))
                .map(|line| format!("{line}\n"))
                .collect::<String>()
        };
        let cases = [
            (String::new(), "has nothing in it"),
            ("hello".to_owned(), "is no registration"),
            (without("id"), "has no id"),
            (without("url"), "has no url"),
            (without("as_token"), "has no as_token"),
            (without("hs_token"), "has no hs_token"),
            (without("sender"), "has no sender_localpart"),
            (SHORTEST.replace("id: b", "id:"), "line 1: id: should be text"),
            (
                SHORTEST.replace("as_token: a", "as_token: ''"),
                "line 3: as_token: should be text that is not empty",
            ),
            (SHORTEST.replace("hs_token: h", "hs_token: 'se cret'"), "line 4: hs_token: should have letters"),
            (SHORTEST.replace("null", "ftp://x"), "line 2: url: should be an http or https URL"),
            (SHORTEST.replace("null", "localhost:1"), "line 2: url: should be an http or https URL"),
            (SHORTEST.replace("null", "http://x/?a=b"), "line 2: url: should be an http or https URL"),
            (SHORTEST.replace("null", "[a]"), "line 2: url: should be an http or https URL"),
            (
                SHORTEST.replace(": bot", ": '@bot:example.org'"),
                "line 5: sender_localpart: should be the name",
            ),
            (SHORTEST.replace(": bot", ": 'a bot'"), "line 5: sender_localpart: should be the name"),
            (format!("{SHORTEST}id: c\n"), "line 6: id is there twice"),
            (format!("{SHORTEST}rate_limited: 'true'\n"), "line 6: rate_limited: should be true or false"),
            (format!("{SHORTEST}protocols: irc\n"), "line 6: protocols: should be a list"),
            (format!("{SHORTEST}namespaces: []\n"), "line 6: namespaces: should have the lists"),
            (format!("{SHORTEST}namespaces: {{users: x}}\n"), "line 6: namespaces.users: should be a list"),
            (users("exclusive: true"), "line 8: namespaces.users: an entry has no regex"),
            (users("regex: '@a'"), "line 8: namespaces.users: an entry does not say whether it is exclusive"),
            (
                users("{regex: '@a', exclusive: perhaps}"),
                "line 8: namespaces.users.exclusive: should be true or false",
            ),
            (
                users("{regex: '@[', exclusive: true}"),
                "line 8: namespaces.users.regex: is no regular expression",
            ),
            (
                users("{regex: 'a)|(b', exclusive: true}"),
                "line 8: namespaces.users.regex: is no regular expression",
            ),
            (
                users("{regex: '@(?!x)', exclusive: true}"),
                "line 8: namespaces.users.regex: is no regular expression",
            ),
            (
                users("{regex: '(?x)@a #', exclusive: true}"),
                "line 8: namespaces.users.regex: is no regular expression",
            ),
            (users("{regex: \"\\.\", exclusive: true}"), "line 8: an escape that is none"),
            (format!("{SHORTEST}---\nid: c\n"), "line 6: a second document"),
            (format!("a: &x 1\nb: *x\n{SHORTEST}"), "line 1: this kind of value is not understood"),
            (format!("{SHORTEST}\tx: 1\n"), "line 6: a tab where spaces should be"),
            (format!("{SHORTEST}x: {}\n", "[".repeat(100)), "line 6: nested too deeply"),
            (format!("{SHORTEST}? [a]\n: b\n"), "line 6: a key is missing"),
        ];
        for (text, told) in cases {
            let error = Registration::parse(&text).expect_err(&text);
            assert!(error.starts_with(told), "{text}\n{error}");
            assert!(!error.contains("se cret"), "{error}");
        }
    }

    #[test]
    fn what_a_file_is_shown_as_has_no_token_in_it() {
        let registration = Registration::parse(&SHORTEST.replace("as_token: a", "as_token: hush")).unwrap();
        assert!(!format!("{registration:?}").contains("hush"));
    }
}
