//! The archive that a kernel unpacks into its first file system: cpio, "newc" format
//! (`Documentation/driver-api/early-userspace/buffer-format.rst` of Linux).
//!
//! Each entry is a header of 110 characters (a magic number and thirteen fields of eight hexadecimal digits), the name with
//! its zero byte, and the data; name and data are padded to four bytes each. Several archives may follow each other, each with
//! its own end and padded likewise: what comes later adds to what came before.

use std::{
    collections::BTreeSet,
    io::{self, Write},
    path::{Component, Path},
};

const MAGIC: &str = "070701";
/// Name of the last entry.
const TRAILER: &str = "TRAILER!!!";
const FOLDER: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
/// Largest file: its size is 32 bits.
const MAX_FILE: usize = u32::MAX as usize;

/// Writes an archive. Folders above an entry are made as they are needed. Everything belongs to root.
pub(crate) struct Archive<W: Write> {
    out: W,
    inode: u32,
    written: usize,
    made: BTreeSet<String>,
}

impl<W: Write> Archive<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out, inode: 0, written: 0, made: BTreeSet::new() }
    }

    /// Whether there is an entry of this path.
    pub(crate) fn has(&self, path: impl AsRef<Path>) -> bool {
        name(path.as_ref()).is_ok_and(|name| self.made.contains(&name))
    }

    /// A folder, mode 0755.
    pub(crate) fn folder(&mut self, path: impl AsRef<Path>) -> io::Result<()> {
        let name = name(path.as_ref())?;
        if name.is_empty() || self.made.contains(&name) {
            return Ok(());
        }
        self.parents(&name)?;
        self.entry(&name, FOLDER | 0o755, 0, &[])
    }

    /// A file of these permissions.
    pub(crate) fn file(&mut self, path: impl AsRef<Path>, mode: u32, data: &[u8]) -> io::Result<()> {
        let name = name(path.as_ref())?;
        self.parents(&name)?;
        self.entry(&name, FILE | (mode & 0o7777), 0, data)
    }

    /// A symbolic link to `target`.
    pub(crate) fn link(&mut self, path: impl AsRef<Path>, target: &str) -> io::Result<()> {
        let name = name(path.as_ref())?;
        self.parents(&name)?;
        self.entry(&name, LINK | 0o777, 0, target.as_bytes())
    }

    /// A character device.
    pub(crate) fn device(&mut self, path: impl AsRef<Path>, mode: u32, major: u32, minor: u32) -> io::Result<()> {
        let name = name(path.as_ref())?;
        self.parents(&name)?;
        self.entry(&name, CHARACTER_DEVICE | (mode & 0o7777), major << 8 | (minor & 0xff), &[])
    }

    /// Ends the archive and gives back what it was written to.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.inode = 0;
        self.header(TRAILER, 0, 0, 0)?;
        self.pad()?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn parents(&mut self, name: &str) -> io::Result<()> {
        match name.rsplit_once('/') {
            Some((parent, _)) => self.folder(parent),
            None => Ok(()),
        }
    }

    fn entry(&mut self, name: &str, mode: u32, device: u32, data: &[u8]) -> io::Result<()> {
        if name.is_empty() {
            return Err(io::Error::other("an entry without a name"));
        }
        if data.len() > MAX_FILE {
            return Err(io::Error::other(format!("{name} has {} bytes, more than an archive holds", data.len())));
        }
        if !self.made.insert(name.into()) {
            return Err(io::Error::other(format!("{name} is there twice")));
        }
        self.inode += 1;
        self.header(name, mode, device, data.len())?;
        self.write(data)?;
        self.pad()
    }

    fn header(&mut self, name: &str, mode: u32, device: u32, size: usize) -> io::Result<()> {
        let fields = [
            self.inode,
            mode,
            0, // owner
            0, // group
            1, // links
            0, // time
            size as u32,
            0, // device that it lies on
            0,
            device >> 8,
            device & 0xff,
            name.len() as u32 + 1,
            0, // checksum, of another format
        ];
        let mut text = String::from(MAGIC);
        fields.iter().for_each(|field| text.push_str(&format!("{field:08X}")));
        text.push_str(name);
        text.push('\0');
        self.write(text.as_bytes())?;
        self.pad()
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len();
        self.out.write_all(bytes)
    }

    fn pad(&mut self) -> io::Result<()> {
        let missing = self.written.next_multiple_of(4) - self.written;
        self.write([0; 4].get(..missing).unwrap_or_default())
    }
}

/// A path as the archive names it: without a leading slash.
fn name(path: &Path) -> io::Result<String> {
    let mut name = String::new();
    for part in path.components() {
        match part {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(part) => {
                let part = part.to_str().ok_or_else(|| io::Error::other(format!("{} is not UTF-8", path.display())))?;
                if !name.is_empty() {
                    name.push('/');
                }
                name.push_str(part);
            }
            _ => return Err(io::Error::other(format!("{} leads out of the archive", path.display()))),
        }
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An entry as the kernel would read it: name, mode, device numbers, data.
    type Entry = (String, u32, (u32, u32), Vec<u8>);

    /// Reads as `init/initramfs.c` does: by the lengths in the headers and the padding, until the trailer.
    fn read(mut bytes: &[u8]) -> Vec<Entry> {
        let mut entries = Vec::new();
        loop {
            let header = std::str::from_utf8(&bytes[..110]).unwrap();
            assert_eq!(&header[..6], "070701");
            let field = |i: usize| u32::from_str_radix(&header[6 + 8 * i..14 + 8 * i], 16).unwrap();
            let (mode, size, name_len) = (field(1), field(6) as usize, field(11) as usize);
            let name = std::str::from_utf8(&bytes[110..110 + name_len - 1]).unwrap().to_owned();
            assert_eq!(bytes[110 + name_len - 1], 0);
            let data = (110 + name_len).next_multiple_of(4);
            entries.push((name, mode, (field(9), field(10)), bytes[data..data + size].to_vec()));
            bytes = &bytes[(data + size).next_multiple_of(4)..];
            if entries.last().unwrap().0 == TRAILER {
                assert!(bytes.is_empty(), "bytes behind the trailer");
                return entries;
            }
        }
    }

    #[test]
    fn entries_are_read_back_with_their_folders_before_them() {
        let mut archive = Archive::new(Vec::new());
        archive.file("/usr/bin/sh", 0o755, b"12345").unwrap();
        archive.link("bin", "usr/bin").unwrap();
        archive.device("/dev/console", 0o600, 5, 1).unwrap();
        archive.folder("/usr/bin").unwrap();
        archive.file("/usr/bin/empty", 0o644, b"").unwrap();
        assert!(archive.has("/usr/bin") && archive.has("usr/bin/sh") && !archive.has("/usr/sbin"));
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);
        let entry = |name: &str, mode: u32, device, data: &[u8]| (name.to_owned(), mode, device, data.to_vec());
        let expected = [
            entry("usr", 0o040_755, (0, 0), b""),
            entry("usr/bin", 0o040_755, (0, 0), b""),
            entry("usr/bin/sh", 0o100_755, (0, 0), b"12345"),
            entry("bin", 0o120_777, (0, 0), b"usr/bin"),
            entry("dev", 0o040_755, (0, 0), b""),
            entry("dev/console", 0o020_600, (5, 1), b""),
            entry("usr/bin/empty", 0o100_644, (0, 0), b""),
            entry(TRAILER, 0, (0, 0), b""),
        ];
        assert_eq!(read(&bytes), expected);
    }

    #[test]
    fn names_and_data_of_every_length_are_padded() {
        for len in 1..9 {
            let mut archive = Archive::new(Vec::new());
            archive.file("n".repeat(len), 0o644, &vec![b'd'; len]).unwrap();
            archive.file("last", 0o644, b"x").unwrap();
            let entries = read(&archive.finish().unwrap());
            assert_eq!((entries[0].0.len(), entries[0].3.len(), entries[1].0.as_str()), (len, len, "last"));
        }
    }

    #[test]
    fn what_no_archive_can_hold_is_refused() {
        let mut archive = Archive::new(Vec::new());
        archive.file("a", 0o644, b"").unwrap();
        assert!(archive.file("/a", 0o644, b"").unwrap_err().to_string().contains("twice"));
        assert!(archive.file("../a", 0o644, b"").unwrap_err().to_string().contains("out of"));
        assert!(archive.file("/", 0o644, b"").is_err());
    }
}
