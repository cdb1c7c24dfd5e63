//! Sinks at work: on real files, with real commands, before identities that the test decides.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rhizome_id::TrustDomain;
use tokio::sync::watch;

use super::*;
use crate::holdings::{Awaited, NotYet, Svid};
use crate::testing::{at, bundle, root, svid};
use crate::{SystemClock, SystemEntropy};

/// Longer than anything here takes; whoever waits that long waits for ever.
const DEADLINE: Duration = Duration::from_secs(60);

type Seen = Result<Arc<View>, NotYet>;

/// Identities that a test decides; notes where each stream stands.
struct Fake {
    domain: TrustDomain,
    seen: watch::Sender<Seen>,
    standings: watch::Sender<BTreeMap<u64, Standing>>,
    next: AtomicU64,
}

impl Identities for Fake {
    fn follow(&self, _attributes: Attributes) -> watch::Receiver<Seen> {
        self.seen.subscribe()
    }

    fn trust_domain(&self) -> &TrustDomain {
        &self.domain
    }

    fn open(&self) -> u64 {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.stands(id, Standing::Taking);
        id
    }

    fn stands(&self, subscriber: u64, standing: Standing) {
        self.standings.send_modify(|all| {
            all.insert(subscriber, standing);
        });
    }
}

struct Host {
    fake: Arc<Fake>,
    spawner: Spawner,
    board: Arc<SinkBoard>,
}

impl Host {
    fn start(sinks: &str) -> Self {
        let fake = Arc::new(Fake {
            domain: "example.org".parse().unwrap(),
            seen: watch::Sender::new(Err(NotYet::Starting)),
            standings: watch::Sender::default(),
            next: AtomicU64::new(0),
        });
        let ports = SinkPorts {
            identities: Arc::<Fake>::clone(&fake),
            clock: Arc::new(SystemClock),
            entropy: Arc::new(SystemEntropy::default()),
        };
        let (settings, spawner) = (serde_saphyr::from_str(sinks).unwrap(), Spawner::default());
        let board = start_sinks(settings, &ports, &spawner).unwrap();
        Self { fake, spawner, board }
    }

    fn give(&self, svid: &Arc<Svid>, sequence: u64, version: u64) {
        let trust = bundle(sequence, &[&root("one")]);
        let bundles = BTreeMap::from([(trust.trust_domain().clone(), Arc::new(trust))]);
        drop(self.fake.seen.send_replace(Ok(Arc::new(View {
            svids: vec![Arc::clone(svid)],
            bundles,
            awaited: Awaited::default(),
            crls: Arc::default(),
            version,
        }))));
    }

    /// Waits until the streams stand so.
    async fn until(&self, wanted: impl Fn(&[Standing]) -> bool) {
        let mut standings = self.fake.standings.subscribe();
        let so = |all: &BTreeMap<u64, Standing>| wanted(&all.values().copied().collect::<Vec<_>>());
        let waited = tokio::time::timeout(DEADLINE, standings.wait_for(so)).await.map(drop);
        assert!(
            waited.is_ok(),
            "streams stand at {:?}; {:?}",
            self.fake.standings.borrow(),
            self.board.all()
        );
    }

    /// Waits until a sink is so.
    async fn health(&self, name: &str, wanted: SinkHealth) -> SinkStatus {
        let wait = async {
            loop {
                let found = self.board.all().into_iter().find(|it| it.name == name && it.health == wanted);
                if let Some(found) = found {
                    return found;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("{:?}", self.board.all()))
    }
}

/// How a sink stands that has given the software the view of this version: every certificate here is from the beginning.
fn given(version: u64) -> Standing {
    Standing::GivenUntil(version, at(3_599))
}

fn file_sink(name: &str, file: &Path, reload: &str) -> String {
    let file = file.display();
    format!("- {{name: {name}, attributes: {{unix.uid: 1}}, file: {file}, reload: {{{reload}}}}}\n")
}

#[tokio::test]
async fn a_bundle_is_in_force_only_when_the_software_was_told() {
    let folder = tempfile::tempdir().unwrap();
    let (file, flag) = (folder.path().join("all.pem"), folder.path().join("works"));
    let reload = format!("command: {{argv: [/bin/sh, -c, 'test -e {}']}}", flag.display());
    let host = Host::start(&file_sink("a", &file, &reload));
    host.until(|all| all == [Standing::Nothing]).await;
    let first = svid("/a", "01", at(0));
    host.give(&first, 1, 7);
    let failing = host.health("a", SinkHealth::Failing).await;
    assert!(file.exists() && failing.trouble.unwrap().contains("/bin/sh"));
    assert_eq!(host.fake.standings.borrow()[&0], Standing::Taking, "written, but not told");
    std::fs::write(&flag, "").unwrap();
    host.until(|all| all == [given(7)]).await;
    let well = host.health("a", SinkHealth::InForce).await;
    assert!(well.failures == 0 && well.failures_total > 0 && well.trouble.is_none());
    assert_eq!((well.bundle_sequence, well.spiffe_id.as_deref()), (Some(1), Some("spiffe://example.org/a")));
    host.give(&first, 2, 8);
    host.until(|all| all == [given(8)]).await;
    host.spawner.shut_down().await;
    host.until(|all| all == [Standing::Gone]).await;
    assert!(file.exists(), "the software goes on without the agent");
}

#[tokio::test]
async fn a_directory_that_is_not_there_harms_no_other_sink_and_is_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let (there, away) = (folder.path().join("a.pem"), folder.path().join("away/b.pem"));
    let host = Host::start(&format!("{}{}", file_sink("a", &there, ""), file_sink("b", &away, "")));
    host.give(&svid("/a", "01", at(0)), 1, 3);
    host.health("a", SinkHealth::InForce).await;
    let failing = host.health("b", SinkHealth::Failing).await;
    assert!(failing.trouble.unwrap().contains("away"));
    std::fs::create_dir(away.parent().unwrap()).unwrap();
    host.health("b", SinkHealth::InForce).await;
    host.until(|all| all == [given(3), given(3)]).await;
    assert!(away.exists());
    host.spawner.shut_down().await;
}

#[tokio::test]
async fn while_the_default_identity_is_on_its_way_the_one_in_the_files_stays_and_is_renewed() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("all.pem");
    let host = Host::start(&file_sink("a", &file, ""));
    host.give(&svid("/a", "01", at(0)), 1, 3);
    host.until(|all| all == [given(3)]).await;
    let awaited = |version, sequence, of: &Arc<Svid>| {
        host.give(of, sequence, version);
        let view = host.fake.seen.borrow().clone().unwrap();
        let identities = [crate::testing::entitlement("/b").spiffe_id].into();
        let awaited = Awaited { identities, default: true };
        let (svids, bundles, crls) = (view.svids.clone(), view.bundles.clone(), Arc::clone(&view.crls));
        drop(host.fake.seen.send_replace(Ok(Arc::new(View { svids, awaited, bundles, crls, version }))));
    };
    awaited(5, 2, &svid("/a", "02", at(0)));
    host.until(|all| all == [given(5)]).await;
    assert_eq!(host.health("a", SinkHealth::InForce).await.bundle_sequence, Some(2));
    awaited(7, 3, &svid("/c", "03", at(0)));
    host.give(&svid("/b", "04", at(0)), 4, 8);
    host.until(|all| all == [given(8)]).await;
    let well = host.health("a", SinkHealth::InForce).await;
    assert_eq!(well.spiffe_id.as_deref(), Some("spiffe://example.org/b"), "and never the third one");
    host.spawner.shut_down().await;
}

#[tokio::test]
async fn what_is_no_longer_granted_is_taken_away_and_holds_nothing_up() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("all.pem");
    let host = Host::start(&file_sink("a", &file, ""));
    host.give(&svid("/a", "01", at(0)), 1, 3);
    host.until(|all| all == [given(3)]).await;
    drop(host.fake.seen.send_replace(Err(NotYet::Denied("no rule matches".to_owned()))));
    host.until(|all| all == [Standing::Nothing]).await;
    let denied = host.health("a", SinkHealth::Denied).await;
    assert_eq!(denied.trouble.as_deref(), Some("no rule matches"));
    assert!(!file.exists());
    host.spawner.shut_down().await;
}
