//! The agent's metrics, in Prometheus' terms: a page made of a report, whenever somebody asks.
//!
//! Laws: the number of time series is bounded: sinks by the configuration, identities by a cap that keeps those that
//! expire first. Not here: what is counted (`report`).

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::report::Report;
use crate::sink::SinkHealth;

/// Identities with a time series of their own: those that expire first.
const IDENTITIES: usize = 100;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByIdentity {
    spiffe_id: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BySink {
    sink: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByOutcome {
    outcome: &'static str,
}

/// All of it in OpenMetrics text.
pub(super) fn render(report: &Report) -> String {
    let mut registry = Registry::with_prefix("rhizome_agent");
    node(&mut registry, report);
    bundles(&mut registry, report);
    identities(&mut registry, report);
    sinks(&mut registry, report);
    let mut text = String::new();
    match encode(&mut text, &registry) {
        Ok(()) => text,
        Err(cause) => {
            tracing::error!(%cause, "metrics could not be written");
            String::new()
        }
    }
}

fn gauge(registry: &mut Registry, name: &str, help: &str, value: impl TryInto<i64>) {
    let gauge: Gauge = Gauge::default();
    gauge.set(value.try_into().unwrap_or(i64::MAX));
    registry.register(name, help, gauge);
}

fn counter(registry: &mut Registry, name: &str, help: &str, value: u64) {
    let counter: Counter<u64, AtomicU64> = Counter::default();
    counter.inc_by(value);
    registry.register(name, help, counter);
}

fn node(registry: &mut Registry, report: &Report) {
    registry.register("build", "The agent's release", Info::new([("version", report.version.clone())]));
    gauge(registry, "ready", "Whether workloads can be served", i64::from(report.ready));
    let help = "Whether the authority's stream is open and has brought the agent up to date";
    gauge(registry, "connected", help, i64::from(report.connected));
    let help = "For how long the authority has not been heard; 0 while connected";
    gauge(registry, "sync_lag_seconds", help, report.sync_lag_seconds);
    let help = "Attempts to connect that failed in a row";
    gauge(registry, "connect_failures", help, report.connect_failures);
    let help = "Unix time at which the node's own certificate expires; 0 before the first join";
    gauge(registry, "node_expiry_timestamp_seconds", help, report.node_expires.map_or(0, |at| at.unix()));
    let help = "Writes of the sealed state that failed in a row";
    gauge(registry, "state_write_failures", help, report.state_write_failures);
    let help = "Files of the state that were of no use at the start and were kept aside";
    gauge(registry, "state_files_aside", help, report.state_kept_aside.len());
    gauge(registry, "connections", "Open connections of workloads", report.connections);
    gauge(registry, "streams", "Open streams of workloads", report.streams);
}

fn bundles(registry: &mut Registry, report: &Report) {
    let help = "Sequence of the bundle in force";
    gauge(registry, "bundle_sequence", help, report.bundle_sequence.unwrap_or_default());
    let help = "Sequence of the bundle acknowledged last";
    gauge(registry, "bundle_acknowledged_sequence", help, report.bundle_acknowledged.unwrap_or_default());
    counter(
        registry,
        "bundles_refused",
        "Bundles refused: older, foreign or in conflict",
        report.bundles_refused,
    );
    let help =
        "Revocation lists refused: not signed by an issuer under the bundle, or older than the one held";
    counter(registry, "crls_refused", help, report.crls_refused);
}

fn identities(registry: &mut Registry, report: &Report) {
    gauge(registry, "identities", "Identities held", report.identities_held);
    let earliest = report.identities.first().map_or(0, |it| it.expires.unix());
    let help = "Unix time at which the first of all identities expires; 0 when there is none";
    gauge(registry, "identity_earliest_expiry_timestamp_seconds", help, earliest);
    let expiry: Family<ByIdentity, Gauge> = Family::default();
    // Several certificates of one identity: the first to expire.
    for it in report.identities.iter().take(IDENTITIES).rev() {
        let labels = ByIdentity { spiffe_id: it.spiffe_id.clone() };
        expiry.get_or_create(&labels).set(it.expires.unix());
    }
    let help = "Unix time at which an identity expires; at most 100, those that expire first";
    registry.register("identity_expiry_timestamp_seconds", help, expiry);
    let certificates: Family<ByOutcome, Counter> = Family::default();
    let tallies = report.certificates;
    for (outcome, count) in [
        ("issued", tallies.issued),
        ("refused", tallies.refused),
        ("failed", tallies.failed),
        ("lost", tallies.lost),
    ] {
        certificates.get_or_create(&ByOutcome { outcome }).inc_by(count);
    }
    let help = "What came of asking for workloads' certificates, first ones and renewals";
    registry.register("certificates", help, certificates);
}

fn sinks(registry: &mut Registry, report: &Report) {
    let (healthy, failures): (Family<BySink, Gauge>, Family<BySink, Counter>) = <_>::default();
    let (written, expiry): (Family<BySink, Gauge>, Family<BySink, Gauge>) = <_>::default();
    for it in &report.sinks {
        let labels = BySink { sink: it.name.clone() };
        healthy.get_or_create(&labels).set(i64::from(it.health == SinkHealth::InForce));
        failures.get_or_create(&labels).inc_by(it.failures_total);
        written.get_or_create(&labels).set(it.written_at.map_or(0, |at| at.unix()));
        expiry.get_or_create(&labels).set(it.expires.map_or(0, |at| at.unix()));
    }
    registry.register("sink_in_force", "Whether the files are right and the software was told", healthy);
    registry.register("sink_failures", "Attempts of a sink that failed", failures);
    let help = "Unix time at which a sink was written last by this process; 0 if it was not";
    registry.register("sink_written_timestamp_seconds", help, written);
    let help = "Unix time at which the identity in a sink's files expires; 0 if there is none";
    registry.register("sink_expiry_timestamp_seconds", help, expiry);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rhizome_id::Timestamp;

    use super::*;
    use crate::observe::report::IdentityReport;
    use crate::sink::SinkStatus;

    #[test]
    fn the_page_has_a_bounded_number_of_identities_those_that_expire_first() {
        let identity = |n: i64| IdentityReport {
            spiffe_id: format!("spiffe://example.org/w/{n}"),
            serial: String::new(),
            expires: Timestamp::from_unix(1_000 + n),
            renew_at: Timestamp::from_unix(500),
        };
        let sink =
            SinkStatus { name: "nginx".to_owned(), health: SinkHealth::InForce, ..SinkStatus::default() };
        let report = Report {
            identities_held: 5_000,
            identities: (0..5_000).map(identity).collect(),
            bundle_sequence: Some(7),
            sinks: vec![sink],
            ..Report::default()
        };
        let page = render(&report);
        let rows =
            page.lines().filter(|line| line.starts_with("rhizome_agent_identity_expiry_timestamp_seconds{"));
        assert_eq!(rows.count(), IDENTITIES);
        for line in [
            "rhizome_agent_identities 5000",
            "rhizome_agent_identity_earliest_expiry_timestamp_seconds 1000",
            "rhizome_agent_identity_expiry_timestamp_seconds{spiffe_id=\"spiffe://example.org/w/99\"} 1099",
            "rhizome_agent_bundle_sequence 7",
            "rhizome_agent_certificates_total{outcome=\"refused\"} 0",
            "rhizome_agent_sink_in_force{sink=\"nginx\"} 1",
            "rhizome_agent_sink_failures_total{sink=\"nginx\"} 0",
            "rhizome_agent_crls_refused_total 0",
            "rhizome_agent_ready 0",
        ] {
            assert!(page.lines().any(|found| found == line), "{line}\n{page}");
        }
        assert!(page.ends_with("# EOF\n"));
        for name in metrics_in_alerts() {
            let sample =
                |line: &str| line.strip_prefix(&name).is_some_and(|rest| rest.starts_with([' ', '{']));
            assert!(page.lines().any(sample), "an alert is about {name}, which is not in\n{page}");
        }
    }

    /// The names of the agent's metrics in `deploy/prometheus/alerts.yaml`.
    fn metrics_in_alerts() -> BTreeSet<String> {
        let alerts = include_str!("../../../../deploy/prometheus/alerts.yaml");
        let words = alerts
            .lines()
            .filter_map(|line| line.trim_start().strip_prefix("expr: "))
            .flat_map(|line| line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_'));
        let names: BTreeSet<String> =
            words.filter(|word| word.starts_with("rhizome_agent_")).map(str::to_owned).collect();
        assert!(names.len() >= 10, "{names:?}");
        names
    }
}
