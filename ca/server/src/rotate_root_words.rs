//! The ledger's words for what happens while the root is changed.
//!
//! Laws: an entry is one line; long lists are counted, digested, and begun.
//! Not here: what happens (`rhizome_core::rotation`), storing it (`rotate_root`).

use rhizome_core::rotation::{Accepted, Passage, Rotation};

/// What somebody wrote, in one line.
pub(crate) fn one_line(text: &str) -> String {
    text.split(char::is_control).map(str::trim).filter(|it| !it.is_empty()).collect::<Vec<_>>().join(" ")
}

/// The ledger's words for a phase that was left.
pub(crate) fn passed(before: &Rotation, next: &Rotation, passage: &Passage) -> String {
    let Passage { acknowledged, count, exempted, probes, accepted, .. } = passage;
    let names = match exempted.count {
        0 => "nobody".to_owned(),
        count => {
            format!("{count} ({}), SHA-256 {}", several(&exempted.first, count), exempted.digest)
        }
    };
    let lost = accepted.as_ref().map(lost).unwrap_or_default();
    let why = if probes.1 > 0 { format!("; {}", passage.by) } else { String::new() };
    format!(
        "{} -> {} ({:?}); {count} acknowledged, SHA-256 {acknowledged}; exempted: {names}{lost}; probes: {}, failed: {}{why}",
        before.phase, next.phase, next.heading, probes.0, probes.1
    )
}

/// An accepted loss in words.
pub(crate) fn lost(it: &Accepted) -> String {
    let names = several(&it.first, it.count);
    format!(
        "; given up: {} ({names}) with {} certificates, accepted by {} as {}",
        it.count, it.workloads, it.by, it.digest
    )
}

fn several(first: &[String], count: u32) -> String {
    let more = count.saturating_sub(u32::try_from(first.len()).unwrap_or(u32::MAX));
    let names = first.join(", ");
    if more > 0 { format!("{names} and {more} more") } else { names }
}

/// The ledger's words for a change within a phase.
pub(crate) fn changed(before: Option<&Rotation>, next: &Rotation) -> String {
    let Some(before) = before.filter(|it| it.name == next.name) else {
        return format!("{} gives way to {}: {:?}, {:?}", next.old, next.new, next.mode, next.choices);
    };
    match next.exemptions.iter().find(|it| !before.exemptions.contains(it)) {
        Some(it) => {
            format!("{} is exempted until {} by {}: {}", it.subscriber, it.expires_at, it.approver, it.reason)
        }
        None => format!("self-test: {:?}", next.self_test),
    }
}
