//! What an error of SQLite is to the rest of the house.

use rusqlite::ErrorCode;
use rusqlite::ffi::{SQLITE_IOERR_FSYNC, SQLITE_IOERR_SHMSIZE, SQLITE_IOERR_TRUNCATE, SQLITE_IOERR_WRITE};

use crate::error::{ErrCode, Error};

/// When who asked for what took too long should ask for less.
const RETRY_AFTER_MS: i64 = 10_000;

/// 507 `M_UNKNOWN` where the disk takes nothing, which passes; 429 `M_LIMIT_EXCEEDED` for what was broken off because it took
/// too long; else 500.
impl From<rusqlite::Error> for Error {
    fn from(e: rusqlite::Error) -> Self {
        if e.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) {
            let error = Self::new(ErrCode::LimitExceeded, "This takes longer than the server has time for");
            return error.with_field("retry_after_ms", RETRY_AFTER_MS).with_cause(e);
        }
        match disk_failure(&e) {
            Some(sentence) => Self::new(ErrCode::Unknown, sentence).with_status(507).with_cause(e),
            None => Self::internal(e),
        }
    }
}

/// What is to be said of a disk that does not take what is written: it is full, or a quota is, or it is broken.
pub(in crate::store) fn disk_failure(e: &rusqlite::Error) -> Option<&'static str> {
    let of_writing = [SQLITE_IOERR_WRITE, SQLITE_IOERR_FSYNC, SQLITE_IOERR_TRUNCATE, SQLITE_IOERR_SHMSIZE];
    let code = e.sqlite_error()?;
    match code.code {
        ErrorCode::DiskFull => Some("The server's disk is full"),
        _ if of_writing.contains(&code.extended_code) => Some("The server's disk takes nothing"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::ffi;

    use super::*;

    #[test]
    fn a_disk_that_takes_nothing_is_told_from_what_is_our_fault_and_no_cause_leaves_the_house() {
        let status = |code| {
            let error =
                Error::from(rusqlite::Error::SqliteFailure(ffi::Error::new(code), Some("at x".into())));
            assert!(error.is_own_failure(), "and so neither refused nor done");
            assert!(!error.to_json().to_string().contains("at x") && error.to_string().contains("at x"));
            error.status()
        };
        assert_eq!([ffi::SQLITE_FULL, SQLITE_IOERR_WRITE, SQLITE_IOERR_FSYNC].map(status), [507; 3]);
        assert_eq!([ffi::SQLITE_CORRUPT, ffi::SQLITE_IOERR_READ].map(status), [500; 2]);
    }
}
