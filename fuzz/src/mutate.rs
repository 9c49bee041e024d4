//! Changed inputs, the same in each run: what a test can afford of fuzzing.

use fastrand::Rng;

/// Bytes that mean something to a reader more often than others.
const TELLING: [u8; 12] = [0, 1, 2, 4, 0x7f, 0x80, 0xff, b'0', b'(', b')', b'/', b','];

/// Changes `bytes` in a few places; `other` lends pieces.
pub fn mutate(rng: &mut Rng, bytes: &mut Vec<u8>, other: &[u8]) {
    for _ in 0..1 << rng.u8(..4) {
        once(rng, bytes, other);
    }
}

fn once(rng: &mut Rng, bytes: &mut Vec<u8>, other: &[u8]) {
    let at = rng.usize(..=bytes.len());
    let Some(byte) = bytes.get_mut(at) else {
        bytes.push(rng.u8(..));
        return;
    };
    match rng.u8(..9) {
        0 => *byte = rng.u8(..),
        1 => *byte ^= 1 << rng.u8(..8),
        2 => *byte = byte.wrapping_add(1),
        3 => *byte = rng.choice(TELLING).unwrap_or_default(),
        4 => bytes.truncate(at),
        5 => bytes.insert(at, rng.choice(TELLING).unwrap_or_default()),
        6 => drop(bytes.drain(at..(at + rng.usize(1..9)).min(bytes.len()))),
        7 => {
            let piece: Vec<u8> = bytes.iter().skip(at).take(rng.usize(1..33)).copied().collect();
            drop(bytes.splice(at..at, piece));
        }
        _ => {
            let from = rng.usize(..=other.len());
            let piece: Vec<u8> = other.iter().skip(from).take(rng.usize(1..33)).copied().collect();
            let to = (at + piece.len()).min(bytes.len());
            drop(bytes.splice(at..to, piece));
        }
    }
}
