//! The numbers that the kernel has given the module's families, asked once.

use std::io;

use neli::consts::socket::NlFamily;
use nix::errno::Errno;

use crate::attr::{Attrs, str_of, u16_of, u32_of};
use crate::message::{self, F_ACK, Target};
use crate::socket::{Answer, Pool};
use crate::uapi::family;

/// Family of the families (`GENL_ID_CTRL`).
const CONTROL: u16 = 0x10;
const GET_FAMILY: u8 = 3;
/// `CTRL_ATTR_*`.
mod ctrl {
    pub(super) const FAMILY_ID: u16 = 1;
    pub(super) const FAMILY_NAME: u16 = 2;
    pub(super) const VERSION: u16 = 3;
    pub(super) const MCAST_GROUPS: u16 = 7;
    pub(super) const GROUP_NAME: u16 = 1;
    pub(super) const GROUP_ID: u16 = 2;
}

/// A family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Family {
    pub(crate) id: u16,
    pub(crate) version: u8,
    /// The multicast group of the family's own name, 0 where there is none.
    pub(crate) group: u32,
}

/// The families that a datapath needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Families {
    pub(crate) datapath: Family,
    pub(crate) vport: Family,
    pub(crate) flow: Family,
    pub(crate) packet: Family,
    /// Meters (4.15).
    pub(crate) meter: Option<Family>,
    /// Limits of tracked connections (4.18).
    pub(crate) ct_limit: Option<Family>,
}

impl Families {
    /// Asks for all; `ENOENT` where the module is not there.
    pub(crate) fn resolve(pool: &Pool) -> io::Result<Self> {
        Ok(Self {
            datapath: resolve(pool, family::DATAPATH)?,
            vport: resolve(pool, family::VPORT)?,
            flow: resolve(pool, family::FLOW)?,
            packet: resolve(pool, family::PACKET)?,
            meter: resolve(pool, family::METER).ok(),
            ct_limit: resolve(pool, family::CT_LIMIT).ok(),
        })
    }
}

fn resolve(pool: &Pool, name: &str) -> io::Result<Family> {
    pool.with(|channel| {
        let seq = channel.next_seq();
        let target = Target { family: CONTROL, version: 1, cmd: GET_FAMILY, flags: F_ACK };
        let open = message::begin(&mut channel.out, target, seq);
        channel.out.put_str(ctrl::FAMILY_NAME, name);
        message::end(&mut channel.out, open);
        let (mut family, mut result) = (None, Ok(()));
        channel.transact(seq, 1, |_, answer| match answer {
            Answer::Data(message) => family = message.generic().and_then(|(_, attrs)| read(attrs, name)),
            Answer::End(how) => result = how,
        })?;
        result?;
        Ok((family.ok_or(io::Error::from(Errno::ENOENT))?, true))
    })
}

pub(crate) fn read(attrs: &[u8], name: &str) -> Option<Family> {
    let attrs = Attrs::new(attrs);
    let id = u16_of(attrs.clone().find(ctrl::FAMILY_ID)?)?;
    let version = attrs.clone().find(ctrl::VERSION).and_then(u32_of).unwrap_or(1) as u8;
    let groups = attrs.find(ctrl::MCAST_GROUPS).unwrap_or_default();
    let group = Attrs::new(groups).map_while(Result::ok).find_map(|(_, group)| {
        let group = Attrs::new(group);
        let found = group.clone().find(ctrl::GROUP_NAME).and_then(str_of)? == name;
        if found { group.find(ctrl::GROUP_ID).and_then(u32_of) } else { None }
    });
    Some(Family { id, version, group: group.unwrap_or(0) })
}

/// Whether the module is there.
pub fn module_is_loaded() -> bool {
    resolve(&Pool::of(NlFamily::Generic), family::DATAPATH).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attr::Writer;

    #[test]
    fn a_family_is_read_with_its_group() {
        let mut to = Writer::default();
        to.put_str(ctrl::FAMILY_NAME, "ovs_vport");
        to.put_u16(ctrl::FAMILY_ID, 33);
        to.put_u32(ctrl::VERSION, 2);
        let groups = to.begin_nest(ctrl::MCAST_GROUPS);
        for (number, name, id) in [(1, "other", 6), (2, "ovs_vport", 7)] {
            let group = to.begin_nest(number);
            to.put_str(ctrl::GROUP_NAME, name);
            to.put_u32(ctrl::GROUP_ID, id);
            to.end(group);
        }
        to.end(groups);
        assert_eq!(read(to.bytes(), "ovs_vport"), Some(Family { id: 33, version: 2, group: 7 }));
        assert_eq!(read(to.bytes(), "ovs_flow"), Some(Family { id: 33, version: 2, group: 0 }));
        assert_eq!(read(&[], "ovs_flow"), None);
    }
}
