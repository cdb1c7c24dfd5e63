//! This server's own certificate: issued by itself like any other, renewed and swapped while it serves.
//!
//! Laws: it goes through the same decision, lint and ledger as every leaf. Its key is made in memory for each
//! certificate and is never stored. When renewal fails the old one stays in use until it expires, and every attempt
//! is logged.

use std::sync::Arc;
use std::time::Duration;

use rhizome_core::attributes::Attributes;
use rhizome_core::caller::{AttestedCaller, Principal, Scope};
use rhizome_core::documents::Transaction;
use rhizome_core::issuance::{self, ActiveIssuer, Circumstances, IssuanceError, IssuedLeaf, Recorded};
use rhizome_core::policy::{self, Facts, Wish};
use rhizome_id::{AuthorityId, RequestId, Timestamp};
use rhizome_tls::{ClientTrust, ServingIdentity};
use rhizome_x509::{KeyAlgorithm, RequestKey, TrustAnchors, VerifiedCsr};

use crate::ca::Ca;
use crate::error::{ApiError, IssueError};
use crate::system::Stopwatch;

/// How often the serving certificate is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// A serving certificate and when to replace it.
struct Serving {
    chain_der: Vec<Vec<u8>>,
    key: RequestKey,
    renew_at: Timestamp,
    not_after: Timestamp,
    issuer: AuthorityId,
}

impl Ca {
    /// Issues the first serving certificate.
    pub(crate) async fn start_serving(self: &Arc<Self>) -> Result<Arc<ServingIdentity>, ApiError> {
        let first = self.serving_certificate().await?;
        let identity = ServingIdentity::new(&first.chain_der, &first.key.pkcs8_der());
        let identity = Arc::new(identity.map_err(|cause| ApiError::Bug(cause.to_string()))?);
        let (ca, swapped) = (Arc::clone(self), Arc::clone(&identity));
        self.spawner
            .spawn_until_stop("serving certificate", async move { ca.keep_serving(&swapped, first).await });
        Ok(identity)
    }

    async fn keep_serving(self: &Arc<Self>, identity: &ServingIdentity, mut current: Serving) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let state = self.state();
            let other_issuer = state.issuer().is_some_and(|active| active.id != current.issuer);
            if self.ports.clock.now() < current.renew_at && !other_issuer {
                continue;
            }
            match self.serving_certificate().await {
                Ok(next) => match identity.set(&next.chain_der, &next.key.pkcs8_der()) {
                    Ok(()) => {
                        tracing::info!(not_after = %next.not_after, "serving certificate renewed");
                        current = next;
                    }
                    Err(cause) => tracing::error!(%cause, "the new serving certificate cannot be used"),
                },
                Err(cause) => tracing::warn!(
                    %cause, not_after = %current.not_after, "the serving certificate could not be renewed; trying again"
                ),
            }
        }
    }

    async fn serving_certificate(self: &Arc<Self>) -> Result<Serving, ApiError> {
        let watch = Stopwatch::start();
        let state = self.state();
        let issuer = state.issuer().ok_or(IssueError::NoAuthority)?;
        let (leaf, key) = self.own_leaf(issuer, None).await?;
        let mut chain_der = vec![leaf.certificate().der().to_vec()];
        chain_der.extend(leaf.intermediates().iter().map(|der| der.to_vec()));
        self.metrics.issued(leaf.issuance().profile, watch.elapsed());
        let (renew_at, not_after) = (leaf.renew_at(), leaf.issuance().not_after);
        self.metrics.server_certificate_expiry.set(not_after.unix());
        Ok(Serving { chain_der, key, renew_at, not_after, issuer: issuer.id.clone() })
    }

    /// A certificate of this server's own below `issuer`, and its key. In the ledger it is called `request`.
    pub(crate) async fn own_leaf(
        self: &Arc<Self>,
        issuer: &Arc<ActiveIssuer>,
        request: Option<&RequestId>,
    ) -> Result<(Recorded<IssuedLeaf>, RequestKey), ApiError> {
        let bug = |cause: String| ApiError::Bug(cause);
        let key = RequestKey::generate(KeyAlgorithm::EcdsaP256).map_err(|cause| bug(cause.to_string()))?;
        let csr = rhizome_x509::create_csr(&key).map_err(|cause| bug(cause.to_string()))?;
        let public_key = VerifiedCsr::parse(&csr).map_err(IssueError::from)?.into_public_key();

        let now = self.now()?;
        let state = self.state();
        let name = self.settings.replica.clone();
        let principal = Principal::Server { name: name.clone() };
        let caller = AttestedCaller::assertion(principal, Attributes::default(), Scope::none());
        let facts = Facts {
            trust_domain: state.trust_domain(),
            rules: state.rule_set(),
            limits: &self.settings.policy,
        };
        let grant = policy::decide(&caller, &Wish::Server { name }, &facts, now).map_err(IssueError::from)?;
        let (serial, draw) = self.serials.next(&*self.ports.store, &*self.ports.entropy, now).await?;
        let bundle = state.bundle().map_or(0, |it| it.value.bundle.sequence());
        let around = Circumstances { now, serial, draw, bundle, request, attributes: None };
        let names = (self.settings.dns_names.as_slice(), self.settings.ip_addresses.as_slice());
        let prepared = issuance::prepare_server(&grant, &public_key, names, issuer, &around)
            .map_err(IssueError::from)?;
        let transaction = Transaction::named("issue serving certificate").record(prepared.entry(now));
        let committed = self.commit(transaction).await?;
        let receipt =
            committed.receipts.last().ok_or(IssuanceError::WrongReceipt).map_err(IssueError::from)?;
        let intent = prepared.recorded(receipt).map_err(IssueError::from)?;
        let signature =
            self.ports.keys.sign(intent.key(), &intent.to_be_signed()).await.map_err(IssueError::from)?;
        let leaf = intent.seal(signature).map_err(IssueError::from)?;
        Ok((leaf, key))
    }
}

/// Clients are judged against the bundle of the moment.
pub(crate) struct CurrentTrust {
    ca: Arc<Ca>,
    /// The anchors of the start, should the bundle ever be missing: never nobody, never everybody.
    first: Arc<TrustAnchors>,
}

impl CurrentTrust {
    /// Follows the bundle of `ca`, which must have one.
    pub(crate) fn of(ca: &Arc<Ca>) -> Result<Self, ApiError> {
        let bundle = ca.bundle().ok_or(ApiError::Issue(IssueError::NoAuthority))?;
        Ok(Self { ca: Arc::clone(ca), first: Arc::clone(&bundle.anchors) })
    }
}

impl ClientTrust for CurrentTrust {
    fn anchors(&self) -> Arc<TrustAnchors> {
        self.ca.bundle().map_or_else(|| Arc::clone(&self.first), |bundle| Arc::clone(&bundle.anchors))
    }

    fn now(&self) -> Timestamp {
        self.ca.judging_time()
    }
}
