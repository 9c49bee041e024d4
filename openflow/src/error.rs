//! What can be wrong with a flow's text, and where.
//!
//! Each error says what was found, in which place (a 1-based column, counted in characters) and what was expected
//! instead, in one line.

use std::fmt;

use crate::field::Subfield;

/// An error in the text of one flow, match or action list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("column {column}: {kind}")]
pub struct ParseError {
    /// Where the offending part starts, in characters, from 1.
    pub column: usize,
    /// What is wrong.
    pub kind: ParseErrorKind,
}

/// An error in a flow file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {kind}")]
pub struct FileError {
    /// The line, from 1.
    pub line: usize,
    /// Where in the line the offending part starts, in characters, from 1.
    pub column: usize,
    /// What is wrong.
    pub kind: ParseErrorKind,
}

/// What is wrong with a text. The fault is always the text's author's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseErrorKind {
    /// A word that is neither a field, a protocol nor a setting.
    #[error("unknown keyword `{}`: expected a match field, a protocol such as tcp, or a setting such as priority=N", Shown(.0))]
    UnknownKeyword(String),
    /// A setting that this command does not take.
    #[error("{setting} does not go with `{command}`: {hint}")]
    WrongCommand {
        /// The setting.
        setting: String,
        /// The command's word.
        command: &'static str,
        /// What to do.
        hint: &'static str,
    },
    /// A field that the syntax has and this version has not.
    #[error("field {} is not supported yet", Shown(.0))]
    UnsupportedField(String),
    /// An action (or a variant of one) that the syntax has and this version has not.
    #[error("action {} is not supported yet", Shown(.0))]
    UnsupportedAction(String),
    /// A flow setting that the syntax has and this version has not.
    #[error("{0} is not supported yet")]
    UnsupportedSetting(String),
    /// A word in the action list that is no action and no port.
    #[error("unknown action `{}`: expected an action such as output:PORT, or a port", Shown(.0))]
    UnknownAction(String),
    /// A word in the place of a field's name.
    #[error("unknown field `{}`: expected a field's name such as reg0 or NXM_NX_REG0", Shown(.0))]
    UnknownField(String),
    /// A name that no port has.
    #[error("unknown port `{}`: expected a port's number, a reserved name such as LOCAL, or a port's name", Shown(.0))]
    UnknownPort(String),
    /// A value that does not fit what it is for.
    #[error("bad value `{}` for {}: expected {expected}", Shown(.value), Shown(.what))]
    BadValue {
        /// The field, setting or argument.
        what: String,
        /// The text found.
        value: String,
        /// What would do.
        expected: String,
    },
    /// A setting, field or action without its value.
    #[error("{} is missing its value: expected {expected}", Shown(.what))]
    MissingValue {
        /// The field, setting or action.
        what: String,
        /// What would do.
        expected: String,
    },
    /// A mask on something that is matched or set as a whole.
    #[error("{0} cannot be masked: expected a whole value without `/MASK`")]
    MaskNotAllowed(String),
    /// A match or action on a field without the match that gives the field a meaning.
    #[error("{what} needs its prerequisite: add {needs} to the match")]
    MissingPrerequisite {
        /// The field as written, or the action.
        what: String,
        /// What to add.
        needs: String,
    },
    /// An action that writes a field which can't be written.
    #[error("field {0} is read-only: actions cannot write it")]
    ReadOnlyField(String),
    /// A bit range outside its field, or written wrongly.
    #[error("bad bits `{}` of field {field}: expected [], [BIT] or [FIRST..LAST] within 0..{last}", Shown(.text))]
    BadSubfield {
        /// The field.
        field: String,
        /// The text found.
        text: String,
        /// The field's last bit.
        last: u32,
    },
    /// Source and destination of a move differ in width.
    #[error("move from {source_field} ({} bits) to {destination} ({} bits): expected equal widths", .source_field.bits, .destination.bits)]
    WidthMismatch {
        /// Where from.
        source_field: Subfield,
        /// Where to.
        destination: Subfield,
    },
    /// An opening parenthesis that is not closed.
    #[error("`(` without its `)`")]
    Unbalanced,
    /// A flow that should have actions and has none.
    #[error("no actions: expected `actions=` and an action list (`actions=drop` drops)")]
    MissingActions,
    /// `drop` among other actions.
    #[error("drop goes alone: expected no other action beside it")]
    DropNotAlone,
    /// Instructions out of OpenFlow's order, or twice.
    #[error("{}", Shown(.0))]
    InstructionOrder(String),
    /// An action that can't be carried out as written.
    #[error("{}", Shown(.0))]
    InvalidAction(String),
}

/// An error at a byte offset of the text being parsed.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) at: usize,
    pub(crate) kind: ParseErrorKind,
}

pub(crate) type Parsed<T> = Result<T, Fault>;

impl Fault {
    pub(crate) fn new(at: usize, kind: ParseErrorKind) -> Self {
        Self { at, kind }
    }

    /// Turns the byte offset into a column of `text`.
    pub(crate) fn in_text(self, text: &str) -> ParseError {
        let column = text.char_indices().take_while(|(at, _)| *at < self.at).count() + 1;
        ParseError { column, kind: self.kind }
    }
}

/// A piece of the author's text, for a message of one line: without control characters, and cut if it is long.
struct Shown<'a>(&'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LONGEST: usize = 120;
        for c in self.0.chars().take(LONGEST) {
            if c.is_control() {
                write!(f, "{}", c.escape_default())?;
            } else {
                write!(f, "{c}")?;
            }
        }
        f.write_str(if self.0.chars().nth(LONGEST).is_some() { "…" } else { "" })
    }
}

impl ParseError {
    /// The same error in a file's line.
    pub fn in_line(self, line: usize) -> FileError {
        FileError { line, column: self.column, kind: self.kind }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_one_short_line_whatever_the_text() {
        let text = format!("a\nb\u{7}{}", "c".repeat(1000));
        let message = ParseErrorKind::UnknownKeyword(text).to_string();
        assert!(message.starts_with("unknown keyword `a\\nb\\u{7}ccc"), "{message}");
        assert!(message.len() < 300 && !message.contains(char::is_control), "{message}");
    }
}
