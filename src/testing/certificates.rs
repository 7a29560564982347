//! One throw-away certificate authority for the process, so that test servers federate over real TLS on loopback. It is
//! in memory: on the disk there is only what somebody asks for as files.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, date_time_ymd,
};

use crate::config::TlsFiles;

/// What servers of this process are started with, as PEM.
pub struct PemCertificates {
    /// The authority.
    pub ca: String,
    /// A chain for `localhost`, `127.0.0.1` and `::1`.
    pub chain: String,
    /// Its key.
    pub key: String,
    issuer: Issuer<'static, KeyPair>,
}

/// The same as files, which are there for as long as the process.
pub struct Certificates {
    /// The authority, for `--trust-ca`.
    pub ca: PathBuf,
    /// A chain for `localhost`, `127.0.0.1` and `::1`, for `--tls-cert`.
    pub cert: PathBuf,
    /// Its key, for `--tls-key`.
    pub key: PathBuf,
}

impl Certificates {
    /// A certificate of the authority for these names, good from the first of January of one year to that of another.
    ///
    /// # Panics
    /// If the temporary folder cannot be written, or these are no names.
    pub fn issue(&self, names: &[&str], years: [i32; 2]) -> TlsFiles {
        let folder = super::folders::folder_until_the_end("certificate");
        let files = TlsFiles { cert: folder.join("cert.pem"), key: folder.join("key.pem") };
        let issued = || -> Result<(), Box<dyn std::error::Error>> {
            let key = KeyPair::generate()?;
            let mut leaf =
                CertificateParams::new(names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>())?;
            [leaf.not_before, leaf.not_after] = years.map(|year| date_time_ymd(year, 1, 1));
            std::fs::write(&files.cert, leaf.signed_by(&key, &pem_certificates().issuer)?.pem())?;
            write_secret(&files.key, &key.serialize_pem())?;
            Ok(())
        };
        issued().unwrap_or_else(|e| panic!("a certificate for {names:?}: {e}"));
        files
    }
}

/// The certificates of this process, made on first use.
///
/// # Panics
/// If there is no randomness.
pub fn pem_certificates() -> &'static PemCertificates {
    static MADE: OnceLock<PemCertificates> = OnceLock::new();
    MADE.get_or_init(|| make().unwrap_or_else(|e| panic!("test certificates: {e}")))
}

/// The certificates of this process as files, written on first use.
///
/// # Panics
/// If the temporary folder cannot be written.
pub fn certificates() -> &'static Certificates {
    static WRITTEN: OnceLock<Certificates> = OnceLock::new();
    WRITTEN.get_or_init(|| {
        let folder = super::folders::folder_until_the_end("certificates");
        write(&folder).unwrap_or_else(|e| panic!("test certificates in {}: {e}", folder.display()))
    })
}

fn make() -> Result<PemCertificates, rcgen::Error> {
    let ca_key = KeyPair::generate()?;
    let mut ca = CertificateParams::new(Vec::<String>::new())?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    ca.distinguished_name.push(DnType::CommonName, "Doorstep test authority");
    let ca_pem = ca.self_signed(&ca_key)?.pem();
    let issuer = Issuer::new(ca, ca_key);

    let key = KeyPair::generate()?;
    let names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
    let mut leaf = CertificateParams::new(names)?;
    // Python's newest checks ask for it.
    leaf.use_authority_key_identifier_extension = true;
    let leaf = leaf.signed_by(&key, &issuer)?;
    Ok(PemCertificates { ca: ca_pem, chain: leaf.pem(), key: key.serialize_pem(), issuer })
}

fn write(folder: &Path) -> std::io::Result<Certificates> {
    let pem = pem_certificates();
    let files = Certificates {
        ca: folder.join("ca.pem"),
        cert: folder.join("cert.pem"),
        key: folder.join("key.pem"),
    };
    std::fs::write(&files.ca, &pem.ca)?;
    std::fs::write(&files.cert, &pem.chain)?;
    write_secret(&files.key, &pem.key)?;
    Ok(files)
}

fn write_secret(path: &Path, key: &str) -> std::io::Result<()> {
    std::fs::write(path, key)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o600))
}
