//! `tests/common` is public in each test program, so the compiler does not say what nobody uses any more.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::rust_files;

fn words(text: &str) -> impl Iterator<Item = &str> {
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    code.flat_map(|line| line.split(|c: char| !c.is_alphanumeric() && c != '_'))
        .filter(|word| !word.is_empty())
}

/// The names of the public functions, types and constants that these lines define.
fn defined(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| {
        let mut words = words(line.trim_start().strip_prefix("pub ")?);
        ["fn", "struct", "enum", "const", "type", "trait"].contains(&words.next()?).then(|| words.next())?
    })
}

#[test]
fn whatever_the_tests_have_in_common_is_used_by_one_of_them() {
    let mut paths = Vec::new();
    rust_files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests"), &mut paths);
    let texts: Vec<(PathBuf, String)> =
        paths.into_iter().map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect();
    let mut uses: HashMap<&str, usize> = HashMap::new();
    for word in texts.iter().flat_map(|(_, text)| words(text)) {
        *uses.entry(word).or_default() += 1;
    }
    let common = texts.iter().filter(|(path, _)| path.components().any(|c| c.as_os_str() == "common"));
    let defined: Vec<&str> = common.flat_map(|(_, text)| defined(text)).collect();
    assert!(defined.len() > 50, "{defined:?}");
    let definitions = |name: &str| defined.iter().filter(|other| **other == name).count();
    let unused: Vec<_> = defined.iter().filter(|name| uses[**name] <= definitions(name)).collect();
    assert!(unused.is_empty(), "nobody uses {unused:?}");
}
