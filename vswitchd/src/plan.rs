//! From what the switch is to what it should be, in steps.
//!
//! [`plan`] compares two states and says which [`Change`]s lead from one to the other, in an order in which each step
//! is possible: what goes makes room (names, OpenFlow port numbers) before what comes takes it; ports that ask for a
//! number come before those that take any; flows come last, when the ports they name are there. What is the same in
//! both is not in the plan, whatever its place in the list, but for the flows of a file: where ports come or go they are set again,
//! because a name in them may mean another number then. What can't be changed in place (what is behind a port, its
//! requested number, a bridge's datapath) goes and comes back.
//!
//! A plan is data, so that it can be shown, tested and undone: [`Change::apply_to`] says what a step does to a state,
//! and the way back from wherever a failed plan ended is the plan from there to the start.

use std::fmt;

use crate::config::{BridgeConfig, BridgeSettings, DatapathType, DesiredState, FlowFile, Options, PortConfig};

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Turn the knobs.
    SetOptions(Options),
    /// Take a port off a bridge.
    RemovePort {
        /// The bridge.
        bridge: String,
        /// The port.
        port: String,
    },
    /// Remove a bridge that has no ports but `LOCAL` any more, with its flows.
    RemoveBridge {
        /// The bridge.
        bridge: String,
    },
    /// Make a bridge with its `LOCAL` port and the flows of its fail mode.
    AddBridge {
        /// The bridge.
        bridge: String,
        /// The engine that forwards its packets.
        datapath_type: DatapathType,
        /// The rest of it.
        settings: BridgeSettings,
    },
    /// Change a bridge while it runs.
    SetBridge {
        /// The bridge.
        bridge: String,
        /// What it should be.
        settings: BridgeSettings,
    },
    /// Put a port on a bridge.
    AddPort {
        /// The bridge.
        bridge: String,
        /// The port.
        port: PortConfig,
    },
    /// Change a port while it runs: its VLANs, its place in the XDP hook, or the peer of a patch port.
    SetPort {
        /// The bridge.
        bridge: String,
        /// What the port should be.
        port: PortConfig,
    },
    /// Replace all flows of a bridge by those of a file, or by those of its fail mode. If it has the same, with the same numbers for the
    /// ports that they name, they stay.
    SetFlows {
        /// The bridge.
        bridge: String,
        /// The file.
        flows: Option<FlowFile>,
    },
}

/// The steps from `current` to `desired`, both valid. Nothing is said about what is the same in both.
pub fn plan(current: &DesiredState, desired: &DesiredState) -> Vec<Change> {
    let mut changes = Vec::new();
    for bridge in &current.bridges {
        match desired.bridge(&bridge.name).filter(|new| survives(bridge, new)) {
            Some(new) => {
                remove_ports(bridge, |port| new.port(&port.name).is_some_and(|p| stays(port, p)), &mut changes)
            }
            None => remove_ports(bridge, |_| false, &mut changes),
        }
    }
    for bridge in &current.bridges {
        if !desired.bridge(&bridge.name).is_some_and(|new| survives(bridge, new)) {
            changes.push(Change::RemoveBridge { bridge: bridge.name.clone() });
        }
    }
    if current.options != desired.options {
        changes.push(Change::SetOptions(desired.options.clone()));
    }
    // Each bridge with what is left of it.
    let old = |new: &BridgeConfig| current.bridge(&new.name).filter(|old| survives(old, new));
    for new in &desired.bridges {
        let (bridge, settings) = (new.name.clone(), new.settings.clone());
        match old(new) {
            None => changes.push(Change::AddBridge { bridge, datapath_type: new.datapath_type, settings }),
            Some(old) if old.settings != new.settings => changes.push(Change::SetBridge { bridge, settings }),
            Some(_) => {}
        }
    }
    for new in &desired.bridges {
        change_ports(old(new), new, &mut changes);
    }
    for new in &desired.bridges {
        if old(new).map_or(new.flows.is_some(), |old| has_other_flows(old, new)) {
            changes.push(Change::SetFlows { bridge: new.name.clone(), flows: new.flows.clone() });
        }
    }
    changes
}

/// Whether `old` can become `new` while it runs.
fn survives(old: &BridgeConfig, new: &BridgeConfig) -> bool {
    old.datapath_type == new.datapath_type
}

/// Whether `old` can become `new` while it runs: a patch port can have another peer, but a device stays a device.
fn stays(old: &PortConfig, new: &PortConfig) -> bool {
    old.kind.name() == new.kind.name() && old.ofport_request == new.ofport_request
}

/// Whether the flows that `old` began with are not those that `new` begins with. Without a file they are those of its fail mode; what a
/// file says depends on the numbers of the ports that it names.
fn has_other_flows(old: &BridgeConfig, new: &BridgeConfig) -> bool {
    match (&old.flows, &new.flows) {
        (None, None) => old.settings.fail_mode != new.settings.fail_mode,
        (before, after) => before != after || !all_stay(&old.ports, new) || !all_stay(&new.ports, old),
    }
}

/// Whether all these ports are on a bridge too, and need not be made anew.
fn all_stay(ports: &[PortConfig], bridge: &BridgeConfig) -> bool {
    ports.iter().all(|port| bridge.port(&port.name).is_some_and(|other| stays(other, port)))
}

fn remove_ports(bridge: &BridgeConfig, stays: impl Fn(&PortConfig) -> bool, changes: &mut Vec<Change>) {
    for port in bridge.ports.iter().filter(|port| !stays(port)) {
        changes.push(Change::RemovePort { bridge: bridge.name.clone(), port: port.name.clone() });
    }
}

fn change_ports(old: Option<&BridgeConfig>, new: &BridgeConfig, changes: &mut Vec<Change>) {
    let bridge = || new.name.clone();
    let mut anywhere = Vec::new();
    for port in &new.ports {
        match old.and_then(|old| old.port(&port.name)).filter(|before| stays(before, port)) {
            Some(before) if before == port => {}
            Some(_) => changes.push(Change::SetPort { bridge: bridge(), port: port.clone() }),
            None if port.ofport_request.is_some() => {
                changes.push(Change::AddPort { bridge: bridge(), port: port.clone() });
            }
            None => anywhere.push(Change::AddPort { bridge: bridge(), port: port.clone() }),
        }
    }
    changes.append(&mut anywhere);
}

/// A step that is not possible in a state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{change}: {reason}")]
pub struct Impossible {
    change: String,
    reason: &'static str,
}

impl Change {
    /// Makes this change to `state`.
    ///
    /// # Errors
    /// If the change doesn't fit the state: it names what isn't there, or adds what is. A plan from a state fits it.
    pub fn apply_to(&self, state: &mut DesiredState) -> Result<(), Impossible> {
        let impossible = |reason| Err(Impossible { change: self.to_string(), reason });
        match self {
            Change::SetOptions(options) => state.options = options.clone(),
            Change::AddBridge { bridge, datapath_type, settings } => {
                if state.bridge(bridge).is_some() {
                    return impossible("the bridge exists");
                }
                state.bridges.push(BridgeConfig {
                    name: bridge.clone(),
                    datapath_type: *datapath_type,
                    settings: settings.clone(),
                    ports: Vec::new(),
                    flows: None,
                });
            }
            Change::RemoveBridge { bridge } => match state.bridge(bridge) {
                None => return impossible("there is no such bridge"),
                Some(found) if !found.ports.is_empty() => return impossible("the bridge still has ports"),
                Some(_) => state.bridges.retain(|other| other.name != *bridge),
            },
            Change::RemovePort { bridge, .. }
            | Change::SetBridge { bridge, .. }
            | Change::AddPort { bridge, .. }
            | Change::SetPort { bridge, .. }
            | Change::SetFlows { bridge, .. } => {
                let Some(bridge) = state.bridges.iter_mut().find(|b| b.name == *bridge) else {
                    return impossible("there is no such bridge");
                };
                return self.apply_to_bridge(bridge).or_else(impossible);
            }
        }
        Ok(())
    }

    fn apply_to_bridge(&self, bridge: &mut BridgeConfig) -> Result<(), &'static str> {
        match self {
            Change::SetBridge { settings, .. } => bridge.settings = settings.clone(),
            Change::SetFlows { flows, .. } => bridge.flows = flows.clone(),
            Change::RemovePort { port, .. } => {
                let before = bridge.ports.len();
                bridge.ports.retain(|other| other.name != *port);
                if bridge.ports.len() == before {
                    return Err("there is no such port");
                }
            }
            Change::AddPort { port, .. } => {
                if bridge.port(&port.name).is_some() {
                    return Err("the port exists");
                }
                bridge.ports.push(port.clone());
            }
            Change::SetPort { port, .. } => match bridge.ports.iter_mut().find(|other| other.name == port.name) {
                Some(found) if stays(found, port) => *found = port.clone(),
                Some(_) => return Err("the port can't become that"),
                None => return Err("there is no such port"),
            },
            Change::SetOptions(_) | Change::RemoveBridge { .. } | Change::AddBridge { .. } => {}
        }
        Ok(())
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::SetOptions(_) => f.write_str("change options"),
            Change::RemovePort { bridge, port } => write!(f, "remove port {port} from bridge {bridge}"),
            Change::RemoveBridge { bridge } => write!(f, "remove bridge {bridge}"),
            Change::AddBridge { bridge, datapath_type, .. } => write!(f, "add bridge {bridge} ({datapath_type})"),
            Change::SetBridge { bridge, .. } => write!(f, "change bridge {bridge}"),
            Change::AddPort { bridge, port } => write!(f, "add port {} to bridge {bridge}", port.name),
            Change::SetPort { bridge, port } => write!(f, "change port {} of bridge {bridge}", port.name),
            Change::SetFlows { bridge, flows: Some(file) } => {
                write!(f, "set flows of bridge {bridge} from {}", file.path.display())
            }
            Change::SetFlows { bridge, flows: None } => write!(f, "set default flows of bridge {bridge}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::config::{FailMode, PortKind, PortVlan, Vlan};

    /// The texts of the steps from one state to another, each given as bridges and ports of the command line.
    fn steps(from: (&[&str], &[&str]), to: (&[&str], &[&str])) -> Vec<String> {
        let state = |(bridges, ports): (&[&str], &[&str])| {
            let parts = crate::config::Parts {
                bridges: bridges.iter().map(|text| text.parse().unwrap()).collect(),
                ports: ports.iter().map(|text| text.parse().unwrap()).collect(),
                ..Default::default()
            };
            parts.build().unwrap()
        };
        plan(&state(from), &state(to)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn only_what_differs_is_touched_and_in_a_possible_order() {
        for (from, to, expected) in [
            ((&["br0"][..], &["br0:a"][..]), (&["br0"][..], &["br0:a"][..]), &[][..]),
            // Another order is no difference.
            ((&["br0", "br1"], &["br0:a", "br0:b"]), (&["br1", "br0"], &["br0:b", "br0:a"]), &[]),
            (
                (&[], &[]),
                (&["br0"], &["br0:a", "br0:b,ofport=1"]),
                &["add bridge br0 (ebpf)", "add port b to bridge br0", "add port a to bridge br0"],
            ),
            ((&["br0"], &["br0:a"]), (&[], &[]), &["remove port a from bridge br0", "remove bridge br0"]),
            ((&["br0"], &["br0:a"]), (&["br0"], &["br0:a,tag=3"]), &["change port a of bridge br0"]),
            ((&["br0"], &["br0:br0,tag=3"]), (&["br0"], &[]), &["change bridge br0"]),
            // A port moves from bridge to bridge.
            (
                (&["br0", "br1"], &["br0:a"]),
                (&["br0", "br1"], &["br1:a"]),
                &["remove port a from bridge br0", "add port a to bridge br1"],
            ),
            // Two ports swap their numbers.
            (
                (&["br0"], &["br0:a,ofport=1", "br0:b,ofport=2"]),
                (&["br0"], &["br0:a,ofport=2", "br0:b,ofport=1"]),
                &[
                    "remove port a from bridge br0",
                    "remove port b from bridge br0",
                    "add port a to bridge br0",
                    "add port b to bridge br0",
                ],
            ),
            // A name passes from a port to a bridge.
            ((&["br0"], &["br0:x"]), (&["br0", "x"], &[]), &["remove port x from bridge br0", "add bridge x (ebpf)"]),
            (
                (&["br0"], &["br0:a"]),
                (&["br0,datapath=userspace"], &["br0:a"]),
                &[
                    "remove port a from bridge br0",
                    "remove bridge br0",
                    "add bridge br0 (userspace)",
                    "add port a to bridge br0",
                ],
            ),
            // A patch port gets another peer; its old peer goes.
            (
                (&["br0"], &["br0:p,type=patch,peer=q", "br0:q,type=patch,peer=p"]),
                (&["br0"], &["br0:p,type=patch,peer=r", "br0:r,type=patch,peer=p"]),
                &["remove port q from bridge br0", "change port p of bridge br0", "add port r to bridge br0"],
            ),
        ] {
            assert_eq!(steps(from, to), expected, "from {from:?} to {to:?}");
        }
    }

    #[test]
    fn flows_come_last_and_only_when_their_content_changed() {
        let file = |text: &str| Some(FlowFile { path: "f".into(), text: text.into() });
        let with = |flows| DesiredState {
            bridges: vec![BridgeConfig {
                name: "br0".to_owned(),
                datapath_type: DatapathType::Ebpf,
                settings: BridgeSettings::default(),
                ports: Vec::new(),
                flows,
            }],
            ..DesiredState::default()
        };
        assert_eq!(plan(&with(file("1")), &with(file("1"))), []);
        for (from, to) in [(file("1"), file("2")), (None, file("1")), (file("1"), None)] {
            let expected = Change::SetFlows { bridge: "br0".to_owned(), flows: to.clone() };
            assert_eq!(plan(&with(from), &with(to)), [expected]);
        }
        let new = plan(&DesiredState::default(), &with(file("1")));
        assert!(matches!(new[..], [Change::AddBridge { .. }, Change::SetFlows { .. }]), "{new:?}");
        assert_eq!(plan(&DesiredState::default(), &with(None)).len(), 1);
    }

    #[test]
    fn flows_of_a_file_are_set_again_behind_ports_that_come_or_go() {
        let text = "set flows of bridge br0 from f";
        for (from, to, expected) in [
            (&["br0:a", "br0:b,ofport=2"][..], &["br0:a", "br0:b,ofport=7"][..], true),
            (&["br0:a"], &["br0:a", "br0:b"], true),
            (&["br0:a", "br0:b"], &["br0:a"], true),
            (&["br0:a", "br0:b"], &["br0:b", "br0:a,tag=3"], false),
        ] {
            let [from_state, to_state] = [from, to].map(|ports| {
                let mut state = ports_state(ports);
                state.bridges[0].flows = Some(FlowFile { path: "f".into(), text: "".into() });
                state
            });
            let steps: Vec<_> = plan(&from_state, &to_state).iter().map(ToString::to_string).collect();
            assert_eq!(steps.last().is_some_and(|step| step == text), expected, "{from:?} {to:?}: {steps:?}");
            assert_eq!(steps.iter().filter(|step| *step == text).count(), usize::from(expected), "{steps:?}");
        }
    }

    #[test]
    fn another_fail_mode_brings_its_flows_unless_a_file_has_them() {
        let fail_mode = |mode: &str| format!("br0,fail-mode={mode}");
        for (from, to) in [("standalone", "secure"), ("secure", "standalone")] {
            let steps = steps((&[&fail_mode(from)], &["br0:a"]), (&[&fail_mode(to)], &["br0:a", "br0:b"]));
            assert_eq!(steps, ["change bridge br0", "add port b to bridge br0", "set default flows of bridge br0"]);
        }
        assert_eq!(steps((&["br0"], &[]), (&["br0,mac-aging-time=20"], &[])), ["change bridge br0"]);
    }

    #[test]
    fn a_step_that_does_not_fit_the_state_is_refused() {
        let state = ports_state(&["br0:a"]);
        for change in [
            Change::RemoveBridge { bridge: "br0".to_owned() },
            Change::RemoveBridge { bridge: "br9".to_owned() },
            Change::RemovePort { bridge: "br0".to_owned(), port: "z".to_owned() },
            Change::SetFlows { bridge: "br9".to_owned(), flows: None },
            Change::AddPort { bridge: "br0".to_owned(), port: state.bridges[0].ports[0].clone() },
            Change::AddBridge {
                bridge: "br0".to_owned(),
                datapath_type: DatapathType::Ebpf,
                settings: BridgeSettings::default(),
            },
        ] {
            let mut after = state.clone();
            assert!(change.apply_to(&mut after).is_err(), "{change}");
            assert_eq!(after, state, "{change}");
        }
    }

    /// A bridge `br0` with these ports.
    fn ports_state(ports: &[&str]) -> DesiredState {
        let parts = crate::config::Parts {
            bridges: vec!["br0".parse().unwrap()],
            ports: ports.iter().map(|text| text.parse().unwrap()).collect(),
            ..Default::default()
        };
        parts.build().unwrap()
    }

    /// The state with bridges and ports in the order of their names: in that form equal states are equal.
    fn sorted(mut state: DesiredState) -> DesiredState {
        state.bridges.sort_by(|a, b| a.name.cmp(&b.name));
        state.bridges.iter_mut().for_each(|bridge| bridge.ports.sort_by(|a, b| a.name.cmp(&b.name)));
        state
    }

    fn port(name: String) -> impl Strategy<Value = PortConfig> {
        let kind = prop_oneof![
            Just(PortKind::System),
            Just(PortKind::Internal),
            "[a-c]".prop_map(|peer| PortKind::Patch { peer }),
        ];
        (kind, prop::option::of(0..3i64), prop::option::of(1..4u16)).prop_map(move |(kind, tag, ofport_request)| {
            let vlan = PortVlan { tag: tag.and_then(|tag| Vlan::try_from(tag).ok()), ..PortVlan::default() };
            let xdp =
                tag.map(|tag| if tag == 1 { crate::config::XdpMode::Native } else { crate::config::XdpMode::Off });
            PortConfig { name: name.clone(), kind, vlan, ofport_request, xdp }
        })
    }

    /// A state whose names and OpenFlow port numbers are unique, as in a valid one; peers may lead anywhere.
    fn state() -> impl Strategy<Value = DesiredState> {
        let bridge = |i: usize| {
            let datapath = prop_oneof![3 => Just(DatapathType::Ebpf), 1 => Just(DatapathType::Userspace)];
            let mode = prop_oneof![Just(FailMode::Standalone), Just(FailMode::Secure)];
            let flows = prop::option::of("[ab]".prop_map(|text| FlowFile { path: "f".into(), text: text.into() }));
            (datapath, mode, flows).prop_map(move |(datapath_type, fail_mode, flows)| BridgeConfig {
                name: format!("br{i}"),
                datapath_type,
                settings: BridgeSettings { fail_mode, ..BridgeSettings::default() },
                ports: Vec::new(),
                flows,
            })
        };
        let bridges = (0..3).map(|i| prop::option::of(bridge(i))).collect::<Vec<_>>();
        let ports = ('a'..='f').map(|c| prop::option::of((port(c.to_string()), 0..3usize))).collect::<Vec<_>>();
        (bridges, ports, 0..2u32).prop_map(|(bridges, ports, flow_limit)| {
            let mut bridges: Vec<BridgeConfig> = bridges.into_iter().flatten().collect();
            for (mut port, place) in ports.into_iter().flatten() {
                let n = bridges.len().max(1);
                let Some(bridge) = bridges.get_mut(place % n) else { continue };
                if bridge.ports.iter().any(|other| other.ofport_request == port.ofport_request) {
                    port.ofport_request = None;
                }
                bridge.ports.push(port);
            }
            DesiredState { options: Options { flow_limit, ..Options::default() }, bridges }
        })
    }

    /// That no name and no number is used twice at once.
    fn check_unique(state: &DesiredState) {
        let mut names = BTreeSet::new();
        for bridge in &state.bridges {
            assert!(names.insert(&bridge.name), "{} twice", bridge.name);
            let mut numbers = BTreeSet::new();
            for port in &bridge.ports {
                assert!(names.insert(&port.name), "{} twice", port.name);
                assert!(port.ofport_request.is_none_or(|number| numbers.insert(number)), "number of {}", port.name);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn a_plan_leads_to_the_desired_state_over_possible_ones(from in state(), to in state()) {
            let mut now = from.clone();
            for change in plan(&from, &to) {
                change.apply_to(&mut now).unwrap();
                check_unique(&now);
            }
            prop_assert_eq!(sorted(now), sorted(to));
        }

        #[test]
        fn what_is_equal_is_never_touched(from in state(), to in state()) {
            prop_assert_eq!(plan(&from, &sorted(from.clone())), []);
            for change in plan(&from, &to) {
                match &change {
                    Change::RemovePort { bridge, port } => {
                        let same = |state: &DesiredState| state.bridge(bridge).map(|b| b.datapath_type).zip(
                            state.bridge(bridge).and_then(|b| b.port(port)).cloned());
                        prop_assert_ne!(same(&from), same(&to), "{}", change);
                    }
                    Change::SetPort { bridge, port } => {
                        prop_assert_ne!(from.bridge(bridge).and_then(|b| b.port(&port.name)), Some(port), "{}", change);
                    }
                    Change::SetBridge { bridge, settings } => {
                        prop_assert_ne!(from.bridge(bridge).map(|b| &b.settings), Some(settings), "{}", change);
                    }
                    Change::SetOptions(options) => prop_assert_ne!(&from.options, options),
                    _ => {}
                }
            }
        }

        #[test]
        fn a_plan_cut_short_anywhere_has_a_way_back(from in state(), to in state(), cut in 0..40usize) {
            let mut now = from.clone();
            for change in plan(&from, &to).iter().take(cut) {
                change.apply_to(&mut now).unwrap();
            }
            for change in plan(&now.clone(), &from) {
                change.apply_to(&mut now).unwrap();
                check_unique(&now);
            }
            prop_assert_eq!(sorted(now), sorted(from));
        }
    }
}
