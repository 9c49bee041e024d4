//! A datapath in front of another one: to look on, to measure, or in tests to lie.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use crate::ct::{CtEntry, CtLimits, CtMatch};
use crate::{
    DatapathFlow, DpStats, Dpif, DpifOp, Execute, Features, FlowPut, FlowStats, MeterConfig, MeterFeatures, MeterStats,
    OdpPort, PortEvent, PortInfo, PortSpec, PortStats, ProgramState, Result, Ufid, UpcallBatch, XdpMode, XdpState,
};

/// Writes the methods of [`Dpif`] down once: for the trait with its defaults, and for whoever implements it.
macro_rules! layer {
    ($(fn $name:ident(&self $(, $arg:ident: $type:ty)*) $(-> $out:ty)?;)*) => {
        /// A datapath in front of another one. What it doesn't do itself, that one does.
        ///
        /// A batch goes through whole: whoever changes what single operations do runs it [one by one](one_by_one).
        pub trait Layer: Send + Sync {
            /// The datapath behind it.
            fn below(&self) -> &dyn Dpif;
            $(
                #[doc = concat!("[`Dpif::", stringify!($name), "`].")]
                fn $name(&self $(, $arg: $type)*) $(-> $out)? {
                    self.below().$name($($arg),*)
                }
            )*
        }

        impl<L: Layer> Dpif for L {
            $(
                fn $name(&self $(, $arg: $type)*) $(-> $out)? {
                    Layer::$name(self $(, $arg)*)
                }
            )*
        }
    };
}

layer! {
    fn name(&self) -> &str;
    fn datapath_type(&self) -> &'static str;
    fn engine(&self) -> &'static str;
    fn features(&self) -> Features;
    fn stats(&self) -> Result<DpStats>;
    fn program(&self) -> Option<ProgramState>;
    fn set_specialise(&self, on: bool) -> Result<()>;
    fn port_add(&self, spec: &PortSpec) -> Result<OdpPort>;
    fn port_del(&self, port: OdpPort) -> Result<()>;
    fn ports(&self) -> Result<Vec<PortInfo>>;
    fn port_by_name(&self, name: &str) -> Result<Option<PortInfo>>;
    fn own_port(&self) -> Option<OdpPort>;
    fn port_stats(&self, port: OdpPort) -> Result<PortStats>;
    fn port_set_xdp(&self, port: OdpPort, mode: XdpMode) -> Result<XdpState>;
    fn port_xdp(&self, port: OdpPort) -> Result<XdpState>;
    fn port_events(&self) -> Vec<PortEvent>;
    fn flow_put(&self, put: &FlowPut) -> Result<()>;
    fn flow_get(&self, ufid: Ufid) -> Result<DatapathFlow>;
    fn flow_del(&self, ufid: Ufid) -> Result<FlowStats>;
    fn flow_dump(&self, visit: &mut dyn FnMut(&DatapathFlow) -> bool) -> Result<()>;
    fn flow_dump_stats(&self, visit: &mut dyn FnMut(Ufid, FlowStats) -> bool) -> Result<()>;
    fn flow_dump_parts(&self) -> usize;
    fn flow_dump_stats_part(&self, part: usize, flows: &mut Vec<(Ufid, FlowStats)>) -> Result<()>;
    fn flow_flush(&self) -> Result<()>;
    fn execute(&self, execute: Execute<'_>) -> Result<()>;
    fn operate(&self, ops: &mut [DpifOp<'_>]);
    fn handlers_set(&self, n_handlers: u32) -> Result<()>;
    fn recv(&self, handler: u32, batch: &mut UpcallBatch) -> Result<usize>;
    fn recv_fd(&self, handler: u32) -> Result<BorrowedFd<'_>>;
    fn recv_purge(&self, handler: u32) -> Result<usize>;
    fn upcalls_lost(&self) -> Vec<(OdpPort, u32, u64)>;
    fn meter_features(&self) -> MeterFeatures;
    fn meter_set(&self, id: u32, config: &MeterConfig) -> Result<()>;
    fn meter_get(&self, id: u32) -> Result<MeterStats>;
    fn meter_del(&self, id: u32) -> Result<MeterStats>;
    fn ct_flush(&self, which: &CtMatch) -> Result<()>;
    fn ct_dump(&self, zone: Option<u16>) -> Result<Vec<CtEntry>>;
    fn ct_limits(&self, zones: &[u16]) -> Result<CtLimits>;
    fn ct_limits_set(&self, default: Option<u32>, zones: &[(u16, u32)]) -> Result<()>;
    fn ct_limits_del(&self, default: bool, zones: &[u16]) -> Result<()>;
    fn caches(&self) -> Result<Vec<(&'static str, u32)>>;
    fn cache_set_size(&self, cache: &str, size: u32) -> Result<()>;
    fn grace_period(&self) -> Duration;
    fn destroy(&self) -> Result<()>;
}

/// Runs a batch of operations by the methods for single ones.
pub fn one_by_one<D: Dpif + ?Sized>(dpif: &D, ops: &mut [DpifOp<'_>]) {
    for op in ops {
        match op {
            DpifOp::FlowPut { put, result } => *result = dpif.flow_put(put),
            DpifOp::FlowDel { ufid, result } => *result = dpif.flow_del(*ufid),
            DpifOp::FlowGet { ufid, result } => *result = dpif.flow_get(*ufid).map(Box::new),
            DpifOp::Execute { execute, result } => *result = dpif.execute(*execute),
        }
    }
}

#[cfg(test)]
mod tests {
    /// The methods that a source text declares from one line to another.
    fn methods<'a>(text: &'a str, from: &str, to: &str) -> Vec<&'a str> {
        let text = text.split_once(from).expect("the first line").1.split_once(to).expect("the last line").0;
        let declared = text.lines().filter_map(|line| line.strip_prefix("    fn ")?.split_once('('));
        declared.map(|(name, _)| name).collect()
    }

    /// A method with a default that is not in the list would answer for the layer, not for what is behind it.
    #[test]
    fn every_method_of_the_interface_is_handed_on() {
        let interface = methods(include_str!("interface.rs"), "\npub trait Dpif: Send + Sync {", "\n}\n");
        let layer = methods(include_str!("layer.rs"), "\nlayer! {", "\n}\n");
        assert!(interface.len() > 30, "{interface:?}");
        for method in interface {
            assert!(layer.contains(&method), "{method} is not handed on");
        }
    }
}
