//! The words of `vlog/set` and `-v`.

use super::level::{Destination, Level};
use super::sink::Syslog;

/// What a specification says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Spec {
    /// Set a level; `None` is all.
    Levels { module: Option<String>, destination: Option<Destination>, level: Level },
    /// Set how lines look.
    Pattern { destination: Option<Destination>, pattern: String },
    /// Set the facility of the system log.
    Facility(u8),
}

/// A specification that means nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpecError {
    /// `PATTERN` without a destination.
    #[error("missing destination")]
    MissingDestination,
    /// `PATTERN` with a destination that isn't one.
    #[error("unknown destination \"{0}\"")]
    UnknownDestination(String),
    /// `FACILITY` with a facility that isn't one.
    #[error("invalid facility")]
    UnknownFacility,
    /// Two words of one kind.
    #[error("cannot specify multiple {0}s")]
    Multiple(&'static str),
    /// A word of no kind.
    #[error("no destination, level, or module \"{0}\"")]
    UnknownWord(String),
}

const SEPARATORS: [char; 4] = [' ', ',', ':', '\t'];

impl Spec {
    /// Reads a specification. `find_module` gives the name of the module that a word means.
    pub(crate) fn parse(text: &str, find_module: impl Fn(&str) -> Option<String>) -> Result<Spec, SpecError> {
        let (first, rest) = split_word(text);
        if first.eq_ignore_ascii_case("PATTERN") {
            let (word, pattern) = split_word(rest);
            let destination = match word {
                "" => return Err(SpecError::MissingDestination),
                any if any.eq_ignore_ascii_case("ANY") => None,
                word => {
                    Some(Destination::from_name(word).ok_or_else(|| SpecError::UnknownDestination(word.to_owned()))?)
                }
            };
            return Ok(Spec::Pattern { destination, pattern: pattern.to_owned() });
        }
        if first.eq_ignore_ascii_case("FACILITY") {
            return Syslog::facility(rest).map(Spec::Facility).ok_or(SpecError::UnknownFacility);
        }
        let (mut module, mut destination, mut level) = (None, None, None);
        for word in text.split(SEPARATORS).filter(|word| !word.is_empty() && !word.eq_ignore_ascii_case("ANY")) {
            if let Some(found) = Destination::from_name(word) {
                once(&mut destination, found, "destination")?;
            } else if let Some(found) = Level::from_name(word) {
                once(&mut level, found, "level")?;
            } else if let Some(found) = find_module(word) {
                once(&mut module, found, "module")?;
            } else {
                return Err(SpecError::UnknownWord(word.to_owned()));
            }
        }
        Ok(Spec::Levels { module, destination, level: level.unwrap_or(Level::Dbg) })
    }
}

fn once<T>(place: &mut Option<T>, value: T, what: &'static str) -> Result<(), SpecError> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(SpecError::Multiple(what)),
    }
}

/// The first word, and what follows the separator behind it.
fn split_word(text: &str) -> (&str, &str) {
    let text = text.trim_start_matches(SEPARATORS);
    text.split_once(SEPARATORS).unwrap_or((text, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Spec, SpecError> {
        Spec::parse(text, |word| {
            ["bridge", "dpif"].into_iter().find(|m| m.eq_ignore_ascii_case(word)).map(str::to_owned)
        })
    }

    #[test]
    fn words_may_come_in_any_order_and_case() {
        for (text, module, destination, level) in [
            ("", None, None, Level::Dbg),
            ("ANY:ANY:ANY", None, None, Level::Dbg),
            ("bridge", Some("bridge"), None, Level::Dbg),
            ("info", None, None, Level::Info),
            ("any:console:err", None, Some(Destination::Console), Level::Err),
            ("file,WARN,Bridge", Some("bridge"), Some(Destination::File), Level::Warn),
            ("::syslog  off\t", None, Some(Destination::Syslog), Level::Off),
            ("dpif emer", Some("dpif"), None, Level::Emer),
        ] {
            let expected = Spec::Levels { module: module.map(str::to_owned), destination, level };
            assert_eq!(parse(text), Ok(expected), "{text:?}");
        }
    }

    #[test]
    fn a_pattern_keeps_its_separators() {
        for (text, destination, pattern) in [
            ("PATTERN:file:%D{%H:%M} %m", Some(Destination::File), "%D{%H:%M} %m"),
            ("pattern any %m", None, "%m"),
            ("PATTERN:console:", Some(Destination::Console), ""),
        ] {
            assert_eq!(parse(text), Ok(Spec::Pattern { destination, pattern: pattern.to_owned() }), "{text:?}");
        }
        assert_eq!(parse("FACILITY:local3"), Ok(Spec::Facility(19 << 3)));
    }

    #[test]
    fn what_means_nothing_is_refused_in_the_fields_words() {
        for (text, error) in [
            ("nonsense", "no destination, level, or module \"nonsense\""),
            ("file:console", "cannot specify multiple destinations"),
            ("info dbg", "cannot specify multiple levels"),
            ("bridge:dpif", "cannot specify multiple modules"),
            ("PATTERN", "missing destination"),
            ("PATTERN:printer:%m", "unknown destination \"printer\""),
            ("FACILITY:kitchen", "invalid facility"),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), error, "{text:?}");
        }
    }
}
