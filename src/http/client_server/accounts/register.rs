//! Making accounts: by the client API, and with the shared secret as Synapse's tools do it.

use std::sync::Arc;

use ring::hmac;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::interactive::interactively;
use super::login::APPLICATION_SERVICE;
use crate::config::Registration;
use crate::error::{ErrCode, Error, Result};
use crate::http::auth::appservice;
use crate::http::{Reply, Request};
use crate::protocol::UserId;
use crate::protocol::json::shaped;
use crate::service::Homeserver;
use crate::service::accounts::NewAccount;
use crate::service::accounts::interactive_auth::{GuardedAction, Proof, Stage};
use crate::service::accounts::sessions::NewLogin;

#[derive(Deserialize, Default)]
#[serde(default)]
struct RegisterBody {
    username: Option<String>,
    password: Option<String>,
    device_id: Option<String>,
    initial_device_display_name: Option<String>,
    inhibit_login: bool,
    refresh_token: bool,
    guest_access_token: Option<String>,
}

/// `POST /_matrix/client/v3/register`
pub fn register(hs: &Arc<Homeserver>, request: &Request) -> Result<Reply> {
    match request.query("kind") {
        None | Some("user") => {}
        Some("guest") => return register_guest(hs, request),
        Some(_) => return Err(Error::invalid_param("kind must be user or guest")),
    }
    let params = request.json_object_or_empty()?;
    if params.get("type").is_some_and(|kind| kind == APPLICATION_SERVICE) {
        return register_by_service(hs, request, &params);
    }
    let flows: &'static [&'static [Stage]] = match hs.config.registration {
        Registration::Open => &[&[Stage::Dummy]],
        // Some libraries know only the longer one, and expect to be asked for nothing at its end.
        Registration::Token => &[&[Stage::RegistrationToken], &[Stage::RegistrationToken, Stage::Dummy]],
        Registration::Closed => return Err(Error::forbidden("Registration is disabled on this homeserver")),
    };
    // Clients come with a name or a password only once they have proved that they may register.
    let incidental = &["initial_device_display_name"];
    let action = GuardedAction { name: "register", flows, incidental, fixed: &[] };
    let from = Some(request.client_ip());
    let read = |params: &Map<String, Value>| {
        let body: RegisterBody = shaped(params)?;
        // Before authentication, as the specification asks, so that nobody spends a token on a name they cannot have.
        match (guest_of(hs, request, &body)?, &body.username) {
            (Some(guest), Some(username)) if username.eq_ignore_ascii_case(guest.localpart()) => {}
            (Some(_), _) => return Err(Error::invalid_param("username must be the name of the guest")),
            (None, Some(username)) => drop(hs.accounts().available_user_id(username)?),
            (None, None) => {}
        }
        Ok(body)
    };
    let make = |body: RegisterBody, proof: &Proof| {
        let password = body.password.as_deref().ok_or_else(|| Error::missing_param("Missing password"))?;
        let new = NewAccount {
            localpart: body.username.as_deref(),
            password: Some(password),
            token: proof.registration_token.as_deref(),
            from,
            ..NewAccount::default()
        };
        let guest = guest_of(hs, request, &body)?;
        account_made(hs, &new, &body, guest.as_ref())
    };
    interactively(hs, request, None, &action, params, read, make)
}

/// A user of an application service: without interactive authentication, whoever else may register here.
fn register_by_service(
    hs: &Arc<Homeserver>,
    request: &Request,
    params: &Map<String, Value>,
) -> Result<Reply> {
    let service = appservice(hs, request)?;
    let body: RegisterBody = shaped(params)?;
    // The older name of the field.
    let name = body.username.as_deref().or_else(|| params.get("user").and_then(Value::as_str));
    let name = name.ok_or_else(|| Error::missing_param("Missing username"))?;
    let from = Some(request.client_ip());
    let new = NewAccount { localpart: Some(name), service: Some(service), from, ..NewAccount::default() };
    Ok(Reply::json(&account_made(hs, &new, &body, None)?))
}

/// `kind=guest`: no interactive authentication, and of the body only what concerns the device.
fn register_guest(hs: &Arc<Homeserver>, request: &Request) -> Result<Reply> {
    let body: RegisterBody = request.json_or_empty()?;
    let login = NewLogin {
        device_id: body.device_id.as_deref(),
        display_name: body.initial_device_display_name.as_deref(),
        refreshable: body.refresh_token,
        from: Some(request.client_ip()),
        ..NewLogin::default()
    };
    Ok(Reply::json(&hs.register_guest(&login)?.for_client(hs.server_name())))
}

/// The guest whose account is to become a user's.
fn guest_of(hs: &Homeserver, request: &Request, body: &RegisterBody) -> Result<Option<UserId>> {
    let token = body.guest_access_token.as_deref();
    token.map(|token| hs.guest_of_token(token, request.client_ip())).transpose()
}

/// Makes an account, of a guest's if there is one, and logs it in, unless that is not wanted; what the client is told.
fn account_made(
    hs: &Homeserver,
    new: &NewAccount<'_>,
    body: &RegisterBody,
    guest: Option<&UserId>,
) -> Result<Value> {
    let login = NewLogin {
        device_id: body.device_id.as_deref(),
        display_name: body.initial_device_display_name.as_deref(),
        refreshable: body.refresh_token,
        from: new.from,
        service: new.service,
        ..NewLogin::default()
    };
    let login = Some(&login).filter(|_| !body.inhibit_login);
    let (user, login) = match guest {
        Some(guest) => (guest.clone(), hs.upgrade_guest(guest, new, login)?),
        None => hs.accounts().create_account(new, login)?,
    };
    Ok(match login {
        Some(login) => login.for_client(hs.server_name()),
        None => json!({ "user_id": user, "home_server": hs.server_name() }),
    })
}

/// `GET /_matrix/client/v3/register/available`
pub fn available(hs: &Arc<Homeserver>, request: &Request) -> Result<Reply> {
    hs.accounts().available_user_id(request.required_query("username")?)?;
    Ok(Reply::json(&json!({ "available": true })))
}

/// `GET /_matrix/client/v1/register/m.login.registration_token/validity`
pub fn token_validity(hs: &Arc<Homeserver>, request: &Request) -> Result<Reply> {
    let valid = hs.accounts().registration_token_is_valid(request.required_query("token")?)?;
    Ok(Reply::json(&json!({ "valid": valid })))
}

/// `GET /_synapse/admin/v1/register`: a nonce.
pub fn shared_secret_nonce(hs: &Arc<Homeserver>, _request: &Request) -> Result<Reply> {
    shared_secret(hs)?;
    Ok(Reply::json(&json!({ "nonce": hs.accounts().new_registration_nonce() })))
}

#[derive(Deserialize)]
struct SharedSecretBody {
    nonce: String,
    username: String,
    password: String,
    displayname: Option<String>,
    #[serde(default)]
    admin: bool,
    user_type: Option<String>,
    mac: String,
    #[serde(default)]
    inhibit_login: bool,
}

/// `POST /_synapse/admin/v1/register`: an account for who knows the shared secret. `mac` is the HMAC-SHA1 of nonce,
/// name, password, `admin` or `notadmin`, and the user type if there is one, with zero bytes between them.
pub fn shared_secret_register(hs: &Arc<Homeserver>, request: &Request) -> Result<Reply> {
    let secret = shared_secret(hs)?;
    let body: SharedSecretBody = request.json()?;
    if !hs.accounts().use_registration_nonce(&body.nonce) {
        return Err(Error::invalid_param("Unknown or used nonce"));
    }
    // With one of these in them, what was signed could be read in another way: of a password, that it makes an administrator.
    let user_type = body.user_type.as_deref().unwrap_or_default();
    if [body.username.as_str(), &body.password, user_type].iter().any(|text| text.contains('\0')) {
        return Err(Error::invalid_param("Names and passwords have no zero bytes"));
    }
    let admin = if body.admin { "admin" } else { "notadmin" };
    let mut signed = [body.nonce.as_str(), &body.username, &body.password, admin].join("\0");
    if let Some(user_type) = &body.user_type {
        signed.push('\0');
        signed.push_str(user_type);
    }
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret.as_bytes());
    let mac = from_hex(&body.mac).ok_or_else(|| Error::invalid_param("mac is not hexadecimal"))?;
    // In constant time.
    hmac::verify(&key, signed.as_bytes(), &mac).map_err(|_| Error::forbidden("HMAC incorrect"))?;
    let new = NewAccount {
        localpart: Some(&body.username),
        password: Some(&body.password),
        admin: body.admin,
        display_name: body.displayname.as_deref(),
        from: Some(request.client_ip()),
        ..NewAccount::default()
    };
    let wishes = RegisterBody { inhibit_login: body.inhibit_login, ..RegisterBody::default() };
    Ok(Reply::json(&account_made(hs, &new, &wishes, None)?))
}

/// Without a secret the endpoint does not exist.
fn shared_secret(hs: &Homeserver) -> Result<&str> {
    let missing = || Error::new(ErrCode::Unrecognized, "Unknown endpoint");
    hs.config.registration_secret.as_deref().ok_or_else(missing)
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) {
        return None;
    }
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    text.as_bytes().chunks(2).map(|pair| Some(digit(pair[0])? * 16 + digit(pair[1])?)).collect()
}
