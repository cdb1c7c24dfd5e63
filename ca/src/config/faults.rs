//! Faults: what is wrong with a configuration file, where, and what to do about it.
//!
//! Laws: a fault has a place, a field, a problem and a remedy; faults come out in the order of the file; no more
//! than [`MAX_FAULTS`] are kept, because nobody reads more. A value that may be a secret is never quoted.
//! Not here: finding faults (`tree`, `section`, `schema`).

use std::fmt;

/// Faults kept and shown; one screen and a bit. The rest is counted.
pub const MAX_FAULTS: usize = 100;

/// Characters of a faulty value that are quoted back: enough to recognise it.
const MAX_QUOTED: usize = 40;

/// A place in the file: line and column, both counted from 1, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
}

impl Position {
    /// The first character of the file.
    pub const START: Self = Self { line: 1, column: 1 };

    /// The place just after `text`, when `text` is the beginning of the file.
    pub fn after(text: &str) -> Self {
        let line = text.matches('\n').count().saturating_add(1);
        let last = text.rsplit('\n').next().unwrap_or_default();
        Self { line, column: last.chars().count().saturating_add(1) }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where.
    pub at: Position,
    /// Which field, as a dotted path such as `policy.node_ttl`; empty for the file as a whole.
    pub path: String,
    /// What is wrong.
    pub problem: String,
    /// What to do.
    pub remedy: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, path, problem, remedy } = self;
        write!(f, "{at}: ")?;
        if !path.is_empty() {
            write!(f, "{path}: ")?;
        }
        write!(f, "{problem}; {remedy}")
    }
}

/// Everything found wrong in one reading of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    kept: Vec<Fault>,
    dropped: usize,
}

impl Faults {
    /// The faults in the order of the file, at most [`MAX_FAULTS`].
    pub fn iter(&self) -> impl Iterator<Item = &Fault> {
        self.kept.iter()
    }

    /// How many there are, those not kept included.
    pub fn count(&self) -> usize {
        self.kept.len().saturating_add(self.dropped)
    }

    /// Whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    pub(super) fn add(&mut self, fault: Fault) {
        if self.kept.len() < MAX_FAULTS {
            self.kept.push(fault);
        } else {
            self.dropped = self.dropped.saturating_add(1);
        }
    }

    pub(super) fn sorted(mut self) -> Self {
        self.kept.sort_by_key(|fault| fault.at);
        self
    }

    /// One line per fault, each starting with `file:line:column`, so that editors can jump there.
    pub fn report(&self, file: &str) -> String {
        let mut text = String::new();
        for fault in &self.kept {
            text.push_str(&format!("{file}:{fault}\n"));
        }
        if self.dropped > 0 {
            text.push_str(&format!("{file}: and {} more\n", self.dropped));
        }
        text
    }
}

/// The beginning of a faulty value, quoted, with anything unprintable escaped.
pub(super) fn quoted(value: &str) -> String {
    let mut text: String = value.chars().take(MAX_QUOTED).flat_map(char::escape_debug).collect();
    if value.chars().nth(MAX_QUOTED).is_some() {
        text.push('…');
    }
    format!("`{text}`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_counts_lines_and_characters_from_one() {
        assert_eq!(Position::after(""), Position::START);
        assert_eq!(Position::after("a\nbü"), Position { line: 2, column: 3 });
        assert_eq!(Position::after("a\n"), Position { line: 2, column: 1 });
    }

    #[test]
    fn no_more_faults_are_kept_than_anyone_reads_but_all_are_counted() {
        let mut faults = Faults::default();
        for line in 0..(MAX_FAULTS + 5) {
            let at = Position { line, column: 1 };
            faults.add(Fault { at, path: "x".into(), problem: "bad".into(), remedy: "mend it".into() });
        }
        assert_eq!(faults.count(), MAX_FAULTS + 5);
        assert_eq!(faults.iter().count(), MAX_FAULTS);
        assert!(faults.report("f.yaml").ends_with("f.yaml: and 5 more\n"));
    }

    #[test]
    fn a_long_or_unprintable_value_is_quoted_short_and_escaped() {
        assert_eq!(quoted("a\u{7}b"), "`a\\u{7}b`");
        assert!(quoted(&"x".repeat(1000)).chars().count() < 50);
    }
}
