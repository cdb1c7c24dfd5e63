//! Whether this process can do its job, said in one place for readiness, status and metrics.

use std::sync::Arc;

use rhizome_core::authority::{AuthorityKind, AuthorityState};
use rhizome_core::state::{State, Subscriber};
use rhizome_id::Timestamp;

use crate::ca::Ca;

impl Ca {
    /// Why this process cannot issue now; empty when it can.
    pub(crate) fn problems(self: &Arc<Self>) -> Vec<String> {
        let mut problems = Vec::new();
        if self.spawner.stopping().is_cancelled() {
            problems.push("the server is stopping".to_owned());
        }
        let state = self.state();
        let now = self.ports.clock.now();
        match state.issuer() {
            None => problems.push("no issuing authority is active".to_owned()),
            Some(active) if now > active.issuer.not_after_limit() => {
                problems.push(format!(
                    "the issuing authority {} expired at {}",
                    active.id,
                    active.issuer.not_after_limit()
                ));
            }
            Some(_) => {}
        }
        if state.bundle().is_none() {
            problems.push("no trust bundle is published".to_owned());
        }
        if let Err(halted) = self.check_not_halted() {
            problems.push(halted.to_string());
        }
        if self.store_has_failed() {
            problems.push("the last durable write failed; the server's log says why".to_owned());
        }
        if let Err(cause) = self.now() {
            problems.push(cause.to_string());
        }
        problems
    }

    /// Brings the gauges up to date; called when somebody looks.
    pub(crate) fn refresh_gauges(&self) {
        let state = self.state();
        let metrics = &self.metrics;
        let count = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        metrics.nodes.set(count(state.nodes().len()));
        metrics.rules.set(count(state.rules().len()));
        metrics.issuer_expiry.set(state.issuer().map_or(0, |it| it.issuer.certificate().not_after().unix()));
        metrics.jwt_key_expiry.set(state.jwt_key().map_or(0, |it| it.jwt_key.not_after().unix()));
        let sequence = state.bundle().map_or(0, |it| it.value.bundle.sequence());
        metrics.bundle_sequence.set(i64::try_from(sequence).unwrap_or(i64::MAX));
        metrics.bundle_subscribers.set(count(state.subscribers().len()));
        metrics.bundle_subscribers_behind.set(count(self.lagging(&state).count()));
        let behind = i32::try_from(self.clock_behind(self.ports.clock.now())).unwrap_or(i32::MAX);
        metrics.clock_behind.set(f64::from(behind));
        metrics.clock_ahead.set(f64::from(i32::try_from(self.clock.ahead()).unwrap_or(i32::MAX)));
        for foreign in state.foreign().values().map(|it| &it.value.record) {
            let sequence = foreign.bundle.as_ref().map_or(0, |held| held.sequence);
            let fetched_at = foreign.fetch.succeeded_at.map_or(0, Timestamp::unix);
            metrics.federation_holds(&foreign.trust_domain, sequence, fetched_at);
        }
        metrics.show_clusters(state.cluster_reports().values().map(|it| &*it.value));
        metrics.root_expiry.set(self.first_root_expiry().map_or(0, Timestamp::unix));
    }

    /// Living subscribers that have not acknowledged the published bundle.
    pub(crate) fn lagging<'a>(&self, state: &'a State) -> impl Iterator<Item = &'a Arc<Subscriber>> {
        let sequence = state.bundle().map_or(0, |it| it.value.bundle.sequence());
        state.live_subscribers(self.ports.clock.now()).filter(move |it| it.sequence < sequence)
    }

    /// When the first root that still signs or is trusted expires.
    pub(crate) fn first_root_expiry(&self) -> Option<Timestamp> {
        let state = self.state();
        let roots = state
            .authorities()
            .values()
            .map(|it| Arc::clone(&it.value))
            .filter(|it| it.kind == AuthorityKind::Root && it.state != AuthorityState::Tainted);
        roots.map(|root| root.window().1).min()
    }
}
