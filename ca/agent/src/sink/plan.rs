//! What one sink does next: write, tell the software, wait. Pure: time and randomness are arguments.
//!
//! Laws: what is new is written before anything is told; a bundle is in force only when the files that hold it are
//! written and the software was told; whatever failed is tried again, longer waits each time; what a newer state
//! overtook is not done any more. Files whose identity was denied are taken
//! away; an identity that is on its way was not.
//! Not here: doing it (`files`, `reload`), who follows what (`sink`).

use std::sync::Arc;

use rhizome_id::Timestamp;
use rhizome_x509::Bundle;

use crate::holdings::{NotYet, Svid, View};
use crate::renewal::retry_at;

/// What is to be in the files.
#[derive(Clone)]
pub(super) struct Content {
    pub(super) svid: Arc<Svid>,
    pub(super) bundle: Arc<Bundle>,
    /// Those of foreign trust domains, in the order of their names.
    pub(super) foreign: Vec<Arc<Bundle>>,
    /// DER.
    pub(super) crls: Arc<Vec<Vec<u8>>>,
    /// The newest view in which it was so.
    pub(super) version: u64,
}

impl Content {
    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.svid, &other.svid)
            && self.bundle.digest() == other.bundle.digest()
            && self.foreign == other.foreign
            && self.crls == other.crls
    }
}

/// What to do now.
pub(super) enum Step {
    /// Write these files.
    Write(Content),
    /// Take the files away.
    Remove,
    /// Tell the software.
    Reload,
    /// The view of this version is in force, with a certificate that is valid until then.
    InForce(u64, Timestamp),
    /// There is nothing in the files, so nothing is held up.
    Nothing,
    /// Nothing before this instant, unless something changes.
    Wait(Timestamp),
    /// Nothing, unless something changes.
    Rest,
}

/// How far a sink is.
#[derive(Default)]
pub(super) struct Course {
    wanted: Option<Content>,
    /// Why there is nothing to write; set by a denial.
    denied: Option<String>,
    /// What the files hold by this process's doing.
    written: Option<Content>,
    /// Whether files may be there, from now or from an earlier process.
    files: bool,
    /// Whether the software was told of what the files hold.
    told: bool,
    /// Whether there was nobody to be told; somebody may come.
    nobody: bool,
    /// The version said to be in force last.
    said: Option<u64>,
    /// Whether it was said that nothing is held.
    said_nothing: bool,
    failures: u32,
    not_before: Option<Timestamp>,
}

impl Course {
    /// At the start. Whatever is in the files was not written by this process, so it is written anew and told anew.
    pub(super) fn new(files: bool) -> Self {
        Self { files, ..Self::default() }
    }

    /// There is a view, or none.
    pub(super) fn see(
        &mut self,
        seen: Result<&View, &NotYet>,
        choose: impl Fn(&View) -> Result<Content, NotYet>,
    ) {
        let (wanted, denied) = match seen.map_err(Clone::clone).and_then(choose) {
            Ok(content) => (Some(content), None),
            Err(NotYet::Denied(reason)) => (None, Some(reason)),
            // What is in the files stays until there is something newer, or it is known that there will not be; it is
            // not written again: it may have been revoked. So it is when other identities are there and this one is not.
            Err(NotYet::Starting) => (None, None),
        };
        let same = match (&self.wanted, &wanted) {
            (Some(before), Some(now)) => before.is(now),
            (None, None) => self.denied.is_some() == denied.is_some(),
            (Some(_), None) | (None, Some(_)) => false,
        };
        if !same {
            // Something else to try: what failed before says nothing about it.
            self.failures = 0;
            self.not_before = None;
            self.said_nothing = false;
        }
        self.wanted = wanted;
        self.denied = denied;
    }

    /// The files are not as they were written.
    pub(super) fn disturbed(&mut self) {
        self.written = None;
    }

    /// What to do at `now`.
    pub(super) fn next(&self, now: Timestamp) -> Step {
        let due = self.not_before.is_none_or(|at| at <= now);
        let wait = || self.not_before.map_or(Step::Rest, Step::Wait);
        let Some(wanted) = &self.wanted else {
            return match (self.denied.is_some(), self.files) {
                (true, true) if due => Step::Remove,
                (true, true) => wait(),
                (_, false) if !self.said_nothing => Step::Nothing,
                (true | false, _) => Step::Rest,
            };
        };
        if !self.written.as_ref().is_some_and(|written| written.is(wanted)) {
            return if due { Step::Write(wanted.clone()) } else { wait() };
        }
        if !self.told {
            return if due { Step::Reload } else { wait() };
        }
        if self.said != Some(wanted.version) {
            return Step::InForce(wanted.version, wanted.svid.not_after);
        }
        Step::Rest
    }

    pub(super) fn wrote(&mut self, content: Content) {
        self.written = Some(content);
        self.files = true;
        self.told = false;
        self.succeeded();
    }

    pub(super) fn removed(&mut self) {
        self.written = None;
        self.files = false;
        self.said = None;
        self.said_nothing = false;
        self.succeeded();
    }

    pub(super) fn reloaded(&mut self) {
        self.told = true;
        self.nobody = false;
        self.succeeded();
    }

    /// Nobody is there to be told. Whether that is news.
    pub(super) fn told_nobody(&mut self) -> bool {
        self.told = true;
        self.succeeded();
        !std::mem::replace(&mut self.nobody, true)
    }

    /// Looks again for somebody to be told, if there was nobody: software that was starting may have read the files
    /// before.
    pub(super) const fn look_for_somebody(&mut self) {
        if self.nobody {
            self.told = false;
        }
    }

    pub(super) const fn in_force(&mut self, version: u64) {
        self.said = Some(version);
        self.said_nothing = false;
    }

    pub(super) const fn nothing(&mut self) {
        self.said_nothing = true;
    }

    /// Whether it was said that nothing is held; asked, and unsaid, before looking at what there is now.
    pub(super) const fn unsay_nothing(&mut self) -> bool {
        std::mem::replace(&mut self.said_nothing, false)
    }

    /// Something did not work. `draw` is 64 random bits.
    pub(super) fn failed(&mut self, now: Timestamp, draw: u64) {
        self.failures = self.failures.saturating_add(1);
        self.not_before = Some(retry_at(now, self.failures, draw, None));
    }

    fn succeeded(&mut self) {
        self.failures = 0;
        self.not_before = None;
    }

    /// Attempts that failed in a row.
    pub(super) const fn failures(&self) -> u32 {
        self.failures
    }

    /// What the files hold, as far as this process knows.
    pub(super) const fn written(&self) -> Option<&Content> {
        self.written.as_ref()
    }

    /// Why there is nothing to write.
    pub(super) fn denial(&self) -> Option<&str> {
        self.denied.as_deref()
    }

    /// Whether the files hold what they should, and the software knows.
    pub(super) fn is_done(&self) -> bool {
        self.wanted.is_some() && self.written.is_some() && self.told && self.failures == 0
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
