//! Connections that are cut, a database that stops, crashes and hangs, and rows that somebody changed.
//! Sources: ca/docs/attacks.md §2 (1, 2, 22).

use std::collections::BTreeSet;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rhizome_core::documents::{Kind, Transaction};
use rhizome_core::ledger::{Event, Position};
use rhizome_core::ports::{Store, StoreError};
use rhizome_id::{SerialCounter, Timestamp};
use rhizome_store::cluster::Cluster;
use rhizome_store::conformance::issued;
use rhizome_store::{PostgresOptions, PostgresStore, verify_ledger};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::support::{Counting, cluster, is_here, key, name_of, open, options, writing};

/// Every serial that was acknowledged is in the ledger with its document, and the chain holds.
async fn check(store: &PostgresStore, told: &BTreeSet<u64>) {
    store.check_integrity().await.unwrap();
    let head = verify_ledger(store).await.unwrap();
    let documents = store.documents(Kind::Rule, None, usize::MAX).await.unwrap();
    assert_eq!(u64::try_from(documents.len()).unwrap(), head.position.0, "a transaction is half there");
    for number in told {
        let record = store.record_of_serial(SerialCounter::new(*number).unwrap()).await.unwrap();
        let (_, Event::Issued(issuance)) = record.unwrap().read().unwrap() else { panic!("{number}") };
        assert_eq!(issuance.serial.counter().value(), *number);
        assert!(store.document(&key(&number.to_string())).await.unwrap().is_some());
    }
}

/// Long enough for a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(5);

/// Asks until the store answers. It reconnects by itself and tells nobody, so asking is the only way to know.
async fn comes_back<T>(ask: impl AsyncFn() -> Result<T, StoreError>) {
    let answered = async {
        while ask().await.is_err() {
            tokio::time::sleep(PAUSE).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, answered).await.is_ok(), "the database was not found again");
}

/// Lanes that commit until they are told to stop, and what they were told.
struct Load {
    stop: Arc<AtomicBool>,
    done: watch::Sender<u64>,
    lanes: JoinSet<(BTreeSet<u64>, u64)>,
}

impl Load {
    fn on(stores: &[Arc<PostgresStore>]) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), watch::Sender::new(0));
        let mut lanes = JoinSet::new();
        for lane in 0..8_usize {
            let store = Arc::clone(&stores[lane % stores.len()]);
            let (stop, done) = (Arc::clone(&stop), done.clone());
            lanes.spawn(async move {
                let (mut told, mut refused) = (BTreeSet::new(), 0);
                while !stop.load(Ordering::Relaxed) {
                    let Ok(first) = store.reserve_serials(1, Timestamp::from_unix(1_000)).await else {
                        refused += 1;
                        // Whoever is refused at once asks again at a pace: the database needs the processor to come back.
                        tokio::time::sleep(PAUSE).await;
                        continue;
                    };
                    let number = first.value();
                    match store.commit(writing(&number.to_string(), "{}").record(issued(number))).await {
                        Ok(_) => {
                            told.insert(number);
                            done.send_modify(|count| *count += 1);
                        }
                        Err(StoreError::Unavailable { .. }) => refused += 1,
                        Err(other) => panic!("{other:?}"),
                    }
                }
                (told, refused)
            });
        }
        Self { stop, done, lanes }
    }

    /// Waits until `more` further commits were acknowledged.
    async fn progress(&self, more: u64) {
        let mut done = self.done.subscribe();
        let goal = *done.borrow() + more;
        tokio::time::timeout(PATIENCE, done.wait_for(|count| *count >= goal)).await.unwrap().unwrap();
    }

    async fn end(mut self) -> (BTreeSet<u64>, u64) {
        self.stop.store(true, Ordering::Relaxed);
        let (mut all, mut failures) = (BTreeSet::new(), 0);
        while let Some(lane) = self.lanes.join_next().await {
            let (told, refused) = lane.unwrap();
            let (before, more) = (all.len(), told.len());
            all.extend(told);
            assert_eq!(all.len(), before + more, "a serial was given out twice");
            failures += refused;
        }
        (all, failures)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_connection_cut_at_any_moment_loses_nothing_that_was_acknowledged() {
    if !is_here() {
        return;
    }
    let place = cluster().database();
    let stores = [Arc::new(open(&place)), Arc::new(open(&place))];
    let load = Load::on(&stores);
    for _ in 0..25 {
        load.progress(20).await;
        let cut = format!(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = '{}'",
            name_of(&place)
        );
        cluster().sql("postgres", &cut);
    }
    load.progress(20).await;
    let (told, _) = load.end().await;
    assert!(told.len() >= 500);
    check(&stores[0], &told).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_database_that_stops_and_crashes_under_load_is_found_again_and_lost_nothing() {
    let Some(cluster) = Cluster::start() else { return };
    let place = cluster.database();
    let stores = [Arc::new(open(&place)), Arc::new(open(&place))];
    let load = Load::on(&stores);
    for round in 0..4 {
        load.progress(50).await;
        if round % 2 == 0 {
            cluster.crash()
        } else {
            cluster.stop()
        }
        // Refused at once, with a time to come back, while it is away.
        let refused = stores[0].commit(writing("away", "{}")).await;
        let Err(StoreError::Unavailable { retry_after, .. }) = refused else { panic!("{refused:?}") };
        assert!(retry_after <= Duration::from_secs(5), "{retry_after:?}");
        assert!(matches!(stores[1].head().await, Err(StoreError::Unavailable { .. })));
        cluster.start_again();
    }
    load.progress(50).await;
    let (told, refused) = load.end().await;
    assert!(refused > 0);
    // One that pauses between two tries may not have noticed yet.
    comes_back(async || stores[1].head().await).await;
    check(&stores[1], &told).await;
}

/// What stands between a server and its database, and may be cut.
struct Gap {
    port: u16,
    /// The next answer to a commit is swallowed, and its connection cut, once this is set.
    mute: Arc<AtomicBool>,
    /// Nobody gets through while this is set.
    closed: Arc<AtomicBool>,
}

impl Gap {
    fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let own = listener.local_addr().unwrap().port();
        let mute = Arc::new(AtomicBool::new(false));
        let muted = Arc::clone(&mute);
        let closed = Arc::new(AtomicBool::new(false));
        let shut = Arc::clone(&closed);
        std::thread::spawn(move || {
            while let Ok((near, _)) = listener.accept() {
                if shut.load(Ordering::SeqCst) {
                    continue;
                }
                let Ok(far) = TcpStream::connect(("127.0.0.1", port)) else { continue };
                let (to_far, to_near) = (far.try_clone().unwrap(), near.try_clone().unwrap());
                let muted = Arc::clone(&muted);
                std::thread::spawn(move || pass(near, to_far, None));
                std::thread::spawn(move || pass(far, to_near, Some(&muted)));
            }
        });
        Self { port: own, mute, closed }
    }
}

/// A store whose only way to its database leads over a gap.
fn behind_a_gap() -> (Gap, PostgresStore) {
    let place = cluster().database();
    cluster().sql("postgres", "ALTER ROLE tests PASSWORD 'a test''s own'");
    let gap = Gap::to(cluster().port());
    let address = format!("host=127.0.0.1 port={} user=tests dbname={}", gap.port, name_of(&place));
    let password = rhizome_store::PostgresPassword::Text("a test's own".to_owned().into());
    let through = PostgresOptions::new(&address, Arc::new(Counting::default())).unwrap();
    (gap, PostgresStore::open(through.with_password(password).danger_plaintext()).unwrap())
}

/// Passes bytes on; with `mute` set it swallows the next answer and cuts the connection.
fn pass(mut from: TcpStream, mut to: TcpStream, mute: Option<&AtomicBool>) {
    use std::io::{Read, Write};

    let mut buffer = [0; 65_536];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let swallowed = mute.is_some_and(|mute| {
            // The answer to a commit: CommandComplete with its tag.
            buffer[..count].windows(7).any(|bytes| bytes == b"COMMIT\0") && mute.swap(false, Ordering::SeqCst)
        });
        if swallowed || to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    drop(from.shutdown(std::net::Shutdown::Both));
    drop(to.shutdown(std::net::Shutdown::Both));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_lost_at_the_commit_is_found_out_and_told_truly() {
    if !is_here() {
        return;
    }
    let (gap, store) = behind_a_gap();
    store.commit(writing("0", "{}").record(issued(0))).await.unwrap();
    for number in 1..20 {
        gap.mute.store(true, Ordering::SeqCst);
        // It happened, and it is told so, once.
        let committed =
            store.commit(writing(&number.to_string(), "{}").record(issued(number))).await.unwrap();
        assert_eq!(committed.receipts[0].position, Position(number + 1));
        assert!(!gap.mute.load(Ordering::SeqCst), "nothing was swallowed");
    }
    check(&store, &(0..20).collect()).await;
    // Without a record there is no telling: the outcome is unknown, and the caller looks for itself.
    gap.mute.store(true, Ordering::SeqCst);
    let unknown = store.commit(writing("quiet", "{}")).await;
    assert!(matches!(unknown, Err(StoreError::Unavailable { .. })), "{unknown:?}");
    assert!(store.document(&key("quiet")).await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_fate_of_a_commit_is_unknown_nothing_is_read() {
    if !is_here() {
        return;
    }
    let (gap, store) = behind_a_gap();
    store.commit(writing("a", "1").record(issued(1))).await.unwrap();
    // Sessions that are there already go on; the one that commits is cut, and finds no way back.
    gap.closed.store(true, Ordering::SeqCst);
    gap.mute.store(true, Ordering::SeqCst);
    let unknown = store.commit(writing("b", "1").record(issued(2))).await;
    assert!(matches!(unknown, Err(StoreError::Unavailable { .. })), "{unknown:?}");
    // "Not there" might be said of what comes a moment later.
    let read = store.document(&key("b")).await;
    assert!(
        matches!(&read, Err(StoreError::Unavailable { cause, .. }) if cause.contains("not known")),
        "{read:?}"
    );
    gap.closed.store(false, Ordering::SeqCst);
    comes_back(async || store.commit(writing("c", "1").record(issued(3))).await).await;
    assert!(store.document(&key("b")).await.unwrap().is_some());
    assert_eq!(verify_ledger(&store).await.unwrap().position, Position(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stands_still_in_a_transaction_holds_others_up_for_seconds_only() {
    if !is_here() {
        return;
    }
    let place = cluster().database();
    let store = open(&place);
    store.commit(writing("a", "1")).await.unwrap();
    // Another server, with the same settings, locked the head, and stands still.
    let (holder, connection) = tokio_postgres::connect(&place, tokio_postgres::NoTls).await.unwrap();
    #[expect(clippy::disallowed_methods, reason = "a test's own task, which ends with the connection")]
    let _driving = tokio::spawn(connection);
    let settings = "SET idle_in_transaction_session_timeout = 3000; BEGIN";
    holder.batch_execute(settings).await.unwrap();
    holder.batch_execute("SELECT 1 FROM rhizome.head FOR UPDATE").await.unwrap();
    // Held up, and then not any more: the database has ended the other's transaction.
    store.commit(writing("a", "2")).await.unwrap();
    assert!(holder.batch_execute("UPDATE rhizome.head SET version = 9").await.is_err(), "it was not ended");
}

#[tokio::test]
async fn a_database_that_is_not_there_is_named_with_the_reason_and_no_secret() {
    if !is_here() {
        return;
    }
    let refused = |options: PostgresOptions| match PostgresStore::open(options) {
        Err(StoreError::Unavailable { cause, .. }) => cause,
        other => panic!("{other:?}"),
    };
    let none = cluster().at("absent");
    assert!(refused(options(&none)).contains("absent"), "{}", refused(options(&none)));
    let nobody = refused(options("host=127.0.0.1 port=1 user=u dbname=d").danger_plaintext());
    assert!(nobody.contains("refused"), "{nobody}");
    let unverified = refused(options("host=127.0.0.1 port=1 user=u dbname=d"));
    assert!(unverified.contains("CA file"), "{unverified}");
    let address = format!("host=127.0.0.1 port={} user=tests dbname=postgres", cluster().port());
    let wrong = rhizome_store::PostgresPassword::Text("not-the-one".to_owned().into());
    let told = refused(options(&address).with_password(wrong).danger_plaintext());
    assert!(told.contains("password authentication failed") && !told.contains("not-the-one"), "{told}");
    let missing = rhizome_store::PostgresPassword::File("/nonexistent/password".into());
    let told = refused(options(&address).with_password(missing).danger_plaintext());
    assert!(told.contains("/nonexistent/password"), "{told}");
}

#[tokio::test]
async fn what_is_foreign_or_newer_is_refused_and_what_is_compatible_is_not() {
    if !is_here() {
        return;
    }
    let place = cluster().database();
    let name = name_of(&place);
    cluster().sql(name, "CREATE SCHEMA rhizome; CREATE TABLE rhizome.ledger (amount int)");
    let refused = PostgresStore::open(options(&place));
    assert!(
        matches!(&refused, Err(StoreError::Corrupt { cause }) if cause.contains("somebody else's")),
        "{refused:?}"
    );
    cluster().sql(name, "DROP SCHEMA rhizome CASCADE");
    open(&place).commit(writing("a", "1")).await.unwrap();
    let newer =
        "INSERT INTO rhizome.refinery_schema_history VALUES (2, 'later', '2030-01-01T00:00:00Z', '7')";
    cluster().sql(name, newer);
    // A migration that only added: this release goes on.
    open(&place).commit(writing("b", "1")).await.unwrap();
    cluster().sql(name, "UPDATE rhizome.head SET floor = 2");
    assert!(matches!(PostgresStore::open(options(&place)), Err(StoreError::Newer { found: 2, known: 1 })));
    // Two trust domains share a database in two schemas.
    let other = PostgresStore::open(options(&place).in_schema("other").unwrap()).unwrap();
    assert!(other.document(&key("a")).await.unwrap().is_none());
}

#[tokio::test]
async fn every_tampering_with_rows_is_reported() {
    if !is_here() {
        return;
    }
    let place = cluster().database();
    let (name, template) = (name_of(&place), format!("{}_t", name_of(&place)));
    {
        let store = open(&place);
        for number in 0..20_u64 {
            let entries = (number * 5..number * 5 + 5).map(issued).collect();
            store.commit(Transaction { entries, ..writing(&number.to_string(), "{\"a\":1}") }).await.unwrap();
        }
    }
    for (tampering, told) in [
        ("DELETE FROM ledger WHERE position = 100", "head should be record 100"),
        ("DELETE FROM ledger", "head should be record 100"),
        ("UPDATE head SET position = 99", "head should be record 99"),
        ("UPDATE head SET hash = decode(repeat('00', 32), 'hex')", "head should be"),
        ("UPDATE head SET hash = 'x'", "digest"),
        ("UPDATE head SET version = -1", "negative"),
        ("UPDATE head SET highest = 3", "highest serial"),
        ("DELETE FROM head", "head is missing"),
        ("DELETE FROM ledger WHERE position = 50", "99 records"),
        ("UPDATE ledger SET body = replace(body, 'shop', 'ship') WHERE position = 50", "ledger record 50"),
        ("UPDATE ledger SET hash = decode(repeat('00', 32), 'hex') WHERE position = 50", "ledger record 50"),
        (
            "UPDATE ledger SET previous = decode(repeat('00', 32), 'hex') WHERE position = 50",
            "ledger record 50",
        ),
        ("UPDATE ledger SET counter = 1000 WHERE position = 50", "highest serial"),
        ("UPDATE ledger SET counter = NULL WHERE position = 50", "ledger record 50"),
        ("UPDATE ledger SET position = 101 WHERE position = 1", "head should be record 100"),
        ("UPDATE documents SET body = '[]' WHERE id = '7'", "rule 7"),
        ("UPDATE documents SET body = NULL WHERE id = '7'", "rule 7"),
        ("UPDATE documents SET version = 1 WHERE id = '7'", "rule 7"),
        ("UPDATE documents SET id = 'x' WHERE id = '7'", "rule x"),
        ("UPDATE documents SET kind = 'token' WHERE id = '7'", "token 7"),
    ] {
        cluster().sql("postgres", &format!("DROP DATABASE IF EXISTS {template}"));
        cluster().sql("postgres", &format!("CREATE DATABASE {template} TEMPLATE {name}"));
        cluster().sql(&template, &format!("SET search_path = rhizome; {tampering}"));
        match inspect(&cluster().at(&template)).await {
            Err(StoreError::Corrupt { cause }) => assert!(cause.contains(told), "{tampering}: {cause}"),
            other => panic!("{tampering}: {other:?}"),
        }
    }
    inspect(&place).await.unwrap();
}

/// Whether anything at all about the database is found to be wrong.
async fn inspect(place: &str) -> Result<(), StoreError> {
    let store = PostgresStore::open(options(place))?;
    store.check_integrity().await?;
    verify_ledger(&store).await?;
    for kind in Kind::ALL {
        store.documents(kind, None, usize::MAX).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_backup_is_refused_with_the_tool_that_makes_one() {
    if !is_here() {
        return;
    }
    let store = open(&cluster().database());
    let refused = store.backup(std::path::Path::new("/tmp/never")).await;
    assert!(
        matches!(&refused, Err(StoreError::Unsupported { remedy }) if remedy.contains("pg_dump")),
        "{refused:?}"
    );
}

/// A certificate for `name` that vouches for itself, and its key, as PEM.
fn certificate(directory: &std::path::Path, name: &str) -> Option<(String, String)> {
    let (certificate, key) = (directory.join(format!("{name}.crt")), directory.join(format!("{name}.key")));
    let mut command = std::process::Command::new("openssl");
    command.args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]);
    command.args(["-subj", &format!("/CN={name}"), "-addext", &format!("subjectAltName=DNS:{name}")]);
    command
        .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&certificate);
    let made = command.output().is_ok_and(|output| output.status.success());
    let read = |path| std::fs::read_to_string(path).unwrap();
    made.then(|| (read(certificate), read(key)))
}

#[tokio::test]
async fn over_tls_the_databases_certificate_is_verified_by_chain_and_name() {
    let Some(cluster) = Cluster::start() else { return };
    let directory = tempfile::tempdir().unwrap();
    let (Some((own, key)), Some(_)) =
        (certificate(directory.path(), "localhost"), certificate(directory.path(), "elsewhere"))
    else {
        // `tests/run` installs it; PostgreSQL's own package depends on it.
        panic!("openssl is missing: apt-get install openssl");
    };
    let place = cluster.database();
    cluster.sql("postgres", "ALTER ROLE tests PASSWORD 'secret'");
    cluster.use_tls(&own, &key);
    cluster.stop();
    cluster.start_again();
    let password = directory.path().join("password");
    std::fs::write(&password, "secret\n").unwrap();
    let reach = |host: &str, ca: &str| {
        let address = format!("host={host} port={} user=tests dbname={}", cluster.port(), name_of(&place));
        let by = directory.path().join(format!("{ca}.crt"));
        let password = rhizome_store::PostgresPassword::File(password.clone());
        PostgresStore::open(options(&address).with_password(password).verified_by(&by).unwrap())
    };
    let store = reach("localhost", "localhost").unwrap();
    store.commit(writing("a", "1")).await.unwrap();
    let encrypted = cluster.sql(
        "postgres",
        "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                                             WHERE application_name = 'rhizome'",
    );
    assert_eq!(encrypted, "t");
    // Another authority, another name; and a password that was changed while the server runs.
    for (host, ca) in [("localhost", "elsewhere"), ("127.0.0.1", "localhost")] {
        let Err(StoreError::Unavailable { cause, .. }) = reach(host, ca) else { panic!("{host} by {ca}") };
        assert!(cause.contains("TLS") || cause.contains("certificate"), "{cause}");
    }
    cluster.sql("postgres", "ALTER ROLE tests PASSWORD 'another'");
    std::fs::write(&password, "another\n").unwrap();
    cluster.sql(
        "postgres",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'rhizome'",
    );
    store.commit(writing("a", "2").record(issued(1))).await.unwrap();
    assert!(store.document(&super::support::key("a")).await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_hangs_is_given_up_and_found_again() {
    let Some(cluster) = Cluster::start() else { return };
    let store = open(&cluster.database());
    store.commit(writing("a", "1")).await.unwrap();
    cluster.freeze();
    let given_up = store.commit(writing("a", "2")).await;
    assert!(matches!(given_up, Err(StoreError::Unavailable { .. })), "{given_up:?}");
    cluster.thaw();
    comes_back(async || store.commit(writing("a", "3")).await).await;
    store.check_integrity().await.unwrap();
}
