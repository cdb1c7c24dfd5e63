//! What is true at every moment of every rotation, each a function named as a sentence.
//!
//! Laws: these are the laws. They speak of the world as it *is*, with what every verifier trusts and every workload
//! presents, which the machine itself never sees; so only a model check, a simulation or a test of the whole can ask them.
//! Sources: ca/docs/rotation.md, The invariants.

use std::collections::{BTreeMap, BTreeSet};

use rhizome_id::{AuthorityId, RotationName, Timestamp};

use super::{Outcome, Rotation};

/// A certificate that somebody presents, with all that its chain can reach.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Leaf {
    /// Who presents it.
    pub holder: String,
    /// Its serial.
    pub serial: u64,
    /// Its last second.
    pub not_after: Timestamp,
    /// The root that it was issued under.
    pub root: AuthorityId,
    /// Every root that its chain reaches, and until when.
    pub reaches: BTreeMap<AuthorityId, Timestamp>,
    /// The last second of each authority of the chain as it was served.
    pub chain_ends: Vec<Timestamp>,
}

/// Somebody who verifies.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Verifier {
    /// Who.
    pub name: String,
    /// Which roots it trusts.
    pub trusts: BTreeSet<AuthorityId>,
    /// The sequence of its bundle.
    pub sequence: u64,
    /// Its clock.
    pub clock: Timestamp,
}

/// What does not hold, in words.
pub type Verdict = Result<(), String>;

/// I1: every live leaf reaches an unexpired root in every live subscriber's bundle. `excused` are those whom an
/// administrator exempted, or whose loss was accepted by name.
///
/// # Errors
/// The first pair that cannot authenticate.
pub fn every_live_leaf_reaches_an_unexpired_root_in_every_live_subscribers_bundle(
    leaves: &[Leaf],
    verifiers: &[Verifier],
    excused: &BTreeSet<&str>,
) -> Verdict {
    for leaf in leaves.iter().filter(|it| !excused.contains(it.holder.as_str())) {
        for verifier in verifiers.iter().filter(|it| !excused.contains(it.name.as_str())) {
            // What has expired by the verifier's clock is refused for that, whatever it trusts.
            if leaf.not_after < verifier.clock {
                continue;
            }
            let reached = leaf
                .reaches
                .iter()
                .any(|(root, until)| verifier.trusts.contains(root) && *until >= verifier.clock);
            if !reached {
                let (reaches, trusts) = (leaf.reaches.keys(), &verifier.trusts);
                return Err(format!(
                    "{} presents what reaches {:?} to {}, which trusts {trusts:?}",
                    leaf.holder,
                    reaches.collect::<Vec<_>>(),
                    verifier.name
                ));
            }
        }
    }
    Ok(())
}

/// I2: nothing signs before its root passed `distributing`. `passed` are the roots that did, the very first among them.
///
/// # Errors
/// The first leaf below another root.
pub fn nothing_signs_before_its_root_passed_distributing(
    leaves: &[Leaf],
    passed: &BTreeSet<AuthorityId>,
) -> Verdict {
    match leaves.iter().find(|it| !passed.contains(&it.root)) {
        Some(leaf) => Err(format!("{} presents a certificate below {}", leaf.holder, leaf.root)),
        None => Ok(()),
    }
}

/// I3: at most one authority of a kind is active. `active` are the active ones by kind and, for issuers, replica.
///
/// # Errors
/// The kind of which two are.
pub fn at_most_one_authority_of_a_kind_is_active<'a>(active: impl IntoIterator<Item = &'a str>) -> Verdict {
    let mut seen = BTreeSet::new();
    match active.into_iter().find(|kind| !seen.insert(*kind)) {
        Some(kind) => Err(format!("two of {kind} are active")),
        None => Ok(()),
    }
}

/// I4: no leaf outlives any authority of its chain.
///
/// # Errors
/// The first that does.
pub fn no_leaf_outlives_any_authority_of_its_chain(leaves: &[Leaf]) -> Verdict {
    match leaves.iter().find(|leaf| leaf.chain_ends.iter().any(|end| leaf.not_after > *end)) {
        Some(leaf) => Err(format!("the certificate of {} outlives its chain", leaf.holder)),
        None => Ok(()),
    }
}

/// I5: serials are unique. `serials` is every serial ever issued.
///
/// # Errors
/// The first that was issued twice.
pub fn serials_are_unique(serials: impl IntoIterator<Item = u64>) -> Verdict {
    let mut seen = BTreeSet::new();
    match serials.into_iter().find(|serial| !seen.insert(*serial)) {
        Some(serial) => Err(format!("serial {serial} was issued twice")),
        None => Ok(()),
    }
}

/// I6: killed between any two effects and restarted, it reaches the same state. `run` performs everything there is to do,
/// but stops after so many effects, if a number is given; then it starts anew and goes on.
///
/// # Errors
/// The number of effects after which the end is another one.
pub fn killed_between_any_two_effects_and_restarted_it_reaches_the_same_state<W: PartialEq>(
    mut run: impl FnMut(Option<usize>) -> (W, usize),
) -> Verdict {
    let (undisturbed, effects) = run(None);
    match (0..=effects).find(|killed| run(Some(*killed)).0 != undisturbed) {
        Some(killed) => Err(format!("killed after {killed} effects, it ended in another state")),
        None => Ok(()),
    }
}

/// I7: a tainted authority never returns. `tainted` is every root that was ever given up.
///
/// # Errors
/// The root that signs again.
pub fn a_tainted_authority_never_returns(
    tainted: &BTreeSet<AuthorityId>,
    active: Option<&AuthorityId>,
) -> Verdict {
    match active.filter(|it| tainted.contains(*it)) {
        Some(root) => Err(format!("{root} signs again")),
        None => Ok(()),
    }
}

/// I8: two replicas never both make a key for one rotation. `made` says for every key that a root was ever recorded with,
/// by its material and not only by its name, which rotation it was made for.
///
/// # Errors
/// The rotation that has two.
pub fn two_replicas_never_both_make_a_key_for_one_rotation<'a, K: PartialEq + std::fmt::Debug>(
    made: impl IntoIterator<Item = (&'a RotationName, K)>,
) -> Verdict {
    let mut seen: BTreeMap<&RotationName, K> = BTreeMap::new();
    for (rotation, key) in made {
        if let Some(other) = seen.get(rotation).filter(|it| **it != key) {
            return Err(format!("{rotation} has {other:?} and {key:?}"));
        }
        seen.insert(rotation, key);
    }
    Ok(())
}

/// I9: bundle sequences only grow, across restores too. `before` and `after` are the sequences of one holder, or of what
/// is served.
///
/// # Errors
/// Both, when the later one is lower.
pub fn bundle_sequences_only_grow(who: &str, before: u64, after: u64) -> Verdict {
    if after < before { Err(format!("{who} went from bundle {before} to {after}")) } else { Ok(()) }
}

/// I10: an abort restores trust byte for byte. `before` and `now` are the anchors of the bundle in a form that is compared
/// byte for byte.
///
/// # Errors
/// When an aborted rotation left another bundle than it found.
pub fn abort_restores_trust_byte_for_byte<T: PartialEq + std::fmt::Debug>(
    rotation: &Rotation,
    before: &T,
    now: &T,
) -> Verdict {
    if rotation.outcome == Some(Outcome::Aborted) && before != now {
        return Err(format!("the bundle was {before:?} and is {now:?}"));
    }
    Ok(())
}
