//! The text format of Prometheus, version 0.0.4.

use std::fmt::Write as _;

use super::{BUCKETS, Endings, Histogram};

/// The content type.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Names and values of labels.
pub type Labels<'l> = &'l [(&'l str, &'l str)];

/// A page that is being written.
#[derive(Default)]
pub struct Exposition(String);

impl Exposition {
    /// The page.
    pub fn into_text(self) -> String {
        self.0
    }

    /// Begins a family: `kind` is `counter`, `gauge` or `histogram`. What follows is of it until the next begins.
    pub fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// One number of the family.
    pub fn sample(&mut self, name: &str, labels: Labels<'_>, value: f64) {
        self.0.push_str(name);
        for (at, (label, text)) in labels.iter().enumerate() {
            self.0.push(if at == 0 { '{' } else { ',' });
            let _ = write!(self.0, "{label}=\"");
            for c in text.chars() {
                match c {
                    '\\' => self.0.push_str("\\\\"),
                    '"' => self.0.push_str("\\\""),
                    '\n' => self.0.push_str("\\n"),
                    c => self.0.push(c),
                }
            }
            self.0.push('"');
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }

    /// A family of one number without labels.
    pub fn single(&mut self, name: &str, kind: &str, help: &str, value: f64) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }

    /// One histogram of the family.
    pub fn histogram(&mut self, name: &str, labels: Labels<'_>, histogram: &Histogram) {
        let (counts, sum_us) = histogram.read();
        let (bucket, mut so_far) = (format!("{name}_bucket"), 0);
        let bounds = BUCKETS.iter().map(|(_, bound)| *bound).chain(["+Inf"]);
        for (count, bound) in counts.iter().zip(bounds) {
            so_far += count;
            self.sample(&bucket, &[labels, &[("le", bound)]].concat(), so_far as f64);
        }
        self.sample(&format!("{name}_sum"), labels, sum_us as f64 / 1e6);
        self.sample(&format!("{name}_count"), labels, so_far as f64);
    }

    /// One line for each ending, with these labels before it.
    pub fn endings(&mut self, name: &str, labels: Labels<'_>, endings: &Endings) {
        for (ending, count) in endings.read() {
            self.sample(name, &[labels, &[("outcome", ending)]].concat(), count as f64);
        }
    }
}
