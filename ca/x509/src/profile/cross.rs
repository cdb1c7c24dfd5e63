//! The cross-certificate: one root's key, certified by another root, so that a verifier which holds only the other accepts
//! chains below the first.
//!
//! Laws: subject, key and key identifier are those of the certified root, byte for byte, so that it takes the place of the
//! self-signed certificate in a path; path length 1, for one issuer below it; it lives no longer than either root.
//! Sources: RFC 5280 §6.1; the shape that OpenSSL, GnuTLS, Go, Java and webpki accept in a linear chain.

use rcgen::BasicConstraints;
use rhizome_id::{Serial, SpiffeId, Timestamp, TrustDomain};

use super::{PrepareError, check_key, common_params, encode, set_authority_fields};
use crate::certificate::CaCertificate;
use crate::issuer::{IssuerError, IssuerNames};
use crate::key::SigningAlgorithm;
use crate::lint::{self, Expected, Kind};
use crate::tbs::Linted;

/// A certificate for the key of a root, to be signed by another root.
#[derive(Debug, Clone, Copy)]
pub struct CrossSpec<'a> {
    /// The trust domain of both.
    pub trust_domain: &'a TrustDomain,
    /// The root whose key is certified.
    pub root: &'a CaCertificate,
    /// The serial number, unique for the certificate above.
    pub serial: Serial,
    /// First second of validity.
    pub not_before: Timestamp,
    /// Last second of validity (inclusive).
    pub not_after: Timestamp,
}

/// Builds and lints a cross-certificate under `issuer`, which signs with `issuer_algorithm`.
///
/// # Errors
/// [`PrepareError`] when the algorithm does not belong to the issuer's key, either root allows no CA below it, or a rule is
/// broken: a root is not certified by itself, and the certificate outlives neither root.
pub fn prepare_cross(
    spec: &CrossSpec<'_>,
    issuer: &CaCertificate,
    issuer_algorithm: SigningAlgorithm,
) -> Result<Linted, PrepareError> {
    let CrossSpec { trust_domain, root, serial, not_before, not_after } = *spec;
    check_key(issuer.public_key(), issuer_algorithm)?;
    let allows =
        |certificate: &CaCertificate, below: u32| certificate.path_len().is_none_or(|it| it >= below);
    for (certificate, below) in [(issuer, 2), (root, 1)] {
        if !allows(certificate, below) {
            return Err(IssuerError::PathLength { subject: certificate.subject().to_owned() }.into());
        }
    }
    let public_key = root.public_key();
    let spiffe_id = SpiffeId::of_trust_domain(trust_domain);
    let subject = IssuerNames::of(root)?;
    let mut params = common_params(serial, not_before, not_after, public_key)?;
    let name = subject.params().distinguished_name.clone();
    set_authority_fields(&mut params, name, &spiffe_id, BasicConstraints::Constrained(1))?;
    params.use_authority_key_identifier_extension = true;

    let names = IssuerNames::of(issuer)?;
    let tbs = encode(&params, public_key, names.params(), issuer_algorithm)?;
    let window = (issuer.not_before().max(root.not_before()), issuer.not_after().min(root.not_after()));
    let passed = lint::lint(
        &tbs,
        &Expected {
            kind: Kind::Cross,
            serial: &serial,
            algorithm: issuer_algorithm,
            issuer_name: issuer.subject_der(),
            issuer_key_id: Some(issuer.key_identifier()),
            not_before,
            not_after,
            window,
            subject: root.subject_der(),
            public_key,
            authority_keys: &[issuer.public_key().digest()],
            authority_id: issuer.spiffe_id(),
            spiffe_id: &spiffe_id,
            dns_names: &[],
            ip_addresses: &[],
        },
    )?;
    let facts = (serial, not_before, not_after);
    Ok(Linted::new(tbs, issuer_algorithm, issuer.shared_public_key(), facts, passed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::Bundle;
    use crate::issuer::Issuer;
    use crate::lint::LintError;
    use crate::testing::{Authority, TestKey, at, domain, serial};
    use crate::verify::{PeerUsage, TrustAnchors, verify_peer};

    fn cross(root: &CaCertificate, by: &Authority, not_after: Timestamp) -> Result<Linted, PrepareError> {
        let spec =
            CrossSpec { trust_domain: &domain(), root, serial: serial(7, 0), not_before: at(-60), not_after };
        prepare_cross(&spec, &by.root, by.root_key.algorithm)
    }

    fn anchors(roots: &[&CaCertificate]) -> TrustAnchors {
        let roots = roots.iter().copied().cloned().collect();
        TrustAnchors::from_bundle(&Bundle::new(domain(), 1, rhizome_id::Ttl::hours(1), roots).unwrap())
    }

    #[test]
    fn a_linear_chain_is_accepted_by_holders_of_either_root_and_of_both() {
        let (old, new) = (
            Authority::of(crate::KeyAlgorithm::EcdsaP256, "g1"),
            Authority::of(crate::KeyAlgorithm::EcdsaP256, "g2"),
        );
        let sealed = old.root_key.seal(cross(&new.root, &old, at(Authority::LIFE)).unwrap());
        let bridge = CaCertificate::try_from(sealed).unwrap();
        assert_eq!(bridge.subject(), new.root.subject());
        assert_eq!(bridge.key_identifier(), new.root.key_identifier());
        assert!(!bridge.is_self_signed() && bridge.path_len() == Some(1));
        let chain = vec![new.certificate.clone(), bridge.clone()];
        let issuer = Issuer::new(chain, old.root.clone()).unwrap();
        assert_eq!(issuer.chain_der().len(), 2);
        assert!(issuer.not_after_limit() <= bridge.not_after());

        let leaf = new.key.seal(new.leaf(&TestKey::p256().public));
        let sent = [new.certificate.der(), bridge.der()];
        for trusted in [vec![&old.root], vec![&new.root], vec![&old.root, &new.root]] {
            for usage in [PeerUsage::Client, PeerUsage::Server] {
                verify_peer(leaf.der(), &sent, &anchors(&trusted), usage, at(0)).unwrap();
            }
        }
        let without = [new.certificate.der()];
        assert!(verify_peer(leaf.der(), &without, &anchors(&[&old.root]), PeerUsage::Client, at(0)).is_err());
    }

    #[test]
    fn a_cross_certificate_outlives_neither_root_and_no_root_certifies_itself() {
        let (old, new) = (
            Authority::of(crate::KeyAlgorithm::EcdsaP256, "g1"),
            Authority::of(crate::KeyAlgorithm::EcdsaP256, "g2"),
        );
        assert!(cross(&new.root, &old, at(Authority::ROOT_LIFE)).is_ok());
        let long = cross(&new.root, &old, at(Authority::ROOT_LIFE + 1)).unwrap_err();
        assert!(matches!(long, PrepareError::Lint(LintError::OutlivesAuthority { .. })), "{long}");
        let own = cross(&old.root, &old, at(Authority::LIFE)).unwrap_err();
        assert!(matches!(own, PrepareError::Lint(LintError::SubjectIsIssuer)), "{own}");
        let below = prepare_cross(
            &CrossSpec {
                trust_domain: &domain(),
                root: &new.certificate,
                serial: serial(7, 0),
                not_before: at(-60),
                not_after: at(100),
            },
            &old.root,
            old.root_key.algorithm,
        );
        assert!(matches!(below.unwrap_err(), PrepareError::Issuer(IssuerError::PathLength { .. })));
    }
}
