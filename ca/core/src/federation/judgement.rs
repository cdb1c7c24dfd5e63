//! Whether a fetched bundle counts.
//!
//! Laws: the sequence never goes back; one sequence has one content; without sequences the last one fetched wins (FED
//! §4.2); a bundle in which nothing can be used is refused (TB §4.1.3), since it would make every identity of the domain
//! invalid; roots that have expired are left out, because some verifiers do not look at an anchor's end.
//! Sources: TB §4.1, §4.2; FED §4.2; ca/docs/attacks.md §1.4.

use rhizome_id::{Digest, Timestamp};
use rhizome_x509::{Bundle, BundleError, SpiffeDocument};

use super::{HeldBundle, Origin, Relationship};
use crate::limits::FOREIGN_BUNDLE_BYTES;

/// A document that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// What it says, without roots that have expired.
    pub bundle: HeldBundle,
    /// Entries of it that were of no use, and ignored.
    pub ignored: u64,
}

/// Why a document does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is no SPIFFE bundle document, too large, or empty.
    #[error(transparent)]
    Document(#[from] BundleError),
    /// Larger than what is kept of a foreign domain.
    #[error("the document has {bytes} bytes; the limit is 262144")]
    TooLarge {
        /// Bytes found.
        bytes: usize,
    },
    /// The first one does not hold the root that was named.
    #[error("no root of the first bundle has the fingerprint {wanted}; it has {}", in_words(found))]
    Fingerprint {
        /// The one that was named.
        wanted: Digest,
        /// The ones there are; the first few.
        found: Vec<Digest>,
    },
    /// An older one.
    #[error("the endpoint offers sequence {offered}, older than {held}, which is in force")]
    Older {
        /// The sequence in force.
        held: u64,
        /// The sequence offered.
        offered: u64,
    },
    /// Another content under the same sequence.
    #[error(
        "the endpoint offers sequence {sequence} with other content than the sequence {sequence} that is in force: \
         either two endpoints disagree, or somebody forges"
    )]
    Differs {
        /// The sequence.
        sequence: u64,
    },
    /// Nothing in it is alive.
    #[error("every root in it has expired by this server's clock ({now}), and it has no key for JWT-SVIDs")]
    Expired {
        /// The time here.
        now: Timestamp,
    },
}

impl Refusal {
    /// A stable word for metrics and records.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Document(_) => "document",
            Self::TooLarge { .. } => "too_large",
            Self::Fingerprint { .. } => "fingerprint",
            Self::Older { .. } => "older_sequence",
            Self::Differs { .. } => "same_sequence",
            Self::Expired { .. } => "expired",
        }
    }
}

/// Fingerprints told when none fits.
const TOLD: usize = 4;

fn in_words(found: &[Digest]) -> String {
    let all: Vec<String> = found.iter().map(ToString::to_string).collect();
    if all.is_empty() { "none".to_owned() } else { all.join(", ") }
}

/// Judges what the endpoint of `relationship` answered, when `held` is in force.
///
/// # Errors
/// [`Refusal`]; what is held stays in force then.
pub fn judge(
    relationship: &Relationship,
    held: Option<&HeldBundle>,
    text: &str,
    now: Timestamp,
) -> Result<Judged, Refusal> {
    let (judged, offered) = read(relationship, text, Origin::Endpoint, now)?;
    if let (None, Some(wanted)) = (held, relationship.first_fetch) {
        let mut found = offered.anchors().iter().map(rhizome_x509::CaCertificate::fingerprint);
        if !found.any(|fingerprint| fingerprint == wanted) {
            let found = offered.anchors().iter().map(rhizome_x509::CaCertificate::fingerprint);
            return Err(Refusal::Fingerprint { wanted, found: found.take(TOLD).collect() });
        }
    }
    if let Some(held) = held {
        let offered = judged.bundle.sequence;
        if offered < held.sequence {
            return Err(Refusal::Older { held: held.sequence, offered });
        }
        // 0: the domain does not count, so the last one fetched wins.
        if offered == held.sequence && offered > 0 && judged.bundle.offered != held.offered {
            return Err(Refusal::Differs { sequence: offered });
        }
    }
    Ok(judged)
}

/// Takes a document from the hand of `by`, who vouches for it: no sequence is compared.
///
/// # Errors
/// [`Refusal::Document`] and [`Refusal::Expired`].
pub fn by_hand(relationship: &Relationship, text: &str, by: &str, now: Timestamp) -> Result<Judged, Refusal> {
    read(relationship, text, Origin::Hand { by: by.to_owned() }, now).map(|(judged, _)| judged)
}

fn read(
    relationship: &Relationship,
    text: &str,
    origin: Origin,
    now: Timestamp,
) -> Result<(Judged, Bundle), Refusal> {
    if text.len() > FOREIGN_BUNDLE_BYTES {
        return Err(Refusal::TooLarge { bytes: text.len() });
    }
    let document = SpiffeDocument::parse(relationship.trust_domain.clone(), text)?;
    let live = document.bundle.pruned(now).map_err(|_nothing_left| Refusal::Expired { now })?;
    let bundle = HeldBundle {
        sequence: live.sequence(),
        refresh_hint: live.refresh_hint(),
        anchors: live.anchors().to_vec(),
        jwt_keys: live.jwt_keys().to_vec(),
        offered: document.bundle.digest(),
        since: now,
        origin,
    };
    let ignored = u64::try_from(document.ignored).unwrap_or(u64::MAX);
    Ok((Judged { bundle, ignored }, document.bundle))
}
