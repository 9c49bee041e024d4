//! How packet bytes are loaded, for the contexts of both hooks.

/// Offsets up to here are loaded directly; headers that lie deeper take the helper.
pub(crate) const DIRECT: u32 = 2047;

/// Loads for `$packet`, a pointer to the context `$context`, which has `data` and `data_end`; `$helper` loads what lies behind these.
macro_rules! loads {
    ($packet:ident, $context:ty, $helper:path) => {
        impl $packet {
            /// The packet, if its first [`HEAD`](datapath_common::extract::HEAD) bytes are in one piece.
            #[inline(always)]
            pub fn head(self) -> Option<$crate::head::Head<Self>> {
                // SAFETY: the context is the kernel's; the pointer is compared with the end.
                unsafe {
                    let at = (*self.0).data as usize as *const u8;
                    let end = (*self.0).data_end as usize as *const u8;
                    let is_there = at.add(datapath_common::extract::HEAD as usize) <= end;
                    if is_there { Some($crate::head::Head::new(at, self)) } else { None }
                }
            }

            /// Loads a `T` from packet bytes.
            #[inline(always)]
            fn load<T: Copy>(self, offset: u32) -> Option<T> {
                if let Some(value) = self.load_direct(offset) {
                    return Some(value);
                }
                let mut value = 0u64;
                if load_slow(self.0, offset, size_of::<T>() as u32, &mut value) == 0 {
                    // SAFETY: `T` is an integer of at most eight bytes.
                    return Some(unsafe { *core::ptr::from_ref(&value).cast::<T>() });
                }
                None
            }

            /// As `load`, 0 behind the end: no branch for what the caller has excluded.
            #[inline(always)]
            fn load_or_zero<T: Copy>(self, offset: u32) -> T {
                if let Some(value) = self.load_direct(offset) {
                    return value;
                }
                let mut value = 0u64;
                // What the helper can't fill it clears, or leaves.
                load_slow(self.0, offset, size_of::<T>() as u32, &mut value);
                // SAFETY: `T` is an integer of at most eight bytes.
                unsafe { *core::ptr::from_ref(&value).cast::<T>() }
            }

            /// As `load`, from what lies in one piece alone.
            #[inline(always)]
            fn load_direct<T: Copy>(self, offset: u32) -> Option<T> {
                if offset > $crate::loads::DIRECT {
                    return None;
                }
                // SAFETY: the context is the kernel's; the pointer is compared with the end before it is read, and unaligned
                // reads are what the architectures that the verifier lets do this do.
                unsafe {
                    let at = ((*self.0).data as usize + offset as usize) as *const u8;
                    let end = (*self.0).data_end as usize as *const u8;
                    if at.add(size_of::<T>()) <= end { Some(at.cast::<T>().read_volatile()) } else { None }
                }
            }
        }

        /// Up to eight bytes through the helper, into the first bytes of `value`. 0 = done.
        #[inline(never)]
        fn load_slow(context: *mut $context, offset: u32, size: u32, value: &mut u64) -> i64 {
            let to = core::ptr::from_mut(value).cast();
            // SAFETY: the context is the kernel's; `value` has eight bytes.
            unsafe {
                // Constant sizes: the verifier then knows what the helper writes.
                match size {
                    1 => $helper(context.cast(), offset, to, 1) as i64,
                    2 => $helper(context.cast(), offset, to, 2) as i64,
                    4 => $helper(context.cast(), offset, to, 4) as i64,
                    8 => $helper(context.cast(), offset, to, 8) as i64,
                    _ => -1,
                }
            }
        }
    };
}

/// The methods of `PacketRead` that load.
macro_rules! read_by_load {
    () => {
        #[inline(always)]
        fn u8(&self, offset: u32) -> Option<u8> {
            self.load(offset)
        }
        #[inline(always)]
        fn u16(&self, offset: u32) -> Option<u16> {
            self.load(offset)
        }
        #[inline(always)]
        fn u32(&self, offset: u32) -> Option<u32> {
            self.load(offset)
        }
        #[inline(always)]
        fn u64(&self, offset: u32) -> Option<u64> {
            self.load(offset)
        }
    };
    (or_zero) => {
        read_by_load!();
        #[inline(always)]
        fn u16_or_zero(&self, offset: u32) -> u16 {
            self.load_or_zero(offset)
        }
        #[inline(always)]
        fn u32_or_zero(&self, offset: u32) -> u32 {
            self.load_or_zero(offset)
        }
        #[inline(always)]
        fn u64_or_zero(&self, offset: u32) -> u64 {
            self.load_or_zero(offset)
        }
    };
}

pub(crate) use {loads, read_by_load};
