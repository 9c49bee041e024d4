//! What the flows are, and what each of their programs writes.

use datapath_common::{Be16, Be32};
use dpif::{Action, FlowKey, FlowPut, HashAlg, KeyAttr, OdpPort, PutMode, SetAction, Ufid};

use crate::common::checksum;

/// Flows, each with its own UDP port.
pub(crate) const FLOWS: usize = 1024;
/// The first flows have a mask each, which comes and goes with the flow.
const LONELY: usize = 8;
/// The last flows have programs that run long, for they send copies: were a slot not to rest, it would be another flow's in the
/// middle of a run.
const SLOW: usize = 4;
/// Copies that they send to port 3.
pub(crate) const COPIES: usize = 200;

/// What a flow is in state `number`: absent (`None`), or with the program that writes this number.
pub(crate) fn state(flow: usize, number: u32) -> Option<u32> {
    // Some flows are short-lived, others are modified again and again.
    let life = if flow < LONELY { 3 } else { [3, 7, 16, 40][flow % 4] };
    (!number.is_multiple_of(life)).then_some(number)
}

/// Whether the flow's programs run long.
pub(crate) fn is_slow(flow: usize) -> bool {
    flow >= FLOWS - SLOW
}

/// A flow; every eighth time one of those whose programs run long. The flow's number is `of` modulo `modulo`.
pub(crate) fn pick(rng: &mut fastrand::Rng, of: usize, modulo: usize) -> usize {
    let from = if rng.u8(..8) == 0 { FLOWS - SLOW } else { 0 };
    from + rng.usize(..(FLOWS - from) / modulo) * modulo + of
}

pub(crate) fn ufid(flow: usize) -> Ufid {
    Ufid(((flow as u128) << 64) | (flow as u128 * 0x9e37_79b9))
}

pub(crate) fn flow_of(ufid: Ufid) -> usize {
    (ufid.0 >> 64) as usize
}

/// The packet of a flow, its checksums right.
pub(crate) fn frame(flow: usize) -> Vec<u8> {
    let len = 60 + flow % 100;
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
    let ip = (len - 14) as u16;
    frame.extend([0x45, 0]);
    frame.extend(ip.to_be_bytes());
    frame.extend([0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend([0x10, 0x01]);
    frame.extend((flow as u16).to_be_bytes());
    frame.extend((ip - 20).to_be_bytes());
    frame.extend([0, 0]);
    frame.extend((frame.len()..len).map(|i| i as u8));
    let sum = checksum(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    let sum = match udp_sum(&frame) {
        0 => 0xffff,
        sum => sum,
    };
    frame[40..42].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// The checksum of pseudo-header and datagram: 0 over a right one.
fn udp_sum(frame: &[u8]) -> u16 {
    let mut bytes = frame[26..34].to_vec();
    bytes.extend([0, 17]);
    bytes.extend(&frame[38..40]);
    bytes.extend(&frame[34..]);
    checksum(&bytes)
}

/// The flow in state `number`, in which it has a program.
pub(crate) fn put(flow: usize, number: u32, mode: PutMode) -> FlowPut {
    let (key, mask) = key(flow);
    FlowPut { mode, ufid: ufid(flow), key, mask, actions: program(flow, number).into() }
}

/// A flow whose program fits one slot.
pub(crate) fn one_slot(flow: usize) -> FlowPut {
    let (key, mask) = key(flow);
    FlowPut { mode: PutMode::Create, ufid: ufid(flow), key, mask, actions: Default::default() }
}

fn key(flow: usize) -> (FlowKey, FlowKey) {
    let (mut key, mut mask) = (FlowKey::ZERO, FlowKey::ZERO);
    (key.in_port, mask.in_port) = (1, u32::MAX);
    (key.eth_type, mask.eth_type) = (Be16::new(0x800), Be16::MAX);
    (key.ip_proto, mask.ip_proto) = (17, 0xff);
    (key.tp_dst, mask.tp_dst) = (Be16::new(flow as u16), Be16::MAX);
    key.ipv4_src = Be32::new(0x0a00_0001);
    let prefix = if flow < LONELY { 1 + flow } else { 16 + flow % 3 * 8 };
    mask.ipv4_src = Be32::new(u32::MAX << (32 - prefix));
    (key, mask)
}

/// Operations between those at the program's ends: programs that fill one slot, two, or three exactly, or not quite.
fn fillers(flow: usize, number: u32) -> usize {
    if is_slow(flow) {
        return COPIES;
    }
    if flow % 128 == 1 {
        return 1000 + number as usize % 50;
    }
    // Six other operations; a slot that goes on has room for 31.
    const ONE: usize = 32 - 6;
    let lengths = [0, 0, 1, 5, ONE, ONE + 1, 2 * 31 + 1 - 6, 2 * 31 + 2 - 6, 70];
    lengths[(flow + number as usize * 5) % lengths.len()]
}

/// Slots that the program takes.
pub(crate) fn slots(flow: usize, number: u32) -> u64 {
    match fillers(flow, number) + 6 {
        0..=32 => 1,
        ops => (ops as u64 - 2) / 31 + 1,
    }
}

/// What the program of this state writes into both Ethernet addresses.
fn signature(flow: usize, number: u32) -> [u8; 6] {
    let ([a, b], [c, d, e, f]) = ((flow as u16).to_be_bytes(), number.to_be_bytes());
    [a, b, c, d, e, f]
}

/// What it writes into the IP addresses.
fn addresses(number: u32) -> [u32; 2] {
    [number, number ^ 0x5a5a_5a5a]
}

fn set(attr: KeyAttr, fields: impl Fn(&mut FlowKey, &mut FlowKey)) -> Action {
    let (mut value, mut mask) = (FlowKey::ZERO, FlowKey::ZERO);
    fields(&mut value, &mut mask);
    Action::Set(Box::new(SetAction { attr, value, mask }))
}

fn program(flow: usize, number: u32) -> Vec<Action> {
    let signature = signature(flow, number);
    let [src, dst] = addresses(number).map(Be32::new);
    let mut actions = vec![
        set(KeyAttr::Ethernet, |v, m| (v.eth_dst, m.eth_dst) = (signature, [255; 6])),
        set(KeyAttr::Ipv4, |v, m| (v.ipv4_src, m.ipv4_src) = (src, Be32::MAX)),
    ];
    // They change nothing that is sent; what counts is that the operations behind them are this program's.
    let filler = |basis| match is_slow(flow) {
        true => Action::Output(OdpPort(3)),
        false => Action::Hash { alg: HashAlg::L4, basis },
    };
    actions.extend((0..fillers(flow, number) as u32).map(filler));
    actions.extend([
        set(KeyAttr::Ipv4, |v, m| (v.ip_tos, m.ip_tos) = (number as u8, 255)),
        set(KeyAttr::Ipv4, |v, m| (v.ipv4_dst, m.ipv4_dst) = (dst, Be32::MAX)),
        set(KeyAttr::Ethernet, |v, m| (v.eth_src, m.eth_src) = (signature, [255; 6])),
        Action::Output(OdpPort(2)),
    ]);
    actions
}

/// The packet of a flow, sent as `frame`, after the program of this state.
fn expected(flow: usize, frame: &[u8], number: u32) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let [src, dst] = addresses(number).map(u32::to_be_bytes);
    frame[..6].copy_from_slice(&signature(flow, number));
    frame[6..12].copy_from_slice(&signature(flow, number));
    frame[15] = number as u8;
    frame[26..30].copy_from_slice(&src);
    frame[30..34].copy_from_slice(&dst);
    frame[24..26].fill(0);
    let sum = checksum(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// The state whose program has run on a packet of the flow, sent as `sent`, or what is wrong with the packet.
pub(crate) fn program_of(flow: usize, sent: &[u8], packet: &[u8]) -> Result<u32, String> {
    let [a, b, number @ ..] = packet.first_chunk::<6>().ok_or("too short")?;
    let (whose, number) = (u16::from_be_bytes([*a, *b]), u32::from_be_bytes(*number));
    if usize::from(whose) != flow {
        return Err(format!("ran a program of flow {whose}"));
    }
    let mut expected = expected(flow, sent, number);
    let sum = packet.get(40..42).ok_or("too short")?;
    // Adapted step by step, so its zero may be either of the two: what counts is that it is right.
    expected[40..42].copy_from_slice(sum);
    if expected != packet {
        return Err(format!("is not what state {number} makes: {packet:02x?}, not {expected:02x?}"));
    }
    if udp_sum(packet) != 0 {
        return Err(format!("has a wrong UDP checksum after state {number}"));
    }
    Ok(number)
}
