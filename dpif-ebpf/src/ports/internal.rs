//! Internal ports: veth pairs through which the host itself is on the bridge.
//!
//! The host's end has the port's name; the host gives it addresses and routes. The other end is the datapath's: it stays
//! without addresses, and nobody but the datapath sends or receives there. A veth pair needs nobody to hold it open, so the
//! host keeps its network while no daemon runs.

use dpif::{DpifError, Result};

use crate::kernel::io_error;
use crate::rtnl::{self, Link};

/// Longest name of a device.
const NAME_MAX: usize = 15;

/// The name of the datapath's end of internal port `name`.
pub(super) fn peer_name(name: &str) -> String {
    let readable = format!("{name}-dp");
    if readable.len() <= NAME_MAX {
        return readable;
    }
    // FNV-1a: a long name keeps its beginning, and two with the same beginning stay apart.
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    let start: String = name
        .chars()
        .take_while({
            let mut len = 0;
            move |c| {
                len += c.len_utf8();
                len <= NAME_MAX - 9
            }
        })
        .collect();
    format!("{start}-dp{:06x}", hash & 0xff_ffff)
}

/// Refuses names that are taken.
pub(super) fn check(name: &str, peer: &str) -> Result<()> {
    for taken in [name, peer] {
        let link = rtnl::by_name(taken).map_err(|error| io_error(format!("can't ask for device {taken}"), error))?;
        if link.is_some() {
            return Err(DpifError::Exists(format!(
                "internal port {name} needs the device name {taken}, which is in use in this network namespace"
            )));
        }
    }
    Ok(())
}

/// Makes the pair: the host's end and the datapath's.
pub(super) fn create(name: &str, peer: &str) -> Result<(Link, Link)> {
    let failed = |error| io_error(format!("can't make internal port {name}"), error);
    rtnl::add_veth(name, peer).map_err(failed)?;
    let find =
        |name: &str| rtnl::by_name(name).map_err(failed)?.ok_or_else(|| DpifError::NoSuchDevice(name.to_owned()));
    let (host, inside) = (find(name)?, find(peer)?);
    rtnl::set_no_ipv6_address(inside.index).map_err(failed)?;
    rtnl::set_no_arp(inside.index).map_err(failed)?;
    rtnl::set_up(inside.index).map_err(failed)?;
    rtnl::set_up(host.index).map_err(failed)?;
    Ok((host, inside))
}

/// Removes the pair, whichever end is left. Only a veth whose other end is the right one is taken for ours.
pub(super) fn remove(name: &str, peer: &str, indexes: [u32; 2]) -> Result<()> {
    let failed = |error| io_error(format!("can't remove internal port {name}"), error);
    let mut candidates = Vec::new();
    let [host, inside] = indexes;
    for (index, other) in [(host, inside), (inside, host)].into_iter().filter(|(index, _)| *index != 0) {
        // A device that went to another namespace leaves its number to others, and may have another one there.
        let is_ours = |link: &Link| other == 0 || link.lower == Some(other) || link.name == peer;
        candidates.extend(rtnl::by_index(index).map_err(failed)?.filter(is_ours));
    }
    if indexes == [0, 0] {
        // The process that made it died before it noted the numbers.
        let (a, b) = (rtnl::by_name(name).map_err(failed)?, rtnl::by_name(peer).map_err(failed)?);
        if let (Some(a), Some(b)) = (a, b)
            && a.lower == Some(b.index)
            && b.lower == Some(a.index)
        {
            candidates.push(a);
        }
    }
    for link in candidates.into_iter().filter(|link| link.kind == "veth") {
        match rtnl::delete(link.index) {
            // Its other end took it along.
            Err(error) if error.raw_os_error() != Some(libc::ENODEV) => return Err(failed(error)),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_other_end_has_a_name_that_fits_and_differs() {
        assert_eq!(peer_name("br0"), "br0-dp");
        assert_eq!(peer_name("twelve-chars"), "twelve-chars-dp");
        let (a, b) = (peer_name("fifteen-chars-a"), peer_name("fifteen-chars-b"));
        assert_ne!(a, b);
        for name in [&a, &b, &peer_name("ääääääääää")] {
            assert!(name.len() <= NAME_MAX, "{name}");
        }
    }
}
