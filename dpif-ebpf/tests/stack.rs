//! How much stack the programs take, by the rules of the oldest kernel that is to load them.
//!
//! The frames of all functions that run inside each other share 512 bytes. Linux counts each in steps of 32 bytes until 6.8, in steps of
//! 16 since; so a program may pass the verifier here and not there.

use std::collections::HashMap;

use object::read::elf::ElfFile64;
use object::{Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SectionIndex, SymbolKind};

/// `MAX_BPF_STACK` (`linux/filter.h`).
const STACK: u64 = 512;
const STEP: u64 = 32;
/// `MAX_CALL_FRAMES` (`linux/bpf_verifier.h`).
const FRAMES: usize = 8;
/// The register that points to a function's frame.
const FRAME_POINTER: u8 = 10;

/// Where a function begins.
type Place = (SectionIndex, u64);

/// A function of an object.
struct Function {
    name: String,
    /// Bytes of its frame that it uses.
    stack: u64,
    /// Functions that it calls, or has called.
    calls: Vec<Place>,
}

/// One instruction (`struct bpf_insn` in `linux/bpf.h`).
struct Insn {
    code: u8,
    dst: u8,
    src: u8,
    off: i16,
    imm: i32,
}

impl Insn {
    fn of(bytes: &[u8; 8]) -> Self {
        let [code, registers, off @ .., i0, i1, i2, i3] = *bytes;
        Self {
            code,
            dst: registers & 0xf,
            src: registers >> 4,
            off: i16::from_le_bytes(off),
            imm: i32::from_le_bytes([i0, i1, i2, i3]),
        }
    }

    /// How deep into the frame it reaches, if it reads or writes there.
    fn reaches(&self) -> u64 {
        let base = match self.code & 7 {
            // `BPF_LDX`; `BPF_ST`, `BPF_STX`.
            1 => self.src,
            2 | 3 => self.dst,
            _ => return 0,
        };
        if base == FRAME_POINTER { depth(self.off.into()) } else { 0 }
    }
}

fn depth(offset: i64) -> u64 {
    u64::try_from(-offset).unwrap_or(0)
}

/// All functions of an object.
fn functions(object: &[u8]) -> HashMap<Place, Function> {
    const LOAD_64: u8 = 0x18;
    const CALL: u8 = 0x85;
    const CALLS_FUNCTION: u8 = 1;
    const MOVE: u8 = 0xbf;
    const ADD: u8 = 0x07;

    let file = ElfFile64::<object::Endianness>::parse(object).expect("an object");
    let place_of = |target: RelocationTarget| -> Option<Place> {
        let RelocationTarget::Symbol(symbol) = target else { return None };
        let symbol = file.symbol_by_index(symbol).ok()?;
        Some((symbol.section_index()?, symbol.address()))
    };
    let is_function =
        |symbol: &object::read::elf::ElfSymbol64<'_, '_>| symbol.kind() == SymbolKind::Text && symbol.size() > 0;
    let mut functions = HashMap::new();
    for symbol in file.symbols().filter(is_function) {
        let index = symbol.section_index().expect("a section");
        let section = file.section_by_index(index).expect("a section");
        let relocations: HashMap<u64, RelocationTarget> =
            section.relocations().map(|(at, relocation)| (at, relocation.target())).collect();
        let code = section.data_range(symbol.address(), symbol.size()).expect("data").expect("a function's code");
        let (mut stack, mut calls, mut frame_in) = (0, Vec::new(), None);
        let mut ats = (symbol.address()..).step_by(8).zip(code.as_chunks().0);
        while let Some((at, bytes)) = ats.next() {
            let insn = Insn::of(bytes);
            stack = stack.max(insn.reaches());
            // A pointer into the frame, for a helper.
            if insn.code == ADD && frame_in == Some(insn.dst) {
                stack = stack.max(depth(insn.imm.into()));
            }
            frame_in = (insn.code == MOVE && insn.src == FRAME_POINTER).then_some(insn.dst);
            let target = relocations.get(&at).copied().map(place_of);
            let offset = i64::from(insn.imm);
            match (insn.code, target) {
                // Instructions from the next one on, from the relocation's place.
                (CALL, Some(target)) if insn.src == CALLS_FUNCTION => {
                    calls.extend(target.map(|(section, base)| (section, base.wrapping_add_signed(8 * (offset + 1)))));
                }
                (CALL, None) if insn.src == CALLS_FUNCTION => {
                    calls.push((index, at.wrapping_add_signed(8 * (offset + 1))));
                }
                (LOAD_64, target) => {
                    // A function that a helper calls, or something else.
                    calls.extend(target.flatten().map(|(section, base)| (section, base.wrapping_add_signed(offset))));
                    ats.next();
                }
                _ => {}
            }
        }
        let name = symbol.name().expect("a name").to_owned();
        functions.insert((index, symbol.address()), Function { name, stack, calls });
    }
    functions
}

/// The chain of calls from a function that takes the most stack, and how much that is.
fn deepest(functions: &HashMap<Place, Function>, from: Place) -> (u64, Vec<&Function>) {
    let Some(function) = functions.get(&from) else { return (0, Vec::new()) };
    let below = function.calls.iter().map(|place| deepest(functions, *place)).max_by_key(|below| below.0);
    let (below, mut chain) = below.unwrap_or_default();
    chain.push(function);
    (below + function.stack.max(1).next_multiple_of(STEP), chain)
}

#[test]
fn the_programs_stack_is_small_enough_for_older_kernels() {
    testkit::require!("the_programs_stack_is_small_enough_for_older_kernels"; testkit::Need::EbpfObject);
    let mut programs = 0;
    for object in ["tc.o", "port-entry.o"] {
        let object = std::fs::read(testkit::workspace_root().join("target/bpf").join(object)).expect("the object");
        let functions = functions(&object);
        let called: Vec<_> = functions.values().flat_map(|function| &function.calls).collect();
        for place in functions.keys().filter(|place| !called.contains(place)) {
            let (stack, chain) = deepest(&functions, *place);
            let shown = || chain.iter().rev().map(|f| format!("{} {}", f.name, f.stack)).collect::<Vec<_>>().join(", ");
            println!("{stack} bytes: {}", shown());
            assert!(stack <= STACK && chain.len() <= FRAMES, "{stack} bytes: {}", shown());
            programs += 1;
        }
    }
    assert!(programs >= 7, "{programs}");
}
