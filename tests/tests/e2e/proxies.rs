//! Real proxies judge the agent: two Envoys whose certificates, keys and roots come from its socket and from nowhere
//! else.
//!
//! Laws: every call is a new connection and a full handshake (sessions are never resumed, which the proxies' own
//! counters confirm); a story that promises no failure counts every call from its beginning to its end.
//! Not here: the service's protocol in detail (`rhizome-agent` tests it message by message); client libraries
//! (`clients`).

use crate::agent::{Agent, grant};
use crate::envoy::{Envoy, Role, Sample, installed};
use crate::process::{quiet_port, until};
use crate::server::{Home, Server};
use crate::support::must;
use crate::traffic::{Service, Traffic, get};

/// What the service reads about a caller that is the frontend and reached the backend.
const BOTH: [&str; 2] = ["By=spiffe://example.test/backend", "URI=spiffe://example.test/frontend"];

/// What both proxies rest on.
struct Ground {
    service: Service,
    agent: Agent,
    server: Server,
}

impl Ground {
    /// A server that keeps its port, an agent, and a rule for each role. `None` where Envoy is not installed.
    fn prepare(ttl: &str) -> Option<Self> {
        if !installed() {
            return None;
        }
        let server = Home::new("").listening_on(quiet_port()).serve();
        for role in Role::ALL {
            grant(&server, role.name(), &role.executable(), &format!("/{}", role.name()), ttl);
        }
        let agent = Agent::join(&server, "n1");
        Some(Self { service: Service::start(), agent, server })
    }

    fn server_sample(&self) -> Sample {
        Sample::server(&self.agent.socket(), self.service.port())
    }

    fn client_sample(&self, backend: &mut Envoy) -> Sample {
        Sample::client(&self.agent.socket(), &backend.listener("inbound"))
    }

    fn start(&self, role: Role, name: &str, sample: &Sample) -> Envoy {
        Envoy::start(self.server.scratch(), role, name, sample)
    }
}

/// One call through a proxy, which the service has to see as the frontend's.
fn called(proxy: &mut Envoy) {
    let answer = get(&proxy.listener("outbound"), "/").unwrap();
    assert!(BOTH.iter().all(|part| answer.contains(part)), "{answer}");
}

#[test]
fn two_proxies_authenticate_each_other_and_refuse_whoever_is_somebody_else() {
    let Some(ground) = Ground::prepare("1h") else { return };
    let mut backend = ground.start(Role::Backend, "backend", &ground.server_sample());
    let sample = ground.client_sample(&mut backend);
    let mut frontend = ground.start(Role::Frontend, "frontend", &sample);
    called(&mut frontend);

    // The backend does not answer whom it does not expect: the stranger has an identity of the same authority.
    let mut stranger = ground.start(Role::Stranger, "stranger", &sample);
    get(&stranger.listener("outbound"), "/").unwrap_err();
    let refused = || backend.sum("listener.", ".ssl.fail_verify_san");
    assert_eq!((refused(), backend.sum("listener.", ".ssl.handshake")), (1, 1));

    // The frontend does not talk to whom it does not expect.
    let expects_another = sample.with("spiffe://example.test/backend", "spiffe://example.test/stranger");
    let mut misled = ground.start(Role::Frontend, "misled", &expects_another);
    get(&misled.listener("outbound"), "/").unwrap_err();
    assert_eq!(misled.sum("cluster.backend.", "ssl.fail_verify_san"), 1);
    assert_eq!(refused(), 1, "the backend was not asked");

    called(&mut frontend);
    assert_eq!(frontend.sum("cluster.backend.", "ssl.handshake"), 2, "no session was resumed");
}

#[test]
fn no_handshake_fails_through_renewals_and_a_new_issuer() {
    let Some(ground) = Ground::prepare("20s") else { return };
    let mut backend = ground.start(Role::Backend, "backend", &ground.server_sample());
    let mut frontend = ground.start(Role::Frontend, "frontend", &ground.client_sample(&mut backend));
    let traffic = Traffic::start(&frontend.listener("outbound"), BOTH[1]);
    let issuer = frontend.chain().unwrap().remove(1);
    for proxy in [&frontend, &backend] {
        let first = proxy.chain().unwrap().remove(0);
        let second = proxy.wait_for_other_than(0, &first);
        proxy.wait_for_other_than(0, &second);
    }
    must(&mut ground.server.admin(&["authority", "rotate", "--reason", "the story wants it", "--yes"]));
    let issuers = [&frontend, &backend].map(|proxy| proxy.wait_for_other_than(1, &issuer));
    assert_eq!(issuers[0], issuers[1], "both are below the new issuer");
    traffic.wait_for_more(50);

    let (made, failed) = traffic.end();
    let updates =
        frontend.sum("sds.default.", "update_success") + backend.sum("sds.default.", "update_success");
    let (failed_in, failed_out) = failures(&frontend, &backend);
    println!(
        "handshakes with renewals and a new issuer: {made} made, {} failed; {updates} certificates",
        failed.len()
    );
    assert_eq!((failed.as_slice(), failed_in, failed_out), ([].as_slice(), 0, 0));
    assert_eq!(frontend.sum("cluster.backend.", "ssl.handshake"), u64::try_from(made).unwrap());
    assert_eq!(frontend.sum("cluster.backend.", "ssl.session_reused"), 0);
}

/// What the proxies themselves count as failed: inbound at the backend, outbound at the frontend.
fn failures(frontend: &Envoy, backend: &Envoy) -> (u64, u64) {
    let outbound = ["ssl.connection_error", "upstream_cx_connect_fail", "ssl.fail_verify_error"];
    let inbound = [".ssl.connection_error", ".ssl.fail_verify_error", ".ssl.fail_verify_san"];
    (
        inbound.iter().map(|it| backend.sum("listener.", it)).sum(),
        outbound.iter().map(|it| frontend.sum("cluster.backend.", it)).sum(),
    )
}

#[test]
fn proxies_are_served_through_restarts_of_everything_while_the_authority_is_away() {
    let Some(mut ground) = Ground::prepare("1h") else { return };
    let mut backend = ground.start(Role::Backend, "backend", &ground.server_sample());
    let sample = ground.client_sample(&mut backend);
    let mut steady = ground.start(Role::Frontend, "steady", &sample);
    let mut restarted = ground.start(Role::Frontend, "restarted", &sample);
    called(&mut restarted);
    let traffic = Traffic::start(&steady.listener("outbound"), BOTH[1]);
    let certificate = steady.chain().unwrap().remove(0);

    ground.server.kill();
    restarted.kill();
    restarted = ground.start(Role::Frontend, "restarted", &sample);
    called(&mut restarted);

    ground.agent.kill();
    traffic.wait_for_more(20);
    called(&mut restarted);
    ground.agent.start_again();
    restarted.kill();
    restarted = ground.start(Role::Frontend, "restarted", &sample);
    called(&mut restarted);
    for proxy in [&steady, &backend] {
        until("a proxy that found the agent again", || {
            match proxy.sum("sds.default.", "control_plane.connected_state") {
                1 => Ok(()),
                other => Err(other.to_string()),
            }
        });
    }
    assert_eq!(restarted.chain().unwrap()[0], certificate, "as it was before the outage");

    ground.server.start_again();
    let words =
        ["cert", "revoke", "--spiffe-id", "spiffe://example.test/frontend", "--reason", "story", "--yes"];
    must(&mut ground.server.admin(&words));
    for proxy in [&steady, &restarted] {
        proxy.wait_for_other_than(0, &certificate);
    }
    traffic.wait_for_more(20);
    let (made, failed) = traffic.end();
    println!("handshakes with authority and agent restarted: {made} made, {} failed", failed.len());
    assert_eq!(failed, [""; 0]);
    assert_eq!(failures(&steady, &backend), (0, 0));
}

#[test]
fn plain_roots_work_too_and_a_name_that_is_not_granted_takes_nothing_from_the_others() {
    let Some(ground) = Ground::prepare("1h") else { return };
    // The other way round than in the samples.
    let sample = plain(ground.server_sample(), "backend").with("api_type: GRPC", "api_type: DELTA_GRPC");
    let mut backend = ground.start(Role::Backend, "backend", &sample);
    let sample = ground.client_sample(&mut backend).with("api_type: DELTA_GRPC", "api_type: GRPC");
    let mut frontend = ground.start(Role::Frontend, "frontend", &plain(sample.clone(), "frontend"));
    called(&mut frontend);
    for proxy in [&frontend, &backend] {
        let roots = proxy.secret("ROOTCA").unwrap()["validation_context"].clone();
        assert!(roots["trusted_ca"].is_object() && roots["custom_validator_config"].is_null(), "{roots}");
    }
    let mut stranger = ground.start(Role::Stranger, "stranger", &plain(sample.clone(), "frontend"));
    get(&stranger.listener("outbound"), "/").unwrap_err();
    assert_eq!(backend.sum("listener.", ".ssl.fail_verify_san"), 1);

    // Each asks beside its own for the other's certificate: it does not get it, and has everything else.
    for api in ["GRPC", "DELTA_GRPC"] {
        let greedy = ANOTHERS.replace("API", api);
        let sample = sample.clone().with("  clusters:\n", &format!("  clusters:\n{greedy}"));
        let mut greedy = ground.start(Role::Frontend, &format!("greedy-{api}"), &sample);
        called(&mut greedy);
        greedy.secret("spiffe://example.test/backend").unwrap_err();
    }
}

/// Asks for the roots in plain form, as the node of the sample for `role`.
fn plain(sample: Sample, role: &str) -> Sample {
    let id = format!("id: {role}\n");
    sample.with(&id, &format!("{id}  metadata: {{disable_spiffe_cert_validation: true}}\n"))
}

#[test]
fn whoever_holds_a_revoked_certificate_is_refused_by_the_list_that_comes_with_the_roots() {
    let Some(ground) = Ground::prepare("1h") else { return };
    let mut backend = ground.start(Role::Backend, "backend", &plain(ground.server_sample(), "backend"));
    let sample = plain(ground.client_sample(&mut backend), "frontend");
    let mut frontend = ground.start(Role::Frontend, "frontend", &sample);
    called(&mut frontend);
    let certificate = frontend.chain().unwrap().remove(0);

    // Without its rule it gets no successor, and keeps what it has: Envoy knows no withdrawal.
    must(&mut ground.server.admin(&["rule", "delete", "frontend", "--yes"]));
    let id = "spiffe://example.test/frontend";
    let words = ["cert", "revoke", "--spiffe-id", id, "--reason", "the story wants it", "--yes"];
    must(&mut ground.server.admin(&words));
    let address = frontend.listener("outbound");
    until("a refusal", || match get(&address, "/") {
        Ok(_answered) => Err("it is still answered".to_owned()),
        Err(_refused) => Ok(()),
    });
    assert_eq!(frontend.chain().unwrap()[0], certificate);
    assert!(backend.sum("listener.", ".ssl.fail_verify_error") > 0, "by the list and not by the name");
    assert_eq!(backend.sum("listener.", ".ssl.fail_verify_san"), 0);

    // With a new certificate it is welcome again.
    let executable = Role::Frontend.executable();
    grant(&ground.server, "frontend", &executable, "/frontend", "1h");
    frontend.wait_for_other_than(0, &certificate);
    until("an answer", || get(&address, "/"));
}

/// A cluster with the certificate of the backend.
const ANOTHERS: &str = r#"
    - name: greedy
      load_assignment: {cluster_name: greedy}
      transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
          common_tls_context:
            tls_certificate_sds_secret_configs:
              - name: spiffe://example.test/backend
                sds_config:
                  initial_fetch_timeout: 1s
                  resource_api_version: V3
                  api_config_source:
                    api_type: API
                    transport_api_version: V3
                    grpc_services: [{envoy_grpc: {cluster_name: rhizome_agent}}]
"#;
