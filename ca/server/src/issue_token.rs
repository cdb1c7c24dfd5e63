//! Tokens: the one flow from a request to a JWT-SVID, in the steps of `issue`.
//!
//! Laws: as for certificates: the same decision, the same ledger before the signature, the same halt when a signature is
//! refused; a reply is made from `Recorded` alone. No answer is kept for retries: a token costs a signature, and one
//! more of them does no harm.
//! Not here: who calls (`gate`), the decision (`rhizome_core::policy`), the bytes (`rhizome-jwt`).

use std::sync::Arc;

use rhizome_core::caller::AttestedCaller;
use rhizome_core::documents::Transaction;
use rhizome_core::issuance::{Circumstances, Recorded, jwt};
use rhizome_core::policy::Wish;
use rhizome_core::ports::StoreError;
use rhizome_jwt::JwtSvid;

use crate::ca::Ca;
use crate::error::IssueError;
use crate::gate;

impl Ca {
    /// Issues a JWT-SVID for `audiences`.
    pub(crate) async fn issue_token(
        self: &Arc<Self>,
        caller: &AttestedCaller,
        wish: &Wish,
        audiences: Vec<String>,
    ) -> Result<Recorded<JwtSvid>, IssueError> {
        // 1. Who is calling stands in `caller`; 2. there is no key to possess. One reading of time.
        let now = self.now()?;
        self.check_not_halted()?;
        // 3. May they, as whom, for how long; by the state of now, also as to who they are.
        let state = self.state();
        let caller = &gate::still(&state, caller).map_err(IssueError::CallerGone)?;
        let grant = self.decide(&state, caller, wish, now)?;

        // 4. A unique id, from the counter of serial numbers; 5. exactly the bytes that will be signed.
        let none = || if self.upstream.is_some() { IssueError::TokensAbove } else { IssueError::NoAuthority };
        let key = state.jwt_key().ok_or_else(none)?;
        let (serial, draw) = self.serials.next(&*self.ports.store, &*self.ports.entropy, now).await?;
        let bundle = state.bundle().map_or(0, |it| it.value.bundle.sequence());
        let attributes = wish.attributes();
        let around = Circumstances { now, serial, draw, bundle, request: None, attributes };
        let issuer = self.settings.federation.oidc_issuer.as_deref();
        let prepared = jwt::prepare(&grant, audiences, issuer, key, &around)?;

        // 6. Write the intent: the one durable, group-committed append.
        let committed = self.commit(Transaction::named("issue token").record(prepared.entry(now))).await?;
        let receipt =
            committed.receipts.last().ok_or_else(|| StoreError::Bug { cause: "no receipt".into() })?;
        let intent = prepared.recorded(receipt)?;

        // What was decided before the wait must hold after it.
        let jti = intent.jti();
        if let Err(cause) = self.check_still_granted(&state, &grant, caller, wish, now) {
            self.note_unsigned(jti, now, &cause.to_string());
            return Err(cause);
        }

        // Nor does a key sign that was tainted meanwhile: its tokens are refused already.
        if !self.state().may_sign_tokens(intent.key()) {
            self.note_unsigned(jti, now, &IssueError::KeyTainted.to_string());
            return Err(IssueError::KeyTainted);
        }

        // 7. Sign, and only then reply.
        let signature = match self.ports.keys.sign_token(intent.key(), intent.token()).await {
            Ok(signature) => signature,
            Err(cause) => return Err(self.signing_failed(jti, now, cause)),
        };
        let token = intent.seal(signature).map_err(|cause| self.seal_refused(jti, now, cause))?;
        self.metrics.jwt_svids_issued.inc();
        Ok(token)
    }
}
