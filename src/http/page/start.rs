//! The first steps: the first account, logging in and out.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::clients::clients;
use super::html::Html;
use super::visit::{Visit, Visitor};
use super::{begin_form, door, hidden, outcome, page, see};
use crate::error::{ErrCode, Error, Result};
use crate::http::{Reply, Requester};
use crate::protocol::UserId;
use crate::protocol::json::object_of;
use crate::service::Homeserver;
use crate::service::accounts::interactive_auth::user_of_identifier;

/// `GET /`: for who is logged in what waits for them; for others a form to log in with, or to make the first account.
/// Who asks for JSON is no browser, and is told what they were always told.
pub fn home(hs: &Arc<Homeserver>, visit: &Visit<'_>) -> Result<Reply> {
    let accepts = visit.request.header("accept").unwrap_or("*/*");
    if accepts.contains("json") && !accepts.contains("html") {
        return Ok(Reply::error(&Error::new(ErrCode::Unrecognized, "Unknown endpoint")));
    }
    match visit.visitor.user(false) {
        Ok(user) if !user.standing.guest => door::show(hs, visit, &user),
        Err(e) if e.errcode() == ErrCode::UserLocked => Err(e),
        _ if !hs.store.read(|db| db.has_accounts())? => {
            Ok(first_account(hs, visit.visitor, visit.request.query("first").unwrap_or_default(), "", None))
        }
        _ => Ok(login_form(hs, visit, "", None)),
    }
}

fn first_account(
    hs: &Homeserver,
    visitor: &Visitor,
    token: &str,
    name: &str,
    wrong: Option<&Error>,
) -> Reply {
    let mut html = Html::new();
    html.raw("<h1>Welcome. Make the first account</h1>");
    html.raw("<p>It is the administrator’s of ").text(hs.server_name().as_str()).raw(".</p>");
    told_wrong(&mut html, wrong);
    begin_form(&mut html, visitor, "/page/first", "card narrow");
    if token.is_empty() {
        html.raw("<label for=\"first\">Token</label><input id=\"first\" name=\"first\" required autocomplete=\"off\">");
        html.raw("<p class=\"hint\">The server prints a link with it when it starts; open that, or enter its end here.</p>");
    } else {
        hidden(&mut html, "first", token);
    }
    html.raw("<label for=\"user\">User name</label><input id=\"user\" name=\"user\" required autocapitalize=\"none\"");
    html.raw(" autocomplete=\"username\" spellcheck=\"false\" value=\"")
        .text(name)
        .raw("\"><p class=\"hint\">Your address will be @name:");
    html.text(hs.server_name().as_str()).raw("</p>");
    new_password_fields(&mut html);
    html.raw("<p class=\"gap\"><button class=\"main\">Make the account</button></p></form>");
    page(hs, visitor, "The first account", None, &html)
}

/// `POST /page/first`
pub fn make_first_account(hs: &Arc<Homeserver>, visit: &Visit<'_>) -> Result<Reply> {
    let (token, name) = (visit.field("first").trim(), visit.field("user").trim());
    // What was printed is a link; who enters all of it means its end.
    let token = token.rsplit_once("first=").map_or(token, |(_, token)| token);
    let made = new_password(visit).and_then(|password| {
        hs.accounts().create_first_account(name, password, token, visit.request.client_ip())
    });
    match made {
        Ok(login) => Ok(visit.visitor.logged_in(see("/?done=first"), &login.access_token)),
        Err(e) if is_for_the_form(&e) => {
            let status = e.status();
            Ok(first_account(hs, visit.visitor, token, name, Some(&e)).with_status(status))
        }
        Err(e) => Err(e),
    }
}

/// Two fields for a new password.
pub(super) fn new_password_fields(html: &mut Html) {
    html.raw(
        "<label for=\"new\">New password</label><input id=\"new\" name=\"new\" type=\"password\" required",
    );
    html.raw(" autocomplete=\"new-password\" maxlength=\"512\"><label for=\"again\">Once more</label><input id=\"again\"");
    html.raw(" name=\"again\" type=\"password\" required autocomplete=\"new-password\" maxlength=\"512\">");
}

/// What [`new_password_fields`] were filled in with. Errors: 400 `M_INVALID_PARAM` if they differ.
pub(super) fn new_password<'v>(visit: &'v Visit<'_>) -> Result<&'v str> {
    if visit.field("new") == visit.field("again") {
        Ok(visit.field("new"))
    } else {
        Err(Error::invalid_param("The two passwords are not the same"))
    }
}

/// Whether who filled in the form can mend this.
pub(super) fn is_for_the_form(error: &Error) -> bool {
    matches!(error.status(), 400..=403) && error.errcode() != ErrCode::UserLocked
}

pub(super) fn told_wrong(html: &mut Html, wrong: Option<&Error>) {
    if let Some(error) = wrong {
        html.raw("<p class=\"note wrong\" role=\"alert\">").text(error.message()).raw("</p>");
    }
}

fn login_form(hs: &Homeserver, visit: &Visit<'_>, name: &str, wrong: Option<&Error>) -> Reply {
    let mut html = Html::new();
    html.raw("<h1>Log in to ").text(hs.server_name().as_str()).raw("</h1>");
    outcome(
        &mut html,
        visit,
        &[("logged-out", "You are logged out."), ("deactivated", "The account is closed.")],
    );
    if wrong.is_none() && visit.visitor.refusal.is_some() {
        html.raw("<p class=\"note\" role=\"status\">Your session has ended. Please log in again.</p>");
    }
    told_wrong(&mut html, wrong);
    begin_form(&mut html, visit.visitor, "/page/login", "card narrow");
    html.raw("<label for=\"user\">User name</label><input id=\"user\" name=\"user\" required autocapitalize=\"none\"");
    html.raw(" autocomplete=\"username\" spellcheck=\"false\" value=\"").text(name);
    html.raw("\"><label for=\"password\">Password</label><input id=\"password\" name=\"password\" type=\"password\" required");
    html.raw(" autocomplete=\"current-password\"><p class=\"gap\"><button class=\"main\">Log in</button></p></form>");
    clients(hs, &mut html, visit);
    page(hs, visit.visitor, "Log in", None, &html)
}

/// `POST /page/login`
pub fn log_in(hs: &Arc<Homeserver>, visit: &Visit<'_>) -> Result<Reply> {
    let name = visit.field("user").trim();
    let identifier: Map<String, Value> =
        object_of([("identifier", json!({ "type": "m.id.user", "user": name }))]);
    let user = user_of_identifier(&identifier, hs.server_name().as_str());
    let user: Result<UserId> = user.ok_or_else(|| Error::forbidden("Wrong user name or password"));
    let login = user.and_then(|user| {
        let from = visit.request.client_ip();
        hs.accounts().log_in_on_page(&user, visit.field("password"), visit.visitor.session(), from)
    });
    match login {
        Ok(login) => Ok(visit.visitor.logged_in(see("/"), &login.access_token)),
        Err(e) if is_for_the_form(&e) => {
            let status = e.status();
            Ok(login_form(hs, visit, name, Some(&e)).with_status(status))
        }
        Err(e) => Err(e),
    }
}

/// `POST /page/logout`
pub fn log_out(hs: &Arc<Homeserver>, visit: &Visit<'_>, user: &Requester) -> Result<Reply> {
    hs.accounts().delete_devices(&user.user_id, vec![user.device_id()?.to_owned()])?;
    Ok(visit.visitor.logged_out(see("/?done=logged-out")))
}
