//! Who may call which method: one table, read by the gate before any handler runs.
//!
//! Laws: a method that is not in the table cannot be called. A test enumerates every method that reflection offers
//! and demands that the table names it, and nothing else.

use rhizome_core::caller::Role;

use crate::error::Needed;

use Needed::{Nobody, Node};

const VIEWER: Needed = Needed::Role(Role::Viewer);
const OPERATOR: Needed = Needed::Role(Role::Operator);
const SECURITY: Needed = Needed::Role(Role::Security);

/// Method paths, in byte order, and what a caller needs.
pub const METHODS: &[(&str, Needed)] = &[
    ("/grpc.health.v1.Health/Check", Nobody),
    ("/grpc.health.v1.Health/Watch", VIEWER),
    ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", VIEWER),
    ("/rhizome.admin.v1.AdminIdentityService/IssueAdminCertificate", SECURITY),
    ("/rhizome.admin.v1.AdminIdentityService/ListAdmins", VIEWER),
    ("/rhizome.admin.v1.AdminIdentityService/RemoveAdmin", SECURITY),
    ("/rhizome.admin.v1.AuthorityService/ListAuthorities", VIEWER),
    ("/rhizome.admin.v1.AuthorityService/RotateIssuer", SECURITY),
    ("/rhizome.admin.v1.AuthorityService/TaintJwtKey", SECURITY),
    ("/rhizome.admin.v1.BundleAdminService/ListCrls", VIEWER),
    ("/rhizome.admin.v1.BundleAdminService/ShowBundle", VIEWER),
    ("/rhizome.admin.v1.CertificateAdminService/GetCertificate", VIEWER),
    ("/rhizome.admin.v1.CertificateAdminService/ListCertificates", VIEWER),
    ("/rhizome.admin.v1.CertificateAdminService/RevokeCertificates", OPERATOR),
    ("/rhizome.admin.v1.ClusterService/AddCluster", SECURITY),
    ("/rhizome.admin.v1.ClusterService/GetCluster", VIEWER),
    ("/rhizome.admin.v1.ClusterService/ListClusters", VIEWER),
    ("/rhizome.admin.v1.ClusterService/RemoveCluster", SECURITY),
    ("/rhizome.admin.v1.ClusterService/ResumeCluster", SECURITY),
    ("/rhizome.admin.v1.ClusterService/SetClusterScope", SECURITY),
    ("/rhizome.admin.v1.ClusterService/SuspendCluster", SECURITY),
    ("/rhizome.admin.v1.ExplainService/Explain", VIEWER),
    ("/rhizome.admin.v1.FederationService/CreateRelationship", SECURITY),
    ("/rhizome.admin.v1.FederationService/DeleteRelationship", SECURITY),
    ("/rhizome.admin.v1.FederationService/GetRelationship", VIEWER),
    ("/rhizome.admin.v1.FederationService/ListRelationships", VIEWER),
    ("/rhizome.admin.v1.FederationService/RefreshRelationship", OPERATOR),
    ("/rhizome.admin.v1.FederationService/SetFederatedBundle", SECURITY),
    ("/rhizome.admin.v1.LedgerService/GetHead", VIEWER),
    ("/rhizome.admin.v1.LedgerService/ListEntries", VIEWER),
    ("/rhizome.admin.v1.LedgerService/VerifyLedger", VIEWER),
    ("/rhizome.admin.v1.NodeAdminService/BanNode", OPERATOR),
    ("/rhizome.admin.v1.NodeAdminService/EvictNode", OPERATOR),
    ("/rhizome.admin.v1.NodeAdminService/GetNode", VIEWER),
    ("/rhizome.admin.v1.NodeAdminService/ListNodes", VIEWER),
    ("/rhizome.admin.v1.NodeAdminService/RenewNodes", OPERATOR),
    ("/rhizome.admin.v1.RotationService/AbortRotation", SECURITY),
    ("/rhizome.admin.v1.RotationService/AdvanceRotation", SECURITY),
    ("/rhizome.admin.v1.RotationService/ExemptSubscriber", SECURITY),
    ("/rhizome.admin.v1.RotationService/GetRotation", VIEWER),
    ("/rhizome.admin.v1.RotationService/ListDependents", VIEWER),
    ("/rhizome.admin.v1.RotationService/PlanRotation", VIEWER),
    ("/rhizome.admin.v1.RotationService/StartRotation", SECURITY),
    ("/rhizome.admin.v1.RotationService/WatchRotation", VIEWER),
    ("/rhizome.admin.v1.RuleService/DeleteRule", OPERATOR),
    ("/rhizome.admin.v1.RuleService/GetRule", VIEWER),
    ("/rhizome.admin.v1.RuleService/ListRules", VIEWER),
    ("/rhizome.admin.v1.RuleService/PutRule", OPERATOR),
    ("/rhizome.admin.v1.ServerService/Backup", SECURITY),
    ("/rhizome.admin.v1.ServerService/GetStatus", VIEWER),
    ("/rhizome.admin.v1.ServerService/RunChecks", VIEWER),
    ("/rhizome.admin.v1.TokenService/CreateToken", OPERATOR),
    ("/rhizome.admin.v1.TokenService/ListTokens", VIEWER),
    ("/rhizome.admin.v1.TokenService/RevokeToken", OPERATOR),
    ("/rhizome.ca.v1.BundleService/GetBundle", Nobody),
    ("/rhizome.ca.v1.BundleService/WatchBundle", Node),
    ("/rhizome.ca.v1.CertificateService/SignCertificate", Node),
    ("/rhizome.ca.v1.CertificateService/SignCertificates", Node),
    ("/rhizome.ca.v1.JwtService/SignJwtSvid", Node),
    ("/rhizome.node.v1.NodeService/Attest", Nobody),
    ("/rhizome.node.v1.NodeService/Renew", Node),
    ("/rhizome.node.v1.NodeService/Sync", Node),
    ("/rhizome.upstream.v1.UpstreamService/Report", Node),
    ("/rhizome.upstream.v1.UpstreamService/SignIntermediate", Node),
];

/// The method at `path` and what a caller of it needs; `None` when there is no such method.
pub(crate) fn needed(path: &str) -> Option<(&'static str, Needed)> {
    let at = METHODS.binary_search_by(|(method, _)| (*method).cmp(path)).ok()?;
    METHODS.get(at).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_names_each_method_once() {
        assert!(METHODS.is_sorted_by(|a, b| a.0 < b.0));
        let sync = "/rhizome.node.v1.NodeService/Sync";
        assert_eq!(needed(sync), Some((sync, Node)));
        assert_eq!(needed("/rhizome.node.v1.NodeService/Steal"), None);
    }

    #[test]
    fn only_health_the_public_bundle_and_joining_are_open_to_anybody() {
        let open: Vec<_> =
            METHODS.iter().filter(|(_, needed)| *needed == Nobody).map(|(path, _)| *path).collect();
        assert_eq!(
            open,
            [
                "/grpc.health.v1.Health/Check",
                "/rhizome.ca.v1.BundleService/GetBundle",
                "/rhizome.node.v1.NodeService/Attest",
            ]
        );
    }
}
