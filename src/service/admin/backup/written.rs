//! A file that is whole and on the disk, or not there.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::path::Path;

use crate::durable::{NewFile, SyncPace, forget_cached, leave_to_others};
use crate::error::{ErrCode, Error, Result, reason};

/// Writes what `from` has into a file of this name, which only its owner may read. It has another name until it is whole and
/// on the disk; after an error there is nothing. A file that was there before is replaced. Gives its size.
///
/// Errors: sentences for the operator.
pub fn write_file(path: &Path, from: &mut dyn Read) -> Result<u64> {
    if path.file_name().is_none() {
        return Err(Error::invalid_param(format!("{} is no name of a file", path.display())));
    }
    match fs::symlink_metadata(path).map(|found| found.file_type()) {
        Ok(found) if found.is_dir() => {
            return Err(Error::invalid_param(format!("{} is a folder", path.display())));
        }
        // A pipe or a device is written into, and not replaced.
        Ok(found) if !found.is_file() && !found.is_symlink() => {
            return Err(Error::invalid_param(format!(
                "{} is no file: `-` is for standard output",
                path.display()
            )));
        }
        _ => {}
    }
    let cannot = |e: &io::Error| cannot(path, e);
    let mut new = NewFile::beside(path).map_err(|e| cannot(&e))?;
    let (mut piece, mut written) = (vec![0; 256 << 10], 0);
    // Else all of it would be written at the end, before what the server's writer waits for.
    let mut pace = SyncPace::new();
    loop {
        let read = match from.read(&mut piece) {
            Ok(0) => break,
            Ok(read) => read,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => return Err(source_failed(e)),
        };
        new.file().write_all(&piece[..read]).map_err(|e| cannot(&e))?;
        written += read as u64;
        if let Some(took) = pace.wrote(read as u64, new.file()).map_err(|e| cannot(&e))? {
            forget_cached(new.file(), 0, written);
            leave_to_others(took);
        }
    }
    new.put_in_place().map_err(|e| cannot(&e))?;
    Ok(written)
}

fn cannot(path: &Path, e: &io::Error) -> Error {
    let status = match e.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => 507,
        _ => 400,
    };
    let sentence = format!("{} cannot be written: {}. Nothing of it is left", path.display(), reason(e));
    Error::new(ErrCode::Unknown, sentence).with_status(status)
}

/// What was being written ended in the middle.
fn source_failed(e: io::Error) -> Error {
    match e.downcast::<Error>() {
        Ok(error) => error,
        Err(e) => Error::new(ErrCode::Unknown, format!("The backup ended in the middle: {}", reason(&e))),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use super::*;
    use crate::random;

    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Self {
            let folder = std::env::temp_dir().join(format!("doorstep-written-{}", random::letters(12)));
            fs::create_dir(&folder).unwrap();
            Self(folder)
        }

        fn names(&self) -> Vec<String> {
            let names = fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().file_name());
            names.map(|name| name.to_string_lossy().into_owned()).collect()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// Fails after so many bytes.
    struct Failing(usize);

    impl Read for Failing {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let most = buf.len().min(self.0);
            self.0 -= most;
            if most == 0 { Err(io::Error::other(Error::forbidden("enough"))) } else { Ok(most) }
        }
    }

    #[test]
    fn a_file_is_whole_and_its_owners_or_what_was_there_before_stays() {
        let folder = Folder::new();
        let path = folder.0.join("b.tar");
        assert_eq!(write_file(&path, &mut &b"first"[..]).unwrap(), 5);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let e = write_file(&path, &mut Failing(1 << 20)).unwrap_err();
        assert_eq!(e.message(), "enough");
        assert_eq!((fs::read(&path).unwrap(), folder.names()), (b"first".to_vec(), vec!["b.tar".to_owned()]));
        assert_eq!(write_file(&path, &mut &b"another"[..]).unwrap(), 7);
        assert_eq!((fs::read(&path).unwrap(), folder.names().len()), (b"another".to_vec(), 1));
    }

    #[test]
    fn what_cannot_be_written_is_said_and_leaves_nothing() {
        let folder = Folder::new();
        let e = write_file(&folder.0, &mut &b"x"[..]).unwrap_err();
        assert!(e.message().contains("is a folder"), "{e}");
        let e = write_file(&folder.0.join("not there").join("b.tar"), &mut &b"x"[..]).unwrap_err();
        assert!(e.message().contains("cannot be written"), "{e}");
        assert!(folder.names().is_empty());
        // A name that leads elsewhere is replaced, and not what it leads to.
        let (elsewhere, link) = (folder.0.join("elsewhere"), folder.0.join("link"));
        fs::write(&elsewhere, b"precious").unwrap();
        std::os::unix::fs::symlink(&elsewhere, &link).unwrap();
        write_file(&link, &mut &b"backup"[..]).unwrap();
        assert_eq!(fs::read(&elsewhere).unwrap(), b"precious");
        assert_eq!(fs::read(&link).unwrap(), b"backup");
    }
}
