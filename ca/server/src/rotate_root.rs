//! The change of the root in practice: performs what `rhizome_core::rotation::step` says.
//!
//! Laws: nothing is decided here. A move is stored with its entry in the ledger, and only while the record is the one that
//! was read; every effect that writes requires that record to be unchanged, so whoever was away meanwhile does nothing.
//! A key is made under the name that the record gives it, and destroyed only once no record names it. An outcome that is
//! not known is looked at again. Issuers follow the active root by themselves (`rotate`).
//! Not here: what is due and when a phase is left (`rhizome_core::rotation`), when to look (`rotate_root_look`), reading the
//! world (`rotate_root_world`).
//! Sources: ca/docs/rotation.md.

use std::collections::BTreeSet;
use std::sync::Arc;

use rhizome_core::authority::{self, Authority, AuthorityKind, AuthorityState, Cross, Custody};
use rhizome_core::documents::{DocumentKey, Kind, Stored, Transaction, Version, Versioned};
use rhizome_core::issuance::Prepared;
use rhizome_core::limits::WITHIN_REACH_SECONDS;
use rhizome_core::ports::{KeyPurpose, StoreError};
use rhizome_core::replicas::Lease;
use rhizome_core::rotation::{Effect, Input, Mode, Order, Phase, Rotation, SelfTest, step};
use rhizome_core::state::BundleRecord;
use rhizome_id::{AuthorityId, KeyId, RotationName, Timestamp};
use rhizome_x509::{Bundle, CaCertificate, CrossSpec, RootSpec};

use crate::authority_keys::forget_below;
use crate::ca::Ca;
use crate::error::{ApiError, IssueError};
use crate::replicas::Right;
use crate::rotate_root_words::{changed, one_line, passed};

/// In whose name the machine moves by itself.
pub(crate) const SERVER: &str = "server";

pub(crate) type Held = Versioned<Arc<Rotation>>;

impl Ca {
    /// An administrator's word, said by the principal `by`, and why; the record as it is after it.
    ///
    /// # Errors
    /// [`ApiError::Rotation`] when it is refused, [`ApiError::Store`] with a conflict when somebody was faster.
    pub(crate) async fn command_root(
        self: &Arc<Self>,
        by: &str,
        why: &str,
        seen: Option<(&RotationName, u64)>,
        order: Order,
    ) -> Result<Option<Arc<Rotation>>, ApiError> {
        let turn = self.root.turn.lock().await;
        let held = self.state().rotation().cloned();
        let now = self.now()?;
        if self.clock.shaken() && matches!(order, Order::Start { .. } | Order::Advance { .. }) {
            let name = held.as_ref().map_or_else(|| "root".to_owned(), |it| it.value.name.to_string());
            let problem = "rests: the clock stepped ahead, and what it calls expired may live";
            return Err(ApiError::Conflict { what: "rotation", name, problem });
        }
        // One that has ended tells nothing about the one that begins.
        let underway = held.as_ref().map(|it| &*it.value).filter(|it| it.phase != Phase::Stable);
        let mut world = self.root_world(underway, now).await?;
        if let Order::Start { new, .. } = &order
            && self.has_root_key(&self.state(), new).await?
        {
            world.facts.keys.insert(new.clone());
        }
        let current = held.as_ref().map(|it| &*it.value);
        let what = match &order {
            Order::Start { .. } => "rotation.start",
            Order::Advance { .. } => "rotation.advance",
            Order::Abort => "rotation.abort",
            Order::Exempt(_) => "rotation.exempt",
        };
        let input = Input::Command { by, seen, order: order.clone(), world: &world };
        let found = step(current, input, now).map_err(ApiError::Rotation)?;
        if let (Some(next), Some(held)) = (&found.moved, &held)
            && matches!(order, Order::Advance { .. })
            && self.is_hasty(&held.value, next, now)
        {
            let problem = "waits until the other servers have said who is connected to them: a minute and a half after \
                           its beginning";
            return Err(ApiError::Conflict { what: "rotation", name: next.name.to_string(), problem });
        }
        if let Some(next) = found.moved {
            tracing::warn!(by, what, rotation = %next.name, phase = %next.phase, "root rotation: an administrator's word");
            self.move_root(held.as_ref(), *next, by, why).await?;
        }
        drop(turn);
        self.keep_root().await?;
        Ok(self.state().rotation().map(|it| Arc::clone(&it.value)))
    }

    /// Whether the first phase of a change that waits only for those within reach would be left before every server has
    /// written down whom it reaches.
    pub(crate) fn is_hasty(&self, held: &Rotation, next: &Rotation, now: Timestamp) -> bool {
        let leaves =
            held.phase == Phase::Staged && next.phase != Phase::Staged && next.phase != Phase::Stable;
        let young = now.since(held.started_at) < WITHIN_REACH_SECONDS;
        leaves && young && held.mode == Mode::Compromised && self.ports.store.is_shared()
    }

    /// Stores the record that a step moved to, and what the ledger says about it.
    pub(crate) async fn move_root(
        self: &Arc<Self>,
        held: Option<&Held>,
        next: Rotation,
        by: &str,
        why: &str,
    ) -> Result<(), ApiError> {
        let left = held.filter(|it| it.value.phase != next.phase || it.value.heading != next.heading);
        let detail = match (left, &next.last) {
            (Some(before), Some(passage)) => passed(&before.value, &next, passage),
            _ => changed(held.map(|it| &*it.value), &next),
        };
        let detail = if why.is_empty() { detail } else { format!("{detail}; why: {}", one_line(why)) };
        let entry = self.changed(by, "rotation.move", next.name.as_str(), &detail);
        let transaction = Transaction::named("move rotation");
        // The machine's own moves are the leader's; an administrator's word counts wherever it is said.
        let transaction = if by == SERVER { self.fenced(transaction)? } else { transaction };
        let transaction = match held {
            Some(held) => transaction.require_unchanged(next.key(), held.version),
            None => transaction.require_absent(next.key()),
        };
        self.commit(transaction.put(&next).record(entry)).await?;
        tracing::warn!(rotation = %next.name, phase = %next.phase, detail, "root rotation");
        Ok(())
    }

    pub(crate) async fn perform_root(
        self: &Arc<Self>,
        held: &Held,
        effect: &Effect,
        now: Timestamp,
    ) -> Result<(), ApiError> {
        tracing::info!(rotation = %held.value.name, ?effect, "root rotation");
        match effect {
            Effect::MakeKey { root, .. } => {
                let (key, algorithm) = (key_of(root)?, self.settings.algorithm);
                let made = self.ports.keys.generate(&key, KeyPurpose::Root, algorithm).await;
                made.map(drop).map_err(|cause| IssueError::from(cause).into())
            }
            Effect::DestroyKey { root, .. } => {
                let destroyed = self.ports.keys.destroy(&key_of(root)?).await;
                destroyed.map_err(|cause| IssueError::from(cause).into())
            }
            Effect::SelfSign { root, reason } => self.self_sign(held, root, now, &reason.to_string()).await,
            Effect::CrossCertify { root, by, reason } => {
                self.cross_certify(held, root, by, now, &reason.to_string()).await
            }
            Effect::SelfTest { root, .. } => {
                let verdict = match self.self_test(held, root, now).await {
                    Ok(()) => SelfTest::Passed,
                    // What may be over soon says nothing about the root.
                    Err(
                        cause @ (ApiError::Store(_)
                        | ApiError::Issue(IssueError::Store(_) | IssueError::Keys(_))),
                    ) => return Err(cause),
                    Err(cause) => SelfTest::Failed { cause: cause.to_string() },
                };
                let input = Input::SelfTested { rotation: &held.value.name, verdict };
                let found = step(Some(&held.value), input, now);
                match found.map_err(|bug| ApiError::Bug(bug.to_string()))?.moved {
                    Some(next) => self.move_root(Some(held), *next, SERVER, "").await,
                    None => Ok(()),
                }
            }
            Effect::Publish { with, without, reason } => {
                self.publish_roots(held, with, without, now, &reason.to_string()).await
            }
            Effect::Carry { root, reason } => {
                self.change_root(held, root, "root.carry", &reason.to_string(), |it| {
                    it.cross = it.cross.take().map(|cross| Cross { carried: true, ..cross });
                })
                .await
            }
            Effect::Uncross { root, reason } => {
                self.change_root(held, root, "root.uncross", &reason.to_string(), |it| it.cross = None).await
            }
            Effect::Taint { root, reason } => {
                self.change_root(held, root, "root.taint", &reason.to_string(), |it| {
                    it.state = AuthorityState::Tainted;
                })
                .await
            }
            Effect::Activate { root, reason } => {
                self.activate_root(held, root, now, &reason.to_string()).await?;
                // Issuers follow at once.
                self.keep_authorities().await
            }
            Effect::DeleteRecord { root, reason } => self.delete_root(held, root, &reason.to_string()).await,
            Effect::SetCanary { root, reason } => {
                self.set_canary(held, root.as_ref(), &reason.to_string()).await
            }
            Effect::OrderRenewals { .. } | Effect::WakeAt(_) => Ok(()),
        }
    }

    /// Adds the record of an authority as it is to be to `transaction`. The root above an issuer that begins to sign must
    /// still be active as it was seen, or a replica that was away would sign below a root that verifiers do not trust yet, or
    /// not any more; `None` when it is not.
    pub(crate) fn put_below_active(&self, transaction: Transaction, next: &Authority) -> Option<Transaction> {
        let state = self.state();
        let version = |key: &DocumentKey| state.version_of(key).unwrap_or(Version(0));
        let transaction = transaction.require_unchanged(next.key(), version(&next.key())).put(next);
        let begins = next.kind == AuthorityKind::Issuer && next.state == AuthorityState::Active;
        let Some(root) = next.issuer.as_ref().filter(|_| begins) else { return Some(transaction) };
        let above = state.authorities().get(root);
        // Below the root of a canary one may begin to sign, too.
        let above = above.filter(|it| it.value.state == AuthorityState::Active || it.value.is_canary())?;
        Some(transaction.require_unchanged(above.value.key(), above.version))
    }

    /// A transaction that happens only while the rotation's record is the one that was read, and this replica leads.
    fn following(&self, held: &Held, name: &'static str) -> Result<Transaction, ApiError> {
        self.fenced(Transaction::named(name).require_unchanged(held.value.key(), held.version))
    }

    /// The right to sign for roots.
    pub(crate) fn root_right(&self) -> Result<Right, ApiError> {
        Ok(self.right().ok_or_else(|| StoreError::Conflict { key: Lease::key() })?)
    }

    /// The record of a root, as it is.
    fn root_record(&self, root: &AuthorityId) -> Result<Versioned<Arc<Authority>>, ApiError> {
        let missing = || ApiError::NotFound { what: "root", name: root.to_string() };
        self.state().authorities().get(root).cloned().ok_or_else(missing)
    }

    async fn self_sign(
        self: &Arc<Self>,
        held: &Held,
        root: &AuthorityId,
        now: Timestamp,
        reason: &str,
    ) -> Result<(), ApiError> {
        let key = self.ports.keys.key(&key_of(root)?).await.map_err(IssueError::from)?;
        let validity = authority::root_validity(now, &self.settings.rotation);
        let validity = validity.ok_or_else(|| ApiError::Bug("a root cannot be valid now".into()))?;
        let (serial, _) = self.serials.next(&*self.ports.store, &*self.ports.entropy, now).await?;
        let spec = RootSpec {
            trust_domain: &self.settings.trust_domain,
            generation: root,
            public_key: &key.public_key,
            algorithm: key.algorithm,
            serial,
            not_before: validity.not_before,
            not_after: validity.not_after,
        };
        let prepared = Prepared::root(&spec, &key.id, "server").map_err(IssueError::from)?;
        let certificate = self.certify(prepared, self.root_right()?, now).await?;
        let certificate = CaCertificate::parse(certificate.into_inner().der());
        let record = Authority {
            id: root.clone(),
            kind: AuthorityKind::Root,
            replica: self.settings.replica.clone(),
            key: key.id.clone(),
            algorithm: key.algorithm,
            certificate: certificate.map_err(|bad| ApiError::Bug(bad.to_string()))?,
            issuer: None,
            state: AuthorityState::Prepared,
            prepared_at: now,
            activated_at: None,
            cross: None,
            canary: false,
            retired_at: None,
            custody: Custody::Here,
            above: Vec::new(),
        };
        let entry = self.changed("server", "authority.prepare", root.as_str(), reason);
        let transaction = self.following(held, "stage root")?.require_absent(record.key());
        self.commit(transaction.put(&record).record(entry)).await?;
        Ok(())
    }

    async fn cross_certify(
        self: &Arc<Self>,
        held: &Held,
        root: &AuthorityId,
        by: &AuthorityId,
        now: Timestamp,
        reason: &str,
    ) -> Result<(), ApiError> {
        let (below, above) = (self.root_record(root)?, self.root_record(by)?);
        let (below_end, above_end) =
            (below.value.certificate.not_after(), above.value.certificate.not_after());
        let (serial, _) = self.serials.next(&*self.ports.store, &*self.ports.entropy, now).await?;
        let begin = below.value.certificate.not_before().max(above.value.certificate.not_before());
        let spec = CrossSpec {
            trust_domain: &self.settings.trust_domain,
            root: &below.value.certificate,
            serial,
            not_before: begin,
            not_after: below_end.min(above_end),
        };
        let signer = (&above.value.id, &above.value.certificate, above.value.algorithm);
        let prepared =
            Prepared::cross(&spec, root, signer, &above.value.key, "server").map_err(IssueError::from)?;
        let certificate = self.certify(prepared, self.root_right()?, now).await?;
        let certificate = CaCertificate::parse(certificate.into_inner().der());
        let certificate = certificate.map_err(|bad| ApiError::Bug(bad.to_string()))?;
        let cross = Cross { by: by.clone(), certificate, carried: false };
        self.change_root(held, root, "root.cross", reason, |it| it.cross = Some(cross.clone())).await
    }

    /// Changes the record of a root in a transaction that requires it and the rotation to be as they were read.
    pub(crate) async fn change_root(
        self: &Arc<Self>,
        held: &Held,
        root: &AuthorityId,
        action: &str,
        reason: &str,
        change: impl Fn(&mut Authority),
    ) -> Result<(), ApiError> {
        let record = self.root_record(root)?;
        let mut next = Authority::clone(&record.value);
        change(&mut next);
        let entry = self.changed("server", action, root.as_str(), reason);
        let transaction = self.following(held, "change root")?.require_unchanged(next.key(), record.version);
        self.commit(transaction.put(&next).record(entry)).await?;
        Ok(())
    }

    async fn activate_root(
        self: &Arc<Self>,
        held: &Held,
        root: &AuthorityId,
        now: Timestamp,
        reason: &str,
    ) -> Result<(), ApiError> {
        let mut transaction = self.following(held, "activate root")?;
        let state = self.state();
        let roots = state.authorities().values().filter(|it| it.value.kind == AuthorityKind::Root);
        for record in roots {
            let is_chosen = record.value.id == *root;
            let wanted = match record.value.state {
                // A tainted authority never returns.
                AuthorityState::Tainted => continue,
                AuthorityState::Prepared | AuthorityState::Old if is_chosen => AuthorityState::Active,
                AuthorityState::Active if !is_chosen => AuthorityState::Old,
                AuthorityState::Prepared | AuthorityState::Active | AuthorityState::Old => continue,
            };
            let activated_at = if is_chosen { Some(now) } else { record.value.activated_at };
            let next =
                Authority { state: wanted, activated_at, canary: false, ..Authority::clone(&record.value) };
            transaction = transaction.require_unchanged(next.key(), record.version).put(&next);
        }
        let entry = self.changed("server", "authority.activate", root.as_str(), reason);
        self.commit(transaction.record(entry)).await?;
        Ok(())
    }

    async fn delete_root(
        self: &Arc<Self>,
        held: &Held,
        root: &AuthorityId,
        reason: &str,
    ) -> Result<(), ApiError> {
        let record = self.root_record(root)?;
        let key = DocumentKey::new(Kind::Authority, root.to_string());
        let entry = self.changed("server", "authority.forget", root.as_str(), reason);
        let transaction = self.following(held, "forget root")?.require_unchanged(key.clone(), record.version);
        let (transaction, unused) = forget_below(self, transaction.delete(key).record(entry), root);
        self.commit(transaction).await?;
        // Nothing names them any more: a ring that does not answer now is asked again.
        self.spent_keys().extend(unused);
        self.destroy_spent_keys().await;
        Ok(())
    }

    async fn publish_roots(
        self: &Arc<Self>,
        held: &Held,
        with: &BTreeSet<AuthorityId>,
        without: &BTreeSet<AuthorityId>,
        now: Timestamp,
        reason: &str,
    ) -> Result<(), ApiError> {
        let state = self.state();
        let published = state.bundle().ok_or(ApiError::Issue(IssueError::NoAuthority))?;
        let certificate =
            |root: &AuthorityId| state.authorities().get(root).map(|it| it.value.anchor().clone());
        let gone: Vec<_> = without.iter().filter_map(certificate).map(|it| it.fingerprint()).collect();
        let mut record = BundleRecord::of(&published.value.bundle);
        record.anchors.retain(|it| !gone.contains(&it.fingerprint()));
        for root in with {
            // A bundle that lacks one would be published again and again, and would strand whoever needs it.
            let root = self.root_record(root)?.value.anchor().clone();
            if !record.anchors.iter().any(|it| it.fingerprint() == root.fingerprint()) {
                record.anchors.push(root);
            }
        }
        record.sequence = record.sequence.saturating_add(1);
        let bundle = Bundle::try_from(record.clone())
            .map_err(|bad| ApiError::Bug(format!("the bundle is not one: {bad}")))?;
        let named = |roots: &BTreeSet<AuthorityId>| {
            roots.iter().map(AuthorityId::as_str).collect::<Vec<_>>().join(", ")
        };
        let detail = format!(
            "sequence {}, with {}, without {}: {reason}",
            record.sequence,
            named(with),
            if without.is_empty() { "none".to_owned() } else { named(without) }
        );
        let entry = self.changed("server", "bundle.publish", record.trust_domain.as_str(), &detail);
        let next = held.value.with_published(record.sequence, bundle.digest(), now);
        let transaction =
            self.following(held, "publish roots")?.require_unchanged(record.key(), published.version);
        self.commit(transaction.put(&record).put(&next).record(entry)).await?;
        Ok(())
    }
}

/// The key of a root has its name.
pub(crate) fn key_of(root: &AuthorityId) -> Result<KeyId, ApiError> {
    root.as_str().parse().map_err(|cause: rhizome_id::NameError| ApiError::Bug(cause.to_string()))
}
