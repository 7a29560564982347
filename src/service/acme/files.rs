//! What is kept of it in the data folder, in `acme/`, for its owner's eyes only: the key of the account, the certificate
//! with its key, in one file so that they always belong together, the order that is under way, and for how long to wait. Each file is replaced
//! whole: a process that is killed at any moment leaves the one before or the one after.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::clock::Millis;
use crate::durable::{replace_file, sync_folder};
use crate::error::{Error, Result, reason};
use crate::protocol::certificates::acme::text;
use crate::protocol::json::parse_object;
use crate::served_certificate::{CheckedCertificate, new_key};

const FOLDER: &str = "acme";
const ACCOUNT: &str = "account.pem";
const CERTIFICATE: &str = "certificate.pem";
const ORDER: &str = "order.json";
const WAIT: &str = "wait.json";
/// Largest file that is read back. Ours are far smaller.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The folder.
pub(super) struct AcmeFolder(PathBuf);

/// An order that is under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PendingOrder {
    /// The authority's directory.
    pub(super) directory: String,
    /// What it is for.
    pub(super) names: Vec<String>,
    /// Its address.
    pub(super) url: String,
    /// The key that the certificate will be for, PEM.
    pub(super) key: String,
    /// When it was made.
    pub(super) made: Millis,
}

impl AcmeFolder {
    /// That of a data folder. It is made when something is written.
    pub(super) fn new(data: &Path) -> Self {
        Self(data.join(FOLDER))
    }

    /// The key of the account, made on first use (PEM).
    pub(super) fn account_key(&self) -> Result<String> {
        if let Some(key) = self.read(ACCOUNT)? {
            return String::from_utf8(key).map_err(Error::internal);
        }
        let key = new_key()?;
        self.write(ACCOUNT, key.as_bytes())?;
        Ok(key)
    }

    /// The certificate that was got last, with its key. Errors: it cannot be read, or is of no use.
    pub(super) fn certificate(&self) -> Result<Option<CheckedCertificate>> {
        let Some(text) = self.read(CERTIFICATE)? else { return Ok(None) };
        CheckedCertificate::read(&text, &text).map(Some)
    }

    /// Keeps a certificate for good.
    pub(super) fn keep_certificate(&self, certificate: &CheckedCertificate, key: &str) -> Result<()> {
        let text = format!("{}\n{}", key.trim_end(), certificate.chain_pem());
        self.write(CERTIFICATE, text.as_bytes())
    }

    /// The order that was under way. None: there was none, or it cannot be read, and is as good as none.
    pub(super) fn order(&self) -> Option<PendingOrder> {
        let order = parse_object(&self.read(ORDER).ok()??).ok()?;
        let owned = |field| text(&order, field).map(str::to_owned);
        let names = order.get("names")?.as_array()?;
        Some(PendingOrder {
            directory: owned("directory")?,
            names: names.iter().map(|name| name.as_str().map(str::to_owned)).collect::<Option<_>>()?,
            url: owned("url")?,
            key: owned("key")?,
            made: order.get("made")?.as_i64()?,
        })
    }

    /// Keeps an order until it is over.
    pub(super) fn keep_order(&self, order: &PendingOrder) -> Result<()> {
        let PendingOrder { directory, names, url, key, made } = order;
        let text = json!({ "directory": directory, "names": names, "url": url, "key": key, "made": made });
        self.write(ORDER, text.to_string().as_bytes())
    }

    /// Forgets the order.
    pub(super) fn drop_order(&self) {
        match fs::remove_file(self.0.join(ORDER)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                log::warn!("{} cannot be removed: {}", self.0.join(ORDER).display(), reason(&e));
            }
            _ => {}
        }
    }

    /// Until when the authority with this directory wants to be left alone.
    pub(super) fn wait(&self, directory: &str) -> Millis {
        let read = || parse_object(&self.read(WAIT).ok()??).ok();
        let wait = read().filter(|wait| text(wait, "directory") == Some(directory));
        wait.and_then(|wait| wait.get("until")?.as_i64()).unwrap_or(0)
    }

    /// Keeps that.
    pub(super) fn keep_wait(&self, directory: &str, until: Millis) -> Result<()> {
        self.write(WAIT, json!({ "directory": directory, "until": until }).to_string().as_bytes())
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let path = self.0.join(name);
        match fs::metadata(&path) {
            Ok(found) if found.len() > FILE_BYTES_MAX => {
                Err(Error::internal(format!("{} is far too large", path.display())))
            }
            Ok(_) => fs::read(&path).map(Some).map_err(|e| cannot("read", &path, &e)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(cannot("read", &path, &e)),
        }
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.0.join(name);
        let write = || {
            DirBuilder::new().recursive(true).mode(0o700).create(&self.0)?;
            replace_file(&path, bytes)?;
            // The folder may be new itself.
            self.0.parent().map_or(Ok(()), sync_folder)
        };
        write().map_err(|e| cannot("written", &path, &e))
    }
}

fn cannot(what: &str, path: &Path, e: &io::Error) -> Error {
    Error::internal(format!("{} cannot be {what}: {}", path.display(), reason(e)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_is_kept_is_its_owners_alone_and_comes_back_whole_or_not_at_all() {
        let data = std::env::temp_dir().join(format!("doorstep-acme-files-{}", std::process::id()));
        fs::create_dir_all(&data).unwrap();
        let folder = AcmeFolder::new(&data);
        assert!(folder.certificate().unwrap().is_none() && folder.order().is_none());
        folder.drop_order();

        let key = folder.account_key().unwrap();
        assert_eq!(folder.account_key().unwrap(), key);
        let order = PendingOrder {
            directory: "https://a.example/".into(),
            names: vec!["b.example".into()],
            url: "https://a.example/1".into(),
            key: key.clone(),
            made: 5,
        };
        // What a kill left.
        fs::write(data.join("acme/order.json.abcdefgh.new"), "half").unwrap();
        folder.keep_order(&order).unwrap();
        assert!(!data.join("acme/order.json.abcdefgh.new").exists());
        assert_eq!(folder.order(), Some(order));
        let made = rcgen::generate_simple_self_signed(["b.example".to_owned()]).unwrap();
        let (chain, own) = (made.cert.pem(), made.signing_key.serialize_pem());
        let checked = CheckedCertificate::read(chain.as_bytes(), own.as_bytes()).unwrap();
        folder.keep_certificate(&checked, &own).unwrap();
        assert!(folder.certificate().unwrap().unwrap().is_for(&["b.example".into()]));

        assert_eq!(fs::metadata(data.join("acme")).unwrap().permissions().mode() & 0o777, 0o700);
        for file in [ACCOUNT, CERTIFICATE, ORDER] {
            let mode = fs::metadata(data.join("acme").join(file)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
        assert_eq!(folder.wait("https://a.example/"), 0);
        folder.keep_wait("https://a.example/", 7).unwrap();
        assert_eq!((folder.wait("https://a.example/"), folder.wait("https://b.example/")), (7, 0));
        for broken in ["", "{", "[]", "{\"names\":5}", "\u{0}"] {
            fs::write(data.join("acme").join(ORDER), broken).unwrap();
            assert_eq!(folder.order(), None);
            fs::write(data.join("acme").join(CERTIFICATE), broken).unwrap();
            assert!(folder.certificate().is_err(), "{broken:?}");
        }
        folder.drop_order();
        fs::remove_dir_all(&data).unwrap();
    }
}
