//! A section: one mapping of the configuration, read field by field while faults are collected.
//!
//! Laws: the schema is the code that reads it: a field that was never asked for is unknown, and is reported with the
//! nearest name that was. A faulty field yields [`Field::Faulty`] and reading goes on, so one reading finds every
//! fault. Not here: which fields there are (`schema`), what their values mean (`values`).

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::faults::{Fault, Faults, Position, quoted};
use super::tree::{Entry, Kind, Node};

/// Longest unknown name for which a known one is looked up; no known name is longer than 30.
const MAX_SUGGESTED: usize = 64;

/// Why a value is refused: the problem and the remedy.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) problem: String,
    pub(super) remedy: String,
}

impl Refusal {
    pub(super) fn new(problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { problem: problem.into(), remedy: remedy.into() }
    }
}

/// What reading one field gave.
#[derive(Debug)]
pub(super) enum Field<T> {
    /// It is not in the file.
    Absent,
    /// It is, and a fault was reported.
    Faulty,
    /// It is, and means this.
    Given(T, Position),
}

impl<T> Field<T> {
    /// The value, or `default` (also for a faulty field: the faults keep it from being used).
    pub(super) fn or(self, default: T) -> T {
        self.given().unwrap_or(default)
    }

    /// The value, if there is one.
    pub(super) fn given(self) -> Option<T> {
        match self {
            Self::Given(value, _) => Some(value),
            Self::Absent | Self::Faulty => None,
        }
    }

    /// Where the value stands, if there is one.
    pub(super) const fn position(&self) -> Option<Position> {
        match self {
            Self::Given(_, at) => Some(*at),
            Self::Absent | Self::Faulty => None,
        }
    }

    pub(super) const fn is_faulty(&self) -> bool {
        matches!(self, Self::Faulty)
    }

    pub(super) const fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }
}

/// A scalar as a value reader sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scalar<'n> {
    pub(super) text: &'n str,
    pub(super) plain: bool,
}

/// One mapping, and the faults it shares with all others.
pub(super) struct Section<'n> {
    path: String,
    at: Position,
    entries: BTreeMap<&'n str, &'n Entry>,
    known: Vec<&'static str>,
    faults: &'n RefCell<Faults>,
}

impl<'n> Section<'n> {
    /// The whole file as a section; `None` (nothing written) is an empty one.
    pub(super) fn root(node: Option<&'n Node>, faults: &'n RefCell<Faults>) -> Self {
        let mut section = Self::empty(String::new(), Position::START, faults);
        if let Some(node) = node {
            section.fill(node);
        }
        section
    }

    fn empty(path: String, at: Position, faults: &'n RefCell<Faults>) -> Self {
        Self { path, at, entries: BTreeMap::new(), known: Vec::new(), faults }
    }

    fn fill(&mut self, node: &'n Node) {
        match &node.kind {
            Kind::Map(entries) => {
                self.entries = entries.iter().map(|entry| (entry.name.as_str(), entry)).collect();
            }
            Kind::Broken => {}
            Kind::Scalar { .. } if node.is_null() => {}
            Kind::Scalar { .. } | Kind::List(_) => {
                let what = kind_of(node);
                let refusal =
                    Refusal::new(format!("fields belong here, not {what}"), "write `name: value` lines");
                self.refuse(node.at, self.path.clone(), refusal);
            }
        }
    }

    /// The section called `name`; an empty one when it is absent.
    pub(super) fn section(&mut self, name: &'static str) -> Self {
        let path = self.path_of(name);
        match self.entry(name) {
            None => Self::empty(path, self.at, self.faults),
            Some(entry) => {
                let mut section = Self::empty(path, entry.at, self.faults);
                section.fill(&entry.value);
                section
            }
        }
    }

    /// One value.
    pub(super) fn value<T>(
        &mut self,
        name: &'static str,
        read: impl Fn(Scalar<'_>) -> Result<T, Refusal>,
    ) -> Field<T> {
        match self.entry(name) {
            None => Field::Absent,
            Some(entry) => self.scalar(&self.path_of(name), &entry.value, read),
        }
    }

    /// One value that must be there.
    pub(super) fn required<T>(
        &mut self,
        name: &'static str,
        remedy: &str,
        read: impl Fn(Scalar<'_>) -> Result<T, Refusal>,
    ) -> Field<T> {
        let field = self.value(name, read);
        if field.is_absent() {
            self.refuse(self.at, self.path_of(name), Refusal::new("required, but not given", remedy));
            return Field::Faulty;
        }
        field
    }

    /// A list of values, at most `limit`; nothing written counts as absent.
    pub(super) fn list<T>(
        &mut self,
        name: &'static str,
        limit: usize,
        read: impl Fn(Scalar<'_>) -> Result<T, Refusal>,
    ) -> Field<Vec<T>> {
        let Some(entry) = self.entry(name) else {
            return Field::Absent;
        };
        let path = self.path_of(name);
        let nodes = match &entry.value.kind {
            Kind::List(nodes) => nodes,
            Kind::Broken => return Field::Faulty,
            Kind::Scalar { .. } if entry.value.is_null() => return Field::Absent,
            Kind::Scalar { .. } | Kind::Map(_) => {
                let what = kind_of(&entry.value);
                self.refuse(
                    entry.value.at,
                    path,
                    Refusal::new(format!("a list belongs here, not {what}"), "write [a, b]"),
                );
                return Field::Faulty;
            }
        };
        if nodes.len() > limit {
            let refusal =
                Refusal::new(format!("{} values; the limit is {limit}", nodes.len()), "shorten the list");
            self.refuse(entry.value.at, path, refusal);
            return Field::Faulty;
        }
        let items =
            nodes.iter().enumerate().map(|(at, node)| self.scalar(&format!("{path}[{at}]"), node, &read));
        gather(items, entry.value.at)
    }

    /// A mapping whose names are values too, at most `limit` of them; nothing written counts as absent.
    pub(super) fn pairs<K, V>(
        &mut self,
        name: &'static str,
        limit: usize,
        read_key: impl Fn(Scalar<'_>) -> Result<K, Refusal>,
        read_value: impl Fn(Scalar<'_>) -> Result<V, Refusal>,
    ) -> Field<Vec<(K, V)>> {
        let Some(entry) = self.entry(name) else {
            return Field::Absent;
        };
        let path = self.path_of(name);
        let entries = match &entry.value.kind {
            Kind::Map(entries) => entries,
            Kind::Broken => return Field::Faulty,
            Kind::Scalar { .. } if entry.value.is_null() => return Field::Absent,
            Kind::Scalar { .. } | Kind::List(_) => {
                let problem = format!("`name: value` pairs belong here, not {}", kind_of(&entry.value));
                self.refuse(entry.value.at, path, Refusal::new(problem, "write {name: value}"));
                return Field::Faulty;
            }
        };
        if entries.len() > limit {
            let refusal =
                Refusal::new(format!("{} pairs; the limit is {limit}", entries.len()), "shorten the list");
            self.refuse(entry.value.at, path, refusal);
            return Field::Faulty;
        }
        let items = entries.iter().map(|pair| {
            let path = format!("{path}.{}", quoted(&pair.name).trim_matches('`'));
            let key = match read_key(Scalar { text: &pair.name, plain: true }) {
                Ok(key) => Some(key),
                Err(refusal) => {
                    self.refuse(pair.at, path.clone(), refusal);
                    None
                }
            };
            match (key, self.scalar(&path, &pair.value, &read_value)) {
                (Some(key), Field::Given(value, at)) => Field::Given((key, value), at),
                (_, Field::Given(..) | Field::Absent | Field::Faulty) => Field::Faulty,
            }
        });
        gather(items, entry.value.at)
    }

    /// Reports a fault of field `name` (of the section itself when it is empty), at `at` or, when that is unknown, at the section.
    pub(super) fn fault(&self, name: &str, at: Option<Position>, refusal: Refusal) {
        self.refuse(at.unwrap_or(self.at), self.path_of(name), refusal);
    }

    /// Reports every field that nobody asked for.
    pub(super) fn finish(self) {
        for (name, entry) in &self.entries {
            if self.known.contains(name) {
                continue;
            }
            let remedy = match nearest(name, &self.known) {
                Some(known) => format!("did you mean `{known}`?"),
                None => format!("known here: {}", self.known.join(", ")),
            };
            self.refuse(
                entry.at,
                self.path_of(quoted(name).trim_matches('`')),
                Refusal::new("unknown field", remedy),
            );
        }
    }

    fn entry(&mut self, name: &'static str) -> Option<&'n Entry> {
        self.known.push(name);
        self.entries.get(name).copied()
    }

    fn scalar<T>(
        &self,
        path: &str,
        node: &Node,
        read: impl Fn(Scalar<'_>) -> Result<T, Refusal>,
    ) -> Field<T> {
        let outcome = match &node.kind {
            Kind::Broken => return Field::Faulty,
            Kind::Scalar { .. } if node.is_null() => {
                Err(Refusal::new("no value is given", "write one, or remove the field"))
            }
            Kind::Scalar { text, plain } => read(Scalar { text, plain: *plain }),
            Kind::List(_) | Kind::Map(_) => Err(Refusal::new(
                format!("one value belongs here, not {}", kind_of(node)),
                "write a single value",
            )),
        };
        match outcome {
            Ok(value) => Field::Given(value, node.at),
            Err(refusal) => {
                self.refuse(node.at, path.to_owned(), refusal);
                Field::Faulty
            }
        }
    }

    fn path_of(&self, name: &str) -> String {
        match (self.path.as_str(), name) {
            ("", name) => name.to_owned(),
            (path, "") => path.to_owned(),
            (path, name) => format!("{path}.{name}"),
        }
    }

    fn refuse(&self, at: Position, path: String, refusal: Refusal) {
        let Refusal { problem, remedy } = refusal;
        self.faults.borrow_mut().add(Fault { at, path, problem, remedy });
    }
}

/// All values, or faulty when one is; every item is read either way.
fn gather<T>(items: impl Iterator<Item = Field<T>>, at: Position) -> Field<Vec<T>> {
    let mut values = Vec::new();
    let mut faulty = false;
    for item in items {
        match item {
            Field::Given(value, _) => values.push(value),
            Field::Absent | Field::Faulty => faulty = true,
        }
    }
    if faulty { Field::Faulty } else { Field::Given(values, at) }
}

fn kind_of(node: &Node) -> &'static str {
    match node.kind {
        Kind::Scalar { .. } => "a single value",
        Kind::List(_) => "a list",
        Kind::Map(_) => "a mapping",
        Kind::Broken => "a fault",
    }
}

fn nearest(name: &str, known: &[&'static str]) -> Option<&'static str> {
    if name.len() > MAX_SUGGESTED {
        return None;
    }
    let close = |known: &&'static str| (strsim::damerau_levenshtein(name, known), *known);
    let (distance, nearest) = known.iter().map(close).min()?;
    let allowed = nearest.len().div_ceil(3).min(3);
    (distance <= allowed).then_some(nearest)
}
