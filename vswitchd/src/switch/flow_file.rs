//! Flow files: parsed, checked, and told where they are wrong.
//!
//! Names of ports become numbers when a file is parsed. [`Installed`] remembers which, so that a file is parsed again where one of
//! them has another number, and left alone (its counters too) where none has.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeMap;

use openflow::{FlowMod, OfPort, PortNames, parse_flow_file};

use crate::config::{BridgeConfig, FlowFile};

/// What is wrong with a flow file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct FlowFileError(String);

/// The file that a bridge has its flows of, with the numbers that names in it stood for.
pub(super) struct Installed {
    file: FlowFile,
    names: BTreeMap<String, Option<OfPort>>,
}

impl Installed {
    /// Whether `file` would come to the same flows where the ports are these.
    pub(super) fn is(&self, file: &FlowFile, ports: &BTreeMap<String, OfPort>) -> bool {
        self.names.iter().all(|(name, number)| ports.get(name) == number.as_ref()) && self.file == *file
    }
}

/// Parses a flow file. `ports` are the names that it may use.
pub(super) fn parse(
    file: &FlowFile,
    ports: &BTreeMap<String, OfPort>,
) -> Result<(Vec<FlowMod>, Installed), FlowFileError> {
    let path = file.path.display();
    let names = Asked { ports, names: RefCell::default() };
    let flows = parse_flow_file(&file.text, &names)
        .map_err(|error| FlowFileError(format!("{path}:{}:{}: {}", error.line, error.column, error.kind)))?;
    ofproto::Switch::flow_mods_check(&flows).map_err(|error| refused(file, &error))?;
    Ok((flows, Installed { file: file.clone(), names: names.names.into_inner() }))
}

/// Answers which port a name is, and keeps what was asked: also names that no port has, for one may come.
struct Asked<'a> {
    ports: &'a BTreeMap<String, OfPort>,
    names: RefCell<BTreeMap<String, Option<OfPort>>>,
}

impl PortNames for Asked<'_> {
    fn port_by_name(&self, name: &str) -> Option<OfPort> {
        let number = self.ports.get(name).copied();
        let mut names = self.names.borrow_mut();
        if !names.contains_key(name) {
            names.insert(name.into(), number);
        }
        number
    }

    fn name_of_port(&self, port: OfPort) -> Option<Cow<'_, str>> {
        self.ports.name_of_port(port)
    }
}

/// Checks the flow file of a bridge that is not there yet.
pub(super) fn check(bridge: &BridgeConfig) -> Result<(), FlowFileError> {
    match &bridge.flows {
        Some(file) => parse(file, &probable_ports(bridge)).map(drop),
        None => Ok(()),
    }
}

/// The ports of a bridge with numbers as they could be.
fn probable_ports(bridge: &BridgeConfig) -> BTreeMap<String, OfPort> {
    let taken: Vec<u16> = bridge.ports.iter().filter_map(|port| port.ofport_request).collect();
    let mut free = (1..OfPort::MAX.0).filter(|number| !taken.contains(number));
    let number = |request: Option<u16>| OfPort(request.or_else(|| free.next()).unwrap_or(OfPort::NONE.0));
    let ports = bridge.ports.iter().map(|port| port.ofport_request).map(number);
    let mut ports: BTreeMap<_, _> = bridge.ports.iter().map(|port| port.name.clone()).zip(ports).collect();
    ports.insert(bridge.name.clone(), OfPort::LOCAL);
    ports
}

/// A flow that is well-formed and can't be: the line is that of the flow with this index.
fn refused(file: &FlowFile, error: &ofproto::FlowModError) -> FlowFileError {
    let is_flow = |line: &str| !line.split('#').next().unwrap_or_default().trim().is_empty();
    let line =
        file.text.lines().enumerate().filter(|(_, line)| is_flow(line)).nth(error.index).map_or(0, |(n, _)| n + 1);
    FlowFileError(format!("{}:{line}: {}", file.path.display(), error.message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Parts;

    fn check_text(flows: &str) -> Result<(), String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("br0.flows");
        std::fs::write(&path, flows).unwrap();
        let parts = Parts {
            bridges: vec!["br0".parse().unwrap()],
            ports: ["br0:a", "br0:b,ofport=1"].map(|text| text.parse().unwrap()).into(),
            flows: vec![format!("br0:{}", path.display()).parse().unwrap()],
            ..Parts::default()
        };
        let state = parts.build().unwrap();
        let folder = format!("{}/", directory.path().display());
        check(&state.bridges[0]).map_err(|error| error.to_string().replace(&folder, ""))
    }

    #[test]
    fn ports_of_the_bridge_may_be_named() {
        assert_eq!(check_text("# a comment\nin_port=a,actions=output:b,br0\n\npriority=0 actions=NORMAL\n"), Ok(()));
        let error = check_text("in_port=c,actions=NORMAL\n").unwrap_err();
        assert!(error.starts_with("br0.flows:1:9: "), "{error}");
    }

    #[test]
    fn errors_have_a_file_a_line_and_a_column() {
        let error = check_text("actions=NORMAL\n\nip,nw_src=10.0.0.300,actions=drop\n").unwrap_err();
        assert!(error.starts_with("br0.flows:3:11: "), "{error}");
    }
}
