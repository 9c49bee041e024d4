//! The texts of `--bridge`, `--port` and `--flows`.
//!
//! ```text
//! --bridge NAME[,datapath=ebpf|userspace][,fail-mode=standalone|secure][,mac-aging-time=S][,mac-table-size=N]
//! --port   BRIDGE:NAME[,type=system|internal|patch][,peer=NAME][,tag=VLAN][,trunks=VLANS][,vlan-mode=MODE][,ofport=N]
//!          [,xdp=auto|native|generic|off]
//! --flows  [BRIDGE:]FILE
//! ```

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;

use super::{BridgePart, FlowsPart, PortKind, PortPart, PortVlan, UnknownName, VlanError, VlanSet};

/// Why a text describes no part.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpecError {
    /// A port without a bridge.
    #[error("expected BRIDGE:PORT[,KEY=VALUE...]")]
    NoBridge,
    /// No name where one must be.
    #[error("the {0} has no name")]
    NoName(&'static str),
    /// Something between commas that is not `key=value`.
    #[error("{0:?} is not KEY=VALUE")]
    NotKeyValue(String),
    /// A key that means nothing here.
    #[error("unknown key {key:?}: expected one of {expected}")]
    UnknownKey {
        /// The key.
        key: String,
        /// Those that mean something.
        expected: String,
    },
    /// A key given twice.
    #[error("{0} is given twice")]
    Duplicate(String),
    /// A number that is none, or out of range.
    #[error("{key}={value}: expected a number from 0 to {max}")]
    Number {
        /// The key.
        key: String,
        /// What was given.
        value: String,
        /// The largest number it can be.
        max: u64,
    },
    /// A bad VLAN.
    #[error(transparent)]
    Vlan(#[from] VlanError),
    /// A name that means nothing.
    #[error(transparent)]
    Name(#[from] UnknownName),
    /// A kind of port that the switch doesn't have.
    #[error("port type {0} is not supported: use system, internal or patch")]
    UnsupportedType(String),
    /// No XDP mode.
    #[error("{0}")]
    Xdp(String),
    /// A patch port that leads nowhere.
    #[error("a port of type patch needs peer=PORT")]
    NoPeer,
    /// A peer of a port that can't have one.
    #[error("peer={0} needs type=patch")]
    PeerWithoutPatch(String),
}

impl FromStr for BridgePart {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<BridgePart, SpecError> {
        let (name, rest) = head(text, "bridge")?;
        let mut keys = Keys::parse(rest, &["datapath", "fail-mode", "mac-aging-time", "mac-table-size"])?;
        Ok(BridgePart {
            name,
            datapath_type: keys.take("datapath").map(|text| text.parse()).transpose()?,
            fail_mode: keys.take("fail-mode").map(|text| text.parse()).transpose()?,
            mac_aging_time: keys.number("mac-aging-time", u32::MAX)?,
            mac_table_size: keys.number("mac-table-size", u32::MAX)?,
        })
    }
}

impl FromStr for PortPart {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<PortPart, SpecError> {
        let (bridge, port) = text.split_once(':').ok_or(SpecError::NoBridge)?;
        if bridge.is_empty() {
            return Err(SpecError::NoName("bridge"));
        }
        let (name, rest) = head(port, "port")?;
        let mut keys = Keys::parse(rest, &["type", "peer", "tag", "trunks", "vlan-mode", "ofport", "xdp"])?;
        Ok(PortPart {
            bridge: bridge.to_owned(),
            name,
            kind: kind(keys.take("type"), keys.take("peer"))?,
            vlan: PortVlan {
                tag: keys.take("tag").map(|text| text.parse()).transpose()?,
                trunks: keys.take("trunks").map_or(Ok(VlanSet::default()), |text| text.parse())?,
                mode: keys.take("vlan-mode").map(|text| text.parse()).transpose()?,
            },
            ofport_request: keys.number("ofport", u16::MAX)?,
            xdp: keys.take("xdp").map(|text| text.parse()).transpose().map_err(SpecError::Xdp)?,
        })
    }
}

impl FromStr for FlowsPart {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<FlowsPart, SpecError> {
        // What stands before a colon is a bridge unless it is the beginning of a path.
        let (bridge, path) = match text.split_once(':') {
            Some((bridge, path)) if !bridge.contains('/') => (Some(bridge), path),
            _ => (None, text),
        };
        match (bridge, path) {
            (Some(""), _) => Err(SpecError::NoName("bridge")),
            (_, "") => Err(SpecError::NoName("file")),
            (bridge, path) => Ok(FlowsPart { bridge: bridge.map(str::to_owned), path: PathBuf::from(path) }),
        }
    }
}

/// The kind of a port from its type and its peer, as far as they were said.
pub(super) fn kind(kind: Option<String>, peer: Option<String>) -> Result<Option<PortKind>, SpecError> {
    match (kind.as_deref(), peer) {
        (Some("patch"), Some(peer)) => Ok(Some(PortKind::Patch { peer })),
        (Some("patch"), None) => Err(SpecError::NoPeer),
        (_, Some(peer)) => Err(SpecError::PeerWithoutPatch(peer)),
        (None, None) => Ok(None),
        (Some("system"), None) => Ok(Some(PortKind::System)),
        (Some("internal"), None) => Ok(Some(PortKind::Internal)),
        (Some(other), None) => Err(SpecError::UnsupportedType(other.to_owned())),
    }
}

/// Splits the name before the first comma from the rest.
fn head<'a>(text: &'a str, what: &'static str) -> Result<(String, Option<&'a str>), SpecError> {
    let (name, rest) = match text.split_once(',') {
        Some((name, rest)) => (name, Some(rest)),
        None => (text, None),
    };
    if name.is_empty() {
        return Err(SpecError::NoName(what));
    }
    Ok((name.to_owned(), rest))
}

/// The `key=value`s of a text, each to be taken once.
struct Keys(BTreeMap<String, String>);

impl Keys {
    fn parse(text: Option<&str>, known: &[&str]) -> Result<Keys, SpecError> {
        let mut keys = BTreeMap::new();
        for pair in text.into_iter().flat_map(|text| text.split(',')) {
            let (key, value) = pair.split_once('=').ok_or_else(|| SpecError::NotKeyValue(pair.to_owned()))?;
            if !known.contains(&key) {
                return Err(SpecError::UnknownKey { key: key.to_owned(), expected: known.join(", ") });
            }
            if keys.insert(key.to_owned(), value.to_owned()).is_some() {
                return Err(SpecError::Duplicate(key.to_owned()));
            }
        }
        Ok(Keys(keys))
    }

    fn take(&mut self, key: &str) -> Option<String> {
        self.0.remove(key)
    }

    fn number<T: FromStr + Into<u64>>(&mut self, key: &str, max: T) -> Result<Option<T>, SpecError> {
        let Some(value) = self.take(key) else { return Ok(None) };
        match value.parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(SpecError::Number { key: key.to_owned(), value, max: max.into() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{DatapathType, FailMode, VlanMode};

    #[test]
    fn a_port_is_read_with_all_it_can_say() {
        let port: PortPart = "br0:veth0,tag=10,trunks=1-3+7,vlan-mode=native-tagged,ofport=5".parse().unwrap();
        assert_eq!((port.bridge.as_str(), port.name.as_str()), ("br0", "veth0"));
        assert_eq!((port.kind, port.ofport_request), (None, Some(5)));
        assert_eq!(port.vlan.tag.map(|tag| tag.get()), Some(10));
        assert_eq!(port.vlan.trunks.to_string(), "1-3+7");
        assert_eq!(port.vlan.mode, Some(VlanMode::NativeTagged));
        for (text, kind) in [
            ("br0:p", None),
            ("br0:p,type=system", Some(PortKind::System)),
            ("br0:p,type=internal", Some(PortKind::Internal)),
            ("br0:p,type=patch,peer=q", Some(PortKind::Patch { peer: "q".to_owned() })),
            ("br0:p,peer=q,type=patch", Some(PortKind::Patch { peer: "q".to_owned() })),
        ] {
            assert_eq!(text.parse::<PortPart>().unwrap().kind, kind, "{text}");
        }
    }

    #[test]
    fn a_bridge_is_read_with_all_it_can_say() {
        let text = "br0,datapath=netdev,fail-mode=secure,mac-aging-time=60,mac-table-size=100";
        let bridge: BridgePart = text.parse().unwrap();
        let expected = BridgePart {
            name: "br0".to_owned(),
            datapath_type: Some(DatapathType::Userspace),
            fail_mode: Some(FailMode::Secure),
            mac_aging_time: Some(60),
            mac_table_size: Some(100),
        };
        assert_eq!(bridge, expected);
    }

    #[test]
    fn a_colon_in_a_flow_file_is_told_from_a_bridge() {
        for (text, bridge, path) in [
            ("flows.txt", None, "flows.txt"),
            ("br0:flows.txt", Some("br0"), "flows.txt"),
            ("br0:/etc/a:b", Some("br0"), "/etc/a:b"),
            ("/etc/a:b", None, "/etc/a:b"),
            ("./a:b", None, "./a:b"),
        ] {
            let part: FlowsPart = text.parse().unwrap();
            assert_eq!((part.bridge.as_deref(), part.path), (bridge, PathBuf::from(path)), "{text}");
        }
        for bad in ["", "br0:", ":x"] {
            assert!(bad.parse::<FlowsPart>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_bad_text_is_refused_with_its_reason() {
        for (text, reason) in [
            ("veth0", "expected BRIDGE:PORT"),
            (":veth0", "the bridge has no name"),
            ("br0:", "the port has no name"),
            ("br0:,tag=1", "the port has no name"),
            ("br0:p,", r#""" is not KEY=VALUE"#),
            ("br0:p,tag", r#""tag" is not KEY=VALUE"#),
            ("br0:p,vlan=3", r#"unknown key "vlan": expected one of type, peer, tag"#),
            ("br0:p,tag=1,tag=2", "tag is given twice"),
            ("br0:p,tag=4096", "VLAN 4096 is out of range: it must be 0 to 4095"),
            ("br0:p,tag=", r#""" is not a VLAN"#),
            ("br0:p,trunks=", "no VLAN given"),
            ("br0:p,xdp=fast", "\"fast\" is no XDP mode: auto, native, generic and off are"),
            ("br0:p,ofport=70000", "ofport=70000: expected a number from 0 to 65535"),
            ("br0:p,ofport=-1", "ofport=-1: expected a number"),
            ("br0:p,type=vxlan", "port type vxlan is not supported"),
            ("br0:p,type=patch", "a port of type patch needs peer=PORT"),
            ("br0:p,peer=q", "peer=q needs type=patch"),
            ("br0:p,type=internal,peer=q", "peer=q needs type=patch"),
            ("br0:p,vlan-mode=dot1q-tunnel", "VLAN mode dot1q-tunnel is not supported"),
        ] {
            let error = text.parse::<PortPart>().unwrap_err().to_string();
            assert!(error.starts_with(reason), "{text}: {error}");
        }
        for (text, reason) in [
            ("", "the bridge has no name"),
            ("br0,datapath=dpdk", r#""dpdk" is not a datapath"#),
            ("br0,fail-mode=open", r#""open" is not a fail mode"#),
            ("br0,mac-aging-time=5000000000", "mac-aging-time=5000000000: expected a number from 0 to 4294967295"),
        ] {
            let error = text.parse::<BridgePart>().unwrap_err().to_string();
            assert!(error.starts_with(reason), "{text}: {error}");
        }
    }
}
