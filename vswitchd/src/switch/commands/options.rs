//! What the arguments of `dpctl/…` commands have in common.

use std::sync::Arc;

use dpif::{OdpPort, odp};

use crate::switch::shared::Shared;

/// The options in front, and what follows them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Options<'a> {
    /// `-m`: show more.
    pub(super) more: bool,
    /// `--names` and `--no-names`; names come with `-m` unless something else is said.
    pub(super) names: bool,
    /// `-s`: show statistics.
    pub(super) statistics: bool,
    /// `--may-create`: what should be changed may be missing.
    pub(super) may_create: bool,
    /// What is no option.
    pub(super) rest: Vec<&'a str>,
}

impl<'a> Options<'a> {
    /// Reads them, wherever among the arguments they stand.
    pub(super) fn read(args: &'a [String]) -> Result<Options<'a>, String> {
        let mut options = Options::default();
        let mut names = None;
        for arg in args.iter().map(String::as_str) {
            match arg {
                "-m" | "--more" => options.more = true,
                "--names" => names = Some(true),
                "--no-names" => names = Some(false),
                "-s" | "--statistics" => options.statistics = true,
                "--may-create" => options.may_create = true,
                _ if arg.starts_with('-') => return Err(format!("unrecognized option '{arg}'")),
                _ => options.rest.push(arg),
            }
        }
        options.names = names.unwrap_or(options.more);
        Ok(options)
    }

    /// Takes the datapath that is named in front of `others` further arguments, or else the only one.
    pub(super) fn datapath(&mut self, shared: &Shared, others: usize) -> Result<Arc<ofproto::Switch>, String> {
        match self.rest.len() {
            n if n == others => only(shared),
            n if n == others + 1 => find(shared, self.rest.remove(0)),
            n if n < others => Err("too few arguments".into()),
            _ => Err(format!("unexpected argument \"{}\"", self.rest.last().unwrap_or(&""))),
        }
    }

    /// How flows of a datapath are written.
    pub(super) fn style<'b>(&self, switch: &ofproto::Switch, names: odp::PortNames<'b>) -> odp::Style<'b> {
        let names = names.filter(|_| self.names);
        odp::Style { names, verbose: self.more, packet_type: switch.dpif().datapath_type() == "netdev" }
    }
}

/// The datapath called `TYPE@NAME`, or `NAME` of type `system`.
pub(super) fn find(shared: &Shared, given: &str) -> Result<Arc<ofproto::Switch>, String> {
    let full = if given.contains('@') { given.to_owned() } else { format!("system@{given}") };
    let found = shared.switches().into_iter().find(|switch| switch.dpif_name() == full);
    found.ok_or_else(|| format!("opening datapath {given} failed (No such device)"))
}

fn only(shared: &Shared) -> Result<Arc<ofproto::Switch>, String> {
    let mut switches = shared.switches();
    match (switches.pop(), switches.is_empty()) {
        (None, _) => Err("no datapaths exist".into()),
        (Some(_), false) => Err("multiple datapaths, specify one".into()),
        (Some(switch), true) => Ok(switch),
    }
}

/// The names of a datapath's ports as they are now.
pub(super) fn port_names(switch: &ofproto::Switch) -> impl Fn(OdpPort) -> Option<String> + use<> {
    let ports = switch.dpif().ports().unwrap_or_default();
    move |number| ports.iter().find(|port| port.port == number).map(|port| port.name.clone())
}

/// The numbers of a datapath's ports as they are now.
pub(super) fn port_numbers(switch: &ofproto::Switch) -> impl Fn(&str) -> Option<OdpPort> + use<> {
    let ports = switch.dpif().ports().unwrap_or_default();
    move |name| ports.iter().find(|port| port.name == name).map(|port| port.port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_with_more_unless_something_else_is_said() {
        for (line, more, names) in [
            ("", false, false),
            ("-m", true, true),
            ("--more --no-names", true, false),
            ("--no-names -m", true, false),
            ("--names", false, true),
        ] {
            let args: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            let options = Options::read(&args).unwrap();
            assert_eq!((options.more, options.names), (more, names), "{line}");
        }
        let args = ["-x".to_owned()];
        assert_eq!(Options::read(&args), Err("unrecognized option '-x'".to_owned()));
    }
}
