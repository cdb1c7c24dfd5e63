//! Administrators as other administrators make and remove them.

use rhizome_proto::admin::v1 as wire;
use rhizome_proto::admin::v1::Role;
use rhizome_proto::admin::v1::admin_identity_service_client::AdminIdentityServiceClient;
use rhizome_x509::{KeyAlgorithm, RequestKey};
use tonic::Code;
use tonic::transport::Channel;

use crate::support::{TestServer, admin_request, refusal};

fn key() -> RequestKey {
    RequestKey::generate(KeyAlgorithm::EcdsaP256).unwrap()
}

async fn list(channel: &Channel) -> Result<Vec<wire::Admin>, (Code, String)> {
    let answer = AdminIdentityServiceClient::new(channel.clone())
        .list_admins(wire::ListAdminsRequest::default())
        .await;
    match answer {
        Ok(answer) => Ok(answer.into_inner().admins),
        Err(status) => Err((status.code(), status.message().to_owned())),
    }
}

#[tokio::test]
async fn an_administrator_is_registered_with_the_first_certificate_and_keeps_its_record_with_the_next() {
    let server = TestServer::start().await;
    let (first, channel) = server.admin("alice", Role::Security).await;
    assert_eq!(first.issued.spiffe_id, "spiffe://example.test/rhizome/admin/alice");
    let made_at = server.now();
    server.clock.advance(600);
    let mut client = AdminIdentityServiceClient::new(channel.clone());
    let request = admin_request("alice", Role::Security, &key());
    let second = client.issue_admin_certificate(request).await.unwrap().into_inner();
    let all = list(&channel).await.unwrap();
    assert_eq!(all.len(), 1);
    assert_eq!(Some(&all[0]), second.admin.as_ref());
    assert_eq!(all[0].serial, second.issued.unwrap().serial);
    assert_eq!(all[0].created_at.unwrap().seconds, made_at.unix());
    assert!(all[0].created_by.starts_with("local:uid="), "{}", all[0].created_by);
    assert_eq!((all[0].role(), all[0].name.as_str()), (Role::Security, "alice"));
    server.recorded(&["admin.issue", "\"by\":\"admin:alice\"", "role security"]).await;
}

#[tokio::test]
async fn a_registered_name_keeps_its_role_and_a_request_must_say_one() {
    let server = TestServer::start().await;
    server.admin("alice", Role::Viewer).await;
    let mut client = AdminIdentityServiceClient::new(server.local().await);
    let raised = admin_request("alice", Role::Security, &key());
    let (code, message) = refusal(client.issue_admin_certificate(raised).await);
    assert_eq!(code, Code::FailedPrecondition);
    assert!(message.contains("remove the administrator first"), "{message}");
    let silent = admin_request("bob", Role::Unspecified, &key());
    assert_eq!(refusal(client.issue_admin_certificate(silent).await).0, Code::InvalidArgument);
    let odd = wire::IssueAdminCertificateRequest { role: 17, ..admin_request("bob", Role::Viewer, &key()) };
    assert_eq!(refusal(client.issue_admin_certificate(odd).await).0, Code::InvalidArgument);
    let no_key = wire::IssueAdminCertificateRequest {
        csr_der: Vec::new().into(),
        ..admin_request("bob", Role::Viewer, &key())
    };
    assert_eq!(refusal(client.issue_admin_certificate(no_key).await).0, Code::InvalidArgument);
    assert_eq!(list(&server.local().await).await.unwrap().len(), 1, "nobody came to be by the way");
}

#[tokio::test]
async fn a_removed_administrator_is_nobody_and_the_name_can_be_given_anew() {
    let server = TestServer::start().await;
    let (older, _) = server.admin("alice", Role::Viewer).await;
    let (newer, open) = server.admin("alice", Role::Viewer).await;
    list(&open).await.unwrap();
    let mut client = AdminIdentityServiceClient::new(server.local().await);
    let remove = wire::RemoveAdminRequest { name: "alice".into(), reason: "left".into() };
    let removed = client.remove_admin(remove.clone()).await.unwrap().into_inner();
    assert_eq!((removed.revoked, removed.admin.unwrap().serial), (2, newer.issued.serial.clone()));
    assert_eq!(list(&open).await.unwrap_err().0, Code::Unauthenticated);
    let (code, message) = refusal(client.remove_admin(remove).await);
    assert_eq!((code, message.as_str()), (Code::NotFound, "there is no administrator `alice`"));
    server.recorded(&["admin.remove", "alice", "left"]).await;

    let (_, anew) = server.admin("alice", Role::Security).await;
    list(&anew).await.unwrap();
    for holder in [&older, &newer] {
        let channel = server.connect(Some(holder)).await;
        assert_eq!(list(&channel).await.unwrap_err().0, Code::Unauthenticated);
    }
    server.stop().await;
}
