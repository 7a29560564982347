//! The elements of a page that a preview is made of, as the tokenizer comes upon them. The tokenizer, some eighty states, is compiled
//! for whom it reads to and for whom it tells: these want little of it, and are not copied into each state.

use std::collections::BTreeMap;
use std::convert::Infallible;

use html5gum::{Emitter, Error, Readable, Reader, State, StringReader, Tokenizer, naive_next_state};

/// Elements that are looked at.
const METAS_MAX: usize = 1000;
/// So much of a text is kept, and its last piece.
const TEXT_BYTES_MAX: usize = 8000;
/// Pictures that are remembered, and how long their addresses may be together. Those that are not larger than this in either direction are
/// there to count or to separate.
const PICTURES_MAX: usize = 8;
const PICTURES_BYTES_MAX: usize = 16 << 10;
const DOT_PIXELS_MAX: u32 = 10;

/// What a preview is made of.
#[derive(Default)]
pub(super) struct Elements {
    /// The attributes of each `meta`, their names in lower case. Of two of the same name the first one counts.
    pub metas: Vec<BTreeMap<String, String>>,
    /// The text of the first `title` that is not part of a picture.
    pub title: Option<String>,
    /// The text of the first heading of the first rank, and of the first paragraph, that have any.
    pub heading: Option<String>,
    pub paragraph: Option<String>,
    /// Where the first pictures are, as it stands in the page.
    pub pictures: Vec<String>,
}

/// The elements of this page.
pub(super) fn elements(html: &str) -> Elements {
    let (mut metas, mut title, mut body) = (Vec::new(), None, Body::default());
    let tag = Tag::default();
    let listener = Listener {
        metas: &mut metas,
        title: &mut title,
        body: &mut body,
        in_title: false,
        in_svg: 0,
        tag,
        last_start: Vec::new(),
    };
    let Ok(()) = Tokenizer::new_with_emitter(PageText(html.to_reader()), listener).finish();
    body.end_text();
    let [heading, paragraph] = [body.heading, body.paragraph].map(|kept| kept.as_deref().map(text));
    Elements { metas, title: title.as_deref().map(text), heading, paragraph, pictures: body.pictures }
}

/// What is shown of a page: its first heading, paragraph and pictures.
#[derive(Default)]
struct Body {
    heading: Option<Vec<u8>>,
    paragraph: Option<Vec<u8>>,
    pictures: Vec<String>,
    /// The text that is being read, and whether it is the heading's.
    reads: Option<(bool, Vec<u8>)>,
    /// Within what is not shown: a script, a style sheet.
    is_hidden: bool,
}

/// Elements whose text is not shown, or not here.
const HIDDEN: [&[u8]; 7] = [b"script", b"style", b"template", b"noscript", b"textarea", b"title", b"iframe"];

impl Body {
    fn begins(&mut self, tag: &Tag) {
        match &tag.name[..] {
            name if HIDDEN.contains(&name) => self.is_hidden = true,
            b"h1" => self.begin_text(true),
            b"p" => self.begin_text(false),
            // Nothing of these is within a heading or a paragraph.
            b"h2" | b"h3" | b"h4" | b"h5" | b"h6" | b"div" | b"ul" | b"ol" | b"table" | b"section"
            | b"article" => {
                self.end_text();
            }
            // What comes apart by a line does not grow into one word.
            b"br" => self.read(b" "),
            b"img" => self.add_picture(tag),
            _ => {}
        }
    }

    fn ends(&mut self, name: &[u8]) {
        match name {
            name if HIDDEN.contains(&name) => self.is_hidden = false,
            b"h1" | b"p" => self.end_text(),
            _ => {}
        }
    }

    fn begin_text(&mut self, is_heading: bool) {
        self.end_text();
        let found = if is_heading { &self.heading } else { &self.paragraph };
        if found.is_none() {
            self.reads = Some((is_heading, Vec::new()));
        }
    }

    fn end_text(&mut self) {
        let Some((is_heading, text)) = self.reads.take() else { return };
        if text.iter().any(|byte| !byte.is_ascii_whitespace()) {
            *(if is_heading { &mut self.heading } else { &mut self.paragraph }) = Some(text);
        }
    }

    fn read(&mut self, piece: &[u8]) {
        if let Some((_, text)) = self.reads.as_mut().filter(|(_, text)| text.len() < TEXT_BYTES_MAX)
            && !self.is_hidden
        {
            text.extend_from_slice(piece);
        }
    }

    fn add_picture(&mut self, tag: &Tag) {
        let value =
            |wanted: &[u8]| tag.attributes.iter().find(|(name, _)| name == wanted).map(|(_, value)| value);
        let is_dot = [&b"width"[..], b"height"]
            .into_iter()
            .filter_map(value)
            .any(|size| text(size).trim().parse().is_ok_and(|pixels: u32| pixels <= DOT_PIXELS_MAX));
        let Some(link) = value(b"src").map(|link| text(link)) else { return };
        let kept: usize = self.pictures.iter().map(String::len).sum();
        let is_elsewhere = !link.trim_start().is_empty() && !link.trim_start().starts_with("data:");
        if is_elsewhere
            && !is_dot
            && self.pictures.len() < PICTURES_MAX
            && kept + link.len() <= PICTURES_BYTES_MAX
        {
            self.pictures.push(link);
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

struct PageText<'t>(StringReader<'t>);

impl Reader for PageText<'_> {
    type Error = Infallible;

    #[inline(never)]
    fn read_byte(&mut self) -> Result<Option<u8>, Infallible> {
        self.0.read_byte()
    }

    #[inline(never)]
    fn read_until<'b>(
        &'b mut self,
        ends: &[u8],
        room: &'b mut [u8; 4],
    ) -> Result<Option<&'b [u8]>, Infallible> {
        self.0.read_until(ends, room)
    }

    #[inline(never)]
    fn try_read_string(&mut self, wanted: &[u8], case_sensitive: bool) -> Result<bool, Infallible> {
        self.0.try_read_string(wanted, case_sensitive)
    }
}

/// The tag that is being read.
#[derive(Default)]
struct Tag {
    name: Vec<u8>,
    /// Of a `meta` and an `img`: nobody asks for others.
    attributes: Vec<(Vec<u8>, Vec<u8>)>,
    is_end: bool,
    self_closing: bool,
}

struct Listener<'p> {
    metas: &'p mut Vec<BTreeMap<String, String>>,
    title: &'p mut Option<Vec<u8>>,
    body: &'p mut Body,
    in_title: bool,
    in_svg: usize,
    tag: Tag,
    /// The name of the element that began last, unless another ended since.
    last_start: Vec<u8>,
}

impl Listener<'_> {
    fn begins(&mut self) {
        if self.in_svg == 0 {
            self.body.begins(&self.tag);
        }
        match &self.tag.name[..] {
            b"meta" if self.metas.len() < METAS_MAX => {
                let mut meta = BTreeMap::new();
                for (name, value) in &self.tag.attributes {
                    meta.entry(text(name)).or_insert_with(|| text(value));
                }
                self.metas.push(meta);
            }
            b"title" if self.in_svg == 0 && self.title.is_none() => {
                self.in_title = true;
                *self.title = Some(Vec::new());
            }
            // Pictures within the page have titles too.
            b"svg" if !self.tag.self_closing => self.in_svg += 1,
            _ => {}
        }
    }

    fn ends(&mut self) {
        if self.in_svg == 0 {
            self.body.ends(&self.tag.name);
        }
        match &self.tag.name[..] {
            b"title" => self.in_title = false,
            b"svg" => self.in_svg = self.in_svg.saturating_sub(1),
            _ => {}
        }
    }
}

impl Emitter for Listener<'_> {
    type Token = Infallible;

    fn set_last_start_tag(&mut self, name: Option<&[u8]>) {
        self.last_start = name.unwrap_or_default().to_vec();
    }

    fn pop_token(&mut self) -> Option<Infallible> {
        None
    }

    #[inline(never)]
    fn emit_string(&mut self, piece: &[u8]) {
        if self.in_title
            && let Some(title) = self.title.as_mut().filter(|title| title.len() < TEXT_BYTES_MAX)
        {
            title.extend_from_slice(piece);
        }
        if self.in_svg == 0 {
            self.body.read(piece);
        }
    }

    #[inline(never)]
    fn init_start_tag(&mut self) {
        self.tag = Tag::default();
    }

    #[inline(never)]
    fn init_end_tag(&mut self) {
        self.tag = Tag { is_end: true, ..Tag::default() };
    }

    #[inline(never)]
    fn emit_current_tag(&mut self) -> Option<State> {
        if self.tag.is_end {
            self.ends();
            self.last_start.clear();
        } else {
            self.begins();
            self.last_start = std::mem::take(&mut self.tag.name);
        }
        // What stands in a script or a style sheet is no element.
        naive_next_state(&self.last_start)
    }

    fn set_self_closing(&mut self) {
        self.tag.self_closing = true;
    }

    #[inline(never)]
    fn push_tag_name(&mut self, piece: &[u8]) {
        self.tag.name.extend_from_slice(piece);
    }

    #[inline(never)]
    fn init_attribute(&mut self) {
        if matches!(&self.tag.name[..], b"meta" | b"img") {
            self.tag.attributes.push(Default::default());
        }
    }

    #[inline(never)]
    fn push_attribute_name(&mut self, piece: &[u8]) {
        if let Some((name, _)) = self.tag.attributes.last_mut() {
            name.extend_from_slice(piece);
        }
    }

    #[inline(never)]
    fn push_attribute_value(&mut self, piece: &[u8]) {
        if let Some((_, value)) = self.tag.attributes.last_mut() {
            value.extend_from_slice(piece);
        }
    }

    #[inline(never)]
    fn current_is_appropriate_end_tag_token(&mut self) -> bool {
        self.tag.is_end && !self.last_start.is_empty() && self.last_start == self.tag.name
    }

    // The rest is not wanted.

    fn should_emit_errors(&mut self) -> bool {
        false
    }

    fn emit_error(&mut self, _: Error) {}
    fn emit_eof(&mut self) {}
    fn init_comment(&mut self) {}
    fn push_comment(&mut self, _: &[u8]) {}
    fn emit_current_comment(&mut self) {}
    fn init_doctype(&mut self) {}
    fn push_doctype_name(&mut self, _: &[u8]) {}
    fn set_doctype_public_identifier(&mut self, _: &[u8]) {}
    fn set_doctype_system_identifier(&mut self, _: &[u8]) {}
    fn push_doctype_public_identifier(&mut self, _: &[u8]) {}
    fn push_doctype_system_identifier(&mut self, _: &[u8]) {}
    fn set_force_quirks(&mut self) {}
    fn emit_current_doctype(&mut self) {}
}

#[cfg(test)]
mod tests {
    use html5gum::{DefaultEmitter, Token};

    use super::*;

    /// The same by the tokens that the library makes of a page.
    fn by_tokens(html: &str) -> Elements {
        let mut emitter = DefaultEmitter::default();
        emitter.naively_switch_states(true);
        let (mut metas, mut title): (Vec<BTreeMap<_, _>>, Option<Vec<u8>>) = (vec![], None);
        let (mut in_title, mut in_svg) = (false, 0_usize);
        for token in Tokenizer::new_with_emitter(html, emitter) {
            let Ok(token) = token;
            match token {
                Token::StartTag(tag) => match &tag.name[..] {
                    b"meta" => {
                        metas.push(
                            tag.attributes.iter().map(|(name, value)| (text(name), text(value))).collect(),
                        );
                    }
                    b"title" if in_svg == 0 && title.is_none() => {
                        in_title = true;
                        title = Some(vec![]);
                    }
                    b"svg" if !tag.self_closing => in_svg += 1,
                    _ => {}
                },
                Token::EndTag(tag) => match &tag.name[..] {
                    b"title" => in_title = false,
                    b"svg" => in_svg = in_svg.saturating_sub(1),
                    _ => {}
                },
                Token::String(piece) if in_title => title.get_or_insert_default().extend_from_slice(&piece),
                _ => {}
            }
        }
        Elements { metas, title: title.as_deref().map(text), ..Elements::default() }
    }

    #[test]
    fn the_first_heading_paragraph_and_pictures_are_those_that_are_shown() {
        let page = elements(
            "<script>'<h1>S</h1>'</script><h1> </h1><svg><p>V</p></svg><p><img src=dot.gif width=1 height=1></p>
             <style><p>S</p></style><p>One<br>two <b>three<script>var x</script></b><p>four<h1>Head <i>line</i></h1><h1>2</h1>
             <img src=' data:image/png;base64,x'><IMG SRC='a.png' WIDTH=100%><img src=b.png src=c.png><img><img src=''>",
        );
        assert_eq!(page.heading.as_deref(), Some("Head line"));
        assert_eq!(page.paragraph.as_deref(), Some("One two three"));
        assert_eq!(page.pictures, ["a.png", "b.png"]);
        let page = elements("<p>not closed <div>another");
        assert_eq!((page.paragraph.as_deref(), page.heading), (Some("not closed "), None));
        assert_eq!(elements("<h1>cut o").heading.as_deref(), Some("cut o"));
    }

    #[test]
    fn what_is_kept_of_a_page_is_bounded() {
        let long = "x".repeat(5000);
        let page = format!("<h1>{}<p>{}", "t&amp;".repeat(90_000), "&amp;".repeat(90_000));
        let heard = elements(&format!("{page}{}", format!("<img src='{long}'>").repeat(50)));
        let lengths = [heard.heading, heard.paragraph].map(|text| text.map_or(0, |text| text.len()));
        assert!(lengths.iter().all(|length| (1000..10_000).contains(length)), "{lengths:?}");
        assert_eq!(heard.pictures.len(), 3);
    }

    #[test]
    fn pages_of_any_kind_are_heard_as_the_library_tells_of_them() {
        const PIECES: [&str; 44] = [
            "<title>",
            "</title>",
            "<TITLE ",
            "</tit",
            "<svg>",
            "<svg/>",
            "</svg>",
            "<svg a='/'>",
            "<meta ",
            "<META\n",
            "<meta>",
            "</meta a=b>",
            "name=",
            "NAME",
            "content",
            "='a'",
            "=\"é &lt;\"",
            "=b&amp;c",
            ">",
            "/>",
            "/",
            "<!--",
            "-->",
            "<!doctype x",
            "<script>",
            "</script>",
            "<style>",
            "</style ",
            "<textarea>",
            "</textarea>",
            "&amp;",
            "&#x41",
            "&notit;",
            "\0",
            "\r\n",
            "\r",
            "é",
            "<é",
            "<",
            "</",
            "x",
            "=",
            " ",
            "<![CDATA[",
        ];
        let (mut titles, mut metas) = (0, 0);
        for seed in 0..4000_u64 {
            let mut page = String::new();
            let mut state = seed;
            for _ in 0..2 + seed % 40 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                page.push_str(PIECES[(state >> 33) as usize % PIECES.len()]);
            }
            let (heard, told) = (elements(&page), by_tokens(&page));
            assert_eq!(heard.metas, told.metas, "{page:?}");
            assert_eq!(heard.title, told.title, "{page:?}");
            titles += usize::from(heard.title.is_some_and(|title| !title.is_empty()));
            metas += heard.metas.iter().filter(|meta| !meta.is_empty()).count();
        }
        assert!(titles > 200 && metas > 200, "{titles} titles, {metas} elements with attributes");
    }
}
