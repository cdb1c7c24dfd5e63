//! The form in which a private key lies on disk.
//!
//! Laws: AES-256-GCM under the sealing key, a fresh random 96-bit nonce for every write (NIST SP 800-38D §8.2.2 allows
//! 2^32 of those under one key; a ring writes a handful a year); the associated data binds format version, name,
//! purpose, algorithm, public key and the sealing key's name, so that nothing around the secret can be exchanged; a
//! ring with a sealing key never accepts an unsealed secret, nor the reverse; what lies under another sealing key that
//! the ring was given too is sealed anew under the first. Not here: files and documents.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rhizome_core::ports::{KeyInfo, KeyPurpose, KeyRingError};
use rhizome_id::KeyId;
use rhizome_x509::SigningAlgorithm;
use ring::aead::{Aad, NONCE_LEN, Nonce};
use serde::{Deserialize, Serialize};
use zeroize::{ZeroizeOnDrop, Zeroizing};

use crate::random;
use crate::sealing::{SealingKey, SealingKeys};
use crate::signer::{Defect, Signer, unavailable};

const VERSION: u32 = 1;
const CONTEXT: &[u8] = b"rhizome: sealed private key";

/// Bytes that are wiped when dropped: a private key, or the text in which it is kept.
pub(crate) type Wiped = Zeroizing<Vec<u8>>;

/// How private bytes are kept at rest.
pub(crate) enum Protection {
    /// Sealed under the first of these keys; the others open what an earlier one sealed.
    Sealed(Arc<SealingKeys>),
    /// Not at all.
    DangerUnsealed,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    version: u32,
    id: KeyId,
    purpose: KeyPurpose,
    algorithm: SigningAlgorithm,
    /// SubjectPublicKeyInfo, base64 of DER; for people and for restoring, proved against the private part at load.
    public_key: String,
    /// The public name of the sealing key.
    #[serde(skip_serializing_if = "Option::is_none")]
    sealing_key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nonce: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sealed: Option<String>,
    /// PKCS#8, base64 of DER; only in a ring that was opened as dangerously unsealed.
    #[serde(skip_serializing_if = "Option::is_none")]
    danger_unsealed: Option<Plain>,
}

/// A secret in base64; wiped when dropped.
#[derive(Serialize, Deserialize, ZeroizeOnDrop)]
struct Plain(String);

impl Protection {
    /// What to write for a key.
    pub(crate) fn close(&self, info: &KeyInfo, pkcs8: &[u8]) -> Result<Wiped, KeyRingError> {
        let mut envelope = Envelope {
            version: VERSION,
            id: info.id.clone(),
            purpose: info.purpose,
            algorithm: info.algorithm,
            public_key: STANDARD.encode(info.public_key.spki_der()),
            sealing_key: None,
            nonce: None,
            sealed: None,
            danger_unsealed: None,
        };
        match self {
            Self::DangerUnsealed => envelope.danger_unsealed = Some(Plain(STANDARD.encode(pkcs8))),
            Self::Sealed(keys) => {
                let key = keys.first();
                let mut nonce = [0; NONCE_LEN];
                random::fill(&mut nonce).map_err(|none| unavailable(&none))?;
                envelope.sealing_key = Some(key.name());
                let aad = Aad::from(envelope.bound());
                // Room for the tag: a buffer that grows would leave an unwiped copy behind.
                let mut room = Zeroizing::new(Vec::with_capacity(pkcs8.len().saturating_add(64)));
                room.extend_from_slice(pkcs8);
                key.cipher()
                    .and_then(|cipher| {
                        let unique = Nonce::assume_unique_for_key(nonce);
                        cipher.seal_in_place_append_tag(unique, aad, &mut *room).ok()
                    })
                    .ok_or_else(|| unavailable(&"the key could not be sealed"))?;
                envelope.nonce = Some(STANDARD.encode(nonce));
                envelope.sealed = Some(STANDARD.encode(room.as_slice()));
            }
        }
        // A document of known size in one piece, for the same reason.
        let mut text = Zeroizing::new(Vec::with_capacity(4096));
        serde_json::to_writer_pretty(&mut *text, &envelope).map_err(|error| unavailable(&error))?;
        text.push(b'\n');
        Ok(text)
    }

    /// Reads back what was written for the key called `id`, and proves the key.
    pub(crate) fn open(&self, id: &KeyId, text: &[u8]) -> Result<Signer, KeyRingError> {
        Ok(self.read(id, text)?.0)
    }

    /// As [`Protection::open`]; and, when the key lies under another sealing key than the first, what to write in its
    /// place.
    pub(crate) fn open_anew(&self, id: &KeyId, text: &[u8]) -> Result<(Signer, Option<Wiped>), KeyRingError> {
        let (signer, pkcs8, sealed_under) = self.read(id, text)?;
        let anew = match (self, sealed_under) {
            (Self::Sealed(keys), Some(name)) if name != keys.first().name() => {
                Some(self.close(signer.info(), &pkcs8)?)
            }
            (Self::Sealed(_) | Self::DangerUnsealed, _) => None,
        };
        Ok((signer, anew))
    }

    fn read(&self, id: &KeyId, text: &[u8]) -> Result<(Signer, Wiped, Option<String>), KeyRingError> {
        let corrupt = |cause: String| KeyRingError::Corrupt { id: id.clone(), cause };
        // serde_json's messages give a place and the kind of what stands there; with a wrong type also its value,
        // so the message is kept out of the error altogether.
        let envelope: Envelope = serde_json::from_slice(text).map_err(|error| {
            corrupt(format!("not a key file (line {}, column {})", error.line(), error.column()))
        })?;
        if envelope.version != VERSION {
            let found = envelope.version;
            return Err(unavailable(&format!(
                "key {id} is in format {found}, this release knows {VERSION}; upgrade this server"
            )));
        }
        if envelope.id != *id {
            return Err(corrupt(format!("the file holds the key called {}", envelope.id)));
        }
        let pkcs8 = self.secret(&envelope)?;
        let Envelope { purpose, algorithm, sealing_key, .. } = envelope;
        let signer =
            Signer::prove(id.clone(), purpose, algorithm, &pkcs8).map_err(|defect| match defect {
                Defect::Randomness => unavailable(&defect),
                Defect::Malformed | Defect::PublicKey(_) | Defect::Proof => corrupt(defect.to_string()),
            })?;
        if STANDARD.encode(signer.info().public_key.spki_der()) != envelope.public_key {
            return Err(corrupt("it does not belong to the public key beside it".to_owned()));
        }
        Ok((signer, pkcs8, sealing_key))
    }

    fn secret(&self, envelope: &Envelope) -> Result<Wiped, KeyRingError> {
        let id = &envelope.id;
        let corrupt = |cause: &str| KeyRingError::Corrupt { id: id.clone(), cause: cause.to_owned() };
        let locked = |cause: String| Err(KeyRingError::Sealed { cause });
        let Envelope { sealing_key, nonce, sealed, danger_unsealed, .. } = envelope;
        match (self, sealing_key, nonce, sealed, danger_unsealed) {
            (Self::Sealed(keys), Some(name), Some(nonce), Some(sealed), None) => {
                let Some(key) = keys.named(name) else {
                    return locked(format!(
                        "key {id} is sealed under sealing key {name}, the one given is {}; give the one it was sealed \
                         under, from its backup if need be",
                        keys.first().name()
                    ));
                };
                let broken =
                    || corrupt("its seal is broken: the file was altered, or moved here from another key");
                unseal(key, nonce, sealed, envelope.bound()).ok_or_else(broken)
            }
            (Self::DangerUnsealed, None, None, None, Some(plain)) => STANDARD
                .decode(plain.0.as_bytes())
                .map(Zeroizing::new)
                .map_err(|_not_base64| corrupt("its secret is not base64")),
            (Self::DangerUnsealed, Some(name), Some(_), Some(_), None) => {
                locked(format!("key {id} is sealed under sealing key {name}; give that sealing key"))
            }
            (Self::Sealed(_), None, None, None, Some(_)) => locked(format!(
                "key {id} lies there unsealed, and this ring accepts sealed keys only; destroy it and make a new one"
            )),
            _ => Err(corrupt("fields are missing, or do not go together")),
        }
    }
}

fn unseal(key: &SealingKey, nonce: &str, sealed: &str, bound: Vec<u8>) -> Option<Wiped> {
    let nonce = Nonce::try_assume_unique_for_key(&STANDARD.decode(nonce).ok()?).ok()?;
    let mut room = Zeroizing::new(STANDARD.decode(sealed).ok()?);
    let length = key.cipher()?.open_in_place(nonce, Aad::from(bound), &mut room).ok()?.len();
    room.truncate(length);
    Some(room)
}

impl Envelope {
    /// The associated data: every other field but the nonce, each with its length in front, so that no two different
    /// envelopes give the same bytes.
    fn bound(&self) -> Vec<u8> {
        let Self {
            version,
            id,
            purpose,
            algorithm,
            public_key,
            sealing_key,
            nonce: _,           // an input of the cipher itself
            sealed: _,          // what is being bound
            danger_unsealed: _, // never beside a sealed secret
        } = self;
        let mut bytes = Vec::with_capacity(512);
        for field in [
            CONTEXT,
            &version.to_be_bytes(),
            id.as_str().as_bytes(),
            purpose.as_str().as_bytes(),
            algorithm.to_string().as_bytes(),
            public_key.as_bytes(),
            sealing_key.as_deref().unwrap_or_default().as_bytes(),
        ] {
            let length = u64::try_from(field.len()).unwrap_or(u64::MAX);
            bytes.extend_from_slice(&length.to_be_bytes());
            bytes.extend_from_slice(field);
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::signer::generate_pkcs8;

    const ALGORITHM: SigningAlgorithm = SigningAlgorithm::EcdsaP256Sha256;

    fn sealing_key(fill: &str) -> SealingKey {
        SealingKey::from_text(&format!("{}{fill}", "00".repeat(31))).unwrap()
    }

    fn sealed() -> Protection {
        Protection::Sealed(sealing_key("01").into())
    }

    fn id(name: &str) -> KeyId {
        name.parse().unwrap()
    }

    fn written(protection: &Protection, name: &str) -> (Zeroizing<Vec<u8>>, Vec<u8>) {
        let pkcs8 = generate_pkcs8(ALGORITHM).unwrap();
        let signer = Signer::prove(id(name), KeyPurpose::Issuer, ALGORITHM, &pkcs8).unwrap();
        let text = protection.close(signer.info(), &pkcs8).unwrap().to_vec();
        (pkcs8, text)
    }

    fn altered(text: &[u8], change: impl FnOnce(&mut Value)) -> Vec<u8> {
        let mut value: Value = serde_json::from_slice(text).unwrap();
        change(&mut value);
        serde_json::to_vec(&value).unwrap()
    }

    #[test]
    fn what_was_sealed_opens_to_the_same_key() {
        let (_, text) = written(&sealed(), "k");
        let signer = sealed().open(&id("k"), &text).unwrap();
        assert_eq!(signer.info().purpose, KeyPurpose::Issuer);
    }

    #[test]
    fn another_sealing_key_is_refused_with_both_names_and_the_remedy() {
        let (_, text) = written(&sealed(), "k");
        let other = Protection::Sealed(sealing_key("02").into());
        let error = other.open(&id("k"), &text).err().unwrap();
        let said = error.to_string();
        assert!(matches!(error, KeyRingError::Sealed { .. }), "{said}");
        for part in [sealing_key("01").name(), sealing_key("02").name(), "from its backup".to_owned()] {
            assert!(said.contains(&part), "{said}");
        }
    }

    #[test]
    fn every_field_around_the_secret_is_bound_to_it() {
        let (_, text) = written(&sealed(), "k");
        let (_, other) = written(&sealed(), "k");
        let other: Value = serde_json::from_slice(&other).unwrap();
        let changes: [(&str, Value); 5] = [
            ("purpose", json!("root")),
            ("algorithm", json!("ecdsa-p384")),
            ("public_key", other["public_key"].clone()),
            ("nonce", other["nonce"].clone()),
            ("sealed", other["sealed"].clone()),
        ];
        for (field, value) in changes {
            let bad = altered(&text, |envelope| envelope[field] = value);
            let error = sealed().open(&id("k"), &bad).err().unwrap();
            assert!(matches!(error, KeyRingError::Corrupt { .. }), "{field}: {error}");
            assert!(error.to_string().contains("seal is broken"), "{field}: {error}");
        }
    }

    #[test]
    fn what_lies_under_another_sealing_key_is_sealed_anew_under_the_first_and_stays_the_same_key() {
        let (_, old) = written(&sealed(), "k");
        let both =
            Protection::Sealed(Arc::new(SealingKeys::from(sealing_key("02")).opening(sealing_key("01"))));
        let (before, anew) = both.open_anew(&id("k"), &old).unwrap();
        let anew = anew.unwrap();
        assert!(sealed().open(&id("k"), &anew).is_err(), "the old sealing key opens it no more");
        let only_new = Protection::Sealed(sealing_key("02").into());
        let (after, again) = only_new.open_anew(&id("k"), &anew).unwrap();
        assert_eq!(before.info(), after.info());
        assert!(again.is_none(), "once is enough");
    }

    #[test]
    fn a_key_moved_under_another_name_does_not_open() {
        let (_, text) = written(&sealed(), "k");
        let said = sealed().open(&id("other"), &text).err().unwrap().to_string();
        assert!(said.contains("holds the key called k"), "{said}");
        let renamed = altered(&text, |envelope| envelope["id"] = json!("other"));
        let said = sealed().open(&id("other"), &renamed).err().unwrap().to_string();
        assert!(said.contains("seal is broken"), "{said}");
    }

    #[test]
    fn every_truncation_is_refused_as_damage() {
        let (_, text) = written(&sealed(), "k");
        for length in 0..text.len() - 2 {
            let error = sealed().open(&id("k"), &text[..length]).err().unwrap();
            assert!(matches!(error, KeyRingError::Corrupt { .. }), "{length}: {error}");
        }
    }

    #[test]
    fn unknown_fields_and_half_an_envelope_are_refused() {
        let (_, text) = written(&sealed(), "k");
        let extra = altered(&text, |envelope| envelope["note"] = json!("hi"));
        let half = altered(&text, |envelope| {
            envelope.as_object_mut().unwrap().remove("nonce");
        });
        let both = altered(&text, |envelope| envelope["danger_unsealed"] = json!("AAAA"));
        for bad in [extra, half, both] {
            let error = sealed().open(&id("k"), &bad).err().unwrap();
            assert!(matches!(error, KeyRingError::Corrupt { .. }), "{error}");
        }
    }

    #[test]
    fn a_newer_format_asks_for_an_upgrade() {
        let (_, text) = written(&sealed(), "k");
        let newer = altered(&text, |envelope| envelope["version"] = json!(2));
        let said = sealed().open(&id("k"), &newer).err().unwrap().to_string();
        assert!(said.contains("format 2") && said.contains("upgrade"), "{said}");
    }

    #[test]
    fn a_sealed_ring_accepts_no_unsealed_key_and_the_reverse() {
        let (_, plain) = written(&Protection::DangerUnsealed, "k");
        assert!(Protection::DangerUnsealed.open(&id("k"), &plain).is_ok());
        assert!(matches!(sealed().open(&id("k"), &plain), Err(KeyRingError::Sealed { .. })));
        let (_, text) = written(&sealed(), "k");
        let refused = Protection::DangerUnsealed.open(&id("k"), &text);
        assert!(matches!(refused, Err(KeyRingError::Sealed { .. })));
    }

    #[test]
    fn the_same_key_written_twice_has_two_nonces() {
        let pkcs8 = generate_pkcs8(ALGORITHM).unwrap();
        let signer = Signer::prove(id("k"), KeyPurpose::Root, ALGORITHM, &pkcs8).unwrap();
        let write =
            || -> Value { serde_json::from_slice(&sealed().close(signer.info(), &pkcs8).unwrap()).unwrap() };
        let (one, two) = (write(), write());
        assert_ne!(one["nonce"], two["nonce"]);
        assert_ne!(one["sealed"], two["sealed"]);
    }

    #[test]
    fn no_byte_of_the_secret_is_in_the_file_or_in_any_refusal() {
        let (pkcs8, text) = written(&sealed(), "k");
        // ring's PKCS#8 of a P-256 key: 36 bytes of structure, then the 32 bytes that are secret.
        let scalar = &pkcs8[36..68];
        let (_, plain) = written(&Protection::DangerUnsealed, "k");
        let wrong_type = altered(&plain, |envelope| {
            let secret = envelope["danger_unsealed"].take();
            envelope["version"] = secret; // a wrong type: a careless message would repeat the value
        });
        let secret_text = serde_json::from_slice::<Value>(&plain).unwrap()["danger_unsealed"].clone();
        let refusals = [
            sealed().open(&id("other"), &text).err().unwrap(),
            Protection::DangerUnsealed.open(&id("k"), &text).err().unwrap(),
            Protection::DangerUnsealed.open(&id("k"), &wrong_type).err().unwrap(),
            Protection::DangerUnsealed.open(&id("k"), &plain[..plain.len() - 9]).err().unwrap(),
        ];
        let said = refusals.iter().map(|error| format!("{error} {error:?}")).collect::<String>();
        assert!(!said.contains(secret_text.as_str().unwrap()));
        for haystack in [text.as_slice(), said.as_bytes()] {
            for piece in scalar.windows(8) {
                for form in
                    [piece.to_vec(), hex::encode(piece).into_bytes(), STANDARD.encode(piece).into_bytes()]
                {
                    let form = form.strip_suffix(b"=").unwrap_or(&form);
                    assert!(!haystack.windows(form.len()).any(|window| window == form));
                }
            }
        }
    }
}
