//! `rhizome token`: join tokens, by which machines join.
//!
//! Laws: the secret is shown once, inside the join string, and in nothing else that this prints. Not here: joining
//! (`join.rs`), the token's life (`rhizome_core::tokens`).

use clap::{Args, Subcommand};
use rhizome_id::{ClusterName, NodeName, Timestamp, TokenId, Ttl};
use rhizome_proto::admin::v1::token_service_client::TokenServiceClient;
use rhizome_proto::admin::v1::{
    CreateTokenRequest, CreateTokenResponse, JoinToken, JoinTokenState, ListTokensRequest,
    RevokeTokenRequest, Scope,
};
use rhizome_tls::JoinString;
use serde::Serialize;
use serde_json::json;

use crate::exit::{Exit, Failure};
use crate::output::{View, details, instant_with_distance, relative, table};
use crate::session::{Session, call};
use crate::wire;

/// Manage join tokens, by which machines join
#[derive(Subcommand, Clone, Debug)]
pub enum TokenVerb {
    /// Make a token, and the join string to paste on the machine
    Create(CreateToken),
    /// List tokens, newest first
    List(ListTokens),
    /// Revoke an unused token
    Revoke {
        /// The token's id, as `token list` shows it
        id: TokenId,
    },
}

/// What a new token is for.
#[derive(Args, Clone, Debug)]
pub struct CreateToken {
    /// The cluster that the machine becomes part of
    #[arg(long, value_name = "NAME")]
    cluster: ClusterName,

    /// The name that the node gets [default: made from the token's id]
    #[arg(long, value_name = "NAME")]
    node: Option<NodeName>,

    /// A namespace whose workloads the node may vouch for; may be repeated
    #[arg(long = "namespace", value_name = "NAMESPACE", required_unless_present = "all_namespaces")]
    namespaces: Vec<String>,

    /// The node may vouch for workloads of every namespace
    #[arg(long, conflicts_with = "namespaces")]
    all_namespaces: bool,

    /// How long the token can be used, such as 15m or 1h [default: the server's]
    #[arg(long, value_name = "LIFETIME")]
    ttl: Option<Ttl>,

    /// Print nothing but the join string
    #[arg(long, short)]
    quiet: bool,
}

/// Which tokens to list.
#[derive(Args, Clone, Debug)]
pub struct ListTokens {
    /// Also show used, revoked and expired tokens
    #[arg(long)]
    all: bool,

    /// Show at most this many; 0 for all
    #[arg(long, value_name = "COUNT", default_value_t = 1000)]
    limit: usize,
}

pub(crate) async fn run(verb: TokenVerb, session: &mut Session<'_, '_>) -> Result<Exit, Failure> {
    let mut client = TokenServiceClient::new(session.channel().await?);
    match verb {
        TokenVerb::Create(wish) => {
            let quiet = wish.quiet;
            let answer = client.create_token(call(wish.into())).await?.into_inner();
            let join = join_string(&answer)?;
            if quiet {
                session.write(format!("{join}\n").as_bytes())?;
            } else {
                let token = wire::promised(answer.token, "the token")?;
                session.show(&created(token, &join, session.now())?)?;
            }
        }
        TokenVerb::List(ListTokens { all, limit }) => {
            let listed = wire::pages(limit, async |page_size, page_token| {
                let request = ListTokensRequest { page_size, page_token, include_ended: all };
                let page = client.list_tokens(call(request)).await?.into_inner();
                Ok((page.tokens, page.next_page_token))
            })
            .await?;
            session.show(&list(listed.items, listed.more, session.now())?)?;
            wire::remark_more(session, listed.more);
        }
        TokenVerb::Revoke { id } => {
            let request = RevokeTokenRequest { id: id.into() };
            let answer = client.revoke_token(call(request)).await?.into_inner();
            let token = wire::promised(answer.token, "the token")?;
            session.show(&one(token, session.now())?)?;
        }
    }
    Ok(Exit::Done)
}

impl From<CreateToken> for CreateTokenRequest {
    fn from(wish: CreateToken) -> Self {
        Self {
            cluster: wish.cluster.into(),
            node: wish.node.map(String::from).unwrap_or_default(),
            scope: Some(Scope { all_namespaces: wish.all_namespaces, namespaces: wish.namespaces }),
            ttl_seconds: wish.ttl.map_or(0, Ttl::seconds),
        }
    }
}

fn join_string(answer: &CreateTokenResponse) -> Result<String, Failure> {
    let roots: Result<Vec<_>, Failure> = answer.root_digests.iter().map(|raw| wire::digest(raw)).collect();
    let trust_domain = answer.trust_domain.parse().map_err(|error| Failure::protocol(&format!("{error}")))?;
    JoinString::new(answer.addresses.clone(), trust_domain, roots?, answer.secret.clone())
        .and_then(|join| join.encode())
        .map_err(|error| {
            Failure::protocol(&error.to_string())
                .hint("check the addresses that the server's configuration advertises")
        })
}

#[derive(Serialize)]
struct TokenRow {
    id: String,
    state: &'static str,
    cluster: String,
    node: String,
    /// Absent: all namespaces.
    namespaces: Option<Vec<String>>,
    created_by: String,
    created_at: Option<Timestamp>,
    expires_at: Option<Timestamp>,
    ended_at: Option<Timestamp>,
    revoked_by: Option<String>,
    #[serde(skip)]
    scope: String,
}

impl From<JoinToken> for TokenRow {
    fn from(token: JoinToken) -> Self {
        Self {
            state: match token.state() {
                JoinTokenState::Unused => "unused",
                JoinTokenState::Used => "used",
                JoinTokenState::Revoked => "revoked",
                JoinTokenState::Expired => "expired",
                JoinTokenState::Unspecified => "unknown",
            },
            namespaces: wire::namespaces(token.scope.as_ref()),
            scope: wire::scope(token.scope.as_ref()),
            created_at: wire::instant(token.created_at.as_ref()),
            expires_at: wire::instant(token.expires_at.as_ref()),
            ended_at: wire::instant(token.ended_at.as_ref()),
            id: token.id,
            cluster: token.cluster,
            node: token.node,
            created_by: token.created_by,
            revoked_by: wire::text(token.revoked_by),
        }
    }
}

fn list(tokens: Vec<JoinToken>, more: bool, now: Timestamp) -> Result<View, Failure> {
    let rows: Vec<TokenRow> = tokens.into_iter().map(TokenRow::from).collect();
    let cells = rows.iter().map(|row| {
        vec![
            row.id.clone(),
            row.state.to_owned(),
            row.cluster.clone(),
            row.node.clone(),
            row.scope.clone(),
            relative(row.expires_at, now),
            row.created_by.clone(),
        ]
    });
    let heading = ["ID", "STATE", "CLUSTER", "NODE", "MAY VOUCH FOR", "EXPIRES", "CREATED BY"];
    let text =
        table(&heading, cells, "no tokens; `rhizome token create` makes one (--all also shows ended ones)");
    View::list("tokens", &rows, more, text)
}

fn fields(row: &TokenRow, now: Timestamp) -> String {
    details([
        ("id", row.id.clone()),
        ("state", row.state.to_owned()),
        ("cluster", row.cluster.clone()),
        ("node", row.node.clone()),
        ("may vouch for", row.scope.clone()),
        ("created", instant_with_distance(row.created_at, now)),
        ("created by", row.created_by.clone()),
        ("expires", instant_with_distance(row.expires_at, now)),
        ("ended", instant_with_distance(row.ended_at, now)),
        ("revoked by", row.revoked_by.clone().unwrap_or_default()),
    ])
}

fn one(token: JoinToken, now: Timestamp) -> Result<View, Failure> {
    let row = TokenRow::from(token);
    View::new(&row, fields(&row, now))
}

fn created(token: JoinToken, join: &str, now: Timestamp) -> Result<View, Failure> {
    let row = TokenRow::from(token);
    let text = format!(
        "{}\nOn the machine, as root (the string is a secret, and is shown only now):\n\n  rhizome node join --out /var/lib/rhizome/identity {join}\n",
        fields(&row, now)
    );
    View::new(&json!({ "token": row, "join_string": join }), text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> JoinToken {
        JoinToken {
            id: "0123456789abcdef".to_owned(),
            cluster: "prod".to_owned(),
            node: "vm-1".to_owned(),
            scope: Some(Scope { all_namespaces: false, namespaces: vec!["shop".to_owned()] }),
            state: JoinTokenState::Unused.into(),
            created_by: "admin:alice".to_owned(),
            created_at: Some(prost_types::Timestamp { seconds: 1_000, nanos: 0 }),
            expires_at: Some(prost_types::Timestamp { seconds: 4_600, nanos: 0 }),
            ..JoinToken::default()
        }
    }

    #[test]
    fn tokens_are_listed_with_what_they_allow() {
        let view = list(vec![sample()], true, Timestamp::from_unix(1_000)).unwrap();
        assert_eq!(
            view.text,
            "ID                STATE   CLUSTER  NODE  MAY VOUCH FOR  EXPIRES  CREATED BY\n\
             0123456789abcdef  unused  prod     vm-1  shop           in 1h    admin:alice\n"
        );
        assert_eq!(
            view.json,
            json!({ "more": true, "tokens": [{
                "id": "0123456789abcdef", "state": "unused", "cluster": "prod", "node": "vm-1", "namespaces": ["shop"],
                "created_by": "admin:alice", "created_at": "1970-01-01T00:16:40Z", "expires_at": "1970-01-01T01:16:40Z",
                "ended_at": null, "revoked_by": null,
            }]})
        );
    }

    #[test]
    fn a_new_token_is_shown_as_a_join_string_and_never_as_a_bare_secret() {
        let answer = CreateTokenResponse {
            token: Some(sample()),
            secret: "c2VjcmV0".to_owned(),
            trust_domain: "example.org".to_owned(),
            addresses: vec!["ca.example.org:8443".to_owned()],
            root_digests: vec![vec![7; 32].into()],
        };
        let join = join_string(&answer).unwrap();
        assert_eq!(JoinString::decode(&join).unwrap().token(), "c2VjcmV0");
        let view = created(sample(), &join, Timestamp::EPOCH).unwrap();
        assert!(view.text.contains(&join) && !view.text.contains("c2VjcmV0"));
        assert_eq!(view.json["join_string"], json!(join));
    }

    #[test]
    fn a_server_that_advertises_no_address_is_told_so() {
        let failure = join_string(&CreateTokenResponse {
            trust_domain: "example.org".into(),
            root_digests: vec![vec![7; 32].into()],
            secret: "s".into(),
            ..CreateTokenResponse::default()
        })
        .unwrap_err();
        assert!(failure.advice().unwrap().contains("advertises"), "{failure}");
    }
}
