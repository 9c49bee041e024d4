//! Requests to the module about one datapath.

use std::io;

use dpif::{DpStats, DpifError, Result};
use neli::consts::socket::NlFamily;
use nix::errno::Errno;

use crate::attr::{Attrs, Writer, u32_of};
use crate::codec;
use crate::error::{self, Failed};
use crate::families::{Families, Family};
use crate::message::{self, F_ACK, F_DUMP, F_ECHO, Message, Target};
use crate::socket::{Answer, Channel, Dumped, Pool};
use crate::uapi::{cmd, dp};

/// The way to the module.
pub(crate) struct Kernel {
    pub(crate) families: Families,
    pub(crate) pool: Pool,
}

/// A datapath as the module describes it.
#[derive(Clone, Debug, Default)]
pub(crate) struct DatapathInfo {
    pub(crate) ifindex: i32,
    pub(crate) features: u32,
    pub(crate) stats: DpStats,
    /// Sockets that upcalls of each CPU go to.
    pub(crate) cpu_pids: Vec<u32>,
    /// Places of the cache of masks.
    pub(crate) masks_cache_size: Option<u32>,
}

/// A request: its family, command, flags, and what writes its attributes.
pub(crate) struct Request<'a> {
    pub(crate) family: Family,
    pub(crate) cmd: u8,
    pub(crate) flags: u16,
    pub(crate) attrs: &'a dyn Fn(&mut Writer) -> codec::Result<()>,
}

impl Kernel {
    pub(crate) fn open() -> Result<Self> {
        let pool = Pool::of(NlFamily::Generic);
        let families = Families::resolve(&pool).map_err(|error| match error.raw_os_error() {
            Some(errno) if errno == Errno::ENOENT as i32 => {
                DpifError::Kernel("the openvswitch module is not loaded: run `modprobe openvswitch`".into())
            }
            _ => error::io(error, || "can't ask for the openvswitch module".into()),
        })?;
        Ok(Self { families, pool })
    }

    /// One request; calls `reply` with the datapath and the attributes of each answer. Returns what the kernel said.
    pub(crate) fn request(
        &self,
        ifindex: i32,
        request: &Request<'_>,
        mut reply: impl FnMut(i32, &[u8]),
    ) -> Result<Result<(), Errno>> {
        let work = |channel: &mut Channel| -> Result<(Result<(), Errno>, bool), Failed> {
            let seq = channel.next_seq();
            let target = Target {
                family: request.family.id,
                version: request.family.version,
                cmd: request.cmd,
                flags: request.flags | F_ACK,
            };
            let open = message::begin(&mut channel.out, target, seq);
            channel.out.raw(&ifindex.to_ne_bytes());
            (request.attrs)(&mut channel.out).map_err(|error| error::codec(&error))?;
            message::end(&mut channel.out, open);
            let mut result = Ok(());
            channel.transact(seq, 1, |_, answer| match answer {
                Answer::Data(message) => {
                    if let Some((_, ifindex, attrs)) = message.ovs() {
                        reply(ifindex, attrs);
                    }
                }
                Answer::End(how) => result = how,
            })?;
            Ok((result, true))
        };
        self.pool.with(work).map_err(|Failed(error)| error)
    }

    /// A dump. Calls `visit` with each message's attributes until it says `false`.
    pub(crate) fn dump(
        &self,
        ifindex: i32,
        family: Family,
        attrs: impl FnOnce(&mut Writer),
        mut visit: impl FnMut(&[u8]) -> bool,
    ) -> Result<Dumped> {
        let work = |channel: &mut Channel| -> io::Result<(Dumped, bool)> {
            let seq = channel.next_seq();
            let target = Target { family: family.id, version: family.version, cmd: cmd::GET, flags: F_DUMP };
            let open = message::begin(&mut channel.out, target, seq);
            channel.out.raw(&ifindex.to_ne_bytes());
            attrs(&mut channel.out);
            message::end(&mut channel.out, open);
            let dumped =
                channel.dump(seq, |message: Message<'_>| message.ovs().is_none_or(|(_, _, attrs)| visit(attrs)))?;
            Ok((dumped, dumped.whole))
        };
        self.pool.with(work).map_err(|error| error::io(error, || "can't dump".into()))
    }

    /// The datapath of this name; `None` where there is none.
    pub(crate) fn datapath(&self, name: &str) -> Result<Option<DatapathInfo>> {
        let attrs = |to: &mut Writer| {
            to.put_str(dp::NAME, name);
            Ok(())
        };
        self.datapath_request(cmd::GET, 0, &attrs, || format!("can't ask for datapath {name}"))
    }

    /// Makes a datapath.
    pub(crate) fn make_datapath(&self, name: &str, features: u32) -> Result<DatapathInfo> {
        let attrs = |to: &mut Writer| {
            to.put_str(dp::NAME, name);
            to.put_u32(dp::UPCALL_PID, 0);
            to.put_u32(dp::USER_FEATURES, features);
            Ok(())
        };
        let made = self.datapath_request(cmd::NEW, 0, &attrs, || format!("can't make datapath {name}"))?;
        made.ok_or_else(|| DpifError::Kernel(format!("the kernel made datapath {name} and says nothing of it")))
    }

    /// Sets features, and the sockets that upcalls of each CPU go to.
    pub(crate) fn set_datapath(&self, ifindex: i32, features: u32, pids: Option<&[u32]>) -> Result<DatapathInfo> {
        let attrs = |to: &mut Writer| {
            to.put_u32(dp::USER_FEATURES, features);
            if let Some(pids) = pids {
                let bytes: Vec<u8> = pids.iter().flat_map(|pid| pid.to_ne_bytes()).collect();
                to.put(dp::PER_CPU_PIDS, &bytes);
            }
            Ok(())
        };
        let set = self.datapath_request(cmd::SET, ifindex, &attrs, || "can't set a datapath's features".into())?;
        set.ok_or_else(|| DpifError::Kernel("the datapath is gone".into()))
    }

    /// Sets how many places the cache of masks has.
    pub(crate) fn set_masks_cache_size(&self, ifindex: i32, features: u32, size: u32) -> Result<()> {
        let attrs = |to: &mut Writer| {
            to.put_u32(dp::USER_FEATURES, features);
            to.put_u32(dp::MASKS_CACHE_SIZE, size);
            Ok(())
        };
        let set =
            self.datapath_request(cmd::SET, ifindex, &attrs, || format!("can't set the cache's size to {size}"))?;
        set.map(drop).ok_or_else(|| DpifError::Kernel("the datapath is gone".into()))
    }

    pub(crate) fn delete_datapath(&self, ifindex: i32) -> Result<()> {
        self.datapath_request(cmd::DEL, ifindex, &|_| Ok(()), || "can't delete the datapath".into()).map(drop)
    }

    /// What the module says of a datapath now.
    pub(crate) fn datapath_info(&self, ifindex: i32) -> Result<DatapathInfo> {
        let info = self.datapath_request(cmd::GET, ifindex, &|_| Ok(()), || "can't ask for a datapath".into())?;
        info.ok_or_else(|| DpifError::Kernel("the datapath is gone".into()))
    }

    fn datapath_request(
        &self,
        command: u8,
        ifindex: i32,
        attrs: &dyn Fn(&mut Writer) -> codec::Result<()>,
        what: impl FnOnce() -> String,
    ) -> Result<Option<DatapathInfo>> {
        let family = self.families.datapath;
        let request = Request { family, cmd: command, flags: F_ECHO, attrs };
        let mut info = None;
        match self.request(ifindex, &request, |ifindex, attrs| info = Some(read_datapath(ifindex, attrs)))? {
            Ok(()) => Ok(info),
            Err(Errno::ENODEV) => Ok(None),
            Err(Errno::EEXIST) => Err(DpifError::Exists(format!("{}: the name is in use", what()))),
            Err(errno) => Err(error::of(errno, what)),
        }
    }
}

pub(crate) fn read_datapath(ifindex: i32, attrs: &[u8]) -> DatapathInfo {
    let attrs = Attrs::new(attrs);
    let mut info = DatapathInfo { ifindex, ..DatapathInfo::default() };
    info.features = attrs.clone().find(dp::USER_FEATURES).and_then(u32_of).unwrap_or(0);
    let pids = attrs.clone().find(dp::PER_CPU_PIDS).unwrap_or_default();
    info.cpu_pids = pids.as_chunks().0.iter().map(|bytes| u32::from_ne_bytes(*bytes)).collect();
    info.masks_cache_size = attrs.clone().find(dp::MASKS_CACHE_SIZE).and_then(u32_of);
    let words = |kind| words(attrs.clone().find(kind).unwrap_or_default());
    let stats = &mut info.stats;
    [stats.hit, stats.missed, stats.lost, stats.flows] = words(dp::STATS);
    // The number of masks is the lower half of a word on either kind of machine: it is followed by 32 bits of padding.
    let [mask_hit, masks, cache_hit, _] = words(dp::MEGAFLOW_STATS);
    let [m0, m1, m2, m3, ..] = masks.to_ne_bytes();
    (stats.mask_hit, stats.masks, stats.cache_hit) = (mask_hit, u32::from_ne_bytes([m0, m1, m2, m3]).into(), cache_hit);
    info
}

/// Words of a statistics structure; an older kernel's may be shorter.
pub(crate) fn words<const N: usize>(bytes: &[u8]) -> [u64; N] {
    let mut words = [0; N];
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *word = u64::from_ne_bytes(*bytes);
    }
    words
}
