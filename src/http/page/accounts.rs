//! Everybody's accounts, for administrators.

use std::sync::Arc;

use serde_json::Value;

use super::html::Html;
use super::start::{is_for_the_form, told_wrong};
use super::visit::Visit;
use super::{Question, Tab, ask, begin_form, hidden, outcome, page, see};
use crate::error::{Error, Result};
use crate::http::{Reply, Requester};
use crate::protocol::UserId;
use crate::protocol::media::web_url::percent_encoded;
use crate::random;
use crate::service::Homeserver;
use crate::service::accounts::NewAccount;
use crate::service::accounts::moderation::Administrator;
use crate::service::admin::accounts::AccountsPage;
use crate::store::accounts::listed::AccountFilter;
use crate::store::accounts::{Account, Standing};

/// So many accounts are on one page.
const ACCOUNTS_SHOWN_MAX: i64 = 40;

const DONE: &[(&str, &str)] = &[
    ("admin", "The account is an administrator’s now."),
    ("no-admin", "The account is no administrator’s any more."),
    ("lock", "The account is locked."),
    ("unlock", "The account is not locked any more."),
    ("suspend", "The account is suspended."),
    ("unsuspend", "The account is not suspended any more."),
    ("deactivate", "The account is closed."),
];

/// `GET /page/accounts`: all of them, or one.
pub fn show(hs: &Arc<Homeserver>, visit: &Visit<'_>, admin: &Requester) -> Result<Reply> {
    match visit.request.query("user") {
        Some(user) => one(hs, visit, admin, &UserId::parse(user)?),
        None => list(hs, visit, "", None),
    }
}

fn list(hs: &Arc<Homeserver>, visit: &Visit<'_>, localpart: &str, wrong: Option<&Error>) -> Result<Reply> {
    let name = visit.request.query("name").map(str::trim).filter(|name| !name.is_empty());
    let from = visit.request.query("from").and_then(|from| from.parse::<i64>().ok()).unwrap_or(0).max(0);
    let filter = AccountFilter { name: name.map(str::to_owned), ..AccountFilter::default() };
    let asked = AccountsPage { filter, from, limit: ACCOUNTS_SHOWN_MAX, ..AccountsPage::default() };
    let found = hs.admin().list_accounts(&asked)?;
    let mut html = Html::new();
    html.raw("<h1>Accounts</h1>");
    outcome(&mut html, visit, DONE);
    html.raw(
        "<form class=\"acts\" role=\"search\" action=\"/page/accounts\"><label for=\"name\">Name</label>",
    );
    html.raw("<input id=\"name\" name=\"name\" type=\"search\" value=\"").text(name.unwrap_or_default());
    html.raw("\"><button>Search</button></form>");
    let users = found["users"].as_array().map_or(&[][..], Vec::as_slice);
    if users.is_empty() {
        html.raw("<p class=\"dim\">No such account.</p>");
    }
    html.raw("<ul class=\"list\">");
    for user in users {
        account_row(hs, &mut html, user);
    }
    html.raw("</ul>");
    if let Some(next) = found["next_token"].as_str() {
        html.raw("<p><a class=\"button\" href=\"/page/accounts?from=").text(next).raw("&amp;name=");
        html.text(&percent_encoded(name.unwrap_or_default())).raw("\">More</a></p>");
    }
    html.raw("<h2>Make an account</h2>");
    told_wrong(&mut html, wrong);
    begin_form(&mut html, visit.visitor, "/page/accounts", "card narrow");
    html.raw("<label for=\"user\">User name</label><input id=\"user\" name=\"user\" required autocapitalize=\"none\"");
    html.raw(" autocomplete=\"off\" spellcheck=\"false\" value=\"").text(localpart).raw("\">");
    password_field(&mut html);
    html.raw("<p class=\"gap\"><label><input type=\"checkbox\" name=\"admin\" value=\"yes\">An administrator’s</label></p>");
    html.raw("<p><button class=\"main\">Make the account</button></p></form>");
    let status = wrong.map_or(200, Error::status);
    Ok(page(hs, visit.visitor, "Accounts", Some(Tab::Accounts), &html).with_status(status))
}

fn password_field(html: &mut Html) {
    html.raw("<label for=\"new\">Password</label><input id=\"new\" name=\"new\" type=\"password\" maxlength=\"512\"");
    html.raw(" autocomplete=\"new-password\"><p class=\"hint\">Left empty, one is made and shown once.</p>");
}

fn account_row(hs: &Homeserver, html: &mut Html, user: &Value) {
    let id = user["name"].as_str().unwrap_or_default();
    html.raw("<li class=\"row\"><div><h3><a href=\"/page/accounts?user=")
        .text(&percent_encoded(id))
        .raw("\">");
    html.chosen(id).raw("</a>");
    for (field, tag) in [
        ("admin", " <span class=\"tag\">admin</span>"),
        ("is_guest", " <span class=\"tag\">guest</span>"),
        ("locked", " <span class=\"tag\">locked</span>"),
        ("suspended", " <span class=\"tag\">suspended</span>"),
        ("deactivated", " <span class=\"tag\">closed</span>"),
    ] {
        if user[field] == true {
            html.raw(tag);
        }
    }
    html.raw("</h3><p class=\"dim\">");
    if let Some(name) = user["displayname"].as_str() {
        html.chosen(name).raw(", ");
    }
    match user["last_seen_ts"].as_i64() {
        Some(seen) => html.raw("seen ").ago(seen, hs.clock.now_ms()),
        None => html.raw("never seen"),
    };
    html.raw("</p></div></li>");
}

/// One account and what can be done to it.
fn one(hs: &Arc<Homeserver>, visit: &Visit<'_>, admin: &Requester, user: &UserId) -> Result<Reply> {
    let account = account(hs, user)?;
    let mut html = Html::new();
    html.raw("<p><a href=\"/page/accounts\">All accounts</a></p><h1>").chosen(user.as_str()).raw("</h1>");
    html.raw("<p class=\"dim\">Made ").ago(account.created_ms, hs.clock.now_ms()).raw("</p>");
    outcome(&mut html, visit, DONE);
    if account.deactivated {
        html.raw("<p class=\"note\">This account is closed for good. Its name stays taken.</p>");
        return Ok(page(hs, visit.visitor, "Account", Some(Tab::Accounts), &html));
    }
    if admin.user_id == *user {
        html.raw("<p class=\"note\">This is your own. Your password is changed under <a href=\"/page/sessions\">Sessions</a>; what else there is to change, another administrator can.</p>");
        return Ok(page(hs, visit.visitor, "Account", Some(Tab::Accounts), &html));
    }
    let standing = account.standing;
    let mut switches = Vec::new();
    if !standing.guest {
        switches.push(PASSWORD);
    }
    match account.admin {
        true => switches.push(NO_ADMIN),
        // Administrators are neither guests nor locked.
        false if standing == Standing::default() => switches.push(ADMIN),
        false => {}
    }
    if !account.admin {
        switches.push(if standing.locked { UNLOCK } else { LOCK });
        switches.push(if standing.suspended { UNSUSPEND } else { SUSPEND });
    }
    html.raw("<ul class=\"list\">");
    for (deed, button, means) in switches {
        html.raw("<li class=\"row\"><p>").raw(means).raw("</p>");
        begin_deed(&mut html, visit, user, deed);
        html.raw(button).raw("</form></li>");
    }
    html.raw("</ul><h2>Close the account</h2>");
    begin_deed(&mut html, visit, user, "deactivate");
    html.raw("<div class=\"card narrow\">");
    erase_box(&mut html, false);
    html.raw("<p><button class=\"grave\">Close it for good</button></p></div></form>");
    Ok(page(hs, visit.visitor, "Account", Some(Tab::Accounts), &html))
}

fn erase_box(html: &mut Html, is_ticked: bool) {
    let ticked = if is_ticked { " checked" } else { "" };
    html.raw("<p><label><input type=\"checkbox\" name=\"erase\" value=\"yes\"").raw(ticked);
    html.raw(">Hide what they wrote from who comes later</label></p>");
}

/// What can be switched: the deed, its button, and what it means.
type Switch = (&'static str, &'static str, &'static str);
const PASSWORD: Switch =
    ("password", "<button>Reset the password</button>", "A new password, which logs them out everywhere.");
const ADMIN: Switch =
    ("admin", "<button>Make admin</button>", "An administrator sees these pages and does what they offer.");
const NO_ADMIN: Switch =
    ("no-admin", "<button>Take admin away</button>", "The account is an administrator’s.");
const LOCK: Switch =
    ("lock", "<button>Lock</button>", "Who is locked can do nothing until they are unlocked.");
const UNLOCK: Switch = ("unlock", "<button>Unlock</button>", "The account is locked.");
const SUSPEND: Switch =
    ("suspend", "<button>Suspend</button>", "Who is suspended can read and leave, and not speak.");
const UNSUSPEND: Switch = ("unsuspend", "<button>Lift the suspension</button>", "The account is suspended.");

fn begin_deed(html: &mut Html, visit: &Visit<'_>, user: &UserId, deed: &str) {
    begin_form(html, visit.visitor, "/page/accounts/change", "");
    hidden(html, "user", user.as_str());
    hidden(html, "do", deed);
}

/// An account of this server. Errors: 404 `M_NOT_FOUND`.
fn account(hs: &Homeserver, user: &UserId) -> Result<Account> {
    hs.store.read(|db| db.account(user))?.ok_or_else(|| Error::not_found("There is no such account"))
}

/// The password that was given, or one that is made; whether it is.
fn given_or_made(visit: &Visit<'_>) -> (String, bool) {
    match visit.field("new") {
        "" => (random::letters(16), true),
        given => (given.to_owned(), false),
    }
}

/// What is shown once: the password that was made.
fn password_made(html: &mut Html, password: &str, is_made: bool) {
    if is_made {
        html.raw("<p>The password is shown once, here:</p><p><code class=\"big\">")
            .text(password)
            .raw("</code></p>");
    }
}

/// `POST /page/accounts`: makes one.
pub fn make(hs: &Arc<Homeserver>, visit: &Visit<'_>, admin: &Requester) -> Result<Reply> {
    let (password, is_made) = given_or_made(visit);
    let localpart = visit.field("user").trim();
    let new = NewAccount {
        localpart: Some(localpart),
        password: Some(&password),
        admin: visit.field("admin") == "yes",
        from: Some(visit.request.client_ip()),
        ..NewAccount::default()
    };
    let by = Administrator::User(admin.user_id.clone());
    let made = match hs.admin().add_account(&by, &new) {
        Ok(made) => made,
        Err(e) if is_for_the_form(&e) => return list(hs, visit, localpart, Some(&e)),
        Err(e) => return Err(e),
    };
    let mut html = Html::new();
    html.raw("<h1>The account is made</h1><p>Its user is <code>");
    html.chosen(made["name"].as_str().unwrap_or_default()).raw("</code>.</p>");
    password_made(&mut html, &password, is_made);
    html.raw("<p><a class=\"button\" href=\"/page/accounts\">All accounts</a></p>");
    Ok(page(hs, visit.visitor, "The account is made", Some(Tab::Accounts), &html))
}

/// `POST /page/accounts/change`
pub fn change(hs: &Arc<Homeserver>, visit: &Visit<'_>, admin: &Requester) -> Result<Reply> {
    let user = UserId::parse(visit.field("user"))?;
    let account = account(hs, &user)?;
    if admin.user_id == user || account.deactivated {
        return Err(Error::forbidden("This cannot be done to this account"));
    }
    let by = Administrator::User(admin.user_id.clone());
    match visit.field("do") {
        deed @ ("lock" | "unlock" | "suspend" | "unsuspend") => {
            let (on, is_lock) = (!deed.starts_with("un"), deed.ends_with("lock"));
            hs.accounts().change_standing(&by, &user, move |standing| {
                if is_lock {
                    standing.locked = on;
                } else {
                    standing.suspended = on;
                }
            })?;
        }
        deed if !visit.is_confirmed() => return question(hs, visit, &user, deed),
        deed @ ("admin" | "no-admin") => hs.admin().set_admin(&by, &user, deed == "admin")?,
        "password" => return reset_password(hs, visit, &by, &user),
        "deactivate" => hs.admin().deactivate_account(&by, &user, visit.field("erase") == "yes")?,
        _ => return Err(unknown_deed()),
    }
    Ok(see(match visit.field("do") {
        "admin" => "/page/accounts?done=admin",
        "no-admin" => "/page/accounts?done=no-admin",
        "lock" => "/page/accounts?done=lock",
        "unlock" => "/page/accounts?done=unlock",
        "suspend" => "/page/accounts?done=suspend",
        "unsuspend" => "/page/accounts?done=unsuspend",
        _ => "/page/accounts?done=deactivate",
    }))
}

fn unknown_deed() -> Error {
    Error::invalid_param("The form does not say what is to be done")
}

/// Asks before what cannot be undone, or gives power away.
fn question(hs: &Homeserver, visit: &Visit<'_>, user: &UserId, deed: &str) -> Result<Reply> {
    let (title, yes, means) = match deed {
        "admin" => (
            "Make this account an administrator’s?",
            "Make admin",
            " will see and change all that you see and change here.",
        ),
        "no-admin" => ("Take admin away?", "Take admin away", " will be an ordinary user."),
        "password" => (
            "Reset this password?",
            "Reset the password",
            " is logged out everywhere. Encrypted messages for which the keys are nowhere else are lost to them.",
        ),
        "deactivate" => (
            "Close this account for good?",
            "Close it for good",
            " leaves all rooms and can never log in again, and nobody gets the name any more. This cannot be undone.",
        ),
        _ => return Err(unknown_deed()),
    };
    let mut text = Html::new();
    text.raw("<p><code>").chosen(user.as_str()).raw("</code>").raw(means).raw("</p>");
    let mut fields = Html::new();
    match deed {
        "password" => password_field(&mut fields),
        "deactivate" => erase_box(&mut fields, visit.field("erase") == "yes"),
        _ => {}
    }
    let (action, back, fields) = ("/page/accounts/change", "/page/accounts", &fields);
    Ok(ask(hs, visit, Tab::Accounts, &Question { title, text: &text, yes, action, back, fields }))
}

fn reset_password(hs: &Homeserver, visit: &Visit<'_>, admin: &Administrator, user: &UserId) -> Result<Reply> {
    let (password, is_made) = given_or_made(visit);
    hs.admin().reset_password(admin, user, &password, true)?;
    let mut html = Html::new();
    html.raw("<h1>The password is reset</h1><p><code>")
        .chosen(user.as_str())
        .raw("</code> is logged out everywhere.</p>");
    password_made(&mut html, &password, is_made);
    html.raw("<p><a class=\"button\" href=\"/page/accounts\">All accounts</a></p>");
    Ok(page(hs, visit.visitor, "The password is reset", Some(Tab::Accounts), &html))
}
