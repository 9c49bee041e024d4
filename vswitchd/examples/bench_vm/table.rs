//! The packets and the rules that sort them by their IPv4 destination.

use std::fmt::Write as _;

/// Ethernet addresses and others that all packets share but those that come in bursts; the kernel's generator is told the same.
pub(crate) const ETH_SRC: &str = "50:54:00:00:00:01";
pub(crate) const ETH_DST: &str = "50:54:00:00:00:02";
pub(crate) const IP_SRC: [u8; 4] = [10, 0, 0, 1];
pub(crate) const UDP_DST: u16 = 2000;
/// Bytes of a packet, without its check sequence.
pub(crate) const LEN: usize = 60;

/// Each packet with UDP ports of its own has a flow of its own.
pub(crate) const SET_UP: [u8; 4] = [10, 0, 2, 1];
/// All packets have one flow.
pub(crate) const FORWARD: [u8; 4] = [10, 0, 3, 1];
/// Likewise, of those that go on where the XDP hook can send them; the one that bursts are sent to.
pub(crate) const FORWARD_XDP: [u8; 4] = [10, 0, 0, 2];
/// The first of [`MASKS`] destinations, each of which has masks of its own.
pub(crate) const FIRST_MASK: [u8; 4] = [10, 0, 1, 0];
pub(crate) const MASKS: u16 = 50;
/// Source port of the first flow behind the masks.
pub(crate) const FIRST_PORT: u16 = 1000;

/// The rules, in the syntax of `ovs-ofctl`. What they write into registers nobody reads, but they have read where it came from.
pub(crate) fn rules() -> String {
    let mut rules = String::new();
    let mut rule = |dst: [u8; 4], actions: &str| {
        let [a, b, c, d] = dst;
        let _ = writeln!(rules, "priority=10,in_port=1,udp,nw_dst={a}.{b}.{c}.{d},actions={actions}");
    };
    rule(FORWARD, "output:2");
    rule(FORWARD_XDP, "output:3");
    const SOURCE: &str = "move:NXM_OF_UDP_SRC[]->NXM_NX_REG0[0..15],";
    rule(SET_UP, &format!("{SOURCE}move:NXM_OF_UDP_DST[]->NXM_NX_REG1[0..15],output:2"));
    for n in 0..MASKS {
        let [a, b, c, _] = FIRST_MASK;
        let (field, bit) = if n < 32 { ("NXM_OF_ETH_SRC", n) } else { ("NXM_OF_ETH_DST", n - 32) };
        rule([a, b, c, n as u8], &format!("{SOURCE}move:{field}[0..{bit}]->NXM_NX_REG1[0..{bit}],output:2"));
    }
    rules
}

/// An IPv4 packet with UDP in an Ethernet frame.
pub(crate) fn frame(dst: [u8; 4], udp_src: u16) -> [u8; LEN] {
    let mut frame = [0; LEN];
    let mut put = |at: usize, bytes: &[u8]| {
        for (to, from) in frame.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    };
    put(0, &mac(ETH_DST));
    put(6, &mac(ETH_SRC));
    put(12, &[8, 0, 0x45, 0, 0, (LEN - 14) as u8, 0, 0, 0, 0, 64, 17]);
    put(26, &IP_SRC);
    put(30, &dst);
    put(34, &udp_src.to_be_bytes());
    put(36, &UDP_DST.to_be_bytes());
    put(38, &((LEN - 34) as u16).to_be_bytes());
    let sum: u32 = frame[14..34].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

fn mac(text: &str) -> Vec<u8> {
    text.split(':').filter_map(|byte| u8::from_str_radix(byte, 16).ok()).collect()
}
