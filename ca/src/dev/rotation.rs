//! The root is changed below the feet of two workloads that call each other, and then once more, and taken back.
//!
//! Laws: as in `walk` and `mesh`; and what the server says of its phases is believed only with what is seen from outside:
//! which roots are in the bundle, below which root the workloads' certificates are.
//! Not here: what is allowed when (`rhizome_core::rotation`).

use std::collections::BTreeSet;
use std::time::Duration;

use rhizome_proto::admin::v1::rotation_service_client::RotationServiceClient;
use rhizome_proto::admin::v1::{Rotation, RotationBlocker, RotationPhase, WatchRotationRequest};
use rhizome_server::Stopwatch;
use serde_json::Value;

use super::clusters::same_bundle;
use super::stage::Stage;
use super::walk::{NODE, Place, Walk, done, locally, path, text};

/// How long a phase may take: a slow machine, many times over.
const PATIENCE: Duration = Duration::from_secs(120);
/// What the trial cannot wait for, and needs not: one clock, and nobody else's certificates.
const HASTE: [&str; 4] = ["--settle", "1s", "--window", "1s"];

/// SHA-256 of the certificates of the roots in the bundle.
type Roots = BTreeSet<String>;

impl Walk {
    /// A whole change of the root, and one that is taken back.
    pub(super) async fn rotation(&mut self, place: &Place, stage: &mut Stage) -> Option<()> {
        let (old, before) = self.step("root change planned", planned(place)).await?;
        self.step("new root staged", begun(place, "1s")).await?;
        self.step("gate waits, by name", waits_for_the_laptop(place)).await?;
        self.step("both roots trusted", both_trusted(place, &before)).await?;
        self.step("new root signs", everybody_below_the_new(place, stage)).await?;
        let after = self.step("old root gone", gone(place, stage, &old, &before)).await?;
        self.step("second change begun", begun(place, "10m")).await?;
        if !stage.below.is_empty() {
            self.step("a cluster cut off", waits_for_a_cluster(place, stage)).await?;
        }
        self.step("second change signs", signs_again(place)).await?;
        self.step("taken back", taken_back(place, stage, &after)).await?;
        self.step("no failed handshake", super::mesh::no_failed_handshake(stage)).await
    }
}

/// What a change would meet; nothing is changed by asking.
async fn planned(place: &Place) -> Result<((String, Roots), String), String> {
    let before = roots(place).await?;
    let plan = done(locally(place, &[&["root", "rotate"], &HASTE[..]].concat()).await?)?;
    let old = text(&plan, "/old")?;
    if roots(place).await? != before {
        return Err("asking for a plan changed the bundle".to_owned());
    }
    let count = |pointer| plan.pointer(pointer).and_then(Value::as_array).map_or(0, Vec::len);
    let places = plan.pointer("/places").and_then(Value::as_array);
    let total = |it: &Value| it.pointer("/total").and_then(Value::as_u64).unwrap_or_default();
    let subscribers: u64 = places.into_iter().flatten().map(total).sum();
    let seen =
        format!("{old} would go; {subscribers} subscribers, {} would hold it up now", count("/blockers"));
    Ok(((old, before), seen))
}

/// With `soak`, the old root's key lives as long after it is trusted no more.
async fn begun(place: &Place, soak: &str) -> Result<((), String), String> {
    let wish = [&["root", "rotate", "--reason", "trial", "--yes", "--soak", soak], &HASTE[..]].concat();
    let rotation = done(locally(place, &wish).await?)?;
    Ok(((), format!("{}, by {}", text(&rotation, "/name")?, text(&rotation, "/started_by")?)))
}

/// The node that joined and was never heard of again has not said what it trusts: the gate names it, and somebody decides.
async fn waits_for_the_laptop(place: &Place) -> Result<((), String), String> {
    let ours = |it: &RotationBlocker| it.name.ends_with(NODE);
    let named = |it: &Rotation| it.phase() == RotationPhase::Distributing && it.blockers.iter().any(ours);
    let rotation = until(place, "name whom it waits for", named).await?;
    let blocker = rotation.blockers.iter().find(|it| ours(it)).ok_or("nobody holds it up")?;
    let wish = ["root", "exempt", &blocker.name, "--reason", "trial", "--hours", "1", "--yes"];
    drop(done(locally(place, &wish).await?)?);
    Ok(((), format!("{}; exempted", blocker.why)))
}

/// Everybody said that they trust both: the new one may sign.
async fn both_trusted(place: &Place, before: &Roots) -> Result<((), String), String> {
    let watch = Stopwatch::start();
    let rotation = until(place, "sign with the new root", |it| reached(it, RotationPhase::Active)).await?;
    let took = watch.elapsed().as_secs_f64();
    let now = roots(place).await?;
    // A quick machine may have gone on already.
    if rotation.phase() == RotationPhase::Active && !(now.is_superset(before) && now.len() > before.len()) {
        return Err(format!("the bundle has {} roots", now.len()));
    }
    Ok((
        (),
        format!("{took:.1} s until everybody said that they trust {} besides {}", rotation.new, rotation.old),
    ))
}

/// Everybody's certificates are below the new one.
async fn everybody_below_the_new(place: &Place, stage: &Stage) -> Result<((), String), String> {
    let rotation =
        until(place, "have everything renewed", |it| reached(it, RotationPhase::Untrusting)).await?;
    let (web, backend) = stage.workloads()?;
    let listed = done(locally(place, &["authority", "list"]).await?)?;
    for process in [web, backend] {
        let identity = process.now().identity.ok_or("a workload has no identity")?;
        let root = root_above(&listed, &identity.issuer);
        if root != Some(rotation.new.as_str()) {
            let found = root.unwrap_or("none that is known");
            return Err(format!("{} is below {found} and not {}", identity.spiffe_id, rotation.new));
        }
    }
    let new = authorities(&listed).find(|it| field(it, "/id") == Some(rotation.new.as_str()));
    let new = new.and_then(|it| field(it, "/fingerprint")).ok_or("the new root has no certificate")?;
    for below in &stage.below {
        let listed = done(locally(&below.place, &["authority", "list"]).await?)?;
        let issuer = authorities(&listed).find(|it| {
            let signs = field(it, "/state") == Some("active");
            signs && field(it, "/kind") == Some("issuer")
        });
        let above = issuer.and_then(|it| field(it, "/issuer_id"));
        let root = authorities(&listed).find(|it| above.is_some() && field(it, "/id") == above);
        if root.and_then(|it| field(it, "/fingerprint")) != Some(new) {
            return Err(format!("what signs in {} is not below {}", below.name, rotation.new));
        }
    }
    let clusters = stage.below.len().saturating_add(1);
    let seen = format!("web and backend have certificates below {}, in {clusters} cluster(s)", rotation.new);
    Ok(((), seen))
}

/// A cluster's own Rhizome stops in the middle: its name holds everything up, and its workloads go on.
async fn waits_for_a_cluster(place: &Place, stage: &mut Stage) -> Result<((), String), String> {
    let below = stage.below.first_mut().ok_or("no cluster joined")?;
    below.authority.stop().await;
    let name = format!("cluster:{}", below.name);
    let ours = |it: &RotationBlocker| it.name == name;
    let named = |it: &Rotation| it.phase() == RotationPhase::Distributing && it.blockers.iter().any(ours);
    let rotation = until(place, "name the cluster that it waits for", named).await?;
    let why = rotation.blockers.iter().find(|it| ours(it)).map(|it| it.why.clone()).unwrap_or_default();
    for caller in below.callers() {
        let before = caller.now().calls;
        drop(caller.until("go on calling", |seen| seen.calls > before).await?);
    }
    below.authority.start_again().await?;
    Ok(((), format!("{name}: {why}; its workloads went on, and it is back")))
}

/// Only the new one is trusted, and the old one's key does not exist any more.
async fn gone(place: &Place, stage: &Stage, old: &str, before: &Roots) -> Result<(Roots, String), String> {
    let rotation = until(place, "end", |it| !it.outcome.is_empty()).await?;
    if rotation.outcome != "rotated" {
        return Err(format!("it was {}", rotation.outcome));
    }
    let after = roots(place).await?;
    if after.len() != 1 || !after.is_disjoint(before) {
        return Err(format!("the bundle has {} roots", after.len()));
    }
    let listed = done(locally(place, &["authority", "list"]).await?)?;
    if authorities(&listed).any(|it| field(it, "/id") == Some(old)) {
        return Err(format!("{old} is still there"));
    }
    same_bundle(place, stage).await?;
    Ok((after, format!("{old} is in no bundle, and its key is destroyed")))
}

/// A second change has come to where the new root signs.
async fn signs_again(place: &Place) -> Result<((), String), String> {
    let ((), _whom) = waits_for_the_laptop(place).await?;
    let rotation = until(place, "sign with the new root", |it| reached(it, RotationPhase::Active)).await?;
    Ok(((), format!("{} signs", rotation.new)))
}

/// It goes the same way backwards, and the same root is trusted as before, byte for byte.
async fn taken_back(place: &Place, stage: &Stage, before: &Roots) -> Result<((), String), String> {
    drop(done(locally(place, &["root", "abort", "--reason", "trial", "--yes"]).await?)?);
    let rotation = until(place, "end", |it| !it.outcome.is_empty()).await?;
    let after = roots(place).await?;
    if rotation.outcome != "aborted" || after != *before {
        return Err(format!("it was {}, and the bundle has {} roots", rotation.outcome, after.len()));
    }
    same_bundle(place, stage).await?;
    Ok(((), format!("{} signs again; the same roots as before, byte for byte", rotation.old)))
}

/// Waits until the change of the root is as `wanted` says.
async fn until(place: &Place, what: &str, wanted: impl Fn(&Rotation) -> bool) -> Result<Rotation, String> {
    let server = format!("unix://{}", path(&place.socket)?);
    let channel = rhizome_tls::connect(&server, None).await.map_err(|error| error.to_string())?;
    let mut last = None;
    let follow = async {
        let watched = RotationServiceClient::new(channel).watch_rotation(WatchRotationRequest {}).await;
        let mut watched = watched.map_err(|status| status.message().to_owned())?.into_inner();
        while let Some(seen) = watched.message().await.map_err(|status| status.message().to_owned())? {
            match seen.rotation {
                Some(rotation) if wanted(&rotation) => return Ok(rotation),
                other => last = other,
            }
        }
        Err(format!("it ended, and did not {what}"))
    };
    match tokio::time::timeout(PATIENCE, follow).await {
        Ok(found) => found,
        Err(_elapsed) => Err(format!("it did not {what} within {PATIENCE:?}{}", where_it_stood(last))),
    }
}

/// The gate that it stood at, and what held it up.
fn where_it_stood(last: Option<Rotation>) -> String {
    let Some(Rotation { gate, waits, blockers, .. }) = last else { return String::new() };
    let reasons = waits.into_iter().chain(blockers.into_iter().map(|it| it.why));
    format!("; {gate}: {}", reasons.collect::<Vec<_>>().join("; "))
}

/// Whether it is there or further, on its way forwards.
fn reached(rotation: &Rotation, phase: RotationPhase) -> bool {
    let far = i32::from(rotation.phase()) >= i32::from(phase) && !rotation.back;
    far || rotation.outcome == "rotated"
}

async fn roots(place: &Place) -> Result<Roots, String> {
    let bundle = done(locally(place, &["bundle", "show"]).await?)?;
    let anchors = bundle.pointer("/anchors").and_then(Value::as_array).ok_or("the answer has no anchors")?;
    anchors.iter().map(|anchor| text(anchor, "/fingerprint")).collect()
}

fn authorities(listed: &Value) -> impl Iterator<Item = &Value> {
    listed.pointer("/authorities").or(Some(listed)).and_then(Value::as_array).into_iter().flatten()
}

fn field<'v>(authority: &'v Value, pointer: &str) -> Option<&'v str> {
    authority.pointer(pointer).and_then(Value::as_str)
}

/// The id of the root above the issuer with this subject.
fn root_above<'v>(listed: &'v Value, subject: &str) -> Option<&'v str> {
    let issuer = authorities(listed).find(|it| field(it, "/subject") == Some(subject))?;
    field(issuer, "/issuer_id")
}
