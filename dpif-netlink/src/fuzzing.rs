//! The readers of what the kernel sends that are nobody else's business, for the fuzzers of the `fuzz` crate.
//!
//! Each is the function that the crate itself reads with, and no more: what must hold of the result, the fuzzers say.

use dpif::ct::{CtEntry, CtLimits};
use dpif::{DatapathFlow, DpStats, FlowPut, FlowStats, MeterStats, Ufid, Upcall};

use crate::attr::Writer;
use crate::codec::{self, Fitness};
use crate::message::Messages;
use crate::vport::VportInfo;
use crate::{conntrack, families, flow, kernel, meter, packet, vport};

/// Calls `visit` with each message of a datagram: its error number, and command, first 32 bits (the module's header) and
/// attributes, where it has them.
pub fn messages<'a>(datagram: &'a [u8], mut visit: impl FnMut(i32, Option<(u8, i32, &'a [u8])>)) {
    Messages(datagram).for_each(|message| visit(message.errno(), message.ovs()));
}

/// Reads an upcall of `datapath`, as a handler does; whether it is one. Any family is that of packets.
pub fn upcall(datagram: &[u8], datapath: i32, to: &mut Upcall) -> bool {
    let Some(message) = Messages(datagram).next() else { return false };
    packet::receive(&message, packet::Origin { family: message.kind, datapath, pid: 0 }, 0, to).is_ok()
}

/// A flow of a dump.
pub fn flow(attrs: &[u8]) -> codec::Result<(Fitness, DatapathFlow)> {
    flow::read(attrs)
}

/// A flow of a terse dump.
pub fn terse_flow(attrs: &[u8]) -> Option<(Ufid, FlowStats)> {
    flow::ufid_and_stats(attrs)
}

/// Writes the attributes of a flow that is put.
pub fn put_flow(put: &FlowPut, to: &mut Writer) -> codec::Result<()> {
    flow::write(put, 0, true, to)
}

/// A vport, of a dump or as it is announced.
pub fn vport(attrs: &[u8]) -> Option<VportInfo> {
    vport::read(attrs)
}

/// Counters of a datapath.
pub fn datapath(attrs: &[u8]) -> DpStats {
    kernel::read_datapath(0, attrs).stats
}

/// Statistics of a meter.
pub fn meter(attrs: &[u8]) -> Option<MeterStats> {
    meter::read(attrs)
}

/// A tracked connection.
pub fn connection(family: u8, attrs: &[u8]) -> Option<CtEntry> {
    conntrack::read(family, attrs).map(|found| found.entry)
}

/// Limits of connections.
pub fn limits(attrs: &[u8]) -> CtLimits {
    let mut limits = CtLimits::default();
    conntrack::read_limits(attrs, &mut limits);
    limits
}

/// Number and multicast group of a family of generic netlink.
pub fn family(attrs: &[u8], name: &str) -> Option<(u16, u32)> {
    families::read(attrs, name).map(|family| (family.id, family.group))
}
