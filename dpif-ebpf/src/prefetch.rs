//! Memory that is going to be used soon.
//!
//! A new flow is written to a dozen cache lines that nobody has used for long. A processor that is told of them early has them when they
//! are written; otherwise the next lock waits for each.

/// Lets the processor fetch the cache line in which `place` begins.
#[inline]
pub(crate) fn fetch<T>(place: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint, which reads and writes nothing; every processor of this kind has it.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(place).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// Lets the processor fetch the cache lines of these words.
#[inline]
pub(crate) fn fetch_all<T>(words: &[T]) {
    const LINE: usize = 64;
    words.chunks((LINE / size_of::<T>()).max(1)).filter_map(|line| line.first()).for_each(fetch);
}
