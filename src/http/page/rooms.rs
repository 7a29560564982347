//! The rooms that this server knows, for administrators, and those into which nobody of it is to come.

use std::sync::Arc;

use serde_json::Value;

use super::html::Html;
use super::visit::Visit;
use super::{Question, Tab, ask, begin_form, hidden, outcome, page, see};
use crate::error::{Error, Result};
use crate::http::{Reply, Requester};
use crate::protocol::RoomId;
use crate::protocol::media::web_url::percent_encoded;
use crate::service::Homeserver;
use crate::service::accounts::moderation::Administrator;
use crate::service::admin::rooms::{RoomOrder, RoomsPage};

/// So many rooms are on one page.
const ROOMS_SHOWN_MAX: usize = 30;

const DONE: &[(&str, &str)] =
    &[("blocked", "The room is blocked."), ("unblocked", "The room is not blocked any more.")];

/// `GET /page/rooms`
pub fn show(hs: &Arc<Homeserver>, visit: &Visit<'_>, _admin: &Requester) -> Result<Reply> {
    let term = visit.request.query("name").map(str::trim).filter(|term| !term.is_empty());
    let from = visit.request.query("from").and_then(|from| from.parse::<usize>().ok()).unwrap_or(0);
    let asked = RoomsPage {
        order: RoomOrder::JoinedMembers,
        backwards: false,
        from,
        limit: ROOMS_SHOWN_MAX,
        search: term.map(str::to_owned),
        public: None,
        empty: None,
    };
    let found = hs.admin().list_rooms(&asked)?;
    let blocked = hs.admin().blocked_rooms("")?;
    let mut html = Html::new();
    html.raw("<h1>Rooms</h1>");
    outcome(&mut html, visit, DONE);
    html.raw(
        "<form class=\"acts\" role=\"search\" action=\"/page/rooms\"><label for=\"name\">Name or id</label>",
    );
    html.raw("<input id=\"name\" name=\"name\" type=\"search\" value=\"").text(term.unwrap_or_default());
    html.raw("\"><button>Search</button></form>");
    let rooms = found["rooms"].as_array().map_or(&[][..], Vec::as_slice);
    if rooms.is_empty() {
        html.raw("<p class=\"dim\">No such room.</p>");
    }
    html.raw("<ul class=\"list\">");
    for room in rooms {
        room_row(&mut html, visit, room);
    }
    html.raw("</ul>");
    if let Some(next) = found["next_batch"].as_i64() {
        html.raw("<p><a class=\"button\" href=\"/page/rooms?from=").number(next).raw("&amp;name=");
        html.text(&percent_encoded(term.unwrap_or_default())).raw("\">More</a></p>");
    }
    html.raw("<h2>Blocked rooms</h2><p class=\"dim\">Nobody of this server joins one, knocks upon it or is invited there. Who is in it stays.</p>");
    html.raw("<ul class=\"list\">");
    for room in blocked["rooms"].as_array().map_or(&[][..], Vec::as_slice).iter().take(ROOMS_SHOWN_MAX) {
        html.raw("<li class=\"row\"><code>")
            .chosen(room["room_id"].as_str().unwrap_or_default())
            .raw("</code>");
        switch(&mut html, visit, room["room_id"].as_str().unwrap_or_default(), false);
        html.raw("</li>");
    }
    html.raw("</ul>");
    begin_form(&mut html, visit.visitor, "/page/rooms", "card acts");
    html.raw("<label for=\"room\">Room id</label><input id=\"room\" name=\"room\" required autocapitalize=\"none\" spellcheck=\"false\">");
    html.raw("<button class=\"grave\" name=\"do\" value=\"block\">Block</button></form>");
    Ok(page(hs, visit.visitor, "Rooms", Some(Tab::Rooms), &html))
}

fn room_row(html: &mut Html, visit: &Visit<'_>, room: &Value) {
    let id = room["room_id"].as_str().unwrap_or_default();
    let name = ["name", "canonical_alias"].iter().find_map(|field| room[*field].as_str());
    html.raw("<li class=\"row\"><div><h3>").chosen(name.unwrap_or(id));
    if room["blocked"] == true {
        html.raw(" <span class=\"tag\">blocked</span>");
    }
    html.raw("</h3><p class=\"dim\">");
    if name.is_some() {
        html.raw("<code>").chosen(id).raw("</code>, ");
    }
    html.raw("members: ").number(room["joined_members"].as_i64().unwrap_or(0)).raw(", of this server: ");
    html.number(room["joined_local_members"].as_i64().unwrap_or(0)).raw(", version ");
    html.chosen(room["version"].as_str().unwrap_or("?")).raw("</p></div>");
    switch(html, visit, id, room["blocked"] != true);
    html.raw("</li>");
}

fn switch(html: &mut Html, visit: &Visit<'_>, room: &str, block: bool) {
    begin_form(html, visit.visitor, "/page/rooms", "");
    hidden(html, "room", room);
    html.raw(match block {
        true => "<button class=\"grave\" name=\"do\" value=\"block\">Block</button></form>",
        false => "<button name=\"do\" value=\"unblock\">Unblock</button></form>",
    });
}

/// `POST /page/rooms`: blocks a room, or does so no more.
pub fn change(hs: &Arc<Homeserver>, visit: &Visit<'_>, admin: &Requester) -> Result<Reply> {
    let room = RoomId::parse(visit.field("room").trim())?;
    match visit.field("do") {
        "block" if !visit.is_confirmed() => {
            let mut text = Html::new();
            text.raw("<p>Nobody of this server will join <code>").chosen(room.as_str());
            text.raw("</code>, knock upon it or be invited there. Who is in it stays.</p>");
            let (title, yes, fields) = ("Block this room?", "Block it", &Html::new());
            let (action, back) = ("/page/rooms", "/page/rooms");
            Ok(ask(hs, visit, Tab::Rooms, &Question { title, text: &text, yes, action, back, fields }))
        }
        deed @ ("block" | "unblock") => {
            let block = deed == "block";
            hs.admin().set_room_block(&room, block, &Administrator::User(admin.user_id.clone()))?;
            Ok(see(if block { "/page/rooms?done=blocked" } else { "/page/rooms?done=unblocked" }))
        }
        _ => Err(Error::invalid_param("The form does not say what is to be done")),
    }
}
