//! What makes frames, and what counts them.

use std::io;

use super::frames::{FLOW_ENTRIES, Flow, HEADERS, headers};
use crate::bpf::{Attached, Code, Hook, KTIME_GET_NS, Memory, Program, R0, R1, R2, R3, R4, R5, R6, R7};

/// Words of what a [`Counter`] counts in: frames; then, of the first and of the last frame whose time was taken, the time in nanoseconds
/// and how many came before it.
const COUNTED: usize = 5;
/// Of so many frames the time of one is taken.
const TIMED: i32 = 64;

/// Sends frames of some flows in turn.
pub struct Generator {
    program: Program,
    frame: Vec<u8>,
}

impl Generator {
    /// Of these flows, all of the same frame length, into the device with this index.
    ///
    /// # Errors
    ///
    /// `InvalidInput` without a flow.
    pub fn new(flows: &[Flow], to: u32) -> io::Result<Self> {
        let first = flows.first().ok_or(io::ErrorKind::InvalidInput)?;
        let frame = first.frame();
        let program = generate(&headers(frame.len()), &flows_memory(flows)?, to)?;
        Ok(Self { program, frame })
    }

    /// Sends so many frames, in the network namespace of its device. Each call has a fixed cost of some 20 ms: the frames' memory is
    /// made ready and given back.
    pub fn send(&self, frames: u32) -> io::Result<()> {
        self.program.run_live(&self.frame, frames)
    }
}

/// Counts what arrives at a device, and drops it.
pub struct Counter {
    memory: Memory,
    _attached: Attached,
}

impl Counter {
    pub(super) fn attach(hook: Hook, device: u32) -> io::Result<Self> {
        let memory = Memory::new(&[0; COUNTED])?;
        let attached = count(hook, &memory)?.attach(device)?;
        Ok(Self { memory, _attached: attached })
    }

    /// Begins anew.
    pub fn reset(&self) -> io::Result<()> {
        self.memory.write(&[0; COUNTED])
    }

    /// Frames so far.
    pub fn frames(&self) -> io::Result<u64> {
        Ok(self.memory.read()?.first().copied().unwrap_or_default())
    }

    /// Frames per second, from the first to the last whose time was taken; 0 where there were too few to say.
    pub fn rate(&self) -> io::Result<f64> {
        match self.memory.read()?.as_slice() {
            [_, first_ns, first, last_ns, last] if last_ns > first_ns => {
                Ok((last - first) as f64 * 1e9 / (last_ns - first_ns) as f64)
            }
            _ => Ok(0.0),
        }
    }
}

/// Counts frames in `memory` ([`COUNTED`]) and drops them.
fn count(hook: Hook, memory: &Memory) -> io::Result<Program> {
    let mut code = Code::default();
    code.address_of(R6, memory).set(R7, 1).push(0xdb, R6, R7, 0, 1); // r7 = fetch_add((u64 *)(r6 + 0), r7)
    code.copy(R1, R7).push(0x57, R1, 0, 0, TIMED - 1); // r1 = r7 & (TIMED - 1)
    code.push(0x55, R1, 0, 7, 0); // if r1 != 0 skip the next seven
    code.call(KTIME_GET_NS);
    code.push(0x79, R1, R6, 8, 0).push(0x55, R1, 0, 2, 0); // if *(u64 *)(r6 + 8) != 0 skip the next two
    code.push(0x7b, R6, R0, 8, 0).push(0x7b, R6, R7, 16, 0);
    code.push(0x7b, R6, R0, 24, 0).push(0x7b, R6, R7, 32, 0);
    Program::load(hook, code.set(R0, hook.drop_verdict().cast_signed()).exit())
}

/// Writes the headers of the next flow into a frame and sends it out of the device `to`. `memory` holds the number of frames so far
/// and, behind it, what differs from flow to flow ([`flows_memory`]). All headers are written each time: whoever had the frame
/// before may have changed them, and the kernel runs the program on the same memory again.
fn generate(headers: &[u8; HEADERS], memory: &Memory, to: u32) -> io::Result<Program> {
    let mut code = Code::default();
    code.load_word(R2, R1, 0).load_word(R3, R1, 4); // data, data_end
    code.copy(R4, R2).add(R4, HEADERS as i32);
    code.push(0xbd, R4, R3, 2, 0); // if r4 <= r3 skip the next two
    code.set(R0, Hook::Xdp.drop_verdict().cast_signed()).exit();
    for (i, eight) in headers.as_chunks::<8>().0.iter().enumerate() {
        code.constant(R5, u64::from_ne_bytes(*eight)).push(0x7b, R2, R5, 8 * i as i16, 0); // *(u64 *)(r2 + 8 i) = r5
    }
    let tail = headers.len() / 8 * 8;
    for (i, two) in headers[tail..].as_chunks::<2>().0.iter().enumerate() {
        let at = (tail + 2 * i) as i16;
        code.push(0x6a, R2, 0, at, u16::from_ne_bytes(*two).into()); // *(u16 *)(r2 + at) = constant
    }
    code.address_of(R6, memory);
    code.push(0x79, R4, R6, 0, 0).copy(R5, R4); // r4 = *(u64 *)(r6 + 0)
    code.add(R4, 1).push(0x7b, R6, R4, 0, 0);
    code.push(0x57, R5, 0, 0, FLOW_ENTRIES as i32 - 1).push(0x67, R5, 0, 0, 3); // r5 &= entries - 1; r5 <<= 3
    code.push(0x0f, R6, R5, 0, 0).push(0x79, R5, R6, 8, 0); // r6 += r5; r5 = *(u64 *)(r6 + 8)
    code.push(0x63, R2, R5, Flow::PORTS as i16, 0); // *(u32 *)(r2 + PORTS) = r5
    code.push(0x77, R5, 0, 0, 32).push(0x6b, R2, R5, Flow::CHECKSUM as i16, 0); // r5 >>= 32; *(u16 *)(r2 + CHECKSUM) = r5
    Program::load(Hook::Xdp, code.redirect(to))
}

/// What [`generate`] reads: these flows in turn.
fn flows_memory(flows: &[Flow]) -> io::Result<Memory> {
    let mut words = vec![0u64];
    words.extend(flows.iter().cycle().take(FLOW_ENTRIES).map(|flow| {
        let [a, b, c, d] = flow.ports();
        let [e, f] = flow.checksum();
        u64::from_ne_bytes([a, b, c, d, e, f, 0, 0])
    }));
    Memory::new(&words)
}
