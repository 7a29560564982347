//! A certificate that TLS listeners serve and that is replaced while they run: connections keep what they began with. Beside
//! it, what proves to an authority that a name is ours (TLS-ALPN-01, RFC 8737), which only those get who ask for nothing else.

use std::fmt;
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use rustls::client::verify_server_name;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::clock::Millis;
use crate::error::{Error, Result};
use crate::locks::lock;
use crate::protocol::certificates::CertificateFacts;
use crate::protocol::certificates::acme::TLS_PROTOCOL;
use crate::protocol::certificates::calendar::utc;

/// Certificates that a chain may have. Those of authorities have two or three.
const CHAIN_MAX: usize = 10;

/// What listeners serve at present. Clones of its `Arc` are the same.
pub struct ServedCertificate {
    own: ArcSwap<CertifiedKey>,
    /// The proofs under way, by name.
    proofs: Mutex<Vec<(String, Arc<CertifiedKey>)>>,
}

impl ServedCertificate {
    /// Serves this one.
    pub fn new(certificate: CheckedCertificate) -> Self {
        Self { own: ArcSwap::new(Arc::new(certificate.certified)), proofs: Mutex::default() }
    }

    /// Serves another to all connections that begin from now on.
    pub fn replace(&self, certificate: CheckedCertificate) {
        self.own.store(Arc::new(certificate.certified));
    }

    /// Proves a name to whoever asks for it by the protocol of such proofs: with a certificate that signs itself, and has
    /// the digest in the extension for it (RFC 8737, 3).
    pub fn prove(&self, name: &str, digest: &[u8; 32]) -> Result<()> {
        let mut params = blank(&[name.to_owned()])?;
        params.custom_extensions.push(CustomExtension::new_acme_identifier(digest));
        let proof = Arc::new(signed_by_itself(&params)?);
        let mut proofs = lock(&self.proofs);
        proofs.retain(|(of, _)| of != name);
        proofs.push((name.to_owned(), proof));
        Ok(())
    }

    /// Proves nothing any more.
    pub fn end_proofs(&self) {
        lock(&self.proofs).clear();
    }

    fn proof_of(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        let proofs = lock(&self.proofs);
        proofs.iter().find(|(of, _)| of.eq_ignore_ascii_case(name)).map(|(_, proof)| proof.clone())
    }
}

impl fmt::Debug for ServedCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServedCertificate")
    }
}

impl ResolvesServerCert for ServedCertificate {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let mut protocols = hello.alpn().into_iter().flatten();
        // "The ACME server MUST provide an ALPN extension with the single protocol name" (RFC 8737, 3).
        if protocols.next() == Some(TLS_PROTOCOL) && protocols.next().is_none() {
            return self.proof_of(hello.server_name()?);
        }
        Some(self.own.load_full())
    }
}

/// A chain with its key, of which it is known that they belong together.
pub struct CheckedCertificate {
    certified: CertifiedKey,
    /// What the first of the chain says of itself.
    pub facts: CertificateFacts,
}

impl CheckedCertificate {
    /// Reads a chain and its key from PEM text. Errors: what of it is of no use.
    pub fn read(chain: &[u8], key: &[u8]) -> Result<Self> {
        let certified = certified_key(chain, key, ["the certificate", "its key"])?;
        if certified.cert.len() > CHAIN_MAX {
            return Err(Error::invalid_param("The chain of the certificate is too long"));
        }
        Self::of(certified)
    }

    /// One for these names that signs itself, which nobody trusts.
    pub fn signed_by_itself(names: &[String]) -> Result<Self> {
        Self::of(signed_by_itself(&blank(names)?)?)
    }

    fn of(certified: CertifiedKey) -> Result<Self> {
        let facts = certified.cert.first().and_then(|first| CertificateFacts::read(first));
        let facts = facts.ok_or_else(|| Error::invalid_param("The certificate has no dates"))?;
        Ok(Self { certified, facts })
    }

    /// Why others do not take it for any of these hosts now, as far as it says itself; none if they may.
    pub fn complaint(&self, hosts: &[&str], now: Millis) -> Option<String> {
        let CertificateFacts { names, not_before, not_after, .. } = &self.facts;
        if now >= *not_after {
            return Some(format!("it has expired, on {}", utc(*not_after)));
        }
        if now < *not_before {
            return Some(format!("it is not good before {}", utc(*not_before)));
        }
        let is_for_one = hosts.iter().any(|host| self.is_for(&[host.trim_matches(['[', ']']).to_owned()]));
        (!is_for_one).then(|| format!("it is for {} and not for {}", names.join(", "), hosts.join(" or ")))
    }

    /// Whether it is for all of these names.
    pub fn is_for(&self, names: &[String]) -> bool {
        let Some(Ok(first)) = self.certified.cert.first().map(ParsedCertificate::try_from) else {
            return false;
        };
        names.iter().all(|name| {
            ServerName::try_from(name.as_str()).is_ok_and(|name| verify_server_name(&first, &name).is_ok())
        })
    }

    /// Whether it is for this key (PEM).
    pub fn is_of(&self, key: &str) -> bool {
        certified_key(self.chain_pem().as_bytes(), key.as_bytes(), ["", ""]).is_ok()
    }

    /// The chain as PEM text, and nothing else.
    pub fn chain_pem(&self) -> String {
        let mut out = String::new();
        for certificate in &self.certified.cert {
            out.push_str("-----BEGIN CERTIFICATE-----\n");
            for line in STANDARD.encode(certificate).as_bytes().chunks(64) {
                out.push_str(&String::from_utf8_lossy(line));
                out.push('\n');
            }
            out.push_str("-----END CERTIFICATE-----\n");
        }
        out
    }
}

/// Reads a chain and its key, both PEM text, which the errors call by these names.
pub fn certified_key(chain: &[u8], key: &[u8], [chain_name, key_name]: [&str; 2]) -> Result<CertifiedKey> {
    let wrong = |e: &dyn fmt::Display| {
        Error::invalid_param(format!(
            "The certificate {chain_name} with the key {key_name} is of no use: {e}"
        ))
    };
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(chain).collect::<Result<_, _>>().map_err(|e| wrong(&e))?;
    if chain.is_empty() {
        return Err(Error::invalid_param(format!("There is no certificate (PEM) in {chain_name}")));
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| match e {
        pem::Error::NoItemsFound => {
            Error::invalid_param(format!("There is no private key (PEM) in {key_name}"))
        }
        e => wrong(&e),
    })?;
    CertifiedKey::from_der(chain, key, &rustls::crypto::ring::default_provider()).map_err(|e| match e {
        rustls::Error::InconsistentKeys(_) => Error::invalid_param(format!(
            "The private key {key_name} does not belong to the certificate {chain_name}"
        )),
        e => wrong(&e),
    })
}

/// A request for a certificate for these names with this key, in DER (PKCS #10). Errors: the key is none.
pub fn signing_request(names: &[String], key: &str) -> Result<Vec<u8>> {
    let key = KeyPair::from_pem(key).map_err(Error::internal)?;
    let request = blank(names)?.serialize_request(&key).map_err(Error::internal)?;
    Ok(request.der().to_vec())
}

/// A new private key (ECDSA, P-256), as PEM text.
pub fn new_key() -> Result<String> {
    Ok(KeyPair::generate().map_err(Error::internal)?.serialize_pem())
}

/// Names and nothing else.
fn blank(names: &[String]) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(names).map_err(Error::internal)?;
    params.distinguished_name = DistinguishedName::new();
    Ok(params)
}

fn signed_by_itself(params: &CertificateParams) -> Result<CertifiedKey> {
    let key = KeyPair::generate().map_err(Error::internal)?;
    let certificate = params.self_signed(&key).map_err(Error::internal)?;
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(Error::internal)?;
    // Not `from_der`, which reads the certificate, and a proof has an extension that must be refused by who does not know it.
    let key = any_supported_type(&key).map_err(Error::internal)?;
    Ok(CertifiedKey::new(vec![certificate.der().clone()], key))
}
