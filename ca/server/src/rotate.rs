//! Authorities in practice: performs what `rhizome_core::authority::step` says is due.
//!
//! Laws: nothing is decided here. A key exists before the entry about it, the entry before the signature, and the
//! authority counts only once its document is stored; what fails in between destroys the key once nobody refers to it, and
//! the next try makes a new one. Documents are changed only as they were read, so two processes never both win.
//! Not here: which key signs when (`rhizome_core::authority`), tokens' keys (`rotate_jwt`), changing roots (`rotate_root`).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rhizome_core::authority::{
    self, Authority, AuthorityKind, AuthorityState, Change, Custody, Effect, FirstRoot, Records,
    RotationPolicy,
};
use rhizome_core::documents::{DocumentKey, Kind, Stored, Transaction, Version};
use rhizome_core::issuance::{IssuanceError, Prepared, Recorded};
use rhizome_core::limits::CLOCK_BEHIND_SECONDS;
use rhizome_core::ports::{KeyInfo, KeyPurpose, StoreError};
use rhizome_core::renewal::Validity;
use rhizome_core::replicas::Lease;
use rhizome_core::rules::Rule;
use rhizome_core::state::{BundleRecord, Identity};
use rhizome_id::{AuthorityId, KeyId, Timestamp};
use rhizome_x509::{
    CaCertificate, Certificate, IntermediateRole, IntermediateSpec, RootSpec, SigningAlgorithm,
};

pub(crate) use crate::authority_keys::can_sign_issuers;
use crate::ca::Ca;
use crate::error::{ApiError, IssueError};
use crate::replicas::Right;
use crate::settings::Settings;

/// The longest sleep between two looks at the clock: a suspended machine or a stepped clock is noticed soon.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How long a replica that starts waits for the one with the lease to make the first root, and between two looks: longer
/// than it takes to find out that one is gone, and to take its place.
const ROOT_PATIENCE: Duration = Duration::from_secs(60);
const ROOT_GLANCE: Duration = Duration::from_millis(250);
/// Between two times that people are told to bring an issuer.
const ASK_EVERY_SECONDS: i64 = 86_400;
/// Steps until the machine must have come to rest; the core proves that it does in far fewer.
const MOST_STEPS: usize = 64;

impl Ca {
    /// Founds the trust domain in an empty store: the identity and the built-in rule, then whatever the authority
    /// machine asks for.
    ///
    /// # Errors
    /// [`ApiError::Conflict`] when the store belongs to another trust domain.
    pub(crate) async fn found(self: &Arc<Self>) -> Result<(), ApiError> {
        self.found_once(true).await?;
        self.begin_below().await?;
        self.bring_in_order().await
    }

    pub(crate) async fn found_once(self: &Arc<Self>, again: bool) -> Result<(), ApiError> {
        let identity =
            Identity { trust_domain: self.settings.trust_domain.clone(), founded_at: self.ports.clock.now() };
        let stored = self.ports.store.document(&identity.key()).await?;
        match stored {
            Some(stored) => {
                let known = stored.read::<Identity>().map_err(|bad| ApiError::Bug(bad.to_string()))?.value;
                if known.trust_domain != identity.trust_domain {
                    return Err(ApiError::Conflict {
                        what: "trust domain",
                        name: known.trust_domain.to_string(),
                        problem: "is the one this store belongs to; the configuration names another",
                    });
                }
            }
            None => {
                let entry = self.changed("server", "authority.found", identity.trust_domain.as_str(), "");
                let built_in = Rule::built_in();
                let rule = self.changed("server", "rule.put", built_in.name().as_str(), "the built-in rule");
                let transaction = Transaction::named("found trust domain")
                    .require_absent(identity.key())
                    .require_absent(built_in.key());
                let founding = transaction.put(&identity).put(&built_in).record(entry).record(rule);
                match self.commit(founding).await {
                    // Another replica was faster, perhaps for another trust domain.
                    Err(StoreError::Conflict { .. }) if again => {
                        return Box::pin(self.found_once(false)).await;
                    }
                    founded => drop(founded?),
                }
            }
        }
        Ok(())
    }

    /// Brings authorities in order for the first time. The root is made by the replica that has the lease; the others
    /// wait for it. Nobody waits for what people have to bring.
    async fn have_authorities(self: &Arc<Self>) -> Result<(), ApiError> {
        let mut waited = Duration::ZERO;
        self.stand().await?;
        loop {
            self.keep_authorities().await?;
            self.must_be_brought()?;
            if self.state().issuer().is_some() || self.right().is_some() || waited >= ROOT_PATIENCE {
                return Ok(());
            }
            if waited.is_zero() {
                tracing::info!("waiting for the replica that has the lease to make the root");
            }
            tokio::time::sleep(ROOT_GLANCE).await;
            waited += ROOT_GLANCE;
            self.stand().await?;
            self.catch_up().await?;
        }
    }

    /// The right to do what only one replica may do, once nobody else has it.
    ///
    /// # Errors
    /// A conflict about the lease when another replica keeps it.
    pub(crate) async fn await_right(self: &Arc<Self>) -> Result<Right, ApiError> {
        let mut waited = Duration::ZERO;
        loop {
            self.stand().await?;
            self.catch_up().await?;
            match self.right() {
                Some(right) => return Ok(right),
                None if waited >= ROOT_PATIENCE => {
                    return Err(StoreError::Conflict { key: Lease::key() }.into());
                }
                None => tokio::time::sleep(ROOT_GLANCE).await,
            }
            waited += ROOT_GLANCE;
        }
    }

    /// Errors when a root or an issuer is missing that no server makes, since the root's key is elsewhere.
    fn must_be_brought(&self) -> Result<(), ApiError> {
        let state = self.state();
        let awaits = self.settings.rotation.first_root == FirstRoot::Await;
        let is_here = |it: &Authority| it.kind == AuthorityKind::Root && it.custody == Custody::Here;
        if let Some(here) = state.authorities().values().find(|it| awaits && is_here(&it.value)) {
            return Err(ApiError::Conflict {
                what: "root",
                name: here.value.id.to_string(),
                problem: "has its key here, and keys.root says `offline`: say where the key is, as before; a root's key cannot \
                          be moved away yet",
            });
        }
        if state.issuer().is_some() {
            return Ok(());
        }
        let mut roots =
            state.authorities().values().map(|it| &it.value).filter(|it| it.kind == AuthorityKind::Root);
        match roots.find(|it| matches!(it.state, AuthorityState::Active | AuthorityState::Prepared)) {
            None if awaits => Err(ApiError::Conflict {
                what: "root",
                name: self.settings.trust_domain.to_string(),
                problem: "is not here yet, and its key is to stay elsewhere (keys.root: offline): bring its certificate \
                          and an issuer's with `rhizome root ceremony`",
            }),
            Some(root) => can_sign_issuers(root),
            None => Ok(()),
        }
    }

    async fn bring_in_order(self: &Arc<Self>) -> Result<(), ApiError> {
        match self.have_authorities().await {
            // What it has serves until its end; `rotate_forever` goes on trying.
            Err(ApiError::Issue(cause @ IssueError::Keys(_))) if self.state().issuer().is_some() => {
                tracing::error!(%cause, "authorities could not be brought in order; serving with what there is");
            }
            outcome => outcome?,
        }
        // A store of an earlier release has issuers without lists. One that cannot be signed keeps nobody from starting.
        let _said = self.sign_crls_or_say().await;
        Ok(())
    }

    /// Keeps authorities in order until the process stops.
    pub(crate) async fn rotate_forever(self: Arc<Self>) {
        loop {
            if let Err(cause) = self.keep_authorities().await {
                tracing::error!(%cause, "authorities could not be brought in order; trying again");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Performs what is due now. What cannot be done keeps nothing else from being done.
    pub(crate) async fn keep_authorities(self: &Arc<Self>) -> Result<(), ApiError> {
        let _one_at_a_time = self.rotating.lock().await;
        self.settle_unplaced_keys().await;
        self.destroy_spent_keys().await;
        self.leave_the_future().await?;
        for _ in 0..MOST_STEPS {
            let now = self.now()?;
            let effects =
                authority::step(&self.records(now), &self.settings.replica, now, &self.settings.rotation);
            self.ask_people(&effects, now);
            // A key that is destroyed never comes back: the clock must have been steady for hours.
            let settled = self.clock.settled();
            let now_or_later = |effect: &Effect| match effect {
                // Whoever is asked brings it: nothing here waits for it.
                Effect::WakeAt(_) | Effect::AskForIssuer { .. } => false,
                Effect::Forget { .. } => settled,
                Effect::MakeRoot { .. }
                | Effect::MakeIssuer { .. }
                | Effect::MakeCanary { .. }
                | Effect::MakeJwtKey { .. }
                | Effect::Activate { .. }
                | Effect::Retire { .. } => true,
            };
            // Roots are everybody's: whoever has the lease sees to them.
            let ours = |effect: &Effect| self.right().is_some() || !self.concerns_root(effect);
            let due: Vec<_> = effects.into_iter().filter(now_or_later).filter(ours).collect();
            if due.is_empty() {
                return Ok(());
            }
            let mut failed = None;
            for effect in due {
                match self.perform(&effect, now).await {
                    Ok(()) => {}
                    // Somebody else did it, or changed the ground it stood on: look again.
                    Err(
                        ApiError::Store(StoreError::Conflict { key })
                        | ApiError::Issue(IssueError::Store(StoreError::Conflict { key })),
                    ) => {
                        self.lost_if_lease(&key);
                        break;
                    }
                    Err(cause) => failed = failed.or(Some(cause)),
                }
            }
            if let Some(cause) = failed {
                return Err(cause);
            }
        }
        Err(ApiError::Bug("authorities do not come to rest".into()))
    }

    /// Tells people, once a day, that an issuer is due which nobody here can make.
    fn ask_people(&self, effects: &[Effect], now: Timestamp) {
        let asked = effects.iter().find_map(|effect| {
            if let Effect::AskForIssuer { reason } = effect { Some(reason) } else { None }
        });
        let Some(reason) = asked.filter(|_| self.upstream.is_none()) else { return };
        let last = Timestamp::from_unix(self.asked_at.load(Ordering::Relaxed));
        if now.since(last) < ASK_EVERY_SECONDS {
            return;
        }
        self.asked_at.store(now.unix(), Ordering::Relaxed);
        let until = self.state().issuer().map(|it| it.issuer.not_after_limit().to_string());
        tracing::warn!(
            %reason,
            issuer_ends = until.unwrap_or_else(|| "there is none".to_owned()),
            "an issuer is due, and the root's key is elsewhere: ask for one with `rhizome root ceremony request`"
        );
    }

    /// The clock came back from a step ahead in which the issuer or the JWT key was replaced: nothing can be issued below one
    /// that is not valid for months, so another one takes its place.
    async fn leave_the_future(self: &Arc<Self>) -> Result<(), ApiError> {
        let now = self.now()?;
        let makes_issuers = self.state().active_root().is_some_and(|root| root.custody == Custody::Here);
        let valid_from = self.state().issuer().map(|it| it.issuer.certificate().not_before());
        if makes_issuers && valid_from.is_some_and(|from| from.since(now) > CLOCK_BEHIND_SECONDS) {
            let reason = "the clock came back; the issuer is from the time before that";
            self.rotate_issuer_alone("server", reason).await?;
        }
        for effect in authority::leaving_the_future(&self.records(now), &self.settings.replica, now) {
            self.perform(&effect, now).await?;
        }
        Ok(())
    }

    fn concerns_root(&self, effect: &Effect) -> bool {
        match effect {
            Effect::MakeRoot { .. } => true,
            Effect::MakeIssuer { .. }
            | Effect::MakeCanary { .. }
            | Effect::AskForIssuer { .. }
            | Effect::MakeJwtKey { .. }
            | Effect::WakeAt(_) => false,
            Effect::Activate { id, .. } | Effect::Retire { id, .. } | Effect::Forget { id, .. } => {
                let state = self.state();
                state.authorities().get(id).is_some_and(|it| it.value.kind == AuthorityKind::Root)
            }
        }
    }

    fn records(&self, now: Timestamp) -> Records {
        self.state().authority_records(now)
    }

    pub(crate) async fn perform(self: &Arc<Self>, effect: &Effect, now: Timestamp) -> Result<(), ApiError> {
        match effect {
            Effect::MakeRoot { reason } => self.make_root(now, &reason.to_string()).await,
            Effect::MakeCanary { root, reason } => {
                self.make_issuer(Some(root), now, &reason.to_string()).await.map(drop)
            }
            Effect::MakeIssuer { reason } => {
                self.make_issuer(None, now, &reason.to_string()).await?;
                // Long before it signs: nodes that are away now have until then to hear of it.
                let _said = self.sign_crls_or_say().await;
                Ok(())
            }
            Effect::MakeJwtKey { reason } => self.make_jwt_key(now, &reason.to_string()).await,
            Effect::Activate { id, reason } => {
                // It signs nothing before its list is stored.
                self.have_crl_of(id).await?;
                self.apply(effect, now, "authority.activate", id, reason).await
            }
            Effect::Retire { id, reason } => self.apply(effect, now, "authority.retire", id, reason).await,
            Effect::Forget { id, reason } => self.apply(effect, now, "authority.forget", id, reason).await,
            Effect::AskForIssuer { .. } | Effect::WakeAt(_) => Ok(()),
        }
    }

    async fn apply(
        self: &Arc<Self>,
        effect: &Effect,
        now: Timestamp,
        action: &str,
        id: &AuthorityId,
        reason: &authority::Reason,
    ) -> Result<(), ApiError> {
        let Some((mut transaction, to_destroy)) = self.change_of(effect, now)? else { return Ok(()) };
        if self.concerns_root(effect) {
            transaction = self.fenced(transaction)?;
        }
        let entry = self.changed("server", action, id.as_str(), &reason.to_string());
        self.commit(transaction.record(entry)).await?;
        tracing::info!(authority = %id, action, %reason, "authority changed");
        self.spent_keys().extend(to_destroy);
        self.destroy_spent_keys().await;
        Ok(())
    }

    /// The transaction that performs `effect` on the records as they are, and the keys to destroy after it; `None`
    /// when nothing is left to do.
    fn change_of(
        &self,
        effect: &Effect,
        now: Timestamp,
    ) -> Result<Option<(Transaction, Vec<KeyId>)>, ApiError> {
        let state = self.state();
        let version = |key: &DocumentKey| state.version_of(key).unwrap_or(Version(0));
        let mut transaction = Transaction::named("change authority");
        let mut to_destroy: Vec<KeyId> = Vec::new();
        let mut new_root = None;
        for change in authority::changes(effect, &state.authority_records(now), now) {
            match change {
                Change::Put(next) => {
                    if next.kind == AuthorityKind::Root && next.state == AuthorityState::Active {
                        new_root = Some(next.anchor().clone());
                    }
                    let Some(put) = self.put_below_active(transaction, &next) else { return Ok(None) };
                    transaction = put;
                }
                Change::PutJwt(next) => {
                    transaction = transaction.require_unchanged(next.key(), version(&next.key())).put(&*next);
                }
                Change::Delete { id, key } => {
                    let document = DocumentKey::new(Kind::Authority, id.to_string());
                    let crl = DocumentKey::new(Kind::Crl, id.to_string());
                    transaction = transaction
                        .require_unchanged(document.clone(), version(&document))
                        .delete(document)
                        .delete(crl);
                    to_destroy.push(key);
                }
                Change::DeleteJwt { id, key } => {
                    let document = DocumentKey::new(Kind::JwtAuthority, id.to_string());
                    transaction =
                        transaction.require_unchanged(document.clone(), version(&document)).delete(document);
                    (transaction, _) = self.republishing(transaction, None, Some(id.as_str()), now)?;
                    to_destroy.push(key);
                }
            }
        }
        if transaction.writes.is_empty() {
            return Ok(None);
        }
        if let Some(root) = new_root {
            transaction = self.publishing(transaction, root);
        }
        Ok(Some((transaction, to_destroy)))
    }

    /// Makes a new issuer and lets it sign at once, because `by` says so: the steps of a rotation by time, sooner.
    ///
    /// # Errors
    /// [`ApiError::Conflict`] when another process changed the authorities in between; the new issuer then waits for its
    /// turn.
    pub(crate) async fn rotate_issuer_now(
        self: &Arc<Self>,
        by: &str,
        reason: &str,
    ) -> Result<AuthorityId, ApiError> {
        // A rotation by time would retire the new issuer before it signs, when another one waits already.
        let _one_at_a_time = self.rotating.lock().await;
        self.rotate_issuer_alone(by, reason).await
    }

    async fn rotate_issuer_alone(self: &Arc<Self>, by: &str, reason: &str) -> Result<AuthorityId, ApiError> {
        let now = self.now()?;
        let id = self.make_issuer(None, now, &format!("{by} rotates by hand: {reason}")).await?;
        self.have_crl_of(&id).await?;
        let missed = self.nodes_without_crls().await;
        if !missed.is_empty() {
            tracing::warn!(
                authority = %id,
                nodes = missed.join(", "),
                "these nodes have not heard of the new issuer's revocation list: until they do, proxies there that \
                 check lists refuse its certificates"
            );
        }
        // The machine's reasons are about time; this one stands in the entry below.
        let effect = Effect::Activate { id: id.clone(), reason: authority::Reason::ActivationDue };
        let Some((transaction, _none_to_destroy)) = self.change_of(&effect, now)? else {
            let problem = "was retired before it could sign, since another one waits; try again";
            return Err(ApiError::Conflict { what: "issuer", name: id.to_string(), problem });
        };
        let entry = self.changed(by, "authority.rotate", id.as_str(), reason);
        self.commit(transaction.record(entry)).await?;
        tracing::warn!(authority = %id, by, reason, "issuer rotated by hand");
        Ok(id)
    }

    /// Adds to `transaction` the bundle with `root` in it, when no bundle has it yet. Only the very first root comes
    /// into the bundle this way; every later one by acknowledged rotation.
    fn publishing(&self, transaction: Transaction, root: CaCertificate) -> Transaction {
        let state = self.state();
        if state.bundle().is_some() {
            return transaction;
        }
        let record = BundleRecord {
            trust_domain: self.settings.trust_domain.clone(),
            sequence: 1,
            refresh_hint: self.settings.refresh_hint,
            anchors: vec![root],
            jwt_keys: Vec::new(),
        };
        let entry = self.changed("server", "bundle.publish", record.trust_domain.as_str(), "sequence 1");
        transaction.require_absent(record.key()).put(&record).record(entry)
    }

    async fn make_root(self: &Arc<Self>, now: Timestamp, reason: &str) -> Result<(), ApiError> {
        let id = self.new_authority_name(AuthorityKind::Root, now)?;
        let Settings { algorithm, rotation, .. } = self.settings;
        self.make_root_called(&id, algorithm, now, &rotation, reason).await
    }

    /// Makes a root of that name, which no authority has, and stores it as prepared.
    pub(crate) async fn make_root_called(
        self: &Arc<Self>,
        id: &AuthorityId,
        algorithm: SigningAlgorithm,
        now: Timestamp,
        policy: &RotationPolicy,
        reason: &str,
    ) -> Result<(), ApiError> {
        // One right for all of it: a lease that was lost and had again in between counts for nothing.
        let right = self.right().ok_or_else(|| StoreError::Conflict { key: Lease::key() })?;
        let validity = authority::root_validity(now, policy);
        let validity = validity.ok_or_else(|| ApiError::Bug("a root cannot be valid now".into()))?;
        let key = self.key_called(id, KeyPurpose::Root, algorithm).await?;
        let (serial, _) = self.serials.next(&*self.ports.store, &*self.ports.entropy, now).await?;
        let spec = RootSpec {
            trust_domain: &self.settings.trust_domain,
            generation: id,
            public_key: &key.public_key,
            algorithm: key.algorithm,
            serial,
            not_before: validity.not_before,
            not_after: validity.not_after,
        };
        let prepared = Prepared::root(&spec, &key.id, "server").map_err(IssueError::from)?;
        let certificate = match self.certify(prepared, right, now).await {
            Ok(certificate) => certificate,
            Err(cause) => return Err(self.give_up(&key, cause).await),
        };
        let stored =
            self.store_authority(right, AuthorityKind::Root, id, &key, certificate, None, now, reason).await;
        self.placed(stored, id, &key).await
    }

    /// Makes an issuer under `root`, or the active one, and stores it as prepared.
    pub(crate) async fn make_issuer(
        self: &Arc<Self>,
        root: Option<&AuthorityId>,
        now: Timestamp,
        reason: &str,
    ) -> Result<AuthorityId, ApiError> {
        let state = self.state();
        let root = match root {
            Some(root) => state.authorities().get(root).map(|it| &it.value),
            None => state.active_root(),
        };
        let root = root.ok_or(ApiError::Issue(IssueError::NoAuthority))?;
        can_sign_issuers(root)?;
        let validity = authority::issuer_validity(root, now, &self.settings.rotation);
        let validity: Validity = validity.ok_or(ApiError::Issue(IssueError::NoAuthority))?;
        let (id, key) = self.new_key(AuthorityKind::Issuer, now).await?;
        let (serial, _) = self.serials.next(&*self.ports.store, &*self.ports.entropy, now).await?;
        let spec = IntermediateSpec {
            role: IntermediateRole::Own,
            trust_domain: &self.settings.trust_domain,
            generation: &id,
            public_key: &key.public_key,
            algorithm: key.algorithm,
            serial,
            not_before: validity.not_before,
            not_after: validity.not_after,
        };
        let above = (&root.id, &root.certificate, root.algorithm);
        let prepared = Prepared::intermediate(&spec, above, &root.key, "server").map_err(IssueError::from)?;
        let certificate = match self.certify(prepared, Right::Alone, now).await {
            Ok(certificate) => certificate,
            Err(cause) => return Err(self.give_up(&key, cause).await),
        };
        let issuer = Some(root.id.clone());
        let stored = self.store_authority(
            Right::Alone,
            AuthorityKind::Issuer,
            &id,
            &key,
            certificate,
            issuer,
            now,
            reason,
        );
        self.placed(stored.await, &id, &key).await?;
        Ok(id)
    }

    /// Records, then signs: the same order as for leaves.
    pub(crate) async fn certify(
        self: &Arc<Self>,
        prepared: Prepared,
        right: Right,
        now: Timestamp,
    ) -> Result<Recorded<Certificate>, IssueError> {
        let transaction = right.around(Transaction::named("issue authority"));
        self.certify_alongside(prepared, transaction, now).await
    }

    /// The same, together with what must become true in the transaction of the entry.
    pub(crate) async fn certify_alongside(
        self: &Arc<Self>,
        prepared: Prepared,
        alongside: Transaction,
        now: Timestamp,
    ) -> Result<Recorded<Certificate>, IssueError> {
        let committed = self.commit(alongside.record(prepared.entry(now))).await?;
        let receipt = committed.receipts.last().ok_or(IssuanceError::WrongReceipt)?;
        let intent = prepared.recorded(receipt)?;
        let signature = self.ports.keys.sign(intent.key(), &intent.to_be_signed()).await?;
        Ok(intent.seal(signature)?)
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one record, named at its only two callers")]
    async fn store_authority(
        self: &Arc<Self>,
        right: Right,
        kind: AuthorityKind,
        id: &AuthorityId,
        key: &KeyInfo,
        certificate: Recorded<Certificate>,
        issuer: Option<AuthorityId>,
        now: Timestamp,
        reason: &str,
    ) -> Result<(), ApiError> {
        let certificate = CaCertificate::parse(certificate.into_inner().der());
        let record = Authority {
            id: id.clone(),
            kind,
            replica: self.settings.replica.clone(),
            key: key.id.clone(),
            algorithm: key.algorithm,
            certificate: certificate.map_err(|bad| ApiError::Bug(bad.to_string()))?,
            issuer,
            state: AuthorityState::Prepared,
            prepared_at: now,
            activated_at: None,
            custody: Custody::Here,
            above: Vec::new(),
            cross: None,
            canary: false,
            retired_at: None,
        };
        let entry = self.changed("server", "authority.prepare", id.as_str(), reason);
        let transaction = right.around(Transaction::named("prepare authority")).require_absent(record.key());
        self.commit(transaction.put(&record).record(entry)).await?;
        tracing::info!(authority = %id, %kind, reason, "authority prepared");
        Ok(())
    }
}

#[cfg(test)]
#[path = "rotate_tests.rs"]
mod tests;
