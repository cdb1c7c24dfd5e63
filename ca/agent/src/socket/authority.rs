//! `:authority` as clients of Unix sockets spell it: a path is made into a name before HTTP/2 is parsed.
//!
//! Over a Unix socket there is no host. gRPC's C core (Python, Ruby, C++) sends the socket's path percent-encoded,
//! gRPC for Java sends the path itself; neither is an authority, and the HTTP/2 library under tonic resets such a
//! request without asking anyone (hyperium/h2 #487, open since 2020; grpc/grpc #38142). Nothing on this socket looks at
//! the authority, so what cannot stand in one is replaced on its way in.
//!
//! Laws: only bytes of the value of `:authority` change, each for one other, so every length stays what it was and the
//! tables of HPACK at both ends stay alike; what is not understood passes as it is, and the library judges it. Values
//! in Huffman code pass as they are: neither of those clients sends them.
//! Sources: RFC 9113 §4.1, §6.2, §6.10, §8.3.1; RFC 7541 §5, §6, appendix A (index 1); RFC 3986 §3.2.

/// What a byte that no authority can hold becomes.
const STAND_IN: u8 = b'-';
/// The preface of a client's connection (RFC 9113 §3.4).
const PREFACE_BYTES: u32 = 24;
const NAME: &[u8] = b":authority";
/// The entry of the static table with that name.
const INDEX: u32 = 1;

const HEADERS: u8 = 0x1;
const CONTINUATION: u8 = 0x9;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
const PRIORITY_BYTES: u32 = 5;

/// Follows what a client sends.
pub(super) struct Authorities {
    frame: Frame,
    field: Field,
}

/// Where in a frame the next byte lies.
#[derive(Clone, Copy)]
enum Frame {
    /// In the header, or in the preface, whose bytes are as good as any.
    Head { seen: u8, length: u32, kind: u8, flags: u8 },
    /// At the length of the padding; the rest of the frame is this long.
    Pad { rest: u32, priority: bool },
    /// In bytes that are no header fields; after them come those.
    Skip { left: u32, then: (u32, u32) },
    /// In header fields, followed by padding.
    Fields { left: u32, padding: u32 },
}

/// Where in a list of header fields the next byte lies.
#[derive(Clone, Copy)]
enum Field {
    Start,
    /// In the later bytes of an integer.
    Number {
        value: u32,
        shift: u32,
        is: Number,
    },
    /// At the length of a string.
    Length {
        is: Number,
    },
    /// In a name; how many bytes of ours it has matched, unless it cannot be ours.
    Name {
        left: u32,
        matched: Option<usize>,
    },
    Value {
        left: u32,
        ours: bool,
    },
    /// Not understood.
    Lost,
}

/// What an integer counts.
#[derive(Clone, Copy)]
enum Number {
    /// Nothing of interest: an entry of a table, or its size.
    Nothing,
    /// The entry with the name of a literal, or 0.
    NameIndex,
    NameLength {
        plain: bool,
    },
    ValueLength {
        plain: bool,
        ours: bool,
    },
}

impl Default for Authorities {
    fn default() -> Self {
        Self { frame: Frame::Skip { left: PREFACE_BYTES, then: (0, 0) }, field: Field::Start }
    }
}

impl Authorities {
    /// Replaces, in the next bytes of the connection, what cannot stand in an authority.
    pub(super) fn mend(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            self.pass(byte);
        }
    }

    fn pass(&mut self, byte: &mut u8) {
        self.frame = match self.frame {
            Frame::Head { seen, length, kind, flags } => self.head(*byte, seen, length, kind, flags),
            Frame::Pad { rest, priority } => {
                let padding = u32::from(*byte);
                let skipped = if priority { PRIORITY_BYTES } else { 0 };
                // More padding than frame is the library's to refuse.
                skip(skipped, rest.saturating_sub(skipped).saturating_sub(padding), padding)
            }
            Frame::Skip { left, then: (fields, padding) } => skip(left.saturating_sub(1), fields, padding),
            Frame::Fields { left, padding } => {
                self.field(byte);
                skip(0, left.saturating_sub(1), padding)
            }
        };
    }

    fn head(&mut self, byte: u8, seen: u8, length: u32, kind: u8, flags: u8) -> Frame {
        match seen {
            0..=2 => Frame::Head { seen: seen + 1, length: length << 8 | u32::from(byte), kind, flags },
            3 => Frame::Head { seen: 4, length, kind: byte, flags },
            4 => Frame::Head { seen: 5, length, kind, flags: byte },
            5..=7 => Frame::Head { seen: seen + 1, length, kind, flags },
            _last => {
                if kind == HEADERS {
                    self.field = Field::Start;
                }
                let priority = kind == HEADERS && flags & PRIORITY != 0;
                let skipped = if priority { PRIORITY_BYTES } else { 0 };
                match kind {
                    HEADERS if flags & PADDED != 0 && length > 0 => Frame::Pad { rest: length - 1, priority },
                    HEADERS | CONTINUATION => skip(skipped, length.saturating_sub(skipped), 0),
                    _other => skip(length, 0, 0),
                }
            }
        }
    }

    fn field(&mut self, byte: &mut u8) {
        self.field = match self.field {
            // RFC 7541 §6: the first bits say what it is.
            Field::Start => match *byte {
                0x80.. => number(*byte, 0x7f, Number::Nothing),
                0x40.. => number(*byte, 0x3f, Number::NameIndex),
                0x20.. => number(*byte, 0x1f, Number::Nothing),
                _literal => number(*byte, 0x0f, Number::NameIndex),
            },
            Field::Number { value, shift, is } => later(*byte, value, shift, is),
            Field::Length { is } => {
                let plain = *byte & 0x80 == 0;
                let is = match is {
                    Number::NameLength { .. } => Number::NameLength { plain },
                    Number::ValueLength { ours, .. } => Number::ValueLength { plain, ours },
                    other @ (Number::Nothing | Number::NameIndex) => other,
                };
                number(*byte, 0x7f, is)
            }
            Field::Name { left, matched } => {
                let matched = matched.filter(|at| NAME.get(*at) == Some(byte)).map(|at| at + 1);
                match left {
                    ..=1 => value_length(matched == Some(NAME.len())),
                    more => Field::Name { left: more - 1, matched },
                }
            }
            Field::Value { left, ours } => {
                if ours && !fits(*byte) {
                    *byte = STAND_IN;
                }
                match left {
                    ..=1 => Field::Start,
                    more => Field::Value { left: more - 1, ours },
                }
            }
            Field::Lost => Field::Lost,
        };
    }
}

/// Bytes to skip, then header fields, then padding: the first of them that there is.
const fn skip(left: u32, fields: u32, padding: u32) -> Frame {
    match (left, fields, padding) {
        (0, 0, 0) => Frame::Head { seen: 0, length: 0, kind: 0, flags: 0 },
        (0, 0, padding) => Frame::Skip { left: padding, then: (0, 0) },
        (0, fields, padding) => Frame::Fields { left: fields, padding },
        (left, fields, padding) => Frame::Skip { left, then: (fields, padding) },
    }
}

/// An integer whose first byte has room for `mask` (RFC 7541 §5.1).
fn number(byte: u8, mask: u8, is: Number) -> Field {
    match byte & mask {
        full if full == mask => Field::Number { value: u32::from(mask), shift: 0, is },
        small => counted(u32::from(small), is),
    }
}

fn later(byte: u8, value: u32, shift: u32, is: Number) -> Field {
    // 28 bits and the prefix are far more than any list of header fields has.
    let more = u32::from(byte & 0x7f).checked_shl(shift).filter(|_| shift < 28);
    match more.and_then(|more| value.checked_add(more)) {
        Some(value) if byte & 0x80 == 0 => counted(value, is),
        Some(value) => Field::Number { value, shift: shift + 7, is },
        None => Field::Lost,
    }
}

/// What follows an integer.
const fn counted(value: u32, is: Number) -> Field {
    match (is, value) {
        (Number::Nothing, _) | (Number::ValueLength { .. }, 0) => Field::Start,
        (Number::NameIndex, 0) => Field::Length { is: Number::NameLength { plain: true } },
        (Number::NameIndex, index) => value_length(index == INDEX),
        (Number::NameLength { .. }, 0) => value_length(false),
        (Number::NameLength { plain }, left) => {
            Field::Name { left, matched: if plain { Some(0) } else { None } }
        }
        (Number::ValueLength { plain, ours }, left) => Field::Value { left, ours: plain && ours },
    }
}

const fn value_length(ours: bool) -> Field {
    Field::Length { is: Number::ValueLength { plain: true, ours } }
}

/// Whether a byte can stand in an authority by itself (RFC 3986 §3.2, without percent-encoding).
const fn fits(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(byte, b'-' | b'.' | b'_' | b'~' | b':' | b'@' | b'[' | b']')
        || matches!(byte, b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=')
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

    fn frame(kind: u8, flags: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], body].concat()
    }

    fn text(of: &[u8]) -> Vec<u8> {
        [&[u8::try_from(of.len()).unwrap()], of].concat()
    }

    /// A literal with a new name, as gRPC's C core writes it.
    fn literal(name: &[u8], value: &[u8]) -> Vec<u8> {
        [vec![0x40], text(name), text(value)].concat()
    }

    fn mended(bytes: &[u8]) -> Vec<u8> {
        let mut whole = bytes.to_vec();
        Authorities::default().mend(&mut whole);
        // However it is cut, it is the same.
        let mut cut = bytes.to_vec();
        let mut authorities = Authorities::default();
        cut.chunks_mut(1).for_each(|byte| authorities.mend(byte));
        assert_eq!(cut, whole);
        assert_eq!(whole.len(), bytes.len());
        whole
    }

    /// A connection with one list of header fields, before and after; the list in `frames`.
    fn connection(frames: impl Fn(&[u8]) -> Vec<u8>, before: &[u8], after: &[u8]) {
        let settings = frame(4, 0, b"%%/%%/");
        let whole = |fields: &[u8]| {
            let data = frame(0, 1, b"/data/%2F");
            [PREFACE, &settings, &frames(fields), &data, &frames(&[0x82, 0xbe]), &data].concat()
        };
        assert_eq!(mended(&whole(before)), whole(after));
    }

    fn request(authority: &[u8]) -> Vec<u8> {
        let long = [b'/'; 100];
        let path = literal(b":path", b"/SpiffeWorkloadAPI/%2F");
        // A size of the table beyond one byte, an indexed field, and a value in the static table's name.
        [&[0x3f, 0xe1, 0x1f, 0x86], path.as_slice(), authority, &literal(b"x/%", &long), &[0x04, 1, b'/']]
            .concat()
    }

    const PATH: &[u8] = b"tmp%2Frun%2Fagent.sock";
    const NAMED: &[u8] = b"tmp-2Frun-2Fagent.sock";

    #[test]
    fn a_path_becomes_a_name_and_nothing_else_changes() {
        for [before, after] in
            [[PATH, NAMED], [b"/run/a b.sock", b"-run-a-b.sock"], [b"localhost:1", b"localhost:1"]]
        {
            let by_name = |value: &[u8]| request(&literal(NAME, value));
            // RFC 7541 §6.2.1 to §6.2.3: indexed, not indexed, never indexed; the name from the static table.
            let by_index = |first: u8| move |value: &[u8]| request(&[vec![first], text(value)].concat());
            let plain = |fields: &[u8]| frame(HEADERS, 4, fields);
            connection(plain, &by_name(before), &by_name(after));
            for first in [0x41, 0x01, 0x11] {
                connection(plain, &by_index(first)(before), &by_index(first)(after));
            }
        }
    }

    #[test]
    fn padding_priority_and_continuations_are_followed() {
        let (before, after) = (request(&literal(NAME, PATH)), request(&literal(NAME, NAMED)));
        let padded = |fields: &[u8]| frame(HEADERS, 4 | PADDED, &[&[3], fields, b"///"].concat());
        let prior = |fields: &[u8]| frame(HEADERS, 4 | PRIORITY, &[b"%%%%%", fields].concat());
        let both =
            |fields: &[u8]| frame(HEADERS, 4 | PADDED | PRIORITY, &[b"\x02%%%%%", fields, b"%/"].concat());
        connection(padded, &before, &after);
        connection(prior, &before, &after);
        connection(both, &before, &after);
        for at in 0..before.len() {
            let cut = |fields: &[u8]| {
                let (first, second) = fields.split_at(at.min(fields.len()));
                [frame(HEADERS, 0, first), frame(CONTINUATION, 4, second)].concat()
            };
            connection(cut, &before, &after);
        }
    }

    #[test]
    fn what_is_not_understood_passes_as_it_is() {
        let plain = |fields: &[u8]| frame(HEADERS, 4, fields);
        // In Huffman code; an integer without end; a value longer than its list; more padding than frame.
        let huffman = [&[0x41, 0x82], b"%/".as_slice()].concat();
        let endless = [&[0x7f], [0xff; 9].as_slice(), b"/%"].concat();
        for fields in [huffman, endless, vec![0x40, 0], vec![0x40, 10, b':']] {
            connection(plain, &fields, &fields);
        }
        let overpadded = [PREFACE, &frame(HEADERS, PADDED, &[200, b'%', b'/'])].concat();
        assert_eq!(mended(&overpadded)[..], overpadded[..]);
        for length in 0..300 {
            let noise: Vec<u8> =
                (0..length).map(|at: u32| (at * at * 31 + 7 * at).to_le_bytes()[0]).collect();
            mended(&noise);
        }
    }
}
