//! What search finds text by: one cut into words for what is indexed and for what is looked for, so that the two always
//! agree; which text of an event it is (client-server API, "Server Side Search"); how well a text fits.
//!
//! Scripts that are written without spaces have no words that could be cut out by rule: a run of their characters
//! becomes its overlapping pairs and its last character, and a query for a run looks for its pairs in a row. So every
//! part of a run is found that has two characters, and every single character as the beginning of a pair.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::sync::LazyLock;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::error::{Error, Result};
use crate::protocol::EventId;
use crate::protocol::json::read;
use crate::protocol::rooms::relations::{REPLACE, relation_in};

/// So much of a text is looked at, in bytes: what one message may cost the index.
pub const TEXT_BYTES_MAX: usize = 16 * 1024;
/// Longest query, in bytes.
pub const TERM_BYTES_MAX: usize = 1024;
/// Most words of a query.
const WORDS_MAX: usize = 64;
/// Words of so many characters also stand for longer words that begin with them. Nothing else stands in for the forms
/// of a word, and of shorter ones half the language would be found.
const PREFIX_CHARS_MIN: usize = 3;

/// Where in an event a searchable text stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SearchKey {
    /// `content.body` of `m.room.message`.
    Body,
    /// `content.name` of `m.room.name`.
    Name,
    /// `content.topic` of `m.room.topic`, and the plain text of its `m.topic`.
    Topic,
}

impl SearchKey {
    /// All of them.
    pub const ALL: [SearchKey; 3] = [SearchKey::Body, SearchKey::Name, SearchKey::Topic];

    /// By its name in a request. Errors: 400 `M_INVALID_PARAM`.
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "content.body" => Ok(Self::Body),
            "content.name" => Ok(Self::Name),
            "content.topic" => Ok(Self::Topic),
            _ => Err(Error::invalid_param("keys may be content.body, content.name and content.topic")),
        }
    }
}

/// The text of an event that search finds it by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SearchableText {
    /// Where it stands.
    pub key: SearchKey,
    /// The text, at most [`TEXT_BYTES_MAX`].
    pub text: String,
    /// The message that this one replaces: the text is what that one says from now on.
    pub replaces: Option<EventId>,
}

/// The searchable text of an event in federation format. None: it has no such text, or none that is a string.
pub fn searchable_text(event: &[u8]) -> Option<SearchableText> {
    #[derive(Deserialize)]
    struct Event<'e> {
        #[serde(borrow, rename = "type")]
        event_type: Cow<'e, str>,
        #[serde(borrow, default)]
        state_key: Option<Cow<'e, str>>,
        #[serde(borrow)]
        content: &'e RawValue,
    }
    #[derive(Deserialize)]
    struct TextContent<'e> {
        #[serde(borrow, default)]
        body: Option<&'e RawValue>,
        #[serde(borrow, default)]
        name: Option<&'e RawValue>,
        #[serde(borrow, default)]
        topic: Option<&'e RawValue>,
        #[serde(borrow, default, rename = "m.topic")]
        rich_topic: Option<&'e RawValue>,
        #[serde(borrow, default, rename = "m.new_content")]
        new_content: Option<&'e RawValue>,
    }
    fn content_of(raw: &RawValue) -> Option<TextContent<'_>> {
        read(raw.get().as_bytes()).ok()
    }
    let event: Event<'_> = read(event).ok()?;
    let key = match (&*event.event_type, event.state_key.as_deref()) {
        ("m.room.message", None) => SearchKey::Body,
        ("m.room.name", Some("")) => SearchKey::Name,
        ("m.room.topic", Some("")) => SearchKey::Topic,
        _ => return None,
    };
    let content = content_of(event.content)?;
    let mut replaces = None;
    let text = match key {
        SearchKey::Name => string(content.name)?,
        SearchKey::Topic => {
            let mut topic = string(content.topic).unwrap_or_default();
            if let Some(plain) = content.rich_topic.and_then(plain_topic).filter(|plain| *plain != topic) {
                topic = format!("{topic}\n{plain}");
            }
            topic
        }
        SearchKey::Body => {
            let edit = relation_in(event.content.get())
                .filter(|relation| relation.rel_type == REPLACE && relation.has_new_content);
            let new = content.new_content.filter(|_| edit.is_some()).and_then(content_of);
            replaces = edit.map(|edit| edit.event_id);
            string(new.map_or(content.body, |new| new.body))?
        }
    };
    let text = beginning(&text, TEXT_BYTES_MAX).to_owned();
    Some(SearchableText { key, text, replaces }).filter(|found| !found.text.is_empty())
}

/// As much of a text as fits into so many bytes.
fn beginning(text: &str, bytes_max: usize) -> &str {
    let end = (0..=bytes_max.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

fn string(raw: Option<&RawValue>) -> Option<String> {
    read(raw?.get().as_bytes()).ok()
}

/// "the `body` of the `text/plain` representation in `content['m.topic']`", which is the one without a type or with
/// that one.
fn plain_topic(raw: &RawValue) -> Option<String> {
    #[derive(Deserialize)]
    struct Topic {
        #[serde(rename = "m.text")]
        text: Vec<Representation>,
    }
    #[derive(Deserialize)]
    struct Representation {
        body: String,
        #[serde(default)]
        mimetype: Option<String>,
    }
    let topic: Topic = read(raw.get().as_bytes()).ok()?;
    let is_plain = |text: &Representation| text.mimetype.as_deref().is_none_or(|kind| kind == "text/plain");
    topic.text.into_iter().find(is_plain).map(|text| text.body)
}

/// Whether this is a character of a script that is written without spaces, or (Hangul) with endings joined to words.
fn is_unspaced(c: char) -> bool {
    matches!(c,
        '\u{0e00}'..='\u{0eff}' // Thai, Lao
        | '\u{1000}'..='\u{109f}' // Burmese
        | '\u{1100}'..='\u{11ff}' // Hangul, as parts
        | '\u{1780}'..='\u{17ff}' // Khmer
        | '\u{3005}'..='\u{3007}'
        | '\u{3040}'..='\u{30fa}' | '\u{30fc}'..='\u{30ff}' // kana
        | '\u{3105}'..='\u{318f}' | '\u{31a0}'..='\u{31bf}' | '\u{31f0}'..='\u{31ff}'
        | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' // Han
        | '\u{ac00}'..='\u{d7ff}' // Hangul
        | '\u{ff66}'..='\u{ff9f}' // half-width kana
        | '\u{20000}'..='\u{3ffff}' // Han
    )
}

fn is_of_word(c: char) -> bool {
    c.is_alphanumeric() || is_accent(c)
}

fn is_accent(c: char) -> bool {
    ('\u{300}'..='\u{36f}').contains(&c)
}

/// The text as it is indexed: its unspaced runs as pairs, everything else as it is.
pub fn indexable(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unspaced) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() * 3);
    for part in parts(text) {
        if part.starts_with(is_unspaced) {
            out.push(' ');
            push_pairs(&mut out, part);
            out.extend(part.chars().next_back());
            out.push(' ');
        } else {
            out.push_str(part);
        }
    }
    Cow::Owned(out)
}

/// The overlapping pairs of a run, a space behind each.
fn push_pairs(out: &mut String, run: &str) {
    for (first, second) in run.chars().zip(run.chars().skip(1)) {
        out.extend([first, second, ' ']);
    }
}

/// Cuts a text where an unspaced run begins or ends.
fn parts(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let unspaced = is_unspaced(rest.chars().next()?);
        let end = rest.find(|c| is_unspaced(c) != unspaced).unwrap_or(rest.len());
        let (part, behind) = rest.split_at(end);
        rest = behind;
        Some(part)
    })
}

/// The words of a text, folded, in their order.
fn words(text: &str) -> Vec<String> {
    let cut = indexable(text);
    cut.split(|c| !is_of_word(c) && !is_unspaced(c)).filter(|word| !word.is_empty()).map(fold).collect()
}

/// One condition of a query: these words in a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Phrase {
    /// The words, cut as what is indexed. Nothing but characters of words, and what stands between them; no quotes.
    pub text: String,
    /// Whether the last word stands for all that begin with it.
    pub is_prefix: bool,
}

/// What somebody looks for: texts in which each of these phrases is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SearchQuery {
    phrases: Vec<Phrase>,
    /// The words as they were written, in lower case.
    written: Vec<String>,
}

impl SearchQuery {
    /// Reads a `search_term`: words, or several in quotes for a phrase. Nothing in it is an operator. Errors: 400
    /// `M_INVALID_PARAM` if it is too long.
    pub fn parse(term: &str) -> Result<Self> {
        let too_long = || Error::invalid_param("search_term may have at most 1024 bytes and 64 words");
        if term.len() > TERM_BYTES_MAX {
            return Err(too_long());
        }
        let (mut phrases, mut written) = (Vec::new(), BTreeSet::new());
        let sections: Vec<&str> = term.split('"').collect();
        for (number, section) in sections.iter().enumerate() {
            // An odd quote, the last one, opens nothing.
            let quoted = number % 2 == 1 && number + 1 < sections.len();
            let texts = if quoted { vec![*section] } else { section.split_whitespace().collect() };
            for text in texts {
                phrases.extend(parts(text).filter_map(|part| phrase(part, quoted)));
                let words = text.split(|c| !is_of_word(c) && !is_unspaced(c)).filter(|word| !word.is_empty());
                written.extend(words.map(str::to_lowercase));
            }
        }
        if phrases.len() > WORDS_MAX {
            return Err(too_long());
        }
        Ok(Self { phrases, written: written.into_iter().collect() })
    }

    /// Its phrases; none if there is no word in it.
    pub fn phrases(&self) -> &[Phrase] {
        &self.phrases
    }

    /// How well a text fits in which the phrases are: more for each time, and for a word itself rather than one that
    /// begins with it; less for a long text. Of the texts that have all the words, how rare each is says nothing.
    pub fn rank(&self, text: &str) -> f64 {
        // As the usual formula (BM25) has it, with a fixed usual length.
        const SATURATION: f64 = 1.2;
        const LENGTH_WEIGHT: f64 = 0.5;
        const USUAL_WORDS: f64 = 20.0;
        let words = words(text);
        #[expect(clippy::cast_precision_loss, reason = "a few thousand words")]
        let length = words.len() as f64 / USUAL_WORDS;
        let damping = SATURATION * (1.0 - LENGTH_WEIGHT + LENGTH_WEIGHT * length);
        self.phrases.iter().map(|phrase| phrase.count_in(&words)).map(|count| count / (count + damping)).sum()
    }

    /// Whether each of the phrases is in a text.
    pub fn is_in(&self, text: &str) -> bool {
        let words = words(text);
        self.phrases.iter().all(|phrase| phrase.count_in(&words) > 0.0)
    }

    /// What is to be highlighted in a text: the words that were looked for as they are written there.
    pub fn highlights(&self, text: &str, into: &mut BTreeSet<String>) {
        into.extend(self.written.iter().cloned());
        let wanted: Vec<(String, bool)> =
            self.phrases.iter().flat_map(|phrase| phrase.folded_words()).collect();
        for word in text.split(|c| !is_of_word(c)).filter(|word| !word.is_empty()) {
            let folded = fold(word);
            if wanted
                .iter()
                .any(|(wanted, prefix)| folded == *wanted || *prefix && folded.starts_with(wanted))
            {
                into.insert(word.to_lowercase());
            }
        }
    }
}

/// A part of a query that is unspaced throughout or nowhere. None if there is no word in it.
fn phrase(part: &str, quoted: bool) -> Option<Phrase> {
    if part.starts_with(is_unspaced) {
        let mut text = String::new();
        push_pairs(&mut text, part);
        let is_single = text.is_empty();
        let text = if is_single { part.to_owned() } else { text.trim_end().to_owned() };
        return Some(Phrase { text, is_prefix: is_single });
    }
    let text: Vec<&str> = part.split(|c| !is_of_word(c)).filter(|word| !word.is_empty()).collect();
    let is_prefix = !quoted && text.last()?.chars().count() >= PREFIX_CHARS_MIN;
    Some(Phrase { text: text.join(" "), is_prefix })
}

impl Phrase {
    /// Its words with whether each stands for all that begin with it.
    fn folded_words(&self) -> Vec<(String, bool)> {
        let words: Vec<&str> = self.text.split(' ').collect();
        let last = words.len().saturating_sub(1);
        words.iter().enumerate().map(|(at, word)| (fold(word), self.is_prefix && at == last)).collect()
    }

    /// How often the phrase is in a text, a longer word that only begins with the last one counted half.
    fn count_in(&self, words: &[String]) -> f64 {
        let wanted = self.folded_words();
        let fits = |row: &[String]| {
            let mut fit = 1.0;
            for (word, (wanted, prefix)) in row.iter().zip(&wanted) {
                if word != wanted {
                    if !prefix || !word.starts_with(wanted.as_str()) {
                        return 0.0;
                    }
                    fit = 0.5;
                }
            }
            fit
        };
        words.windows(wanted.len().max(1)).map(fits).sum()
    }
}

/// A text in lower case and without accents (of Latin and Greek letters), to compare with another.
pub fn fold(text: &str) -> String {
    let lower = text.chars().flat_map(char::to_lowercase).filter(|c| !is_accent(*c));
    lower.map(|c| if c.is_ascii() { c } else { without_accent(c) }).collect()
}

fn without_accent(c: char) -> char {
    static PLAIN: LazyLock<HashMap<char, char>> = LazyLock::new(|| {
        ACCENTED.iter().flat_map(|(plain, accented)| accented.chars().map(|c| (c, *plain))).collect()
    });
    PLAIN.get(&c).copied().unwrap_or(c)
}

/// Letters with all that are made of them with accents, by their canonical decompositions.
const ACCENTED: &[(char, &str)] = &[
    ('a', "àáâãäåāăąǎǟǡǻȁȃȧḁạảấầẩẫậắằẳẵặ"),
    ('b', "ḃḅḇ"),
    ('c', "çćĉċčḉ"),
    ('d', "ďḋḍḏḑḓ"),
    ('e', "èéêëēĕėęěȅȇȩḕḗḙḛḝẹẻẽếềểễệ"),
    ('f', "ḟ"),
    ('g', "ĝğġģǧǵḡ"),
    ('h', "ĥȟḣḥḧḩḫẖ"),
    ('i', "ìíîïĩīĭįǐȉȋḭḯỉị"),
    ('j', "ĵǰ"),
    ('k', "ķǩḱḳḵ"),
    ('l', "ĺļľḷḹḻḽ"),
    ('m', "ḿṁṃ"),
    ('n', "ñńņňǹṅṇṉṋ"),
    ('o', "òóôõöōŏőơǒǫǭȍȏȫȭȯȱṍṏṑṓọỏốồổỗộớờởỡợ"),
    ('p', "ṕṗ"),
    ('r', "ŕŗřȑȓṙṛṝṟ"),
    ('s', "śŝşšșṡṣṥṧṩ"),
    ('t', "ţťțṫṭṯṱẗ"),
    ('u', "ùúûüũūŭůűųưǔǖǘǚǜȕȗṳṵṷṹṻụủứừửữự"),
    ('v', "ṽṿ"),
    ('w', "ŵẁẃẅẇẉẘ"),
    ('x', "ẋẍ"),
    ('y', "ýÿŷȳẏẙỳỵỷỹ"),
    ('z', "źżžẑẓẕ"),
    ('α', "άἀἁἂἃἄἅἆἇὰάᾀᾁᾂᾃᾄᾅᾆᾇᾰᾱᾲᾳᾴᾶᾷ"),
    ('ε', "έἐἑἒἓἔἕὲέ"),
    ('η', "ήἠἡἢἣἤἥἦἧὴήᾐᾑᾒᾓᾔᾕᾖᾗῂῃῄῆῇ"),
    ('ι', "ΐίϊἰἱἲἳἴἵἶἷὶίῐῑῒΐῖῗ"),
    ('ο', "όὀὁὂὃὄὅὸό"),
    ('ρ', "ῤῥ"),
    ('υ', "ΰϋύὐὑὒὓὔὕὖὗὺύῠῡῢΰῦῧ"),
    ('ω', "ώὠὡὢὣὤὥὦὧὼώᾠᾡᾢᾣᾤᾥᾦᾧῲῳῴῶῷ"),
    ('е', "ё"),
];

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn phrases(term: &str) -> Vec<(String, bool)> {
        SearchQuery::parse(term).unwrap().phrases.into_iter().map(|p| (p.text, p.is_prefix)).collect()
    }

    fn text_of(event: serde_json::Value) -> Option<SearchableText> {
        searchable_text(event.to_string().as_bytes())
    }

    #[test]
    fn runs_without_spaces_are_cut_into_pairs_and_the_rest_stays() {
        assert_eq!(indexable("plain text"), "plain text");
        assert_eq!(indexable("go to 東京都 now"), "go to  東京 京都 都  now");
        assert_eq!(indexable("日本語test"), " 日本 本語 語 test");
        assert_eq!(indexable("猫"), " 猫 ");
        assert_eq!(words("Cafe\u{301} ÉTÉ, 東京"), ["cafe", "ete", "東京", "京"]);
    }

    #[test]
    fn a_query_is_words_and_quoted_phrases_and_nothing_is_an_operator() {
        let words = |all: &[(&str, bool)]| all.iter().map(|(w, p)| ((*w).to_owned(), *p)).collect::<Vec<_>>();
        assert_eq!(phrases("hello to you"), words(&[("hello", true), ("to", false), ("you", true)]));
        assert_eq!(phrases(r#""hello to you""#), words(&[("hello to you", false)]));
        assert_eq!(phrases("well-known"), words(&[("well known", true)]));
        assert_eq!(phrases("東京都"), words(&[("東京 京都", false)]));
        assert_eq!(phrases("猫"), words(&[("猫", true)]));
        assert_eq!(phrases("日本語test"), words(&[("日本 本語", false), ("test", true)]));
        assert_eq!(phrases(r#"un"balanced"#), words(&[("un", false), ("balanced", true)]));
        assert_eq!(phrases("!!! ??? \" * ^ : ( )"), words(&[]));
        for odd in
            ["a OR b", "body:x", "NEAR(a b)", "a*", "^a", "{body}:a", "a AND NOT b", "a\"; DROP TABLE t;--"]
        {
            for (text, _) in phrases(odd) {
                assert!(text.chars().all(|c| is_of_word(c) || c == ' '), "{odd}: {text}");
            }
        }
        assert!(SearchQuery::parse(&"a".repeat(10_000)).is_err());
        assert!(SearchQuery::parse(&"a ".repeat(400)).is_err());
    }

    #[test]
    fn each_kind_of_event_has_its_text_and_no_other_event_has_any() {
        let message =
            |content: serde_json::Value| text_of(json!({ "type": "m.room.message", "content": content }));
        assert_eq!(message(json!({ "body": "hello" })).unwrap().text, "hello");
        for none in
            [json!({}), json!({ "body": 7 }), json!({ "body": "" }), json!({ "body": null }), json!([])]
        {
            assert_eq!(message(none.clone()), None, "{none}");
        }
        let edit = message(json!({ "body": "* new", "m.new_content": { "body": "new" },
            "m.relates_to": { "rel_type": "m.replace", "event_id": "$e" } }));
        let edit = edit.unwrap();
        assert_eq!((edit.text.as_str(), edit.replaces.unwrap().as_str()), ("new", "$e"));
        let name = text_of(json!({ "type": "m.room.name", "state_key": "", "content": { "name": "Pub" } }));
        assert_eq!(name.unwrap().key, SearchKey::Name);
        let topic = text_of(json!({ "type": "m.room.topic", "state_key": "", "content": { "topic": "beer",
            "m.topic": { "m.text": [{ "mimetype": "text/html", "body": "<b>" }, { "body": "ale" }] } } }));
        assert_eq!(topic.unwrap().text, "beer\nale");
        assert_eq!(
            text_of(json!({ "type": "m.room.message", "state_key": "", "content": { "body": "x" } })),
            None
        );
        assert_eq!(text_of(json!({ "type": "m.room.encrypted", "content": { "body": "x" } })), None);
        let long = message(json!({ "body": "é".repeat(20_000) })).unwrap();
        assert!(long.text.len() <= TEXT_BYTES_MAX && long.text.ends_with('é'));
    }

    #[test]
    fn the_word_itself_ranks_above_a_longer_one_and_a_short_text_above_a_long_one() {
        let query = SearchQuery::parse("cat").unwrap();
        assert!(query.rank("a cat") > query.rank("a category"));
        assert!(query.rank("cat cat cat") > query.rank("a cat here"));
        assert!(query.rank("a cat") > query.rank(&format!("a cat {}", "and more ".repeat(200))));
        assert!(query.rank("a category") > 0.0 && query.rank("dogs") == 0.0);
    }

    #[test]
    fn what_is_highlighted_is_written_as_in_the_text() {
        let mut found = BTreeSet::new();
        SearchQuery::parse("cafe meet").unwrap().highlights("The Café, where MEETINGS are", &mut found);
        assert_eq!(found.into_iter().collect::<Vec<_>>(), ["cafe", "café", "meet", "meetings"]);
    }
}
