//! From a page's bytes to text. Nearly all of the web is UTF-8; of the rest the most part has a byte for each letter, by the tables
//! below. Others (Shift_JIS, GBK, Big5, EUC-JP, EUC-KR) are not read: of such pages only what is ASCII is shown.

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

/// Those of Poland and its neighbours, of Turkey, of Greece, and the later Latin-1 (Encoding Standard, index-iso-8859-2 and so on).
const WINDOWS_1250: [char; 128] = [
    '€', '\u{81}', '‚', '\u{83}', '„', '…', '†', '‡', '\u{88}', '‰', 'Š', '‹', 'Ś', 'Ť', 'Ž', 'Ź', '\u{90}',
    '‘', '’', '“', '”', '•', '–', '—', '\u{98}', '™', 'š', '›', 'ś', 'ť', 'ž', 'ź', '\u{a0}', 'ˇ', '˘', 'Ł',
    '¤', 'Ą', '¦', '§', '¨', '©', 'Ş', '«', '¬', '\u{ad}', '®', 'Ż', '°', '±', '˛', 'ł', '´', 'µ', '¶', '·',
    '¸', 'ą', 'ş', '»', 'Ľ', '˝', 'ľ', 'ż', 'Ŕ', 'Á', 'Â', 'Ă', 'Ä', 'Ĺ', 'Ć', 'Ç', 'Č', 'É', 'Ę', 'Ë', 'Ě',
    'Í', 'Î', 'Ď', 'Đ', 'Ń', 'Ň', 'Ó', 'Ô', 'Ő', 'Ö', '×', 'Ř', 'Ů', 'Ú', 'Ű', 'Ü', 'Ý', 'Ţ', 'ß', 'ŕ', 'á',
    'â', 'ă', 'ä', 'ĺ', 'ć', 'ç', 'č', 'é', 'ę', 'ë', 'ě', 'í', 'î', 'ď', 'đ', 'ń', 'ň', 'ó', 'ô', 'ő', 'ö',
    '÷', 'ř', 'ů', 'ú', 'ű', 'ü', 'ý', 'ţ', '˙',
];
const ISO_8859_2: [char; 128] = [
    '\u{80}', '\u{81}', '\u{82}', '\u{83}', '\u{84}', '\u{85}', '\u{86}', '\u{87}', '\u{88}', '\u{89}',
    '\u{8a}', '\u{8b}', '\u{8c}', '\u{8d}', '\u{8e}', '\u{8f}', '\u{90}', '\u{91}', '\u{92}', '\u{93}',
    '\u{94}', '\u{95}', '\u{96}', '\u{97}', '\u{98}', '\u{99}', '\u{9a}', '\u{9b}', '\u{9c}', '\u{9d}',
    '\u{9e}', '\u{9f}', '\u{a0}', 'Ą', '˘', 'Ł', '¤', 'Ľ', 'Ś', '§', '¨', 'Š', 'Ş', 'Ť', 'Ź', '\u{ad}', 'Ž',
    'Ż', '°', 'ą', '˛', 'ł', '´', 'ľ', 'ś', 'ˇ', '¸', 'š', 'ş', 'ť', 'ź', '˝', 'ž', 'ż', 'Ŕ', 'Á', 'Â', 'Ă',
    'Ä', 'Ĺ', 'Ć', 'Ç', 'Č', 'É', 'Ę', 'Ë', 'Ě', 'Í', 'Î', 'Ď', 'Đ', 'Ń', 'Ň', 'Ó', 'Ô', 'Ő', 'Ö', '×', 'Ř',
    'Ů', 'Ú', 'Ű', 'Ü', 'Ý', 'Ţ', 'ß', 'ŕ', 'á', 'â', 'ă', 'ä', 'ĺ', 'ć', 'ç', 'č', 'é', 'ę', 'ë', 'ě', 'í',
    'î', 'ď', 'đ', 'ń', 'ň', 'ó', 'ô', 'ő', 'ö', '÷', 'ř', 'ů', 'ú', 'ű', 'ü', 'ý', 'ţ', '˙',
];
const WINDOWS_1254: [char; 128] = [
    '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', '\u{8e}', '\u{8f}',
    '\u{90}', '‘', '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}', '\u{9e}', 'Ÿ', '\u{a0}',
    '¡', '¢', '£', '¤', '¥', '¦', '§', '¨', '©', 'ª', '«', '¬', '\u{ad}', '®', '¯', '°', '±', '²', '³', '´',
    'µ', '¶', '·', '¸', '¹', 'º', '»', '¼', '½', '¾', '¿', 'À', 'Á', 'Â', 'Ã', 'Ä', 'Å', 'Æ', 'Ç', 'È', 'É',
    'Ê', 'Ë', 'Ì', 'Í', 'Î', 'Ï', 'Ğ', 'Ñ', 'Ò', 'Ó', 'Ô', 'Õ', 'Ö', '×', 'Ø', 'Ù', 'Ú', 'Û', 'Ü', 'İ', 'Ş',
    'ß', 'à', 'á', 'â', 'ã', 'ä', 'å', 'æ', 'ç', 'è', 'é', 'ê', 'ë', 'ì', 'í', 'î', 'ï', 'ğ', 'ñ', 'ò', 'ó',
    'ô', 'õ', 'ö', '÷', 'ø', 'ù', 'ú', 'û', 'ü', 'ı', 'ş', 'ÿ',
];
const ISO_8859_7: [char; 128] = [
    '\u{80}', '\u{81}', '\u{82}', '\u{83}', '\u{84}', '\u{85}', '\u{86}', '\u{87}', '\u{88}', '\u{89}',
    '\u{8a}', '\u{8b}', '\u{8c}', '\u{8d}', '\u{8e}', '\u{8f}', '\u{90}', '\u{91}', '\u{92}', '\u{93}',
    '\u{94}', '\u{95}', '\u{96}', '\u{97}', '\u{98}', '\u{99}', '\u{9a}', '\u{9b}', '\u{9c}', '\u{9d}',
    '\u{9e}', '\u{9f}', '\u{a0}', '‘', '’', '£', '€', '₯', '¦', '§', '¨', '©', 'ͺ', '«', '¬', '\u{ad}', '®',
    '―', '°', '±', '²', '³', '΄', '΅', 'Ά', '·', 'Έ', 'Ή', 'Ί', '»', 'Ό', '½', 'Ύ', 'Ώ', 'ΐ', 'Α', 'Β', 'Γ',
    'Δ', 'Ε', 'Ζ', 'Η', 'Θ', 'Ι', 'Κ', 'Λ', 'Μ', 'Ν', 'Ξ', 'Ο', 'Π', 'Ρ', 'Ò', 'Σ', 'Τ', 'Υ', 'Φ', 'Χ', 'Ψ',
    'Ω', 'Ϊ', 'Ϋ', 'ά', 'έ', 'ή', 'ί', 'ΰ', 'α', 'β', 'γ', 'δ', 'ε', 'ζ', 'η', 'θ', 'ι', 'κ', 'λ', 'μ', 'ν',
    'ξ', 'ο', 'π', 'ρ', 'ς', 'σ', 'τ', 'υ', 'φ', 'χ', 'ψ', 'ω', 'ϊ', 'ϋ', 'ό', 'ύ', 'ώ', 'ÿ',
];
const WINDOWS_1253: [char; 128] = [
    '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', '\u{88}', '‰', '\u{8a}', '‹', '\u{8c}', '\u{8d}', '\u{8e}',
    '\u{8f}', '\u{90}', '‘', '’', '“', '”', '•', '–', '—', '\u{98}', '™', '\u{9a}', '›', '\u{9c}', '\u{9d}',
    '\u{9e}', '\u{9f}', '\u{a0}', '΅', 'Ά', '£', '¤', '¥', '¦', '§', '¨', '©', 'ª', '«', '¬', '\u{ad}', '®',
    '―', '°', '±', '²', '³', '΄', 'µ', '¶', '·', 'Έ', 'Ή', 'Ί', '»', 'Ό', '½', 'Ύ', 'Ώ', 'ΐ', 'Α', 'Β', 'Γ',
    'Δ', 'Ε', 'Ζ', 'Η', 'Θ', 'Ι', 'Κ', 'Λ', 'Μ', 'Ν', 'Ξ', 'Ο', 'Π', 'Ρ', 'Ò', 'Σ', 'Τ', 'Υ', 'Φ', 'Χ', 'Ψ',
    'Ω', 'Ϊ', 'Ϋ', 'ά', 'έ', 'ή', 'ί', 'ΰ', 'α', 'β', 'γ', 'δ', 'ε', 'ζ', 'η', 'θ', 'ι', 'κ', 'λ', 'μ', 'ν',
    'ξ', 'ο', 'π', 'ρ', 'ς', 'σ', 'τ', 'υ', 'φ', 'χ', 'ψ', 'ω', 'ϊ', 'ϋ', 'ό', 'ύ', 'ώ', 'ÿ',
];
const ISO_8859_15: [char; 128] = [
    '\u{80}', '\u{81}', '\u{82}', '\u{83}', '\u{84}', '\u{85}', '\u{86}', '\u{87}', '\u{88}', '\u{89}',
    '\u{8a}', '\u{8b}', '\u{8c}', '\u{8d}', '\u{8e}', '\u{8f}', '\u{90}', '\u{91}', '\u{92}', '\u{93}',
    '\u{94}', '\u{95}', '\u{96}', '\u{97}', '\u{98}', '\u{99}', '\u{9a}', '\u{9b}', '\u{9c}', '\u{9d}',
    '\u{9e}', '\u{9f}', '\u{a0}', '¡', '¢', '£', '€', '¥', 'Š', '§', 'š', '©', 'ª', '«', '¬', '\u{ad}', '®',
    '¯', '°', '±', '²', '³', 'Ž', 'µ', '¶', '·', 'ž', '¹', 'º', '»', 'Œ', 'œ', 'Ÿ', '¿', 'À', 'Á', 'Â', 'Ã',
    'Ä', 'Å', 'Æ', 'Ç', 'È', 'É', 'Ê', 'Ë', 'Ì', 'Í', 'Î', 'Ï', 'Ð', 'Ñ', 'Ò', 'Ó', 'Ô', 'Õ', 'Ö', '×', 'Ø',
    'Ù', 'Ú', 'Û', 'Ü', 'Ý', 'Þ', 'ß', 'à', 'á', 'â', 'ã', 'ä', 'å', 'æ', 'ç', 'è', 'é', 'ê', 'ë', 'ì', 'í',
    'î', 'ï', 'ð', 'ñ', 'ò', 'ó', 'ô', 'õ', 'ö', '÷', 'ø', 'ù', 'ú', 'û', 'ü', 'ý', 'þ', 'ÿ',
];

/// The text of a page. A letter that cannot be told is U+FFFD. By its first bytes, by what the `Content-Type` said, by
/// what the page says of itself, where a name that is none says nothing; else it is UTF-8 if it can be, and windows-1252 if not,
/// or something that is not read here if the page called it so.
pub fn decode(bytes: &[u8], charset: Option<&str>) -> String {
    if let Some(rest) = bytes.strip_prefix(b"\xef\xbb\xbf") {
        return text_of(rest, Encoding::Utf8);
    }
    match bytes {
        [0xfe, 0xff, rest @ ..] => return text_of(rest, Encoding::Utf16 { big_endian: true }),
        [0xff, 0xfe, rest @ ..] => return text_of(rest, Encoding::Utf16 { big_endian: false }),
        _ => {}
    }
    let by_page = [declared(bytes), declared_as_xml(bytes)];
    let encoding = charset.and_then(by_name).or_else(|| {
        let named = by_page.iter().flatten().find_map(|name| by_name(name))?;
        // Whoever could read that it is UTF-16 has read something else (HTML Standard, 13.2.3.2).
        Some(if matches!(named, Encoding::Utf16 { .. }) { Encoding::Utf8 } else { named })
    });
    let encoding = encoding.unwrap_or_else(|| match std::str::from_utf8(bytes) {
        Ok(_) => Encoding::Utf8,
        // A letter that was cut off at the end says nothing.
        Err(e) if e.error_len().is_none() => Encoding::Utf8,
        Err(_) if charset.is_some() || by_page.iter().any(Option::is_some) => Encoding::Unknown,
        Err(_) => Encoding::Windows1252,
    });
    text_of(bytes, encoding)
}

/// The encoding of this name (Encoding Standard, 4.2), if it is one that is read here. Some that are no names there are given by
/// many pages.
fn by_name(name: &str) -> Option<Encoding> {
    Some(match name.trim().trim_matches(['"', '\'']).to_ascii_lowercase().as_str() {
        "utf-8" | "utf8" | "utf_8" | "unicode-1-1-utf-8" | "x-unicode20utf8" => Encoding::Utf8,
        "windows-1252" | "cp1252" | "x-cp1252" | "iso-8859-1" | "iso8859-1" | "iso_8859-1" | "iso88591"
        | "iso_8859-1:1987" | "latin1" | "latin-1" | "l1" | "ascii" | "us-ascii" | "ansi_x3.4-1968" => {
            Encoding::Windows1252
        }
        "windows-1250" | "cp1250" | "x-cp1250" => Encoding::OfBytes(&WINDOWS_1250),
        "iso-8859-2" | "iso8859-2" | "iso_8859-2" | "latin2" | "l2" => Encoding::OfBytes(&ISO_8859_2),
        "windows-1251" | "cp1251" | "x-cp1251" => Encoding::OfBytes(&WINDOWS_1251),
        "koi8-r" | "koi8_r" | "koi8" | "koi" | "cskoi8r" => Encoding::OfBytes(&KOI8_R),
        "windows-1253" | "cp1253" | "x-cp1253" => Encoding::OfBytes(&WINDOWS_1253),
        "iso-8859-7" | "iso8859-7" | "iso_8859-7" | "greek" | "greek8" => Encoding::OfBytes(&ISO_8859_7),
        "windows-1254" | "cp1254" | "x-cp1254" | "iso-8859-9" | "iso8859-9" | "iso_8859-9" | "latin5"
        | "l5" => Encoding::OfBytes(&WINDOWS_1254),
        "iso-8859-15" | "iso8859-15" | "iso_8859-15" | "latin9" | "l9" => Encoding::OfBytes(&ISO_8859_15),
        "utf-16" | "utf-16le" => Encoding::Utf16 { big_endian: false },
        "utf-16be" => Encoding::Utf16 { big_endian: true },
        _ => return None,
    })
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

/// The `encoding` of the line that a page begins with which is XML.
fn declared_as_xml(bytes: &[u8]) -> Option<String> {
    let head = text_of(&bytes[..bytes.len().min(256)], Encoding::Unknown);
    let line = head.strip_prefix("<?xml")?.split_once("?>")?.0;
    let value = line.split_once("encoding")?.1.trim_start().strip_prefix('=')?.trim_start();
    let quote = value.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    Some(value[1..].split_once(quote)?.0.to_owned())
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
        let german = "<title>Grüße</title>";
        for name in ["utf_8", "none", "UTF-8,text/html", "gb2312"] {
            assert_eq!(decode(german.as_bytes(), Some(name)), german, "{name}");
        }
        let page = format!("<meta charset=utf-16>{german}");
        assert_eq!(decode(page.as_bytes(), Some("odd")), page, "what says nothing is passed over");
        let xml = b"<?xml version='1.0' encoding='windows-1251'?><title>\xc4\xe0</title>";
        assert!(decode(xml, None).ends_with("<title>Да</title>"));
        for (name, bytes, text) in [
            ("iso-8859-2", b"\xb6\xe6\xb1", "śćą"),
            ("windows-1250", b"\x9c\xe6\xb9", "śćą"),
            ("iso-8859-9", b"\xfd\xfe\xf0", "ışğ"),
            ("iso-8859-7", b"\xe1\xe2\xe3", "αβγ"),
            ("windows-1253", b"\xa2\xe2\xe3", "Άβγ"),
            ("iso-8859-15", b"\xa4\xbd\xe9", "€œé"),
            ("latin-1", b"\xe4\xf6\xfc", "äöü"),
        ] {
            assert_eq!(decode(bytes, Some(name)), text, "{name}");
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
