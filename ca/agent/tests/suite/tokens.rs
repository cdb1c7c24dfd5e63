//! JWT-SVIDs of a real authority, as a workload gets and checks them over the agent's socket.

use std::collections::BTreeMap;
use std::slice;

use rhizome_agent::Agent;
use rhizome_agent::socket::{Doors, DoorsSettings, Socket, serve};
use rhizome_core::ports::Clock as _;
use rhizome_id::Ttl;
use rhizome_jwt::validate;
use rhizome_proto::workload as wire;
use rhizome_proto::workload::secured;
use rhizome_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use rhizome_x509::JwtKey;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use crate::support::{Authority, Machine, PATIENCE, status};

const AUDIENCE: &str = "db";
const ID: &str = "spiffe://example.test/unix/me";

/// This process as a workload: it knows the socket and nothing else.
struct Workload {
    api: SpiffeWorkloadApiClient<Channel>,
}

impl Workload {
    /// Behind an agent that serves it as [`ID`].
    async fn of(authority: &Authority, machine: &Machine, agent: &Agent) -> Self {
        authority.put_rule("me", &rustix::process::geteuid().as_raw().to_string()).await;
        let path = machine.folder.path().join("agent.sock");
        let socket = Socket::bind(&path).unwrap();
        let mut settings = DoorsSettings::default();
        settings.unix.hash_executables = false;
        let doors = Doors::new(agent.identities(), machine.clock(), agent.spawner().clone(), settings);
        agent.spawner().spawn("sockets", async move { serve(doors, socket).await.unwrap() });
        let channel = rhizome_tls::connect(&format!("unix://{}", path.display()), None).await.unwrap();
        Self { api: SpiffeWorkloadApiClient::new(channel) }
    }

    async fn token(&mut self) -> Result<String, Status> {
        let wish = wire::JwtsvidRequest { audience: vec![AUDIENCE.to_owned()], spiffe_id: String::new() };
        let svids = self.api.fetch_jwtsvid(secured(wish)).await?.into_inner().svids;
        assert_eq!((svids.len(), svids[0].spiffe_id.as_str()), (1, ID));
        Ok(svids[0].svid.clone())
    }

    /// Asks again and again until the answer is as wanted.
    async fn until(&mut self, wanted: impl Fn(&Result<String, Status>) -> bool) -> Result<String, Status> {
        let asking = async {
            loop {
                let answer = self.token().await;
                if wanted(&answer) {
                    break answer;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, asking).await.expect("the answer comes in time")
    }

    async fn another_than(&mut self, before: &str) -> String {
        self.until(|answer| answer.as_ref().is_ok_and(|token| token != before)).await.unwrap()
    }

    async fn validate(&mut self, audience: &str, svid: &str) -> Result<String, Status> {
        let wish = wire::ValidateJwtsvidRequest { audience: audience.to_owned(), svid: svid.to_owned() };
        Ok(self.api.validate_jwtsvid(secured(wish)).await?.into_inner().spiffe_id)
    }

    async fn key_sets(&mut self) -> KeySets {
        let wish = secured(wire::JwtBundlesRequest {});
        KeySets(self.api.fetch_jwt_bundles(wish).await.unwrap().into_inner())
    }
}

/// An open `FetchJWTBundles`.
struct KeySets(Streaming<wire::JwtBundlesResponse>);

impl KeySets {
    /// The kids of the next answer, sorted.
    async fn next(&mut self) -> Vec<String> {
        let answer = tokio::time::timeout(PATIENCE, self.0.message()).await.expect("it comes in time");
        let bundles: BTreeMap<_, _> = answer.unwrap().unwrap().bundles.into_iter().collect();
        let set: serde_json::Value = serde_json::from_slice(&bundles["spiffe://example.test"]).unwrap();
        let kid = |key: &serde_json::Value| key["kid"].as_str().unwrap().to_owned();
        let mut kids: Vec<String> = set["keys"].as_array().unwrap().iter().map(kid).collect();
        kids.sort();
        kids
    }
}

/// The kid of the one key of the agent's bundle that signed the token.
fn signer(machine: &Machine, agent: &Agent, token: &str) -> String {
    let bundle = agent.identities().bundle().unwrap();
    let now = machine.clock.now();
    let signed =
        |key: &&JwtKey| validate(token, AUDIENCE, |_domain| Some(slice::from_ref(*key)), now).is_ok();
    let signers: Vec<&JwtKey> = bundle.jwt_keys().iter().filter(signed).collect();
    assert_eq!(signers.len(), 1);
    signers[0].kid().to_owned()
}

#[tokio::test]
async fn a_token_is_kept_and_validated_through_an_outage_and_ends_with_its_rule() {
    let mut authority = Authority::start().await;
    let machine = Machine::joined(&authority, "vm-1").await;
    let agent = machine.start(None);
    let mut workload = Workload::of(&authority, &machine, &agent).await;
    let first = workload.until(Result::is_ok).await.unwrap();
    assert_eq!(workload.token().await.unwrap(), first, "kept");

    authority.stop_server().await;
    status(&agent, |it| !it.connected).await;
    // More than half of its five minutes: with an authority there would be another one.
    machine.advance(&agent, 200);
    assert_eq!(workload.token().await.unwrap(), first);
    assert_eq!(workload.validate(AUDIENCE, &first).await.unwrap(), ID);
    let elsewhere = workload.validate("mail", &first).await.unwrap_err();
    assert_eq!(elsewhere.code(), Code::InvalidArgument, "{elsewhere}");

    authority.start_server().await;
    status(&agent, |it| it.connected).await;
    workload.another_than(&first).await;
    authority.delete_rule("me").await;
    let denied = workload.until(Result::is_err).await.unwrap_err();
    assert_eq!((denied.code(), denied.message()), (Code::PermissionDenied, "no identity issued"));
    agent.stop().await;
}

#[tokio::test]
async fn a_new_key_is_known_to_workloads_before_it_signs_and_the_old_one_for_as_long_as_its_tokens() {
    let mut authority = Authority::start_with_jwt_keys_of(Ttl::hours(1)).await;
    let machine = Machine::joined(&authority, "vm-1").await;
    let agent = machine.start(None);
    let mut workload = Workload::of(&authority, &machine, &agent).await;
    let token = workload.until(Result::is_ok).await.unwrap();
    let mut sets = workload.key_sets().await;
    let old = sets.next().await;
    assert_eq!(old, [signer(&machine, &agent, &token)]);

    // Half of its life later it has a successor, which everybody is told of and which does not sign yet.
    later(&mut authority, &machine, &agent, 1_800).await;
    let both = sets.next().await;
    assert!(both.len() == 2 && both.contains(&old[0]), "{both:?}");
    let sequence = authority.bundle().await.sequence;
    authority.acknowledges("vm-1", sequence).await;
    later(&mut authority, &machine, &agent, 1_000).await;
    let last = workload.another_than(&token).await;
    assert_eq!(signer(&machine, &agent, &last), old[0]);

    // At five sixths the successor signs; what the old key signed is valid for the rest of its life.
    later(&mut authority, &machine, &agent, 200).await;
    let next = workload.another_than(&last).await;
    let new = signer(&machine, &agent, &next);
    assert!(new != old[0] && both.contains(&new), "{new} of {both:?}");
    for token in [&last, &next] {
        assert_eq!(workload.validate(AUDIENCE, token).await.unwrap(), ID);
    }
    agent.stop().await;
}

/// Lets time pass while the authority is away, so that it finds at its start what has become due.
async fn later(authority: &mut Authority, machine: &Machine, agent: &Agent, seconds: i64) {
    authority.stop_server().await;
    status(agent, |it| !it.connected).await;
    machine.clock.advance(seconds);
    authority.start_server().await;
    agent.nudge();
    status(agent, |it| it.connected).await;
}
