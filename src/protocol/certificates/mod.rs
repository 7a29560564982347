//! What a certificate says of itself (RFC 5280): whom it is for, from when until when, who issued it, and when it is to be
//! renewed. Whether it is good, and whose key it has, is for rustls to say.

pub mod acme;
pub mod calendar;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::protocol::Millis;
use crate::protocol::certificates::calendar::certificate_time;

/// Names of one certificate that are looked at.
const NAMES_MAX: usize = 100;

const INTEGER: u8 = 0x02;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT_ID: u8 = 0x06;
const OCTETS: u8 = 0x04;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// The optional version and the extensions, by their tags within a certificate.
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
/// `dNSName` and `iPAddress`, by their tags within the alternative names.
const DNS_NAME: u8 = 0x82;
const IP_ADDRESS: u8 = 0x87;
/// `keyIdentifier`, by its tag within the authority key identifier.
const KEY_ID: u8 = 0x80;
/// 2.5.29.35, 2.5.29.17, 2.5.4.3 and 2.5.4.10.
const AUTHORITY_KEY: &[u8] = &[0x55, 0x1d, 0x23];
const ALTERNATIVE_NAMES: &[u8] = &[0x55, 0x1d, 0x11];
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
const ORGANIZATION: &[u8] = &[0x55, 0x04, 0x0a];

/// What a certificate says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFacts {
    /// The hosts that it is for.
    pub names: Vec<String>,
    /// Since when it is good.
    pub not_before: Millis,
    /// Until when.
    pub not_after: Millis,
    /// Who issued it: organization or name.
    pub issuer: String,
    /// By what its authority knows it that suggests when to renew it (RFC 9773, 4.1), if it can.
    pub renewal_id: Option<String>,
}

impl CertificateFacts {
    /// Reads a certificate in DER. None if it is none.
    pub fn read(der: &[u8]) -> Option<Self> {
        let mut outer = Der(der);
        let mut certificate = Der(outer.take(SEQUENCE)?);
        let mut body = Der(certificate.take(SEQUENCE)?);
        body.take(VERSION);
        let serial = body.take(INTEGER)?;
        let _algorithm = body.next()?;
        let issuer = Der(body.take(SEQUENCE)?);
        let mut validity = Der(body.take(SEQUENCE)?);
        let (not_before, not_after) = (time(validity.next()?)?, time(validity.next()?)?);
        let (mut names, mut renewal_id) = (Vec::new(), None);
        while let Some((tag, value)) = body.next() {
            if tag == EXTENSIONS {
                names = alternative_names(value).unwrap_or_default();
                let key =
                    extension(value, AUTHORITY_KEY).and_then(|mut key| Der(key.take(SEQUENCE)?).take(KEY_ID));
                let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
                renewal_id = key.map(|key| format!("{}.{}", part(key), part(serial)));
            }
        }
        let issuer = issuer_name(issuer).unwrap_or_default();
        Some(Self { names, not_before, not_after, issuer, renewal_id })
    }

    /// When it is time for another: at two thirds of its life, or by `chance` up to a twentieth of it before, so that
    /// certificates that were made at the same time are not all renewed at the same time.
    pub fn renewal(&self, chance: u8) -> Millis {
        let life = self.not_after.saturating_sub(self.not_before).max(0);
        self.not_before.saturating_add(life / 3 * 2).saturating_sub(life / 20 / 255 * Millis::from(chance))
    }
}

/// Elements of DER, one behind the other.
struct Der<'d>(&'d [u8]);

impl<'d> Der<'d> {
    /// The next element: its tag and its content.
    fn next(&mut self) -> Option<(u8, &'d [u8])> {
        let (&[tag, first], rest) = self.0.split_first_chunk()?;
        let (length, rest) = if first < 0x80 {
            (usize::from(first), rest)
        } else {
            let count = usize::from(first & 0x7f);
            let bytes = rest.get(..count).filter(|_| (1..=4).contains(&count))?;
            (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), &rest[count..])
        };
        let content = rest.get(..length)?;
        self.0 = &rest[length..];
        Some((tag, content))
    }

    /// The content of the next element if that has this tag; else it stays the next.
    fn take(&mut self, tag: u8) -> Option<&'d [u8]> {
        let before = self.0;
        match self.next() {
            Some((found, content)) if found == tag => Some(content),
            _ => {
                self.0 = before;
                None
            }
        }
    }
}

/// `UTCTime` (two digits of the year) or `GeneralizedTime` (four), both as certificates have them: to the second, in UTC.
fn time((tag, text): (u8, &[u8])) -> Option<Millis> {
    matches!((tag, text.len()), (UTC_TIME, 13) | (GENERALIZED_TIME, 15)).then_some(())?;
    certificate_time(text)
}

/// The value of an extension of this kind.
fn extension<'d>(extensions: &'d [u8], kind: &[u8]) -> Option<Der<'d>> {
    let mut all = Der(Der(extensions).take(SEQUENCE)?);
    while let Some(extension) = all.take(SEQUENCE) {
        let mut extension = Der(extension);
        if extension.take(OBJECT_ID)? != kind {
            continue;
        }
        loop {
            match extension.next()? {
                (OCTETS, value) => return Some(Der(value)),
                // Whether it is critical.
                _ => continue,
            }
        }
    }
    None
}

fn alternative_names(extensions: &[u8]) -> Option<Vec<String>> {
    let mut listed = Der(extension(extensions, ALTERNATIVE_NAMES)?.take(SEQUENCE)?);
    let names = std::iter::from_fn(|| listed.next()).filter_map(|(tag, value)| match tag {
        DNS_NAME => std::str::from_utf8(value).ok().map(str::to_owned),
        IP_ADDRESS => ip(value).map(|ip| ip.to_string()),
        _ => None,
    });
    Some(names.take(NAMES_MAX).collect())
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = || <[u8; 4]>::try_from(bytes).ok().map(|b| Ipv4Addr::from(b).into());
    let v6 = || <[u8; 16]>::try_from(bytes).ok().map(|b| Ipv6Addr::from(b).into());
    v4().or_else(v6)
}

/// The organization, or else the common name.
fn issuer_name(mut issuer: Der<'_>) -> Option<String> {
    let mut name = None;
    while let Some(set) = issuer.take(SET) {
        let mut attribute = Der(Der(set).take(SEQUENCE)?);
        let (kind, (_, value)) = (attribute.take(OBJECT_ID)?, attribute.next()?);
        let value = || String::from_utf8_lossy(value).into_owned();
        if kind == ORGANIZATION {
            return Some(value());
        }
        if kind == COMMON_NAME {
            name = Some(value());
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};

    use super::*;

    fn certificate(names: &[&str], until: i32) -> Vec<u8> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        params.distinguished_name.push(DnType::CommonName, "Somebody");
        params.not_before = date_time_ymd(2024, 2, 29);
        params.not_after = date_time_ymd(until, 3, 1);
        let key = KeyPair::generate().expect("a key");
        params.self_signed(&key).expect("a certificate").der().to_vec()
    }

    #[test]
    fn a_certificate_says_whom_it_is_for_and_until_when() {
        let der = certificate(&["example.org", "*.example.org", "192.0.2.1", "::1"], 2049);
        let facts = CertificateFacts::read(&der).expect("a certificate");
        assert_eq!(facts.names, ["example.org", "*.example.org", "192.0.2.1", "::1"]);
        assert_eq!(facts.not_before, 1_709_164_800_000);
        assert_eq!(facts.not_after, 2_498_169_600_000);
        assert_eq!(facts.issuer, "Somebody");
        // Beyond 2049 the year has four digits.
        let facts = CertificateFacts::read(&certificate(&[], 2050)).expect("a certificate");
        assert_eq!((facts.not_after, facts.names.len()), (2_529_705_600_000, 0));
    }

    #[test]
    fn what_is_cut_or_changed_at_any_byte_is_read_without_harm() {
        let der = certificate(&["example.org"], 2049);
        for at in 0..der.len() {
            let _ = CertificateFacts::read(&der[..at]);
            for value in [0, 0x7f, 0x80, 0x84, 0xff] {
                let mut changed = der.clone();
                changed[at] = value;
                let _ = CertificateFacts::read(&changed);
            }
        }
        assert_eq!(CertificateFacts::read(b""), None);
        assert_eq!(CertificateFacts::read(&der[..der.len() / 2]), None);
    }

    #[test]
    fn an_authority_knows_a_certificate_by_its_own_key_and_the_serial_number() {
        let key = KeyPair::generate().expect("a key");
        let mut ca = CertificateParams::new(Vec::new()).expect("no names");
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let mut leaf = CertificateParams::new(vec!["example.org".to_owned()]).expect("names");
        leaf.serial_number = Some(vec![0x87, 0x65, 0x43, 0x21].into());
        let made = |leaf: &CertificateParams| {
            let certificate = leaf.signed_by(&key, &Issuer::new(ca.clone(), &key)).expect("a certificate");
            CertificateFacts::read(certificate.der()).expect("a certificate").renewal_id
        };
        assert_eq!(made(&leaf), None);
        leaf.use_authority_key_identifier_extension = true;
        // The serial number of the example in RFC 9773, 4.1: its first bit would make it negative without a zero in front.
        let id = made(&leaf).expect("an identifier");
        assert!(id.ends_with(".AIdlQyE") && id.len() == 27 + 8, "{id}");
    }

    #[test]
    fn a_certificate_is_renewed_at_two_thirds_of_its_life_or_a_little_earlier() {
        let day = 86_400_000;
        let facts = |not_before, not_after| CertificateFacts {
            names: Vec::new(),
            not_before,
            not_after,
            issuer: String::new(),
            renewal_id: None,
        };
        assert_eq!(facts(0, 90 * day).renewal(0), 60 * day);
        assert!((55 * day..56 * day).contains(&facts(0, 90 * day).renewal(255)));
        assert_eq!(facts(5, -5).renewal(255), 5);
        assert!(facts(Millis::MIN, Millis::MAX).renewal(0) < Millis::MAX);
    }
}
