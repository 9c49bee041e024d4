//! Parts of a desired state, as a person says them, and how they become the whole.
//!
//! A source (the command line, a file) gives [`Parts`]: only what was said, in any order. One source can be laid
//! [`over`](Parts::over) another: what it says wins, bridges it names again are the same bridges, ports add up.
//! [`Parts::build`] fills in the defaults, reads what has to be read, and checks the result.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{
    BridgeConfig, BridgeSettings, DatapathType, DesiredState, FailMode, FlowFile, FlowFileError, Invalid, Options,
    PortConfig, PortKind, PortVlan, XdpMode, validate,
};

/// What one source says.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Parts {
    /// The datapath of the bridges that don't say one.
    pub datapath_type: Option<DatapathType>,
    /// The knobs.
    pub options: OptionsPart,
    /// The bridges.
    pub bridges: Vec<BridgePart>,
    /// The ports, each with the bridge it belongs to.
    pub ports: Vec<PortPart>,
    /// The flow files.
    pub flows: Vec<FlowsPart>,
}

/// A bridge as far as it was described.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct BridgePart {
    /// Its name.
    pub name: String,
    /// Its datapath.
    pub datapath_type: Option<DatapathType>,
    /// What it does without a controller.
    pub fail_mode: Option<FailMode>,
    /// Seconds until a silent MAC address is forgotten.
    pub mac_aging_time: Option<u32>,
    /// How many MAC addresses it learns.
    pub mac_table_size: Option<u32>,
}

/// A port as far as it was described.
#[derive(Debug, Clone, PartialEq)]
pub struct PortPart {
    /// The bridge it belongs to.
    pub bridge: String,
    /// Its name. The bridge's own name is its `LOCAL` port.
    pub name: String,
    /// What is behind it; `None` is a device of the system, or what `LOCAL` is.
    pub kind: Option<PortKind>,
    /// What it has to do with VLANs.
    pub vlan: PortVlan,
    /// The OpenFlow port number it should have.
    pub ofport_request: Option<u16>,
    /// Whether its frames are met in the XDP hook.
    pub xdp: Option<XdpMode>,
}

/// A flow file, for the bridge named or for the only one.
#[derive(Debug, Clone, PartialEq)]
pub struct FlowsPart {
    /// The bridge.
    pub bridge: Option<String>,
    /// The file.
    pub path: PathBuf,
}

/// The knobs that were turned. The names are those of the command line and of the file's `[options]`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct OptionsPart {
    /// Most datapath flows kept [default: 200000]
    #[arg(long, value_name = "N")]
    pub flow_limit: Option<u32>,
    /// Most datapath flows of one port; 0 is no cap [default: 0]
    #[arg(long, value_name = "N")]
    pub port_flow_limit: Option<u32>,
    /// Most masks that the datapath flows of one port have; 0 is no cap [default: 128]
    #[arg(long, value_name = "N")]
    pub port_mask_limit: Option<u32>,
    /// Most masks that all datapath flows have; 0 is no cap but the datapath's [default: 0]
    #[arg(long, value_name = "N")]
    pub mask_limit: Option<u32>,
    /// Milliseconds without a packet after which a datapath flow goes [default: 10000]
    #[arg(long, value_name = "MS")]
    pub max_idle: Option<u32>,
    /// Most milliseconds between two revalidations [default: 500]
    #[arg(long, value_name = "MS")]
    pub max_revalidator: Option<u32>,
    /// Packets a second above which a flow is revalidated rather than deleted [default: 5]
    #[arg(long, value_name = "PPS")]
    pub min_revalidate_pps: Option<u32>,
    /// Threads that handle upcalls; 0 lets the switch choose [default: by the number of CPUs]
    #[arg(long, visible_alias = "n-handler-threads", value_name = "N")]
    #[serde(alias = "n-handler-threads")]
    pub n_handlers: Option<u16>,
    /// Threads that revalidate; 0 lets the switch choose [default: by the number of CPUs]
    #[arg(long, visible_alias = "n-revalidator-threads", value_name = "N")]
    #[serde(alias = "n-revalidator-threads")]
    pub n_revalidators: Option<u16>,
    /// Room for flows in the datapath's own tables [default: the datapath's]
    #[arg(long, value_name = "N")]
    pub max_flows: Option<u32>,
    /// Let a program that is made for what the flows need run in front of the eBPF datapath's general one [default: true]
    #[arg(long, value_name = "BOOL")]
    pub specialise: Option<bool>,
}

/// Why the parts don't make a whole.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// One source describes a bridge twice.
    #[error("bridge {0} is given twice")]
    DuplicateBridge(String),
    /// Something belongs to a bridge that nobody described.
    #[error("{what}: there is no bridge {bridge}; add it with --bridge {bridge} or in the configuration file")]
    UnknownBridge {
        /// What belongs to it.
        what: String,
        /// The bridge.
        bridge: String,
    },
    /// A flow file for "the" bridge, of which there are several or none.
    #[error("flows {path}: there are {bridges} bridges; say which one with --flows BRIDGE:FILE", path = .path.display())]
    WhichBridge {
        /// The flow file.
        path: PathBuf,
        /// How many bridges there are.
        bridges: usize,
    },
    /// Two flow files for one bridge.
    #[error("bridge {0} is given two flow files")]
    DuplicateFlows(String),
    /// A `LOCAL` port that is described as something else.
    #[error(
        "port {0}: the port with its bridge's name is the bridge's LOCAL port; it can't be of type {1} or have an OpenFlow port number"
    )]
    Local(String, &'static str),
    /// A flow file that can't be read.
    #[error(transparent)]
    Flows(#[from] FlowFileError),
    /// A whole that breaks a rule.
    #[error(transparent)]
    Invalid(#[from] Invalid),
}

impl Parts {
    /// These parts laid over `base`.
    ///
    /// # Errors
    /// If one of the two describes a bridge twice.
    pub fn over(self, base: Parts) -> Result<Parts, ConfigError> {
        self.unique_bridges()?;
        base.unique_bridges()?;
        let mut all = base;
        all.datapath_type = self.datapath_type.or(all.datapath_type);
        all.options = self.options.over(all.options);
        for part in self.bridges {
            match all.bridges.iter_mut().find(|below| below.name == part.name) {
                Some(below) => *below = part.over(std::mem::take(below)),
                None => all.bridges.push(part),
            }
        }
        all.ports.extend(self.ports);
        // A flow file above replaces those below that it could be meant to.
        all.flows.retain(|below| {
            self.flows.iter().all(|f| f.bridge.is_some() && below.bridge.is_some() && f.bridge != below.bridge)
        });
        all.flows.extend(self.flows);
        Ok(all)
    }

    /// The desired state that these parts describe; reads the flow files.
    ///
    /// # Errors
    /// The first rule that is broken, in the order: bridges, ports, flows, [`validate`].
    pub fn build(self) -> Result<DesiredState, ConfigError> {
        self.unique_bridges()?;
        let default_datapath = self.datapath_type.unwrap_or_default();
        let mut state = DesiredState {
            options: self.options.build(),
            bridges: self.bridges.into_iter().map(|part| part.build(default_datapath)).collect(),
        };
        for part in self.ports {
            let what = format!("port {}", part.name);
            find(&mut state, &part.bridge, what).and_then(|bridge| part.add_to(bridge))?;
        }
        for part in self.flows {
            let bridge = match (&part.bridge, &mut state.bridges[..]) {
                (Some(name), _) => find(&mut state, name, format!("flows {}", part.path.display()))?,
                (None, [only]) => only,
                (None, bridges) => {
                    return Err(ConfigError::WhichBridge { path: part.path, bridges: bridges.len() });
                }
            };
            if bridge.flows.is_some() {
                return Err(ConfigError::DuplicateFlows(bridge.name.clone()));
            }
            bridge.flows = Some(FlowFile::read(&part.path)?);
        }
        validate(&state)?;
        Ok(state)
    }

    fn unique_bridges(&self) -> Result<(), ConfigError> {
        for (i, bridge) in self.bridges.iter().enumerate() {
            if self.bridges.iter().take(i).any(|before| before.name == bridge.name) {
                return Err(ConfigError::DuplicateBridge(bridge.name.clone()));
            }
        }
        Ok(())
    }
}

fn find<'a>(state: &'a mut DesiredState, name: &str, what: String) -> Result<&'a mut BridgeConfig, ConfigError> {
    let bridge = state.bridges.iter_mut().find(|bridge| bridge.name == name);
    bridge.ok_or_else(|| ConfigError::UnknownBridge { what, bridge: name.to_owned() })
}

impl BridgePart {
    fn over(self, base: BridgePart) -> BridgePart {
        BridgePart {
            name: self.name,
            datapath_type: self.datapath_type.or(base.datapath_type),
            fail_mode: self.fail_mode.or(base.fail_mode),
            mac_aging_time: self.mac_aging_time.or(base.mac_aging_time),
            mac_table_size: self.mac_table_size.or(base.mac_table_size),
        }
    }

    fn build(self, default_datapath: DatapathType) -> BridgeConfig {
        let default = BridgeSettings::default();
        BridgeConfig {
            name: self.name,
            datapath_type: self.datapath_type.unwrap_or(default_datapath),
            settings: BridgeSettings {
                fail_mode: self.fail_mode.unwrap_or(default.fail_mode),
                mac_aging_time: self.mac_aging_time.unwrap_or(default.mac_aging_time),
                mac_table_size: self.mac_table_size.unwrap_or(default.mac_table_size),
                local_vlan: default.local_vlan,
            },
            ports: Vec::new(),
            flows: None,
        }
    }
}

impl PortPart {
    fn add_to(self, bridge: &mut BridgeConfig) -> Result<(), ConfigError> {
        if self.name == bridge.name {
            let kind = self.kind.unwrap_or(PortKind::Internal);
            if self.xdp.is_some() {
                return Err(Invalid::Xdp { port: self.name }.into());
            }
            if kind != PortKind::Internal || self.ofport_request.is_some() {
                return Err(ConfigError::Local(self.name, kind.name()));
            }
            bridge.settings.local_vlan = self.vlan;
        } else {
            bridge.ports.push(PortConfig {
                name: self.name,
                kind: self.kind.unwrap_or(PortKind::System),
                vlan: self.vlan,
                ofport_request: self.ofport_request,
                xdp: self.xdp,
            });
        }
        Ok(())
    }
}

impl OptionsPart {
    fn over(self, base: OptionsPart) -> OptionsPart {
        OptionsPart {
            flow_limit: self.flow_limit.or(base.flow_limit),
            port_flow_limit: self.port_flow_limit.or(base.port_flow_limit),
            port_mask_limit: self.port_mask_limit.or(base.port_mask_limit),
            mask_limit: self.mask_limit.or(base.mask_limit),
            max_idle: self.max_idle.or(base.max_idle),
            max_revalidator: self.max_revalidator.or(base.max_revalidator),
            min_revalidate_pps: self.min_revalidate_pps.or(base.min_revalidate_pps),
            n_handlers: self.n_handlers.or(base.n_handlers),
            n_revalidators: self.n_revalidators.or(base.n_revalidators),
            max_flows: self.max_flows.or(base.max_flows),
            specialise: self.specialise.or(base.specialise),
        }
    }

    fn build(self) -> Options {
        let default = Options::default();
        Options {
            flow_limit: self.flow_limit.unwrap_or(default.flow_limit),
            port_flow_limit: self.port_flow_limit.unwrap_or(default.port_flow_limit),
            port_mask_limit: self.port_mask_limit.unwrap_or(default.port_mask_limit),
            mask_limit: self.mask_limit.unwrap_or(default.mask_limit),
            max_idle: self.max_idle.unwrap_or(default.max_idle),
            max_revalidator: self.max_revalidator.unwrap_or(default.max_revalidator),
            min_revalidate_pps: self.min_revalidate_pps.unwrap_or(default.min_revalidate_pps),
            n_handlers: self.n_handlers,
            n_revalidators: self.n_revalidators,
            max_flows: self.max_flows,
            specialise: self.specialise.unwrap_or(default.specialise),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parts from the texts of `--bridge`, `--port` and `--flows`.
    fn parts(bridges: &[&str], ports: &[&str], flows: &[&str]) -> Parts {
        Parts {
            bridges: bridges.iter().map(|text| text.parse().unwrap()).collect(),
            ports: ports.iter().map(|text| text.parse().unwrap()).collect(),
            flows: flows.iter().map(|text| text.parse().unwrap()).collect(),
            ..Parts::default()
        }
    }

    #[test]
    fn what_lies_above_wins_and_ports_add_up() {
        let base = Parts {
            datapath_type: Some(DatapathType::Userspace),
            options: OptionsPart { flow_limit: Some(1000), max_idle: Some(2000), ..OptionsPart::default() },
            ..parts(&["br0,mac-aging-time=60,fail-mode=secure", "br1"], &["br0:a"], &[])
        };
        let above = Parts {
            options: OptionsPart { flow_limit: Some(5), ..OptionsPart::default() },
            ..parts(&["br0,mac-aging-time=30", "br2"], &["br0:b"], &[])
        };
        let state = above.over(base).unwrap().build().unwrap();
        assert_eq!((state.options.flow_limit, state.options.max_idle), (5, 2000));
        let names: Vec<&str> = state.bridges.iter().map(|bridge| bridge.name.as_str()).collect();
        assert_eq!(names, ["br0", "br1", "br2"]);
        let br0 = state.bridge("br0").unwrap();
        assert_eq!((br0.settings.mac_aging_time, br0.settings.fail_mode), (30, FailMode::Secure));
        assert_eq!(br0.datapath_type, DatapathType::Userspace);
        assert!(br0.port("a").is_some() && br0.port("b").is_some());
    }

    #[test]
    fn the_port_with_the_bridges_name_is_its_local_port() {
        let state = parts(&["br0"], &["br0:br0,tag=7"], &[]).build().unwrap();
        assert_eq!(state.bridges[0].settings.local_vlan.tag.map(|tag| tag.get()), Some(7));
        assert!(state.bridges[0].ports.is_empty());
        for bad in ["br0:br0,type=system", "br0:br0,ofport=3", "br0:br0,type=patch,peer=x"] {
            assert!(matches!(parts(&["br0"], &[bad], &[]).build(), Err(ConfigError::Local(..))), "{bad}");
        }
    }

    #[test]
    fn flows_go_to_the_bridge_named_or_to_the_only_one() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        let state = parts(&["br0"], &[], &[path]).build().unwrap();
        assert_eq!(state.bridges[0].flows.as_ref().unwrap().path, file.path());
        let named = format!("br1:{path}");
        let state = parts(&["br0", "br1"], &[], &[&named]).build().unwrap();
        assert!(state.bridges[0].flows.is_none() && state.bridges[1].flows.is_some());

        let error = |bridges: &[&str], flows: &[&str]| parts(bridges, &[], flows).build().unwrap_err().to_string();
        assert!(error(&["br0", "br1"], &[path]).contains("there are 2 bridges"));
        assert!(error(&[], &[path]).contains("there are 0 bridges"));
        assert!(error(&["br0"], &[&named]).contains("there is no bridge br1"));
        assert!(error(&["br0"], &[path, path]).contains("two flow files"));
        assert!(error(&["br0"], &["br0:/nonexistent/flows"]).starts_with("flows /nonexistent/flows: No such file"));
    }

    #[test]
    fn a_flow_file_above_replaces_the_one_below() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let above = parts(&[], &[], &[file.path().to_str().unwrap()]);
        let base = parts(&["br0"], &[], &["br0:/nonexistent/flows"]);
        assert_eq!(above.over(base).unwrap().build().unwrap().bridges[0].flows.as_ref().unwrap().path, file.path());
    }

    #[test]
    fn a_bridge_given_twice_by_one_source_is_refused() {
        let twice = || parts(&["br0", "br1", "br0"], &[], &[]);
        assert!(matches!(twice().build(), Err(ConfigError::DuplicateBridge(name)) if name == "br0"));
        assert!(twice().over(Parts::default()).is_err());
        assert!(Parts::default().over(twice()).is_err());
    }

    #[test]
    fn a_port_of_an_unknown_bridge_is_refused() {
        let error = parts(&["br0"], &["br9:veth0"], &[]).build().unwrap_err();
        assert!(error.to_string().starts_with("port veth0: there is no bridge br9"), "{error}");
    }
}
