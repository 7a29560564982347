//! What clients have done in a browser that they cannot do themselves: a stage of interactive authentication ("Fallback"), and
//! logging in ("Login Fallback"). Whoever knows the id of a session may complete its stages, so that is its secret; a form
//! is taken as every other of ours, and no page shows itself in another's frame.

use std::sync::Arc;

use serde_json::json;

use super::html::Html;
use super::start::{is_for_the_form, told_wrong};
use super::visit::Visit;
use super::{begin_form_here, page_of_client};
use crate::error::{Error, Result};
use crate::http::Reply;
use crate::protocol::json::object_of;
use crate::service::Homeserver;
use crate::service::accounts::interactive_auth::{AskedStage, Stage, user_of_identifier};
use crate::service::accounts::sessions::{Login, NewLogin};

/// "This page must use the following JavaScript when the authentication has been completed".
const AUTH_DONE: &str = r#"
if (window.onAuthDone) {
    window.onAuthDone();
} else if (window.opener && window.opener.postMessage) {
    window.opener.postMessage("authDone", "*");
}
"#;

/// "The page will attempt to call the JavaScript function `window.matrixLogin.onLogin(response)`". Some clients put it there
/// once they have seen the page loaded, so this waits for it a while.
const LOGGED_IN: &str = r#"
(function tell(left) {
    if (window.matrixLogin && window.matrixLogin.onLogin) {
        window.matrixLogin.onLogin(JSON.parse(document.getElementById("response").textContent));
    } else if (left > 0) {
        setTimeout(tell, 100, left - 1);
    }
})(100);
"#;

const USER_FIELD: &str = "<label for=\"user\">User name</label><input id=\"user\" name=\"user\" required \
     autocapitalize=\"none\" autocomplete=\"username\" spellcheck=\"false\">";
const PASSWORD_FIELD: &str = "<label for=\"password\">Password</label><input id=\"password\" name=\"password\" \
     type=\"password\" required autocomplete=\"current-password\">";
const TOKEN_FIELD: &str = "<label for=\"token\">Registration token</label><input id=\"token\" name=\"token\" required \
     autocapitalize=\"none\" autocomplete=\"off\" spellcheck=\"false\">";

/// `GET /_matrix/client/v3/auth/{authType}/fallback/web`: the page that performs a stage.
pub fn stage(hs: &Arc<Homeserver>, visit: &Visit<'_>) -> Result<Reply> {
    let asked = asked_stage(hs, visit)?;
    Ok(if asked.is_complete { stage_done(hs, visit) } else { stage_form(hs, visit, &asked, None) })
}

/// `POST /_matrix/client/v3/auth/{authType}/fallback/web`: its form.
pub fn complete_stage(hs: &Arc<Homeserver>, visit: &Visit<'_>) -> Result<Reply> {
    let asked = asked_stage(hs, visit)?;
    let mut auth = object_of([("type", json!(asked.stage.as_str()))]);
    for name in ["token", "password", "user"] {
        // A password may begin and end as it likes.
        let given = if name == "password" { Some(visit.field(name)) } else { visit.given(name) };
        given.and_then(|given| auth.insert(name.to_owned(), json!(given)));
    }
    match hs.accounts().complete_stage(session(visit), &auth, visit.request.client_ip()) {
        Ok(()) => Ok(stage_done(hs, visit)),
        Err(e) if is_for_the_form(&e) => {
            let status = e.status();
            Ok(stage_form(hs, visit, &asked, Some(&e)).with_status(status))
        }
        Err(e) => Err(e),
    }
}

fn session<'v>(visit: &'v Visit<'_>) -> &'v str {
    visit.request.query("session").unwrap_or_default()
}

fn asked_stage(hs: &Homeserver, visit: &Visit<'_>) -> Result<AskedStage> {
    hs.accounts().asked_stage(session(visit), visit.request.param("authType"))
}

fn stage_form(hs: &Homeserver, visit: &Visit<'_>, asked: &AskedStage, wrong: Option<&Error>) -> Reply {
    let mut html = Html::new();
    html.raw("<h1>").text(hs.server_name().as_str()).raw("</h1><p>A client asks for this, to ");
    html.raw(asked.action).raw(". If you do not use one just now, close this page.</p>");
    if let Some(user) = &asked.user {
        html.raw("<p>It is about the account <code>").chosen(user.as_str()).raw("</code>.</p>");
    }
    for (id, name) in &asked.devices {
        html.raw("<p>Device <code>").chosen(id).raw("</code>");
        if let Some(name) = name {
            html.raw(", which you call “").chosen(name).raw("”");
        }
        html.raw("</p>");
    }
    told_wrong(&mut html, wrong);
    begin_form_here(&mut html, visit.visitor);
    match asked.stage {
        Stage::Dummy => {}
        Stage::RegistrationToken => drop(html.raw(TOKEN_FIELD)),
        Stage::Password => {
            if asked.user.is_none() {
                html.raw(USER_FIELD);
            }
            html.raw(PASSWORD_FIELD);
        }
    }
    html.raw("<p class=\"gap\"><button class=\"main\">Continue</button></p></form>");
    page_of_client(hs, visit.visitor, "Authentication", &html, None)
}

fn stage_done(hs: &Homeserver, visit: &Visit<'_>) -> Reply {
    let mut html = Html::new();
    html.raw("<h1>Thank you</h1><p class=\"note\" role=\"status\">You can close this page and go on in your client.</p>");
    page_of_client(hs, visit.visitor, "Authentication", &html, Some(AUTH_DONE))
}

/// `GET /_matrix/static/client/login/`: the page that performs a whole login.
pub fn login_page(hs: &Arc<Homeserver>, visit: &Visit<'_>) -> Result<Reply> {
    Ok(login_form(hs, visit, None))
}

/// `POST /_matrix/static/client/login/`: its form. "Non-credential parameters valid for the `/login` endpoint can be provided
/// as query string parameters here."
pub fn log_in(hs: &Arc<Homeserver>, visit: &Visit<'_>) -> Result<Reply> {
    match logged_in(hs, visit) {
        Ok(login) => {
            let mut html = Html::new();
            html.raw("<h1>You are logged in</h1><p class=\"note\" role=\"status\">Your client goes on.</p>");
            html.raw("<div id=\"response\" hidden>")
                .text(&login.for_client(hs.server_name()).to_string())
                .raw("</div>");
            Ok(page_of_client(hs, visit.visitor, "Log in", &html, Some(LOGGED_IN)))
        }
        Err(e) if is_for_the_form(&e) => {
            let status = e.status();
            Ok(login_form(hs, visit, Some(&e)).with_status(status))
        }
        Err(e) => Err(e),
    }
}

fn logged_in(hs: &Homeserver, visit: &Visit<'_>) -> Result<Login> {
    let (request, from) = (visit.request, visit.request.client_ip());
    let name = object_of([("user", json!(visit.field("user").trim()))]);
    let user = user_of_identifier(&name, hs.server_name().as_str());
    let user = user.ok_or_else(|| Error::forbidden("Wrong user name or password"))?;
    let proof = hs.accounts().check_password(&user, visit.field("password"), Some(from))?;
    let new = NewLogin {
        device_id: request.query("device_id"),
        display_name: request.query("initial_device_display_name"),
        refreshable: request.query_bool("refresh_token")?.unwrap_or(false),
        from: Some(from),
        proof: Some(&proof),
        ..NewLogin::default()
    };
    hs.accounts().log_in_with(proof.user(), &new)
}

fn login_form(hs: &Homeserver, visit: &Visit<'_>, wrong: Option<&Error>) -> Reply {
    let mut html = Html::new();
    html.raw("<h1>Log in to ").text(hs.server_name().as_str()).raw("</h1>");
    html.raw("<p>A client asks for this. If you do not use one just now, close this page.</p>");
    told_wrong(&mut html, wrong);
    begin_form_here(&mut html, visit.visitor);
    html.raw(USER_FIELD).raw(PASSWORD_FIELD);
    html.raw("<p class=\"gap\"><button class=\"main\">Log in</button></p></form>");
    page_of_client(hs, visit.visitor, "Log in", &html, None)
}
