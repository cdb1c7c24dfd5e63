//! `rhizome rule`: who may be whom.
//!
//! Laws: putting and deleting are dry runs that show who gains and who loses, unless `--yes` is given. Not here: the
//! form of rule files (`rule_file.rs`), what a rule means (`rhizome_core::rules`).

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use rhizome_id::{RuleName, Timestamp, TrustDomain, Ttl};
use rhizome_proto::admin::v1::rule_service_client::RuleServiceClient;
use rhizome_proto::admin::v1::{
    DeleteRuleRequest, GetRuleRequest, IdentityChange, ListRulesRequest, PutRuleRequest, RuleDiff, StoredRule,
};
use rhizome_proto::ca::v1::GrantRule;
use serde::Serialize;
use serde_json::json;

use crate::exit::{Exit, Failure};
use crate::files;
use crate::node::AttributeRow;
use crate::output::{View, details, instant_with_distance, or_dash, printable, relative, table};
use crate::request::AttributeArgument;
use crate::rule_file::{self, RuleDocument, Values};
use crate::session::{Session, call};
use crate::wire;

/// Manage rules, which say who may be whom
#[derive(Subcommand, Clone, Debug)]
pub enum RuleVerb {
    /// List rules
    List {
        /// Show at most this many; 0 for all
        #[arg(long, value_name = "COUNT", default_value_t = 1000)]
        limit: usize,
    },
    /// Show one rule
    Show {
        /// The rule's name
        name: RuleName,
    },
    /// Add or replace rules; without --yes, show who would gain or lose an identity
    Put(Box<PutRule>),
    /// Delete a rule; without --yes, show who would lose an identity
    Delete {
        /// The rule's name
        name: RuleName,
        /// How sure the caller is
        #[command(flatten)]
        confirmation: Confirmation,
    },
}

/// A rule, from a file or from flags.
#[derive(Args, Clone, Debug)]
pub struct PutRule {
    /// A YAML or JSON file with one rule or a list of rules; - for standard input
    #[arg(value_name = "FILE", conflicts_with_all = ["name", "when", "grant", "ttl", "dns_names", "federates_with", "comment"])]
    file: Option<PathBuf>,

    /// The rule's name
    #[arg(long, required_unless_present = "file")]
    name: Option<RuleName>,

    /// A condition: the attribute must have this value (* for any); repeat it for more values or attributes
    #[arg(long, value_name = "NAME=VALUE", required_unless_present = "file")]
    when: Vec<AttributeArgument>,

    /// The path of the identity to grant, such as /ns/{namespace}/sa/{service_account}
    #[arg(long, value_name = "TEMPLATE", required_unless_present = "file")]
    grant: Option<String>,

    /// Lifetime of certificates under this rule [default: the server's]
    #[arg(long, value_name = "LIFETIME")]
    ttl: Option<Ttl>,

    /// A DNS name that certificates may carry; may be repeated
    #[arg(long = "dns", value_name = "TEMPLATE")]
    dns_names: Vec<String>,

    /// A trust domain whose bundle goes with the identity; may be repeated
    #[arg(long, value_name = "TRUST-DOMAIN")]
    federates_with: Vec<TrustDomain>,

    /// A remark for people
    #[arg(long)]
    comment: Option<String>,

    #[command(flatten)]
    confirmation: Confirmation,
}

/// How sure the caller is.
#[derive(Args, Clone, Copy, Debug)]
pub struct Confirmation {
    /// Do it; without this, only show what would change
    #[arg(long)]
    yes: bool,

    /// Refuse when the rule is not at this version any more; 0: when it exists
    #[arg(long, value_name = "VERSION")]
    expect_version: Option<u64>,
}

pub(crate) async fn run(verb: RuleVerb, session: &mut Session<'_, '_>) -> Result<Exit, Failure> {
    let wanted = match &verb {
        RuleVerb::Put(wish) => rules_of(wish)?,
        RuleVerb::List { .. } | RuleVerb::Show { .. } | RuleVerb::Delete { .. } => Vec::new(),
    };
    let mut client = RuleServiceClient::new(session.channel().await?);
    match verb {
        RuleVerb::List { limit } => {
            let listed = wire::pages(limit, async |page_size, page_token| {
                let request = ListRulesRequest { page_size, page_token };
                let page = client.list_rules(call(request)).await?.into_inner();
                Ok((page.rules, page.next_page_token))
            })
            .await?;
            session.show(&list(&listed.items, listed.more, session.now())?)?;
            wire::remark_more(session, listed.more);
        }
        RuleVerb::Show { name } => {
            let answer = client.get_rule(call(GetRuleRequest { name: name.into() })).await?.into_inner();
            session.show(&one(&wire::promised(answer.rule, "the rule")?, session.now())?)?;
        }
        RuleVerb::Put(wish) => {
            let mut changes = Vec::new();
            for rule in wanted {
                let name = rule.name.clone();
                let request = PutRuleRequest {
                    rule: Some(rule),
                    dry_run: !wish.confirmation.yes,
                    expected_version: wish.confirmation.expect_version,
                };
                let answer = client.put_rule(call(request)).await?.into_inner();
                changes.push(change(name, "put", answer.applied, &answer.diff.unwrap_or_default()));
            }
            conclude(&changes, session)?;
        }
        RuleVerb::Delete { name, confirmation } => {
            let request = DeleteRuleRequest {
                name: name.to_string(),
                dry_run: !confirmation.yes,
                expected_version: confirmation.expect_version,
            };
            let answer = client.delete_rule(call(request)).await?.into_inner();
            let change = change(name.into(), "delete", answer.applied, &answer.diff.unwrap_or_default());
            conclude(&[change], session)?;
        }
    }
    Ok(Exit::Done)
}

fn rules_of(wish: &PutRule) -> Result<Vec<GrantRule>, Failure> {
    let documents = match (&wish.file, &wish.name, &wish.grant) {
        (Some(path), _, _) => rule_file::parse(path, &files::read_limited(path, rule_file::FILE_LIMIT)?)?,
        (None, Some(name), Some(identity)) => vec![RuleDocument {
            name: name.clone(),
            when: conditions(&wish.when),
            identity: identity.clone(),
            ttl: wish.ttl,
            dns_names: wish.dns_names.clone(),
            federates_with: wish.federates_with.clone(),
            comment: wish.comment.clone(),
        }],
        (None, _, _) => {
            return Err(Failure::usage("give a rule file, or --name, --when and --grant"));
        }
    };
    if documents.len() > 1 && wish.confirmation.expect_version.is_some() {
        return Err(Failure::usage("--expect-version goes with one rule, and the file has several"));
    }
    Ok(documents.into_iter().map(GrantRule::from).collect())
}

fn conditions(when: &[AttributeArgument]) -> BTreeMap<String, Values> {
    let mut several: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for condition in when {
        several.entry(condition.name().to_owned()).or_default().push(condition.value().to_owned());
    }
    several.into_iter().map(|(name, values)| (name, Values::Several(values))).collect()
}

#[derive(Serialize)]
struct StoredRow {
    rule: RuleRow,
    version: u64,
    changed_at: Option<Timestamp>,
    changed_by: Option<String>,
    built_in: bool,
}

impl From<&StoredRule> for StoredRow {
    fn from(stored: &StoredRule) -> Self {
        Self {
            rule: stored.rule.clone().unwrap_or_default().into(),
            version: stored.version,
            changed_at: wire::instant(stored.changed_at.as_ref()),
            changed_by: wire::text(stored.changed_by.clone()),
            built_in: stored.built_in,
        }
    }
}

/// The rule in the form that `rule put` reads; unlike [`RuleDocument`] it shows whatever the server sent.
#[derive(Serialize)]
struct RuleRow {
    name: String,
    when: BTreeMap<String, Vec<String>>,
    identity: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl: Option<Ttl>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    dns_names: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    federates_with: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    comment: Option<String>,
}

impl From<GrantRule> for RuleRow {
    fn from(rule: GrantRule) -> Self {
        let conditions = rule.conditions.into_iter();
        Self {
            name: rule.name,
            when: conditions.map(|condition| (condition.attribute, condition.values)).collect(),
            identity: rule.identity,
            ttl: Ttl::from_seconds(rule.ttl_seconds).ok(),
            dns_names: rule.dns_names,
            federates_with: rule.federates_with,
            comment: wire::text(rule.comment),
        }
    }
}

fn when(rule: &GrantRule) -> String {
    let conditions: Vec<String> = rule
        .conditions
        .iter()
        .map(|condition| format!("{}={}", condition.attribute, condition.values.join("|")))
        .collect();
    conditions.join(" ")
}

fn lifetime(rule: &GrantRule) -> String {
    Ttl::from_seconds(rule.ttl_seconds).map_or_else(|_none| String::new(), |ttl| ttl.to_string())
}

fn list(rules: &[StoredRule], more: bool, now: Timestamp) -> Result<View, Failure> {
    let rows: Vec<StoredRow> = rules.iter().map(StoredRow::from).collect();
    let cells = rules.iter().map(|stored| {
        let rule = stored.rule.clone().unwrap_or_default();
        vec![
            rule.name.clone(),
            when(&rule),
            rule.identity.clone(),
            or_dash(&lifetime(&rule)),
            stored.version.to_string(),
            relative(wire::instant(stored.changed_at.as_ref()), now),
        ]
    });
    let heading = ["NAME", "WHEN", "IDENTITY", "TTL", "VERSION", "CHANGED"];
    let text = table(&heading, cells, "no rules: nobody gets a certificate; `rhizome rule put` makes one");
    View::list("rules", &rows, more, text)
}

fn one(stored: &StoredRule, now: Timestamp) -> Result<View, Failure> {
    let rule = stored.rule.clone().unwrap_or_default();
    let row = StoredRow::from(stored);
    let text = details([
        ("name", rule.name.clone()),
        ("when", when(&rule)),
        ("identity", rule.identity.clone()),
        ("ttl", lifetime(&rule)),
        ("dns names", rule.dns_names.join(" ")),
        ("federates with", rule.federates_with.join(" ")),
        ("comment", rule.comment.clone()),
        ("version", row.version.to_string()),
        ("built in", if row.built_in { "yes".to_owned() } else { String::new() }),
        ("changed", instant_with_distance(row.changed_at, now)),
        ("changed by", row.changed_by.clone().unwrap_or_default()),
    ]);
    View::new(&row, text)
}

#[derive(Serialize)]
struct Change {
    name: String,
    action: &'static str,
    applied: bool,
    examined: u64,
    truncated: bool,
    gains: Vec<ChangeRow>,
    losses: Vec<ChangeRow>,
    changes: Vec<ChangeRow>,
}

#[derive(Serialize)]
struct ChangeRow {
    attributes: Vec<AttributeRow>,
    before: Option<String>,
    after: Option<String>,
    #[serde(skip)]
    workload: String,
}

impl From<&IdentityChange> for ChangeRow {
    fn from(change: &IdentityChange) -> Self {
        Self {
            workload: wire::attributes(&change.attributes),
            attributes: change.attributes.iter().cloned().map(AttributeRow::from).collect(),
            before: wire::text(change.before.clone()),
            after: wire::text(change.after.clone()),
        }
    }
}

fn change(name: String, action: &'static str, applied: bool, diff: &RuleDiff) -> Change {
    let rows = |changes: &[IdentityChange]| changes.iter().map(ChangeRow::from).collect();
    Change {
        name,
        action,
        applied,
        examined: diff.examined,
        truncated: diff.truncated,
        gains: rows(&diff.gains),
        losses: rows(&diff.losses),
        changes: rows(&diff.changes),
    }
}

fn conclude(changes: &[Change], session: &mut Session<'_, '_>) -> Result<(), Failure> {
    let texts: Vec<String> = changes.iter().map(difference).collect();
    session.show(&View::new(&json!({ "rules": changes }), texts.join("\n"))?)?;
    if changes.iter().any(|change| !change.applied) {
        session.remark("nothing was changed; repeat with --yes to apply");
    }
    Ok(())
}

/// Who gains and who loses, one workload a line, like a patch.
fn difference(change: &Change) -> String {
    let verb = match (change.action, change.applied) {
        ("delete", true) => "deleted",
        ("delete", false) => "would delete",
        (_, true) => "put",
        (_, false) => "would put",
    };
    let mut text = format!(
        "{verb} rule {}: {} gain, {} lose, {} change, of {} known workloads\n",
        printable(&change.name),
        change.gains.len(),
        change.losses.len(),
        change.changes.len(),
        change.examined
    );
    for (mark, rows) in [("+", &change.gains), ("-", &change.losses), ("~", &change.changes)] {
        for row in rows {
            let identities = match (&row.before, &row.after) {
                (None, Some(after)) => after.clone(),
                (Some(before), None) => before.clone(),
                (Some(before), Some(after)) => format!("{before} → {after}"),
                (None, None) => String::new(),
            };
            text.push_str(&format!("  {mark} {}  ({})\n", printable(&identities), printable(&row.workload)));
        }
    }
    if change.truncated {
        text.push_str("  … and more; only the first 1000 of each are listed\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use rhizome_proto::ca::v1::{Attribute, Condition};

    use super::*;

    fn diff() -> RuleDiff {
        let workload = |before: &str, after: &str| IdentityChange {
            attributes: vec![Attribute { name: "namespace".into(), value: "shop".into() }],
            before: before.into(),
            after: after.into(),
        };
        RuleDiff {
            gains: vec![workload("", "spiffe://td/new")],
            losses: vec![workload("spiffe://td/old", "")],
            changes: vec![workload("spiffe://td/a", "spiffe://td/b")],
            examined: 40,
            truncated: false,
        }
    }

    #[test]
    fn a_difference_reads_like_a_patch() {
        assert_eq!(
            difference(&change("web".into(), "put", false, &diff())),
            "would put rule web: 1 gain, 1 lose, 1 change, of 40 known workloads\n  \
             + spiffe://td/new  (namespace=shop)\n  \
             - spiffe://td/old  (namespace=shop)\n  \
             ~ spiffe://td/a → spiffe://td/b  (namespace=shop)\n"
        );
        assert!(difference(&change("web".into(), "delete", true, &diff())).starts_with("deleted rule web"));
    }

    #[test]
    fn what_is_shown_as_json_can_be_put_again() {
        let rule = GrantRule {
            name: "web".into(),
            conditions: vec![Condition { attribute: "namespace".into(), values: vec!["*".into()] }],
            identity: "/ns/{namespace}".into(),
            ttl_seconds: 60,
            dns_names: vec![],
            federates_with: vec!["other.example".into()],
            comment: "c".into(),
        };
        let text = serde_json::to_string(&RuleRow::from(rule.clone())).unwrap();
        let back: Vec<GrantRule> = rule_file::parse("rule.yaml".as_ref(), text.as_bytes())
            .unwrap()
            .into_iter()
            .map(GrantRule::from)
            .collect();
        assert_eq!(back, [rule]);
    }

    #[test]
    fn repeated_conditions_on_one_attribute_are_alternatives() {
        let when: Vec<AttributeArgument> =
            ["namespace=a", "cluster=c", "namespace=b"].iter().map(|text| text.parse().unwrap()).collect();
        let conditions = conditions(&when);
        assert_eq!(conditions["namespace"], Values::Several(vec!["a".into(), "b".into()]));
        assert_eq!(conditions.len(), 2);
    }
}
