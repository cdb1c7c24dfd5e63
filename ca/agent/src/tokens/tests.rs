use rhizome_core::clock::ManualClock;
use tokio::sync::mpsc;
use tokio::sync::oneshot;

use super::*;
use crate::testing::{TokenKey, at, attributes, bundle, entitlement, root};

/// For what never comes.
const PROMPT: Duration = Duration::from_millis(20);
/// For what comes.
const LONG: Duration = Duration::from_secs(60);

type Answer = Result<ca::SignJwtSvidResponse, Status>;

/// The store with an authority that a test plays.
struct Stage {
    store: TokenStore,
    clock: Arc<ManualClock>,
    key: TokenKey,
    questions: mpsc::UnboundedReceiver<(ca::SignJwtSvidRequest, oneshot::Sender<Answer>)>,
    ask: Ask,
    connected: Option<Connected>,
    spawner: Spawner,
}

impl Stage {
    fn set() -> Self {
        Self::with(Patience { connect: LONG, stale: LONG })
    }

    fn with(patience: Patience) -> Self {
        let clock = Arc::new(ManualClock::new(at(0)));
        let spawner = Spawner::default();
        let store = TokenStore::with_patience(Arc::<ManualClock>::clone(&clock), spawner.clone(), patience);
        let key = TokenKey::new("jwt-1");
        let bundle = bundle(1, &[&root("one")]).with_jwt_keys(vec![key.public.clone()]).unwrap();
        store.set_bundle(Some(Arc::new(bundle)));
        let (asked, questions) = mpsc::unbounded_channel();
        let ask: Ask = Arc::new(move |question| {
            let (answer, answered) = oneshot::channel();
            asked.send((question, answer)).unwrap();
            Box::pin(async move { answered.await.unwrap_or_else(|_| Err(Status::unavailable("cut off"))) })
        });
        let connected = Some(store.connected(Arc::clone(&ask)));
        Self { store, clock, key, questions, ask, connected, spawner }
    }

    fn disconnect(&mut self) {
        self.connected = None;
    }

    /// Takes the next question and answers it with the token it asks for.
    async fn answer(&mut self) -> String {
        let (question, answer) = self.questions.recv().await.unwrap();
        let token =
            self.key.token(&question.spiffe_id.parse().unwrap(), &question.audiences, self.clock.now());
        answer.send(Ok(signed(&token))).unwrap();
        token
    }

    async fn refuse(&mut self, status: Status) {
        let (_, answer) = self.questions.recv().await.unwrap();
        answer.send(Err(status)).unwrap();
    }

    fn nothing_asked(&mut self) -> bool {
        self.questions.try_recv().is_err()
    }

    /// Asks, and lets the authority sign.
    async fn fetched(&mut self, wish: TokenWish) -> String {
        let asked = self.store.token(wish);
        let (given, token) = tokio::join!(asked, self.answer());
        assert_eq!(given.unwrap().expose(), token);
        token
    }
}

fn signed(token: &str) -> ca::SignJwtSvidResponse {
    // Only the token counts; what stands beside it is not believed.
    let beside = ca::JwtSvid { spiffe_id: "spiffe://example.org/other".to_owned(), ..ca::JwtSvid::default() };
    ca::SignJwtSvidResponse { jwt_svid: Some(ca::JwtSvid { token: token.to_owned(), ..beside }) }
}

fn wish(path: &str, audiences: &[&str]) -> TokenWish {
    TokenWish {
        spiffe_id: entitlement(path).spiffe_id,
        audiences: audiences.iter().map(|it| (*it).to_owned()).collect(),
        attributes: attributes(&[("unix.uid", "1000")]),
    }
}

/// Polls once.
async fn pends(waiting: &mut BoxFuture<'static, Outcome>) -> bool {
    futures::future::poll_immediate(waiting).await.is_none()
}

fn is_away(outcome: &Outcome) -> bool {
    matches!(outcome, Err(NoToken::Away(_)))
}

#[tokio::test]
async fn a_token_is_asked_for_once_and_kept_for_half_of_its_life() {
    let mut stage = Stage::set();
    let first = stage.fetched(wish("/web", &["a"])).await;
    stage.clock.set(at(149));
    assert_eq!(stage.store.token(wish("/web", &["a"])).await.unwrap().expose(), first);
    assert!(stage.nothing_asked());
    stage.clock.set(at(150));
    let second = stage.fetched(wish("/web", &["a"])).await;
    assert_ne!(first, second);
    stage.fetched(wish("/web", &["a", "b"])).await;
    stage.fetched(wish("/api", &["a"])).await;
}

#[tokio::test]
async fn what_is_asked_is_what_was_attested_and_wished_for() {
    let mut stage = Stage::set();
    let asked = stage.store.token(wish("/web", &["a", "b"]));
    let seen = async {
        let (question, answer) = stage.questions.recv().await.unwrap();
        drop(answer);
        question
    };
    let (outcome, question) = tokio::join!(asked, seen);
    assert!(is_away(&outcome));
    let attribute = ca::Attribute { name: "unix.uid".to_owned(), value: "1000".to_owned() };
    let expected = ca::SignJwtSvidRequest {
        attributes: vec![attribute],
        spiffe_id: "spiffe://example.org/web".to_owned(),
        audiences: vec!["a".to_owned(), "b".to_owned()],
        ttl_seconds: 0,
    };
    assert_eq!(question, expected);
}

#[tokio::test]
async fn equal_questions_are_asked_once_and_others_apart() {
    let mut stage = Stage::set();
    let all = futures::future::join_all((0..50).map(|_| stage.store.token(wish("/web", &["a"]))));
    let store = stage.store.clone();
    let other = TokenWish { attributes: attributes(&[("unix.uid", "1001")]), ..wish("/web", &["a"]) };
    let (all, token) = tokio::join!(all, stage.answer());
    assert!(all.into_iter().all(|it| it.unwrap().expose() == token));
    assert!(stage.nothing_asked());
    // Before it is kept, somebody else with the same identity asks with its own attributes.
    stage.clock.set(at(150));
    let both = futures::future::join(store.token(wish("/web", &["a"])), store.token(other));
    let answers = async {
        stage.answer().await;
        stage.answer().await
    };
    let ((one, two), _) = tokio::join!(both, answers);
    assert!(one.is_ok() && two.is_ok());
}

#[tokio::test]
async fn a_caller_that_leaves_does_not_cut_off_the_others() {
    let mut stage = Stage::set();
    let mut first = stage.store.token(wish("/web", &["a"]));
    assert!(pends(&mut first).await);
    let second = stage.store.token(wish("/web", &["a"]));
    drop(first);
    let (second, token) = tokio::join!(second, stage.answer());
    assert_eq!(second.unwrap().expose(), token);
}

#[tokio::test]
async fn while_the_authority_is_away_a_token_is_given_until_shortly_before_its_end() {
    let mut stage = Stage::with(Patience { connect: PROMPT, stale: LONG });
    let kept = stage.fetched(wish("/web", &["a"])).await;
    stage.clock.set(at(160));
    // It answers, but not with a token.
    let (given, ()) =
        tokio::join!(stage.store.token(wish("/web", &["a"])), stage.refuse(Status::internal("no")));
    assert_eq!(given.unwrap().expose(), kept);
    assert_eq!(stage.store.token(wish("/web", &["a"])).await.unwrap().expose(), kept);
    assert!(stage.nothing_asked(), "it is left alone for a while");
    stage.disconnect();
    stage.clock.set(at(269));
    assert_eq!(stage.store.token(wish("/web", &["a"])).await.unwrap().expose(), kept);
    stage.clock.set(at(270));
    assert!(is_away(&stage.store.token(wish("/web", &["a"])).await));
    assert!(is_away(&stage.store.token(wish("/web", &["b"])).await));
}

#[tokio::test]
async fn an_authority_that_is_silent_does_not_keep_a_caller_from_a_token_that_is_still_valid() {
    let mut stage = Stage::with(Patience { connect: LONG, stale: PROMPT });
    let kept = stage.fetched(wish("/web", &["a"])).await;
    stage.clock.set(at(160));
    assert_eq!(stage.store.token(wish("/web", &["a"])).await.unwrap().expose(), kept);
}

#[tokio::test]
async fn a_question_waits_for_the_connection() {
    let mut stage = Stage::set();
    stage.disconnect();
    let mut waiting = stage.store.token(wish("/web", &["a"]));
    assert!(pends(&mut waiting).await);
    let _connected = stage.store.connected(Arc::clone(&stage.ask));
    let (given, token) = tokio::join!(waiting, stage.answer());
    assert_eq!(given.unwrap().expose(), token);
}

#[tokio::test]
async fn a_denial_takes_the_kept_token_away() {
    let mut stage = Stage::with(Patience { connect: PROMPT, stale: LONG });
    for (status, expected) in [
        (Status::permission_denied("no rule"), NoToken::Denied("no rule".to_owned())),
        (Status::invalid_argument("no"), NoToken::Refused("no".to_owned())),
        (Status::unimplemented("no"), NoToken::NotOffered),
    ] {
        stage.fetched(wish("/web", &["a"])).await;
        stage.clock.advance(160);
        let (given, ()) = tokio::join!(stage.store.token(wish("/web", &["a"])), stage.refuse(status));
        assert_eq!(given.unwrap_err(), expected);
        stage.disconnect();
        assert!(is_away(&stage.store.token(wish("/web", &["a"])).await), "nothing is kept");
        stage.connected = Some(stage.store.connected(Arc::clone(&stage.ask)));
    }
}

#[tokio::test]
async fn what_is_not_the_token_asked_for_is_not_given() {
    let mut stage = Stage::set();
    let (own, foreign) = (entitlement("/web").spiffe_id, TokenKey::new("jwt-1"));
    let a = vec!["a".to_owned()];
    let more = vec!["a".to_owned(), "b".to_owned()];
    for (text, what) in [
        (stage.key.token(&entitlement("/admin").spiffe_id, &a, at(0)), "another identity"),
        (stage.key.token(&own, &["b".to_owned()], at(0)), "another audience"),
        (stage.key.token(&own, &more, at(0)), "a further audience"),
        (stage.key.token(&own, &a, at(-300)), "expired"),
        (stage.key.token(&own, &a, at(61)), "from the future"),
        (foreign.token(&own, &a, at(0)), "another key of the same name"),
        (TokenKey::new("jwt-2").token(&own, &a, at(0)), "a key that is not in the bundle"),
        ("garbage".to_owned(), "garbage"),
        (String::new(), "nothing"),
    ] {
        let answer = async {
            let (_, answer) = stage.questions.recv().await.unwrap();
            answer.send(Ok(signed(&text))).unwrap();
        };
        let (given, ()) = tokio::join!(stage.store.token(wish("/web", &["a"])), answer);
        assert!(is_away(&given), "{what}");
    }
}

#[tokio::test]
async fn a_revoked_identity_has_no_token_kept_nor_on_its_way() {
    let mut stage = Stage::set();
    stage.fetched(wish("/web", &["a"])).await;
    stage.fetched(wish("/api", &["a"])).await;
    let mut under_way = stage.store.token(wish("/web", &["b"]));
    assert!(pends(&mut under_way).await);
    stage.store.forget(&[entitlement("/web").spiffe_id].into());
    let (given, _) = tokio::join!(under_way, stage.answer());
    assert!(is_away(&given), "signed before, arrived after");
    stage.fetched(wish("/web", &["a"])).await;
    stage.fetched(wish("/web", &["b"])).await;
    assert!(stage.store.token(wish("/api", &["a"])).await.is_ok(), "the others keep theirs");
    assert!(stage.nothing_asked());
}

#[tokio::test]
async fn who_asks_after_a_revocation_does_not_wait_for_what_was_asked_before() {
    let mut stage = Stage::set();
    let mut before = stage.store.token(wish("/web", &["a"]));
    assert!(pends(&mut before).await);
    stage.store.forget(&[entitlement("/web").spiffe_id].into());
    let after = stage.store.token(wish("/web", &["a"]));
    let answers = async {
        stage.answer().await;
        stage.answer().await
    };
    let (before, after, token) = tokio::join!(before, after, answers);
    assert!(is_away(&before));
    assert_eq!(after.unwrap().expose(), token);
}

#[tokio::test]
async fn one_identity_does_not_take_the_whole_connection() {
    let stage = Stage::set();
    let ask = |path: &str, number: usize| stage.store.token(wish(path, &[&number.to_string()]));
    let mut all: Vec<_> = (0..UNDER_WAY_PER_IDENTITY).map(|number| ask("/web", number)).collect();
    for waiting in &mut all {
        assert!(pends(waiting).await);
    }
    assert!(is_away(&ask("/web", 1_000).await));
    assert!(pends(&mut ask("/api", 0)).await);
}

#[tokio::test]
async fn who_waits_when_the_agent_stops_is_told() {
    let stage = Stage::set();
    let mut waiting = stage.store.token(wish("/web", &["a"]));
    assert!(pends(&mut waiting).await);
    stage.spawner.shut_down().await;
    assert!(is_away(&waiting.await));
}

#[test]
fn nothing_that_prints_shows_a_token() {
    let id = entitlement("/web").spiffe_id;
    let token = Token::new("secret".to_owned().into(), id, vec!["a".to_owned()], (at(0), at(300)));
    let text = format!("{token:?}");
    assert!(text.contains("/web") && !text.contains("secret"));
}
