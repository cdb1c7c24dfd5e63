//! Tests of the state: the order in which changes arrive, and what followers hear.

use proptest::prelude::*;

use super::*;
use crate::documents::Write;

fn state() -> State {
    State::empty("example.org".parse().unwrap(), "r1".parse().unwrap())
}

fn rule(name: &str, path: &str) -> Rule {
    let text =
        format!(r#"{{"name":"{name}","when":{{"namespace":["*"]}},"identity":"/{path}/{{namespace}}"}}"#);
    serde_json::from_str(&text).unwrap()
}

/// What happened to three rules, in the order in which the store committed it.
fn history(steps: &[(usize, bool)]) -> Vec<(Version, Write)> {
    let names = ["a", "b", "c"];
    let step = |(at, (which, put)): (usize, &(usize, bool))| {
        let name = names[which % 3];
        let rule = rule(name, &format!("v{at}"));
        let body = serde_json::to_string(&rule).unwrap().into();
        let write = if *put { Write::Put(rule.key(), body) } else { Write::Delete(rule.key()) };
        (Version(u64::try_from(at).unwrap() + 1), write)
    };
    steps.iter().enumerate().map(step).collect()
}

fn apply(state: &mut State, (version, write): &(Version, Write)) {
    match write {
        Write::Put(key, body) => {
            state.put(&Document { key: key.clone(), version: *version, body: Arc::clone(body) }).unwrap();
        }
        Write::Delete(key) => state.delete(key, *version).unwrap(),
    }
}

fn rules_in(state: &State) -> Vec<String> {
    state.rules().values().map(|it| serde_json::to_string(&*it.value).unwrap()).collect()
}

proptest! {
    #[test]
    fn changes_that_arrive_in_any_order_give_the_same_state(
        steps in proptest::collection::vec((0usize..3, any::<bool>()), 1..12),
        order in proptest::collection::vec(any::<u32>(), 12),
    ) {
        let history = history(&steps);
        let mut in_order = state();
        history.iter().for_each(|change| apply(&mut in_order, change));
        let mut shuffled: Vec<_> = history.iter().zip(order).collect();
        shuffled.sort_by_key(|(_, draw)| *draw);
        let mut out_of_order = state();
        shuffled.iter().for_each(|(change, _)| apply(&mut out_of_order, change));
        prop_assert_eq!(rules_in(&in_order), rules_in(&out_of_order));
        prop_assert_eq!(in_order.rule_set().len(), out_of_order.rule_set().len());
    }
}

#[test]
fn a_deleted_rule_is_told_to_whoever_knew_it() {
    let mut state = state();
    history(&[(0, true), (1, true), (0, false)]).iter().for_each(|change| apply(&mut state, change));
    let heard =
        |cursor| state.changes_since(cursor).map(|keys| keys.map(|key| key.id.clone()).collect::<Vec<_>>());
    assert_eq!(heard(2), Some(vec!["a".to_owned()]));
    assert_eq!(heard(3), Some(Vec::new()));
    assert_eq!(heard(4), None, "a future that this process does not know");
    assert_eq!((state.version(), state.cursor()), (Version(3), 3));
}

#[test]
fn a_change_that_is_taken_in_late_is_still_heard() {
    let history = history(&[(0, true), (1, true)]);
    let mut state = state();
    apply(&mut state, &history[1]);
    let cursor = state.cursor();
    apply(&mut state, &history[0]);
    let late: Vec<_> = state.changes_since(cursor).unwrap().map(|key| key.id.as_str()).collect();
    assert_eq!(late, ["a"], "though its version is lower than one that was heard before");
}

#[test]
fn after_loading_only_cursors_of_this_process_can_be_followed() {
    let mut state = state();
    history(&[(0, true), (1, true)]).iter().for_each(|change| apply(&mut state, change));
    state.begin_journal(1_000);
    assert!(state.changes_since(2).is_none());
    assert_eq!(state.changes_since(1_000).unwrap().count(), 0);
}

#[test]
fn a_document_that_cannot_be_read_changes_nothing_and_names_itself() {
    let mut state = state();
    let key = DocumentKey::new(Kind::Rule, "a");
    let broken = Document { key, version: Version(1), body: "{}".into() };
    let error = state.put(&broken).unwrap_err();
    assert!(error.to_string().contains("rule a"), "{error}");
    assert_eq!((state.version(), state.rules().len()), (Version(0), 0));
}
