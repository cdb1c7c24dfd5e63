//! `rhizome authority`: roots, issuers and keys for JWT-SVIDs.
//!
//! Laws: rotating and tainting are dry runs unless `--yes` is given. Not here: when authorities change by themselves
//! (`rhizome_core::authority`).

use clap::{Args, Subcommand};
use rhizome_id::{AuthorityId, ReplicaName, Timestamp};
use rhizome_proto::admin::v1::authority_service_client::AuthorityServiceClient;
use rhizome_proto::admin::v1::{
    Authority, AuthorityKind, AuthorityState, ListAuthoritiesRequest, RotateIssuerRequest,
    RotateIssuerResponse, TaintJwtKeyRequest, TaintJwtKeyResponse,
};
use serde::Serialize;
use serde_json::json;

use crate::exit::{Exit, Failure};
use crate::output::{View, printable, relative, table};
use crate::session::{Session, call, patiently};
use crate::wire;

/// See, rotate and taint signing authorities
#[derive(Subcommand, Clone, Debug)]
pub enum AuthorityVerb {
    /// List authorities: roots, then issuers, then keys for JWT-SVIDs
    List {
        /// Show at most this many; 0 for all
        #[arg(long, value_name = "COUNT", default_value_t = 1000)]
        limit: usize,
    },
    /// Replace the issuer now instead of when its time comes; without --yes, show the steps
    Rotate(RotateIssuer),
    /// End a JWT key and all tokens it signed; without --yes, show the steps
    Taint(TaintJwtKey),
}

/// Which key to taint.
#[derive(Args, Clone, Debug)]
pub struct TaintJwtKey {
    /// The key's id, as `rhizome authority list` shows it: the `kid` of its tokens
    #[arg(value_name = "ID")]
    id: AuthorityId,

    /// Why, for the audit log
    #[arg(long)]
    reason: String,

    /// Do it; without this, only show the steps
    #[arg(long)]
    yes: bool,
}

/// Which issuer to rotate.
#[derive(Args, Clone, Debug)]
pub struct RotateIssuer {
    /// The replica whose issuer it is [default: the one that answers]
    #[arg(long, value_name = "NAME")]
    replica: Option<ReplicaName>,

    /// Why, for the audit log
    #[arg(long)]
    reason: String,

    /// Do it; without this, only show the steps
    #[arg(long)]
    yes: bool,
}

pub(crate) async fn run(verb: AuthorityVerb, session: &mut Session<'_, '_>) -> Result<Exit, Failure> {
    let mut client = AuthorityServiceClient::new(session.channel().await?);
    match verb {
        AuthorityVerb::List { limit } => {
            let listed = wire::pages(limit, async |page_size, page_token| {
                let request = ListAuthoritiesRequest { page_size, page_token };
                let page = client.list_authorities(call(request)).await?.into_inner();
                Ok((page.authorities, page.next_page_token))
            })
            .await?;
            session.show(&list(listed.items, listed.more, session.now())?)?;
            wire::remark_more(session, listed.more);
        }
        AuthorityVerb::Rotate(wish) => {
            let request = RotateIssuerRequest {
                replica: wish.replica.map(String::from).unwrap_or_default(),
                reason: wish.reason,
                dry_run: !wish.yes,
            };
            let rotating = client.rotate_issuer(call(request));
            let answer = patiently("Rotating the issuer".to_owned(), rotating).await?.into_inner();
            let applied = answer.applied;
            session.show(&rotated(answer)?)?;
            if !applied {
                session.remark("nothing was changed; repeat with --yes to rotate");
            }
        }
        AuthorityVerb::Taint(wish) => {
            let request =
                TaintJwtKeyRequest { id: wish.id.to_string(), reason: wish.reason, dry_run: !wish.yes };
            let answer = client.taint_jwt_key(call(request)).await?.into_inner();
            let applied = answer.applied;
            session.show(&tainted(&wish.id, &answer)?)?;
            if !applied {
                session.remark("nothing was changed; repeat with --yes to taint");
            }
        }
    }
    Ok(Exit::Done)
}

#[derive(Serialize)]
struct AuthorityRow {
    id: String,
    kind: &'static str,
    state: &'static str,
    replica: String,
    key_id: String,
    algorithm: String,
    fingerprint: Option<String>,
    subject: String,
    issuer_id: Option<String>,
    not_before: Option<Timestamp>,
    not_after: Option<Timestamp>,
    prepared_at: Option<Timestamp>,
    activated_at: Option<Timestamp>,
    next_step: Option<String>,
    next_step_at: Option<Timestamp>,
}

impl From<Authority> for AuthorityRow {
    fn from(authority: Authority) -> Self {
        Self {
            kind: match authority.kind() {
                AuthorityKind::Root => "root",
                AuthorityKind::Issuer => "issuer",
                AuthorityKind::Jwt => "jwt",
                AuthorityKind::Unspecified => "unknown",
            },
            state: match authority.state() {
                AuthorityState::Prepared => "prepared",
                AuthorityState::Active => "active",
                AuthorityState::Old => "old",
                AuthorityState::Tainted => "tainted",
                AuthorityState::Unspecified => "unknown",
            },
            fingerprint: wire::hexadecimal(&authority.fingerprint),
            not_before: wire::instant(authority.not_before.as_ref()),
            not_after: wire::instant(authority.not_after.as_ref()),
            prepared_at: wire::instant(authority.prepared_at.as_ref()),
            activated_at: wire::instant(authority.activated_at.as_ref()),
            next_step_at: wire::instant(authority.next_step_at.as_ref()),
            id: authority.id,
            replica: authority.replica,
            key_id: authority.key_id,
            algorithm: authority.algorithm,
            subject: authority.subject,
            issuer_id: wire::text(authority.issuer_id),
            next_step: wire::text(authority.next_step),
        }
    }
}

fn list(authorities: Vec<Authority>, more: bool, now: Timestamp) -> Result<View, Failure> {
    let rows: Vec<AuthorityRow> = authorities.into_iter().map(AuthorityRow::from).collect();
    let cells = rows.iter().map(|row| {
        let next = match (&row.next_step, row.next_step_at) {
            (Some(step), Some(at)) => format!("{step} {}", relative(Some(at), now)),
            (Some(step), None) => step.clone(),
            (None, _) => "-".to_owned(),
        };
        vec![
            row.id.clone(),
            row.kind.to_owned(),
            row.state.to_owned(),
            row.replica.clone(),
            row.algorithm.clone(),
            relative(row.not_after, now),
            next,
        ]
    });
    let heading = ["ID", "KIND", "STATE", "REPLICA", "ALGORITHM", "EXPIRES", "NEXT"];
    let text = table(&heading, cells, "no authorities yet: see the server's log");
    View::list("authorities", &rows, more, text)
}

fn tainted(id: &AuthorityId, answer: &TaintJwtKeyResponse) -> Result<View, Failure> {
    let mut text = if answer.applied { format!("tainted {id}:\n") } else { format!("would taint {id}:\n") };
    for (number, step) in (1u32..).zip(&answer.steps) {
        text.push_str(&format!("  {number}. {}\n", printable(step)));
    }
    if answer.applied {
        text.push_str(&format!("bundle without it: sequence {}\n", answer.bundle_sequence));
    }
    let json = json!({
        "id": id.to_string(),
        "applied": answer.applied,
        "steps": answer.steps,
        "bundle_sequence": answer.bundle_sequence,
    });
    View::new(&json, text)
}

fn rotated(answer: RotateIssuerResponse) -> Result<View, Failure> {
    let mut text =
        if answer.applied { "rotated the issuer:\n" } else { "would rotate the issuer:\n" }.to_owned();
    for (number, step) in (1u32..).zip(&answer.steps) {
        text.push_str(&format!("  {number}. {}\n", printable(step)));
    }
    let active = answer.active.map(AuthorityRow::from);
    if let Some(row) = &active {
        text.push_str(&format!("signing now: {}\n", printable(&row.id)));
    }
    View::new(&json!({ "applied": answer.applied, "steps": answer.steps, "active": active }), text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_are_listed_with_what_comes_next() {
        let authority = Authority {
            id: "issuer-2".into(),
            kind: AuthorityKind::Issuer.into(),
            state: AuthorityState::Active.into(),
            replica: "r1".into(),
            algorithm: "ecdsa-p256".into(),
            not_after: Some(prost_types::Timestamp { seconds: 86_400 * 3, nanos: 0 }),
            next_step: "prepare a successor".into(),
            next_step_at: Some(prost_types::Timestamp { seconds: 86_400, nanos: 0 }),
            ..Authority::default()
        };
        let view = list(vec![authority], false, Timestamp::EPOCH).unwrap();
        assert_eq!(
            view.text,
            "ID        KIND    STATE   REPLICA  ALGORITHM   EXPIRES  NEXT\n\
             issuer-2  issuer  active  r1       ecdsa-p256  in 3d    prepare a successor in 1d\n"
        );
    }

    #[test]
    fn tainting_says_what_it_does_and_which_bundle_it_left() {
        let id = "jwt-1".parse().unwrap();
        let answer =
            TaintJwtKeyResponse { steps: vec!["take it out".into()], applied: true, bundle_sequence: 4 };
        let text = tainted(&id, &answer).unwrap().text;
        assert_eq!(text, "tainted jwt-1:\n  1. take it out\nbundle without it: sequence 4\n");
    }

    #[test]
    fn a_dry_run_shows_the_steps_as_a_wish() {
        let answer = RotateIssuerResponse { steps: vec!["make a key".into()], applied: false, active: None };
        assert_eq!(rotated(answer).unwrap().text, "would rotate the issuer:\n  1. make a key\n");
    }
}
