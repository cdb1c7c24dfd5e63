//! Named checks: what is wrong, or soon will be, and what to do about it.
//!
//! Laws: every check has a stable name, a severity and a remedy. What renews itself fails only when it is overdue, so
//! `--fail-within` is about what needs a person. Nothing here changes anything.
//! Sources: `linkerd check` (linkerd.io/2/reference/cli/check) and Vault's `vault pki health-check`, for the form.

use std::sync::Arc;

use rhizome_core::authority::{self, Authority, AuthorityKind, AuthorityState, Custody, Effect};
use rhizome_core::federation::{self, Outlook};
use rhizome_core::ports::KeyRingError;
use rhizome_id::{AuthorityId, KeyId, Timestamp, TrustDomain, Ttl};
use rhizome_proto::admin::v1::{Check, CheckSeverity};
use rhizome_x509::PublicKey;

use crate::api::convert;
use crate::ca::Ca;

/// What counts as soon when nobody says: a root's replacement takes people and days.
const SOON_SECONDS: i64 = 30 * 86_400;
/// How long a renewal that happens by itself may be late before somebody should look.
const OVERDUE_SECONDS: i64 = 600;

impl Ca {
    /// Runs every check. What cannot be asked is a check that failed, and keeps no other from being made.
    pub(crate) async fn checks(self: &Arc<Self>, within: Option<Ttl>) -> Vec<Check> {
        let now = self.ports.clock.now();
        let within = within.map_or(SOON_SECONDS, Ttl::seconds);
        let mut checks = vec![self.check_ready(), self.check_clock(now), self.check_self()];
        checks.extend(self.check_authorities(now, within));
        checks.extend(self.check_issuer_source(now));
        if self.settings.rotation.jwt_keys {
            checks.push(self.check_jwt_key(now));
        }
        checks.extend(self.check_upstream());
        checks.push(self.check_serving(now));
        checks.extend(self.check_keys(now).await);
        checks.push(self.check_store().await);
        checks.push(self.check_subscribers());
        checks.push(self.check_crls(now));
        checks.push(self.check_crl_lead());
        checks.extend(self.check_federation(now));
        checks
    }

    fn check_ready(self: &Arc<Self>) -> Check {
        let problems = self.problems();
        let summary =
            if problems.is_empty() { "the server can issue".to_owned() } else { problems.join("; ") };
        let remedy = "read the server's log; `rhizome authority list` shows the authorities";
        check("server.ready", CheckSeverity::Critical, problems.is_empty(), summary, remedy)
    }

    fn check_clock(&self, now: Timestamp) -> Check {
        let (behind, ahead) = (self.clock_behind(now), self.clock.ahead());
        let summary = match (behind, ahead) {
            (0, 0) => format!("the clock says {now}, not before the newest record"),
            (_, ahead) if ahead > 0 => {
                format!("the clock stepped {ahead}s ahead and is not believed yet; time goes on at {now}")
            }
            (seconds, _) => format!("the clock says {now}, {seconds}s before the newest record"),
        };
        let remedy = "set the clock right (chrony, systemd-timesyncd); issuing stops when it is 120s behind; a step \
                      ahead is believed after 5 minutes, or at once by a restart";
        check("server.clock", CheckSeverity::Critical, (behind, ahead) == (0, 0), summary, remedy)
    }

    fn check_self(&self) -> Check {
        let failures = self.metrics.self_check_failures.get();
        let judged = self.metrics.self_checked.get();
        let summary =
            format!("{judged} judgements of issued certificates by a second library, {failures} failed");
        let remedy = "stop issuing, keep the log, and report it: this is a bug";
        check("issuance.self_check", CheckSeverity::Critical, failures == 0, summary, remedy)
    }

    fn check_authorities(&self, now: Timestamp, within: i64) -> Vec<Check> {
        let state = self.state();
        let living = state
            .authorities()
            .values()
            .map(|it| Arc::clone(&it.value))
            .filter(|it| it.state == AuthorityState::Active && self.concerns_us(it));
        let brought = self.root_is_elsewhere() && self.upstream.is_none();
        living
            .map(|it| {
                // Of everything above it, too.
                let (from, until) = it.window();
                let left = until.since(now);
                let (ok, remedy) = match it.kind {
                    AuthorityKind::Root => (
                        left > within,
                        format!(
                            "a root cannot be replaced yet: found a new authority before {until} and let every node \
                             join it; see `A root that ends` in operations.md"
                        ),
                    ),
                    AuthorityKind::Issuer => (
                        now < authority::activate_at(from, until).plus(OVERDUE_SECONDS) && left > 0,
                        if brought {
                            "bring another one: see `A root whose key is offline` in operations.md".to_owned()
                        } else {
                            "issuers rotate by themselves; this one is overdue: read the server's log".to_owned()
                        },
                    ),
                    // Not among these: they have no certificate.
                    AuthorityKind::Jwt => (true, String::new()),
                };
                let summary = format!("{} is valid until {until}, {} left", it.id, in_words(left));
                let name = format!("authority.{}.expiry", it.kind);
                Check {
                    expires_at: Some(convert::timestamp(until)),
                    ..check(&name, CheckSeverity::Critical, ok, summary, &remedy)
                }
            })
            .collect()
    }

    /// Roots are everybody's; an issuer is looked after, and its key held, by its own replica.
    fn concerns_us(&self, authority: &Authority) -> bool {
        authority.kind == AuthorityKind::Root || authority.replica == self.settings.replica
    }

    /// Whether the active root's key is elsewhere.
    fn root_is_elsewhere(&self) -> bool {
        self.state().active_root().is_some_and(|it| it.custody == Custody::Elsewhere)
    }

    /// Where the root's key is elsewhere, issuers are brought by people: they hear of it when half of the
    /// issuer's life remains, or 30 days.
    fn check_issuer_source(&self, now: Timestamp) -> Option<Check> {
        let (state, replica) = (self.state(), &self.settings.replica);
        self.root_is_elsewhere().then_some(())?;
        let steps = authority::step(&state.authority_records(now), replica, now, &self.settings.rotation);
        let due = steps.iter().any(|step| matches!(step, Effect::AskForIssuer { .. }));
        let until = state.issuer().map(|it| it.issuer.not_after_limit());
        let left = until.map_or_else(
            || "there is no issuer".to_owned(),
            |until| format!("the issuer is valid until {until}, {} left", in_words(until.since(now))),
        );
        let summary = if due {
            format!("an issuer is due, and the root's key is elsewhere; {left}")
        } else {
            format!("no issuer is due; {left}")
        };
        let remedy = if let Some(upstream) = &self.upstream {
            let cause = upstream.trouble();
            cause.unwrap_or_else(|| {
                "the Rhizome above is asked again and again; read the server's log".to_owned()
            })
        } else {
            "`rhizome root ceremony request`, sign it on the machine that has the root's key, and import the \
                      answer: see `A root whose key is offline` in operations.md"
                .to_owned()
        };
        let it = check("authority.issuer.request", CheckSeverity::Warning, !due, summary, &remedy);
        Some(Check { expires_at: until.map(convert::timestamp), ..it })
    }

    /// A cluster's own Rhizome hears of a new root, and gets its next intermediate, only while the one above answers.
    fn check_upstream(&self) -> Option<Check> {
        let trouble = self.upstream.as_ref()?.trouble();
        let ok = trouble.is_none();
        let summary = trouble.unwrap_or_else(|| "the Rhizome above answers".to_owned());
        let remedy =
            "see to it before the issuer ends (check authority.issuer.expiry); until then everything goes on";
        Some(check("upstream", CheckSeverity::Warning, ok, summary, remedy))
    }

    /// The key for JWT-SVIDs: there is one, it is not overdue, and the bundle has it.
    fn check_jwt_key(&self, now: Timestamp) -> Check {
        let state = self.state();
        let name = "authority.jwt.expiry";
        let Some(key) = state.jwt_key() else {
            let remedy =
                "it makes itself and waits at most 5 minutes for agents to hear of it; read the server's log";
            let summary = "no key signs JWT-SVIDs".to_owned();
            return check(name, CheckSeverity::Critical, false, summary, remedy);
        };
        let until = key.jwt_key.not_after();
        let due = authority::activate_at(key.not_before, until);
        // A successor that agents have not acknowledged is waited for.
        let overdue = now > due.plus(until.since(due) / 2).plus(OVERDUE_SECONDS) || now >= until;
        let early = now < key.not_before;
        let published = state.bundle().is_some_and(|it| it.value.bundle.jwt_keys().contains(&key.jwt_key));
        let left = in_words(until.since(now));
        let summary = if early {
            format!("{} signs only from {} on: it was made while the clock was wrong", key.id, key.not_before)
        } else if published {
            format!("{} signs until {until}, {left} left", key.id)
        } else {
            format!("{} signs, but is not in the bundle: nobody can validate its tokens", key.id)
        };
        let remedy = if published {
            "JWT keys rotate by themselves; this one is overdue: read the server's log"
        } else {
            "take it out of service with `rhizome authority taint`, and report it: this is a bug"
        };
        let it = check(name, CheckSeverity::Critical, published && !overdue && !early, summary, remedy);
        Check { expires_at: Some(convert::timestamp(until)), ..it }
    }

    fn check_serving(&self, now: Timestamp) -> Check {
        let until = Timestamp::from_unix(self.metrics.server_certificate_expiry.get());
        let left = until.since(now);
        let overdue = left < self.settings.policy.server.default.seconds() / 4;
        let summary = format!("the serving certificate is valid until {until}, {} left", in_words(left));
        let remedy = "it renews itself at half of its life; this one is overdue: read the server's log";
        let it = check("server.certificate.expiry", CheckSeverity::Critical, !overdue, summary, remedy);
        Check { expires_at: Some(convert::timestamp(until)), ..it }
    }

    /// Every authority that signs needs its key, and every own issuer until it ends, for its revocation list: a restored
    /// database beside other keys would fail here.
    async fn check_keys(&self, now: Timestamp) -> Vec<Check> {
        let state = self.state();
        let signs = |state| matches!(state, AuthorityState::Active | AuthorityState::Prepared);
        let mut checks = Vec::new();
        let lists = |it: &Authority| it.kind == AuthorityKind::Issuer && it.certificate.not_after() >= now;
        let authorities = state.authorities().values().map(|it| &it.value).filter(|it| self.concerns_us(it));
        let here = authorities.filter(|it| it.custody == Custody::Here);
        for it in here.filter(|it| signs(it.state) || lists(it)) {
            checks.push(self.check_key((it.kind, &it.id, &it.key), it.certificate.public_key()).await);
        }
        let jwt = state.jwt_authorities().values().map(|it| &it.value);
        for it in jwt.filter(|it| signs(it.state) && it.replica == self.settings.replica) {
            let named = (AuthorityKind::Jwt, &it.id, &it.key);
            checks.push(self.check_key(named, it.jwt_key.public_key()).await);
        }
        checks
    }

    async fn check_key(
        &self,
        (kind, id, key): (AuthorityKind, &AuthorityId, &KeyId),
        public_key: &PublicKey,
    ) -> Check {
        let name = format!("authority.{kind}.key");
        let (ok, summary) = match self.ports.keys.key(key).await {
            Ok(found) if found.public_key == *public_key => (true, format!("{id} has its key")),
            Ok(_other) => (false, format!("key {key} is not the one that belongs to {id}")),
            Err(KeyRingError::NotFound { id: key }) => (false, format!("key {key} of {id} is missing")),
            Err(cause @ KeyRingError::Unavailable { .. }) => {
                let remedy =
                    "see why it does not answer; what needs no signature of this key goes on meanwhile";
                let summary = format!("the key of {id} cannot be used now: {cause}");
                return check(&name, CheckSeverity::Critical, false, summary, remedy);
            }
            Err(cause) => (false, format!("the key of {id} cannot be used: {cause}")),
        };
        let remedy = "restore the keys that belong to this database: the directory `keys`, or the token";
        check(&name, CheckSeverity::Critical, ok, summary, remedy)
    }

    async fn check_store(&self) -> Check {
        let (ok, summary) = match self.ports.store.check_integrity().await {
            Ok(()) => (true, "every page of the store reads well".to_owned()),
            Err(cause) => (false, cause.to_string()),
        };
        let remedy = "stop every server, keep the database as it is, and put a backup back: see `Backup and restore` in operations.md";
        check("store.integrity", CheckSeverity::Critical, ok, summary, remedy)
    }

    fn check_crls(&self, now: Timestamp) -> Check {
        let behind = self.crls_behind(&self.state(), now);
        let summary = if behind.is_empty() {
            "every issuer's revocation list has its newest revocation".to_owned()
        } else {
            format!("revocation lists to be signed: {}", behind.join("; "))
        };
        let remedy = "it is signed within seconds by the replica that is named: see whether that one runs, under that \
                      name, and read its log";
        check("crl.current", CheckSeverity::Warning, behind.is_empty(), summary, remedy)
    }

    /// A node that was away since before an issuer was prepared must hold no valid certificate when it signs (ADR 0013).
    fn check_crl_lead(&self) -> Check {
        let life = self.settings.rotation.issuer_ttl.seconds();
        let lead = authority::activate_at(Timestamp::EPOCH, Timestamp::EPOCH.plus(life))
            .since(authority::prepare_at(Timestamp::EPOCH, Timestamp::EPOCH.plus(life)));
        let longest = self.settings.policy.workload.max.seconds();
        let summary = format!(
            "an issuer's revocation list is out {} before it signs; certificates live for {} at most",
            in_words(lead),
            in_words(longest)
        );
        let remedy = "make issuers live three times as long as the longest workload certificate, or more";
        check("crl.lead", CheckSeverity::Warning, lead >= longest, summary, remedy)
    }

    /// One for each foreign trust domain: there is a bundle, it is fresh, and its endpoint offers nothing that must be
    /// refused.
    fn check_federation(&self, now: Timestamp) -> Vec<Check> {
        let state = self.state();
        let one = |domain: &TrustDomain| {
            let record = state.foreign().get(domain).map(|it| &it.value.record);
            let outlook = federation::outlook(record, now);
            let trouble = record.and_then(|it| it.fetch.trouble.as_ref());
            let why = trouble.map(|it| format!("{} ({})", it.detail, it.code));
            let why = why.unwrap_or_else(|| "no fetch yet".to_owned());
            let held = record.and_then(|it| it.bundle.as_ref()).map_or(0, |held| held.sequence);
            let since = record.and_then(|it| it.fetch.succeeded_at);
            let age = since.map(|at| format!("last fetched {} ago", in_words(now.since(at))));
            let age = age.unwrap_or_else(|| "never fetched".to_owned());
            let (severity, ok, found) = match outlook {
                Outlook::Current => (CheckSeverity::Warning, true, format!("bundle {held}, {age}")),
                Outlook::Failing => (CheckSeverity::Note, false, format!("bundle {held}, {age}; {why}")),
                Outlook::Awaited => (CheckSeverity::Warning, false, format!("no bundle yet: {why}")),
                Outlook::Old => {
                    (CheckSeverity::Warning, false, format!("bundle {held} is old, {age}: {why}"))
                }
                Outlook::Refused => (CheckSeverity::Critical, false, format!("bundle {held} stays: {why}")),
            };
            let remedy = format!(
                "`rhizome federation show {domain}` has the details; ask who runs {domain} whether what their endpoint \
                 offers is theirs, and `rhizome federation refresh {domain}` when it is mended"
            );
            check("federation.bundle", severity, ok, format!("{domain}: {found}"), &remedy)
        };
        state.relationships().keys().map(one).collect()
    }

    fn check_subscribers(&self) -> Check {
        let state = self.state();
        let sequence = state.bundle().map_or(0, |it| it.value.bundle.sequence());
        let names: Vec<String> = self.lagging(&state).take(5).map(|it| it.principal.clone()).collect();
        let summary = if names.is_empty() {
            format!("every live subscriber holds bundle {sequence}")
        } else {
            format!("not on bundle {sequence} yet: {}", names.join(", "))
        };
        let remedy = "`rhizome bundle show` lists who is behind; see whether those agents run";
        check("bundle.acknowledged", CheckSeverity::Warning, names.is_empty(), summary, remedy)
    }
}

fn check(name: &str, severity: CheckSeverity, ok: bool, summary: String, remedy: &str) -> Check {
    Check {
        name: name.to_owned(),
        severity: severity.into(),
        ok,
        summary,
        remedy: if ok { String::new() } else { remedy.to_owned() },
        expires_at: None,
    }
}

/// Seconds as people say them, in the largest whole unit.
fn in_words(seconds: i64) -> String {
    match seconds {
        s if s <= 0 => "nothing".to_owned(),
        s if s >= 2 * 86_400 => format!("{} days", s / 86_400),
        s if s >= 2 * 3_600 => format!("{} hours", s / 3_600),
        s if s >= 120 => format!("{} minutes", s / 60),
        s => format!("{s} seconds"),
    }
}
