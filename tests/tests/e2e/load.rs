//! Load: callers of every kind that ask without pause until their server is gone, and a witness of what they got.
//!
//! Laws: what the witness notes was received whole by a caller; a refusal is a fault, except once the server is known
//! to be dying. Not here: figures (`tests/bench`).

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use rhizome_proto::ca::v1 as ca;
use rhizome_proto::ca::v1::certificate_service_client::CertificateServiceClient;
use rhizome_proto::ca::v1::sign_certificates_response::Outcome;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::client::{Refusal, Seen, anonymous, attest, identified, local, new_csr, sign, token, workload};
use crate::server::Server;

/// Callers with a stream of their own, and requests each has on its way.
const STREAMS: usize = 3;
const IN_FLIGHT: usize = 16;
/// Requests of the caller with single calls.
const SINGLE: usize = 8;
/// Distinct keys that the requests take turns with.
const KEYS: usize = 16;

/// What all callers have seen.
#[derive(Default)]
pub(crate) struct Witness {
    seen: Mutex<Vec<Seen>>,
    faults: Mutex<Vec<String>>,
    dying: AtomicBool,
    /// Certificates received, counted before they are looked at.
    received: AtomicUsize,
    alarm: Mutex<Option<Alarm>>,
    joins: AtomicUsize,
    /// The token of a join without an answer so far, and the request it went with.
    pending: Mutex<Option<(String, Bytes)>>,
}

/// What happens when that many certificates were received; the sender tells that it has happened.
struct Alarm {
    at: usize,
    doing: Box<dyn FnOnce() + Send>,
    done: Sender<()>,
}

impl Witness {
    /// Does `doing` on the spot, in the caller that receives the certificate number `count` from now on, before that
    /// caller does anything else; tells when it is done.
    pub(crate) fn after(&self, count: usize, doing: impl FnOnce() + Send + 'static) -> Receiver<()> {
        let (done, receiver) = channel();
        let at = self.received.load(Ordering::SeqCst) + count;
        *self.alarm.lock().unwrap() = Some(Alarm { at, doing: Box::new(doing), done });
        receiver
    }

    /// From here on the server may answer or not.
    pub(crate) fn server_is_dying(&self, dying: bool) {
        self.dying.store(dying, Ordering::SeqCst);
    }

    /// Everything that was received.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// Nodes that joined.
    pub(crate) fn joins(&self) -> usize {
        self.joins.load(Ordering::SeqCst)
    }

    /// Refusals by a server that was well.
    pub(crate) fn faults(&self) -> Vec<String> {
        self.faults.lock().unwrap().clone()
    }

    fn note(&self, issued: &ca::IssuedCertificate) {
        let count = self.received.fetch_add(1, Ordering::SeqCst) + 1;
        let alarm = self.alarm.lock().unwrap().take_if(|alarm| count >= alarm.at);
        if let Some(Alarm { doing, done, .. }) = alarm {
            doing();
            done.send(()).unwrap_or_default();
        }
        self.seen.lock().unwrap().push(Seen::of(issued));
    }

    fn refused(&self, who: &str, refusal: &Refusal) {
        if !self.dying.load(Ordering::SeqCst) {
            self.faults.lock().unwrap().push(format!("{who}: {refusal:?}"));
        }
    }
}

/// Callers at work. They end when their server is gone.
pub(crate) struct Load {
    tasks: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts all callers, with the identity of the node in `directory`.
    pub(crate) fn start(
        runtime: &Runtime,
        server: &Server,
        directory: &Path,
        witness: &Arc<Witness>,
    ) -> Self {
        let requests: Arc<Vec<_>> = Arc::new((0..KEYS).map(|_| workload(new_csr())).collect());
        let mut tasks = Vec::new();
        for _ in 0..STREAMS {
            let channel = runtime.block_on(identified(server, directory));
            tasks.push(runtime.spawn(stream(channel, Arc::clone(&requests), Arc::clone(witness))));
        }
        let channel = runtime.block_on(identified(server, directory));
        tasks.push(runtime.spawn(single_calls(channel, requests, Arc::clone(witness))));
        let (door, administrator) =
            runtime.block_on(async { (anonymous(server).await, local(server).await) });
        tasks.push(runtime.spawn(join_without_pause(door, administrator, Arc::clone(witness))));
        Self { tasks }
    }

    /// Waits until every caller has noticed that the server is gone.
    pub(crate) fn end(self, runtime: &Runtime) {
        for task in self.tasks {
            runtime.block_on(task).unwrap();
        }
    }
}

async fn stream(channel: Channel, requests: Arc<Vec<ca::CertificateRequest>>, witness: Arc<Witness>) {
    let (sender, outgoing) = tokio::sync::mpsc::channel(IN_FLIGHT);
    let mut correlations = 0_u64..;
    let mut next = || {
        let correlation = correlations.next().unwrap();
        let turn = usize::try_from(correlation).unwrap() % requests.len();
        ca::SignCertificatesRequest { correlation, certificate: Some(requests[turn].clone()) }
    };
    for _ in 0..IN_FLIGHT {
        sender.send(next()).await.unwrap();
    }
    let opened =
        CertificateServiceClient::new(channel).sign_certificates(ReceiverStream::new(outgoing)).await;
    let mut answers = match opened {
        Ok(answers) => answers.into_inner(),
        Err(status) => return witness.refused("a stream", &status.into()),
    };
    loop {
        match answers.message().await {
            Ok(Some(ca::SignCertificatesResponse { outcome: Some(Outcome::Issued(issued)), .. })) => {
                witness.note(&issued);
            }
            Ok(Some(ca::SignCertificatesResponse { outcome: Some(Outcome::Problem(problem)), .. })) => {
                witness.refused("an item of a stream", &problem.into());
            }
            Ok(other) => panic!("an answer without an outcome, or an end: {other:?}"),
            Err(status) => return witness.refused("a stream", &status.into()),
        }
        if sender.send(next()).await.is_err() {
            return;
        }
    }
}

async fn single_calls(channel: Channel, requests: Arc<Vec<ca::CertificateRequest>>, witness: Arc<Witness>) {
    let mut calls: FuturesUnordered<_> =
        requests.iter().cycle().take(SINGLE).map(|request| sign(&channel, request.clone())).collect();
    let mut turns = requests.iter().cycle();
    while let Some(answer) = calls.next().await {
        match answer {
            Ok(issued) => witness.note(&issued),
            Err(refusal) => return witness.refused("a call", &refusal),
        }
        calls.push(sign(&channel, turns.next().unwrap().clone()));
    }
}

/// A node after the other. A join that had no answer is repeated with the same key before anything else, and must
/// succeed: its token was either consumed by that key or not at all.
async fn join_without_pause(door: Channel, administrator: Channel, witness: Arc<Witness>) {
    loop {
        let unanswered = witness.pending.lock().unwrap().clone();
        let (secret, csr) = match unanswered {
            Some(again) => again,
            None => {
                let name = format!("joined-{}", witness.joins());
                match token(&administrator, &name, 0).await {
                    Ok(secret) => (secret, new_csr()),
                    Err(refusal) => return witness.refused("a new token", &refusal),
                }
            }
        };
        *witness.pending.lock().unwrap() = Some((secret.clone(), csr.clone()));
        match attest(&door, &secret, csr).await {
            Ok(issued) => witness.note(&issued),
            Err(refusal) => return witness.refused("a join", &refusal),
        }
        *witness.pending.lock().unwrap() = None;
        witness.joins.fetch_add(1, Ordering::SeqCst);
    }
}
