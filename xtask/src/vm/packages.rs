//! QEMU and kernels from Debian's archive, unpacked under `.cache/vm`; nothing of it is installed.
//!
//! `apt-get` does the work (mirrors, signatures, versions) with a configuration of its own, so that the machine's lists and
//! sources stay as they are. Everything is unpacked beside its place and renamed: what has its name is complete.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, bail, ensure};
use testkit::tools::find;

use super::plain;
use crate::{cmd, setup};

const ARCHIVE: &str = "http://deb.debian.org";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const RELEASE: &str = "bookworm";
/// The metapackage whose versions say which kernels there are.
const KERNEL: &str = "linux-image-cloud-amd64";
const QEMU: &str = "qemu-system-x86";
const QEMU_PROGRAM: &str = "qemu-system-x86_64";
/// Versions before 8 crash guests with newer kernels, and 8 doesn't know all features of processors that `bench vm` takes out.
const QEMU_OLDEST: u32 = 9;
/// Lists that are older are fetched again before something is looked up in them.
const LISTS_AGE: Duration = Duration::from_secs(24 * 3600);

/// QEMU, ready to run.
pub(crate) struct Qemu {
    program: PathBuf,
    /// The folder it was unpacked to; `None` for the system's own.
    unpacked: Option<PathBuf>,
}

/// An unpacked kernel.
pub(crate) struct Kernel {
    /// The file to boot.
    pub(crate) image: PathBuf,
    /// `lib/modules/RELEASE`.
    pub(crate) modules: PathBuf,
    /// Such as `6.1.0-56-cloud-amd64`.
    pub(crate) release: String,
}

impl Qemu {
    /// A command that will find its firmware and libraries.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        if let Some(folder) = &self.unpacked {
            let libraries = ["usr/lib", "lib"].map(|below| folder.join(below).join("x86_64-linux-gnu"));
            command.env("LD_LIBRARY_PATH", std::env::join_paths(libraries).unwrap_or_default());
            command.env("QEMU_MODULE_DIR", folder.join("usr/lib/x86_64-linux-gnu/qemu"));
            for share in ["qemu", "seabios"] {
                command.arg("-L").arg(folder.join("usr/share").join(share));
            }
        }
        command
    }

    fn version(&self) -> Result<String> {
        let text = cmd::output(self.command().arg("--version"))?;
        let version = text.split_whitespace().skip_while(|word| *word != "version").nth(1);
        Ok(version.context("QEMU says no version")?.to_owned())
    }
}

/// The system's QEMU if it is new enough, else Debian's of the backports.
pub(crate) fn qemu(cache: &Path) -> Result<Qemu> {
    if let Some(program) = find(QEMU_PROGRAM) {
        let qemu = Qemu { program, unpacked: None };
        if major(&qemu.version()?).is_some_and(|major| major >= QEMU_OLDEST) {
            return Ok(qemu);
        }
    }
    let folder = cache.join("qemu");
    let unpacked = || Qemu { program: folder.join("usr/bin").join(QEMU_PROGRAM), unpacked: Some(folder.clone()) };
    if !folder.is_dir() {
        let what = format!("QEMU {QEMU_OLDEST} or later ({QEMU_PROGRAM})");
        let apt = Apt::open(cache).with_context(|| format!("no {what} here: install it"))?;
        let step = cmd::step("unpacking QEMU into .cache/vm/qemu");
        let packages = apt.needed(QEMU)?;
        apt.unpack(&packages, &folder)?;
        step.done(format!("{} packages", packages.len()));
    }
    let qemu = unpacked();
    qemu.version().context("the unpacked QEMU does not run: remove .cache/vm/qemu and try again")?;
    Ok(qemu)
}

/// The newest of Debian's kernels whose version begins with `version` (`6.1`, `6.12`).
pub(crate) fn kernel(cache: &Path, version: &str) -> Result<Kernel> {
    let plain = !version.is_empty() && version.chars().all(|c| c.is_ascii_digit() || c == '.');
    ensure!(plain, "{version} is no kernel version: say it like 6.1 or 6.12");
    let folder = cache.join(format!("kernel-{version}"));
    if !folder.is_dir() {
        let apt = Apt::open(cache)?;
        let step = cmd::step(format!("unpacking kernel {version} into .cache/vm/kernel-{version}"));
        let package = apt.kernel(version)?;
        apt.unpack(std::slice::from_ref(&package), &folder)?;
        step.done(package);
    }
    let modules = folder.join("lib/modules");
    let release = fs::read_dir(&modules).with_context(|| format!("can't read {}", modules.display()))?;
    let release = release.flatten().next().with_context(|| format!("{} is empty", modules.display()))?.file_name();
    let release = release.to_string_lossy().into_owned();
    let image = folder.join("boot").join(format!("vmlinuz-{release}"));
    ensure!(image.is_file(), "{} is missing: remove {} and try again", image.display(), folder.display());
    let image = plain::kernel(&image).unwrap_or(image);
    Ok(Kernel { image, modules: modules.join(&release), release })
}

/// apt with sources and lists of its own.
struct Apt {
    folder: PathBuf,
}

impl Apt {
    fn open(cache: &Path) -> Result<Self> {
        ensure!(std::env::consts::ARCH == "x86_64", setup::missing("the virtual machine needs an x86_64 machine"));
        for (program, package) in [("apt-get", "apt"), ("dpkg", "dpkg")] {
            let hint = format!("kernels come from Debian's archive: install {program} (package {package})");
            ensure!(find(program).is_some(), setup::missing(hint));
        }
        let hint = format!("{KEYRING} is missing: install debian-archive-keyring");
        ensure!(Path::new(KEYRING).is_file(), setup::missing(hint));

        let apt = Self { folder: cache.join("apt") };
        for below in ["lists/partial", "archives/partial"] {
            let folder = apt.folder.join(below);
            fs::create_dir_all(&folder).with_context(|| format!("can't make {}", folder.display()))?;
        }
        fs::write(apt.folder.join("apt.conf"), configuration(&apt.folder))?;
        fs::write(apt.folder.join("sources.list"), sources())?;
        apt.refresh()?;
        Ok(apt)
    }

    fn refresh(&self) -> Result<()> {
        let stamp = self.folder.join("fetched");
        let fetched = fs::metadata(&stamp).and_then(|metadata| metadata.modified());
        let fresh = fetched.is_ok_and(|time| SystemTime::now().duration_since(time).is_ok_and(|age| age < LISTS_AGE));
        if !fresh {
            // By itself it is content with the lists that it has, even if these are none.
            let update = ["update", "-qq", "-o", "APT::Update::Error-Mode=any"];
            cmd::output(self.command("apt-get").args(update)).context("check the network")?;
            fs::write(stamp, "")?;
        }
        Ok(())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", self.folder.join("apt.conf")).env("DEBIAN_FRONTEND", "noninteractive");
        command.env("LC_ALL", "C");
        command
    }

    /// `NAME=VERSION` of a package of the backports and of what it needs and this machine hasn't.
    fn needed(&self, package: &str) -> Result<Vec<String>> {
        let backports = format!("{RELEASE}-backports");
        let mut command = self.command("apt-get");
        command.args(["install", "--simulate", "--no-install-recommends", "-t", &backports, package]);
        let packages = planned(&cmd::output(&mut command)?);
        ensure!(!packages.is_empty(), "apt-get would install nothing for {package}");
        Ok(packages)
    }

    /// `NAME=VERSION` of the newest kernel of this version.
    fn kernel(&self, version: &str) -> Result<String> {
        let shown = cmd::output(self.command("apt-cache").args(["show", KERNEL]))?;
        newest_kernel(&shown, version).with_context(|| {
            let known = kernels(&shown).map(|(version, _, _)| version).collect::<Vec<_>>().join(", ");
            format!("Debian {RELEASE} has no kernel {version}; it has {known}")
        })
    }

    /// Downloads the packages and unpacks them to `folder`.
    fn unpack(&self, packages: &[String], folder: &Path) -> Result<()> {
        let (download, unfinished) = (folder.with_added_extension("download"), folder.with_added_extension("new"));
        for scratch in [&download, &unfinished] {
            let _ = fs::remove_dir_all(scratch);
            fs::create_dir_all(scratch).with_context(|| format!("can't make {}", scratch.display()))?;
        }
        let mut command = self.command("apt-get");
        command.args(["download", "-qq"]).args(packages).current_dir(&download);
        cmd::output(&mut command).context("check the network")?;
        for file in fs::read_dir(&download)? {
            cmd::output(Command::new("dpkg").arg("-x").arg(file?.path()).arg(&unfinished))?;
        }
        fs::rename(&unfinished, folder).with_context(|| format!("can't make {}", folder.display()))?;
        let _ = fs::remove_dir_all(&download);
        Ok(())
    }
}

fn configuration(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "Dir::Etc::sourcelist \"{folder}/sources.list\";\n\
         Dir::Etc::sourceparts \"/dev/null\";\n\
         Dir::Etc::preferences \"/dev/null\";\n\
         Dir::Etc::preferencesparts \"/dev/null\";\n\
         Dir::State::lists \"{folder}/lists\";\n\
         Dir::Cache::archives \"{folder}/archives\";\n\
         Dir::Cache::pkgcache \"{folder}/pkgcache.bin\";\n\
         Dir::Cache::srcpkgcache \"{folder}/srcpkgcache.bin\";\n\
         Acquire::Languages \"none\";\n\
         Acquire::Retries \"3\";\n\
         APT::Sandbox::User \"root\";\n\
         APT::Architecture \"amd64\";\n"
    )
}

fn sources() -> String {
    let line = |path: &str, suite: &str| format!("deb [signed-by={KEYRING}] {ARCHIVE}/{path} {suite} main\n");
    let suite = |suffix: &str| format!("{RELEASE}{suffix}");
    [line("debian", RELEASE), line("debian", &suite("-backports")), line("debian-security", &suite("-security"))]
        .concat()
}

/// What a simulated installation would unpack: `Inst NAME [OLD] (VERSION ORIGIN [ARCH])`.
fn planned(plan: &str) -> Vec<String> {
    let package = |line: &str| {
        let (name, rest) = line.strip_prefix("Inst ")?.split_once(' ')?;
        let (_, version) = rest.split_once('(')?;
        Some(format!("{name}={}", version.split([' ', ')']).next()?))
    };
    plan.lines().filter_map(package).collect()
}

/// Version of the metapackage, name and version of the kernel that it stands for, of each paragraph of `apt-cache show`.
fn kernels(shown: &str) -> impl Iterator<Item = (&str, &str, &str)> {
    shown.split("\n\n").filter_map(|paragraph| {
        let field = |name| paragraph.lines().find_map(|line| line.strip_prefix(name));
        let (name, rest) =
            field("Depends: ")?.split(", ").find(|one| one.starts_with("linux-image-"))?.split_once(' ')?;
        let version = rest.strip_prefix("(= ")?.strip_suffix(')')?;
        Some((field("Version: ")?, name, version))
    })
}

/// apt shows the newest version first.
fn newest_kernel(shown: &str, version: &str) -> Option<String> {
    let fits = |found: &str| found.strip_prefix(version).is_some_and(|rest| rest.starts_with(['.', '-']));
    kernels(shown).find(|(found, ..)| fits(found)).map(|(_, name, version)| format!("{name}={version}"))
}

fn major(version: &str) -> Option<u32> {
    version.split('.').next()?.parse().ok()
}

/// Takes the cache for this process: another one waits until the first has filled it.
pub(crate) fn lock(cache: &Path) -> Result<nix::fcntl::Flock<fs::File>> {
    fs::create_dir_all(cache).with_context(|| format!("can't make {}", cache.display()))?;
    let file = fs::File::create(cache.join("lock"))?;
    match nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive) {
        Ok(lock) => Ok(lock),
        Err((_, error)) => bail!("can't lock {}: {error}", cache.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &str = "6.12";
    const SHOWN: &str = "Package: linux-image-cloud-amd64\nVersion: 6.12.95-1~bpo12+1\n\
        Depends: linux-image-6.12.95+deb12-cloud-amd64 (= 6.12.95-1~bpo12+1)\n\n\
        Package: linux-image-cloud-amd64\nVersion: 6.1.192-2\nDepends: x, linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)\n\n\
        Package: linux-image-cloud-amd64\nVersion: 6.1.176-1\nDepends: linux-image-6.1.0-50-cloud-amd64 (= 6.1.176-1)\n";

    #[test]
    fn the_newest_kernel_of_a_version_is_found() {
        let found = |version| newest_kernel(SHOWN, version);
        assert_eq!(found("6.1").as_deref(), Some("linux-image-6.1.0-56-cloud-amd64=6.1.192-2"));
        assert_eq!(found("6.12").as_deref(), Some("linux-image-6.12.95+deb12-cloud-amd64=6.12.95-1~bpo12+1"));
        assert_eq!(found("6.1.176").as_deref(), Some("linux-image-6.1.0-50-cloud-amd64=6.1.176-1"));
        assert_eq!(found("5.10"), None);
    }

    #[test]
    fn a_plan_names_packages_and_versions() {
        let plan = "Reading package lists...\nInst seabios (1.16.3-2~bpo12+1 Debian Backports:oldstable [all])\n\
            Inst libnl [3.6] (3.7.0-0.2+b1 Debian:12 [amd64])\nConf seabios (1.16.3 Debian)\n";
        assert_eq!(planned(plan), ["seabios=1.16.3-2~bpo12+1", "libnl=3.7.0-0.2+b1"]);
    }

    #[test]
    fn without_a_network_it_says_so_and_asks_again_the_next_time() {
        testkit::require!(
            "without_a_network_it_says_so_and_asks_again_the_next_time";
            testkit::Need::Namespaces,
            testkit::Need::Tool("apt-get"),
            testkit::Need::Tool("dpkg")
        );
        if !Path::new(KEYRING).is_file() {
            return;
        }
        let cache = tempfile::tempdir().unwrap();
        let alone = testkit::Netns::new("alone").unwrap();
        let error = alone.run(|| kernel(cache.path(), KNOWN).err().map(|error| format!("{error:#}"))).unwrap();
        let error = error.expect("a kernel from nowhere");
        assert!(error.contains("check the network"), "{error}");
        assert!(!cache.path().join("apt/fetched").exists(), "it would not ask again");
    }

    #[test]
    fn a_wrong_version_is_refused() {
        let error = kernel(Path::new("/nonexistent"), "6.1/../x").err().unwrap();
        assert!(error.to_string().contains("say it like 6.1"), "{error}");
    }
}
