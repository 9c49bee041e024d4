//! The warnings that the switch writes, whichever of its threads does.

use std::fmt::{Debug, Write};
use std::sync::Once;

use parking_lot::{Mutex, MutexGuard};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

static WARNINGS: Mutex<Vec<String>> = Mutex::new(Vec::new());
/// Whatever is written belongs to one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// Has a test to itself what is written while it runs.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| tracing::subscriber::set_global_default(Keep).unwrap());
    ALONE.lock()
}

/// What is written while something happens.
pub(crate) fn warnings<T>(happens: impl FnOnce() -> T) -> (Vec<String>, T) {
    WARNINGS.lock().clear();
    let result = happens();
    (std::mem::take(&mut *WARNINGS.lock()), result)
}

struct Keep;

impl Subscriber for Keep {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::WARN
    }

    fn event(&self, event: &Event<'_>) {
        struct Text(String);
        impl Visit for Text {
            fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
                if field.name() == "message" {
                    let _ = write!(self.0, "{value:?}");
                }
            }
        }
        let mut text = Text(String::new());
        event.record(&mut text);
        WARNINGS.lock().push(text.0);
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}
