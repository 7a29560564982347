//! The `Authorization: X-Matrix` header.

use std::sync::OnceLock;

use doorstep::protocol::ServerName;
use doorstep::protocol::json::parse_object;
use doorstep::protocol::signatures::sign::SigningKey;
use doorstep::protocol::signatures::x_matrix::{Authorization, SignedRequest, build, parse};

use super::source::Source;

fn key() -> &'static SigningKey {
    static KEY: OnceLock<SigningKey> = OnceLock::new();
    KEY.get_or_init(|| SigningKey::from_seed("ed25519:k", [7; 32]).expect("a key"))
}

/// Any bytes as a header; and as the path and body of a request that is signed and checked.
pub fn x_matrix(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(read) = parse(&text) {
        assert!(read.key.len() > "ed25519:".len());
        assert_eq!(parse(&write(&read)).expect("what we wrote"), read);
        let own = ServerName::parse("own.example").expect("a name");
        // Only our key signs, and it has not.
        assert!(read.verify("GET", "/", &own, None, &key().verify_key()).is_err());
    }

    let mut source = Source::new(data);
    let method = source.pick(&["GET", "PUT", "POST"]);
    let split = source.below(64);
    let rest = source.rest();
    let (uri, body) = rest.split_at(split.min(rest.len()));
    let uri = String::from_utf8_lossy(uri);
    let (a, b) =
        (ServerName::parse("a.example").expect("a name"), ServerName::parse("[::1]:1").expect("a name"));
    for content in [None, Some(body)] {
        let request =
            SignedRequest { method, uri: &uri, origin: a.as_str(), destination: b.as_str(), content };
        match build(method, &uri, &a, &b, content, key()) {
            Ok(header) => {
                let read = parse(&header).expect("our own header");
                assert!(read.verify(method, &uri, &b, content, &key().verify_key()).is_ok());
                assert!(read.verify(method, &format!("{uri}x"), &b, content, &key().verify_key()).is_err());
                assert!(read.verify(method, &uri, &a, content, &key().verify_key()).is_err());
                if let Ok(object) = request.bytes().and_then(|signed| parse_object(&signed)) {
                    assert_eq!(object["uri"], *uri);
                    assert_eq!(object.contains_key("content"), content.is_some());
                }
            }
            Err(_) => assert!(
                content.is_some_and(|body| doorstep::protocol::json::canonical_text(body).is_err()),
                "only a body that is no JSON cannot be signed"
            ),
        }
    }
}

/// The header with everything quoted, and escaped as RFC 9110 has it.
fn write(read: &Authorization) -> String {
    let quoted = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
    let mut header = format!("X-Matrix origin=\"{}\"", quoted(read.origin.as_str()));
    if let Some(destination) = &read.destination {
        header += &format!(",destination=\"{destination}\"");
    }
    header + &format!(",key=\"{}\",sig=\"{}\"", quoted(&read.key), quoted(&read.signature))
}
