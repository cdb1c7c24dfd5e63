//! Verbs against a server that answers from memory over a Unix socket: what is said, and how it ends.
#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]

use std::path::Path;
use std::sync::Arc;

use clap::Parser;
use rhizome_cli::{Console, Exit, JoinString, Options, Verb, run};
use rhizome_id::Timestamp;
use rhizome_proto::METADATA_CODE;
use rhizome_proto::admin::v1::rule_service_server::{RuleService, RuleServiceServer};
use rhizome_proto::admin::v1::token_service_server::{TokenService, TokenServiceServer};
use rhizome_proto::admin::v1::{
    CreateTokenRequest, CreateTokenResponse, DeleteRuleRequest, DeleteRuleResponse, GetRuleRequest,
    GetRuleResponse, JoinToken, ListRulesRequest, ListRulesResponse, ListTokensRequest, ListTokensResponse,
    PutRuleRequest, PutRuleResponse, RevokeTokenRequest, RevokeTokenResponse, RuleDiff,
};
use serde_json::Value;
use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

#[derive(Parser)]
struct Program {
    #[command(flatten)]
    options: Options,

    #[command(subcommand)]
    verb: Verb,
}

/// Answers as the tests expect; keeps nothing.
struct Fake;

#[tonic::async_trait]
impl TokenService for Fake {
    async fn create_token(
        &self,
        request: Request<CreateTokenRequest>,
    ) -> Result<Response<CreateTokenResponse>, Status> {
        let wish = request.into_inner();
        Ok(Response::new(CreateTokenResponse {
            token: Some(JoinToken {
                id: "0123456789abcdef".into(),
                cluster: wish.cluster,
                node: "vm-1".into(),
                scope: wish.scope,
                ..JoinToken::default()
            }),
            secret: "c2VjcmV0".into(),
            trust_domain: "example.org".into(),
            addresses: vec!["ca.example.org:8443".into()],
            root_digests: vec![vec![7; 32].into()],
        }))
    }

    /// 2500 tokens, 1000 at a time.
    async fn list_tokens(
        &self,
        request: Request<ListTokensRequest>,
    ) -> Result<Response<ListTokensResponse>, Status> {
        let wish = request.into_inner();
        let from: u32 = wish.page_token.parse().unwrap_or(0);
        let to = 2500.min(from + wish.page_size.min(1000));
        let token = |number: u32| JoinToken { id: format!("{number:016x}"), ..JoinToken::default() };
        Ok(Response::new(ListTokensResponse {
            tokens: (from..to).map(token).collect(),
            next_page_token: if to < 2500 { to.to_string() } else { String::new() },
        }))
    }

    async fn revoke_token(
        &self,
        _request: Request<RevokeTokenRequest>,
    ) -> Result<Response<RevokeTokenResponse>, Status> {
        let mut status = Status::not_found("no such token");
        status.metadata_mut().insert(METADATA_CODE, "token_unknown".parse().unwrap());
        Err(status)
    }
}

#[tonic::async_trait]
impl RuleService for Fake {
    async fn list_rules(
        &self,
        _request: Request<ListRulesRequest>,
    ) -> Result<Response<ListRulesResponse>, Status> {
        Err(Status::permission_denied("viewers only"))
    }

    async fn get_rule(&self, _request: Request<GetRuleRequest>) -> Result<Response<GetRuleResponse>, Status> {
        Err(Status::internal(""))
    }

    async fn put_rule(&self, request: Request<PutRuleRequest>) -> Result<Response<PutRuleResponse>, Status> {
        Ok(Response::new(PutRuleResponse {
            diff: Some(RuleDiff::default()),
            applied: !request.get_ref().dry_run,
            rule: None,
        }))
    }

    async fn delete_rule(
        &self,
        _request: Request<DeleteRuleRequest>,
    ) -> Result<Response<DeleteRuleResponse>, Status> {
        Err(Status::aborted("the rule changed"))
    }
}

/// A server on a socket in its own folder; gone with this value.
struct Server {
    folder: tempfile::TempDir,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("socket")).unwrap();
        let routes = tonic::transport::Server::builder()
            .add_service(TokenServiceServer::new(Fake))
            .add_service(RuleServiceServer::new(Fake));
        #[expect(clippy::disallowed_methods, reason = "a test has no spawner")]
        let task = tokio::spawn(async move {
            routes.serve_with_incoming(UnixListenerStream::new(listener)).await.unwrap();
        });
        Self { folder, task }
    }

    async fn run(&self, line: &str) -> (Exit, String, String) {
        run_against(&self.folder.path().join("socket"), line).await
    }
}

async fn run_against(socket: &Path, line: &str) -> (Exit, String, String) {
    let server = format!("unix://{}", socket.display());
    let words = ["rhizome", "--server", &server].into_iter().chain(line.split(' '));
    let Program { options, verb } = Program::try_parse_from(words).unwrap();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut console = Console {
        out: &mut out,
        err: &mut err,
        clock: Arc::new(|| Timestamp::from_unix(1_000_000)),
        terminal: false,
    };
    let exit = run(&options, verb, &mut console).await;
    (exit, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

#[tokio::test]
async fn a_new_token_is_a_join_string_that_decodes() {
    let server = Server::start();
    let (exit, out, err) = server.run("token create --cluster prod --namespace shop --quiet").await;
    assert_eq!((exit, err.as_str()), (Exit::Done, ""));
    let join = JoinString::decode(&out).unwrap();
    assert_eq!((join.token(), join.addresses()), ("c2VjcmV0", &["ca.example.org:8443".to_owned()][..]));

    let (_, out, _) = server.run("token create --cluster prod --namespace shop --output json").await;
    let json: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(json["token"]["namespaces"][0], "shop");
    assert!(json["join_string"].as_str().unwrap().starts_with("rhz1."));
}

#[tokio::test]
async fn lists_are_fetched_page_by_page_and_say_when_they_were_cut() {
    let server = Server::start();
    let (exit, out, err) = server.run("token list --limit 0 --output json").await;
    let json: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((exit, err.as_str()), (Exit::Done, ""));
    assert_eq!((json["tokens"].as_array().unwrap().len(), &json["more"]), (2500, &Value::Bool(false)));

    let (_, out, err) = server.run("token list --limit 1500").await;
    assert_eq!(out.lines().count(), 1501);
    assert!(err.contains("--limit 0"), "{err}");
}

#[tokio::test]
async fn refusals_end_with_their_exit_code_and_the_server_s_stable_code() {
    let server = Server::start();
    let (exit, out, err) = server.run("token revoke abc").await;
    assert_eq!((exit, out.as_str()), (Exit::NotFound, ""));
    assert_eq!(err, "error: no such token [token_unknown]\n");

    let (exit, _, err) = server.run("rule list --output json").await;
    let json: Value = serde_json::from_str(&err).unwrap();
    assert_eq!(exit, Exit::Denied);
    assert_eq!(
        (&json["error"]["code"], &json["error"]["exit_code"]),
        (&"permission_denied".into(), &4.into())
    );

    assert_eq!(server.run("rule delete web --yes").await.0, Exit::Failed);
    assert_eq!(server.run("status").await.0, Exit::Failed, "unimplemented");
}

#[tokio::test]
async fn a_rule_is_put_only_with_yes() {
    let server = Server::start();
    let file = server.folder.path().join("rule.yaml");
    std::fs::write(&file, "name: web\nwhen: { namespace: shop }\nidentity: /web\n").unwrap();
    let (exit, out, err) = server.run(&format!("rule put {}", file.display())).await;
    assert_eq!(exit, Exit::Done);
    assert!(out.starts_with("would put rule web") && err.contains("--yes"), "{out}{err}");
    let (_, out, err) = server.run(&format!("rule put {} --yes", file.display())).await;
    assert!(out.starts_with("put rule web") && err.is_empty(), "{out}{err}");
}

#[tokio::test]
async fn a_faulty_file_is_refused_before_the_server_is_asked() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rule.yaml");
    std::fs::write(&file, "name: web\nwhen: {}\nidentity: /web\nallow_all: true\n").unwrap();
    let nowhere = folder.path().join("no-socket");
    let (exit, _, err) = run_against(&nowhere, &format!("rule put {}", file.display())).await;
    assert_eq!(exit, Exit::Usage);
    assert!(err.contains("allow_all") && err.contains(file.to_str().unwrap()), "{err}");
}

#[tokio::test]
async fn without_a_server_the_error_says_where_it_looked() {
    let folder = tempfile::tempdir().unwrap();
    let nowhere = folder.path().join("no-socket");
    let (exit, out, err) = run_against(&nowhere, "status").await;
    assert_eq!((exit, out.as_str()), (Exit::Unavailable, ""));
    assert!(err.contains(nowhere.to_str().unwrap()) && err.contains("hint:"), "{err}");
}

#[tokio::test]
async fn a_server_that_is_no_address_is_refused_by_the_verbs_that_need_it() {
    let folder = tempfile::tempdir().unwrap();
    for address in ["http://a:1", "localhost:1", "nonsense"] {
        let line = format!("status --server {address} --output json");
        let (exit, _, err) = run_against(&folder.path().join("x"), &line).await;
        let json: Value = serde_json::from_str(&err).unwrap();
        assert_eq!((exit, &json["error"]["code"]), (Exit::Usage, &"usage".into()));
        assert!(json["error"]["message"].as_str().unwrap().contains(address), "{err}");
    }
}

#[tokio::test]
async fn a_private_key_is_not_shown_on_a_terminal() {
    let words = ["rhizome", "cert", "request", "--namespace", "shop"];
    let Program { options, verb } = Program::try_parse_from(words).unwrap();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let clock = Arc::new(|| Timestamp::from_unix(1_000_000));
    let mut console = Console { out: &mut out, err: &mut err, clock, terminal: true };
    assert_eq!(run(&options, verb, &mut console).await, Exit::Usage);
    assert!(String::from_utf8(err).unwrap().contains("--out"));
}

#[tokio::test]
async fn https_without_an_identity_is_refused_with_advice() {
    let folder = tempfile::tempdir().unwrap();
    let (exit, _, err) = run_against(&folder.path().join("x"), "status --server https://127.0.0.1:1").await;
    assert_eq!(exit, Exit::Usage);
    assert!(err.contains("--identity"), "{err}");
}
