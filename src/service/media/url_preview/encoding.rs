//! From a page's bytes to text. Nearly all of the web is UTF-8; of the rest the most part is what its authors called Latin-1, and what is
//! Cyrillic. Others (Shift_JIS, GBK, Big5, EUC-JP, EUC-KR) are not read: of such pages only what is ASCII is shown.

/// How a page is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    Utf8,
    Utf16 {
        big_endian: bool,
    },
    /// Also what is called ISO-8859-1 or ASCII: browsers read all three like this (Encoding Standard, 4.2).
    Windows1252,
    /// A byte for each letter, by a table of what is not ASCII.
    OfBytes(&'static [char; 128]),
    /// Something else: its letters are not known, but its ASCII is.
    Unknown,
}

/// Within so much of its beginning a page says how it is written (HTML Standard, 13.2.3.2, has 1024 bytes; pages do not keep to it).
const DECLARED_WITHIN_BYTES: usize = 4 << 10;
/// What 0x80 to 0x9f are in windows-1252 (Encoding Standard, index-windows-1252).
const WINDOWS_1252: [char; 32] = [
    '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž', '\u{8f}', '\u{90}',
    '‘', '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}', 'ž', 'Ÿ',
];

/// Two that are used for Russian and its neighbours (Encoding Standard, index-windows-1251 and index-koi8-r).
const WINDOWS_1251: [char; 128] = [
    'Ђ', 'Ѓ', '‚', 'ѓ', '„', '…', '†', '‡', '€', '‰', 'Љ', '‹', 'Њ', 'Ќ', 'Ћ', 'Џ', 'ђ', '‘', '’', '“', '”',
    '•', '–', '—', '\u{98}', '™', 'љ', '›', 'њ', 'ќ', 'ћ', 'џ', '\u{a0}', 'Ў', 'ў', 'Ј', '¤', 'Ґ', '¦', '§',
    'Ё', '©', 'Є', '«', '¬', '\u{ad}', '®', 'Ї', '°', '±', 'І', 'і', 'ґ', 'µ', '¶', '·', 'ё', '№', 'є', '»',
    'ј', 'Ѕ', 'ѕ', 'ї', 'А', 'Б', 'В', 'Г', 'Д', 'Е', 'Ж', 'З', 'И', 'Й', 'К', 'Л', 'М', 'Н', 'О', 'П', 'Р',
    'С', 'Т', 'У', 'Ф', 'Х', 'Ц', 'Ч', 'Ш', 'Щ', 'Ъ', 'Ы', 'Ь', 'Э', 'Ю', 'Я', 'а', 'б', 'в', 'г', 'д', 'е',
    'ж', 'з', 'и', 'й', 'к', 'л', 'м', 'н', 'о', 'п', 'р', 'с', 'т', 'у', 'ф', 'х', 'ц', 'ч', 'ш', 'щ', 'ъ',
    'ы', 'ь', 'э', 'ю', 'я',
];
const KOI8_R: [char; 128] = [
    '─', '│', '┌', '┐', '└', '┘', '├', '┤', '┬', '┴', '┼', '▀', '▄', '█', '▌', '▐', '░', '▒', '▓', '⌠', '■',
    '∙', '√', '≈', '≤', '≥', '\u{a0}', '⌡', '°', '²', '·', '÷', '═', '║', '╒', 'ё', '╓', '╔', '╕', '╖', '╗',
    '╘', '╙', '╚', '╛', '╜', '╝', '╞', '╟', '╠', '╡', 'Ё', '╢', '╣', '╤', '╥', '╦', '╧', '╨', '╩', '╪', '╫',
    '╬', '©', 'ю', 'а', 'б', 'ц', 'д', 'е', 'ф', 'г', 'х', 'и', 'й', 'к', 'л', 'м', 'н', 'о', 'п', 'я', 'р',
    'с', 'т', 'у', 'ж', 'в', 'ь', 'ы', 'з', 'ш', 'э', 'щ', 'ч', 'ъ', 'Ю', 'А', 'Б', 'Ц', 'Д', 'Е', 'Ф', 'Г',
    'Х', 'И', 'Й', 'К', 'Л', 'М', 'Н', 'О', 'П', 'Я', 'Р', 'С', 'Т', 'У', 'Ж', 'В', 'Ь', 'Ы', 'З', 'Ш', 'Э',
    'Щ', 'Ч', 'Ъ',
];

/// The text of a page. A letter that cannot be told is U+FFFD. By its first bytes, by what the `Content-Type` said, by
/// what the page says of itself; else it is UTF-8 if it can be, and windows-1252 if not.
pub fn decode(bytes: &[u8], charset: Option<&str>) -> String {
    if let Some(rest) = bytes.strip_prefix(b"\xef\xbb\xbf") {
        return text_of(rest, Encoding::Utf8);
    }
    match bytes {
        [0xfe, 0xff, rest @ ..] => return text_of(rest, Encoding::Utf16 { big_endian: true }),
        [0xff, 0xfe, rest @ ..] => return text_of(rest, Encoding::Utf16 { big_endian: false }),
        _ => {}
    }
    let declared = charset.map(str::to_owned).or_else(|| declared(bytes));
    let encoding = declared.map(|name| by_name(&name)).unwrap_or_else(|| match std::str::from_utf8(bytes) {
        Ok(_) => Encoding::Utf8,
        // A letter that was cut off at the end says nothing.
        Err(e) if e.error_len().is_none() => Encoding::Utf8,
        Err(_) => Encoding::Windows1252,
    });
    text_of(bytes, encoding)
}

fn by_name(name: &str) -> Encoding {
    match name.trim().trim_matches(['"', '\'']).to_ascii_lowercase().as_str() {
        "utf-8" | "utf8" | "unicode-1-1-utf-8" | "x-unicode20utf8" => Encoding::Utf8,
        "windows-1252" | "cp1252" | "x-cp1252" | "iso-8859-1" | "iso8859-1" | "iso_8859-1" | "iso88591"
        | "latin1" | "l1" | "ascii" | "us-ascii" | "ansi_x3.4-1968" => Encoding::Windows1252,
        "windows-1251" | "cp1251" | "x-cp1251" => Encoding::OfBytes(&WINDOWS_1251),
        "koi8-r" | "koi8_r" | "koi8" | "koi" | "cskoi8r" => Encoding::OfBytes(&KOI8_R),
        "utf-16" | "utf-16le" => Encoding::Utf16 { big_endian: false },
        "utf-16be" => Encoding::Utf16 { big_endian: true },
        _ => Encoding::Unknown,
    }
}

fn text_of(bytes: &[u8], encoding: Encoding) -> String {
    let single =
        |byte: &u8, high: fn(u8) -> char| if byte.is_ascii() { char::from(*byte) } else { high(*byte) };
    match encoding {
        Encoding::Utf8 => String::from_utf8_lossy(bytes).into_owned(),
        Encoding::Utf16 { big_endian } => {
            let unit = |pair: &[u8]| {
                let pair = [pair[0], pair[1]];
                if big_endian { u16::from_be_bytes(pair) } else { u16::from_le_bytes(pair) }
            };
            char::decode_utf16(bytes.chunks_exact(2).map(unit)).map(|c| c.unwrap_or('\u{fffd}')).collect()
        }
        Encoding::Windows1252 => {
            let high =
                |byte: u8| WINDOWS_1252.get(usize::from(byte) - 0x80).copied().unwrap_or(char::from(byte));
            bytes.iter().map(|byte| single(byte, high)).collect()
        }
        Encoding::OfBytes(table) => {
            let high = |byte: &u8| table.get(usize::from(*byte).wrapping_sub(0x80)).copied();
            bytes.iter().map(|byte| high(byte).unwrap_or(char::from(*byte))).collect()
        }
        Encoding::Unknown => bytes.iter().map(|byte| single(byte, |_| '\u{fffd}')).collect(),
    }
}

/// The `charset` of a `meta` element near the beginning, which is ASCII as far as that.
fn declared(bytes: &[u8]) -> Option<String> {
    let head = &bytes[..bytes.len().min(DECLARED_WITHIN_BYTES)];
    let head = text_of(head, Encoding::Unknown);
    super::elements::elements(&head).metas.into_iter().find_map(|meta| {
        let content_type = || {
            meta.get("http-equiv")
                .filter(|name| name.eq_ignore_ascii_case("content-type"))
                .and(meta.get("content"))
        };
        meta.get("charset").cloned().or_else(|| charset_of(content_type()?))
    })
}

/// The `charset` parameter of a media type.
pub fn charset_of(content_type: &str) -> Option<String> {
    let parameters = content_type.split(';').skip(1).filter_map(|part| part.split_once('='));
    let charset = parameters.into_iter().find(|(name, _)| name.trim().eq_ignore_ascii_case("charset"));
    charset
        .map(|(_, value)| value.trim().trim_matches(['"', '\'']).to_owned())
        .filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cyrillic_is_read_in_both_of_its_old_encodings() {
        let windows =
            b"<meta charset=windows-1251><title>\xcf\xf0\xe8\xe2\xe5\xf2, \xa8\xe6\xb8\xa0\x80\xff</title>";
        assert!(decode(windows, None).ends_with("<title>Привет, Ёжё\u{a0}Ђя</title>"));
        let koi = b"\xf0\xd2\xc9\xd7\xc5\xd4, \xb3\xd6\xa3\x80\xff";
        assert_eq!(decode(koi, Some("KOI8-R")), "Привет, Ёжё─Ъ");
        assert_eq!(decode(b"plain\x7f", Some("koi8-r")), "plain\x7f");
    }

    #[test]
    fn a_page_is_read_as_it_says_it_is_written() {
        let latin = b"<title>Gr\xfc\xdfe \x80 \x93x\x94</title>";
        let wanted = "<title>Grüße € “x”</title>";
        assert_eq!(decode(latin, Some("ISO-8859-1")), wanted);
        assert_eq!(decode(latin, Some("\"windows-1252\"")), wanted);
        assert_eq!(decode(latin, None), wanted, "it cannot be UTF-8");
        assert_eq!(decode(wanted.as_bytes(), None), wanted);
        assert_eq!(decode(wanted.as_bytes(), Some("utf-8")), wanted);
        assert_eq!(
            decode(&[b"\xef\xbb\xbf", wanted.as_bytes()].concat(), Some("latin1")),
            wanted,
            "the mark counts"
        );
        let cut = &"<title>Grü".as_bytes()[..10];
        assert_eq!(decode(cut, None), "<title>Gr\u{fffd}");
        for declaration in
            ["<meta charset='latin1'>", "<META http-equiv=content-TYPE content='text/html; charset=latin1'>"]
        {
            let page = [declaration.as_bytes(), "ü".as_bytes()].concat();
            assert_eq!(decode(&page, None), format!("{declaration}Ã¼"));
        }
        let wide: Vec<u8> = "x€😀".encode_utf16().flat_map(u16::to_be_bytes).collect();
        assert_eq!(decode(&[b"\xfe\xff".as_slice(), &wide].concat(), None), "x€😀");
        assert_eq!(decode(b"a\x83\x5c", Some("shift_jis")), "a\u{fffd}\\");
    }

    #[test]
    fn a_media_type_says_its_charset() {
        assert_eq!(charset_of("text/html; Charset=\"UTF-8\"; x=y").as_deref(), Some("UTF-8"));
        assert_eq!(charset_of("text/html;charset=").as_deref(), None);
        assert_eq!(charset_of("text/html").as_deref(), None);
    }
}
