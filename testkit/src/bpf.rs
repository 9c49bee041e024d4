//! BPF programs of the tests and benchmarks themselves: what makes frames, what counts them, and the least that can forward one.
//!
//! They are written instruction by instruction ([`Code`]): so short are they that a compiler for them would be more to read.

mod code;

use std::ffi::CString;
use std::io::{self, Error};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use aya_obj::generated::{bpf_attach_type, bpf_attr, bpf_cmd, bpf_map_type, bpf_prog_type};

pub use self::code::{Code, KTIME_GET_NS, R0, R1, R2, R3, R4, R5, R6, R7};

/// `BPF_F_TEST_XDP_LIVE_FRAMES`.
const LIVE_FRAMES: u32 = 1 << 1;

/// Where a program is attached, or what it is run as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hook {
    /// The ingress of a device, after the kernel has made an skb.
    Tc,
    /// Before that.
    Xdp,
}

/// A loaded program.
pub struct Program {
    hook: Hook,
    fd: OwnedFd,
}

/// A program at a device; detached when dropped.
pub struct Attached {
    _link: OwnedFd,
}

/// One value in memory that programs share: so many words.
pub struct Memory {
    fd: OwnedFd,
    words: usize,
}

/// What runs of a program have shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ran {
    /// What the last run returned.
    pub returned: u32,
    /// The mean of a run, in nanoseconds.
    pub ns: u32,
}

impl Hook {
    fn program_type(self) -> bpf_prog_type {
        match self {
            Self::Tc => bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS,
            Self::Xdp => bpf_prog_type::BPF_PROG_TYPE_XDP,
        }
    }

    fn attach_type(self) -> bpf_attach_type {
        match self {
            Self::Tc => bpf_attach_type::BPF_TCX_INGRESS,
            Self::Xdp => bpf_attach_type::BPF_XDP,
        }
    }

    /// The verdict of this hook that drops: `TC_ACT_SHOT`, `XDP_DROP`.
    pub fn drop_verdict(self) -> u32 {
        match self {
            Self::Tc => 2,
            Self::Xdp => 1,
        }
    }
}

impl Program {
    /// Says the same of every packet and looks at none.
    pub fn verdict(hook: Hook, verdict: u32) -> io::Result<Self> {
        Self::load(hook, Code::default().set(R0, verdict.cast_signed()).exit())
    }

    /// Sends everything out of the device with this index: the least that a switch does.
    pub fn redirect(hook: Hook, to: u32) -> io::Result<Self> {
        Self::load(hook, Code::default().redirect(to))
    }

    /// Has the verifier look at the instructions.
    ///
    /// # Errors
    ///
    /// With what the verifier says of them.
    pub fn load(hook: Hook, code: &Code) -> io::Result<Self> {
        let mut log = vec![0u8; 1 << 16];
        let mut attr = zeroed();
        attr.__bindgen_anon_3.prog_type = hook.program_type() as u32;
        attr.__bindgen_anon_3.insns = code.instructions().as_ptr() as u64;
        attr.__bindgen_anon_3.insn_cnt = code.instructions().len() as u32;
        attr.__bindgen_anon_3.license = c"GPL".as_ptr() as u64;
        attr.__bindgen_anon_3.log_level = 1;
        attr.__bindgen_anon_3.log_size = log.len() as u32;
        attr.__bindgen_anon_3.log_buf = log.as_mut_ptr() as u64;
        match call(bpf_cmd::BPF_PROG_LOAD, &mut attr) {
            Ok(fd) => Ok(Self { hook, fd: owned(fd) }),
            Err(error) => {
                let said = String::from_utf8_lossy(&log);
                let said = said.trim_end_matches('\0');
                Err(Error::new(error.kind(), format!("the kernel refuses a program of the test: {error}: {said}")))
            }
        }
    }

    /// Attaches it to the device with this index of the caller's network namespace.
    ///
    /// # Errors
    ///
    /// `EINVAL` from kernels without TCX (before Linux 6.6), among others.
    pub fn attach(&self, device: u32) -> io::Result<Attached> {
        let mut attr = zeroed();
        attr.link_create.__bindgen_anon_1.prog_fd = self.fd.as_raw_fd().cast_unsigned();
        attr.link_create.__bindgen_anon_2.target_ifindex = device;
        attr.link_create.attach_type = self.hook.attach_type() as u32;
        Ok(Attached { _link: owned(call(bpf_cmd::BPF_LINK_CREATE, &mut attr)?) })
    }

    /// Pins it in a BPF file system.
    pub fn pin(&self, path: &Path) -> io::Result<()> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        let mut attr = zeroed();
        attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
        attr.__bindgen_anon_4.bpf_fd = self.fd.as_raw_fd().cast_unsigned();
        call(bpf_cmd::BPF_OBJ_PIN, &mut attr).map(drop)
    }

    /// Runs it `repeat` times on a frame, with a context (`struct __sk_buff`, `struct xdp_md`) or, where that is empty, the kernel's own.
    pub fn run(&self, frame: &[u8], context: &[u8], repeat: u32) -> io::Result<Ran> {
        let mut attr = zeroed();
        attr.test.prog_fd = self.fd.as_raw_fd().cast_unsigned();
        attr.test.data_size_in = frame.len() as u32;
        attr.test.data_in = frame.as_ptr() as u64;
        attr.test.repeat = repeat;
        if !context.is_empty() {
            attr.test.ctx_size_in = context.len() as u32;
            attr.test.ctx_in = context.as_ptr() as u64;
        }
        call(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr)?;
        // SAFETY: integers, written by the kernel or zero.
        Ok(unsafe { Ran { returned: attr.test.retval, ns: attr.test.duration } })
    }

    /// Runs it on `frames` frames that begin as copies of `frame`, and does with them as it says.
    pub fn run_live(&self, frame: &[u8], frames: u32) -> io::Result<()> {
        let mut attr = zeroed();
        attr.test.prog_fd = self.fd.as_raw_fd().cast_unsigned();
        attr.test.data_size_in = frame.len() as u32;
        attr.test.data_in = frame.as_ptr() as u64;
        attr.test.repeat = frames;
        attr.test.flags = LIVE_FRAMES;
        call(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr).map(drop)
    }
}

impl Memory {
    /// Holds `value`.
    pub fn new(value: &[u64]) -> io::Result<Self> {
        let fd = create_map(bpf_map_type::BPF_MAP_TYPE_ARRAY, 4, size_of_val(value) as u32, 1)?;
        let memory = Self { fd, words: value.len() };
        memory.write(value)?;
        Ok(memory)
    }

    /// Makes it hold another value of as many words.
    pub fn write(&self, value: &[u64]) -> io::Result<()> {
        assert_eq!(value.len(), self.words);
        self.element(bpf_cmd::BPF_MAP_UPDATE_ELEM, value.as_ptr() as u64)
    }

    /// Its value.
    pub fn read(&self) -> io::Result<Vec<u64>> {
        let mut value = vec![0; self.words];
        self.element(bpf_cmd::BPF_MAP_LOOKUP_ELEM, value.as_mut_ptr() as u64)?;
        Ok(value)
    }

    fn element(&self, command: bpf_cmd, value: u64) -> io::Result<()> {
        let key = 0u32;
        let mut attr = zeroed();
        attr.__bindgen_anon_2.map_fd = self.fd.as_raw_fd().cast_unsigned();
        attr.__bindgen_anon_2.key = &raw const key as u64;
        attr.__bindgen_anon_2.__bindgen_anon_1.value = value;
        call(command, &mut attr).map(drop)
    }
}

/// Makes the smallest ring buffer: the youngest kind of map that the datapath needs.
pub(crate) fn ring_buffer() -> io::Result<OwnedFd> {
    // A power-of-two multiple of the page size, which is 64 KiB at most.
    create_map(bpf_map_type::BPF_MAP_TYPE_RINGBUF, 0, 0, 1 << 16)
}

fn create_map(map_type: bpf_map_type, key_size: u32, value_size: u32, entries: u32) -> io::Result<OwnedFd> {
    let mut attr = zeroed();
    attr.__bindgen_anon_1.map_type = map_type as u32;
    attr.__bindgen_anon_1.key_size = key_size;
    attr.__bindgen_anon_1.value_size = value_size;
    attr.__bindgen_anon_1.max_entries = entries;
    call(bpf_cmd::BPF_MAP_CREATE, &mut attr).map(owned)
}

fn zeroed() -> bpf_attr {
    // SAFETY: all-zero is a value of this union of plain C structs.
    unsafe { std::mem::zeroed() }
}

/// bpf(2); all pointers in its attributes must be to memory that the caller keeps alive.
fn call(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<libc::c_long> {
    // SAFETY: pointer and length are those of the live `attr`, and what it points to is live in the caller.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command as libc::c_int, std::ptr::from_mut(attr), size_of::<bpf_attr>())
    };
    if result < 0 { Err(Error::last_os_error()) } else { Ok(result) }
}

fn owned(fd: libc::c_long) -> OwnedFd {
    // SAFETY: bpf(2) returned a new descriptor that nothing else owns.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}
