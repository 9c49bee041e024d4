//! When a thread runs that packets wake.

use std::io;

use crate::packet_socket::check;

/// Whether from now on the calling thread, when it wakes, lets the thread finish that has the processor: it runs when a processor is free,
/// when that one sleeps, or at the end of its turn, some milliseconds later at most (`SCHED_BATCH`, sched(7)). A thread that was given
/// another policy than the usual one keeps it; this says whether it has the one asked for.
pub fn let_others_finish(finish: bool) -> io::Result<bool> {
    let wanted = if finish { libc::SCHED_BATCH } else { libc::SCHED_OTHER };
    // SAFETY: no pointers.
    let now = check(unsafe { libc::sched_getscheduler(0) })?;
    if ![libc::SCHED_OTHER, libc::SCHED_BATCH].contains(&now) {
        return Ok(false);
    }
    let parameter = libc::sched_param { sched_priority: 0 };
    // SAFETY: the pointer is that of the live `parameter`.
    check(unsafe { libc::sched_setscheduler(0, wanted, &raw const parameter) })?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> i32 {
        // SAFETY: no pointers.
        unsafe { libc::sched_getscheduler(0) }
    }

    #[test]
    fn a_thread_lets_others_finish_and_its_parent_does_not() {
        let before = policy();
        let changes = || [true, false].map(|finish| (let_others_finish(finish).expect("to be allowed"), policy()));
        let changed = std::thread::spawn(changes).join().expect("to run");
        let usual = [libc::SCHED_OTHER, libc::SCHED_BATCH].contains(&before);
        let expected =
            if usual { [(true, libc::SCHED_BATCH), (true, libc::SCHED_OTHER)] } else { [(false, before); 2] };
        assert_eq!((changed, policy()), (expected, before));
    }
}
