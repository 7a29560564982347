//! Application services: bridges and bots that speak for users of their own (application service API). What a registration
//! says is read in [`crate::protocol::appservice`]; how users are made and logged in is in `accounts/`.
//!
//! - `ask`: what they are asked; `third_party`: the networks that they bridge to.
//! - `interest`: which services an event concerns; `sender`: the threads by which they are told; `deliver`: the transaction
//!   that each is sent; `body`: what is in that.

pub mod ask;
mod body;
mod deliver;
mod interest;
pub mod sender;
pub mod third_party;

use std::sync::Arc;

use subtle::ConstantTimeEq;

use crate::error::{ErrCode, Error, Result};
use crate::protocol::appservice::{Appservice, Registration};
use crate::protocol::{RoomAlias, ServerName, UserId};
use crate::service::Homeserver;
use crate::service::accounts::token_hash;
use crate::store::accounts::{OwnRate, Standing, TokenHash};

/// The services of this server, in the order of its settings.
#[derive(Default)]
pub struct Appservices(Vec<(TokenHash, Arc<Appservice>)>);

impl Appservices {
    /// Errors: 400 `M_INVALID_PARAM` for a user's name that is too long.
    pub fn new(registrations: &[Registration], server: &ServerName) -> Result<Self> {
        let known = |registration: &Registration| {
            let hash = token_hash(registration.as_token.expose());
            Ok((hash, Arc::new(Appservice::new(registration.clone(), server)?)))
        };
        registrations.iter().map(known).collect::<Result<_>>().map(Self)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Appservice>> {
        self.0.iter().map(|(_, service)| service)
    }

    /// The service whose `as_token` this is. In constant time.
    pub fn by_token(&self, token: &str) -> Option<&Arc<Appservice>> {
        if self.is_empty() {
            return None;
        }
        let hash = token_hash(token);
        let mut found = None;
        for (known, service) in &self.0 {
            if bool::from(known.ct_eq(&hash)) {
                found = Some(service);
            }
        }
        found
    }

    /// The service of this id.
    pub fn by_id(&self, id: &str) -> Option<&Arc<Appservice>> {
        self.iter().find(|service| service.id == id)
    }

    /// The first service that has this user for itself.
    pub fn exclusive_owner_of_user(&self, user: &UserId) -> Option<&Arc<Appservice>> {
        self.iter().find(|service| service.is_exclusive_user(user))
    }

    /// The first service that has this alias for itself.
    pub fn exclusive_owner_of_alias(&self, alias: &RoomAlias) -> Option<&Arc<Appservice>> {
        self.iter().find(|service| service.is_exclusive_alias(alias))
    }

    /// Whether a device is a service's: it has made it or logged in there (`maker`), or has the user for itself.
    pub fn has_device(&self, service: &Appservice, user: &str, maker: Option<&str>) -> bool {
        let Ok(user) = UserId::parse(user) else { return false };
        match maker.and_then(|maker| self.by_id(maker)).filter(|maker| maker.may_be(&user)) {
            Some(maker) => maker.id == service.id,
            None => {
                let owner = || self.exclusive_owner_of_user(&user);
                service.is_exclusive_user(&user) && owner().is_some_and(|owner| owner.id == service.id)
            }
        }
    }

    /// Whether a service may be told of the messages to a user's devices.
    pub fn is_any_told_messages_of(&self, user: &UserId) -> bool {
        self.iter().any(|service| service.msc3202 && service.url.is_some() && service.may_be(user))
    }

    /// Whether a user may be made of this id, by a service or by anybody else. Errors: 400 `M_EXCLUSIVE` for a service outside
    /// of its namespaces, and inside of those that another one has for itself.
    pub fn check_new_user(&self, by: Option<&Appservice>, user: &UserId) -> Result<()> {
        if by.is_some_and(|by| !by.may_be(user)) {
            return Err(exclusive("This user id is in no namespace of the application service"));
        }
        let others = self.iter().filter(|service| by.is_none_or(|by| by.id != service.id));
        match others.into_iter().any(|service| service.is_exclusive_user(user)) {
            true => Err(exclusive("This user id is reserved by an application service")),
            false => Ok(()),
        }
    }

    /// Whether a service, or else this user, may make or delete an alias of this server. "An exclusive namespace prevents humans
    /// and other application services from creating/deleting entities in that namespace": but not a service's own user, by
    /// whatever token. Errors: as of [`Appservices::check_new_user`].
    pub fn check_alias(&self, by: Option<&Appservice>, user: &UserId, alias: &RoomAlias) -> Result<()> {
        if by.is_some_and(|by| !by.wants_alias(alias)) {
            return Err(exclusive("This alias is in no namespace of the application service"));
        }
        let is_theirs = |service: &Appservice| match by {
            Some(by) => by.id == service.id,
            None => service.sender == *user,
        };
        let mut others = self.iter().filter(|service| !is_theirs(service));
        match others.any(|service| service.is_exclusive_alias(alias)) {
            true => Err(exclusive("This alias is reserved by an application service")),
            false => Ok(()),
        }
    }
}

fn exclusive(message: &'static str) -> Error {
    Error::new(ErrCode::Exclusive, message)
}

/// Whom a service acts as.
#[derive(Debug)]
pub struct Masquerade {
    /// The user.
    pub user_id: UserId,
    /// On which of their devices; none: on none.
    pub device_id: Option<String>,
    /// What keeps the user from doing what others may.
    pub standing: Standing,
    /// How often the user may ask, if that is not as for everybody.
    pub own_rate: Option<OwnRate>,
}

impl Homeserver {
    /// Whom a service acts as that names a user and a device, or none ("Identity assertion"). Errors: 403 `M_FORBIDDEN` for users
    /// that are not its own, or that there are not; 403 `M_USER_DEACTIVATED`, 400 `M_UNKNOWN_DEVICE`.
    pub fn masquerade(
        &self,
        service: &Appservice,
        user: Option<&str>,
        device: Option<&str>,
    ) -> Result<Masquerade> {
        let user_id = user.map_or_else(|| Ok(service.sender.clone()), UserId::parse)?;
        if !service.may_be(&user_id) {
            return Err(Error::forbidden("The application service cannot act as this user"));
        }
        self.store.read(|db| {
            let account = db.account(&user_id)?;
            let account = account
                .ok_or_else(|| Error::forbidden("The application service has not registered this user"))?;
            if account.deactivated {
                return Err(Error::new(ErrCode::UserDeactivated, "This account was deactivated"));
            }
            if let Some(device) = device
                && db.device(&user_id, device)?.is_none()
            {
                return Err(Error::new(ErrCode::UnknownDevice, "The user has no such device"));
            }
            let own_rate = db.own_rate(&user_id)?;
            let device_id = device.map(str::to_owned);
            Ok(Masquerade { user_id: user_id.clone(), device_id, standing: account.standing, own_rate })
        })
    }

    /// Makes the users that services speak with themselves, where they are not there yet.
    pub(super) fn make_senders(&self) -> Result<()> {
        for service in self.appservices.iter() {
            match self.store.read(|db| db.account(&service.sender))? {
                Some(account) if account.deactivated => {
                    log::warn!(
                        "{}, the user of the application service {:?}, was deactivated",
                        service.sender,
                        service.id
                    );
                }
                Some(_) => {}
                None => {
                    let (service, now) = (Arc::clone(service), self.clock.now_ms());
                    self.store.write(move |tx| {
                        tx.create_service_user(&service.sender, &service.id, now).map(drop)
                    })?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::config::{Config, Data};
    use crate::testing::temporary_folder;

    fn registrations(all: &[(&str, &str, bool)]) -> Vec<Registration> {
        let registration = |(id, regex, exclusive): &(&str, &str, bool)| {
            let text = format!(
                "id: {id}\nurl: null\nas_token: as-{id}\nhs_token: h\nsender_localpart: {id}bot\nnamespaces:\n  \
                 users: [{{regex: '@{regex}', exclusive: {exclusive}}}]\n  aliases: [{{regex: '#{regex}', exclusive: \
                 {exclusive}}}]\n"
            );
            Registration::parse(&text).unwrap()
        };
        all.iter().map(registration).collect()
    }

    fn services(all: &[(&str, &str, bool)]) -> Appservices {
        Appservices::new(&registrations(all), &ServerName::parse("example.org").unwrap()).unwrap()
    }

    fn user(localpart: &str) -> UserId {
        UserId::parse(&format!("@{localpart}:example.org")).unwrap()
    }

    #[test]
    fn the_user_of_a_service_fixes_the_servers_name_only_once_it_has_done_something() {
        let folder = temporary_folder("named-later");
        let open = |name: &str| {
            let mut config = Config::for_name(ServerName::parse(name).unwrap());
            config.data = Data::Folder(folder.clone());
            config.appservices.extend(registrations(&[("a", "a_", true)]));
            Homeserver::open(config, Clock::new())
        };
        let accounts = |hs: &Homeserver| {
            let all = hs.store.read(|db| db.accounts()).unwrap();
            all.into_iter().map(|account| account.user_id.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(accounts(&open("localhost:8448").unwrap()), ["@abot:localhost:8448"]);
        let hs = open("example.org").unwrap();
        assert_eq!(accounts(&hs), ["@abot:example.org"]);
        let service = Arc::clone(hs.appservices.by_id("a").unwrap());
        hs.accounts().add_device(&service, &service.sender, "D", None).unwrap();
        drop(hs);
        assert!(open("example.com").is_err());
        assert_eq!(accounts(&open("example.org").unwrap()), ["@abot:example.org"]);
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_service_is_known_by_its_own_token_alone() {
        let services = services(&[("a", "a_", true), ("b", "b_", true)]);
        assert_eq!(services.by_token("as-b").unwrap().id, "b");
        for wrong in ["", "as-", "as-c", "as-bb", "AS-B", "h"] {
            assert!(services.by_token(wrong).is_none(), "{wrong}");
        }
        assert_eq!(services.by_id("a").unwrap().sender, "@abot:example.org");
        assert!(services.by_id("").is_none() && Appservices::default().by_token("").is_none());
    }

    #[test]
    fn who_may_make_a_user_or_an_alias_is_told_by_the_namespaces_of_all_services() {
        let services = services(&[("a", "ab?_", true), ("b", "ab_", false), ("c", ".*", false)]);
        let by = |id: &str| services.by_id(id).map(|service| &**service);
        for (who, localpart, may) in [
            ("", "alice", true),
            ("", "a_x", false),
            ("", "ab_x", false),
            ("", "abot", false),
            ("a", "a_x", true),
            ("a", "ab_x", true),
            ("a", "alice", false),
            ("a", "bbot", false),
            ("b", "ab_x", false),
            ("b", "alice", false),
            ("b", "bbot", true),
            ("c", "alice", true),
            ("c", "a_x", false),
            ("c", "abot", false),
        ] {
            let made = services.check_new_user(by(who), &user(localpart));
            assert_eq!(made.is_ok(), may, "{who} {localpart}");
            assert!(made.err().is_none_or(|e| e.errcode() == ErrCode::Exclusive));
            if !localpart.ends_with("bot") {
                let alias = RoomAlias::parse(&format!("#{localpart}:example.org")).unwrap();
                let made = services.check_alias(by(who), &user("somebody"), &alias);
                assert_eq!(made.is_ok(), may, "{who} {alias}");
            }
        }
        let alias = RoomAlias::parse("#a_x:example.org").unwrap();
        services.check_alias(None, &user("abot"), &alias).unwrap();
        assert_eq!(services.exclusive_owner_of_alias(&alias).unwrap().id, "a");
        assert_eq!(services.exclusive_owner_of_user(&user("cbot")).unwrap().id, "c");
        assert!(services.exclusive_owner_of_user(&user("alice")).is_none());
    }
}
