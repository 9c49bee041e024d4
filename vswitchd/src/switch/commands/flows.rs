//! Datapath flows: `dpctl/dump-flows` and its companions, `dpif/dump-flows`.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;

use dpif::{DatapathFlow, DpifError, FlowKey, FlowPut, PutMode, Ufid, odp};
use ofproto::{Clock, MonotonicClock};
use serde_json::{Value, json};

use super::filter::Filter;
use super::options::{Options, port_names, port_numbers};
use super::say;
use crate::switch::shared::Shared;
use crate::unixctl::{Format, Registry, Reply, Request};

const FLOW_USAGE: &str = "[DP] FLOW ACTIONS";

pub(super) fn register(registry: &Registry, shared: &Arc<Shared>) {
    let all = Arc::clone(shared);
    let usage = "[-m] [--names | --no-names] [DP] [filter=..] [type=..]";
    registry.register_any("dpctl/dump-flows", usage, 0, 6, move |request| dump(&all, request));
    type Command = fn(&Shared, &[String]) -> Result<String, String>;
    for (name, usage, min_args, command) in [
        ("dpctl/get-flow", "[DP] ufid:UFID", 1, get as Command),
        ("dpctl/add-flow", FLOW_USAGE, 2, |shared, args| put(shared, args, PutMode::Create)),
        ("dpctl/mod-flow", FLOW_USAGE, 2, |shared, args| put(shared, args, PutMode::Modify)),
        ("dpctl/del-flow", "[DP] FLOW", 1, del),
        ("dpif/dump-flows", "[-m] [--names | --no-names] BRIDGE", 1, dump_bridge),
    ] {
        let all = Arc::clone(shared);
        registry.register(name, usage, min_args, 6, move |args| command(&all, args));
    }
}

fn dump(shared: &Shared, request: Request<'_>) -> Result<Reply, String> {
    let mut options = Options::read(request.args)?;
    let (mut filter, mut types) = (None, None);
    options.rest.retain(|arg| {
        let (text, to) = match (arg.strip_prefix("filter="), arg.strip_prefix("type=")) {
            (Some(text), _) => (text, &mut filter),
            (_, Some(text)) => (text, &mut types),
            _ => return true,
        };
        *to = Some(text);
        false
    });
    let switch = options.datapath(shared, 0)?;
    let filter = filter.map(|text| Filter::parse(text, &switch)).transpose()?;
    let shown = types.map_or(Ok(true), shows_ours)?;
    let mut flows = switch.flows_of_datapath().map_err(say)?;
    flows.retain(|flow| shown && filter.as_ref().is_none_or(|filter| filter.wants(flow)));

    let names = port_names(&switch);
    let style = options.style(&switch, Some(&names));
    let now = MonotonicClock.now_ms();
    if request.format == Format::Json {
        return Ok(Reply::Json(flows.iter().map(|flow| value(flow, style, now)).collect()));
    }
    let mut text = String::new();
    if style.packet_type && !flows.is_empty() {
        text.push_str("flow-dump from the main thread:\n");
    }
    text.extend(flows.iter().map(|flow| format!("{}\n", style.flow(flow, now))));
    Ok(Reply::Text(text))
}

/// Whether `type=…` asks for flows like ours, which are never offloaded to hardware.
fn shows_ours(types: &str) -> Result<bool, String> {
    let mut shown = false;
    for word in types.split(',').filter(|word| !word.is_empty()) {
        match word {
            "ovs" | "non-offloaded" | "all" => shown = true,
            "tc" | "dpdk" | "offloaded" | "partially-offloaded" => {}
            _ => return Err(format!("Failed to parse type ({word})")),
        }
    }
    Ok(shown)
}

fn value(flow: &DatapathFlow, style: odp::Style<'_>, now: u64) -> Value {
    let stats = &flow.stats;
    json!({
        "ufid": flow.ufid.to_string().trim_start_matches("ufid:"),
        "flow": style.key(&flow.key, Some(&flow.mask)),
        "packets": stats.packets,
        "bytes": stats.bytes,
        "used-ms": (stats.used_ms != 0).then(|| now.saturating_sub(stats.used_ms)),
        "tcp-flags": stats.tcp_flags,
        "actions": style.actions(&flow.actions),
    })
}

fn get(shared: &Shared, args: &[String]) -> Result<String, String> {
    let mut options = Options::read(args)?;
    let switch = options.datapath(shared, 1)?;
    let (ufid, _) = split_ufid(options.rest.first().copied().unwrap_or_default())?;
    let ufid = ufid.ok_or("parsing flow ufid: expected ufid:UFID")?;
    let flow = switch.dpif().flow_get(ufid).map_err(|error| format!("getting flow ({})", say(error)))?;
    let names = port_names(&switch);
    Ok(format!("{}\n", options.style(&switch, Some(&names)).flow(&flow, MonotonicClock.now_ms())))
}

fn put(shared: &Shared, args: &[String], mode: PutMode) -> Result<String, String> {
    let mut options = Options::read(args)?;
    let switch = options.datapath(shared, 2)?;
    let [text, actions] = options.rest.as_slice() else { return Err("too few arguments".into()) };
    put_line(&switch, text, actions, if options.may_create { PutMode::CreateOrModify } else { mode })
}

/// Puts a flow that is written down.
pub(super) fn put_line(switch: &ofproto::Switch, text: &str, actions: &str, mode: PutMode) -> Result<String, String> {
    let (ufid, key, mask) = parse_flow(text, switch)?;
    let numbers = port_numbers(switch);
    let actions = odp::parse_actions(actions, Some(&numbers)).map_err(|error| format!("parsing actions ({error})"))?;
    let ufid = ufid.unwrap_or_else(|| generated(&key));
    let put = FlowPut { mode, ufid, key, mask, actions: actions.into() };
    switch.dpif().flow_put(&put).map_err(|error| format!("updating flow table ({})", say(error)))?;
    Ok(String::new())
}

fn del(shared: &Shared, args: &[String]) -> Result<String, String> {
    let mut options = Options::read(args)?;
    let switch = options.datapath(shared, 1)?;
    let text = options.rest.first().copied().unwrap_or_default();
    del_line(&switch, text, &options)
}

/// Deletes a flow that is written down.
pub(super) fn del_line(switch: &ofproto::Switch, text: &str, options: &Options<'_>) -> Result<String, String> {
    let ufid = match split_ufid(text)? {
        (Some(ufid), _) => ufid,
        // Whoever installed it, it is the one with this key.
        (None, _) => {
            let (_, key, mask) = parse_flow(text, switch)?;
            let key = key.masked(&mask);
            let flows = switch.flows_of_datapath().map_err(say)?;
            let flow = flows.iter().find(|flow| flow.key == key && flow.mask == mask);
            flow.map_or_else(|| generated(&key), |flow| flow.ufid)
        }
    };
    match switch.dpif().flow_del(ufid) {
        Ok(stats) if options.statistics => Ok(format!("{}\n", odp::format_stats(&stats, MonotonicClock.now_ms()))),
        Ok(_) => Ok(String::new()),
        Err(DpifError::NoSuchFlow) => {
            Err("deleting flow (No such file or directory); perhaps you need to specify a UFID?".into())
        }
        Err(error) => Err(format!("deleting flow ({})", say(error))),
    }
}

/// The flows of packets that come in by a bridge's ports.
fn dump_bridge(shared: &Shared, args: &[String]) -> Result<String, String> {
    let options = Options::read(args)?;
    let bridge = options.rest.first().copied().unwrap_or_default();
    let switch = shared.of_bridge(bridge).ok_or("no such bridge")?;
    let ports: Vec<String> = switch.ports(bridge).map_err(say)?.into_iter().map(|(_, name)| name).collect();
    let names = port_names(&switch);
    let style = odp::Style { packet_type: false, ..options.style(&switch, Some(&names)) };
    let now = MonotonicClock.now_ms();
    let mut text = String::new();
    for flow in switch.flows_of_datapath().map_err(say)? {
        let port = names(dpif::OdpPort(flow.key.in_port));
        if port.is_some_and(|port| ports.contains(&port)) {
            text.push_str(&style.flow(&flow, now).replace(", dp:ovs, actions:", ", actions:"));
            text.push('\n');
        }
    }
    Ok(text)
}

/// A flow's text: its id, if it has one, key and mask.
fn parse_flow(text: &str, switch: &ofproto::Switch) -> Result<(Option<Ufid>, FlowKey, FlowKey), String> {
    let (ufid, text) = split_ufid(text)?;
    let numbers = port_numbers(switch);
    let (key, mask) =
        odp::parse_flow_key(text, Some(&numbers)).map_err(|error| format!("parsing flow key ({error})"))?;
    Ok((ufid, key, mask))
}

/// The id in front of a flow, and what follows it. Ids are hexadecimal numbers with dashes anywhere.
pub(super) fn split_ufid(text: &str) -> Result<(Option<Ufid>, &str), String> {
    let Some(rest) = text.trim_start().strip_prefix("ufid:") else { return Ok((None, text)) };
    let end = rest.find(|c: char| c != '-' && !c.is_ascii_hexdigit()).unwrap_or(rest.len());
    let (id, rest) = rest.split_at(end);
    let digits = id.replace('-', "");
    match u128::from_str_radix(&digits, 16) {
        Ok(id) => Ok((Some(Ufid(id)), rest.trim_start_matches([',', ' ']))),
        Err(_) => Err(format!("parsing flow ufid: \"{id}\" is not one, expected up to 32 hexadecimal digits")),
    }
}

/// The id of a flow that was given without one: the same for the same key.
fn generated(key: &FlowKey) -> Ufid {
    let hash = |seed: u64| BuildHasherDefault::<DefaultHasher>::default().hash_one((seed, key.words()));
    Ufid(u128::from(hash(0)) << 64 | u128::from(hash(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_may_stand_in_front_of_a_flow() {
        let ufid = Ufid(0x12ab_cdef << 96 | 7);
        let text = format!("{ufid}, in_port(1)");
        assert_eq!(split_ufid(&text), Ok((Some(ufid), "in_port(1)")));
        assert_eq!(split_ufid("in_port(1)"), Ok((None, "in_port(1)")));
        for wrong in ["ufid:", "ufid:-", "ufid:x", "ufid:123456789abcdef0123456789abcdef01"] {
            assert!(split_ufid(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn types_of_flows_that_there_are_not_select_nothing() {
        assert_eq!(shows_ours("tc,offloaded"), Ok(false));
        assert_eq!(shows_ours("tc,ovs"), Ok(true));
        assert_eq!(shows_ours("hardware"), Err("Failed to parse type (hardware)".to_owned()));
    }
}
