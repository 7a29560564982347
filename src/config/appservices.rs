//! The registrations of application services: files that bridges and bots write, and folders of such files.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use super::Config;
use crate::error::reason;
use crate::order;
use crate::protocol::appservice::Registration;

/// Largest registration, in bytes.
const REGISTRATION_BYTES_MAX: u64 = 1 << 20;

/// Reads a registration, or every `.yaml` and `.yml` of a folder. Errors end a sentence that begins with the path.
pub(super) fn appservice(config: &mut Config, text: &str) -> Result<(), String> {
    let path = super::checks::path(text)?;
    if !path.is_dir() {
        return add(config, &path);
    }
    for file in files_in(&path).map_err(|e| format!("cannot be read: {}", reason(&e)))? {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        add(config, &file).map_err(|e| format!("{name}: {e}"))?;
    }
    Ok(())
}

/// In the order of their names.
fn files_in(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let is_yaml = path.extension().is_some_and(|end| end == "yaml" || end == "yml");
        if is_yaml && path.is_file() {
            files.push(path);
        }
    }
    order::sort(&mut files);
    Ok(files)
}

fn add(config: &mut Config, path: &Path) -> Result<(), String> {
    let cannot = |e: &std::io::Error| format!("cannot be read: {}", reason(e));
    let file = File::open(path).map_err(|e| cannot(&e))?;
    let mut text = String::new();
    let read = file.take(REGISTRATION_BYTES_MAX + 1).read_to_string(&mut text).map_err(|e| cannot(&e))?;
    if read as u64 > REGISTRATION_BYTES_MAX {
        return Err("is too large for a registration".into());
    }
    let new = Registration::parse(&text)?;
    // They tell services from one another.
    if config.appservices.iter().any(|known| known.id == new.id) {
        return Err(format!("id: there is another service with the id {:?}", new.id));
    }
    if let Some(known) = config.appservices.iter().find(|known| known.as_token == new.as_token) {
        return Err(format!("as_token: is that of {:?} too: each service needs one of its own", known.id));
    }
    // A service that knows another's could act as this server towards it.
    if let Some(known) = config.appservices.iter().find(|known| known.hs_token == new.hs_token) {
        return Err(format!("hs_token: is that of {:?} too: each service needs one of its own", known.id));
    }
    config.appservices.push(new);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::ServerName;
    use crate::testing::temporary_folder;

    fn registration(id: &str, token: &str) -> String {
        format!("id: {id}\nurl: null\nas_token: {token}\nhs_token: hs_{token}\nsender_localpart: bot_{id}\n")
    }

    #[test]
    fn files_and_folders_of_registrations_are_read_and_what_is_wrong_names_the_file() {
        let folder = temporary_folder("registrations");
        let put = |name: &str, text: &str| fs::write(folder.join(name), text).unwrap();
        let mut config = Config::for_name(ServerName::parse("example.org").unwrap());
        let mut read = |name: &str| appservice(&mut config, folder.join(name).to_str().unwrap());
        put("b.yaml", &registration("b", "tb"));
        put("a.yml", &registration("a", "ta"));
        put("notes.txt", "no registration");
        read("").unwrap();
        assert!(read("b.yaml").unwrap_err().starts_with("id: there is another service with the id \"b\""));
        put("c.yaml", &registration("c", "ta"));
        let told = read("").unwrap_err();
        assert!(told.starts_with("a.yml: id: there is another"), "{told}");
        assert!(read("c.yaml").unwrap_err().starts_with("as_token: is that of \"a\" too"));
        put("c.yaml", &registration("c", "tc").replace("hs_tc", "hs_tb"));
        assert!(read("c.yaml").unwrap_err().starts_with("hs_token: is that of \"b\" too"));
        put("d.yaml", "id: d\n");
        assert_eq!(
            read("d.yaml").unwrap_err(),
            "has no url: one that is never to be sent anything has url: null"
        );
        assert!(read("none.yaml").unwrap_err().starts_with("cannot be read: "));
        put("e.yaml", &"#".repeat(2 << 20));
        assert_eq!(read("e.yaml").unwrap_err(), "is too large for a registration");
        assert!(read("notes.txt").unwrap_err().starts_with("is no registration"));
        let ids: Vec<&str> = config.appservices.iter().map(|service| service.id.as_str()).collect();
        assert_eq!(ids, ["a", "b"]);
        fs::remove_dir_all(&folder).unwrap();
    }
}
