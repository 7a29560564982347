//! What waits for a user at the door: knocks upon their rooms, and invites to those of others.

use std::sync::Arc;

use super::clients::clients;
use super::html::Html;
use super::visit::Visit;
use super::{Question, Tab, ask, begin_form, hidden, outcome, page, see};
use crate::clock::Millis;
use crate::error::{Error, Result};
use crate::http::{Reply, Requester};
use crate::protocol::{RoomId, UserId};
use crate::service::Homeserver;
use crate::service::admin::knocks::{KnockAnswerer, KnockFilter, WaitingKnocks};
use crate::service::admin::own_door::{OwnDoor, WaitingInvite};
use crate::service::membership::JoinTarget;

/// So many of each kind are on one page; the others come when these are answered.
const KNOCKS_SHOWN_MAX: usize = 12;
const INVITES_SHOWN_MAX: usize = 8;
const ROOMS_SHOWN_MAX: usize = 20;

/// Longest reason that is shown whole, in characters.
const REASON_CHARS_MAX: usize = 300;

const DONE: &[(&str, &str)] = &[
    ("first", "Welcome. This is your server; open a client below to go on."),
    ("accepted", "They are invited, and can come in."),
    ("refused", "They are told that they were refused."),
    ("joined", "You are in the room. It is in your client."),
    ("rejected", "The invite is rejected."),
];

/// The page of who is logged in.
pub(super) fn show(hs: &Arc<Homeserver>, visit: &Visit<'_>, user: &Requester) -> Result<Reply> {
    let now = hs.clock.now_ms();
    let mut html = Html::new();
    html.raw("<h1>At the door</h1>");
    outcome(&mut html, visit, DONE);
    if user.standing.suspended {
        html.raw(
            "<p class=\"note\">Your account is suspended: you can look, and leave, but let nobody in.</p>",
        );
    }
    let is_welcome = visit.request.query("done") == Some("first");
    if is_welcome {
        clients(hs, &mut html, visit);
    }
    let mine = KnockFilter { may_answer: Some(&user.user_id), ..KnockFilter::default() };
    knocks(&mut html, visit, &hs.admin().knocks_waiting(mine)?, now);
    invites(&mut html, visit, &hs.admin().invites_waiting(&user.user_id, INVITES_SHOWN_MAX + 1)?, now);
    rooms(&mut html, &hs.admin().own_doors(&user.user_id)?);
    if !is_welcome {
        clients(hs, &mut html, visit);
    }
    Ok(page(hs, visit.visitor, "At the door", Some(Tab::Home), &html))
}

fn knocks(html: &mut Html, visit: &Visit<'_>, all: &WaitingKnocks, now: Millis) {
    html.raw("<h2>Who knocks</h2>");
    if all.knocks.is_empty() {
        html.raw("<p class=\"dim\">Nobody waits before your rooms.</p>");
        return;
    }
    html.raw("<ul class=\"list\">");
    for knock in all.knocks.iter().take(KNOCKS_SHOWN_MAX) {
        html.raw("<li><h3>").chosen(knock.displayname.as_deref().unwrap_or(knock.user_id.as_str()));
        html.raw("</h3><p><code>").chosen(knock.user_id.as_str()).raw("</code> knocks upon <b>");
        room_name(html, knock.room_name.as_deref(), &knock.room_id);
        html.raw("</b> <span class=\"dim\">").ago(knock.since_ms, now).raw("</span></p>");
        reason(html, knock.reason.as_deref());
        begin_form(html, visit.visitor, "/page/knocks", "acts answer gap");
        hidden(html, "room", knock.room_id.as_str());
        hidden(html, "user", knock.user_id.as_str());
        html.raw("<button class=\"main\" name=\"do\" value=\"accept\">Let in</button>");
        html.raw("<input name=\"reason\" aria-label=\"Reason of a refusal\" placeholder=\"Reason of a refusal\" maxlength=\"500\">");
        html.raw("<button class=\"grave\" name=\"do\" value=\"refuse\">Refuse</button></form></li>");
    }
    html.raw("</ul>");
    more(html, all.total, KNOCKS_SHOWN_MAX);
}

fn invites(html: &mut Html, visit: &Visit<'_>, all: &[WaitingInvite], now: Millis) {
    html.raw("<h2>Where you are invited</h2>");
    if all.is_empty() {
        html.raw("<p class=\"dim\">No invites.</p>");
        return;
    }
    html.raw("<ul class=\"list\">");
    for invite in all.iter().take(INVITES_SHOWN_MAX) {
        html.raw("<li><h3>");
        room_name(html, invite.room_name.as_deref(), &invite.room_id);
        html.raw("</h3><p>by <code>").chosen(invite.inviter.as_str()).raw("</code> <span class=\"dim\">");
        html.ago(invite.since_ms, now).raw("</span></p>");
        reason(html, invite.reason.as_deref());
        html.raw("<div class=\"acts gap\">");
        for (action, button) in [
            ("/page/invites/accept", "<button class=\"main\">Join</button></form>"),
            ("/page/invites/reject", "<button class=\"grave\">Reject</button></form>"),
        ] {
            begin_form(html, visit.visitor, action, "");
            hidden(html, "room", invite.room_id.as_str());
            html.raw(button);
        }
        html.raw("</div></li>");
    }
    html.raw("</ul>");
    if all.len() > INVITES_SHOWN_MAX {
        html.raw("<p class=\"dim\">Others come when these are answered.</p>");
    }
}

fn rooms(html: &mut Html, all: &[OwnDoor]) {
    html.raw("<h2>Rooms where you can let people in</h2>");
    if all.is_empty() {
        html.raw("<p class=\"dim\">None yet.</p>");
        return;
    }
    html.raw("<ul class=\"list\">");
    for door in all.iter().take(ROOMS_SHOWN_MAX) {
        html.raw("<li class=\"row\"><span>");
        room_name(html, door.room_name.as_deref(), &door.room_id);
        html.raw("</span> <span class=\"tag\">").raw(match (door.takes_knocks, door.is_open) {
            (true, _) => "takes knocks",
            (false, true) => "open to all",
            (false, false) => "by invite",
        });
        html.raw("</span>");
        if door.waiting > 0 {
            html.raw(" <b>").number(door.waiting).raw(" waiting</b>");
        }
        html.raw("</li>");
    }
    html.raw("</ul>");
    more(html, all.len(), ROOMS_SHOWN_MAX);
}

/// How many there are beside those that are shown.
pub(super) fn more(html: &mut Html, all: usize, shown: usize) {
    if all > shown {
        html.raw("<p class=\"dim\">And ").number(all - shown).raw(" more.</p>");
    }
}

/// What a room is called, or else its id.
pub(super) fn room_name(html: &mut Html, name: Option<&str>, id: &RoomId) {
    match name {
        Some(name) => html.chosen(name),
        None => html.raw("<code>").chosen(id.as_str()).raw("</code>"),
    };
}

fn reason(html: &mut Html, reason: Option<&str>) {
    if let Some(reason) = reason {
        html.raw("<blockquote>").cut(reason, REASON_CHARS_MAX).raw("</blockquote>");
    }
}

/// `POST /page/knocks`: lets somebody in, or refuses them.
pub fn answer_knock(hs: &Arc<Homeserver>, visit: &Visit<'_>, user: &Requester) -> Result<Reply> {
    let room = RoomId::parse(visit.field("room"))?;
    let knocker = UserId::parse(visit.field("user"))?;
    match visit.field("do") {
        "accept" => {
            hs.admin().accept_knock(KnockAnswerer::Member(&user.user_id), &room, &knocker)?;
            Ok(see("/?done=accepted"))
        }
        "refuse" if !visit.is_confirmed() => {
            let mut text = Html::new();
            text.raw("<p><code>").chosen(knocker.as_str()).raw("</code> is told");
            match visit.given("reason") {
                Some(reason) => text
                    .raw(", with the reason:</p><blockquote>")
                    .cut(reason, REASON_CHARS_MAX)
                    .raw("</blockquote>"),
                None => text.raw(", without a reason.</p>"),
            };
            let (title, yes) = ("Refuse this knock?", "Refuse");
            let (action, back, fields) = ("/page/knocks", "/", &Html::new());
            Ok(ask(hs, visit, Tab::Home, &Question { title, text: &text, yes, action, back, fields }))
        }
        "refuse" => {
            let by = KnockAnswerer::Member(&user.user_id);
            hs.admin().refuse_knock(by, &room, &knocker, visit.given("reason"))?;
            Ok(see("/?done=refused"))
        }
        _ => Err(Error::invalid_param("A knock is accepted or refused")),
    }
}

/// `POST /page/invites/accept`
pub fn accept_invite(hs: &Arc<Homeserver>, visit: &Visit<'_>, user: &Requester) -> Result<Reply> {
    let target = JoinTarget { room_id: RoomId::parse(visit.field("room"))?, via: Vec::new() };
    hs.membership().join(&user.user_id, &target, None)?;
    Ok(see("/?done=joined"))
}

/// `POST /page/invites/reject`
pub fn reject_invite(hs: &Arc<Homeserver>, visit: &Visit<'_>, user: &Requester) -> Result<Reply> {
    let room = RoomId::parse(visit.field("room"))?;
    let Some(invite) = hs.admin().invite_waiting(&user.user_id, &room)? else {
        // Leaving rooms is for clients: by a form that was forged nobody loses their place in one.
        return Err(Error::not_found("You are not invited to that room"));
    };
    if !visit.is_confirmed() {
        let mut text = Html::new();
        text.raw("<p>To ");
        room_name(&mut text, invite.room_name.as_deref(), &invite.room_id);
        text.raw(", by <code>")
            .chosen(invite.inviter.as_str())
            .raw("</code>. You can come in later only if you are invited again.</p>");
        let (title, yes) = ("Reject this invite?", "Reject");
        let (action, back, fields) = ("/page/invites/reject", "/", &Html::new());
        return Ok(ask(hs, visit, Tab::Home, &Question { title, text: &text, yes, action, back, fields }));
    }
    hs.membership().leave(&user.user_id, &room, None)?;
    Ok(see("/?done=rejected"))
}
