//! Who answers a datapath's upcalls already.
//!
//! Two daemons on one datapath would delete each other's flows, so the second has to be told. The module knows the numbers of the
//! sockets that upcalls go to; a number means a running process if a generic netlink socket of this network namespace has it.
//! A daemon that has ended leaves numbers that nobody has.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Protocol of generic netlink (`NETLINK_GENERIC`).
const GENERIC: &str = "16";

/// A process other than this one that has one of the sockets, in words; `None` where nobody has.
pub(crate) fn of_sockets(pids: &BTreeSet<u32>) -> Option<String> {
    // A thread may be in another namespace than its process.
    let table = fs::read_to_string("/proc/thread-self/net/netlink").ok()?;
    let inodes: BTreeSet<String> =
        sockets(&table).filter(|(pid, _)| pids.contains(pid)).map(|(_, inode)| format!("socket:[{inode}]")).collect();
    if inodes.is_empty() {
        return None;
    }
    let ours = held_by(Path::new("/proc/self"), &inodes);
    let theirs: BTreeSet<String> = inodes.difference(&ours).cloned().collect();
    (!theirs.is_empty()).then(|| owner(&theirs))
}

/// Port numbers and inodes in the kernel's table of netlink sockets.
fn sockets(table: &str) -> impl Iterator<Item = (u32, &str)> {
    table.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let (_, protocol, pid) = (words.next()?, words.next()?, words.next()?);
        (protocol == GENERIC).then_some((pid.parse().ok()?, words.last()?))
    })
}

/// Those of `inodes` (as descriptors' links show them) that a process has open.
fn held_by(process: &Path, inodes: &BTreeSet<String>) -> BTreeSet<String> {
    let descriptors = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    let links = descriptors.filter_map(|entry| fs::read_link(entry.path()).ok()?.into_os_string().into_string().ok());
    links.filter(|link| inodes.contains(link)).collect()
}

fn owner(inodes: &BTreeSet<String>) -> String {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let found = processes.filter_map(|entry| {
        let id: u32 = entry.file_name().to_str()?.parse().ok()?;
        if held_by(&entry.path(), inodes).is_empty() {
            return None;
        }
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        Some(format!("{} (process {id})", name.trim()))
    });
    found.into_iter().next().unwrap_or_else(|| "a process that can't be seen from here".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_generic_sockets_count() {
        let table = "sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode\n\
                     0000000000000000 0   775        00000551 0        0        0     2        0        11\n\
                     0000000000000000 16  2952790016 00000000 0        0        0     2        0        12\n\
                     0000000000000000 16\n\
                     0000000000000000 16  0          00000000 0        0        0     2        0        13\n";
        assert_eq!(sockets(table).collect::<Vec<_>>(), [(2_952_790_016, "12"), (0, "13")]);
    }

    #[test]
    fn a_number_that_nobody_has_has_no_owner() {
        assert_eq!(of_sockets(&BTreeSet::from([u32::MAX - 5])), None);
        assert_eq!(of_sockets(&BTreeSet::new()), None);
    }
}
