//! What a name stands for, and the bytes that Envoy gets for it.
//!
//! Laws: a name is served from the caller's own view and nothing else, so no name reaches another workload's identity.
//! A name that cannot be served says why and takes nothing from the others. Bundles of different trust domains are
//! never merged: only the SPIFFE validator, which keeps them apart, gets more than one. A version is derived from what
//! is public of a secret, so it is the same on every stream and after a restart.
//! Sources: Envoy `secret.proto`, `tls_spiffe_validator_config.proto`; spiffe/spire SDS v3 handler (names, forms).

use std::fmt;

use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
use envoy_types::pb::envoy::config::core::v3::{DataSource, TypedExtensionConfig};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::secret::Type;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::spiffe_cert_validator_config::TrustDomain as Domain;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, SpiffeCertValidatorConfig, TlsCertificate,
};
use envoy_types::pb::google::protobuf::Any;
use prost::Message as _;
use rhizome_id::{SpiffeId, TrustDomain};
use ring::digest::{Context, SHA256};
use zeroize::Zeroize as _;

use super::pem;
use crate::holdings::{NotYet, Svid, View};

/// The type of every resource of this service.
pub(super) const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
const VALIDATOR: &str = "envoy.tls.cert_validator.spiffe";
const VALIDATOR_CONFIG: &str =
    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig";
/// Bytes of a digest that make a version: enough that two states never meet by accident.
const VERSION_BYTES: usize = 8;

/// What the operator may choose about secrets.
#[derive(Clone, Debug)]
pub struct SdsSettings {
    /// The name of the first identity.
    pub default_name: String,
    /// The name of the roots to verify peers with.
    pub root_name: String,
    /// The name of the roots of every trust domain that the workload knows.
    pub all_name: String,
    /// What [`Self::root_name`] covers.
    pub root_covers: RootCovers,
    /// Whether every proxy gets plain roots instead of the SPIFFE validator. A proxy can ask for that itself.
    pub plain: bool,
}

/// What the name for roots covers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RootCovers {
    /// The agent's own trust domain.
    #[default]
    Own,
    /// The federated trust domains too, for proxies that know one name for roots only (Istio's). Not in plain form.
    All,
}

impl Default for SdsSettings {
    fn default() -> Self {
        Self {
            default_name: "default".to_owned(),
            root_name: "ROOTCA".to_owned(),
            all_name: "ALL".to_owned(),
            root_covers: RootCovers::Own,
            plain: false,
        }
    }
}

/// How a proxy wants its roots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Roots by trust domain, each used for its own IDs only.
    Spiffe,
    /// The roots of one trust domain.
    Plain,
}

/// One secret, ready to be sent. It may hold a private key, so it has no `Debug`.
#[derive(Clone)]
pub(super) struct Resource {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) body: Any,
}

/// Why a name is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Unserved {
    /// It is no name that this service knows.
    Unknown,
    /// It is an identity that the caller does not have.
    NotGranted,
    /// It is an identity of the caller, and its certificate has not come yet.
    OnItsWay,
    /// There is no bundle of that trust domain for the caller.
    NoBundle,
    /// Several trust domains in one list of roots.
    NotInPlainForm,
}

impl fmt::Display for Unserved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "not a name of this service",
            Self::NotGranted => "not an identity of this workload",
            Self::OnItsWay => "its certificate is on its way",
            Self::NoBundle => "no bundle of this trust domain",
            Self::NotInPlainForm => "several trust domains need the SPIFFE validator",
        })
    }
}

/// What can be served out of one view to one proxy.
#[derive(Clone, Copy)]
pub(super) struct Catalogue<'a> {
    pub(super) view: &'a View,
    pub(super) own: &'a TrustDomain,
    pub(super) settings: &'a SdsSettings,
    pub(super) form: Form,
}

impl Catalogue<'_> {
    /// The secret called `name`.
    pub(super) fn serve(&self, name: &str) -> Result<Resource, Unserved> {
        let settings = self.settings;
        if name == settings.default_name {
            return self.view.default_svid().map(|svid| certificate(name, svid)).ok_or(Unserved::OnItsWay);
        }
        if name == settings.root_name {
            let every = settings.root_covers == RootCovers::All && self.form == Form::Spiffe;
            return if every { self.every_root(name) } else { self.roots(name, self.own) };
        }
        if name == settings.all_name {
            return self.every_root(name);
        }
        let id: SpiffeId = name.parse().map_err(|_not_an_id| Unserved::Unknown)?;
        if id.path().is_empty() {
            return self.roots(name, &id.trust_domain());
        }
        self.view.svid(&id).map(|svid| certificate(name, svid)).map_err(|not_yet| match not_yet {
            NotYet::Starting => Unserved::OnItsWay,
            NotYet::Denied(_) => Unserved::NotGranted,
        })
    }

    /// Whether `name` is an identity that is on its way, and the caller has no other one meanwhile: then nothing is said
    /// of it, not even that it is gone.
    pub(super) fn keeps(&self, name: &str) -> bool {
        let awaited = |id: SpiffeId| self.view.awaited.identities.contains(&id);
        self.view.svids.is_empty() && (name == self.settings.default_name || name.parse().is_ok_and(awaited))
    }

    /// Everything there is, under its real names.
    pub(super) fn everything(&self) -> Vec<Resource> {
        let svids = self.view.svids.iter().map(|svid| certificate(svid.spiffe_id.as_str(), svid));
        let domains = self.view.bundles.keys();
        let roots = domains.filter_map(|domain| {
            let name = SpiffeId::of_trust_domain(domain);
            self.roots(name.as_str(), domain).ok()
        });
        svids.chain(roots).collect()
    }

    /// The roots of one trust domain.
    fn roots(&self, name: &str, domain: &TrustDomain) -> Result<Resource, Unserved> {
        let pem = self.root_pem(domain).ok_or(Unserved::NoBundle)?;
        Ok(match self.form {
            Form::Spiffe => {
                validation(name, self.with_crls(domain, spiffe_validator(vec![(domain.clone(), pem)])))
            }
            Form::Plain => {
                let context = CertificateValidationContext { trusted_ca: inline(pem), ..Default::default() };
                validation(name, self.with_crls(domain, context))
            }
        })
    }

    /// The roots of every trust domain of the view, sorted by name.
    fn every_root(&self, name: &str) -> Result<Resource, Unserved> {
        if self.form == Form::Plain {
            return Err(Unserved::NotInPlainForm);
        }
        let domains = self.view.bundles.keys();
        let roots: Vec<_> =
            domains.filter_map(|domain| Some((domain.clone(), self.root_pem(domain)?))).collect();
        if roots.is_empty() {
            return Err(Unserved::NoBundle);
        }
        Ok(validation(name, self.with_crls(self.own, spiffe_validator(roots))))
    }

    /// Adds the revocation lists, which are those of the own trust domain. Leaves only: our lists speak of leaves, and
    /// Envoy wants one of every CA of a chain otherwise. Its SPIFFE validator ignores the field
    /// (ca/docs/divergences.md).
    fn with_crls(
        &self,
        domain: &TrustDomain,
        context: CertificateValidationContext,
    ) -> CertificateValidationContext {
        if domain != self.own || self.view.crls.is_empty() {
            return context;
        }
        let mut pem = Vec::new();
        for der in self.view.crls.iter() {
            pem::append(&mut pem, pem::CRL, der);
        }
        CertificateValidationContext { crl: inline(pem), only_verify_leaf_cert_crl: true, ..context }
    }

    fn root_pem(&self, domain: &TrustDomain) -> Option<Vec<u8>> {
        let bundle = self.view.bundles.get(domain).filter(|bundle| !bundle.anchors().is_empty());
        bundle.map(|bundle| bundle.to_pem().into_bytes())
    }
}

fn certificate(name: &str, svid: &Svid) -> Resource {
    let (mut chain, mut key) = (Vec::new(), Vec::new());
    for der in &svid.chain_der {
        pem::append(&mut chain, pem::CERTIFICATE, der);
    }
    // The leaf names the key, so the chain alone tells versions apart and the version says nothing of the key.
    let version = version(&chain);
    pem::append(&mut key, pem::PRIVATE_KEY, &svid.key_pkcs8_der);
    let certificate =
        TlsCertificate { certificate_chain: inline(chain), private_key: inline(key), ..Default::default() };
    let mut secret = Secret { name: name.to_owned(), r#type: Some(Type::TlsCertificate(certificate)) };
    let body = any(SECRET, secret.encode_to_vec());
    wipe_key(&mut secret);
    Resource { name: name.to_owned(), version, body }
}

/// Wipes the copy that was only made to be encoded.
fn wipe_key(secret: &mut Secret) {
    if let Some(Type::TlsCertificate(certificate)) = &mut secret.r#type
        && let Some(DataSource { specifier: Some(Specifier::InlineBytes(key)), .. }) =
            &mut certificate.private_key
    {
        key.zeroize();
    }
}

fn validation(name: &str, context: CertificateValidationContext) -> Resource {
    let secret = Secret { name: name.to_owned(), r#type: Some(Type::ValidationContext(context)) };
    let bytes = secret.encode_to_vec();
    Resource { name: name.to_owned(), version: version(&bytes), body: any(SECRET, bytes) }
}

fn spiffe_validator(roots: Vec<(TrustDomain, Vec<u8>)>) -> CertificateValidationContext {
    let domain = |(name, pem): (TrustDomain, Vec<u8>)| Domain {
        name: name.as_str().to_owned(),
        trust_bundle: inline(pem),
        ..Default::default()
    };
    let config = SpiffeCertValidatorConfig {
        trust_domains: roots.into_iter().map(domain).collect(),
        ..Default::default()
    };
    let typed_config = Some(any(VALIDATOR_CONFIG, config.encode_to_vec()));
    CertificateValidationContext {
        custom_validator_config: Some(TypedExtensionConfig { name: VALIDATOR.to_owned(), typed_config }),
        ..Default::default()
    }
}

fn inline(bytes: Vec<u8>) -> Option<DataSource> {
    Some(DataSource { specifier: Some(Specifier::InlineBytes(bytes)), ..Default::default() })
}

fn any(type_url: &str, value: Vec<u8>) -> Any {
    Any { type_url: type_url.to_owned(), value }
}

fn version(public: &[u8]) -> String {
    let mut context = Context::new(&SHA256);
    context.update(public);
    let digest = context.finish();
    hex::encode(digest.as_ref().get(..VERSION_BYTES).unwrap_or_default())
}
