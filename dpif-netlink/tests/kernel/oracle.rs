//! Frames that nobody would send, for the module's extraction and ours to agree about.

use fastrand::Rng;

use crate::rig;

/// Ethernet types whose packets are looked into.
const TYPES: [u16; 10] = [0x0800, 0x86dd, 0x0806, 0x8035, 0x8100, 0x88a8, 0x8847, 0x8848, 0x894f, 0x05dc];
/// IP protocols likewise, with IPv6's extension headers.
const PROTOCOLS: [u8; 13] = [0, 1, 6, 17, 43, 44, 50, 51, 58, 59, 60, 132, 255];

/// A frame of one of the kinds that there are, and what chance makes of it: bytes changed, cut, longer, tagged, other types.
pub(crate) fn frame(rng: &mut Rng, kinds: &[Vec<u8>]) -> Vec<u8> {
    let mut frame = kinds.get(rng.usize(..kinds.len())).cloned().unwrap_or_else(|| rig::udp_frame(1));
    for _ in 0..rng.usize(0..4) {
        match rng.u8(0..7) {
            0 => frame.truncate(rng.usize(14..=frame.len())),
            1 => frame.extend((0..rng.usize(0..64)).map(|_| rng.u8(..))),
            2 => {
                let tag: [u8; 4] = [if rng.bool() { 0x81 } else { 0x88 }, 0, rng.u8(..), rng.u8(..)];
                let tag = if tag[0] == 0x88 { [0x88, 0xa8, tag[2], tag[3]] } else { tag };
                frame.splice(12..12, tag);
            }
            3 => {
                let kind = TYPES[rng.usize(..TYPES.len())].to_be_bytes();
                frame[12..14].copy_from_slice(&kind);
            }
            4 => {
                // Where IPv4 and IPv6 have their protocol.
                let at = *rng.choice([20, 23, 54].iter()).unwrap_or(&23);
                if let Some(byte) = frame.get_mut(at) {
                    *byte = PROTOCOLS[rng.usize(..PROTOCOLS.len())];
                }
            }
            _ => {
                let at = rng.usize(12..frame.len().max(13));
                if let Some(byte) = frame.get_mut(at) {
                    *byte = if rng.bool() { rng.u8(..) } else { *byte ^ 1 << rng.u8(0..8) };
                }
            }
        }
    }
    frame
}
