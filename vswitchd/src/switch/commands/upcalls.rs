//! The upcall engine: what it has installed, its revalidators, and what may be turned off for a look.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::flows::split_ufid;
use super::options::{Options, port_names};
use crate::switch::shared::Shared;
use crate::unixctl::Registry;

/// What the revalidators are to do, while they do nothing.
const PAUSED: &str = "the revalidators are paused: resume them with revalidator/resume";

pub(super) fn register(registry: &Registry, shared: &Arc<Shared>) {
    type Command = fn(&Shared, &[String]) -> Result<String, String>;
    for (name, usage, min_args, max_args, command) in [
        ("upcall/show", "", 0, 0, show as Command),
        ("upcall/disable-megaflows", "", 0, 0, |shared, _| Ok(megaflows(shared, false))),
        ("upcall/enable-megaflows", "", 0, 0, |shared, _| Ok(megaflows(shared, true))),
        ("upcall/disable-ufid", "", 0, 0, |shared, _| Ok(ufid(shared, false))),
        ("upcall/enable-ufid", "", 0, 0, |shared, _| Ok(ufid(shared, true))),
        ("upcall/set-flow-limit", "flow-limit-number", 1, 1, set_flow_limit),
        ("upcall/dump-ukeys", "[--names | --no-names]", 0, 1, dump_ukeys),
        ("revalidator/wait", "", 0, 0, wait),
        ("revalidator/purge", "", 0, 0, |shared, _| Ok(each(shared, ofproto::Switch::purge_flows))),
        ("revalidator/pause", "", 0, 0, |shared, _| Ok(each(shared, ofproto::Switch::pause_revalidators))),
        ("revalidator/resume", "", 0, 0, |shared, _| Ok(each(shared, ofproto::Switch::resume_revalidators))),
        ("ofproto/detrace", "UFID [pmd=PMD-ID]", 1, 2, detrace),
    ] {
        let all = Arc::clone(shared);
        registry.register(name, usage, min_args, max_args, move |args| command(&all, args));
    }
}

/// Does something with each switch, of which there is nothing to say.
fn each(shared: &Shared, what: impl Fn(&ofproto::Switch)) -> String {
    shared.switches().iter().for_each(|switch| what(switch));
    String::new()
}

fn show(shared: &Shared, _: &[String]) -> Result<String, String> {
    Ok(shared.switches().iter().map(|switch| switch.upcall_show()).collect())
}

fn megaflows(shared: &Shared, on: bool) -> String {
    shared.exact_flows.store(!on, Ordering::SeqCst);
    each(shared, |switch| switch.set_megaflows(on));
    format!("megaflows {}", if on { "enabled" } else { "disabled" })
}

fn ufid(shared: &Shared, on: bool) -> String {
    shared.whole_dumps.store(!on, Ordering::SeqCst);
    each(shared, |switch| switch.set_terse_dumps(on));
    let to = if on { "enabled for supported datapaths" } else { "disabled" };
    format!("Datapath dumping tersely using UFID {to}")
}

fn set_flow_limit(shared: &Shared, args: &[String]) -> Result<String, String> {
    let given = args.first().map(String::as_str).unwrap_or_default();
    let limit: u32 = given.parse().map_err(|_| format!("\"{given}\" is not a number of flows"))?;
    each(shared, |switch| switch.set_dynamic_flow_limit(limit as usize));
    Ok(format!("set flow_limit to {limit}\n"))
}

fn dump_ukeys(shared: &Shared, args: &[String]) -> Result<String, String> {
    let options = Options::read(args)?;
    if let Some(unexpected) = options.rest.first() {
        return Err(format!("unexpected argument \"{unexpected}\""));
    }
    let mut text = String::new();
    for switch in shared.switches() {
        let names = port_names(&switch);
        let _ = writeln!(text, "{}:", switch.dpif_name());
        text.push_str(&switch.dump_ukeys(if options.names { Some(&names) } else { None }));
    }
    Ok(text)
}

fn wait(shared: &Shared, _: &[String]) -> Result<String, String> {
    let switches = shared.switches();
    if switches.iter().any(|switch| switch.revalidators_are_paused()) {
        return Err(PAUSED.into());
    }
    switches.iter().for_each(|switch| switch.synchronize());
    Ok(String::new())
}

/// The rules behind a flow of any datapath. Flows are no thread's here, so it doesn't matter which one is named.
fn detrace(shared: &Shared, args: &[String]) -> Result<String, String> {
    let ufid = args.first().map(String::as_str).unwrap_or_default();
    let (ufid, _) = split_ufid(ufid).map_err(|_| "failed to parse ufid")?;
    let ufid = ufid.ok_or("failed to parse ufid")?;
    if let Some(thread) = args.get(1)
        && thread.strip_prefix("pmd=").is_none_or(|id| id.parse::<i64>().is_err())
    {
        return Err("Invalid pmd argument format. Expecting 'pmd=PMD-ID'".into());
    }
    Ok(shared.switches().iter().map(|switch| switch.detrace(ufid)).collect())
}
