//! One token: sessions on it, and our keys in it.
//!
//! Laws: a fault that may be the token's ends the session, and what was asked is asked once more in a new one, after the
//! module was initialised anew; a refused PIN, and one that the token would lock at the next mistake, is never sent
//! again; an object counts as ours by identifier and label together. A key found is proved by signing a probe, once for
//! each public key. Not here: who waits for whom (the parent).
//! Sources: PKCS #11 v3.1 §4.9 (private key attributes), §5.6.8 (C_Login), §5.13 (C_Sign).

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use rhizome_core::ports::{KeyInfo, KeyPurpose, KeyRingError};
use rhizome_id::KeyId;
use rhizome_x509::{PublicKey, Signature, SigningAlgorithm, probe_for};

use super::module::{Inside, Module};
use super::pin::Pin;
use super::value;
use crate::signer::spki;

/// What every label of ours begins with; then the purpose, a colon, and the name.
const OURS: &str = "rhizome";
const PURPOSES: [KeyPurpose; 3] = [KeyPurpose::Root, KeyPurpose::Issuer, KeyPurpose::Jwt];

/// Why something could not be done in a session.
#[derive(Debug)]
pub(super) enum Fault {
    /// The token, or the way to it, may be gone.
    Gone(String),
    /// It will not work by trying again.
    Final(KeyRingError),
}

impl Fault {
    pub(super) fn gone(cause: &(impl fmt::Display + ?Sized)) -> Self {
        Self::Gone(cause.to_string())
    }
}

impl From<KeyRingError> for Fault {
    fn from(cause: KeyRingError) -> Self {
        Self::Final(cause)
    }
}

impl From<Error> for Fault {
    fn from(cause: Error) -> Self {
        Self::gone(&cause)
    }
}

/// A token, by the label people gave it.
pub(super) struct Token {
    path: PathBuf,
    label: String,
    pin: Pin,
    /// The token refused the PIN: it is not tried again.
    refused: AtomicBool,
    /// Held by whoever logs in: several at once would each spend one of the token's tries on the same wrong PIN.
    logging_in: Mutex<()>,
    module: Arc<Module>,
    idle: Mutex<Vec<Seat>>,
    /// Keys that signed a probe.
    proved: Arc<Mutex<BTreeMap<KeyId, KeyInfo>>>,
}

impl Token {
    pub(super) fn new(path: PathBuf, label: String, pin: Pin) -> Self {
        let module = Module::at(&path);
        let refused = AtomicBool::new(false);
        let (logging_in, idle) = (Mutex::default(), Mutex::default());
        Self { path, label, pin, refused, logging_in, module, idle, proved: Arc::default() }
    }

    /// Does `work` in a session; once more in a new one when the token may have been away.
    pub(super) fn with_seat<T>(
        &self,
        work: impl Fn(&mut Seat) -> Result<T, Fault>,
    ) -> Result<T, KeyRingError> {
        let generation = self.module.generation();
        let mut outcome = self.try_with_seat(&work);
        if matches!(outcome, Err(Fault::Gone(_))) {
            outcome = self.module.renew(generation).and_then(|()| self.try_with_seat(&work));
        }
        outcome.map_err(|fault| match fault {
            Fault::Final(cause) => cause,
            Fault::Gone(cause) => KeyRingError::Unavailable { cause: format!("{self}: {cause}") },
        })
    }

    fn try_with_seat<T>(&self, work: impl Fn(&mut Seat) -> Result<T, Fault>) -> Result<T, Fault> {
        self.module.enter(|inside| {
            let mut seat = self.seat(&inside)?;
            let outcome = work(&mut seat);
            // Whatever failed may have left an operation open in the session: it is not used again.
            if outcome.is_ok() {
                self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(seat);
            } else {
                seat.leave();
            }
            outcome
        })
    }

    /// An idle session of this generation, or a new one.
    fn seat(&self, inside: &Inside<'_>) -> Result<Seat, Fault> {
        let idle = {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.retain(|seat| seat.generation == inside.generation);
            idle.pop()
        };
        match idle {
            Some(seat) => Ok(seat),
            None => self.log_in(inside),
        }
    }

    fn log_in(&self, inside: &Inside<'_>) -> Result<Seat, Fault> {
        let slot = self.slot(inside)?;
        let _one_at_a_time = self.logging_in.lock().unwrap_or_else(PoisonError::into_inner);
        if self.refused.load(Ordering::Acquire) {
            return Err(self.locked("the PIN was refused and is not tried again, since tokens lock").into());
        }
        let session = inside.pkcs11.open_rw_session_no_drop(slot)?;
        let (generation, proved) = (inside.generation, Arc::clone(&self.proved));
        let seat = Seat { session, generation, known: BTreeMap::new(), proved };
        let info = inside.pkcs11.get_token_info(slot)?;
        if info.user_pin_locked() || info.user_pin_final_try() {
            seat.leave();
            let state = if info.user_pin_locked() { "is locked" } else { "has one try left" };
            return Err(self.locked(&format!("its PIN {state}; log in by hand")).into());
        }
        let refused = match seat.session.login(UserType::User, Some(self.pin.secret())) {
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => return Ok(seat),
            Err(Error::Pkcs11(cause, _)) if is_about_the_pin(cause) => {
                self.refused.store(true, Ordering::Release);
                self.locked(&format!("it refuses the PIN ({cause})")).into()
            }
            Err(cause) => Fault::from(cause),
        };
        seat.leave();
        Err(refused)
    }

    fn slot(&self, inside: &Inside<'_>) -> Result<Slot, Fault> {
        let mut found = Vec::new();
        for slot in inside.pkcs11.get_slots_with_token()? {
            // A token beside ours that does not answer is not our fault.
            if inside.pkcs11.get_token_info(slot).is_ok_and(|info| info.label() == self.label) {
                found.push(slot);
            }
        }
        match found.as_slice() {
            [slot] => Ok(*slot),
            [] => Err(Fault::gone("no token of that label is there")),
            _ => Err(Fault::gone("several tokens have that label; give each its own")),
        }
    }

    fn locked(&self, cause: &str) -> KeyRingError {
        KeyRingError::Sealed { cause: format!("{self}: {cause}; put the PIN right and start again") }
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        let idle = std::mem::take(self.idle.get_mut().unwrap_or_else(PoisonError::into_inner));
        let _closed = self.module.enter(|inside| {
            let ours = idle.into_iter().filter(|seat| seat.generation == inside.generation);
            ours.for_each(Seat::leave);
            Ok(())
        });
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, label, .. } = self;
        write!(f, "the PKCS#11 token `{label}` ({})", path.display())
    }
}

const fn is_about_the_pin(cause: RvError) -> bool {
    matches!(
        cause,
        RvError::PinIncorrect
            | RvError::PinInvalid
            | RvError::PinLenRange
            | RvError::PinExpired
            | RvError::PinLocked
    )
}

/// A key as a session knows it.
#[derive(Clone)]
pub(super) struct Found {
    pub(super) info: KeyInfo,
    private: ObjectHandle,
}

/// A session in which the user is logged in. It closes nothing by itself: its number may be another's by then.
pub(super) struct Seat {
    session: Session,
    generation: u64,
    /// Keys found in this session.
    known: BTreeMap<KeyId, Found>,
    proved: Arc<Mutex<BTreeMap<KeyId, KeyInfo>>>,
}

impl Seat {
    /// Closes the session. Only while its generation lasts. A token that is gone closed it already.
    fn leave(self) {
        let _closed = self.session.close();
    }

    /// The key called `id`, from an earlier call if need be.
    pub(super) fn key(&mut self, id: &KeyId) -> Result<Found, Fault> {
        if let Some(known) = self.known.get(id) {
            return Ok(known.clone());
        }
        let found = self.find(id)?.ok_or_else(|| KeyRingError::NotFound { id: id.clone() })?;
        self.known.insert(id.clone(), found.clone());
        Ok(found)
    }

    /// Asks the token for the key called `id`, and proves it if it is new.
    pub(super) fn find(&mut self, id: &KeyId) -> Result<Option<Found>, Fault> {
        let mut found = None;
        for purpose in PURPOSES {
            for private in self.objects(ObjectClass::PRIVATE_KEY, id, purpose)? {
                if found.is_some() {
                    let cause = "the token has several keys of that name; remove all but the right one";
                    return Err(KeyRingError::Corrupt { id: id.clone(), cause: cause.to_owned() }.into());
                }
                found = Some(self.read(id, purpose, private)?);
            }
        }
        if let Some(found) = &found {
            self.prove(found)?;
        } else {
            self.known.remove(id);
        }
        Ok(found)
    }

    /// The names of our keys, in order.
    pub(super) fn ids(&self) -> Result<Vec<KeyId>, Fault> {
        let ours = [Attribute::Class(ObjectClass::PRIVATE_KEY), Attribute::Token(true)];
        let mut ids = Vec::new();
        for object in self.session.find_objects(&ours)? {
            for attribute in self.session.get_attributes(object, &[AttributeType::Label])? {
                if let Attribute::Label(label) = attribute {
                    ids.extend(name_in(&label));
                }
            }
        }
        ids.sort();
        ids.dedup();
        Ok(ids)
    }

    /// Makes a key that cannot be taken out of the token.
    pub(super) fn make(
        &mut self,
        id: &KeyId,
        purpose: KeyPurpose,
        algorithm: SigningAlgorithm,
    ) -> Result<Found, Fault> {
        let named = names(id, purpose);
        let mut public = named.to_vec();
        public.extend([
            Attribute::Token(true),
            Attribute::Private(false),
            Attribute::Verify(true),
            Attribute::EcParams(value::parameters(algorithm).to_vec()),
        ]);
        let mut private = named.to_vec();
        private.extend([
            Attribute::Token(true),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Modifiable(false),
            Attribute::Sign(true),
        ]);
        self.session.generate_key_pair(&Mechanism::EccKeyPairGen, &public, &private)?;
        match self.find(id) {
            Ok(Some(made)) => Ok(made),
            Ok(None) => Err(Fault::gone("the key that it made is not there")),
            Err(cause) => {
                // What will not do must not be in the way of the next try.
                let _destroyed = self.destroy(id);
                Err(cause)
            }
        }
    }

    /// Destroys the key called `id`; there is none when this returns.
    pub(super) fn destroy(&mut self, id: &KeyId) -> Result<(), Fault> {
        self.known.remove(id);
        self.proved.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        for purpose in PURPOSES {
            for class in [ObjectClass::PRIVATE_KEY, ObjectClass::PUBLIC_KEY] {
                for object in self.objects(class, id, purpose)? {
                    self.session.destroy_object(object)?;
                }
            }
        }
        Ok(())
    }

    /// An `ECDSA-Sig-Value` in DER over `digest`.
    pub(super) fn sign(&mut self, key: &Found, digest: &[u8]) -> Result<Vec<u8>, Fault> {
        let halves = match self.session.sign(&Mechanism::Ecdsa, key.private, digest) {
            Ok(halves) => halves,
            Err(cause) => {
                self.known.remove(&key.info.id);
                return Err(cause.into());
            }
        };
        value::signature(key.info.algorithm, &halves)
            .ok_or_else(|| Fault::gone("it gave a signature of another length than the curve's"))
    }

    fn objects(
        &self,
        class: ObjectClass,
        id: &KeyId,
        purpose: KeyPurpose,
    ) -> Result<Vec<ObjectHandle>, Fault> {
        let mut template = names(id, purpose).to_vec();
        template.extend([Attribute::Class(class), Attribute::Token(true)]);
        Ok(self.session.find_objects(&template)?)
    }

    fn read(&self, id: &KeyId, purpose: KeyPurpose, private: ObjectHandle) -> Result<Found, Fault> {
        let mismatch = |cause: &str| KeyRingError::Mismatch { id: id.clone(), cause: cause.to_owned() };
        let corrupt = |cause: &str| KeyRingError::Corrupt { id: id.clone(), cause: cause.to_owned() };
        let wanted = [AttributeType::KeyType, AttributeType::Sensitive, AttributeType::Extractable];
        let (mut is_elliptic, mut is_sensitive, mut is_kept) = (false, false, false);
        for attribute in self.session.get_attributes(private, &wanted)? {
            is_elliptic |= matches!(attribute, Attribute::KeyType(KeyType::EC));
            is_sensitive |= matches!(attribute, Attribute::Sensitive(true));
            is_kept |= matches!(attribute, Attribute::Extractable(false));
        }
        if !is_elliptic {
            return Err(mismatch("it is no key of an elliptic curve").into());
        }
        if !is_sensitive || !is_kept {
            return Err(
                mismatch("the token would give it out: it must be sensitive and not extractable").into()
            );
        }
        let publics = self.objects(ObjectClass::PUBLIC_KEY, id, purpose)?;
        let [public] = publics.as_slice() else {
            return Err(corrupt("the token has no public key beside it, or several").into());
        };
        let (mut parameters, mut point) = (Vec::new(), Vec::new());
        for attribute in
            self.session.get_attributes(*public, &[AttributeType::EcParams, AttributeType::EcPoint])?
        {
            if let Attribute::EcParams(found) = attribute {
                parameters = found;
            } else if let Attribute::EcPoint(found) = attribute {
                point = found;
            }
        }
        let algorithm = value::algorithm(&parameters)
            .ok_or_else(|| mismatch("its curve is neither P-256 nor P-384, or not given by name"))?;
        let point = value::point(algorithm, &point).ok_or_else(|| corrupt("its public key is malformed"))?;
        let public_key = PublicKey::from_spki_der(&spki(algorithm, point))
            .map_err(|cause| corrupt(&format!("its public key is refused: {cause}")))?;
        Ok(Found { info: KeyInfo { id: id.clone(), purpose, algorithm, public_key }, private })
    }

    fn prove(&mut self, found: &Found) -> Result<(), Fault> {
        let KeyInfo { id, algorithm, public_key, .. } = &found.info;
        let known = self.proved.lock().unwrap_or_else(PoisonError::into_inner).get(id) == Some(&found.info);
        if known {
            return Ok(());
        }
        let probe = probe_for(*algorithm);
        let signature = self.sign(found, &value::digest(*algorithm, probe.as_bytes()))?;
        let verified = public_key.verify(probe.as_bytes(), &Signature::external(signature), *algorithm);
        if verified.is_err() {
            let cause = "it does not belong to the public key beside it".to_owned();
            return Err(KeyRingError::Corrupt { id: id.clone(), cause }.into());
        }
        let mut proved = self.proved.lock().unwrap_or_else(PoisonError::into_inner);
        proved.insert(id.clone(), found.info.clone());
        Ok(())
    }
}

/// How a key is called in the token: its name as identifier, and a label that says its purpose, too.
fn names(id: &KeyId, purpose: KeyPurpose) -> [Attribute; 2] {
    let label = format!("{OURS}:{}:{id}", purpose.as_str());
    [Attribute::Id(id.as_str().as_bytes().to_vec()), Attribute::Label(label.into_bytes())]
}

fn name_in(label: &[u8]) -> Option<KeyId> {
    let rest = std::str::from_utf8(label).ok()?.strip_prefix(OURS)?.strip_prefix(':')?;
    let (purpose, name) = rest.split_once(':')?;
    PURPOSES.iter().find(|known| known.as_str() == purpose)?;
    name.parse().ok()
}
