//! A strict reader of DER, and the little writing we do ourselves.
//!
//! Laws: only what DER allows is read (definite, minimal lengths; one-byte tags); whoever reads a structure also says
//! that nothing may follow it; reading never allocates and never panics. Generic parsers skip what is left over inside
//! a structure, so requests and the bytes about to be signed are read here.
//! Not here: the meaning of any structure. Sources: ITU-T X.690 §8 and §10.

use rhizome_id::Digest;
use ring::digest;

pub(crate) const BOOLEAN: u8 = 0x01;
pub(crate) const INTEGER: u8 = 0x02;
pub(crate) const BIT_STRING: u8 = 0x03;
pub(crate) const OCTET_STRING: u8 = 0x04;
pub(crate) const OID: u8 = 0x06;
pub(crate) const UTF8_STRING: u8 = 0x0c;
pub(crate) const UTC_TIME: u8 = 0x17;
pub(crate) const GENERALIZED_TIME: u8 = 0x18;
pub(crate) const SEQUENCE: u8 = 0x30;
pub(crate) const SET: u8 = 0x31;
/// Context tag 0, constructed: the version of a certificate, the attributes of a request.
pub(crate) const CONTEXT_0: u8 = 0xa0;
/// Context tag 3, constructed: the extensions of a certificate.
pub(crate) const CONTEXT_3: u8 = 0xa3;

/// Why bytes are not the DER that was expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DerError {
    /// The bytes end inside an element.
    Truncated,
    /// A length that is indefinite, not minimal, or above 16777215.
    Length,
    /// Another element than expected.
    Tag,
    /// Bytes are left where the structure should end.
    Trailing(usize),
}

/// One element: tag, content, and both with the header.
#[derive(Clone, Copy)]
pub(crate) struct Element<'a> {
    pub(crate) tag: u8,
    pub(crate) value: &'a [u8],
    pub(crate) raw: &'a [u8],
}

/// Reads elements from the front of a slice.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn next_tag(&self) -> Option<u8> {
        self.rest.first().copied()
    }

    /// The next element, whatever it is.
    pub(crate) fn any(&mut self) -> Result<Element<'a>, DerError> {
        let whole = self.rest;
        let (&tag, rest) = whole.split_first().ok_or(DerError::Truncated)?;
        if tag & 0x1f == 0x1f {
            return Err(DerError::Tag);
        }
        let (length, rest) = read_length(rest)?;
        let (value, rest) = rest.split_at_checked(length).ok_or(DerError::Truncated)?;
        let raw = whole.get(..whole.len().saturating_sub(rest.len())).ok_or(DerError::Truncated)?;
        self.rest = rest;
        Ok(Element { tag, value, raw })
    }

    /// The next element, which must have `tag`.
    pub(crate) fn element(&mut self, tag: u8) -> Result<Element<'a>, DerError> {
        if self.next_tag() != Some(tag) {
            return Err(if self.is_empty() { DerError::Truncated } else { DerError::Tag });
        }
        self.any()
    }

    /// The content of the next element, which must have `tag`.
    pub(crate) fn value(&mut self, tag: u8) -> Result<&'a [u8], DerError> {
        self.element(tag).map(|element| element.value)
    }

    /// A reader over the content of the next element, which must have `tag`.
    pub(crate) fn enter(&mut self, tag: u8) -> Result<Self, DerError> {
        self.value(tag).map(Self::new)
    }

    /// A BIT STRING of whole bytes: its bytes.
    pub(crate) fn bits(&mut self) -> Result<&'a [u8], DerError> {
        match self.value(BIT_STRING)?.split_first() {
            Some((0, bytes)) => Ok(bytes),
            _ => Err(DerError::Tag),
        }
    }

    /// A BOOLEAN as DER writes it: 00 or FF.
    pub(crate) fn boolean(&mut self) -> Result<bool, DerError> {
        match self.value(BOOLEAN)? {
            [0xff] => Ok(true),
            [0x00] => Ok(false),
            _ => Err(DerError::Tag),
        }
    }

    /// Says that nothing may follow.
    pub(crate) const fn finish(self) -> Result<(), DerError> {
        if self.rest.is_empty() { Ok(()) } else { Err(DerError::Trailing(self.rest.len())) }
    }
}

/// X.690 §10.1: the shortest definite form. Three length octets are enough for everything we accept (revocation lists
/// have at most 512 KiB, everything else less than 64).
fn read_length(bytes: &[u8]) -> Result<(usize, &[u8]), DerError> {
    match bytes {
        [short @ 0..=0x7f, rest @ ..] => Ok((usize::from(*short), rest)),
        [0x81, length @ 0x80..=0xff, rest @ ..] => Ok((usize::from(*length), rest)),
        [0x82, high @ 1..=0xff, low, rest @ ..] => Ok((usize::from(u16::from_be_bytes([*high, *low])), rest)),
        [0x83, high @ 1..=0xff, middle, low, rest @ ..] => {
            let length = u32::from_be_bytes([0, *high, *middle, *low]);
            Ok((usize::try_from(length).map_err(|_too_long| DerError::Length)?, rest))
        }
        [] | [0x81] | [0x82] | [0x82, _] => Err(DerError::Truncated),
        _ => Err(DerError::Length),
    }
}

/// One extension: its OID (content octets), criticality and value.
#[derive(Clone, Copy)]
pub(crate) struct Extension<'a> {
    pub(crate) oid: &'a [u8],
    pub(crate) critical: bool,
    pub(crate) value: &'a [u8],
}

/// Reads one `Extension` (RFC 5280 §4.1); `critical FALSE` spelled out is not DER (X.690 §11.5).
pub(crate) fn extension<'a>(reader: &mut Reader<'a>) -> Result<Extension<'a>, DerError> {
    let mut inner = reader.enter(SEQUENCE)?;
    let oid = inner.value(OID)?;
    let critical = inner.next_tag() == Some(BOOLEAN);
    if critical && !inner.boolean()? {
        return Err(DerError::Tag);
    }
    let value = inner.value(OCTET_STRING)?;
    inner.finish()?;
    Ok(Extension { oid, critical, value })
}

/// The dotted form of an OID's content octets, for people; bytes that are no OID are shown in hexadecimal.
pub(crate) fn oid_text(content: &[u8]) -> String {
    let mut arcs: Vec<u64> = Vec::new();
    let mut arc = 0u64;
    for byte in content {
        arc = match arc.checked_mul(128) {
            Some(shifted) => shifted | u64::from(byte & 0x7f),
            None => return hex::encode(content),
        };
        if byte & 0x80 == 0 {
            arcs.push(arc);
            arc = 0;
        }
    }
    let Some((&first, rest)) = arcs.split_first() else {
        return hex::encode(content);
    };
    // X.690 §8.19.4: the first subidentifier holds two arcs.
    let (root, second) = match first {
        0..=39 => (0, first),
        40..=79 => (1, first.saturating_sub(40)),
        _ => (2, first.saturating_sub(80)),
    };
    let mut text = format!("{root}.{second}");
    for arc in rest {
        text.push('.');
        text.push_str(&arc.to_string());
    }
    text
}

/// Appends an element to `out`. Lengths up to 4 GiB; ours are a few KiB.
pub(crate) fn write(out: &mut Vec<u8>, tag: u8, parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    out.push(tag);
    let octets = length.to_be_bytes();
    match length {
        0..=0x7f => out.extend(octets.last()),
        0x80..=0xff => {
            out.push(0x81);
            out.extend(octets.last());
        }
        0x100..=0xffff => {
            out.push(0x82);
            out.extend(octets.last_chunk::<2>().into_iter().flatten());
        }
        0x1_0000..=0xff_ffff => {
            out.push(0x83);
            out.extend(octets.last_chunk::<3>().into_iter().flatten());
        }
        _ => {
            out.push(0x84);
            out.extend(octets.last_chunk::<4>().into_iter().flatten());
        }
    }
    for part in parts {
        out.extend_from_slice(part);
    }
}

/// One element as bytes.
pub(crate) fn encode(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::with_capacity(parts.iter().map(|part| part.len()).sum::<usize>().saturating_add(6));
    write(&mut out, tag, parts);
    out
}

/// SHA-256.
pub(crate) fn sha256(bytes: &[u8]) -> Digest {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    Digest::from_bytes(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lengths_are_read_in_their_shortest_form_only() {
        for good in [&[0x04, 0x00][..], &[0x04, 0x01, 0xaa]] {
            assert!(Reader::new(good).any().is_ok());
        }
        for (bad, why) in [
            (&[0x04, 0x80, 0x00, 0x00][..], DerError::Length),
            (&[0x04, 0x81, 0x01, 0xaa], DerError::Length),
            (&[0x04, 0x82, 0x00, 0x01, 0xaa], DerError::Length),
            (&[0x04, 0x83, 0x00, 0x00, 0x01, 0xaa], DerError::Length),
            (&[0x04], DerError::Truncated),
            (&[0x04, 0x02, 0xaa], DerError::Truncated),
            (&[0x1f, 0x81, 0x01, 0x00], DerError::Tag),
            (&[], DerError::Truncated),
        ] {
            assert_eq!(Reader::new(bad).any().err(), Some(why), "{bad:02x?}");
        }
    }

    #[test]
    fn a_boolean_is_00_or_ff() {
        assert_eq!(Reader::new(&[1, 1, 0xff]).boolean(), Ok(true));
        assert_eq!(Reader::new(&[1, 1, 0x01]).boolean(), Err(DerError::Tag));
    }

    #[test]
    fn an_oid_is_shown_in_dots() {
        assert_eq!(oid_text(&[0x55, 0x1d, 0x11]), "2.5.29.17");
        assert_eq!(
            oid_text(&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x0e]),
            "1.2.840.113549.1.9.14"
        );
        assert_eq!(oid_text(&[]), "");
        assert_eq!(oid_text(&[0xff; 12]), "ffffffffffffffffffffffff");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(tag in prop_oneof![Just(OCTET_STRING), Just(SEQUENCE)], length in 0usize..70_000) {
            let value = vec![7u8; length];
            let der = encode(tag, &[&value]);
            let read = Reader::new(&der).value(tag);
            prop_assert_eq!(read, Ok(&value[..]));
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes: Vec<u8>) {
            let mut reader = Reader::new(&bytes);
            while reader.any().is_ok() {}
            prop_assert!(extension(&mut Reader::new(&bytes)).is_err() || bytes.len() >= 6);
            oid_text(&bytes);
        }
    }
}
