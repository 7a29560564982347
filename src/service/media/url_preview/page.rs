//! What a page says of itself, for a preview: Open Graph, else what Twitter's cards have, else its title and description. The page is read by a
//! tokenizer of HTML and by nothing that builds a tree, so that nesting costs nothing.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::elements::elements;
use crate::order::Gather;

/// Most keys of a preview, and how long they and their values may be, in characters.
const KEYS_MAX: usize = 50;
const KEY_CHARACTERS_MAX: usize = 50;
const VALUE_CHARACTERS_MAX: usize = 1000;

/// What twitter calls otherwise than Open Graph.
const TWITTER: [(&str, &str); 5] = [
    ("twitter:title", "og:title"),
    ("twitter:description", "og:description"),
    ("twitter:image", "og:image"),
    ("twitter:image:src", "og:image"),
    ("twitter:site", "og:site_name"),
];

/// The preview of a page: `og:` keys with text. Its `og:image` is a link as it stands in the page.
pub fn preview(html: &str) -> Map<String, Value> {
    let page = elements(html);
    let mut found: BTreeMap<String, String> = BTreeMap::new();
    let mut put = |key: &str, value: &str| {
        let value = tidy(value);
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
    found.into_iter().map(|(key, value)| (key, Value::String(value))).gather()
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

    fn shown(html: &str) -> Value {
        Value::Object(preview(html))
    }

    #[test]
    fn open_graph_comes_first_then_twitter_then_title_and_description() {
        let whole = r#"<!DOCTYPE html><html><head><title>T</title><meta name="description" content="D">
            <meta name="twitter:title" content="Twitter T"><meta property="og:title" content="Graph &amp; T">
            <meta property=og:type content=article><META PROPERTY="OG:IMAGE" CONTENT="/a.png"></head><body>"#;
        let wanted = json!({ "og:title": "Graph & T", "og:type": "article", "og:image": "/a.png", "og:description": "D" });
        assert_eq!(shown(whole), wanted);
        let twitter = r#"<title>T</title><meta name="twitter:image:src" content="b.png"><meta content="X" name="twitter:title">"#;
        assert_eq!(shown(twitter), json!({ "og:title": "X", "og:image": "b.png" }));
        assert_eq!(shown("<title>\n  Only \t a\n title </title>"), json!({ "og:title": "Only a title" }));
        assert_eq!(shown("<p>nothing</p>"), json!({}));
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
        let found = preview(&page);
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
            preview(&unclosed)["og:title"].as_str().expect("text").chars().count(),
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
