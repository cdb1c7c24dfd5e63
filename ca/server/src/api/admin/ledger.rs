//! The ledger as administrators read it: its head, its records, and the walk that verifies all of it.

use std::sync::Arc;

use prost_types::Timestamp as WireTimestamp;
use rhizome_core::ledger::{Event, Fault, FaultKind, Head, Position, Record, Verifier};
use rhizome_id::Digest;
use rhizome_proto::admin::v1 as wire;
use rhizome_proto::admin::v1::ledger_service_server::LedgerService;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response};

use crate::api::{Api, convert};
use crate::ca::Ca;
use crate::error::ApiError;
use crate::status::{Answer, Broken, Outgoing};

/// Records verified between two signs of progress.
const PAGE: usize = 2_000;
/// Records of one listing.
const MOST_LISTED: usize = 1_000;
/// Records looked at for one listing that asks for certain kinds.
const LOOKED_AT: usize = 100_000;

#[tonic::async_trait]
impl LedgerService for Api {
    async fn get_head(&self, request: Request<wire::GetHeadRequest>) -> Answer<wire::GetHeadResponse> {
        self.0.caller(&request)?;
        let head = Some(self.0.ledger_head().await?);
        Ok(Response::new(wire::GetHeadResponse { head }))
    }

    type VerifyLedgerStream = Outgoing<wire::VerifyLedgerResponse>;

    async fn verify_ledger(
        &self,
        request: Request<wire::VerifyLedgerRequest>,
    ) -> Answer<Self::VerifyLedgerStream> {
        self.0.caller(&request)?;
        let expected = request.into_inner().expected_head.as_ref().map(read_head).transpose()?;
        let (progress, outgoing) = mpsc::channel(4);
        let ca = Arc::clone(&self.0);
        self.0.spawner.spawn_until_stop("verify ledger", async move {
            if let Err(error) = ca.walk(expected, &progress).await {
                drop(progress.send(Err(error.into())).await);
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }

    async fn list_entries(
        &self,
        request: Request<wire::ListEntriesRequest>,
    ) -> Answer<wire::ListEntriesResponse> {
        self.0.caller(&request)?;
        let request = request.into_inner();
        let limit = super::page_size(request.limit).min(MOST_LISTED);
        let mut from = request.from_sequence.max(1);
        let (mut entries, mut looked_at) = (Vec::new(), 0);
        loop {
            let page =
                self.0.ports.store.records(Position(from), MOST_LISTED).await.map_err(ApiError::from)?;
            let Some(last) = page.last().map(|record| record.position.0) else { break };
            looked_at += page.len();
            for record in &page {
                let (at, event) = record.read().map_err(|fault| ApiError::Bug(fault.to_string()))?;
                from = record.position.0.saturating_add(1);
                if request.kinds.is_empty() || request.kinds.iter().any(|kind| kind == event.name()) {
                    entries.push(entry(record, convert::timestamp(at), &event));
                }
                if entries.len() == limit {
                    return Ok(Response::new(wire::ListEntriesResponse { entries, next_sequence: from }));
                }
            }
            from = last.saturating_add(1);
            if looked_at >= LOOKED_AT {
                return Ok(Response::new(wire::ListEntriesResponse { entries, next_sequence: from }));
            }
        }
        Ok(Response::new(wire::ListEntriesResponse { entries, next_sequence: 0 }))
    }
}

type Progress = mpsc::Sender<Result<wire::VerifyLedgerResponse, Broken>>;

impl Ca {
    pub(super) async fn ledger_head(&self) -> Result<wire::LedgerHead, ApiError> {
        let head = self.ports.store.head().await?;
        let last = self.ports.store.records(head.position, 1).await?;
        let at = last.first().and_then(|record| record.read().ok()).map(|(at, _)| convert::timestamp(at));
        Ok(wire_head(head, at))
    }

    /// Walks the ledger as it stands at the beginning; records that arrive meanwhile are for the next walk.
    async fn walk(&self, expected: Option<Head>, progress: &Progress) -> Result<(), ApiError> {
        let head = self.ports.store.head().await?;
        let total = head.position.0;
        let mut verifier = Verifier::default();
        let mut fault = None;
        while fault.is_none() && verifier.head().position.0 < total {
            let from = verifier.head().position.0.saturating_add(1);
            let left = usize::try_from(total.saturating_sub(from).saturating_add(1)).unwrap_or(PAGE);
            let page = self.ports.store.records(Position(from), PAGE.min(left)).await?;
            if page.is_empty() {
                break;
            }
            // Hashing and reading a page takes milliseconds; not on a thread that serves.
            let checked = tokio::task::spawn_blocking(move || check_page(verifier, &page, expected)).await;
            let found;
            (verifier, found) = checked.map_err(|cause| ApiError::Bug(cause.to_string()))?;
            fault = found;
            let update = wire::VerifyLedgerResponse {
                checked: verifier.head().position.0,
                total,
                ..Default::default()
            };
            if progress.send(Ok(update)).await.is_err() {
                return Ok(());
            }
        }
        let reached = verifier.head();
        let fault = fault.or_else(|| verifier.finish(head).err()).or_else(|| beyond(expected, reached));
        let done = wire::VerifyLedgerResponse {
            checked: reached.position.0,
            total,
            done: true,
            fault: fault.map(|it| it.to_string()).unwrap_or_default(),
            head: Some(wire_head(reached, None)),
        };
        drop(progress.send(Ok(done)).await);
        Ok(())
    }
}

fn check_page(mut verifier: Verifier, page: &[Record], expected: Option<Head>) -> (Verifier, Option<Fault>) {
    for record in page {
        if let Err(fault) = verifier.check(record) {
            return (verifier, Some(fault));
        }
        if let Some(expected) = expected
            && expected.position == record.position
            && expected.hash != record.hash
        {
            let kind = FaultKind::Rewritten { kept: expected.hash };
            return (verifier, Some(Fault { at: record.position, kind }));
        }
    }
    (verifier, None)
}

/// A fault when the head that the administrator kept lies beyond the end.
fn beyond(expected: Option<Head>, reached: Head) -> Option<Fault> {
    let expected = expected.filter(|it| it.position > reached.position)?;
    let kind = FaultKind::WrongHead { expected: expected.position.0, hash: expected.hash };
    Some(Fault { at: reached.position, kind })
}

fn read_head(head: &wire::LedgerHead) -> Result<Head, ApiError> {
    let hash: Digest = convert::read_digest("expected_head.digest", &head.digest)?;
    Ok(Head { position: Position(head.sequence), hash })
}

fn wire_head(head: Head, recorded_at: Option<WireTimestamp>) -> wire::LedgerHead {
    wire::LedgerHead { sequence: head.position.0, digest: convert::digest(&head.hash), recorded_at }
}

fn entry(record: &Record, at: WireTimestamp, event: &Event) -> wire::LedgerEntry {
    let actor = match event {
        Event::Issued(issuance) => issuance.caller.clone(),
        Event::JwtIssued(issuance) => issuance.caller.clone(),
        Event::Changed { by, .. } | Event::Refused { by, .. } => by.clone(),
        Event::SigningFailed { .. } => "server".to_owned(),
    };
    wire::LedgerEntry {
        sequence: record.position.0,
        recorded_at: Some(at),
        kind: event.name().to_owned(),
        actor,
        body_json: record.body.to_string(),
        digest: convert::digest(&record.hash),
        previous_digest: convert::digest(&record.previous),
    }
}

#[cfg(test)]
mod tests {
    use rhizome_core::ledger::Entry;
    use rhizome_id::Timestamp;

    use super::*;

    fn records(count: usize) -> Vec<Record> {
        let event = Event::Changed {
            by: "server:r1".to_owned(),
            action: "rule.put".to_owned(),
            subject: "web".to_owned(),
            detail: String::new(),
        };
        let mut head = Head::EMPTY;
        let mut next = || {
            let record = head.link(&Entry::new(Timestamp::EPOCH, &event));
            head = record.head();
            record
        };
        (0..count).map(|_| next()).collect()
    }

    #[test]
    fn a_head_that_was_kept_tells_a_rewritten_ledger_from_one_that_was_cut_off() {
        let records = records(3);
        let kept = |position, hash| Some(Head { position: Position(position), hash });
        let check = |expected| check_page(Verifier::default(), &records, expected).1;
        assert_eq!(check(Some(records[1].head())), None);

        let fault = check(kept(2, records[2].hash)).unwrap();
        assert_eq!(fault, Fault { at: Position(2), kind: FaultKind::Rewritten { kept: records[2].hash } });
        assert!(fault.to_string().contains("rewritten") && !fault.to_string().contains("cut off"), "{fault}");

        let fault = beyond(kept(4, records[2].hash), records[2].head()).unwrap();
        assert!(fault.to_string().contains("cut off"), "{fault}");
        assert_eq!(beyond(kept(3, records[2].hash), records[2].head()), None);
    }
}
