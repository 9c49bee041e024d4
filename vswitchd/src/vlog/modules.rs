//! What the parts of the process are called in its log.
//!
//! `tracing` names a message by where it is in the source, as `ofproto::upcall::handler`. The field's names are fewer
//! and older, and tools look for them. A message whose `target` is given by hand keeps that name if it is a single
//! word.

/// Which paths are which module; of those that match, the longest counts.
const MODULES: &[(&str, &str)] = &[
    ("coverage", "coverage"),
    ("dpif", "dpif"),
    ("dpif_ebpf", "dpif_ebpf"),
    ("dpif::inproc", "dpif_netdev"),
    ("ofproto", "ofproto"),
    ("ofproto::upcall", "ofproto_dpif_upcall"),
    ("ofproto::xlate", "ofproto_dpif_xlate"),
    ("openflow", "vconn"),
    ("vswitchd", "vswitchd"),
    ("vswitchd::config", "bridge"),
    ("vswitchd::pidfile", "daemon"),
    ("vswitchd::plan", "bridge"),
    ("vswitchd::reconcile", "bridge"),
    ("vswitchd::switch", "bridge"),
    ("vswitchd::unixctl", "unixctl"),
    ("vswitchd::vlog", "vlog"),
    // Names that are only ever given by hand.
    ("bridge", "bridge"),
    ("ofproto_dpif", "ofproto_dpif"),
];

/// The names of all modules of this program, some more than once. Those of other crates become known when they first
/// say something.
pub fn names() -> impl Iterator<Item = &'static str> {
    MODULES.iter().map(|(_, name)| *name)
}

/// The module that a message with `target` belongs to: as the table says, or the crate it comes from.
pub fn of(target: &str) -> &str {
    let holds = |path: &str| target.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"));
    let longest = MODULES.iter().filter(|(path, _)| holds(path)).max_by_key(|(path, _)| path.len());
    match longest {
        Some((_, name)) => name,
        None => target.split("::").next().unwrap_or(target),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_path_names_the_module() {
        for (target, module) in [
            ("ofproto::upcall::handler", "ofproto_dpif_upcall"),
            ("ofproto::upcalls", "ofproto"),
            ("ofproto", "ofproto"),
            ("dpif_ebpf::load", "dpif_ebpf"),
            ("dpif::inproc", "dpif_netdev"),
            ("vswitchd::unixctl::server", "unixctl"),
            ("vswitchd::daemon", "vswitchd"),
            ("aya::maps", "aya"),
            ("connmgr", "connmgr"),
        ] {
            assert_eq!(of(target), module, "{target}");
        }
    }
}
