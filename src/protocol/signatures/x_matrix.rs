//! The `X-Matrix` scheme: how homeservers sign their requests (server-server API, "Request Authentication").

use crate::error::{ErrCode, Error, Result};
use crate::protocol::ids::ServerName;
use crate::protocol::json;
use crate::protocol::signatures::sign::{SigningKey, VerifyKey};

/// The parameters of an `Authorization: X-Matrix …` header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorization {
    /// The server that says it sent the request.
    pub origin: ServerName,
    /// The server that the request was meant for; older servers leave it out.
    pub destination: Option<ServerName>,
    /// The id of the key that signed, `ed25519:…`.
    pub key: String,
    /// The signature in base64.
    pub signature: String,
}

/// A request as it is signed. `uri` is path and query as on the request line. `content` is the body, none if empty.
#[derive(Debug, Clone, Copy)]
pub struct SignedRequest<'a> {
    /// `GET`, `PUT`, …
    pub method: &'a str,
    /// Path and query, exactly as sent.
    pub uri: &'a str,
    /// Who sends.
    pub origin: &'a str,
    /// Who receives.
    pub destination: &'a str,
    /// The body's JSON text.
    pub content: Option<&'a [u8]>,
}

impl SignedRequest<'_> {
    /// The bytes that the signature covers. Errors: `M_NOT_JSON`, `M_BAD_JSON` if the content is no acceptable JSON.
    pub fn bytes(&self) -> Result<Vec<u8>> {
        // The keys in canonical order. The content goes in as canonical text, so that it is never a tree of values, and
        // at once into its place, so that there are not two copies of it.
        let mut out = Vec::with_capacity(256 + self.uri.len() + self.content.map_or(0, <[u8]>::len));
        out.push(b'{');
        if let Some(content) = self.content {
            out.extend_from_slice(b"\"content\":");
            out = json::append_canonical(out, content)?;
            out.push(b',');
        }
        let fields = [
            ("destination", self.destination),
            ("method", self.method),
            ("origin", self.origin),
            ("uri", self.uri),
        ];
        for (i, (name, value)) in fields.into_iter().enumerate() {
            if i > 0 {
                out.push(b',');
            }
            json::write_string(&mut out, name);
            out.push(b':');
            json::write_string(&mut out, value);
        }
        out.push(b'}');
        Ok(out)
    }

    /// The value of the `Authorization` header. Errors: if `content` is not JSON.
    pub fn authorization(&self, key: &SigningKey) -> Result<String> {
        // Server names, key ids and base64 have no character that would need a backslash.
        Ok(format!(
            "X-Matrix origin=\"{}\",destination=\"{}\",key=\"{}\",sig=\"{}\"",
            self.origin,
            self.destination,
            key.key_id(),
            self.signature(key)?
        ))
    }

    /// The signature alone.
    pub fn signature(&self, key: &SigningKey) -> Result<String> {
        Ok(key.sign_bytes(&self.bytes()?))
    }
}

/// The value of the `Authorization` header for a request of this server. `content` is the body's JSON. Errors: if it
/// is not.
pub fn build(
    method: &str,
    uri: &str,
    origin: &ServerName,
    destination: &ServerName,
    content: Option<&[u8]>,
    key: &SigningKey,
) -> Result<String> {
    let (origin, destination) = (origin.as_str(), destination.as_str());
    SignedRequest { method, uri, origin, destination, content }.authorization(key)
}

/// Reads an `Authorization` header. Errors: 401 `M_UNAUTHORIZED`.
///
/// Parameters come in any order and case of name, quoted or not, with spaces and tabs around commas and equals signs.
/// Unquoted values may have any character but commas, quotes and white space, for the sake of older servers. Unknown
/// parameters are ignored; a known one that comes twice is an error.
pub fn parse(header: &str) -> Result<Authorization> {
    let bad = |why: &'static str| Error::new(ErrCode::Unauthorized, why);
    let (scheme, rest) = header.trim().split_once([' ', '\t']).unwrap_or((header, ""));
    if !scheme.eq_ignore_ascii_case("X-Matrix") {
        return Err(bad("the Authorization header is not of the scheme X-Matrix"));
    }
    let mut known: [Option<String>; 4] = Default::default();
    let mut rest = rest.trim_start_matches([' ', '\t', ',']);
    while !rest.is_empty() {
        let (name, after) =
            rest.split_once('=').ok_or_else(|| bad("a parameter of X-Matrix has no value"))?;
        let (value, after) = parameter_value(after.trim_start_matches([' ', '\t']))?;
        let slot = match name.trim_end_matches([' ', '\t']).to_ascii_lowercase().as_str() {
            "origin" => Some(0),
            "destination" => Some(1),
            "key" => Some(2),
            // The text of the specification calls it `signature`, its examples and all servers `sig`.
            "sig" | "signature" => Some(3),
            _ => None,
        };
        if let Some(slot) = slot.and_then(|i| known.get_mut(i))
            && slot.replace(value).is_some()
        {
            return Err(bad("a parameter of X-Matrix comes twice"));
        }
        let after = after.trim_start_matches([' ', '\t']);
        rest = match after.strip_prefix(',') {
            Some(more) => more.trim_start_matches([' ', '\t', ',']),
            None if after.is_empty() => after,
            None => return Err(bad("the parameters of X-Matrix are not separated by commas")),
        };
    }
    let [origin, destination, key, signature] = known;
    let server =
        |name: String| ServerName::parse(&name).map_err(|_| bad("X-Matrix has no valid server name"));
    let key = key.ok_or_else(|| bad("X-Matrix has no key"))?;
    if key.strip_prefix("ed25519:").is_none_or(str::is_empty) {
        return Err(bad("the key of X-Matrix is not an ed25519 key"));
    }
    Ok(Authorization {
        origin: server(origin.ok_or_else(|| bad("X-Matrix has no origin"))?)?,
        destination: destination.map(server).transpose()?,
        key,
        signature: signature.ok_or_else(|| bad("X-Matrix has no signature"))?,
    })
}

/// Reads one value, quoted or not; what follows it is handed back.
fn parameter_value(text: &str) -> Result<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t', '"']).unwrap_or(text.len());
        let (value, rest) = text.split_at(end);
        return Ok((value.to_owned(), rest));
    };
    // Mostly nothing in it is escaped.
    if let Some((value, rest)) = quoted.split_once('"')
        && !value.contains('\\')
    {
        return Ok((value.to_owned(), rest));
    }
    let (mut value, mut chars) = (String::new(), quoted.char_indices());
    while let Some((i, c)) = chars.next() {
        match c {
            '"' => return Ok((value, &quoted[i + 1..])),
            '\\' => match chars.next() {
                Some((_, escaped)) => value.push(escaped),
                None => break,
            },
            c => value.push(c),
        }
    }
    Err(Error::new(ErrCode::Unauthorized, "a quoted value of X-Matrix has no end"))
}

impl Authorization {
    /// Checks the signature of a request that `own_name` received. Errors: 401 `M_UNAUTHORIZED` if it was meant for
    /// another server or the signature is wrong; `M_NOT_JSON`, `M_BAD_JSON` if the content is no acceptable JSON.
    pub fn verify(
        &self,
        method: &str,
        uri: &str,
        own_name: &ServerName,
        content: Option<&[u8]>,
        key: &VerifyKey,
    ) -> Result<()> {
        if self.destination.as_ref().is_some_and(|destination| destination != own_name) {
            return Err(Error::new(ErrCode::Unauthorized, "the request was meant for another server"));
        }
        let (origin, destination) = (self.origin.as_str(), own_name.as_str());
        let message = SignedRequest { method, uri, origin, destination, content }.bytes()?;
        if key.verifies(&message, &self.signature) {
            return Ok(());
        }
        Err(Error::new(ErrCode::Unauthorized, format!("the signature of {origin} is wrong")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> (ServerName, ServerName) {
        (ServerName::parse("a.example").expect("name"), ServerName::parse("b.example:8448").expect("name"))
    }

    #[test]
    fn a_built_header_is_parsed_and_verified_again() {
        let (a, b) = names();
        let key = SigningKey::generate([7; 32], "k1");
        let body = br#" {"b":1,"a":[1.5, "\u00e9"]}"#.as_slice();
        for content in [None, Some(body)] {
            let header = build("PUT", "/_matrix/x?y=%20", &a, &b, content, &key).expect("JSON");
            let parsed = parse(&header).expect("well formed");
            assert_eq!((parsed.origin.as_str(), parsed.key.as_str()), ("a.example", "ed25519:k1"));
            assert_eq!(parsed.destination.as_ref(), Some(&b));
            let verify = |method, uri, to, content| {
                parsed.verify(method, uri, to, content, &key.verify_key()).map_err(|e| e.status())
            };
            assert_eq!(verify("PUT", "/_matrix/x?y=%20", &b, content), Ok(()));
            assert_eq!(verify("GET", "/_matrix/x?y=%20", &b, content), Err(401));
            assert_eq!(verify("PUT", "/_matrix/x?y= ", &b, content), Err(401));
            assert_eq!(verify("PUT", "/_matrix/x?y=%20", &a, content), Err(401), "meant for another");
            assert_eq!(verify("PUT", "/_matrix/x?y=%20", &b, Some(b"{}")), Err(401));
            assert_eq!(verify("PUT", "/_matrix/x?y=%20", &b, Some(b"{")), Err(400));
        }
    }

    #[test]
    fn a_header_without_destination_is_verified_for_us() {
        let (a, b) = names();
        let key = SigningKey::generate([7; 32], "k1");
        let header = build("GET", "/x", &a, &b, None, &key).expect("JSON");
        let old = header.replace(r#"destination="b.example:8448","#, "");
        let parsed = parse(&old).expect("well formed");
        assert_eq!(parsed.destination, None);
        assert!(parsed.verify("GET", "/x", &b, None, &key.verify_key()).is_ok());
        assert!(parsed.verify("GET", "/x", &a, None, &key.verify_key()).is_err());
    }

    #[test]
    fn headers_are_read_however_they_are_spelled() {
        let expected = Authorization {
            origin: ServerName::parse("a.example:8448").expect("name"),
            destination: Some(ServerName::parse("[::1]:1").expect("name")),
            key: "ed25519:k_1".to_owned(),
            signature: "ab+/c".to_owned(),
        };
        for header in [
            r#"X-Matrix origin="a.example:8448",destination="[::1]:1",key="ed25519:k_1",sig="ab+/c""#,
            r"X-Matrix origin=a.example:8448,destination=[::1]:1,key=ed25519:k_1,sig=ab+/c",
            "x-matrix   KEY=\"ed25519:k_1\" ,\t Sig=ab+/c , Origin = \"a.example:8448\", destination= [::1]:1 ",
            r#"X-Matrix origin="\a.exam\ple:8448",destination="[::1]:1",key="ed25519:k_1",sig="ab\+/c""#,
            r#"X-Matrix new="a\",b\\",origin=a.example:8448,,destination=[::1]:1,key="ed25519:k_1",signature=ab+/c,"#,
        ] {
            assert_eq!(parse(header).expect(header), expected, "{header}");
        }
    }

    #[test]
    fn malformed_headers_are_unauthorized() {
        for header in [
            "",
            "X-Matrix",
            "X-Matrix ",
            "Bearer abc",
            "X-Matrixorigin=a",
            "X-Matrix origin",
            "X-Matrix origin=a,key=ed25519:1",
            "X-Matrix origin=a,sig=x",
            "X-Matrix key=ed25519:1,sig=x",
            "X-Matrix origin=a_b,key=ed25519:1,sig=x",
            "X-Matrix origin=a,destination=,key=ed25519:1,sig=x",
            "X-Matrix origin=a,key=rsa:1,sig=x",
            "X-Matrix origin=a,key=ed25519:,sig=x",
            "X-Matrix origin=a,key=ed25519:1,sig=x,sig=y",
            "X-Matrix origin=a,origin=b,key=ed25519:1,sig=x",
            "X-Matrix origin=a,key=ed25519:1,sig=\"x",
            "X-Matrix origin=a,key=ed25519:1,sig=\"x\\",
            "X-Matrix origin=a key=ed25519:1 sig=x",
            "X-Matrix origin=\"a\"b,key=ed25519:1,sig=x",
            "X-Matrix origin=\"\u{e9}\\\u{e9}\",key=ed25519:1,sig=x",
        ] {
            assert_eq!(parse(header).expect_err(header).status(), 401, "{header}");
        }
    }
}
