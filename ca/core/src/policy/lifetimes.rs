//! How long what is granted lives: defaults, limits, and what a rule says.

use rhizome_id::Ttl;

use crate::limits;

/// Default and greatest lifetime of one kind of certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TtlLimits {
    /// When neither rule nor wish says otherwise; never above `max` in effect.
    pub default: Ttl,
    /// The most that anything can say.
    pub max: Ttl,
}

/// Lifetimes by kind of certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyLimits {
    /// Workloads.
    pub workload: TtlLimits,
    /// JWT-SVIDs of workloads.
    pub token: TtlLimits,
    /// Nodes.
    pub node: TtlLimits,
    /// Administrators.
    pub admin: TtlLimits,
    /// Servers.
    pub server: TtlLimits,
}

impl Default for PolicyLimits {
    fn default() -> Self {
        let pair = |default, max| TtlLimits { default, max };
        Self {
            workload: pair(limits::WORKLOAD_DEFAULT_TTL, limits::WORKLOAD_MAX_TTL),
            token: pair(limits::JWT_DEFAULT_TTL, limits::JWT_MAX_TTL),
            node: pair(limits::NODE_DEFAULT_TTL, limits::NODE_MAX_TTL),
            admin: pair(limits::ADMIN_DEFAULT_TTL, limits::ADMIN_MAX_TTL),
            server: pair(limits::SERVER_TTL, limits::SERVER_TTL),
        }
    }
}

/// The lifetime and whether a limit shortened it. A rule's lifetime is default and upper bound at once.
pub(super) fn lifetime(asked: Option<Ttl>, rule: Option<Ttl>, limits: TtlLimits) -> (Ttl, bool) {
    let bound = rule.unwrap_or(limits.max).min(limits.max);
    let wanted = asked.or(rule).unwrap_or(limits.default);
    (wanted.min(bound), wanted > bound && (asked.is_some() || rule.is_some()))
}

/// The lifetime of a token and whether a limit shortened the one asked for. A rule's lifetime is about certificates: it
/// bounds tokens, but does not lengthen them.
pub(super) fn token_lifetime(asked: Option<Ttl>, rule: Option<Ttl>, limits: TtlLimits) -> (Ttl, bool) {
    let max = rule.map_or(limits.max, |rule| rule.min(limits.max));
    lifetime(asked, None, TtlLimits { max, ..limits })
}
