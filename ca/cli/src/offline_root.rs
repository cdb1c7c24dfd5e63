//! `rhizome root import` and `rhizome root ceremony`: the words for roots that come from elsewhere.
//!
//! Laws: everything is a dry run unless `--yes` is given. What they do needs the store and the keys themselves, with no
//! server running: the binary does it. Not here: doing it (`rhizome_server::offline`), what the papers say
//! (`rhizome_core::ceremony`).

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};
use rhizome_id::{KeyId, Ttl};

/// What is done to a root while no server runs.
#[derive(Subcommand, Clone, Debug)]
pub enum OfflineVerb {
    /// Take over a root or intermediate that was made elsewhere, before the first start; without --yes, only check it
    Import(ImportRoot),
    /// Keep the root's key on a machine without a network: request, sign there, import
    #[command(subcommand)]
    Ceremony(CeremonyVerb),
}

/// Which authority to take over.
#[derive(Args, Clone, Debug)]
pub struct ImportRoot {
    /// The configuration of the server that will have it
    #[arg(long, value_name = "FILE", default_value = crate::CONFIG, value_hint = ValueHint::FilePath)]
    pub config: PathBuf,

    /// Istio's directory of plug-in certificates: ca-cert.pem, ca-key.pem, cert-chain.pem, root-cert.pem
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, conflicts_with_all = ["cert", "key", "chain", "roots"])]
    pub cacerts: Option<PathBuf>,

    /// The authority's certificate, in PEM
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, required_unless_present = "cacerts")]
    pub cert: Option<PathBuf>,

    /// Its private key, in PEM and not encrypted; without it, the key stays where it is
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "key_name")]
    pub key: Option<PathBuf>,

    /// The name under which the key ring has its key already, such as one that was put into a PKCS#11 token
    #[arg(long, value_name = "NAME")]
    pub key_name: Option<KeyId>,

    /// Certificates between it and its root, in PEM
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub chain: Option<PathBuf>,

    /// The root that the mesh trusts already, in PEM [default: the certificate itself]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub roots: Option<PathBuf>,

    /// Do it; without this, only check it
    #[arg(long)]
    pub yes: bool,
}

/// Keep the root's key on a machine without a network
#[derive(Subcommand, Clone, Debug)]
pub enum CeremonyVerb {
    /// On the server, while it is stopped: write what it asks the root for
    Request(WriteRequest),
    /// On the machine with the root's key: sign one reviewed request; without --yes, show what would be signed
    Sign(SignRequest),
    /// On the server, while it is stopped: bring in what was signed; without --yes, show it
    Import(ImportAnswer),
}

/// What to ask for.
#[derive(Args, Clone, Debug)]
pub struct WriteRequest {
    /// The configuration of the server
    #[arg(long, value_name = "FILE", default_value = crate::CONFIG, value_hint = ValueHint::FilePath)]
    pub config: PathBuf,

    /// Ask for the root itself, which is made where it is signed, instead of an issuer
    #[arg(long)]
    pub root: bool,

    /// How long it is to live [default: what the configuration says under `authority`]
    #[arg(long, value_name = "TTL")]
    pub lifetime: Option<Ttl>,

    /// The file to write; it must not exist
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub out: PathBuf,

    /// Write a certificate request (PKCS#10, PEM) too, for a root whose CA is not Rhizome
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "root")]
    pub csr: Option<PathBuf>,
}

/// What to sign.
#[derive(Args, Clone, Debug)]
pub struct SignRequest {
    /// The configuration of this machine: the same trust domain, and where the root's key is
    #[arg(long, value_name = "FILE", default_value = crate::CONFIG, value_hint = ValueHint::FilePath)]
    pub config: PathBuf,

    /// The request
    #[arg(value_name = "REQUEST", value_hint = ValueHint::FilePath)]
    pub request: PathBuf,

    /// The file to write; it must not exist
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub out: PathBuf,

    /// Sign; without this, show what would be signed
    #[arg(long, requires = "sha256")]
    pub yes: bool,

    /// With --yes: the SHA-256 of the request, as it was shown and as the server's side told it
    #[arg(long, value_name = "HEX")]
    pub sha256: Option<String>,
}

/// What to bring in.
#[derive(Args, Clone, Debug)]
pub struct ImportAnswer {
    /// The configuration of the server
    #[arg(long, value_name = "FILE", default_value = crate::CONFIG, value_hint = ValueHint::FilePath)]
    pub config: PathBuf,

    /// What the machine with the root's key wrote; or the certificate that another CA made of --csr, in PEM
    #[arg(value_name = "ANSWER", value_hint = ValueHint::FilePath)]
    pub answer: PathBuf,

    /// Do it; without this, show it
    #[arg(long)]
    pub yes: bool,

    /// The SHA-256 of the certificate, as the machine that signed it told it; a root needs this with --yes
    #[arg(long, value_name = "HEX")]
    pub sha256: Option<String>,
}
