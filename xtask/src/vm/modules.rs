//! Kernel modules of an unpacked kernel package: which ones a wish needs, and in what order they load.
//!
//! A package carries no `modules.dep` (its installation would make it), so the dependencies come from where `depmod` takes
//! them: each module's `.modinfo` names the modules it depends on. Modules may be compressed; in the image they are not, nor are
//! they signed: to check a signature takes an emulated processor longer than all else about a module.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use object::{Object as _, ObjectSection as _};

/// The modules below a folder `lib/modules/RELEASE`.
pub(crate) struct Modules {
    files: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
}

/// A module to load.
pub(crate) struct Module {
    pub(crate) name: String,
    /// The object, not compressed and without its signature.
    pub(crate) object: Vec<u8>,
}

impl Modules {
    /// Reads the folder's list of files.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        let mut folders = vec![folder.join("kernel")];
        while let Some(from) = folders.pop() {
            for entry in fs::read_dir(&from).with_context(|| format!("can't read {}", from.display()))? {
                let path = entry?.path();
                if path.is_dir() {
                    folders.push(path);
                } else if let Some(name) = module_name(&path) {
                    files.insert(name, path);
                }
            }
        }
        let builtin = fs::read_to_string(folder.join("modules.builtin")).unwrap_or_default();
        let builtin = builtin.lines().filter_map(|line| module_name(Path::new(line))).collect();
        Ok(Self { files, builtin })
    }

    /// Whether the kernel has it, as a module or built in.
    pub(crate) fn has(&self, name: &str) -> bool {
        let name = canonical(name);
        self.files.contains_key(&name) || self.builtin.contains(&name)
    }

    /// `wanted` and what they depend on, each before those that depend on it. What is built in needs no loading.
    pub(crate) fn load_order(&self, wanted: &[&str]) -> Result<Vec<Module>> {
        let mut objects = BTreeMap::new();
        let mut depends = |name: &str| {
            let path = self.files.get(name).context("no such module")?;
            let object = unsigned(decompressed(path)?);
            let depends = depends_of(&object).with_context(|| format!("can't read {}", path.display()))?;
            objects.insert(name.to_owned(), object);
            Ok(depends)
        };
        let order = order(wanted, &self.files.keys().cloned().collect(), &self.builtin, &mut depends)?;
        let take = |name: String| {
            let object = objects.remove(&name).context("a module that was not read")?;
            Ok(Module { name, object })
        };
        order.into_iter().map(take).collect()
    }
}

/// Depth first, each module once.
fn order(
    wanted: &[&str],
    files: &BTreeSet<String>,
    builtin: &BTreeSet<String>,
    depends: &mut impl FnMut(&str) -> Result<Vec<String>>,
) -> Result<Vec<String>> {
    let mut order = Vec::new();
    let mut seen = BTreeSet::new();
    // Whether the module's dependencies are in the order already, and its name.
    let mut stack: Vec<(bool, String)> = wanted.iter().rev().map(|name| (false, canonical(name))).collect();
    while let Some((ready, name)) = stack.pop() {
        if ready {
            order.push(name);
            continue;
        }
        if !seen.insert(name.clone()) || builtin.contains(&name) {
            continue;
        }
        if !files.contains(&name) {
            bail!("the kernel has no module {name}");
        }
        let needed = depends(&name).with_context(|| format!("module {name}"))?;
        stack.push((true, name));
        stack.extend(needed.iter().rev().map(|name| (false, canonical(name))));
    }
    Ok(order)
}

/// `vport_vxlan` of `…/vport-vxlan.ko.xz`; `None` for what is no module.
fn module_name(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let (name, _) = file.split_once(".ko").filter(|(_, end)| ["", ".xz", ".zst", ".gz"].contains(end))?;
    Some(canonical(name))
}

/// Dash and underscore are the same in names of modules.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

fn decompressed(path: &Path) -> Result<Vec<u8>> {
    let program = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return fs::read(path).with_context(|| format!("can't read {}", path.display())),
    };
    let mut command = Command::new(program);
    command.arg("-dc").arg(path).stdin(Stdio::null());
    let output = command.output().with_context(|| format!("modules of this kernel need {program}: install it"))?;
    if !output.status.success() {
        bail!("{program} can't decompress {}: {}", path.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output.stdout)
}

/// What a signed file ends with (`include/linux/module_signature.h`), after the signature and twelve bytes about it, of which the
/// last four are the signature's length, big-endian.
const SIGNED: &[u8] = b"~Module signature appended~\n";
const ABOUT_SIGNATURE: usize = 12;

/// A module without what has been appended to sign it.
fn unsigned(mut module: Vec<u8>) -> Vec<u8> {
    let object = module.strip_suffix(SIGNED).and_then(|signed| {
        let (before, len) = signed.split_last_chunk()?;
        let about = ABOUT_SIGNATURE - len.len();
        before.len().checked_sub(about)?.checked_sub(u32::from_be_bytes(*len) as usize)
    });
    module.truncate(object.unwrap_or(module.len()));
    module
}

/// What a module's `.modinfo` says after `depends=`, and before it loads (`softdep=… pre: …`).
fn depends_of(module: &[u8]) -> Result<Vec<String>> {
    let file = object::File::parse(module)?;
    let section = file.section_by_name(".modinfo").context("it has no .modinfo")?;
    Ok(depends_in(section.data()?))
}

/// From the strings of `.modinfo`, each ended by zero bytes.
fn depends_in(modinfo: &[u8]) -> Vec<String> {
    let strings = modinfo.split(|byte| *byte == 0).filter_map(|text| std::str::from_utf8(text).ok());
    let depends = strings.filter_map(|text| text.strip_prefix("depends="));
    depends.flat_map(|list| list.split(',')).filter(|name| !name.is_empty()).map(canonical).collect()
}

/// What the guest of every job gets: the switch's module and its vports, wires, bridges, filters, connection tracking.
pub(crate) const USUAL: [&str; 26] = [
    "virtio_pci",
    "virtio_console",
    "crc32c_generic",
    "openvswitch",
    "vport-gre",
    "vport-vxlan",
    "vport-geneve",
    "veth",
    "nf_conntrack",
    "nf_conntrack_netlink",
    "nf_conntrack_ftp",
    "nf_conntrack_tftp",
    "nf_nat",
    "nf_nat_ftp",
    "sch_ingress",
    "sch_netem",
    "cls_bpf",
    "act_bpf",
    "bridge",
    "8021q",
    "tun",
    "dummy",
    "psample",
    "nsh",
    "ip_gre",
    "ip6_gre",
];

/// Those of [`USUAL`] that this kernel has, and those that it hasn't.
pub(crate) fn usual(modules: &Modules) -> (Vec<&'static str>, Vec<&'static str>) {
    USUAL.iter().partition(|name| modules.has(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn table(name: &str) -> Result<Vec<String>> {
        let depends: &[&str] = match name {
            "openvswitch" => &["nf-conntrack", "nsh", "libcrc32c"],
            "nf_conntrack" => &["nf_defrag_ipv4", "libcrc32c"],
            "vport_vxlan" => &["openvswitch", "vxlan"],
            "circle" => &["circle_too"],
            "circle_too" => &["circle"],
            _ => &[],
        };
        Ok(depends.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn what_is_needed_comes_first_and_once() {
        let files = set(&["openvswitch", "nf_conntrack", "nf_defrag_ipv4", "vport_vxlan", "vxlan", "libcrc32c"]);
        let order = order(&["vport-vxlan", "openvswitch"], &files, &set(&["nsh"]), &mut table).unwrap();
        assert_eq!(order, ["nf_defrag_ipv4", "libcrc32c", "nf_conntrack", "openvswitch", "vxlan", "vport_vxlan"]);
    }

    #[test]
    fn a_circle_ends_and_a_module_that_is_missing_is_named() {
        let files = set(&["circle", "circle_too", "openvswitch"]);
        assert_eq!(order(&["circle"], &files, &set(&[]), &mut table).unwrap(), ["circle_too", "circle"]);
        let error = order(&["openvswitch"], &files, &set(&[]), &mut table).unwrap_err();
        assert_eq!(error.to_string(), "the kernel has no module nf_conntrack");
    }

    #[test]
    fn names_come_from_files_of_every_compression() {
        let cases = [
            ("kernel/net/vport-vxlan.ko", Some("vport_vxlan")),
            ("a/b.ko.xz", Some("b")),
            ("a/b.ko.zst", Some("b")),
            ("a/b.kof", None),
            ("modules.order", None),
        ];
        for (path, expected) in cases {
            assert_eq!(module_name(Path::new(path)).as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn a_signature_is_taken_off() {
        let signed = |len: u32| [&b"object"[..], b"signature", &[0; 8], &len.to_be_bytes(), SIGNED].concat();
        assert_eq!(unsigned(signed(9)), b"object");
        // What is none, or lies about its length, stays.
        for other in [signed(24), SIGNED.to_vec(), b"object".to_vec()] {
            assert_eq!(unsigned(other.clone()), other);
        }
    }

    #[test]
    fn dependencies_stand_in_modinfo() {
        let modinfo = b"license=GPL\0depends=nf_conntrack,nsh,ip6-tables\0\0name=x\0";
        assert_eq!(depends_in(modinfo), ["nf_conntrack", "nsh", "ip6_tables"]);
        assert_eq!(depends_in(b"depends=\0"), [""; 0]);
    }
}
