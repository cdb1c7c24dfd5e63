//! The token API: one JWT-SVID for one call.
//!
//! Laws: as for certificates, the caller is a node and states what it attested; the token goes into the answer and
//! nowhere else: not into the log, the ledger or a cache.

use rhizome_core::caller::AttestedCaller;
use rhizome_core::policy::Wish;
use rhizome_jwt::{MAX_AUDIENCE_BYTES, MAX_AUDIENCES};
use rhizome_proto::ca::v1 as wire;
use rhizome_proto::ca::v1::jwt_service_server::JwtService;
use tonic::{Request, Response};

use super::{Api, convert};
use crate::error::ApiError;
use crate::status::{self, Answer};

#[tonic::async_trait]
impl JwtService for Api {
    async fn sign_jwt_svid(
        &self,
        request: Request<wire::SignJwtSvidRequest>,
    ) -> Answer<wire::SignJwtSvidResponse> {
        let caller = self.0.caller(&request)?;
        let signed = self.sign_token(&caller, request.into_inner()).await;
        let jwt_svid = signed.map_err(|error| self.0.count_refusal(error))?;
        Ok(Response::new(wire::SignJwtSvidResponse { jwt_svid: Some(jwt_svid) }))
    }
}

impl Api {
    async fn sign_token(
        &self,
        caller: &AttestedCaller,
        request: wire::SignJwtSvidRequest,
    ) -> Result<wire::JwtSvid, ApiError> {
        let audiences = read_audiences(request.audiences)?;
        let wish = Wish::Token {
            attributes: convert::read_attributes(&request.attributes)?,
            spiffe_id: convert::read_spiffe_id(&request.spiffe_id)?,
            ttl: convert::read_ttl("ttl_seconds", request.ttl_seconds)?,
        };
        match self.0.issue_token(caller, &wish, audiences).await {
            Ok(token) => Ok(convert::jwt_svid(&token)),
            Err(error) => {
                let error = ApiError::from(error);
                let public = status::public(&error);
                // What the server could not do is no refusal of the caller.
                if public.retry_after.is_none() && public.code != "internal" {
                    self.0.note_refusal(caller, "jwt.sign", public.code, &error.to_string());
                }
                Err(error)
            }
        }
    }
}

/// The audiences in the order asked for, each once.
fn read_audiences(asked: Vec<String>) -> Result<Vec<String>, ApiError> {
    let invalid = |problem: String| ApiError::Invalid { field: "audiences", problem };
    if asked.is_empty() {
        return Err(invalid("a token needs at least one: whom it is meant for".to_owned()));
    }
    if asked.len() > MAX_AUDIENCES {
        return Err(invalid(format!("{} are too many; the limit is {MAX_AUDIENCES}", asked.len())));
    }
    let mut audiences: Vec<String> = Vec::with_capacity(asked.len());
    for audience in asked {
        if audience.is_empty() || audience.len() > MAX_AUDIENCE_BYTES || audience.contains(char::is_control) {
            let problem = format!("each has 1 to {MAX_AUDIENCE_BYTES} bytes without control characters");
            return Err(invalid(problem));
        }
        if !audiences.contains(&audience) {
            audiences.push(audience);
        }
    }
    Ok(audiences)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn audiences_are_counted_measured_and_kept_in_order() {
        let many = |count: usize| (0..count).map(|n| n.to_string()).collect::<Vec<_>>();
        assert!(read_audiences(many(MAX_AUDIENCES)).is_ok());
        let ok = ["b", "a", "b"].map(str::to_owned).to_vec();
        assert_eq!(read_audiences(ok).unwrap(), ["b", "a"]);
        assert!(read_audiences(vec!["ä".repeat(MAX_AUDIENCE_BYTES / 2)]).is_ok());
        for bad in [
            vec![],
            many(MAX_AUDIENCES + 1),
            vec!["a".to_owned(); MAX_AUDIENCES + 1],
            vec![String::new()],
            vec!["ok".to_owned(), String::new()],
            vec!["a".repeat(MAX_AUDIENCE_BYTES + 1)],
            vec!["a\nb".to_owned()],
        ] {
            let refused = read_audiences(bad.clone());
            assert!(matches!(refused, Err(ApiError::Invalid { field: "audiences", .. })), "{bad:?}");
        }
    }
}
