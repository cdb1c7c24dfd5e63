//! Rules in files: YAML or JSON, one rule or a list of them.
//!
//! Laws: unknown fields are refused, so that a misspelt condition never widens a rule; the same form goes out
//! (`rule show --output json`) and comes in (`rule put`). Not here: whether a rule makes sense, which the server says.

use std::collections::BTreeMap;
use std::path::Path;

use rhizome_id::{RuleName, TrustDomain, Ttl};
use rhizome_proto::ca::v1::{Condition, GrantRule};
use serde::{Deserialize, Serialize};

use crate::exit::Failure;

/// Largest file read, in bytes; a rule takes some 300.
pub(crate) const FILE_LIMIT: u64 = 1024 * 1024;

/// A rule as people write it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RuleDocument {
    pub(crate) name: RuleName,
    /// Attribute to the values that it may have.
    pub(crate) when: BTreeMap<String, Values>,
    pub(crate) identity: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ttl: Option<Ttl>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) dns_names: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) federates_with: Vec<TrustDomain>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) comment: Option<String>,
}

/// One value or several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Values {
    One(String),
    Several(Vec<String>),
}

/// Reads one rule or a list of rules from the content of the file called `name`.
///
/// # Errors
/// [`Failure`] with the place of the fault.
pub(crate) fn parse(name: &Path, bytes: &[u8]) -> Result<Vec<RuleDocument>, Failure> {
    let text = std::str::from_utf8(bytes)
        .map_err(|error| Failure::usage(format!("{} is not UTF-8: {error}", name.display())))?;
    // Asked for by its form, because an untagged choice would swallow the place of the fault.
    let read = if is_list(text) {
        serde_saphyr::from_str::<Vec<RuleDocument>>(text)
    } else {
        serde_saphyr::from_str::<RuleDocument>(text).map(|rule| vec![rule])
    };
    let rules = read.map_err(|error| malformed(name, &error))?;
    if rules.is_empty() {
        return Err(Failure::usage(format!("{} has no rule in it", name.display())));
    }
    Ok(rules)
}

/// Whether the first line with content begins a list, in YAML or JSON.
fn is_list(text: &str) -> bool {
    text.lines()
        .map(str::trim_start)
        .find(|line| !line.is_empty() && !line.starts_with('#') && !line.starts_with("---"))
        .is_some_and(|line| line.starts_with('[') || line.starts_with('-'))
}

fn malformed(name: &Path, error: &dyn std::fmt::Display) -> Failure {
    Failure::usage(format!("the rule file {}: {error}", name.display()))
        .hint("a rule has name, when (attribute: value or list of values), identity, and may have ttl, dns_names, federates_with, comment")
}

impl From<RuleDocument> for GrantRule {
    fn from(document: RuleDocument) -> Self {
        let conditions = document.when.into_iter().map(|(attribute, values)| Condition {
            attribute,
            values: match values {
                Values::One(value) => vec![value],
                Values::Several(values) => values,
            },
        });
        Self {
            name: document.name.into(),
            conditions: conditions.collect(),
            identity: document.identity,
            ttl_seconds: document.ttl.map_or(0, Ttl::seconds),
            dns_names: document.dns_names,
            federates_with: document.federates_with.into_iter().map(String::from).collect(),
            comment: document.comment.unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const YAML: &str = "\
# web servers
name: web
when:
  namespace: shop
  service_account: [web, web-canary]
identity: /ns/{namespace}/sa/web
ttl: 2h
dns_names: ['web.{namespace}.svc']
federates_with: [partner.example]
comment: \"the shop's front\"
";

    fn web() -> GrantRule {
        let condition = |attribute: &str, values: &[&str]| Condition {
            attribute: attribute.to_owned(),
            values: values.iter().map(|value| (*value).to_owned()).collect(),
        };
        GrantRule {
            name: "web".into(),
            conditions: vec![
                condition("namespace", &["shop"]),
                condition("service_account", &["web", "web-canary"]),
            ],
            identity: "/ns/{namespace}/sa/web".into(),
            ttl_seconds: 7200,
            dns_names: vec!["web.{namespace}.svc".into()],
            federates_with: vec!["partner.example".into()],
            comment: "the shop's front".into(),
        }
    }

    fn rules(text: &str) -> Vec<GrantRule> {
        parse(Path::new("rule.yaml"), text.as_bytes()).unwrap().into_iter().map(GrantRule::from).collect()
    }

    #[test]
    fn a_rule_reads_from_yaml_and_from_json() {
        assert_eq!(rules(YAML), [web()]);
        let json =
            serde_json::to_string(&parse(Path::new("rule.yaml"), YAML.as_bytes()).unwrap()[0]).unwrap();
        assert_eq!(rules(&json), [web()]);
    }

    #[test]
    fn a_list_of_rules_reads_too() {
        let list: String = YAML
            .lines()
            .enumerate()
            .map(|(at, line)| format!("{}{line}\n", if at == 1 { "- " } else { "  " }))
            .collect();
        assert_eq!(rules(&list), [web()]);
        let json = serde_json::to_string(&parse(Path::new("rule.yaml"), YAML.as_bytes()).unwrap()).unwrap();
        assert_eq!(rules(&json), [web()]);
    }

    #[test]
    fn a_misspelt_field_is_refused_and_named() {
        for text in [
            YAML.replace("federates_with", "federates"),
            format!(
                "- {}",
                YAML.replace("# web servers\n", "").replace('\n', "\n  ").replace("ttl:", "tll:")
            ),
        ] {
            let failure = parse(Path::new("rule.yaml"), text.as_bytes()).unwrap_err();
            assert!(
                failure.message().contains("federates") || failure.message().contains("tll"),
                "{failure}"
            );
            assert!(failure.message().contains("rule.yaml"), "{failure}");
        }
    }

    #[test]
    fn a_file_without_rules_is_refused() {
        for text in ["", "[]", "name: x", "when: {}", "- \n", "\u{0}"] {
            assert!(parse(Path::new("rule.yaml"), text.as_bytes()).is_err(), "{text:?}");
        }
        assert!(parse(Path::new("rule.yaml"), b"\xff").is_err());
    }
}
