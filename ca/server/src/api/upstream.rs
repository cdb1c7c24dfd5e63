//! What the Rhizome of a cluster asks of this one: an intermediate, and to be heard.
//!
//! Laws: every call is judged by the cluster's record as it is now, and once more in the transaction. Sizes are bounded
//! here; what the records say is judged by `rhizome_core::clusters`.
//! Not here: granting and keeping (`clusters`), the side that calls (`upstream`).

use std::collections::BTreeMap;

use bytes::Bytes;
use rhizome_core::authority::{Authority, AuthorityKind};
use rhizome_core::clusters::{HeldBelow, PresentedBelow, Reported};
use rhizome_core::ledger::{Position, Record};
use rhizome_core::rotation::Phase;
use rhizome_core::state::State;
use rhizome_id::{Digest, SerialCounter, Timestamp, Ttl};
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
/// Seconds between two reports of a cluster, while the root is changed and else.
const REPORT_SOON: u32 = 1;
const REPORT_SELDOM: u32 = 5;
/// Roots of a bundle.
const PRESENTS: usize = 64;

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
        let has = request.bundle_sequence;
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
        let another = holds.is_some_and(|it| it.sequence == sequence && it.digest != digest);
        let same = has == sequence && !another;
        Ok(Response::new(wire::ReportResponse {
            next_position: report.read_to.saturating_add(1),
            bundle_sequence: sequence,
            bundle: (!same).then(|| convert::bundle(&published.bundle)),
            signing_root_sha256: convert::digest(&root.anchor().fingerprint()),
            scope: cluster.scope.to_string(),
            intermediate_ttl_seconds: Ttl::seconds(cluster.intermediate_ttl),
            now: Some(convert::timestamp(self.0.ports.clock.now())),
            issuer_key_sha256: issuers.iter().map(convert::digest).collect(),
            bridges: bridges(&state),
            again_after_seconds: again_after(&state),
        }))
    }
}

/// How soon a cluster is wanted to report again, in seconds: a change of the root waits for it.
fn again_after(state: &State) -> u32 {
    let changes = state.rotation().is_some_and(|it| it.value.phase != Phase::Stable);
    if changes { REPORT_SOON } else { REPORT_SELDOM }
}

/// What chains below roots carry.
fn bridges(state: &State) -> Vec<wire::Bridge> {
    let roots = state.authorities().values().map(|it| &*it.value);
    let bridge = |root: &Authority| {
        let cross = root.cross.as_ref().filter(|it| it.carried)?;
        let by = state.authorities().get(&cross.by)?;
        Some(wire::Bridge {
            root_sha256: convert::digest(&root.anchor().fingerprint()),
            by_sha256: convert::digest(&by.value.anchor().fingerprint()),
            certificate_der: Bytes::copy_from_slice(cross.certificate.der()),
        })
    };
    roots.filter(|it| it.kind == AuthorityKind::Root).filter_map(bridge).collect()
}

fn read_presents(sent: Vec<wire::PresentedBelow>) -> Result<BTreeMap<Digest, PresentedBelow>, ApiError> {
    if sent.len() > PRESENTS {
        let problem = format!("there are {}; the limit is {PRESENTS}", sent.len());
        return Err(ApiError::Invalid { field: "presents", problem });
    }
    let one = |it: wire::PresentedBelow| {
        let root = convert::read_digest("presents", &it.root_sha256)?;
        let until = Timestamp::from_unix(it.until.map_or(0, |it| it.seconds));
        Ok((root, PresentedBelow { count: it.count, until }))
    };
    sent.into_iter().map(one).collect()
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
        presents: read_presents(request.presents)?,
        presents_as_of: request.presents_as_of,
    })
}
