//! The rules that a desired state obeys, whatever it came from.
//!
//! They hold everything that can be known without touching the system: a state that passes may still fail to apply,
//! for instance because a device doesn't exist.

use std::collections::{BTreeMap, BTreeSet};

use super::{BridgeConfig, DatapathType, DesiredState, OFPORT_MAX, Options, PortConfig, PortKind, PortVlan, VlanMode};

/// The most bytes in the name of a network device (`IFNAMSIZ` less its terminator).
const NAME_MAX: usize = 15;

/// The rule that is broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Invalid {
    /// A name that is too long for a network device.
    #[error("{what} {name}: the name is {len} bytes long, a network device has at most {NAME_MAX}", len = .name.len())]
    NameTooLong {
        /// Bridge or port.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// A name that no network device can have.
    #[error("{what} {name:?}: not a name for a network device")]
    BadName {
        /// Bridge or port.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// Two bridges of one name.
    #[error("bridge {0} is given twice")]
    DuplicateBridge(String),
    /// Two ports of one name on one bridge.
    #[error("port {port} is given twice on bridge {bridge}")]
    DuplicatePort {
        /// The port.
        port: String,
        /// The bridge.
        bridge: String,
    },
    /// Two ports of one name on two bridges.
    #[error("port {port} is given on two bridges, {first} and {second}")]
    PortOnTwoBridges {
        /// The port.
        port: String,
        /// The bridge that had it first.
        first: String,
        /// The other one.
        second: String,
    },
    /// A port named as a bridge it doesn't belong to.
    #[error("port {port} on bridge {bridge} has the name of another bridge")]
    PortNamedAsBridge {
        /// The port.
        port: String,
        /// The bridge it was given to.
        bridge: String,
    },
    /// An OpenFlow port number out of range.
    #[error("port {port}: OpenFlow port {ofport} is out of range: it must be 1 to {OFPORT_MAX}")]
    OfportRange {
        /// The port.
        port: String,
        /// The number.
        ofport: u16,
    },
    /// A port without a device of the system that is to have the XDP hook.
    #[error("port {port}: only a port of type system has an XDP hook")]
    Xdp {
        /// The port.
        port: String,
    },
    /// Two ports of a bridge that ask for one number.
    #[error("ports {first} and {second} on bridge {bridge} both ask for OpenFlow port {ofport}")]
    DuplicateOfport {
        /// The bridge.
        bridge: String,
        /// The port that asked first.
        first: String,
        /// The other one.
        second: String,
        /// The number.
        ofport: u16,
    },
    /// VLANs that contradict each other.
    #[error("port {port}: {reason}")]
    Vlan {
        /// The port.
        port: String,
        /// What contradicts what.
        reason: &'static str,
    },
    /// A patch port whose peer is not there.
    #[error("patch port {port}: there is no port {peer} to be its peer")]
    NoSuchPeer {
        /// The port.
        port: String,
        /// The peer it names.
        peer: String,
    },
    /// A patch port whose peer leads elsewhere.
    #[error("patch port {port}: its peer {peer} {is}")]
    PeerMismatch {
        /// The port.
        port: String,
        /// The peer it names.
        peer: String,
        /// What the peer is instead.
        is: String,
    },
    /// Two engines in the kernel, which would both be the datapath of type `system`.
    #[error("bridges {ebpf} (ebpf) and {netlink} (netlink): one daemon has one datapath in the kernel")]
    TwoKernelDatapaths {
        /// A bridge on eBPF programs.
        ebpf: String,
        /// A bridge on the kernel's module.
        netlink: String,
    },
    /// A number out of range.
    #[error("{what} is {given}, it must be at least {least}")]
    TooSmall {
        /// The knob, with the bridge it belongs to.
        what: String,
        /// What was given.
        given: u32,
        /// The least it can be.
        least: u32,
    },
}

/// Checks the rules.
///
/// # Errors
/// The first rule that is broken.
pub fn validate(state: &DesiredState) -> Result<(), Invalid> {
    options(&state.options)?;
    let mut bridges = BTreeSet::new();
    for bridge in &state.bridges {
        device_name("bridge", &bridge.name)?;
        if !bridges.insert(bridge.name.as_str()) {
            return Err(Invalid::DuplicateBridge(bridge.name.clone()));
        }
        vlan(&bridge.name, &bridge.settings.local_vlan)?;
        at_least(&format!("mac-table-size of bridge {}", bridge.name), bridge.settings.mac_table_size, 1)?;
        at_least(&format!("mac-aging-time of bridge {}", bridge.name), bridge.settings.mac_aging_time, 1)?;
    }
    let of_type = |kind| state.bridges.iter().find(|bridge| bridge.datapath_type == kind);
    if let (Some(ebpf), Some(netlink)) = (of_type(DatapathType::Ebpf), of_type(DatapathType::Netlink)) {
        return Err(Invalid::TwoKernelDatapaths { ebpf: ebpf.name.clone(), netlink: netlink.name.clone() });
    }
    let mut ports = BTreeMap::new();
    for bridge in &state.bridges {
        let mut ofports = BTreeMap::new();
        for port in &bridge.ports {
            check_port(port)?;
            if bridges.contains(port.name.as_str()) {
                return Err(Invalid::PortNamedAsBridge { port: port.name.clone(), bridge: bridge.name.clone() });
            }
            if let Some((first, _)) = ports.insert(port.name.as_str(), (bridge, port)) {
                return Err(same_name(&port.name, first, bridge));
            }
            let Some(ofport) = port.ofport_request else { continue };
            if let Some(first) = ofports.insert(ofport, &port.name) {
                return Err(Invalid::DuplicateOfport {
                    bridge: bridge.name.clone(),
                    first: first.clone(),
                    second: port.name.clone(),
                    ofport,
                });
            }
        }
    }
    ports.values().try_for_each(|(bridge, port)| peer(bridge, port, &ports))
}

fn check_port(port: &PortConfig) -> Result<(), Invalid> {
    if port.kind.has_device() {
        device_name("port", &port.name)?;
    } else if port.name.is_empty() || port.name.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(Invalid::BadName { what: "port", name: port.name.clone() });
    }
    if let Some(ofport) = port.ofport_request
        && !(1..=OFPORT_MAX).contains(&ofport)
    {
        return Err(Invalid::OfportRange { port: port.name.clone(), ofport });
    }
    if port.xdp.is_some() && port.kind != PortKind::System {
        return Err(Invalid::Xdp { port: port.name.clone() });
    }
    vlan(&port.name, &port.vlan)
}

fn same_name(port: &str, first: &BridgeConfig, second: &BridgeConfig) -> Invalid {
    if first.name == second.name {
        return Invalid::DuplicatePort { port: port.to_owned(), bridge: first.name.clone() };
    }
    Invalid::PortOnTwoBridges { port: port.to_owned(), first: first.name.clone(), second: second.name.clone() }
}

/// The kernel's rule for names of devices (`dev_valid_name`), and nothing that would garble a terminal.
fn device_name(what: &'static str, name: &str) -> Result<(), Invalid> {
    let bad = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    if name.is_empty() || name == "." || name == ".." || name.chars().any(bad) {
        return Err(Invalid::BadName { what, name: name.to_owned() });
    }
    if name.len() > NAME_MAX {
        return Err(Invalid::NameTooLong { what, name: name.to_owned() });
    }
    Ok(())
}

/// The field ignores what makes no sense together; a person who says it is told instead.
fn vlan(port: &str, vlan: &PortVlan) -> Result<(), Invalid> {
    let reason = match vlan.mode {
        None if vlan.tag.is_some() && !vlan.trunks.is_empty() => {
            "tag and trunks together need vlan-mode=native-tagged or vlan-mode=native-untagged"
        }
        Some(VlanMode::Access) if !vlan.trunks.is_empty() => "vlan-mode=access has no trunks",
        Some(VlanMode::Trunk) if vlan.tag.is_some() => "vlan-mode=trunk has no tag",
        _ => return Ok(()),
    };
    Err(Invalid::Vlan { port: port.to_owned(), reason })
}

fn peer(
    bridge: &BridgeConfig,
    port: &PortConfig,
    ports: &BTreeMap<&str, (&BridgeConfig, &PortConfig)>,
) -> Result<(), Invalid> {
    let PortKind::Patch { peer } = &port.kind else { return Ok(()) };
    let Some((other_bridge, other)) = ports.get(peer.as_str()) else {
        return Err(Invalid::NoSuchPeer { port: port.name.clone(), peer: peer.clone() });
    };
    let is = match &other.kind {
        _ if *peer == port.name => "is the port itself".to_owned(),
        PortKind::Patch { peer: back } if *back != port.name => format!("is the peer of {back}"),
        PortKind::Patch { .. } if other_bridge.datapath_type != bridge.datapath_type => {
            format!("is on bridge {} of another datapath", other_bridge.name)
        }
        PortKind::Patch { .. } => return Ok(()),
        other => format!("is a port of type {}", other.name()),
    };
    Err(Invalid::PeerMismatch { port: port.name.clone(), peer: peer.clone(), is })
}

fn options(options: &Options) -> Result<(), Invalid> {
    // The least of each is the field's: below it the switch would spend its time on itself.
    at_least("max-idle", options.max_idle, 500)?;
    at_least("max-revalidator", options.max_revalidator, 100)?;
    at_least("max-flows", options.max_flows.unwrap_or(1), 1)
}

fn at_least(what: &str, given: u32, least: u32) -> Result<(), Invalid> {
    if given < least {
        return Err(Invalid::TooSmall { what: what.to_owned(), given, least });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Parts;

    /// The outcome for bridges and ports as the command line says them.
    fn outcome(bridges: &[&str], ports: &[&str]) -> Result<(), String> {
        let parts = Parts {
            bridges: bridges.iter().map(|text| text.parse().unwrap()).collect(),
            ports: ports.iter().map(|text| text.parse().unwrap()).collect(),
            ..Parts::default()
        };
        parts.build().map(drop).map_err(|error| error.to_string())
    }

    #[test]
    fn what_obeys_the_rules_passes() {
        for (bridges, ports) in [
            (&[][..], &[][..]),
            (&["br0"], &["br0:veth0"]),
            (&["br0"], &["br0:veth0,tag=0", "br0:veth1,trunks=0-4095", "br0:i,type=internal,ofport=65279"]),
            (&["br0", "br1"], &["br0:p,type=patch,peer=q", "br1:q,type=patch,peer=p"]),
            (&["br0"], &["br0:p,type=patch,peer=q", "br0:q,type=patch,peer=p"]),
            (
                &["br0"],
                &["br0:patch-with-a-long-name,type=patch,peer=q", "br0:q,type=patch,peer=patch-with-a-long-name"],
            ),
            (&["br0"], &["br0:veth0,tag=5,trunks=7,vlan-mode=native-untagged"]),
            (&["br0"], &["br0:veth0,ofport=1", "br0:veth1,ofport=2"]),
            (&["abcdefghijklmno"], &[]),
        ] {
            assert_eq!(outcome(bridges, ports), Ok(()), "{bridges:?} {ports:?}");
        }
    }

    #[test]
    fn what_breaks_a_rule_is_named() {
        for (bridges, ports, expected) in [
            (&["br0"][..], &["br0:a", "br0:a"][..], "port a is given twice on bridge br0"),
            (&["br0", "br1"], &["br0:a", "br1:a"], "port a is given on two bridges, br0 and br1"),
            (&["br0", "br1"], &["br0:br1"], "port br1 on bridge br0 has the name of another bridge"),
            (
                &["abcdefghijklmnop"],
                &[],
                "bridge abcdefghijklmnop: the name is 16 bytes long, a network device has at most 15",
            ),
            (&["br0"], &["br0:sixteen-bytes-ab"], "port sixteen-bytes-ab: the name is 16 bytes long"),
            (&["br 0"], &[], r#"bridge "br 0": not a name for a network device"#),
            (&[".."], &[], r#"bridge "..": not a name"#),
            (&["br0"], &["br0:a/b"], r#"port "a/b": not a name"#),
            (&["br0"], &["br0:a:b"], r#"port "a:b": not a name"#),
            (&["br0"], &["br0:a,ofport=0"], "port a: OpenFlow port 0 is out of range: it must be 1 to 65279"),
            (&["br0"], &["br0:a,ofport=65534"], "port a: OpenFlow port 65534 is out of range"),
            (
                &["br0"],
                &["br0:a,ofport=3", "br0:b,ofport=3"],
                "ports a and b on bridge br0 both ask for OpenFlow port 3",
            ),
            (&["br0"], &["br0:a,tag=1,trunks=2"], "port a: tag and trunks together need vlan-mode="),
            (&["br0"], &["br0:a,trunks=2,vlan-mode=access"], "port a: vlan-mode=access has no trunks"),
            (&["br0"], &["br0:a,tag=2,vlan-mode=trunk"], "port a: vlan-mode=trunk has no tag"),
            (&["br0"], &["br0:br0,tag=2,vlan-mode=trunk"], "port br0: vlan-mode=trunk has no tag"),
            (&["br0"], &["br0:p,type=patch,peer=q"], "patch port p: there is no port q to be its peer"),
            (&["br0"], &["br0:p,type=patch,peer=p"], "patch port p: its peer p is the port itself"),
            (&["br0"], &["br0:p,type=patch,peer=q", "br0:q"], "patch port p: its peer q is a port of type system"),
            (
                &["br0"],
                &["br0:p,type=patch,peer=r", "br0:q,type=patch,peer=r", "br0:r,type=patch,peer=p"],
                "patch port q: its peer r is the peer of p",
            ),
            (
                &["br0", "br1,datapath=userspace"],
                &["br0:p,type=patch,peer=q", "br1:q,type=patch,peer=p"],
                "patch port p: its peer q is on bridge br1 of another datapath",
            ),
            (&["br0,mac-table-size=0"], &[], "mac-table-size of bridge br0 is 0, it must be at least 1"),
        ] {
            let error = outcome(bridges, ports).unwrap_err();
            assert!(error.starts_with(expected), "{bridges:?} {ports:?}: {error}");
        }
    }

    #[test]
    fn knobs_have_a_least_value() {
        let cases: [(&str, Options); 3] = [
            ("max-idle is 499, it must be at least 500", Options { max_idle: 499, ..Options::default() }),
            ("max-revalidator is 0, it must be at least 100", Options { max_revalidator: 0, ..Options::default() }),
            ("max-flows is 0, it must be at least 1", Options { max_flows: Some(0), ..Options::default() }),
        ];
        for (expected, options) in cases {
            let state = DesiredState { options, bridges: Vec::new() };
            assert_eq!(validate(&state).unwrap_err().to_string(), expected);
        }
    }
}
