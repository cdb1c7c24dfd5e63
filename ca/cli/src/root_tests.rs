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
        started_by: "admin:alice: yearly".into(),
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
    for expected in
        ["distributing", "(shut)", "prod", "1/2", "held up by 1:", "node:a has bundle 1, not yet 2"]
    {
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
