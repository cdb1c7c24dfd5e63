//! `rhizome cert request`: a key and a certificate for a workload, asked for by a node.
//!
//! Laws: the request id is made from the certification request, so that the same request gets the same answer; a key
//! leaves this process only into the directory or the output that was asked for. Not here: who may have what
//! (`rhizome explain` tells).

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use bytes::Bytes;
use clap::Args;
use rhizome_id::{SpiffeId, Timestamp, Ttl};
use rhizome_proto::ca::v1 as ca;
use rhizome_proto::ca::v1::certificate_request::Csr;
use rhizome_proto::ca::v1::certificate_service_client::CertificateServiceClient;
use rhizome_tls::IdentityDir;
use rhizome_x509::{KeyAlgorithm, RequestKey, create_csr};
use ring::digest::{SHA256, digest};
use serde_json::json;

use crate::exit::{Exit, Failure};
use crate::issued::{self, Issued};
use crate::output::{OutputFormat, View, details, instant_with_distance};
use crate::session::{Session, call, load_identity, patiently};
use crate::wire;

/// What the workload is, and what is wished for it.
#[derive(Args, Clone, Debug)]
pub struct RequestCertificate {
    #[command(flatten)]
    workload: Workload,

    /// A DNS name for the certificate; may be repeated
    #[arg(long = "dns", value_name = "NAME")]
    dns_names: Vec<String>,

    /// The directory to put key.pem, chain.pem, bundle.pem and trust-domain into [default: print them, but not to a terminal]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// A workload as it is attested, and the wishes that a decision takes into account.
#[derive(Args, Clone, Debug, Default)]
pub struct Workload {
    /// The workload's namespace
    #[arg(long, value_name = "NAME")]
    namespace: Option<String>,

    /// The workload's service account
    #[arg(long, value_name = "NAME")]
    service_account: Option<String>,

    /// A further attribute of the workload, such as unix.uid=1000 or label.app=web; may be repeated
    #[arg(long = "attr", value_name = "NAME=VALUE")]
    attributes: Vec<AttributeArgument>,

    /// The identity wished for, needed when the rules allow several
    #[arg(long, value_name = "ID")]
    pub(crate) spiffe_id: Option<SpiffeId>,

    /// The lifetime wished for, such as 15m or 24h [default: the rule's or the server's]
    #[arg(long, value_name = "LIFETIME")]
    pub(crate) ttl: Option<Ttl>,
}

impl Workload {
    /// The attributes as they go over the wire, in the order of the command line.
    pub(crate) fn attributes(&self) -> Vec<ca::Attribute> {
        let named = [("namespace", &self.namespace), ("service_account", &self.service_account)];
        let named = named.into_iter().filter_map(|(name, value)| {
            value.as_ref().map(|value| ca::Attribute { name: name.to_owned(), value: value.clone() })
        });
        let further = self
            .attributes
            .iter()
            .map(|argument| ca::Attribute { name: argument.name.clone(), value: argument.value.clone() });
        named.chain(further).collect()
    }
}

/// `NAME=VALUE` on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttributeArgument {
    name: String,
    value: String,
}

impl AttributeArgument {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn value(&self) -> &str {
        &self.value
    }
}

impl FromStr for AttributeArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('=') {
            Some((name, value)) if !name.is_empty() && !value.is_empty() => {
                Ok(Self { name: name.to_owned(), value: value.to_owned() })
            }
            Some(_) | None => Err("write NAME=VALUE, as in unix.uid=1000".to_owned()),
        }
    }
}

impl fmt::Display for AttributeArgument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.value)
    }
}

pub(crate) async fn run(wish: &RequestCertificate, session: &mut Session<'_, '_>) -> Result<Exit, Failure> {
    if wish.out.is_none() && session.terminal() {
        return Err(Failure::usage("a private key would be shown on the terminal")
            .hint("give --out DIR, or redirect"));
    }
    let domain = load_identity(session.identity_dir()?)?.bundle.trust_domain().clone();
    let channel = session.channel().await?;
    let (key, csr_der) = new_key()?;
    let request = ca::SignCertificateRequest {
        certificate: Some(ca::CertificateRequest {
            request_id: request_id(&csr_der),
            csr: Some(Csr::CsrDer(Bytes::from(csr_der))),
            attributes: wish.workload.attributes(),
            spiffe_id: wish.workload.spiffe_id.as_ref().map(SpiffeId::to_string).unwrap_or_default(),
            ttl_seconds: wish.workload.ttl.map_or(0, Ttl::seconds),
            dns_names: wish.dns_names.clone(),
        }),
    };
    let mut client = CertificateServiceClient::new(channel);
    let answer =
        patiently("Waiting for the certificate".to_owned(), client.sign_certificate(call(request))).await?;
    let sent = wire::promised(answer.into_inner().issued, "the certificate")?;
    let issued = Issued::check(sent, &key, &domain, None, session.now())?;

    match &wish.out {
        Some(directory) => {
            issued.save(&IdentityDir::new(directory))?;
            session.show(&summary(&issued, Some(directory), session.now())?)?;
        }
        None if session.options.output == OutputFormat::Json => {
            let pem = issued.to_pem();
            let json = json!({ "certificate": issued::row(&issued), "pem": pem.as_str() });
            session.show(&View::new(&json, String::new())?)?;
        }
        None => {
            session.write(issued.to_pem().as_bytes())?;
            session.remark(&format!("{} until {}", issued.spiffe_id, issued.not_after));
        }
    }
    if issued.ttl_clamped {
        session.remark("the lifetime is shorter than wished: the policy or an issuer's end limits it");
    }
    Ok(Exit::Done)
}

/// A new key with its certification request in DER.
pub(crate) fn new_key() -> Result<(RequestKey, Vec<u8>), Failure> {
    let failed = |error: &dyn fmt::Display| Failure::new(Exit::Failed, "key", error.to_string());
    let key = RequestKey::generate(KeyAlgorithm::EcdsaP256).map_err(|error| failed(&error))?;
    let csr = create_csr(&key).map_err(|error| failed(&error))?;
    Ok((key, csr))
}

/// Unique to this request, and the same when it is repeated.
fn request_id(csr_der: &[u8]) -> String {
    let digits = hex::encode(digest(&SHA256, csr_der));
    format!("cli-{}", digits.get(..32).unwrap_or(&digits))
}

/// What was issued, field by field.
pub(crate) fn summary(issued: &Issued, directory: Option<&PathBuf>, now: Timestamp) -> Result<View, Failure> {
    let directory = directory.map(|path| path.display().to_string());
    let text = details([
        ("spiffe id", issued.spiffe_id.to_string()),
        ("serial", issued.serial.clone()),
        ("dns names", issued.dns_names.join(" ")),
        ("rule", issued.rule.clone().unwrap_or_default()),
        ("valid from", instant_with_distance(Some(issued.not_before), now)),
        ("valid until", instant_with_distance(Some(issued.not_after), now)),
        ("renew at", instant_with_distance(issued.renew_at, now)),
        ("written to", directory.clone().unwrap_or_default()),
    ]);
    View::new(&json!({ "certificate": issued::row(issued), "directory": directory }), text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_name_and_value() {
        let parsed: AttributeArgument = "label.app=a=b".parse().unwrap();
        assert_eq!((parsed.name.as_str(), parsed.value.as_str()), ("label.app", "a=b"));
        for bad in ["", "a", "=b", "a="] {
            assert!(bad.parse::<AttributeArgument>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_shorthands_are_attributes_like_any_other() {
        let workload = Workload {
            namespace: Some("shop".into()),
            service_account: Some("web".into()),
            attributes: vec!["unix.uid=1000".parse().unwrap()],
            ..Workload::default()
        };
        assert_eq!(
            wire::attributes(&workload.attributes()),
            "namespace=shop service_account=web unix.uid=1000"
        );
    }

    #[test]
    fn a_request_id_is_a_valid_name_and_the_same_for_the_same_request() {
        let id = request_id(b"csr");
        assert!(id.parse::<rhizome_id::RequestId>().is_ok(), "{id}");
        assert_eq!(id, request_id(b"csr"));
        assert_ne!(id, request_id(b"another"));
    }
}
