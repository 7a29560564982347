//! What of YAML is in a registration: one document of maps, lists and scalars, each with its line. Anchors stand for what is
//! elsewhere, which a file that is read by people needs no more than this server does: they are refused.

use libyaml_safer::{Event, EventData, Parser, ScalarStyle};

/// The deepest nesting that is read.
const DEPTH_MAX: usize = 16;

/// A value, and the line that it begins on, counted from 1.
#[derive(Debug)]
pub(super) struct Node {
    pub line: u64,
    pub value: Value,
}

#[derive(Debug)]
pub(super) enum Value {
    /// Text, and whether it stands there without quotes, so that it may mean something else than itself.
    Scalar(String, bool),
    List(Vec<Node>),
    /// In the order of the file; no key is there twice.
    Map(Vec<(String, Node)>),
}

impl Node {
    /// What stands behind a key of this map.
    pub(super) fn get(&self, key: &str) -> Option<&Node> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|(name, _)| name == key).map(|(_, node)| node),
            _ => None,
        }
    }

    /// Whether this is nothing: `null`, `~`, or a key with nothing behind it.
    pub(super) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar(text, true) if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// Text; a number is its digits.
    pub(super) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar(text, _) if !self.is_null() => Some(text),
            _ => None,
        }
    }

    /// A truth value, in any of the spellings that YAML has had for one.
    pub(super) fn truth(&self) -> Option<bool> {
        let Value::Scalar(text, true) = &self.value else { return None };
        match text.as_str() {
            "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => Some(true),
            "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => Some(false),
            _ => None,
        }
    }
}

/// Reads a document. Errors: a sentence's end, which begins with the line if one is to blame.
pub(super) fn parse(text: &str) -> Result<Node, String> {
    let mut input = text.as_bytes();
    let mut parser = Parser::new();
    parser.set_input_string(&mut input);
    let mut reader = Reader { parser };
    let mut root = None;
    loop {
        let event = reader.next()?;
        match event.data {
            EventData::StreamEnd => return root.ok_or_else(|| "has nothing in it".into()),
            EventData::DocumentStart { .. } if root.is_some() => {
                return Err(at(&event, "a second document begins here: each service has a file of its own"));
            }
            EventData::DocumentStart { .. } => {
                let first = reader.next()?;
                root = Some(reader.node(first, 0)?);
            }
            _ => {}
        }
    }
}

fn at(event: &Event, what: &str) -> String {
    format!("line {}: {what}", event.start_mark.line + 1)
}

struct Reader<'r, 't> {
    parser: Parser<&'r mut &'t [u8]>,
}

impl Reader<'_, '_> {
    fn next(&mut self) -> Result<Event, String> {
        self.parser.parse().map_err(|e| match e.problem_mark() {
            Some(mark) => format!("line {}: is not YAML: {}", mark.line + 1, e.problem()),
            None => format!("is not YAML: {}", e.problem()),
        })
    }

    /// The value that begins with this event.
    fn node(&mut self, event: Event, depth: usize) -> Result<Node, String> {
        if depth > DEPTH_MAX {
            return Err(at(&event, "nested too deeply"));
        }
        let line = event.start_mark.line + 1;
        let value = match event.data {
            EventData::Scalar { value, style, .. } => Value::Scalar(value, style == ScalarStyle::Plain),
            EventData::SequenceStart { .. } => Value::List(self.list(depth)?),
            EventData::MappingStart { .. } => Value::Map(self.map(depth)?),
            EventData::Alias { anchor } => {
                return Err(format!(
                    "line {line}: *{anchor} stands for something else: write that here itself"
                ));
            }
            _ => return Err(format!("line {line}: a value is missing")),
        };
        Ok(Node { line, value })
    }

    fn list(&mut self, depth: usize) -> Result<Vec<Node>, String> {
        let mut list = Vec::new();
        loop {
            let event = self.next()?;
            if event.data == EventData::SequenceEnd {
                return Ok(list);
            }
            list.push(self.node(event, depth + 1)?);
        }
    }

    fn map(&mut self, depth: usize) -> Result<Vec<(String, Node)>, String> {
        let mut map: Vec<(String, Node)> = Vec::new();
        loop {
            let event = self.next()?;
            if event.data == EventData::MappingEnd {
                return Ok(map);
            }
            let key = self.node(event, depth + 1)?;
            let Value::Scalar(name, _) = key.value else {
                return Err(format!("line {}: a key has to be text", key.line));
            };
            if map.iter().any(|(known, _)| *known == name) {
                return Err(format!("line {}: {name}: is there twice", key.line));
            }
            let event = self.next()?;
            let value = self.node(event, depth + 1)?;
            // What is not there stands nowhere; its key does.
            let value = if value.is_null() { Node { line: key.line, ..value } } else { value };
            map.push((name, value));
        }
    }
}
