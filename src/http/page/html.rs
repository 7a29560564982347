//! HTML, written by plain functions into a string. Only literals of the program get in as they are; everything else is
//! escaped, so that nobody's name or reason becomes part of the page.

use std::fmt::Write;

use crate::clock::Millis;

/// Longest text of somebody's own that is shown whole, in characters.
const SHOWN_CHARS_MAX: usize = 120;

/// A piece of a page.
#[derive(Debug, Default)]
pub struct Html(String);

impl Html {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// HTML of the program's own.
    pub fn raw(&mut self, html: &'static str) -> &mut Self {
        self.0.push_str(html);
        self
    }

    /// Text, as content or as the value of an attribute in double quotes. Control characters, which have no place in
    /// either, are shown as such.
    pub fn text(&mut self, text: &str) -> &mut Self {
        self.0.reserve(text.len());
        for c in text.chars() {
            match c {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                '\n' | '\t' => self.0.push(c),
                c if c.is_control() => self.0.push('\u{fffd}'),
                c => self.0.push(c),
            }
        }
        self
    }

    /// A number.
    pub fn number(&mut self, number: impl TryInto<i64>) -> &mut Self {
        let _ = write!(self.0, "{}", number.try_into().unwrap_or(i64::MAX));
        self
    }

    /// A number of bytes in its largest unit, rounded; units are powers of 1024, as in the settings.
    pub fn size(&mut self, bytes: u64) -> &mut Self {
        let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
        let Some((unit, shift)) = units.into_iter().find(|(_, shift)| bytes >> shift > 0) else {
            return self.number(bytes).raw(if bytes == 1 { " byte" } else { " bytes" });
        };
        let tenths = ((u128::from(bytes) * 10) + (1 << (shift - 1))) >> shift;
        let _ = match tenths {
            ..100 => write!(self.0, "{}.{} {unit}", tenths / 10, tenths % 10),
            _ => write!(self.0, "{} {unit}", (tenths + 5) / 10),
        };
        self
    }

    /// A text that somebody chose: cut where it is long, and of a direction of its own, so that it turns nothing around
    /// it.
    pub fn chosen(&mut self, text: &str) -> &mut Self {
        self.cut(text, SHOWN_CHARS_MAX)
    }

    /// [`Html::chosen`] with another longest length, in characters.
    pub fn cut(&mut self, text: &str, chars_max: usize) -> &mut Self {
        self.raw("<bdi>");
        match text.char_indices().nth(chars_max) {
            Some((at, _)) => self.text(&text[..at]).raw("…"),
            None => self.text(text),
        };
        self.raw("</bdi>")
    }

    /// Another piece.
    pub fn add(&mut self, piece: &Self) -> &mut Self {
        self.0.push_str(&piece.0);
        self
    }

    /// How long ago something was.
    pub fn ago(&mut self, then: Millis, now: Millis) -> &mut Self {
        match span(now.saturating_sub(then)) {
            None => self.raw("just now"),
            Some(span) => self.text(&span).raw(" ago"),
        }
    }

    /// In how long something will be.
    pub fn ahead(&mut self, then: Millis, now: Millis) -> &mut Self {
        match span(then.saturating_sub(now)) {
            None => self.raw("now"),
            Some(span) => self.raw("in ").text(&span),
        }
    }

    /// The HTML.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0.into_bytes()
    }
}

/// A stretch of time in its largest unit, rounded; none for less than a minute.
fn span(ms: Millis) -> Option<String> {
    let units = [(86_400_000, "day"), (3_600_000, "hour"), (60_000, "minute")];
    let (size, unit) = *units.iter().find(|(size, _)| ms >= *size)?;
    let count = (ms + size / 2) / size;
    let plural = if count == 1 { "" } else { "s" };
    Some(format!("{count} {unit}{plural}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut Html)) -> String {
        let mut html = Html::new();
        write(&mut html);
        html.0
    }

    #[test]
    fn what_somebody_chose_stays_text() {
        let hostile = "<script>'&\"\u{0}\u{1b}";
        let escaped = "&lt;script&gt;&#39;&amp;&quot;\u{fffd}\u{fffd}";
        assert_eq!(
            written(|html| {
                html.text(hostile);
            }),
            escaped
        );
        assert_eq!(
            written(|html| {
                html.chosen(hostile);
            }),
            format!("<bdi>{escaped}</bdi>")
        );
        assert_eq!(
            written(|html| {
                html.cut("äöü<", 3);
            }),
            "<bdi>äöü…</bdi>"
        );
    }

    #[test]
    fn bytes_are_shown_in_their_largest_unit() {
        for (bytes, shown) in [
            (0, "0 bytes"),
            (1, "1 byte"),
            (1023, "1023 bytes"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (10_240, "10 KiB"),
            ((1 << 20) - 1, "1024 KiB"),
            (3 << 29, "1.5 GiB"),
            (u64::MAX, "16777216 TiB"),
        ] {
            let html = written(|html| {
                html.size(bytes);
            });
            assert_eq!(html, shown);
        }
    }

    #[test]
    fn time_is_shown_in_its_largest_unit() {
        for (then, now, shown) in [(0, 59_999, "just now"), (5, 0, "just now"), (0, 7_300_000, "2 hours ago")]
        {
            let html = written(|html| {
                html.ago(then, now);
            });
            assert_eq!(html, shown);
        }
        for (then, now, shown) in [(86_400_000, 0, "in 1 day"), (0, 5, "now")] {
            let html = written(|html| {
                html.ahead(then, now);
            });
            assert_eq!(html, shown);
        }
    }
}
