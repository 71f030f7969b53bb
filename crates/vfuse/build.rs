// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Compiles the library of `vfuse run --traps` (crate `traps`), which becomes
//! part of the program. Cargo makes a library for other programs only on its
//! own account, so the compiler is called here; the crate needs no other.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let sources = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../traps/src");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={}", sources.display());
    let library = PathBuf::from(env::var("OUT_DIR")?).join("libtraps.so");
    if env::var("CARGO_CFG_TARGET_ARCH")? != "x86_64" {
        // Empty: `--traps` says so.
        return Ok(std::fs::write(library, [])?);
    }
    let mut command = Command::new(env::var("RUSTC")?);
    command.args(["--crate-name", "traps", "--crate-type", "cdylib", "--edition", "2024"]);
    command.args(["-C", "opt-level=s", "-C", "lto=fat", "-C", "panic=abort", "-C", "strip=symbols"]);
    command.arg("--target").arg(env::var("TARGET")?);
    if let Ok(linker) = env::var("RUSTC_LINKER") {
        command.arg("-C").arg(format!("linker={linker}"));
    }
    let status = command.arg("-o").arg(&library).arg(sources.join("lib.rs")).status()?;
    if status.success() { Ok(()) } else { Err(format!("{command:?}: {status}").into()) }
}
