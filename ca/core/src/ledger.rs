//! The ledger: what this authority signed, changed and refused, in one hash chain.
//!
//! Laws: a certificate's entry is durable before its signature exists, so an entry without a certificate is possible
//! and a certificate without an entry is not; an entry counts as issued unless a later `signing_failed` names its
//! serial. Each record's hash covers the one before it, so an altered, removed, inserted or reordered record breaks
//! the chain at a named position. What the chain cannot see is a cut-off tail together with the stored head: hence
//! `rhizome ledger head` prints position and hash to keep elsewhere, and `ledger verify --expect-head` compares.
//! Not here: durability and group commit (`rhizome-store`), who reads it (`rhizome-server`). No secret ever enters
//! an entry: tokens appear by their public id only.
//! Sources: ca/docs/attacks.md §2 (1, 12), ADR 0003.

use std::sync::Arc;

use rhizome_id::{AuthorityId, Digest, KeyId, Serial, SerialCounter, SpiffeId, Timestamp};
use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

/// What an entry speaks of. Stored as JSON with an `event` field; fields are only ever added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The intent to sign a certificate.
    Issued(Issuance),
    /// The intent to sign a JWT-SVID.
    JwtIssued(JwtIssuance),
    /// An intent whose signature never came to be: that serial is on no certificate, and no token has it as its `jti`.
    SigningFailed {
        /// Its serial.
        serial: Serial,
        /// Why, for people.
        reason: String,
    },
    /// Somebody, or the authority itself, changed something.
    Changed {
        /// Who: the stable text of a principal.
        by: String,
        /// What was done, such as `rule.put`.
        action: String,
        /// What it was done to.
        subject: String,
        /// Why or with which content, for people.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        detail: String,
    },
    /// A request by an authenticated caller was refused.
    Refused {
        /// Who: the stable text of a principal.
        by: String,
        /// What was asked, such as `certificate.sign`.
        action: String,
        /// The stable code of the refusal.
        code: String,
        /// For people.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        detail: String,
    },
}

impl Event {
    /// The stable name of the event, as in the JSON `event` field.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Issued(_) => "issued",
            Self::JwtIssued(_) => "jwt_issued",
            Self::SigningFailed { .. } => "signing_failed",
            Self::Changed { .. } => "changed",
            Self::Refused { .. } => "refused",
        }
    }
}

impl Event {
    /// The counter under which a record of it is filed.
    const fn counter(&self) -> Option<SerialCounter> {
        match self {
            Self::Issued(issuance) => Some(issuance.serial.counter()),
            Self::JwtIssued(issuance) => Some(issuance.jti.counter()),
            Self::SigningFailed { .. } | Self::Changed { .. } | Self::Refused { .. } => None,
        }
    }
}

/// Everything about one JWT-SVID that can be known before it is signed. Never the token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JwtIssuance {
    /// Whose token (`sub`).
    pub spiffe_id: SpiffeId,
    /// Its unique id, from the same counter as serial numbers.
    pub jti: Serial,
    /// Whom it is meant for (`aud`).
    pub audiences: Vec<String>,
    /// When it was made (`iat`).
    pub issued_at: Timestamp,
    /// The first second at which it is not valid any more (`exp`).
    pub expires_at: Timestamp,
    /// SHA-256 of the JWS signing input.
    pub input: Digest,
    /// The authority that signs; also the `kid`.
    pub authority: AuthorityId,
    /// The key it signs with.
    pub key: KeyId,
    /// Who asked: the stable text of a principal.
    pub caller: String,
    /// The rule that granted it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Attributes that were vouched for, as `name=value`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attributes: Vec<String>,
}

/// Everything about one certificate that can be known before it is signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issuance {
    /// Which profile: `workload`, `node`, `server`, `admin`, `root` or `issuer`.
    pub profile: Profile,
    /// The identity in the URI SAN.
    pub spiffe_id: SpiffeId,
    /// DNS SANs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns_names: Vec<String>,
    /// Serial number.
    pub serial: Serial,
    /// First second of validity.
    pub not_before: Timestamp,
    /// Last second of validity.
    pub not_after: Timestamp,
    /// SHA-256 of the DER SubjectPublicKeyInfo.
    pub public_key: Digest,
    /// SHA-256 of the to-be-signed bytes, DER.
    pub tbs: Digest,
    /// The authority that signs.
    pub issuer: AuthorityId,
    /// The key it signs with.
    pub key: KeyId,
    /// Who asked: the stable text of a principal.
    pub caller: String,
    /// The rule that granted it, for workloads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// The caller's name for the request, if it gave one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// Sequence of the bundle that went out with it.
    pub bundle: u64,
    /// Attributes that were vouched for, as `name=value`, for audits and the dry run of rules.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attributes: Vec<String>,
}

/// The shapes of certificate this authority issues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// A workload's X.509-SVID.
    Workload,
    /// An agent's own identity.
    Node,
    /// The serving certificate of this authority.
    Server,
    /// An administrator's identity.
    Admin,
    /// A root of trust.
    Root,
    /// An intermediate that signs leaves.
    Issuer,
}

/// An entry on its way into the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    counter: Option<SerialCounter>,
    event: &'static str,
    body: Arc<str>,
}

/// [`Event::Issued`] by reference.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Borrowed<'a> {
    Issued(&'a Issuance),
}

/// The JSON form of an entry: its instant, then the event's own fields.
#[derive(Deserialize)]
struct Body<E> {
    at: Timestamp,
    #[serde(flatten)]
    event: E,
}

/// What [`Body`] reads: the instant first, then the fields of the event. Written by hand around the event's own JSON,
/// since this happens once for every certificate and a flattened struct costs twice as much.
fn body(at: Timestamp, event: &impl Serialize) -> Arc<str> {
    let mut json = Vec::with_capacity(BODY_BYTES);
    json.extend_from_slice(b"{\"at\":\"");
    json.extend_from_slice(at.to_string().as_bytes());
    json.push(b'"');
    let event_at = json.len();
    // Plain structs with string keys: serialising them cannot fail; see `Transaction::put`. An event is never empty,
    // so its opening brace becomes the comma.
    match serde_json::to_writer(&mut json, event) {
        Ok(()) => json.get_mut(event_at).into_iter().for_each(|brace| *brace = b','),
        Err(_unserialisable) => json.clear(),
    }
    String::from_utf8(json).unwrap_or_default().into()
}

/// Room for an issuance with a few attributes.
const BODY_BYTES: usize = 1_024;

impl Entry {
    /// An entry saying that `event` happened at `at`.
    pub fn new(at: Timestamp, event: &Event) -> Self {
        Self { counter: event.counter(), event: event.name(), body: body(at, event) }
    }

    /// As [`Entry::new`] of [`Event::Issued`], without a copy of `issuance`.
    pub fn issued(at: Timestamp, issuance: &Issuance) -> Self {
        let counter = Some(issuance.serial.counter());
        Self { counter, event: "issued", body: body(at, &Borrowed::Issued(issuance)) }
    }

    /// The serial counter of an issuance, of a certificate or of a token.
    pub const fn counter(&self) -> Option<SerialCounter> {
        self.counter
    }

    /// The event's stable name.
    pub const fn event_name(&self) -> &'static str {
        self.event
    }

    /// The JSON body, exactly the bytes that are hashed and stored.
    pub const fn body(&self) -> &Arc<str> {
        &self.body
    }
}

/// Where a record stands in the chain: 1 for the first, without gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position(pub u64);

/// The end of the chain: what the next record is linked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Position of the last record; 0 when there is none.
    pub position: Position,
    /// Its hash; zero when there is none.
    pub hash: Digest,
}

impl Head {
    /// The head of an empty ledger.
    pub const EMPTY: Self = Self { position: Position(0), hash: Digest::ZERO };

    /// Links `entry` behind this head. Stores call it, in the order in which they write.
    pub fn link(self, entry: &Entry) -> Record {
        let position = Position(self.position.0.saturating_add(1));
        let hash = chain_hash(&self.hash, position, entry.counter, &entry.body);
        Record { position, previous: self.hash, hash, counter: entry.counter, body: Arc::clone(&entry.body) }
    }
}

#[cfg(test)]
impl Head {
    /// Links a body that this release cannot read.
    pub(crate) fn link_raw_for_tests(self, body: &str) -> Record {
        let position = Position(self.position.0.saturating_add(1));
        let hash = chain_hash(&self.hash, position, None, body);
        Record { position, previous: self.hash, hash, counter: None, body: body.into() }
    }
}

fn chain_hash(previous: &Digest, position: Position, counter: Option<SerialCounter>, body: &str) -> Digest {
    let mut context = Context::new(&SHA256);
    context.update(b"rhizome.ledger.v1\0");
    context.update(previous.as_bytes());
    context.update(&position.0.to_be_bytes());
    context.update(&counter.map_or(u64::MAX, SerialCounter::value).to_be_bytes());
    context.update(body.as_bytes());
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    Digest::from_bytes(hash)
}

/// A record as it stands in the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its place.
    pub position: Position,
    /// Hash of the record before it.
    pub previous: Digest,
    /// Its own hash.
    pub hash: Digest,
    /// Counter of the serial, for issuances.
    pub counter: Option<SerialCounter>,
    /// JSON.
    pub body: Arc<str>,
}

impl Record {
    /// The head once this record is the last one.
    pub const fn head(&self) -> Head {
        Head { position: self.position, hash: self.hash }
    }

    /// What it says.
    ///
    /// # Errors
    /// [`Fault`] when the body is not an event of this release.
    pub fn read(&self) -> Result<(Timestamp, Event), Fault> {
        match serde_json::from_str::<Body<Event>>(&self.body) {
            Ok(body) => Ok((body.at, body.event)),
            Err(cause) => Err(Fault { at: self.position, kind: FaultKind::Unreadable(cause.to_string()) }),
        }
    }
}

/// Proof that a store has made an entry durable: handed out by stores only, after the commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Where it stands.
    pub position: Position,
    /// Its hash.
    pub hash: Digest,
    /// Counter of the serial it is about, if any.
    pub counter: Option<SerialCounter>,
}

impl Receipt {
    /// A store's word that `record` is durable. Only stores call this; the tidy test lists its callers.
    pub const fn assertion(record: &Record) -> Self {
        Self { position: record.position, hash: record.hash, counter: record.counter }
    }
}

/// What is wrong with a ledger, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("ledger record {}: {kind}", at.0)]
pub struct Fault {
    /// The first position at which the chain does not hold.
    pub at: Position,
    /// What does not hold.
    pub kind: FaultKind,
}

/// How a chain can be broken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FaultKind {
    /// A position is missing: a record was removed, or two were swapped.
    #[error("expected position {expected} here; a record was removed or reordered")]
    Gap {
        /// The position that should stand here.
        expected: u64,
    },
    /// The record does not follow the one before it.
    #[error("it does not follow the record before it; one of the two was replaced or reordered")]
    Unlinked,
    /// The content does not give the stored hash.
    #[error("its content does not give its hash; it was altered")]
    Altered,
    /// The serial in the body and the serial it is filed under differ.
    #[error("it is filed under another serial than it names")]
    Misfiled,
    /// The body is not an event.
    #[error("its content cannot be read: {0}")]
    Unreadable(String),
    /// The chain ends elsewhere than the store, or the administrator, says.
    #[error(
        "the ledger ends here, but its head should be record {expected} ({hash}); the tail was cut off or replaced"
    )]
    WrongHead {
        /// Position of the expected head.
        expected: u64,
        /// Hash of the expected head.
        hash: Digest,
    },
    /// The record at the place of a head that was kept has another hash.
    #[error("this record has another hash than the head that was kept ({kept}); the ledger was rewritten")]
    Rewritten {
        /// The hash that was kept.
        kept: Digest,
    },
}

/// Walks a ledger from its first record and finds the first fault. Feed it every record in the order of positions.
#[derive(Debug)]
pub struct Verifier {
    head: Head,
}

impl Default for Verifier {
    fn default() -> Self {
        Self { head: Head::EMPTY }
    }
}

impl Verifier {
    /// Continues a walk that has come to `head`.
    pub const fn after(head: Head) -> Self {
        Self { head }
    }

    /// Checks the next record.
    ///
    /// # Errors
    /// The [`Fault`] that breaks the chain here; the verifier then stays where it was.
    pub fn check(&mut self, record: &Record) -> Result<(), Fault> {
        let fault = |kind| Err(Fault { at: record.position, kind });
        let expected = self.head.position.0.saturating_add(1);
        if record.position.0 != expected {
            return fault(FaultKind::Gap { expected });
        }
        if record.previous != self.head.hash {
            return fault(FaultKind::Unlinked);
        }
        if chain_hash(&record.previous, record.position, record.counter, &record.body) != record.hash {
            return fault(FaultKind::Altered);
        }
        let (_, event) = record.read()?;
        if event.counter() != record.counter {
            return fault(FaultKind::Misfiled);
        }
        self.head = record.head();
        Ok(())
    }

    /// Where the walk stands.
    pub const fn head(&self) -> Head {
        self.head
    }

    /// Ends the walk: it must have reached `expected`.
    ///
    /// # Errors
    /// [`FaultKind::WrongHead`] when the chain ends elsewhere.
    pub fn finish(self, expected: Head) -> Result<Head, Fault> {
        if self.head == expected {
            return Ok(self.head);
        }
        let kind = FaultKind::WrongHead { expected: expected.position.0, hash: expected.hash };
        Err(Fault { at: self.head.position, kind })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(subject: &str) -> Entry {
        let event = Event::Changed {
            by: "local:uid=0".into(),
            action: "rule.put".into(),
            subject: subject.into(),
            detail: String::new(),
        };
        Entry::new(Timestamp::from_unix(1_000), &event)
    }

    fn ledger_of(subjects: &[&str]) -> Vec<Record> {
        let mut head = Head::EMPTY;
        let mut records = Vec::new();
        for subject in subjects {
            let record = head.link(&changed(subject));
            head = record.head();
            records.push(record);
        }
        records
    }

    fn verify(records: &[Record], head: Head) -> Result<Head, Fault> {
        let mut verifier = Verifier::default();
        records.iter().try_for_each(|record| verifier.check(record))?;
        verifier.finish(head)
    }

    #[test]
    fn an_entry_reads_back_as_it_was_written() {
        let record = Head::EMPTY.link(&changed("a \"quoted\" name"));
        let (at, event) = record.read().unwrap();
        assert_eq!(at, Timestamp::from_unix(1_000));
        assert!(matches!(event, Event::Changed { subject, .. } if subject == "a \"quoted\" name"));
        assert!(
            record.body.starts_with(r#"{"at":"1970-01-01T00:16:40Z","event":"changed","by":"local:uid=0","#)
        );
    }

    #[test]
    fn an_untouched_ledger_verifies_to_its_head() {
        let records = ledger_of(&["a", "b", "c"]);
        let head = records[2].head();
        assert_eq!(verify(&records, head), Ok(head));
        assert_eq!(verify(&[], Head::EMPTY), Ok(Head::EMPTY));
    }

    #[test]
    fn an_altered_record_is_found_at_its_position() {
        let mut records = ledger_of(&["a", "b", "c"]);
        let head = records[2].head();
        records[1].body = records[1].body.replace("\"b\"", "\"x\"").into();
        assert_eq!(verify(&records, head).unwrap_err(), Fault { at: Position(2), kind: FaultKind::Altered });
    }

    #[test]
    fn a_record_replaced_together_with_its_hash_breaks_the_next_link() {
        let mut records = ledger_of(&["a", "b", "c"]);
        let head = records[2].head();
        records[1] = records[0].head().link(&changed("x"));
        assert_eq!(verify(&records, head).unwrap_err(), Fault { at: Position(3), kind: FaultKind::Unlinked });
    }

    #[test]
    fn removed_and_reordered_records_are_found() {
        let whole = ledger_of(&["a", "b", "c"]);
        let head = whole[2].head();
        let removed = [whole[0].clone(), whole[2].clone()];
        assert_eq!(verify(&removed, head).unwrap_err().kind, FaultKind::Gap { expected: 2 });
        let swapped = [whole[1].clone(), whole[0].clone(), whole[2].clone()];
        assert_eq!(verify(&swapped, head).unwrap_err().kind, FaultKind::Gap { expected: 1 });
        let renumbered = [whole[0].clone(), Record { position: Position(2), ..whole[2].clone() }];
        assert_eq!(verify(&renumbered, head).unwrap_err().kind, FaultKind::Unlinked);
    }

    #[test]
    fn a_cut_off_tail_is_found_by_its_head() {
        let whole = ledger_of(&["a", "b", "c"]);
        let fault = verify(&whole[..2], whole[2].head()).unwrap_err();
        assert_eq!(fault.at, Position(2));
        assert!(matches!(fault.kind, FaultKind::WrongHead { expected: 3, .. }));
    }
}
