//! Ports and caches of datapaths: `dpctl/add-if` and its companions, the list of all `dpctl/…` commands, and those that no
//! datapath here has.

use std::fmt::Write as _;
use std::sync::Arc;

use dpif::{DpifError, OdpPort, PortKind, PortSpec, Tunnel, odp};

use super::options::{Options, find};
use super::say;
use crate::switch::shared::Shared;
use crate::unixctl::Registry;

/// Commands of the field's that no engine has: name, usage, what isn't there.
const NOT_THERE: [(&str, &str, &str); 14] = [
    ("dpctl/offload-stats-show", "[dp]", "offloading flows to hardware"),
    ("dpctl/dump-conntrack-exp", "[dp] [zone=N]", "listing expected connections"),
    ("dpctl/ct-set-maxconns", "[dp] maxconns", "a limit of all connections"),
    ("dpctl/ct-get-maxconns", "[dp]", "a limit of all connections"),
    ("dpctl/ct-enable-tcp-seq-chk", "[dp]", "checking TCP sequence numbers"),
    ("dpctl/ct-disable-tcp-seq-chk", "[dp]", "checking TCP sequence numbers"),
    ("dpctl/ct-get-tcp-seq-chk", "[dp]", "checking TCP sequence numbers"),
    ("dpctl/ct-get-sweep-interval", "[dp]", "an interval of sweeps over connections"),
    ("dpctl/ct-set-sweep-interval", "[dp] ms", "an interval of sweeps over connections"),
    ("dpctl/ipf-set-enabled", "[dp] v4|v6", "putting fragments together"),
    ("dpctl/ipf-set-disabled", "[dp] v4|v6", "putting fragments together"),
    ("dpctl/ipf-set-min-frag", "[dp] v4|v6 minfragment", "putting fragments together"),
    ("dpctl/ipf-set-max-nfrags", "[dp] maxfrags", "putting fragments together"),
    ("dpctl/ipf-get-status", "[dp]", "putting fragments together"),
];

pub(super) fn register(registry: &Registry, shared: &Arc<Shared>) {
    type Command = fn(&Shared, &[String]) -> Result<String, String>;
    for (name, usage, min_args, max_args, command) in [
        ("dpctl/add-if", "dp iface...", 2, usize::MAX, add_if as Command),
        ("dpctl/del-if", "dp iface...", 2, usize::MAX, del_if),
        ("dpctl/set-if", "dp iface...", 2, usize::MAX, set_if),
        ("dpctl/set-program", "dp general|specialised", 2, 2, set_program),
        ("dpctl/cache-get-size", "[dp]", 0, 1, cache_get_size),
        ("dpctl/cache-set-size", "dp cache <size>", 3, 3, cache_set_size),
        ("dpctl/list-commands", "", 0, usize::MAX, list_commands),
        ("dpctl/help", "", 0, usize::MAX, list_commands),
        ("dpctl/parse-actions", "actions", 1, usize::MAX, parse_actions),
        ("dpctl/add-dp", "dp [iface...]", 1, usize::MAX, |_, _| Err(OF_THE_CONFIGURATION.into())),
        ("dpctl/del-dp", "dp", 1, 1, |_, _| Err(OF_THE_CONFIGURATION.into())),
    ] {
        let all = Arc::clone(shared);
        registry.register(name, usage, min_args, max_args, move |args| command(&all, args));
    }
    for (name, usage, what) in NOT_THERE {
        let all = Arc::clone(shared);
        registry.register(name, usage, 0, usize::MAX, move |args| not_there(&all, args, what));
    }
}

const OF_THE_CONFIGURATION: &str = "a datapath comes with its first bridge and goes with its last: change the configuration \
                                    and say config/reload";

fn not_there(shared: &Shared, args: &[String], what: &str) -> Result<String, String> {
    let named = args.first().and_then(|name| find(shared, name).ok());
    let switch = match named {
        Some(switch) => switch,
        None => shared.switches().into_iter().next().ok_or("no datapaths exist")?,
    };
    Err(say(DpifError::Unsupported(what.into(), switch.dpif_name())))
}

/// Adds ports that belong to no bridge: `NAME[,type=TYPE][,port_no=N]`, and for tunnels `dst_port=N`, `exts=gbp` and what they are
/// anyway: `remote_ip=flow`, `local_ip=flow`, `key=flow`.
fn add_if(shared: &Shared, args: &[String]) -> Result<String, String> {
    let options = Options::read(args)?;
    let (name, interfaces) = options.rest.split_first().ok_or("too few arguments")?;
    let switch = find(shared, name)?;
    for interface in interfaces {
        let spec = port_spec(interface)?;
        switch
            .dpif()
            .port_add(&spec)
            .map_err(|error| format!("adding {} to {name} failed ({})", spec.name, say(error)))?;
    }
    Ok(String::new())
}

fn port_spec(text: &str) -> Result<PortSpec, String> {
    let mut parts = text.split(',');
    let name = parts.next().unwrap_or_default().to_owned();
    let (mut kind, mut request, mut dst_port, mut exts) = (None, None, None, None);
    for part in parts {
        let (key, value) = part.split_once('=').ok_or("Invalid option format")?;
        let twice = match key {
            "type" => kind.replace(value).is_some(),
            "port_no" => {
                let number = value.parse().map_err(|_| format!("\"{value}\" is not a port number"))?;
                request.replace(OdpPort(number)).is_some()
            }
            "dst_port" => {
                let number = value.parse::<u16>().ok().filter(|port| *port != 0);
                dst_port.replace(number.ok_or_else(|| format!("\"{value}\" is not a UDP port"))?).is_some()
            }
            "exts" if value == "gbp" => exts.replace(value).is_some(),
            "remote_ip" | "local_ip" | "key" | "in_key" | "out_key" if value == "flow" => false,
            "exts" | "remote_ip" | "local_ip" | "key" | "in_key" | "out_key" => {
                return Err(format!(
                    "{key}={value} is not supported for ports of a datapath, whose flows say such things"
                ));
            }
            _ => return Err(format!("{key}=… is not supported for ports of a datapath")),
        };
        if twice {
            return Err(format!("duplicate \"{key}\" option"));
        }
    }
    let gbp = exts.take().is_some();
    let kind = match kind.unwrap_or("system") {
        "system" => PortKind::System,
        "internal" => PortKind::Internal,
        "gre" => PortKind::Tunnel(Tunnel::Gre),
        "vxlan" => PortKind::Tunnel(Tunnel::Vxlan { dst_port: dst_port.take().unwrap_or(Tunnel::VXLAN_PORT), gbp }),
        "geneve" => PortKind::Tunnel(Tunnel::Geneve { dst_port: dst_port.take().unwrap_or(Tunnel::GENEVE_PORT) }),
        other => return Err(format!("{name}: ports of type {other} are not supported")),
    };
    if dst_port.is_some() {
        return Err(format!("{name}: a port of type {kind} has no dst_port"));
    }
    if gbp && !matches!(kind, PortKind::Tunnel(Tunnel::Vxlan { .. })) {
        return Err(format!("{name}: a port of type {kind} has no exts"));
    }
    Ok(PortSpec { name, kind, request })
}

/// Changes ports that are there: `NAME[,OPTION=VALUE]…`. Those of our datapaths have nothing that could be changed, so this checks
/// what is said of them.
fn set_if(shared: &Shared, args: &[String]) -> Result<String, String> {
    let options = Options::read(args)?;
    let (datapath, interfaces) = options.rest.split_first().ok_or("too few arguments")?;
    let dpif = Arc::clone(find(shared, datapath)?.dpif());
    for interface in interfaces {
        let (name, said) = interface.split_once(',').unwrap_or((interface, ""));
        let port = dpif.port_by_name(name).map_err(say)?;
        let port = port.ok_or_else(|| format!("{name}: failed to query port in {datapath} (No such device)"))?;
        for option in said.split(',').filter(|option| !option.is_empty()) {
            let (key, value) = option.split_once('=').unwrap_or((option, ""));
            let (kind, number) = (port.kind.to_string(), port.port);
            match key {
                "" => return Err("Invalid option format".into()),
                "type" if value == kind => {}
                "type" => return Err(format!("{name}: can't change type from {kind} to {value}")),
                "port_no" if value.parse() == Ok(number.0) => {}
                "port_no" => return Err(format!("{name}: can't change port number from {number} to {value}")),
                "xdp" => {
                    let failed = |error| format!("{name}: can't set xdp to {value} ({})", say(error));
                    dpif.port_set_xdp(number, value.parse()?).map_err(failed)?;
                }
                // Nothing is what it has already.
                _ if value.is_empty() => {}
                _ => return Err(format!("{name}: {key}=… is not supported for ports of a datapath")),
            }
        }
    }
    Ok(String::new())
}

/// Whether a program that is made for what the flows need runs in front of the general one.
fn set_program(shared: &Shared, args: &[String]) -> Result<String, String> {
    let [datapath, which] = args else { return Err("too few arguments".into()) };
    let on = match which.as_str() {
        "general" => false,
        "specialised" => true,
        other => return Err(format!("{other}: a datapath's program is general or specialised")),
    };
    find(shared, datapath)?.dpif().set_specialise(on).map_err(say)?;
    Ok(String::new())
}

/// Reads lists of actions and says them again.
fn parse_actions(_: &Shared, args: &[String]) -> Result<String, String> {
    let one = |text: &String| {
        let actions = odp::parse_actions(text, None).map_err(|error| format!("odp_actions_from_string ({error})"))?;
        Ok(format!("{}\n", odp::format_actions(&actions, None)))
    };
    args.iter().map(one).collect()
}

/// Removes ports, by name or number, that belong to no bridge: those of bridges are the configuration's.
fn del_if(shared: &Shared, args: &[String]) -> Result<String, String> {
    let options = Options::read(args)?;
    let (datapath, interfaces) = options.rest.split_first().ok_or("too few arguments")?;
    let switch = find(shared, datapath)?;
    let dpif = switch.dpif();
    for interface in interfaces {
        let by_number = interface.parse().ok().map(OdpPort);
        let found = match by_number {
            Some(number) => dpif.ports().map_err(say)?.into_iter().find(|port| port.port == number),
            None => dpif.port_by_name(interface).map_err(say)?,
        };
        let port = found.ok_or_else(|| format!("no port named {interface}"))?;
        let owner = switch.bridges().into_iter().find(|bridge| switch.port_number(bridge, &port.name).is_some());
        if let Some(bridge) = owner {
            return Err(format!("port {} belongs to bridge {bridge}: change the configuration", port.name));
        }
        let failed = |error| format!("deleting port {interface} from {datapath} failed ({})", say(error));
        dpif.port_del(port.port).map_err(failed)?;
    }
    Ok(String::new())
}

fn cache_get_size(shared: &Shared, args: &[String]) -> Result<String, String> {
    let options = Options::read(args)?;
    let switches = match options.rest.first() {
        Some(name) => vec![find(shared, name)?],
        None => shared.switches(),
    };
    let mut text = String::new();
    for switch in switches {
        let _ = writeln!(text, "{}:", switch.dpif_name());
        text.push_str(&caches(&switch));
    }
    Ok(text)
}

/// The caches of a datapath with their sizes; nothing where there are none.
pub(super) fn caches(switch: &ofproto::Switch) -> String {
    let caches = switch.dpif().caches().unwrap_or_default();
    if caches.is_empty() {
        return String::new();
    }
    let mut text = String::from("  caches:\n");
    text.extend(caches.iter().map(|(name, size)| format!("    {name}: size:{size}\n")));
    text
}

fn cache_set_size(shared: &Shared, args: &[String]) -> Result<String, String> {
    let [datapath, cache, size] = args else { return Err("Invalid number of arguments".into()) };
    let size: u32 = size.parse().map_err(|_| "size is malformed")?;
    let switch = find(shared, datapath)?;
    let dpif = switch.dpif();
    let caches = dpif.caches().map_err(|error| format!("Setting caches not supported ({})", say(error)))?;
    if !caches.iter().any(|(name, _)| name == cache) {
        return Err(format!("Cache name \"{cache}\" not found on dpif"));
    }
    dpif.cache_set_size(cache, size).map_err(|error| format!("Setting cache size failed ({})", say(error)))?;
    let caches = dpif.caches().map_err(say)?;
    let now = caches.iter().find(|(name, _)| name == cache).map_or(size, |(_, size)| *size);
    Ok(format!("Setting cache size successful, new size {now}\n"))
}

/// All commands of this kind, as they were registered.
fn list_commands(shared: &Shared, _: &[String]) -> Result<String, String> {
    let mut text = String::from("The available commands are:\n");
    for (name, usage) in shared.dpctl_commands.read().iter() {
        let _ = writeln!(text, "  dpctl/{:<23} {usage}", name.trim_start_matches("dpctl/"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_described_as_in_the_field() {
        let spec = |name: &str, kind, request: Option<u32>| {
            Ok(PortSpec { name: name.into(), kind, request: request.map(OdpPort) })
        };
        let vxlan = |dst_port, gbp| PortKind::Tunnel(Tunnel::Vxlan { dst_port, gbp });
        for (text, expected) in [
            ("v1", spec("v1", PortKind::System, None)),
            ("v1,port_no=7", spec("v1", PortKind::System, Some(7))),
            ("i0,type=internal,port_no=9", spec("i0", PortKind::Internal, Some(9))),
            ("v1,type", Err("Invalid option format".to_owned())),
            ("v1,port_no=x", Err("\"x\" is not a port number".to_owned())),
            ("v1,type=system,type=system", Err("duplicate \"type\" option".to_owned())),
            ("v1,type=stt", Err("v1: ports of type stt are not supported".to_owned())),
            ("g0,type=gre", spec("g0", PortKind::Tunnel(Tunnel::Gre), None)),
            ("x0,type=vxlan", spec("x0", vxlan(4789, false), None)),
            (
                "x0,dst_port=4790,remote_ip=flow,key=flow,exts=gbp,type=vxlan,port_no=5",
                spec("x0", vxlan(4790, true), Some(5)),
            ),
            ("n0,type=geneve", spec("n0", PortKind::Tunnel(Tunnel::Geneve { dst_port: 6081 }), None)),
            ("n0,type=geneve,exts=gbp", Err("n0: a port of type geneve has no exts".to_owned())),
            ("g0,type=gre,dst_port=5", Err("g0: a port of type gre has no dst_port".to_owned())),
            ("x0,type=vxlan,dst_port=0", Err("\"0\" is not a UDP port".to_owned())),
            (
                "x0,type=vxlan,remote_ip=10.0.0.1",
                Err("remote_ip=10.0.0.1 is not supported for ports of a datapath, whose flows say such things"
                    .to_owned()),
            ),
            ("v1,dst_port=1", Err("v1: a port of type system has no dst_port".to_owned())),
            ("v1,mtu=1", Err("mtu=… is not supported for ports of a datapath".to_owned())),
        ] {
            assert_eq!(port_spec(text), expected, "{text}");
        }
    }
}
