//! The machine over stored records with real certificates: what the shell does, in miniature.

use std::collections::BTreeSet;

use rhizome_id::{ReplicaNumber, Serial, SerialCounter};
use rhizome_x509::{
    CaCertificate, IntermediateRole, IntermediateSpec, JwtKey, KeyAlgorithm, Linted, RequestKey, RootSpec,
    Signature, SigningAlgorithm, prepare_intermediate, prepare_root,
};
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};

use super::*;
use crate::documents::{Document, Stored as _, Version};
use crate::rotation::{Canary, Choices, Phase, Rotation, canary};
use crate::state::State;

const DAY: i64 = 86_400;

/// Records and keys, as a store and a key ring hold them.
struct Shell {
    records: Records,
    /// The JWT keys that verifiers know.
    bundle: Vec<JwtKey>,
    keys: Vec<(KeyId, RequestKey)>,
    made: u64,
    policy: RotationPolicy,
}

impl Shell {
    fn settle(&mut self, now: Timestamp) -> Option<Timestamp> {
        for _ in 0..32 {
            let effects = step(&self.records, &replica(), now, &self.policy);
            if let [Effect::WakeAt(at)] = effects.as_slice() {
                return Some(*at);
            }
            if effects.is_empty() {
                return None;
            }
            for effect in effects {
                self.perform(&effect, now);
            }
        }
        panic!("it never settles");
    }

    fn perform(&mut self, effect: &Effect, now: Timestamp) {
        assert!(step(&self.records, &replica(), now, &self.policy).contains(effect));
        match effect {
            Effect::MakeRoot { .. } => self.make(None, now),
            Effect::MakeIssuer { .. } => {
                let root = self.active(AuthorityKind::Root).clone();
                self.make(Some(&root), now);
            }
            Effect::MakeCanary { root, .. } => {
                let root = self.records.certifying.iter().find(|it| it.id == *root).unwrap().clone();
                self.make(Some(&root), now);
            }
            Effect::MakeJwtKey { .. } => self.make_jwt(now),
            Effect::AskForIssuer { .. }
            | Effect::Activate { .. }
            | Effect::Retire { .. }
            | Effect::Forget { .. }
            | Effect::WakeAt(_) => {
                let done = changes(effect, &self.records, now);
                self.apply(done);
                let again = changes(effect, &self.records, now);
                assert_eq!(again, [], "{effect:?} twice changes nothing");
            }
        }
    }

    fn apply(&mut self, done: Vec<Change>) {
        for change in done {
            match change {
                Change::Put(authority) => {
                    let place = self.records.certifying.iter_mut().find(|it| it.id == authority.id).unwrap();
                    *place = *authority;
                }
                Change::Delete { id, key } => {
                    self.records.certifying.retain(|it| it.id != id);
                    self.keys.retain(|(other, _)| *other != key);
                }
                Change::PutJwt(authority) => {
                    let place = self.records.jwt.iter_mut().find(|it| it.id == authority.id).unwrap();
                    *place = *authority;
                }
                Change::DeleteJwt { id, key } => {
                    self.records.jwt.retain(|it| it.id != id);
                    self.bundle.retain(|it| it.kid() != id.as_str());
                    self.keys.retain(|(other, _)| *other != key);
                }
            }
        }
    }

    fn make_jwt(&mut self, now: Timestamp) {
        self.made += 1;
        let own = RequestKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
        let (id, key) = (format!("a{}", self.made), format!("k{}", self.made).parse::<KeyId>().unwrap());
        let life = jwt_validity(now, &self.policy).unwrap();
        let jwt_key = JwtKey::new(id.clone(), own.public_key().clone(), life.not_after).unwrap();
        self.bundle.push(jwt_key.clone());
        self.records.jwt.push(JwtAuthority {
            id: id.parse().unwrap(),
            replica: replica(),
            key: key.clone(),
            algorithm: SigningAlgorithm::EcdsaP256Sha256,
            jwt_key,
            not_before: life.not_before,
            published: self.made,
            state: AuthorityState::Prepared,
            prepared_at: now,
            activated_at: None,
        });
        self.keys.push((key, own));
    }

    fn make(&mut self, root: Option<&Authority>, now: Timestamp) {
        self.made += 1;
        let own = RequestKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
        let id: AuthorityId = format!("a{}", self.made).parse().unwrap();
        let algorithm = SigningAlgorithm::EcdsaP256Sha256;
        let serial =
            Serial::compose(ReplicaNumber::new(1).unwrap(), SerialCounter::new(self.made).unwrap(), [0; 11]);
        let trust_domain = "example.org".parse().unwrap();
        let life = match root {
            None => root_validity(now, &self.policy).unwrap(),
            Some(root) => issuer_validity(root, now, &self.policy).unwrap(),
        };
        let Validity { not_before, not_after, .. } = life;
        let linted = match root {
            None => prepare_root(&RootSpec {
                trust_domain: &trust_domain,
                generation: &id,
                public_key: own.public_key(),
                algorithm,
                serial,
                not_before,
                not_after,
            }),
            Some(root) => {
                let spec = IntermediateSpec {
                    role: IntermediateRole::Own,
                    trust_domain: &trust_domain,
                    generation: &id,
                    public_key: own.public_key(),
                    algorithm,
                    serial,
                    not_before,
                    not_after,
                };
                prepare_intermediate(&spec, &root.certificate, algorithm)
            }
        };
        let signer = root.map_or(&own, |root| {
            let (_, key) = self.keys.iter().find(|(id, _)| *id == root.key).unwrap();
            key
        });
        let certificate = sign(linted.unwrap(), signer);
        let key: KeyId = format!("k{}", self.made).parse().unwrap();
        self.records.certifying.push(Authority {
            id,
            kind: if root.is_some() { AuthorityKind::Issuer } else { AuthorityKind::Root },
            replica: replica(),
            key: key.clone(),
            algorithm,
            certificate,
            issuer: root.map(|root| root.id.clone()),
            state: AuthorityState::Prepared,
            prepared_at: now,
            activated_at: None,
            custody: Custody::Here,
            above: Vec::new(),
            cross: None,
            canary: false,
            retired_at: None,
        });
        self.keys.push((key, own));
    }

    fn active(&self, kind: AuthorityKind) -> &Authority {
        let mut active =
            self.records.certifying.iter().filter(|it| it.kind == kind && it.state == AuthorityState::Active);
        let found = active.next().unwrap();
        assert!(active.next().is_none());
        found
    }
}

fn replica() -> ReplicaName {
    "r1".parse().unwrap()
}

#[expect(clippy::disallowed_methods, reason = "a test's signature needs randomness; nothing depends on it")]
fn sign(linted: Linted, key: &RequestKey) -> CaCertificate {
    let random = ring::rand::SystemRandom::new();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &key.pkcs8_der(), &random).unwrap();
    let signature = pair.sign(&random, linted.to_be_signed().as_bytes()).unwrap();
    let certificate = linted.seal(Signature::external(signature.as_ref().to_vec())).unwrap();
    CaCertificate::parse(certificate.der()).unwrap()
}

fn shell() -> Shell {
    Shell {
        records: Records::default(),
        bundle: Vec::new(),
        keys: Vec::new(),
        made: 0,
        policy: RotationPolicy {
            root_ttl: Ttl::from_seconds(400 * DAY).unwrap(),
            issuer_ttl: Ttl::from_seconds(20 * DAY).unwrap(),
            jwt_key_ttl: Ttl::from_seconds(10 * DAY).unwrap(),
            first_root: FirstRoot::Make,
            jwt_keys: true,
        },
    }
}

#[test]
fn a_year_of_real_certificates_keeps_one_root_and_replaces_issuers() {
    let start = Timestamp::from_unix(1_800_000_000);
    let (mut shell, mut now) = (shell(), start);
    let (mut issuers, mut jwt_keys) = (BTreeSet::new(), BTreeSet::new());
    while now < start.plus(365 * DAY) {
        let wake = shell.settle(now).unwrap();
        let (root, issuer) = (shell.active(AuthorityKind::Root), shell.active(AuthorityKind::Issuer));
        assert_eq!(root.id.as_str(), "a1");
        assert!(issuer.certificate.not_after() <= root.certificate.not_after());
        assert!(issuer.certificate.not_before() >= root.certificate.not_before());
        assert!(now <= issuer.certificate.not_after());
        issuers.insert(issuer.id.clone());
        let records = shell.records.certifying.len() + shell.records.jwt.len();
        assert_eq!(shell.keys.len(), records, "a forgotten authority's key is gone");
        assert!(shell.records.certifying.len() <= 4 && shell.records.jwt.len() <= 3);
        let published: Vec<_> = shell.records.jwt.iter().map(|it| it.jwt_key.clone()).collect();
        assert_eq!(shell.bundle, published, "the bundle holds exactly the keys on record");
        let signing = shell.records.jwt.iter().filter(|it| it.state == AuthorityState::Active);
        jwt_keys.extend(signing.map(|it| it.id.clone()));
        now = wake;
    }
    assert!((20..60).contains(&issuers.len()), "{}", issuers.len());
    assert!((60..80).contains(&jwt_keys.len()), "{}", jwt_keys.len());
}

#[test]
fn a_stored_authority_reads_back_and_ignores_fields_of_a_newer_schema() {
    let mut shell = shell();
    shell.settle(Timestamp::from_unix(1_800_000_000));
    for authority in &shell.records.jwt {
        let json = serde_json::to_string(authority).unwrap();
        let newer = json.replacen('{', r#"{"from_schema_n_plus_1":0,"#, 1);
        assert_eq!(&serde_json::from_str::<JwtAuthority>(&newer).unwrap(), authority);
        let tainted = authority.tainted().unwrap();
        assert_eq!((tainted.state, tainted.tainted()), (AuthorityState::Tainted, None));
    }
    for authority in &shell.records.certifying {
        let json = serde_json::to_string(authority).unwrap();
        assert_eq!(&serde_json::from_str::<Authority>(&json).unwrap(), authority);
        assert!(json.contains(r#""state":"active""#), "{json}");
        let newer = json.replacen('{', r#"{"from_schema_n_plus_1":0,"#, 1);
        assert_eq!(&serde_json::from_str::<Authority>(&newer).unwrap(), authority);
    }
}

#[test]
fn where_the_root_s_key_is_elsewhere_issuers_are_asked_for_and_taken_up_when_they_come() {
    let mut shell = Shell {
        records: Records::default(),
        bundle: Vec::new(),
        keys: Vec::new(),
        made: 0,
        policy: RotationPolicy {
            root_ttl: Ttl::from_seconds(3650 * DAY).unwrap(),
            issuer_ttl: Ttl::from_seconds(90 * DAY).unwrap(),
            jwt_key_ttl: Ttl::hours(24 * 7),
            first_root: FirstRoot::Await,
            jwt_keys: true,
        },
    };
    let start = Timestamp::from_unix(1_800_000_000);
    let asks = |shell: &Shell, now| -> Vec<Reason> {
        let steps = step(&shell.records, &replica(), now, &shell.policy);
        assert!(!steps.iter().any(|it| matches!(it, Effect::MakeRoot { .. } | Effect::MakeIssuer { .. })));
        let asked = |it: &Effect| if let Effect::AskForIssuer { reason } = it { Some(*reason) } else { None };
        steps.iter().filter_map(asked).collect()
    };
    assert_eq!(step(&shell.records, &replica(), start, &shell.policy), [], "a root is waited for, not made");

    shell.make(None, start);
    shell.records.certifying[0].custody = Custody::Elsewhere;
    let root = shell.records.certifying[0].id.clone();
    shell.perform(&Effect::Activate { id: root, reason: Reason::FirstRoot }, start);
    assert_eq!(asks(&shell, start), [Reason::NothingActive]);

    let above = shell.active(AuthorityKind::Root).clone();
    shell.make(Some(&above), start);
    let first = shell.records.certifying.last().unwrap().clone();
    shell.perform(&Effect::Activate { id: first.id, reason: Reason::NothingActive }, start);
    let (from, until) = (first.certificate.not_before(), first.certificate.not_after());
    assert_eq!(asks(&shell, prepare_at(from, until).minus(1)), []);
    assert_eq!(asks(&shell, prepare_at(from, until)), [Reason::SuccessorDue], "30 days before the end");

    shell.make(Some(&above), prepare_at(from, until));
    assert_eq!(asks(&shell, prepare_at(from, until)), [], "it came");
    let next = shell.records.certifying.last().unwrap().id.clone();
    let due = Effect::Activate { id: next, reason: Reason::ActivationDue };
    assert!(step(&shell.records, &replica(), activate_at(from, until), &shell.policy).contains(&due));
}

/// What a server that has these records, and this word on the change of the root, signs with.
fn state_of(shell: &Shell, phase: Phase) -> State {
    let mut state = State::empty("example.org".parse().unwrap(), replica());
    let share = canary::Share::Namespaces(["first".to_owned()].into());
    let canary = Some(Canary { share, window_seconds: 60 });
    let roots = shell.records.certifying.iter().filter(|it| it.kind == AuthorityKind::Root);
    let [old, new] = roots.collect::<Vec<_>>()[..] else { panic!("two roots") };
    let rotation = serde_json::json!({
        "name": "rotation-1", "version": 1, "mode": "planned", "phase": phase, "heading": "forward", "old": old.id,
        "new": new.id, "choices": Choices { canary, ..Choices::default() }, "started_by": "admin:alice",
        "started_at": old.prepared_at, "since": old.prepared_at, "before": [old.id], "exemptions": [], "rewound": false,
    });
    let rotation: Rotation = serde_json::from_value(rotation).unwrap();
    let put = |state: &mut State, key, body: String| {
        let version = Version(state.version().0 + 1);
        state.put(&Document { key, version, body: body.into() }).unwrap();
    };
    put(&mut state, rotation.key(), serde_json::to_string(&rotation).unwrap());
    for it in &shell.records.certifying {
        put(&mut state, it.key(), serde_json::to_string(it).unwrap());
    }
    state
}

#[test]
fn a_canary_s_issuer_signs_its_share_beside_the_regular_one_and_takes_its_place_with_its_root() {
    let (mut shell, start) = (shell(), Timestamp::from_unix(1_800_000_000));
    shell.settle(start);
    let regular = shell.active(AuthorityKind::Issuer).id.clone();
    shell.make(None, start);
    let new = shell.records.certifying.len() - 1;
    shell.settle(start);
    let issuers = |shell: &Shell| -> Vec<(AuthorityId, AuthorityState)> {
        let issuers = shell.records.certifying.iter().filter(|it| it.kind == AuthorityKind::Issuer);
        issuers.map(|it| (it.id.clone(), it.state)).collect()
    };
    assert_eq!(
        issuers(&shell),
        [(regular.clone(), AuthorityState::Active)],
        "a root that is prepared has none"
    );

    let id = |text: &str| text.parse::<rhizome_id::SpiffeId>().unwrap();
    let (first, other) = (id("spiffe://example.org/ns/first/sa/a"), id("spiffe://example.org/ns/b/sa/a"));
    let signs = |state: &State, id| state.issuer_for(id).unwrap().id.clone();
    shell.records.certifying[new].canary = true;
    shell.settle(start);
    let canary = shell.records.certifying.last().unwrap().id.clone();
    let both = [(regular.clone(), AuthorityState::Active), (canary.clone(), AuthorityState::Active)];
    assert_eq!(issuers(&shell), both);
    let state = state_of(&shell, Phase::Canary);
    assert_eq!((signs(&state, &first), signs(&state, &other)), (canary.clone(), regular.clone()));
    for phase in [Phase::Distributing, Phase::Active] {
        let state = state_of(&shell, phase);
        assert_eq!((signs(&state, &first), state.canary().is_none()), (regular.clone(), true), "{phase}");
    }

    // Taken back: it signs no more, and when it ceased to is on record.
    let mut aborted = Shell {
        records: shell.records.clone(),
        bundle: shell.bundle.clone(),
        keys: Vec::new(),
        made: shell.made,
        policy: shell.policy,
    };
    aborted.records.certifying[new].canary = false;
    assert_eq!(signs(&state_of(&aborted, Phase::Canary), &first), regular, "nor before it is retired");
    aborted.settle(start.plus(7));
    let gone = [(regular.clone(), AuthorityState::Active), (canary.clone(), AuthorityState::Old)];
    assert_eq!(issuers(&aborted), gone);
    assert_eq!(aborted.records.certifying.last().unwrap().retired_at, Some(start.plus(7)));

    // Its root is the active one now: it is the regular issuer, though the other one may be younger.
    for (at, active) in [(0, false), (new, true)] {
        let root = &mut shell.records.certifying[at];
        root.state = if active { AuthorityState::Active } else { AuthorityState::Old };
        root.activated_at = Some(start.plus(9));
    }
    shell.records.certifying.iter_mut().find(|it| it.id == regular).unwrap().activated_at =
        Some(start.plus(8));
    assert_eq!(signs(&state_of(&shell, Phase::Active), &other), canary, "before the other is retired, too");
    shell.settle(start.plus(10));
    let moved = [(regular, AuthorityState::Old), (canary.clone(), AuthorityState::Active)];
    assert_eq!(issuers(&shell), moved, "and none is made");
    assert_eq!(signs(&state_of(&shell, Phase::Active), &first), canary);
}
