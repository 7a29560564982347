//! On the machine that builds, where its C library knows them (GNU's, from 2.36 on), the addresses that are only known once the
//! binary is loaded are packed: a third of a megabyte less, on the disk and in memory. What is built for other machines
//! (`packaging/build.sh`) does without.

use std::env;
use std::process::Command;

const KNOWN_SINCE: (u32, u32) = (2, 36);

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let told = |name| env::var(name).unwrap_or_default();
    let is_for_itself = told("TARGET") == told("HOST") && told("CARGO_CFG_TARGET_ARCH") == "x86_64";
    if is_for_itself && glibc_version().is_some_and(|version| version >= KNOWN_SINCE) {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// Of this machine, if its C library is GNU's.
fn glibc_version() -> Option<(u32, u32)> {
    let told = Command::new("getconf").arg("GNU_LIBC_VERSION").output().ok()?;
    let told = String::from_utf8(told.stdout).ok()?;
    let (major, minor) = told.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
