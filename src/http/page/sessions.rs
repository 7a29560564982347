//! One's own sessions and password.

use std::sync::Arc;

use super::html::Html;
use super::start::{is_for_the_form, new_password, new_password_fields, told_wrong};
use super::visit::Visit;
use super::{Question, Tab, ask, begin_form, hidden, outcome, page, see};
use crate::error::{Error, Result};
use crate::http::{Reply, Requester};
use crate::order;
use crate::service::Homeserver;
use crate::store::accounts::devices::Device;

/// So many sessions are on one page.
const SESSIONS_SHOWN_MAX: usize = 40;

const DONE: &[(&str, &str)] = &[
    ("ended", "That session is logged out."),
    ("others", "All other sessions are logged out."),
    ("password", "Your password is changed."),
];

/// `GET /page/sessions`
pub fn list(hs: &Arc<Homeserver>, visit: &Visit<'_>, user: &Requester) -> Result<Reply> {
    show(hs, visit, user, None)
}

fn show(hs: &Arc<Homeserver>, visit: &Visit<'_>, user: &Requester, wrong: Option<&Error>) -> Result<Reply> {
    let mut devices = hs.store.read(|db| db.devices(&user.user_id))?;
    order::sort_by_key(&mut devices, |device| {
        (Some(&device.device_id) != user.device_id.as_ref(), -device.last_seen_ms.unwrap_or(0))
    });
    let mut html = Html::new();
    html.raw("<h1>Your sessions</h1>");
    outcome(&mut html, visit, DONE);
    html.raw("<ul class=\"list\">");
    for device in devices.iter().take(SESSIONS_SHOWN_MAX) {
        session(hs, &mut html, visit, user, device);
    }
    html.raw("</ul>");
    super::door::more(&mut html, devices.len(), SESSIONS_SHOWN_MAX);
    if devices.len() > 1 {
        begin_form(&mut html, visit.visitor, "/page/sessions", "gap");
        hidden(&mut html, "others", "yes");
        html.raw("<button class=\"grave\">Log all others out</button></form>");
    }
    html.raw("<h2 id=\"password-of\">Change your password</h2>");
    told_wrong(&mut html, wrong);
    begin_form(&mut html, visit.visitor, "/page/password", "card narrow");
    own_password_field(&mut html);
    new_password_fields(&mut html);
    html.raw("<p class=\"gap\"><label><input type=\"checkbox\" name=\"others\" value=\"yes\" checked>Log all other sessions out</label></p>");
    html.raw("<p><button class=\"main\">Change password</button></p></form>");
    let status = wrong.map_or(200, Error::status);
    Ok(page(hs, visit.visitor, "Your sessions", Some(Tab::Sessions), &html).with_status(status))
}

fn own_password_field(html: &mut Html) {
    html.raw("<label for=\"password\">Your password</label><input id=\"password\" name=\"password\"");
    html.raw(" type=\"password\" required autocomplete=\"current-password\">");
}

fn session(hs: &Homeserver, html: &mut Html, visit: &Visit<'_>, user: &Requester, device: &Device) {
    let is_this = Some(&device.device_id) == user.device_id.as_ref();
    html.raw("<li class=\"row\"><div><h3>")
        .chosen(device.display_name.as_deref().unwrap_or(&device.device_id));
    if is_this {
        html.raw(" <span class=\"tag\">this one</span>");
    }
    html.raw("</h3><p class=\"dim\">");
    if device.display_name.is_some() {
        html.raw("<code>").chosen(&device.device_id).raw("</code>, ");
    }
    if let Some(seen) = device.last_seen_ms {
        html.raw("seen ").ago(seen, hs.clock.now_ms());
    }
    if let Some(ip) = &device.last_seen_ip {
        html.raw(" from ").chosen(ip);
    }
    html.raw("</p></div>");
    if !is_this {
        begin_form(html, visit.visitor, "/page/sessions", "");
        hidden(html, "device", &device.device_id);
        html.raw("<button class=\"grave\">Log out</button></form>");
    }
    html.raw("</li>");
}

/// `POST /page/sessions`: logs one session out, or all others, with the password, as the API asks for it.
pub fn end(hs: &Arc<Homeserver>, visit: &Visit<'_>, user: &Requester) -> Result<Reply> {
    let device = visit.field("device");
    let devices = hs.store.read(|db| db.devices(&user.user_id))?;
    let this = user.device_id()?;
    let ended: Vec<String> = if visit.field("others") == "yes" {
        devices.into_iter().map(|device| device.device_id).filter(|id| id != this).collect()
    } else {
        devices.into_iter().map(|device| device.device_id).filter(|id| id == device && id != this).collect()
    };
    if ended.is_empty() {
        return Err(Error::not_found("You have no such session"));
    }
    let all = visit.field("others") == "yes";
    if !visit.is_confirmed() {
        let mut text = Html::new();
        text.raw("<p>");
        match (all, ended.len()) {
            (true, 1) => text.raw("One session"),
            (true, count) => text.number(count).raw(" sessions"),
            (false, _) => text.raw("<code>").chosen(device).raw("</code>"),
        };
        text.raw(" will have to log in again. Encrypted messages for which the keys are nowhere else are lost.</p>");
        let title = if all { "Log all others out?" } else { "Log this session out?" };
        let mut fields = Html::new();
        own_password_field(&mut fields);
        let yes = if all { "Log them out" } else { "Log it out" };
        let (action, back) = ("/page/sessions", "/page/sessions");
        return Ok(ask(
            hs,
            visit,
            Tab::Sessions,
            &Question { title, text: &text, yes, action, back, fields: &fields },
        ));
    }
    hs.accounts().check_own_password(&user.user_id, visit.field("password"), visit.request.client_ip())?;
    hs.accounts().delete_devices(&user.user_id, ended)?;
    Ok(see(if all { "/page/sessions?done=others" } else { "/page/sessions?done=ended" }))
}

/// `POST /page/password`
pub fn change_password(hs: &Arc<Homeserver>, visit: &Visit<'_>, user: &Requester) -> Result<Reply> {
    let from = visit.request.client_ip();
    let changed = new_password(visit).and_then(|new| {
        let proof = hs.accounts().check_own_password(&user.user_id, visit.field("password"), from)?;
        let keep = Some(user.device_id.as_deref());
        let keep = keep.filter(|_| visit.field("others") == "yes");
        hs.accounts().change_password(&proof, new, keep, from)
    });
    match changed {
        Ok(()) => Ok(see("/page/sessions?done=password")),
        Err(e) if is_for_the_form(&e) => show(hs, visit, user, Some(&e)),
        Err(e) => Err(e),
    }
}
