//! A kernel that needn't unpack itself: an emulated processor takes seconds for what the host does in a tenth of one.
//!
//! An x86 kernel image says in its header where its payload lies (`Documentation/arch/x86/boot.rst`): the kernel as an ELF file,
//! compressed. QEMU starts such an ELF file directly where it has the entry that virtual machines use (PVH).

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use object::{Object as _, ObjectSection as _};

/// Fields of the header: how many sectors its code has, its mark, the payload's place behind that code, and its length.
const SETUP_SECTORS: usize = 0x1f1;
const MARK: usize = 0x202;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const SECTOR: usize = 512;
/// What the note is called that tells the entry, and its type (`XEN_ELFNOTE_PHYS32_ENTRY`).
const NOTES: &str = ".notes";
const OWNER: &[u8] = b"Xen\0";
const ENTRY: u32 = 18;

/// What compresses kernels: how the payload begins, what unpacks it, and how many bytes of the unpacked length follow it (where it
/// doesn't say it itself).
const PACKERS: [(&[u8], &str, usize); 3] =
    [(b"\x28\xb5\x2f\xfd", "zstd", 4), (b"\xfd7zXZ\0", "xz", 4), (b"\x1f\x8b", "gzip", 0)];

/// The unpacked kernel beside this one; made if it is not there. `None` where that can't be: then the packed one boots too.
pub(crate) fn kernel(image: &Path) -> Option<PathBuf> {
    let plain = image.with_file_name(image.file_name()?.to_str()?.replace("vmlinuz", "vmlinux"));
    if plain == image || plain.is_file() {
        return plain.is_file().then_some(plain);
    }
    let unpacked = unpacked(payload(&fs::read(image).ok()?)?)?;
    if !has_entry(&unpacked) {
        return None;
    }
    let unfinished = plain.with_added_extension("new");
    fs::write(&unfinished, unpacked).ok()?;
    fs::rename(&unfinished, &plain).ok()?;
    Some(plain)
}

/// The compressed kernel in an image.
fn payload(image: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| Some(u32::from_le_bytes(*image.get(at..)?.first_chunk()?) as usize);
    if image.get(MARK..)?.first_chunk() != Some(b"HdrS") {
        return None;
    }
    // The boot sector stands before the others.
    let code = (usize::from(*image.get(SETUP_SECTORS)?) + 1) * SECTOR;
    image.get(code + word(PAYLOAD_OFFSET)?..)?.get(..word(PAYLOAD_LENGTH)?)
}

fn unpacked(payload: &[u8]) -> Option<Vec<u8>> {
    let (_, program, behind) = PACKERS.iter().find(|(mark, ..)| payload.starts_with(mark))?;
    let mut command = Command::new(program);
    let mut child =
        command.arg("-dc").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().ok()?;
    let mut input = child.stdin.take()?;
    let payload = payload.get(..payload.len().checked_sub(*behind)?)?.to_vec();
    let writer = std::thread::spawn(move || input.write_all(&payload));
    let output = child.wait_with_output().ok()?;
    let written = writer.join().ok()?;
    (output.status.success() && written.is_ok()).then_some(output.stdout)
}

/// Whether a virtual machine can begin in it.
fn has_entry(kernel: &[u8]) -> bool {
    let notes = object::File::parse(kernel).ok().and_then(|file| {
        let section = file.section_by_name(NOTES)?;
        Some(section.data().ok()?.to_vec())
    });
    notes.is_some_and(|notes| {
        let mut rest = notes.as_slice();
        while let Some((head, behind)) = rest.split_first_chunk::<12>() {
            let [owner_len, len, kind] = [0, 4, 8]
                .map(|at| head.get(at..).and_then(|field| field.first_chunk()).map_or(0, |f| u32::from_le_bytes(*f)));
            if kind == ENTRY && behind.starts_with(OWNER) {
                return true;
            }
            let padded = |len: u32| (len as usize).next_multiple_of(4);
            rest = behind.get(padded(owner_len).saturating_add(padded(len))..).unwrap_or_default();
        }
        false
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An image with this payload behind a boot sector and two sectors of code.
    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 3 * SECTOR + 7];
        image[SETUP_SECTORS] = 2;
        image[MARK..MARK + 4].copy_from_slice(b"HdrS");
        image[PAYLOAD_OFFSET] = 7;
        image[PAYLOAD_LENGTH] = payload.len() as u8;
        image.extend_from_slice(payload);
        image.extend_from_slice(b"more");
        image
    }

    #[test]
    fn the_payload_is_found_by_the_header() {
        assert_eq!(payload(&image(b"kernel")), Some(&b"kernel"[..]));
        let cut = image(b"kernel");
        assert_eq!(payload(&cut[..cut.len() - 5]), None);
        assert_eq!(payload(&[0; 600]), None);
        assert_eq!(payload(b"short"), None);
    }

    #[test]
    fn what_unpacks_it_is_known_by_its_first_bytes() {
        let mut packed = Command::new("gzip").arg("-c").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        packed.stdin.take().unwrap().write_all(b"a kernel").unwrap();
        let packed = packed.wait_with_output().unwrap().stdout;
        assert_eq!(unpacked(&packed).as_deref(), Some(&b"a kernel"[..]));
        assert_eq!(unpacked(b"no archive"), None);
        assert_eq!(unpacked(&packed[..9]), None);
        assert!(!has_entry(b"a kernel"));
    }

    #[test]
    fn an_image_of_another_kind_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("vmlinuz-1");
        fs::write(&image, b"no kernel").unwrap();
        assert_eq!(kernel(&image), None);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        fs::write(folder.path().join("vmlinux-1"), b"a kernel").unwrap();
        assert_eq!(kernel(&image), Some(folder.path().join("vmlinux-1")));
    }
}
