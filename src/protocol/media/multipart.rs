//! The form in which servers give each other media: `multipart/mixed` (RFC 2046, 5.1) of exactly two parts, a JSON object
//! and then the file, or a `Location` where it is (server-server API, "Content Repository").
//!
//! [`MultipartReader`] is given the bytes as they come and says which of them are the file's. It keeps none, so the file
//! may be of any size, and everything else has a bound. It takes what writers in the field write: a boundary quoted or
//! not, a preamble, lines that end without a carriage return, a last boundary without its dashes. A file without a
//! boundary behind it is cut off, and is refused.

use std::fmt::Write as _;
use std::ops::Range;

use crate::protocol::media::header_values::{HeaderValue, name_in_disposition};

/// Longest boundary, in bytes. RFC 2046 has 70.
const BOUNDARY_BYTES_MAX: usize = 200;
/// Bounds of what stands before the first boundary, of the headers of one part, of the first part's body, and of what
/// stands behind a boundary in its line, in bytes.
const PREAMBLE_BYTES_MAX: usize = 8 << 10;
/// A file name may be long, and percent-encoded three times as long.
pub const PART_HEAD_BYTES_MAX: usize = 48 << 10;
const FIRST_PART_BYTES_MAX: usize = 64 << 10;
const PADDING_BYTES_MAX: usize = 64;
/// Longest URL of a `Location`, in bytes.
const LOCATION_BYTES_MAX: usize = 4 << 10;

/// What the second part's headers say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PartHead {
    /// What the file is said to be, unchecked.
    pub content_type: Option<String>,
    /// The file's name, made harmless.
    pub name: Option<String>,
    /// Where the file is, if it is not here.
    pub location: Option<String>,
}

/// Why these bytes are no such answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

/// Where in the answer the reader is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Section {
    /// Before the first boundary, at the beginning of a line or within one.
    Preamble {
        line_start: bool,
    },
    /// Behind a boundary, up to the end of its line.
    Padding {
        of: Part,
    },
    Head {
        of: Part,
    },
    /// `begins`: nothing of it was seen yet.
    Body {
        of: Part,
        begins: bool,
    },
    End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Json,
    File,
}

/// What one look at the bytes gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// So many of the bytes are done with. None of them, and not at the end: more have to come first, and bytes that were
    /// not used are to be given again in front of them.
    pub used: usize,
    /// Which of these are the file's.
    pub file: Range<usize>,
}

/// Reads an answer piece by piece.
#[derive(Debug)]
pub struct MultipartReader {
    /// `--` and the boundary.
    dashed: Vec<u8>,
    /// The same behind the line break that the answer's lines have.
    delimiter: Vec<u8>,
    section: Section,
    /// How many bytes of a section that has a bound were seen.
    seen: usize,
    head: PartHead,
}

impl MultipartReader {
    /// A reader of an answer with this content type. Errors: it is another, or without a usable boundary.
    pub fn new(content_type: &str) -> Result<Self, Malformed> {
        let read = HeaderValue::read(content_type);
        if read.value != "multipart/mixed" {
            return Err(Malformed("not multipart/mixed"));
        }
        let boundary = read.parameter("boundary").unwrap_or_default();
        let is_usable = !boundary.is_empty()
            && boundary.len() <= BOUNDARY_BYTES_MAX
            && boundary.bytes().all(|b| (b' '..0x7f).contains(&b))
            && !boundary.ends_with(' ');
        if !is_usable {
            return Err(Malformed("no usable boundary"));
        }
        let dashed = format!("--{boundary}").into_bytes();
        let section = Section::Preamble { line_start: true };
        Ok(Self { dashed, delimiter: Vec::new(), section, seen: 0, head: PartHead::default() })
    }

    /// The headers of the second part, once they were read.
    pub fn head(&self) -> Option<&PartHead> {
        let is_read = matches!(self.section, Section::Body { of: Part::File, .. } | Section::End);
        is_read.then_some(&self.head)
    }

    /// Whether the second part was read to its end. What follows is nobody's business.
    pub fn is_at_end(&self) -> bool {
        self.section == Section::End
    }

    /// How many bytes a caller's buffer has to hold, so that bytes that were not used and one more always fit.
    pub const fn buffer_bytes() -> usize {
        PART_HEAD_BYTES_MAX + 1
    }

    /// Looks at the bytes that come next. Errors: the answer is malformed, or something in it is too large.
    pub fn look(&mut self, input: &[u8]) -> Result<Progress, Malformed> {
        let nothing = |used| Ok(Progress { used, file: 0..0 });
        match self.section {
            Section::Preamble { line_start } => self.preamble(input, line_start).and_then(nothing),
            Section::Padding { of } => self.padding(input, of).and_then(nothing),
            Section::Head { of } => self.part_head(input, of).and_then(nothing),
            Section::Body { of, begins } => self.body(input, of, begins),
            Section::End => nothing(0),
        }
    }

    /// Counts bytes of a section that has a bound.
    fn count(&mut self, bytes: usize, most: usize, too_many: &'static str) -> Result<usize, Malformed> {
        self.seen += bytes;
        if self.seen > most { Err(Malformed(too_many)) } else { Ok(bytes) }
    }

    fn enter(&mut self, section: Section) {
        (self.section, self.seen) = (section, 0);
    }

    fn preamble(&mut self, input: &[u8], line_start: bool) -> Result<usize, Malformed> {
        if line_start {
            if input.starts_with(&self.dashed) {
                self.enter(Section::Padding { of: Part::Json });
                return Ok(self.dashed.len());
            }
            if self.dashed.starts_with(input) {
                return Ok(0);
            }
        }
        let line_end = input.iter().position(|b| *b == b'\n');
        self.section = Section::Preamble { line_start: line_end.is_some() };
        let used = line_end.map_or(input.len(), |end| end + 1);
        self.count(used, PREAMBLE_BYTES_MAX, "too much before the first part")
    }

    /// RFC 2046 lets white space stand behind a boundary.
    fn padding(&mut self, input: &[u8], of: Part) -> Result<usize, Malformed> {
        let Some(end) = input.iter().position(|b| *b == b'\n') else {
            let long = input.len() > PADDING_BYTES_MAX;
            return if long { Err(Malformed("something behind a boundary")) } else { Ok(0) };
        };
        let line = &input[..end];
        if end <= PADDING_BYTES_MAX && line.starts_with(b"--") {
            return Err(Malformed("fewer than two parts"));
        }
        let has_return = line.ends_with(b"\r");
        if end > PADDING_BYTES_MAX || !line.iter().all(|b| b" \t\r".contains(b)) {
            return Err(Malformed("something behind a boundary"));
        }
        if of == Part::Json {
            // One that writes lines in the other way further on writes no boundary that we find.
            self.delimiter = if has_return { b"\r\n".to_vec() } else { b"\n".to_vec() };
            self.delimiter.extend_from_slice(&self.dashed);
        }
        self.enter(Section::Head { of });
        Ok(end + 1)
    }

    fn part_head(&mut self, input: &[u8], of: Part) -> Result<usize, Malformed> {
        let Some((lines, used)) = head_lines(input) else {
            let long = input.len() >= PART_HEAD_BYTES_MAX;
            return if long { Err(Malformed("the headers of a part are too large")) } else { Ok(0) };
        };
        if of == Part::File {
            self.head = part_head(&lines)?;
        }
        self.enter(Section::Body { of, begins: true });
        Ok(used)
    }

    fn body(&mut self, input: &[u8], of: Part, begins: bool) -> Result<Progress, Malformed> {
        // A part without a body may end with the line break of its headers.
        if begins {
            if input.starts_with(&self.dashed) {
                self.part_ended(of);
                return Ok(Progress { used: self.dashed.len(), file: 0..0 });
            }
            if self.dashed.starts_with(input) {
                return Ok(Progress { used: 0, file: 0..0 });
            }
        }
        let found = find(input, &self.delimiter);
        // What may be the beginning of a boundary waits for the rest of it.
        let body = found.unwrap_or_else(|| input.len() - unfinished(input, &self.delimiter));
        let used = found.map_or(body, |at| at + self.delimiter.len());
        if of == Part::Json {
            self.count(body, FIRST_PART_BYTES_MAX, "the first part is too large")?;
        }
        match found {
            Some(_) => self.part_ended(of),
            None if body > 0 => self.section = Section::Body { of, begins: false },
            None => {}
        }
        Ok(Progress { used, file: if of == Part::File { 0..body } else { 0..0 } })
    }

    fn part_ended(&mut self, of: Part) {
        self.enter(match of {
            Part::Json => Section::Padding { of: Part::File },
            Part::File => Section::End,
        });
    }
}

/// Where `wanted` begins in `input`.
fn find(input: &[u8], wanted: &[u8]) -> Option<usize> {
    let first = wanted.first()?;
    let mut from = 0;
    loop {
        let at = from + input[from..].iter().position(|b| b == first)?;
        if input[at..].starts_with(wanted) {
            return Some(at);
        }
        from = at + 1;
    }
}

/// How many bytes at the end of `input`, in which `wanted` is not, may be its beginning.
fn unfinished(input: &[u8], wanted: &[u8]) -> usize {
    let most = input.len().min(wanted.len().saturating_sub(1));
    (1..=most).rev().find(|n| wanted.starts_with(&input[input.len() - n..])).unwrap_or(0)
}

/// The lines of headers up to the empty one, without their ends, and how many bytes that was. None: they go on.
fn head_lines(input: &[u8]) -> Option<(Vec<&[u8]>, usize)> {
    let (mut lines, mut from) = (Vec::new(), 0);
    loop {
        let end = from + input[from..].iter().position(|b| *b == b'\n')?;
        let line = &input[from..end];
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        from = end + 1;
        if line.is_empty() {
            return Some((lines, from));
        }
        lines.push(line);
    }
}

/// The headers that mean something to us. The first of each counts. A line that begins with space goes on with the one
/// before it (RFC 5322, 2.2.3).
fn part_head(lines: &[&[u8]]) -> Result<PartHead, Malformed> {
    let mut headers: Vec<(String, String)> = Vec::new();
    for line in lines {
        let text = text_of(line);
        match (text.starts_with([' ', '\t']), headers.last_mut()) {
            (true, Some((_, value))) => {
                value.push(' ');
                value.push_str(text.trim());
            }
            (true, None) => {}
            (false, _) => {
                let (name, value) = text.split_once(':').unwrap_or((&text, ""));
                headers.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
            }
        }
    }
    let header = |name: &str| headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
    let encoding = header("content-transfer-encoding").unwrap_or("binary").to_ascii_lowercase();
    if !["binary", "8bit", "7bit"].contains(&encoding.as_str()) {
        return Err(Malformed("a file in another encoding"));
    }
    let location = header("location").filter(|url| !url.is_empty());
    if location.is_some_and(|url| url.len() > LOCATION_BYTES_MAX) {
        return Err(Malformed("a Location that is too long"));
    }
    Ok(PartHead {
        content_type: header("content-type").map(str::to_owned),
        name: header("content-disposition").and_then(name_in_disposition),
        location: location.map(str::to_owned),
    })
}

/// Header bytes as text: UTF-8, else Latin-1.
pub fn text_of(bytes: &[u8]) -> String {
    let text = std::str::from_utf8(bytes).map(str::to_owned);
    text.unwrap_or_else(|_| bytes.iter().copied().map(char::from).collect())
}

/// What stands around a file in an answer of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// Of the answer as a whole.
    pub content_type: String,
    /// All that stands before the file's bytes.
    pub before: Vec<u8>,
    /// All that stands behind them.
    pub after: Vec<u8>,
}

/// Around a file with these headers. The boundary is the caller's: random, so that no file has it in it. A header that
/// cannot carry its value is left out.
pub fn envelope(boundary: &str, headers: &[(&str, &str)]) -> Envelope {
    let mut before =
        format!("--{boundary}\r\nContent-Type: application/json\r\n\r\n{{}}\r\n--{boundary}\r\n");
    for (name, value) in headers {
        if value.bytes().all(|b| (b' '..0x7f).contains(&b)) {
            let _ = write!(before, "{name}: {value}\r\n");
        }
    }
    before.push_str("\r\n");
    Envelope {
        content_type: format!("multipart/mixed; boundary={boundary}"),
        before: before.into_bytes(),
        after: format!("\r\n--{boundary}--\r\n").into_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TYPE: &str = "multipart/mixed; boundary=b";

    /// The file and its headers in an answer that comes in pieces of this size, through a buffer of the size that the
    /// reader asks for.
    fn read(content_type: &str, answer: &[u8], piece: usize) -> Result<(PartHead, Vec<u8>), Malformed> {
        let mut reader = MultipartReader::new(content_type)?;
        let (mut buffer, mut file, mut left) = (Vec::new(), Vec::new(), answer);
        while !reader.is_at_end() {
            let progress = reader.look(&buffer)?;
            file.extend_from_slice(&buffer[progress.file]);
            buffer.drain(..progress.used);
            if progress.used == 0 && !reader.is_at_end() {
                let room = MultipartReader::buffer_bytes() - buffer.len();
                assert!(room > 0, "the reader wants more than it said");
                let next;
                (next, left) = left.split_at(piece.min(room).min(left.len()));
                if next.is_empty() {
                    return Err(Malformed("cut off"));
                }
                buffer.extend_from_slice(next);
            }
        }
        Ok((reader.head().cloned().expect("read to the end"), file))
    }

    #[track_caller]
    fn file_in(answer: &[u8]) -> Vec<u8> {
        let whole = read(TYPE, answer, usize::MAX).expect("an answer").1;
        for piece in [1, 2, 3, 7] {
            assert_eq!(read(TYPE, answer, piece).expect("an answer").1, whole, "in pieces of {piece}");
        }
        whole
    }

    #[track_caller]
    fn refusal(content_type: &str, answer: &[u8]) -> &'static str {
        let whole = read(content_type, answer, usize::MAX).expect_err("no answer");
        assert!(read(content_type, answer, 1).is_err(), "in pieces of 1");
        whole.0
    }

    #[test]
    fn what_we_write_is_read_again_whatever_the_file_has_in_it() {
        let files: [&[u8]; 8] = [
            b"",
            b"x",
            b"\r\n",
            b"\r\n--",
            b"--b",
            b"--bx\r\n--cc--\r\n\r\n--x--\r\n",
            b"\r\r\n\r\n-",
            &[0, 255, b'\r', b'\n', b'-', b'-', 0],
        ];
        for file in files {
            let made = envelope(
                "bb",
                &[("Content-Type", "image/png"), ("Content-Disposition", "inline; filename=a")],
            );
            let answer = [&made.before, file, &made.after].concat();
            for piece in [1, 2, 5, usize::MAX] {
                let (head, found) = read(&made.content_type, &answer, piece).expect("an answer");
                assert_eq!(found, file);
                assert_eq!(head.content_type.as_deref(), Some("image/png"));
                assert_eq!(head.name.as_deref(), Some("a"));
            }
        }
        let made = envelope("b", &[("X", "a\r\nLocation: x"), ("Y", "é")]);
        assert!(!String::from_utf8_lossy(&made.before).contains("Location"));
    }

    #[test]
    fn answers_of_the_field_are_read_with_their_preambles_and_sloppy_ends() {
        // As Synapse begins it, as Go's library does, as those write who know only the one line break.
        assert_eq!(
            file_in(b"\r\n--b\r\nContent-Type: application/json\r\n\r\n{}\r\n--b\r\n\r\nfile\r\n--b--\r\n"),
            b"file"
        );
        assert_eq!(file_in(b"--b\r\n\r\n{}\r\n--b\r\nA: b\r\n\r\nfile\r\n--b--"), b"file");
        assert_eq!(file_in(b"--b\n\n{}\n--b\nA: b\n\nfile\r\n--b\n"), b"file\r");
        assert_eq!(
            file_in(
                b"hello\r\nthis --b is nothing\r\n --b\r\n--b  \r\n\r\n{}\r\n--b\t\r\n\r\nfile\n--b\r\n--b"
            ),
            b"file\n--b"
        );
        assert_eq!(file_in(b"--b\r\n\r\n{}\r\n--b\r\n\r\nfile\r\n--b\r\n\r\nanother\r\n--b--"), b"file");
        assert_eq!(file_in(b"--b\r\n\r\n--b\r\nA: b\r\n\r\n--b--"), b"", "parts without a body");
        assert_eq!(file_in(b"--b\r\n\r\n{}\r\n--b\r\n\r\n\r\n--b--"), b"");
        let quoted = read(
            "multipart/mixed ; charset=x; BOUNDARY=\"a b:c\"",
            b"--a b:c\r\n\r\n{}\r\n--a b:c\r\n\r\nf\r\n--a b:c--",
            1,
        );
        assert_eq!(quoted.expect("an answer").1, b"f");
    }

    #[test]
    fn the_second_parts_headers_are_read_in_any_case_and_folded() {
        let answer = b"--b\r\ncontent-type: text/html\r\n\r\n{}\r\n--b\r\nCONTENT-TYPE:image/png\r\nContent-Type: text/html\r\n\
            content-disposition: inline;\r\n filename=\"gr\xfc\xdfe\"\r\nnonsense\r\n: \r\nLocation: https://cdn.example/x\r\n\r\n\r\n--b--";
        let (head, file) = read(TYPE, answer, 1).expect("an answer");
        assert_eq!(head.content_type.as_deref(), Some("image/png"));
        assert_eq!(head.name.as_deref(), Some("grüße"));
        assert_eq!((head.location.as_deref(), file.len()), (Some("https://cdn.example/x"), 0));
        let odd = b"--b\r\n\r\n{}\r\n--b\r\nContent-Type: not a type\r\nContent-Disposition: \r\nLocation:\r\n\r\nf\r\n--b--";
        let head = read(TYPE, odd, 3).expect("an answer").0;
        assert_eq!(head, PartHead { content_type: Some("not a type".into()), ..PartHead::default() });
    }

    #[test]
    fn what_is_no_such_answer_is_refused_before_it_costs_anything() {
        for (content_type, why) in [
            ("text/html", "not multipart/mixed"),
            ("application/json", "not multipart/mixed"),
            ("", "not multipart/mixed"),
            ("multipart/mixed", "no usable boundary"),
            ("multipart/mixed; boundary=\"\"", "no usable boundary"),
            ("multipart/mixed; boundary=\"a\r\nb\"", "no usable boundary"),
        ] {
            assert_eq!(refusal(content_type, b"--b\r\n"), why, "{content_type}");
        }
        let long = format!("multipart/mixed; boundary={}", "b".repeat(BOUNDARY_BYTES_MAX + 1));
        assert_eq!(refusal(&long, b""), "no usable boundary");
        let ends: [(&[u8], &str); 8] = [
            (b"", "cut off"),
            (b"--b", "cut off"),
            (b"--b--\r\n", "fewer than two parts"),
            (b"--b\r\n\r\n{}\r\n--b--\r\n", "fewer than two parts"),
            (b"--b\r\n\r\n{}\r\n--b\r\n\r\nfile", "cut off"),
            (b"--b\r\n\r\n{}\r\n--b\r\n\r\nfile\r\n--", "cut off"),
            (b"--b\r\n\r\n{}\r\n--bb\r\n\r\nfile\r\n--b--", "something behind a boundary"),
            (
                b"--b\r\n\r\n{}\r\n--b\r\nContent-Transfer-Encoding: base64\r\n\r\nZg==\r\n--b--",
                "a file in another encoding",
            ),
        ];
        for (answer, why) in ends {
            assert_eq!(refusal(TYPE, answer), why, "{}", String::from_utf8_lossy(answer));
        }
    }

    #[test]
    fn everything_but_the_file_has_a_bound() {
        let much = |n: usize, of: &str| of.repeat(n / of.len() + 1).into_bytes();
        for (before, piece, why) in [
            ("", "no boundary here\r\n", "too much before the first part"),
            ("", "x", "too much before the first part"),
            ("", "--", "too much before the first part"),
            ("--b\r\n", "A: b\r\n", "the headers of a part are too large"),
            ("--b\r\n", "x", "the headers of a part are too large"),
            ("--b\r\n\r\n", "{", "the first part is too large"),
            ("--b\r\n\r\n", "\r\n--", "the first part is too large"),
            ("--b\r\n\r\n{}\r\n--b\r\n", "A: b\r\n", "the headers of a part are too large"),
            ("--b", " ", "something behind a boundary"),
            ("--b\r\n\r\n{}\r\n--b\r\nLocation: https://", "a", "the headers of a part are too large"),
        ] {
            let answer = [before.as_bytes(), &much(1 << 20, piece)].concat();
            for piece in [100, 4096, usize::MAX] {
                assert_eq!(read(TYPE, &answer, piece).expect_err("too much"), Malformed(why), "{before:?}");
            }
        }
        let long =
            format!("--b\r\n\r\n{{}}\r\n--b\r\nLocation: https://{}\r\n\r\n", "a".repeat(LOCATION_BYTES_MAX));
        assert_eq!(read(TYPE, long.as_bytes(), 100).expect_err("too much").0, "a Location that is too long");
    }

    #[test]
    fn whatever_comes_is_read_alike_in_pieces_of_any_size() {
        let words: [&[u8]; 14] = [
            b"--b",
            b"\r\n",
            b"\n",
            b"\r",
            b"--",
            b"-",
            b"{}",
            b"Location: x",
            b"Content-Type: a/b",
            b"b",
            b" ",
            b"x",
            b"\r\n--b\r\n\r\n",
            b"\r\n--b--",
        ];
        let mut state = 1u64;
        let mut next = move |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(state >> 33).expect("31 bits") % below
        };
        let mut read_well = 0;
        for _ in 0..20_000 {
            let mut answer = if next(2) == 0 { b"--b\r\n\r\n{}".to_vec() } else { Vec::new() };
            (0..next(16)).for_each(|_| answer.extend_from_slice(words[next(words.len())]));
            let whole = read(TYPE, &answer, usize::MAX);
            read_well += usize::from(whole.is_ok());
            for piece in [1, 1 + next(9)] {
                let pieces = read(TYPE, &answer, piece);
                assert_eq!(pieces, whole, "{:?} in pieces of {piece}", String::from_utf8_lossy(&answer));
            }
        }
        assert!(read_well > 500, "{read_well}");
    }

    #[test]
    fn a_file_passes_whole_in_pieces_of_any_size() {
        let file: Vec<u8> =
            (0..100_000u32).flat_map(|n| if n % 7 == 0 { *b"\r\n--" } else { n.to_le_bytes() }).collect();
        let made = envelope("0123456789abcdef", &[]);
        let answer = [&made.before, &file[..], &made.after].concat();
        for piece in [1, 13, 1000, 16 << 10, 40 << 10] {
            assert!(
                read(&made.content_type, &answer, piece).expect("an answer").1 == file,
                "in pieces of {piece}"
            );
        }
    }
}
