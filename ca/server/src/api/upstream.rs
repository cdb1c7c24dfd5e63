//! What the Rhizome of a cluster asks of this one: an intermediate, and to be heard.
//!
//! Laws: every call is judged by the cluster's record as it is now, and once more in the transaction. Sizes are bounded
//! here; what the records say is judged by `rhizome_core::clusters`.
//! Not here: granting and keeping (`clusters`), the side that calls (`upstream`).

use std::collections::BTreeMap;

use bytes::Bytes;
use rhizome_core::clusters::{HeldBelow, Reported};
use rhizome_core::ledger::{Position, Record};
use rhizome_id::{Digest, SerialCounter, Ttl};
use rhizome_proto::upstream::v1 as wire;
use rhizome_proto::upstream::v1::upstream_service_server::UpstreamService;
use tonic::{Request, Response};

use super::{Api, convert};
use crate::clusters::{ProvenKey, own_issuer_keys};
use crate::error::{ApiError, IssueError};
use crate::status::Answer;

/// Records of one report, as the protocol says.
pub(crate) const RECORDS: usize = 512;
/// Kinds of subscribers, names of those that are behind and bytes of such a name, as the protocol says.
const KINDS: usize = 8;
pub(crate) const BEHIND: usize = 32;
const NAME_BYTES: usize = 256;
const VERSION_BYTES: usize = 64;

#[tonic::async_trait]
impl UpstreamService for Api {
    async fn sign_intermediate(
        &self,
        request: Request<wire::SignIntermediateRequest>,
    ) -> Answer<wire::SignIntermediateResponse> {
        let caller = self.0.caller(&request)?;
        let request = request.into_inner();
        let ttl = convert::read_ttl("ttl_seconds", request.ttl_seconds)?;
        let key = ProvenKey::read(&request.public_key_der, request.proof)?;
        let (ca, asks) = (self.0.clone(), caller.clone());
        // Granted is granted: a caller that goes away in the middle may ask again, and nothing is half done.
        let work = async move { ca.sign_intermediate(&asks, &key, ttl).await };
        let signed = self.0.to_the_end("sign intermediate", work).await;
        let signed = signed.map_err(|error| self.0.count_refusal(error))?;
        Ok(Response::new(wire::SignIntermediateResponse {
            chain_der: signed.chain.iter().map(|it| Bytes::copy_from_slice(it.der())).collect(),
            root_der: Bytes::copy_from_slice(signed.root.der()),
            authority_id: signed.granted.id.to_string(),
            bundle: self.0.wire_bundle().as_deref().cloned(),
        }))
    }

    async fn report(&self, request: Request<wire::ReportRequest>) -> Answer<wire::ReportResponse> {
        let caller = self.0.caller(&request)?;
        let mut request = request.into_inner();
        let records = read_records(std::mem::take(&mut request.records))?;
        let reported = read_reported(request)?;
        let holds = reported.holds;
        let report = self.0.take_report(&caller, reported, &records).await;
        let report = report.map_err(|error| self.0.count_refusal(error))?;
        let cluster = self.0.calling_cluster(&caller)?.value;
        let state = self.0.state();
        let root = state.active_root().ok_or(ApiError::Issue(IssueError::NoAuthority))?;
        let published = self.0.bundle().ok_or(ApiError::Issue(IssueError::NoAuthority))?;
        let (sequence, digest) = (published.bundle.sequence(), published.bundle.digest());
        let issuers = own_issuer_keys(&state, self.0.ports.clock.now());
        let same = holds.is_some_and(|it| (it.sequence, it.digest) == (sequence, digest));
        Ok(Response::new(wire::ReportResponse {
            next_position: report.read_to.saturating_add(1),
            bundle_sequence: sequence,
            bundle: (!same).then(|| convert::bundle(&published.bundle)),
            signing_root_sha256: convert::digest(&root.anchor().fingerprint()),
            scope: cluster.scope.to_string(),
            intermediate_ttl_seconds: Ttl::seconds(cluster.intermediate_ttl),
            now: Some(convert::timestamp(self.0.ports.clock.now())),
            issuer_key_sha256: issuers.iter().map(convert::digest).collect(),
        }))
    }
}

fn read_records(records: Vec<wire::LedgerRecord>) -> Result<Vec<Record>, ApiError> {
    if records.len() > RECORDS {
        let problem = format!("there are {}; the limit is {RECORDS}", records.len());
        return Err(ApiError::Invalid { field: "records", problem });
    }
    records.into_iter().map(read_record).collect()
}

fn read_record(record: wire::LedgerRecord) -> Result<Record, ApiError> {
    let counter = record.counter.map(|value| {
        let problem = || format!("{value} is no counter of a serial");
        SerialCounter::new(value).ok_or_else(|| ApiError::Invalid { field: "records", problem: problem() })
    });
    Ok(Record {
        position: Position(record.position),
        previous: convert::read_digest("records", &record.previous)?,
        hash: convert::read_digest("records", &record.hash)?,
        counter: counter.transpose()?,
        body: record.body.into(),
    })
}

fn read_reported(request: wire::ReportRequest) -> Result<Reported, ApiError> {
    let too_many = |field: &'static str, limit: usize| ApiError::Invalid {
        field,
        problem: format!("there are too many, or they are too long; the limit is {limit}"),
    };
    if request.counts.len() > KINDS || request.counts.iter().any(|it| it.kind.len() > VERSION_BYTES) {
        return Err(too_many("counts", KINDS));
    }
    if request.behind.len() > BEHIND || request.behind.iter().any(|it| it.len() > NAME_BYTES) {
        return Err(too_many("behind", BEHIND));
    }
    if request.version.len() > VERSION_BYTES {
        return Err(too_many("version", VERSION_BYTES));
    }
    let holds = request.holds.map(|it| -> Result<HeldBelow, ApiError> {
        let digest: Digest = convert::read_digest("holds", &it.digest)?;
        Ok(HeldBelow { sequence: it.sequence, digest })
    });
    let counts: BTreeMap<String, u64> = request.counts.into_iter().map(|it| (it.kind, it.count)).collect();
    Ok(Reported {
        holds: holds.transpose()?,
        counts,
        behind_count: request.behind_count,
        behind: request.behind,
        version: request.version,
        last_record: request.last_record,
    })
}
