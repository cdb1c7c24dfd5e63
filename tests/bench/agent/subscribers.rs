//! Who holds which bundle, as the server has it on disk.

use std::time::{Duration, Instant};

use rhizome_proto::admin::v1::bundle_admin_service_client::BundleAdminServiceClient;
use rhizome_proto::admin::v1::{ShowBundleRequest, ShowBundleResponse};
use tonic::transport::Channel;

use crate::figures::now;

const LOOK_EVERY: Duration = Duration::from_millis(5);

pub(crate) async fn show(admin: &Channel) -> ShowBundleResponse {
    let request = ShowBundleRequest { page_size: 1, ..ShowBundleRequest::default() };
    let answer = BundleAdminServiceClient::new(admin.clone()).show_bundle(request).await;
    answer.expect("the bundle").into_inner()
}

pub(crate) async fn sequence(admin: &Channel) -> u64 {
    show(admin).await.bundle.expect("the bundle").sequence
}

/// Waits until `count` subscribers are known and have all acknowledged the bundle of this sequence; `None` when that
/// takes longer than `patience`.
pub(crate) async fn all_hold(
    admin: &Channel,
    sequence: u64,
    count: usize,
    patience: Duration,
) -> Option<Instant> {
    until(admin, patience, |shown| {
        let published = shown.bundle.as_ref().is_some_and(|bundle| bundle.sequence == sequence);
        published && shown.behind_count == 0 && shown.subscriber_count >= count as u64
    })
    .await
}

/// As [`all_hold`], of the subscriber that comes first by name.
pub(crate) async fn first_holds(admin: &Channel, sequence: u64, patience: Duration) -> Option<Instant> {
    until(admin, patience, |shown| {
        shown.subscribers.first().is_some_and(|first| first.acknowledged_sequence == sequence)
    })
    .await
}

async fn until(
    admin: &Channel,
    patience: Duration,
    wanted: impl Fn(&ShowBundleResponse) -> bool,
) -> Option<Instant> {
    let start = now();
    while start.elapsed() < patience {
        if wanted(&show(admin).await) {
            return Some(now());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    None
}
