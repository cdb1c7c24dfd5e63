//! Why a command about a rotation is refused.
//!
//! Laws: a refusal names what stands in the way, and what can be done.

use rhizome_id::{AuthorityId, RotationName, Timestamp};

use super::Phase;
use super::gate::{Gate, Loss};
use crate::limits::{BLOCKERS_NAMED, ROTATION_SKEW_SECONDS};

/// Why a command was refused; nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Another one is under way.
    #[error("rotation {rotation} is under way ({phase}); finish or abort it first")]
    InProgress {
        /// Which.
        rotation: RotationName,
        /// Where it stands.
        phase: Phase,
    },
    /// None is under way.
    #[error("no rotation of the root is under way")]
    NoneUnderWay,
    /// It is not the one that was seen any more.
    #[error("rotation {rotation} has changed meanwhile, its version is {version}; look at it and try again")]
    Changed {
        /// Which it is now.
        rotation: RotationName,
        /// Its version now.
        version: u64,
    },
    /// There is no root to change.
    #[error("there is no active root yet")]
    NoRoot,
    /// The name of the new root is taken.
    #[error("a root or key called {root} exists already; try again")]
    NameTaken {
        /// Which.
        root: AuthorityId,
    },
    /// The name is that of a rotation that has ended.
    #[error("a rotation called {rotation} has ended already, and names are never used again; try again")]
    NameUsed {
        /// Which.
        rotation: RotationName,
    },
    /// The old root has expired.
    #[error(
        "root {root} has expired at {end}; nothing below it works any more: use the mode for expired roots"
    )]
    Expired {
        /// Which.
        root: AuthorityId,
        /// Its last second.
        end: Timestamp,
    },
    /// The old root has not expired.
    #[error(
        "root {root} is valid until {end}, and for slow clocks {ROTATION_SKEW_SECONDS} s longer; the mode for expired roots is \
         not for it"
    )]
    NotExpired {
        /// Which.
        root: AuthorityId,
        /// Its last second.
        end: Timestamp,
    },
    /// The key that must certify the new root is not here.
    #[error(
        "this server has not the key of {root} and cannot cross-certify the new root with it; start at one that has it, or \
         choose to go without"
    )]
    NoBridge {
        /// Whose key.
        root: AuthorityId,
    },
    /// A choice makes no sense.
    #[error("{what}")]
    BadChoice {
        /// What is wrong.
        what: &'static str,
    },
    /// An exemption makes no sense.
    #[error("the exemption was refused: {what}")]
    BadExemption {
        /// What is wrong.
        what: &'static str,
    },
    /// The gate is not open.
    #[error("{phase} cannot be left yet: {why}")]
    Blocked {
        /// Where it stands.
        phase: Phase,
        /// Who or what holds it up, by name.
        why: String,
    },
    /// Somebody would break.
    #[error(
        "{workloads} workloads of {subscribers} would break: {names}; accept it with {digest} or wait",
        workloads = loss.workloads, subscribers = loss.subscribers.len(),
        names = named(&loss.subscribers), digest = loss.digest
    )]
    NeedsConsent {
        /// Who.
        loss: Box<Loss>,
    },
    /// It cannot be taken back.
    #[error("{phase} cannot be taken back: the old root is gone or has expired")]
    Irreversible {
        /// Where it stands.
        phase: Phase,
    },
    /// The old root ends before everybody can be back.
    #[error("root {root} ends at {end}, too soon for everybody to come back to it")]
    TooLate {
        /// Which.
        root: AuthorityId,
        /// Its last second.
        end: Timestamp,
    },
    /// The old root was given up for good.
    #[error("root {root} is in wrong hands and may have been given up: there is no way back to it")]
    Tainted {
        /// Which.
        root: AuthorityId,
    },
}

impl Refusal {
    /// The stable code for metric and audit.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::InProgress { .. } => "rotation_in_progress",
            Self::NoneUnderWay => "rotation_none",
            Self::Changed { .. } => "rotation_changed",
            Self::NoRoot => "rotation_no_root",
            Self::NameTaken { .. } => "rotation_name_taken",
            Self::NameUsed { .. } => "rotation_name_used",
            Self::Expired { .. } => "rotation_root_expired",
            Self::NotExpired { .. } => "rotation_root_not_expired",
            Self::NoBridge { .. } => "rotation_no_bridge",
            Self::BadChoice { .. } => "rotation_bad_choice",
            Self::BadExemption { .. } => "rotation_bad_exemption",
            Self::Blocked { .. } => "rotation_blocked",
            Self::NeedsConsent { .. } => "rotation_needs_consent",
            Self::Irreversible { .. } => "rotation_irreversible",
            Self::TooLate { .. } => "rotation_too_late",
            Self::Tainted { .. } => "rotation_tainted",
        }
    }

    pub(super) fn blocked(phase: Phase, gate: &Gate) -> Self {
        let mut why: Vec<String> = gate.waits.iter().map(ToString::to_string).collect();
        why.extend(gate.blockers.iter().take(BLOCKERS_NAMED).map(ToString::to_string));
        let more = gate.blockers.len().saturating_sub(BLOCKERS_NAMED);
        if more > 0 {
            why.push(format!("and {more} more"));
        }
        if why.is_empty() {
            why.push("what the phase demands is not in force yet".to_owned());
        }
        Self::Blocked { phase, why: why.join("; ") }
    }
}

fn named(names: &[String]) -> String {
    let more = names.len().saturating_sub(BLOCKERS_NAMED);
    let mut text = names.iter().take(BLOCKERS_NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text
}
