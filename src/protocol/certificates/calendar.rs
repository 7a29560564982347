//! Dates of the civil calendar, as headers, certificates and logs write them, and milliseconds since 1970.

use crate::protocol::Millis;

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
const WEEKDAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];

/// A date and a time of day in UTC, in milliseconds since 1970. None: there is no such date.
pub fn millis([year, month, day]: [i64; 3], [hour, minute, second]: [i64; 3]) -> Option<Millis> {
    let is_date = (1..=9999).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    let is_time = (0..=23).contains(&hour) && (0..=59).contains(&minute) && (0..=60).contains(&second);
    if !is_date || !is_time {
        return None;
    }
    // Days since 1970 of the civil calendar, counting years from March so that the leap day comes last.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = y * 365 + y / 4 - y / 100 + y / 400 + (m * 153 + 2) / 5 + day - 1 - 719_468;
    Some((((days * 24 + hour) * 60 + minute) * 60 + second) * 1000)
}

/// A day of the civil calendar by the days since 1970: year, month from 1 on, day of the month.
fn date_of(day: i64) -> (i64, i64, i64) {
    // Days are counted from March of the year 0, so that a leap day is the last of its year; 400 years have 146 097.
    let day = day + 719_468;
    let (era, day) = (day.div_euclid(146_097), day.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    (year + era * 400 + i64::from(month >= 10), (month + 2) % 12 + 1, day)
}

/// A time as people read it: `2026-01-31 23:59:59Z`.
pub fn utc(time: Millis) -> String {
    let seconds = time.div_euclid(1000);
    let (day, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = date_of(day);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{:02}Z", second % 60)
}

/// A time as an HTTP date, read again by [`http_date`].
pub fn as_http_date(time: Millis) -> String {
    let seconds = time.div_euclid(1000);
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = date_of(days);
    let name =
        |names: &[&'static str], at: i64| usize::try_from(at).ok().and_then(|at| names.get(at).copied());
    // The first day was a Thursday.
    let weekday = name(&WEEKDAYS, (days + 3).rem_euclid(7)).unwrap_or_default();
    let month = name(&MONTHS, month - 1).unwrap_or_default();
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!("{weekday}, {day:02} {month} {year:04} {hour:02}:{minute:02}:{:02} GMT", second % 60)
}

/// An HTTP date of the one form that is still made (`Sun, 06 Nov 1994 08:49:37 GMT`; RFC 9110, 5.6.7).
pub fn http_date(text: &str) -> Option<Millis> {
    let mut words = text.split_once(", ")?.1.split(' ');
    let day = words.next()?.parse().ok()?;
    let month = words.next()?;
    let month = i64::try_from(MONTHS.iter().position(|m| *m == month)?).ok()? + 1;
    let year: i64 = words.next()?.parse().ok().filter(|y| (1970..=9999).contains(y))?;
    let mut clock = words.next()?.split(':').map(|part| part.parse::<i64>().ok());
    millis([year, month, day], [clock.next()??, clock.next()??, clock.next()??])
}

/// A time of a certificate, `YYMMDDhhmmssZ` or with four digits of the year (RFC 5280, 4.1.2.5).
pub fn certificate_time(text: &[u8]) -> Option<Millis> {
    let digits = text.strip_suffix(b"Z")?;
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let (year_digits, rest) = digits.split_at_checked(digits.len().checked_sub(10)?)?;
    let number = |digits: &[u8]| digits.iter().fold(0, |sum, digit| sum * 10 + i64::from(digit - b'0'));
    let year = match year_digits.len() {
        // "Where YY is greater than or equal to 50, the year SHALL be interpreted as 19YY".
        2 => number(year_digits) + if number(year_digits) >= 50 { 1900 } else { 2000 },
        4 => number(year_digits),
        _ => return None,
    };
    let mut pairs = rest.chunks(2).map(number);
    let [month, day, hour, minute, second] =
        [pairs.next()?, pairs.next()?, pairs.next()?, pairs.next()?, pairs.next()?];
    millis([year, month, day], [hour, minute, second])
}

/// A time as JSON has it, in UTC: `2026-11-29T19:00:00Z`, with or without a part of the second (RFC 3339, 5.6).
pub fn timestamp(text: &str) -> Option<Millis> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let numbers = |text: &str, between: char| -> Option<[i64; 3]> {
        let mut parts = text.split(between).map(|part| {
            let is_number = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
            part.parse::<i64>().ok().filter(|_| is_number)
        });
        let found = [parts.next()??, parts.next()??, parts.next()??];
        parts.next().is_none().then_some(found)
    };
    let (whole, part) = time.split_once('.').unwrap_or((time, "0"));
    let is_part = part.len() <= 9 && part.bytes().all(|b| b.is_ascii_digit());
    millis(numbers(date, '-')?, numbers(whole, ':')?).filter(|_| is_part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_moment_is_read_from_each_way_to_write_it() {
        let moment = Some(784_111_777_000);
        assert_eq!(http_date("Sun, 06 Nov 1994 08:49:37 GMT"), moment);
        assert_eq!(certificate_time(b"941106084937Z"), moment);
        assert_eq!(certificate_time(b"19941106084937Z"), moment);
        assert_eq!(timestamp("1994-11-06T08:49:37Z"), moment);
        assert_eq!(timestamp("1994-11-06T08:49:37.123456789Z"), moment);
        assert_eq!(certificate_time(b"500101000000Z"), millis([1950, 1, 1], [0; 3]));
        assert_eq!(certificate_time(b"490101000000Z"), millis([2049, 1, 1], [0; 3]));
    }

    #[test]
    fn the_time_is_that_of_the_calendar() {
        for (seconds, shown) in [
            (0, "1970-01-01 00:00:00Z"),
            (951_782_399, "2000-02-28 23:59:59Z"),
            (951_782_400, "2000-02-29 00:00:00Z"),
            (951_868_800, "2000-03-01 00:00:00Z"),
            (1_735_689_599, "2024-12-31 23:59:59Z"),
            (1_735_689_600, "2025-01-01 00:00:00Z"),
            (4_107_542_400, "2100-03-01 00:00:00Z"),
        ] {
            assert_eq!(utc(seconds * 1000 + 999), shown);
            assert_eq!(timestamp(&shown.replace(' ', "T")), Some(seconds * 1000));
        }
    }

    #[test]
    fn an_http_date_is_written_as_it_is_read() {
        assert_eq!(as_http_date(784_111_777_999), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(as_http_date(0), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(as_http_date(1_709_164_800_000), "Thu, 29 Feb 2024 00:00:00 GMT");
        for days in 0..60_000 {
            let time = (days * 86_400 + days % 86_400) * 1000;
            assert_eq!(http_date(&as_http_date(time)), Some(time));
        }
    }

    #[test]
    fn what_is_no_time_is_none() {
        for text in [
            "",
            "Z",
            "9Z",
            "0000000000Z",
            "941306084937Z",
            "941106244937Z",
            "94110608493 Z",
            "941106084937",
            "9941106084937Z",
            "941106084937+0100",
            "99999999999999999999999999Z",
        ] {
            assert_eq!(certificate_time(text.as_bytes()), None, "{text}");
        }
        assert_eq!(certificate_time(&[0xff; 13]), None);
        for text in [
            "",
            "TZ",
            "1994-11-06T08:49:37",
            "1994-11-06T08:49:37+01:00",
            "1994-11-06T08:49Z",
            "-994-11-06T08:49:37Z",
            "1994-11-06-01T08:49:37Z",
            "1994-11-06T08:49:37.Z9Z",
            "1994-11-06T08:49:37.12345678901Z",
            "99999999999999999999-11-06T08:49:37Z",
        ] {
            assert_eq!(timestamp(text), None, "{text}");
        }
    }
}
