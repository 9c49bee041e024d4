//! What a sender left to the device (`dpif::offload`), and the virtio headers that say it (`netdev::vnet`, `dpif-ebpf`).
//!
//! Input: segment size (two bytes), whether the checksum is partial (a byte), the frame.
//!
//! - Completing a checksum changes the two bytes of the checksum at most.
//! - The segments have the whole payload, each no more than the segment size, and nothing is left to do on them.
//! - A virtio header never points outside of the frame, and is read as it was written.

use dpif::Packet;
use dpif::offload::{Segments, complete_checksum};
use netdev::vnet::{HEADER, Header};

use crate::input::Input;

/// Runs the target.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (gso_size, partial_checksum) = (input.u16(), input.u8() & 1 != 0);
    let frame = input.rest();
    let packet = Packet { gso_size, partial_checksum, ..Packet::new(frame) };

    let mut complete = packet.clone();
    if complete_checksum(&mut complete).is_ok() {
        let changed = frame.iter().zip(&complete.data).filter(|(a, b)| a != b).count();
        assert!(complete.data.len() == frame.len() && changed <= 2 && !complete.partial_checksum);
    } else {
        assert_eq!(complete, packet, "what can't be completed stays");
    }

    if let Ok(segments) = Segments::new(&packet) {
        let segments: Vec<Packet> = segments.collect();
        assert!(segments.iter().all(|segment| segment.gso_size == 0 && !segment.partial_checksum));
        assert!(segments.iter().all(|segment| segment.data.len() <= frame.len()));
        if let [first, _, ..] = &segments[..] {
            // All but the last have as much payload as may be, so that the rest is headers.
            let headers = first.data.len() - usize::from(gso_size);
            let payload: Vec<u8> = segments.iter().flat_map(|segment| &segment.data[headers..]).copied().collect();
            assert!(frame[headers..].starts_with(&payload), "the payload of {} segments", segments.len());
            assert!(segments.iter().all(|segment| segment.data.len() <= first.data.len()));
        }
    }

    for header in [Header::of(frame, gso_size, partial_checksum).encode(), dpif_ebpf::fuzzing::vnet_header(&packet)] {
        inside(&header, frame.len());
    }
    if let Some(header) = frame.first_chunk::<HEADER>() {
        let read = Header::decode(header);
        assert_eq!(Header::decode(&read.encode()), read);
        assert_eq!(&read.encode(), header);
        let _ = (read.needs_checksum(), read.segment_size(), read.is_fragmentation());
    }
}

/// The kernel refuses a frame whose header points outside: `struct virtio_net_hdr`.
fn inside(header: &[u8; HEADER], len: usize) {
    let half = |at: usize| usize::from(u16::from_ne_bytes([header[at], header[at + 1]]));
    if header[0] & 1 != 0 {
        assert!(half(6) + half(8) + 2 <= len, "the checksum lies outside: {header:?} of {len}");
    }
    assert!(half(2) <= len, "the headers are longer than the frame: {header:?} of {len}");
}
