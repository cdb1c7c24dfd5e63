//! Encryption in pieces: what is written is sealed as it comes, and what is read is opened piece by piece, so that the
//! whole is never in memory.
//!
//! Laws: AES-256-GCM; each file has a key of its own, derived from the directory's with a fresh random salt, so that
//! nonces can count pieces and none is ever used twice; the last piece says that it is the last, so that nothing can be
//! cut off, left out, moved or added unnoticed. What is given out before the last piece was opened counts only if that
//! one opens, too. Buffers of plain text are wiped and never grow.
//! Not here: what is written, files.
//! Sources: Hoang, Reyhanitabar, Rogaway, Vizár, "Online Authenticated-Encryption and its Nonce-Reuse
//! Misuse-Resistance" (2015), the construction STREAM; RFC 5869 (HKDF); NIST SP 800-38D §8.2.1 (nonces that count).

use std::io::{self, Read, Write};

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, Tag, UnboundKey};
use ring::hkdf::Prk;
use zeroize::{Zeroize as _, Zeroizing};

/// Bytes of plain text in each piece but the last.
pub(super) const PIECE_BYTES: usize = 64 * 1024;
/// Bytes by which a sealed piece is longer.
pub(super) const TAG_BYTES: usize = 16;
/// Bytes of the salt with which a file's own key is derived.
pub(super) const SALT_BYTES: usize = 32;

/// Why a piece cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    /// The system did not let it be read.
    #[error(transparent)]
    Unread(#[from] io::Error),
    /// What is there was not sealed so.
    #[error("it is damaged or cut off, or was sealed under another key")]
    Damaged,
}

/// The key of one file, and which of its pieces comes next.
struct Pieces {
    key: LessSafeKey,
    /// Authenticated with every piece.
    context: &'static [u8],
    next: u64,
}

impl Pieces {
    fn new(key: &Prk, salt: &[u8; SALT_BYTES], context: &'static [u8]) -> Option<Self> {
        let info = [context, salt];
        let key = UnboundKey::from(key.expand(&info, &AES_256_GCM).ok()?);
        Some(Self { key: LessSafeKey::new(key), context, next: 0 })
    }

    /// Its number, and whether it is the last one.
    fn nonce(&mut self, last: bool) -> Option<Nonce> {
        let mut nonce = [0; NONCE_LEN];
        let (_, rest) = nonce.split_at_mut(NONCE_LEN.checked_sub(9)?);
        let (number, end) = rest.split_at_mut(8);
        number.copy_from_slice(&self.next.to_be_bytes());
        end.fill(u8::from(last));
        self.next = self.next.checked_add(1)?;
        Some(Nonce::assume_unique_for_key(nonce))
    }

    fn context(&self) -> Aad<&'static [u8]> {
        Aad::from(self.context)
    }
}

/// Seals what is written into it.
pub(super) struct Sealing<W> {
    pieces: Pieces,
    /// Plain text that waits for the rest of its piece.
    plain: Zeroizing<Vec<u8>>,
    out: W,
}

impl<W: Write> Sealing<W> {
    /// Seals into `out`; `None` when no key can be derived.
    pub(super) fn new(key: &Prk, salt: &[u8; SALT_BYTES], context: &'static [u8], out: W) -> Option<Self> {
        let pieces = Pieces::new(key, salt, context)?;
        Some(Self { pieces, plain: Zeroizing::new(Vec::with_capacity(PIECE_BYTES)), out })
    }

    /// Writes the last piece. Without it nothing that was written can be opened.
    ///
    /// # Errors
    /// As writing does.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.seal(true)
    }

    fn seal(&mut self, last: bool) -> io::Result<()> {
        let nonce = self.pieces.nonce(last).ok_or_else(|| io::Error::other("too many pieces"))?;
        let context = self.pieces.context();
        let sealed = self.pieces.key.seal_in_place_separate_tag(nonce, context, &mut self.plain);
        let tag: Tag = sealed.map_err(|_unspecified| io::Error::other("encryption failed"))?;
        self.out.write_all(&self.plain)?;
        self.out.write_all(tag.as_ref())?;
        self.plain.clear();
        Ok(())
    }
}

impl<W: Write> Write for Sealing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A full piece is sealed when more comes: it might have been the last.
        if self.plain.len() >= PIECE_BYTES {
            self.seal(false)?;
        }
        let room = PIECE_BYTES.saturating_sub(self.plain.len());
        let taken = bytes.get(..room).unwrap_or(bytes);
        self.plain.extend_from_slice(taken);
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Opens what was sealed.
pub(super) struct Opening<R> {
    pieces: Pieces,
    /// One piece, sealed or plain, and the beginning of the next.
    buffer: Zeroizing<Vec<u8>>,
    input: R,
    over: bool,
}

impl<R: Read> Opening<R> {
    /// Opens what comes from `input`; `None` when no key can be derived.
    pub(super) fn new(key: &Prk, salt: &[u8; SALT_BYTES], context: &'static [u8], input: R) -> Option<Self> {
        let pieces = Pieces::new(key, salt, context)?;
        let room = PIECE_BYTES.saturating_add(TAG_BYTES).saturating_add(1);
        Some(Self { pieces, buffer: Zeroizing::new(Vec::with_capacity(room)), input, over: false })
    }

    /// The plain text of the next piece; `None` after the last one.
    ///
    /// # Errors
    /// [`OpenError`]; what was given out before is then not to be believed.
    pub(super) fn piece(&mut self) -> Result<Option<&[u8]>, OpenError> {
        if self.over {
            return Ok(None);
        }
        let sealed = PIECE_BYTES.saturating_add(TAG_BYTES);
        // The first byte of this piece was read with the one before: that there was one said that it was not the last.
        let ahead = self.buffer.get(sealed).copied();
        self.buffer.zeroize();
        self.buffer.extend(ahead);
        let wanted = sealed.saturating_add(1).saturating_sub(self.buffer.len());
        let wanted = u64::try_from(wanted).unwrap_or_default();
        self.input.by_ref().take(wanted).read_to_end(&mut self.buffer)?;
        self.over = self.buffer.len() <= sealed;
        let nonce = self.pieces.nonce(self.over).ok_or(OpenError::Damaged)?;
        let context = self.pieces.context();
        let end = self.buffer.len().min(sealed);
        let piece = self.buffer.get_mut(..end).ok_or(OpenError::Damaged)?;
        let plain = self.pieces.key.open_in_place(nonce, context, piece);
        plain.map(|plain| Some(&*plain)).map_err(|_unspecified| OpenError::Damaged)
    }
}

#[cfg(test)]
mod tests {
    use ring::hkdf::HKDF_SHA256;

    use super::*;

    const CONTEXT: &[u8] = b"a test";
    const SALT: [u8; SALT_BYTES] = [7; SALT_BYTES];

    fn key(byte: u8) -> Prk {
        Prk::new_less_safe(HKDF_SHA256, &[byte; 32])
    }

    fn seal(plain: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut sealing = Sealing::new(&key(1), &SALT, CONTEXT, &mut out).unwrap();
        sealing.write_all(plain).unwrap();
        sealing.finish().unwrap();
        out
    }

    fn open_with(key: &Prk, sealed: &[u8]) -> Result<Vec<u8>, OpenError> {
        let mut opening = Opening::new(key, &SALT, CONTEXT, sealed).unwrap();
        let mut plain = Vec::new();
        while let Some(piece) = opening.piece()? {
            plain.extend_from_slice(piece);
        }
        Ok(plain)
    }

    fn text(length: usize) -> Vec<u8> {
        (0..length).map(|at| u8::try_from(at % 251).unwrap()).collect()
    }

    #[test]
    fn what_was_sealed_opens_at_every_length_around_the_border_of_a_piece() {
        for length in [0, 1, 15, 16, 17]
            .into_iter()
            .chain(PIECE_BYTES - 17..=PIECE_BYTES + 17)
            .chain(2 * PIECE_BYTES - 1..=2 * PIECE_BYTES + 1)
        {
            let (plain, pieces) = (text(length), length.div_ceil(PIECE_BYTES).max(1));
            let sealed = seal(&plain);
            assert_eq!(sealed.len(), length + pieces * TAG_BYTES, "{length}");
            assert!(open_with(&key(1), &sealed).unwrap() == plain, "{length}");
        }
    }

    #[test]
    fn nothing_can_be_cut_off_left_out_moved_changed_or_added() {
        let sealed = seal(&text(3 * PIECE_BYTES + 5));
        let whole = PIECE_BYTES + TAG_BYTES;
        let piece = |number: usize| &sealed[number * whole..sealed.len().min((number + 1) * whole)];
        let mut flipped = sealed.clone();
        flipped[2 * whole + 9] ^= 1;
        for (what, damaged) in [
            ("the end is missing", sealed[..sealed.len() - 1].to_vec()),
            ("the last piece is missing", sealed[..3 * whole].to_vec()),
            ("a piece is missing", [piece(0), piece(2), piece(3)].concat()),
            ("two have changed places", [piece(1), piece(0), piece(2), piece(3)].concat()),
            ("one is there twice", [piece(0), piece(1), piece(1), piece(2), piece(3)].concat()),
            ("something follows", [&sealed[..], &[0]].concat()),
            ("the last piece follows itself", [&sealed[..], piece(3)].concat()),
            ("a bit was flipped", flipped),
            ("there is nothing", Vec::new()),
        ] {
            assert!(matches!(open_with(&key(1), &damaged), Err(OpenError::Damaged)), "{what}");
        }
        assert!(matches!(open_with(&key(2), &sealed), Err(OpenError::Damaged)), "another key");
    }

    #[test]
    fn the_key_of_a_file_depends_on_its_salt_and_on_what_it_is_for() {
        let plain = text(40);
        let sealed = seal(&plain);
        for (salt, context) in [([8; SALT_BYTES], CONTEXT), (SALT, &b"another"[..])] {
            let mut opening = Opening::new(&key(1), &salt, context, &sealed[..]).unwrap();
            assert!(matches!(opening.piece(), Err(OpenError::Damaged)));
        }
    }
}
