//! A mesh that adopts Rhizome without changing its root: Istio's plug-in certificates and other CAs, made by openssl, are
//! taken over, and openssl judges what is issued against the root that the mesh trusted before. And a root whose key
//! stays on another machine.
//!
//! Not here: what may be taken over, case by case (`rhizome_core::adoption`).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::judges::{Judge, Verdict};
use crate::server::{Home, Server, rhizome};
use crate::support::{in_ci, must, run, said};

/// Exit codes, as `rhizome help` lists them.
const DONE: i32 = 0;
const FAILED: i32 = 1;
const USAGE: i32 = 2;

/// A directory as Istio's documentation lays it out, and its root's key.
struct Plugged {
    directory: PathBuf,
    root_key: PathBuf,
}

fn openssl(words: &[&str], at: &Path) {
    must(Command::new("openssl").args(words).current_dir(at));
}

impl Plugged {
    fn make(scratch: &Path, path_length: &str, days: &str) -> Self {
        let directory = scratch.join(format!("cacerts-{path_length}-{days}"));
        fs::create_dir(&directory).unwrap();
        let extensions = format!(
            "basicConstraints=critical,CA:TRUE,pathlen:{path_length}\nkeyUsage=critical,digitalSignature,keyCertSign,cRLSign\n\
             subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\nsubjectAltName=DNS:istiod.istio-system.svc\n"
        );
        fs::write(directory.join("extensions"), extensions).unwrap();
        let make = |words: &str| openssl(&words.split(' ').collect::<Vec<_>>(), &directory);
        make(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout root-key.pem -out root-cert.pem \
             -days 3650 -subj /O=Istio/CN=Root -addext keyUsage=critical,keyCertSign,cRLSign",
        );
        // With the curve's parameters before the key, as openssl writes them by itself.
        make("ecparam -name prime256v1 -genkey -out ca-key.pem");
        make("req -new -key ca-key.pem -subj /O=Istio/CN=Intermediate/L=cluster1 -out request.pem");
        make(&format!(
            "x509 -req -in request.pem -CA root-cert.pem -CAkey root-key.pem -CAcreateserial -days {days} \
             -extfile extensions -out ca-cert.pem"
        ));
        let chain = [
            fs::read(directory.join("ca-cert.pem")).unwrap(),
            fs::read(directory.join("root-cert.pem")).unwrap(),
        ];
        fs::write(directory.join("cert-chain.pem"), chain.concat()).unwrap();
        Self { root_key: directory.join("root-key.pem"), directory }
    }

    fn root(&self) -> PathBuf {
        self.directory.join("root-cert.pem")
    }
}

fn root_verb(home: &Home, words: &[&str]) -> Output {
    run(rhizome().arg("root").args(words).arg("--config").arg(home.config())).unwrap()
}

fn does(home: &Home, words: &[&str]) -> String {
    let output = root_verb(home, words);
    assert_eq!(output.status.code(), Some(DONE), "{words:?}: {}", said(&output));
    said(&output)
}

fn refuses(home: &Home, words: &[&str], code: i32, reason: &str) {
    let output = root_verb(home, words);
    assert_eq!(output.status.code(), Some(code), "{words:?}: {}", said(&output));
    assert!(said(&output).contains(reason), "{reason} is not in {}", said(&output));
}

/// A node joins, and a workload's chain is good for whoever trusts `root` alone, and has `certificates` in it.
fn issues_under(server: &Server, node: &str, root: &Path, certificates: usize) {
    let node = server.join_node(node);
    let out = server.scratch().join("workload");
    must(&mut server.request_certificate(&node, "web", &out));
    let mut verify = Command::new("openssl");
    verify.args(["verify", "-x509_strict", "-CAfile"]).arg(root);
    must(verify.arg("-untrusted").arg(out.join("chain.pem")).arg(out.join("chain.pem")));
    let chain = fs::read_to_string(out.join("chain.pem")).unwrap();
    assert_eq!(chain.matches("BEGIN CERTIFICATE").count(), certificates, "{chain}");
    let der =
        |path: &Path| must(Command::new("openssl").args(["x509", "-outform", "DER", "-in"]).arg(path)).stdout;
    assert_eq!(der(&out.join("bundle.pem")), der(root), "the bundle is the root that was trusted before");
    judged(&out);
}

/// Everybody's validators on a chain, with the bundle as it was handed out.
fn judged(directory: &Path) {
    let verdicts = Judge::ALL.map(|judge| (judge, judge.verdict(directory)));
    let refused = |verdict: &Verdict| match verdict {
        Verdict::Accepted(_) => false,
        Verdict::Refused(_) => true,
        Verdict::Absent => in_ci(),
    };
    let wrong: Vec<_> = verdicts.iter().filter(|(_, verdict)| refused(verdict)).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn an_istio_authority_with_room_below_it_is_adopted_and_its_old_root_validates_what_is_issued() {
    let home = Home::new("");
    let plugged = Plugged::make(home.path(), "1", "730");
    let words = ["import", "--cacerts", text(&plugged.directory)];
    assert!(does(&home, &words).contains("nothing was changed"));
    let told = does(&home, &[&words[..], &["--yes"]].concat());
    assert!(told.contains("it signs this authority's issuers"), "{told}");
    refuses(&home, &[&words[..], &["--yes"]].concat(), FAILED, "there is an authority here already (root-");

    let mut server = home.serve();
    issues_under(&server, "n1", &plugged.root(), 3);
    must(&mut server.admin(&["check"]));
    must(&mut server.admin(&["authority", "rotate", "--reason", "a test", "--yes"]));
    must(&mut server.admin(&["ledger", "verify"]));
    assert!(server.stop().success());
    server.start_again();
    issues_under(&server, "n2", &plugged.root(), 3);
}

#[test]
fn an_istio_authority_without_room_signs_workloads_itself_and_makes_no_issuer() {
    let home = Home::new("");
    let plugged = Plugged::make(home.path(), "0", "730");
    let told = does(&home, &["import", "--cacerts", text(&plugged.directory), "--yes"]);
    assert!(told.contains("it signs workloads itself"), "{told}");
    let server = home.serve();
    issues_under(&server, "n1", &plugged.root(), 2);
    let refused = run(&mut server.admin(&["authority", "rotate", "--reason", "a test", "--yes"])).unwrap();
    assert!(said(&refused).contains("rhizome root ceremony"), "{}", said(&refused));
    must(&mut server.admin(&["check"]));
}

#[test]
fn what_cannot_be_taken_over_is_refused_by_name_and_nothing_is_left_behind() {
    let home = Home::new("");
    let good = Plugged::make(home.path(), "1", "730");
    let ended = Plugged::make(home.path(), "1", "0");
    let at = |name: &str| good.directory.join(name);
    let (cert, key, roots) = (at("ca-cert.pem"), at("ca-key.pem"), good.root());
    let make = |words: &str| openssl(&words.split(' ').collect::<Vec<_>>(), &good.directory);
    make("pkey -in ca-key.pem -aes128 -passout pass:secret -out encrypted.pem");
    make(
        "req -x509 -newkey rsa:2048 -nodes -keyout rsa-key.pem -out rsa-cert.pem -days 30 -subj /CN=R \
          -addext keyUsage=critical,keyCertSign",
    );
    make(
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout leaf-key.pem -out leaf.pem \
          -days 30 -subj /CN=L -addext basicConstraints=critical,CA:FALSE",
    );
    let import = |cert: &Path, key: &Path, roots: &Path, code: i32, reason: &str| {
        let words = ["import", "--cert", text(cert), "--key", text(key), "--roots", text(roots), "--yes"];
        refuses(&home, &words, code, reason);
    };
    import(&cert, &good.root_key, &roots, USAGE, "the private key does not belong to the certificate");
    import(&cert, &at("encrypted.pem"), &roots, USAGE, "the private key is encrypted");
    import(&at("rsa-cert.pem"), &at("rsa-key.pem"), &at("rsa-cert.pem"), USAGE, "signs with P-256 or P-384");
    import(
        &at("leaf.pem"),
        &at("leaf-key.pem"),
        &at("leaf.pem"),
        USAGE,
        "certificate 1 of the file is refused",
    );
    import(&cert, &key, &at("rsa-cert.pem"), FAILED, "no certificate that was given issued `");
    import(&cert, &at("extensions"), &roots, USAGE, "extensions: ");
    import(&cert, &at("none.pem"), &roots, FAILED, "none.pem");
    let words = ["import", "--cacerts", text(&ended.directory), "--yes"];
    refuses(&home, &words, FAILED, "CN=Intermediate");
    let keys = fs::read_dir(home.data().join("keys")).map(|entries| entries.count()).unwrap_or_default();
    assert_eq!(keys, 0, "no key was taken");
    // And the server founds its own authority, as if nothing had been tried.
    home.serve();
}

/// What Istio's own makefiles produce: RSA, and intermediates that may sign neither issuers nor revocation lists.
#[test]
fn a_mesh_with_istio_s_usual_rsa_root_keeps_it_and_lets_openssl_sign_issuers_from_a_request() {
    let home = Home::new("");
    let at = |name: &str| home.path().join(name);
    let make = |words: &str| openssl(&words.split(' ').collect::<Vec<_>>(), home.path());
    make(
        "req -x509 -newkey rsa:2048 -nodes -keyout root-key.pem -out root-cert.pem -days 3650 -subj /O=Istio/CN=Root \
          -addext keyUsage=critical,digitalSignature,nonRepudiation,keyEncipherment,keyCertSign",
    );
    make(
        "req -newkey rsa:2048 -nodes -keyout ca-key.pem -out ca.csr -subj /O=Istio/CN=Intermediate/L=cluster1",
    );
    let usual = "basicConstraints=critical,CA:true,pathlen:0\nsubjectKeyIdentifier=hash\n\
                 keyUsage=critical,digitalSignature,nonRepudiation,keyEncipherment,keyCertSign\n";
    fs::write(at("usual"), usual).unwrap();
    make(
        "x509 -req -in ca.csr -CA root-cert.pem -CAkey root-key.pem -days 730 -extfile usual -out ca-cert.pem",
    );
    refuses(&home, &["import", "--cacerts", text(home.path())], USAGE, "rhizome root ceremony");

    let root = at("root-cert.pem");
    let told = does(&home, &["import", "--cert", text(&root), "--yes"]);
    assert!(told.contains("its key stays where it is"), "{told}");
    let (paper, csr) = (at("request.yaml"), at("issuer.csr"));
    does(&home, &["ceremony", "request", "--out", text(&paper), "--csr", text(&csr)]);
    make(
        "x509 -req -in issuer.csr -CA root-cert.pem -CAkey root-key.pem -days 90 -copy_extensions copy -out issuer.pem",
    );
    // Signed as a workload's would be, and by somebody else.
    make("x509 -req -in issuer.csr -CA root-cert.pem -CAkey root-key.pem -days 90 -out plain.pem");
    refuses(
        &home,
        &["ceremony", "import", text(&at("plain.pem")), "--yes"],
        USAGE,
        "plain.pem: certificate 1",
    );
    let stranger = Plugged::make(home.path(), "1", "730");
    let (cert, key) = (stranger.directory.join("root-cert.pem"), &stranger.root_key);
    make(&format!(
        "x509 -req -in issuer.csr -CA {} -CAkey {} -days 90 -copy_extensions copy -out stranger.pem",
        text(&cert),
        text(key)
    ));
    refuses(&home, &["ceremony", "import", text(&at("stranger.pem")), "--yes"], FAILED, "was not issued by");

    let issuer = at("issuer.pem");
    let import = ["ceremony", "import", text(&issuer)];
    assert!(does(&home, &import).contains("nothing was changed"));
    let zeroes = "0".repeat(64);
    refuses(&home, &[&import[..], &["--yes", "--sha256", &zeroes]].concat(), USAGE, "which is not what");
    does(&home, &[&import[..], &["--yes"]].concat());
    let mut server = home.serve();
    issues_under(&server, "n1", &root, 2);
    must(&mut server.admin(&["check"]));
    assert!(server.stop().success());
}

/// A server whose root's key stays elsewhere, and the machine that has it.
fn two_machines() -> (Home, Home) {
    let offline = Home::new("authority:\n  issuer_ttl: 365d\n");
    (Home::new("").with_keys("  root: offline\n", None), offline)
}

/// SHA-256 of a file, in hexadecimal, as people compare it.
fn sha256(path: &Path) -> String {
    let told = must(Command::new("openssl").args(["dgst", "-sha256", "-r"]).arg(path)).stdout;
    String::from_utf8(told).unwrap().split(' ').next().unwrap().to_owned()
}

/// What `answer` says of its certificate.
fn certificate_sha256(answer: &Path) -> String {
    let text = fs::read_to_string(answer).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("certificate_sha256: ")).unwrap();
    line.trim_matches('"').to_owned()
}

/// Request, sign, import: a whole ceremony.
fn ceremony(server: &Home, offline: &Home, name: &str, more: &[&str]) {
    let request = server.path().join(format!("{name}.request.yaml"));
    let answer = offline.path().join(format!("{name}.answer.yaml"));
    does(server, &[&["ceremony", "request", "--out", text(&request)], more].concat());
    let sign = ["ceremony", "sign", text(&request), "--out", text(&answer)];
    assert!(does(offline, &sign).contains("nothing was signed") && !answer.exists());
    let told = sha256(&request);
    let zeroes = "0".repeat(64);
    refuses(offline, &[&sign[..], &["--yes"]].concat(), USAGE, "--sha256");
    refuses(
        offline,
        &[&sign[..], &["--yes", "--sha256", &zeroes]].concat(),
        USAGE,
        "which is not what --sha256 says",
    );
    does(offline, &[&sign[..], &["--yes", "--sha256", &told]].concat());
    refuses(offline, &[&sign[..], &["--yes", "--sha256", &told]].concat(), FAILED, "is not overwritten");
    let import = ["ceremony", "import", text(&answer)];
    assert!(does(server, &import).contains("nothing was changed"));
    if more.contains(&"--root") {
        refuses(server, &[&import[..], &["--yes"]].concat(), USAGE, "give --sha256");
    }
    refuses(server, &[&import[..], &["--yes", "--sha256", &zeroes]].concat(), USAGE, "which is not what");
    does(server, &[&import[..], &["--yes", "--sha256", &certificate_sha256(&answer)]].concat());
}

#[test]
fn a_root_whose_key_never_leaves_another_machine_signs_issuers_for_a_server() {
    let (home, offline) = two_machines();
    let Err((code, told)) = two_machines().0.try_serve() else { panic!("it started without a root") };
    assert_eq!(code, Some(FAILED));
    assert!(told.contains("rhizome root ceremony"), "{told}");
    let early = home.path().join("early.yaml");
    refuses(
        &home,
        &["ceremony", "request", "--out", text(&early)],
        FAILED,
        "import the root's certificate first",
    );

    ceremony(&home, &offline, "root", &["--root", "--lifetime", "3650d"]);
    ceremony(&home, &offline, "issuer", &["--lifetime", "90d"]);
    let names = |home: &Home| -> Vec<String> {
        let entries = fs::read_dir(home.data().join("keys")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    assert!(names(&home).iter().all(|name| name.starts_with("issuer-")), "{:?}", names(&home));
    assert!(names(&offline).iter().all(|name| name.starts_with("root-")), "{:?}", names(&offline));

    let mut server = home.serve();
    let node = server.join_node("n1");
    let out = server.scratch().join("workload");
    must(&mut server.request_certificate(&node, "web", &out));
    let mut verify = Command::new("openssl");
    verify.args(["verify", "-x509_strict", "-CAfile"]).arg(out.join("bundle.pem"));
    must(verify.arg("-untrusted").arg(out.join("chain.pem")).arg(out.join("chain.pem")));
    must(&mut server.admin(&["check"]));
    let refused = run(&mut server.admin(&["authority", "rotate", "--reason", "a test", "--yes"])).unwrap();
    assert!(said(&refused).contains("rhizome root ceremony"), "{}", said(&refused));

    // Another one, long before the first ends; and papers that are not as they were signed.
    assert!(server.stop().success());
    let home = server.home();
    ceremony(home, &offline, "next", &[]);
    let (request, forged) = (home.path().join("next.request.yaml"), home.path().join("forged.yaml"));
    let whole = fs::read_to_string(&request).unwrap();
    let out = offline.path().join("forged.answer.yaml");
    for (from, to, reason) in [
        (
            "trust_domain: \"example.test\"",
            "trust_domain: \"other.test\"",
            "is of the trust domain other.test",
        ),
        ("  sha256: \"", "  sha256: \"00", "forged.yaml: "),
        ("version: 1", "version: 2", "is in format 2"),
        ("version: 1", "version: 1\nallow: everything", "forged.yaml: "),
        ("wanted: \"issuer\"", "wanted: \"root\"", "a root's key is made where it is signed"),
        ("lifetime: \"", "lifetime: \"9", "the configuration of this machine allows 365d"),
    ] {
        assert!(whole.contains(from), "{from} is not in {whole}");
        fs::write(&forged, whole.replacen(from, to, 1)).unwrap();
        let words = ["ceremony", "sign", text(&forged), "--out", text(&out), "--yes", "--sha256"];
        let output = root_verb(&offline, &[&words[..], &[&sha256(&forged)]].concat());
        assert!(!output.status.success() && said(&output).contains(reason), "{to}: {}", said(&output));
    }
    server.start_again();
    must(&mut server.admin(&["check"]));
    must(&mut server.admin(&["ledger", "verify"]));
}
