//! The JWT profile of the Workload API over the socket.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use prost_types::value::Kind;
use rhizome_agent::holdings::{Awaited, NotYet, Standing, View};
use rhizome_agent::tokens::NoToken;
use rhizome_core::attributes::AttributeName;
use rhizome_proto::workload as wire;
use rhizome_x509::JwtKey;
use serde_json::{Value, json};
use tonic::{Code, Status};

use crate::support::{Host, WEB, soon, svid};

const API: &str = "spiffe://example.org/ns/prod/sa/api";

fn wish(audiences: &[&str], spiffe_id: &str) -> wire::JwtsvidRequest {
    let audience = audiences.iter().map(|it| (*it).to_owned()).collect();
    wire::JwtsvidRequest { audience, spiffe_id: spiffe_id.to_owned() }
}

async fn fetch(host: &Host, request: wire::JwtsvidRequest) -> Result<Vec<wire::Jwtsvid>, Status> {
    let answer = soon(host.workload_api().await.fetch_jwtsvid(request)).await?;
    Ok(answer.into_inner().svids)
}

fn told(status: &Status) -> (Code, &str) {
    (status.code(), status.message())
}

fn two_identities(host: &Host) -> crate::support::Value {
    host.view_of(1, vec![svid(WEB, "leaf", "web"), svid(API, "leaf", "web"), svid(WEB, "other", "again")])
}

#[tokio::test]
async fn a_caller_gets_a_token_for_each_of_its_identities_or_for_the_one_it_names() {
    let host = Host::serving(|_| {});
    host.identities.set(two_identities(&host));
    let token = |id: &str, hint: &str| wire::Jwtsvid {
        spiffe_id: id.to_owned(),
        svid: format!("token of {id} for a and b"),
        hint: hint.to_owned(),
    };
    let all = fetch(&host, wish(&["b", "a", "b"], "")).await.unwrap();
    assert_eq!(all, [token(WEB, "web"), token(API, "")], "the default one first, each once, hints unique");
    assert_eq!(fetch(&host, wish(&["a", "b"], API)).await.unwrap(), [token(API, "web")]);
    let wishes = host.tokens().wishes.lock().unwrap().clone();
    let uid = rustix::process::geteuid().as_raw().to_string();
    assert!(wishes.iter().all(|it| it.attributes.single(&AttributeName::UnixUid) == Some(uid.as_str())));
    host.identities.until_all_gone().await;
    assert!(host.identities.standings.borrow().values().all(|it| !matches!(it, Standing::Given(_))));
}

#[tokio::test]
async fn what_is_missing_or_malformed_in_a_question_is_said() {
    let host = Host::serving(|_| {});
    host.identities.set(host.view(1, "leaf"));
    let (long, many) = ("a".repeat(257), (0..17).map(|n| n.to_string()).collect::<Vec<_>>());
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    for request in [
        wish(&[], ""),
        wish(&[""], ""),
        wish(&["a", ""], ""),
        wish(&["a\n"], ""),
        wish(&[&long], ""),
        wish(&many, ""),
        wish(&["a"], "web"),
        wish(&["a"], "SPIFFE://example.org/ns/prod/sa/web"),
    ] {
        assert_eq!(
            fetch(&host, request.clone()).await.unwrap_err().code(),
            Code::InvalidArgument,
            "{request:?}"
        );
    }
    let missing = fetch(&host, wish(&[], "")).await.unwrap_err();
    assert_eq!(told(&missing), (Code::InvalidArgument, "audience must be specified"));
    assert!(host.identities.asked.lock().unwrap().is_empty(), "nobody was attested for that");
}

#[tokio::test]
async fn an_identity_that_is_unknown_and_one_that_is_another_ones_are_answered_alike() {
    let host = Host::serving(|_| {});
    host.identities.set(host.view(1, "leaf"));
    for id in
        [API, "spiffe://example.org/nobody", "spiffe://other.example/ns/prod/sa/web", "spiffe://example.org"]
    {
        let status = fetch(&host, wish(&["a"], id)).await.unwrap_err();
        assert_eq!(told(&status), (Code::PermissionDenied, "no identity issued"), "{id}");
    }
    assert!(host.tokens().wishes.lock().unwrap().is_empty(), "nothing was asked of the authority");
    host.identities.set(Err(NotYet::Denied("secret reason".to_owned())));
    let status = fetch(&host, wish(&["a"], "")).await.unwrap_err();
    assert_eq!(told(&status), (Code::PermissionDenied, "no identity issued"));
}

#[tokio::test]
async fn what_the_authority_says_is_told_by_its_code() {
    let host = Host::serving(|settings| settings.limits.patience = Duration::from_millis(20));
    host.identities.set(two_identities(&host));
    let path = |id: &str| id.strip_prefix("spiffe://example.org").unwrap().to_owned();
    let refuse = |id: &str, refusal| host.tokens().refusals.lock().unwrap().insert(path(id), refusal);
    for (refusal, code) in [
        (NoToken::Away("secret reason".to_owned()), Code::Unavailable),
        (NoToken::Refused("no such audience".to_owned()), Code::InvalidArgument),
        (NoToken::NotOffered, Code::Unimplemented),
    ] {
        refuse(API, refusal);
        let status = fetch(&host, wish(&["a"], "")).await.unwrap_err();
        assert_eq!(status.code(), code);
        assert!(!status.message().contains("secret"));
    }
    refuse(API, NoToken::Denied("no rule".to_owned()));
    let others = fetch(&host, wish(&["a"], "")).await.unwrap();
    assert_eq!(others.iter().map(|it| it.spiffe_id.as_str()).collect::<Vec<_>>(), [WEB]);
    refuse(WEB, NoToken::Denied("no rule".to_owned()));
    let status = fetch(&host, wish(&["a"], "")).await.unwrap_err();
    assert_eq!(told(&status), (Code::PermissionDenied, "no identity issued"));
    host.identities.set(Err(NotYet::Starting));
    assert_eq!(fetch(&host, wish(&["a"], "")).await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn an_identity_that_is_lost_while_its_token_is_fetched_gets_none() {
    let host = Host::serving(|_| {});
    host.identities.set(host.view(1, "leaf"));
    let gate = host.tokens().gate.clone().lock_owned().await;
    let lost = async {
        host.identities.until(|all| all.values().any(|it| *it == Standing::Nothing)).await;
        host.identities.set(Err(NotYet::Denied("the rule is gone".to_owned())));
        drop(gate);
    };
    let (fetched, ()) = tokio::join!(fetch(&host, wish(&["a"], "")), lost);
    assert_eq!(told(&fetched.unwrap_err()), (Code::PermissionDenied, "no identity issued"));
}

#[tokio::test]
async fn an_agent_without_the_profile_says_so() {
    let without = Host::serving(|_| {});
    *without.identities.tokens.lock().unwrap() = None;
    offers_no_profile(without).await;
    offers_no_profile(Host::serving(|settings| settings.jwt_off = true)).await;
}

async fn offers_no_profile(host: Host) {
    host.identities.set(host.view(1, "leaf"));
    assert_eq!(fetch(&host, wish(&["a"], "")).await.unwrap_err().code(), Code::Unimplemented);
    let mut client = host.workload_api().await;
    let bundles = soon(client.fetch_jwt_bundles(wire::JwtBundlesRequest {})).await;
    assert_eq!(bundles.unwrap_err().code(), Code::Unimplemented);
    let question = wire::ValidateJwtsvidRequest { audience: "a".to_owned(), svid: "b".to_owned() };
    assert_eq!(soon(client.validate_jwtsvid(question)).await.unwrap_err().code(), Code::Unimplemented);
}

fn keys(host: &Host) -> [Vec<JwtKey>; 2] {
    host.token_keys.each_ref().map(|key| vec![key.public.clone()])
}

#[tokio::test]
async fn bundles_are_plain_key_sets_by_trust_domain_and_are_not_repeated() {
    let host = Host::serving(|_| {});
    let [own, _] = keys(&host);
    host.identities.set(host.view_with_keys(1, own.clone(), Vec::new()));
    let mut client = host.workload_api().await;
    let mut stream = soon(client.fetch_jwt_bundles(wire::JwtBundlesRequest {})).await.unwrap().into_inner();
    let first = soon(stream.message()).await.unwrap().unwrap();
    let mut domains: Vec<&str> = first.bundles.keys().map(String::as_str).collect();
    domains.sort_unstable();
    assert_eq!(domains, ["spiffe://example.org", "spiffe://other.example"]);
    let empty: Value = serde_json::from_slice(&first.bundles["spiffe://other.example"]).unwrap();
    assert_eq!(empty, json!({ "keys": [] }));
    let set: Value = serde_json::from_slice(&first.bundles["spiffe://example.org"]).unwrap();
    assert_eq!(set.as_object().unwrap().keys().collect::<Vec<_>>(), ["keys"], "nothing of SPIFFE's");
    let members: Vec<&String> = set["keys"][0].as_object().unwrap().keys().collect();
    assert_eq!(members, ["crv", "kid", "kty", "x", "y"], "nor the use; and no certificate");
    assert_eq!((set["keys"].as_array().unwrap().len(), &set["keys"][0]["kid"]), (1, &json!("own")));
    // Another certificate and another sequence, but the same keys: in force, and not sent.
    host.identities.set(host.view_with_keys(2, own.clone(), Vec::new()));
    host.identities.until_given(2).await;
    let next = crate::support::TokenKey::new("next").public;
    host.identities.set(host.view_with_keys(3, vec![own[0].clone(), next], Vec::new()));
    let second = soon(stream.message()).await.unwrap().unwrap();
    let set: Value = serde_json::from_slice(&second.bundles["spiffe://example.org"]).unwrap();
    assert_eq!(set["keys"].as_array().unwrap().len(), 2);
    host.identities.set(Err(NotYet::Denied("the rule is gone".to_owned())));
    assert_eq!(soon(stream.message()).await.unwrap_err().code(), Code::PermissionDenied);
}

fn now() -> i64 {
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    i64::try_from(since).unwrap()
}

fn claims(id: &str) -> Value {
    json!({
        "sub": id,
        "aud": "a",
        "exp": now() + 300,
        "iat": now(),
        "iss": "https://example.org",
        "groups": ["x", 1, null, true, { "y": 2.5 }],
    })
}

async fn validate(host: &Host, audience: &str, svid: &str) -> Result<wire::ValidateJwtsvidResponse, Status> {
    let question = wire::ValidateJwtsvidRequest { audience: audience.to_owned(), svid: svid.to_owned() };
    let answer = soon(host.workload_api().await.validate_jwtsvid(question)).await?;
    Ok(answer.into_inner())
}

fn json_of(value: &prost_types::Value) -> Value {
    match value.kind.as_ref().unwrap() {
        Kind::NullValue(_) => Value::Null,
        Kind::BoolValue(value) => json!(value),
        Kind::NumberValue(value) => json!(value),
        Kind::StringValue(value) => json!(value),
        Kind::ListValue(list) => list.values.iter().map(json_of).collect(),
        Kind::StructValue(it) => {
            it.fields.iter().map(|(name, value)| (name.clone(), json_of(value))).collect()
        }
    }
}

fn shown(answer: &wire::ValidateJwtsvidResponse) -> Value {
    let fields = &answer.claims.as_ref().unwrap().fields;
    fields.iter().map(|(name, value)| (name.clone(), json_of(value))).collect()
}

#[tokio::test]
async fn a_valid_token_shows_its_claims_and_its_audiences_as_a_list() {
    let host = Host::serving(|_| {});
    let [own, foreign] = keys(&host);
    host.identities.set(host.view_with_keys(1, own, foreign));
    let claims = claims(API);
    let answer = validate(&host, "a", &host.token_keys[0].token(&claims)).await.unwrap();
    assert_eq!(answer.spiffe_id, API);
    let mut expected = claims.clone();
    expected["aud"] = json!(["a"]);
    for number in ["exp", "iat"] {
        expected[number] = json!(claims[number].as_f64().unwrap());
    }
    expected["groups"] = json!(["x", 1.0, null, true, { "y": 2.5 }]);
    assert_eq!(shown(&answer), expected);
}

#[tokio::test]
async fn of_a_foreign_token_only_what_the_standard_and_the_operator_name_is_shown() {
    let host = Host::serving(|settings| settings.foreign_claims = ["iss".to_owned()].into());
    let [own, foreign] = keys(&host);
    host.identities.set(host.view_with_keys(1, own, foreign));
    let claims = claims("spiffe://other.example/ns/prod/sa/web");
    let answer = validate(&host, "a", &host.token_keys[1].token(&claims)).await.unwrap();
    let expected = json!({
        "sub": "spiffe://other.example/ns/prod/sa/web",
        "aud": ["a"],
        "exp": claims["exp"].as_f64().unwrap(),
        "iss": "https://example.org",
    });
    assert_eq!(shown(&answer), expected);
}

#[tokio::test]
async fn what_is_no_valid_token_for_the_audience_is_refused_with_a_reason() {
    let host = Host::serving(|_| {});
    let [own, foreign] = keys(&host);
    host.identities.set(host.view_with_keys(1, own, foreign));
    let [ours, theirs] = &host.token_keys;
    let with = |name: &str, value: Value| {
        let mut claims = claims(WEB);
        claims[name] = value;
        ours.token(&claims)
    };
    let good = ours.token(&claims(WEB));
    for (audience, token, reason) in [
        ("", good.as_str(), "audience must be specified"),
        ("a", "", "svid must be specified"),
        ("b", &good, "not meant for the audience"),
        ("a", "garbage", "compact form"),
        ("a", &format!("{good}."), "compact form"),
        ("a", &with("exp", json!(now() - 1)), "expired"),
        ("a", &with("exp", Value::Null), "claims"),
        ("a", &with("sub", json!("spiffe://third.example/web")), "no bundle for the trust domain"),
        ("a", &theirs.token(&claims(WEB)), "no live JWT key"),
        ("a", &ours.token(&claims("spiffe://other.example/web")), "no live JWT key"),
    ] {
        let status = validate(&host, audience, token).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{reason}");
        assert!(status.message().contains(reason), "{}", status.message());
    }
    host.identities.set(Err(NotYet::Denied("no rule".to_owned())));
    assert_eq!(validate(&host, "a", &good).await.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn secrets_for_proxies_hold_no_keys_for_tokens() {
    use envoy_types::pb::envoy::service::discovery::v3::DiscoveryRequest;
    use envoy_types::pb::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
    let host = Host::serving(|_| {});
    let [own, foreign] = keys(&host);
    let mut answers = Vec::new();
    for view in [host.view_with_keys(1, Vec::new(), Vec::new()), host.view_with_keys(1, own, foreign)] {
        host.identities.set(view);
        let mut client = SecretDiscoveryServiceClient::new(host.channel().await);
        let answer = soon(client.fetch_secrets(DiscoveryRequest::default())).await.unwrap().into_inner();
        assert!(!answer.resources.is_empty());
        answers.push(answer.resources);
    }
    assert_eq!(answers[0], answers[1]);
}

#[tokio::test]
async fn an_identity_that_is_on_its_way_is_no_denial_and_no_other_one_is_the_default_meanwhile() {
    let host = Host::serving(|settings| settings.limits.patience = Duration::from_millis(20));
    let awaited = Awaited { identities: [API.parse().unwrap()].into(), default: true };
    let view = |awaited| {
        let View { svids, bundles, crls, version, .. } = &*host.view(1, "leaf").unwrap();
        let (svids, bundles) = (svids.clone(), bundles.clone());
        Ok(Arc::new(View { svids, awaited, bundles, crls: Arc::clone(crls), version: *version }))
    };
    host.identities.set(view(awaited));
    for id in [API, ""] {
        assert_eq!(fetch(&host, wish(&["a"], id)).await.unwrap_err().code(), Code::Unavailable, "{id:?}");
    }
    assert_eq!(fetch(&host, wish(&["a"], WEB)).await.unwrap().len(), 1, "the others are there by name");
    let mut client = host.workload_api().await;
    let mut stream = client.fetch_x509svid(wire::X509svidRequest {}).await;
    if let Ok(stream) = &mut stream {
        let status = stream.get_mut().message().await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "the first of a message would be the default one");
    }
    let mut bundles = client.fetch_x509_bundles(wire::X509BundlesRequest {}).await.unwrap().into_inner();
    assert!(bundles.message().await.unwrap().is_some(), "whom to trust does not wait for it");
    host.identities.set(view(Awaited::default()));
    assert_eq!(fetch(&host, wish(&["a"], "")).await.unwrap().len(), 1);
}
