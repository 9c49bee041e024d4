//! The configuration file: the same parts as on the command line, in TOML, under the same names.
//!
//! ```toml
//! datapath = "ebpf"
//!
//! [options]
//! flow-limit = 200000
//!
//! [[bridge]]
//! name = "br0"
//! flows = "br0.flows"        # relative to this file
//!
//! [[bridge.port]]
//! name = "veth0"
//! tag = 10
//!
//! [[bridge.port]]
//! name = "veth1"
//! trunks = "10-20+30"        # or [10, 20]
//! ```
//!
//! A key that nobody knows is an error and not a comment: a switch that ignores a misspelt `tag` leaks one VLAN into
//! another.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::parts::{FlowsPart, OptionsPart};
use super::{
    BridgeConfig, BridgePart, DatapathType, DesiredState, FailMode, Options, Parts, PortConfig, PortKind, PortPart,
    PortVlan, Vlan, VlanMode, VlanSet, XdpMode, spec,
};

/// What is wrong with a file, in one line that begins with where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// The file can't be read.
    #[error("{path}: {reason}", path = .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The text is not a configuration.
    #[error("{path}:{line}:{column}: {reason}", path = .path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The column in characters, from 1.
        column: usize,
        /// What was expected.
        reason: String,
    },
}

/// Reads the configuration file at `path`.
///
/// # Errors
/// If it can't be read or is not a configuration.
pub fn read_toml(path: &Path) -> Result<Parts, FileError> {
    match std::fs::read_to_string(path) {
        Ok(text) => from_toml(&text, path),
        Err(error) => Err(FileError::Unreadable { path: path.to_owned(), reason: error.to_string() }),
    }
}

/// The parts that `text` describes. `path` is where it came from: errors name it, and its directory is where relative
/// flow files are.
///
/// # Errors
/// [`FileError::Syntax`] if it is not a configuration.
pub fn from_toml(text: &str, path: &Path) -> Result<Parts, FileError> {
    match toml::from_str::<File>(text) {
        Ok(file) => Ok(file.parts(path.parent().unwrap_or(Path::new("")))),
        Err(error) => {
            let before = text.get(..error.span().map_or(0, |span| span.start)).unwrap_or(text);
            let last_line = before.rsplit('\n').next().unwrap_or_default();
            Err(FileError::Syntax {
                path: path.to_owned(),
                line: before.matches('\n').count() + 1,
                column: last_line.chars().count() + 1,
                reason: error.message().trim().replace('\n', ", "),
            })
        }
    }
}

/// The text of a file that describes `state`, complete: what was a default when the state was made is said too.
pub fn to_toml(state: &DesiredState) -> String {
    // Strings, numbers and tables always have a TOML text.
    toml::to_string(&File::of(state)).unwrap_or_default()
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    #[serde(default, with = "text", skip_serializing_if = "Option::is_none")]
    datapath: Option<DatapathType>,
    #[serde(default)]
    options: OptionsPart,
    #[serde(default)]
    bridge: Vec<Bridge>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Bridge {
    name: String,
    #[serde(default, with = "text", skip_serializing_if = "Option::is_none")]
    datapath: Option<DatapathType>,
    #[serde(default, with = "text", skip_serializing_if = "Option::is_none")]
    fail_mode: Option<FailMode>,
    mac_aging_time: Option<u32>,
    mac_table_size: Option<u32>,
    flows: Option<PathBuf>,
    #[serde(default)]
    port: Vec<Port>,
}

/// A port as it is read: `type` and `peer` have passed the rule that ties them together.
#[derive(Deserialize, Serialize)]
#[serde(try_from = "PortTable", into = "PortTable")]
#[derive(Clone)]
struct Port {
    name: String,
    kind: Option<PortKind>,
    vlan: PortVlan,
    ofport: Option<u16>,
    xdp: Option<XdpMode>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct PortTable {
    name: String,
    r#type: Option<String>,
    peer: Option<String>,
    #[serde(default, with = "tag", skip_serializing_if = "Option::is_none")]
    tag: Option<Vlan>,
    #[serde(default, with = "trunks", skip_serializing_if = "VlanSet::is_empty")]
    trunks: VlanSet,
    #[serde(default, with = "text", skip_serializing_if = "Option::is_none")]
    vlan_mode: Option<VlanMode>,
    ofport: Option<u16>,
    #[serde(default, with = "text", skip_serializing_if = "Option::is_none")]
    xdp: Option<XdpMode>,
}

impl TryFrom<PortTable> for Port {
    type Error = spec::SpecError;

    fn try_from(table: PortTable) -> Result<Port, spec::SpecError> {
        Ok(Port {
            kind: spec::kind(table.r#type, table.peer)?,
            vlan: PortVlan { tag: table.tag, trunks: table.trunks, mode: table.vlan_mode },
            name: table.name,
            ofport: table.ofport,
            xdp: table.xdp,
        })
    }
}

impl From<Port> for PortTable {
    fn from(port: Port) -> PortTable {
        PortTable {
            r#type: port.kind.as_ref().map(|kind| kind.name().to_owned()),
            peer: match port.kind {
                Some(PortKind::Patch { peer }) => Some(peer),
                _ => None,
            },
            name: port.name,
            tag: port.vlan.tag,
            trunks: port.vlan.trunks,
            vlan_mode: port.vlan.mode,
            ofport: port.ofport,
            xdp: port.xdp,
        }
    }
}

impl File {
    fn parts(self, directory: &Path) -> Parts {
        let mut parts = Parts { datapath_type: self.datapath, options: self.options, ..Parts::default() };
        for bridge in self.bridge {
            parts.ports.extend(bridge.port.into_iter().map(|port| PortPart {
                bridge: bridge.name.clone(),
                name: port.name,
                kind: port.kind,
                vlan: port.vlan,
                ofport_request: port.ofport,
                xdp: port.xdp,
            }));
            parts.flows.extend(
                bridge.flows.map(|path| FlowsPart { bridge: Some(bridge.name.clone()), path: directory.join(path) }),
            );
            parts.bridges.push(BridgePart {
                name: bridge.name,
                datapath_type: bridge.datapath,
                fail_mode: bridge.fail_mode,
                mac_aging_time: bridge.mac_aging_time,
                mac_table_size: bridge.mac_table_size,
            });
        }
        parts
    }

    fn of(state: &DesiredState) -> File {
        let Options { port_flow_limit, port_mask_limit, mask_limit, .. } = state.options;
        let Options { flow_limit, max_idle, max_revalidator, min_revalidate_pps, .. } = state.options;
        let Options { n_handlers, n_revalidators, max_flows, specialise, .. } = state.options;
        File {
            datapath: None,
            options: OptionsPart {
                flow_limit: Some(flow_limit),
                port_flow_limit: Some(port_flow_limit),
                port_mask_limit: Some(port_mask_limit),
                mask_limit: Some(mask_limit),
                max_idle: Some(max_idle),
                max_revalidator: Some(max_revalidator),
                min_revalidate_pps: Some(min_revalidate_pps),
                n_handlers,
                n_revalidators,
                max_flows,
                specialise: Some(specialise),
            },
            bridge: state.bridges.iter().map(Bridge::of).collect(),
        }
    }
}

impl Bridge {
    fn of(bridge: &BridgeConfig) -> Bridge {
        let settings = &bridge.settings;
        let local = (settings.local_vlan != PortVlan::default()).then(|| Port {
            name: bridge.name.clone(),
            kind: None,
            vlan: settings.local_vlan.clone(),
            ofport: None,
            xdp: None,
        });
        let port = |port: &PortConfig| Port {
            name: port.name.clone(),
            kind: Some(port.kind.clone()),
            vlan: port.vlan.clone(),
            ofport: port.ofport_request,
            xdp: port.xdp,
        };
        Bridge {
            name: bridge.name.clone(),
            datapath: Some(bridge.datapath_type),
            fail_mode: Some(settings.fail_mode),
            mac_aging_time: Some(settings.mac_aging_time),
            mac_table_size: Some(settings.mac_table_size),
            flows: bridge.flows.as_ref().map(|flows| flows.path.clone()),
            port: local.into_iter().chain(bridge.ports.iter().map(port)).collect(),
        }
    }
}

impl fmt::Display for VlanMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An optional value that is written as a string.
mod text {
    use super::*;

    pub(super) fn deserialize<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
    where
        D: Deserializer<'de>,
        T: FromStr<Err: fmt::Display>,
    {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Some).map_err(D::Error::custom)
    }

    pub(super) fn serialize<S: Serializer, T: fmt::Display>(value: &Option<T>, s: S) -> Result<S::Ok, S::Error> {
        value.as_ref().map(ToString::to_string).serialize(s)
    }
}

/// A VLAN, written as a number.
mod tag {
    use super::*;

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vlan>, D::Error> {
        let number = i64::deserialize(deserializer)?;
        Vlan::try_from(number).map(Some).map_err(D::Error::custom)
    }

    pub(super) fn serialize<S: Serializer>(tag: &Option<Vlan>, s: S) -> Result<S::Ok, S::Error> {
        tag.map(Vlan::get).serialize(s)
    }
}

/// A set of VLANs, written as its text or as an array of numbers and texts.
mod trunks {
    use super::*;

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<VlanSet, D::Error> {
        struct Trunks;

        impl<'de> Visitor<'de> for Trunks {
            type Value = VlanSet;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("VLANs, like \"10-20+30\" or [10, 20]")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<VlanSet, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<VlanSet, E> {
                Vlan::try_from(number).map(|vlan| VlanSet::from_iter([vlan])).map_err(E::custom)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<VlanSet, A::Error> {
                let mut all = Vec::new();
                while let Some(Element(set)) = seq.next_element()? {
                    all.extend(set.iter());
                }
                match all.is_empty() {
                    true => Err(A::Error::custom(super::super::VlanError::Empty)),
                    false => Ok(all.into_iter().collect()),
                }
            }
        }

        struct Element(VlanSet);

        impl<'de> Deserialize<'de> for Element {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Element, D::Error> {
                deserializer.deserialize_any(Trunks).map(Element)
            }
        }

        deserializer.deserialize_any(Trunks)
    }

    pub(super) fn serialize<S: Serializer>(trunks: &VlanSet, s: S) -> Result<S::Ok, S::Error> {
        trunks.to_string().serialize(s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Parts, String> {
        from_toml(text, Path::new("/etc/sluice/switch.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn a_file_says_the_same_as_the_command_line() {
        let file = read(
            r#"
            datapath = "userspace"
            [options]
            flow-limit = 1000
            n-handlers = 2
            specialise = false
            [[bridge]]
            name = "br0"
            fail-mode = "secure"
            mac-aging-time = 60
            flows = "br0.flows"
            [[bridge.port]]
            name = "veth0"
            tag = 10
            [[bridge.port]]
            name = "veth1"
            trunks = [1, 2, "10-12"]
            ofport = 7
            xdp = "generic"
            [[bridge]]
            name = "br1"
            datapath = "ebpf"
            flows = "/tmp/br1.flows"
            [[bridge.port]]
            name = "p"
            type = "patch"
            peer = "q"
            "#,
        )
        .unwrap();
        let line = Parts {
            datapath_type: Some(DatapathType::Userspace),
            options: OptionsPart {
                flow_limit: Some(1000),
                n_handlers: Some(2),
                specialise: Some(false),
                ..OptionsPart::default()
            },
            bridges: ["br0,fail-mode=secure,mac-aging-time=60", "br1,datapath=ebpf"].map(|s| s.parse().unwrap()).into(),
            ports: ["br0:veth0,tag=10", "br0:veth1,trunks=1-2+10-12,ofport=7,xdp=generic", "br1:p,type=patch,peer=q"]
                .map(|s| s.parse().unwrap())
                .into(),
            flows: ["br0:/etc/sluice/br0.flows", "br1:/tmp/br1.flows"].map(|s| s.parse().unwrap()).into(),
        };
        assert_eq!(file, line);
    }

    #[test]
    fn an_error_says_where_it_is_in_one_line() {
        for (text, expected) in [
            ("bridges = 1\n", "1:1: unknown field `bridges`, expected one of `datapath`, `options`, `bridge`"),
            ("\n[[bridge]]\nname = \"br0\"\n[[bridge.port]]\nname = \"a\"\n  vlan = 3\n", "6:3: unknown field `vlan`"),
            ("[options]\nfoo = 1\n", "2:1: unknown field `foo`"),
            ("[[bridge]]\nflows = \"x\"\n", "1:1: missing field `name`"),
            ("datapath = \"dpdk\"\n", "1:12: \"dpdk\" is not a datapath: expected ebpf, userspace or netlink"),
            ("[[bridge]]\nname = \"b\"\nport = [{name = \"p\", tag = 4096}]\n", "3:28: VLAN 4096 is out of range"),
            ("[[bridge]]\nname = \"b\"\nport = [{name = \"p\", trunks = [1, 5000]}]\n", "VLAN 5000 is out of range"),
            ("[[bridge]]\nname = \"b\"\nport = [{name = \"p\", trunks = \"3-1\"}]\n", "VLAN range 3-1 is backwards"),
            ("[[bridge]]\nname = \"b\"\nport = [{name = \"p\", type = \"gre\"}]\n", "port type gre is not supported"),
            ("[[bridge]]\nname = \"b\"\nport = [{name = \"p\", type = \"patch\"}]\n", "needs peer=PORT"),
            ("[[bridge]]\nname = \"b\"\nport = [{name = \"p\", xdp = \"fast\"}]\n", "\"fast\" is no XDP mode"),
            ("[options]\nmax-idle = -1\n", "2:12: invalid value: integer `-1`, expected u32"),
            ("a = \n", "1:5: "),
            ("name = \"ü\" x\n", "1:12: "),
            ("[options\n", "1:9: "),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.starts_with("/etc/sluice/switch.toml:"), "{text}: {error}");
            assert!(error.contains(expected), "{text}: {error}");
            assert!(!error.contains('\n'), "{text}: {error}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = read_toml(Path::new("/nonexistent/x.toml")).unwrap_err().to_string();
        assert!(error.starts_with("/nonexistent/x.toml: No such file"), "{error}");
    }

    #[test]
    fn the_text_of_a_state_describes_it() {
        let state = Parts {
            bridges: ["br0,fail-mode=secure,datapath=userspace", "br1"].map(|s| s.parse().unwrap()).into(),
            ports: [
                "br0:br0,tag=4",
                "br0:veth0,tag=10,trunks=3+7-9,vlan-mode=native-tagged",
                "br0:i,type=internal,ofport=9",
                "br1:veth1,xdp=off",
                "br1:p,type=patch,peer=q",
                "br1:q,type=patch,peer=p",
            ]
            .map(|s| s.parse().unwrap())
            .into(),
            ..Parts::default()
        }
        .build()
        .unwrap();
        let again = read(&to_toml(&state)).unwrap().build().unwrap();
        assert_eq!(again, state, "{}", to_toml(&state));
    }
}
