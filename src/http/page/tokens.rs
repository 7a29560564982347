//! Registration tokens, for administrators: made, told once, revoked.

use std::sync::Arc;

use super::clients::client_address;
use super::door::more;
use super::html::Html;
use super::visit::Visit;
use super::{Question, Tab, ask, begin_form, hidden, outcome, page, see};
use crate::clock::Millis;
use crate::config::Registration;
use crate::error::{Error, Result};
use crate::http::{Reply, Requester};
use crate::service::Homeserver;
use crate::service::accounts::moderation::Administrator;
use crate::service::admin::tokens::{NewToken, TokenTerms};

/// So many tokens are on the page.
const TOKENS_SHOWN_MAX: usize = 40;
/// Most days that a token is good for, if it has an end.
const DAYS_MAX: i64 = 3650;
const DAY_MS: Millis = 24 * 60 * 60 * 1000;

const DONE: &[(&str, &str)] = &[("revoked", "The token is revoked.")];

/// `GET /page/tokens`
pub fn show(hs: &Arc<Homeserver>, visit: &Visit<'_>, _admin: &Requester) -> Result<Reply> {
    let now = hs.clock.now_ms();
    let found = hs.admin().list_tokens(None)?;
    let tokens = found["registration_tokens"].as_array().map_or(&[][..], Vec::as_slice);
    let mut html = Html::new();
    html.raw("<h1>Registration tokens</h1><p>Who has one can make an account in a Matrix client.</p>");
    match hs.config.registration {
        Registration::Token => {}
        Registration::Open => {
            html.raw("<p class=\"note\">Registration is open: nobody needs a token here.</p>");
        }
        Registration::Closed => {
            html.raw("<p class=\"note\">Registration is closed: tokens are good for nothing until it asks for them.</p>");
        }
    }
    outcome(&mut html, visit, DONE);
    if tokens.is_empty() {
        html.raw("<p class=\"dim\">None yet.</p>");
    }
    html.raw("<ul class=\"list\">");
    for token in tokens.iter().take(TOKENS_SHOWN_MAX) {
        let name = token["name"].as_str().unwrap_or_default();
        html.raw("<li class=\"row\"><div><h3><code>").chosen(name).raw("</code></h3><p class=\"dim\">used ");
        html.number(token["completed"].as_i64().unwrap_or(0));
        match token["uses_allowed"].as_i64() {
            Some(most) => html.raw(" of ").number(most).raw(" times"),
            None => html.raw(" times, without limit"),
        };
        match token["expiry_time"].as_i64() {
            Some(at) if at <= now => html.raw(", ended ").ago(at, now),
            Some(at) => html.raw(", ends ").ahead(at, now),
            None => html.raw(", no end"),
        };
        html.raw("</p></div>");
        begin_form(&mut html, visit.visitor, "/page/tokens", "");
        hidden(&mut html, "token", name);
        html.raw("<button class=\"grave\" name=\"do\" value=\"revoke\">Revoke</button></form></li>");
    }
    html.raw("</ul>");
    more(&mut html, tokens.len(), TOKENS_SHOWN_MAX);
    html.raw("<h2>Make a token</h2>");
    begin_form(&mut html, visit.visitor, "/page/tokens", "card narrow");
    html.raw("<label for=\"uses\">For how many accounts</label><input id=\"uses\" name=\"uses\" type=\"number\" min=\"1\"");
    html.raw(" max=\"100000\" value=\"1\"><p class=\"hint\">Left empty: any number.</p><label for=\"days\">For how many days</label>");
    html.raw("<input id=\"days\" name=\"days\" type=\"number\" min=\"1\" max=\"3650\" value=\"7\">");
    html.raw("<p class=\"hint\">Left empty: without end.</p>");
    html.raw("<p><button class=\"main\" name=\"do\" value=\"make\">Make a token</button></p></form>");
    Ok(page(hs, visit.visitor, "Registration tokens", Some(Tab::Tokens), &html))
}

/// `POST /page/tokens`: makes one, or revokes one.
pub fn change(hs: &Arc<Homeserver>, visit: &Visit<'_>, admin: &Requester) -> Result<Reply> {
    let by = Administrator::User(admin.user_id.clone());
    match visit.field("do") {
        "make" => make(hs, visit, &by),
        "revoke" if !visit.is_confirmed() => {
            let mut text = Html::new();
            text.raw("<p>Nobody can make an account with <code>").chosen(visit.field("token"));
            text.raw("</code> any more. Accounts that were made with it stay.</p>");
            let (title, yes, fields) = ("Revoke this token?", "Revoke", &Html::new());
            let (action, back) = ("/page/tokens", "/page/tokens");
            Ok(ask(hs, visit, Tab::Tokens, &Question { title, text: &text, yes, action, back, fields }))
        }
        "revoke" => {
            hs.admin().revoke_token(&by, visit.field("token"))?;
            Ok(see("/page/tokens?done=revoked"))
        }
        _ => Err(Error::invalid_param("The form does not say what is to be done")),
    }
}

fn make(hs: &Arc<Homeserver>, visit: &Visit<'_>, by: &Administrator) -> Result<Reply> {
    let uses_allowed = number(visit, "uses", 100_000)?;
    let days = number(visit, "days", DAYS_MAX)?;
    let expires_ms = days.map(|days| hs.clock.now_ms() + days * DAY_MS);
    let terms = TokenTerms { uses_allowed: Some(uses_allowed), expires_ms: Some(expires_ms) };
    let made = hs.admin().add_token(by, &NewToken { terms, ..NewToken::default() })?;
    let mut html = Html::new();
    html.raw("<h1>The token is made</h1><p>It is shown once, here. Give it to whom you want to have an account:</p>");
    html.raw("<p><code class=\"big\">")
        .text(made["token"].as_str().unwrap_or_default())
        .raw("</code></p><p>They open a Matrix client, set the homeserver to <code>");
    html.text(&client_address(hs, visit)).raw("</code>, choose “Create account” and enter it.</p>");
    html.raw("<p><a class=\"button\" href=\"/page/tokens\">All tokens</a></p>");
    Ok(page(hs, visit.visitor, "The token is made", Some(Tab::Tokens), &html))
}

/// A number between 1 and the largest; none if the field is empty. Errors: 400 `M_INVALID_PARAM`.
fn number(visit: &Visit<'_>, field: &str, most: i64) -> Result<Option<i64>> {
    let Some(text) = visit.given(field) else { return Ok(None) };
    let number = text.parse::<i64>().ok().filter(|number| (1..=most).contains(number));
    number.map(Some).ok_or_else(|| Error::invalid_param(format!("This should be a number from 1 to {most}")))
}
