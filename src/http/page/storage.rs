//! Where the bytes are, for administrators. It is reckoned when they ask for it: on a large database that takes a while.

use super::door::room_name;
use super::html::Html;
use super::visit::Visit;
use crate::error::Result;
use crate::service::Homeserver;
use crate::service::admin::storage::{DatabaseBytes, FilesBytes, MediaBytes, RoomBytes, Storage};

/// So many tables, rooms and users are on the page.
const SHOWN_MAX: usize = 10;

/// The section of the server's page.
pub(super) fn section(hs: &Homeserver, visit: &Visit<'_>, html: &mut Html) -> Result<()> {
    html.raw("<h2 id=\"storage\">Storage</h2>");
    if visit.request.query("storage").is_none() {
        html.raw(
            "<p><a class=\"button\" href=\"/page/server?storage=yes#storage\">Where the bytes are</a></p>",
        );
        return Ok(());
    }
    let Storage { database, rooms, rooms_are_estimates, media, disk_free_bytes, .. } =
        hs.admin().storage()?;
    html.raw("<table><tbody>");
    amount(html, "Database", database.bytes);
    amount(html, "Free in it, used again before it grows", database.free_bytes);
    amount(html, "Its log", database.log_bytes);
    amount(html, "Media of this server", media.local.bytes);
    amount(html, "Media of others, kept for a while", media.cached.bytes);
    if let Some(free) = disk_free_bytes {
        amount(html, "Free on the disk", free);
    }
    html.raw("</tbody></table>");
    tables(html, &database);
    largest_rooms(html, &rooms, rooms_are_estimates);
    users(html, &media);
    Ok(())
}

fn amount(html: &mut Html, of: &'static str, bytes: u64) {
    html.raw("<tr><th scope=\"row\">").raw(of).raw("</th><td class=\"num\">").size(bytes).raw("</td></tr>");
}

/// Begins a table with a heading over each column; the first column names, the others are sizes.
fn begin_table(html: &mut Html, title: &'static str, columns: &[&'static str]) {
    html.raw("<h3 class=\"gap\">").raw(title).raw("</h3><table><thead><tr>");
    for (n, column) in columns.iter().enumerate() {
        html.raw(if n == 0 { "<th scope=\"col\">" } else { "<th scope=\"col\" class=\"num\">" });
        html.raw(column).raw("</th>");
    }
    html.raw("</tr></thead><tbody>");
}

fn tables(html: &mut Html, database: &DatabaseBytes) {
    // A database in memory does not tell.
    if database.tables.is_empty() {
        return;
    }
    begin_table(html, "The largest tables", &["Table", "Rows", "Indexes"]);
    for table in database.tables.iter().take(SHOWN_MAX) {
        html.raw("<tr><td><code>")
            .chosen(&table.name)
            .raw("</code></td><td class=\"num\">")
            .size(table.bytes);
        html.raw("</td><td class=\"num\">").size(table.index_bytes).raw("</td></tr>");
    }
    html.raw("</tbody></table>");
    let rest = database.tables.iter().skip(SHOWN_MAX).map(|table| table.bytes + table.index_bytes);
    html.raw("<p class=\"dim\">All other tables: ").size(rest.sum::<u64>() + database.other_tables_bytes);
    html.raw("; long rows, of whatever table: ").size(database.long_rows_bytes).raw("</p>");
}

fn largest_rooms(html: &mut Html, rooms: &[RoomBytes], are_estimates: bool) {
    if rooms.is_empty() {
        return;
    }
    begin_table(html, "The largest rooms", &["Room", "Events", "Size"]);
    for room in rooms.iter().take(SHOWN_MAX) {
        room_name(html.raw("<tr><td>"), room.name.as_deref(), &room.room_id);
        html.raw("</td><td class=\"num\">").number(room.events).raw("</td><td class=\"num\">");
        html.size(room.bytes).raw("</td></tr>");
    }
    html.raw("</tbody></table>");
    if are_estimates {
        html.raw("<p class=\"dim\">Reckoned from some of the events, because there are many.</p>");
    }
}

fn users(html: &mut Html, media: &MediaBytes) {
    if media.users.is_empty() {
        return;
    }
    begin_table(html, "Who uploaded the most", &["User", "Files", "Size"]);
    for user in media.users.iter().take(SHOWN_MAX) {
        let FilesBytes { files, bytes } = user.files;
        html.raw("<tr><td><code>").chosen(&user.user_id).raw("</code></td><td class=\"num\">").number(files);
        html.raw("</td><td class=\"num\">").size(bytes).raw("</td></tr>");
    }
    html.raw("</tbody></table>");
}
