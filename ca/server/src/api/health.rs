//! gRPC health: `SERVING` exactly when this process can issue.
//!
//! Sources: grpc.health.v1. Services have no health of their own here: every name asks about the whole.

use std::sync::Arc;
use std::time::Duration;

use tonic::{Request, Response};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use super::Api;
use crate::ca::Ca;
use crate::outlet::outlet;
use crate::status::{Answer, Outgoing};

/// How often a watcher's process is looked at, besides after every change: clocks and disks do not announce themselves.
const LOOK_EVERY: Duration = Duration::from_secs(5);

#[tonic::async_trait]
impl Health for Api {
    async fn check(&self, _request: Request<HealthCheckRequest>) -> Answer<HealthCheckResponse> {
        Ok(Response::new(self.0.health()))
    }

    type WatchStream = Outgoing<HealthCheckResponse>;

    async fn watch(&self, _request: Request<HealthCheckRequest>) -> Answer<Self::WatchStream> {
        let (answers, outgoing) = outlet(1);
        let ca = Arc::clone(&self.0);
        self.0.spawner.spawn_until_stop("watch health", async move {
            let mut changes = ca.changes();
            let mut told = None;
            loop {
                let health = ca.health();
                if told != Some(health.status) {
                    told = Some(health.status);
                    if !answers.give(health).await {
                        return;
                    }
                }
                tokio::select! {
                    () = answers.closed() => return,
                    () = tokio::time::sleep(LOOK_EVERY) => {}
                    changed = changes.changed() => if changed.is_err() {
                        return;
                    },
                }
            }
        });
        Ok(Response::new(outgoing))
    }
}

impl Ca {
    fn health(self: &Arc<Self>) -> HealthCheckResponse {
        let status =
            if self.problems().is_empty() { ServingStatus::Serving } else { ServingStatus::NotServing };
        HealthCheckResponse { status: status.into() }
    }
}
