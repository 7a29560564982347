//! What a page says of itself, for a preview: Open Graph, else what Twitter's cards have, else its title and description, else its first heading and
//! paragraph; the same of pictures. The page is read by a
//! tokenizer of HTML and by nothing that builds a tree, so that nesting costs nothing.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::elements::elements;
use crate::order::Gather;
use crate::protocol::media::web_url::WebUrl;

/// Most keys of a preview, and how long they and their values may be, in characters.
const KEYS_MAX: usize = 50;
const KEY_CHARACTERS_MAX: usize = 50;
const VALUE_CHARACTERS_MAX: usize = 1000;

/// Pictures that are tried, one after the other, until one can be had.
const PICTURES_MAX: usize = 3;

const IMAGE: &str = "og:image";

/// What twitter calls otherwise than Open Graph.
const TWITTER: [(&str, &str); 5] = [
    ("twitter:title", "og:title"),
    ("twitter:description", "og:description"),
    ("twitter:image", IMAGE),
    ("twitter:image:src", IMAGE),
    ("twitter:site", "og:site_name"),
];

/// What a page is shown as.
#[derive(Debug, Default)]
pub struct PagePreview {
    /// `og:` keys with text. What is a link in it leads to the web.
    pub said: Map<String, Value>,
    /// Where its picture may be had: the first that can be had is it.
    pub pictures: Vec<WebUrl>,
}

/// The preview of a page that came from this address.
pub fn preview(html: &str, from: &WebUrl) -> PagePreview {
    let page = elements(html);
    let mut found: BTreeMap<String, String> = BTreeMap::new();
    let mut pictures: Vec<WebUrl> = Vec::new();
    let mut put = |key: &str, value: &str| {
        let mut value = tidy(value);
        // Open Graph: `og:image:url` is the same as `og:image`.
        if key == IMAGE || matches!(key, "og:image:url" | "og:image:secure_url") {
            let picture =
                from.join(&value).filter(|picture| !value.is_empty() && !pictures.contains(picture));
            return pictures.extend(picture.filter(|_| pictures.len() < PICTURES_MAX));
        }
        if is_of_picture(key) {
            return;
        }
        if is_link(key) && !value.is_empty() {
            // Clients lead there: `javascript:` is nowhere to be led to.
            let link = from.join(&value).map(|link| link.to_string()).unwrap_or_default();
            value = if link.len() <= VALUE_CHARACTERS_MAX { link } else { String::new() };
        }
        let is_short = key.chars().count() <= KEY_CHARACTERS_MAX;
        // What was written in an encoding that is not read says nothing.
        if is_short && !value.is_empty() && !value.contains('\u{fffd}') && found.len() < KEYS_MAX {
            found.entry(key.to_owned()).or_insert(value);
        }
    };
    let named = |prefix: &'static str| page.metas.iter().filter_map(move |meta| content_of(meta, prefix));
    for (key, value) in named("og:") {
        put(&key, value);
    }
    for (key, value) in named("twitter:") {
        if let Some((_, as_og)) = TWITTER.iter().find(|(twitter, _)| *twitter == key) {
            put(as_og, value);
        }
    }
    if let Some(title) = &page.title {
        put("og:title", title);
    }
    for (_, value) in named("description").filter(|(key, _)| key == "description") {
        put("og:description", value);
    }
    // What is shown of the page, where it says nothing of itself.
    for (key, shown) in [("og:title", &page.heading), ("og:description", &page.paragraph)] {
        shown.iter().for_each(|shown| put(key, shown));
    }
    if pictures.is_empty() {
        pictures.extend(page.pictures.iter().find_map(|link| from.join(link)));
    }
    let said = found.into_iter().map(|(key, value)| (key, Value::String(value))).gather();
    PagePreview { said, pictures }
}

/// What a page says of its picture: that is known once it is there.
fn is_of_picture(key: &str) -> bool {
    key.starts_with("og:image:") && key != "og:image:alt"
}

/// Whether what stands under this key is a link.
fn is_link(key: &str) -> bool {
    matches!(key, "og:url" | "og:video" | "og:audio" | "og:see_also" | "og:logo")
        || key.ends_with(":url")
        || key.ends_with(":secure_url")
}

/// The name of an element that begins like this, and what it says.
fn content_of<'m>(meta: &'m BTreeMap<String, String>, prefix: &str) -> Option<(String, &'m String)> {
    // Both are in use for both.
    let keys = [meta.get("property"), meta.get("name")].into_iter().flatten();
    let key = keys.map(|key| key.trim().to_ascii_lowercase()).find(|key| key.starts_with(prefix))?;
    Some((key, meta.get("content")?))
}

/// In one line, and not longer than it may be.
fn tidy(text: &str) -> String {
    let mut line = String::new();
    for word in text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty()) {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
        if line.len() > 4 * VALUE_CHARACTERS_MAX {
            break;
        }
    }
    line.chars().take(VALUE_CHARACTERS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn seen(html: &str) -> PagePreview {
        preview(html, &WebUrl::parse("http://a.example/b/c").expect("an address"))
    }

    fn shown(html: &str) -> Value {
        Value::Object(seen(html).said)
    }

    #[track_caller]
    fn has_pictures(html: &str, pictures: &[&str]) {
        let found: Vec<_> = seen(html).pictures.iter().map(WebUrl::to_string).collect();
        assert_eq!(found, pictures, "{html}");
    }

    #[test]
    fn the_pictures_that_are_named_are_tried_and_else_the_first_that_is_shown() {
        has_pictures(
            "<meta property=og:image content=/1><meta property=og:image content='javascript:x'><img src=0>
             <meta property=og:image content=/1><meta property=og:image content=2><meta property=og:image content=''>
             <meta name=twitter:image content=//c.example/3><meta property=og:image content=/4><meta property=og:image content=/5>",
            &["http://a.example/1", "http://a.example/b/2", "http://a.example/4"],
        );
        has_pictures("<meta name=twitter:image content=//c.example/3><img src=0>", &["http://c.example/3"]);
        has_pictures("<img src='ftp://x/1'><img src=2><img src=3>", &["http://a.example/b/2"]);
        has_pictures("<img alt=x>", &[]);
    }

    #[test]
    fn a_page_that_says_nothing_of_itself_is_known_by_what_it_shows() {
        let page = "<body><p>Hello</p><script>var x</script><h1>Head</h1>";
        assert_eq!(shown(page), json!({ "og:title": "Head", "og:description": "Hello" }));
        let page = format!("<title>T</title><meta name=description content=D>{page}");
        assert_eq!(shown(&page), json!({ "og:title": "T", "og:description": "D" }));
    }

    #[test]
    fn links_lead_to_the_web_or_are_left_out() {
        for key in ["og:url", "og:video", "og:audio", "og:video:url", "og:audio:secure_url", "og:x:url"] {
            for (link, told) in [
                ("https://b.example/x?y", Some("https://b.example/x?y")),
                ("/x", Some("http://a.example/x")),
                ("javascript:x", None),
                (" JavaScript:x", None),
                // To whom it is one line it is a page beside this one.
                ("java\nscript:x", Some("http://a.example/b/java%20script:x")),
                ("data:text/html,x", None),
                ("file:///etc/passwd", None),
                ("", None),
            ] {
                let shown = shown(&format!("<meta property='{key}' content='{link}'>"));
                assert_eq!(shown.get(key).and_then(Value::as_str), told, "{key} {link:?}");
            }
        }
        let video =
            "<meta property=og:video:width content=640><meta property=og:video:type content=video/mp4>";
        assert_eq!(shown(video), json!({ "og:video:width": "640", "og:video:type": "video/mp4" }));
    }

    #[test]
    fn open_graph_comes_first_then_twitter_then_title_and_description() {
        let whole = r#"<!DOCTYPE html><html><head><title>T</title><meta name="description" content="D">
            <meta name="twitter:title" content="Twitter T"><meta property="og:title" content="Graph &amp; T">
            <meta property=og:type content=article><META PROPERTY="OG:IMAGE" CONTENT="/a.png"></head><body>"#;
        let wanted = json!({ "og:title": "Graph & T", "og:type": "article", "og:description": "D" });
        assert_eq!(shown(whole), wanted);
        has_pictures(whole, &["http://a.example/a.png"]);
        let twitter = r#"<title>T</title><meta name="twitter:image:src" content="b.png"><meta content="X" name="twitter:title">"#;
        assert_eq!(shown(twitter), json!({ "og:title": "X" }));
        has_pictures(twitter, &["http://a.example/b/b.png"]);
        assert_eq!(shown("<title>\n  Only \t a\n title </title>"), json!({ "og:title": "Only a title" }));
        assert_eq!(shown("<b>nothing</b>"), json!({}));
        assert_eq!(shown(""), json!({}));
    }

    #[test]
    fn what_only_looks_like_an_element_is_none() {
        let traps = r#"<script>var x = '<title>S</title><meta property="og:title" content="S">';</script>
            <style><meta property="og:title" content="S"></style><!-- <title>C</title> -->
            <svg><title>V</title></svg><textarea><title>A</title></textarea>
            <title>Right <b>one</b> &lt;script&gt;</title><title>Second</title>"#;
        assert_eq!(shown(traps), json!({ "og:title": "Right <b>one</b> <script>" }));
    }

    #[test]
    fn a_preview_is_bounded_whatever_the_page_has() {
        let mut page = String::new();
        for n in 0..2000 {
            page.push_str(&format!("<meta property='og:x{n}' content='{}'>", "ä".repeat(5000)));
        }
        page.push_str(&format!("<meta property='og:{}' content='x'>", "y".repeat(100)));
        let found = seen(&page).said;
        assert_eq!(found.len(), KEYS_MAX);
        assert!(
            found.values().all(|value| value.as_str().expect("text").chars().count() == VALUE_CHARACTERS_MAX)
        );
        let deep = format!("{}<title>x</title>", "<div><svg></svg>".repeat(40_000));
        assert_eq!(shown(&deep), json!({ "og:title": "x" }));
        let attributes = format!("<meta {}>", (0..50_000).map(|n| format!("a{n}=b ")).collect::<String>());
        assert_eq!(shown(&attributes), json!({}));
        let unclosed = format!("<title>{}", "t ".repeat(400_000));
        assert_eq!(
            seen(&unclosed).said["og:title"].as_str().expect("text").chars().count(),
            VALUE_CHARACTERS_MAX
        );
    }

    #[test]
    fn what_is_not_readable_is_left_out() {
        assert_eq!(
            shown("<title>\u{fffd}\u{fffd}</title><meta name=description content=Plain>"),
            json!({ "og:description": "Plain" })
        );
    }
}
