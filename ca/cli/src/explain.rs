//! `rhizome explain`: why a request would be granted or denied.
//!
//! Not here: the decision (`rhizome_core::policy`), which is the one that issues.

use clap::Args;
use rhizome_id::{SpiffeId, Ttl};
use rhizome_proto::admin::v1::explain_request::Caller;
use rhizome_proto::admin::v1::explain_response::Decision;
use rhizome_proto::admin::v1::explain_service_client::ExplainServiceClient;
use rhizome_proto::admin::v1::{DenialSummary, ExplainRequest, ExplainResponse, GrantSummary, NearMiss};
use serde_json::{Value, json};

use crate::exit::{Exit, Failure};
use crate::node::NodeArgument;
use crate::output::{View, details, printable};
use crate::request::Workload;
use crate::session::{Session, call};
use crate::wire;

/// A request as it might be made.
#[derive(Args, Clone, Debug)]
pub struct Explain {
    #[command(flatten)]
    caller: CallerArgument,

    #[command(flatten)]
    workload: Workload,

    /// A DNS name wished for; may be repeated
    #[arg(long = "dns", value_name = "NAME")]
    dns_names: Vec<String>,
}

/// Who would ask.
#[derive(Args, Clone, Debug)]
#[group(required = true, multiple = false)]
pub struct CallerArgument {
    /// The node that would ask: CLUSTER/METHOD/NAME
    #[arg(long, value_name = "ID")]
    node: Option<NodeArgument>,

    /// Any principal that would ask, as the audit log writes it, such as admin:alice
    #[arg(long, value_name = "PRINCIPAL")]
    principal: Option<String>,
}

pub(crate) async fn run(wish: Explain, session: &mut Session<'_, '_>) -> Result<Exit, Failure> {
    let mut client = ExplainServiceClient::new(session.channel().await?);
    let answer = client.explain(call(wish.into())).await?.into_inner();
    session.show(&explained(&answer)?)?;
    Ok(match answer.decision {
        Some(Decision::Granted(_)) => Exit::Done,
        Some(Decision::Denied(_)) | None => Exit::Denied,
    })
}

impl From<Explain> for ExplainRequest {
    fn from(wish: Explain) -> Self {
        let CallerArgument { node, principal } = wish.caller;
        Self {
            caller: node.map(|node| Caller::NodeId(node.into())).or_else(|| principal.map(Caller::Principal)),
            attributes: wish.workload.attributes(),
            spiffe_id: wish.workload.spiffe_id.as_ref().map(SpiffeId::to_string).unwrap_or_default(),
            ttl_seconds: wish.workload.ttl.map_or(0, Ttl::seconds),
            dns_names: wish.dns_names,
        }
    }
}

fn explained(answer: &ExplainResponse) -> Result<View, Failure> {
    let decision = wire::promised(answer.decision.as_ref(), "the decision")?;
    let (grant, denial) = match decision {
        Decision::Granted(grant) => (Some(grant), None),
        Decision::Denied(denial) => (None, Some(denial)),
    };
    let mut text = match decision {
        Decision::Granted(grant) => granted_text(grant),
        Decision::Denied(denial) => denied_text(denial),
    };
    if !answer.matched.is_empty() {
        text.push_str(&details([("matched rules", answer.matched.join(" "))]));
    }
    if !answer.near.is_empty() {
        text.push_str("\nrules that nearly matched:\n");
        answer.near.iter().for_each(|miss| text.push_str(&near_text(miss)));
    }
    let near: Vec<Value> = answer.near.iter().map(near_json).collect();
    let json = json!({
        "granted": grant.map(granted_json),
        "denied": denial.map(denied_json),
        "matched": answer.matched,
        "near": near,
    });
    View::new(&json, text)
}

fn granted_text(grant: &GrantSummary) -> String {
    let clamped = if grant.ttl_clamped { " (less than wished)" } else { "" };
    let ttl = Ttl::from_seconds(grant.ttl_seconds).map_or_else(|_none| "-".to_owned(), |ttl| ttl.to_string());
    details([
        ("decision", "granted".to_owned()),
        ("spiffe id", grant.spiffe_id.clone()),
        ("rule", grant.rule.clone()),
        ("ttl", format!("{ttl}{clamped}")),
        ("dns names", grant.dns_names.join(" ")),
        ("federates with", grant.federates_with.join(" ")),
    ])
}

fn granted_json(grant: &GrantSummary) -> Value {
    json!({
        "spiffe_id": grant.spiffe_id,
        "rule": wire::text(grant.rule.clone()),
        "ttl_seconds": grant.ttl_seconds,
        "ttl_clamped": grant.ttl_clamped,
        "dns_names": grant.dns_names,
        "federates_with": grant.federates_with,
    })
}

fn denied_text(denial: &DenialSummary) -> String {
    details([
        ("decision", "denied".to_owned()),
        ("why", denial.message.clone()),
        ("code", denial.code.clone()),
        ("rule", denial.rule.clone()),
        ("candidates", denial.candidates.join(" ")),
    ])
}

fn denied_json(denial: &DenialSummary) -> Value {
    json!({
        "code": denial.code,
        "message": denial.message,
        "rule": wire::text(denial.rule.clone()),
        "candidates": denial.candidates,
    })
}

fn near_json(miss: &NearMiss) -> Value {
    let unmet: Vec<Value> = miss
        .unmet
        .iter()
        .map(|unmet| json!({ "attribute": unmet.attribute, "wanted": unmet.wanted, "found": unmet.found }))
        .collect();
    json!({ "rule": miss.rule, "unmet": unmet })
}

fn near_text(miss: &NearMiss) -> String {
    let mut text = format!("  {}\n", printable(&miss.rule));
    for unmet in &miss.unmet {
        let found = if unmet.found.is_empty() { "nothing".to_owned() } else { unmet.found.join("|") };
        let line = format!("{} should be {}, is {found}", unmet.attribute, unmet.wanted.join("|"));
        text.push_str(&format!("    {}\n", printable(&line)));
    }
    text
}

#[cfg(test)]
mod tests {
    use rhizome_proto::admin::v1::UnmetCondition;

    use super::*;

    #[test]
    fn a_denial_names_what_was_missing() {
        let answer = ExplainResponse {
            decision: Some(Decision::Denied(DenialSummary {
                code: "denied_no_rule".into(),
                message: "no rule matches".into(),
                ..DenialSummary::default()
            })),
            matched: vec![],
            near: vec![NearMiss {
                rule: "web".into(),
                unmet: vec![UnmetCondition {
                    attribute: "namespace".into(),
                    wanted: vec!["shop".into(), "store".into()],
                    found: vec![],
                }],
            }],
        };
        let view = explained(&answer).unwrap();
        assert_eq!(
            view.text,
            "decision  denied\nwhy       no rule matches\ncode      denied_no_rule\n\n\
             rules that nearly matched:\n  web\n    namespace should be shop|store, is nothing\n"
        );
        assert_eq!(view.json["denied"]["code"], "denied_no_rule");
        assert_eq!(view.json["near"][0]["unmet"][0]["attribute"], "namespace");
    }

    #[test]
    fn a_grant_says_that_it_gives_less_than_wished() {
        let answer = ExplainResponse {
            decision: Some(Decision::Granted(GrantSummary {
                spiffe_id: "spiffe://td/ns/a/sa/b".into(),
                ttl_seconds: 3600,
                ttl_clamped: true,
                ..GrantSummary::default()
            })),
            matched: vec!["default-ns-sa".into()],
            near: vec![],
        };
        let view = explained(&answer).unwrap();
        assert!(view.text.contains("1h (less than wished)"), "{}", view.text);
        assert!(view.text.contains("default-ns-sa"));
        assert_eq!(view.json["granted"]["ttl_seconds"], 3600);
    }
}
