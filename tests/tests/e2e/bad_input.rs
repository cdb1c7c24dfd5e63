//! Bad input at the real door: every request of a table gets its stable code, alone and on a stream, and the server
//! goes on as if nothing had been.
//!
//! Laws: what is expected is said here, not asked of the product's own parsers; a refusal is one line without control
//! characters; the log has no panic (`server` sees to that). Not here: parsers alone (`rhizome_x509`, `tests/fuzz`),
//! what is no message at all (`bad_wire`), tokens, files and disks (`faults`).
//! Sources: ca/docs/attacks.md §1.4, §2 (5, 6, 7); SPIFFE-ID §2.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rhizome_proto::ca::v1 as ca;
use rhizome_proto::ca::v1::certificate_request::Csr;
use rhizome_proto::ca::v1::certificate_service_client::CertificateServiceClient;
use rhizome_proto::ca::v1::sign_certificates_response::Outcome;
use rhizome_x509::inspect;
use tonic::Code;
use tonic::transport::Channel;

use crate::bad_csr;
use crate::client::{Answer, attributes, identified, new_csr, runtime, sign, workload};
use crate::server::{Home, Server};
use crate::support::must;

/// What the node in these tests may have.
const WEB: &str = "spiffe://example.test/ns/default/sa/web";

/// A request and the code it must get; `None` is a certificate.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) request: ca::CertificateRequest,
    pub(crate) code: Option<&'static str>,
}

impl Case {
    pub(crate) fn new(
        name: impl Into<String>,
        request: ca::CertificateRequest,
        code: impl Into<Option<&'static str>>,
    ) -> Self {
        Self { name: name.into(), request, code: code.into() }
    }
}

/// A server, and a node that may vouch for the namespace `default`.
fn served() -> (Server, PathBuf) {
    let server = Home::new("limits: { per_identity_per_second: 1000000 }\n").serve();
    let node = server.join_node("n1");
    (server, node)
}

/// The server issues, its ledger holds, and nothing is wrong with it.
fn goes_on(server: &Server, node: &Path) {
    let out = server.scratch().join("afterwards");
    must(&mut server.request_certificate(node, "web", &out));
    must(&mut server.admin(&["ledger", "verify"]));
    must(&mut server.admin(&["check"]));
}

/// Puts every case to the server in a call of its own and again on one stream, and compares with the table.
async fn judge(channel: &Channel, cases: &[Case]) -> BTreeMap<String, ca::IssuedCertificate> {
    let streamed = streamed(channel, cases).await;
    let mut wrong = Vec::new();
    let mut issued = BTreeMap::new();
    for (case, streamed) in cases.iter().zip(streamed) {
        let alone = sign(channel, case.request.clone()).await;
        for (how, answer) in [("alone", alone), ("on a stream", streamed)] {
            if let Some(fault) = fault_of(case, &answer) {
                wrong.push(format!("{} {how}: {fault}", case.name));
            }
            if let Ok(certificate) = answer {
                issued.insert(case.name.clone(), certificate);
            }
        }
    }
    assert_eq!(wrong, [""; 0], "{} of {} cases", wrong.len(), cases.len());
    println!("{} requests, alone and on a stream: {} issued", cases.len(), issued.len());
    issued
}

fn fault_of(case: &Case, answer: &Answer<ca::IssuedCertificate>) -> Option<String> {
    match (answer, case.code) {
        (Ok(issued), None) => {
            let facts = inspect(&issued.chain_der[0]).unwrap();
            let granted = facts.uris.len() == 1 && facts.dns_names.is_empty() && !facts.is_ca;
            (!granted || !facts.subject.is_empty()).then(|| format!("got more than an identity: {facts:?}"))
        }
        (Ok(_), Some(code)) => Some(format!("was issued, not refused with {code}")),
        (Err(refusal), None) => Some(format!("{refusal:?}")),
        (Err(refusal), Some(code)) => {
            let caller_fault = [Code::InvalidArgument, Code::PermissionDenied, Code::AlreadyExists];
            let plain = !refusal.message.is_empty() && !refusal.message.contains(char::is_control);
            let right = refusal.code == code
                && caller_fault.contains(&refusal.grpc)
                && refusal.retry_after_ms.is_none()
                && plain
                && refusal.message.len() <= 1024;
            (!right).then(|| format!("{refusal:?}, not {code}"))
        }
    }
}

async fn streamed(channel: &Channel, cases: &[Case]) -> Vec<Answer<ca::IssuedCertificate>> {
    let request = |(correlation, case): (u64, &Case)| {
        let certificate = Some(case.request.clone());
        ca::SignCertificatesRequest { correlation, certificate }
    };
    let requests: Vec<_> = (0..).zip(cases).map(request).collect();
    let mut client = CertificateServiceClient::new(channel.clone());
    let mut stream = client.sign_certificates(tokio_stream::iter(requests)).await.unwrap().into_inner();
    let mut answers = BTreeMap::new();
    while let Some(answer) = stream.message().await.unwrap() {
        let outcome = match answer.outcome.unwrap() {
            Outcome::Issued(issued) => Ok(issued),
            Outcome::Problem(problem) => Err(problem.into()),
        };
        assert!(answers.insert(answer.correlation, outcome).is_none(), "answered twice");
    }
    assert_eq!(answers.len(), cases.len(), "every item is answered");
    answers.into_values().collect()
}

#[test]
fn bad_requests_for_certification_get_their_codes_and_extra_names_get_nothing() {
    let (server, node) = served();
    runtime().block_on(async {
        let channel = identified(&server, &node).await;
        for (name, issued) in judge(&channel, &bad_csr::cases()).await {
            let facts = inspect(&issued.chain_der[0]).unwrap();
            assert_eq!(facts.uris, [WEB], "{name}");
        }
    });
    goes_on(&server, &node);
}

fn asking(change: impl FnOnce(&mut ca::CertificateRequest)) -> ca::CertificateRequest {
    let mut request = workload(new_csr());
    change(&mut request);
    request
}

fn stating(more: &[(&str, &str)]) -> ca::CertificateRequest {
    asking(|request| request.attributes.extend(attributes(more)))
}

fn about_attributes() -> Vec<Case> {
    let invalid = "invalid_argument";
    let labels = |count: usize| {
        asking(|request| {
            let label = |at| ca::Attribute { name: format!("label.l{at}"), value: "x".to_owned() };
            request.attributes.extend((0..count).map(label));
        })
    };
    let only = |pairs: &[(&str, &str)]| asking(|request| request.attributes = attributes(pairs));
    let long = "x".repeat(257);
    let long_label = format!("label.{}", "x".repeat(318));
    let mut cases = vec![
        Case::new("an unknown attribute", stating(&[("color", "red")]), invalid),
        Case::new("an attribute without a name", stating(&[("", "red")]), invalid),
        Case::new("an attribute in capitals", stating(&[("Namespace", "default")]), invalid),
        Case::new("a label without a key", stating(&[("label.", "x")]), invalid),
        Case::new("a label with a space", stating(&[("label.a b", "x")]), invalid),
        Case::new("a label key too long", stating(&[(&long_label, "x")]), invalid),
        Case::new("a value that is empty", stating(&[("pod", "")]), invalid),
        Case::new("a value of 257 bytes", stating(&[("pod", &long)]), invalid),
        Case::new("a value of 256 bytes", stating(&[("pod", &long[1..])]), None),
        Case::new("65 attributes", labels(63), invalid),
        Case::new("64 attributes", labels(62), None),
        Case::new("an attribute twice", stating(&[("service_account", "web")]), None),
        Case::new("two accounts", stating(&[("service_account", "db")]), "template"),
        Case::new("two namespaces", stating(&[("namespace", "kube-system")]), "out_of_scope"),
        Case::new("no attributes", only(&[]), "no_rule"),
        Case::new("no account", only(&[("namespace", "default")]), "no_rule"),
        Case::new(
            "another namespace",
            only(&[("namespace", "kube-system"), ("service_account", "web")]),
            "out_of_scope",
        ),
    ];
    for name in ["platform", "cluster", "node", "method"] {
        for value in ["dev", "n1", "join_token", "other"] {
            let case = format!("the node states its {name}: {value}");
            cases.push(Case::new(case, stating(&[(name, value)]), "out_of_scope"));
        }
    }
    cases
}

fn about_wishes() -> Vec<Case> {
    let (invalid, names) = ("invalid_argument", "dns_not_granted");
    let ttl = |seconds| asking(|request| request.ttl_seconds = seconds);
    let wishing = |id: &str| asking(|request| id.clone_into(&mut request.spiffe_id));
    let named = |name: &str| asking(|request| request.dns_names = vec![name.to_owned()]);
    let request_id = |id: &str| asking(|request| id.clone_into(&mut request.request_id));
    let longest = format!("spiffe://example.test/{}", "x".repeat(2048 - 22));
    vec![
        Case::new("ttl -1", ttl(-1), invalid),
        Case::new("ttl of the least integer", ttl(i64::MIN), invalid),
        Case::new("ttl of the greatest integer", ttl(i64::MAX), invalid),
        Case::new("ttl of 100 days", ttl(100 * 86_400), None),
        Case::new("ttl of a second", ttl(1), None),
        Case::new("the identity itself", wishing(WEB), None),
        Case::new("another account", wishing("spiffe://example.test/ns/default/sa/db"), "not_granted"),
        Case::new("another trust domain", wishing("spiffe://example.org/ns/default/sa/web"), "not_granted"),
        Case::new("the trust domain itself", wishing("spiffe://example.test"), "not_granted"),
        Case::new("a node", wishing("spiffe://example.test/rhizome/node/dev/join_token/n1"), "reserved"),
        Case::new("an administrator", wishing("spiffe://example.test/rhizome/admin/root"), "reserved"),
        Case::new("a path upwards", wishing("spiffe://example.test/ns/default/sa/x/../web"), invalid),
        Case::new("a slash at the end", wishing("spiffe://example.test/ns/default/sa/web/"), invalid),
        Case::new("an escaped letter", wishing("spiffe://example.test/ns/default/sa/%77eb"), invalid),
        Case::new("a port", wishing("spiffe://example.test:443/ns/default/sa/web"), invalid),
        Case::new("a user", wishing("spiffe://me@example.test/ns/default/sa/web"), invalid),
        Case::new("a query", wishing("spiffe://example.test/ns/default/sa/web?x"), invalid),
        Case::new("a scheme in capitals", wishing("SPIFFE://example.test/ns/default/sa/web"), invalid),
        Case::new("an ID of 2048 bytes", wishing(&longest), "not_granted"),
        Case::new("an ID of 2049 bytes", wishing(&format!("{longest}x")), invalid),
        Case::new("a name nobody granted", named("web.default.svc"), names),
        Case::new("a wildcard", named("*.example.test"), invalid),
        Case::new("a name in capitals", named("Web.example.test"), invalid),
        Case::new("a name with a NUL", named("web.example.test\0.evil.test"), invalid),
        Case::new("an address as a name", named("127.0.0.1"), invalid),
        Case::new("a name of 254 bytes", named(&["x".repeat(61).as_str(); 5].join(".")[..254]), invalid),
        Case::new("a request id of 129 bytes", request_id(&"x".repeat(129)), invalid),
        Case::new("a request id of two words", request_id("a b"), invalid),
        Case::new("a request id with a line end", request_id("a\nb"), invalid),
        Case::new("a request id that looks like an option", request_id("-a"), invalid),
    ]
}

#[test]
fn bad_attributes_and_wishes_get_their_codes() {
    let (server, node) = served();
    runtime().block_on(async {
        let channel = identified(&server, &node).await;
        judge(&channel, &about_attributes()).await;
        let issued = judge(&channel, &about_wishes()).await;
        let life = |name: &str| {
            let facts = inspect(&issued[name].chain_der[0]).unwrap();
            (facts.not_after.since(facts.not_before) + 1, issued[name].ttl_clamped)
        };
        let (longest, clamped) = life("ttl of 100 days");
        assert!(clamped && (86_400..=86_460).contains(&longest), "{longest}");
        assert!((1..=2).contains(&life("ttl of a second").0));
    });
    goes_on(&server, &node);
}

/// U+0000 to U+00FF: every byte below 0x80 alone, and characters that take two bytes.
fn odd_characters() -> impl Iterator<Item = char> {
    (0..=u8::MAX).map(char::from)
}

/// Where a character is put, and what it means there by SPIFFE-ID §2.2 and §2.3.
fn with_odd_characters() -> Vec<Case> {
    let segment = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let domain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-');
    let mut cases = Vec::new();
    for c in odd_characters() {
        let mut wish = |id: String, valid: bool| {
            let code = match (id == WEB, valid) {
                (true, _) => None,
                (false, true) => Some("not_granted"),
                (false, false) => Some("invalid_argument"),
            };
            let name = format!("the wish {id:?}");
            cases.push(Case::new(name, asking(|request| request.spiffe_id = id), code));
        };
        wish(format!("{c}spiffe://example.test/ns/default/sa/web"), false);
        wish(format!("spiffe:{c}//example.test/ns/default/sa/web"), false);
        wish(format!("spiffe://exa{c}mple.test/ns/default/sa/web"), domain(c) || c == '/');
        wish(format!("spiffe://example.test/ns/default/sa/w{c}b"), segment(c) || c == '/');
        wish(format!("spiffe://example.test/ns/default/sa/web{c}"), segment(c));
        let account = format!("w{c}b");
        let code = match c {
            _ if segment(c) => None,
            ' '..='~' => Some("template"),
            _ => Some("invalid_argument"),
        };
        let request = asking(|request| {
            request.attributes = attributes(&[("namespace", "default"), ("service_account", &account)])
        });
        cases.push(Case::new(format!("the account {account:?}"), request, code));
        let id = format!("r{c}-{}", u32::from(c));
        let code = if segment(c) { None } else { Some("invalid_argument") };
        let name = format!("the request id {id:?}");
        cases.push(Case::new(name, asking(|request| request.request_id = id), code));
    }
    cases
}

#[test]
fn every_odd_byte_in_an_identity_an_attribute_or_a_request_id_is_refused() {
    let (server, node) = served();
    runtime().block_on(async {
        let channel = identified(&server, &node).await;
        for (name, issued) in judge(&channel, &with_odd_characters()).await {
            let id = issued.spiffe_id;
            let account = id.strip_prefix("spiffe://example.test/ns/default/sa/").unwrap_or("/");
            assert!(!account.contains('/'), "{name}: {id}");
        }
    });
    goes_on(&server, &node);
}

#[test]
fn a_request_id_gives_one_certificate_to_one_key_and_none_to_another() {
    let (server, node) = served();
    runtime().block_on(async {
        let channel = identified(&server, &node).await;
        let named = |csr| ca::CertificateRequest { request_id: "deploy-7".to_owned(), ..workload(csr) };
        let csr = new_csr();
        let first = sign(&channel, named(csr.clone())).await.unwrap();
        // As a caller retries whose answer was lost: on the old connection and on a new one.
        let again = identified(&server, &node).await;
        for channel in [&channel, &again] {
            let retried = sign(channel, named(csr.clone())).await.unwrap();
            assert_eq!((&retried.serial, &retried.chain_der), (&first.serial, &first.chain_der));
        }
        judge(&channel, &[Case::new("another key", named(new_csr()), "request_id_reused")]).await;
        let neighbour = server.join_node("n2");
        let neighbour = identified(&server, &neighbour).await;
        let theirs = sign(&neighbour, named(new_csr())).await.unwrap();
        assert_ne!(theirs.serial, first.serial, "ids of one caller are nobody else's business");
        let pem = Csr::CsrPem(bad_csr::armoured("CERTIFICATE REQUEST", &csr));
        let in_pem = ca::CertificateRequest { csr: Some(pem), ..named(csr) };
        assert_eq!(sign(&channel, in_pem).await.unwrap().serial, first.serial);
    });
    goes_on(&server, &node);
}
