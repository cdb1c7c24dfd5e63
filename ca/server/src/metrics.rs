//! What the server counts, in Prometheus' terms. Labels come from closed sets, so cardinality is bounded.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use rhizome_core::clusters::ClusterReport;
use rhizome_core::ledger::Profile;
use rhizome_core::rotation::evidence::SubscriberKind;
use rhizome_id::TrustDomain;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ByProfile {
    profile: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ByCode {
    code: &'static str,
}

/// A foreign trust domain, of which there are 64 at most, and what came of a fetch.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByFetch {
    trust_domain: String,
    outcome: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByDomain {
    trust_domain: String,
}

/// A cluster with a Rhizome of its own, of which there are 256 at most.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ByCluster {
    pub(crate) cluster: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByDocument {
    document: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ByKind {
    pub(crate) kind: &'static str,
}

/// The change of the root, as the last look at it found it.
#[derive(Debug, Default)]
pub(crate) struct RotationMetrics {
    pub(crate) phase: Gauge,
    /// From the beginning to the end of the last that came to its end.
    pub(crate) duration: Gauge,
    pub(crate) blockers: Family<ByKind, Gauge>,
    pub(crate) acknowledged: Family<ByCluster, Gauge<f64, AtomicU64>>,
    /// How long the last reading of the world took, with its gate.
    pub(crate) look: Gauge<f64, AtomicU64>,
}

impl RotationMetrics {
    /// Says that nobody holds anything up, as far as this server knows.
    pub(crate) fn forget_gate(&self) {
        for kind in SubscriberKind::ALL {
            self.blockers.get_or_create(&ByKind { kind: kind.as_str() }).set(0);
        }
        self.acknowledged.clear();
    }
}

/// Sums over all labels, for the status.
#[derive(Debug, Default)]
struct Totals {
    issued: AtomicU64,
    refused: AtomicU64,
}

/// Every metric of the process.
pub(crate) struct Metrics {
    registry: Mutex<Registry>,
    issued: Family<ByProfile, Counter>,
    refused: Family<ByCode, Counter>,
    issue_seconds: Histogram,
    totals: Totals,
    pub(crate) refusals_not_recorded: Counter,
    pub(crate) connections: Gauge,
    pub(crate) connections_refused: Counter,
    pub(crate) handshakes_failed: Counter,
    pub(crate) bundle_sequence: Gauge,
    pub(crate) bundle_subscribers: Gauge,
    pub(crate) bundle_subscribers_behind: Gauge,
    pub(crate) nodes: Gauge,
    pub(crate) rules: Gauge,
    pub(crate) root_expiry: Gauge,
    pub(crate) issuer_expiry: Gauge,
    pub(crate) jwt_key_expiry: Gauge,
    pub(crate) jwt_svids_issued: Counter,
    pub(crate) server_certificate_expiry: Gauge,
    pub(crate) crls_signed: Counter,
    pub(crate) crl_failures: Counter,
    pub(crate) crl_entries: Gauge,
    pub(crate) crls_behind: Gauge,
    pub(crate) rotation: RotationMetrics,
    pub(crate) self_check_failures: Counter,
    pub(crate) self_checked: Counter,
    pub(crate) clock_behind: Gauge<f64, AtomicU64>,
    pub(crate) clock_ahead: Gauge<f64, AtomicU64>,
    federation_fetches: Family<ByFetch, Counter>,
    federation_sequence: Family<ByDomain, Gauge<u64, AtomicU64>>,
    federation_fetched_at: Family<ByDomain, Gauge>,
    cluster_alarms: Family<ByCluster, Gauge<u64, AtomicU64>>,
    cluster_reported_at: Family<ByCluster, Gauge>,
    cluster_behind: Family<ByCluster, Gauge<u64, AtomicU64>>,
    endpoint_documents: Family<ByDocument, Counter>,
    pub(crate) endpoint_refused: Counter,
    pub(crate) endpoint_failed: Counter,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let metrics = Self {
            registry: Mutex::new(Registry::with_prefix("rhizome")),
            issued: Family::default(),
            refused: Family::default(),
            totals: Totals::default(),
            issue_seconds: Histogram::new(exponential_buckets(0.000_25, 2.0, 14)),
            refusals_not_recorded: Counter::default(),
            connections: Gauge::default(),
            connections_refused: Counter::default(),
            handshakes_failed: Counter::default(),
            bundle_sequence: Gauge::default(),
            bundle_subscribers: Gauge::default(),
            bundle_subscribers_behind: Gauge::default(),
            nodes: Gauge::default(),
            rules: Gauge::default(),
            root_expiry: Gauge::default(),
            issuer_expiry: Gauge::default(),
            jwt_key_expiry: Gauge::default(),
            jwt_svids_issued: Counter::default(),
            server_certificate_expiry: Gauge::default(),
            crls_signed: Counter::default(),
            crl_failures: Counter::default(),
            crl_entries: Gauge::default(),
            crls_behind: Gauge::default(),
            rotation: RotationMetrics::default(),
            self_check_failures: Counter::default(),
            self_checked: Counter::default(),
            clock_behind: Gauge::default(),
            clock_ahead: Gauge::default(),
            federation_fetches: Family::default(),
            federation_sequence: Family::default(),
            federation_fetched_at: Family::default(),
            cluster_alarms: Family::default(),
            cluster_reported_at: Family::default(),
            cluster_behind: Family::default(),
            endpoint_documents: Family::default(),
            endpoint_refused: Counter::default(),
            endpoint_failed: Counter::default(),
        };
        metrics.register();
        metrics.register_crls();
        metrics.register_federation();
        metrics.register_clusters();
        metrics.register_rotation();
        metrics
    }

    fn register(&self) {
        let mut registry = self.registry.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let it = &mut *registry;
        it.register("certificates_issued", "Certificates issued, by profile", self.issued.clone());
        it.register("jwt_svids_issued", "JWT-SVIDs issued", self.jwt_svids_issued.clone());
        it.register("requests_refused", "Requests refused, by stable code", self.refused.clone());
        let help = "From a verified CSR to the sealed certificate";
        it.register_with_unit("issue_duration", help, Unit::Seconds, self.issue_seconds.clone());
        let help = "Refusals that were logged but not written to the ledger, because there were too many";
        it.register("refusals_not_recorded", help, self.refusals_not_recorded.clone());
        it.register("connections", "Connections held open", self.connections.clone());
        let help = "Connections refused because the limit was reached";
        it.register("connections_refused", help, self.connections_refused.clone());
        it.register(
            "handshakes_failed",
            "TLS handshakes that failed or took too long",
            self.handshakes_failed.clone(),
        );
        it.register("bundle_sequence", "Sequence of the published bundle", self.bundle_sequence.clone());
        it.register("bundle_subscribers", "Known subscribers of the bundle", self.bundle_subscribers.clone());
        let help = "Subscribers that have not acknowledged the published bundle";
        it.register("bundle_subscribers_behind", help, self.bundle_subscribers_behind.clone());
        it.register("nodes", "Nodes on record", self.nodes.clone());
        it.register("rules", "Rules in force", self.rules.clone());
        let help = "Unix time at which the first root of the bundle expires";
        it.register("root_expiry_timestamp_seconds", help, self.root_expiry.clone());
        let help = "Unix time at which the active issuer expires";
        it.register("issuer_expiry_timestamp_seconds", help, self.issuer_expiry.clone());
        let help = "Unix time at which the active key for JWT-SVIDs expires";
        it.register("jwt_key_expiry_timestamp_seconds", help, self.jwt_key_expiry.clone());
        let help = "Unix time at which the serving certificate expires";
        it.register(
            "server_certificate_expiry_timestamp_seconds",
            help,
            self.server_certificate_expiry.clone(),
        );
        let help = "Issued certificates that a second library refused afterwards; must stay 0";
        it.register("self_check_failures", help, self.self_check_failures.clone());
        it.register(
            "self_checked",
            "Issued certificates judged again by a second library",
            self.self_checked.clone(),
        );
        let help = "How far the clock lies behind the newest ledger record";
        it.register_with_unit("clock_behind", help, Unit::Seconds, self.clock_behind.clone());
        let help = "How far the machine's clock is ahead of what is believed; 0 while it is believed";
        it.register_with_unit("clock_ahead", help, Unit::Seconds, self.clock_ahead.clone());
    }

    fn register_rotation(&self) {
        let mut registry = self.registry.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (it, rotation) = (&mut *registry, &self.rotation);
        let help = "Phase of the change of the root: 0 stable, 1 staged, 2 distributing, 3 canary, 4 active, 5 untrusting, \
                    6 retired";
        it.register("rotation_phase", help, rotation.phase.clone());
        let help = "How long the last change of the root took, from its beginning to the end of the old key";
        it.register_with_unit("rotation_duration", help, Unit::Seconds, rotation.duration.clone());
        let help = "Who holds up the gate of the phase, by kind";
        it.register("rotation_blockers", help, rotation.blockers.clone());
        rotation.forget_gate();
        let help = "Share of the live subscribers that do not hold up the gate, by cluster";
        it.register("bundle_ack_ratio", help, rotation.acknowledged.clone());
        let help = "How long the last look took at everybody who holds up the phase, or does not";
        it.register_with_unit("rotation_look", help, Unit::Seconds, rotation.look.clone());
    }

    fn register_crls(&self) {
        let mut registry = self.registry.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let it = &mut *registry;
        it.register("crls_signed", "Revocation lists signed", self.crls_signed.clone());
        let help = "Times that a revocation list could not be signed";
        it.register("crl_signing_failures", help, self.crl_failures.clone());
        it.register("crl_entries", "Entries of all revocation lists", self.crl_entries.clone());
        let help =
            "Issuers without a revocation list, or with one older than their newest revocation; must be 0";
        it.register("crls_behind", help, self.crls_behind.clone());
    }

    fn register_federation(&self) {
        let mut registry = self.registry.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let it = &mut *registry;
        let help = "Fetches of foreign bundles, by trust domain and outcome";
        it.register("federation_fetches", help, self.federation_fetches.clone());
        let help = "Sequence of the foreign bundle in force";
        it.register("federation_bundle_sequence", help, self.federation_sequence.clone());
        let help = "Unix time of the last fetch of a foreign bundle that succeeded; 0: never";
        it.register("federation_fetched_timestamp_seconds", help, self.federation_fetched_at.clone());
        let help = "Documents that the bundle endpoint gave out";
        it.register("federation_endpoint_documents", help, self.endpoint_documents.clone());
        let help = "Connections and requests to the bundle endpoint that were too many";
        it.register("federation_endpoint_refused", help, self.endpoint_refused.clone());
        let help = "Connections to the bundle endpoint that failed";
        it.register("federation_endpoint_failures", help, self.endpoint_failed.clone());
    }

    fn register_clusters(&self) {
        let mut registry = self.registry.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let it = &mut *registry;
        let help = "Alarms ever raised about a cluster: what it issued outside its scope, or a ledger that was rewritten";
        it.register("cluster_alarms", help, self.cluster_alarms.clone());
        let help = "Unix time of the last report of a cluster's Rhizome; 0: never";
        it.register("cluster_reported_timestamp_seconds", help, self.cluster_reported_at.clone());
        let help = "Subscribers in a cluster that have not acknowledged the published bundle";
        it.register("cluster_subscribers_behind", help, self.cluster_behind.clone());
    }

    /// Shows what is known of the clusters, and nothing of others.
    pub(crate) fn show_clusters<'a>(&self, reports: impl Iterator<Item = &'a ClusterReport>) {
        self.cluster_alarms.clear();
        self.cluster_reported_at.clear();
        self.cluster_behind.clear();
        for report in reports {
            let label = ByCluster { cluster: report.cluster.to_string() };
            self.cluster_alarms.get_or_create(&label).set(report.alarms);
            self.cluster_reported_at.get_or_create(&label).set(report.at.unix());
            self.cluster_behind.get_or_create(&label).set(report.reported.behind_count);
        }
    }

    /// Counts a fetch of the bundle of `domain`; `outcome` is one of a closed set of words.
    pub(crate) fn federation_fetched(&self, domain: &TrustDomain, outcome: &str) {
        let label = ByFetch { trust_domain: domain.to_string(), outcome: outcome.to_owned() };
        self.federation_fetches.get_or_create(&label).inc();
    }

    /// Shows what is held of a foreign domain.
    pub(crate) fn federation_holds(&self, domain: &TrustDomain, sequence: u64, fetched_at: i64) {
        let label = ByDomain { trust_domain: domain.to_string() };
        self.federation_sequence.get_or_create(&label).set(sequence);
        self.federation_fetched_at.get_or_create(&label).set(fetched_at);
    }

    /// Shows nothing of a foreign domain any more; what was counted stays.
    pub(crate) fn forget_federation(&self, domain: &TrustDomain) {
        let label = ByDomain { trust_domain: domain.to_string() };
        self.federation_sequence.remove(&label);
        self.federation_fetched_at.remove(&label);
    }

    /// Counts a document that the bundle endpoint gave out.
    pub(crate) fn endpoint_served(&self, document: &'static str) {
        self.endpoint_documents.get_or_create(&ByDocument { document }).inc();
    }

    pub(crate) fn issued(&self, profile: Profile, took: Duration) {
        let profile = match profile {
            Profile::Workload => "workload",
            Profile::Node => "node",
            Profile::Server => "server",
            Profile::Admin => "admin",
            Profile::Root => "root",
            Profile::Issuer => "issuer",
        };
        self.issued.get_or_create(&ByProfile { profile }).inc();
        self.issue_seconds.observe(took.as_secs_f64());
        self.totals.issued.fetch_add(1, Ordering::Relaxed);
    }

    /// Certificates issued since the start, of all profiles.
    pub(crate) fn issued_total(&self) -> u64 {
        self.totals.issued.load(Ordering::Relaxed)
    }

    /// Requests refused since the start, for all reasons.
    pub(crate) fn refused_total(&self) -> u64 {
        self.totals.refused.load(Ordering::Relaxed)
    }

    pub(crate) fn refused(&self, code: &'static str) {
        self.refused.get_or_create(&ByCode { code }).inc();
        self.totals.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// All of it in OpenMetrics text.
    pub(crate) fn render(&self) -> String {
        let registry = self.registry.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut text = String::new();
        match encode(&mut text, &registry) {
            Ok(()) => text,
            Err(cause) => {
                tracing::error!(%cause, "metrics could not be written");
                String::new()
            }
        }
    }
}
