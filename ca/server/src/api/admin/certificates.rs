//! Certificates: who holds what, from the ledger; and revoking them.
//!
//! Laws: every answer comes from the ledger. A listing reads backwards from the newest record and looks at a bounded
//! number of records for each page, so it costs the same on any ledger. Revoking writes the documents and the ledger
//! entry in one transaction; authorities are rotated, never revoked here.

use std::sync::Arc;

use rhizome_core::documents::{Stored as _, Transaction};
use rhizome_core::ledger::{Event, Issuance, Position, Profile, Record};
use rhizome_core::limits;
use rhizome_core::state::Revocation;
use rhizome_id::{Serial, SpiffeId, Timestamp, Ttl};
use rhizome_proto::admin::v1 as wire;
use rhizome_proto::admin::v1::certificate_admin_service_server::CertificateAdminService;
use rhizome_proto::admin::v1::revoke_certificates_request::Target;
use rhizome_x509::RevocationCode;
use tonic::{Request, Response};

use crate::api::{Api, convert};
use crate::ca::Ca;
use crate::error::ApiError;
use crate::status::Answer;

/// Records read from the store in one go.
const PAGE: usize = 1_000;
/// Records looked at for one page of a listing; a rarer match is found by asking for the next page.
const LOOKED_AT: usize = 100_000;
/// How far the clock may have been wrong while the ledger was written.
const CLOCK_SLACK_SECONDS: i64 = 3_600;
/// Certificates that one call revokes; more are revoked by calling again.
const MOST_REVOKED: usize = 1_000;

#[tonic::async_trait]
impl CertificateAdminService for Api {
    async fn list_certificates(
        &self,
        request: Request<wire::ListCertificatesRequest>,
    ) -> Answer<wire::ListCertificatesResponse> {
        self.0.caller(&request)?;
        let request = request.into_inner();
        let wanted = Wanted {
            spiffe_id: convert::read_spiffe_id(&request.spiffe_id)?,
            node: holder_of(&request.node_id),
            alive_at: request.unexpired_only.then(|| self.0.ports.clock.now()),
        };
        let from = convert::read_optional::<u64>("page_token", &request.page_token)?;
        let limit = super::page_size(request.page_size);
        let (found, next) = self.0.search(&wanted, from, limit).await?;
        let certificates = found.iter().map(|it| self.0.certificate(it)).collect();
        let next_page_token = next.map(|position| position.to_string()).unwrap_or_default();
        Ok(Response::new(wire::ListCertificatesResponse { certificates, next_page_token }))
    }

    async fn get_certificate(
        &self,
        request: Request<wire::GetCertificateRequest>,
    ) -> Answer<wire::GetCertificateResponse> {
        self.0.caller(&request)?;
        let found = self.0.issuance_of(&request.get_ref().serial).await?;
        let certificate = Some(self.0.certificate(&found));
        Ok(Response::new(wire::GetCertificateResponse { certificate }))
    }

    async fn revoke_certificates(
        &self,
        request: Request<wire::RevokeCertificatesRequest>,
    ) -> Answer<wire::RevokeCertificatesResponse> {
        let by = self.0.caller(&request)?.principal().to_string();
        let request = request.into_inner();
        super::read_required_reason(&request.reason)?;
        let ca = Arc::clone(&self.0);
        // Looking through a long ledger may outlast the call; what was begun is finished all the same.
        let work = async move { ca.revoke_targets(request, &by).await };
        Ok(Response::new(self.0.to_the_end("revoke certificates", work).await?))
    }
}

/// An issuance with its place in the ledger.
pub(super) struct Found {
    position: Position,
    at: Timestamp,
    issuance: Issuance,
}

/// What a listing asks for.
struct Wanted {
    spiffe_id: Option<SpiffeId>,
    node: Option<Holder>,
    alive_at: Option<Timestamp>,
}

/// A node as the holder of certificates: its own, and those it asked for.
struct Holder {
    principal: String,
    path: String,
}

fn holder_of(node_id: &str) -> Option<Holder> {
    (!node_id.is_empty())
        .then(|| Holder { principal: format!("node:{node_id}"), path: format!("/rhizome/node/{node_id}") })
}

impl Wanted {
    fn is(&self, issuance: &Issuance) -> bool {
        let id = self.spiffe_id.as_ref().is_none_or(|id| *id == issuance.spiffe_id);
        let node = self
            .node
            .as_ref()
            .is_none_or(|it| issuance.caller == it.principal || issuance.spiffe_id.path() == it.path);
        let alive = self.alive_at.is_none_or(|now| issuance.not_after >= now);
        id && node && alive
    }
}

impl Ca {
    async fn revoke_targets(
        self: &Arc<Self>,
        request: wire::RevokeCertificatesRequest,
        by: &str,
    ) -> Result<wire::RevokeCertificatesResponse, ApiError> {
        let reason = super::read_required_reason(&request.reason)?;
        let now = self.ports.clock.now();
        let found = self.targets(request.target, now).await?;
        let serials: Vec<String> = found.iter().map(|it| it.issuance.serial.to_string()).collect();
        let count = u64::try_from(serials.len()).unwrap_or(u64::MAX);
        let applied = !request.dry_run && !found.is_empty();
        if applied {
            self.revoke(&found, reason, by, now).await?;
        }
        Ok(wire::RevokeCertificatesResponse { serials, count, applied })
    }

    /// An instant before which everything that was issued has expired, by the longest lifetime of any leaf.
    fn all_expired_before(&self, now: Timestamp) -> Timestamp {
        let policy = &self.settings.policy;
        let allowed = [policy.workload.max, policy.node.max, policy.admin.max, policy.server.max];
        let usual =
            [limits::WORKLOAD_MAX_TTL, limits::NODE_MAX_TTL, limits::ADMIN_MAX_TTL, limits::SERVER_TTL];
        let longest = allowed.into_iter().chain(usual).map(Ttl::seconds).max().unwrap_or_default();
        now.minus(longest).minus(CLOCK_SLACK_SECONDS)
    }

    /// Matches from `from` (inclusive) backwards, newest first, and where to go on.
    async fn search(
        &self,
        wanted: &Wanted,
        from: Option<u64>,
        limit: usize,
    ) -> Result<(Vec<Found>, Option<u64>), ApiError> {
        let head = self.ports.store.head().await?.position.0;
        let mut last = from.unwrap_or(head).min(head);
        let (mut found, mut looked_at) = (Vec::new(), 0);
        while last > 0 && looked_at < LOOKED_AT {
            let count = u64::try_from(PAGE).unwrap_or(u64::MAX).min(last);
            let first = last.saturating_sub(count).saturating_add(1);
            let page =
                self.ports.store.records(Position(first), usize::try_from(count).unwrap_or(PAGE)).await?;
            looked_at = looked_at.saturating_add(page.len());
            for record in page.iter().rev().filter(|record| record.counter.is_some()) {
                let Some(match_) = read_issuance(record)?.filter(|it| wanted.is(&it.issuance)) else {
                    continue;
                };
                if found.len() == limit {
                    return Ok((found, Some(record.position.0)));
                }
                found.push(match_);
            }
            last = first.saturating_sub(1);
            let oldest = page.first().map(read_instant).transpose()?;
            if wanted.alive_at.zip(oldest).is_some_and(|(now, at)| at < self.all_expired_before(now)) {
                return Ok((found, None));
            }
        }
        Ok((found, (last > 0).then_some(last)))
    }

    async fn issuance_of(&self, serial: &str) -> Result<Found, ApiError> {
        let serial: Serial = convert::read("serial", serial)?;
        let record = self.ports.store.record_of_serial(serial.counter()).await?;
        let found = record.as_ref().map(read_issuance).transpose()?.flatten();
        found
            .filter(|it| it.issuance.serial == serial)
            .ok_or_else(|| ApiError::NotFound { what: "certificate with serial", name: serial.to_string() })
    }

    async fn targets(&self, target: Option<Target>, now: Timestamp) -> Result<Vec<Found>, ApiError> {
        let wanted = match target {
            None => {
                let problem = "name a serial, a SPIFFE ID or a node".to_owned();
                return Err(ApiError::Invalid { field: "target", problem });
            }
            Some(Target::Serial(serial)) => {
                let found = self.issuance_of(&serial).await?;
                if matches!(found.issuance.profile, Profile::Root | Profile::Issuer) {
                    let problem =
                        "that is an authority's own certificate; use `rhizome authority rotate`".to_owned();
                    return Err(ApiError::Invalid { field: "serial", problem });
                }
                return Ok(if self.is_revocable(&found.issuance) { vec![found] } else { Vec::new() });
            }
            Some(Target::SpiffeId(id)) => {
                let id = convert::read("spiffe_id", &id)?;
                Wanted { spiffe_id: Some(id), node: None, alive_at: Some(now) }
            }
            Some(Target::NodeId(id)) => Wanted { spiffe_id: None, node: holder_of(&id), alive_at: Some(now) },
        };
        let (mut found, mut from) = (Vec::new(), None);
        loop {
            let (page, next) = self.search(&wanted, from, MOST_REVOKED.saturating_sub(found.len())).await?;
            found.extend(page.into_iter().filter(|it| self.is_revocable(&it.issuance)));
            match next {
                Some(next) if found.len() < MOST_REVOKED => from = Some(next),
                Some(_) | None => return Ok(found),
            }
        }
    }

    fn is_revocable(&self, issuance: &Issuance) -> bool {
        !matches!(issuance.profile, Profile::Root | Profile::Issuer)
            && !self.state().is_revoked(&issuance.serial)
    }

    async fn revoke(
        self: &Arc<Self>,
        found: &[Found],
        reason: &str,
        by: &str,
        now: Timestamp,
    ) -> Result<(), ApiError> {
        let mut transaction = Transaction::named("revoke certificates");
        for Found { issuance, .. } in found {
            let revocation = revocation_of(issuance, reason, by, now);
            let entry = self.changed(by, "certificate.revoke", &issuance.serial.to_string(), reason);
            // Whoever is first is the one whose reason stands; a second one at the same moment is told to look again.
            transaction = transaction.require_absent(revocation.key()).put(&revocation).record(entry);
        }
        self.commit(transaction).await?;
        Ok(())
    }

    fn certificate(&self, found: &Found) -> wire::CertificateRecord {
        let Found { position, at, issuance } = found;
        let state = self.state();
        let revoked = state.revocations().get(&issuance.serial.counter()).map(|it| &it.value);
        wire::CertificateRecord {
            serial: issuance.serial.to_string(),
            spiffe_id: issuance.spiffe_id.to_string(),
            kind: kind_of(issuance.profile).into(),
            caller: issuance.caller.clone(),
            rule: issuance.rule.clone().unwrap_or_default(),
            issuer_id: issuance.issuer.to_string(),
            not_before: Some(convert::timestamp(issuance.not_before)),
            not_after: Some(convert::timestamp(issuance.not_after)),
            recorded_at: Some(convert::timestamp(*at)),
            key_digest: convert::digest(&issuance.public_key),
            tbs_digest: convert::digest(&issuance.tbs),
            dns_names: issuance.dns_names.clone(),
            ledger_sequence: position.0,
            revoked_at: revoked.map(|it| convert::timestamp(it.at)),
            revoked_by: revoked.map(|it| it.by.clone()).unwrap_or_default(),
            revocation_reason: revoked.map(|it| it.reason.clone()).unwrap_or_default(),
        }
    }
}

fn read_instant(record: &Record) -> Result<Timestamp, ApiError> {
    record.read().map(|(at, _)| at).map_err(|fault| ApiError::Bug(fault.to_string()))
}

fn read_issuance(record: &Record) -> Result<Option<Found>, ApiError> {
    match record.read().map_err(|fault| ApiError::Bug(fault.to_string()))? {
        (at, Event::Issued(issuance)) => Ok(Some(Found { position: record.position, at, issuance })),
        (
            _,
            Event::JwtIssued(_) | Event::SigningFailed { .. } | Event::Changed { .. } | Event::Refused { .. },
        ) => Ok(None),
    }
}

/// Whoever must stop serving a revoked certificate: the node that asked for it, or the node whose own it is.
fn revocation_of(issuance: &Issuance, reason: &str, by: &str, at: Timestamp) -> Revocation {
    let own = issuance.spiffe_id.path().strip_prefix("/rhizome/node/").map(|id| format!("node:{id}"));
    Revocation {
        serial: issuance.serial,
        reason: reason.to_owned(),
        by: by.to_owned(),
        at,
        not_after: issuance.not_after,
        spiffe_id: issuance.spiffe_id.clone(),
        holder: own.unwrap_or_else(|| issuance.caller.clone()),
        issuer: Some(issuance.issuer.clone()),
        code: RevocationCode::Unspecified,
    }
}

const fn kind_of(profile: Profile) -> wire::CertificateKind {
    match profile {
        Profile::Workload => wire::CertificateKind::Workload,
        Profile::Node => wire::CertificateKind::Node,
        Profile::Admin => wire::CertificateKind::Admin,
        Profile::Server => wire::CertificateKind::Server,
        Profile::Root | Profile::Issuer => wire::CertificateKind::Authority,
    }
}
