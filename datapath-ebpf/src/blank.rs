//! Blanks of the programs, which whoever loads them fills in ([`datapath_common::blanks`]).

use core::arch::asm;
use core::marker::PhantomData;

use datapath_common::blanks::{ADDRESS, BOUND, SERVES};

/// A value that the compiler doesn't know and the verifier does. It is taken anew each time: kept for later it would lie on the stack.
#[inline(always)]
pub fn value<const VALUE: u32>() -> u64 {
    let value: u64;
    // SAFETY: moves a constant to a register.
    unsafe { asm!("{0} = {1}", out(reg) value, const VALUE, options(nomem, nostack)) };
    value
}

/// Whether the program serves one of these needs, which is likely. The jump becomes one that is always taken or never, and the verifier
/// takes that out: so it costs no instruction, and no register if `at_hand`, which may be any number, is in one.
#[inline(always)]
pub fn serves<const NEEDS: u16>(at_hand: u64) -> bool {
    // SAFETY: a jump.
    unsafe {
        asm!(
            "if {0} < {1} goto {2}",
            in(reg) at_hand,
            const SERVES + NEEDS as u32,
            label {
                // The verifier takes a jump out only if nobody else comes to where it leads. SAFETY: moves a register to itself.
                unsafe { asm!("{0} = {0}", inout(reg) at_hand => _, options(nomem, nostack)) };
                return false;
            },
            options(nomem, nostack),
        );
    }
    true
}

/// As [`serves`], of what is not likely. (What the compiler doesn't expect it puts elsewhere, and jumps there and back.)
#[inline(always)]
pub fn even_serves<const NEEDS: u16>(at_hand: u64) -> bool {
    // SAFETY: a jump.
    unsafe {
        asm!("if {0} >= {1} goto {2}", in(reg) at_hand, const SERVES + NEEDS as u32, label { return true }, options(nomem, nostack));
    }
    false
}

/// A map whose elements are all in one value, as many as a power of two. To find one costs two instructions, without the helper's
/// detour, and without a branch for the verifier to walk twice.
pub struct Direct<T, const MAP: u32>(PhantomData<T>);

// SAFETY: it has nothing of its own; what it leads to is shared with userspace and other CPUs as elements of other maps are.
unsafe impl<T, const MAP: u32> Sync for Direct<T, MAP> {}

impl<T, const MAP: u32> Direct<T, MAP> {
    /// The map of this number ([`datapath_common::blanks::Direct`]), whose elements are `T`.
    ///
    /// # Safety
    /// They are.
    pub const unsafe fn new() -> Self {
        Self(PhantomData)
    }

    /// An element. Of a number that is too high some bits don't count.
    #[inline(always)]
    pub fn at(&self, number: u32) -> *mut T {
        let (mut number, first) = (u64::from(number), self.first());
        // SAFETY: changes a register; the number is below that of the elements then.
        unsafe {
            asm!("{0} &= {1}", inout(reg) number, const BOUND + MAP, options(nomem, nostack));
            first.add(number as usize)
        }
    }

    /// As [`Self::at`].
    #[inline(always)]
    pub fn get(&self, number: u32) -> &'static T {
        // SAFETY: an element of a map that outlives the program.
        unsafe { &*self.at(number) }
    }

    #[inline(always)]
    fn first(&self) -> *mut T {
        let first: *mut T;
        // SAFETY: takes a constant to a register.
        unsafe { asm!("{0} = {1} ll", out(reg) first, const address(MAP), options(nomem, nostack)) };
        first
    }
}

const fn address(map: u32) -> u64 {
    let half = (ADDRESS + map) as u64;
    half << 32 | half
}
