//! Templates: how a rule turns attested values into a SPIFFE ID or a DNS name.
//!
//! Laws: a template is parsed once, into parts; a part holds at most one placeholder, and a value fills no more than
//! its part. So values cannot smuggle in a separator, and two different sets of values never give the same name.
//! `/rhizome` and `/spire` are refused here where the template spells them, and by `policy` where a value does.
//! Not here: which rule applies (`rules`), who may have the result (`policy`).
//! Sources: ca/docs/ARCHITECTURE.md §3; SPIFFE-ID §2.2; CVE-2021-27099 (path templates); RFC 1123 §2.1.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use rhizome_id::{SpiffeId, SpiffeIdError, TrustDomain};
use serde::{Deserialize, Serialize};

use crate::attributes::{AttributeError, AttributeName, Attributes};
use crate::limits::TEMPLATE_BYTES;

/// First path segments that no rule may grant: `rhizome` is the authority's own (ca/docs/ARCHITECTURE.md §3), `spire` is
/// what deployed agents and policies know as the control plane's.
pub const RESERVED_SEGMENTS: [&str; 2] = ["rhizome", "spire"];

/// Whether `id` lies under a reserved path.
pub fn is_reserved(id: &SpiffeId) -> bool {
    id.segments().next().is_some_and(|first| RESERVED_SEGMENTS.contains(&first))
}

/// Why a template was refused, or could not be filled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// No leading slash, an empty part, a dot part or nothing at all.
    #[error("`{template}` is not a path template; write it as `/ns/{{namespace}}/sa/{{service_account}}`")]
    NotAPath {
        /// The template.
        template: String,
    },
    /// An empty label or a hyphen at a label's edge.
    #[error("`{template}` is not a DNS name template; write it as `{{service_account}}.{{namespace}}.svc`")]
    NotADnsName {
        /// The template.
        template: String,
    },
    /// Longer than the limit.
    #[error("the template has {bytes} bytes; the limit is 1024")]
    TooLong {
        /// Bytes found.
        bytes: usize,
    },
    /// A byte that neither the grammar nor a placeholder allows.
    #[error(
        "the template holds byte 0x{byte:02x} outside its placeholders, which the name's grammar does not allow"
    )]
    BadByte {
        /// The offending byte.
        byte: u8,
    },
    /// A `{` without `}`, or the reverse.
    #[error("the template has an unmatched brace")]
    Brace,
    /// Two placeholders without a separator between them.
    #[error(
        "a part of the template holds two placeholders; put a separator between them, or different values could give \
         the same name"
    )]
    TwoPlaceholders,
    /// The placeholder names no attribute.
    #[error(transparent)]
    Placeholder(#[from] AttributeError),
    /// The template spells a reserved path.
    #[error("paths below /{segment} are reserved for the authority itself")]
    Reserved {
        /// The first segment.
        segment: &'static str,
    },
    /// The attribute has no value.
    #[error("the template needs attribute {attribute}, which is not attested")]
    Missing {
        /// Which attribute.
        attribute: AttributeName,
    },
    /// The attribute has several values, so the name would be a guess.
    #[error("the template needs one value of attribute {attribute}, but several are attested")]
    Several {
        /// Which attribute.
        attribute: AttributeName,
    },
    /// The value does not fit into a path segment.
    #[error("attribute {attribute} does not fit into a SPIFFE path segment: {source}")]
    Value {
        /// Which attribute.
        attribute: AttributeName,
        /// What is wrong with the segment.
        source: SpiffeIdError,
    },
    /// The value is no DNS label.
    #[error("attribute {attribute} does not fit into a DNS label: 1 to 63 of a-z, 0-9 and inner '-'")]
    Label {
        /// Which attribute.
        attribute: AttributeName,
    },
    /// All parts together exceed the limit of the name.
    #[error("the filled template is too long: {0}")]
    Filled(SpiffeIdError),
}

/// A path template of a SPIFFE ID, such as `/ns/{namespace}/sa/{service_account}`. Serialised as its text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Template(Vec<Part>);

/// A template of a DNS name, such as `{service_account}.{namespace}.svc`. Serialised as its text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DnsTemplate(Vec<Part>);

/// What stands between two separators: literal text around at most one placeholder.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Part {
    before: String,
    placeholder: Option<AttributeName>,
    after: String,
}

impl Template {
    /// Fills the template for `domain`.
    ///
    /// # Errors
    /// [`TemplateError`] when an attribute is missing, has several values, or does not fit into a path segment.
    pub fn expand(&self, domain: &TrustDomain, attributes: &Attributes) -> Result<SpiffeId, TemplateError> {
        let mut segments = Vec::with_capacity(self.0.len());
        for part in &self.0 {
            let segment = part.fill(attributes)?;
            if let Some(attribute) = &part.placeholder {
                // Alone first, so that the refusal names the attribute.
                SpiffeId::check_segment(&segment)
                    .map_err(|source| TemplateError::Value { attribute: attribute.clone(), source })?;
            }
            segments.push(segment);
        }
        SpiffeId::from_segments(domain, segments.iter().map(AsRef::as_ref)).map_err(TemplateError::Filled)
    }

    /// The attributes it needs, in the order of the text.
    pub fn placeholders(&self) -> impl Iterator<Item = &AttributeName> {
        self.0.iter().filter_map(|part| part.placeholder.as_ref())
    }
}

impl DnsTemplate {
    /// Fills the template; the result consists of valid DNS labels.
    ///
    /// # Errors
    /// [`TemplateError`] when an attribute is missing, has several values, or does not fit into a DNS label. A value
    /// with a dot never fits: it could move the border between two parts.
    pub fn expand(&self, attributes: &Attributes) -> Result<String, TemplateError> {
        let mut labels = Vec::with_capacity(self.0.len());
        for part in &self.0 {
            let label = part.fill(attributes)?;
            if let Some(attribute) = &part.placeholder
                && !is_dns_label(&label)
            {
                return Err(TemplateError::Label { attribute: attribute.clone() });
            }
            labels.push(label);
        }
        Ok(labels.join("."))
    }

    /// The attributes it needs, in the order of the text.
    pub fn placeholders(&self) -> impl Iterator<Item = &AttributeName> {
        self.0.iter().filter_map(|part| part.placeholder.as_ref())
    }
}

impl Part {
    fn parse(text: &str, allowed: fn(u8) -> bool) -> Result<Self, TemplateError> {
        let (before, placeholder, after) = match text.split_once('{') {
            None => (text, None, ""),
            Some((before, rest)) => {
                let (name, after) = rest.split_once('}').ok_or(TemplateError::Brace)?;
                if after.contains('{') {
                    return Err(TemplateError::TwoPlaceholders);
                }
                (before, Some(name.parse()?), after)
            }
        };
        for byte in before.bytes().chain(after.bytes()) {
            match byte {
                b'{' | b'}' => return Err(TemplateError::Brace),
                byte if !allowed(byte) => return Err(TemplateError::BadByte { byte }),
                _ => {}
            }
        }
        Ok(Self { before: before.to_owned(), placeholder, after: after.to_owned() })
    }

    /// The filled part; borrowed when it is a literal or nothing but a value.
    fn fill<'a>(&'a self, attributes: &'a Attributes) -> Result<Cow<'a, str>, TemplateError> {
        let value = match &self.placeholder {
            None => "",
            Some(name) => match attributes.single(name) {
                Some(value) => value,
                None if attributes.has(name) => {
                    return Err(TemplateError::Several { attribute: name.clone() });
                }
                None => {
                    return Err(TemplateError::Missing { attribute: name.clone() });
                }
            },
        };
        Ok(match (self.before.as_str(), value, self.after.as_str()) {
            ("", alone, "") | (alone, "", "") => Cow::Borrowed(alone),
            parts => Cow::Owned([parts.0, parts.1, parts.2].concat()),
        })
    }

    /// The text, when there is no placeholder.
    fn literal(&self) -> Option<&str> {
        self.placeholder.is_none().then_some(self.before.as_str())
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.placeholder {
            None => f.write_str(&self.before),
            Some(name) => write!(f, "{}{{{name}}}{}", self.before, self.after),
        }
    }
}

/// Splits at `separator` outside braces: a label's key may hold both separators.
fn split_outside_braces(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let mut inside = false;
    text.split(move |c: char| {
        match c {
            '{' => inside = true,
            '}' => inside = false,
            _ => {}
        }
        c == separator && !inside
    })
}

fn parse_parts(text: &str, separator: char, allowed: fn(u8) -> bool) -> Result<Vec<Part>, TemplateError> {
    split_outside_braces(text, separator).map(|part| Part::parse(part, allowed)).collect()
}

const fn is_path_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')
}

const fn is_dns_byte(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-'
}

fn is_dns_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && label.bytes().all(is_dns_byte)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

impl FromStr for Template {
    type Err = TemplateError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > TEMPLATE_BYTES {
            return Err(TemplateError::TooLong { bytes: text.len() });
        }
        let not_a_path = || TemplateError::NotAPath { template: text.to_owned() };
        let path = text.strip_prefix('/').ok_or_else(not_a_path)?;
        let parts = parse_parts(path, '/', is_path_byte)?;
        if parts.iter().filter_map(Part::literal).any(|segment| matches!(segment, "" | "." | "..")) {
            return Err(not_a_path());
        }
        let first = parts.first().and_then(Part::literal);
        match RESERVED_SEGMENTS.into_iter().find(|reserved| first == Some(*reserved)) {
            Some(segment) => Err(TemplateError::Reserved { segment }),
            None => Ok(Self(parts)),
        }
    }
}

impl FromStr for DnsTemplate {
    type Err = TemplateError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > TEMPLATE_BYTES {
            return Err(TemplateError::TooLong { bytes: text.len() });
        }
        let parts = parse_parts(text, '.', is_dns_byte)?;
        let bad_literal = parts.iter().filter_map(Part::literal).any(|label| !is_dns_label(label));
        let bad_edge = |part: &Part| part.before.starts_with('-') || part.after.ends_with('-');
        if bad_literal || parts.iter().any(bad_edge) {
            return Err(TemplateError::NotADnsName { template: text.to_owned() });
        }
        Ok(Self(parts))
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|part| write!(f, "/{part}"))
    }
}

impl fmt::Display for DnsTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, part) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str(".")?;
            }
            part.fmt(f)?;
        }
        Ok(())
    }
}

macro_rules! text_conversions {
    ($($name:ident)*) => {$(
        impl TryFrom<String> for $name {
            type Error = TemplateError;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(template: $name) -> Self {
                template.to_string()
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }
    )*};
}

text_conversions! { Template DnsTemplate }

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn domain() -> TrustDomain {
        "example.org".parse().unwrap()
    }

    fn workload(namespace: &str, account: &str) -> Attributes {
        Attributes::from_pairs([
            (AttributeName::Namespace, namespace),
            (AttributeName::ServiceAccount, account),
        ])
        .unwrap()
    }

    fn ns_sa() -> Template {
        "/ns/{namespace}/sa/{service_account}".parse().unwrap()
    }

    #[test]
    fn a_template_is_filled_with_attested_values() {
        let id = ns_sa().expand(&domain(), &workload("prod", "web.v2")).unwrap();
        assert_eq!(id.as_str(), "spiffe://example.org/ns/prod/sa/web.v2");
        let label: Template = "/app/x-{label.app.kubernetes.io/name}-y".parse().unwrap();
        let mut attributes = Attributes::new();
        attributes.insert("label.app.kubernetes.io/name".parse().unwrap(), "shop").unwrap();
        assert_eq!(label.expand(&domain(), &attributes).unwrap().path(), "/app/x-shop-y");
    }

    #[test]
    fn values_that_are_no_path_segment_are_refused_and_the_attribute_is_named() {
        for bad in [".", "..", "a/b", "a b", "a%2eb", "*", "[a]", "{namespace}", "a:b", "/"] {
            let error = ns_sa().expand(&domain(), &workload(bad, "web")).unwrap_err();
            assert!(
                matches!(&error, TemplateError::Value { attribute: AttributeName::Namespace, .. }),
                "{bad}: {error}"
            );
        }
    }

    #[test]
    fn a_literal_and_a_value_together_make_no_dot_segment() {
        let template: Template = "/a/.{pod}".parse().unwrap();
        let pod = |value| Attributes::from_pairs([(AttributeName::Pod, value)]).unwrap();
        assert!(template.expand(&domain(), &pod(".")).is_err());
        assert!(template.expand(&domain(), &pod("x")).is_ok());
    }

    #[test]
    fn a_missing_value_and_two_values_are_told_apart() {
        let mut attributes = workload("prod", "web");
        attributes.insert(AttributeName::Namespace, "dev").unwrap();
        assert_eq!(
            ns_sa().expand(&domain(), &attributes),
            Err(TemplateError::Several { attribute: AttributeName::Namespace })
        );
        assert_eq!(
            ns_sa().expand(&domain(), &Attributes::new()),
            Err(TemplateError::Missing { attribute: AttributeName::Namespace })
        );
    }

    #[test]
    fn malformed_path_templates_are_refused() {
        for bad in [
            "",
            "/",
            "ns/a",
            "/ns//a",
            "/ns/",
            "/ns/.",
            "/../a",
            "/a b",
            "/a/{",
            "/a/}",
            "/a/{pod",
            "/a/{{pod}}",
            "/a/{pod}{node}",
            "/a/{pod}-{node}",
            "/a/{nonsense}",
            "/a/{}",
            "/a/%2e",
            "/a/é",
            "/a/*",
            "/a/{pod}}",
        ] {
            assert!(bad.parse::<Template>().is_err(), "{bad:?}");
        }
        for two in ["/a/{pod}{node}", "/a/{pod}-{node}"] {
            assert_eq!(two.parse::<Template>(), Err(TemplateError::TwoPlaceholders), "{two}");
        }
        assert!("/a".repeat(512).parse::<Template>().is_ok());
        assert!(format!("{}a", "/a".repeat(512)).parse::<Template>().is_err());
    }

    #[test]
    fn reserved_paths_are_refused_where_the_template_spells_them() {
        for bad in ["/rhizome", "/rhizome/admin/{pod}", "/spire/agent", "/spire"] {
            assert!(matches!(bad.parse::<Template>(), Err(TemplateError::Reserved { .. })), "{bad}");
        }
        for good in ["/rhizomes/a", "/ns/rhizome", "/{pod}/a", "/x/spire"] {
            assert!(good.parse::<Template>().is_ok(), "{good}");
        }
    }

    #[test]
    fn a_dns_template_is_filled_label_by_label() {
        let template: DnsTemplate = "{service_account}.{namespace}.svc.example.org".parse().unwrap();
        assert_eq!(template.expand(&workload("prod", "web")).unwrap(), "web.prod.svc.example.org");
        for bad in ["web.v2", "Web", "-web", "web-", "w_b", "*", &"a".repeat(64)] {
            assert!(template.expand(&workload("prod", bad)).is_err(), "{bad}");
        }
        for bad in [
            "",
            ".",
            "a..b",
            "a.",
            "*.a",
            "A.b",
            "-a.b",
            "a-.b",
            "-{pod}.b",
            "{pod}-.b",
            "a_b",
            "{pod}{node}.a",
        ] {
            assert!(bad.parse::<DnsTemplate>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_dot_in_a_value_cannot_move_the_border_between_namespaces() {
        let template: DnsTemplate = "{service_account}.{namespace}.svc".parse().unwrap();
        assert!(template.expand(&workload("y.z", "x")).is_err());
        assert!(template.expand(&workload("z", "x.y")).is_err());
    }

    proptest! {
        #[test]
        fn a_template_prints_back_to_itself(text in "(/[a-z.-]{0,3}(\\{(namespace|pod|label\\.a/b)\\})?[a-z]{1,3}){1,5}") {
            let template: Template = text.parse().unwrap();
            prop_assert_eq!(template.to_string(), text);
        }

        #[test]
        fn no_text_makes_the_parsers_panic(text in "[/{}a-z._-]{0,40}|.{0,40}") {
            if let Ok(template) = text.parse::<Template>() {
                prop_assert_eq!(template.to_string().parse::<Template>().unwrap(), template);
            }
            if let Ok(template) = text.parse::<DnsTemplate>() {
                prop_assert_eq!(template.to_string().parse::<DnsTemplate>().unwrap(), template);
            }
        }

        #[test]
        fn different_values_never_give_the_same_identity(
            a in "[a-z./{-]{1,6}", b in "[a-z./{-]{1,6}", c in "[a-z./{-]{1,6}", d in "[a-z./{-]{1,6}",
        ) {
            let template: Template = "/{namespace}-x/x-{service_account}".parse().unwrap();
            let one = template.expand(&domain(), &workload(&a, &b));
            let two = template.expand(&domain(), &workload(&c, &d));
            if let (Ok(one), Ok(two)) = (one, two) {
                prop_assert_eq!(one == two, (a, b) == (c, d));
            }
        }
    }
}
