//! What a line looks like.
//!
//! A pattern is text with conversions, `%` and a letter, in the field's meaning: `%A` program, `%B` syslog priority,
//! `%c` module, `%d{..}` and `%D{..}` local and universal time in the format of `strftime` with `###` for
//! milliseconds, `%E` host, `%m` message, `%N` sequence number, `%n` newline, `%p` level, `%P` process, `%r`
//! milliseconds since the start, `%t` thread (`main` for the main one), `%T` thread in parentheses (nothing for the
//! main one), `%%`. Between the `%` and the letter may stand `-` to pad on the right, `0` to pad with zeros, and the
//! width.

use std::fmt::Write;
use std::time::Duration;

use chrono::format::{Item, StrftimeItems};
use chrono::{DateTime, Local, TimeZone, Utc};

use super::level::Level;

/// Padding more than this helps nobody, and a typing error shall not fill the disk.
const WIDTH_MAX: usize = 200;

/// A message with what is known about it.
pub(super) struct Record<'a> {
    pub(super) program: &'a str,
    pub(super) module: &'a str,
    pub(super) level: Level,
    pub(super) text: &'a str,
    /// `None` for the main thread.
    pub(super) thread: Option<&'a str>,
    pub(super) sequence: u32,
    pub(super) time: DateTime<Utc>,
    pub(super) uptime: Duration,
    pub(super) facility: u8,
}

/// A pattern, taken apart.
#[derive(Debug, Clone)]
pub(super) struct Pattern {
    text: String,
    parts: Vec<Part>,
}

#[derive(Debug, Clone)]
enum Part {
    Text(String),
    Field { field: Field, left: bool, pad: char, width: usize },
}

#[derive(Debug, Clone)]
enum Field {
    Char(char),
    Program,
    Priority,
    Module,
    LocalTime(String),
    UniversalTime(String),
    Host,
    Message,
    Sequence,
    Level,
    Process,
    Uptime,
    Thread,
    ThreadInParentheses,
}

impl Pattern {
    /// Takes a pattern apart. What is not a conversion stands for itself.
    pub(super) fn parse(text: &str) -> Pattern {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('%') {
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            let after_dash = after.strip_prefix('-');
            let (left, after) = (after_dash.is_some(), after_dash.unwrap_or(after));
            let after_zero = after.strip_prefix('0');
            let (pad, after) = (if after_zero.is_some() { '0' } else { ' ' }, after_zero.unwrap_or(after));
            let digits = after.bytes().take_while(u8::is_ascii_digit).count();
            let (width, after) = after.split_at(digits);
            let width = if width.is_empty() { 0 } else { width.parse().unwrap_or(WIDTH_MAX).min(WIDTH_MAX) };
            let mut letters = after.chars();
            let letter = letters.next();
            rest = letters.as_str();
            let Some(letter) = letter else { break };
            let field = Field::parse(letter, &mut rest);
            parts.push(Part::Field { field, left, pad, width });
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        Pattern { text: text.to_owned(), parts }
    }

    /// The pattern as it was given.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// The line for a message, with its newline.
    pub(super) fn line(&self, record: &Record<'_>) -> String {
        let mut line = String::with_capacity(record.text.len() + 80);
        for part in &self.parts {
            match part {
                Part::Text(text) => line.push_str(text),
                Part::Field { field, left, pad, width } => {
                    let start = line.len();
                    field.write(record, &mut line);
                    let missing = width.saturating_sub(line.get(start..).map_or(0, |text| text.chars().count()));
                    match left {
                        true => line.extend(std::iter::repeat_n(' ', missing)),
                        false => line.insert_str(start, &pad.to_string().repeat(missing)),
                    }
                }
            }
        }
        line.push('\n');
        line
    }
}

impl Field {
    /// The conversion of `letter`; takes its braces off `rest`.
    fn parse(letter: char, rest: &mut &str) -> Field {
        let mut braces = || {
            let (inside, after) = rest.strip_prefix('{')?.split_once('}')?;
            *rest = after;
            Some(inside)
        };
        match letter {
            'A' => Field::Program,
            'B' => Field::Priority,
            'c' => {
                braces();
                Field::Module
            }
            'd' => Field::LocalTime(time_format(braces())),
            'D' => Field::UniversalTime(time_format(braces())),
            'E' => Field::Host,
            'm' => Field::Message,
            'N' => Field::Sequence,
            'n' => Field::Char('\n'),
            'p' => Field::Level,
            'P' => Field::Process,
            'r' => Field::Uptime,
            't' => Field::Thread,
            'T' => Field::ThreadInParentheses,
            other => Field::Char(other),
        }
    }

    fn write(&self, record: &Record<'_>, out: &mut String) {
        // Writing to a string can't fail.
        let _ = match self {
            Field::Char(c) => out.write_char(*c),
            Field::Program => out.write_str(record.program),
            Field::Priority => write!(out, "{}", record.facility + record.level.severity()),
            Field::Module => out.write_str(record.module),
            Field::LocalTime(format) => out.write_str(&write_time(format, record.time.with_timezone(&Local))),
            Field::UniversalTime(format) => out.write_str(&write_time(format, record.time)),
            Field::Host => out.write_str(&nix::unistd::gethostname().unwrap_or_default().to_string_lossy()),
            Field::Message => out.write_str(record.text),
            Field::Sequence => write!(out, "{}", record.sequence),
            Field::Level => out.write_str(record.level.name()),
            Field::Process => write!(out, "{}", std::process::id()),
            Field::Uptime => write!(out, "{}", record.uptime.as_millis()),
            Field::Thread => out.write_str(record.thread.unwrap_or("main")),
            Field::ThreadInParentheses => record.thread.map_or(Ok(()), |thread| write!(out, "({thread})")),
        };
    }
}

/// The format of a time: what was in braces, or the default. One that can't be written (`strftime` would print
/// something undefined) becomes text.
fn time_format(given: Option<&str>) -> String {
    let format = given.unwrap_or("%Y-%m-%d %H:%M:%S.###");
    match StrftimeItems::new(format).any(|item| item == Item::Error) {
        true => format.replace('%', "%%"),
        false => format.to_owned(),
    }
}

fn write_time<Z: TimeZone<Offset: std::fmt::Display>>(format: &str, time: DateTime<Z>) -> String {
    let mut out = String::new();
    // The format was checked.
    let _ = write!(out, "{}", time.format(format));
    out.replace("###", &format!("{:03}", time.timestamp_subsec_millis().min(999)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(pattern: &str) -> String {
        let record = Record {
            program: "vswitchd",
            module: "dpif",
            level: Level::Warn,
            text: "text with %m",
            thread: Some("handler3"),
            sequence: 42,
            time: DateTime::from_timestamp(1_769_884_336, 54_900_000).unwrap(),
            uptime: Duration::from_millis(1234),
            facility: 24,
        };
        Pattern::parse(pattern).line(&record).trim_end_matches('\n').to_owned()
    }

    #[test]
    fn each_conversion_writes_what_it_means() {
        for (pattern, expected) in [
            (
                "%D{%Y-%m-%dT%H:%M:%S.###Z}|%05N|%c%T|%p|%m",
                "2026-01-31T18:32:16.054Z|00042|dpif(handler3)|WARN|text with %m",
            ),
            ("%D", "2026-01-31 18:32:16.054"),
            ("%A %B %t %r", "vswitchd 28 handler3 1234"),
            ("%%%x%", "%x"),
            ("[%6p] [%-6p] [%06N] [%-06N]", "[  WARN] [WARN  ] [000042] [42    ]"),
            ("%D{%Q} %D{unclosed", "%Q 2026-01-31 18:32:16.054{unclosed"),
            ("%c{1}%m", "dpiftext with %m"),
            ("plain", "plain"),
            ("", ""),
        ] {
            assert_eq!(line(pattern), expected, "{pattern:?}");
        }
        assert_eq!(line("%99999999999999999999p").len(), WIDTH_MAX);
        assert_eq!(line("%P"), std::process::id().to_string());
    }

    #[test]
    fn no_pattern_makes_it_panic() {
        for letter in (0..=255u8).map(char::from) {
            for pattern in
                [format!("%{letter}"), format!("%-05{letter}{{%{letter}}}x"), format!("%D{{%{letter}{letter}}}")]
            {
                line(&pattern);
            }
        }
    }
}
