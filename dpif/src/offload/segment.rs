//! Cutting a super-packet into what a device sends.

use super::{Headers, OffloadError, Transport, byte, half, put};
use crate::packet::Packet;

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// The packets that a device makes of one, in order, each complete with its checksums. A packet that is no super-packet comes
/// out as the only one.
///
/// The payload is cut every `gso_size` bytes. Each segment has the super-packet's headers with lengths of its own; the IPv4
/// identification counts on; TCP's sequence number goes on by what came before, FIN and PSH are for the last segment, CWR is for
/// the first (RFC 3168 section 6.1.2). A UDP datagram without checksum (IPv4) becomes ones without.
#[derive(Clone, Debug)]
pub struct Segments<'a> {
    packet: &'a Packet,
    /// Absent where nothing is to be done but to copy.
    headers: Option<Headers>,
    /// Bytes of payload in all segments but the last.
    size: usize,
    /// Segments so far.
    index: usize,
    /// Bytes of payload so far.
    done: usize,
    over: bool,
}

impl<'a> Segments<'a> {
    /// The segments of `packet`.
    ///
    /// # Errors
    /// The packet has something left to a device, but is not one that a device knows.
    pub fn new(packet: &'a Packet) -> Result<Self, OffloadError> {
        let is_whole = packet.gso_size == 0 && !packet.partial_checksum;
        let headers = if is_whole { None } else { Some(Headers::of(packet)?) };
        Ok(Self { packet, headers, size: packet.gso_size.into(), index: 0, done: 0, over: false })
    }

    fn segment(&mut self, headers: Headers) -> Result<Packet, OffloadError> {
        if self.packet.gso_size == 0 {
            // Only its checksum was left to do.
            self.over = true;
            let mut packet = Packet { partial_checksum: false, ..self.packet.clone() };
            headers.write_checksum(&mut packet.data)?;
            return Ok(packet);
        }
        let source = &self.packet.data;
        let payload = source.get(headers.payload..headers.end).and_then(|payload| payload.get(self.done..));
        let payload = payload.ok_or(OffloadError::Malformed)?;
        let chunk = payload.get(..self.size).unwrap_or(payload);
        self.over = chunk.len() == payload.len();

        let mut data = Vec::with_capacity(headers.payload + chunk.len());
        data.extend_from_slice(source.get(..headers.payload).ok_or(OffloadError::Malformed)?);
        data.extend_from_slice(chunk);
        let headers = Headers { end: data.len(), ..headers };
        self.write_headers(&headers, &mut data)?;
        let has_none = headers.transport == Transport::Udp
            && !self.packet.partial_checksum
            && half(source, headers.checksum_at())? == 0;
        if !has_none {
            headers.write_checksum(&mut data)?;
        }
        self.index += 1;
        self.done += chunk.len();
        Ok(Packet { data, mru: self.packet.mru, ..Packet::default() })
    }

    /// What differs from segment to segment, but for the transport checksum.
    fn write_headers(&self, headers: &Headers, data: &mut [u8]) -> Result<(), OffloadError> {
        let Headers { ipv6, transport, l3, l4, end, .. } = *headers;
        // A segment is shorter than the super-packet, whose length fitted.
        let length = |from: usize| u16::try_from(end - from).map(u16::to_be_bytes).map_err(|_| OffloadError::Malformed);
        if ipv6 {
            put(data, l3 + 4, &length(l3 + super::IPV6_HEADER)?);
        } else {
            put(data, l3 + 2, &length(l3)?);
            let id = half(data, l3 + 4)?.wrapping_add(self.index as u16);
            put(data, l3 + 4, &id.to_be_bytes());
            headers.write_ip_checksum(data)?;
        }
        match transport {
            Transport::Udp => put(data, l4 + 4, &length(l4)?),
            Transport::Tcp => {
                let first = data.get(l4 + 4..).and_then(|rest| rest.first_chunk()).ok_or(OffloadError::Malformed)?;
                let sequence = u32::from_be_bytes(*first).wrapping_add(self.done as u32);
                put(data, l4 + 4, &sequence.to_be_bytes());
                let mut flags = byte(data, l4 + 13)?;
                if !self.over {
                    flags &= !(FIN | PSH);
                }
                if self.index > 0 {
                    flags &= !CWR;
                }
                put(data, l4 + 13, &[flags]);
            }
        }
        Ok(())
    }
}

impl Iterator for Segments<'_> {
    type Item = Packet;

    fn next(&mut self) -> Option<Packet> {
        if self.over {
            return None;
        }
        let Some(headers) = self.headers else {
            self.over = true;
            return Some(self.packet.clone());
        };
        let segment = self.segment(headers).ok();
        // Headers that fit once fit always; but where they didn't, there is no next.
        self.over |= segment.is_none();
        segment
    }
}
