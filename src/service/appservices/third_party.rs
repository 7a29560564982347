//! Third-party networks: which ones services bridge to, and what of them is where in Matrix (client-server API, "Third-party
//! Networks"). Every service is asked that says that it knows the network; what they say is put together.

use std::sync::Arc;
use std::time::Instant;

use serde_json::{Map, Value};

use super::Appservice;
use super::ask::QUERY_TIMEOUT;
use crate::error::{Error, Result};
use crate::federation::appservices::ServiceRequest;
use crate::federation::calls::enc;
use crate::protocol::json::read;
use crate::service::Homeserver;
use crate::service::limits::request_permits::Asker;

/// What is looked up on another network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThirdPartyKind {
    /// Rooms and channels.
    Location,
    /// Users.
    User,
}

impl ThirdPartyKind {
    fn segment(self) -> &'static str {
        match self {
            Self::Location => "location",
            Self::User => "user",
        }
    }

    /// Whether a service names something in Matrix, with the fields by which its network has it.
    fn is_result(self, result: &Value) -> bool {
        let id = match self {
            Self::Location => "alias",
            Self::User => "userid",
        };
        result[id].is_string() && result["protocol"].is_string() && result["fields"].is_object()
    }
}

impl Homeserver {
    /// All networks that services bridge to.
    pub fn third_party_protocols(&self, asker: &Asker) -> Map<String, Value> {
        let mut protocols: Vec<&String> =
            self.appservices.iter().flat_map(|service| &service.protocols).collect();
        crate::order::sort(&mut protocols);
        protocols.dedup();
        let found =
            protocols.into_iter().filter_map(|name| Some((name.clone(), self.protocol_of(asker, name)?)));
        found.collect()
    }

    /// One of them. Errors: 404 `M_NOT_FOUND`.
    pub fn third_party_protocol(&self, asker: &Asker, protocol: &str) -> Result<Value> {
        self.protocol_of(asker, protocol)
            .ok_or_else(|| Error::not_found("No application service bridges to this network"))
    }

    /// What services know of a location or a user, by the fields of a network or else by its id in Matrix, which are in the query.
    /// Errors: 404 `M_NOT_FOUND` if that is nothing.
    pub fn look_up_third_party(
        &self,
        asker: &Asker,
        kind: ThirdPartyKind,
        protocol: Option<&str>,
        query: &[(String, String)],
    ) -> Result<Vec<Value>> {
        let knows = |service: &Appservice| match protocol {
            Some(protocol) => service.protocols.iter().any(|known| known == protocol),
            None => true,
        };
        let query: Vec<String> =
            query.iter().map(|(name, value)| format!("{}={}", enc(name), enc(value))).collect();
        let protocol = protocol.map(|protocol| format!("/{}", enc(protocol))).unwrap_or_default();
        let path = format!("/thirdparty/{}{protocol}?{}", kind.segment(), query.join("&"));
        let answers = self.ask_third_party(asker, knows, path.trim_end_matches('?'));
        let results = answers.into_iter().filter_map(|(_, answer)| match answer {
            Value::Array(results) => Some(results),
            _ => None,
        });
        let found: Vec<Value> = results.flatten().filter(|result| kind.is_result(result)).collect();
        if found.is_empty() {
            return Err(Error::not_found("No application service knows of any"));
        }
        Ok(found)
    }

    /// What is said of a network: by the first service that knows it, with the instances of all.
    fn protocol_of(&self, asker: &Asker, protocol: &str) -> Option<Value> {
        let knows = |service: &Appservice| service.protocols.iter().any(|known| known == protocol);
        let path = format!("/thirdparty/protocol/{}", enc(protocol));
        let mut merged: Option<Value> = None;
        let mut instances = Vec::new();
        for (service, answer) in self.ask_third_party(asker, knows, &path) {
            let Value::Object(_) = answer else { continue };
            for instance in answer["instances"].as_array().into_iter().flatten() {
                let mut instance = instance.clone();
                let Some(network) = instance["network_id"].as_str().map(str::to_owned) else { continue };
                instance["instance_id"] = service.instance_id(&network).into();
                instances.push(instance);
            }
            merged.get_or_insert(answer);
        }
        let mut merged = merged?;
        merged["instances"] = instances.into();
        Some(merged)
    }

    /// Asks services side by side, and gives what they answer in their order.
    fn ask_third_party<'s>(
        &'s self,
        asker: &Asker,
        knows: impl Fn(&Appservice) -> bool,
        path: &str,
    ) -> Vec<(&'s Arc<Appservice>, Value)> {
        let asked = self.appservices.iter().filter(|service| service.url.is_some() && knows(service));
        std::thread::scope(|scope| {
            let ask = |service: &'s Arc<Appservice>| {
                let asking = move || Some((service, self.ask_one_third_party(asker, service, path)?));
                std::thread::Builder::new().name("third party".into()).spawn_scoped(scope, asking).ok()
            };
            let asking: Vec<_> = asked.filter_map(ask).collect();
            asking.into_iter().filter_map(|asking| asking.join().ok().flatten()).collect()
        })
    }

    fn ask_one_third_party(&self, asker: &Asker, service: &Appservice, path: &str) -> Option<Value> {
        let request = ServiceRequest {
            method: "GET",
            path: &format!("/_matrix/app/v1{path}"),
            legacy_path: Some(&format!("/_matrix/app/unstable{path}")),
            body: None,
            timeout: QUERY_TIMEOUT,
        };
        // One that has too much to answer is as one that does not.
        let place = self.service_queries.begin(service, asker, Instant::now() + QUERY_TIMEOUT).ok()??;
        match self.federation.ask_service(service, &request) {
            Ok(answer) if answer.is_success() => read(&answer.body).ok(),
            Ok(_) => None,
            Err(error) => {
                log::info!("the application service {:?} was asked for {path}: {error}", service.id);
                place.unanswered();
                None
            }
        }
    }
}
