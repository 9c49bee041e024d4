//! Network cards of the machine that `cargo xtask test-vm` boots.
//!
//! They are wired to each other: each of [`WIRES`] is a hub of the emulator with two cards, which are known by their Ethernet
//! addresses. So a test has what veth isn't: devices with a driver, which takes a frame from a ring, filters addresses and tags,
//! and has offloads to be switched off.

use std::{fs, io, time::Duration};

use crate::{Netns, wait_until};

/// The emulator's model of the card at the near end of each wire; at the far end there is one of [`VIRTIO`].
pub const WIRES: [&str; 3] = [VIRTIO, VIRTIO, VMXNET3];
/// Runs XDP programs natively.
pub const VIRTIO: &str = "virtio-net-pci";
/// Takes VLAN tags off frames, if told to; runs XDP programs natively since Linux 6.6.
pub const VMXNET3: &str = "vmxnet3";
/// The kernel's modules for them.
pub const MODULES: [&str; 2] = ["virtio_net", "vmxnet3"];

/// How long a card may take to come back, and its wire to be there.
const PATIENCE: Duration = Duration::from_secs(20);

/// One end of a wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// Where the switch is.
    Near,
    /// Where its neighbour is.
    Far,
}

/// Options with which the emulator (QEMU) has the cards.
pub fn machine_options() -> Vec<String> {
    let mut options = Vec::new();
    for (wire, near) in WIRES.into_iter().enumerate() {
        for (end, model) in [(End::Near, near), (End::Far, VIRTIO)] {
            let id = format!("w{wire}{end:?}");
            let queues = if model == VIRTIO { ",mq=on,vectors=4" } else { "" };
            options.extend(["-netdev".into(), format!("hubport,id={id},hubid={wire}")]);
            options
                .extend(["-device".into(), format!("{model},netdev={id},mac={},romfile={queues}", address(wire, end))]);
        }
    }
    options
}

/// The Ethernet address of the card at the end of a wire (an index of [`WIRES`]).
pub fn address(wire: usize, end: End) -> String {
    format!("52:54:00:c4:{wire:02x}:{:02x}", end as u8 + 1)
}

/// The card's name, if the machine has it and no other namespace does.
pub fn device(wire: usize, end: End) -> Option<String> {
    let address = address(wire, end);
    fs::read_dir("/sys/class/net").ok()?.flatten().find_map(|entry| {
        let text = fs::read_to_string(entry.path().join("address")).ok()?;
        (text.trim() == address).then(|| entry.file_name().into_string().ok())?
    })
}

/// Moves a card to a namespace, from which it comes back when that one goes; it gets this name there, an MTU of 1500, and is up.
pub fn take(wire: usize, end: End, netns: &Netns, name: &str) -> io::Result<()> {
    // The namespace of the test before may still be going.
    wait_until(PATIENCE, || device(wire, end).is_some());
    let device = device(wire, end).ok_or_else(|| io::Error::other(format!("no card {}", address(wire, end))))?;
    for words in [format!("link set {device} down"), format!("link set {device} netns {} name {name}", netns.name())] {
        crate::process::run_ok(std::process::Command::new("ip").args(words.split(' ')), PATIENCE)?;
    }
    netns.ip(&format!("link set {name} mtu 1500 up"))?;
    let is_up = || netns.ip(&format!("link show dev {name}")).is_ok_and(|text| text.contains("LOWER_UP"));
    if !wait_until(PATIENCE, is_up) {
        return Err(io::Error::other(format!("{name} ({device}) finds no wire")));
    }
    Ok(())
}
