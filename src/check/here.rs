//! What only this machine can see of a server: its settings, files, ports, disk and database.

use std::fs;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::pages::{days_left, key_statement};
use super::{Own, Report, outside};
use crate::clock::Clock;
use crate::config::{Config, Data, Registration, reachable};
use crate::error::{Result, reason};
use crate::federation::Client;
use crate::federation::inspect::TlsProbe;
use crate::protocol::certificates::CertificateFacts;
use crate::protocol::certificates::calendar::utc;
use crate::service::acme::kept_certificate;
use crate::service::media::files::free_bytes;
use crate::store::Store;
use crate::store::engine::inspect::Inspection;

const PORT_TIMEOUT: Duration = Duration::from_secs(5);
/// So long the database is looked through: about as many gigabytes from a good disk.
const DATABASE_TIMEOUT: Duration = Duration::from_secs(30);

const DAMAGED: &str = "stop the server, keep a copy of its folder, and have `doorstep restore` make a new one of the last backup";

/// Checks it, and gives what others' view is compared with.
pub(super) fn check(config: Config, report: &mut Report<'_>) -> Result<Own> {
    settings(&config, report);
    let served = match &config.data {
        Data::Folder(folder) => Store::is_served(folder),
        Data::Memory => false,
    };
    let mut database = match &config.data {
        Data::Folder(folder) => database_of(folder, &config, served, report),
        Data::Memory => {
            report.note(
                "data",
                "the database is in memory: it is gone when the server stops",
                "give --data a folder",
            );
            None
        }
    };
    if let Some(tls) = &config.tls {
        certificate_files(&config, [&tls.cert, &tls.key], report)?;
    }
    if let (true, Data::Folder(folder)) = (config.acme.is_on, &config.data) {
        acme_certificate(folder, &config, report);
    }
    ports(&config, served, report)?;
    if let Data::Folder(folder) = &config.data {
        disk(folder, &config, report);
    }
    if let Some(database) = &mut database {
        faults(database, report);
    }
    Ok(Own { config, database })
}

fn settings(config: &Config, report: &mut Report<'_>) {
    let mut odd = Vec::new();
    if !config.has_local_name() {
        if config.registration == Registration::Open {
            odd.push("--registration open lets anybody make accounts, robots too");
        }
        if !config.rate_limits {
            odd.push("--no-rate-limits is for tests: passwords can be guessed without end");
        }
        if config.allow_private_addresses {
            odd.push("--allow-private-addresses lets strangers have this server connect to its own network");
        }
        if config.public_url.starts_with("http:") {
            odd.push("--public-url is plain HTTP: passwords and tokens are for everybody to read");
        }
    }
    match odd.as_slice() {
        [] => report.fine("settings", format!("{} at {}", config.server_name, config.public_url)),
        odd => report.note("settings", odd.join("; "), "change that unless it is meant"),
    }
}

/// The folder, whose files are only the owner's, and the database in it.
/// Folders beside the database, and how deep they are looked into.
const OURS: [&str; 2] = ["media", "acme"];
const FOLDERS_LOOKED_INTO: usize = 4;

/// Whether this, or something in it, belongs to another user.
fn is_anothers(path: &Path, owner: u32, depth: usize) -> bool {
    let Ok(found) = fs::symlink_metadata(path) else { return false };
    if found.uid() != owner {
        return true;
    }
    if !found.is_dir() || depth == 0 {
        return false;
    }
    fs::read_dir(path)
        .is_ok_and(|entries| entries.flatten().any(|entry| is_anothers(&entry.path(), owner, depth - 1)))
}

fn database_of(folder: &Path, config: &Config, served: bool, report: &mut Report<'_>) -> Option<Inspection> {
    let shown = folder.display();
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let advice = "start the server with `doorstep serve`, or name its folder with --data or --config";
            report.wrong("data", format!("there is no folder {shown}"), advice);
            return None;
        }
        Err(e) => {
            let found = format!("the folder {shown} cannot be read: {}", reason(&e));
            report.wrong("data", found, "run this as the user that the server runs as");
            return None;
        }
    };
    let owner = fs::metadata(folder).map(|folder| folder.uid()).ok();
    let (mut exposed, mut foreign) = (Vec::new(), Vec::new());
    for entry in entries.flatten() {
        let Ok(found) = entry.metadata() else { continue };
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("doorstep.") && found.permissions().mode() & 0o077 != 0 {
            exposed.push(path.display().to_string());
        }
        let is_ours = name.starts_with("doorstep.") || found.is_dir() && OURS.contains(&name.as_str());
        if is_ours && owner.is_some_and(|owner| is_anothers(&path, owner, FOLDERS_LOOKED_INTO)) {
            foreign.push(path.display().to_string());
        }
    }
    if !exposed.is_empty() {
        let files = exposed.join(" ");
        report.wrong("files", format!("others may read or write {files}"), format!("chmod go= {files}"));
    }
    if !foreign.is_empty() {
        let files = foreign.join(" ");
        let found = format!("{files} belong to another user than their folder");
        report.wrong("files", found, format!("chown -R --reference={shown} {files}"));
    }
    match Store::inspect(folder) {
        Err(e) => {
            let advice = "see that the path is right and this user may read it; what is malformed, `doorstep restore` makes anew \
                          of the last backup";
            report.wrong("data", e.for_people(), advice);
            None
        }
        Ok(database) if database.name != config.server_name => {
            let found =
                format!("{shown} is the database of {}, not of {}", database.name, config.server_name);
            report.wrong("data", found, format!("give --name {}, or another --data", database.name));
            None
        }
        Ok(database) => {
            let running = if served { "a server is running on it" } else { "no server is running on it" };
            match database.other_schema() {
                Ok(None) => report.fine("data", format!("{shown}: {running}")),
                Ok(Some(told)) => {
                    let advice = "start the program that made it, or begin anew in another folder";
                    report.wrong("data", told, advice);
                }
                Err(e) => report.wrong("data", e.for_people(), DAMAGED),
            }
            Some(database)
        }
    }
}

fn certificate_files(config: &Config, [cert, key]: [&PathBuf; 2], report: &mut Report<'_>) -> Result<()> {
    const ABOUT: &str = "certificate";
    let key_mode = fs::metadata(key).map(|key| key.permissions().mode()).unwrap_or_default();
    if key_mode & 0o007 != 0 {
        let found = format!("everybody on this machine may read the private key {}", key.display());
        report.wrong("files", found, format!("chmod o= {}", key.display()));
    }
    let chain: Result<Vec<CertificateDer<'static>>, String> =
        fs::read(cert).map_err(|e| reason(&e)).and_then(|pem| {
            CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().map_err(|e| e.to_string())
        });
    let key_failure = PrivateKeyDer::from_pem_file(key).err();
    let (chain, facts) = match chain {
        Ok(chain) if !chain.is_empty() && key_failure.is_none() => {
            let facts = CertificateFacts::read(&chain[0]);
            (chain, facts)
        }
        other => {
            let why = other.err().or_else(|| key_failure.map(|e| format!("{}: {e}", key.display())));
            let why = why.unwrap_or_else(|| "there is no certificate in it".into());
            let found = format!("{} with {} is of no use: {why}", cert.display(), key.display());
            report.wrong(ABOUT, found, "give --tls-cert the whole chain and --tls-key its key, both PEM");
            return Ok(());
        }
    };
    let host = config.server_name.host();
    let refusal = TlsProbe::new(&config.trust_ca)?.refusal(&chain, host);
    match (refusal, facts) {
        (None, Some(facts)) => days_left(ABOUT, &cert.display().to_string(), &facts, chain.len(), report),
        (refusal, _) => {
            let why = refusal.unwrap_or_else(|| "it cannot be read".into());
            // Where others are sent elsewhere, that is what counts.
            let advice = "that matters unless others are sent to another name, or a proxy has its own";
            report.note(ABOUT, format!("{}: {why}", cert.display()), advice);
        }
    }
    Ok(())
}

/// The certificate that the server got by itself (`--acme`).
fn acme_certificate(folder: &Path, config: &Config, report: &mut Report<'_>) {
    const ABOUT: &str = "certificate";
    const SEE: &str = "the server asks for one while it runs; where it got none, its log says why";
    let authority = &config.acme.directory;
    let kept = match kept_certificate(folder) {
        Ok(Some(kept)) => kept,
        Ok(None) => return report.note(ABOUT, format!("{authority} has not given one yet"), SEE),
        Err(e) => {
            return report.wrong(
                ABOUT,
                format!("what {authority} gave is of no use: {}", e.for_people()),
                SEE,
            );
        }
    };
    let wanted = config.acme.names.join(", ");
    if kept.facts.not_after <= Clock::new().now_ms() {
        let found = format!("the one that {authority} gave expired on {}", utc(kept.facts.not_after));
        report.wrong(ABOUT, found, SEE);
    } else if !kept.is_for(&config.acme.names) {
        let found = format!(
            "the one that {authority} gave is for {}, and not for {wanted}",
            kept.facts.names.join(", ")
        );
        report.wrong(ABOUT, found, "restart the server with these names: it asks for another then");
    } else {
        let chain = kept.chain_pem().matches("BEGIN CERTIFICATE").count();
        days_left(ABOUT, &format!("from {authority}"), &kept.facts, chain, report);
    }
}

fn ports(config: &Config, served: bool, report: &mut Report<'_>) -> Result<()> {
    let client = outside::client(config, true)?;
    let probe = TlsProbe::new(&config.trust_ca)?;
    for (address, tls) in
        config.listen.iter().map(|a| (*a, false)).chain(config.listen_tls.iter().map(|a| (*a, true)))
    {
        if address.port() == 0 {
            continue;
        }
        if served {
            answering(&client, &probe, config, (address, tls), report);
        } else if let Err(e) = TcpListener::bind(address) {
            let found = format!("{address} cannot be listened on: {}", reason(&e));
            let advice = match e.kind() {
                ErrorKind::AddrInUse => "stop the program that listens there, or choose another port",
                ErrorKind::PermissionDenied => {
                    "choose a port above 1023 and let a proxy or the service manager lead there"
                }
                _ => "choose an address that this machine has",
            };
            report.wrong("port", found, advice);
        } else {
            report.fine("port", format!("{address} is free"));
        }
    }
    Ok(())
}

/// Whether it is our server that answers there.
fn answering(
    client: &Client,
    probe: &TlsProbe,
    config: &Config,
    (address, tls): (SocketAddr, bool),
    report: &mut Report<'_>,
) {
    let at = reachable(address);
    let other = "the server that runs was started with other addresses: give this command the same settings";
    if tls {
        match probe.look(at, config.server_name.host(), PORT_TIMEOUT) {
            Ok(_) => report.fine("port", format!("{address} answers by TLS")),
            Err(e) => {
                report.wrong("port", format!("{address} does not answer by TLS: {}", reason(&e)), other)
            }
        }
        return;
    }
    let page = client.look_at(&format!("http://{at}/_matrix/key/v2/server"), PORT_TIMEOUT);
    let name = page
        .as_ref()
        .ok()
        .and_then(|page| key_statement(&page.body))
        .and_then(|statement| statement.string("server_name").map(|name| name.into_owned()));
    match (page, name) {
        (_, Some(name)) if name == config.server_name.as_str() => {
            report.fine("port", format!("{address} answers"))
        }
        (_, Some(name)) => report.wrong("port", format!("{address} is the port of {name}"), other),
        (Ok(_), None) => report.wrong("port", format!("{address} is another program's"), other),
        (Err(e), None) => report.wrong("port", format!("{address} does not answer: {e}"), other),
    }
}

fn disk(folder: &Path, config: &Config, report: &mut Report<'_>) {
    let Some(free) = free_bytes(folder) else { return };
    let size = |name: &str| fs::metadata(folder.join(name)).map_or(0, |file| file.len());
    let database = size("doorstep.db") + size("doorstep.db-wal");
    let mib = |bytes: u64| bytes >> 20;
    let found = format!("{} MiB are free, the database has {} MiB", mib(free), mib(database));
    // To copy a database, and to make it smaller, takes as much again.
    if free < config.media_keep_free / 8 {
        report.wrong("disk", found, "make room: soon nothing can be written any more");
    } else if free < config.media_keep_free || free < database {
        let advice = "make room: no files are taken below --media-keep-free, and a copy of the database needs as much again";
        report.note("disk", found, advice);
    } else {
        report.fine("disk", found);
    }
}

fn faults(database: &mut Inspection, report: &mut Report<'_>) {
    let advice = DAMAGED;
    match database.faults(DATABASE_TIMEOUT) {
        Ok(Some(faults)) if faults.is_empty() => {
            report.fine("database", "every page and row is as it should be")
        }
        Ok(Some(faults)) => report.wrong("database", format!("it is damaged: {}", faults.join("; ")), advice),
        Ok(None) => {
            let found = format!(
                "it is too large to be looked through in {} s: no fault so far",
                DATABASE_TIMEOUT.as_secs()
            );
            report.note("database", found, "look through a backup of it instead");
        }
        Err(e) => report.wrong("database", e.for_people(), advice),
    }
}
