//! The canary: which share of what is issued is issued under the new root first.
//!
//! Laws: whether an identity belongs to the share depends on its text and the rotation's name alone, so it stays in it
//! from certificate to certificate and from server to server.

use std::collections::BTreeSet;

use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

use rhizome_id::RotationName;

/// Which share, and for how long.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Canary {
    /// Whom.
    pub share: Share,
    /// For how long nothing may fail, in seconds.
    pub window_seconds: i64,
}

/// Which identities.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Share {
    /// As many of a hundred.
    Percent(u8),
    /// Those in these namespaces: `spiffe://TD/ns/NAMESPACE/…`.
    Namespaces(BTreeSet<String>),
}

impl Canary {
    /// Whether it takes somebody, and not everybody.
    pub fn is_sound(&self) -> bool {
        let share = match &self.share {
            Share::Percent(percent) => (1..=99).contains(percent),
            Share::Namespaces(names) => !names.is_empty(),
        };
        share && self.window_seconds >= 0
    }

    /// Whether the identity with this path (`/ns/NAMESPACE/sa/NAME`) belongs to the share of `rotation`.
    pub fn takes(&self, rotation: &RotationName, path: &str) -> bool {
        match &self.share {
            Share::Percent(percent) => {
                let mut context = Context::new(&SHA256);
                context.update(rotation.as_str().as_bytes());
                context.update(b"\0");
                context.update(path.as_bytes());
                let digest = context.finish();
                let drawn =
                    digest.as_ref().iter().take(4).fold(0u32, |sum, byte| sum << 8 | u32::from(*byte));
                drawn % 100 < u32::from(*percent)
            }
            Share::Namespaces(names) => {
                let mut segments = path.split('/').skip(1);
                segments.next() == Some("ns") && segments.next().is_some_and(|it| names.contains(it))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_about_as_large_as_was_asked_for_and_stays_the_same() {
        let canary = Canary { share: Share::Percent(5), window_seconds: 60 };
        let rotation: RotationName = "rotation-1".parse().unwrap();
        let path = |number: u32| format!("/ns/default/sa/app-{number}");
        let taken = (0..10_000).filter(|number| canary.takes(&rotation, &path(*number))).count();
        assert!((400..600).contains(&taken), "{taken}");
        assert_eq!(canary.takes(&rotation, &path(7)), canary.takes(&rotation, &path(7)));
        let other: RotationName = "rotation-2".parse().unwrap();
        assert!((0..1_000).any(|it| canary.takes(&rotation, &path(it)) != canary.takes(&other, &path(it))));
    }

    #[test]
    fn a_namespace_is_compared_whole() {
        let share = Share::Namespaces(["team-a".to_owned()].into());
        let canary = Canary { share, window_seconds: 60 };
        let rotation: RotationName = "rotation-1".parse().unwrap();
        assert!(canary.takes(&rotation, "/ns/team-a/sa/web"));
        for other in ["/ns/team-ab/sa/web", "/ns/team/sa/web", "/sa/team-a", "/vm/ns/team-a", ""] {
            assert!(!canary.takes(&rotation, other), "{other}");
        }
        let nobody = Canary { share: Share::Namespaces(BTreeSet::new()), window_seconds: 0 };
        assert!(!nobody.is_sound() && canary.is_sound());
    }
}
