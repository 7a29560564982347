//! What search finds text by: one cut into words for what is indexed and for what is looked for, so that the two always
//! agree; which text of an event it is (client-server API, "Server Side Search"); how well a text fits. The index gets
//! the words as they are cut and folded here, and has no opinion of its own.
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

/// Whether this is a character of a word in a script that is written without spaces, or (Hangul) with endings joined to
/// words.
fn is_unspaced(c: char) -> bool {
    let is_of_script = matches!(c,
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
    );
    is_of_script && is_of_word(c)
}

/// Whether this is a character of a word: a letter, a digit, or a mark on one of them.
pub fn is_of_word(c: char) -> bool {
    // The library takes its time over each: of most scripts it is asked once.
    static KNOWN: LazyLock<Vec<bool>> =
        LazyLock::new(|| ('\0'..'\u{3000}').map(|c| c.is_alphanumeric() || is_mark(c)).collect());
    match KNOWN.get(c as usize) {
        Some(known) => *known,
        None => c.is_alphanumeric() || is_mark(c),
    }
}

/// Whether this is a mark on the character before it: an accent, a virama, a nukta. The library does not tell them by
/// that name, but escapes them where they have nothing to stand on, and nowhere else.
fn is_mark(c: char) -> bool {
    // These few do not join with what is before them.
    matches!(c, '\u{f3e}' | '\u{f3f}' | '\u{1ce1}' | '\u{1cf7}' | '\u{abec}')
        || c.escape_debug().len() > 1
            && ["x", c.encode_utf8(&mut [0; 4])].concat().escape_debug().count() == 2
}

/// A text as it is indexed: its words, a space between them.
pub fn indexable(text: &str) -> String {
    if text.is_ascii() {
        // The same in one go: most texts cost no more than what the index makes of them.
        let plain = |c: char| if c.is_alphanumeric() { c.to_ascii_lowercase() } else { ' ' };
        return text.chars().map(plain).collect();
    }
    words(text).join(" ")
}

/// The words of a text, folded, in their order; of unspaced runs the pairs, and the last character.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    for part in text.split(|c| !is_of_word(c)).flat_map(parts) {
        if part.starts_with(is_unspaced) {
            words.extend(pairs(part));
            words.extend(part.chars().next_back().map(String::from));
        } else {
            words.push(fold(part));
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// The overlapping pairs of a run.
fn pairs(run: &str) -> impl Iterator<Item = String> {
    run.chars().zip(run.chars().skip(1)).map(|(first, second)| String::from_iter([first, second]))
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

/// One condition of a query: these words in a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Phrase {
    /// The words, cut and folded as what is indexed, a space between them. Nothing but characters of words; no quotes.
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
                let words = text.split(|c| !is_of_word(c)).filter(|word| !word.is_empty());
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
        let wanted: Vec<(&str, bool)> = self.phrases.iter().flat_map(Phrase::words).collect();
        for word in text.split(|c| !is_of_word(c)).flat_map(parts) {
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
        let pairs: Vec<String> = pairs(part).collect();
        let is_single = pairs.is_empty();
        let text = if is_single { part.to_owned() } else { pairs.join(" ") };
        return Some(Phrase { text, is_prefix: is_single });
    }
    let words = words(part);
    let is_prefix = !quoted && words.last()?.chars().count() >= PREFIX_CHARS_MIN;
    Some(Phrase { text: words.join(" "), is_prefix }).filter(|phrase| !phrase.text.is_empty())
}

impl Phrase {
    /// Its words with whether each stands for all that begin with it.
    fn words(&self) -> impl Iterator<Item = (&str, bool)> {
        let last = self.text.split(' ').count() - 1;
        self.text.split(' ').enumerate().map(move |(at, word)| (word, self.is_prefix && at == last))
    }

    /// How often the phrase is in a text, a longer word that only begins with the last one counted half.
    fn count_in(&self, words: &[String]) -> f64 {
        let wanted: Vec<(&str, bool)> = self.words().collect();
        let fits = |row: &[String]| {
            let mut fit = 1.0;
            for (word, (wanted, prefix)) in row.iter().zip(&wanted) {
                if word != wanted {
                    if !prefix || !word.starts_with(wanted) {
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

/// A text as it is compared with another: in lower case, without accents (of Latin and Greek letters) and points (of
/// Hebrew and Arabic ones), and of the ways in which a letter may be written in one.
pub fn fold(text: &str) -> String {
    if text.is_ascii() {
        return text.to_ascii_lowercase();
    }
    let mut folded = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_ascii() {
            folded.push(c.to_ascii_lowercase());
        } else if is_capital(c) {
            c.to_lowercase().for_each(|c| push_folded(&mut folded, c));
        } else {
            push_folded(&mut folded, c);
        }
    }
    folded
}

fn push_folded(folded: &mut String, c: char) {
    if !is_left_out(c) {
        match plain(c) {
            Some(plain) => folded.push_str(plain),
            None => folded.push(c),
        }
    } else if let Some(letter) = folded.chars().next_back().and_then(|last| letter_of(last, c)) {
        folded.pop();
        folded.push(letter);
    }
}

/// Whether this may have a small letter to it. Those in the ranges are two letters, of which one is a capital.
fn is_capital(c: char) -> bool {
    c.is_uppercase() || matches!(c, '\u{1c5}'..='\u{1f2}' | '\u{1f88}'..='\u{1ffc}')
}

/// The Cyrillic letter that another one is with this mark on it: no other writing of that one, as one with an accent is.
fn letter_of(last: char, mark: char) -> Option<char> {
    Some(match (last, mark) {
        ('и', '\u{306}') => 'й',
        ('у', '\u{306}') => 'ў',
        ('і', '\u{308}') => 'ї',
        ('г', '\u{301}') => 'ѓ',
        ('к', '\u{301}') => 'ќ',
        _ => return None,
    })
}

/// What is part of a word and makes it no other: people write it or leave it out.
fn is_left_out(c: char) -> bool {
    matches!(c,
        '\u{300}'..='\u{36f}' | '\u{1dc0}'..='\u{1dff}' // accents
        | '\u{591}'..='\u{5bd}' | '\u{5bf}' | '\u{5c1}'..='\u{5c7}' // Hebrew points
        | '\u{640}' | '\u{64b}'..='\u{652}' | '\u{670}' // Arabic points, and the stroke that stretches a word
        | '\u{20d0}'..='\u{20ff}' | '\u{fe00}'..='\u{fe0f}' | '\u{e0100}'..='\u{e01ef}' // what says how a sign is drawn
    )
}

fn plain(c: char) -> Option<&'static str> {
    static PLAIN: LazyLock<HashMap<char, &str>> = LazyLock::new(|| {
        WRITTEN.iter().flat_map(|(plain, ways)| ways.chars().map(|c| (c, *plain))).collect()
    });
    // Of most scripts there is none.
    let may_be = matches!(c, '\u{b5}'..='\u{3ff}' | 'ё' | '\u{929}'..='\u{b5d}' | '\u{1e00}'..='\u{1fff}');
    may_be.then(|| PLAIN.get(&c).copied()).flatten()
}

/// Letters with all that stand for them as well: those that are made of them with accents, by their canonical
/// decompositions and with strokes; two that are written as one; the sigma at the end of a word and the long s; what
/// Greek letters are in formulas; of Indic letters with a nukta each with the mark.
const WRITTEN: &[(&str, &str)] = &[
    ("a", "àáâãäåāăąǎǟǡǻȁȃȧḁạảấầẩẫậắằẳẵặ"),
    ("ae", "æǽǣ"),
    ("b", "ḃḅḇ"),
    ("c", "çćĉċčḉ"),
    ("d", "ďḋḍḏḑḓđ"),
    ("e", "èéêëēĕėęěȅȇȩḕḗḙḛḝẹẻẽếềểễệ"),
    ("f", "ḟ"),
    ("g", "ĝğġģǧǵḡ"),
    ("h", "ĥȟḣḥḧḩḫẖħ"),
    ("i", "ìíîïĩīĭįǐȉȋḭḯỉịı"),
    ("j", "ĵǰ"),
    ("k", "ķǩḱḳḵ"),
    ("l", "ĺļľḷḹḻḽł"),
    ("m", "ḿṁṃ"),
    ("n", "ñńņňǹṅṇṉṋ"),
    ("o", "òóôõöōŏőơǒǫǭȍȏȫȭȯȱṍṏṑṓọỏốồổỗộớờởỡợøǿ"),
    ("oe", "œ"),
    ("p", "ṕṗ"),
    ("r", "ŕŗřȑȓṙṛṝṟ"),
    ("s", "śŝşšșṡṣṥṧṩſẛ"),
    ("ss", "ß"),
    ("t", "ţťțṫṭṯṱẗŧ"),
    ("u", "ùúûüũūŭůűųưǔǖǘǚǜȕȗṳṵṷṹṻụủứừửữự"),
    ("v", "ṽṿ"),
    ("w", "ŵẁẃẅẇẉẘ"),
    ("x", "ẋẍ"),
    ("y", "ýÿŷȳẏẙỳỵỷỹ"),
    ("z", "źżžẑẓẕ"),
    ("α", "άἀἁἂἃἄἅἆἇὰάᾀᾁᾂᾃᾄᾅᾆᾇᾰᾱᾲᾳᾴᾶᾷ"),
    ("β", "ϐ"),
    ("ε", "έἐἑἒἓἔἕὲέϵ"),
    ("η", "ήἠἡἢἣἤἥἦἧὴήᾐᾑᾒᾓᾔᾕᾖᾗῂῃῄῆῇ"),
    ("θ", "ϑ"),
    ("ι", "ΐίϊἰἱἲἳἴἵἶἷὶίῐῑῒΐῖῗ\u{1fbe}"),
    ("κ", "ϰ"),
    ("μ", "µ"),
    ("ο", "όὀὁὂὃὄὅὸό"),
    ("π", "ϖ"),
    ("ρ", "ῤῥϱ"),
    ("σ", "ς"),
    ("υ", "ΰϋύὐὑὒὓὔὕὖὗὺύῠῡῢΰῦῧ"),
    ("φ", "ϕ"),
    ("ω", "ώὠὡὢὣὤὥὦὧὼώᾠᾡᾢᾣᾤᾥᾦᾧῲῳῴῶῷ"),
    ("е", "ё"),
    ("\u{928}\u{93c}", "\u{929}"),
    ("\u{930}\u{93c}", "\u{931}"),
    ("\u{933}\u{93c}", "\u{934}"),
    ("\u{915}\u{93c}", "\u{958}"),
    ("\u{916}\u{93c}", "\u{959}"),
    ("\u{917}\u{93c}", "\u{95a}"),
    ("\u{91c}\u{93c}", "\u{95b}"),
    ("\u{921}\u{93c}", "\u{95c}"),
    ("\u{922}\u{93c}", "\u{95d}"),
    ("\u{92b}\u{93c}", "\u{95e}"),
    ("\u{92f}\u{93c}", "\u{95f}"),
    ("\u{9a1}\u{9bc}", "\u{9dc}"),
    ("\u{9a2}\u{9bc}", "\u{9dd}"),
    ("\u{9af}\u{9bc}", "\u{9df}"),
    ("\u{a32}\u{a3c}", "\u{a33}"),
    ("\u{a38}\u{a3c}", "\u{a36}"),
    ("\u{a16}\u{a3c}", "\u{a59}"),
    ("\u{a17}\u{a3c}", "\u{a5a}"),
    ("\u{a1c}\u{a3c}", "\u{a5b}"),
    ("\u{a2b}\u{a3c}", "\u{a5e}"),
    ("\u{b21}\u{b3c}", "\u{b5c}"),
    ("\u{b22}\u{b3c}", "\u{b5d}"),
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
        let ascii = "It's a well-known thing, and 2 more:\tA_B.";
        assert_eq!(indexable(ascii).split_whitespace().collect::<Vec<_>>(), words(ascii));
        assert_eq!(indexable("go to 東京都 now"), "go to 東京 京都 都 now");
        assert_eq!(indexable("日本語test"), "日本 本語 語 test");
        assert_eq!(indexable("猫"), "猫");
        assert_eq!(indexable("ไป ๏ ซื้อ"), "ไป ป ซื ื้ ้อ อ");
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
    fn words_have_letters_digits_and_the_marks_on_them() {
        for c in '\0'..='\u{7f}' {
            assert_eq!(is_of_word(c), c.is_ascii_alphanumeric(), "{c:?}");
        }
        // A virama, a nukta, an accent, a vowel sign, a point, what says how a sign is drawn.
        let marks = "\u{94d}\u{93c}\u{301}\u{9be}\u{5b8}\u{fe0f}";
        assert!(marks.chars().all(is_of_word));
        let others = "。、।؟־•“”…—🎉❤\u{200b}\u{200c}\u{200d}\u{a0}\u{fffd}\u{e000}";
        assert_eq!(others.chars().find(|c| is_of_word(*c)), None);
    }

    #[test]
    fn a_folded_text_is_the_same_however_it_was_written() {
        for (text, folded) in [
            ("ÉTÉ Cafe\u{301}", "ete cafe"),
            ("ΓΙΏΡΓΟΣ γιώργος", "γιωργοσ γιωργοσ"),
            ("Straße STRAẞE STRASSE", "strasse strasse strasse"),
            ("İzmir Işık ışık", "izmir isik isik"),
            ("Ёлка мой МОЙ мои\u{306}", "елка мой мой мой"),
            ("Київ Киі\u{308}в ў у\u{306}", "київ київ ў ў"),
            ("Łódź Ærø Œuvre ﬆ", "lodz aero oeuvre ﬆ"),
            ("שָׁלוֹם الْعَرَبِيَّة العـربية", "שלום العربية العربية"),
            ("हिन्दी தமிழ் ガギ", "हिन्दी தமிழ் ガギ"),
            ("প\u{9dc}া \u{958}लम", "প\u{9a1}\u{9bc}া \u{915}\u{93c}लम"),
            ("❤\u{fe0f}", "❤"),
        ] {
            assert_eq!((fold(text), fold(folded)), (folded.to_owned(), folded.to_owned()));
        }
        assert!(WRITTEN.iter().all(|(_, ways)| ways.chars().all(|c| plain(c).is_some())));
    }

    #[test]
    fn what_is_highlighted_is_written_as_in_the_text() {
        let mut found = BTreeSet::new();
        SearchQuery::parse("cafe meet").unwrap().highlights("The Café, where MEETINGS are", &mut found);
        assert_eq!(found.into_iter().collect::<Vec<_>>(), ["cafe", "café", "meet", "meetings"]);
    }
}
