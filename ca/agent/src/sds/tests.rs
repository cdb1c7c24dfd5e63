//! The discovery protocol without sockets: tables of names, then conversations in both forms.

use std::collections::BTreeMap;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::node::UserAgentVersionType;
use envoy_types::pb::envoy::config::core::v3::{BuildVersion, DataSource, Node, data_source::Specifier};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::secret::Type;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{Secret, SpiffeCertValidatorConfig};
use envoy_types::pb::envoy::r#type::v3::SemanticVersion;
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{Any, Struct, Value};
use envoy_types::pb::google::rpc::Status as Detail;
use prost::Message as _;
use rhizome_id::{TrustDomain, Ttl};
use rhizome_x509::{Bundle, CaCertificate};

use super::secrets::{Form, SECRET, Unserved};
use super::*;
use crate::holdings::{Awaited, Svid};
use crate::testing::{at, root};

const FIRST: &str = "spiffe://example.org/ns/prod/sa/web";
const SECOND: &str = "spiffe://example.org/ns/prod/sa/batch";

fn domain(name: &str) -> TrustDomain {
    name.parse().unwrap()
}

fn svid(id: &str, leaf: &[u8]) -> Arc<Svid> {
    Arc::new(Svid {
        spiffe_id: id.parse().unwrap(),
        chain_der: vec![leaf.to_vec(), b"intermediate".to_vec()],
        key_pkcs8_der: b"key".to_vec().into(),
        not_before: at(0),
        not_after: at(3600),
        renew_at: at(1800),
        serial: "01".to_owned(),
        hint: String::new(),
    })
}

/// Two identities, an own and a foreign bundle.
struct Host {
    root: CaCertificate,
    settings: SdsSettings,
}

impl Host {
    fn new() -> Self {
        Self { root: root("one"), settings: SdsSettings::default() }
    }

    fn view(&self, version: u64, leaf: &[u8]) -> View {
        let bundle = |name: &str| {
            let anchors = vec![self.root.clone()];
            (domain(name), Arc::new(Bundle::new(domain(name), version, Ttl::hours(1), anchors).unwrap()))
        };
        let bundles: BTreeMap<_, _> = [bundle("example.org"), bundle("other.example")].into();
        View {
            svids: vec![svid(FIRST, leaf), svid(SECOND, b"second")],
            bundles,
            awaited: Awaited::default(),
            crls: Arc::default(),
            version,
        }
    }

    fn sotw(&self, state: &mut Sotw, view: &View) -> Reply<DiscoveryResponse> {
        let form = state.proxy.form(self.settings.plain);
        state.reply(&Catalogue { view, own: &domain("example.org"), settings: &self.settings, form })
    }

    fn delta(&self, state: &mut Delta, view: &View) -> Reply<DeltaDiscoveryResponse> {
        let form = state.proxy.form(self.settings.plain);
        state.reply(&Catalogue { view, own: &domain("example.org"), settings: &self.settings, form })
    }
}

fn ask(names: &[&str], nonce: &str) -> DiscoveryRequest {
    DiscoveryRequest {
        resource_names: names.iter().map(|&name| name.to_owned()).collect(),
        type_url: SECRET.to_owned(),
        response_nonce: nonce.to_owned(),
        ..Default::default()
    }
}

fn subscribe(names: &[&str], nonce: &str) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        resource_names_subscribe: names.iter().map(|&name| name.to_owned()).collect(),
        response_nonce: nonce.to_owned(),
        ..Default::default()
    }
}

fn refused() -> Option<Detail> {
    Some(Detail { message: "bad \n".repeat(200), ..Default::default() })
}

fn bytes(source: Option<DataSource>) -> String {
    match source.and_then(|it| it.specifier) {
        Some(Specifier::InlineBytes(bytes)) => String::from_utf8(bytes).unwrap(),
        other => panic!("no inline bytes: {other:?}"),
    }
}

/// A secret in words: its name and `cert <certificates>` or `roots <trust domains>` or `plain <certificates>`.
fn shown(body: &Any) -> (String, String) {
    assert_eq!(body.type_url, SECRET);
    let secret = Secret::decode(body.value.as_slice()).unwrap();
    let words = match secret.r#type.unwrap() {
        Type::TlsCertificate(it) => {
            assert!(bytes(it.private_key).starts_with("-----BEGIN PRIVATE KEY-----\n"));
            format!("cert {}", bytes(it.certificate_chain).matches("BEGIN CERTIFICATE").count())
        }
        Type::ValidationContext(it) => match it.custom_validator_config {
            None => format!("plain {}", bytes(it.trusted_ca).matches("BEGIN CERTIFICATE").count()),
            Some(extension) => {
                assert_eq!(extension.name, "envoy.tls.cert_validator.spiffe");
                let config = extension.typed_config.unwrap();
                let expected =
                    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig";
                assert_eq!(config.type_url, expected);
                assert!(it.trusted_ca.is_none());
                let config = SpiffeCertValidatorConfig::decode(config.value.as_slice()).unwrap();
                let names: Vec<_> = config.trust_domains.iter().map(|it| it.name.as_str()).collect();
                format!("roots {}", names.join(" "))
            }
        },
        Type::SessionTicketKeys(_) | Type::GenericSecret(_) => panic!("never served"),
    };
    (secret.name, words)
}

fn names(response: &DiscoveryResponse) -> Vec<String> {
    response.resources.iter().map(|body| shown(body).0).collect()
}

#[test]
fn every_name_stands_for_what_the_table_says() {
    use Unserved::{NoBundle, NotGranted, NotInPlainForm, Unknown};
    let mut host = Host::new();
    let view = host.view(1, b"leaf");
    let own = domain("example.org");
    let (both, alone) = ("roots example.org other.example", "roots example.org");
    let own_only = RootCovers::Own;
    let table: &[(&str, Form, RootCovers, Result<&str, Unserved>)] = &[
        ("default", Form::Spiffe, own_only, Ok("cert 2")),
        (FIRST, Form::Spiffe, own_only, Ok("cert 2")),
        (SECOND, Form::Plain, own_only, Ok("cert 2")),
        ("spiffe://example.org/ns/prod/sa/other", Form::Spiffe, own_only, Err(NotGranted)),
        ("spiffe://other.example/ns/prod/sa/web", Form::Spiffe, own_only, Err(NotGranted)),
        ("ROOTCA", Form::Spiffe, own_only, Ok(alone)),
        ("ROOTCA", Form::Spiffe, RootCovers::All, Ok(both)),
        ("ROOTCA", Form::Plain, own_only, Ok("plain 1")),
        ("ROOTCA", Form::Plain, RootCovers::All, Ok("plain 1")),
        ("ALL", Form::Spiffe, own_only, Ok(both)),
        ("ALL", Form::Plain, own_only, Err(NotInPlainForm)),
        ("spiffe://example.org", Form::Spiffe, own_only, Ok(alone)),
        ("spiffe://other.example", Form::Spiffe, own_only, Ok("roots other.example")),
        ("spiffe://other.example", Form::Plain, own_only, Ok("plain 1")),
        ("spiffe://unknown.example", Form::Spiffe, own_only, Err(NoBundle)),
        ("", Form::Spiffe, own_only, Err(Unknown)),
        ("Default", Form::Spiffe, own_only, Err(Unknown)),
        ("file-root:/etc/passwd", Form::Spiffe, own_only, Err(Unknown)),
        ("../../etc/passwd", Form::Spiffe, own_only, Err(Unknown)),
    ];
    for (name, form, covers, expected) in table {
        host.settings.root_covers = *covers;
        let catalogue = Catalogue { view: &view, own: &own, settings: &host.settings, form: *form };
        let found = catalogue.serve(name).map(|it| (it.name.clone(), shown(&it.body)));
        let expected = expected.map(|words| ((*name).to_owned(), ((*name).to_owned(), words.to_owned())));
        assert_eq!(found, expected, "{name} {form:?} {covers:?}");
    }
}

#[test]
fn names_are_the_operators_to_choose() {
    let mut host = Host::new();
    host.settings = SdsSettings {
        default_name: "me".to_owned(),
        all_name: "ROOTCA".to_owned(),
        root_name: "own".to_owned(),
        ..host.settings
    };
    let view = host.view(1, b"leaf");
    let mut state = Sotw::default();
    state.hear(ask(&["me", "ROOTCA", "own", "default"], "")).unwrap();
    let response = host.sotw(&mut state, &view).response.unwrap();
    let all: Vec<_> = response.resources.iter().map(shown).collect();
    let expected =
        [("me", "cert 2"), ("ROOTCA", "roots example.org other.example"), ("own", "roots example.org")];
    assert_eq!(all, expected.map(|(name, words)| (name.to_owned(), words.to_owned())));
}

#[test]
fn several_kinds_come_in_one_response_and_a_bad_name_takes_nothing_from_them() {
    let host = Host::new();
    let view = host.view(1, b"leaf");
    let mut state = Sotw::default();
    state.hear(ask(&["default", "nonsense", "ROOTCA", SECOND, "ALL", "default"], "")).unwrap();
    let reply = host.sotw(&mut state, &view);
    let response = reply.response.unwrap();
    assert_eq!(names(&response), ["default", "ROOTCA", SECOND, "ALL"]);
    assert_eq!(reply.unserved, [("nonsense".to_owned(), Unserved::Unknown)]);
    let error = &response.resource_errors[0];
    assert_eq!(error.resource_name.as_ref().unwrap().name, "nonsense");
    assert_eq!((response.version_info.as_str(), response.type_url.as_str()), ("1", SECRET));
    // Said once, not with every view.
    assert_eq!(host.sotw(&mut state, &host.view(2, b"new leaf")).unserved, []);
}

#[test]
fn an_accepted_view_is_in_force_and_nothing_is_sent_twice() {
    let host = Host::new();
    let mut state = Sotw::default();
    assert_eq!(state.hear(ask(&["default"], "")), Ok(Heard::Asks));
    let first = host.sotw(&mut state, &host.view(7, b"leaf")).response.unwrap();
    assert!(state.in_force.is_awaited());
    assert_eq!(state.in_force.take(), None, "not before the proxy has accepted it");
    assert_eq!(state.hear(ask(&["default"], &first.nonce)), Ok(Heard::Accepts));
    assert!(host.sotw(&mut state, &host.view(7, b"leaf")).response.is_none());
    assert_eq!((state.in_force.take(), state.in_force.take()), (Some(7), None));
    // A view that changes nothing here is in force without being sent.
    assert!(host.sotw(&mut state, &host.view(8, b"leaf")).response.is_none());
    assert_eq!(state.in_force.take(), Some(8));
    let second = host.sotw(&mut state, &host.view(9, b"renewed")).response.unwrap();
    assert_ne!(first.nonce, second.nonce);
    assert_eq!(second.version_info, "2");
    // A view that changes nothing while an answer is awaited comes into force with that answer.
    assert!(host.sotw(&mut state, &host.view(10, b"renewed")).response.is_none());
    assert_eq!(state.in_force.take(), None);
    state.hear(ask(&["default"], &second.nonce)).unwrap();
    assert_eq!(state.in_force.take(), Some(10));
}

#[test]
fn a_refusal_is_kept_to_and_never_counts_as_in_force() {
    let host = Host::new();
    let mut state = Sotw::default();
    state.hear(ask(&["default"], "")).unwrap();
    let first = host.sotw(&mut state, &host.view(1, b"leaf")).response.unwrap();
    let mut refusal = ask(&["default"], &first.nonce);
    refusal.error_detail = refused();
    match state.hear(refusal).unwrap() {
        Heard::Refuses(complaint) => assert_eq!(complaint.chars().count(), 300),
        other @ (Heard::Asks | Heard::Accepts | Heard::Stale) => panic!("{other:?}"),
    }
    assert!(host.sotw(&mut state, &host.view(1, b"leaf")).response.is_none(), "not sent again");
    assert!(host.sotw(&mut state, &host.view(2, b"leaf")).response.is_none());
    assert_eq!(state.in_force.take(), None);
    let better = host.sotw(&mut state, &host.view(3, b"better")).response.unwrap();
    // The names of a refusal count.
    let mut refusal = ask(&["default", "ROOTCA"], &better.nonce);
    refusal.error_detail = refused();
    state.hear(refusal).unwrap();
    assert_eq!(
        names(&host.sotw(&mut state, &host.view(3, b"better")).response.unwrap()),
        ["default", "ROOTCA"]
    );
}

#[test]
fn a_proxy_that_refused_and_asks_for_more_has_not_accepted() {
    let host = Host::new();
    let (mut sotw, mut delta) = (Sotw::default(), Delta::default());
    sotw.hear(ask(&["default"], "")).unwrap();
    let first = host.sotw(&mut sotw, &host.view(1, b"leaf")).response.unwrap();
    let mut refusal = ask(&["default"], &first.nonce);
    refusal.error_detail = refused();
    sotw.hear(refusal).unwrap();
    assert_eq!(sotw.hear(ask(&["default"], &first.nonce)), Ok(Heard::Asks));
    assert!(host.sotw(&mut sotw, &host.view(2, b"leaf")).response.is_none());
    assert_eq!(sotw.in_force.take(), None);
    delta.hear(subscribe(&["default"], "")).unwrap();
    let first = host.delta(&mut delta, &host.view(1, b"leaf")).response.unwrap();
    let mut refusal = subscribe(&[], &first.nonce);
    refusal.error_detail = refused();
    delta.hear(refusal).unwrap();
    assert_eq!(delta.hear(subscribe(&[], &first.nonce)), Ok(Heard::Asks));
    assert_eq!(delta.in_force.take(), None);
}

#[test]
fn a_version_other_than_the_last_is_no_acceptance() {
    let host = Host::new();
    let mut state = Sotw::default();
    state.hear(ask(&["default"], "")).unwrap();
    let first = host.sotw(&mut state, &host.view(1, b"leaf")).response.unwrap();
    state
        .hear(DiscoveryRequest {
            version_info: first.version_info.clone(),
            ..ask(&["default"], &first.nonce)
        })
        .unwrap();
    assert_eq!(state.in_force.take(), Some(1));
    let second = host.sotw(&mut state, &host.view(2, b"new")).response.unwrap();
    let early = DiscoveryRequest { version_info: first.version_info, ..ask(&["default"], &second.nonce) };
    assert_eq!(state.hear(early), Ok(Heard::Asks));
    assert!(state.in_force.is_awaited());
    let accept = DiscoveryRequest { version_info: second.version_info, ..ask(&["default"], &second.nonce) };
    assert_eq!(state.hear(accept), Ok(Heard::Accepts));
}

#[test]
fn a_request_about_an_older_response_is_ignored_whole() {
    let host = Host::new();
    let mut state = Sotw::default();
    state.hear(ask(&["default"], "")).unwrap();
    let first = host.sotw(&mut state, &host.view(1, b"leaf")).response.unwrap();
    host.sotw(&mut state, &host.view(2, b"new")).response.unwrap();
    assert_eq!(state.hear(ask(&["ROOTCA"], &first.nonce)), Ok(Heard::Stale));
    assert!(host.sotw(&mut state, &host.view(2, b"new")).response.is_none());
    assert!(state.in_force.is_awaited());
}

#[test]
fn no_names_at_first_is_everything_and_later_nothing() {
    let host = Host::new();
    let view = host.view(1, b"leaf");
    let mut state = Sotw::default();
    state.hear(ask(&[], "")).unwrap();
    let response = host.sotw(&mut state, &view).response.unwrap();
    assert_eq!(names(&response), [FIRST, SECOND, "spiffe://example.org", "spiffe://other.example"]);
    state.hear(ask(&[], &response.nonce)).unwrap();
    assert!(host.sotw(&mut state, &view).response.is_none(), "still everything, and all of it is there");
    state.hear(ask(&["default"], "")).unwrap();
    let response = host.sotw(&mut state, &view).response.unwrap();
    assert_eq!(names(&response), ["default"]);
    state.hear(ask(&[], &response.nonce)).unwrap();
    assert!(host.sotw(&mut state, &view).response.is_none(), "unsubscribed");
    state.hear(ask(&["default"], &response.nonce)).unwrap();
    assert_eq!(names(&host.sotw(&mut state, &view).response.unwrap()), ["default"], "and subscribed again");
}

#[test]
fn nothing_is_sent_until_something_can_be_and_what_is_gone_is_said_to_be() {
    let host = Host::new();
    let mut state = Sotw::default();
    state.hear(ask(&[SECOND], "")).unwrap();
    let mut view = host.view(1, b"leaf");
    view.svids.pop();
    let reply = host.sotw(&mut state, &view);
    assert!(reply.response.is_none());
    assert_eq!(reply.unserved, [(SECOND.to_owned(), Unserved::NotGranted)]);
    assert_eq!(state.in_force.take(), Some(1), "a stream that holds nothing holds nothing up");
    assert_eq!(names(&host.sotw(&mut state, &host.view(2, b"leaf")).response.unwrap()), [SECOND]);
    view.version = 3;
    let response = host.sotw(&mut state, &view).response.unwrap();
    assert_eq!((response.resources.len(), response.resource_errors.len()), (0, 1));
}

#[test]
fn a_proxy_is_believed_about_its_form_once_and_never_about_who_it_is() {
    let metadata = |kind| Node {
        metadata: Some(Struct {
            fields: [("disable_spiffe_cert_validation".to_owned(), Value { kind: Some(kind) })].into(),
        }),
        ..Default::default()
    };
    let envoy = |major_number, minor_number| {
        let version = Some(SemanticVersion { major_number, minor_number, patch: 9 });
        let build = BuildVersion { version, ..Default::default() };
        Node {
            user_agent_version_type: Some(UserAgentVersionType::UserAgentBuildVersion(build)),
            ..Default::default()
        }
    };
    for (node, expected) in [
        (Node::default(), Form::Spiffe),
        (metadata(Kind::BoolValue(true)), Form::Plain),
        (metadata(Kind::BoolValue(false)), Form::Spiffe),
        (metadata(Kind::StringValue("true".to_owned())), Form::Plain),
        (metadata(Kind::StringValue("no".to_owned())), Form::Spiffe),
        (metadata(Kind::NumberValue(1.0)), Form::Spiffe),
        (envoy(1, 17), Form::Plain),
        (envoy(1, 18), Form::Spiffe),
        (envoy(2, 0), Form::Spiffe),
        (Node { id: FIRST.to_owned(), ..Default::default() }, Form::Spiffe),
    ] {
        let mut proxy = Proxy::default();
        proxy.learn(None);
        proxy.learn(Some(&node));
        assert_eq!(proxy.form(false), expected, "{node:?}");
        assert_eq!(proxy.form(true), Form::Plain);
        proxy.learn(Some(&metadata(Kind::BoolValue(expected == Form::Spiffe))));
        assert_eq!(proxy.form(false), expected, "the first description stays");
    }
}

#[test]
fn malformed_requests_are_refused_by_name() {
    let long = "a".repeat(2049);
    let many: Vec<String> = (0..257).map(|number| number.to_string()).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let other_type =
        DiscoveryRequest { type_url: "type.googleapis.com/x.Cluster".to_owned(), ..ask(&[], "") };
    let no_type = DiscoveryRequest { type_url: String::new(), ..ask(&["default"], "") };
    for (request, accepted) in [
        (ask(&[&long], ""), false),
        (ask(&[&long[..2048]], ""), true),
        (ask(&many, ""), false),
        (ask(&many[..256], ""), true),
        (other_type, false),
        (no_type, true),
    ] {
        let heard = Sotw::default().hear(request);
        assert_eq!(heard.is_ok(), accepted, "{heard:?}");
    }
    assert!(Delta::default().hear(subscribe(&many, "")).is_err());
    assert!(Delta::default().hear(subscribe(&[&long], "")).is_err());
}

#[test]
fn a_fetch_is_served_in_part_and_refused_only_when_nothing_can_be_served() {
    let host = Host::new();
    let (view, own) = (host.view(5, b"leaf"), domain("example.org"));
    let catalogue = Catalogue { view: &view, own: &own, settings: &host.settings, form: Form::Spiffe };
    let response = sotw::fetch(ask(&["default", "nonsense"], ""), &catalogue).unwrap();
    assert_eq!((names(&response), response.version_info.as_str()), (vec!["default".to_owned()], "5"));
    assert_eq!(sotw::fetch(ask(&[], ""), &catalogue).unwrap().resources.len(), 4);
    match sotw::fetch(ask(&["nonsense"], ""), &catalogue) {
        Err(Refusal::NoSecret(why)) => assert_eq!(why, "`nonsense`: not a name of this service"),
        other => panic!("{:?}", other.map(|_| ())),
    }
}

fn delta_names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    response.resources.iter().map(|it| it.name.as_str()).collect()
}

#[test]
fn incremental_responses_hold_only_what_changed() {
    let host = Host::new();
    let mut state = Delta::default();
    state.hear(subscribe(&["default", "ROOTCA", "nonsense"], "")).unwrap();
    let first = host.delta(&mut state, &host.view(1, b"leaf")).response.unwrap();
    assert_eq!(delta_names(&first), ["ROOTCA", "default"]);
    assert_eq!(first.removed_resources, ["nonsense"]);
    assert_eq!(state.hear(subscribe(&[], &first.nonce)), Ok(Heard::Accepts));
    assert_eq!(state.in_force.take(), Some(1));
    let second = host.delta(&mut state, &host.view(2, b"renewed")).response.unwrap();
    assert_eq!((delta_names(&second), second.removed_resources.len()), (vec!["default"], 0));
    assert!(host.delta(&mut state, &host.view(3, b"renewed")).response.is_none());
    state.hear(subscribe(&["default"], "")).unwrap();
    let again = host.delta(&mut state, &host.view(3, b"renewed")).response.unwrap();
    assert_eq!(delta_names(&again), ["default"], "subscribing again asks again");
    let unsubscribe = DeltaDiscoveryRequest {
        resource_names_unsubscribe: vec!["default".to_owned()],
        ..Default::default()
    };
    state.hear(unsubscribe).unwrap();
    assert!(host.delta(&mut state, &host.view(4, b"another")).response.is_none());
}

#[test]
fn a_proxy_that_comes_back_is_sent_only_what_it_lacks() {
    let host = Host::new();
    let mut state = Delta::default();
    state.hear(subscribe(&["default", "ROOTCA"], "")).unwrap();
    let view = host.view(1, b"leaf");
    let first = host.delta(&mut state, &view).response.unwrap();
    let has = first.resources.iter().map(|it| (it.name.clone(), it.version.clone()));
    let mut again = subscribe(&["default", "ROOTCA"], "");
    again.initial_resource_versions = has.collect();
    again.initial_resource_versions.insert("gone".to_owned(), "1".to_owned());
    let mut state = Delta::default();
    state.hear(again).unwrap();
    let response = host.delta(&mut state, &host.view(1, b"renewed")).response.unwrap();
    assert_eq!(delta_names(&response), ["default"], "another leaf, the same roots");
    assert_eq!(response.removed_resources, ["gone"]);
}

#[test]
fn the_wildcard_follows_what_comes_and_goes() {
    for names in [&[][..], &["*"][..]] {
        let host = Host::new();
        let mut state = Delta::default();
        state.hear(subscribe(names, "")).unwrap();
        let first = host.delta(&mut state, &host.view(1, b"leaf")).response.unwrap();
        assert_eq!(delta_names(&first), ["spiffe://example.org", SECOND, FIRST, "spiffe://other.example"]);
        let mut view = host.view(2, b"leaf");
        view.svids.pop();
        let second = host.delta(&mut state, &view).response.unwrap();
        assert_eq!((second.resources.len(), second.removed_resources), (0, vec![SECOND.to_owned()]));
    }
}

#[test]
fn a_default_identity_that_is_on_its_way_is_not_another_one_and_nothing_is_said_to_be_gone() {
    let host = Host::new();
    let mut view = host.view(1, b"leaf");
    view.awaited = Awaited { identities: [view.svids.remove(0).spiffe_id.clone()].into(), default: true };
    let catalogue =
        Catalogue { view: &view, own: &domain("example.org"), settings: &host.settings, form: Form::Spiffe };
    for name in ["default", FIRST] {
        assert_eq!(catalogue.serve(name).err(), Some(Unserved::OnItsWay), "{name}");
    }
    assert!(catalogue.serve(SECOND).is_ok());
    let (mut sotw, mut delta) = (Sotw::default(), Delta::default());
    sotw.hear(ask(&["default"], "")).unwrap();
    assert!(host.sotw(&mut sotw, &view).response.is_none());
    delta.hear(subscribe(&["default"], "")).unwrap();
    assert!(host.delta(&mut delta, &view).response.is_none());
    let later = host.view(2, b"leaf");
    assert_eq!(names(&host.sotw(&mut sotw, &later).response.unwrap()), ["default"]);
}

#[test]
fn while_all_identities_are_on_their_way_roots_are_served_and_nothing_is_said_to_be_gone() {
    let host = Host::new();
    let (mut sotw, mut delta) = (Sotw::default(), Delta::default());
    let had = host.view(1, b"leaf");
    sotw.hear(ask(&["default", "ROOTCA"], "")).unwrap();
    delta.hear(subscribe(&["default", FIRST, "ROOTCA"], "")).unwrap();
    assert_eq!(host.sotw(&mut sotw, &had).response.unwrap().resources.len(), 2);
    assert_eq!(host.delta(&mut delta, &had).response.unwrap().resources.len(), 3);
    let mut none = Host::new().view(2, b"leaf");
    let identities = none.svids.drain(..).map(|svid| svid.spiffe_id.clone()).collect();
    none.awaited = Awaited { identities, default: true };
    assert_eq!(names(&host.sotw(&mut sotw, &none).response.unwrap()), ["ROOTCA"]);
    let response = host.delta(&mut delta, &none).response.unwrap();
    assert_eq!(delta_names(&response), ["ROOTCA"]);
    assert_eq!(response.removed_resources, [""; 0]);
    let mut newcomer = Sotw::default();
    newcomer.hear(ask(&["ROOTCA"], "")).unwrap();
    assert_eq!(names(&host.sotw(&mut newcomer, &none).response.unwrap()), ["ROOTCA"]);
}
