//! Addresses in the lab: host N is `10.0.0.N` and `fd00::N`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The hosts' network behind the switch.
pub(super) const SWITCHED: u8 = 0;
/// The same hosts' network behind the kernel's bridge.
pub(super) const BRIDGED: u8 = 1;
/// The hosts' network on the access ports.
pub(super) const ACCESS: u8 = 10;

/// IPv4 of a host in a network, which is a /24.
pub(super) fn v4(network: u8, host: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, network, host).into()
}

/// IPv6 of a host in a network, which is a /64.
pub(super) fn v6(network: u8, host: u8) -> IpAddr {
    Ipv6Addr::new(0xfd00, 0, 0, network.into(), 0, 0, 0, host.into()).into()
}

/// Both.
pub(super) fn both(network: u8, host: u8) -> [IpAddr; 2] {
    [v4(network, host), v6(network, host)]
}
