//! Every number that bounds a decision, each with the reason it has that value.
//!
//! Laws: a limit is a constant here or beside the type that enforces it, never a literal in a condition; each one is
//! tested on both sides of its boundary. Not here: limits of messages and connections (`rhizome_server`), of CSRs
//! and certificates (`rhizome_x509`), of names (`rhizome_id`).
//! Sources: given per constant.

use rhizome_id::Ttl;

/// Values one set of attributes may hold. A Kubernetes pod yields about 8 plus its labels, of which an agent sends
/// those that rules mention; SPIRE's selectors of a pod stay below 40.
pub const ATTRIBUTE_VALUES: usize = 64;

/// Bytes of one attribute value. Kubernetes names are at most 253 bytes (RFC 1123 subdomain), label values 63.
/// Longer Unix paths are not worth a rule; their SHA-256 is.
pub const ATTRIBUTE_VALUE_BYTES: usize = 256;

/// Bytes of a label key: a DNS subdomain (253), a slash and a name (63), as Kubernetes defines label keys.
pub const LABEL_KEY_BYTES: usize = 253 + 1 + 63;

/// Conditions of one rule: there are 13 closed attributes; more labels than this is a list, not a rule.
pub const RULE_CONDITIONS: usize = 32;

/// Values one condition may list. A rule is filed under each value of one condition, so this bounds what a single
/// edit costs.
pub const RULE_VALUES: usize = 64;

/// DNS names one rule may grant. A Kubernetes service has four usual spellings; TLS peers pay for each byte.
pub const RULE_DNS_NAMES: usize = 16;

/// Trust domains one rule may federate with. Each costs a bundle on every subscriber.
pub const RULE_FEDERATES_WITH: usize = 32;

/// Foreign trust domains that one authority federates with: each costs a bundle on every node, and a fetch every few
/// minutes.
pub const FEDERATIONS: usize = 64;

/// Bytes of a foreign bundle document: 64 roots of RSA-4096 have 240 KiB; a quarter of the largest stored document, since
/// it is stored again after each fetch.
pub const FOREIGN_BUNDLE_BYTES: usize = 256 * 1024;

/// Bytes of the address of a bundle endpoint.
pub const ENDPOINT_URL_BYTES: usize = 2_048;

/// Redirects followed for one fetch: a move to another host and one to another path.
pub const FEDERATION_REDIRECTS: usize = 3;

/// The shortest time between two fetches of one foreign bundle, whatever its refresh hint says: a hint of a second is a
/// mistake, and nobody's endpoint should be asked more often.
pub const FEDERATION_MIN_REFRESH: Ttl = Ttl::seconds_of(10);
/// The longest: a hint of a year would keep a replaced root away for a year (SPIRE trusts the hint; we do not).
pub const FEDERATION_MAX_REFRESH: Ttl = Ttl::hours(24);
/// The longest pause between two tries while fetching fails.
pub const FEDERATION_MAX_BACKOFF: Ttl = Ttl::hours(1);
/// A fetch comes earlier than the hint says by up to the hint divided by this, so that a fleet does not ask at one
/// moment, and a change reaches everybody within the hint.
pub const FEDERATION_JITTER_FRACTION: i64 = 5;
/// A foreign bundle is old when fetching it has not succeeded for so many refresh hints; by then every follower that
/// polls a bundle as its hint says has it, too.
pub const FEDERATION_OLD_AFTER_HINTS: i64 = 3;

/// Clusters with a Rhizome of their own below one root: each is a label of metrics, and a report every half minute.
pub const CLUSTERS: usize = 256;
/// Namespaces of a cluster's scope: as many as a join token may name.
pub const CLUSTER_NAMESPACES: usize = 256;
/// Other identities of a cluster's scope: each is looked at for every certificate of the cluster.
pub const CLUSTER_IDENTITIES: usize = 64;
/// Alarms about one cluster that are kept in full, and written to the ledger for one report; the ledger keeps all that
/// were written.
pub const CLUSTER_ALARMS_KEPT: usize = 16;
/// Intermediates of one cluster that live at once: one serves, one waits, and as many again after changes of the root.
pub const CLUSTER_GRANTS: usize = 16;
/// How far a cluster's intermediate is backdated, at most a tenth of its life: ten minutes, by which its clock may be slow.
pub const CLUSTER_BACKDATE_SECONDS: i64 = 600;
/// How long a report that says nothing new is not written.
pub const CLUSTER_SAME_SECONDS: i64 = 30;
/// A cluster that has not reported for so long is not connected: four of its reports.
pub const CLUSTER_SILENT_SECONDS: i64 = 120;
/// Lifetime of a cluster's intermediate when nothing else is said: a week. It is renewed at half of that, so the root may
/// be away for half a week, and what was withdrawn ends within a week.
pub const CLUSTER_INTERMEDIATE_TTL: Ttl = Ttl::hours(7 * 24);
/// Shortest lifetime of a cluster's intermediate: renewing it at half of that must outlast a restart of the root.
pub const CLUSTER_INTERMEDIATE_MIN_TTL: Ttl = Ttl::minutes(2);
/// Longest lifetime of a cluster's intermediate: nothing can take one back before its end, so it is no longer than that
/// of an issuer.
pub const CLUSTER_INTERMEDIATE_MAX_TTL: Ttl = Ttl::hours(90 * 24);

/// Bytes of a rule's comment: a sentence or two, and a ticket's address.
pub const RULE_COMMENT_BYTES: usize = 1024;

/// Bytes of a template. SPIFFE-ID §2.3 caps an ID at 2048 bytes; a template that needs half of it is a mistake.
pub const TEMPLATE_BYTES: usize = 1024;

/// Identities named when a request is ambiguous; the caller must pick one, a longer list helps nobody.
pub const AMBIGUOUS_CANDIDATES: usize = 16;

/// Rules shown as near misses by `explain`: one screen.
pub const NEAR_MISSES: usize = 10;

/// Bytes of a join token's secret: 256 bits, so that its unsalted SHA-256 may be stored and may be public.
pub const JOIN_TOKEN_SECRET_BYTES: usize = 32;

/// Lifetime of a workload's certificate when neither rule nor request says otherwise (SPIRE's default is 1 h).
pub const WORKLOAD_DEFAULT_TTL: Ttl = Ttl::hours(1);
/// Longest lifetime of a workload's certificate: a day, Istio's default; revocation is expiry (X509-SVID has none).
pub const WORKLOAD_MAX_TTL: Ttl = Ttl::hours(24);
/// Lifetime of a node's certificate: an outage of half a day leaves it able to renew.
pub const NODE_DEFAULT_TTL: Ttl = Ttl::hours(24);
/// Longest lifetime of a node's certificate: a machine may be suspended for a few days and still come back.
pub const NODE_MAX_TTL: Ttl = Ttl::hours(7 * 24);
/// Lifetime of an administrator's certificate: a working day.
pub const ADMIN_DEFAULT_TTL: Ttl = Ttl::hours(12);
/// Longest lifetime of an administrator's certificate: a day; it is issued locally and costs nothing to replace.
pub const ADMIN_MAX_TTL: Ttl = Ttl::hours(24);
/// Lifetime of a server's own certificate, which it renews itself.
pub const SERVER_TTL: Ttl = Ttl::hours(24);

/// Lifetime of a root: ten years, so that it outlives several rotations of everything below it.
pub const ROOT_TTL: Ttl = Ttl::hours(3650 * 24);
/// Lifetime of an issuer: thirty days; it is replaced by itself at half of that.
pub const ISSUER_TTL: Ttl = Ttl::hours(30 * 24);

/// How often followers of the bundle without a stream should look (SPIFFE bundle `spiffe_refresh_hint`).
pub const BUNDLE_REFRESH_HINT: Ttl = Ttl::minutes(5);

/// Lifetime of a join token when none is asked for: it is pasted at once or never.
pub const JOIN_TOKEN_DEFAULT_TTL: Ttl = Ttl::minutes(10);
/// Longest lifetime of a join token.
pub const JOIN_TOKEN_MAX_TTL: Ttl = Ttl::hours(24);

/// Requests a second from one source address: an agent needs a few, a scanner wants thousands.
pub const REQUESTS_PER_SOURCE: u32 = 50;
/// Requests a second of one identity: what one agent on a large host may need when everything restarts at once.
pub const REQUESTS_PER_IDENTITY: u32 = 5_000;
/// Connections at once.
pub const CONNECTIONS: u32 = 20_000;

/// Lifetime of a JWT-SVID when the request does not say otherwise: 5 min, as SPIRE's. It cannot be revoked one by one.
pub const JWT_DEFAULT_TTL: Ttl = Ttl::minutes(5);
/// Longest lifetime of a JWT-SVID: an hour. A bearer token that leaks is worth something for that long.
pub const JWT_MAX_TTL: Ttl = Ttl::hours(1);
/// Lifetime of a key for JWT-SVIDs: a week. It is published half of that before it expires and signs until a sixth is
/// left, so a follower may be away for two days and still know it before its first token.
pub const JWT_KEY_TTL: Ttl = Ttl::hours(7 * 24);

/// Most seconds a certificate is backdated against slow clocks (ca/docs/issuance.md, Validity); SPIRE backdates 10 s,
/// Istio 2 min.
pub const BACKDATE_SECONDS: i64 = 60;
/// A short-lived certificate is backdated by at most this fraction of its lifetime (ca/docs/issuance.md, Validity).
pub const BACKDATE_FRACTION: i64 = 10;

/// How far the wall clock may run ahead of the steady one before it is doubted: above what synchronisation steps by in
/// a machine that is looked after (leap seconds, a late first synchronisation), below the life of a certificate.
pub const CLOCK_AHEAD_SECONDS: i64 = 600;
/// How far it may lie behind the newest instant known before issuing stops: above any step of a well-kept clock.
pub const CLOCK_BEHIND_SECONDS: i64 = 120;
/// How long a step ahead must last until it is believed: time synchronisation that erred corrects itself within
/// minutes, and a machine that was paused for long should not issue by yesterday's clock for longer than that.
pub const CLOCK_BELIEVED_AFTER_SECONDS: i64 = 300;
/// How long the clock must have been steady before anything is destroyed because of it: long enough for an alarm to
/// reach a person. Also how long a step ahead that was believed may be taken back without anybody's word.
pub const CLOCK_SETTLED_AFTER_SECONDS: i64 = 6 * 3_600;

/// Renewal happens at this fraction of a certificate's life (by half life, as SPIRE's agent).
pub const RENEW_AT_FRACTION: i64 = 2;
/// The renewal instant is spread over ± life / this (10 %), drawn once per certificate: drawn anew at
/// each look it would collapse to the earliest instant.
pub const RENEW_JITTER_FRACTION: i64 = 10;

/// A successor is prepared when this fraction of an authority's life remains, or [`PREPARE_CAP_SECONDS`]
/// (SPIRE `slot.go`: preparation threshold, at most 30 days).
pub const PREPARE_FRACTION: i64 = 2;
/// Upper cap of the preparation threshold: 30 days (SPIRE `slot.go`).
pub const PREPARE_CAP_SECONDS: i64 = 30 * 86_400;
/// A successor is activated when this fraction of the active authority's life remains, or [`ACTIVATE_CAP_SECONDS`]
/// (SPIRE `slot.go`: activation threshold, at most 7 days).
pub const ACTIVATE_FRACTION: i64 = 6;
/// How long a JWT key waits for live followers of the bundle that have not acknowledged it while no other signs: the
/// usual refresh hint, after which whoever polls has looked (ADR 0011).
pub const ACKNOWLEDGE_PATIENCE_SECONDS: i64 = 300;
/// Upper cap of the activation threshold: 7 days (SPIRE `slot.go`).
pub const ACTIVATE_CAP_SECONDS: i64 = 7 * 86_400;

/// How long a canary lasts when nobody said: half an hour, in which short-lived certificates are renewed at least once.
pub const ROTATION_CANARY_SECONDS: i64 = 1_800;
/// Namespaces that a canary may name.
pub const CANARY_NAMESPACES: usize = 64;

/// How far clocks may lie apart in a change of the root: ten minutes off on either side. Until then after its last
/// certificate's end a subscriber still counts as living.
pub const ROTATION_SKEW_SECONDS: i64 = 1_200;
/// How long a change of the root waits after the last issuer changed, when nothing else is asked for: a minute, in which
/// every issuance that was under way then has ended, and what clocks may lie apart.
pub const ROTATION_SETTLE_SECONDS: i64 = ROTATION_SKEW_SECONDS + 60;
/// How long only the new root is trusted before the old key is destroyed, when nothing else is asked for: a day, in which
/// somebody notices.
pub const ROTATION_SOAK_SECONDS: i64 = 86_400;
/// Over how long renewals that a change of the root orders are spread, when nothing else is asked for.
pub const ROTATION_WINDOW_SECONDS: i64 = 600;
/// Renewals a second that a change of the root orders at most, when nothing else is asked for: a tenth of what one core
/// issues.
pub const ROTATION_RENEWALS_PER_SECOND: u32 = 500;
/// How long the bundle takes from a cluster's object into a container: the kubelet's period of 60 s and its cache of as
/// much again at worst.
pub const PUBLISHER_ALLOWANCE_SECONDS: i64 = 120;
/// Whoever was heard of within so many seconds, by whichever server, is within reach.
pub const WITHIN_REACH_SECONDS: i64 = 90;
/// An anchor is close to its end when less is left than this many times what a change of the root takes.
pub const ANCHOR_ALARM_ROTATIONS: i64 = 3;
/// Exemptions of one rotation; beyond that they are no exemptions. As many with the longest reasons still fit into the one
/// document that a rotation is.
pub const EXEMPTIONS: usize = 250;
/// Bytes of a reason that a person gives for an exemption or an abort.
pub const ROTATION_REASON_BYTES: usize = 1_024;
/// Blockers that a refusal names; the status lists all of them.
pub const BLOCKERS_NAMED: usize = 10;
