//! A state that is read through a database which may fail, in the shape in which the pure authorisation rules ask for
//! it.

use std::cell::RefCell;

use crate::error::{Error, Result};
use crate::protocol::Pdu;
use crate::protocol::event_auth::{AuthChecker, AuthError};
use crate::store::{Db, RoomKey};

/// How one event of a state is read, by type and state key.
type Read<'a> = Box<dyn Fn(&str, &str) -> Result<Option<Pdu>> + 'a>;

/// A state that is read through a database which may fail, as the pure rules want it, each event read once.
pub(in crate::service) struct StateView<'a> {
    read: Read<'a>,
    /// What was read: the rules ask for few events, and for the same again.
    found: RefCell<Vec<Pdu>>,
    absent: RefCell<Vec<(String, String)>>,
    failure: RefCell<Option<Error>>,
}

impl<'a> StateView<'a> {
    pub(in crate::service) fn new(read: impl Fn(&str, &str) -> Result<Option<Pdu>> + 'a) -> Self {
        let (found, absent, failure) = Default::default();
        Self { read: Box::new(read), found, absent, failure }
    }

    /// The current state of a room.
    pub(in crate::service) fn current(db: &'a Db<'_>, room: RoomKey) -> Self {
        Self::new(move |event_type, state_key| db.state_event(room, event_type, state_key))
    }

    pub(in crate::service) fn get(&self, event_type: &str, state_key: &str) -> Option<Pdu> {
        if let Some(found) = self.found.borrow().iter().find(|found| found.is(event_type, state_key)) {
            return Some(found.clone());
        }
        if self.absent.borrow().iter().any(|absent| absent.0 == event_type && absent.1 == state_key) {
            return None;
        }
        let found = match (self.read)(event_type, state_key) {
            Ok(found) => found,
            Err(e) => {
                self.failure.borrow_mut().get_or_insert(e);
                None
            }
        };
        match &found {
            Some(found) => self.found.borrow_mut().push(found.clone()),
            None => self.absent.borrow_mut().push((event_type.to_owned(), state_key.to_owned())),
        }
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
