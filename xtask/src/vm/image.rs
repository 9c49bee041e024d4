//! The guest's first file system: a base that is kept (modules, the first process, the usual tools), and behind it, made for
//! each run, what the one job needs.

use std::{
    collections::BTreeSet,
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use anyhow::{Context as _, Result, bail};
use testkit::tools;

use super::{
    cpio::Archive,
    modules::{self, Modules},
    packages::Kernel,
    programs::{MERGED, Programs},
    protocol::{JOB, OUT},
};
use crate::cmd;

/// What a run takes into its guest.
pub(crate) struct Job<'a> {
    /// Program and arguments.
    pub(crate) command: &'a [String],
    /// More programs and files, or folders with all in them.
    pub(crate) files: &'a [PathBuf],
    /// `NAME=VALUE`.
    pub(crate) env: &'a [String],
    /// Kernel modules beside the usual ones.
    pub(crate) modules: &'a [String],
}

/// A base that lies in the cache.
pub(crate) struct Base {
    bytes: Vec<u8>,
    paths: BTreeSet<PathBuf>,
    /// In load order, as paths in the guest.
    modules: Vec<String>,
}

impl Base {
    /// Reads the base of this kernel, or makes it where there is none for the tools as they are.
    pub(crate) fn get(cache: &Path, kernel: &Kernel, init: &Path) -> Result<Self> {
        let stamp = stamp(kernel, init)?;
        let folder = cache.join(format!("base-{}", kernel.release));
        if fs::read_to_string(folder.join("stamp")).ok().as_ref() != Some(&stamp) {
            let step = cmd::step(format!("making the base image of {}", kernel.release));
            let (base, missing) = Self::make(kernel, init)?;
            base.save(&folder, &stamp)?;
            let size = base.bytes.len() >> 20;
            let without = if missing.is_empty() { String::new() } else { format!("; without {}", missing.join(", ")) };
            step.done(format!("{size} MiB, {} modules{without}", base.modules.len()));
            return Ok(base);
        }
        let lines = |name: &str| {
            let text = fs::read_to_string(folder.join(name));
            text.map(|text| text.lines().map(String::from).collect::<Vec<_>>())
        };
        let bytes = fs::read(folder.join("image"))?;
        Ok(Self { bytes, paths: lines("paths")?.into_iter().map(PathBuf::from).collect(), modules: lines("modules")? })
    }

    fn make(kernel: &Kernel, init: &Path) -> Result<(Self, Vec<String>)> {
        let mut archive = Archive::new(Vec::new());
        for folder in
            ["/proc", "/sys", "/dev", "/run", "/tmp", "/root", "/etc", "/usr/bin", "/usr/sbin", "/usr/lib", OUT]
        {
            archive.folder(folder)?;
        }
        for name in MERGED {
            archive.folder(Path::new("/usr").join(name))?;
            archive.link(name, &format!("usr/{name}"))?;
        }
        // The kernel opens the console before anything is mounted.
        archive.device("/dev/console", 0o600, 5, 1)?;
        archive.file("/etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n")?;
        archive.file("/etc/group", 0o644, b"root:x:0:\n")?;
        archive.file("/etc/hosts", 0o644, b"127.0.0.1 localhost\n::1 localhost\n")?;
        archive.file("/etc/nsswitch.conf", 0o644, b"passwd: files\ngroup: files\nhosts: files\n")?;

        let all = Modules::read(&kernel.modules)?;
        let (wanted, absent) = modules::usual(&all);
        let mut paths = Vec::new();
        for module in all.load_order(&wanted)? {
            let path = module_path(&module.name);
            archive.file(&path, 0o644, &module.object)?;
            paths.push(path);
        }
        let none = BTreeSet::new();
        let mut programs = Programs::new(&mut archive, &none);
        programs.program_as(init, Path::new("/init"))?;
        let absent_tools = programs.usual()?;
        let (mut added, folders) = programs.finish();
        if let Some(folder) = folders.first() {
            bail!("a tool of this machine has libraries in {}", folder.display());
        }
        added.extend(paths.iter().map(PathBuf::from));
        let missing = absent.into_iter().chain(absent_tools).map(String::from).collect();
        Ok((Self { bytes: archive.finish()?, paths: added, modules: paths }, missing))
    }

    fn save(&self, folder: &Path, stamp: &str) -> Result<()> {
        let unfinished = folder.with_added_extension("new");
        let _ = fs::remove_dir_all(&unfinished);
        fs::create_dir_all(&unfinished).with_context(|| format!("can't make {}", unfinished.display()))?;
        let paths: Vec<_> = self.paths.iter().map(|path| path.to_string_lossy()).collect();
        fs::write(unfinished.join("image"), &self.bytes)?;
        fs::write(unfinished.join("paths"), paths.join("\n"))?;
        fs::write(unfinished.join("modules"), self.modules.join("\n"))?;
        fs::write(unfinished.join("stamp"), stamp)?;
        let _ = fs::remove_dir_all(folder);
        fs::rename(&unfinished, folder).with_context(|| format!("can't make {}", folder.display()))
    }

    /// The image of a run: the base and behind it the job.
    pub(crate) fn with_job(mut self, kernel: &Kernel, job: &Job<'_>) -> Result<Vec<u8>> {
        let (program, args) = job.command.split_first().context("no command: say it behind --")?;
        let mut archive = Archive::new(Vec::new());
        let extra: Vec<&str> = job.modules.iter().map(String::as_str).collect();
        for module in Modules::read(&kernel.modules)?.load_order(&extra)? {
            let path = module_path(&module.name);
            if !self.modules.contains(&path) {
                archive.file(&path, 0o644, &module.object)?;
                self.modules.push(path);
            }
        }
        archive.file(Path::new(JOB).join("modules"), 0o644, self.modules.join("\n").as_bytes())?;

        let mut programs = Programs::new(&mut archive, &self.paths);
        let program = self.program(program, &mut programs)?;
        for file in job.files {
            pack(&mut programs, file)?;
        }
        let (_, libraries) = programs.finish();
        let command = std::iter::once(program).chain(args.iter().cloned());
        archive.file(Path::new(JOB).join("args"), 0o644, terminated(command).as_bytes())?;
        let mut env = vec![
            "PATH=/usr/bin:/usr/sbin".to_owned(),
            "HOME=/root".into(),
            "RUST_BACKTRACE=1".into(),
            format!("SLUICE_VM={}", kernel.release),
            format!("VM_OUT={OUT}"),
        ];
        if !libraries.is_empty() {
            env.push(format!("LD_LIBRARY_PATH={}", std::env::join_paths(libraries)?.to_string_lossy()));
        }
        env.extend_from_slice(job.env);
        archive.file(Path::new(JOB).join("env"), 0o644, terminated(env.into_iter()).as_bytes())?;
        self.bytes.extend(archive.finish()?);
        Ok(self.bytes)
    }

    /// Packs the command's program; returns what the guest is to run.
    fn program<W: std::io::Write>(&self, program: &str, programs: &mut Programs<'_, W>) -> Result<String> {
        if ["/usr/bin", "/usr/sbin"].iter().any(|folder| self.paths.contains(&Path::new(folder).join(program))) {
            return Ok(program.into());
        }
        let given = Path::new(program);
        let file = if program.contains('/') { given.is_file().then(|| given.into()) } else { tools::find(program) };
        let file: PathBuf = file.with_context(|| format!("no program {program} on this machine"))?;
        let file = std::path::absolute(file)?;
        programs.file(&file)?;
        Ok(file.to_string_lossy().into_owned())
    }
}

fn pack<W: std::io::Write>(programs: &mut Programs<'_, W>, path: &Path) -> Result<()> {
    // A name alone is that of a program, unless there is such a file.
    let named = path.to_str().filter(|name| !name.contains('/') && !path.exists()).and_then(tools::find);
    let path = std::path::absolute(named.as_deref().unwrap_or(path))?;
    if !path.is_dir() {
        return programs.file(&path);
    }
    for entry in fs::read_dir(&path).with_context(|| format!("can't read {}", path.display()))? {
        pack(programs, &entry?.path())?;
    }
    Ok(())
}

fn module_path(name: &str) -> String {
    format!("/usr/lib/modules/{name}.ko")
}

fn terminated(strings: impl Iterator<Item = String>) -> String {
    strings.map(|text| text + "\0").collect()
}

/// Changes when the base must be made anew: another kernel, first process, tool, or program that makes it.
fn stamp(kernel: &Kernel, init: &Path) -> Result<String> {
    let mut hasher = DefaultHasher::new();
    kernel.release.hash(&mut hasher);
    fs::read(init)?.hash(&mut hasher);
    modules::USUAL.hash(&mut hasher);
    // Tools change with the system's packages.
    for tool in ["dash", "ip", "ping", "ls"] {
        let metadata = tools::find(tool).and_then(|file| fs::metadata(file).ok());
        let modified = metadata.as_ref().and_then(|m| m.modified().ok()?.duration_since(UNIX_EPOCH).ok());
        (tool, metadata.as_ref().map(|m| (m.len(), m.permissions().mode())), modified).hash(&mut hasher);
    }
    Ok(format!("4 {:016x}", hasher.finish()))
}
