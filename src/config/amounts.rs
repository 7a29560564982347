//! Sizes and times, as people write them. Errors end a sentence that begins with what was given.

use crate::clock::Millis;

/// A number of bytes: `100M`, `64 KiB`, `5000`; the letters stand for powers of 1024.
pub fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = text[digits.len()..].trim().to_ascii_lowercase();
    let shift = match unit.strip_suffix("ib").or(unit.strip_suffix('b')).unwrap_or(&unit) {
        "" => Some(0),
        "k" => Some(10),
        "m" => Some(20),
        "g" => Some(30),
        "t" => Some(40),
        _ => None,
    };
    let is_number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    let number = digits.parse::<u64>().ok().filter(|_| is_number);
    let size = number.zip(shift).and_then(|(number, shift)| number.checked_mul(1 << shift));
    size.filter(|size| i64::try_from(*size).is_ok())
        .ok_or_else(|| "should be a size, such as 100M or 10G".into())
}

/// A span of time as people write it, in milliseconds.
pub(super) fn time_ms(text: &str) -> Result<Millis, String> {
    const MINUTE_MS: Millis = 60_000;
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match text[digits.len()..].trim() {
        "m" => Some(MINUTE_MS),
        "h" => Some(60 * MINUTE_MS),
        "d" => Some(24 * 60 * MINUTE_MS),
        "w" => Some(7 * 24 * 60 * MINUTE_MS),
        _ => None,
    };
    let number = digits.parse::<u32>().ok().filter(|number| *number > 0 && !digits.starts_with('+'));
    number
        .zip(unit)
        .map(|(number, unit)| Millis::from(number) * unit)
        .ok_or_else(|| "should be a time, such as 30m, 6h, 1d or 1w".into())
}
