//! Tracked connections: `dpctl/dump-conntrack`, `dpctl/flush-conntrack`, `dpctl/ct-…`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use dpif::ct::CtLimits;

use super::ct_match;
use super::options::Options;
use super::say;
use crate::switch::shared::Shared;
use crate::unixctl::Registry;

const FLUSH_USAGE: &str = "[dp] [zone=N] [mark=X[/M]] [labels=Y[/N]] [ct-orig-tuple [ct-reply-tuple]]";

pub(super) fn register(registry: &Registry, shared: &Arc<Shared>) {
    type Command = fn(&Shared, &[String]) -> Result<String, String>;
    for (name, usage, min_args, max_args, command) in [
        ("dpctl/dump-conntrack", "[-m] [-s] [dp] [zone=N]", 0, 4, dump as Command),
        ("dpctl/flush-conntrack", FLUSH_USAGE, 0, 6, flush),
        ("dpctl/ct-stats-show", "[-m] [dp] [zone=N]", 0, 3, stats),
        ("dpctl/ct-bkts", "[dp] [gt=N]", 0, 2, buckets),
        ("dpctl/ct-get-nconns", "[dp]", 0, 1, count),
        ("dpctl/ct-get-limits", "[dp] [zone=N1[,N2]...]", 0, 2, get_limits),
        ("dpctl/ct-set-limits", "[dp] [default=L] [zone=N,limit=L]...", 1, usize::MAX, set_limits),
        ("dpctl/ct-del-limits", "[dp] [default] [zone=N1[,N2]...]", 1, 3, del_limits),
    ] {
        let all = Arc::clone(shared);
        registry.register(name, usage, min_args, max_args, move |args| command(&all, args));
    }
}

/// Takes `zone=N` out of the arguments.
fn zone(options: &mut Options<'_>) -> Result<Option<u16>, String> {
    let at = options.rest.iter().position(|arg| arg.starts_with("zone="));
    at.map(|at| number(options.rest.remove(at).trim_start_matches("zone="), "zone")).transpose()
}

fn number<T: std::str::FromStr>(text: &str, what: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("invalid {what} \"{text}\""))
}

fn dump(shared: &Shared, args: &[String]) -> Result<String, String> {
    let mut options = Options::read(args)?;
    let zone = zone(&mut options)?;
    let switch = options.datapath(shared, 0)?;
    let entries = switch.dpif().ct_dump(zone).map_err(|error| format!("starting conntrack dump ({})", say(error)))?;
    Ok(entries.iter().map(|entry| entry.text(options.more, options.statistics) + "\n").collect())
}

fn flush(shared: &Shared, args: &[String]) -> Result<String, String> {
    let mut options = Options::read(args)?;
    // A datapath is named in front of what says which connections.
    let named = options.rest.first().is_some_and(|first| !first.is_empty() && !first.contains('='));
    let which = options.rest.split_off(usize::from(named));
    let which = ct_match::parse(&which).map_err(|error| format!("{error} (Invalid argument)"))?;
    let switch = options.datapath(shared, 0)?;
    switch.dpif().ct_flush(&which).map_err(|error| format!("failed to flush conntrack ({})", say(error)))?;
    Ok(String::new())
}

/// How many connections each bucket of the table has: of a table in userspace, which nobody has here.
fn buckets(shared: &Shared, args: &[String]) -> Result<String, String> {
    let mut options = Options::read(args)?;
    if let Some(at) = options.rest.iter().position(|arg| arg.starts_with("gt=")) {
        number::<u16>(options.rest.remove(at).trim_start_matches("gt="), "number of connections")?;
    }
    let switch = options.datapath(shared, 0)?;
    switch.dpif().ct_dump(None).map_err(|error| format!("starting conntrack dump ({})", say(error)))?;
    Ok("Command is available for UserSpace ConnTracker only.\n".into())
}

fn stats(shared: &Shared, args: &[String]) -> Result<String, String> {
    let mut options = Options::read(args)?;
    let zone = zone(&mut options)?;
    // An older spelling of -m.
    options.rest.retain(|arg| {
        let verbose = arg.starts_with("verbose");
        options.more |= verbose;
        !verbose
    });
    let switch = options.datapath(shared, 0)?;
    let entries = switch.dpif().ct_dump(zone).map_err(|error| format!("starting conntrack dump ({})", say(error)))?;
    let (mut protocols, mut states) = (BTreeMap::new(), BTreeMap::new());
    for entry in &entries {
        *protocols.entry(entry.orig.proto).or_insert(0u64) += 1;
        if let Some(state) = entry.tcp {
            *states.entry(state).or_insert(0u64) += 1;
        }
    }
    let mut text = format!("Connections Stats:\n    Total: {}\n", entries.len());
    for (number, name) in [
        (6, "TCP"),
        (17, "UDP"),
        (136, "UDPLITE"),
        (132, "SCTP"),
        (1, "ICMP"),
        (33, "DCCP"),
        (2, "IGMP"),
        (58, "ICMPV6"),
    ] {
        let Some(count) = protocols.remove(&number) else { continue };
        let _ = writeln!(text, "  {name}: {count}");
        if number == 6 && options.more {
            text.push_str("    Conn per TCP states:\n");
            text.extend(states.iter().map(|(state, count)| format!("\t  [{}]={count}\n", state.name())));
        }
    }
    let others: u64 = protocols.values().sum();
    if others != 0 {
        let _ = writeln!(text, "  Other: {others}");
    }
    Ok(text)
}

fn count(shared: &Shared, args: &[String]) -> Result<String, String> {
    let switch = Options::read(args)?.datapath(shared, 0)?;
    let entries =
        switch.dpif().ct_dump(None).map_err(|error| format!("nconns could not be retrieved ({})", say(error)))?;
    Ok(format!("{}\n", entries.len()))
}

/// Zones of `zone=N1[,N2…]`, taken out of the arguments.
fn zones(options: &mut Options<'_>) -> Result<Vec<u16>, String> {
    let Some(at) = options.rest.iter().position(|arg| arg.starts_with("zone=")) else { return Ok(Vec::new()) };
    let list = options.rest.remove(at).trim_start_matches("zone=");
    list.split(',').map(|zone| number(zone, "zone")).collect()
}

fn get_limits(shared: &Shared, args: &[String]) -> Result<String, String> {
    let mut options = Options::read(args)?;
    let zones = zones(&mut options)?;
    let switch = options.datapath(shared, 0)?;
    let limits = switch.dpif().ct_limits(&zones);
    let CtLimits { default, zones } =
        limits.map_err(|error| format!("failed to get conntrack limit ({})", say(error)))?;
    let mut text = format!("default limit={default}");
    for of in zones {
        let _ = write!(text, "\nzone={},limit={},count={}", of.zone, of.limit, of.count);
    }
    Ok(text + "\n")
}

fn set_limits(shared: &Shared, args: &[String]) -> Result<String, String> {
    let mut options = Options::read(args)?;
    let (mut default, mut zones) = (None, Vec::new());
    let limits: Vec<&str> = options.rest.extract_if(.., |arg| arg.contains('=')).collect();
    for limit in limits {
        if let Some(limit) = limit.strip_prefix("default=") {
            default = Some(number(limit, "default limit")?);
            continue;
        }
        let parts = limit.strip_prefix("zone=").and_then(|rest| rest.split_once(",limit="));
        let (zone, limit) = parts.ok_or_else(|| format!("\"{limit}\": expected default=L or zone=N,limit=L"))?;
        zones.push((number(zone, "zone")?, number(limit, "limit")?));
    }
    if default.is_none() && zones.is_empty() {
        return Err("expected default=L or zone=N,limit=L".into());
    }
    let switch = options.datapath(shared, 0)?;
    let set = switch.dpif().ct_limits_set(default, &zones);
    set.map_err(|error| format!("failed to set conntrack limit ({})", say(error)))?;
    Ok(String::new())
}

fn del_limits(shared: &Shared, args: &[String]) -> Result<String, String> {
    let mut options = Options::read(args)?;
    let zones = zones(&mut options)?;
    let default = options.rest.iter().position(|arg| *arg == "default");
    let default = default.map(|at| options.rest.remove(at)).is_some();
    if !default && zones.is_empty() {
        return Err("expected default or zone=N1[,N2…]".into());
    }
    let switch = options.datapath(shared, 0)?;
    let deleted = switch.dpif().ct_limits_del(default, &zones);
    deleted.map_err(|error| format!("failed to delete conntrack limit ({})", say(error)))?;
    Ok(String::new())
}
