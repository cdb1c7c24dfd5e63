//! A server that can publish its bundle anew: the real parts, wired by the real wiring (`rhizome::launch`), around a
//! store in which one call has a side effect.
//!
//! No administrator's verb changes the bundle yet, so something must stand in for it. Putting a rule called [`TRIGGER`]
//! stores the bundle with the next sequence, durably, and answers that the bundle has changed in between; the server
//! then reads it from the store, as it does when anybody else changed a document, and everything from there on (taking
//! it in, pushing it, keeping acknowledgements) is what the real program does.

use std::path::Path;
use std::sync::Arc;

use rhizome::config::{self, Loaded};
use rhizome_core::documents::{Document, DocumentKey, Kind, Transaction};
use rhizome_core::ledger::{Head, Position, Record};
use rhizome_core::ports::{Committed, Store, StoreError};
use rhizome_core::state::BundleRecord;
use rhizome_id::{SerialCounter, Timestamp};
use rhizome_proto::admin::v1::PutRuleRequest;
use rhizome_proto::admin::v1::rule_service_client::RuleServiceClient;
use rhizome_proto::ca::v1::{Condition, GrantRule};
use tonic::transport::Channel;

/// The word by which this program is told to be that server.
pub(crate) const VERB: &str = "serve-republishing";
/// The rule that is none.
const TRIGGER: &str = "publish-the-bundle-anew";

/// Serves until it is killed.
pub(crate) fn serve(path: &Path) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let Loaded { config, .. } = config::load(path).expect("the configuration");
        let _level = rhizome::logging::start(config.log);
        let mut launched = rhizome::launch::open(&config).await.expect("the parts");
        launched.ports.store = Arc::new(Republishing(launched.ports.store));
        let _running = rhizome_server::start(launched.settings, launched.ports).await.expect("a server");
        std::future::pending::<()>().await;
    });
}

/// Has the server publish its bundle with the next sequence.
pub(crate) async fn republish(admin: Channel) {
    let condition = Condition { attribute: "namespace".to_owned(), values: vec!["none".to_owned()] };
    let rule = GrantRule {
        name: TRIGGER.to_owned(),
        conditions: vec![condition],
        identity: "/none".to_owned(),
        ..GrantRule::default()
    };
    let request = PutRuleRequest { rule: Some(rule), dry_run: false, expected_version: None };
    let answer = RuleServiceClient::new(admin).put_rule(request).await;
    assert!(answer.is_err(), "this server publishes nothing anew");
}

struct Republishing(Arc<dyn Store>);

impl Republishing {
    async fn publish(&self) -> Result<Committed, StoreError> {
        let stored = self.0.documents(Kind::Bundle, None, 1).await?.pop().expect("a bundle");
        let mut record: BundleRecord = stored.read().expect("a readable bundle").value;
        record.sequence += 1;
        self.0.commit(Transaction::named("publish bundle").put(&record)).await?;
        Err(StoreError::Conflict { key: stored.key })
    }
}

#[async_trait::async_trait]
impl Store for Republishing {
    async fn commit(&self, transaction: Transaction) -> Result<Committed, StoreError> {
        let trigger = |key: &DocumentKey| key.kind == Kind::Rule && key.id == TRIGGER;
        if transaction.writes.iter().any(|write| trigger(write.key())) {
            return self.publish().await;
        }
        self.0.commit(transaction).await
    }

    async fn document(&self, key: &DocumentKey) -> Result<Option<Document>, StoreError> {
        self.0.document(key).await
    }

    async fn documents(
        &self,
        kind: Kind,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Document>, StoreError> {
        self.0.documents(kind, after, limit).await
    }

    async fn records(&self, from: Position, limit: usize) -> Result<Vec<Record>, StoreError> {
        self.0.records(from, limit).await
    }

    async fn record_of_serial(&self, counter: SerialCounter) -> Result<Option<Record>, StoreError> {
        self.0.record_of_serial(counter).await
    }

    async fn head(&self) -> Result<Head, StoreError> {
        self.0.head().await
    }

    async fn reserve_serials(&self, count: u32, now: Timestamp) -> Result<SerialCounter, StoreError> {
        self.0.reserve_serials(count, now).await
    }

    async fn backup(&self, to: &Path) -> Result<(), StoreError> {
        self.0.backup(to).await
    }

    async fn check_integrity(&self) -> Result<(), StoreError> {
        self.0.check_integrity().await
    }
}
