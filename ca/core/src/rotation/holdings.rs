//! What somebody holds, from what the ledger shows and from what they report: certificates, and bundles with them.
//!
//! Laws: whoever may hold something holds it. A certificate may be presented until it has expired; an agent presents it no
//! more once it says, well after that certificate was issued, what it serves, and that is not among it; of the one by which
//! it calls itself only a report tells that says that it does. When it *said* so
//! counts, not when somebody looks: an agent that is silent since may have taken into use what was under way to it. A bundle
//! went out with each certificate, but an answer may have been lost, and one caller may be many processes: somebody in its
//! name may hold the lowest of those whose certificates are alive. What was issued by an issuer nobody knows may be below
//! any root.
//! Not here: reading the ledger and the reports, nor what follows (`gate`).
//! Sources: ca/docs/rotation.md, Evidence.

use std::collections::{BTreeMap, BTreeSet};

use rhizome_id::{AuthorityId, Timestamp};

use super::Choices;
use super::evidence::{Held, Presented, RootFact, gone};

/// Certificates of one holder that agree in issuer and bundle: one line of the ledger, or many together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// The root above their issuer; `None`: nobody knows that issuer.
    pub root: Option<AuthorityId>,
    /// The sequence of the bundle that went out with them.
    pub bundle: u64,
    /// Whether they are those by which an agent calls, and not its workloads'.
    pub own: bool,
    /// When the last of them was issued.
    pub last_at: Timestamp,
    /// The last second of the last of them.
    pub until: Timestamp,
    /// How many.
    pub count: u32,
}

/// What an agent said of what it serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Below which roots.
    pub roots: BTreeSet<AuthorityId>,
    /// Whether something was among it whose issuer nobody knows.
    pub unknown: bool,
    /// Whether it speaks of the certificate by which the agent calls, too. Those of older releases do not.
    pub with_own: bool,
    /// When it said so.
    pub at: Timestamp,
}

impl Report {
    /// Whether what is below `root` may be among what is served.
    fn names(&self, root: Option<&AuthorityId>) -> bool {
        self.unknown || root.is_none_or(|it| self.roots.contains(it))
    }
}

/// The lowest bundle that a holder of these may hold at `now`: the evidence of whoever has no stream, and of callers that
/// may be many processes.
pub fn lowest<'i>(issued: impl IntoIterator<Item = &'i Issued>, now: Timestamp) -> Option<Held> {
    let alive = issued.into_iter().filter(|it| it.count > 0 && !gone(it.until, now));
    let lowest = alive.min_by_key(|it| (it.bundle, it.last_at))?;
    Some(Held { sequence: lowest.bundle, digest: None, at: lowest.last_at })
}

/// What a holder of these may present at `now`, by root; `roots` are all that are on record.
pub fn presented<'i>(
    issued: impl IntoIterator<Item = &'i Issued>,
    report: Option<&Report>,
    roots: &'i BTreeMap<AuthorityId, RootFact>,
    choices: &Choices,
    now: Timestamp,
) -> Vec<Presented> {
    let superseded = |it: &Issued| {
        let after = |said: &&Report| {
            said.at.since(it.last_at) >= choices.settle_seconds && (said.with_own || !it.own)
        };
        !choices.until_expiry && report.filter(after).is_some_and(|said| !said.names(it.root.as_ref()))
    };
    let mut found: BTreeMap<&AuthorityId, (u32, Timestamp)> = BTreeMap::new();
    for it in issued.into_iter().filter(|it| it.count > 0 && !gone(it.until, now) && !superseded(it)) {
        let below: Vec<&AuthorityId> = match &it.root {
            Some(root) => vec![root],
            None => roots.keys().collect(),
        };
        for root in below {
            let (count, until) = found.entry(root).or_insert((0, it.until));
            *count = count.saturating_add(it.count);
            *until = it.until.max(*until);
        }
    }
    let presented =
        |(root, (count, until)): (&AuthorityId, _)| Presented { root: root.clone(), count, until };
    found.into_iter().map(presented).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::ROTATION_SKEW_SECONDS;

    fn now() -> Timestamp {
        Timestamp::from_unix(2_000_000_000)
    }

    fn id(text: &str) -> AuthorityId {
        text.parse().unwrap()
    }

    fn on_record(names: &[&str]) -> BTreeMap<AuthorityId, RootFact> {
        let fact = RootFact { not_after: now().plus(9_000), active: false, tainted: false, cross: None };
        names.iter().map(|it| (id(it), fact.clone())).collect()
    }

    fn issued(root: Option<&str>, bundle: u64, age: i64, life: i64) -> Issued {
        let last_at = now().minus(age);
        Issued { root: root.map(id), bundle, own: false, last_at, until: last_at.plus(life), count: 1 }
    }

    fn named(presented: &[Presented]) -> Vec<(&str, u32)> {
        presented.iter().map(|it| (it.root.as_str(), it.count)).collect()
    }

    #[test]
    fn one_processs_renewal_or_a_lost_answer_does_not_speak_for_a_certificate_that_is_still_alive() {
        let both = [issued(Some("old"), 1, 2_000, 3_600), issued(Some("old"), 2, 10, 3_600)];
        assert_eq!(lowest(&both, now()).map(|it| it.sequence), Some(1));
        let dead = now().plus(1_600 + ROTATION_SKEW_SECONDS + 1);
        assert_eq!(lowest(&both, dead).map(|it| (it.sequence, it.digest)), Some((2, None)));
        assert_eq!(lowest(&[], now()), None);
    }

    #[test]
    fn a_report_speaks_only_of_certificates_that_were_issued_well_before_it() {
        let choices = Choices { settle_seconds: 100, ..Choices::default() };
        let roots = on_record(&["new", "old"]);
        let report = |age, roots: &[&str], unknown| Report {
            roots: roots.iter().map(|it| id(it)).collect(),
            unknown,
            with_own: true,
            at: now().minus(age),
        };
        let two = [issued(Some("old"), 1, 500, 3_600), issued(Some("new"), 2, 300, 3_600)];
        let with = |report: Option<Report>| presented(&two, report.as_ref(), &roots, &choices, now());
        assert_eq!(named(&with(None)), [("new", 1), ("old", 1)]);
        assert_eq!(named(&with(Some(report(400, &["new"], false)))), [("new", 1)]);
        assert_eq!(
            named(&with(Some(report(401, &["new"], false)))),
            [("new", 1), ("old", 1)],
            "said too early"
        );
        assert_eq!(named(&with(Some(report(0, &["new"], true)))), [("new", 1), ("old", 1)], "who knows");
        let choices = Choices { until_expiry: true, ..choices };
        let said = report(0, &["new"], false);
        assert_eq!(named(&presented(&two, Some(&said), &roots, &choices, now())).len(), 2);
    }

    /// Found by a review: an older agent's report of its workloads made its own certificate vanish, and the agent was locked
    /// out.
    #[test]
    fn a_report_of_workloads_alone_tells_nothing_of_the_certificate_by_which_the_agent_calls() {
        let choices = Choices { settle_seconds: 0, ..Choices::default() };
        let roots = on_record(&["new", "old"]);
        let own = Issued { own: true, ..issued(Some("old"), 1, 500, 3_600) };
        let all = [own, issued(Some("old"), 1, 500, 3_600), issued(Some("new"), 2, 300, 3_600)];
        let left = |with_own| {
            let said = Report { roots: [id("new")].into(), unknown: false, with_own, at: now() };
            presented(&all, Some(&said), &roots, &choices, now())
        };
        assert_eq!(named(&left(false)), [("new", 1), ("old", 1)], "until it has expired");
        assert_eq!(named(&left(true)), [("new", 1)]);
    }

    #[test]
    fn what_an_unknown_issuer_issued_counts_below_every_root() {
        let choices = Choices { settle_seconds: 0, ..Choices::default() };
        let roots = on_record(&["new", "old"]);
        let unknown = [issued(None, 1, 500, 3_600), issued(Some("old"), 1, 500, 3_600)];
        assert_eq!(named(&presented(&unknown, None, &roots, &choices, now())), [("new", 1), ("old", 2)]);
        let said = Report { roots: [id("new")].into(), unknown: false, with_own: true, at: now() };
        let left = presented(&unknown, Some(&said), &roots, &choices, now());
        assert_eq!(named(&left), [("new", 1), ("old", 1)], "nobody can say that it is gone");
    }

    #[test]
    fn what_is_below_a_root_that_is_not_on_record_any_more_is_still_presented() {
        let one = [issued(Some("gone"), 1, 500, 3_600)];
        let roots = on_record(&["old"]);
        assert_eq!(named(&presented(&one, None, &roots, &Choices::default(), now())), [("gone", 1)]);
    }
}
