//! How the server fares, for its administrators: other servers that are behind, storage, the end of the log.

use std::sync::Arc;

use super::door::more;
use super::html::Html;
use super::visit::Visit;
use super::{Tab, page, storage};
use crate::error::Result;
use crate::http::{Reply, Requester};
use crate::log_tail;
use crate::service::Homeserver;

/// So many of each are on the page.
const SERVERS_SHOWN_MAX: usize = 30;
const LINES_SHOWN_MAX: usize = 60;
/// Longest line of the log that is shown whole, in characters.
const LINE_CHARS_MAX: usize = 200;

/// `GET /page/server`
pub fn show(hs: &Arc<Homeserver>, visit: &Visit<'_>, _admin: &Requester) -> Result<Reply> {
    let mut html = Html::new();
    html.raw("<h1>Server</h1>");
    federation(hs, &mut html);
    storage::section(hs, visit, &mut html)?;
    log(hs, &mut html);
    Ok(page(hs, visit.visitor, "Server", Some(Tab::Server), &html))
}

fn federation(hs: &Homeserver, html: &mut Html) {
    html.raw("<h2>Servers that are behind</h2>");
    let (failing, now) = (hs.admin().failing_servers(), hs.clock.now_ms());
    if failing.is_empty() {
        html.raw("<p class=\"dim\">None: every server takes what it is sent.</p>");
        return;
    }
    html.raw("<ul class=\"list\">");
    for server in failing.iter().take(SERVERS_SHOWN_MAX) {
        html.raw("<li><h3>").chosen(server.server_name.as_str()).raw("</h3><p class=\"dim\">behind since ");
        html.ago(server.since_ms, now).raw(", tried ");
        match server.failures {
            1 => html.raw("once"),
            many => html.number(many).raw(" times"),
        };
        html.raw(", next ");
        html.ahead(server.next_try_ms, now).raw("</p></li>");
    }
    html.raw("</ul>");
    more(html, failing.len(), SERVERS_SHOWN_MAX);
}

fn log(hs: &Homeserver, html: &mut Html) {
    html.raw("<h2 id=\"log\">The last lines of the log</h2>");
    let (lines, now) = (log_tail::last(LINES_SHOWN_MAX), hs.clock.now_ms());
    if lines.is_empty() {
        html.raw("<p class=\"dim\">Nothing yet.</p>");
        return;
    }
    html.raw("<pre class=\"log\" tabindex=\"0\" role=\"region\" aria-labelledby=\"log\">");
    for line in lines {
        html.raw("<span>").raw(match line.level {
            log::Level::Error => "<b class=\"wrong\">error</b> ",
            log::Level::Warn => "<b>warn</b> ",
            _ => "info ",
        });
        html.ago(line.at_ms, now).raw(": ").cut(&line.text, LINE_CHARS_MAX).raw("</span>");
    }
    html.raw("</pre>");
}
