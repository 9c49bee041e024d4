//! `cargo xtask`: everything one does with this tree beyond a plain `cargo build`.
//!
//! The dispatcher only parses and hands over; each subcommand is a module of its own, and what they share (running
//! commands, setting the machine up) lies in [`cmd`] and [`setup`].
#![forbid(unsafe_code)]

mod bench;
mod build_ebpf;
mod cmd;
mod fuzz;
mod run;
mod setup;
mod test;
mod vm;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "Build, run, test and benchmark Sluice")]
struct Args {
    #[command(subcommand)]
    task: Option<Task>,
}

#[derive(Subcommand)]
enum Task {
    /// Show the switch at work: build it, send real traffic through it between network namespaces, say what happened
    Run(run::Options),
    /// Build the eBPF programs into target/bpf/, installing the toolchain they need if it is missing
    BuildEbpf(build_ebpf::Options),
    /// Run checks and tests; the last line counts what passed, failed and was skipped
    Test(test::Options),
    /// Look for inputs that crash a reader of outside bytes, or that it gets wrong, guided by coverage; exits 1 with the input
    Fuzz(fuzz::Options),
    /// Measure: a table, JSON under target/bench/, and one line per goal; without a name, list the benchmarks
    Bench(bench::Options),
    /// Run one command in a virtual machine with one of Debian's kernels and the stock openvswitch module
    Vm(vm::Options),
    /// Run the tests that need the stock openvswitch module, in virtual machines with kernels 6.1 and 6.12
    TestVm(vm::suite::Options),
}

fn main() -> ExitCode {
    let result = match Args::parse().task {
        None => Ok(Args::command().print_help().is_ok()),
        Some(Task::Run(options)) => run::run(&options),
        Some(Task::BuildEbpf(options)) => build_ebpf::run(&options).map(|_| true),
        Some(Task::Test(options)) => test::run(&options),
        Some(Task::Fuzz(options)) => fuzz::run(&options),
        Some(Task::Bench(options)) => bench::run(&options),
        Some(Task::TestVm(options)) => vm::suite::run(&options),
        Some(Task::Vm(options)) => match vm::run(&options) {
            Ok(code) => return ExitCode::from(code),
            Err(error) => Err(error),
        },
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
