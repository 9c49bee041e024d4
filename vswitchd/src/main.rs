//! The switch daemon.
//!
//! It ends with 0 if all went well, with 1 if something failed at run time, with 2 if the command line or the
//! configuration is wrong; whatever is wrong is told in one line on standard error.
#![forbid(unsafe_code)]

use std::path::Path;
use std::process::ExitCode;

use vswitchd::cli::{Cli, Usage};
use vswitchd::daemon::{self, DaemonError};
use vswitchd::reconcile::{ReconcileError, Switch, one_line};
use vswitchd::switch::{Bridges, Setup};
use vswitchd::vlog::{Syslog, Vlog};

const FAILURE: u8 = 1;
const WRONG: u8 = 2;

fn main() -> ExitCode {
    let name = std::env::args_os().next().unwrap_or_default();
    let program = Path::new(&name).file_name().map_or("vswitchd".into(), |name| name.to_string_lossy());
    match run(&program) {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, error)) => {
            eprintln!("{program}: {error}");
            ExitCode::from(code)
        }
    }
}

/// Runs the program; an error comes with the exit code it means.
fn run(program: &str) -> Result<(), (u8, String)> {
    let cli = match Cli::read(std::env::args_os()) {
        Ok(cli) => cli,
        Err(Usage::Help(text)) => {
            print!("{text}");
            return Ok(());
        }
        Err(Usage::Wrong(error)) => return Err((WRONG, error)),
    };
    if cli.version {
        println!("{}", daemon::version(program));
        return Ok(());
    }
    let desired = cli.desired().map_err(|error| (WRONG, error.to_string()))?;
    let mut switch = Bridges::new(Setup {
        bpffs: cli.bpffs.clone().unwrap_or_else(|| dpif_ebpf::Options::default().bpffs),
        memory_ports: cli.memory_ports,
        dispatch: cli.upcall_dispatch,
    });
    if cli.check {
        switch.check(&desired).map_err(|error| (WRONG, one_line(error.as_ref())))?;
        println!("the configuration is valid: {} bridges", desired.bridges.len());
        return Ok(());
    }
    let vlog = log(program, &cli).map_err(|error| (WRONG, error))?;
    daemon::run(program, &cli, &desired, &vlog, &mut switch).map_err(|error| {
        // What the switch refuses to look at is as wrong as what the rules refuse.
        let wrong = matches!(error, DaemonError::Reconcile(ReconcileError::Refused(_)));
        if !wrong {
            vlog.emergency("vswitchd", &error.to_string());
        }
        (if wrong { WRONG } else { FAILURE }, error.to_string())
    })
}

/// Installs the log as the command line says.
fn log(program: &str, cli: &Cli) -> Result<Vlog, String> {
    let environment = std::env::var("OVS_SYSLOG_METHOD").ok().filter(|method| !method.is_empty());
    let method = cli.syslog_method.clone().or(environment);
    let syslog = Syslog::new(method.as_deref().unwrap_or("libc")).map_err(|error| error.to_string())?;
    let vlog = Vlog::install(program, syslog);
    for spec in &cli.verbose {
        vlog.set(spec).map_err(|error| format!("processing \"{spec}\": {error}"))?;
    }
    Ok(vlog)
}
