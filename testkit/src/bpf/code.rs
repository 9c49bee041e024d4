//! Instructions in the kernel's encoding.

use std::os::fd::AsRawFd as _;

use super::Memory;

/// Registers. [`R1`] is the context at the beginning, [`R0`] what is returned; calls destroy [`R1`] to [`R5`].
pub const R0: u8 = 0;
/// See [`R0`].
pub const R1: u8 = 1;
/// See [`R0`].
pub const R2: u8 = 2;
/// See [`R0`].
pub const R3: u8 = 3;
/// See [`R0`].
pub const R4: u8 = 4;
/// See [`R0`].
pub const R5: u8 = 5;
/// See [`R0`].
pub const R6: u8 = 6;
/// See [`R0`].
pub const R7: u8 = 7;

/// `BPF_FUNC_ktime_get_ns`, for [`Code::call`].
pub const KTIME_GET_NS: i32 = 5;
/// `BPF_FUNC_redirect`.
const REDIRECT: i32 = 23;

/// Instructions (`struct bpf_insn`), one after the other.
#[derive(Default)]
pub struct Code(Vec<u64>);

impl Code {
    pub(super) fn instructions(&self) -> &[u64] {
        &self.0
    }

    /// Any instruction: operation, the two registers, offset and constant (RFC 9669).
    pub fn push(&mut self, operation: u8, to: u8, from: u8, offset: i16, constant: i32) -> &mut Self {
        let [low, high] = offset.to_ne_bytes();
        let [a, b, c, d] = constant.to_ne_bytes();
        let registers = if cfg!(target_endian = "little") { to | from << 4 } else { to << 4 | from };
        self.0.push(u64::from_ne_bytes([operation, registers, low, high, a, b, c, d]));
        self
    }

    /// `to = constant`.
    pub fn set(&mut self, to: u8, constant: i32) -> &mut Self {
        self.push(0xb7, to, 0, 0, constant)
    }

    /// `to = from`.
    pub fn copy(&mut self, to: u8, from: u8) -> &mut Self {
        self.push(0xbf, to, from, 0, 0)
    }

    /// `to += constant`.
    pub fn add(&mut self, to: u8, constant: i32) -> &mut Self {
        self.push(0x07, to, 0, 0, constant)
    }

    /// `to = *(u32 *)(from + offset)`.
    pub fn load_word(&mut self, to: u8, from: u8, offset: i16) -> &mut Self {
        self.push(0x61, to, from, offset, 0)
    }

    /// `to = value`, of 64 bits.
    pub fn constant(&mut self, to: u8, value: u64) -> &mut Self {
        self.push(0x18, to, 0, 0, value as i32).push(0, 0, 0, 0, (value >> 32) as i32)
    }

    /// `to = &memory`.
    pub fn address_of(&mut self, to: u8, memory: &Memory) -> &mut Self {
        /// `BPF_PSEUDO_MAP_VALUE`.
        const VALUE: u8 = 2;
        self.push(0x18, to, VALUE, 0, memory.fd.as_raw_fd()).push(0, 0, 0, 0, 0)
    }

    /// Calls a helper of the kernel.
    pub fn call(&mut self, helper: i32) -> &mut Self {
        self.push(0x85, 0, 0, 0, helper)
    }

    /// `return redirect(to, 0)`.
    pub fn redirect(&mut self, to: u32) -> &mut Self {
        self.set(R1, to.cast_signed()).set(R2, 0).call(REDIRECT).exit()
    }

    /// `return r0`.
    pub fn exit(&mut self) -> &mut Self {
        self.push(0x95, 0, 0, 0, 0)
    }
}
