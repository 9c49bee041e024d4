//! A datapath that is looked at: what is asked of it is counted, logged, and told to who traces it.
//!
//! [`Observed`] stands in front of any datapath and passes everything on.
//!
//! - **Counters** have the field's names: `dpif_flow_put`, `dpif_flow_put_error` and so on.
//! - **Logs** of the module `dpif`: at level `dbg` each operation in odp text, at `warn` each that failed otherwise than by the
//!   ordinary course of things. Where nobody listens, no text is made.
//! - **Probes**: `dpif_recv:recv_upcall`, `dpif_netlink_operate__:op_flow_put` and its sisters.

use std::ffi::CString;
use std::fmt::Write;
use std::sync::Arc;

use crate::layer::Layer;
use crate::odp::Style;
use crate::{
    DatapathFlow, Dpif, DpifError, DpifOp, Execute, FlowPut, FlowStats, MeterConfig, MeterStats, OdpPort, PortSpec,
    PutMode, Result, Ufid, UpcallBatch, UpcallKind,
};

/// A datapath that is looked at.
pub struct Observed {
    dpif: Arc<dyn Dpif>,
    /// `TYPE@NAME`.
    name: String,
    /// The same for tracers.
    c_name: CString,
}

impl Observed {
    /// Looks at a datapath.
    pub fn new(dpif: Arc<dyn Dpif>) -> Self {
        let name = format!("{}@{}", dpif.datapath_type(), dpif.name());
        let c_name = CString::new(name.as_str()).unwrap_or_default();
        Self { dpif, name, c_name }
    }

    fn put(&self, put: &FlowPut, result: &Result<()>) {
        probes::op_flow_put(&*self.dpif, put);
        coverage::inc!("dpif_flow_put");
        if result.is_err() {
            coverage::inc!("dpif_flow_put_error");
        }
        self.say(result.as_ref().err(), |text| {
            text.push_str(match put.mode {
                PutMode::Create => "put[create]",
                PutMode::Modify => "put[modify]",
                PutMode::CreateOrModify => "put[create][modify]",
            });
            error_text(text, result.as_ref().err());
            let key = STYLE.key(&put.key, Some(&put.mask));
            let _ = write!(text, " {} {key}, actions:{}", put.ufid, STYLE.actions(&put.actions));
        });
    }

    fn del(&self, ufid: Ufid, result: &Result<FlowStats>) {
        probes::op_flow_del(&*self.dpif, &ufid);
        coverage::inc!("dpif_flow_del");
        if result.is_err() {
            coverage::inc!("dpif_flow_del_error");
        }
        self.say(result.as_ref().err(), |text| {
            text.push_str("flow_del");
            error_text(text, result.as_ref().err());
            let _ = write!(text, " {ufid}");
            if let Ok(stats) = result {
                let _ = write!(text, ", {}", stats_text(stats));
            }
        });
    }

    fn get<'a>(&self, ufid: Ufid, result: std::result::Result<&'a DatapathFlow, &'a DpifError>) {
        probes::op_flow_get(&*self.dpif, &ufid);
        coverage::inc!("dpif_flow_get");
        if result.is_err() {
            coverage::inc!("dpif_flow_get_error");
        }
        self.say(result.err(), |text| {
            text.push_str("flow_get");
            error_text(text, result.err());
            let _ = write!(text, " {ufid}");
            if let Ok(flow) = result {
                let key = STYLE.key(&flow.key, Some(&flow.mask));
                let _ = write!(text, " {key}, {}, actions:{}", stats_text(&flow.stats), STYLE.actions(&flow.actions));
            }
        });
    }

    fn executed(&self, execute: &Execute<'_>, result: &Result<()>) {
        probes::op_flow_execute(&*self.dpif, execute, &execute.packet.data);
        coverage::inc!("dpif_execute");
        if result.is_err() {
            coverage::inc!("dpif_execute_error");
        }
        self.say(result.as_ref().err(), |text| {
            let _ = write!(text, "execute {}", STYLE.actions(execute.actions));
            error_text(text, result.as_ref().err());
            text.push_str(" on packet ");
            execute.packet.data.iter().take(MOST_BYTES).for_each(|byte| {
                let _ = write!(text, "{byte:02x}");
            });
            if execute.packet.data.len() > MOST_BYTES {
                let _ = write!(text, "... ({} bytes)", execute.packet.data.len());
            }
            let _ = write!(text, " with metadata {}", STYLE.key(&metadata(execute), None));
        });
    }

    fn meter(&self, what: &str, id: u32, error: Option<&DpifError>) {
        self.say(error, |text| {
            let _ = write!(text, "meter_{what}");
            error_text(text, error);
            let _ = write!(text, " {id}");
        });
    }

    /// Logs an operation, if somebody listens.
    fn say(&self, error: Option<&DpifError>, what: impl FnOnce(&mut String)) {
        let text = || {
            let mut text = format!("{}: {}", self.name, if error.is_some() { "failed to " } else { "" });
            what(&mut text);
            text
        };
        // What one thread does while another is at it is no failure.
        match error {
            Some(DpifError::NoSuchFlow | DpifError::FlowExists) | None => {
                if tracing::enabled!(target: "dpif", tracing::Level::DEBUG) {
                    tracing::debug!(target: "dpif", "{}", text());
                }
            }
            Some(_) => {
                if tracing::enabled!(target: "dpif", tracing::Level::WARN) {
                    tracing::warn!(target: "dpif", rate_limit = 60, "{}", text());
                }
            }
        }
    }
}

/// Bytes of a packet that a message shows.
const MOST_BYTES: usize = 128;

const STYLE: Style<'static> = Style { names: None, verbose: true, packet_type: false };

fn error_text(text: &mut String, error: Option<&DpifError>) {
    if let Some(error) = error {
        let _ = write!(text, " ({error})");
    }
}

fn stats_text(stats: &FlowStats) -> String {
    use nix::time::{ClockId, clock_gettime};
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0, |t| t.tv_sec() as u64 * 1000 + t.tv_nsec() as u64 / 1_000_000);
    crate::odp::format_stats(stats, now)
}

/// What of a key goes with a packet beside its bytes.
fn metadata(execute: &Execute<'_>) -> datapath_common::FlowKey {
    let mut key = *execute.key;
    datapath_common::extract::clear_packet_fields(&mut key);
    key
}

impl Layer for Observed {
    fn below(&self) -> &dyn Dpif {
        &*self.dpif
    }

    fn port_add(&self, spec: &PortSpec) -> Result<OdpPort> {
        let result = self.dpif.port_add(spec);
        if let Ok(port) = &result {
            coverage::inc!("dpif_port_add");
            tracing::debug!(target: "dpif", "{}: added {} as port {port}", self.name, spec.name);
        }
        result
    }

    fn port_del(&self, port: OdpPort) -> Result<()> {
        let result = self.dpif.port_del(port);
        coverage::inc!("dpif_port_del");
        if result.is_ok() {
            tracing::debug!(target: "dpif", "{}: port_del({port})", self.name);
        }
        result
    }

    fn flow_put(&self, put: &FlowPut) -> Result<()> {
        let result = self.dpif.flow_put(put);
        self.put(put, &result);
        result
    }

    fn flow_get(&self, ufid: Ufid) -> Result<DatapathFlow> {
        let result = self.dpif.flow_get(ufid);
        self.get(ufid, result.as_ref());
        result
    }

    fn flow_del(&self, ufid: Ufid) -> Result<FlowStats> {
        let result = self.dpif.flow_del(ufid);
        self.del(ufid, &result);
        result
    }

    fn flow_flush(&self) -> Result<()> {
        let result = self.dpif.flow_flush();
        coverage::inc!("dpif_flow_flush");
        tracing::debug!(target: "dpif", "{}: flow_flush", self.name);
        result
    }

    fn execute(&self, execute: Execute<'_>) -> Result<()> {
        let result = self.dpif.execute(execute);
        self.executed(&execute, &result);
        result
    }

    fn operate(&self, ops: &mut [DpifOp<'_>]) {
        self.dpif.operate(ops);
        for op in ops {
            match op {
                DpifOp::FlowPut { put, result } => self.put(put, result),
                DpifOp::FlowDel { ufid, result } => self.del(*ufid, result),
                DpifOp::FlowGet { ufid, result } => self.get(*ufid, result.as_deref()),
                DpifOp::Execute { execute, result } => self.executed(execute, result),
            }
        }
    }

    fn recv(&self, handler: u32, batch: &mut UpcallBatch) -> Result<usize> {
        let n = self.dpif.recv(handler, batch)?;
        let log = tracing::enabled!(target: "dpif", tracing::Level::DEBUG);
        for upcall in batch.upcalls() {
            probes::recv_upcall(&self.c_name, upcall.kind as u32, &upcall.packet.data, &upcall.key);
            if log {
                let kind = if upcall.kind == UpcallKind::Miss { "miss" } else { "action" };
                let key = STYLE.key(&upcall.key, None);
                tracing::debug!(target: "dpif", "{}: {kind} upcall:\n{key}", self.name);
            }
        }
        Ok(n)
    }

    fn recv_purge(&self, handler: u32) -> Result<usize> {
        coverage::inc!("dpif_purge");
        self.dpif.recv_purge(handler)
    }

    fn meter_set(&self, id: u32, config: &MeterConfig) -> Result<()> {
        coverage::inc!("dpif_meter_set");
        let result = self.dpif.meter_set(id, config);
        self.meter("set", id, result.as_ref().err());
        result
    }

    fn meter_get(&self, id: u32) -> Result<MeterStats> {
        coverage::inc!("dpif_meter_get");
        self.dpif.meter_get(id)
    }

    fn meter_del(&self, id: u32) -> Result<MeterStats> {
        coverage::inc!("dpif_meter_del");
        let result = self.dpif.meter_del(id);
        self.meter("del", id, result.as_ref().err());
        result
    }

    fn destroy(&self) -> Result<()> {
        coverage::inc!("dpif_destroy");
        self.dpif.destroy()
    }
}
