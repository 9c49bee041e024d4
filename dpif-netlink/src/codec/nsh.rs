//! Network service headers: the nest of a key, and the header that a push adds (RFC 8300).

use datapath_common::{Be32, FlowKey};

use super::fields::be32;
use super::{CodecError, Fitness, Result, fixed, take};
use crate::attr::{Attrs, Writer};
use crate::uapi::{key, nsh as attr};

pub(super) const MD1: u8 = 1;
/// Bytes of the base and service path headers.
const BASE: usize = 8;
/// Bytes of the four context headers of metadata type 1.
const MD1_LEN: usize = 16;
/// Longest metadata of type 2: the header's length is six bits of words.
const MD2_MAX: usize = 63 * 4 - BASE;

pub(super) fn base(of: &FlowKey) -> [u8; BASE] {
    let [p0, p1, p2, p3] = of.nsh_path.0.to_ne_bytes();
    [of.nsh_flags, of.nsh_ttl, of.nsh_mdtype, of.nsh_np, p0, p1, p2, p3]
}

pub(super) fn context(of: &FlowKey) -> [u8; MD1_LEN] {
    let mut bytes = [0; MD1_LEN];
    for (place, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(of.nsh_context) {
        *place = word.0.to_ne_bytes();
    }
    bytes
}

/// Whether nothing of the header is matched.
pub(super) fn is_zero(mask: &FlowKey) -> bool {
    base(mask) == [0; BASE] && context(mask) == [0; MD1_LEN]
}

fn read_base(mut bytes: &[u8], to: &mut FlowKey) {
    [to.nsh_flags, to.nsh_ttl, to.nsh_mdtype, to.nsh_np] = take(&mut bytes);
    to.nsh_path = be32(&mut bytes);
}

fn read_context(mut bytes: &[u8], to: &mut FlowKey) {
    to.nsh_context = [(); 4].map(|()| be32(&mut bytes));
}

/// Writes the nest of a key or mask; the context headers where the key's metadata are of type 1.
pub(super) fn put(to: &mut Writer, fields: &FlowKey, mdtype: u8) {
    let nest = to.begin_nest(key::NSH);
    to.put(attr::BASE, &base(fields));
    if mdtype == MD1 {
        to.put(attr::MD1, &context(fields));
    }
    to.end(nest);
}

/// Reads the nest.
pub(super) fn get(payload: &[u8], to: &mut FlowKey, is_mask: bool) -> Result<Fitness> {
    let mut fitness = Fitness::Perfect;
    let (mut has_base, mut has_context) = (false, false);
    for attr in Attrs::new(payload) {
        match attr? {
            (attr::BASE, bytes) => {
                let bytes: [u8; BASE] = fixed(bytes, "nsh base")?;
                read_base(&bytes, to);
                has_base = true;
            }
            (attr::MD1, bytes) => {
                let bytes: [u8; MD1_LEN] = fixed(bytes, "nsh context")?;
                read_context(&bytes, to);
                has_context = true;
            }
            _ => fitness = Fitness::TooMuch,
        }
    }
    if !is_mask {
        if has_context && to.nsh_mdtype != MD1 {
            return Err(CodecError::Contradiction("nsh context headers beside another metadata type"));
        }
        if !has_base || (to.nsh_mdtype == MD1 && !has_context) {
            return Ok(Fitness::TooLittle);
        }
    }
    Ok(fitness)
}

/// Writes the nest of a masked set: each part is its value followed by its mask.
pub(super) fn put_masked(to: &mut Writer, value: &FlowKey, mask: &FlowKey) {
    let nest = to.begin_nest(key::NSH);
    to.put_parts(attr::BASE, &[&base(value), &base(mask)]);
    if context(mask) != [0; MD1_LEN] {
        to.put_parts(attr::MD1, &[&context(value), &context(mask)]);
    }
    to.end(nest);
}

/// Reads the nest of a masked set.
pub(super) fn get_masked(payload: &[u8], value: &mut FlowKey, mask: &mut FlowKey) -> Result<()> {
    for attr in Attrs::new(payload) {
        match attr? {
            (attr::BASE, bytes) => {
                let bytes: [u8; 2 * BASE] = fixed(bytes, "nsh base")?;
                let (values, masks) = bytes.split_at(BASE);
                read_base(values, value);
                read_base(masks, mask);
            }
            (attr::MD1, bytes) => {
                let bytes: [u8; 2 * MD1_LEN] = fixed(bytes, "nsh context")?;
                let (values, masks) = bytes.split_at(MD1_LEN);
                read_context(values, value);
                read_context(masks, mask);
            }
            _ => return Err(CodecError::Contradiction("a set of nsh has a part that isn't known")),
        }
    }
    Ok(())
}

/// Writes what a push adds, from the header's bytes.
pub(super) fn put_header(to: &mut Writer, header: &[u8]) -> Result<()> {
    let wrong = CodecError::Length("push_nsh", header.len());
    let (base, metadata) = header.split_first_chunk::<BASE>().ok_or(wrong.clone())?;
    let [b0, b1, mdtype, np, p0, p1, p2, p3] = *base;
    let (flags, ttl) = (b0 >> 4 & 3, (b0 << 2 & 0x3c) | b1 >> 6);
    let kind = if mdtype & 0xf == MD1 { attr::MD1 } else { attr::MD2 };
    let fits = if kind == attr::MD1 { metadata.len() == MD1_LEN } else { metadata.len() <= MD2_MAX };
    if !fits || metadata.len() % 4 != 0 {
        return Err(wrong);
    }
    let nest = to.begin_nest(key::NSH);
    to.put(attr::BASE, &[flags, ttl, mdtype & 0xf, np, p0, p1, p2, p3]);
    if kind == attr::MD1 || !metadata.is_empty() {
        to.put(kind, metadata);
    }
    to.end(nest);
    Ok(())
}

/// The header's bytes from what a push adds.
pub(super) fn get_header(payload: &[u8]) -> Result<Vec<u8>> {
    let mut key = FlowKey::ZERO;
    let mut metadata = &[][..];
    let mut has_base = false;
    for attr in Attrs::new(payload) {
        match attr? {
            (attr::BASE, bytes) => {
                let bytes: [u8; BASE] = fixed(bytes, "nsh base")?;
                read_base(&bytes, &mut key);
                has_base = true;
            }
            (attr::MD1 | attr::MD2, bytes) => metadata = bytes,
            _ => return Err(CodecError::Contradiction("push_nsh has a part that isn't known")),
        }
    }
    if !has_base {
        return Err(CodecError::Contradiction("push_nsh has no base header"));
    }
    if metadata.len() % 4 != 0 || metadata.len() > MD2_MAX {
        return Err(CodecError::Length("nsh metadata", metadata.len()));
    }
    let words = (BASE + metadata.len()) / 4;
    let Be32(path) = key.nsh_path;
    let [p0, p1, p2, p3] = path.to_ne_bytes();
    let first = (key.nsh_flags & 3) << 4 | (key.nsh_ttl >> 2 & 0xf);
    let second = (key.nsh_ttl & 3) << 6 | (words as u8 & 0x3f);
    let mut header = vec![first, second, key.nsh_mdtype & 0xf, key.nsh_np, p0, p1, p2, p3];
    header.extend_from_slice(metadata);
    Ok(header)
}
