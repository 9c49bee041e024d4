//! Records of a handler's ring (`dpif-ebpf`).
//!
//! Input: how the record is made (a byte), what it is cut to (two bytes), the fields of the header that say something about the
//! rest, key and cookie, the packet. So most inputs are records of the layout of today, whichever that is.
//!
//! - A record is read or refused, whatever it says of itself; one that is as it should be is read.
//! - What is read is what was written: packet (with its tag put back), key, cookie, lengths.

use std::mem::{offset_of, size_of};

use datapath_common::key::KEY_WORDS;
use datapath_common::upcall::{UpcallHeader, UpcallKind};
use datapath_common::{FlowKey, LAYOUT_VERSION};
use dpif::Upcall;
use dpif_ebpf::fuzzing;

use crate::input::Input;

/// Bytes of the cookie's room.
const COOKIE: usize = size_of::<UpcallHeader>() - offset_of!(UpcallHeader, cookie);

/// Runs the target.
pub fn run(bytes: &[u8]) {
    // As they are, too.
    let _ = fuzzing::upcall(bytes, &mut Upcall::default());
    let _ = fuzzing::credit(bytes);

    let mut input = Input::new(bytes);
    let (how, cut) = (input.u8(), usize::from(input.u16()));
    let (kind, cookie_len, mru) = (u32::from(input.u8() % 3), u32::from(input.u8()), input.u32() >> (how >> 3));
    let (orig_len, gso_size, tag) = (input.u32(), input.u16(), input.bytes(4));
    let (key, cookie) = (input.bytes(KEY_WORDS * 8), input.bytes(COOKIE));
    let packet = input.rest();
    let packet_len = packet.len() as u32 + u32::from(how & 1);
    let layout = LAYOUT_VERSION + u32::from(how & 2 != 0);

    let mut record = vec![0; size_of::<UpcallHeader>()];
    let mut put = |at: usize, bytes: &[u8]| {
        record[at..at + bytes.len()].copy_from_slice(bytes);
    };
    put(offset_of!(UpcallHeader, layout), &layout.to_ne_bytes());
    put(offset_of!(UpcallHeader, kind), &kind.to_ne_bytes());
    put(offset_of!(UpcallHeader, packet_len), &packet_len.to_ne_bytes());
    put(offset_of!(UpcallHeader, orig_len), &orig_len.to_ne_bytes());
    put(offset_of!(UpcallHeader, gso_size), &gso_size.to_ne_bytes());
    put(offset_of!(UpcallHeader, cookie_len), &cookie_len.to_ne_bytes());
    put(offset_of!(UpcallHeader, mru), &mru.to_ne_bytes());
    put(offset_of!(UpcallHeader, vlan), tag);
    put(offset_of!(UpcallHeader, key), key);
    put(offset_of!(UpcallHeader, cookie), cookie);
    record.extend_from_slice(packet);
    let is_cut = how & 4 != 0 && cut < record.len();
    if is_cut {
        record.truncate(cut);
    }

    let mut upcall = Upcall { cookie: vec![9; 40], ..Upcall::default() };
    let read = fuzzing::upcall(&record, &mut upcall);
    let right = how & 7 == 0 && kind < 2 && cookie_len as usize <= COOKIE && mru <= u16::MAX.into();
    assert!(read || !right, "a record that is right is refused");
    assert!(!read || how & 2 == 0 && kind < 2 && (how & 1 == 0 || is_cut), "a record that is wrong is read");
    if read && right {
        assert_eq!(upcall.kind, if kind == 0 { UpcallKind::Miss } else { UpcallKind::Action });
        let tagged = tag.first_chunk::<2>().is_some_and(|tpid| *tpid != [0; 2]) && packet.len() >= 12;
        let whole = if tagged {
            let tag: Vec<u8> = tag.iter().copied().chain([0; 4]).take(4).collect();
            [&packet[..12], &tag, &packet[12..]].concat()
        } else {
            packet.to_vec()
        };
        assert_eq!(upcall.packet.data, whole);
        assert_eq!(upcall.orig_len, orig_len.saturating_add(if tagged { 4 } else { 0 }));
        let mut words = [0; KEY_WORDS];
        for (word, bytes) in words.iter_mut().zip(key.chunks(8)) {
            let mut eight = [0; 8];
            eight[..bytes.len()].copy_from_slice(bytes);
            *word = u64::from_ne_bytes(eight);
        }
        assert_eq!(upcall.key, FlowKey::from_words(&words));
        assert_eq!(upcall.cookie.len(), cookie_len as usize);
        assert!(upcall.cookie.iter().zip(cookie).all(|(a, b)| a == b));
        assert_eq!((u32::from(upcall.packet.mru), upcall.packet.gso_size), (mru, gso_size));
        assert_eq!(fuzzing::credit(&record), Some((0, record.len() as u64)));
    }
}
