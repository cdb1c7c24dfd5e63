//! Clusters with a Rhizome of their own, as the root's side keeps them: intermediates granted, reports taken in, alarms
//! raised.
//!
//! Laws: an intermediate is decided, prepared, linted, recorded and signed in that order, as every certificate is, and its
//! record stands in the cluster's document in the same transaction as its ledger entry: a suspension that comes meanwhile
//! wins. What a cluster reports is believed about itself only; its ledger's chain is followed record by record, and what
//! it issued outside its scope is written to ours before the answer goes out.
//! Not here: the decisions (`rhizome_core::clusters`), who may add a cluster (`api::admin::clusters`), the other side
//! (`upstream`).

use std::sync::Arc;

use rhizome_core::authority::{Authority, AuthorityKind, AuthorityState};
use rhizome_core::caller::AttestedCaller;
use rhizome_core::clusters::{
    Alarm, Cluster, ClusterRefusal, ClusterReport, ClusterState, Granted, IntermediateWish, Reported,
};
use rhizome_core::documents::{Stored as _, Transaction, Version, Versioned};
use rhizome_core::issuance::Prepared;
use rhizome_core::ledger::Record;
use rhizome_core::ports::StoreError;
use rhizome_core::state::State;
use rhizome_id::{Digest, Timestamp, Ttl};
use rhizome_tls::MAX_ISSUERS;
use rhizome_x509::{
    CaCertificate, IntermediateRole, IntermediateSpec, PublicKey, Signature, SigningAlgorithm, probe_for,
};

use crate::ca::Ca;
use crate::error::{ApiError, IssueError};
use crate::rotate::can_sign_issuers;

/// How often a request is tried again when the cluster's record changed at the same moment.
const TRIES: usize = 4;

/// A public key whose private part the caller has: it signed the fixed probe.
#[derive(Clone, Debug)]
pub(crate) struct ProvenKey {
    public_key: PublicKey,
    algorithm: SigningAlgorithm,
}

impl ProvenKey {
    /// Checks key and proof, both in DER.
    pub(crate) fn read(public_key_der: &[u8], proof: impl Into<Vec<u8>>) -> Result<Self, ApiError> {
        let invalid = |field: &'static str, problem: String| ApiError::Invalid { field, problem };
        let public_key = PublicKey::from_spki_der(public_key_der)
            .map_err(|cause| invalid("public_key_der", cause.to_string()))?;
        let algorithm = SigningAlgorithm::of_key(public_key.algorithm());
        let algorithm = algorithm.ok_or_else(|| {
            let found = public_key.algorithm();
            invalid("public_key_der", format!("an authority signs with P-256 or P-384, not with {found}"))
        })?;
        let proof = Signature::external(proof.into());
        public_key
            .verify(probe_for(algorithm).as_bytes(), &proof, algorithm)
            .map_err(|_wrong| invalid("proof", "it was not made with that key".to_owned()))?;
        Ok(Self { public_key, algorithm })
    }
}

/// A signed intermediate.
#[derive(Debug)]
pub(crate) struct Intermediate {
    pub(crate) granted: Granted,
    /// The intermediate and what stands above it, without the root.
    pub(crate) chain: Vec<CaCertificate>,
    pub(crate) root: CaCertificate,
}

impl Ca {
    /// The cluster whose Rhizome calls.
    pub(crate) fn calling_cluster(
        &self,
        caller: &AttestedCaller,
    ) -> Result<Versioned<Arc<Cluster>>, ApiError> {
        let state = self.state();
        let cluster = state.cluster_of(caller.principal()).cloned();
        let cluster = cluster.ok_or_else(|| ApiError::NotACluster { who: caller.principal().to_string() })?;
        cluster.value.check_active().map_err(|refused| self.refuse_cluster(caller, refused))?;
        Ok(cluster)
    }

    fn refuse_cluster(&self, caller: &AttestedCaller, refused: ClusterRefusal) -> ApiError {
        self.note_refusal(caller, "cluster.sign_intermediate", refused.code(), &refused.to_string());
        ApiError::Cluster(refused)
    }

    /// Signs an intermediate for the cluster that `caller` is the Rhizome of.
    pub(crate) async fn sign_intermediate(
        self: &Arc<Self>,
        caller: &AttestedCaller,
        key: &ProvenKey,
        ttl: Option<Ttl>,
    ) -> Result<Intermediate, ApiError> {
        let who = caller.principal().to_string();
        if let Err(retry_after) = self.quota.admit_intermediate(&who) {
            return Err(ApiError::Limited { who, retry_after });
        }
        let mut tries = 0;
        loop {
            tries += 1;
            match self.try_to_sign(caller, key, ttl).await {
                Err(ApiError::Issue(IssueError::Store(StoreError::Conflict { .. }))) if tries < TRIES => {}
                outcome => return outcome,
            }
        }
    }

    async fn try_to_sign(
        self: &Arc<Self>,
        caller: &AttestedCaller,
        key: &ProvenKey,
        ttl: Option<Ttl>,
    ) -> Result<Intermediate, ApiError> {
        let now = self.now()?;
        self.check_not_halted()?;
        let ProvenKey { public_key, algorithm } = key;
        let state = self.state();
        let nobody = || ApiError::NotACluster { who: caller.principal().to_string() };
        let Versioned { version, value: cluster } =
            state.cluster_of(caller.principal()).ok_or_else(nobody)?;
        let root = state.active_root().cloned().ok_or(ApiError::Issue(IssueError::NoAuthority))?;
        can_sign_issuers(&root)?;
        let window = root.window();
        let root_version = state.version_of(&root.key()).unwrap_or(Version(0));
        let wish = IntermediateWish { public_key: public_key.digest(), ttl };
        let others = state.clusters().values().map(|it| &*it.value);
        let ours = state.authorities().values().map(|it| &*it.value);
        let allowed = cluster.may_have_intermediate(&wish, window, others, ours, now);
        let validity = allowed.map_err(|refused| self.refuse_cluster(caller, refused))?;

        let id = self.new_authority_name(AuthorityKind::Issuer, now)?;
        let (serial, _) = self.serials.next(&*self.ports.store, &*self.ports.entropy, now).await?;
        let spec = IntermediateSpec {
            role: IntermediateRole::Cluster,
            trust_domain: &self.settings.trust_domain,
            generation: &id,
            public_key,
            algorithm: *algorithm,
            serial,
            not_before: validity.not_before,
            not_after: validity.not_after,
        };
        let by = caller.principal().to_string();
        let above = (&root.id, &root.certificate, root.algorithm);
        let prepared = Prepared::intermediate(&spec, above, &root.key, &by).map_err(IssueError::from)?;
        let granted = Granted {
            id: id.clone(),
            root: root.id.clone(),
            serial,
            public_key: public_key.digest(),
            key_id: hex::encode(public_key.key_identifier()),
            granted_at: now,
            not_after: validity.not_after,
        };
        let detail = format!("{id} until {}, for cluster {}", validity.not_after, cluster.name);
        let alongside = Transaction::named("grant intermediate")
            .require_unchanged(cluster.key(), *version)
            // A root that ceased to sign meanwhile signs nothing more.
            .require_unchanged(root.key(), root_version)
            .put(&cluster.granting(granted.clone(), now))
            .record(self.changed(&by, "cluster.grant", cluster.name.as_str(), &detail));
        let certificate = self.certify_alongside(prepared, alongside, now).await?;
        let certificate = CaCertificate::parse(certificate.into_inner().der());
        let certificate = certificate.map_err(|bad| ApiError::Bug(bad.to_string()))?;
        tracing::info!(cluster = %cluster.name, authority = %id, not_after = %granted.not_after, "intermediate granted");
        let chain = std::iter::once(certificate).chain(root.served().cloned()).collect();
        Ok(Intermediate { granted, chain, root: root.anchor().clone() })
    }

    /// Takes a report in, and gives what is known of the cluster after it.
    pub(crate) async fn take_report(
        self: &Arc<Self>,
        caller: &AttestedCaller,
        reported: Reported,
        records: &[Record],
    ) -> Result<ClusterReport, ApiError> {
        for _ in 0..TRIES {
            match self.try_to_take(caller, reported.clone(), records).await {
                Err(ApiError::Store(StoreError::Conflict { .. })) => {}
                outcome => return outcome,
            }
        }
        self.try_to_take(caller, reported, records).await
    }

    async fn try_to_take(
        self: &Arc<Self>,
        caller: &AttestedCaller,
        reported: Reported,
        records: &[Record],
    ) -> Result<ClusterReport, ApiError> {
        let Versioned { version, value: cluster } = self.calling_cluster(caller)?;
        let now = self.now()?;
        let state = self.state();
        let known = state.cluster_reports().get(&cluster.name);
        if let Some(known) = known.filter(|it| records.is_empty() && it.value.is_told(&reported, now)) {
            return Ok(ClusterReport::clone(&known.value));
        }
        let before = known.map_or_else(
            || ClusterReport::empty(cluster.name.clone()),
            |known| ClusterReport::clone(&known.value),
        );
        let after = before.after(reported, records, &cluster, state.trust_domain(), now);
        let (report, alarms) = after.map_err(|fault| {
            self.note_refusal(caller, "cluster.report", "not_a_ledger", &fault.to_string());
            ApiError::Invalid { field: "records", problem: fault.to_string() }
        })?;
        // Judged by the scope of this moment: one that was changed meanwhile is asked again.
        let transaction = Transaction::named("cluster report").require_unchanged(cluster.key(), version);
        let mut transaction = transaction.put(&report);
        transaction = match known {
            Some(known) => transaction.require_unchanged(report.key(), known.version),
            None => transaction.require_absent(report.key()),
        };
        let by = caller.principal().to_string();
        // A few a second: whoever issues what it likes cannot fill our ledger with it. All are counted.
        for alarm in alarms.iter().filter(|_| self.quota.may_record_refusal(&by)) {
            let detail = format!("{}: {}: {}", alarm.code, alarm.subject, alarm.detail);
            transaction =
                transaction.record(self.changed(&by, "cluster.alarm", cluster.name.as_str(), &detail));
        }
        self.commit(transaction).await?;
        alarms.iter().for_each(|alarm| say(&cluster, alarm));
        Ok(report)
    }
}

fn say(cluster: &Cluster, alarm: &Alarm) {
    tracing::error!(
        cluster = %cluster.name,
        code = alarm.code,
        subject = alarm.subject,
        detail = alarm.detail,
        position = alarm.position,
        "a cluster's ledger gives rise to an alarm; `rhizome cluster show` has all, `rhizome cluster suspend` cuts it off"
    );
}

/// SHA-256 of the keys that sign the certificates of this Rhizome's own servers: how a cluster's Rhizome tells them from
/// servers that another cluster's issuer made up.
pub(crate) fn own_issuer_keys(state: &State, now: Timestamp) -> Vec<Digest> {
    let living = |it: &&Arc<Authority>| {
        it.kind == AuthorityKind::Issuer
            && it.state != AuthorityState::Tainted
            && it.certificate.not_after() >= now
    };
    let mut issuers: Vec<_> = state.authorities().values().map(|it| &it.value).filter(living).collect();
    issuers.sort_by_key(|it| std::cmp::Reverse(it.prepared_at));
    let mut keys: Vec<Digest> = issuers.iter().map(|it| it.certificate.public_key().digest()).collect();
    keys.truncate(MAX_ISSUERS);
    keys
}

/// Whether `cluster` was removed before then and nothing that it was granted was valid any more: its record may go.
pub(crate) fn is_over(cluster: &Cluster, before: Timestamp) -> bool {
    match &cluster.state {
        ClusterState::Removed(ended) => {
            ended.at < before && cluster.matters_until().is_none_or(|until| until < before)
        }
        ClusterState::Active | ClusterState::Suspended(_) => false,
    }
}
