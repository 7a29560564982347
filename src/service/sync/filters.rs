//! Filters that clients store here and name by id.

use sha2::{Digest, Sha256};

use crate::error::{ErrCode, Error, Result};
use crate::protocol::UserId;
use crate::protocol::filter::{FILTER_BYTES_MAX, Filter};
use crate::service::sync::Syncing;

/// A user may keep this many different filters.
const FILTERS_MAX: i64 = 1000;

impl Syncing<'_> {
    /// Stores a filter (JSON, an object) and answers its id. The same filter again gets the same id. Errors: 400
    /// `M_BAD_JSON` for what is no filter, 413 `M_TOO_LARGE`, 403 `M_RESOURCE_LIMIT_EXCEEDED` for too many.
    pub fn add_filter(&self, user: &UserId, definition: String) -> Result<i64> {
        if definition.len() > FILTER_BYTES_MAX {
            return Err(Error::new(ErrCode::TooLarge, "The filter is too large"));
        }
        Filter::parse(&definition)?;
        let digest: [u8; 32] = Sha256::digest(&definition).into();
        if let Some(filter_id) = self.store.read(|db| db.filter_by_digest(user, &digest))? {
            return Ok(filter_id);
        }
        let user = user.clone();
        self.store.write(move |tx| {
            let filter_id = tx.add_filter(&user, &digest, &definition)?;
            if filter_id > FILTERS_MAX {
                // The closure's work is undone with its error.
                return Err(Error::new(ErrCode::ResourceLimitExceeded, "You have stored too many filters"));
            }
            Ok(filter_id)
        })
    }

    /// A stored filter as it was uploaded. Errors: 404 `M_NOT_FOUND`.
    pub fn stored_filter(&self, user: &UserId, filter_id: &str) -> Result<String> {
        let found = match filter_id.parse() {
            Ok(filter_id) => self.store.read(|db| db.filter(user, filter_id))?,
            Err(_) => None,
        };
        found.ok_or_else(|| Error::not_found("There is no such filter"))
    }

    /// The filter that a query parameter names: JSON, or the id of a stored one. Errors: 400 `M_BAD_JSON`, 400
    /// `M_INVALID_PARAM` for an unknown id.
    pub fn filter_for(&self, user: &UserId, parameter: Option<&str>) -> Result<Filter> {
        match parameter {
            None | Some("") => Ok(Filter::default()),
            Some(json) if json.starts_with('{') => Filter::parse(json),
            Some(filter_id) => {
                let stored = self.stored_filter(user, filter_id);
                Filter::parse(&stored.map_err(|_| Error::invalid_param("There is no such filter"))?)
            }
        }
    }
}
