//! Logging, as the field's tools set, read and rotate it.
//!
//! Code anywhere in the process logs with `tracing`'s macros. Here is what receives that: a subscriber whose lines
//! look like `2026-01-31T18:32:16.954Z|00001|dpif(handler3)|WARN|text`, which go to up to three destinations, the
//! system log, the console and a file. For each *module* and destination there is a level, changed while the daemon
//! runs by `vlog/set`.
//!
//! A module is not a Rust path but a name that people know; [`modules`] maps the one to the other. A message that no
//! destination wants costs a load and a branch: `tracing` remembers the verdict of each place in the code, and is told
//! to forget it when levels change.
//!
//! A message that packets can cause says how often it may appear, in messages a minute, and optionally how many at
//! once (as many as a minute's, if it doesn't say). What exceeds that is dropped, and the number dropped is logged when
//! the next one passes:
//!
//! ```
//! # let error = "";
//! tracing::warn!(rate_limit = 5, burst = 20, "upcall without a port: {error}");
//! ```

mod commands;
mod layer;
mod level;
pub mod modules;
mod pattern;
mod rate;
mod sink;
pub(crate) mod spec;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use chrono::Utc;
use parking_lot::{Mutex, RwLock};
use tracing_subscriber::layer::SubscriberExt;

pub use layer::VlogLayer;
pub use level::{Destination, Level};
pub use sink::{Syslog, SyslogError};
pub use spec::SpecError;

use level::{Levels, PerDestination};
use pattern::{Pattern, Record};
use rate::RateLimits;
use sink::LogFile;
use spec::Spec;

/// The log of a process. Clones are the same log.
#[derive(Clone)]
pub struct Vlog(Arc<Shared>);

struct Shared {
    program: String,
    started: Instant,
    modules: RwLock<Modules>,
    patterns: RwLock<PerDestination<Pattern>>,
    file: Mutex<LogFile>,
    syslog: Syslog,
    facility: Mutex<Option<u8>>,
    limits: RateLimits,
}

/// The modules and their levels.
struct Modules {
    /// The levels of a module that is not known yet.
    default: Levels,
    known: BTreeMap<String, Module>,
    /// Whether messages to the file and to the system log get anywhere.
    file_open: bool,
    syslog_open: bool,
}

#[derive(Clone)]
struct Module {
    levels: Levels,
    ignore_rate_limits: bool,
}

impl Vlog {
    /// A log for the program called `program`, with the layer that feeds it. All destinations are at [`Level::Info`].
    pub fn new(program: &str, syslog: Syslog) -> (Vlog, VlogLayer) {
        let default = Levels::all(Level::Info);
        let known =
            modules::names().map(|name| (name.to_owned(), Module { levels: default, ignore_rate_limits: false }));
        let vlog = Vlog(Arc::new(Shared {
            program: program.to_owned(),
            started: Instant::now(),
            modules: RwLock::new(Modules {
                default,
                known: known.collect(),
                file_open: false,
                syslog_open: !syslog.is_null(),
            }),
            patterns: RwLock::new(PerDestination::from_fn(|destination| Pattern::parse(destination.default_pattern()))),
            file: Mutex::new(LogFile::default()),
            syslog,
            facility: Mutex::new(None),
            limits: RateLimits::default(),
        }));
        (vlog.clone(), VlogLayer::new(vlog))
    }

    /// [`new`](Vlog::new), and everything in the process logs there. Only the first log installed takes effect.
    pub fn install(program: &str, syslog: Syslog) -> Vlog {
        let (vlog, layer) = Vlog::new(program, syslog);
        // It fails if there is one already; then this one stays silent.
        let _ = tracing::subscriber::set_global_default(tracing_subscriber::registry().with(layer));
        vlog
    }

    /// Changes levels or patterns as `spec` says: `[MODULE][:DESTINATION[:LEVEL]]` with the words in any order,
    /// `PATTERN:DESTINATION:PATTERN`, or `FACILITY:FACILITY`. What is not said is all of them; no level is the most
    /// verbose one.
    ///
    /// # Errors
    /// If a word means nothing, or two mean the same. Nothing is changed then.
    pub fn set(&self, spec: &str) -> Result<(), SpecError> {
        let spec = Spec::parse(spec, |word| self.find_module(word))?;
        match spec {
            Spec::Pattern { destination, pattern } => {
                let mut patterns = self.0.patterns.write();
                for destination in Destination::these(destination) {
                    patterns[destination] = Pattern::parse(&pattern);
                }
            }
            Spec::Facility(facility) => *self.0.facility.lock() = Some(facility),
            Spec::Levels { module, destination, level } => {
                self.0.modules.write().set(module.as_deref(), destination, level);
                forget_verdicts();
            }
        }
        Ok(())
    }

    /// Logs to the file at `path` from now on. The file is appended to, and made if it isn't there.
    ///
    /// # Errors
    /// If it can't be opened; a file that was open stays so.
    pub fn set_file(&self, path: &Path) -> io::Result<()> {
        let (new, same) = {
            let file = self.0.file.lock();
            let new = LogFile::open(path)?;
            let same = file.is_same(&new);
            (new, same)
        };
        if same {
            return Ok(());
        }
        if self.0.file.lock().is_open() {
            tracing::info!("closing log file");
        }
        *self.0.file.lock() = new;
        self.note_file();
        tracing::info!("opened log file {}", path.display());
        Ok(())
    }

    /// Opens the log file again under its name, as after it was renamed. Without a file it does nothing.
    ///
    /// # Errors
    /// If it can't be opened; then what is open stays so.
    pub fn reopen(&self) -> io::Result<()> {
        let Some(path) = self.file_path() else { return Ok(()) };
        self.set_file(&path).inspect_err(|error| {
            tracing::warn!("failed to open {} for logging: {error}", path.display());
        })
    }

    /// Closes the log file; [`reopen`](Vlog::reopen) opens it again.
    pub fn close(&self) {
        self.0.file.lock().close();
        self.note_file();
    }

    /// The name of the log file, whether it is open or not.
    pub fn file_path(&self) -> Option<PathBuf> {
        self.0.file.lock().path().map(Path::to_owned)
    }

    /// Logs at [`Level::Emer`] what the process can't go on after; not to the console, where it says so as it ends.
    pub fn emergency(&self, module: &str, text: &str) {
        self.0.log(module, Level::Emer, text);
    }

    /// Whether rate limits hold for the module called `module`, or for all.
    ///
    /// # Errors
    /// If there is no such module.
    pub fn honor_rate_limits(&self, module: Option<&str>, honor: bool) -> Result<(), UnknownModule> {
        let mut modules = self.0.modules.write();
        let chosen: Vec<&mut Module> = match module {
            None => modules.known.values_mut().collect(),
            Some(name) => {
                let found = modules.known.iter_mut().find(|(known, _)| known.eq_ignore_ascii_case(name));
                vec![found.ok_or(UnknownModule)?.1]
            }
        };
        chosen.into_iter().for_each(|module| module.ignore_rate_limits = !honor);
        Ok(())
    }

    /// The table of `vlog/list`.
    pub fn levels(&self) -> String {
        let mut out = String::from("                 console    syslog    file\n");
        out.push_str("                 -------    ------    ------\n");
        for (name, module) in &self.0.modules.read().known {
            let [syslog, console, file] = Destination::ALL.map(|destination| module.levels[destination].name());
            let unlimited = if module.ignore_rate_limits { "    (rate limiting disabled)" } else { "" };
            out.push_str(&format!("{name:<16}  {console:>4}       {syslog:>4}       {file:>4}{unlimited}\n"));
        }
        out
    }

    /// The table of `vlog/list-pattern`.
    pub fn patterns(&self) -> String {
        let mut out = String::from("         prefix                            format\n");
        out.push_str("         ------                            ------\n");
        let patterns = self.0.patterns.read();
        for destination in Destination::ALL {
            let prefix = match destination {
                Destination::Syslog => self.0.syslog.prefix(),
                _ => "none",
            };
            out.push_str(&format!("{:<7}  {prefix:<32}  {}\n", destination.name(), patterns[destination].text()));
        }
        out
    }

    /// The name of the module called `name` in whatever case.
    fn find_module(&self, name: &str) -> Option<String> {
        self.0.modules.read().known.keys().find(|known| known.eq_ignore_ascii_case(name)).cloned()
    }

    /// Tells the levels whether the file takes messages.
    fn note_file(&self) {
        let open = self.0.file.lock().is_open();
        self.0.modules.write().file_open = open;
        forget_verdicts();
    }
}

/// Makes `tracing` ask again what is wanted.
fn forget_verdicts() {
    // One at a time: of two at once the one with the older answer could be the last to store it.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock();
    tracing::callsite::rebuild_interest_cache();
}

/// A module that nobody knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("unknown module")]
pub struct UnknownModule;

impl Modules {
    fn set(&mut self, module: Option<&str>, destination: Option<Destination>, level: Level) {
        for destination in Destination::these(destination) {
            match module {
                Some(name) => {
                    if let Some(module) = self.known.get_mut(name) {
                        module.levels[destination] = level;
                    }
                }
                None => {
                    self.default[destination] = level;
                    self.known.values_mut().for_each(|module| module.levels[destination] = level);
                }
            }
        }
    }

    /// The least severe level that some destination wants from a module.
    fn verbosity(&self, levels: &Levels) -> Level {
        let takes = |destination: &Destination| match destination {
            Destination::Console => true,
            Destination::File => self.file_open,
            Destination::Syslog => self.syslog_open,
        };
        Destination::ALL.into_iter().filter(takes).map(|d| levels[d]).max().unwrap_or(Level::Off)
    }

    /// The same for the module called `name`, which becomes known.
    fn verbosity_of(&mut self, name: &str) -> Level {
        if !self.known.contains_key(name) {
            self.known.insert(name.to_owned(), Module { levels: self.default, ignore_rate_limits: false });
        }
        self.known.get(name).map_or(Level::Off, |module| self.verbosity(&module.levels))
    }

    /// The same for the most verbose module.
    fn most_verbose(&self) -> Level {
        let known = self.known.values().map(|module| &module.levels);
        known.chain([&self.default]).map(|levels| self.verbosity(levels)).max().unwrap_or(Level::Off)
    }
}

impl Shared {
    /// Sends a message to the destinations that want it.
    fn log(&self, module: &str, level: Level, text: &str) {
        let levels = {
            let modules = self.modules.read();
            modules.known.get(module).map_or(modules.default, |module| module.levels)
        };
        let wanted =
            |destination| levels[destination] >= level && (destination, level) != (Destination::Console, Level::Emer);
        if !Destination::ALL.into_iter().any(wanted) {
            return;
        }
        let thread = std::thread::current();
        let record = Record {
            program: &self.program,
            module,
            level,
            text: text.trim_end_matches('\n'),
            thread: thread.name().filter(|name| *name != "main"),
            sequence: layer::next_sequence(),
            time: Utc::now(),
            uptime: self.started.elapsed(),
            facility: self.facility.lock().unwrap_or(Syslog::LOCAL0),
        };
        let patterns = self.patterns.read();
        if wanted(Destination::Console) {
            sink::write_console(&patterns[Destination::Console].line(&record));
        }
        if wanted(Destination::Syslog) {
            let facility = self.facility.lock().unwrap_or(Syslog::DAEMON);
            self.syslog.send(facility, &record, &patterns[Destination::Syslog].line(&record));
        }
        if wanted(Destination::File) {
            self.file.lock().write(&patterns[Destination::File].line(&record));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is wanted is remembered for the process as a whole, so logs that change levels take turns.
    pub(in crate::vlog) static TURN: Mutex<()> = Mutex::new(());

    /// Runs `work` with a log of its own that goes to a file only, and returns the lines of the file after their time.
    fn logged(work: impl FnOnce(&Vlog)) -> Vec<String> {
        let _turn = TURN.lock();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let (vlog, layer) = Vlog::new("test", Syslog::null());
        vlog.set("console:off").unwrap();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            vlog.set_file(&path).unwrap();
            work(&vlog);
        });
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|line| line.split_once('|').unwrap().1.to_owned()).collect()
    }

    #[test]
    fn a_line_has_sequence_module_thread_level_and_text() {
        let lines = logged(|vlog| {
            tracing::info!(target: "bridge", "added {}", "br0");
            tracing::error!(target: "some_crate::deep::inside", code = 5, name = "x", "failed\n");
            tracing::debug!(target: "bridge", "not wanted");
            vlog.emergency("vswitchd", "the end");
        });
        let thread = std::thread::current().name().unwrap().to_owned();
        let after_sequence: Vec<&str> = lines.iter().map(|line| line.split_once('|').unwrap().1).collect();
        assert_eq!(
            after_sequence[1..],
            [
                format!("bridge({thread})|INFO|added br0"),
                format!("some_crate({thread})|ERR|failed code=5 name=x"),
                format!("vswitchd({thread})|EMER|the end"),
            ]
        );
        let sequence: Vec<u32> = lines.iter().map(|line| line.split('|').next().unwrap().parse().unwrap()).collect();
        assert!(sequence.windows(2).all(|pair| pair[1] == pair[0] + 1), "{sequence:?}");
    }

    #[test]
    fn levels_are_per_module_and_change_at_once() {
        let say = || {
            tracing::debug!(target: "bridge", "b");
            tracing::debug!(target: "dpif", "d");
        };
        let count = |lines: &[String], end: &str| lines.iter().filter(|line| line.ends_with(end)).count();
        let lines = logged(|vlog| {
            say();
            vlog.set("bridge:file:dbg").unwrap();
            say();
            vlog.set("dbg").unwrap();
            vlog.set("console:off").unwrap();
            say();
            vlog.set("file:off").unwrap();
            say();
        });
        assert_eq!((count(&lines, "|b"), count(&lines, "|d")), (2, 1), "{lines:?}");
    }

    #[test]
    fn a_module_met_later_has_the_level_set_for_all() {
        let lines = logged(|vlog| {
            vlog.set("file:dbg").unwrap();
            tracing::debug!(target: "met_later", "seen");
            assert!(vlog.levels().contains("met_later          OFF       INFO        DBG\n"), "{}", vlog.levels());
        });
        assert!(lines.iter().any(|line| line.contains("met_later")));
    }

    #[test]
    fn what_nobody_wants_is_not_even_formatted() {
        let lines = logged(|vlog| {
            let format = || -> String { panic!("formatted") };
            tracing::debug!(target: "bridge", "{}", format());
            assert!(!tracing::enabled!(target: "bridge", tracing::Level::DEBUG));
            vlog.set("bridge:file:dbg").unwrap();
            assert!(tracing::enabled!(target: "bridge", tracing::Level::DEBUG));
            vlog.close();
            assert!(!tracing::enabled!(target: "bridge", tracing::Level::ERROR));
        });
        assert!(lines.iter().all(|line| !line.contains("DBG")));
    }

    #[test]
    fn a_file_renamed_away_is_made_again_by_reopening() {
        let _turn = TURN.lock();
        let directory = tempfile::tempdir().unwrap();
        let (path, old) = (directory.path().join("log"), directory.path().join("old"));
        let (vlog, layer) = Vlog::new("test", Syslog::null());
        vlog.set("console:off").unwrap();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            vlog.reopen().unwrap();
            vlog.set_file(&path).unwrap();
            tracing::info!("first");
            vlog.reopen().unwrap();
            std::fs::rename(&path, &old).unwrap();
            tracing::info!("second");
            vlog.reopen().unwrap();
            tracing::info!("third");
            vlog.close();
            tracing::info!("fourth");
            vlog.reopen().unwrap();
            std::fs::remove_file(&path).unwrap();
            std::fs::create_dir(&path).unwrap();
            assert!(vlog.reopen().is_err());
        });
        let text = std::fs::read_to_string(old).unwrap();
        let texts: Vec<&str> = text.lines().map(|line| line.rsplit('|').next().unwrap()).collect();
        let opened = format!("opened log file {}", path.display());
        let failed = format!("failed to open {} for logging: Is a directory (os error 21)", path.display());
        assert_eq!(texts[..4], [opened.as_str(), "first", "second", "closing log file"]);
        assert!(!text.contains("third") && !text.contains("fourth") && !text.contains(&failed));
    }

    #[test]
    fn tables_have_the_fields_layout() {
        let _turn = TURN.lock();
        let (vlog, _layer) = Vlog::new("test", Syslog::null());
        vlog.set("unixctl:console:warn").unwrap();
        vlog.set("unixctl syslog,off").unwrap();
        vlog.honor_rate_limits(Some("UNIXCTL"), false).unwrap();
        assert_eq!(vlog.honor_rate_limits(Some("nonsense"), true), Err(UnknownModule));
        let table = vlog.levels();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(
            lines[..2],
            ["                 console    syslog    file", "                 -------    ------    ------"]
        );
        assert!(lines.contains(&"unixctl           WARN        OFF       INFO    (rate limiting disabled)"), "{table}");
        assert!(lines[2..].is_sorted());
        vlog.set("PATTERN:file:%p: %m").unwrap();
        assert_eq!(
            vlog.patterns(),
            "         prefix                            format
         ------                            ------
SYSLOG   none                              ovs|%05N|%c%T|%p|%m
CONSOLE  none                              %D{%Y-%m-%dT%H:%M:%S.###Z}|%05N|%c%T|%p|%m
FILE     none                              %p: %m
"
        );
    }

    #[test]
    fn a_message_that_comes_too_often_is_dropped_and_counted() {
        let lines = logged(|vlog| {
            let flood = || {
                for i in 0..10 {
                    tracing::warn!(target: "dpif", rate_limit = 5, burst = 3, "message {i}");
                }
            };
            flood();
            vlog.honor_rate_limits(None, false).unwrap();
            flood();
        });
        let texts: Vec<&str> = lines.iter().skip(1).map(|line| line.rsplit('|').next().unwrap()).collect();
        let expected: Vec<String> = (0..3).chain(0..10).map(|i| format!("message {i}")).collect();
        assert_eq!(texts, expected);
    }
}
