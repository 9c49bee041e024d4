//! Cutting a flow's text into words, each knowing where it stood.
//!
//! The syntax is a list of `KEY`, `KEY=VALUE`, `KEY:VALUE` and `KEY(VALUE)`, separated by commas and white space.
//! Parentheses nest within a value. A value may hold a name in double quotes, within which nothing separates.

use crate::error::{Fault, ParseErrorKind, Parsed};

/// A piece of the text and its byte offset there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span<'a> {
    pub(crate) text: &'a str,
    pub(crate) at: usize,
}

impl<'a> Span<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    /// Both sides of a byte position; a position that is not between characters cuts at the end.
    pub(crate) fn split_at(self, at: usize) -> (Self, Self) {
        let (left, right) = self.text.split_at_checked(at).unwrap_or((self.text, ""));
        (Self { text: left, at: self.at }, Self { text: right, at: self.at + left.len() })
    }

    /// The empty piece behind this one.
    pub(crate) fn tail(self) -> Self {
        self.split_at(self.text.len()).1
    }

    /// Without its first `count` bytes.
    pub(crate) fn skip(self, count: usize) -> Self {
        self.split_at(count).1
    }

    /// The parts before and after the first occurrence of `mark`.
    pub(crate) fn split_once(self, mark: &str) -> Option<(Self, Self)> {
        let (left, right) = self.split_at(self.text.find(mark)?);
        Some((left, right.skip(mark.len())))
    }

    /// The parts before and after the first comma outside quotes; the second is empty if there is none.
    pub(crate) fn split_at_comma(self) -> (Self, Self) {
        let (left, right) = self.split_at(find_outside_quotes(self.text, |c| c == ','));
        (left, right.skip(1))
    }

    pub(crate) fn trim_start(self) -> Self {
        self.skip(self.text.len() - self.text.trim_start().len())
    }

    pub(crate) fn trim(self) -> Self {
        let span = self.trim_start();
        span.split_at(span.text.trim_end().len()).0
    }

    pub(crate) fn is_empty(self) -> bool {
        self.text.is_empty()
    }

    /// An error at the start of this piece.
    pub(crate) fn fault(self, kind: ParseErrorKind) -> Fault {
        Fault::new(self.at, kind)
    }

    /// "Bad value" for this piece.
    pub(crate) fn bad_value(self, what: impl Into<String>, expected: impl Into<String>) -> Fault {
        let (what, expected) = (what.into(), expected.into());
        self.fault(if self.is_empty() {
            ParseErrorKind::MissingValue { what, expected }
        } else {
            ParseErrorKind::BadValue { what, value: self.text.into(), expected }
        })
    }
}

/// One item of a list.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeyValue<'a> {
    pub(crate) key: Span<'a>,
    /// Empty, at the key's end, if there is none.
    pub(crate) value: Span<'a>,
    /// What stood between key and value.
    pub(crate) delimiter: Option<char>,
}

/// The items of a list.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeyValues<'a> {
    rest: Span<'a>,
}

impl<'a> KeyValues<'a> {
    pub(crate) fn new(text: Span<'a>) -> Self {
        Self { rest: text }
    }

    /// What has not been cut yet.
    pub(crate) fn rest(&self) -> Span<'a> {
        self.rest
    }

    /// Cuts off the next item; `None` at the end.
    pub(crate) fn next(&mut self) -> Parsed<Option<KeyValue<'a>>> {
        let start = self.rest.text.find(|c| !is_separator(c)).unwrap_or(self.rest.text.len());
        let text = self.rest.skip(start);
        if text.is_empty() {
            self.rest = text;
            return Ok(None);
        }
        let key_end = find_outside_quotes(text.text, |c| matches!(c, ':' | '=' | '(') || is_separator(c));
        let (key, after) = text.split_at(key_end);
        let delimiter = after.text.chars().next().filter(|c| !is_separator(*c));
        let (value, rest) = match delimiter {
            None => (key.tail(), after),
            Some('(') => {
                let inner = after.skip(1);
                let end = closing(inner.text).ok_or_else(|| after.fault(ParseErrorKind::Unbalanced))?;
                let (value, rest) = inner.split_at(end);
                (value, rest.skip(1))
            }
            Some(_) => {
                let text = after.skip(1);
                text.split_at(value_end(text)?)
            }
        };
        self.rest = rest;
        Ok(Some(KeyValue { key, value, delimiter }))
    }
}

fn is_separator(c: char) -> bool {
    matches!(c, ',' | ' ' | '\t' | '\r' | '\n')
}

/// Where a value ends: at a separator outside parentheses and quotes.
fn value_end(value: Span<'_>) -> Parsed<usize> {
    let mut at = 0;
    loop {
        let rest = value.skip(at);
        at += find_outside_quotes(rest.text, |c| c == '(' || is_separator(c));
        let rest = value.skip(at);
        if !rest.text.starts_with('(') {
            return Ok(at);
        }
        at += 2 + closing(rest.skip(1).text).ok_or_else(|| rest.fault(ParseErrorKind::Unbalanced))?;
    }
}

/// The position of the `)` that closes a parenthesis opened just before `text`.
fn closing(text: &str) -> Option<usize> {
    let mut level = 0u32;
    let mut at = 0;
    loop {
        let rest = text.get(at..)?;
        at += find_outside_quotes(rest, |c| c == '(' || c == ')');
        match text.get(at..)?.chars().next()? {
            '(' => level += 1,
            _ if level == 0 => return Some(at),
            _ => level -= 1,
        }
        at += 1;
    }
}

/// The position of the first character that `wanted` accepts and that is in no `"…"`, else the text's end. A quote that
/// is never closed quotes nothing.
fn find_outside_quotes(text: &str, wanted: impl Fn(char) -> bool) -> usize {
    let mut at = 0;
    while let Some(c) = text.get(at..).and_then(|rest| rest.chars().next()) {
        if c == '"' {
            at += 1 + text.get(at + 1..).and_then(quoted_length).unwrap_or(0);
        } else if wanted(c) {
            return at;
        } else {
            at += c.len_utf8();
        }
    }
    text.len()
}

/// The length of a quotation with its closing quote, the opening one being just before `text`. Names are short, so that
/// a quote without its partner is found to be one without reading all that follows, again and again.
fn quoted_length(text: &str) -> Option<usize> {
    const LONGEST: usize = 256;
    let mut escaped = false;
    for (at, c) in text.char_indices().take(LONGEST) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some(at + 1),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(text: &str) -> Vec<(String, Option<char>, String)> {
        let mut list = KeyValues::new(Span::new(text));
        let mut found = Vec::new();
        while let Some(item) = list.next().unwrap() {
            assert_eq!(&text[item.key.at..][..item.key.text.len()], item.key.text);
            assert_eq!(&text[item.value.at..][..item.value.text.len()], item.value.text);
            found.push((item.key.text.into(), item.delimiter, item.value.text.into()));
        }
        found
    }

    fn item(key: &str, delimiter: Option<char>, value: &str) -> (String, Option<char>, String) {
        (key.into(), delimiter, value.into())
    }

    #[test]
    fn items_are_cut_at_separators_outside_parentheses_and_quotes() {
        assert_eq!(
            items(" ,tcp,, a=b\tc:d "),
            [item("tcp", None, ""), item("a", Some('='), "b"), item("c", Some(':'), "d")]
        );
        assert_eq!(items("resubmit(,2),x"), [item("resubmit", Some('('), ",2"), item("x", None, "")]);
        assert_eq!(items("a(b(c,d),e)f"), [item("a", Some('('), "b(c,d),e"), item("f", None, "")]);
        assert_eq!(items("a:b(c, d)e,f"), [item("a", Some(':'), "b(c, d)e"), item("f", None, "")]);
        assert_eq!(items("p=\"a,b \\\" )\",q"), [item("p", Some('='), "\"a,b \\\" )\""), item("q", None, "")]);
        assert_eq!(items("p=\"a,q"), [item("p", Some('='), "\"a"), item("q", None, "")]);
        assert_eq!(items("\"p:1\",é=ü"), [item("\"p:1\"", None, ""), item("é", Some('='), "ü")]);
    }

    #[test]
    fn a_parenthesis_that_stays_open_is_an_error() {
        for text in ["a(b", "a(b(c)", "a:b(c", "(", "a((((((("] {
            let mut list = KeyValues::new(Span::new(text));
            assert!(matches!(list.next(), Err(Fault { kind: ParseErrorKind::Unbalanced, .. })), "{text}");
        }
    }
}
