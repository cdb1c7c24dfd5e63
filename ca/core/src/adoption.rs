//! An authority that was made elsewhere and is taken over: what it may do here, or why it may not.
//!
//! Laws: a function of the certificates and the instant; every certificate up to what verifiers trust is looked at, and a
//! refusal names the one that will not do. What the key allows decides what becomes of it: with room below it, it signs
//! issuers as a root of our own does; without room it is this replica's issuer itself; without its key it is only
//! trusted, and issuers come from where the key is.
//! Not here: files and keys (`rhizome_x509`, key rings), storing (`rhizome_server`).
//! Sources: RFC 5280 §4.2.1.9 and §6.1; Istio's plug-in certificates (istio.io, "Plug in CA Certificates").

use rhizome_id::{AuthorityId, KeyId, ReplicaName, Timestamp, TrustDomain};
use rhizome_x509::{CaCertificate, Issuer, IssuerError, SigningAlgorithm, check_signs};

use crate::authority::{Authority, AuthorityKind, AuthorityState, Custody};

/// How long an authority must still live to be worth taking over, in seconds: leaves live for hours.
const LEAST_LIFE_SECONDS: i64 = 86_400;

/// What is offered.
#[derive(Clone, Debug)]
pub struct Offer {
    /// The certificate of the authority.
    pub certificate: CaCertificate,
    /// Certificates that may stand between it and its root, in any order.
    pub between: Vec<CaCertificate>,
    /// What verifiers trust already. Empty: the certificate itself.
    pub roots: Vec<CaCertificate>,
    /// Whether its private key is offered, too.
    pub with_key: bool,
}

/// What an authority becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// It signs issuers.
    SignsIssuers,
    /// Its path length leaves no room for issuers: it signs workloads itself, for one replica.
    SignsWorkloads,
    /// It is trusted; its key stays where it is, and signs issuers there.
    IsTrusted,
}

/// An authority that may be taken over.
#[derive(Clone, Debug)]
pub struct Adoption {
    /// What it becomes.
    pub part: Part,
    /// Its certificate.
    pub certificate: CaCertificate,
    /// Those above it, nearest first; the last one is what verifiers trust. Empty when that is the certificate itself.
    pub above: Vec<CaCertificate>,
    /// How it signs.
    pub algorithm: Option<SigningAlgorithm>,
}

/// Judges `offer` for `domain` at `now`.
///
/// # Errors
/// [`AdoptionError`], naming the certificate.
pub fn judge(offer: &Offer, domain: &TrustDomain, now: Timestamp) -> Result<Adoption, AdoptionError> {
    let certificate = offer.certificate.clone();
    let above = path(offer)?;
    let whole: Vec<&CaCertificate> = std::iter::once(&certificate).chain(&above).collect();
    for (below, one) in whole.iter().enumerate() {
        check_one(one, domain, now)?;
        if one.not_after().since(now) < LEAST_LIFE_SECONDS {
            return Err(AdoptionError::EndsSoon { subject: one.subject().to_owned(), at: one.not_after() });
        }
        let allowed =
            one.path_len().is_none_or(|limit| usize::try_from(limit).is_ok_and(|limit| limit >= below));
        if !allowed {
            return Err(AdoptionError::PathLength { subject: one.subject().to_owned() });
        }
    }
    let anchor = above.last().unwrap_or(&certificate);
    if let Some(other) = offer.roots.iter().find(|root| *root != anchor && root.not_after() >= now) {
        return Err(AdoptionError::OtherRootTrusted { subject: other.subject().to_owned() });
    }
    let part = part(&whole, offer.with_key)?;
    if part == Part::SignsWorkloads && !certificate.may_sign_crls() {
        return Err(AdoptionError::NoCrlSign { subject: certificate.subject().to_owned() });
    }
    let algorithm = match part {
        Part::IsTrusted => None,
        Part::SignsIssuers | Part::SignsWorkloads => Some(check_signs(&certificate)?),
    };
    let served = match (part, above.split_last()) {
        // A root that may sign leaves only: no chain has it below itself.
        (Part::SignsWorkloads, None) => {
            return Err(AdoptionError::PathLength { subject: certificate.subject().to_owned() });
        }
        (Part::SignsWorkloads, Some((anchor, between))) => {
            let chain = std::iter::once(&certificate).chain(between).cloned().collect();
            Issuer::new(chain, anchor.clone())?;
            above.len()
        }
        // The issuer below it is served, too, and the anchor is not.
        (Part::SignsIssuers | Part::IsTrusted, _) => above.len().saturating_add(1),
    };
    if served > rhizome_x509::MAX_CHAIN_ABOVE_LEAF {
        return Err(AdoptionError::TooLong);
    }
    Ok(Adoption { part, certificate, above, algorithm })
}

/// Judges the certificate of an issuer that was signed elsewhere under `root`: until when what it signs can be valid.
/// `between` are certificates between the two, nearest first.
///
/// # Errors
/// [`AdoptionError`], naming the certificate.
pub fn judge_issuer(
    certificate: &CaCertificate,
    between: &[CaCertificate],
    root: &Authority,
    domain: &TrustDomain,
    now: Timestamp,
) -> Result<Timestamp, AdoptionError> {
    for one in std::iter::once(certificate).chain(between) {
        check_one(one, domain, now)?;
    }
    if !certificate.may_sign_crls() {
        return Err(AdoptionError::NoCrlSign { subject: certificate.subject().to_owned() });
    }
    let chain = std::iter::once(certificate).chain(between).chain(root.served()).cloned().collect();
    Ok(Issuer::new(chain, root.anchor().clone())?.not_after_limit())
}

/// The certificates above the offered one, up to one that verifiers trust.
fn path(offer: &Offer) -> Result<Vec<CaCertificate>, AdoptionError> {
    let mut above = Vec::new();
    let mut end = &offer.certificate;
    loop {
        if end.is_self_signed() {
            let trusted = offer.roots.is_empty() || offer.roots.contains(end);
            return if trusted {
                Ok(above)
            } else {
                Err(AdoptionError::OtherRoot { subject: end.subject().to_owned() })
            };
        }
        let next = offer.between.iter().chain(&offer.roots).find(|one| *one != end && end.is_issued_by(one));
        let Some(next) = next else {
            return Err(AdoptionError::NoIssuer { subject: end.subject().to_owned() });
        };
        if above.len() > rhizome_x509::MAX_CHAIN_ABOVE_LEAF {
            return Err(AdoptionError::TooLong);
        }
        above.push(next.clone());
        end = next;
    }
}

fn check_one(one: &CaCertificate, domain: &TrustDomain, now: Timestamp) -> Result<(), AdoptionError> {
    let subject = || one.subject().to_owned();
    if now > one.not_after() {
        return Err(AdoptionError::Expired { subject: subject(), at: one.not_after() });
    }
    if now < one.not_before() {
        return Err(AdoptionError::NotYet { subject: subject(), at: one.not_before() });
    }
    if one.narrows_usages() && !one.is_self_signed() {
        return Err(AdoptionError::Usages { subject: subject() });
    }
    if one.has_name_constraints() {
        return Err(IssuerError::NameConstraints { subject: subject() }.into());
    }
    match one.spiffe_id() {
        Some(id) if id.trust_domain() != *domain => {
            Err(AdoptionError::OtherTrustDomain { subject: subject(), found: id.trust_domain().to_string() })
        }
        Some(_) | None => Ok(()),
    }
}

/// Room for an issuer below the first certificate, as every certificate of the path sees it.
fn part(whole: &[&CaCertificate], with_key: bool) -> Result<Part, AdoptionError> {
    let narrow = whole.iter().enumerate().find(|(below, one)| {
        one.path_len().is_some_and(|limit| usize::try_from(limit).is_ok_and(|limit| limit <= *below))
    });
    match (with_key, narrow) {
        (false, Some((_, one))) => Err(AdoptionError::PathLength { subject: one.subject().to_owned() }),
        (false, None) => Ok(Part::IsTrusted),
        (true, None) => Ok(Part::SignsIssuers),
        (true, Some(_)) => Ok(Part::SignsWorkloads),
    }
}

/// Under which names an adopted authority is stored.
#[derive(Clone, Debug)]
pub struct Names {
    /// The name of what verifiers trust, or of what signs issuers.
    pub root: AuthorityId,
    /// The name of the issuer, where the authority is one.
    pub issuer: AuthorityId,
    /// Its key.
    pub key: KeyId,
    /// What the key of a root would be called that stays elsewhere: no ring has it, and none is asked to destroy it.
    pub elsewhere: KeyId,
    /// The replica that takes it over.
    pub replica: ReplicaName,
}

/// The records of an adopted authority, all prepared: the machine of authorities activates them as it does the very
/// first that are made here.
pub fn records(adoption: &Adoption, names: &Names, now: Timestamp) -> Vec<Authority> {
    let Adoption { part, certificate, above, algorithm } = adoption;
    let record = |id: &AuthorityId, kind, certificate: &CaCertificate| Authority {
        id: id.clone(),
        kind,
        replica: names.replica.clone(),
        key: names.key.clone(),
        algorithm: algorithm.unwrap_or_default(),
        certificate: certificate.clone(),
        issuer: None,
        state: AuthorityState::Prepared,
        prepared_at: now,
        activated_at: None,
        custody: Custody::Here,
        cross: None,
        canary: false,
        retired_at: None,
        above: Vec::new(),
    };
    let root = |certificate| record(&names.root, AuthorityKind::Root, certificate);
    match (part, above.split_last()) {
        (Part::SignsIssuers, _) => vec![Authority { above: above.clone(), ..root(certificate) }],
        (Part::SignsWorkloads, Some((anchor, between))) => {
            let issuer = record(&names.issuer, AuthorityKind::Issuer, certificate);
            vec![
                Authority { custody: Custody::Elsewhere, key: names.elsewhere.clone(), ..root(anchor) },
                Authority { issuer: Some(names.root.clone()), above: between.to_vec(), ..issuer },
            ]
        }
        (Part::SignsWorkloads, None) | (Part::IsTrusted, _) => {
            let root = Authority { custody: Custody::Elsewhere, above: above.clone(), ..root(certificate) };
            vec![Authority { key: names.elsewhere.clone(), ..root }]
        }
    }
}

/// Why an authority may not be taken over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdoptionError {
    /// Verifiers would narrow what is below it to one use.
    #[error(
        "`{subject}` has an extended key usage without serverAuth or without clientAuth: verifiers would refuse one half of \
         every mutual handshake below it"
    )]
    Usages {
        /// Its subject.
        subject: String,
    },
    /// Other roots are trusted beside the one that the chain ends in.
    #[error(
        "verifiers trust `{subject}`, too, and would not trust it any more; finish that change of roots first, and give \
         the one root that remains"
    )]
    OtherRootTrusted {
        /// The subject of one of them.
        subject: String,
    },
    /// Its last second has passed.
    #[error("`{subject}` expired at {at}")]
    Expired {
        /// Whose.
        subject: String,
        /// When.
        at: Timestamp,
    },
    /// It is not valid yet.
    #[error("`{subject}` is not valid before {at}; is the clock right?")]
    NotYet {
        /// Whose.
        subject: String,
        /// From when on it is.
        at: Timestamp,
    },
    /// It ends within a day.
    #[error("`{subject}` ends at {at}, within a day: too soon to be taken over")]
    EndsSoon {
        /// Whose.
        subject: String,
        /// When.
        at: Timestamp,
    },
    /// The chain does not reach a root.
    #[error("no certificate that was given issued `{subject}`; give the chain up to the root, and the root")]
    NoIssuer {
        /// The end of the chain.
        subject: String,
    },
    /// The chain ends in a root that verifiers do not trust.
    #[error("the chain ends in `{subject}`, which is not among the roots that were given")]
    OtherRoot {
        /// Its subject.
        subject: String,
    },
    /// Too many certificates.
    #[error("the chain would be too long: peers accept four certificates, the workload's among them")]
    TooLong,
    /// No room below a certificate.
    #[error("the path length of `{subject}` leaves no room for what would stand below it")]
    PathLength {
        /// Its subject.
        subject: String,
    },
    /// It would sign workloads, and must not sign the lists of those that are revoked.
    #[error(
        "`{subject}` would sign workloads itself, but its keyUsage lacks cRLSign: verifiers would refuse its revocation \
         lists, and with them every certificate; let its root sign an issuer of ours instead, with `rhizome root import \
         --cert ROOT` and `rhizome root ceremony`"
    )]
    NoCrlSign {
        /// Its subject.
        subject: String,
    },
    /// It names another trust domain.
    #[error("`{subject}` is of the trust domain {found}; the configuration says another")]
    OtherTrustDomain {
        /// Its subject.
        subject: String,
        /// The one it names.
        found: String,
    },
    /// Nothing can be signed in its name.
    #[error(transparent)]
    Issuer(#[from] IssuerError),
}

#[cfg(test)]
#[path = "adoption_tests.rs"]
mod tests;
