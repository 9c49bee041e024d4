//! Netlink attributes: borrowed when read, one growing buffer when written.
//!
//! An attribute is a length and a type (two bytes each, the machine's order; the length includes these four bytes), its
//! payload, and padding to four bytes (`struct nlattr`, `linux/netlink.h`). Nests are attributes whose payload is attributes.
//! Reading copies nothing and trusts nothing: a length that leads out of the payload ends the walk with an error.

/// Bytes before an attribute's payload.
pub const HEADER: usize = 4;
/// Flags in an attribute's type: nested, network byte order.
const TYPE_FLAGS: u16 = 0xc000;
/// The flag of a nest (`NLA_F_NESTED`).
const NESTED: u16 = 0x8000;

/// An attribute.
pub type Attr<'a> = (u16, &'a [u8]);

/// A list of attributes that goes on after its last whole one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("attributes are cut off")]
pub struct Truncated;

/// Walks a list of attributes. After an error it ends.
#[derive(Clone, Debug)]
pub struct Attrs<'a> {
    rest: &'a [u8],
}

impl<'a> Attrs<'a> {
    /// The attributes in these bytes.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Bytes that have not been walked.
    pub(crate) fn left(&self) -> usize {
        self.rest.len()
    }

    /// The first attribute of a type; `None` where there is none before the end or the first error.
    pub fn find(self, kind: u16) -> Option<&'a [u8]> {
        self.map_while(Result::ok).find(|(found, _)| *found == kind).map(|(_, payload)| payload)
    }
}

impl<'a> Iterator for Attrs<'a> {
    type Item = Result<Attr<'a>, Truncated>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let Some((header, _)) = self.rest.split_first_chunk::<HEADER>() else {
            self.rest = &[];
            return Some(Err(Truncated));
        };
        let [l0, l1, t0, t1] = *header;
        let len = usize::from(u16::from_ne_bytes([l0, l1]));
        let kind = u16::from_ne_bytes([t0, t1]) & !TYPE_FLAGS;
        let Some(payload) = self.rest.get(HEADER..len) else {
            self.rest = &[];
            return Some(Err(Truncated));
        };
        // The last attribute may come without its padding.
        self.rest = self.rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(Ok((kind, payload)))
    }
}

/// Exactly these bytes of payload.
pub fn array<const N: usize>(payload: &[u8]) -> Option<[u8; N]> {
    payload.try_into().ok()
}

/// A payload of one 8-bit integer.
pub fn u8_of(payload: &[u8]) -> Option<u8> {
    array(payload).map(|[byte]| byte)
}

/// A payload of one 16-bit integer in the machine's order.
pub fn u16_of(payload: &[u8]) -> Option<u16> {
    array(payload).map(u16::from_ne_bytes)
}

/// A payload of one 32-bit integer in the machine's order.
pub fn u32_of(payload: &[u8]) -> Option<u32> {
    array(payload).map(u32::from_ne_bytes)
}

/// A payload of one 64-bit integer in the machine's order.
pub fn u64_of(payload: &[u8]) -> Option<u64> {
    array(payload).map(u64::from_ne_bytes)
}

/// A payload that is a string, ended by a zero byte or by its length.
pub fn str_of(payload: &[u8]) -> Option<&str> {
    std::str::from_utf8(payload.split(|byte| *byte == 0).next()?).ok()
}

/// Writes attributes behind what a buffer holds. The buffer is kept from message to message.
#[derive(Default, Debug)]
pub struct Writer {
    bytes: Vec<u8>,
    too_long: bool,
}

/// Where a nest began.
#[must_use = "a nest has to be ended"]
#[derive(Clone, Copy, Debug)]
pub struct Nest(usize);

impl Writer {
    /// Forgets what was written, keeps the buffer.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.too_long = false;
    }

    /// What was written.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether an attribute grew past the 65,535 bytes that its length can say; what was written is not to be sent then.
    pub fn is_too_long(&self) -> bool {
        self.too_long
    }

    /// Takes back what was written behind the first `len` bytes.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.bytes.truncate(len);
    }

    /// After what was too long has been taken back.
    pub(crate) fn forget_too_long(&mut self) {
        self.too_long = false;
    }

    /// Bytes without an attribute's header, such as a message's fixed part.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Overwrites bytes that were written, such as a length that is known at last.
    pub fn patch(&mut self, at: usize, bytes: &[u8]) {
        if let Some(place) = self.bytes.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }

    /// An attribute.
    pub fn put(&mut self, kind: u16, payload: &[u8]) {
        let len = HEADER + payload.len();
        self.bytes.reserve(len.next_multiple_of(4));
        self.header(kind, len);
        self.bytes.extend_from_slice(payload);
        self.pad(len);
    }

    /// An attribute of a length that the compiler knows.
    #[inline]
    pub fn put_fixed<const N: usize>(&mut self, kind: u16, payload: [u8; N]) {
        let len = HEADER + N;
        self.bytes.reserve(len.next_multiple_of(4));
        self.header(kind, len);
        self.bytes.extend_from_slice(&payload);
        self.pad(len);
    }

    /// An attribute whose payload lies in pieces.
    pub fn put_parts(&mut self, kind: u16, parts: &[&[u8]]) {
        let len = HEADER + parts.iter().map(|part| part.len()).sum::<usize>();
        self.bytes.reserve(len.next_multiple_of(4));
        self.header(kind, len);
        parts.iter().for_each(|part| self.bytes.extend_from_slice(part));
        self.pad(len);
    }

    /// An attribute without payload.
    pub fn put_flag(&mut self, kind: u16) {
        self.put(kind, &[]);
    }

    /// An 8-bit integer.
    pub fn put_u8(&mut self, kind: u16, value: u8) {
        self.put_fixed(kind, [value]);
    }

    /// A 16-bit integer in the machine's order.
    pub fn put_u16(&mut self, kind: u16, value: u16) {
        self.put_fixed(kind, value.to_ne_bytes());
    }

    /// A 32-bit integer in the machine's order.
    pub fn put_u32(&mut self, kind: u16, value: u32) {
        self.put_fixed(kind, value.to_ne_bytes());
    }

    /// A string with its zero byte.
    pub fn put_str(&mut self, kind: u16, value: &str) {
        self.put_parts(kind, &[value.as_bytes(), &[0]]);
    }

    /// Begins a nest; what is put until [`Writer::end`] is in it.
    pub fn begin_nest(&mut self, kind: u16) -> Nest {
        Nest(self.begin(kind | NESTED))
    }

    /// As [`Writer::begin_nest`], without the flag: some attributes of the module were nests before there was one, and old
    /// readers compare the whole type.
    pub fn begin_plain_nest(&mut self, kind: u16) -> Nest {
        Nest(self.begin(kind))
    }

    /// Ends a nest.
    pub fn end(&mut self, nest: Nest) {
        self.end_at(nest.0);
    }

    fn begin(&mut self, kind: u16) -> usize {
        let start = self.bytes.len();
        self.header(kind, 0);
        start
    }

    fn end_at(&mut self, start: usize) {
        let len = self.bytes.len() - start;
        match u16::try_from(len) {
            Ok(short) => self.patch(start, &short.to_ne_bytes()),
            Err(_) => self.too_long = true,
        }
        self.pad(len);
    }

    #[inline]
    fn header(&mut self, kind: u16, len: usize) {
        let short = u16::try_from(len);
        self.too_long |= short.is_err();
        let ([l0, l1], [k0, k1]) = (short.unwrap_or(0).to_ne_bytes(), kind.to_ne_bytes());
        self.bytes.extend_from_slice(&[l0, l1, k0, k1]);
    }

    /// Zeros behind an attribute of this length.
    #[inline]
    fn pad(&mut self, len: usize) {
        let padding: &[u8] = match len % 4 {
            0 => return,
            1 => &[0; 3],
            2 => &[0; 2],
            _ => &[0; 1],
        };
        self.bytes.extend_from_slice(padding);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut writer = Writer::default();
        writer.put_u8(1, 7);
        let nest = writer.begin_nest(2);
        writer.put_u16(3, 0x1234);
        writer.put_flag(4);
        writer.end(nest);
        writer.put_str(5, "br0");
        let attrs: Vec<_> = Attrs::new(writer.bytes()).collect::<Result<_, _>>().unwrap();
        assert_eq!(attrs.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), [1, 2, 5]);
        assert_eq!((u8_of(attrs[0].1), str_of(attrs[2].1)), (Some(7), Some("br0")));
        let inner: Vec<_> = Attrs::new(attrs[1].1).collect::<Result<_, _>>().unwrap();
        assert_eq!(inner, [(3, &0x1234u16.to_ne_bytes()[..]), (4, &[])]);
        assert_eq!(writer.bytes().len() % 4, 0);
    }

    #[test]
    fn a_length_that_leads_out_ends_the_walk() {
        for bytes in [&[3, 0, 1, 0][..], &[9, 0, 1, 0, 1, 2, 3, 4], &[4, 0], &[0; 8]] {
            let walk: Vec<_> = Attrs::new(bytes).collect();
            assert_eq!(walk, [Err(Truncated)], "{bytes:?}");
        }
    }

    #[test]
    fn an_attribute_that_is_too_long_is_told() {
        let mut writer = Writer::default();
        writer.put(1, &vec![0; 65531]);
        assert!(!writer.is_too_long());
        writer.put(1, &vec![0; 65532]);
        assert!(writer.is_too_long());
        writer.clear();
        assert!(!writer.is_too_long());
    }
}
