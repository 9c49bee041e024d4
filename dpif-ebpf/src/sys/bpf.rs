//! bpf(2) where aya has no shared or no raw access: map elements through a shared reference, and links by descriptor.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use aya::Pod;
use aya_obj::generated::{bpf_attach_type, bpf_attr, bpf_cmd, bpf_insn, bpf_link_info, bpf_map_type, bpf_prog_type};

/// Writes an element.
pub(crate) fn map_update<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K, value: &V, flags: u64) -> io::Result<()> {
    let mut attr = zeroed();
    attr.__bindgen_anon_2.map_fd = map.as_raw_fd() as u32;
    attr.__bindgen_anon_2.key = address(key);
    attr.__bindgen_anon_2.__bindgen_anon_1.value = address(value);
    attr.__bindgen_anon_2.flags = flags;
    call(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr).map(drop)
}

/// The value of a key.
pub(crate) fn map_lookup<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    let mut value = std::mem::MaybeUninit::<V>::uninit();
    let mut attr = zeroed();
    attr.__bindgen_anon_2.map_fd = map.as_raw_fd() as u32;
    attr.__bindgen_anon_2.key = address(key);
    attr.__bindgen_anon_2.__bindgen_anon_1.value = value.as_mut_ptr() as u64;
    // SAFETY: the kernel has written a whole value, for which every bit pattern is valid (`Pod`).
    found(call(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr)).map(|there| there.then(|| unsafe { value.assume_init() }))
}

/// Makes an array of maps with one element that holds maps like `inner`.
pub(crate) fn array_of_maps(inner: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut attr = zeroed();
    attr.__bindgen_anon_1.map_type = bpf_map_type::BPF_MAP_TYPE_ARRAY_OF_MAPS as u32;
    attr.__bindgen_anon_1.key_size = 4;
    attr.__bindgen_anon_1.value_size = 4;
    attr.__bindgen_anon_1.max_entries = 1;
    attr.__bindgen_anon_1.inner_map_fd = inner.as_raw_fd() as u32;
    call(bpf_cmd::BPF_MAP_CREATE, &mut attr).and_then(owned)
}

/// Attaches a program to the ingress of a device as its last TCX program. The attachment lasts as long as the link: as
/// long as the descriptor is open or the link pinned.
pub(crate) fn link_tcx(program: BorrowedFd<'_>, ifindex: u32) -> io::Result<OwnedFd> {
    let mut attr = zeroed();
    attr.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
    attr.link_create.__bindgen_anon_2.target_ifindex = ifindex;
    attr.link_create.attach_type = bpf_attach_type::BPF_TCX_INGRESS as u32;
    call(bpf_cmd::BPF_LINK_CREATE, &mut attr).and_then(owned)
}

/// Attaches a program to the XDP hook of a device: the driver's, or the generic one. As [`link_tcx`].
pub(crate) fn link_xdp(program: BorrowedFd<'_>, ifindex: u32, native: bool) -> io::Result<OwnedFd> {
    /// `XDP_FLAGS_SKB_MODE` and `XDP_FLAGS_DRV_MODE`.
    const GENERIC: u32 = 1 << 1;
    const NATIVE: u32 = 1 << 2;
    let mut attr = zeroed();
    attr.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
    attr.link_create.__bindgen_anon_2.target_ifindex = ifindex;
    attr.link_create.attach_type = bpf_attach_type::BPF_XDP as u32;
    attr.link_create.flags = if native { NATIVE } else { GENERIC };
    call(bpf_cmd::BPF_LINK_CREATE, &mut attr).and_then(owned)
}

/// The program and the device of a TCX or XDP link. A device that is gone has index 0.
pub(crate) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    // SAFETY: all-zero is a value of this plain C struct.
    let mut info: bpf_link_info = unsafe { std::mem::zeroed() };
    let mut attr = zeroed();
    attr.info.bpf_fd = link.as_raw_fd() as u32;
    attr.info.info_len = size_of_val(&info) as u32;
    attr.info.info = (&raw mut info) as u64;
    call(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    // An XDP link has its device in the same place.
    // SAFETY: integers, written by the kernel or zero.
    let ifindex = unsafe { info.__bindgen_anon_1.tcx.ifindex };
    Ok(LinkInfo { program: info.prog_id, ifindex })
}

/// What a link connects.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LinkInfo {
    /// Id of the program.
    pub(crate) program: u32,
    /// Index of the device.
    pub(crate) ifindex: u32,
}

/// Ends an attachment at once, whoever else holds the link.
pub(crate) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = zeroed();
    attr.link_detach.link_fd = link.as_raw_fd() as u32;
    call(bpf_cmd::BPF_LINK_DETACH, &mut attr).map(drop)
}

/// `BPF_F_XDP_HAS_FRAGS`.
pub(crate) const XDP_HAS_FRAGS: u32 = 1 << 5;
/// Room for what the verifier says of a program that it refuses.
const LOG: usize = 1 << 16;

/// A program to be loaded.
pub(crate) struct Code<'a> {
    pub(crate) kind: bpf_prog_type,
    /// Where it is going to be attached, if it may be attached to one kind of hook only.
    pub(crate) attach_type: Option<bpf_attach_type>,
    /// Of which the kernel keeps 15 bytes.
    pub(crate) name: &'a CStr,
    pub(crate) license: &'a CStr,
    pub(crate) instructions: &'a [bpf_insn],
    /// `BPF_F_*`.
    pub(crate) flags: u32,
}

/// Loads a program. An error comes with the verifier's log.
pub(crate) fn load(code: &Code<'_>) -> Result<OwnedFd, (io::Error, String)> {
    let mut attr = zeroed();
    attr.__bindgen_anon_3.prog_type = code.kind as u32;
    attr.__bindgen_anon_3.insns = code.instructions.as_ptr() as u64;
    attr.__bindgen_anon_3.insn_cnt = code.instructions.len() as u32;
    attr.__bindgen_anon_3.license = code.license.as_ptr() as u64;
    attr.__bindgen_anon_3.prog_flags = code.flags;
    attr.__bindgen_anon_3.expected_attach_type = code.attach_type.map_or(0, |kind| kind as u32);
    let mut name = [0; 16];
    for (to, from) in name.iter_mut().take(15).zip(code.name.to_bytes()) {
        *to = from.cast_signed();
    }
    attr.__bindgen_anon_3.prog_name = name;
    if let Ok(fd) = call(bpf_cmd::BPF_PROG_LOAD, &mut attr) {
        return owned(fd).map_err(|error| (error, String::new()));
    }
    // The log costs; only who is refused asks for it.
    let mut log = vec![0u8; LOG];
    attr.__bindgen_anon_3.log_level = 1;
    attr.__bindgen_anon_3.log_size = LOG as u32;
    attr.__bindgen_anon_3.log_buf = log.as_mut_ptr() as u64;
    call(bpf_cmd::BPF_PROG_LOAD, &mut attr).and_then(owned).map_err(|error| {
        let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
        (error, String::from_utf8_lossy(log.get(..end).unwrap_or_default()).into_owned())
    })
}

/// Loads a socket filter that returns 0 for every packet.
pub(crate) fn zero_filter() -> io::Result<OwnedFd> {
    // SAFETY: all-zero is a value of this plain C struct.
    let instruction: bpf_insn = unsafe { std::mem::zeroed() };
    let (set_r0_to_0, exit) = (bpf_insn { code: 0xb7, ..instruction }, bpf_insn { code: 0x95, ..instruction });
    let code = Code {
        kind: bpf_prog_type::BPF_PROG_TYPE_SOCKET_FILTER,
        attach_type: None,
        name: c"",
        license: c"GPL",
        instructions: &[set_r0_to_0, exit],
        flags: 0,
    };
    load(&code).map_err(|(error, _)| error)
}

/// Pins an object.
pub(crate) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = zeroed();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    attr.__bindgen_anon_4.bpf_fd = object.as_raw_fd() as u32;
    call(bpf_cmd::BPF_OBJ_PIN, &mut attr).map(drop)
}

/// Opens a pinned object.
pub(crate) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = zeroed();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    call(bpf_cmd::BPF_OBJ_GET, &mut attr).and_then(owned)
}

fn zeroed() -> bpf_attr {
    // SAFETY: all-zero is a value of this union of plain C structs.
    unsafe { std::mem::zeroed() }
}

fn address<T>(value: &T) -> u64 {
    std::ptr::from_ref(value) as u64
}

fn call(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i64> {
    // SAFETY: the pointer and length are those of the live `attr`, and what it points to is live in the caller.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command as libc::c_int, std::ptr::from_mut(attr), size_of::<bpf_attr>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn found(result: io::Result<i64>) -> io::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

fn owned(fd: i64) -> io::Result<OwnedFd> {
    // SAFETY: bpf(2) returned a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
