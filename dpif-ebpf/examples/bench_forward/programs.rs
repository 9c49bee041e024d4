//! The programs of the measurement itself, instruction by instruction: what makes frames, what counts them, and the least that
//! can forward one. They are so short that a compiler for them would be more to read.

use std::io::{self, Error};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use crate::frames::{FLOW_ENTRIES, Flow, HEADERS};

/// Where a program is attached, or what it is run as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Hook {
    Tc,
    Xdp,
}

/// A loaded program.
pub(crate) struct Program {
    hook: Hook,
    fd: OwnedFd,
}

/// A program at a device; detached when dropped.
pub(crate) struct Attached {
    _link: OwnedFd,
}

/// One value in memory that programs share: so many words.
pub(crate) struct Memory {
    fd: OwnedFd,
    words: usize,
}

/// Words of what [`Program::count`] counts in: frames; then, of the first and of the last frame whose time was taken, the time in
/// nanoseconds and how many came before it.
pub(crate) const COUNTED: usize = 5;
/// Of so many frames the time of one is taken.
const TIMED: i32 = 64;

/// Registers: `R1` is the context at the beginning, `R0` what is returned.
const R0: u8 = 0;
const R1: u8 = 1;
const R2: u8 = 2;
const R3: u8 = 3;
const R4: u8 = 4;
const R5: u8 = 5;
const R6: u8 = 6;
const R7: u8 = 7;

const XDP_DROP: i32 = 1;
const TC_ACT_SHOT: i32 = 2;
/// `BPF_FUNC_redirect`.
const REDIRECT: i32 = 23;
/// `BPF_FUNC_ktime_get_ns`.
const KTIME_GET_NS: i32 = 5;

impl Hook {
    fn program_type(self) -> u32 {
        match self {
            Self::Tc => 3,
            Self::Xdp => 6,
        }
    }

    /// `BPF_TCX_INGRESS`, `BPF_XDP`.
    fn attach_type(self) -> u32 {
        match self {
            Self::Tc => 46,
            Self::Xdp => 37,
        }
    }
}

impl Program {
    /// Sends everything out of the device with this index: the least that a switch does.
    pub(crate) fn redirect(hook: Hook, to: u32) -> io::Result<Self> {
        let mut code = Code::default();
        code.redirect(to);
        code.load(hook)
    }

    /// Counts frames in `memory` ([`COUNTED`]) and drops them.
    pub(crate) fn count(hook: Hook, memory: &Memory) -> io::Result<Self> {
        let mut code = Code::default();
        code.address_of(R6, memory).set(R7, 1).push(0xdb, R6, R7, 0, 1); // r7 = fetch_add((u64 *)(r6 + 0), r7)
        code.copy(R1, R7).push(0x57, R1, 0, 0, TIMED - 1); // r1 = r7 & (TIMED - 1)
        code.push(0x55, R1, 0, 7, 0); // if r1 != 0 skip the next seven
        code.push(0x85, 0, 0, 0, KTIME_GET_NS);
        code.push(0x79, R1, R6, 8, 0).push(0x55, R1, 0, 2, 0); // if *(u64 *)(r6 + 8) != 0 skip the next two
        code.push(0x7b, R6, R0, 8, 0).push(0x7b, R6, R7, 16, 0);
        code.push(0x7b, R6, R0, 24, 0).push(0x7b, R6, R7, 32, 0);
        code.set(R0, if hook == Hook::Xdp { XDP_DROP } else { TC_ACT_SHOT }).exit();
        code.load(hook)
    }

    /// Writes the headers of the next flow into a frame and sends it out of the device `to`. `memory` holds the number of frames so far
    /// and, behind it, what differs from flow to flow ([`flows_memory`]). All headers are written each time: whoever had the frame
    /// before may have changed them, and the kernel runs the program on the same memory again.
    pub(crate) fn generate(headers: &[u8; HEADERS], memory: &Memory, to: u32) -> io::Result<Self> {
        let mut code = Code::default();
        code.load_word(R2, R1, 0).load_word(R3, R1, 4); // data, data_end
        code.copy(R4, R2).add(R4, HEADERS as i32);
        code.push(0xbd, R4, R3, 2, 0); // if r4 <= r3 skip the next two
        code.set(R0, XDP_DROP).exit();
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
        code.redirect(to);
        code.load(Hook::Xdp)
    }

    /// Attaches it to the device with this index of the caller's network namespace.
    pub(crate) fn attach(&self, device: u32) -> io::Result<Attached> {
        /// The first words of the part of `union bpf_attr` that makes links.
        #[repr(C)]
        struct Link {
            program: u32,
            device: u32,
            attach_type: u32,
            flags: u32,
        }
        const BPF_LINK_CREATE: libc::c_long = 28;
        let program = self.fd.as_raw_fd().cast_unsigned();
        let link = Link { program, device, attach_type: self.hook.attach_type(), flags: 0 };
        Ok(Attached { _link: owned(bpf(BPF_LINK_CREATE, &link)?) })
    }

    /// Runs it on `frames` frames that begin as copies of `frame`, and does with them as it says (`BPF_F_TEST_XDP_LIVE_FRAMES`).
    pub(crate) fn run_live(&self, frame: &[u8], frames: u32) -> io::Result<()> {
        /// The part of `union bpf_attr` that runs programs.
        #[repr(C)]
        #[derive(Default)]
        struct Run {
            program: u32,
            returned: u32,
            data_size_in: u32,
            data_size_out: u32,
            data_in: u64,
            data_out: u64,
            repeat: u32,
            duration: u32,
            ctx_size_in: u32,
            ctx_size_out: u32,
            ctx_in: u64,
            ctx_out: u64,
            flags: u32,
            cpu: u32,
            batch_size: u32,
            pad: u32,
        }
        const BPF_PROG_TEST_RUN: libc::c_long = 10;
        const BPF_F_TEST_XDP_LIVE_FRAMES: u32 = 2;
        let run = Run {
            program: self.fd.as_raw_fd().cast_unsigned(),
            data_size_in: frame.len() as u32,
            data_in: frame.as_ptr() as u64,
            repeat: frames,
            flags: BPF_F_TEST_XDP_LIVE_FRAMES,
            ..Run::default()
        };
        bpf(BPF_PROG_TEST_RUN, &run).map(drop)
    }
}

impl Memory {
    /// Holds `value`.
    pub(crate) fn new(value: &[u64]) -> io::Result<Self> {
        /// The first words of the part of `union bpf_attr` that makes maps.
        #[repr(C)]
        struct Create {
            map_type: u32,
            key_size: u32,
            value_size: u32,
            entries: u32,
        }
        const BPF_MAP_CREATE: libc::c_long = 0;
        const ARRAY: u32 = 2;
        let create = Create { map_type: ARRAY, key_size: 4, value_size: size_of_val(value) as u32, entries: 1 };
        let memory = Self { fd: owned(bpf(BPF_MAP_CREATE, &create)?), words: value.len() };
        memory.write(value)?;
        Ok(memory)
    }

    /// Makes it hold another value of as many words.
    pub(crate) fn write(&self, value: &[u64]) -> io::Result<()> {
        const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
        assert_eq!(value.len(), self.words);
        self.element(BPF_MAP_UPDATE_ELEM, value.as_ptr() as u64)
    }

    /// Its value.
    pub(crate) fn read(&self) -> io::Result<Vec<u64>> {
        const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
        let mut value = vec![0; self.words];
        self.element(BPF_MAP_LOOKUP_ELEM, value.as_mut_ptr() as u64)?;
        Ok(value)
    }

    fn element(&self, command: libc::c_long, value: u64) -> io::Result<()> {
        /// The first words of the part of `union bpf_attr` about elements of maps.
        #[repr(C)]
        struct Element {
            map: u32,
            pad: u32,
            key: u64,
            value: u64,
            flags: u64,
        }
        let (key, map) = (0u32, self.fd.as_raw_fd().cast_unsigned());
        bpf(command, &Element { map, pad: 0, key: &raw const key as u64, value, flags: 0 }).map(drop)
    }
}

/// What [`Program::generate`] reads: these flows in turn.
pub(crate) fn flows_memory(flows: &[Flow]) -> io::Result<Memory> {
    let mut words = vec![0u64];
    words.extend(flows.iter().cycle().take(FLOW_ENTRIES).map(|flow| {
        let [a, b, c, d] = flow.ports();
        let [e, f] = flow.checksum();
        u64::from_ne_bytes([a, b, c, d, e, f, 0, 0])
    }));
    Memory::new(&words)
}

/// Instructions in the kernel's encoding (`struct bpf_insn`).
#[derive(Default)]
struct Code(Vec<u64>);

impl Code {
    fn push(&mut self, code: u8, to: u8, from: u8, offset: i16, constant: i32) -> &mut Self {
        let [low, high] = offset.to_ne_bytes();
        let [a, b, c, d] = constant.to_ne_bytes();
        let registers = if cfg!(target_endian = "little") { to | from << 4 } else { to << 4 | from };
        self.0.push(u64::from_ne_bytes([code, registers, low, high, a, b, c, d]));
        self
    }

    fn set(&mut self, to: u8, constant: i32) -> &mut Self {
        self.push(0xb7, to, 0, 0, constant)
    }

    fn copy(&mut self, to: u8, from: u8) -> &mut Self {
        self.push(0xbf, to, from, 0, 0)
    }

    fn add(&mut self, to: u8, constant: i32) -> &mut Self {
        self.push(0x07, to, 0, 0, constant)
    }

    fn load_word(&mut self, to: u8, from: u8, offset: i16) -> &mut Self {
        self.push(0x61, to, from, offset, 0)
    }

    fn constant(&mut self, to: u8, value: u64) -> &mut Self {
        self.push(0x18, to, 0, 0, value as i32).push(0, 0, 0, 0, (value >> 32) as i32)
    }

    fn address_of(&mut self, to: u8, memory: &Memory) -> &mut Self {
        /// `BPF_PSEUDO_MAP_VALUE`.
        const VALUE: u8 = 2;
        self.push(0x18, to, VALUE, 0, memory.fd.as_raw_fd()).push(0, 0, 0, 0, 0)
    }

    fn redirect(&mut self, to: u32) -> &mut Self {
        self.set(R1, to.cast_signed()).set(R2, 0).push(0x85, 0, 0, 0, REDIRECT).exit()
    }

    fn exit(&mut self) -> &mut Self {
        self.push(0x95, 0, 0, 0, 0)
    }

    fn load(&self, hook: Hook) -> io::Result<Program> {
        /// The first words of the part of `union bpf_attr` that loads programs.
        #[repr(C)]
        struct Load {
            program_type: u32,
            count: u32,
            instructions: u64,
            license: u64,
            log_level: u32,
            log_size: u32,
            log: u64,
        }
        const BPF_PROG_LOAD: libc::c_long = 5;
        let mut log = vec![0u8; 1 << 16];
        let load = Load {
            program_type: hook.program_type(),
            count: self.0.len() as u32,
            instructions: self.0.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
            log_level: 1,
            log_size: log.len() as u32,
            log: log.as_mut_ptr() as u64,
        };
        match bpf(BPF_PROG_LOAD, &load) {
            Ok(fd) => Ok(Program { hook, fd: owned(fd) }),
            Err(error) => {
                let said = String::from_utf8_lossy(&log);
                let said = said.trim_end_matches('\0');
                Err(Error::new(error.kind(), format!("the kernel refuses a program of the benchmark: {error}: {said}")))
            }
        }
    }
}

/// bpf(2) on a part of its union; all pointers in it must be to live memory.
fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<libc::c_long> {
    // SAFETY: the kernel reads `size` bytes of the live struct; the pointers in it are to memory that the callers own meanwhile.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *attributes, size_of::<T>()) };
    if result < 0 { Err(Error::last_os_error()) } else { Ok(result) }
}

fn owned(fd: libc::c_long) -> OwnedFd {
    // SAFETY: the call returned a new descriptor that nothing else owns.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}
