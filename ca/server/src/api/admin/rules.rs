//! Rules: who may be whom; each change with a dry run that says who gains and who loses what.
//!
//! Laws: a rule is kept with who changed it last, beside its own fields, where every reader of rules ignores it. A
//! change applies to the version that was read and to no other. The difference is computed over workloads that got
//! certificates lately, by the same matching that decides.
//! Not here: what a rule means (`rhizome_core::rules`), telling nodes (`api::sync`).

use std::collections::BTreeSet;
use std::sync::Arc;

use rhizome_core::attributes::{AttributeName, Attributes};
use rhizome_core::documents::{DocumentKey, Kind, Stored, Transaction, Version, Versioned};
use rhizome_core::explain;
use rhizome_core::ledger::{Event, Issuance, Position, Profile};
use rhizome_core::ports::StoreError;
use rhizome_core::rules::{Conditions, Rule, RuleDraft, RuleSet};
use rhizome_core::state::State;
use rhizome_id::{RuleName, SpiffeId, Timestamp};
use rhizome_proto::admin::v1 as wire;
use rhizome_proto::admin::v1::rule_service_server::RuleService;
use rhizome_proto::ca::v1::GrantRule;
use serde::{Deserialize, Serialize};
use tonic::{Request, Response};

use super::{page_size, read_page_token};
use crate::api::{Api, convert};
use crate::ca::Ca;
use crate::error::ApiError;
use crate::status::Answer;

/// Newest records read for the workloads known lately.
const LOOKED_AT: u64 = 10_000;
/// Records read from the store in one go.
const READ_AT_ONCE: u64 = 1_000;
/// The most workloads that a difference is computed over.
const KNOWN_WORKLOADS: usize = 1_000;
/// Bytes of a rule as JSON: a hundred of them go to a node in one message, whose limit is 4 MiB.
const RULE_BYTES: usize = 32 * 1024;
/// Bytes of a rule that the ledger quotes; a larger one is cut, and its size said.
const QUOTED_BYTES: usize = 4_096;

/// A rule as it is stored: its own fields, and who changed it last. Nobody has changed the built-in one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct RuleRecord {
    #[serde(flatten)]
    rule: Rule,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    changed_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    changed_by: Option<String>,
}

impl Stored for RuleRecord {
    const KIND: Kind = Kind::Rule;

    fn id(&self) -> String {
        self.rule.name().to_string()
    }
}

#[tonic::async_trait]
impl RuleService for Api {
    async fn list_rules(&self, request: Request<wire::ListRulesRequest>) -> Answer<wire::ListRulesResponse> {
        self.0.caller(&request)?;
        let request = request.into_inner();
        let after = read_page_token::<RuleName>(&request.page_token)?;
        let limit = page_size(request.page_size);
        let after = after.as_ref().map(RuleName::as_str);
        let mut documents = self
            .0
            .ports
            .store
            .documents(Kind::Rule, after, limit.saturating_add(1))
            .await
            .map_err(ApiError::from)?;
        let more = documents.len() > limit;
        documents.truncate(limit);
        let last = documents.last().filter(|_| more).map(|it| it.key.id.clone());
        let mut rules = Vec::new();
        for document in &documents {
            let stored = document.read::<RuleRecord>().map_err(|bad| ApiError::Bug(bad.to_string()))?;
            rules.push(shown(&stored));
        }
        Ok(Response::new(wire::ListRulesResponse { rules, next_page_token: last.unwrap_or_default() }))
    }

    async fn get_rule(&self, request: Request<wire::GetRuleRequest>) -> Answer<wire::GetRuleResponse> {
        self.0.caller(&request)?;
        let name: RuleName = convert::read("name", &request.get_ref().name)?;
        let stored = self.0.rule(&name).await?.ok_or_else(|| no_such_rule(&name))?;
        Ok(Response::new(wire::GetRuleResponse { rule: Some(shown(&stored)) }))
    }

    async fn put_rule(&self, request: Request<wire::PutRuleRequest>) -> Answer<wire::PutRuleResponse> {
        let by = self.0.caller(&request)?.principal().to_string();
        let request = request.into_inner();
        let rule = read_rule(request.rule)?;
        let state = self.0.state();
        let diff = self.0.diff(&state, &state.rule_set().with(Arc::new(rule.clone()))).await?;
        let applied = !request.dry_run;
        let stored = self.0.put_rule(&by, rule, request.expected_version, request.dry_run).await?;
        let rule = Some(shown(&stored));
        Ok(Response::new(wire::PutRuleResponse { diff: Some(diff), applied, rule }))
    }

    async fn delete_rule(
        &self,
        request: Request<wire::DeleteRuleRequest>,
    ) -> Answer<wire::DeleteRuleResponse> {
        let by = self.0.caller(&request)?.principal().to_string();
        let request = request.into_inner();
        let name: RuleName = convert::read("name", &request.name)?;
        let state = self.0.state();
        let stored = self.0.rule(&name).await?.ok_or_else(|| no_such_rule(&name))?;
        expect(&name, Some(stored.version), request.expected_version)?;
        let diff = self.0.diff(&state, &state.rule_set().without(&name)).await?;
        let applied = !request.dry_run;
        if applied {
            self.0.delete_rule(&by, &stored).await?;
        }
        Ok(Response::new(wire::DeleteRuleResponse { diff: Some(diff), applied }))
    }
}

impl Ca {
    async fn rule(&self, name: &RuleName) -> Result<Option<Versioned<RuleRecord>>, ApiError> {
        let document = self.ports.store.document(&DocumentKey::new(Kind::Rule, name.as_str())).await?;
        document
            .map(|document| document.read::<RuleRecord>().map_err(|bad| ApiError::Bug(bad.to_string())))
            .transpose()
    }

    /// Stores `rule`, or says how it would be stored. A rule that is there already, word for word, stays as it is:
    /// whoever asks again after a lost answer gets the answer.
    async fn put_rule(
        self: &Arc<Self>,
        by: &str,
        rule: Rule,
        expected: Option<u64>,
        dry_run: bool,
    ) -> Result<Versioned<RuleRecord>, ApiError> {
        let name = rule.name().clone();
        let known = self.rule(&name).await?;
        if let Some(known) = known.as_ref().filter(|known| known.value.rule == rule) {
            return Ok(known.clone());
        }
        let version = known.as_ref().map(|known| known.version);
        expect(&name, version, expected)?;
        let now = self.now()?;
        let record = RuleRecord { rule, changed_at: Some(now), changed_by: Some(by.to_owned()) };
        if dry_run {
            return Ok(Versioned { version: version.unwrap_or(Version(0)), value: record });
        }
        let transaction = Transaction::named("put rule");
        let transaction = match version {
            None => transaction.require_absent(record.key()),
            Some(version) => transaction.require_unchanged(record.key(), version),
        };
        let entry = self.changed(by, "rule.put", name.as_str(), &quoted(&record.rule));
        match self.commit(transaction.put(&record).record(entry)).await {
            Ok(committed) => Ok(Versioned { version: committed.version, value: record }),
            Err(conflict @ StoreError::Conflict { .. }) => {
                let there = self.rule(&name).await?.filter(|there| there.value.rule == record.rule);
                there.ok_or_else(|| conflict.into())
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn delete_rule(self: &Arc<Self>, by: &str, stored: &Versioned<RuleRecord>) -> Result<(), ApiError> {
        let rule = &stored.value.rule;
        let entry = self.changed(by, "rule.delete", rule.name().as_str(), &quoted(rule));
        let key = stored.value.key();
        let transaction = Transaction::named("delete rule").require_unchanged(key.clone(), stored.version);
        match self.commit(transaction.delete(key).record(entry)).await {
            Ok(_committed) => Ok(()),
            // Somebody else deleted it at the same moment: it is gone, as was asked.
            Err(StoreError::Conflict { .. }) if self.rule(rule.name()).await?.is_none() => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// What `new` in place of the rules in force would change for the workloads known lately.
    async fn diff(&self, state: &State, new: &RuleSet) -> Result<wire::RuleDiff, ApiError> {
        let (known, truncated) = self.known_workloads(state).await?;
        let difference = explain::diff(state.trust_domain(), state.rule_set(), new, &known);
        let examined = u64::try_from(known.len()).unwrap_or(u64::MAX);
        let mut diff = wire::RuleDiff { examined, truncated, ..wire::RuleDiff::default() };
        for change in &difference.changes {
            let list = if change.before.is_empty() {
                &mut diff.gains
            } else if change.after.is_empty() {
                &mut diff.losses
            } else {
                &mut diff.changes
            };
            list.push(wire::IdentityChange {
                attributes: convert::attributes(&change.attributes),
                before: joined(&change.before),
                after: joined(&change.after),
            });
        }
        Ok(diff)
    }

    /// The workloads that the newest records speak of, each once, and whether there were more.
    async fn known_workloads(&self, state: &State) -> Result<(BTreeSet<Attributes>, bool), ApiError> {
        let mut known = BTreeSet::new();
        let head = self.ports.store.head().await?.position.0;
        let (mut last, oldest) = (head, head.saturating_sub(LOOKED_AT));
        while last > oldest {
            let count = READ_AT_ONCE.min(last.saturating_sub(oldest));
            let first = last.saturating_sub(count).saturating_add(1);
            let limit = usize::try_from(count).unwrap_or(usize::MAX);
            let records = self.ports.store.records(Position(first), limit).await?;
            for record in records.iter().rev().filter(|record| record.counter.is_some()) {
                let (_, event) = record.read().map_err(|fault| ApiError::Bug(fault.to_string()))?;
                let Event::Issued(issuance) = event else { continue };
                let Some(workload) = workload_of(&issuance, state) else { continue };
                if known.len() >= KNOWN_WORKLOADS && !known.contains(&workload) {
                    return Ok((known, true));
                }
                known.insert(workload);
            }
            last = first.saturating_sub(1);
        }
        Ok((known, false))
    }
}

/// The attributes that rules saw when this certificate was granted: what the node vouched for, and the node itself as
/// it is on record now. `None` for other certificates.
fn workload_of(issuance: &Issuance, state: &State) -> Option<Attributes> {
    if issuance.profile != Profile::Workload {
        return None;
    }
    let node = issuance.caller.strip_prefix("node:")?;
    let mut attributes = Attributes::new();
    let mut parts = node.splitn(3, '/');
    for name in [AttributeName::Cluster, AttributeName::Method, AttributeName::Node] {
        attributes.insert(name, parts.next()?).ok()?;
    }
    let mut attested = BTreeSet::new();
    if let Some(record) = state.nodes().get(node) {
        for (name, value) in record.value.attributes.iter() {
            attributes.insert(name.clone(), value).ok()?;
            attested.insert(name.clone());
        }
    }
    for (name, value) in issuance.attributes.iter().filter_map(|pair| pair.split_once('=')) {
        let name: AttributeName = name.parse().ok()?;
        if !attested.contains(&name) {
            attributes.insert(name, value).ok()?;
        }
    }
    Some(attributes)
}

/// Refuses a change of another version than the caller saw; 0 means that it saw none.
fn expect(name: &RuleName, found: Option<Version>, expected: Option<u64>) -> Result<(), ApiError> {
    let found = found.map_or(0, |version| version.0);
    match expected {
        Some(expected) if expected != found => {
            Err(StoreError::Conflict { key: DocumentKey::new(Kind::Rule, name.as_str()) }.into())
        }
        Some(_) | None => Ok(()),
    }
}

fn no_such_rule(name: &RuleName) -> ApiError {
    ApiError::NotFound { what: "rule", name: name.to_string() }
}

fn joined(ids: &BTreeSet<SpiffeId>) -> String {
    ids.iter().map(SpiffeId::as_str).collect::<Vec<_>>().join(", ")
}

/// A rule as the ledger quotes it: its JSON, cut where it is very long.
fn quoted(rule: &Rule) -> String {
    let json = serde_json::to_string(rule).unwrap_or_default();
    if json.len() <= QUOTED_BYTES {
        return json;
    }
    let start: String = json.chars().take(QUOTED_BYTES).collect();
    format!("{start}… ({} bytes in all)", json.len())
}

fn shown(stored: &Versioned<RuleRecord>) -> wire::StoredRule {
    let RuleRecord { rule, changed_at, changed_by } = &stored.value;
    wire::StoredRule {
        rule: Some(convert::rule(rule)),
        version: stored.version.0,
        changed_at: changed_at.map(convert::timestamp),
        changed_by: changed_by.clone().unwrap_or_default(),
        built_in: changed_by.is_none(),
    }
}

fn read_rule(rule: Option<GrantRule>) -> Result<Rule, ApiError> {
    let invalid = |problem: String| ApiError::Invalid { field: "rule", problem };
    let rule = rule.ok_or_else(|| invalid("it is missing".to_owned()))?;
    let mut when = Conditions::new();
    for condition in rule.conditions {
        let attribute: AttributeName = convert::read("conditions", &condition.attribute)?;
        let values = BTreeSet::from_iter(condition.values);
        if when.insert(attribute.clone(), values).is_some() {
            let problem = format!("{attribute} stands there twice; list all its values in one condition");
            return Err(ApiError::Invalid { field: "conditions", problem });
        }
    }
    let federates_with = rule.federates_with.iter().map(|domain| convert::read("federates_with", domain));
    let draft = RuleDraft {
        name: convert::read("name", &rule.name)?,
        when,
        identity: rule.identity,
        ttl: convert::read_ttl("ttl_seconds", rule.ttl_seconds)?,
        dns_names: rule.dns_names,
        federates_with: federates_with.collect::<Result<_, _>>()?,
        comment: (!rule.comment.is_empty()).then_some(rule.comment),
    };
    let rule = Rule::new(draft).map_err(|cause| invalid(cause.to_string()))?;
    let bytes = serde_json::to_string(&rule).map_or(usize::MAX, |json| json.len());
    if bytes > RULE_BYTES {
        return Err(invalid(format!(
            "it has {bytes} bytes; the limit is {RULE_BYTES}, so make several rules of it"
        )));
    }
    Ok(rule)
}
