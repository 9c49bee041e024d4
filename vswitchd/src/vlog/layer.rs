//! From a `tracing` event to a message of the log.

use std::cell::Cell;
use std::fmt;
use std::fmt::Write;
use std::time::Instant;

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::level::Level;
use super::modules;
use super::rate::{Limit, Verdict};
use super::{Destination, Vlog};

/// The layer that feeds a [`Vlog`].
pub struct VlogLayer(Vlog);

impl VlogLayer {
    pub(super) fn new(vlog: Vlog) -> VlogLayer {
        VlogLayer(vlog)
    }

    fn wants(&self, metadata: &Metadata<'_>) -> bool {
        let module = modules::of(metadata.target());
        !metadata.is_span() && Level::of(metadata.level()) <= self.0.0.modules.write().verbosity_of(module)
    }

    /// The text of a message, unless its limit says no.
    fn log(&self, event: &Event<'_>) {
        let metadata = event.metadata();
        let (module, level) = (modules::of(metadata.target()), Level::of(metadata.level()));
        let mut message = Message::default();
        event.record(&mut message);
        let shared = &self.0.0;
        if let Some(limit) = message.limit()
            && !shared.modules.read().known.get(module).is_some_and(|module| module.ignore_rate_limits)
        {
            match shared.limits.take(metadata.callsite(), limit, Instant::now()) {
                Verdict::Drop => return,
                Verdict::Pass => {}
                Verdict::PassAfter(dropped) => shared.log(module, level, &dropped),
            }
        }
        shared.log(module, level, &message.text());
    }
}

impl<S: Subscriber> Layer<S> for VlogLayer {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        match self.wants(metadata) {
            true => Interest::always(),
            false => Interest::never(),
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        self.wants(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(match self.0.0.modules.read().most_verbose() {
            Level::Off | Level::Emer => LevelFilter::OFF,
            Level::Err => LevelFilter::ERROR,
            Level::Warn => LevelFilter::WARN,
            Level::Info => LevelFilter::INFO,
            Level::Dbg => LevelFilter::TRACE,
        })
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        self.log(event);
    }
}

/// The number of the next message of this thread, from 1.
pub(super) fn next_sequence() -> u32 {
    thread_local! {
        static SEQUENCE: Cell<u32> = const { Cell::new(0) };
    }
    SEQUENCE.try_with(|sequence| sequence.replace(sequence.get().wrapping_add(1)).wrapping_add(1)).unwrap_or(0)
}

/// The parts of an event.
#[derive(Default)]
struct Message {
    text: String,
    /// The named values, as ` name=value` each.
    values: String,
    rate: Option<u64>,
    burst: Option<u64>,
}

impl Message {
    fn text(mut self) -> String {
        // A newline at the end belongs to the message, the values to the line.
        self.text.truncate(self.text.trim_end_matches('\n').len());
        self.text.push_str(if self.text.is_empty() { self.values.trim_start() } else { &self.values });
        self.text
    }

    fn limit(&self) -> Option<Limit> {
        self.rate.map(|rate| Limit { rate, burst: self.burst.unwrap_or(rate) })
    }

    fn number(&mut self, field: &Field, number: u64) -> bool {
        match field.name() {
            "rate_limit" => self.rate = Some(number),
            "burst" => self.burst = Some(number),
            _ => return false,
        }
        true
    }
}

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string can't fail, unless the value refuses to be written.
        let _ = match field.name() {
            "message" => write!(self.text, "{value:?}"),
            name => write!(self.values, " {name}={value:?}"),
        };
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        if !self.number(field, value) {
            self.record_debug(field, &value);
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        if !u64::try_from(value).is_ok_and(|value| self.number(field, value)) {
            self.record_debug(field, &value);
        }
    }
}

impl fmt::Debug for Vlog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = Destination::ALL.map(Destination::name);
        write!(f, "Vlog({} to {names:?})", self.0.program)
    }
}
