//! Instructions per new flow and per forwarded packet: `cargo xtask bench vm`.
//!
//! Runs in the virtual machine that the command boots, under a clock that counts instructions (`meter`). Three switches take
//! turns on the same devices: the reference's daemon and ours, both on the kernel's `openvswitch` module, and ours on eBPF. What
//! it costs to bring a packet to the switch is measured by the same packets with a program that drops them where the switch
//! would begin, and taken off.
//!
//! Arguments: the path of our daemon; `small` for fewer packets, or `whole`; and, where not all is wanted, the switches
//! (`reference`, `netlink`, `ebpf`) and parts (`set-up`, `forward`, `masks`) that are.

#[cfg(target_arch = "x86_64")]
mod limits;
#[cfg(target_arch = "x86_64")]
mod measure;
#[cfg(target_arch = "x86_64")]
mod meter;
#[cfg(target_arch = "x86_64")]
mod pktgen;
#[cfg(target_arch = "x86_64")]
mod sender;
#[cfg(target_arch = "x86_64")]
mod switches;
#[cfg(target_arch = "x86_64")]
mod table;

fn main() {
    #[cfg(target_arch = "x86_64")]
    match measure::run() {
        Ok(results) => results.print(),
        Err(error) => {
            eprintln!("can't measure: {error}");
            std::process::exit(1);
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        eprintln!("can't measure: the virtual machine is an x86_64 one");
        std::process::exit(1);
    }
}
