//! A state that is read through a database which may fail, in the shape in which the pure authorisation rules ask for
//! it.

use std::cell::RefCell;
use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::protocol::Pdu;
use crate::protocol::event_auth::{AuthChecker, AuthError};
use crate::store::{Db, RoomKey};

/// How one event of a state is read, by type and state key.
type Read<'a> = Box<dyn Fn(&str, &str) -> Result<Option<Pdu>> + 'a>;

/// A state that is read through a database which may fail, as the pure rules want it, each event read once.
pub(in crate::service) struct StateView<'a> {
    read: Read<'a>,
    seen: RefCell<HashMap<(String, String), Option<Pdu>>>,
    failure: RefCell<Option<Error>>,
}

impl<'a> StateView<'a> {
    pub(in crate::service) fn new(read: impl Fn(&str, &str) -> Result<Option<Pdu>> + 'a) -> Self {
        Self { read: Box::new(read), seen: RefCell::default(), failure: RefCell::default() }
    }

    /// The current state of a room.
    pub(in crate::service) fn current(db: &'a Db<'_>, room: RoomKey) -> Self {
        Self::new(move |event_type, state_key| db.state_event(room, event_type, state_key))
    }

    pub(in crate::service) fn get(&self, event_type: &str, state_key: &str) -> Option<Pdu> {
        let key = (event_type.to_owned(), state_key.to_owned());
        if let Some(seen) = self.seen.borrow().get(&key) {
            return seen.clone();
        }
        let found = match (self.read)(event_type, state_key) {
            Ok(found) => found,
            Err(e) => {
                self.failure.borrow_mut().get_or_insert(e);
                None
            }
        };
        self.seen.borrow_mut().insert(key, found.clone());
        found
    }

    /// The verdict of the rules that look at a state, or the failure of the database.
    pub(in crate::service) fn authorise(
        &self,
        checker: &AuthChecker,
        pdu: &Pdu,
    ) -> Result<Result<(), AuthError>> {
        let verdict = checker.check(pdu, &|event_type, state_key| self.get(event_type, state_key));
        match self.failure.borrow_mut().take() {
            Some(e) => Err(e),
            None => Ok(verdict),
        }
    }
}
