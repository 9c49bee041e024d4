//! Where a parser stands in its text, and what it says when it can't go on.

/// Text that is no key or no list of actions.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("column {column}: expected {expected}, found {found}")]
pub struct ParseError {
    /// Where, counted in characters from 1.
    pub column: usize,
    /// What could have stood there.
    pub expected: String,
    /// What stands there.
    pub found: String,
}

/// A position in a text.
#[derive(Clone)]
pub(super) struct Cursor<'a> {
    text: &'a str,
    at: usize,
}

/// Ends a value.
const VALUE_END: &str = ",)/";

impl<'a> Cursor<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    pub(super) fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.rest().is_empty()
    }

    /// Goes behind `prefix` if it stands here.
    pub(super) fn eat(&mut self, prefix: &str) -> bool {
        let found = self.rest().starts_with(prefix);
        if found {
            self.at += prefix.len();
        }
        found
    }

    /// Goes behind `what`, which must stand here.
    pub(super) fn expect(&mut self, what: &str) -> Result<(), ParseError> {
        if self.eat(what) { Ok(()) } else { Err(self.expected(&format!("{what:?}"))) }
    }

    /// Goes behind spaces and commas, which separate attributes and actions.
    pub(super) fn skip_separators(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start_matches([',', ' ', '\t', '\r', '\n']).len();
    }

    /// What stands before the first of `ends`.
    pub(super) fn until(&mut self, ends: &str) -> &'a str {
        let rest = self.rest();
        let (token, _) = rest.split_at(rest.find(|c| ends.contains(c)).unwrap_or(rest.len()));
        self.at += token.len();
        token
    }

    /// A name: letters, digits, underscores.
    pub(super) fn name(&mut self) -> &'a str {
        let rest = self.rest();
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        self.at += end;
        rest.get(..end).unwrap_or_default()
    }

    /// A value that `parse` understands, up to the next comma, slash or parenthesis.
    pub(super) fn token<T>(&mut self, expected: &str, parse: impl Fn(&str) -> Option<T>) -> Result<T, ParseError> {
        let start = self.clone();
        parse(self.until(VALUE_END)).ok_or_else(|| start.expected(expected))
    }

    /// A decimal or (with 0x) hexadecimal number up to `max`.
    pub(super) fn number(&mut self, max: u128) -> Result<u128, ParseError> {
        let parse = |token: &str| {
            let hex = token.strip_prefix("0x").or_else(|| token.strip_prefix("0X"));
            let (digits, radix) = hex.map_or((token, 10), |digits| (digits, 16));
            // `from_str_radix` would take a sign.
            let digits = digits.starts_with(|c: char| c.is_digit(radix)).then_some(digits)?;
            u128::from_str_radix(digits, radix).ok().filter(|n| *n <= max)
        };
        self.token(&format!("a number up to {max}"), parse)
    }

    /// A number and its mask, all ones where there is none.
    pub(super) fn masked_number(&mut self, max: u128) -> Result<(u128, u128), ParseError> {
        let value = self.number(max)?;
        let mask = if self.eat("/") { self.number(max)? } else { max };
        Ok((value & mask, mask))
    }

    /// The error that `expected` doesn't stand here.
    pub(super) fn expected(&self, expected: &str) -> ParseError {
        let column = self.text.get(..self.at).unwrap_or_default().chars().count() + 1;
        let rest = self.rest();
        let found: String = rest.chars().take(24).collect();
        let found = match () {
            () if rest.is_empty() => "the end".into(),
            () if found.len() < rest.len() => format!("{:?}", found + "…"),
            () => format!("{found:?}"),
        };
        ParseError { column, expected: expected.into(), found }
    }
}
