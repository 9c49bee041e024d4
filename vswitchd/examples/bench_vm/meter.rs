//! Counting instructions of the whole machine.
//!
//! QEMU's `-icount shift=0` makes the time stamp counter go by one for each instruction that the machine's one processor runs
//! (how much exactly is found by known loops). An idle processor jumps to its next timer instead, which says nothing: while
//! something is measured, a thread that runs only when nobody else wants to keeps it busy, and counts how often it went round
//! a loop of three instructions. What the counter went on by, less that, is what all others ran: kernel, daemons, sender.

use std::arch::asm;
use std::arch::x86_64::_rdtsc;
use std::io::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Instructions of the spare thread's loop.
const SPARE_LOOP: f64 = 3.0;
/// Rounds of the loops that calibrate: so few that most runs are over before anything interrupts them.
const ROUNDS: u64 = 20_000;
/// Runs of each.
const RUNS: usize = 500;
/// How far two kinds of loops may differ in ticks per instruction.
const TOLERANCE: f64 = 0.02;
/// The machine is at rest when it runs no more than this share of the instructions that it could.
const REST: f64 = 0.01;
/// How long that may take, in tenths of a second.
const PATIENCE: usize = 100;

/// A counter of instructions.
pub(crate) struct Meter {
    ticks_per_instruction: f64,
}

impl Meter {
    /// Calibrates.
    pub(crate) fn new() -> Result<Self> {
        // The least of many runs: interrupts and other threads only add.
        let least = |run: fn(u64) -> u64, instructions: u64| {
            let ticks = (0..RUNS).map(|_| ticks_of(|| run(ROUNDS))).min().unwrap_or(0);
            ticks as f64 / (ROUNDS * instructions) as f64
        };
        let (plain, memory) = (least(plain_loop, 2), least(memory_loop, 6));
        if !(plain > 0.0 && (memory / plain - 1.0).abs() < TOLERANCE) {
            return Err(Error::other(format!(
                "{plain:.3} and {memory:.3} ticks per instruction: the clock doesn't count instructions (-icount shift=0)"
            )));
        }
        let meter = Self { ticks_per_instruction: plain };
        // What the boot has left to do would count as somebody's.
        let at_rest = || {
            let (instructions, ticks) = meter.count(|| ticks_of(|| thread::sleep(Duration::from_millis(100))));
            instructions < REST * ticks as f64
        };
        if (0..PATIENCE).any(|_| at_rest()) {
            return Ok(meter);
        }
        Err(Error::other("the machine does not come to rest"))
    }

    pub(crate) fn ticks_per_instruction(&self) -> f64 {
        self.ticks_per_instruction
    }

    /// What an instruction takes by the machine's clock.
    pub(crate) fn ns_per_instruction(&self) -> f64 {
        const INSTRUCTIONS: u64 = 100_000_000;
        let start = Instant::now();
        let ticks = ticks_of(|| plain_loop(INSTRUCTIONS / 2));
        start.elapsed().as_nanos() as f64 * self.ticks_per_instruction / ticks as f64
    }

    /// Instructions that the machine runs during `work`, idling not counted, and what `work` returns.
    pub(crate) fn count<T>(&self, work: impl FnOnce() -> T) -> (f64, T) {
        let spare = Spare::start();
        let (ticks, rounds) = (ticks(), spare.rounds());
        let value = work();
        let (ticks, rounds) = (self::ticks() - ticks, spare.rounds() - rounds);
        spare.stop();
        (ticks as f64 / self.ticks_per_instruction - rounds as f64 * SPARE_LOOP, value)
    }
}

/// The thread that keeps the processor busy.
struct Spare {
    shared: Arc<(AtomicU64, AtomicBool)>,
    thread: thread::JoinHandle<()>,
}

impl Spare {
    fn start() -> Self {
        let shared = Arc::new((AtomicU64::new(0), AtomicBool::new(false)));
        let of_thread = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            let parameter = libc::sched_param { sched_priority: 0 };
            // SAFETY: the pointer is that of the live `parameter`.
            let set = unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameter) };
            assert_eq!(set, 0, "no SCHED_IDLE: {}", Error::last_os_error());
            go_round(&of_thread.0, &of_thread.1);
        });
        let spare = Self { shared, thread };
        while spare.rounds() == 0 {
            thread::sleep(Duration::from_millis(1));
        }
        spare
    }

    fn rounds(&self) -> u64 {
        self.shared.0.load(Ordering::Relaxed)
    }

    fn stop(self) {
        self.shared.1.store(true, Ordering::Relaxed);
        // It can't panic once it goes round.
        let _ = self.thread.join();
    }
}

/// Counts rounds of [`SPARE_LOOP`] instructions until it is stopped.
fn go_round(rounds: &AtomicU64, stop: &AtomicBool) {
    // SAFETY: both pointers are those of live atomics; nobody else writes the first, so that a plain addition loses nothing.
    unsafe {
        asm!(
            "2:",
            "add qword ptr [{rounds}], 1",
            "cmp byte ptr [{stop}], 0",
            "je 2b",
            rounds = in(reg) rounds.as_ptr(),
            stop = in(reg) stop.as_ptr(),
            options(nostack)
        );
    }
}

/// Two instructions a round.
fn plain_loop(rounds: u64) -> u64 {
    let mut left = rounds;
    // SAFETY: only the register is changed.
    unsafe { asm!("2:", "dec {left}", "jnz 2b", left = inout(reg) left, options(nomem, nostack)) };
    left
}

/// Six instructions a round, most of which are slow on real processors.
fn memory_loop(rounds: u64) -> u64 {
    let mut word = 1_u64;
    let mut left = rounds;
    // SAFETY: the memory is that of the live `word`; the registers are told.
    unsafe {
        asm!(
            "2:",
            "mov {value}, qword ptr [{word}]",
            "imul {value}, {value}",
            "mov qword ptr [{word}], {value}",
            "xchg qword ptr [{word}], {value}",
            "dec {left}",
            "jnz 2b",
            word = in(reg) &raw mut word,
            value = out(reg) _,
            left = inout(reg) left,
            options(nostack)
        );
    }
    left + word
}

fn ticks_of<T>(work: impl FnOnce() -> T) -> u64 {
    let before = ticks();
    std::hint::black_box(work());
    ticks() - before
}

fn ticks() -> u64 {
    // SAFETY: every processor that these programs run on has the instruction.
    unsafe { _rdtsc() }
}
