use super::*;

fn name(text: &str) -> ReplicaName {
    text.parse().unwrap()
}

fn record(replica: &str, session: &str, version: u64) -> Versioned<ReplicaRecord> {
    let number = ReplicaNumber::new(0).unwrap();
    let session = session.to_owned();
    let value = ReplicaRecord { name: name(replica), number, session, beats: version, stopped: false };
    Versioned { version: Version(version), value }
}

fn lease(holder: &str, session: &str, version: u64) -> Versioned<Lease> {
    let value = Lease { holder: name(holder), session: session.to_owned() };
    Versioned { version: Version(version), value }
}

#[test]
fn a_free_lease_is_taken_and_one_of_a_living_holder_is_left() {
    let mut watch = Watch::default();
    watch.look(vec![record("r1", "s1", 1), record("r2", "s2", 2)], 0);
    let me = name("r2");
    assert!(matches!(decide(None, &watch, (&me, "s2"), 0), Move::Take(_)));
    let held = lease("r1", "s1", 7);
    assert!(matches!(decide(Some(&held), &watch, (&me, "s2"), PATIENCE_SECONDS - 1), Move::Leave));
    let held = decide(Some(&held), &watch, (&name("r1"), "s1"), 99);
    assert!(matches!(held, Move::Hold(Fence(Version(7)))));
}

#[test]
fn the_lease_of_whoever_stopped_beating_is_taken_with_its_version_required() {
    let mut watch = Watch::default();
    watch.look(vec![record("r1", "s1", 1)], 0);
    // The same record again is no sign of life, another version is.
    watch.look(vec![record("r1", "s1", 1)], 5);
    let (me, held) = (name("r2"), lease("r1", "s1", 7));
    let Move::Take(transaction) = decide(Some(&held), &watch, (&me, "s2"), PATIENCE_SECONDS) else {
        panic!()
    };
    let fenced = Fence(Version(7)).around(Transaction::named("x"));
    assert_eq!(transaction.requirements, fenced.requirements);
    watch.look(vec![record("r1", "s1", 2)], PATIENCE_SECONDS);
    assert!(matches!(decide(Some(&held), &watch, (&me, "s2"), PATIENCE_SECONDS + 5), Move::Leave));
}

#[test]
fn a_holder_that_said_good_bye_came_back_or_has_no_record_holds_nothing() {
    let me = name("r2");
    let held = lease("r1", "s1", 7);
    let mut gone = record("r1", "s1", 3);
    gone.value.stopped = true;
    for records in [vec![], vec![record("r1", "later", 3)], vec![gone]] {
        let mut watch = Watch::default();
        watch.look(records, 0);
        assert!(matches!(decide(Some(&held), &watch, (&me, "s2"), 0), Move::Take(_)));
    }
    // Nor does it hold what it held before it was restarted.
    let mut watch = Watch::default();
    watch.look(vec![record("r1", "later", 3)], 0);
    assert!(matches!(decide(Some(&held), &watch, (&name("r1"), "later"), 0), Move::Take(_)));
}

#[test]
fn the_living_are_counted_by_ones_own_clock_alone() {
    let mut watch = Watch::default();
    watch.look(vec![record("r1", "a", 1), record("r2", "b", 2), record("r3", "c", 3)], 1_000);
    assert_eq!(watch.alive(1_000), 3);
    watch.look(vec![record("r1", "a", 1), record("r2", "b", 9), record("r3", "c", 3)], 1_008);
    assert_eq!(watch.alive(1_011), 1);
    assert!(watch.is_alive(&name("r2"), 1_011) && !watch.is_alive(&name("r1"), 1_011));
}

#[test]
fn numbers_are_given_out_once_and_holes_are_filled() {
    let number = |value| NumberRecord { number: ReplicaNumber::new(value).unwrap(), name: name("r") };
    assert_eq!(free_number(&[]), ReplicaNumber::new(0));
    assert_eq!(free_number(&[number(0), number(2)]), ReplicaNumber::new(1));
    let all: Vec<_> = (0..1 << 14).map(number).collect();
    assert_eq!(free_number(&all), None);
}
