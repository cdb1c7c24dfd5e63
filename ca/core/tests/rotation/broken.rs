//! What can be broken on purpose, and which invariant must notice: a check that cannot fail proves nothing.

use rhizome_core::rotation::evidence::{Held, World};
use rhizome_core::rotation::{Heading, Mode, Phase, Rotation};

/// The invariants, by their numbers in `rhizome_core::rotation::invariants`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Law {
    I1,
    I2,
    I3,
    I4,
    I5,
    I7,
    I8,
    I9,
    I10,
}

impl Law {
    pub(crate) const ALL: [Self; 9] =
        [Self::I1, Self::I2, Self::I3, Self::I4, Self::I5, Self::I7, Self::I8, Self::I9, Self::I10];
}

/// Which does not hold, and how.
pub(crate) type Found = Result<(), (Law, String)>;

pub(crate) trait Names {
    fn of(self, law: Law) -> Found;
}

impl Names for Result<(), String> {
    fn of(self, law: Law) -> Found {
        self.map_err(|cause| (law, cause))
    }
}

/// Something broken on purpose: in what the machine is told, in the machine, or in the shell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Broken {
    /// Everybody has acknowledged, whether or not they did.
    Acknowledgements,
    /// Nobody presents anything that goes.
    Presented,
    /// On the way back nobody presents anything that goes: the new root is buried before its gate opens.
    BuriesEarly,
    /// On the way back from `untrusting` nobody waits for both roots to be held again.
    GoesBackBlindly,
    /// The digest that an acknowledgement says is not looked at.
    IgnoresDigests,
    /// The newest bundle of a caller counts, as if no answer were lost and every caller were one process.
    CountsTheNewest,
    /// Those out of reach do not break without a bridge: nobody is asked about them.
    AsksNobody,
    /// Chains carry the bridge only after the root was activated.
    CarriesLate,
    /// An issuer is activated below a root that is not the active one any more.
    FollowsBlindly,
    /// A root is recorded over another one of the same name.
    SignsOver,
    /// A root is activated beside the one that is active.
    ActivatesBeside,
    /// A tainted root is as good as any, and compromised is planned.
    Forgives,
    /// The new root stays in the bundle of an aborted rotation.
    LeavesTheNewRoot,
    /// After a restore the bundle's sequence goes on from the backup's.
    RestoresTheSequence,
    /// After a restore serials go on from the backup's.
    RestoresTheSerials,
    /// Certificates are issued for their whole life, whatever is left of their issuer's.
    OutlivesItsIssuer,
}

impl Broken {
    /// The world as the machine is told of it.
    pub(crate) fn world(broken: Option<Self>, rotation: Option<&Rotation>, mut world: World) -> World {
        let (Some(broken), Some(rotation)) = (broken, rotation) else { return world };
        let back = rotation.heading == Heading::Back;
        let bundle = world.facts.bundle.clone();
        let acknowledge = |holds: &mut Option<Held>| {
            if let Some(published) = rotation.published {
                *holds = Some(Held { sequence: bundle.sequence, digest: None, at: published.at });
            }
        };
        match broken {
            Self::Acknowledgements => world.subscribers.iter_mut().for_each(|it| acknowledge(&mut it.holds)),
            Self::GoesBackBlindly if back => {
                world.subscribers.iter_mut().for_each(|it| acknowledge(&mut it.holds));
            }
            Self::Presented => world.subscribers.iter_mut().for_each(|it| it.presents.clear()),
            Self::BuriesEarly if back => {
                world.subscribers.iter_mut().for_each(|it| it.presents.clear());
                world.facts.issuers.clear();
            }
            Self::IgnoresDigests => {
                for held in world.subscribers.iter_mut().filter_map(|it| it.holds.as_mut()) {
                    held.digest = None;
                }
            }
            Self::AsksNobody if matches!(rotation.phase, Phase::Distributing | Phase::Canary) => {
                world.subscribers.retain(|it| it.connected);
            }
            Self::LeavesTheNewRoot if back && rotation.phase == Phase::Staged => {
                world.facts.bundle.anchors.remove(&rotation.new);
                if world.facts.bundle.anchors.is_empty() {
                    world.facts.bundle.anchors.insert(rotation.old.clone());
                }
            }
            _ => {}
        }
        world
    }

    /// The world as the machine is told of it at an administrator's word.
    pub(crate) fn forgives(broken: Option<Self>, world: &mut World, rotation: Option<&mut Rotation>) {
        if broken == Some(Self::Forgives) {
            world.facts.roots.values_mut().for_each(|it| it.tainted = false);
            rotation.into_iter().for_each(|it| it.mode = Mode::Planned);
        }
    }
}
