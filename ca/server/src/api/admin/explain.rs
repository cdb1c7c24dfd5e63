//! Why a request would be granted or denied, by the very decision that issues.
//!
//! Laws: nothing is granted here; the core's explanation holds a summary, never a grant. A node on record is asked
//! for with what is recorded about it, so the answer is the one that the node itself would get.
//! Not here: the decision and its explanation (`rhizome_core::{policy, explain}`).

use rhizome_core::attributes::Attributes;
use rhizome_core::caller::{AttestationMethod, AttestedCaller, Principal, Scope};
use rhizome_core::explain::{self, Explanation};
use rhizome_core::nodes::RenewError;
use rhizome_core::policy::{Denial, DenialReason, Facts, Wish};
use rhizome_core::state::State;
use rhizome_id::RuleName;
use rhizome_proto::admin::v1 as wire;
use rhizome_proto::admin::v1::explain_request::Caller;
use rhizome_proto::admin::v1::explain_response::Decision;
use rhizome_proto::admin::v1::explain_service_server::ExplainService;
use tonic::{Request, Response};

use crate::api::{Api, convert};
use crate::error::ApiError;
use crate::status::Answer;

#[tonic::async_trait]
impl ExplainService for Api {
    async fn explain(&self, request: Request<wire::ExplainRequest>) -> Answer<wire::ExplainResponse> {
        self.0.caller(&request)?;
        let request = request.into_inner();
        let wish = Wish::Workload {
            attributes: convert::read_attributes(&request.attributes)?,
            spiffe_id: convert::read_spiffe_id(&request.spiffe_id)?,
            ttl: convert::read_ttl("ttl_seconds", request.ttl_seconds)?,
            dns_names: convert::read_dns_names(&request.dns_names)?,
        };
        let now = self.0.ports.clock.now();
        let state = self.0.state();
        let caller = match as_caller(&state, request.caller)? {
            Ok(caller) => caller,
            Err(refused) => return Ok(Response::new(turned_away(&refused))),
        };
        let facts = Facts {
            trust_domain: state.trust_domain(),
            rules: state.rule_set(),
            limits: &self.0.settings.policy,
        };
        Ok(Response::new(shown(explain::explain(&caller, &wish, &facts, now))))
    }
}

/// Whom the request speaks of; or why that one would not get as far as the decision.
fn as_caller(state: &State, caller: Option<Caller>) -> Result<Result<AttestedCaller, RenewError>, ApiError> {
    let principal = match caller {
        None => {
            let problem = "name a node or a principal".to_owned();
            return Err(ApiError::Invalid { field: "caller", problem });
        }
        Some(Caller::NodeId(id)) => {
            let record = state.nodes().get(&id);
            return record
                .map(|record| record.value.assert_caller())
                .ok_or(ApiError::NotFound { what: "node", name: id });
        }
        Some(Caller::Principal(text)) => read_principal(&text)?,
    };
    if let Principal::Node { cluster, method, name } = &principal
        && let Some(record) = state.nodes().get(&format!("{cluster}/{method}/{name}"))
    {
        return Ok(record.value.assert_caller());
    }
    // Nobody proved anything here, and nothing can come of it: an explanation holds no grant.
    Ok(Ok(AttestedCaller::assertion(principal, Attributes::default(), Scope::ALL)))
}

fn turned_away(refused: &RenewError) -> wire::ExplainResponse {
    let (code, message) = (refused.code().to_owned(), refused.to_string());
    let denied = wire::DenialSummary { code, message, ..wire::DenialSummary::default() };
    wire::ExplainResponse { decision: Some(Decision::Denied(denied)), ..wire::ExplainResponse::default() }
}

/// Reads a principal from its audit text.
fn read_principal(text: &str) -> Result<Principal, ApiError> {
    let unknown = || ApiError::Invalid {
        field: "principal",
        problem: "it is none; write `node:CLUSTER/METHOD/NAME`, `admin:NAME`, `server:NAME`, `token:ID` or \
                  `local:uid=NUMBER`"
            .to_owned(),
    };
    let (kind, name) = text.split_once(':').ok_or_else(unknown)?;
    Ok(match kind {
        "node" => {
            let mut parts = name.splitn(3, '/');
            let mut part = || parts.next().ok_or_else(unknown);
            Principal::Node {
                cluster: convert::read("principal", part()?)?,
                method: convert::read::<AttestationMethod>("principal", part()?)?,
                name: convert::read("principal", part()?)?,
            }
        }
        "admin" => Principal::Admin { name: convert::read("principal", name)? },
        "server" => Principal::Server { name: convert::read("principal", name)? },
        "token" => Principal::Token { id: convert::read("principal", name)? },
        "local" => {
            let uid = name.strip_prefix("uid=").ok_or_else(unknown)?;
            let uid = uid.split('(').next().unwrap_or_default();
            Principal::Local { uid: convert::read("principal", uid)?, user: None }
        }
        _ => return Err(unknown()),
    })
}

fn shown(explanation: Explanation) -> wire::ExplainResponse {
    let names = |rules: Vec<RuleName>| rules.into_iter().map(String::from).collect();
    let decision = match explanation.decision {
        Ok(grant) => Decision::Granted(wire::GrantSummary {
            spiffe_id: grant.spiffe_id.to_string(),
            ttl_seconds: grant.ttl.seconds(),
            ttl_clamped: grant.clamped,
            dns_names: grant.dns_names.iter().map(ToString::to_string).collect(),
            federates_with: grant.federates_with.iter().map(ToString::to_string).collect(),
            rule: grant.rule.map(String::from).unwrap_or_default(),
        }),
        Err(denial) => Decision::Denied(denied(denial)),
    };
    let near = explanation.near.into_iter().map(|miss| wire::NearMiss {
        rule: miss.rule.into(),
        unmet: miss
            .missing
            .into_iter()
            .map(|unmet| wire::UnmetCondition {
                attribute: unmet.attribute.to_string(),
                wanted: unmet.wanted,
                found: unmet.found,
            })
            .collect(),
    });
    wire::ExplainResponse {
        decision: Some(decision),
        matched: names(explanation.matched),
        near: near.collect(),
    }
}

fn denied(denial: Denial) -> wire::DenialSummary {
    let candidates = match &denial.reason {
        DenialReason::Ambiguous { candidates } => candidates.iter().map(ToString::to_string).collect(),
        DenialReason::WrongCaller
        | DenialReason::OutOfScope { .. }
        | DenialReason::NoRule
        | DenialReason::NotGranted { .. }
        | DenialReason::Reserved
        | DenialReason::DnsNotGranted { .. }
        | DenialReason::Template { .. } => Vec::new(),
    };
    wire::DenialSummary {
        code: denial.code().to_owned(),
        message: denial.to_string(),
        rule: denial.rule.map(String::from).unwrap_or_default(),
        candidates,
    }
}
