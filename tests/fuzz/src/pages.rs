//! Pages that are to be previewed, and the links in them.

use doorstep::internals::read_page;
use doorstep::protocol::media::web_url::WebUrl;

/// The first line is the page's address, the second its `Content-Type`, the rest the page. A preview is small whatever the page is, and an
/// address that is written out is the same when it is read again.
pub fn pages(data: &[u8]) {
    let mut parts = data.splitn(3, |byte| *byte == b'\n');
    let mut text = || String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    let (address, content_type) = (text(), text());
    let known = WebUrl::parse("http://page.example/a/b").expect("an address");
    let url = WebUrl::parse(&address);
    let preview = read_page(parts.next().unwrap_or_default(), &content_type, url.as_ref().unwrap_or(&known));
    assert!(preview.said.len() <= 50 && preview.pictures.len() <= 3);
    for (key, value) in &preview.said {
        assert!(key.starts_with("og:") && key.chars().count() <= 50, "{key}");
        assert!(value.as_str().is_some_and(|value| (1..=1000).contains(&value.chars().count())));
    }
    for url in url.into_iter().chain(preview.pictures) {
        let written = url.to_string();
        assert!(written.bytes().all(|byte| byte.is_ascii_graphic()), "{written}");
        assert!(!written.split(['/', '?']).nth(2).unwrap_or_default().contains('@'), "{written}");
        assert_eq!(WebUrl::parse(&written), Some(url), "{written}");
    }
}
