//! The Internet checksum (RFC 1071) of IP and transport headers.

use super::{Headers, OffloadError, Transport, byte, put};

impl Headers {
    /// Where the transport checksum is.
    pub(super) fn checksum_at(&self) -> usize {
        self.l4 + if self.transport == Transport::Tcp { 16 } else { 6 }
    }

    /// Computes the transport checksum over all that it covers and writes it.
    pub(super) fn write_checksum(&self, bytes: &mut [u8]) -> Result<(), OffloadError> {
        let at = self.checksum_at();
        put(bytes, at, &[0, 0]);
        let covered = bytes.get(self.l4..self.end).ok_or(OffloadError::Malformed)?;
        let mut total = self.pseudo_header(bytes)?;
        total += sum(covered);
        let mut checksum = !fold(total);
        if self.transport == Transport::Udp && checksum == 0 {
            // Zero says that there is none (RFC 768).
            checksum = 0xffff;
        }
        put(bytes, at, &checksum.to_be_bytes());
        Ok(())
    }

    /// Writes the checksum of the IPv4 header; IPv6 has none.
    pub(super) fn write_ip_checksum(&self, bytes: &mut [u8]) -> Result<(), OffloadError> {
        if self.ipv6 {
            return Ok(());
        }
        put(bytes, self.l3 + 10, &[0, 0]);
        let header = usize::from(byte(bytes, self.l3)? & 0xf) * 4;
        let covered = bytes.get(self.l3..self.l3 + header).ok_or(OffloadError::Malformed)?;
        let checksum = !fold(sum(covered));
        put(bytes, self.l3 + 10, &checksum.to_be_bytes());
        Ok(())
    }

    /// The sum over the pseudo-header: addresses, protocol, length (RFC 9293 section 3.1, RFC 8200 section 8.1).
    fn pseudo_header(&self, bytes: &[u8]) -> Result<u64, OffloadError> {
        let addresses = if self.ipv6 { self.l3 + 8..self.l3 + 40 } else { self.l3 + 12..self.l3 + 20 };
        let addresses = bytes.get(addresses).ok_or(OffloadError::Malformed)?;
        let protocol = match self.transport {
            Transport::Tcp => 6,
            Transport::Udp => 17,
        };
        Ok(sum(addresses) + protocol + (self.end - self.l4) as u64)
    }
}

/// The sum of the 16-bit words, the last filled up with a zero byte.
fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks();
    let whole: u64 = words.iter().map(|word| u64::from(u16::from_be_bytes(*word))).sum();
    whole + rest.first().map_or(0, |last| u64::from(*last) << 8)
}

fn fold(mut sum: u64) -> u16 {
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
