//! Certificates for workloads, asked for over one stream: many questions on their way at once, answered in any order.
//!
//! Laws: every certificate has its own key, made here; a question whose answer was lost is asked again with the same
//! key and the same request id, so that the authority gives the same answer; a failure of one identity is that
//! identity's alone. Not here: what to ask and when (`book`, `renewal`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rhizome_core::ports::{Clock, Entropy};
use rhizome_id::Timestamp;
use rhizome_proto::ca::v1 as ca;
use rhizome_proto::ca::v1::certificate_request::Csr;
use rhizome_proto::ca::v1::certificate_service_client::CertificateServiceClient;
use rhizome_proto::ca::v1::sign_certificates_response::Outcome;
use rhizome_x509::{KeyAlgorithm, RequestKey, create_csr};
use ring::digest::{SHA256, digest};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::book::{Failure, Offered};
use crate::cache::Cache;
use crate::renewal::Entitlement;
use crate::system::random;
use crate::wire::{self, Nonsense};

/// Questions on their way at once: as many as the server works on for one stream.
const IN_FLIGHT: usize = 128;
/// The longest sleep between two looks at the clock: a suspended machine or a stepped clock is noticed soon.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(10);
/// A stream on which questions stay unanswered for so long is given up: issuing takes milliseconds.
const STALLED: Duration = Duration::from_secs(60);
/// A lost question is repeated as it was for so long; later it is a new one, because the answer to the old one ages.
const REPEAT_SECONDS: i64 = 60;

/// Asks for what the book wants.
pub(crate) struct Fetcher {
    cache: Arc<Cache>,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    /// By correlation.
    asked: BTreeMap<u64, Question>,
    /// Lost with an earlier connection.
    lost: BTreeMap<Entitlement, Question>,
    correlation: u64,
}

struct Question {
    entitlement: Entitlement,
    key: RequestKey,
    request: ca::CertificateRequest,
    made_at: Timestamp,
}

impl Fetcher {
    pub(crate) fn new(cache: Arc<Cache>, clock: Arc<dyn Clock>, entropy: Arc<dyn Entropy>) -> Self {
        Self { cache, clock, entropy, asked: BTreeMap::new(), lost: BTreeMap::new(), correlation: 0 }
    }

    /// Asks over `channel` until it breaks; the status says how.
    pub(crate) async fn run(&mut self, channel: Channel) -> Status {
        // What an earlier connection left unanswered is not on its way any more.
        for (_, question) in std::mem::take(&mut self.asked) {
            self.cache.failed(&question.entitlement, Failure::Lost, 0);
            self.lost.insert(question.entitlement.clone(), question);
        }
        self.ask_forever(channel).await
    }

    async fn ask_forever(&mut self, channel: Channel) -> Status {
        let (questions, outgoing) = mpsc::channel(IN_FLIGHT);
        let opened =
            CertificateServiceClient::new(channel).sign_certificates(ReceiverStream::new(outgoing)).await;
        let mut answers = match opened {
            Ok(answers) => answers.into_inner(),
            Err(status) => return status,
        };
        let mut progress = Instant::now();
        loop {
            if self.asked.is_empty() {
                progress = Instant::now();
            }
            let plan = self.cache.plan(IN_FLIGHT.saturating_sub(self.asked.len()));
            for entitlement in plan.ask {
                if let Err(status) = self.ask(&entitlement, &questions) {
                    return status;
                }
            }
            let wait = plan.wake_at.map_or(LOOK_EVERY, |at| until(at, self.clock.now()));
            tokio::select! {
                answer = answers.message() => match answer {
                    Ok(Some(answer)) => {
                        progress = Instant::now();
                        self.answered(answer);
                    }
                    Ok(None) => return Status::unavailable("the server ended the stream"),
                    Err(status) => return status,
                },
                () = self.cache.planning() => {}
                () = tokio::time::sleep(wait) => {}
                () = tokio::time::sleep_until(progress + STALLED), if !self.asked.is_empty() => return Status::deadline_exceeded("no answer"),
            }
        }
    }

    fn ask(
        &mut self,
        entitlement: &Entitlement,
        questions: &mpsc::Sender<ca::SignCertificatesRequest>,
    ) -> Result<(), Status> {
        let Some(attributes) = self.cache.ask(entitlement) else { return Ok(()) };
        let now = self.clock.now();
        let repeated = self.lost.remove(entitlement).filter(|it| now.since(it.made_at) < REPEAT_SECONDS);
        let question = match repeated.map_or_else(|| new_question(entitlement, now), Ok) {
            Ok(mut question) => {
                question.request.attributes = wire::attributes(&attributes);
                question
            }
            Err(cause) => {
                tracing::error!(id = %entitlement.spiffe_id, %cause, "no key could be made");
                self.cache.failed(entitlement, Failure::Passing { wait: None }, random(&*self.entropy));
                return Ok(());
            }
        };
        self.correlation = self.correlation.wrapping_add(1);
        let certificate = Some(question.request.clone());
        let message = ca::SignCertificatesRequest { correlation: self.correlation, certificate };
        self.asked.insert(self.correlation, question);
        // There is room for every question that may be on its way.
        questions.try_send(message).map_err(|_closed| Status::unavailable("the stream was closed"))
    }

    fn answered(&mut self, answer: ca::SignCertificatesResponse) {
        let Some(question) = self.asked.remove(&answer.correlation) else {
            tracing::warn!(correlation = answer.correlation, "an answer that nobody asked for");
            return;
        };
        let entitlement = &question.entitlement;
        let failure = match answer.outcome {
            Some(Outcome::Issued(issued)) => match self.read(&issued, &question) {
                Ok(svid) => {
                    tracing::info!(id = %svid.spiffe_id, serial = svid.serial, not_after = %svid.not_after, "certificate issued");
                    return self.cache.issued(entitlement, svid);
                }
                Err(cause) => {
                    tracing::error!(id = %entitlement.spiffe_id, %cause, "a certificate is not to be used");
                    Failure::Passing { wait: None }
                }
            },
            Some(Outcome::Problem(problem)) => {
                let (id, code) = (&entitlement.spiffe_id, &problem.code);
                tracing::warn!(%id, code, message = problem.message, "no certificate was issued");
                of_problem(problem)
            }
            None => {
                tracing::error!(id = %entitlement.spiffe_id, "an answer without an outcome");
                Failure::Passing { wait: None }
            }
        };
        self.cache.failed(entitlement, failure, random(&*self.entropy));
    }

    fn read(
        &self,
        issued: &ca::IssuedCertificate,
        question: &Question,
    ) -> Result<Arc<crate::holdings::Svid>, Nonsense> {
        // It may be of an issuer that only the bundle beside it vouches for.
        if let Some(sent) = &issued.bundle {
            offer(&self.cache, sent)?;
        }
        let bundle =
            self.cache.bundle().ok_or_else(|| Nonsense::of("there is no bundle to verify it with"))?;
        wire::read_svid(issued, &question.key, &question.entitlement.spiffe_id, &bundle, self.clock.now())
    }
}

/// Offers a bundle that a server sent, and says in the log when it is refused. Whether it is in force.
pub(crate) fn offer(cache: &Cache, sent: &ca::Bundle) -> Result<Offered, Nonsense> {
    let bundle = wire::read_bundle(sent)?;
    let (sequence, digest, domain) = (bundle.sequence(), bundle.digest(), bundle.trust_domain().clone());
    let outcome = cache.offer(bundle);
    match outcome {
        Offered::InForce => tracing::info!(sequence, %digest, "a new bundle is in force"),
        Offered::Known => {}
        Offered::Lower { held } => {
            tracing::error!(
                sequence,
                held,
                "a bundle with a lower sequence was refused: the server's state went back"
            );
        }
        Offered::Conflict => {
            tracing::error!(sequence, %digest, "another bundle with the sequence of the one in force was refused");
        }
        Offered::Foreign => tracing::error!(%domain, "a bundle of another trust domain was refused"),
    }
    Ok(outcome)
}

fn of_problem(problem: ca::Problem) -> Failure {
    let denied = i32::try_from(problem.grpc_code).map(Code::from_i32) == Ok(Code::PermissionDenied);
    if denied {
        return Failure::Denied(problem.message);
    }
    // Rounded up: a moment too late is better than a moment too early.
    let wait = (problem.retry_after_ms > 0).then(|| problem.retry_after_ms.saturating_add(999) / 1000);
    Failure::Passing { wait }
}

fn new_question(entitlement: &Entitlement, now: Timestamp) -> Result<Question, rhizome_x509::RequestError> {
    let key = RequestKey::generate(KeyAlgorithm::EcdsaP256)?;
    let csr = create_csr(&key)?;
    let digits = hex::encode(digest(&SHA256, &csr));
    let request = ca::CertificateRequest {
        request_id: format!("agent-{}", digits.get(..32).unwrap_or(&digits)),
        csr: Some(Csr::CsrDer(Bytes::from(csr))),
        attributes: Vec::new(),
        spiffe_id: entitlement.spiffe_id.to_string(),
        ttl_seconds: 0,
        dns_names: entitlement.dns_names.iter().map(ToString::to_string).collect(),
    };
    Ok(Question { entitlement: entitlement.clone(), key, request, made_at: now })
}

/// How long to sleep until `at`, capped so that a clock that was set is noticed.
pub(crate) fn until(at: Timestamp, now: Timestamp) -> Duration {
    let seconds = u64::try_from(at.since(now)).unwrap_or(0);
    Duration::from_secs(seconds).clamp(Duration::from_millis(10), LOOK_EVERY)
}
