//! Glob-style matching (appendices, "Glob-style matching"), without regard to case: of whole texts, and of the words of a
//! text. `*` is any characters, none too; `?` is one.
//!
//! A pattern is cut at its stars into pieces, and each piece is looked for once, as early as it can be: if the rest does
//! not follow then, it does not follow later either. A piece without `?` is found in one walk over the text (Knuth,
//! Morris and Pratt), so a pattern takes a time in proportion to the text. A piece with `?` may take as much for each
//! of its characters; who matches many patterns of others gives [`Steps`].

use std::cell::Cell;

/// A pattern, ready to be matched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob {
    /// What stands between the stars; the first and the last may be empty.
    pieces: Vec<Piece>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Piece {
    chars: Vec<char>,
    /// For each prefix how long the longest one is that it ends with; none if there is a `?` in it.
    borders: Option<Vec<u32>>,
}

/// How many characters may still be compared. Where they are used up nothing matches any more.
#[derive(Debug)]
pub struct Steps(Cell<usize>);

impl Steps {
    /// So many.
    pub fn new(steps: usize) -> Self {
        Self(Cell::new(steps))
    }

    /// How many are left.
    pub fn left(&self) -> usize {
        self.0.get()
    }

    /// Whether there are none left.
    pub fn are_used_up(&self) -> bool {
        self.0.get() == 0
    }

    /// Takes so many, or what is left of them. Whether some are left after that.
    pub fn take(&self, steps: usize) -> bool {
        let left = self.0.get().saturating_sub(steps);
        self.0.set(left);
        left > 0
    }
}

impl Glob {
    /// Reads a pattern; every text is one.
    pub fn new(pattern: &str) -> Self {
        Self {
            pieces: Self::fold(pattern).split(|c| *c == '*').map(|piece| Piece::new(piece, true)).collect(),
        }
    }

    /// A pattern that is a text and nothing else.
    pub fn literal(text: &str) -> Self {
        Self { pieces: vec![Piece::new(&Self::fold(text), false)] }
    }

    /// What it takes in memory, about.
    pub fn bytes(&self) -> usize {
        let piece = |piece: &Piece| size_of::<Piece>() + 2 * size_of_val(&*piece.chars);
        size_of::<Self>() + self.pieces.iter().map(piece).sum::<usize>()
    }

    /// Whether it is nothing but stars, so that every text matches.
    pub fn matches_all(&self) -> bool {
        self.pieces.len() > 1 && self.pieces.iter().all(|piece| piece.chars.is_empty())
    }

    /// The form of a text that this matches.
    pub fn fold(text: &str) -> Vec<char> {
        text.chars().flat_map(char::to_lowercase).collect()
    }

    /// Whether the whole of a folded text matches.
    pub fn matches(&self, text: &[char]) -> bool {
        self.matches_in(text, &Steps::new(usize::MAX))
    }

    /// The same in so many steps.
    pub fn matches_in(&self, text: &[char], steps: &Steps) -> bool {
        let (Some(first), Some(last)) = (self.pieces.first(), self.pieces.last()) else { return false };
        if !steps.take(1 + first.chars.len() + last.chars.len()) {
            return false;
        }
        let (start, end) = (first.chars.len(), last.chars.len());
        if self.pieces.len() == 1 {
            return text.len() == start && first.is_at(text, 0);
        }
        if text.len() < start + end || !first.is_at(text, 0) || !last.is_at(text, text.len() - end) {
            return false;
        }
        let (mut from, inner) = (start, &text[..text.len() - end]);
        for piece in &self.pieces[1..self.pieces.len() - 1] {
            match piece.find(inner, from, steps, |_, _| true) {
                Some(at) => from = at + piece.chars.len(),
                None => return false,
            }
        }
        true
    }

    /// Whether some part of a folded text matches that starts and ends at a word boundary: at the start or end of the
    /// text, or where one of the two characters is "not in the sets `[A-Z]`, `[a-z]`, `[0-9]` or `_`".
    pub fn matches_words(&self, text: &[char], steps: &Steps) -> bool {
        let boundary = |at: usize| {
            at == 0 || at == text.len() || !(is_word_char(text[at - 1]) && is_word_char(text[at]))
        };
        let mut from = 0;
        for (number, piece) in self.pieces.iter().enumerate() {
            let (is_first, is_last) = (number == 0, number + 1 == self.pieces.len());
            let fits =
                |start: usize, end: usize| (!is_first || boundary(start)) && (!is_last || boundary(end));
            match piece.find(text, from, steps, fits) {
                Some(at) => from = at + piece.chars.len(),
                None => return false,
            }
        }
        true
    }
}

/// Whether a character is part of words.
pub fn is_word_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

impl Piece {
    fn new(chars: &[char], with_wildcards: bool) -> Self {
        if with_wildcards && chars.contains(&'?') {
            return Self { chars: chars.to_vec(), borders: None };
        }
        let mut borders = vec![0_u32; chars.len()];
        let mut length = 0_usize;
        for at in 1..chars.len() {
            while length > 0 && chars[at] != chars[length] {
                length = borders[length - 1] as usize;
            }
            length += usize::from(chars[at] == chars[length]);
            borders[at] = u32::try_from(length).unwrap_or(u32::MAX);
        }
        Self { chars: chars.to_vec(), borders: Some(borders) }
    }

    fn is_at(&self, text: &[char], at: usize) -> bool {
        let any = self.borders.is_none();
        let there = text.get(at..at + self.chars.len());
        there.is_some_and(|there| {
            self.chars.iter().zip(there).all(|(own, other)| own == other || (any && *own == '?'))
        })
    }

    /// Where the piece stands first, from there on, so that it `fits` with its start and end.
    fn find(
        &self,
        text: &[char],
        from: usize,
        steps: &Steps,
        fits: impl Fn(usize, usize) -> bool,
    ) -> Option<usize> {
        let length = self.chars.len();
        let last = text.len().checked_sub(length).filter(|last| from <= *last)?;
        let Some(borders) = self.borders.as_ref().filter(|_| length > 0) else {
            for at in from..=last {
                let fits = fits(at, at + length);
                if !steps.take(1 + if fits { length } else { 0 }) {
                    return None;
                }
                if fits && self.is_at(text, at) {
                    return Some(at);
                }
            }
            return None;
        };
        if !steps.take(text.len() - from) {
            return None;
        }
        let mut matched = 0;
        for (at, c) in text.iter().enumerate().skip(from) {
            while matched > 0 && *c != self.chars[matched] {
                matched = borders[matched - 1] as usize;
            }
            matched += usize::from(*c == self.chars[matched]);
            if matched == length {
                let start = at + 1 - length;
                if fits(start, at + 1) {
                    return Some(start);
                }
                matched = borders[matched - 1] as usize;
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(pattern: &str, text: &str) -> bool {
        Glob::new(pattern).matches(&Glob::fold(text))
    }

    fn words(pattern: &str, text: &str) -> bool {
        Glob::new(pattern).matches_words(&Glob::fold(text), &Steps::new(1_000_000))
    }

    #[test]
    fn nothing_but_stars_matches_every_text() {
        for (pattern, all) in
            [("*", true), ("**", true), ("", false), ("?", false), ("*?", false), ("a*", false)]
        {
            assert_eq!(Glob::new(pattern).matches_all(), all, "{pattern}");
        }
        assert!(!Glob::literal("*").matches_all() && !Glob::literal("").matches_all());
    }

    #[test]
    fn globs_match_the_whole_text_without_regard_to_case() {
        for (pattern, text) in [
            ("*", ""),
            ("**", "x"),
            ("", ""),
            ("a*c*e", "abcde"),
            ("*.Evil.Example", "A.eVIL.example"),
            ("?vil.*", "evil.example"),
            ("é?", "É😀"),
            ("lunc?*", "LUNCH"),
            ("lunc?*", "Lunch plans"),
            ("*a?c*", "xxabxabcx"),
            ("a*a", "aa"),
            ("*aab*", "aaab"),
        ] {
            assert!(whole(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("", "x"),
            ("?", ""),
            ("evil", "evil.example"),
            ("*.evil.example", "evil.example"),
            ("a*b", "a*c"),
            ("a*a", "a"),
            ("lunc?*", " lunch"),
            ("lunc?*", "lunc"),
            ("*a?c*", "ac"),
        ] {
            assert!(!whole(pattern, text), "{pattern} {text}");
        }
        assert!(!Glob::literal("a*").matches(&Glob::fold("ab")) && Glob::literal("A*").matches(&['a', '*']));
    }

    #[test]
    fn words_start_and_end_at_a_boundary() {
        for (pattern, text) in [
            ("ex*ple", "An example event."),
            ("ex*ple", "exple"),
            ("ex*ple", "An exciting triple-whammy"),
            ("cake", "CAKE!"),
            ("cake", "cakes and cake"),
            ("cake", "日本cake語"),
            ("日本", "x日本y"),
            ("c?ke", "some coke"),
            ("*", ""),
            ("", ""),
            ("!bar", "foo!bar"),
            ("cake*lie", "the cake is a lie"),
            ("*ake", "a cake"),
        ] {
            assert!(words(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("cake", "cakes"),
            ("cake", "pancake"),
            ("cake", "_cake"),
            ("cake", "cake2"),
            ("ex*ple", "An examples"),
            ("c?ke", "cke"),
            ("cake*lie", "the lie is a cake"),
            ("cake", ""),
        ] {
            assert!(!words(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn what_is_made_to_take_long_does_not() {
        let text = Glob::fold(&"a".repeat(60_000));
        for pattern in ["*a".repeat(400), format!("*{}b*", "a".repeat(800)), format!("{}b", "a".repeat(900))]
        {
            let steps = Steps::new(60_000 * 450);
            assert!(!Glob::new(&pattern).matches_in(&[&text[..], &['c']].concat(), &steps));
            assert!(!steps.are_used_up(), "so little it takes: {steps:?}");
        }
        let steps = Steps::new(1_000_000);
        assert!(!Glob::new(&format!("*{}b*", "?a".repeat(400))).matches_in(&text, &steps));
        assert!(steps.are_used_up(), "and no more than it may");
    }

    #[test]
    fn every_glob_matches_as_the_plain_definition_has_it() {
        fn plain(pattern: &[char], text: &[char]) -> bool {
            match pattern.split_first() {
                None => text.is_empty(),
                Some(('*', rest)) => (0..=text.len()).any(|skip| plain(rest, &text[skip..])),
                Some((c, rest)) => {
                    text.split_first().is_some_and(|(t, texts)| (*c == '?' || c == t) && plain(rest, texts))
                }
            }
        }
        fn all(letters: &[char], most: usize) -> Vec<Vec<char>> {
            let mut found: Vec<Vec<char>> = vec![Vec::new()];
            let mut last = found.clone();
            for _ in 0..most {
                last = last
                    .iter()
                    .flat_map(|text| letters.iter().map(|c| [&text[..], &[*c]].concat()))
                    .collect();
                found.extend(last.clone());
            }
            found
        }
        let texts = all(&['a', 'b', ' '], 5);
        for pattern in all(&['a', 'b', '?', '*'], 4) {
            let glob = Glob::new(&pattern.iter().collect::<String>());
            for text in &texts {
                assert_eq!(glob.matches(text), plain(&pattern, text), "{pattern:?} {text:?}");
                let boundary = |at: usize| {
                    at == 0 || at == text.len() || !(is_word_char(text[at - 1]) && is_word_char(text[at]))
                };
                let by_words = (0..=text.len()).filter(|at| boundary(*at)).any(|from| {
                    (from..=text.len()).filter(|at| boundary(*at)).any(|to| plain(&pattern, &text[from..to]))
                });
                let steps = Steps::new(usize::MAX);
                assert_eq!(glob.matches_words(text, &steps), by_words, "{pattern:?} {text:?}");
            }
        }
    }
}
