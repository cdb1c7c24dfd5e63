//! Administrators: given certificates, listed, removed.
//!
//! Laws: an administrator exists once a certificate was issued in that name, by the same flow as every other leaf,
//! and what it may do stands in its record and not in the certificate. A removed one is forgotten together with every
//! certificate it holds.
//! Not here: who may issue to administrators (`rhizome_core::policy`, `roles`).

use std::ops::Bound;
use std::sync::Arc;

use rhizome_core::caller::{AttestedCaller, Role, admin_id};
use rhizome_core::documents::{Stored, Transaction, Versioned};
use rhizome_core::ledger::Issuance;
use rhizome_core::limits::ADMIN_MAX_TTL;
use rhizome_core::policy::Wish;
use rhizome_core::state::{AdminRecord, State};
use rhizome_id::AdminName;
use rhizome_proto::admin::v1 as wire;
use rhizome_proto::admin::v1::admin_identity_service_server::AdminIdentityService;
use tonic::{Request, Response};

use super::ending::Ending;
use super::{page_size, read_page_token, read_reason};
use crate::api::{Api, convert};
use crate::ca::Ca;
use crate::error::ApiError;
use crate::issue::Csr;
use crate::status::Answer;

#[tonic::async_trait]
impl AdminIdentityService for Api {
    async fn issue_admin_certificate(
        &self,
        request: Request<wire::IssueAdminCertificateRequest>,
    ) -> Answer<wire::IssueAdminCertificateResponse> {
        let caller = self.0.caller(&request)?;
        Ok(Response::new(self.0.issue_admin(&caller, request.get_ref()).await?))
    }

    async fn list_admins(
        &self,
        request: Request<wire::ListAdminsRequest>,
    ) -> Answer<wire::ListAdminsResponse> {
        self.0.caller(&request)?;
        let request = request.into_inner();
        let after = read_page_token::<AdminName>(&request.page_token)?;
        let limit = page_size(request.page_size);
        let state = self.0.state();
        let from = after.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let mut rest =
            state.admins().range::<_, AdminName>((from, Bound::Unbounded)).map(|(_, it)| &it.value);
        let admins: Vec<wire::Admin> = rest.by_ref().take(limit).map(|it| shown(it, &state)).collect();
        let more = rest.next().is_some();
        let next_page_token = admins.last().filter(|_| more).map(|it| it.name.clone()).unwrap_or_default();
        Ok(Response::new(wire::ListAdminsResponse { admins, next_page_token }))
    }

    async fn remove_admin(
        &self,
        request: Request<wire::RemoveAdminRequest>,
    ) -> Answer<wire::RemoveAdminResponse> {
        let by = self.0.caller(&request)?.principal().to_string();
        let request = request.into_inner();
        let name: AdminName = convert::read("name", &request.name)?;
        let reason = read_reason(&request.reason)?.to_owned();
        let at = self.0.ports.clock.now();
        let ca = Arc::clone(&self.0);
        // Looking through a long ledger may outlast the call; what was begun is finished all the same.
        let work = async move { ca.remove_admin(&name, &Ending { by: &by, reason: &reason, at }).await };
        let (removed, revoked) = self.0.to_the_end("remove administrator", work).await?;
        let admin = Some(shown(&removed, &self.0.state()));
        Ok(Response::new(wire::RemoveAdminResponse { admin, revoked }))
    }
}

impl Ca {
    async fn issue_admin(
        self: &Arc<Self>,
        caller: &AttestedCaller,
        request: &wire::IssueAdminCertificateRequest,
    ) -> Result<wire::IssueAdminCertificateResponse, ApiError> {
        let by = caller.principal().to_string();
        let name: AdminName = convert::read("name", &request.name)?;
        let role = read_role(request.role)?;
        let ttl = convert::read_ttl("ttl_seconds", request.ttl_seconds)?;
        let csr = Csr::Der(&request.csr_der).verify()?;
        let now = self.now()?;
        let known = self.state().admins().get(&name).cloned();
        if known.as_ref().is_some_and(|known| known.value.role != role) {
            let problem =
                "is registered with another role; ask for that one, or remove the administrator first";
            return Err(ApiError::Conflict { what: "administrator", name: name.to_string(), problem });
        }
        let (created_by, created_at) = known
            .as_ref()
            .map_or_else(|| (by.clone(), now), |it| (it.value.created_by.clone(), it.value.created_at));
        let record_of = |issuance: &Issuance| AdminRecord {
            name: name.clone(),
            role,
            serial: issuance.serial,
            not_after: issuance.not_after,
            created_by: created_by.clone(),
            created_at,
        };
        let alongside = |issuance: &Issuance| {
            let record = record_of(issuance);
            let transaction = Transaction::named("issue administrator's certificate");
            let transaction = match &known {
                None => transaction.require_absent(record.key()),
                Some(known) => transaction.require_unchanged(record.key(), known.version),
            };
            let detail = format!("role {role}, certificate {}", issuance.serial);
            transaction.put(&record).record(self.changed(&by, "admin.issue", name.as_str(), &detail))
        };
        let wish = Wish::Admin { name: name.clone(), ttl };
        let leaf = self.issue_with(caller, csr, wish, None, alongside).await?;
        Ok(wire::IssueAdminCertificateResponse {
            issued: Some(convert::issued(&leaf, self.wire_bundle().as_deref().cloned())),
            admin: Some(shown(&record_of(leaf.issuance()), &self.state())),
        })
    }

    /// Forgets an administrator and revokes every certificate it holds; how many those were.
    async fn remove_admin(
        self: &Arc<Self>,
        name: &AdminName,
        ending: &Ending<'_>,
    ) -> Result<(AdminRecord, u64), ApiError> {
        let state = self.state();
        let known = state.admins().get(name);
        let Versioned { version, value: record } =
            known.ok_or_else(|| ApiError::NotFound { what: "administrator", name: name.to_string() })?;
        let own = admin_id(state.trust_domain(), name).map_err(|bad| ApiError::Bug(bad.to_string()))?;
        let longest = self.settings.policy.admin.max.max(ADMIN_MAX_TTL);
        let held = self.held_by(&own, longest, ending.at).await?;
        let entry = self.changed(ending.by, "admin.remove", name.as_str(), ending.reason);
        let transaction = Transaction::named("remove administrator")
            .require_unchanged(record.key(), *version)
            .delete(record.key())
            .record(entry);
        self.end(transaction, &held, &format!("admin:{name}"), ending).await?;
        tracing::warn!(admin = %name, by = ending.by, revoked = held.len(), "administrator removed");
        Ok((AdminRecord::clone(record), u64::try_from(held.len()).unwrap_or(u64::MAX)))
    }
}

fn shown(record: &AdminRecord, state: &State) -> wire::Admin {
    wire::Admin {
        name: record.name.to_string(),
        role: role(record.role).into(),
        spiffe_id: admin_id(state.trust_domain(), &record.name).map(|id| id.to_string()).unwrap_or_default(),
        created_at: Some(convert::timestamp(record.created_at)),
        created_by: record.created_by.clone(),
        not_after: Some(convert::timestamp(record.not_after)),
        serial: record.serial.to_string(),
    }
}

const fn role(role: Role) -> wire::Role {
    match role {
        Role::Viewer => wire::Role::Viewer,
        Role::Operator => wire::Role::Operator,
        Role::Security => wire::Role::Security,
    }
}

fn read_role(number: i32) -> Result<Role, ApiError> {
    match wire::Role::try_from(number) {
        Ok(wire::Role::Viewer) => Ok(Role::Viewer),
        Ok(wire::Role::Operator) => Ok(Role::Operator),
        Ok(wire::Role::Security) => Ok(Role::Security),
        Ok(wire::Role::Unspecified) | Err(_) => {
            let problem = "say what the administrator may do: viewer, operator or security".to_owned();
            Err(ApiError::Invalid { field: "role", problem })
        }
    }
}
