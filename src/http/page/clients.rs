//! Clients to go on with from the page, and the address that they ask for.

use super::html::Html;
use super::visit::Visit;
use crate::protocol::ServerName;
use crate::protocol::media::web_url::percent_encoded;
use crate::service::Homeserver;

/// Clients to go on with, and the address that they ask for.
pub(super) fn clients(hs: &Homeserver, html: &mut Html, visit: &Visit<'_>) {
    let url = &client_address(hs, visit);
    html.raw("<h2>Open a client</h2><p>Doorstep is the server; you write and read in a Matrix client. Its homeserver is:</p>");
    html.raw("<p><code class=\"big\">").text(url).raw("</code></p><ul class=\"list\">");
    let encoded = percent_encoded(url);
    html.raw("<li><a rel=\"noreferrer\" href=\"https://app.element.io/#/login?hs_url=").text(&encoded);
    html.raw("\">Element Web</a> in this browser; if it shows another homeserver, press Edit beside it</li>");
    let host = url.split_once("://").map_or(url.as_str(), |(_, host)| host);
    html.raw("<li><a rel=\"noreferrer\" href=\"https://app.cinny.in/login/").text(&percent_encoded(host));
    html.raw("\">Cinny</a> in this browser</li>");
    if !hs.config.has_local_name() {
        html.raw("<li><a rel=\"noreferrer\" href=\"https://mobile.element.io/element/?account_provider=");
        html.text(&percent_encoded(hs.server_name().as_str())).raw("\">Element X</a> on this phone</li>");
    }
    html.raw("<li class=\"dim\">Element, FluffyChat, Nheko, Fractal, gomuks and others: enter the address above</li></ul>");
}

/// The homeserver's address for clients. A server that nobody else knows by its name is at the address by which the browser
/// has found it.
pub(super) fn client_address(hs: &Homeserver, visit: &Visit<'_>) -> String {
    let host = visit.request.header("host").filter(|host| ServerName::parse(host).is_ok());
    match host.filter(|_| hs.config.has_local_name()) {
        Some(host) if visit.request.came_by_https() => format!("https://{host}"),
        Some(host) => format!("http://{host}"),
        None => hs.config.public_url.clone(),
    }
}
