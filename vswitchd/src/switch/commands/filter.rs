//! `filter=…` of `dpctl/dump-flows`: which datapath flows an OpenFlow match is about.

use std::collections::BTreeMap;

use dpif::DatapathFlow;
use ofproto::flow::Flow;
use openflow::{FlowMatch, OfPort};

/// An OpenFlow match over datapath ports.
pub(super) struct Filter {
    value: Flow,
    mask: Flow,
}

impl Filter {
    /// Reads it. Ports are the datapath's, by number or name.
    pub(super) fn parse(text: &str, switch: &ofproto::Switch) -> Result<Filter, String> {
        let ports = switch.dpif().ports().unwrap_or_default();
        let number = |port: &dpif::PortInfo| Some(OfPort(u16::try_from(port.port.0).ok()?));
        let names: BTreeMap<String, OfPort> =
            ports.iter().filter_map(|port| Some((port.name.clone(), number(port)?))).collect();
        let filter = FlowMatch::parse(text, &names).map_err(|error| format!("Failed to parse filter ({error})"))?;
        Ok(Filter { value: Flow::from_match(&filter.value), mask: Flow::from_match(&filter.mask) })
    }

    /// Whether some packet could be of the flow and of the filter: what the flow doesn't look at, it has.
    pub(super) fn wants(&self, flow: &DatapathFlow) -> bool {
        let key = Flow::from_key(&flow.key, OfPort(flow.key.in_port as u16));
        let mut mask = Flow::ZERO;
        mask.key = flow.mask;
        if flow.mask.ip_frag != 0 {
            mask.key.ip_frag = u8::MAX;
        }
        let (value, key) = (self.value.masked(&mask), key.masked(&mask));
        key.matches(&value, &self.mask)
    }
}
