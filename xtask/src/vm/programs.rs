//! Programs of this machine in the guest: each with the interpreter and the libraries that it asks for.

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use object::{Object as _, ObjectSection as _};
use testkit::tools;

use super::cpio::Archive;
use crate::cmd;

/// What every guest gets, as far as this machine has it. Larger ones (`tcpdump`, `bpftool`, `strace` …) would make each boot longer
/// and are for a job to name.
const USUAL: [&str; 29] = [
    "sh", "ip", "tc", "ping", "ethtool", "cat", "ls", "mkdir", "rm", "cp", "mv", "ln", "sleep", "uname", "head",
    "tail", "grep", "sed", "wc", "sort", "dmesg", "seq", "env", "timeout", "sysctl", "date", "test", "true", "false",
];
/// Folders that the dynamic linker searches by itself.
const STANDARD: [&str; 5] = ["/lib64", "/usr/lib64", "/usr/lib", "/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu"];
/// Folders that are links into `/usr` on a system of today; the guest's are.
pub(crate) const MERGED: [&str; 4] = ["bin", "sbin", "lib", "lib64"];

/// Adds programs to an archive.
pub(crate) struct Programs<'a, W: Write> {
    archive: &'a mut Archive<W>,
    /// What an earlier archive of the same image holds.
    there: &'a BTreeSet<PathBuf>,
    added: BTreeSet<PathBuf>,
    library_folders: BTreeSet<PathBuf>,
}

impl<'a, W: Write> Programs<'a, W> {
    pub(crate) fn new(archive: &'a mut Archive<W>, there: &'a BTreeSet<PathBuf>) -> Self {
        Self { archive, there, added: BTreeSet::new(), library_folders: BTreeSet::new() }
    }

    /// Adds the usual ones; returns the names of those that this machine hasn't.
    pub(crate) fn usual(&mut self) -> Result<Vec<&'static str>> {
        let mut missing = Vec::new();
        for name in USUAL {
            // A shell that runs its own applets before what is in PATH would not run the tools that were asked for.
            let file = tools::find(if name == "sh" { "dash" } else { name });
            match file {
                Some(file) => self.program_as(&file, &Path::new("/usr/bin").join(name))?,
                None => missing.push(name),
            }
        }
        Ok(missing)
    }

    /// Adds a file under its own path, with what it needs if it is a program.
    pub(crate) fn file(&mut self, file: &Path) -> Result<()> {
        self.program_as(file, file)
    }

    /// Adds a file under another path.
    pub(crate) fn program_as(&mut self, file: &Path, path: &Path) -> Result<()> {
        let bytes = fs::read(file).with_context(|| format!("can't read {}", file.display()))?;
        let mode = fs::metadata(file)?.permissions().mode();
        if bytes.starts_with(b"\x7fELF") {
            for library in libraries(file, &bytes)? {
                if let Some(folder) =
                    library.parent().filter(|folder| !STANDARD.iter().any(|s| Path::new(s) == *folder))
                {
                    self.library_folders.insert(folder.into());
                }
                self.add(&library, &fs::read(&library)?, 0o755)?;
            }
            // What can't be run, such as an object of BPF programs, is taken as it is.
            let stripped = (mode & 0o111 != 0).then(|| stripped(file)).flatten();
            self.add(path, &stripped.unwrap_or(bytes), mode)
        } else {
            self.add(path, &bytes, mode)
        }
    }

    /// Paths that were added, and the folders of libraries that the dynamic linker must be told of.
    pub(crate) fn finish(self) -> (BTreeSet<PathBuf>, BTreeSet<PathBuf>) {
        (self.added, self.library_folders)
    }

    fn add(&mut self, path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
        let path = merged(path);
        if !self.there.contains(&path) && !self.archive.has(&path) {
            self.archive.file(&path, mode, bytes)?;
            self.added.insert(path);
        }
        Ok(())
    }
}

/// The path behind the links of a merged `/usr`.
fn merged(path: &Path) -> PathBuf {
    let below = path.strip_prefix("/").unwrap_or(path);
    match below.components().next() {
        Some(first) if MERGED.iter().any(|name| first.as_os_str() == *name) => Path::new("/usr").join(below),
        _ => Path::new("/").join(below),
    }
}

/// The interpreter of a program, and the libraries that it finds.
fn libraries(file: &Path, bytes: &[u8]) -> Result<Vec<PathBuf>> {
    let Some(interpreter) = interpreter(bytes)? else { return Ok(Vec::new()) };
    let mut command = Command::new(&interpreter);
    command.arg("--list").arg(file);
    if file.starts_with(tools::ovs_folder()) {
        command.envs(tools::ovs_environment());
    }
    let mut found = found(&cmd::output(&mut command)?).with_context(|| format!("libraries of {}", file.display()))?;
    found.push(interpreter);
    Ok(found)
}

/// What an ELF file says in `.interp`; a static program has none.
fn interpreter(bytes: &[u8]) -> Result<Option<PathBuf>> {
    let file = object::File::parse(bytes).context("not a whole ELF file")?;
    let Some(section) = file.section_by_name(".interp") else { return Ok(None) };
    let text = section.data()?.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(Some(std::str::from_utf8(text).context("its interpreter's name is not text")?.into()))
}

/// The paths in lines `NAME => PATH (ADDRESS)`.
fn found(list: &str) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for line in list.lines() {
        let Some((name, path)) = line.trim().split_once(" => ") else { continue };
        if path.starts_with("not found") {
            bail!("{name} is not found");
        }
        let path = path.rsplit_once(" (").map_or(path, |(path, _)| path);
        paths.push(path.into());
    }
    Ok(paths)
}

/// Without debug information, which would be most of the image; `None` where it can't be taken out.
fn stripped(file: &Path) -> Option<Vec<u8>> {
    let strip = tools::find("strip")?;
    let out = tempfile::NamedTempFile::new().ok()?;
    cmd::output(Command::new(strip).arg("--strip-debug").arg("-o").arg(out.path()).arg(file)).ok()?;
    fs::read(out.path()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_those_that_the_linker_found() {
        let list = "\tlinux-vdso.so.1 (0x00007ffc)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n\tliba.so => /opt/a (b)/liba.so (0x1)\n";
        let expected = ["/lib/x86_64-linux-gnu/libc.so.6", "/opt/a (b)/liba.so"].map(PathBuf::from);
        assert_eq!(found(list).unwrap(), expected);
        let error = found("\tlibx.so.1 => not found\n").unwrap_err();
        assert_eq!(error.to_string(), "libx.so.1 is not found");
    }

    #[test]
    fn paths_go_behind_the_links_of_usr() {
        for (path, expected) in
            [("/lib64/ld.so", "/usr/lib64/ld.so"), ("/usr/bin/x", "/usr/bin/x"), ("/opt/x", "/opt/x")]
        {
            assert_eq!(merged(Path::new(path)), Path::new(expected));
        }
    }

    #[test]
    fn a_program_of_this_machine_is_packed_with_its_libraries() {
        let none = BTreeSet::new();
        let mut archive = Archive::new(Vec::new());
        let mut programs = Programs::new(&mut archive, &none);
        let me = std::env::current_exe().unwrap();
        programs.file(&me).unwrap();
        let (added, _) = programs.finish();
        assert!(added.contains(&merged(&me)), "{added:?}");
        let name = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("libc.so"));
        assert!(added.iter().any(name), "{added:?}");
    }

    #[test]
    fn what_is_no_whole_program_is_an_error() {
        assert!(interpreter(b"\x7fELF\x02\x01").is_err());
    }
}
