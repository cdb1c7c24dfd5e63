use super::*;

fn rotation() -> Rotation {
    let at = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
    Rotation {
        name: "rotation-1".into(),
        version: 4,
        mode: RotationMode::Planned.into(),
        phase: RotationPhase::Distributing.into(),
        old: "root-1".into(),
        new: "root-2".into(),
        started_by: "admin:alice".into(),
        reason: "yearly".into(),
        started_at: at(100),
        since: at(160),
        gate: "every live subscriber must acknowledge both roots".into(),
        places: vec![RotationPlace { cluster: "prod".into(), kind: "agent".into(), done: 1, total: 2 }],
        blockers: vec![RotationBlocker {
            name: "node:a".into(),
            why: "node:a has bundle 1, not yet 2".into(),
            ..RotationBlocker::default()
        }],
        blocker_count: 1,
        ..Rotation::default()
    }
}

#[test]
fn the_status_names_the_phase_the_gate_and_who_holds_it_up() {
    let text = status(&rotation(), Timestamp::from_unix(220)).unwrap().text;
    for expected in [
        "distributing",
        "(shut)",
        "prod",
        "1/2",
        "held up by 1:",
        "node:a has bundle 1, not yet 2",
        "by admin:alice: yearly",
    ] {
        assert!(text.contains(expected), "{expected:?} in\n{text}");
    }
}

#[test]
fn a_rotation_that_ended_says_how_and_names_no_gate() {
    let ended = Rotation { outcome: "aborted".into(), phase: RotationPhase::Stable.into(), ..rotation() };
    let view = status(&ended, Timestamp::from_unix(220)).unwrap();
    assert!(view.text.contains("aborted") && !view.text.contains("gate"), "{}", view.text);
    assert_eq!(view.json["outcome"], "aborted");
}

#[test]
fn whoever_is_left_out_of_a_list_is_counted() {
    let now = Timestamp::from_unix(220);
    let names = |count: usize| (0..count).map(|number| format!("node:{number}")).collect::<Vec<_>>();
    let blocker = |name| RotationBlocker { name, ..RotationBlocker::default() };
    let lost = Rotation {
        losses: names(1_000),
        loss_count: 1_234,
        lost_workloads: 5_000,
        loss_digest: "ab12".into(),
        blockers: names(1_000).into_iter().map(blocker).collect(),
        blocker_count: 1_010,
        ..rotation()
    };
    let view = status(&lost, now).unwrap();
    for expected in ["5000 workloads of 1234: node:0, node:1,", "node:9, and 1224 more", "  and 1000 more\n"]
    {
        assert!(view.text.contains(expected), "{expected:?} in\n{}", view.text);
    }
    assert_eq!((&view.json["loss_count"], &view.json["blocker_count"]), (&json!(1_234), &json!(1_010)));
    let blockers = names(3).into_iter().map(blocker).collect();
    let planned =
        plan(&PlanRotationResponse { blockers, blocker_count: 3, ..Default::default() }, now).unwrap();
    assert!(
        planned.text.contains("3 would hold it up") && !planned.text.contains("more"),
        "{}",
        planned.text
    );
    let one = rhizome_proto::admin::v1::Dependent { name: "node:0".into(), ..Default::default() };
    let answer = ListDependentsResponse { dependents: vec![one], count: 7, root: "root-1".into() };
    assert!(dependents(&answer, now).unwrap().text.ends_with("and 6 more\n"));
}
