//! What the guest's kernel says on its console: kept, and searched for the end of the world.

use std::collections::VecDeque;

/// Lines that are kept for people.
const KEPT: usize = 60;
/// Longest line that is looked at.
const MAX_LINE: usize = 4096;

/// The console of one boot.
#[derive(Default)]
pub(crate) struct Console {
    lines: VecDeque<String>,
    partial: Vec<u8>,
    fatal: Option<String>,
    warnings: Vec<String>,
}

/// After these the kernel is not to be trusted any more.
const FATAL: [&str; 6] = [
    "Kernel panic - not syncing",
    "BUG: unable to handle",
    "BUG: kernel NULL pointer",
    "general protection fault",
    "Oops: ",
    "Initramfs unpacking failed",
];
/// These are told, and the guest goes on: a slow host alone can cause some.
const WARNINGS: [&str; 6] =
    ["WARNING: ", "BUG: ", "rcu: INFO: rcu", "watchdog: ", "blocked for more than", "possible circular locking"];

impl Console {
    /// Takes in bytes as they come.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match byte {
                b'\n' => {
                    let line = String::from_utf8_lossy(&std::mem::take(&mut self.partial)).trim_end().to_owned();
                    self.line(line);
                }
                _ if self.partial.len() < MAX_LINE => self.partial.push(*byte),
                _ => {}
            }
        }
    }

    fn line(&mut self, line: String) {
        let has = |words: &[&str]| words.iter().any(|word| line.contains(word));
        if has(&FATAL) {
            self.fatal.get_or_insert_with(|| line.clone());
        } else if has(&WARNINGS) {
            self.warnings.push(line.clone());
        }
        if self.lines.len() == KEPT {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    /// The first line that says that the kernel is broken.
    pub(crate) fn fatal(&self) -> Option<&str> {
        self.fatal.as_deref()
    }

    /// Complaints of the kernel that it survived.
    pub(crate) fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The last lines.
    pub(crate) fn tail(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_seen_however_its_bytes_come() {
        let text =
            "[    1.0] fine\r\n[    2.0] Kernel panic - not syncing: Attempted to kill init!\r\n[    2.1] Oops: 0\r\n";
        for size in [1, 7, 1000] {
            let mut console = Console::default();
            text.as_bytes().chunks(size).for_each(|chunk| console.feed(chunk));
            let expected = "[    2.0] Kernel panic - not syncing: Attempted to kill init!";
            assert_eq!((console.fatal(), console.tail().count()), (Some(expected), 3));
        }
    }

    #[test]
    fn a_stall_is_a_warning() {
        let mut console = Console::default();
        console.feed(b"[ 30.0] watchdog: BUG: soft lockup - CPU#1 stuck for 22s!\n[ 31.0] all is well\n");
        assert_eq!(console.fatal(), None);
        assert_eq!(console.warnings(), ["[ 30.0] watchdog: BUG: soft lockup - CPU#1 stuck for 22s!"]);
    }

    #[test]
    fn what_never_ends_does_not_fill_the_memory() {
        let mut console = Console::default();
        console.feed(&vec![b'x'; 100_000]);
        console.feed(b"\n");
        (0..1000).for_each(|i| console.feed(format!("{i}\n").as_bytes()));
        assert_eq!((console.tail().count(), console.tail().last()), (KEPT, Some("999")));
    }
}
