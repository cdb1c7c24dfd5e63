//! Issuance: the one flow from a request to a certificate. Every door calls [`Ca::issue`] or [`Ca::issue_with`]; the
//! only other leaf is this server's own (`serving`), which has no request and walks the same chain of evidence. Tokens
//! take the same steps in `issue_token`.
//!
//! Laws: the steps stand in the order of ca/docs/ARCHITECTURE.md §5 and each consumes the evidence of the one before.
//! Nothing is signed whose ledger entry is not durable, and nothing that policy would refuse once it is. The path reads one immutable state, never the database, and holds no
//! lock across a wait. A failure after the entry is durable leaves an entry without a certificate, and says so in a
//! further entry when it can.
//! Not here: who calls (`gate`), the decision (`rhizome_core::policy`), the bytes (`rhizome_x509`).

use std::sync::Arc;

use rhizome_core::caller::AttestedCaller;
use rhizome_core::documents::Transaction;
use rhizome_core::issuance::{self, Circumstances, IssuanceError, IssuedLeaf, Recorded};
use rhizome_core::ledger::{Entry, Event, Issuance, Profile};
use rhizome_core::policy::{self, Facts, Grant, GrantKind, Wish};
use rhizome_core::ports::{KeyRingError, StoreError};
use rhizome_core::state::State;
use rhizome_id::{RequestId, Serial, Timestamp};
use rhizome_x509::VerifiedCsr;

use crate::ca::Ca;
use crate::error::IssueError;
use crate::gate;
use crate::system::Stopwatch;

/// A certificate signing request as it arrived.
pub(crate) enum Csr<'a> {
    Der(&'a [u8]),
    Pem(&'a str),
}

impl Csr<'_> {
    /// Checks possession of the key.
    pub(crate) fn verify(&self) -> Result<VerifiedCsr, IssueError> {
        Ok(match self {
            Self::Der(der) => VerifiedCsr::parse(der)?,
            Self::Pem(pem) => VerifiedCsr::parse_pem(pem)?,
        })
    }
}

/// What a caller asks for.
pub(crate) struct Ask<'a> {
    pub(crate) csr: Csr<'a>,
    pub(crate) wish: Wish,
    pub(crate) request: Option<RequestId>,
}

impl Ca {
    /// Issues a workload's certificate.
    pub(crate) async fn issue(
        self: &Arc<Self>,
        caller: &AttestedCaller,
        ask: Ask<'_>,
    ) -> Result<Arc<Recorded<IssuedLeaf>>, IssueError> {
        let csr = ask.csr.verify()?;
        let alone = |_issuance: &Issuance| Transaction::named("issue certificate");
        if ask.request.is_none() {
            return self.issue_with(caller, csr, ask.wish, None, alone).await;
        }
        // Who names its request may go away and ask again: what was begun is finished, so that there is an answer.
        let (ca, caller, Ask { wish, request, .. }) = (Arc::clone(self), caller.clone(), ask);
        let work = async move { ca.issue_with(&caller, csr, wish, request, alone).await };
        self.to_the_end("issue", work).await
    }

    /// The whole of issuance, in order. `alongside` may add what must become true in the same transaction as the
    /// certificate's entry: a join token consumed, a node put on record.
    pub(crate) async fn issue_with(
        self: &Arc<Self>,
        caller: &AttestedCaller,
        csr: VerifiedCsr,
        wish: Wish,
        request: Option<RequestId>,
        alongside: impl FnOnce(&Issuance) -> Transaction + Send,
    ) -> Result<Arc<Recorded<IssuedLeaf>>, IssueError> {
        // 1. Who is calling stands in `caller`; 2. possession of the key stands in `csr`. One reading of time.
        let watch = Stopwatch::start();
        let now = self.now()?;
        self.check_not_halted()?;
        let key = csr.public_key().digest();
        // Two of one name at once: the second waits for the first one's answer. Nobody else waits for either.
        let remember = request.as_ref().map(|id| (caller.principal().to_string(), id.to_string()));
        let _turn = match &remember {
            Some(name) => Some(self.turns.get_with(name.clone(), Arc::default).lock_owned().await),
            None => None,
        };
        // 3. May they, as whom, for how long. Who called was asked when the request began; it may have waited since, and a
        // ban that came meanwhile stands in this state already.
        let state = self.state();
        let caller = &gate::still(&state, caller).map_err(IssueError::CallerGone)?;
        let grant = self.decide(&state, caller, &wish, now)?;

        // A retry gets the first answer, as long as that answer is still right: the same key, the same identity granted
        // now as then, not yet due for renewal and not revoked.
        if let Some(known) = remember.as_ref().and_then(|name| self.recent.get(name)) {
            let first = known.issuance();
            if first.public_key != key || first.spiffe_id != *grant.spiffe_id() {
                return Err(IssueError::RequestIdReused {
                    id: remember.map(|(_, id)| id).unwrap_or_default(),
                });
            }
            if now < known.renew_at() && !state.is_revoked(&first.serial) {
                return Ok(known);
            }
        }

        // 4. Serial, validity, issuer; 5. prepare and lint exactly the bytes that will be signed.
        let issuer = state.issuer_for(grant.spiffe_id()).ok_or(IssueError::NoAuthority)?;
        let (serial, draw) = self.serials.next(&*self.ports.store, &*self.ports.entropy, now).await?;
        let around = Circumstances {
            now,
            serial,
            draw,
            bundle: state.bundle().map_or(0, |it| it.value.bundle.sequence()),
            request: request.as_ref(),
            attributes: wish.attributes(),
        };
        let prepared = issuance::prepare_leaf(&grant, csr, issuer, profile_of(&grant)?, &around)?;

        // 6. Write the intent: the one durable, group-committed append.
        let transaction = alongside(prepared.issuance()).record(prepared.entry(now));
        let committed = self.commit(transaction).await?;
        let receipt =
            committed.receipts.last().ok_or_else(|| StoreError::Bug { cause: "no receipt".into() })?;
        let intent = prepared.recorded(receipt)?;

        // What was decided before the wait must hold after it. From here on nothing waits but the signer.
        if let Err(cause) = self.check_still_granted(&state, &grant, caller, &wish, now) {
            self.note_unsigned(intent.serial(), now, &cause.to_string());
            return Err(cause);
        }

        // 7. Sign, check, and only then reply: the reply is made from `Recorded` alone.
        let signature = match self.ports.keys.sign(intent.key(), &intent.to_be_signed()).await {
            Ok(signature) => signature,
            Err(cause) => return Err(self.signing_failed(intent.serial(), now, cause)),
        };
        let serial = intent.serial();
        let leaf = match intent.seal(signature) {
            Ok(leaf) => Arc::new(leaf),
            Err(cause) => return Err(self.seal_refused(serial, now, cause)),
        };
        if let Some(name) = remember {
            self.recent.insert(name, Arc::clone(&leaf));
        }
        self.lately.note(&leaf);
        self.metrics.issued(leaf.issuance().profile, watch.elapsed());
        Ok(leaf)
    }

    pub(crate) fn decide(
        &self,
        state: &State,
        caller: &AttestedCaller,
        wish: &Wish,
        now: Timestamp,
    ) -> Result<Grant, IssueError> {
        let facts = Facts {
            trust_domain: state.trust_domain(),
            rules: state.rule_set(),
            limits: &self.settings.policy,
        };
        Ok(policy::decide(caller, wish, &facts, now)?)
    }

    /// Asks again when anything changed since `decided_on`: a ban or a changed rule that was answered before this gets
    /// nothing signed. Costs one atomic load while nothing changes.
    pub(crate) fn check_still_granted(
        &self,
        decided_on: &Arc<State>,
        grant: &Grant,
        caller: &AttestedCaller,
        wish: &Wish,
        now: Timestamp,
    ) -> Result<(), IssueError> {
        let state = self.state();
        if Arc::ptr_eq(&state, decided_on) {
            return Ok(());
        }
        let caller = gate::still(&state, caller).map_err(IssueError::CallerGone)?;
        if self.decide(&state, &caller, wish, now)? == *grant {
            Ok(())
        } else {
            Err(IssueError::PolicyChanged)
        }
    }

    /// A signature that does not fit the bytes that were linted: a signer that errs, or one that lies. Nothing more is
    /// issued by this process until somebody has looked (ca/docs/attacks.md §2, invariant 3).
    pub(crate) fn seal_refused<E: std::fmt::Display + Into<IssueError>>(
        self: &Arc<Self>,
        serial: Serial,
        now: Timestamp,
        cause: E,
    ) -> IssueError {
        self.stop_for_a_bad_signature(&cause);
        self.note_unsigned(serial, now, &cause.to_string());
        cause.into()
    }

    pub(crate) fn stop_for_a_bad_signature(&self, cause: &dyn std::fmt::Display) {
        self.halt();
        tracing::error!(%cause, "a signature was refused; issuing has stopped, look at the signer and restart");
    }

    pub(crate) fn signing_failed(
        self: &Arc<Self>,
        serial: Serial,
        now: Timestamp,
        cause: KeyRingError,
    ) -> IssueError {
        self.note_unsigned(serial, now, &cause.to_string());
        cause.into()
    }

    /// Records, as well as it can, that an intent came to nothing.
    pub(crate) fn note_unsigned(self: &Arc<Self>, serial: Serial, now: Timestamp, reason: &str) {
        let entry = Entry::new(now, &Event::SigningFailed { serial, reason: reason.to_owned() });
        let ca = Arc::clone(self);
        self.spawner.spawn("record a failed signature", async move {
            let transaction = Transaction::named("signing failed").record(entry);
            if let Err(unrecorded) = ca.ports.store.commit(transaction).await {
                tracing::error!(%serial, %unrecorded, "a failed signature could not be recorded; it counts as issued");
            }
        });
    }
}

const fn profile_of(grant: &Grant) -> Result<Profile, IssuanceError> {
    match grant.kind() {
        GrantKind::Workload => Ok(Profile::Workload),
        GrantKind::Node => Ok(Profile::Node),
        GrantKind::Admin => Ok(Profile::Admin),
        GrantKind::Server => Ok(Profile::Server),
        GrantKind::Token => Err(IssuanceError::WrongGrant),
    }
}
