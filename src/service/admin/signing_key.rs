//! The key that this server signs with, taken out and brought in: as Synapse writes it into its `signing.key`.

use super::Admin;
use crate::error::{Error, Result};
use crate::protocol::json::{base64, base64_decode};
use crate::protocol::signatures::sign::SigningKey;

impl Admin<'_> {
    /// The key in use with its secret half: `ed25519`, its version, and the seed in unpadded base64.
    pub fn export_signing_key(&self) -> String {
        let key = self.key_ring.signing_key();
        let version = key.key_id().split_once(':').map_or("", |(_, version)| version);
        format!("ed25519 {version} {}", base64(&key.seed()))
    }

    /// Signs with this key from now on; those before it stay published for what they signed. Gives its id.
    ///
    /// Errors: 400 `M_INVALID_PARAM`: it is no such key, or another one had its id.
    pub fn import_signing_key(&self, text: &str) -> Result<String> {
        self.keys().sign_with(read_key(text)?)
    }
}

fn read_key(text: &str) -> Result<SigningKey> {
    // The text is a secret: an error does not repeat it.
    let wrong = || {
        Error::invalid_param(
            "This is no signing key: it should be one line, `ed25519`, the key's version and its seed in base64",
        )
    };
    let words: Vec<&str> = text.split_whitespace().collect();
    let ["ed25519", version, seed] = words[..] else { return Err(wrong()) };
    let seed: [u8; 32] = base64_decode(seed).and_then(|seed| seed.try_into().ok()).ok_or_else(wrong)?;
    SigningKey::from_seed(&format!("ed25519:{version}"), seed).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use crate::config::Config;
    use crate::protocol::ServerName;
    use crate::testing::secluded;

    #[test]
    fn a_key_that_was_taken_out_is_brought_in_and_the_one_before_stays_published() {
        let open = || secluded(Config::for_name(ServerName::parse("example.org").expect("a name")));
        let (lost, new) = (open(), open());
        let key = lost.admin().export_signing_key();
        // A server that has done nothing has no key but this one.
        let key_id = new.admin().import_signing_key(&format!("{key}\n")).expect("it is a key");
        assert_eq!(new.admin().export_signing_key(), key);
        let statement = new.key_ring.own_statement();
        assert!(statement["verify_keys"].get(&key_id).is_some());
        assert_eq!(statement["old_verify_keys"], serde_json::json!({}));
        // One that has keeps its own for what it signed.
        let busy = open();
        busy.accounts().register_user("alice", None).expect("an account");
        let before = busy.key_ring.signing_key().key_id().to_owned();
        let own = busy.admin().export_signing_key();
        busy.admin().import_signing_key(&key).expect("it is a key");
        assert!(busy.key_ring.own_statement()["old_verify_keys"].get(&before).is_some());
        // And back: what is in use again is not an old one.
        busy.admin().import_signing_key(&own).expect("it is a key");
        let statement = busy.key_ring.own_statement();
        assert!(
            statement["verify_keys"].get(&before).is_some()
                && statement["old_verify_keys"].get(&before).is_none()
        );
        assert!(statement["old_verify_keys"].get(&key_id).is_some());
        assert_eq!(busy.admin().import_signing_key(&own).expect("the same again"), before);
    }

    #[test]
    fn what_is_no_key_is_refused_and_not_repeated() {
        let hs = secluded(Config::for_name(ServerName::parse("example.org").expect("a name")));
        let own = hs.admin().export_signing_key();
        let (version, seed) =
            own.strip_prefix("ed25519 ").and_then(|rest| rest.split_once(' ')).expect("a key");
        let other = format!("ed25519 {version} {}", "A".repeat(43));
        for wrong in [
            "",
            "ed25519",
            seed,
            &format!("ed25519 {seed}"),
            &format!("ed25519 a:b {seed}"),
            &format!("ed25519 {version} {}", &seed[1..]),
            &format!("rsa {version} {seed}"),
            &format!("{own}\n{own}"),
            &other,
        ] {
            let e = hs.admin().import_signing_key(wrong).expect_err(wrong);
            assert!(e.status() == 400 && !e.to_string().contains(&seed[1..]), "{e}");
        }
        assert_eq!(hs.admin().export_signing_key(), own);
    }
}
