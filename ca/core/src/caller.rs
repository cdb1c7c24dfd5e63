//! Who is calling: the evidence that authentication leaves behind.
//!
//! Laws: an [`AttestedCaller`] has one public constructor, [`AttestedCaller::assertion`]; a tidy test lists who calls
//! it. A principal's text is stable, for it stands in the ledger. Not here: how a caller proves itself
//! (`rhizome_server`'s gate), what it may have (`policy`).
//! Sources: ca/docs/ARCHITECTURE.md §5 step 1; rustls `rustls/src/verify.rs` (proof types).

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use rhizome_id::{
    AdminName, ClusterName, NodeName, ReplicaName, Serial, SpiffeId, SpiffeIdError, TokenId, TrustDomain,
};
use serde::{Deserialize, Serialize};

use crate::attributes::Attributes;

/// What a person or an automation may do through the admin API; each role includes the ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Sees everything but secrets, changes nothing.
    Viewer,
    /// Also changes rules, join tokens and nodes, and revokes certificates.
    Operator,
    /// Also manages administrators, rotates issuers and takes backups.
    Security,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Security => "security",
        })
    }
}

/// How a node proved itself when it joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttestationMethod {
    /// With a one-time join token.
    JoinToken,
}

impl AttestationMethod {
    /// The text of the method, a SPIFFE path segment: `join_token`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::JoinToken => "join_token",
        }
    }
}

impl fmt::Display for AttestationMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text is no attestation method.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an attestation method; the only one is join_token")]
pub struct UnknownMethod;

impl FromStr for AttestationMethod {
    type Err = UnknownMethod;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "join_token" => Ok(Self::JoinToken),
            _ => Err(UnknownMethod),
        }
    }
}

/// Who a caller is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Principal {
    /// An attested node: an agent.
    Node {
        /// The cluster it joined.
        cluster: ClusterName,
        /// How it proved itself.
        method: AttestationMethod,
        /// Its name within cluster and method.
        name: NodeName,
    },
    /// An administrator with a certificate.
    Admin {
        /// Who.
        name: AdminName,
    },
    /// A process on the server's own machine, known by its peer credentials.
    Local {
        /// User id of the process.
        uid: u32,
        /// Name of the user, where it is known.
        user: Option<String>,
    },
    /// The bearer of a join token, which has no certificate yet.
    Token {
        /// The token's public handle.
        id: TokenId,
    },
    /// A server of this trust domain.
    Server {
        /// Which replica.
        name: ReplicaName,
    },
}

impl fmt::Display for Principal {
    /// The stable text of the audit record, for example `node:prod/join_token/vm-1`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node { cluster, method, name } => write!(f, "node:{cluster}/{method}/{name}"),
            Self::Admin { name } => write!(f, "admin:{name}"),
            Self::Local { uid, user: Some(user) } => write!(f, "local:uid={uid}({})", user.escape_default()),
            Self::Local { uid, user: None } => write!(f, "local:uid={uid}"),
            Self::Token { id } => write!(f, "token:{id}"),
            Self::Server { name } => write!(f, "server:{name}"),
        }
    }
}

/// The SPIFFE ID of a node: `spiffe://TD/rhizome/node/CLUSTER/METHOD/NAME` (ca/docs/ARCHITECTURE.md §3).
///
/// # Errors
/// [`SpiffeIdError`] only when the names together exceed the length limit, which no valid names do.
pub fn node_id(
    domain: &TrustDomain,
    cluster: &ClusterName,
    method: AttestationMethod,
    name: &NodeName,
) -> Result<SpiffeId, SpiffeIdError> {
    let segments = ["rhizome", "node", cluster.as_str(), method.as_str(), name.as_str()];
    SpiffeId::from_segments(domain, segments)
}

/// The SPIFFE ID of an administrator: `spiffe://TD/rhizome/admin/NAME` (ca/docs/ARCHITECTURE.md §3).
///
/// # Errors
/// [`SpiffeIdError`] only when the ID exceeds the length limit, which no valid name does.
pub fn admin_id(domain: &TrustDomain, name: &AdminName) -> Result<SpiffeId, SpiffeIdError> {
    SpiffeId::from_segments(domain, ["rhizome", "admin", name.as_str()])
}

/// The SPIFFE ID of a server: `spiffe://TD/rhizome/server/NAME` (ca/docs/ARCHITECTURE.md §3).
///
/// # Errors
/// [`SpiffeIdError`] only when the ID exceeds the length limit, which no valid name does.
pub fn server_id(domain: &TrustDomain, name: &ReplicaName) -> Result<SpiffeId, SpiffeIdError> {
    SpiffeId::from_segments(domain, ["rhizome", "server", name.as_str()])
}

/// Reads a principal back from an ID below `/rhizome/` in `domain`: the counterpart of [`node_id`], [`admin_id`] and
/// [`server_id`]. `None` for every other ID, including those of workloads and of other trust domains.
pub fn principal_of(id: &SpiffeId, domain: &TrustDomain) -> Option<Principal> {
    if !id.is_member_of(domain) {
        return None;
    }
    let mut segments = id.segments();
    if segments.next()? != "rhizome" {
        return None;
    }
    let principal = match segments.next()? {
        "node" => Principal::Node {
            cluster: segments.next()?.parse().ok()?,
            method: segments.next()?.parse().ok()?,
            name: segments.next()?.parse().ok()?,
        },
        "admin" => Principal::Admin { name: segments.next()?.parse().ok()? },
        "server" => Principal::Server { name: segments.next()?.parse().ok()? },
        _ => return None,
    };
    segments.next().is_none().then_some(principal)
}

/// What a node may vouch for. Stored with join tokens and node records.
///
/// Unknown fields of stored documents are ignored here and in every document of this crate: the code runs on schema
/// N and N−1, and a newer replica may have written more than an older one reads. So a later *restriction* must arrive
/// as a new variant, which an older replica refuses to read, never as a new field, which it would ignore.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Scope {
    /// The namespaces whose workloads it may vouch for.
    pub namespaces: NamespaceScope,
}

impl Scope {
    /// Every namespace.
    pub const ALL: Self = Self { namespaces: NamespaceScope::All };

    /// No namespace: for callers that vouch for nobody but themselves.
    pub const fn none() -> Self {
        Self { namespaces: NamespaceScope::Only(BTreeSet::new()) }
    }

    /// Whether `namespace` lies inside, compared byte for byte.
    pub fn allows_namespace(&self, namespace: &str) -> bool {
        self.namespaces.allows(namespace)
    }
}

/// Which namespaces. Serialised as `"all"` or `{"only": ["a", "b"]}`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NamespaceScope {
    /// Every namespace.
    All,
    /// Only these.
    Only(BTreeSet<String>),
}

impl NamespaceScope {
    /// Whether `namespace` is among them, compared byte for byte.
    pub fn allows(&self, namespace: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(names) => names.contains(namespace),
        }
    }
}

impl fmt::Display for NamespaceScope {
    /// In words, for the ledger.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("every namespace"),
            Self::Only(names) if names.is_empty() => f.write_str("no namespace"),
            Self::Only(names) => write!(f, "namespaces {}", some(names.iter().map(String::as_str))),
        }
    }
}

/// The first few of a list: what a ledger entry may hold of it.
pub(crate) fn some<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    const SAID: usize = 16;
    let more = names.len().saturating_sub(SAID);
    let shown: Vec<&str> = names.take(SAID).collect();
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    format!("{}{more}", shown.join(", "))
}

/// Evidence that a caller proved who it is. The only argument by which `policy::decide` learns about the caller.
#[derive(Clone, Debug)]
pub struct AttestedCaller {
    principal: Principal,
    attributes: Attributes,
    scope: Scope,
    role: Option<Role>,
    credential: Option<Serial>,
}

impl AttestedCaller {
    /// Asserts that authentication proved `principal`, learned `attributes` about it (for a node: platform and
    /// labels from its record; for a token: cluster, node and method) and that it may vouch for `scope`. It holds no
    /// role. Only authentication code calls this.
    pub const fn assertion(principal: Principal, attributes: Attributes, scope: Scope) -> Self {
        Self { principal, attributes, scope, role: None, credential: None }
    }

    /// The same caller, asserted to hold `role`; meaningful for administrators and local processes. Only
    /// authentication code calls this.
    #[must_use]
    pub fn with_role(self, role: Role) -> Self {
        Self { role: Some(role), ..self }
    }

    /// The same caller, known by its certificate of that serial. Only authentication code calls this.
    #[must_use]
    pub fn with_credential(self, serial: Serial) -> Self {
        Self { credential: Some(serial), ..self }
    }

    /// Who it is.
    pub const fn principal(&self) -> &Principal {
        &self.principal
    }

    /// What attestation found out about the caller itself.
    pub const fn attributes(&self) -> &Attributes {
        &self.attributes
    }

    /// What it may vouch for.
    pub const fn scope(&self) -> &Scope {
        &self.scope
    }

    /// Serial of the certificate it is known by, if it is known by one.
    pub const fn credential(&self) -> Option<&Serial> {
        self.credential.as_ref()
    }

    /// The role it holds, if any.
    pub const fn role(&self) -> Option<Role> {
        self.role
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain() -> TrustDomain {
        "example.org".parse().unwrap()
    }

    #[test]
    fn principals_have_a_stable_text() {
        let node = Principal::Node {
            cluster: "prod".parse().unwrap(),
            method: AttestationMethod::JoinToken,
            name: "vm-1".parse().unwrap(),
        };
        let local = |user: Option<&str>| Principal::Local { uid: 0, user: user.map(str::to_owned) };
        let cases = [
            (node, "node:prod/join_token/vm-1"),
            (Principal::Admin { name: "alice".parse().unwrap() }, "admin:alice"),
            (local(Some("root")), "local:uid=0(root)"),
            (local(None), "local:uid=0"),
            (local(Some("a\nadmin:bob")), "local:uid=0(a\\nadmin:bob)"),
            (Principal::Token { id: "ab12".parse().unwrap() }, "token:ab12"),
            (Principal::Server { name: "r1".parse().unwrap() }, "server:r1"),
        ];
        for (principal, text) in cases {
            assert_eq!(principal.to_string(), text);
        }
    }

    #[test]
    fn an_identity_below_rhizome_reads_back_to_its_principal() {
        let (cluster, name) = ("prod".parse().unwrap(), "vm-1".parse().unwrap());
        let id = node_id(&domain(), &cluster, AttestationMethod::JoinToken, &name).unwrap();
        assert_eq!(id.as_str(), "spiffe://example.org/rhizome/node/prod/join_token/vm-1");
        let expected = Principal::Node { cluster, method: AttestationMethod::JoinToken, name };
        assert_eq!(principal_of(&id, &domain()), Some(expected));
        let admin = admin_id(&domain(), &"alice".parse().unwrap()).unwrap();
        assert_eq!(principal_of(&admin, &domain()).unwrap().to_string(), "admin:alice");
        let server = server_id(&domain(), &"r1".parse().unwrap()).unwrap();
        assert_eq!(principal_of(&server, &domain()).unwrap().to_string(), "server:r1");
    }

    #[test]
    fn other_identities_are_no_principals() {
        for text in [
            "spiffe://example.org",
            "spiffe://example.org/rhizome",
            "spiffe://example.org/rhizome/node/prod/join_token",
            "spiffe://example.org/rhizome/node/prod/tpm/vm-1",
            "spiffe://example.org/rhizome/node/prod/join_token/vm-1/x",
            "spiffe://example.org/rhizome/admin/alice/x",
            "spiffe://example.org/rhizome/root/alice",
            "spiffe://example.org/ns/a/sa/rhizome",
            "spiffe://example.org/Rhizome/admin/alice",
            "spiffe://other.org/rhizome/admin/alice",
        ] {
            assert_eq!(principal_of(&text.parse().unwrap(), &domain()), None, "{text}");
        }
    }

    #[test]
    fn roles_include_the_ones_before_them() {
        assert!(Role::Security > Role::Operator && Role::Operator > Role::Viewer);
        assert_eq!(serde_json::to_string(&Role::Security).unwrap(), "\"security\"");
    }

    #[test]
    fn a_scope_compares_namespaces_byte_for_byte() {
        let scope = Scope { namespaces: NamespaceScope::Only(BTreeSet::from(["a.b".to_owned()])) };
        for (namespace, allowed) in
            [("a.b", true), ("a-b", false), ("A.b", false), ("a.b.c", false), ("", false)]
        {
            assert_eq!(scope.allows_namespace(namespace), allowed, "{namespace:?}");
        }
        assert!(Scope::ALL.allows_namespace("x") && !Scope::none().allows_namespace("x"));
    }

    #[test]
    fn a_stored_scope_reads_back_and_ignores_fields_of_a_newer_schema() {
        let text = r#"{"namespaces":{"only":["a","b"]}}"#;
        let scope: Scope = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&scope).unwrap(), text);
        assert_eq!(serde_json::from_str::<Scope>(r#"{"namespaces":"all","note":"x"}"#).unwrap(), Scope::ALL);
    }
}
