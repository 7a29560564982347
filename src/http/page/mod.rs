//! The page at `/`: what people do in a browser, without a client. Plain HTML that the server writes, with one style
//! sheet in it, without frames or anything from elsewhere, and nearly without scripts.
//!
//! - `visit`: who stands before it, by which cookie and with which form; `html`: how it is written.
//! - here: what every page has around it, and what a browser is told of each.
//! - `start`: the first account, logging in and out; `clients` to go on with; `door`: rooms, knocks and invites; `sessions`: one's own.
//! - `accounts`, `rooms`, `tokens`, `server` with `storage`: for administrators.
//! - `fallback`: what clients have done in a browser that they cannot do themselves. These pages alone have scripts: the few lines
//!   that tell the client.

pub mod accounts;
mod clients;
pub mod door;
pub mod fallback;
pub mod html;
pub mod rooms;
pub mod server;
pub mod sessions;
pub mod start;
mod storage;
pub mod tokens;
pub mod visit;

use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use self::html::Html;
use self::visit::{FORM_TOKEN, Visit, Visitor};
use crate::error::{ErrCode, Error};
use crate::http::transport::reply::Reply;
use crate::service::Homeserver;

/// The one style sheet, in every page.
const STYLE: &str = include_str!("style.css");

/// What a page of ours may do in a browser: be styled by that, and send forms to us.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let style = hash_of(STYLE);
    format!(
        "default-src 'none'; style-src {style}; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    )
});

/// What a policy says of a style sheet or a script that is in the page itself.
fn hash_of(text: &str) -> String {
    format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text)))
}

/// The pages of who is logged in, in the order of the navigation; from `Accounts` on they are for administrators.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Tab {
    /// Rooms, knocks, invites.
    Home,
    /// One's own sessions and password.
    Sessions,
    /// Everybody's accounts.
    Accounts,
    /// The rooms that this server knows.
    Rooms,
    /// Registration tokens.
    Tokens,
    /// Other servers, the log.
    Server,
}

const TABS: [(Tab, &str, &str); 6] = [
    (Tab::Home, "/", "Door"),
    (Tab::Sessions, "/page/sessions", "Sessions"),
    (Tab::Accounts, "/page/accounts", "Accounts"),
    (Tab::Rooms, "/page/rooms", "Rooms"),
    (Tab::Tokens, "/page/tokens", "Tokens"),
    (Tab::Server, "/page/server", "Server"),
];

/// Whether a request target is one of the page, in every spelling in which the table finds it: a slash at the end is none.
pub(super) fn is_of_page(target: &str) -> bool {
    let path = target.split('?').next().unwrap_or_default();
    let of_client = |rest: &str| rest.split('/').nth(1) == Some("auth");
    matches!(path, "" | "/" | "//")
        || path.starts_with("/page/")
        || path.starts_with("/_matrix/static/")
        || path.strip_prefix("/_matrix/client/").is_some_and(of_client)
}

/// A whole page. `main` is what it has within its frame, beginning with a heading.
pub(super) fn page(
    hs: &Homeserver,
    visitor: &Visitor,
    title: &'static str,
    tab: Option<Tab>,
    main: &Html,
) -> Reply {
    let mut html = Html::new();
    begin(&mut html, title, hs.server_name().as_str());
    html.raw("<header><div><a class=\"name\" href=\"/\">").text(hs.server_name().as_str()).raw("</a>");
    if let Some(user) = visitor.requester.as_ref().filter(|user| !user.standing.guest) {
        html.raw("<span class=\"who\">").chosen(user.user_id.as_str()).raw("</span>");
        begin_form(&mut html, visitor, "/page/logout", "");
        html.raw("<button>Log out</button></form>");
        if !user.standing.locked {
            navigation(&mut html, tab, user.admin);
        }
    }
    html.raw("</div></header><main id=\"main\">").add(main);
    html.raw("</main><footer>Doorstep ").raw(env!("CARGO_PKG_VERSION")).raw("</footer></body></html>\n");
    visitor.remembered(finished(html))
}

/// A page for who comes from a client and goes back there: nothing is around it. `script`: what the client is told by.
fn page_of_client(
    hs: &Homeserver,
    visitor: &Visitor,
    title: &'static str,
    main: &Html,
    script: Option<&'static str>,
) -> Reply {
    let mut html = Html::new();
    begin(&mut html, title, hs.server_name().as_str());
    html.raw("<main id=\"main\">").add(main).raw("</main>");
    if let Some(script) = script {
        html.raw("<script>").raw(script).raw("</script>");
    }
    html.raw("</body></html>\n");
    let reply = Reply::bytes("text/html; charset=utf-8", html.into_bytes());
    let policy = script.map(|script| format!("{}; script-src {}", *POLICY, hash_of(script)));
    visitor.remembered(told_to_browsers_with(reply, policy.as_deref().unwrap_or(&POLICY)))
}

fn begin(html: &mut Html, title: &'static str, server: &str) {
    html.raw("<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">");
    html.raw("<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><title>");
    html.raw(title).raw(" – ").text(server).raw("</title><style>").raw(STYLE).raw("</style></head>");
    html.raw("<body><a class=\"skip\" href=\"#main\">To the content</a>");
}

fn navigation(html: &mut Html, here: Option<Tab>, is_admin: bool) {
    html.raw("<nav aria-label=\"Pages\"><ul>");
    for (tab, path, name) in TABS.iter().filter(|(tab, ..)| is_admin || *tab < Tab::Accounts) {
        html.raw("<li><a href=\"").raw(path).raw("\"");
        if Some(*tab) == here {
            html.raw(" aria-current=\"page\"");
        }
        html.raw(">").raw(name).raw("</a></li>");
    }
    html.raw("</ul></nav>");
}

/// 200 with a page, and what a browser is told of each.
fn finished(html: Html) -> Reply {
    told_to_browsers(Reply::bytes("text/html; charset=utf-8", html.into_bytes()))
}

fn told_to_browsers(reply: Reply) -> Reply {
    told_to_browsers_with(reply, &POLICY)
}

fn told_to_browsers_with(reply: Reply, policy: &str) -> Reply {
    reply
        .with_header("Content-Security-Policy", policy)
        .with_header("X-Frame-Options", "DENY")
        .with_header("X-Content-Type-Options", "nosniff")
        // Not `no-referrer`, with which browsers hide from where a form was sent, from us too.
        .with_header("Referrer-Policy", "same-origin")
        .with_header("Cross-Origin-Resource-Policy", "same-origin")
        .with_header("Cache-Control", "no-store")
        .with_header("Vary", "Accept, Cookie")
}

/// 303 to another page, once something was done.
pub(super) fn see(path: &'static str) -> Reply {
    told_to_browsers(Reply::bytes("text/html; charset=utf-8", Vec::new()))
        .with_status(303)
        .with_header("Location", path)
}

/// Begins a form with its token in it.
pub(super) fn begin_form(html: &mut Html, visitor: &Visitor, action: &'static str, class: &'static str) {
    html.raw("<form method=\"post\" action=\"").raw(action).raw("\" class=\"").raw(class).raw("\">");
    hidden(html, FORM_TOKEN, &visitor.form_token());
}

/// The same for a form that is sent to where its page is, with all that its address says.
fn begin_form_here(html: &mut Html, visitor: &Visitor) {
    html.raw("<form method=\"post\" class=\"card narrow\">");
    hidden(html, FORM_TOKEN, &visitor.form_token());
}

/// A field of a form that is not shown.
pub(super) fn hidden(html: &mut Html, name: &str, value: &str) {
    html.raw("<input type=\"hidden\" name=\"").text(name).raw("\" value=\"").text(value).raw("\">");
}

/// What was done before this page was shown, as the address that [`see`] gave tells: one of these sentences, whatever
/// the address says.
pub(super) fn outcome(html: &mut Html, visit: &Visit<'_>, sentences: &[(&str, &'static str)]) {
    let done = visit.request.query("done");
    if let Some((_, sentence)) = sentences.iter().find(|(code, _)| Some(*code) == done) {
        html.raw("<p class=\"note\" role=\"status\">").raw(sentence).raw("</p>");
    }
}

/// What a person is asked before something is done that cannot be undone.
pub(super) struct Question<'q> {
    pub title: &'static str,
    /// What will happen, as paragraphs.
    pub text: &'q Html,
    /// On the button that does it.
    pub yes: &'static str,
    /// Where the form goes, and where who thinks better of it goes.
    pub action: &'static str,
    pub back: &'static str,
    /// What else is asked for: more fields of the form. `erase` is one of those, where there is one.
    pub fields: &'q Html,
}

/// The page that asks. The form that led to it is sent once more from there, with `confirmed`.
pub(super) fn ask(hs: &Homeserver, visit: &Visit<'_>, tab: Tab, question: &Question<'_>) -> Reply {
    let mut html = Html::new();
    html.raw("<h1>").raw(question.title).raw("</h1>").add(question.text);
    begin_form(&mut html, visit.visitor, question.action, "card narrow");
    for (name, value) in visit.fields_but(&["password", "confirmed", "erase"]) {
        hidden(&mut html, name, value);
    }
    hidden(&mut html, "confirmed", "yes");
    html.add(question.fields);
    html.raw("<p class=\"acts gap\"><button class=\"grave\">").raw(question.yes);
    html.raw("</button> <a class=\"button\" href=\"").raw(question.back).raw("\">Cancel</a></p></form>");
    page(hs, visit.visitor, question.title, Some(tab), &html)
}

/// An error, for people. `visitor`: who it is for, if that is known.
pub(super) fn failure_page(hs: &Homeserver, visitor: Option<&Visitor>, error: &Error) -> Reply {
    let title = match error.status() {
        401 => "Please log in",
        403 => "This is not allowed",
        404 => "There is no such thing",
        429 => "Too many requests",
        400..500 => "This cannot be done",
        _ => "Something went wrong",
    };
    let mut html = Html::new();
    html.raw("<h1>")
        .raw(title)
        .raw("</h1><p class=\"note wrong\" role=\"alert\">")
        .text(error.message())
        .raw("</p>");
    if let Some(ms) = error.field("retry_after_ms").and_then(serde_json::Value::as_i64) {
        html.raw("<p>It may be tried again in ").number(ms / 1000 + 1).raw(" seconds.</p>");
    }
    html.raw("<p><a class=\"button\" href=\"/\">To the start</a></p>");
    let reply = match visitor {
        Some(visitor) => page(hs, visitor, title, None, &html),
        None => {
            let mut whole = Html::new();
            begin(&mut whole, title, hs.server_name().as_str());
            whole.raw("<main id=\"main\">").add(&html).raw("</main></body></html>\n");
            finished(whole)
        }
    };
    let reply = reply.with_status(error.status());
    match error.field("retry_after_ms").and_then(serde_json::Value::as_u64) {
        Some(ms) if error.errcode() == ErrCode::LimitExceeded => {
            reply.with_header("Retry-After", &ms.div_ceil(1000).max(1).to_string())
        }
        _ => reply,
    }
}
