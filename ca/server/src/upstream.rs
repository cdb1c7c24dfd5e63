//! A cluster's own Rhizome, as the one above it sees it: it joins once, asks for its intermediate, takes the bundle over,
//! and reports everything below it.
//!
//! Laws: nothing above is trusted on first use: the join string names the root. What comes from above is judged before it
//! counts, and what is held stays when it is refused. While the one above is away, everything goes on until the
//! intermediate ends; asking again begins at half of its life. The bundle that is served is the root's, with its sequence:
//! nothing here adds to it.
//! Not here: what is believed (`rhizome_core::clusters`), the connection and the identity (`link`), which issuer signs
//! when (`rhizome_core::authority`).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rhizome_core::authority::{self, Authority, AuthorityKind, AuthorityState, Custody, Effect};
use rhizome_core::clusters::{
    AboveError, Bridge, RootChange, Signing, accept_intermediate, judge_bundle, mirror_roots,
};
use rhizome_core::documents::{DocumentKey, Kind, Stored as _, Transaction, Version};
use rhizome_core::ports::KeyInfo;
use rhizome_core::rotation::evidence::{Subscriber, SubscriberKind};
use rhizome_core::state::{BundleRecord, State};
use rhizome_id::{AuthorityId, Digest, Timestamp, TrustDomain, TrustDomainError, Ttl};
use rhizome_proto::ca::v1 as ca;
use rhizome_proto::upstream::v1 as wire;
use rhizome_x509::{Bundle, CaCertificate, JwtKey, probe_for};

use crate::authority_keys::forget_below;
use crate::ca::Ca;
use crate::error::{ApiError, IssueError};
use crate::status::heard;

mod link;
mod report;

pub(crate) use link::Link;
pub use link::UpstreamError;

/// How often it reports when the one above does not say, and how seldom it may say.
const REPORT_EVERY: Duration = Duration::from_secs(5);
const REPORT_SELDOM: Duration = Duration::from_secs(60);
/// The first and the longest pause after a failure.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How long a first start waits for the one above before it gives up.
const START_PATIENCE: Duration = Duration::from_secs(120);
/// Reports sent in one go while the ledger is behind.
const REPORTS_AT_ONCE: usize = 64;

/// What a cluster's own Rhizome has of the one above.
pub(crate) struct Upstream {
    link: Link,
    /// The record with which the next report begins; 0 until the one above has said so.
    next_position: AtomicU64,
    /// How soon the one above wants the next report, in seconds; 0: it did not say.
    again_after: AtomicU64,
    /// A key that was made for an intermediate that has not come yet.
    spare: Mutex<Option<(AuthorityId, KeyInfo)>>,
    /// Why nothing comes from above at the moment.
    trouble: Mutex<Option<String>>,
}

impl Upstream {
    pub(crate) fn new(link: Link) -> Self {
        Self {
            link,
            next_position: AtomicU64::new(0),
            again_after: AtomicU64::new(0),
            spare: Mutex::default(),
            trouble: Mutex::default(),
        }
    }

    /// How long to wait after a report that went well.
    fn pause(&self) -> Duration {
        match self.again_after.load(Ordering::Acquire) {
            0 => REPORT_EVERY,
            seconds => Duration::from_secs(seconds).min(REPORT_SELDOM),
        }
    }

    /// Why nothing comes from above at the moment, for checks.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, trouble: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }
}

impl Ca {
    /// Brings from above what a start needs: the bundle and an intermediate. Where they are stored from before, the one
    /// above may be away.
    ///
    /// # Errors
    /// [`ApiError::Upstream`] when it refuses, or does not answer in time, and nothing is stored.
    pub(crate) async fn begin_below(self: &Arc<Self>) -> Result<(), ApiError> {
        let Some(upstream) = &self.upstream else { return Ok(()) };
        let has_own_root = |it: &Authority| it.kind == AuthorityKind::Root && it.custody == Custody::Here;
        if let Some(own) = self.state().authorities().values().find(|it| has_own_root(&it.value)) {
            let problem = "was made here, so this is no cluster's own Rhizome: begin with an empty data directory, or remove \
                           `authority.upstream`; the join string was not used";
            return Err(ApiError::Conflict { what: "root", name: own.value.id.to_string(), problem });
        }
        let now = self.now()?;
        if self.state().issuer().is_some_and(|it| it.issuer.not_after_limit() > now) {
            // It serves with what it has, and follows the one above beside that.
            return Ok(());
        }
        let (mut pause, mut waited) = (FIRST_PAUSE, Duration::ZERO);
        loop {
            let cause = match self.follow_upstream(upstream).await {
                Ok(()) => return Ok(()),
                Err(cause) => cause,
            };
            if cause.is_final() || waited >= START_PATIENCE {
                return Err(cause.into());
            }
            tracing::warn!(%cause, "waiting for the Rhizome above, which gives the intermediate");
            tokio::time::sleep(pause).await;
            waited += pause;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Follows the one above until the process stops.
    pub(crate) async fn keep_upstream(self: Arc<Self>) {
        let Some(upstream) = &self.upstream else { return };
        let mut pause = FIRST_PAUSE;
        let mut changes = self.changes();
        loop {
            let wait = match self.follow_upstream(upstream).await {
                Ok(()) => {
                    if upstream.trouble().is_some() {
                        tracing::info!("the Rhizome above answers again");
                    }
                    upstream.note(None);
                    pause = FIRST_PAUSE;
                    upstream.pause()
                }
                Err(cause) => {
                    let text = cause.to_string();
                    if upstream.trouble().as_ref() != Some(&text) {
                        tracing::error!(
                            cause = text,
                            "the Rhizome above cannot be followed; going on with what is held"
                        );
                    }
                    upstream.note(Some(text));
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    self.with_jitter(pause)
                }
            };
            changes.mark_unchanged();
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                // What changed here is worth telling soon, and not for every change.
                Ok(()) = changes.changed(), if upstream.trouble().is_none() => tokio::time::sleep(FIRST_PAUSE).await,
            }
        }
    }

    /// Between three and five quarters of `pause`, so that clusters that lost the root together do not return together.
    fn with_jitter(&self, pause: Duration) -> Duration {
        let mut random = [0; 1];
        let [draw] = self.ports.entropy.fill(&mut random).map_or([128], |()| random);
        pause * 3 / 4 + pause / 2 * u32::from(draw) / 256
    }

    /// One round: the identity, a report and what comes back, an intermediate when one is due.
    async fn follow_upstream(self: &Arc<Self>, upstream: &Upstream) -> Result<(), UpstreamError> {
        let known = self.bundle();
        let signing = self.state().active_root().map(|it| it.anchor().clone());
        upstream.link.keep_identity(self, known.as_ref().map(|it| &it.bundle), signing.as_ref()).await?;
        let mut reported = self.report_once(upstream).await;
        // What is issued with comes first, whatever became of the report: it is what everything here lives by.
        let asked = match self.asks_for_issuer()? {
            true => self.ask_for_issuer(upstream).await,
            false => Ok(()),
        };
        self.renew_below().await?;
        for _ in 0..REPORTS_AT_ONCE {
            match reported {
                Ok(true) => reported = self.report_once(upstream).await,
                Ok(false) => break,
                Err(cause) => {
                    // Where the one above has read to is not known any more.
                    upstream.next_position.store(0, Ordering::Release);
                    return asked.and(Err(cause));
                }
            }
        }
        asked
    }

    /// Whether the machine of authorities waits for an issuer.
    fn asks_for_issuer(&self) -> Result<bool, UpstreamError> {
        let now = self.ports.clock.now();
        let records = self.state().authority_records(now);
        let steps = authority::step(&records, &self.settings.replica, now, &self.settings.rotation);
        Ok(steps.iter().any(|step| matches!(step, Effect::AskForIssuer { .. })))
    }

    /// Reports once; whether there is more of the ledger to tell.
    async fn report_once(self: &Arc<Self>, upstream: &Upstream) -> Result<bool, UpstreamError> {
        let before = upstream.next_position.load(Ordering::Acquire);
        let request = self.report(upstream, before).await?;
        let last = request.last_record;
        let mut client = upstream.link.client(self).await?;
        let answer = client.report(link::call(request)).await;
        let answer = answer.map_err(|status| upstream.link.refused(heard(&status)))?.into_inner();
        let next = answer.next_position.max(1);
        upstream.again_after.store(u64::from(answer.again_after_seconds), Ordering::Release);
        upstream.next_position.store(next, Ordering::Release);
        let bridges: Result<Vec<_>, _> = answer.bridges.iter().map(read_bridge).collect();
        let signing = Signing { root: digest_of(&answer.signing_root_sha256)?, bridges: bridges? };
        let issuers: Result<Vec<_>, _> = answer.issuer_key_sha256.iter().map(|it| digest_of(it)).collect();
        upstream.link.keep_issuers(issuers?).await?;
        let bundle = answer.bundle.map(|sent| read_bundle(&sent)).transpose()?;
        self.take_from_above(bundle, &signing).await?;
        // Without progress there is nothing to be gained by asking again at once.
        Ok(next <= last && next != before)
    }

    /// Takes over the bundle, and which root signs: both in one transaction, so that what is trusted and what is signed
    /// under never come apart.
    async fn take_from_above(
        self: &Arc<Self>,
        offered: Option<Bundle>,
        signing: &Signing,
    ) -> Result<(), UpstreamError> {
        let _one_at_a_time = self.rotating.lock().await;
        let state = self.state();
        let held = state.bundle();
        let offered = offered.filter(|it| *it.trust_domain() == self.settings.trust_domain);
        let news = match &offered {
            Some(offered) => judge_bundle(held.map(|it| &it.value.bundle), offered)?,
            None => false,
        };
        let current = offered.as_ref().filter(|_| news).or_else(|| held.map(|it| &it.value.bundle));
        let current = current
            .ok_or_else(|| UpstreamError::Nonsense("it gave no bundle of this trust domain".to_owned()))?;
        let now = self.ports.clock.now();
        let known: Vec<&Authority> = state.authorities().values().map(|it| &*it.value).collect();
        let changes = mirror_roots(&known, current.anchors(), signing, &self.settings.replica, now)?;
        let mut transaction = Transaction::named("take over from above");
        if news {
            let record = BundleRecord::of(current);
            let detail = format!("sequence {}", record.sequence);
            let entry = self.changed("upstream", "bundle.take_over", record.trust_domain.as_str(), &detail);
            transaction = match held {
                Some(held) => transaction.require_unchanged(record.key(), held.version),
                None => transaction.require_absent(record.key()),
            };
            transaction = transaction.put(&record).record(entry);
        }
        let mut unused = Vec::new();
        for change in changes {
            if let RootChange::Delete(root) = &change {
                let keys;
                (transaction, keys) = forget_below(self, transaction, root);
                unused.extend(keys);
            }
            transaction = self.changing_root(&state, transaction, change);
        }
        if transaction.writes.is_empty() {
            return Ok(());
        }
        self.commit(transaction).await?;
        self.spent_keys().extend(unused);
        self.destroy_spent_keys().await;
        tracing::info!(sequence = current.sequence(), signing_root = %signing.root, "taken over from above");
        Ok(())
    }

    fn changing_root(&self, state: &State, transaction: Transaction, change: RootChange) -> Transaction {
        let version = |key: &DocumentKey| state.version_of(key).unwrap_or(Version(0));
        match change {
            RootChange::Put(root) => {
                let detail = format!("{} {}", root.state, root.certificate.fingerprint());
                let entry = self.changed("upstream", "authority.take_over", root.id.as_str(), &detail);
                let key = root.key();
                let transaction = if state.authorities().contains_key(&root.id) {
                    transaction.require_unchanged(key.clone(), version(&key))
                } else {
                    transaction.require_absent(key)
                };
                transaction.put(&*root).record(entry)
            }
            RootChange::Delete(id) => {
                let key = DocumentKey::new(Kind::Authority, id.to_string());
                let entry = self.changed("upstream", "authority.forget", id.as_str(), "it left the bundle");
                transaction.require_unchanged(key.clone(), version(&key)).delete(key).record(entry)
            }
        }
    }

    /// Orders those who present what is below a root that signs no more to renew, each in its slot: once, for as long as
    /// the window lasts. The one above waits for them when it changes its root.
    async fn renew_below(self: &Arc<Self>) -> Result<(), UpstreamError> {
        let (state, now) = (self.state(), self.ports.clock.now());
        let Some(signing) = state.active_root() else { return Ok(()) };
        let root_of = |issuer: &AuthorityId| state.authorities().get(issuer)?.value.issuer.clone();
        let others = state.authorities().values().map(|it| &*it.value);
        let others: Vec<&Authority> =
            others.filter(|it| it.kind == AuthorityKind::Root && it.id != signing.id).collect();
        if others.is_empty() || state.issuer().and_then(|it| root_of(&it.id)).as_ref() != Some(&signing.id) {
            // Whoever renewed now would get the same again.
            return Ok(());
        }
        let (everybody, _) = self.everybody(now).await?;
        let can_be_told = |it: &&Subscriber| it.kind == SubscriberKind::Agent && it.connected;
        for root in others {
            let presenting = everybody.iter().filter(can_be_told);
            let presenting = presenting.filter(|it| it.presents_under(&root.id, now).is_some());
            let whom: Vec<String> = presenting.map(|it| it.name.clone()).collect();
            if !whom.is_empty() {
                let since = signing.activated_at.unwrap_or(signing.prepared_at);
                let reason = format!("{} signs since {since}, not {}", signing.id, root.id);
                let told = (&root.id, whom.as_slice(), reason.as_str());
                self.order_renewals(&self.settings.root_rotation, &everybody, told, now).await?;
            }
        }
        Ok(())
    }

    /// Makes a key, asks for its intermediate, and stores it as prepared: the machine of authorities lets it sign.
    async fn ask_for_issuer(self: &Arc<Self>, upstream: &Upstream) -> Result<(), UpstreamError> {
        let now = self.now().map_err(ApiError::from)?;
        let spare = upstream.spare.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (name, key) = match spare {
            Some(spare) => spare,
            None => self.new_key(AuthorityKind::Issuer, now).await?,
        };
        let record = match self.ask_with(upstream, &key, now).await {
            Ok(record) => record,
            Err(cause) => {
                // The same key asks again: nothing is left behind by an answer that was lost.
                *upstream.spare.lock().unwrap_or_else(PoisonError::into_inner) = Some((name, key));
                return Err(cause);
            }
        };
        let detail = format!("{} until {}", record.certificate.fingerprint(), record.certificate.not_after());
        let entry = self.changed("upstream", "authority.take_over", record.id.as_str(), &detail);
        let transaction = Transaction::named("take over intermediate").require_absent(record.key());
        let stored = self.commit(transaction.put(&record).record(entry)).await;
        self.placed(stored.map(drop).map_err(ApiError::from), &record.id, &key).await?;
        tracing::info!(authority = %record.id, detail, "intermediate granted from above");
        // It signs at once where nothing else does.
        Ok(self.keep_authorities().await?)
    }

    async fn ask_with(
        self: &Arc<Self>,
        upstream: &Upstream,
        key: &KeyInfo,
        now: Timestamp,
    ) -> Result<Authority, UpstreamError> {
        let proof = self.ports.keys.sign(&key.id, &probe_for(key.algorithm)).await.map_err(IssueError::from);
        let request = wire::SignIntermediateRequest {
            public_key_der: Bytes::copy_from_slice(key.public_key.spki_der()),
            proof: Bytes::copy_from_slice(proof.map_err(ApiError::from)?.as_bytes()),
            ttl_seconds: 0,
        };
        let mut client = upstream.link.client(self).await?;
        let answer = client.sign_intermediate(link::call(request)).await;
        let answer = answer.map_err(|status| upstream.link.refused(heard(&status)))?.into_inner();
        let chain: Result<Vec<_>, UpstreamError> =
            answer.chain_der.iter().map(|der| certificate(der)).collect();
        let root = certificate(&answer.root_der)?;
        let state = self.state();
        let held = state.bundle().map(|it| it.value.bundle.anchors().to_vec()).unwrap_or_default();
        let accepted = accept_intermediate(chain?, &root, &held, &key.public_key.digest(), now)?;
        let above = state.authorities().values().find(|it| it.value.certificate == root);
        let above = above.ok_or_else(|| AboveError::UnknownRoot { root: root.fingerprint() })?;
        Ok(Authority {
            id: answer.authority_id.parse().map_err(AboveError::Name)?,
            kind: AuthorityKind::Issuer,
            replica: self.settings.replica.clone(),
            key: key.id.clone(),
            algorithm: key.algorithm,
            certificate: accepted.certificate,
            issuer: Some(above.value.id.clone()),
            state: AuthorityState::Prepared,
            prepared_at: now,
            activated_at: None,
            custody: Custody::Here,
            above: accepted.between,
            cross: None,
            canary: false,
            retired_at: None,
        })
    }
}

fn certificate(der: &[u8]) -> Result<CaCertificate, UpstreamError> {
    CaCertificate::parse(der).map_err(|bad| UpstreamError::Nonsense(bad.to_string()))
}

fn read_bridge(sent: &wire::Bridge) -> Result<Bridge, UpstreamError> {
    Ok(Bridge {
        root: digest_of(&sent.root_sha256)?,
        by: digest_of(&sent.by_sha256)?,
        certificate: certificate(&sent.certificate_der)?,
    })
}

fn digest_of(bytes: &[u8]) -> Result<Digest, UpstreamError> {
    let bytes: [u8; 32] =
        bytes.try_into().map_err(|_length| UpstreamError::Nonsense("a digest has 32 bytes".to_owned()))?;
    Ok(Digest::from_bytes(bytes))
}

/// A bundle from the wire; its digest must be right.
fn read_bundle(sent: &ca::Bundle) -> Result<Bundle, UpstreamError> {
    let nonsense = |cause: String| UpstreamError::Nonsense(format!("the bundle is refused: {cause}"));
    let anchors: Result<Vec<_>, UpstreamError> =
        sent.anchors_der.iter().map(|der| certificate(der)).collect();
    let key = |sent: &ca::JwtKey| {
        let not_after = Timestamp::from_unix(sent.not_after.as_ref().map_or(0, |it| it.seconds));
        JwtKey::from_spki_der(sent.kid.clone(), &sent.public_key_der, not_after)
    };
    let keys: Result<Vec<_>, _> = sent.jwt_keys.iter().map(key).collect();
    let keys = keys.map_err(|cause| nonsense(cause.to_string()))?;
    let domain: TrustDomain =
        sent.trust_domain.parse().map_err(|cause: TrustDomainError| nonsense(cause.to_string()))?;
    let hint = Ttl::from_seconds(sent.refresh_hint_seconds).map_err(|cause| nonsense(cause.to_string()))?;
    let bundle = Bundle::new(domain, sent.sequence, hint, anchors?);
    let bundle = bundle.and_then(|bundle| bundle.with_jwt_keys(keys));
    let bundle = bundle.map_err(|cause| nonsense(cause.to_string()))?;
    if bundle.digest().as_bytes().as_slice() != &*sent.digest {
        return Err(nonsense("its digest does not belong to it".to_owned()));
    }
    Ok(bundle)
}
