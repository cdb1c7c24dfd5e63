//! The YAML text as a tree in which every node knows its place.
//!
//! Laws: reading never panics and costs no more than the file is long; one file is one document; a name occurs once
//! in a mapping. Anchors, aliases, merge keys, tags and directives are refused: a configuration says what it means
//! in the place where it stands (and no alias can blow it up). After a syntax error nothing further is known, so the
//! tree is given up; every other fault leaves a hole ([`Kind::Broken`]) and reading goes on.
//! Not here: which fields exist (`schema`). Sources: YAML 1.2.2 §3.2.1 (unique keys), §7.1 (aliases).

use std::collections::BTreeMap;

use serde_saphyr::granit_parser::{ErrorKind, Event, Parser, ScalarStyle, ScanError, Span, options};

use super::faults::{Fault, Faults, Position};

/// Levels of nesting: the deepest field is four levels down.
const MAX_DEPTH: usize = 16;

/// One node of the tree.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) at: Position,
    pub(super) kind: Kind,
}

/// What a node is.
#[derive(Debug)]
pub(super) enum Kind {
    /// Text; `plain` when it was written without quotes, so that it may also be a number, a boolean or nothing.
    Scalar { text: String, plain: bool },
    /// A sequence.
    List(Vec<Node>),
    /// A mapping, in the order of the file.
    Map(Vec<Entry>),
    /// A fault was reported here already.
    Broken,
}

/// One line of a mapping.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) at: Position,
    pub(super) value: Node,
}

impl Node {
    /// Whether nothing was written: empty, `~` or `null`.
    pub(super) fn is_null(&self) -> bool {
        match &self.kind {
            Kind::Scalar { text, plain } => {
                *plain && matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL")
            }
            Kind::List(_) | Kind::Map(_) | Kind::Broken => false,
        }
    }
}

/// Reads `text` as one document. `None` when there is no tree to go on with: nothing was written, or a syntax error
/// (then it is among the faults).
pub(super) fn read(text: &str, faults: &mut Faults) -> Option<Node> {
    let options = options! {
        emit_comments: false,
        disallow_directives: true,
        flow_nesting_limit: MAX_DEPTH,
        block_nesting_limit: MAX_DEPTH,
    };
    let mut builder = Builder { faults, stack: Vec::new(), root: None, documents: 0 };
    for step in Parser::new_from_str_with_options(text, options) {
        match step {
            Ok((event, span)) => builder.take(event, span),
            Err(error) => {
                builder.faults.add(syntax_fault(text, &error));
                return None;
            }
        }
    }
    builder.root
}

fn syntax_fault(text: &str, error: &ScanError) -> Fault {
    let marker = error.marker();
    let at = Position { line: marker.line().max(1), column: marker.col().saturating_add(1) };
    let open =
        matches!(error.kind(), ErrorKind::UnclosedFlowCollection { .. } | ErrorKind::UnclosedQuotedScalar);
    let cut_off = open || at >= Position::after(text.trim_end());
    let problem = format!("this is not YAML: {}", error.info());
    let remedy = if cut_off {
        "close what is open; if the file was cut off (half-written), write it again"
    } else {
        "mend it here or just before (indentation, quotes, brackets); what follows was not checked"
    };
    Fault { at, path: String::new(), problem, remedy: remedy.to_owned() }
}

struct Builder<'f> {
    faults: &'f mut Faults,
    stack: Vec<Frame>,
    root: Option<Node>,
    documents: usize,
}

enum Frame {
    List { at: Position, nodes: Vec<Node> },
    Map { at: Position, entries: Vec<Entry>, seen: BTreeMap<String, Position>, key: Option<Key> },
}

/// A key that waits for its value; `None` when the key itself was refused.
type Key = Option<(String, Position)>;

impl Builder<'_> {
    fn take(&mut self, event: Event<'_>, span: Span) {
        let at = Position { line: span.start.line().max(1), column: span.start.col().saturating_add(1) };
        self.refuse_properties(&event, at);
        match event {
            Event::DocumentStart(..) => {
                self.documents = self.documents.saturating_add(1);
                if self.documents == 2 {
                    self.fault(
                        at,
                        "a second document starts here",
                        "keep one document; remove `---` and what follows",
                    );
                }
            }
            Event::Scalar(text, style, ..) => {
                let plain = style == ScalarStyle::Plain;
                self.put(Node { at, kind: Kind::Scalar { text: text.into_owned(), plain } });
            }
            Event::Alias(..) | Event::UnresolvedAlias(..) => {
                self.fault(at, "aliases (`*name`) are not supported", "write the value out");
                self.put(Node { at, kind: Kind::Broken });
            }
            Event::SequenceStart(..) => self.stack.push(Frame::List { at, nodes: Vec::new() }),
            Event::MappingStart(..) => {
                let (entries, seen) = (Vec::new(), BTreeMap::new());
                self.stack.push(Frame::Map { at, entries, seen, key: None });
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            // Comments and anchors are not emitted with these options; the ends carry nothing.
            Event::StreamStart | Event::StreamEnd | Event::DocumentEnd | Event::Anchor(..) | _ => {}
        }
    }

    fn refuse_properties(&mut self, event: &Event<'_>, at: Position) {
        if event.anchor_id().is_some() {
            self.fault(at, "anchors (`&name`) are not supported", "remove the anchor and write values out");
        }
        if event.tag().is_some() {
            self.fault(at, "tags (`!name`) are not supported", "remove the tag");
        }
    }

    fn close(&mut self) {
        let node = match self.stack.pop() {
            Some(Frame::List { at, nodes }) => Node { at, kind: Kind::List(nodes) },
            Some(Frame::Map { at, entries, .. }) => Node { at, kind: Kind::Map(entries) },
            None => return,
        };
        self.put(node);
    }

    fn put(&mut self, node: Node) {
        match self.stack.last_mut() {
            None if self.root.is_none() => self.root = Some(node),
            None => {}
            Some(Frame::List { nodes, .. }) => nodes.push(node),
            Some(Frame::Map { entries, seen, key, .. }) => match key.take() {
                None => {
                    let (name, fault) = as_key(node);
                    *key = Some(name);
                    if let Some(fault) = fault {
                        self.faults.add(fault);
                    }
                }
                Some(None) => {}
                Some(Some((name, at))) => match seen.get(&name) {
                    Some(first) => {
                        let problem = format!("given twice; the first is at {first}");
                        let remedy = "keep one of the two".to_owned();
                        self.faults.add(Fault { at, path: name, problem, remedy });
                    }
                    None => {
                        seen.insert(name.clone(), at);
                        entries.push(Entry { name, at, value: node });
                    }
                },
            },
        }
    }

    fn fault(&mut self, at: Position, problem: &str, remedy: &str) {
        self.faults.add(Fault {
            at,
            path: String::new(),
            problem: problem.to_owned(),
            remedy: remedy.to_owned(),
        });
    }
}

fn as_key(node: Node) -> (Key, Option<Fault>) {
    match node.kind {
        Kind::Scalar { text, .. } => (Some((text, node.at)), None),
        Kind::Broken => (None, None),
        Kind::List(_) | Kind::Map(_) => {
            let problem = "a list or mapping stands where a field's name should be".to_owned();
            let remedy = "write `name: value`".to_owned();
            (None, Some(Fault { at: node.at, path: String::new(), problem, remedy }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults_of(text: &str) -> Vec<String> {
        let mut faults = Faults::default();
        read(text, &mut faults);
        faults.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_tree_knows_where_each_node_stands() {
        let mut faults = Faults::default();
        let root = read("a: 1\nb:\n  - x\n  - 'y'\n", &mut faults).unwrap();
        assert!(faults.is_empty());
        let Kind::Map(entries) = root.kind else { panic!("a mapping") };
        assert_eq!(entries[1].at, Position { line: 2, column: 1 });
        let Kind::List(items) = &entries[1].value.kind else { panic!("a list") };
        assert_eq!(items[1].at, Position { line: 4, column: 5 });
        assert!(matches!(&items[1].kind, Kind::Scalar { text, plain: false } if text == "y"));
    }

    #[test]
    fn a_name_given_twice_is_reported_with_both_places() {
        assert_eq!(
            faults_of("a: 1\nb: 2\na: 3\n"),
            ["3:1: a: given twice; the first is at 1:1; keep one of the two"]
        );
    }

    #[test]
    fn anchors_aliases_tags_and_second_documents_are_refused_all_at_once() {
        let found = faults_of("a: &x 1\nb: *x\nc: !!str 2\n---\nd: 1\n");
        assert_eq!(found.len(), 4, "{found:#?}");
        assert!(found[0].starts_with("1:"), "{found:#?}");
        assert!(found[1].starts_with("2:4: aliases"), "{found:#?}");
    }

    #[test]
    fn an_alias_bomb_costs_nothing() {
        let mut text = "a: &a [x, x, x]\n".to_owned();
        for (from, to) in ('a'..='y').zip('b'..='z') {
            text.push_str(&format!("{to}: &{to} [*{from}, *{from}, *{from}, *{from}]\n"));
        }
        assert!(!faults_of(&text).is_empty());
    }

    #[test]
    fn deep_nesting_is_a_fault_and_not_a_crash() {
        for open in ["[", "{a: ", "- "] {
            let found = faults_of(&open.repeat(100_000));
            assert_eq!(found.len(), 1, "{open}: {found:#?}");
        }
    }

    #[test]
    fn a_file_that_ends_in_the_middle_says_so() {
        let found = faults_of("a: [1, 2\n");
        assert!(found[0].contains("half-written"), "{found:#?}");
        let found = faults_of("a: \"open\n");
        assert!(found[0].contains("half-written"), "{found:#?}");
    }
}
