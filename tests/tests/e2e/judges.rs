//! Other people's validators, each giving one named verdict on a directory with `key.pem`, `chain.pem` (leaf first,
//! without the root) and `bundle.pem` (the roots).
//!
//! Laws: a verdict is the judge's own word; a judge that crashes or answers nothing is an error and no refusal.
//! Each judge can refuse: [`Judge::spoils_seen`] lists the faults it must find.
//! Not here: our own verifier and lint (`rhizome-x509`), which refuse more than any of these.
//! Sources: RFC 5280 §6, SPIFFE X509-SVID §5; the judges' programs are in `tests/judges`.

use std::fmt;
use std::path::Path;
use std::process::{Command, Output};

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{ALL_VERIFICATION_ALGS, EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use crate::support::{in_ci, run, said, tools, workspace};

/// One validator of the field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Judge {
    /// `openssl verify -x509_strict`, as a TLS server and as a TLS client.
    OpenSsl,
    /// `certtool --verify`, as a TLS server and as a TLS client.
    GnuTls,
    /// PyPI `cryptography`.
    PycaCryptography,
    /// PyPI `spiffe`: the shape of an X509-SVID and its key; it checks no signature.
    PySpiffe,
    /// Java's PKIX validator and path builder.
    JavaPkix,
    /// Go's `crypto/x509`.
    GoX509,
    /// The verifier under rustls, as a TLS server and as a TLS client.
    RustlsWebpki,
}

/// What a judge said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Accepted(String),
    Refused(String),
    /// The judge is not installed.
    Absent,
}

/// A fault planted in an otherwise good directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spoil {
    /// The bundle holds the root of somebody else.
    ForeignRoot,
    /// The chain lacks the intermediate.
    NoIntermediate,
    /// The last bit of the leaf's signature is flipped.
    FlippedSignature,
    /// The intermediate comes before the leaf.
    IntermediateFirst,
    /// The key belongs to another certificate.
    ForeignKey,
}

impl Spoil {
    pub(crate) const ALL: [Self; 5] = [
        Self::ForeignRoot,
        Self::NoIntermediate,
        Self::FlippedSignature,
        Self::IntermediateFirst,
        Self::ForeignKey,
    ];
}

impl Judge {
    pub(crate) const ALL: [Self; 7] = [
        Self::OpenSsl,
        Self::GnuTls,
        Self::PycaCryptography,
        Self::PySpiffe,
        Self::JavaPkix,
        Self::GoX509,
        Self::RustlsWebpki,
    ];

    /// The faults this judge has to find.
    pub(crate) fn spoils_seen(self) -> &'static [Spoil] {
        match self {
            Self::PySpiffe => &[Spoil::IntermediateFirst, Spoil::ForeignKey],
            Self::OpenSsl
            | Self::GnuTls
            | Self::PycaCryptography
            | Self::JavaPkix
            | Self::GoX509
            | Self::RustlsWebpki => &[Spoil::ForeignRoot, Spoil::NoIntermediate, Spoil::FlippedSignature],
        }
    }

    /// Asks the judge about a directory.
    pub(crate) fn verdict(self, directory: &Path) -> Verdict {
        let programs = workspace().join("tests/judges");
        let python = tools().join("python/bin/python");
        match self {
            Self::OpenSsl => both(["sslserver", "sslclient"], |purpose| openssl(directory, purpose)),
            Self::GnuTls => {
                both(["1.3.6.1.5.5.7.3.1", "1.3.6.1.5.5.7.3.2"], |purpose| certtool(directory, purpose))
            }
            Self::PycaCryptography => {
                spoken(Command::new(python).arg(programs.join("pyca.py")).arg(directory))
            }
            Self::PySpiffe => spoken(Command::new(python).arg(programs.join("py_spiffe.py")).arg(directory)),
            Self::JavaPkix => spoken(Command::new("java").arg(programs.join("Pkix.java")).arg(directory)),
            Self::GoX509 => spoken(
                Command::new("go")
                    .args(["run", "."])
                    .arg(directory)
                    .current_dir(programs.join("go"))
                    .env("GOTOOLCHAIN", "local")
                    .env("GOFLAGS", "-mod=mod"),
            ),
            Self::RustlsWebpki => rustls_webpki(directory),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accepted(facts) => write!(f, "accepted: {facts}"),
            Self::Refused(reason) => write!(f, "refused: {reason}"),
            Self::Absent => f.write_str("not installed; `tests/run e2e` installs it"),
        }
    }
}

/// Asks every judge about every directory that matters to it and panics with the whole table on a wrong verdict.
///
/// `spoiled` makes a copy of the good directory with one fault planted.
pub(crate) fn hearing(good: &Path, spoiled: impl Fn(Spoil) -> tempfile::TempDir) {
    let faults = Spoil::ALL.map(|spoil| (spoil, spoiled(spoil)));
    let mut wrong = 0;
    let mut table = String::new();
    let mut hear = |judge: Judge, of: &str, verdict: Verdict, wanted: bool| {
        let right = match &verdict {
            Verdict::Accepted(_) => wanted,
            Verdict::Refused(_) => !wanted,
            Verdict::Absent => !in_ci(),
        };
        wrong += usize::from(!right);
        let mark = if right { "  " } else { "! " };
        table.push_str(&format!("{mark}{judge:?} on {of}: {verdict}\n"));
    };
    for judge in Judge::ALL {
        hear(judge, "the chain as issued", judge.verdict(good), true);
        for (spoil, directory) in &faults {
            if judge.spoils_seen().contains(spoil) {
                hear(judge, &format!("{spoil:?}"), judge.verdict(directory.path()), false);
            }
        }
    }
    println!("{table}");
    assert_eq!(wrong, 0, "wrong verdicts are marked '!':\n{table}");
}

/// Accepted only if accepted for both purposes.
fn both(purposes: [&str; 2], ask: impl Fn(&str) -> Verdict) -> Verdict {
    let [first, second] = purposes.map(ask);
    match (first, second) {
        (Verdict::Accepted(one), Verdict::Accepted(two)) => Verdict::Accepted(format!("{one}; {two}")),
        (Verdict::Accepted(_), other) | (other, _) => other,
    }
}

fn openssl(directory: &Path, purpose: &str) -> Verdict {
    let chain = directory.join("chain.pem");
    let mut command = Command::new("openssl");
    command.args(["verify", "-x509_strict", "-no-CApath", "-no-CAstore", "-purpose", purpose]);
    command.arg("-CAfile").arg(directory.join("bundle.pem"));
    // Only the first certificate of the last file is judged; the same file serves as the pool of intermediates.
    command.arg("-untrusted").arg(&chain).arg(&chain);
    let Some(output) = run(&mut command) else {
        return Verdict::Absent;
    };
    match output.status.code() {
        Some(0) => Verdict::Accepted(purpose.to_owned()),
        Some(2) => Verdict::Refused(format!("{purpose}: {}", said(&output))),
        _ => broken(&command, &output),
    }
}

fn certtool(directory: &Path, purpose: &str) -> Verdict {
    let mut command = Command::new("certtool");
    command.args(["--verify", "--verify-profile", "medium", "--verify-purpose", purpose]);
    command.arg("--load-ca-certificate").arg(directory.join("bundle.pem"));
    command.arg("--infile").arg(directory.join("chain.pem"));
    let Some(output) = run(&mut command) else {
        return Verdict::Absent;
    };
    let words = said(&output);
    let refused = words.contains("Not verified.") || words.contains("The certificate is NOT trusted");
    match output.status.success() {
        true if words.contains("The certificate is trusted") => Verdict::Accepted(purpose.to_owned()),
        false if refused => Verdict::Refused(words),
        _ => broken(&command, &output),
    }
}

/// The verdict of a program that prints `ACCEPTED …` or `REFUSED …` and ends with 0 either way.
fn spoken(command: &mut Command) -> Verdict {
    let Some(output) = run(command) else {
        return Verdict::Absent;
    };
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    match text.split_once(' ').unwrap_or((text.as_str(), "")) {
        ("ACCEPTED", facts) if output.status.success() => Verdict::Accepted(facts.to_owned()),
        ("REFUSED", reason) if output.status.success() => Verdict::Refused(reason.to_owned()),
        _ => broken(command, &output),
    }
}

fn rustls_webpki(directory: &Path) -> Verdict {
    let chain = certificates(&directory.join("chain.pem"));
    let roots = certificates(&directory.join("bundle.pem"));
    match webpki_path(&chain, &roots) {
        Ok(()) => Verdict::Accepted(format!("chain of {} at both ends", chain.len())),
        Err(reason) => Verdict::Refused(reason.to_string()),
    }
}

fn webpki_path(
    chain: &[CertificateDer<'static>],
    roots: &[CertificateDer<'static>],
) -> Result<(), webpki::Error> {
    let anchors = roots.iter().map(anchor_from_trusted_cert).collect::<Result<Vec<_>, _>>()?;
    let (leaf, intermediates) = chain.split_first().expect("read from a file with certificates");
    let leaf = EndEntityCert::try_from(leaf)?;
    for usage in [KeyUsage::client_auth(), KeyUsage::server_auth()] {
        let now = UnixTime::now();
        leaf.verify_for_usage(ALL_VERIFICATION_ALGS, &anchors, intermediates, now, usage, None, None)?;
    }
    Ok(())
}

fn certificates(file: &Path) -> Vec<CertificateDer<'static>> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(file)
        .unwrap_or_else(|fault| panic!("{}: {fault}", file.display()))
        .collect();
    let found = found.unwrap_or_else(|fault| panic!("{}: {fault}", file.display()));
    assert!(!found.is_empty(), "{}: no certificate", file.display());
    found
}

/// A judge that gave no verdict.
fn broken(command: &Command, output: &Output) -> ! {
    panic!("{command:?} gave no verdict, ended with {}: {}", output.status, said(output))
}
