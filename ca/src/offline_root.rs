//! `rhizome root import` and `rhizome root ceremony`: what is done to a root while no server runs.
//!
//! Laws: files are read whole and judged before the store is opened; nothing is written without `--yes` but a request,
//! and no file is overwritten. A paper is signed as it was read: its digest is of those very bytes.
//! Not here: what may be taken over and signed (`rhizome_core::adoption`, `rhizome_core::ceremony`), doing it
//! (`rhizome_server::offline`).

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use rhizome_cli::{
    CeremonyVerb, Exit, Failure, ImportAnswer, ImportRoot, OfflineVerb, OutputFormat, SignRequest,
    WriteRequest,
};
use rhizome_core::adoption::{self, Offer, Part};
use rhizome_core::ceremony::{Answer, Request, Wanted, digest};
use rhizome_core::ports::Clock as _;
use rhizome_server::SystemClock;
use rhizome_server::offline::{self, Adopted, Asked, OfferedKey, OfflineError};
use rhizome_x509::{CaCertificate, MAX_PEM_BYTES, ca_certificates_from_pem, ca_key_from_pem};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::config::{self, Config};
use crate::launch::{self, Launch};
use crate::{command, serve};

/// In a file of certificates, and in none of our papers.
const PEM: &[u8] = b"-----BEGIN CERTIFICATE-----";

/// Does what `verb` says and tells the outcome.
pub async fn run(verb: OfflineVerb, output: OutputFormat) -> Exit {
    let done = match verb {
        OfflineVerb::Import(wish) => import(&wish).await,
        OfflineVerb::Ceremony(CeremonyVerb::Request(wish)) => request(&wish).await,
        OfflineVerb::Ceremony(CeremonyVerb::Sign(wish)) => sign(&wish).await,
        OfflineVerb::Ceremony(CeremonyVerb::Import(wish)) => take_in(&wish).await,
    };
    match done {
        Ok(Told { lines, json }) => {
            let text = match output {
                OutputFormat::Table => lines.iter().map(|line| format!("{line}\n")).collect::<String>(),
                OutputFormat::Json => format!("{json:#}\n"),
            };
            drop(io::stdout().write_all(text.as_bytes()));
            Exit::Done
        }
        Err(Refused::Config(error)) => serve::misconfigured(&error, output),
        Err(Refused::Other(failure)) => command::failed(output, &failure),
    }
}

/// What is told when it went well.
struct Told {
    lines: Vec<String>,
    json: Value,
}

enum Refused {
    Config(config::ConfigError),
    Other(Failure),
}

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        Self::Other(failure)
    }
}

impl From<OfflineError> for Refused {
    fn from(cause: OfflineError) -> Self {
        let code = match &cause {
            OfflineError::NotEmpty(_) | OfflineError::Answered(_) => "not_empty",
            OfflineError::Adoption(_) => "certificate",
            OfflineError::Paper(_)
            | OfflineError::OtherRoot { .. }
            | OfflineError::OtherReplica(_)
            | OfflineError::TooLong { .. }
            | OfflineError::NotOurRoot(_) => "paper",
            OfflineError::Keys(_) | OfflineError::OtherKey(_) | OfflineError::NotAsked { .. } => "keys",
            OfflineError::NoRoot(_)
            | OfflineError::KeyIsHere
            | OfflineError::KeyIsElsewhere
            | OfflineError::KeyMustStayAway => "root",
            OfflineError::Other(_) => "failed",
        };
        Self::Other(Failure::new(Exit::Failed, code, cause.to_string()))
    }
}

async fn import(wish: &ImportRoot) -> Result<Told, Refused> {
    let config = load(&wish.config)?;
    let (offer, key) = offered(wish)?;
    let adoption = adoption::judge(&offer, &config.trust_domain, SystemClock.now());
    let adoption = adoption.map_err(OfflineError::from)?;
    if !wish.yes {
        let mut lines = vec![format!(
            "`{}` may be taken over: {}",
            adoption.certificate.subject(),
            becomes(adoption.part)
        )];
        lines.push("nothing was changed; repeat with --yes to import".to_owned());
        return Ok(Told { lines, json: json!({ "part": word(adoption.part), "applied": false }) });
    }
    let Launch { settings, ports } = opened(&config).await?;
    Ok(adopted(&offline::adopt(settings, ports, &offer, key).await?))
}

async fn request(wish: &WriteRequest) -> Result<Told, Refused> {
    let config = load(&wish.config)?;
    must_be_new(&wish.out)?;
    wish.csr.as_deref().map(must_be_new).transpose()?;
    let Launch { settings, ports } = opened(&config).await?;
    let wanted = if wish.root { Wanted::Root } else { Wanted::Issuer };
    let Asked { paper, csr } = offline::request(settings, ports, wanted, wish.lifetime).await?;
    let bytes =
        written(&paper, "What a Rhizome server asks its root for. Review every line before it is signed.")?;
    write_new(&wish.out, &bytes)?;
    let sha256 = digest(&bytes);
    if let (Some(path), Some(csr)) = (&wish.csr, csr) {
        write_new(path, csr.as_bytes())?;
    }
    let lines = vec![
        format!("wrote {}: {} {}", wish.out.display(), kind(wanted), paper.id),
        format!("sha256 {sha256}"),
        "carry it to the machine with the root's key, review it, and sign it there:".to_owned(),
        format!(
            "rhizome root ceremony sign {} --out answer.yaml --yes --sha256 {sha256}",
            wish.out.display()
        ),
    ];
    Ok(Told { lines, json: json!({ "id": paper.id, "wanted": paper.wanted, "sha256": sha256 }) })
}

async fn sign(wish: &SignRequest) -> Result<Told, Refused> {
    let config = load(&wish.config)?;
    must_be_new(&wish.out)?;
    let bytes = read(&wish.request)?;
    let paper: Request = parsed(&wish.request, &bytes)?;
    paper.check(&config.trust_domain).map_err(OfflineError::from)?;
    let sha256 = digest(&bytes);
    if !wish.yes {
        let lines = vec![
            format!(
                "{} {} of {}, for replica {}",
                kind(paper.wanted),
                paper.id,
                paper.trust_domain,
                paper.replica
            ),
            format!("to live {} from now on, signing with {}", paper.lifetime, paper.algorithm),
            format!("asked for at {}; sha256 {sha256}", paper.requested_at),
            "nothing was signed; repeat with --yes to sign".to_owned(),
        ];
        return Ok(Told { lines, json: json!({ "request": paper, "sha256": sha256, "applied": false }) });
    }
    must_be("the request", wish.sha256.as_deref(), &sha256.to_string())?;
    let Launch { settings, ports } = opened(&config).await?;
    let answer = offline::sign(settings, ports, &paper, sha256).await?;
    let bytes = written(&answer, "What the root gives back. Import it with `rhizome root ceremony import`.")?;
    write_new(&wish.out, &bytes)?;
    let certificate = &answer.certificate;
    let lines = vec![
        format!("signed {} {}, valid until {}", kind(answer.wanted), answer.id, certificate.not_after()),
        format!("certificate sha256 {}", answer.certificate_sha256),
        format!(
            "wrote {}; on the server: rhizome root ceremony import {} --yes --sha256 {}",
            wish.out.display(),
            wish.out.display(),
            answer.certificate_sha256
        ),
    ];
    let json = json!({ "id": answer.id, "certificate_sha256": answer.certificate_sha256, "applied": true });
    Ok(Told { lines, json })
}

async fn take_in(wish: &ImportAnswer) -> Result<Told, Refused> {
    let config = load(&wish.config)?;
    let bytes = read(&wish.answer)?;
    if bytes.windows(PEM.len()).any(|part| part == PEM) {
        return take_in_certificate(wish, &bytes, &config).await;
    }
    let answer: Answer = parsed(&wish.answer, &bytes)?;
    answer.check().map_err(OfflineError::from)?;
    if !wish.yes {
        let certificate = &answer.certificate;
        let lines = vec![
            format!("{} {}: `{}`", kind(answer.wanted), answer.id, certificate.subject()),
            format!("valid from {} to {}", certificate.not_before(), certificate.not_after()),
            format!(
                "certificate sha256 {}; answer to request sha256 {}",
                answer.certificate_sha256, answer.request_sha256
            ),
            "nothing was changed; repeat with --yes to import".to_owned(),
        ];
        return Ok(Told { lines, json: json!({ "answer": answer, "applied": false }) });
    }
    let found = answer.certificate_sha256.to_string();
    match (&wish.sha256, answer.wanted) {
        (None, Wanted::Issuer) => {}
        (told, _) => must_be("the certificate", told.as_deref(), &found)?,
    }
    let Launch { settings, ports } = opened(&config).await?;
    Ok(adopted(&offline::take_in(settings, ports, &answer).await?))
}

/// The certificate that a CA of another kind made of our request, perhaps with those above it.
async fn take_in_certificate(wish: &ImportAnswer, bytes: &[u8], config: &Config) -> Result<Told, Refused> {
    let unreadable = |cause: &dyn std::fmt::Display| unreadable(&wish.answer, cause);
    let pem = std::str::from_utf8(bytes).map_err(|cause| unreadable(&cause))?;
    let mut chain = ca_certificates_from_pem(pem).map_err(|cause| unreadable(&cause))?.into_iter();
    let certificate =
        chain.next().ok_or_else(|| Failure::usage(format!("{}: no certificate", wish.answer.display())))?;
    // The root itself is here already.
    let between: Vec<CaCertificate> = chain.filter(|one| !one.is_self_signed()).collect();
    if !wish.yes {
        let sha256 = certificate.fingerprint();
        let lines = vec![
            format!("issuer: `{}`", certificate.subject()),
            format!("valid from {} to {}", certificate.not_before(), certificate.not_after()),
            format!("certificate sha256 {sha256}"),
            "nothing was changed; repeat with --yes to import".to_owned(),
        ];
        return Ok(Told { lines, json: json!({ "certificate_sha256": sha256, "applied": false }) });
    }
    if wish.sha256.is_some() {
        must_be("the certificate", wish.sha256.as_deref(), &certificate.fingerprint().to_string())?;
    }
    let Launch { settings, ports } = opened(config).await?;
    Ok(adopted(&offline::take_in_certificate(settings, ports, &certificate, &between).await?))
}

/// The files of an import, as an offer.
fn offered(wish: &ImportRoot) -> Result<(Offer, OfferedKey), Failure> {
    let beside = |name: &str| wish.cacerts.as_ref().map(|directory| directory.join(name));
    let there = |path: Option<std::path::PathBuf>| path.filter(|path| path.exists());
    let (cert, key, chain, roots) = if wish.cacerts.is_some() {
        (
            beside("ca-cert.pem"),
            beside("ca-key.pem"),
            there(beside("cert-chain.pem")),
            beside("root-cert.pem"),
        )
    } else {
        (wish.cert.clone(), wish.key.clone(), wish.chain.clone(), wish.roots.clone())
    };
    let list =
        |path: &Option<std::path::PathBuf>| path.as_deref().map_or_else(|| Ok(Vec::new()), certificates);
    let mut own = list(&cert)?.into_iter();
    let named = |path: &Option<std::path::PathBuf>| {
        path.as_deref().map(|path| path.display().to_string()).unwrap_or_default()
    };
    let certificate =
        own.next().ok_or_else(|| Failure::usage(format!("{}: no certificate", named(&cert))))?;
    // Some write the whole chain into the certificate's file.
    let between = own.chain(list(&chain)?).collect();
    let key_offered = match (&key, &wish.key_name) {
        // With the key in the ring, Istio's directory need not have it.
        (_, Some(name)) => OfferedKey::InRing(name.clone()),
        (Some(path), None) => {
            let text = text(path)?;
            let pkcs8 = ca_key_from_pem(&text, &certificate);
            OfferedKey::Given(pkcs8.map_err(|cause| unreadable(path, &cause))?)
        }
        (None, None) => OfferedKey::None,
    };
    let with_key = !matches!(key_offered, OfferedKey::None);
    Ok((Offer { certificate, between, roots: list(&roots)?, with_key }, key_offered))
}

fn certificates(path: &Path) -> Result<Vec<CaCertificate>, Failure> {
    ca_certificates_from_pem(&text(path)?).map_err(|cause| unreadable(path, &cause))
}

fn text(path: &Path) -> Result<Zeroizing<String>, Failure> {
    let bytes = Zeroizing::new(read(path)?);
    let text = std::str::from_utf8(&bytes).map_err(|cause| unreadable(path, &cause))?;
    Ok(Zeroizing::new(text.to_owned()))
}

fn unreadable(path: &Path, cause: &dyn std::fmt::Display) -> Failure {
    Failure::usage(format!("{}: {cause}", path.display()))
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let most = u64::try_from(MAX_PEM_BYTES).unwrap_or(u64::MAX).saturating_add(1);
    let whole = || {
        let mut bytes = Vec::new();
        File::open(path)?.take(most).read_to_end(&mut bytes)?;
        if bytes.len() > MAX_PEM_BYTES { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(bytes) }
    };
    whole().map_err(|cause| Failure::file("read", path, &cause))
}

fn parsed<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T, Failure> {
    let text = std::str::from_utf8(bytes).map_err(|cause| unreadable(path, &cause))?;
    serde_saphyr::from_str(text).map_err(|cause| unreadable(path, &cause))
}

/// A paper as YAML: a line for people, then one field a line.
fn written(paper: &impl Serialize, title: &str) -> Result<Vec<u8>, Failure> {
    let bug = |cause: &dyn std::fmt::Display| Failure::new(Exit::Failed, "bug", format!("bug: {cause}"));
    let value = serde_json::to_value(paper).map_err(|cause| bug(&cause))?;
    let Value::Object(fields) = value else { return Err(bug(&"a paper without fields")) };
    let mut text = format!("# {title}\n");
    for (name, value) in fields {
        // A string in JSON is one in YAML.
        if let Value::Object(inner) = value {
            text.push_str(&format!("{name}:\n"));
            inner.iter().for_each(|(name, value)| text.push_str(&format!("  {name}: {value}\n")));
        } else {
            text.push_str(&format!("{name}: {value}\n"));
        }
    }
    Ok(text.into_bytes())
}

/// What people compared over another channel is what is done.
fn must_be(what: &str, told: Option<&str>, found: &str) -> Result<(), Failure> {
    match told {
        Some(told) if told.eq_ignore_ascii_case(found) => Ok(()),
        Some(_) => {
            Err(Failure::usage(format!("{what} has SHA-256 {found}, which is not what --sha256 says")))
        }
        None => Err(Failure::usage(format!(
            "give --sha256 with what the other side told, over another channel; {what} here has {found}"
        ))),
    }
}

fn must_be_new(path: &Path) -> Result<(), Failure> {
    if path.exists() {
        let told = format!("{} is there already and is not overwritten; name another file", path.display());
        return Err(Failure::new(Exit::Failed, "already_there", told));
    }
    Ok(())
}

fn write_new(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|cause| Failure::file("write", path, &cause))
}

fn load(path: &Path) -> Result<Config, Refused> {
    Ok(config::load(path).map_err(Refused::Config)?.config)
}

async fn opened(config: &Config) -> Result<Launch, Failure> {
    let launched = launch::open_without_server(config).await;
    launched.map_err(|cause| Failure::new(Exit::Failed, "launch", cause.to_string()))
}

fn adopted(adopted: &Adopted) -> Told {
    let Adopted { part, ids, anchor, until } = adopted;
    let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
    let lines = vec![
        format!("imported {}: {}", ids.join(", "), becomes(*part)),
        format!("what it signs ends by {until}; verifiers trust `{}`", anchor.subject()),
        "start the server: it takes it up by itself".to_owned(),
    ];
    let json = json!({
        "ids": ids, "part": word(*part), "until": until, "anchor_sha256": anchor.fingerprint(), "applied": true,
    });
    Told { lines, json }
}

const fn becomes(part: Part) -> &'static str {
    match part {
        Part::SignsIssuers => "it signs this authority's issuers",
        Part::SignsWorkloads => {
            "it signs workloads itself, for this replica; before it ends, another issuer has to be brought"
        }
        Part::IsTrusted => "it is trusted, its key stays where it is, and issuers are brought from there",
    }
}

const fn word(part: Part) -> &'static str {
    match part {
        Part::SignsIssuers => "signs_issuers",
        Part::SignsWorkloads => "signs_workloads",
        Part::IsTrusted => "is_trusted",
    }
}

const fn kind(wanted: Wanted) -> &'static str {
    match wanted {
        Wanted::Root => "root",
        Wanted::Issuer => "issuer",
    }
}
