//! WHEN: the moments that people write after `@@`.
//!
//! Pure: the same text, now and zone give the same moment. Labels are not known here (see `label.rs`), nor is which
//! moments exist (see `view.rs`).
//!
//! | text | moment |
//! |---|---|
//! | `now` | the newest transaction |
//! | `today` | the last local midnight |
//! | `yesterday` | 24 hours ago |
//! | `-90s` `-10m` `-1h30m` `-2d` `-1w` | so long ago; a day is 24 hours, whatever the clocks did |
//! | `-3M` `-1y` | calendar months and years ago, at the same local time of day |
//! | `2026-11-22` | the midnight that begins this day |
//! | `2026-11-22T09:30` `…:15` `….123456789` | local time; a space may stand for the T |
//! | the same with `Z`, `+02:00`, `-0530` or `+02` | time at that offset |
//! | `0x18a…` | exactly this tid |
//! | `@GMT-2026.11.22-09.30.15` | as Windows and Samba name *previous versions* (UTC) |

use darner_store::Tid;
use jiff::civil::{Date, DateTime};
use jiff::tz::{Offset, TimeZone};
use jiff::{Span, Timestamp, Zoned};

/// A moment that somebody wrote.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct When {
    /// The moment. Before 1970: 0; beyond what a tid can hold: `Tid::MAX`.
    pub tid: Tid,
    /// Whether the text means another moment later on.
    pub moves: bool,
}

/// Reads a WHEN; `None` if the text is none.
pub fn parse(text: &str, now_ns: u64, zone: &TimeZone) -> Option<When> {
    let moving = |tid| Some(When { tid, moves: true });
    match text.as_bytes().first()? {
        b'-' => moving(relative(&text[1..], now_ns, zone)?),
        b'@' => Some(fixed(samba(text)?)),
        b'0' if text.starts_with("0x") => exact(&text[2..]),
        b'0'..=b'9' => Some(fixed(date_time(text, zone)?)),
        _ => match text {
            "now" => moving(Tid::MAX),
            "today" => moving(tid_of(local(now_ns, zone)?.start_of_day().ok()?.timestamp())),
            "yesterday" => moving(Tid(now_ns.saturating_sub(24 * HOUR))),
            _ => None,
        },
    }
}

/// A moment's name to the second or, if it isn't a whole one, to the nanosecond; in local time, readable by
/// [`parse`].
pub fn name(tid: Tid, zone: &TimeZone) -> Option<String> {
    let zoned = local(tid.0, zone)?;
    let time = zoned.datetime();
    let mut name = time.strftime("%Y-%m-%dT%H:%M").to_string();
    if time.second() != 0 || time.subsec_nanosecond() != 0 {
        name += &format!(":{:02}", time.second());
    }
    if time.subsec_nanosecond() != 0 {
        name += &format!(".{:09}", time.subsec_nanosecond());
    }
    // Where the clocks go back, the local time alone means the first of two moments.
    if zone.to_timestamp(time).ok() != Some(zoned.timestamp()) {
        name += &zoned.strftime("%:z").to_string();
    }
    Some(name)
}

const SECOND: u64 = 1_000_000_000;
const HOUR: u64 = 3600 * SECOND;

pub(crate) fn local(ns: u64, zone: &TimeZone) -> Option<Zoned> {
    Some(Timestamp::from_nanosecond(ns.into()).ok()?.to_zoned(zone.clone()))
}

pub(crate) fn tid_of(time: Timestamp) -> Tid {
    let ns = time.as_nanosecond();
    Tid(u64::try_from(ns.max(0)).unwrap_or(u64::MAX))
}

fn fixed(time: Timestamp) -> When {
    When { tid: tid_of(time), moves: false }
}

fn exact(hex: &str) -> Option<When> {
    let all_hex = hex.bytes().all(|b| b.is_ascii_hexdigit());
    let tid = u64::from_str_radix(hex, 16).ok().filter(|_| all_hex)?;
    Some(When { tid: Tid(tid), moves: false })
}

/// `1h30m`: numbers with units, in any order, each counted back from now.
fn relative(text: &str, now_ns: u64, zone: &TimeZone) -> Option<Tid> {
    let (mut ns, mut months, mut years) = (0u64, 0i64, 0i64);
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let amount: u64 = rest[..digits].parse().ok()?;
        let unit = *rest.as_bytes().get(digits)?;
        rest = rest.get(digits + 1..)?;
        let unit_secs = match unit {
            b's' => 1,
            b'm' => 60,
            b'h' => 3600,
            b'd' => 86400,
            b'w' => 7 * 86400,
            b'M' => {
                months = months.checked_add_unsigned(amount)?;
                continue;
            }
            b'y' => {
                years = years.checked_add_unsigned(amount)?;
                continue;
            }
            _ => return None,
        };
        ns = ns.saturating_add(amount.saturating_mul(unit_secs).saturating_mul(SECOND));
    }
    if text.is_empty() {
        return None;
    }
    let from = match (months, years) {
        (0, 0) => now_ns,
        _ => calendar_ago(now_ns, months, years, zone).unwrap_or(0),
    };
    Some(Tid(from.saturating_sub(ns)))
}

fn calendar_ago(now_ns: u64, months: i64, years: i64, zone: &TimeZone) -> Option<u64> {
    let span = Span::new().try_months(months).ok()?.try_years(years).ok()?;
    let then = local(now_ns, zone)?.checked_sub(span).ok()?;
    Some(tid_of(then.timestamp()).0)
}

/// `@GMT-YYYY.MM.DD-HH.MM.SS`.
fn samba(text: &str) -> Option<Timestamp> {
    let mut from = Scan(text.strip_prefix("@GMT-")?.as_bytes());
    let date = from.date(b'.')?;
    from.literal(b'-')?;
    let (hour, minute, second) =
        (from.two()?, from.literal(b'.').and(from.two())?, from.literal(b'.').and(from.two())?);
    from.end()?;
    let time = jiff::civil::Time::new(hour, minute, second, 0).ok()?;
    date.to_datetime(time).to_zoned(TimeZone::UTC).ok().map(|zoned| zoned.timestamp())
}

fn date_time(text: &str, zone: &TimeZone) -> Option<Timestamp> {
    let mut from = Scan(text.as_bytes());
    let date = from.date(b'-')?;
    let moment = match from.literal(b'T').or_else(|| from.literal(b' ')) {
        Some(()) => from.time_of_day(date)?,
        None => date.to_datetime(jiff::civil::Time::midnight()),
    };
    let zone = from.offset(zone)?;
    from.end()?;
    moment.to_zoned(zone).ok().map(|zoned| zoned.timestamp())
}

/// Takes fields off the front of a text.
struct Scan<'a>(&'a [u8]);

impl Scan<'_> {
    fn literal(&mut self, byte: u8) -> Option<()> {
        self.0 = self.0.strip_prefix(&[byte])?;
        Some(())
    }

    fn digits(&mut self, count: usize) -> Option<u32> {
        let (digits, rest) = self.0.split_at_checked(count)?;
        if !digits.iter().all(u8::is_ascii_digit) {
            return None;
        }
        self.0 = rest;
        Some(digits.iter().fold(0, |n, digit| n * 10 + u32::from(digit - b'0')))
    }

    fn two(&mut self) -> Option<i8> {
        Some(self.digits(2)? as i8)
    }

    fn date(&mut self, between: u8) -> Option<Date> {
        let year = self.digits(4)? as i16;
        self.literal(between)?;
        let month = self.two()?;
        self.literal(between)?;
        Date::new(year, month, self.two()?).ok()
    }

    /// `HH:MM`, `HH:MM:SS` or `HH:MM:SS.fraction`.
    fn time_of_day(&mut self, date: Date) -> Option<DateTime> {
        let hour = self.two()?;
        self.literal(b':')?;
        let minute = self.two()?;
        let second = match self.literal(b':') {
            Some(()) => self.two()?,
            None => return Some(date.to_datetime(jiff::civil::Time::new(hour, minute, 0, 0).ok()?)),
        };
        let nanos = match self.literal(b'.') {
            Some(()) => self.fraction()?,
            None => 0,
        };
        Some(date.to_datetime(jiff::civil::Time::new(hour, minute, second, nanos).ok()?))
    }

    fn fraction(&mut self) -> Option<i32> {
        let count = self.0.iter().take_while(|b| b.is_ascii_digit()).count();
        if !(1..=9).contains(&count) {
            return None;
        }
        Some(self.digits(count)? as i32 * 10i32.pow(9 - count as u32))
    }

    /// `Z`, `+HH:MM`, `+HHMM`, `+HH`, or nothing for the local zone.
    fn offset(&mut self, local: &TimeZone) -> Option<TimeZone> {
        if self.0.is_empty() {
            return Some(local.clone());
        }
        if self.literal(b'Z').is_some() {
            return Some(TimeZone::UTC);
        }
        let sign = if self.literal(b'+').is_some() { 1 } else { self.literal(b'-').map(|()| -1)? };
        let hours = i32::from(self.two()?);
        let minutes = match self.0.is_empty() {
            true => 0,
            false => {
                let _ = self.literal(b':');
                i32::from(self.two()?)
            }
        };
        if minutes > 59 {
            return None;
        }
        Some(Offset::from_seconds(sign * (hours * 3600 + minutes * 60)).ok()?.to_time_zone())
    }

    fn end(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-22T09:30:15.5 in Berlin (winter: +01:00).
    const NOW: u64 = 1_795_336_215_500_000_000;

    fn berlin() -> TimeZone {
        TimeZone::get("Europe/Berlin").expect("jiff's own zone data")
    }

    /// The moment a text means, as UTC.
    fn utc(text: &str) -> String {
        match parse(text, NOW, &berlin()) {
            None => "no time".into(),
            Some(When { tid: Tid::MAX, .. }) => "newest".into(),
            Some(when) => Timestamp::from_nanosecond(when.tid.0.into()).unwrap().to_string(),
        }
    }

    #[test]
    fn what_people_write_is_understood() {
        for (text, moment) in [
            ("now", "newest"),
            ("today", "2026-11-21T23:00:00Z"),
            ("yesterday", "2026-11-21T08:30:15.5Z"),
            ("-0s", "2026-11-22T08:30:15.5Z"),
            ("-90s", "2026-11-22T08:28:45.5Z"),
            ("-10m", "2026-11-22T08:20:15.5Z"),
            ("-1h30m", "2026-11-22T07:00:15.5Z"),
            ("-2d", "2026-11-20T08:30:15.5Z"),
            ("-1w", "2026-11-15T08:30:15.5Z"),
            ("-1M", "2026-10-22T07:30:15.5Z"),
            ("-1y2M", "2025-09-22T07:30:15.5Z"),
            ("-9999y", "1970-01-01T00:00:00Z"),
            ("-99999999999999999y", "1970-01-01T00:00:00Z"),
            ("-9999999999999999999w", "1970-01-01T00:00:00Z"),
            ("2026-11-22", "2026-11-21T23:00:00Z"),
            ("2026-07-22", "2026-07-21T22:00:00Z"),
            ("2026-11-22T09:30", "2026-11-22T08:30:00Z"),
            ("2026-11-22 09:30", "2026-11-22T08:30:00Z"),
            ("2026-11-22T09:30:15", "2026-11-22T08:30:15Z"),
            ("2026-11-22T09:30:15.123456789", "2026-11-22T08:30:15.123456789Z"),
            ("2026-11-22T09:30:15.1", "2026-11-22T08:30:15.1Z"),
            ("2026-11-22T09:30Z", "2026-11-22T09:30:00Z"),
            ("2026-11-22Z", "2026-11-22T00:00:00Z"),
            ("2026-11-22T09:30+02:00", "2026-11-22T07:30:00Z"),
            ("2026-11-22T09:30:00-0530", "2026-11-22T15:00:00Z"),
            ("2026-11-22T09:30+02", "2026-11-22T07:30:00Z"),
            ("1969-11-22", "1970-01-01T00:00:00Z"),
            ("9999-11-22", "newest"),
            ("@GMT-2026.11.22-09.30.15", "2026-11-22T09:30:15Z"),
            ("0x1", "1970-01-01T00:00:00.000000001Z"),
        ] {
            assert_eq!(utc(text), moment, "{text}");
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "-",
            "-5",
            "-m",
            "-5x",
            "--5m",
            "-1h-",
            "+5m",
            "Now",
            "tomorrow",
            "2026",
            "2026-11",
            "2026-13-01",
            "2026-02-30",
            "2026-11-22T",
            "2026-11-22T09",
            "2026-11-22T24:00",
            "2026-11-22T09:60",
            "2026-11-22T09:30:61",
            "2026-11-22T09:30:15.",
            "2026-11-22T09:30:15.1234567890",
            "2026-11-22T09:30X",
            "2026-11-22T09:30+",
            "2026-11-22T09:30+2",
            "2026-11-22T09:30+02:99",
            "2026-11-22T09:30Zz",
            "2026-1-2",
            "0x",
            "0x+1",
            "0xg",
            "0x1ffffffffffffffff",
            "@GMT-2026.11.22",
            "@GMT-2026.11.22-09.30.15x",
            "GMT-2026.11.22-09.30.15",
            "-٣m",
            "２026-11-22",
        ] {
            assert_eq!(utc(text), "no time", "{text}");
        }
    }

    #[test]
    fn no_text_makes_parsing_panic() {
        let alphabet: Vec<char> = "0123456789-+:.T ZxGMT@smhdwMyä٣".chars().collect();
        let mut rng = fastrand::Rng::with_seed(3);
        for _ in 0..200_000 {
            let text: String = (0..rng.usize(..30)).map(|_| rng.choice(&alphabet).unwrap()).collect();
            parse(&text, rng.u64(..), &berlin());
        }
    }

    #[test]
    fn only_texts_that_depend_on_now_move() {
        let moves = |text| parse(text, NOW, &berlin()).unwrap().moves;
        assert!(moves("-10m") && moves("now") && moves("today") && moves("yesterday"));
        assert!(!moves("2026-11-22") && !moves("0x5") && !moves("@GMT-2026.11.22-09.30.15"));
    }

    #[test]
    fn a_moments_name_means_the_moment() {
        for ns in [NOW, NOW - NOW % HOUR, NOW + 1] {
            let name = name(Tid(ns), &berlin()).unwrap();
            assert_eq!(parse(&name, NOW, &berlin()).unwrap().tid, Tid(ns), "{name}");
        }
    }

    #[test]
    fn of_two_moments_of_one_local_time_the_second_is_named_with_its_offset() {
        let zone = berlin();
        for (at, expected) in [
            ("2026-10-25T00:00:00Z", "2026-10-25T02:00"),
            ("2026-10-25T01:00:00Z", "2026-10-25T02:00+01:00"),
            ("2026-10-25T01:30:15Z", "2026-10-25T02:30:15+01:00"),
            ("2026-10-25T02:00:00Z", "2026-10-25T03:00"),
            ("2026-03-29T01:00:00Z", "2026-03-29T03:00"),
        ] {
            let tid = tid_of(at.parse().unwrap());
            assert_eq!(name(tid, &zone).unwrap(), expected);
            assert_eq!(parse(expected, 0, &zone).unwrap().tid, tid, "{expected}");
        }
    }

    #[test]
    fn a_local_time_that_the_clocks_skipped_or_repeated_still_means_one_moment() {
        assert_eq!(utc("2026-03-29T02:30"), "2026-03-29T01:30:00Z");
        assert_eq!(utc("2026-10-25T02:30"), "2026-10-25T00:30:00Z");
    }
}
