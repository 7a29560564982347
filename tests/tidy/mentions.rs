//! Files and folders that comments and documents name are there.

use std::fs;
use std::path::{Path, PathBuf};

use crate::rust_files;

/// What looks like a file or folder of this project between the backticks of a line.
fn mentioned(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2).filter(|text| {
        let is_path = text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_/.".contains(c));
        let is_ours = text.ends_with(".rs") || (text.ends_with('/') && text.len() > 1);
        is_path && is_ours && !text.starts_with('/') && *text != "mod.rs"
    })
}

/// Whether it is there: from the top, from the source, or from where it is named.
fn is_there(top: &Path, named_in: &Path, path: &str) -> bool {
    let here = named_in.ancestors().skip(1).take_while(|folder| folder.starts_with(top));
    let mut roots: Vec<PathBuf> = here.map(Path::to_path_buf).collect();
    roots.extend([top.join("src"), top.join("tests")]);
    roots.iter().any(|root| root.join(path).exists())
}

#[test]
fn whatever_file_is_named_is_there() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut named_in = ["README.md", "CONTRIBUTING.md", "schema.sql"].map(|file| top.join(file)).to_vec();
    for folder in ["src", "tests", "examples"] {
        rust_files(&top.join(folder), &mut named_in);
    }
    let mut gone = Vec::new();
    for file in &named_in {
        let is_code = file.extension().is_some_and(|e| e == "rs");
        for (number, line) in fs::read_to_string(file).unwrap().lines().enumerate() {
            if is_code && !line.trim_start().starts_with("//") {
                continue;
            }
            for path in mentioned(line).filter(|path| !is_there(top, file, path)) {
                gone.push(format!("{}:{}: {path} is not there", file.display(), number + 1));
            }
        }
    }
    assert!(gone.is_empty(), "\n{}", gone.join("\n"));
}

#[test]
fn paths_are_told_from_other_code() {
    let found: Vec<&str> =
        mentioned("See `store/rooms/`, `lib.rs` and `/sync`; `PUT /send`, `a/b` and `mod` are none.")
            .collect();
    assert_eq!(found, ["store/rooms/", "lib.rs"]);
}
