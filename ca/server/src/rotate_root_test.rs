//! The self-test of a new root: a leaf is signed below it, with an issuer made for that alone, and verified as a peer would.
//!
//! Laws: whatever is signed is recorded first, as everything else; the issuer's key is destroyed at the end, and its
//! certificate is stored nowhere, so nothing else can come of it. Not here: what follows from it
//! (`rhizome_core::rotation`).

use std::sync::Arc;

use rhizome_core::documents::Versioned;
use rhizome_core::issuance::{ActiveIssuer, Prepared};
use rhizome_core::limits::BACKDATE_SECONDS;
use rhizome_core::ports::{KeyInfo, KeyPurpose};
use rhizome_core::rotation::Rotation;
use rhizome_id::{AuthorityId, KeyId, Timestamp};
use rhizome_x509::{
    Bundle, CaCertificate, IntermediateRole, IntermediateSpec, Issuer, PeerUsage, TrustAnchors, verify_peer,
};

use crate::ca::Ca;
use crate::error::{ApiError, IssueError};

/// How keys of self-tests are called; what they sign is nobody's.
pub(crate) const PROBE: &str = "probe-";
/// How long the issuer of a self-test is valid; its leaf is verified at once.
const LIFE_SECONDS: i64 = 3_600;

impl Ca {
    /// Signs and verifies a leaf below `root`.
    ///
    /// # Errors
    /// What went wrong; the root must not be used then.
    pub(crate) async fn self_test(
        self: &Arc<Self>,
        held: &Versioned<Arc<Rotation>>,
        root: &AuthorityId,
        now: Timestamp,
    ) -> Result<(), ApiError> {
        let name = format!("{PROBE}{}", held.value.name);
        let bug = |cause: rhizome_id::NameError| ApiError::Bug(cause.to_string());
        let (id, key): (AuthorityId, KeyId) = (name.parse().map_err(bug)?, name.parse().map_err(bug)?);
        let key = self.ports.keys.generate(&key, KeyPurpose::Issuer, self.settings.algorithm).await;
        let key = key.map_err(IssueError::from)?;
        let outcome = self.sign_and_verify(&id, &key, root, now).await;
        self.forget_key(&key).await;
        outcome
    }

    async fn sign_and_verify(
        self: &Arc<Self>,
        id: &AuthorityId,
        key: &KeyInfo,
        root: &AuthorityId,
        now: Timestamp,
    ) -> Result<(), ApiError> {
        let missing = || ApiError::NotFound { what: "root", name: root.to_string() };
        let state = self.state();
        let above = Arc::clone(&state.authorities().get(root).ok_or_else(missing)?.value);
        let (serial, _) = self.serials.next(&*self.ports.store, &*self.ports.entropy, now).await?;
        let spec = IntermediateSpec {
            role: IntermediateRole::Own,
            trust_domain: &self.settings.trust_domain,
            generation: id,
            public_key: &key.public_key,
            algorithm: key.algorithm,
            serial,
            not_before: now.minus(BACKDATE_SECONDS).max(above.certificate.not_before()),
            not_after: now.plus(LIFE_SECONDS).min(above.certificate.not_after()),
        };
        let signer = (&above.id, &above.certificate, above.algorithm);
        let prepared =
            Prepared::intermediate(&spec, signer, &above.key, "server").map_err(IssueError::from)?;
        let certificate = self.certify(prepared, self.root_right()?, now).await?.into_inner();
        let bad = |cause: &dyn std::fmt::Display| ApiError::Bug(format!("the self-test failed: {cause}"));
        let certificate = CaCertificate::parse(certificate.der()).map_err(|cause| bad(&cause))?;
        let issuer = Issuer::new(vec![certificate.clone()], above.certificate.clone());
        let issuer = issuer.map_err(|cause| bad(&cause))?;
        let issuer = Arc::new(ActiveIssuer { id: id.clone(), key: key.id.clone(), issuer });
        let (leaf, _key) = self.own_leaf(&issuer, None).await?;

        let mut judged = vec![(above.certificate.clone(), vec![certificate.der().to_vec()])];
        if let Some(cross) = &above.cross
            && let Some(other) = state.authorities().get(&cross.by)
        {
            let between = [&certificate, &cross.certificate].into_iter().chain(other.value.served());
            let chain = between.map(|it| it.der().to_vec()).collect();
            judged.push((other.value.anchor().clone(), chain));
        }
        for (trusted, chain) in judged {
            let domain = self.settings.trust_domain.clone();
            let bundle = Bundle::new(domain, 1, self.settings.refresh_hint, vec![trusted]);
            let anchors = TrustAnchors::from_bundle(&bundle.map_err(|cause| bad(&cause))?);
            let sent: Vec<&[u8]> = chain.iter().map(Vec::as_slice).collect();
            for usage in [PeerUsage::Client, PeerUsage::Server] {
                verify_peer(leaf.certificate().der(), &sent, &anchors, usage, now)
                    .map_err(|cause| bad(&cause))?;
            }
        }
        Ok(())
    }
}
