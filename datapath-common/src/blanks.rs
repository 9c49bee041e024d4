//! What the programs leave open until they are loaded: numbers and addresses that are in their code then.
//!
//! A global that the loader sets costs a load where it is read, and an element of an array a call's worth of instructions. A number in
//! the code costs nothing. So an object has *blanks* in such places, instructions with values that nothing else has, and whoever loads it
//! fills them in first ([`Filling::fill`]):
//!
//! | blank | filled in |
//! | --- | --- |
//! | question: a jump for a yes, or for a no | a jump that is always taken, or never; the verifier takes it out |
//! | bound: a mask of numbers of elements | that of those that there are |
//! | address: a constant of 64 bits | the value of a map that has one ([`Direct`]) |
//! | value: a constant | the constant |

#[cfg(any(test, feature = "user"))]
use crate::needs;

/// What all blanks have in common: their values are this plus something below 256.
const BLANK: u32 = 0x5e4e_ed00;
/// Question whether one of some needs is served: this plus their bits. A number that is compared with it is below for a no.
pub const SERVES: u32 = BLANK;
/// Question whether CPUs share lanes.
pub const SHARED: u32 = BLANK + 0x80;
/// Bound of direct map `i`: this plus `i`.
pub const BOUND: u32 = BLANK + 0x90;
/// Address of direct map `i`, in either half: this plus `i`.
pub const ADDRESS: u32 = BLANK + 0xa0;
/// The bits that a flow's needs must not have, and [`crate::needs::FITS`].
pub const UNSERVED: u32 = BLANK + 0xb0;
/// All that a specialised program serves, and [`crate::needs::FITS`].
pub const SERVED: u32 = BLANK + 0xb1;
/// Slots of the datapath.
pub const SLOTS: u32 = BLANK + 0xb2;
/// Datapath port of a port entry.
pub const PORT: u32 = BLANK + 0xb3;

/// Maps whose elements are all in one value, so that programs reach them without a call: that value's address is in their code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Direct {
    /// `LANE`.
    Lane = 0,
    /// `HOT_SLOTS`.
    HotSlots = 1,
    /// `PORTS`.
    Ports = 2,
}

/// How many there are.
pub const DIRECT: usize = 3;

/// What is filled in.
#[derive(Clone, Copy, Debug)]
pub struct Filling {
    /// What specialised programs serve ([`crate::needs`]).
    pub serves: u16,
    /// Whether CPUs share lanes.
    pub shared: bool,
    /// Slots of the datapath.
    pub slots: u32,
    /// Datapath port of a port entry.
    pub port: u32,
    /// Of each direct map a descriptor, and how many of its elements programs reach: a power of two.
    pub maps: [(i32, u32); DIRECT],
}

#[cfg(any(test, feature = "user"))]
impl Filling {
    /// Fills in an object file, and says how many blanks there were. `None`: none, or one is left that nobody knows.
    pub fn fill(&self, object: &mut [u8]) -> Option<usize> {
        // `linux/bpf.h`: eight bytes, of which the last four are the value. `BPF_ALU | BPF_MOV | BPF_K` with 32 and with 64 bits,
        const MOVES: [u8; 2] = [0xb4, 0xb7];
        // `BPF_JMP | BPF_JLT | BPF_K`, `BPF_JMP | BPF_JGE | BPF_K`: no number is below 0,
        const NEVER: u8 = 0xa5;
        const ALWAYS: u8 = 0x35;
        // `BPF_ALU64 | BPF_AND | BPF_K`,
        const AND: u8 = 0x57;
        // `BPF_LD | BPF_IMM | BPF_DW`: the upper half is in a second instruction,
        const LOAD_64: u8 = 0x18;
        // and `BPF_PSEUDO_MAP_VALUE`, where the source register would be.
        const MAP_VALUE: u8 = 2 << 4;

        let (insns, _) = object.as_chunks_mut::<8>();
        let mut filled = 0;
        let mut at = 0;
        while let Some([code, registers, o0, o1, v0, v1, v2, v3]) = insns.get(at).copied() {
            let value = u32::from_le_bytes([v0, v1, v2, v3]);
            let with = |code: u8, registers: u8, [o0, o1]: [u8; 2], value: u32| {
                let [v0, v1, v2, v3] = value.to_le_bytes();
                [code, registers, o0, o1, v0, v1, v2, v3]
            };
            let map = |first: u32| self.maps.get(value.wrapping_sub(first) as usize).copied();
            let new = match code {
                NEVER => self.serves(value).map(|yes| with(if yes { NEVER } else { ALWAYS }, registers, [o0, o1], 0)),
                ALWAYS => self.serves(value).map(|yes| with(if yes { ALWAYS } else { NEVER }, registers, [o0, o1], 0)),
                AND => map(BOUND).map(|(_, len)| with(code, registers, [0, 0], len.wrapping_sub(1))),
                _ if MOVES.contains(&code) && [o0, o1] == [0, 0] => {
                    self.value(value).map(|value| with(code, registers, [0, 0], value))
                }
                LOAD_64 if insns.get(at + 1) == Some(&with(0, 0, [0, 0], value)) => map(ADDRESS).map(|(fd, _)| {
                    if let Some(upper) = insns.get_mut(at + 1) {
                        // The offset in the value.
                        *upper = [0; 8];
                    }
                    with(code, registers | MAP_VALUE, [0, 0], fd.cast_unsigned())
                }),
                _ => None,
            };
            match (new, insns.get_mut(at)) {
                (Some(new), Some(insn)) => {
                    *insn = new;
                    filled += 1;
                }
                _ if value.wrapping_sub(BLANK) < 256 => return None,
                _ => {}
            }
            at += 1;
        }
        if filled == 0 { None } else { Some(filled) }
    }

    fn serves(&self, question: u32) -> Option<bool> {
        let needs = question.wrapping_sub(SERVES);
        (needs != 0 && needs <= needs::ALL.into()).then(|| u32::from(self.serves) & needs != 0)
    }

    fn value(&self, blank: u32) -> Option<u32> {
        match blank {
            SHARED => Some(self.shared.into()),
            UNSERVED => Some(needs::unserved(self.serves).into()),
            SERVED => Some((needs::FITS | self.serves).into()),
            SLOTS => Some(self.slots),
            PORT => Some(self.port),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::needs::{ALL, DROP, FITS, IP, L4};
    use std::vec::Vec;

    const FILLING: Filling =
        Filling { serves: IP | DROP, shared: false, slots: 4096, port: 7, maps: [(11, 4), (12, 4096), (13, 0x1000)] };

    fn insn(code: u8, registers: u8, off: u8, value: u32) -> [u8; 8] {
        let [a, b, c, d] = value.to_le_bytes();
        [code, registers, off, 0, a, b, c, d]
    }

    #[test]
    fn every_kind_of_blank_is_filled_in() {
        let cases = [
            (insn(0xa5, 3, 9, SERVES + u32::from(IP)), insn(0xa5, 3, 9, 0)),
            (insn(0xa5, 3, 9, SERVES + u32::from(IP | L4)), insn(0xa5, 3, 9, 0)),
            (insn(0xa5, 3, 9, SERVES + u32::from(L4)), insn(0x35, 3, 9, 0)),
            (insn(0x35, 3, 9, SERVES + u32::from(IP)), insn(0x35, 3, 9, 0)),
            (insn(0x35, 3, 9, SERVES + u32::from(L4)), insn(0xa5, 3, 9, 0)),
            (insn(0xb4, 4, 0, SHARED), insn(0xb4, 4, 0, 0)),
            (insn(0x57, 4, 0, BOUND + 1), insn(0x57, 4, 0, 4095)),
            (insn(0xb4, 1, 0, UNSERVED), insn(0xb4, 1, 0, (FITS | (ALL & !(IP | DROP))).into())),
            (insn(0xb7, 1, 0, SERVED), insn(0xb7, 1, 0, (FITS | IP | DROP).into())),
            (insn(0xb4, 1, 0, SLOTS), insn(0xb4, 1, 0, 4096)),
            (insn(0xb7, 1, 0, PORT), insn(0xb7, 1, 0, 7)),
        ];
        let mut object: Vec<u8> = cases.iter().flat_map(|(blank, _)| *blank).collect();
        let filled: Vec<u8> = cases.iter().flat_map(|(_, filled)| *filled).collect();
        assert_eq!((FILLING.fill(&mut object), object), (Some(cases.len()), filled));

        let mut object = [insn(0x18, 2, 0, ADDRESS + 2), insn(0, 0, 0, ADDRESS + 2)].concat();
        assert_eq!(FILLING.fill(&mut object), Some(1));
        assert_eq!(object, [insn(0x18, 0x22, 0, 13), insn(0, 0, 0, 0)].concat());
    }

    #[test]
    fn a_blank_that_nobody_knows_is_an_error() {
        let good = insn(0xb4, 1, 0, SLOTS);
        let strange: [&[[u8; 8]]; 10] = [
            &[insn(0x18, 0, 0, SERVES)],
            &[insn(0xb7, 1, 1, SLOTS)],
            &[insn(0xb7, 1, 0, SERVES)],
            &[insn(0xa5, 1, 3, SERVES)],
            &[insn(0xa5, 1, 3, SLOTS)],
            &[insn(0x57, 1, 0, BOUND + DIRECT as u32)],
            &[insn(0x57, 1, 0, BOUND - 1)],
            // Half an address.
            &[insn(0x18, 1, 0, ADDRESS), insn(0, 0, 0, ADDRESS + 1)],
            &[insn(0xb7, 1, 0, BLANK)],
            &[insn(0xb7, 1, 0, BLANK + 255)],
        ];
        for strange in strange {
            let mut object = [&good[..], &strange.concat()].concat();
            assert_eq!(FILLING.fill(&mut object), None, "{strange:x?}");
        }
    }

    #[test]
    fn what_is_no_blank_stays() {
        // Other values, and no whole instruction.
        let others = [insn(0xb7, 1, 0, BLANK - 1), insn(0xa5, 1, 3, BLANK + 256), insn(0x57, 1, 0, 7)].concat();
        let mut object = [&insn(0xb4, 1, 0, SLOTS)[..], &others, &insn(0xb7, 0, 0, SLOTS)[..7]].concat();
        let behind = object[8..].to_vec();
        assert_eq!(FILLING.fill(&mut object), Some(1));
        assert_eq!(object[8..], behind);
        let before = others.clone();
        let mut others = others;
        assert_eq!((FILLING.fill(&mut others), others), (None, before));
    }
}
