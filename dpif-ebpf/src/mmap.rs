//! Maps of the kernel as memory of this process.
//!
//! An array map that was created with `BPF_F_MMAPABLE` can be mapped: its elements lie one behind the other, each padded to
//! eight bytes, and both sides see each other's stores at once. So a flow is written and a counter is read without a system
//! call. The memory is shared with programs that run meanwhile, so it is only ever accessed as atomic 64-bit words; no
//! reference to a value in it is handed out.

use std::io;
use std::marker::PhantomData;
use std::mem::{align_of, size_of};
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use aya::Pod;
use memmap2::{MmapOptions, MmapRaw};

/// A memory-mapped array of `T`.
pub(crate) struct Mapping<T> {
    memory: MmapRaw,
    len: usize,
    _type: PhantomData<fn() -> T>,
}

impl<T: Pod> Mapping<T> {
    /// Words of an element.
    const WORDS: usize = size_of::<T>() / 8;

    /// Maps the first `len` elements of a map whose values are `T`.
    pub(crate) fn new(map: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        const { assert!(size_of::<T>().is_multiple_of(8) && align_of::<T>() <= 8, "elements are whole words") };
        let memory = MmapOptions::new().len(len * size_of::<T>()).map_raw(map.as_raw_fd())?;
        Ok(Self { memory, len, _type: PhantomData })
    }

    /// Number of elements.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The words of an element; `None` beyond the end.
    pub(crate) fn words(&self, index: usize) -> Option<&[AtomicU64]> {
        if index >= self.len {
            return None;
        }
        // SAFETY: element `index` lies within the mapping, which lives as long as `self` and is aligned to a page; atomic
        // words may be shared with whoever else maps the memory.
        Some(unsafe {
            std::slice::from_raw_parts(
                self.memory.as_mut_ptr().cast::<AtomicU64>().add(index * Self::WORDS),
                Self::WORDS,
            )
        })
    }

    /// Word `word` of an element.
    pub(crate) fn word(&self, index: usize, word: usize) -> Option<&AtomicU64> {
        self.words(index)?.get(word)
    }

    /// 32-bit half `half` of an element, counted from its first byte.
    pub(crate) fn half_word(&self, index: usize, half: usize) -> Option<&AtomicU32> {
        if index >= self.len || half >= Self::WORDS * 2 {
            return None;
        }
        // SAFETY: as in `words`. A half is only used where its word isn't, so that accesses of two sizes don't mix.
        Some(unsafe { &*self.memory.as_mut_ptr().cast::<AtomicU32>().add(index * Self::WORDS * 2 + half) })
    }

    /// A copy of an element, word by word: a concurrent store may be seen in part.
    pub(crate) fn read(&self, index: usize) -> Option<T> {
        self.part(index, 0)
    }

    /// A copy of what an element has at an offset in bytes, as [`Self::read`]. `None` beyond the end of the array or of the element.
    pub(crate) fn part<U: Pod>(&self, index: usize, offset: usize) -> Option<U> {
        const { assert!(size_of::<U>().is_multiple_of(8), "a part is whole words") };
        let words = self.words(index)?.get(offset / 8..)?.get(..size_of::<U>() / 8)?;
        let mut value = std::mem::MaybeUninit::<U>::uninit();
        let to = value.as_mut_ptr().cast::<u64>();
        for (i, word) in words.iter().enumerate() {
            // SAFETY: `to` has room for the words of a `U`, which may be less aligned than a word.
            unsafe { to.add(i).write_unaligned(word.load(Ordering::Relaxed)) };
        }
        // SAFETY: all bytes are written, and every bit pattern is a value (`Pod`).
        Some(unsafe { value.assume_init() })
    }

    /// Overwrites an element, word by word. False beyond the end.
    pub(crate) fn write(&self, index: usize, value: &T) -> bool {
        let Some(words) = self.words(index) else { return false };
        let from = std::ptr::from_ref(value).cast::<u64>();
        for (i, word) in words.iter().enumerate() {
            // SAFETY: `from` holds the WORDS words of a `T`; the types here have no padding.
            word.store(unsafe { from.add(i).read_unaligned() }, Ordering::Relaxed);
        }
        true
    }
}
