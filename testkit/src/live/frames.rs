//! The frames that are sent: UDP over IPv4, of flows that differ in their ports.

/// Bytes of all headers.
pub const HEADERS: usize = 14 + 20 + 8;
/// How many flows the generator can go through before it begins again; a power of two.
pub const FLOW_ENTRIES: usize = 1 << 17;
/// Bytes of the smallest frame, without its check sequence.
pub const SMALL: usize = 60;
/// The largest frame of an ordinary Ethernet.
pub const LARGE: usize = 1514;

/// The sender's Ethernet address.
pub const SENDER: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// The receiver's.
pub const RECEIVER: [u8; 6] = [2, 0, 0, 0, 0, 2];
const ADDRESSES: [u8; 8] = [10, 0, 0, 1, 10, 0, 0, 2];

/// A flow by its UDP ports, in frames of one length.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    src: u16,
    dst: u16,
    len: usize,
}

impl Flow {
    /// Where both ports are in a frame.
    pub const PORTS: usize = 34;
    /// Where the UDP checksum is.
    pub const CHECKSUM: usize = 40;

    /// The flow of this number, in frames of `len` bytes.
    pub fn number(number: usize, len: usize) -> Self {
        Self { src: number as u16, dst: 5000 + (number >> 16) as u16, len }
    }

    /// Both ports, as a frame has them.
    pub fn ports(self) -> [u8; 4] {
        let ([a, b], [c, d]) = (self.src.to_be_bytes(), self.dst.to_be_bytes());
        [a, b, c, d]
    }

    /// The UDP checksum. What follows the headers is zero.
    pub fn checksum(self) -> [u8; 2] {
        let udp = (self.len - 34) as u16;
        let mut words = vec![17, udp, udp, self.src, self.dst];
        words.extend(ADDRESSES.as_chunks::<2>().0.iter().map(|two| u16::from_be_bytes(*two)));
        match checksum(words) {
            0 => [0xff; 2],
            sum => sum.to_be_bytes(),
        }
    }

    /// A whole frame.
    pub fn frame(self) -> Vec<u8> {
        let mut frame = headers(self.len).to_vec();
        frame[Self::PORTS..Self::PORTS + 4].copy_from_slice(&self.ports());
        frame[Self::CHECKSUM..].copy_from_slice(&self.checksum());
        frame.resize(self.len, 0);
        frame
    }
}

/// What all flows' frames of a length begin with; ports and UDP checksum are zero.
pub fn headers(len: usize) -> [u8; HEADERS] {
    let mut headers = [0; HEADERS];
    headers[..6].copy_from_slice(&RECEIVER);
    headers[6..12].copy_from_slice(&SENDER);
    headers[12..24].copy_from_slice(&[8, 0, 0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17]);
    headers[16..18].copy_from_slice(&((len - 14) as u16).to_be_bytes());
    headers[26..34].copy_from_slice(&ADDRESSES);
    headers[38..40].copy_from_slice(&((len - 34) as u16).to_be_bytes());
    fix_ip(&mut headers);
    headers
}

/// Makes the IPv4 header's checksum right.
pub fn fix_ip(frame: &mut [u8]) {
    frame[24..26].fill(0);
    let sum = checksum(frame[14..34].as_chunks::<2>().0.iter().map(|two| u16::from_be_bytes(*two)));
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
}

/// The Internet checksum (RFC 1071) of these words.
fn checksum(words: impl IntoIterator<Item = u16>) -> u16 {
    let sum: u32 = words.into_iter().map(u32::from).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}
