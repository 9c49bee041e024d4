//! The command line.
//!
//! What it says about the switch becomes [`Parts`] of the desired state, laid over those of the configuration file. The
//! rest is about the daemon itself and fixed for its life.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Parser;
use dpif_netlink::DispatchMode;

use crate::config::{
    BridgePart, ConfigError, DatapathType, DesiredState, FileError, FlowsPart, OptionsPart, Parts, PortPart, read_toml,
};

/// A virtual switch whose datapath is eBPF
#[derive(Debug, Clone, Default, Parser)]
#[command(name = "vswitchd", version, disable_version_flag = true)]
pub struct Cli {
    /// Add a bridge; KEY is datapath, fail-mode, mac-aging-time or mac-table-size
    #[arg(long = "bridge", value_name = "NAME[,KEY=VALUE...]", help_heading = "Switch")]
    pub bridges: Vec<BridgePart>,

    /// Add a port to a bridge; KEY is tag, trunks, vlan-mode, type, peer or ofport
    #[arg(long = "port", value_name = "BRIDGE:NAME[,KEY=VALUE...]", help_heading = "Switch")]
    pub ports: Vec<PortPart>,

    /// Start a bridge with the flows of a file instead of those of its fail mode
    #[arg(long, value_name = "[BRIDGE:]FILE", help_heading = "Switch")]
    pub flows: Vec<FlowsPart>,

    /// Read bridges, ports and options from a file too
    #[arg(long, value_name = "FILE.toml", help_heading = "Switch")]
    pub config: Option<PathBuf>,

    /// Datapath of the bridges that don't say one: ebpf, userspace or netlink (the kernel's openvswitch module) [default: ebpf]
    #[arg(long, value_name = "TYPE", help_heading = "Switch")]
    pub datapath: Option<DatapathType>,

    /// The knobs of the engine.
    #[command(flatten, next_help_heading = "Engine")]
    pub options: OptionsPart,

    /// Where the BPF file system is that keeps the eBPF datapath [default: $SLUICE_BPFFS or /sys/fs/bpf]
    #[arg(long, value_name = "PATH", help_heading = "Engine")]
    pub bpffs: Option<PathBuf>,

    /// How the kernel's openvswitch module spreads packets over handlers: per-cpu, per-port or per-port-handler [default: the
    /// first that the kernel has]
    #[arg(long, value_name = "MODE", value_parser = dispatch_mode, help_heading = "Engine")]
    pub upcall_dispatch: Option<DispatchMode>,

    /// Ports of userspace bridges are queues in memory with nothing behind them: tries configurations and commands
    /// without privileges
    #[arg(long, help_heading = "Engine")]
    pub memory_ports: bool,

    /// At the end remove everything of the switch from the system, as "exit --cleanup" does
    #[arg(long, help_heading = "Daemon")]
    pub cleanup_on_exit: bool,

    /// Check the configuration and end
    #[arg(long, help_heading = "Daemon")]
    pub check: bool,

    /// Control socket, or none [default: NAME.PID.ctl in the run directory]
    #[arg(long, value_name = "PATH", help_heading = "Daemon")]
    pub unixctl: Option<PathBuf>,

    /// Write a pidfile [default: NAME.pid in the run directory, if the control socket is the default one]
    #[arg(long, value_name = "PATH", num_args = 0..=1, help_heading = "Daemon")]
    pub pidfile: Option<Option<PathBuf>>,

    /// Set logging levels: words for module, destination (syslog, console, file) and level (off, emer, err, warn,
    /// info, dbg); without SPEC everything is logged
    #[arg(
        short,
        long,
        visible_alias = "log-level",
        value_name = "SPEC",
        num_args = 0..=1,
        default_missing_value = "any",
        help_heading = "Logging"
    )]
    pub verbose: Vec<String>,

    /// Log to a file too [default: NAME.log in the log directory]
    #[arg(long, value_name = "FILE", num_args = 0..=1, help_heading = "Logging")]
    pub log_file: Option<Option<PathBuf>>,

    /// How to reach the system log: libc, unix:FILE, udp:IP:PORT or null [default: libc]
    #[arg(long, value_name = "METHOD", help_heading = "Logging")]
    pub syslog_method: Option<String>,

    /// Print version
    #[arg(short = 'V', long, help_heading = "Daemon")]
    pub version: bool,
}

/// Why the command line runs no daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Usage {
    /// Help was asked for: this is it.
    Help(String),
    /// It is wrong, in one line.
    Wrong(String),
}

/// A configuration that can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The file is wrong.
    #[error(transparent)]
    File(#[from] FileError),
    /// The whole is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

impl Cli {
    /// Reads a command line, program name first.
    ///
    /// # Errors
    /// If it asks for help or is wrong.
    pub fn read(args: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Result<Cli, Usage> {
        Cli::try_parse_from(args).map_err(|error| {
            let text = error.render().to_string();
            if !error.use_stderr() {
                return Usage::Help(text);
            }
            let line = text.lines().next().unwrap_or_default();
            Usage::Wrong(format!("{} (use --help for help)", line.strip_prefix("error: ").unwrap_or(line)))
        })
    }

    /// The desired state: what the command line says over what the file says. Reads both the file and the flow files
    /// each time.
    ///
    /// # Errors
    /// If one of them can't be read or breaks a rule.
    pub fn desired(&self) -> Result<DesiredState, LoadError> {
        let line = Parts {
            datapath_type: self.datapath,
            options: self.options.clone(),
            bridges: self.bridges.clone(),
            ports: self.ports.clone(),
            flows: self.flows.clone(),
        };
        let file = match &self.config {
            Some(path) => read_toml(path)?,
            None => Parts::default(),
        };
        Ok(line.over(file)?.build()?)
    }
}

fn dispatch_mode(text: &str) -> Result<DispatchMode, String> {
    match text {
        "per-cpu" => Ok(DispatchMode::PerCpu),
        "per-port" => Ok(DispatchMode::PerPort),
        "per-port-handler" => Ok(DispatchMode::PerPortHandler),
        _ => Err("expected per-cpu, per-port or per-port-handler".into()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn read(line: &str) -> Result<Cli, Usage> {
        Cli::read(std::iter::once("vswitchd").chain(line.split_whitespace()))
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn bridges_ports_and_knobs_become_the_desired_state() {
        let line = "--bridge br0 --port br0:a,tag=3 --port=br1:b --bridge br1,datapath=ebpf --datapath userspace \
                    --flow-limit 5 --port-flow-limit 3 --port-mask-limit 0 --mask-limit 9 --n-handlers=2 --n-revalidator-threads 3 --specialise false";
        let state = read(line).unwrap().desired().unwrap();
        assert_eq!(state.bridge("br0").unwrap().datapath_type, DatapathType::Userspace);
        assert_eq!(state.bridge("br1").unwrap().datapath_type, DatapathType::Ebpf);
        assert!(state.bridge("br1").unwrap().port("b").is_some());
        assert_eq!((state.options.flow_limit, state.options.n_handlers), (5, Some(2)));
        let caps = (state.options.port_flow_limit, state.options.port_mask_limit, state.options.mask_limit);
        assert_eq!(caps, (3, 0, 9));
        assert_eq!((state.options.n_revalidators, state.options.specialise), (Some(3), false));
    }

    #[test]
    fn the_file_lies_below_the_command_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("switch.toml");
        std::fs::write(&path, "[[bridge]]\nname = \"br0\"\n[[bridge.port]]\nname = \"a\"\n[options]\nmax-idle = 900\n")
            .unwrap();
        let line = format!("--config {} --port br0:b --max-idle 800", path.display());
        let state = read(&line).unwrap().desired().unwrap();
        assert_eq!(state.bridges[0].ports.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(state.options.max_idle, 800);
        let twice = format!("--config {} --port br0:a", path.display());
        let error = read(&twice).unwrap().desired().unwrap_err();
        assert_eq!(error.to_string(), "port a is given twice on bridge br0");
    }

    #[test]
    fn optional_values_may_be_missing() {
        for (line, verbose, log_file, pidfile) in [
            ("", &[][..], None, None),
            ("-v --log-file --pidfile", &["any"], Some(None), Some(None)),
            ("-vdbg -vvconn -vconsole:off", &["dbg", "vconn", "console:off"], None, None),
            ("-v file:dbg --verbose=off --log-level info", &["file:dbg", "off", "info"], None, None),
            ("--log-file=/l --pidfile=/p", &[], Some(Some("/l")), Some(Some("/p"))),
            ("--log-file /l --pidfile /p", &[], Some(Some("/l")), Some(Some("/p"))),
        ] {
            let cli = read(line).unwrap();
            assert_eq!(cli.verbose, verbose, "{line}");
            let path = |path: Option<Option<&str>>| path.map(|path| path.map(PathBuf::from));
            assert_eq!((cli.log_file, cli.pidfile), (path(log_file), path(pidfile)), "{line}");
        }
    }

    #[test]
    fn a_wrong_line_is_told_in_one() {
        for (line, expected) in [
            ("--bridges br0", "unexpected argument '--bridges' found (use --help for help)"),
            ("positional", "unexpected argument 'positional' found (use --help for help)"),
            (
                "--port veth0",
                "invalid value 'veth0' for '--port <BRIDGE:NAME[,KEY=VALUE...]>': expected BRIDGE:PORT[,KEY=VALUE...]",
            ),
            (
                "--port br0:a,tag=5000",
                "invalid value 'br0:a,tag=5000' for '--port <BRIDGE:NAME[,KEY=VALUE...]>': VLAN 5000",
            ),
            ("--datapath dpdk", "invalid value 'dpdk' for '--datapath <TYPE>': \"dpdk\" is not a datapath"),
            ("--bridge", "a value is required for '--bridge <NAME[,KEY=VALUE...]>' but none was supplied"),
            ("--max-idle x", "invalid value 'x' for '--max-idle <MS>': invalid digit found in string"),
        ] {
            match read(line) {
                Err(Usage::Wrong(error)) => {
                    assert!(error.starts_with(expected) && !error.contains('\n'), "{line}: {error}");
                }
                other => panic!("{line}: {other:?}"),
            }
        }
        assert!(matches!(read("--help"), Err(Usage::Help(text)) if text.contains("--bridge")));
    }
}
