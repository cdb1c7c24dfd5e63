//! Load: many certificates over kept connections, one call each or over streams, as fast as they go or at a pace.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt as _;
use rhizome_proto::ca::v1::certificate_request::Csr;
use rhizome_proto::ca::v1::certificate_service_client::CertificateServiceClient;
use rhizome_proto::ca::v1::sign_certificates_response::Outcome as Answer;
use rhizome_proto::ca::v1::{Attribute, CertificateRequest, SignCertificateRequest, SignCertificatesRequest};
use rhizome_x509::{KeyAlgorithm, RequestKey, create_csr};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::raw::Raw;
use crate::server::Server;

/// Distinct keys that the requests take turns with.
const KEYS: usize = 256;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Unary,
    Stream,
}

#[derive(Clone, Copy)]
pub(crate) struct Load {
    pub(crate) mode: Mode,
    pub(crate) connections: usize,
    pub(crate) in_flight: usize,
    /// Certificates a second over all connections; `None` is as fast as they go.
    pub(crate) pace: Option<f64>,
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = if self.mode == Mode::Unary { "unary" } else { "stream" };
        write!(f, "{mode}, {} connections × {} in flight", self.connections, self.in_flight)
    }
}

pub(crate) struct Outcome {
    load: Load,
    pub(crate) per_second: f64,
    /// Server CPU, µs.
    pub(crate) cpu_per_certificate: f64,
    latencies: Vec<Duration>,
}

impl Outcome {
    pub(crate) fn print(&self, raw: &Raw) {
        let at = |share: f64| {
            let count = self.latencies.len();
            let index = ((count as f64 * share) as usize).min(count.saturating_sub(1));
            self.latencies.get(index).copied().unwrap_or_default().as_secs_f64() * 1e3
        };
        println!(
            "{:<36} {:>7.0} certificates/s, server CPU {:>6.1} µs each = {:.2} × raw, p50 {:.2} ms, p99 {:.2} ms",
            self.load.to_string(),
            self.per_second,
            self.cpu_per_certificate,
            self.cpu_per_certificate / raw.both(),
            at(0.50),
            at(0.99),
        );
    }
}

impl Load {
    #[expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
    pub(crate) async fn run(self, server: &Server, time: Duration) -> Outcome {
        let csrs = Arc::new(csrs());
        let mut channels = Vec::new();
        for _ in 0..self.connections {
            channels.push(server.connect().await);
        }
        self.drive(&channels, &csrs, Duration::from_millis(500)).await;
        let (cpu, start) = (server.cpu_seconds(), Instant::now());
        let mut latencies = self.drive(&channels, &csrs, time).await;
        let (cpu, took) = (server.cpu_seconds() - cpu, start.elapsed());
        latencies.sort_unstable();
        let count = latencies.len() as f64;
        Outcome {
            load: self,
            per_second: count / took.as_secs_f64(),
            cpu_per_certificate: cpu * 1e6 / count,
            latencies,
        }
    }

    #[expect(clippy::disallowed_methods, reason = "a benchmark measures time, and its tasks end with it")]
    async fn drive(self, channels: &[Channel], csrs: &Arc<Vec<Bytes>>, time: Duration) -> Vec<Duration> {
        let until = Instant::now() + time;
        let next = Arc::new(AtomicUsize::new(0));
        let mut tasks = Vec::new();
        for channel in channels {
            let client = CertificateServiceClient::new(channel.clone());
            let pick = Picker { csrs: Arc::clone(csrs), next: Arc::clone(&next) };
            match self.mode {
                Mode::Stream => tasks.push(tokio::spawn(stream(client, pick, self.in_flight, until))),
                Mode::Unary => {
                    let lanes = self.connections * self.in_flight;
                    let gap = self.pace.map(|pace| Duration::from_secs_f64(lanes as f64 / pace));
                    for lane in 0..self.in_flight {
                        let (client, pick) = (client.clone(), pick.clone());
                        let offset = gap.map(|gap| gap.mul_f64(lane as f64 / self.in_flight as f64));
                        tasks.push(tokio::spawn(unary(client, pick, gap.zip(offset), until)));
                    }
                }
            }
        }
        let mut latencies = Vec::new();
        for task in tasks {
            latencies.append(&mut task.await.expect("a task of the benchmark"));
        }
        latencies
    }
}

#[derive(Clone)]
struct Picker {
    csrs: Arc<Vec<Bytes>>,
    next: Arc<AtomicUsize>,
}

impl Picker {
    fn request(&self) -> CertificateRequest {
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.csrs.len();
        let attribute =
            |name: &str, value: &str| Attribute { name: name.to_owned(), value: value.to_owned() };
        CertificateRequest {
            csr: Some(Csr::CsrDer(self.csrs[turn].clone())),
            attributes: vec![attribute("namespace", "default"), attribute("service_account", "web")],
            ..CertificateRequest::default()
        }
    }
}

type Client = CertificateServiceClient<Channel>;

#[expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
async fn unary(
    mut client: Client,
    pick: Picker,
    pace: Option<(Duration, Duration)>,
    until: Instant,
) -> Vec<Duration> {
    let mut latencies = Vec::new();
    let mut due = Instant::now() + pace.map(|(_, offset)| offset).unwrap_or_default();
    loop {
        // With a pace, time counts from when the request was due, not from when its turn came.
        let start = match pace {
            Some((gap, _)) => {
                tokio::time::sleep_until(due.into()).await;
                let start = due;
                due += gap;
                start
            }
            None => Instant::now(),
        };
        if start >= until {
            return latencies;
        }
        let request = SignCertificateRequest { certificate: Some(pick.request()) };
        client.sign_certificate(request).await.expect("a certificate");
        latencies.push(start.elapsed());
    }
}

#[expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
async fn stream(mut client: Client, pick: Picker, in_flight: usize, until: Instant) -> Vec<Duration> {
    let (requests, outgoing) = mpsc::channel(in_flight);
    let mut started = std::collections::BTreeMap::new();
    let mut correlation = 0;
    let send = |correlation: u64| SignCertificatesRequest { correlation, certificate: Some(pick.request()) };
    for _ in 0..in_flight {
        started.insert(correlation, Instant::now());
        requests.send(send(correlation)).await.expect("an open stream");
        correlation += 1;
    }
    let answers = client.sign_certificates(ReceiverStream::new(outgoing)).await.expect("a stream");
    let mut answers = answers.into_inner();
    let mut latencies = Vec::new();
    let mut requests = Some(requests);
    while let Some(answer) = answers.next().await {
        let answer = answer.expect("an answer");
        assert!(matches!(answer.outcome, Some(Answer::Issued(_))), "refused: {:?}", answer.outcome);
        let start = started.remove(&answer.correlation).expect("an answer to a request");
        latencies.push(start.elapsed());
        if Instant::now() >= until {
            requests = None;
        } else if let Some(requests) = &requests {
            started.insert(correlation, Instant::now());
            requests.send(send(correlation)).await.expect("an open stream");
            correlation += 1;
        }
    }
    latencies
}

fn csrs() -> Vec<Bytes> {
    let csr = || {
        let key = RequestKey::generate(KeyAlgorithm::EcdsaP256).expect("a key");
        Bytes::from(create_csr(&key).expect("a CSR"))
    };
    (0..KEYS).map(|_| csr()).collect()
}

/// Opens `count` connections of a node, leaves them idle, and prints what each costs the server.
pub(crate) async fn memory_per_connection(server: &Server, count: usize) {
    let before = server.memory_mib();
    let mut open = Vec::new();
    for _ in 0..count {
        open.push(server.connect().await);
    }
    let after = server.memory_mib();
    println!("memory:            {before:.1} MiB, with {count} idle connections {after:.1} MiB");
    println!("each connection:   {:.1} KiB (target 48)", (after - before) * 1024.0 / count as f64);
}
