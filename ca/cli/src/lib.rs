//! Admin verbs over the admin API: tables for people, JSON for programs.
//!
//! Laws: one file for each noun; rules, revocation of certificates and rotation are dry runs unless `--yes` is given; results go to standard output, everything else to standard error; exit codes and JSON field
//! names are stable ([`EXIT_CODES_HELP`]); a secret is printed only by the verb that was asked for it.
//! Not here: verbs that need no server or are one (`server`, `dev`, `restore`, `completions`: the binary), deciding
//! anything (the server).
//! Sources: the admin API, `proto/rhizome/admin/v1`.

mod admin;
mod authority;
mod backup;
mod bundle;
mod cert;
mod check;
mod cluster;
mod exit;
mod explain;
mod federation;
mod files;
mod issued;
mod join;
mod ledger;
mod node;
mod offline_root;
mod output;
mod pem;
mod request;
mod root;
mod root_canary;
mod root_view;
mod rule;
mod rule_file;
mod session;
mod token;
mod wire;

use clap::Subcommand;

pub use admin::{AddAdmin, AdminVerb, RoleArgument};
pub use authority::{AuthorityVerb, RotateIssuer, TaintJwtKey};
pub use backup::BackupVerb;
pub use bundle::{BundleFormat, BundleVerb, CrlFormat, FetchBundle, FetchCrls};
pub use cert::{CertVerb, ListCertificates, RevocationTarget, RevokeCertificates, ShowCertificate};
pub use check::CheckVerb;
pub use cluster::{AddCluster, ClusterVerb, ScopeArguments};
pub use exit::{EXIT_CODES_HELP, Exit, Failure};
pub use explain::{CallerArgument, Explain};
pub use federation::{AddRelationship, FederationVerb, ProfileArgument};
pub use ledger::{HeadArgument, LedgerVerb, ListEntries};
pub use node::{JoinNode, ListNodes, NodeArgument, NodeVerb, RenewNodes, RenewalTarget};
pub use offline_root::{CeremonyVerb, ImportAnswer, ImportRoot, OfflineVerb, SignRequest, WriteRequest};
pub use output::{Clock, Console, OutputFormat, complain};
pub use request::{AttributeArgument, RequestCertificate, Workload};
pub use rhizome_tls::{
    JoinString, JoinStringError, MAX_ADDRESSES, MAX_JOIN_STRING_BYTES as MAX_BYTES, MAX_ROOTS,
};
pub use root::{AbortRoot, AdvanceRoot, ExemptRoot, RootVerb, RotateRoot};
pub use rule::{Confirmation, PutRule, RuleVerb};
pub use session::{DEFAULT_SERVER, DEFAULT_SOCKET, Options, ServerAddress, ServerArgument};
pub use token::{CreateToken, ListTokens, TokenVerb};

use session::Session;

/// Where a server's configuration is unless told otherwise.
pub const CONFIG: &str = "/etc/rhizome/rhizome.yaml";

/// What an administrator, or a machine that joins, can ask for. The binary flattens this into its own verbs.
#[derive(Subcommand, Clone, Debug)]
pub enum Verb {
    /// Show how the server is
    Status,
    /// Look for what is wrong or expires soon
    Check(CheckVerb),
    /// Manage join tokens, by which machines join
    #[command(subcommand)]
    Token(TokenVerb),
    /// Manage nodes: the machines that vouch for workloads
    #[command(subcommand)]
    Node(NodeVerb),
    /// Manage rules, which say who may be whom
    #[command(subcommand)]
    Rule(RuleVerb),
    /// Say why a request for a certificate would be granted or denied
    Explain(Box<Explain>),
    /// See, ask for and revoke certificates
    #[command(subcommand)]
    Cert(CertVerb),
    /// Manage administrators
    #[command(subcommand)]
    Admin(AdminVerb),
    /// See, rotate and taint signing authorities
    #[command(subcommand)]
    Authority(AuthorityVerb),
    /// Change the root for another, bring one from elsewhere, or keep its key offline
    #[command(subcommand)]
    Root(Box<RootVerb>),
    /// See and fetch the trust bundle
    #[command(subcommand)]
    Bundle(BundleVerb),
    /// Manage clusters with a Rhizome of their own below this one
    #[command(subcommand)]
    Cluster(ClusterVerb),
    /// Manage federation: foreign trust domains whose bundles this authority fetches
    #[command(subcommand)]
    Federation(FederationVerb),
    /// See and verify the ledger of everything that was signed and changed
    #[command(subcommand)]
    Ledger(LedgerVerb),
    /// Write a consistent copy of the server's state to a file
    Backup(BackupVerb),
}

impl Verb {
    /// What is done while no server runs, and so by whoever has the store and the keys; otherwise the verb itself.
    ///
    /// # Errors
    /// The verb, when it is for a server.
    pub fn into_offline(self) -> Result<OfflineVerb, Box<Self>> {
        let Self::Root(root) = self else { return Err(Box::new(self)) };
        let root = *root;
        let RootVerb::Offline(verb) = root else { return Err(Box::new(Self::Root(Box::new(root)))) };
        Ok(verb)
    }
}

/// Runs one verb to its end; failures are told on the console, and the answer is how the process should end.
pub async fn run(options: &Options, verb: Verb, console: &mut Console<'_>) -> Exit {
    let outcome = dispatch(verb, &mut Session::new(options, console)).await;
    match outcome {
        Ok(exit) => exit,
        Err(failure) => {
            console.complain(options.output, &failure);
            failure.exit()
        }
    }
}

async fn dispatch(verb: Verb, session: &mut Session<'_, '_>) -> Result<Exit, Failure> {
    match verb {
        Verb::Status => check::status(session).await,
        Verb::Check(wish) => check::run(wish, session).await,
        Verb::Token(verb) => token::run(verb, session).await,
        Verb::Node(verb) => node::run(verb, session).await,
        Verb::Rule(verb) => rule::run(verb, session).await,
        Verb::Explain(wish) => explain::run(*wish, session).await,
        Verb::Cert(verb) => cert::run(verb, session).await,
        Verb::Admin(verb) => admin::run(verb, session).await,
        Verb::Authority(verb) => authority::run(verb, session).await,
        Verb::Root(verb) => root::run(*verb, session).await,
        Verb::Bundle(verb) => bundle::run(verb, session).await,
        Verb::Cluster(verb) => cluster::run(verb, session).await,
        Verb::Federation(verb) => federation::run(verb, session).await,
        Verb::Ledger(verb) => ledger::run(verb, session).await,
        Verb::Backup(wish) => backup::run(wish, session).await,
    }
}
