//! The CSR API: one certificate for one call, or many over one stream.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::StreamExt;
use rhizome_core::caller::AttestedCaller;
use rhizome_core::issuance::{IssuedLeaf, Recorded};
use rhizome_core::policy::Wish;
use rhizome_proto::ca::v1 as wire;
use rhizome_proto::ca::v1::certificate_service_server::CertificateService;
use rhizome_proto::ca::v1::sign_certificates_response::Outcome;
use tonic::{Request, Response, Streaming};

use super::{Api, convert};
use crate::error::ApiError;
use crate::gate;
use crate::issue::{Ask, Csr};
use crate::peer::PeerInfo;
use crate::status::{self, Answer, Outgoing};

/// Requests of one stream that are worked on at once; the next ones wait in the transport's window.
const PIPELINE: usize = 128;

#[tonic::async_trait]
impl CertificateService for Api {
    async fn sign_certificate(
        &self,
        request: Request<wire::SignCertificateRequest>,
    ) -> Answer<wire::SignCertificateResponse> {
        let caller = self.0.caller(&request)?;
        let leaf = self.sign(&caller, request.into_inner().certificate).await;
        let leaf = leaf.map_err(|error| self.0.count_refusal(error))?;
        let issued = convert::issued(&leaf, self.0.wire_bundle().as_deref().cloned());
        Ok(Response::new(wire::SignCertificateResponse { issued: Some(issued) }))
    }

    type SignCertificatesStream = Outgoing<wire::SignCertificatesResponse>;

    async fn sign_certificates(
        &self,
        request: Request<Streaming<wire::SignCertificatesRequest>>,
    ) -> Answer<Self::SignCertificatesStream> {
        let lane = Arc::new(Lane { api: self.clone(), peer: gate::peer(&request)?, told: AtomicU64::new(0) });
        // When the server stops, what has arrived is answered and nothing more is read.
        let stop = self.0.spawner.stopping().clone().cancelled_owned();
        let answers = request.into_inner().take_until(stop).map(move |item| {
            let lane = Arc::clone(&lane);
            async move {
                let item = item?;
                let outcome = match lane.sign(item.certificate).await {
                    // Who is nobody any more gets no further answers, not even refusals.
                    Err(error @ ApiError::Auth(_)) => return Err(error.into()),
                    Ok(issued) => Outcome::Issued(issued),
                    Err(error) => Outcome::Problem(status::problem(&lane.api.0.count_refusal(error))),
                };
                Ok(wire::SignCertificatesResponse { correlation: item.correlation, outcome: Some(outcome) })
            }
        });
        Ok(Response::new(Box::pin(answers.buffer_unordered(PIPELINE))))
    }
}

/// One stream of requests.
struct Lane {
    api: Api,
    peer: PeerInfo,
    /// Sequence of the bundle that went out last: it is sent again only when it changes.
    told: AtomicU64,
}

impl Lane {
    async fn sign(
        &self,
        request: Option<wire::CertificateRequest>,
    ) -> Result<wire::IssuedCertificate, ApiError> {
        let caller = self.api.0.authenticate(&self.peer)?;
        let leaf = self.api.sign(&caller, request).await?;
        let bundle = self.api.0.wire_bundle();
        let is_news = |it: &&wire::Bundle| self.told.swap(it.sequence, Ordering::Relaxed) != it.sequence;
        Ok(convert::issued(&leaf, bundle.as_deref().filter(is_news).cloned()))
    }
}

impl Api {
    async fn sign(
        &self,
        caller: &AttestedCaller,
        request: Option<wire::CertificateRequest>,
    ) -> Result<Arc<Recorded<IssuedLeaf>>, ApiError> {
        let missing = |field: &'static str| ApiError::Invalid { field, problem: "it is missing".to_owned() };
        let request = request.ok_or_else(|| missing("certificate"))?;
        let wish = Wish::Workload {
            attributes: convert::read_attributes(&request.attributes)?,
            spiffe_id: convert::read_spiffe_id(&request.spiffe_id)?,
            ttl: convert::read_ttl("ttl_seconds", request.ttl_seconds)?,
            dns_names: convert::read_dns_names(&request.dns_names)?,
        };
        let csr = match request.csr.as_ref().ok_or_else(|| missing("csr"))? {
            wire::certificate_request::Csr::CsrDer(der) => Csr::Der(der),
            wire::certificate_request::Csr::CsrPem(pem) => Csr::Pem(pem),
        };
        let request = convert::read_optional("request_id", &request.request_id)?;
        match self.0.issue(caller, Ask { csr, wish, request }).await {
            Ok(leaf) => Ok(leaf),
            Err(error) => {
                let error = ApiError::from(error);
                let public = status::public(&error);
                // What the server could not do is no refusal of the caller.
                if public.retry_after.is_none() && public.code != "internal" {
                    self.0.note_refusal(caller, "certificate.sign", public.code, &error.to_string());
                }
                Err(error)
            }
        }
    }
}
