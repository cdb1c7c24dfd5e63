//! Rules, put and taken away by an administrator.

use rhizome_proto::admin::v1::rule_service_client::RuleServiceClient;
use rhizome_proto::admin::v1::{DeleteRuleRequest, PutRuleRequest};
use rhizome_proto::ca::v1::{Condition, GrantRule};
use tonic::transport::Channel;

/// Lets whoever has this attribute be `identity`.
pub(crate) async fn put(admin: &Channel, name: &str, attribute: &str, value: &str, identity: &str) {
    let rule = GrantRule {
        name: name.to_owned(),
        conditions: vec![Condition { attribute: attribute.to_owned(), values: vec![value.to_owned()] }],
        identity: identity.to_owned(),
        ..GrantRule::default()
    };
    let request = PutRuleRequest { rule: Some(rule), dry_run: false, expected_version: None };
    RuleServiceClient::new(admin.clone()).put_rule(request).await.expect("a rule");
}

pub(crate) async fn delete(admin: &Channel, name: &str) {
    let request = DeleteRuleRequest { name: name.to_owned(), dry_run: false, expected_version: None };
    RuleServiceClient::new(admin.clone()).delete_rule(request).await.expect("no rule");
}
