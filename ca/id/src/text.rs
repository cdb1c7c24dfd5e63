//! Short texts written without allocating: digests, serials and instants stand several times in each ledger entry.

use serde::Serializer;

/// Writes `bytes` as `LENGTH` lower-case hexadecimal digits.
pub(crate) fn serialize_hex<const LENGTH: usize, S: Serializer>(
    bytes: &[u8],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let mut digits = [0; LENGTH];
    hex::encode_to_slice(bytes, &mut digits).map_err(serde::ser::Error::custom)?;
    serialize_ascii(&digits, serializer)
}

/// Writes ASCII text.
pub(crate) fn serialize_ascii<S: Serializer>(text: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(std::str::from_utf8(text).map_err(serde::ser::Error::custom)?)
}

/// ASCII text as a string; the empty one for anything else.
pub(crate) fn as_str(text: &[u8]) -> &str {
    std::str::from_utf8(text).unwrap_or_default()
}
