//! What the book says about itself, to whoever looks after the agent. Nothing here changes or grants anything.

use std::collections::BTreeMap;

use rhizome_core::attributes::Attributes;
use rhizome_core::explain::{Outlook, outlook};
use rhizome_id::Timestamp;

use super::Book;
use crate::renewal::Entitlement;

/// Why a workload has what it has.
pub(crate) struct Insight {
    /// What the rules say.
    pub(crate) outlook: Outlook,
    /// What is held, or was refused, of what they give: in the same order.
    pub(crate) held: Vec<Held>,
}

/// What became of one identity that the rules give.
pub(crate) struct Held {
    /// Last second of the certificate that is held.
    pub(crate) not_after: Option<Timestamp>,
    /// Why the authority gave none when it was last asked.
    pub(crate) refused: Option<String>,
}

impl Book {
    /// Why a workload with these attested attributes has what it has; `None` before the rules are known.
    pub(crate) fn insight(&self, attributes: &Attributes) -> Option<Insight> {
        let (node, rules) = self.node.as_ref().zip(self.rules.as_ref())?;
        let outlook = outlook(node, attributes, rules, &self.domain);
        let held = outlook.identities.iter().flatten().map(|prospect| {
            let entitlement = Entitlement {
                spiffe_id: prospect.spiffe_id.clone(),
                dns_names: prospect.dns_names.clone(),
                ttl: prospect.ttl,
            };
            let holding = self.holdings.get(&entitlement);
            Held {
                not_after: holding.and_then(|holding| holding.svid.as_ref()).map(|svid| svid.not_after),
                refused: holding.and_then(|holding| holding.denied.clone()),
            }
        });
        Some(Insight { held: held.collect(), outlook })
    }

    /// How many certificates are held of each issuer (by its key identifier), and the last second of the first to expire.
    pub(crate) fn issuers(&self) -> BTreeMap<Vec<u8>, (u32, Timestamp)> {
        let mut issuers: BTreeMap<Vec<u8>, (u32, Timestamp)> = BTreeMap::new();
        for holding in self.holdings.values() {
            let Some((svid, issuer)) = holding.svid.as_ref().zip(holding.issuer.as_ref()) else { continue };
            let (count, earliest) = issuers.entry(issuer.clone()).or_insert((0, svid.not_after));
            *count = count.saturating_add(1);
            *earliest = svid.not_after.min(*earliest);
        }
        issuers
    }

    /// Whether anybody can be served: what workloads may have is known, and whom they may trust.
    pub(crate) const fn can_serve(&self) -> bool {
        self.node.is_some() && self.rules.is_some() && self.bundle.is_some()
    }
}
