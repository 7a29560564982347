//! A secret that is given in a file: neither other users of the machine see it there, nor whoever reads the settings.

use std::fs::File;
use std::io::Read;

use super::Config;
use crate::error::reason;

/// Largest file with a secret, in bytes.
const SECRET_FILE_BYTES_MAX: u64 = 4096;

/// Takes the registration secret out of a file. Errors end a sentence that begins with the file.
pub(super) fn registration_secret_file(config: &mut Config, text: &str) -> Result<(), String> {
    let cannot = |e: &std::io::Error| format!("cannot be read: {}", reason(e));
    let file = File::open(text).map_err(|e| cannot(&e))?;
    let mut secret = String::new();
    let read = file.take(SECRET_FILE_BYTES_MAX + 1).read_to_string(&mut secret).map_err(|e| cannot(&e))?;
    if read as u64 > SECRET_FILE_BYTES_MAX {
        return Err("has more than a secret in it".into());
    }
    // Editors and `echo` end the file with a line break, which is not meant.
    match secret.trim_end_matches(['\r', '\n']) {
        "" => Err("has no secret in it".into()),
        _ if config.registration_secret.is_some() => {
            Err("is one secret too many beside --registration-secret".into())
        }
        secret => {
            config.registration_secret = Some(secret.into());
            Ok(())
        }
    }
}
